"""
``gridnet scire``: the job server from the command line.

Every ``admin.`` method is a command of its own (``job-create``, ``run-list`` ...), made from the
method's declaration: an argument of a structure is ``name=value`` words or ``@file.toml``, an
array is separated by commas.  What needs the server's files and not the server (``init``,
``init-ca``, ``user-token`` ...) is written by hand below.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import ssl
import sys
import tomllib
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from inspect import signature
from pathlib import Path
from typing import Any

from gridnet.component import config_classes
from gridnet.config import SiteConfig, read
from gridnet.errors import ConfigError, Fault, GridnetError
from gridnet.scire import installing
from gridnet.scire.client.rpc import Channel
from gridnet.scire.config import ScireConfig
from gridnet.scire.faults import ScireFault
from gridnet.scire.methods import Method
from gridnet.scire.store.opening import open_database

_CONNECT_SECONDS, _CALL_SECONDS = 5.0, 120.0
_PIECE = 524288  # octets
_MOST_SHOWN, _MOST_SHOWN_LAST = 64, 240  # characters of a column
#: Where ``init`` leaves root's token, relative to state_dir.
TOKEN_FILE = Path("scire/root.token")


# -- from words to values ----------------------------------------------------------------------


def _scalar(text: str) -> Any:
    """``5`` is a number, ``true`` a truth value, a time a time; the rest is text."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return _wire(datetime.fromisoformat(text)) if "T" in text else text
    except ValueError:
        return text


def _wire(value: Any) -> Any:
    """A TOML or JSON value as XML-RPC has it."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, Mapping):
        return {name: _wire(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_wire(element) for element in value]
    return value


def _load(path: Path) -> Any:
    """
    A file's value; ``script_file`` and ``content_file`` stand for what is in those files.

    :raises ConfigError: it cannot be read.
    """
    try:
        octets = path.read_bytes()
        if path.suffix == ".json":
            return _files(_wire(json.loads(octets)), path.parent)
        return _files(_wire(tomllib.loads(octets.decode("utf-8"))), path.parent)
    except (OSError, ValueError) as error:
        raise ConfigError([Fault(str(path), str(error))]) from None


def _files(value: Any, directory: Path) -> Any:
    if isinstance(value, dict):
        found = {}
        for name, member in value.items():
            if name in ("script_file", "content_file"):
                content = (directory / str(member)).read_bytes()
                found[name.removesuffix("_file")] = content
            else:
                found[name] = _files(member, directory)
        return found
    if isinstance(value, list):
        return [_files(element, directory) for element in value]
    return value


def _struct(words: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        if word.startswith("@"):
            loaded = _load(Path(word[1:]))
            if not isinstance(loaded, dict):
                raise ConfigError([Fault(word, "expected a table")])
            values.update(loaded)
            continue
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError([Fault(word, "expected name=value or @file")])
        # Dots lead into structures: targets.clients=a,b
        place = values
        *above, last = name.split(".")
        for step in above:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise ConfigError([Fault(word, f"{step} has a value already")])
        place[last] = _member(text, name, last)
    return values


#: Members that are arrays: of ids and names, or numbers; and of texts.
_LISTS = frozenset({"clients", "groups", "not_clients", "not_groups", "success"})
_TEXT_LISTS = frozenset({"arguments", "blackouts", "networks", "notify", "requires"})
#: Members that are text, whatever it looks like.
_TEXTS = frozenset(
    {"callback_address", "cron", "description", "directory", "full_name", "interpreter", "name"}
    | {"name_pattern", "note", "permission", "script", "umask", "zone"}
)


def _member(text: str, name: str, last: str) -> Any:
    """The value of the member *name* (with dots; *last* is what follows them)."""
    if last in _LISTS:
        return [_scalar(part) for part in text.split(",") if part]
    if last in _TEXT_LISTS:
        return [part for part in text.split(",") if part]
    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    if last in _TEXTS or name == "execute.user" or name.startswith("execute.variables."):
        return text
    return _scalar(text)


def _integer(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"expected a number, found {word}") from None


def _argument(kind: str, words: list[str]) -> Any:
    """Take one argument of type *kind* from the front of *words*."""
    if kind == "struct":
        taken = [word for word in words if "=" in word or word.startswith("@")]
        for word in taken:
            words.remove(word)
        return _struct(taken)
    word = words.pop(0)
    if kind == "int":
        return _integer(word)
    if kind == "ref":
        return int(word) if word.isdigit() else word
    if kind == "boolean":
        if word not in ("true", "false"):
            raise ValueError(f"expected true or false, found {word}")
        return word == "true"
    if kind == "array":
        return [_scalar(part) for part in word.split(",") if part]
    if kind == "base64":
        return Path(word.removeprefix("@")).read_bytes()
    if kind == "double":
        return float(word)
    return Path(word[1:]).read_text("utf-8") if word.startswith("@") else word


def arguments_of(method: Method, words: Sequence[str]) -> list[Any]:
    """
    The arguments of a call from the words of a command line.

    :raises ConfigError: too few, too many, or one that is none of its type.
    """
    left: list[str] = list(words)
    values: list[Any] = []
    least = len(method.params) - method.optional
    try:
        for number, kind in enumerate(method.params):
            if not left and number >= least:
                break
            if not left and kind != "struct":
                raise ConfigError([Fault(command_name(method), f"takes {usage(method)}")])
            values.append(_argument(kind, left))
    except (ValueError, OSError) as error:
        raise ConfigError([Fault(command_name(method), str(error))]) from None
    if left:
        raise ConfigError([Fault(command_name(method), f"takes {usage(method) or 'nothing'}")])
    return values


def command_name(method: Method) -> str:
    """``admin.job_list`` -> ``job-list``."""
    return method.name.removeprefix("admin.").replace("_", "-")


_KINDS = {
    "ref": "id or name",
    "array": "separated by commas",
    "boolean": "true or false",
    "base64": "a file",
    "int": "a number",
    "struct": "see docs/protocols/scire.rst; @FILE.toml or @FILE.json for a whole one",
}


def _arguments(method: Method) -> Iterator[tuple[str, str]]:
    """What follows a command's name, and of which type each is."""
    names = list(signature(method.function).parameters)[-len(method.params) :]
    for name, kind in zip(names, method.params, strict=False):
        yield "NAME=VALUE..." if kind == "struct" else name.upper(), kind


def usage(method: Method) -> str:
    """What follows a command's name."""
    least = len(method.params) - method.optional
    words = [word for word, _ in _arguments(method)]
    return " ".join(w if n < least else f"[{w}]" for n, w in enumerate(words))


def explain(method: Method) -> str:
    """What ``COMMAND --help`` prints."""
    lines = [f"usage: gridnet scire ... {command_name(method)} {usage(method)}".rstrip()]
    lines += ["", method.help]
    arguments = [(word, _KINDS.get(kind, "text, or @FILE")) for word, kind in _arguments(method)]
    if arguments:
        width = max(len(word) for word, _ in arguments)
        lines += ["", *(f"  {word:<{width}}  {kind}" for word, kind in arguments)]
    return "\n".join(lines)


# -- from values to text -----------------------------------------------------------------------


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return " ".join(f"{name}={_text(member)}" for name, member in value.items())
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """
    Rows as columns of text; columns that are empty everywhere are left out.

    They are cut to what a digest takes, which people compare; the last is longer.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_text(row.get(name, "")) for name in names] for row in rows]
    shown = [n for n in range(len(names)) if any(row[n] for row in cells)]
    for row in cells:
        for n in shown:
            row[n] = row[n][: _MOST_SHOWN if n != shown[-1] else _MOST_SHOWN_LAST]
    lines = [[names[n] for n in shown], *([row[n] for n in shown] for row in cells)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(shown))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _as_json(value: object) -> Any:
    if isinstance(value, datetime):
        return _text(value)
    if isinstance(value, bytes):
        return b64encode(value).decode("ascii")
    raise TypeError(type(value).__name__)


def shown(value: Any, as_json: bool) -> str:
    """An answer for people, or (``--json``) for programs."""
    if as_json:
        return json.dumps(value, default=_as_json, indent=2)
    if isinstance(value, dict) and set(value) == {"items", "next"}:
        text = table(value["items"]) if value["items"] else "none"
        return text if not value["next"] else f"{text}\nmore: after={value['next']}"
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return table(value)
    if isinstance(value, dict):
        width = max(map(len, value), default=0)
        return "\n".join(f"{name:<{width}}  {_text(member)}" for name, member in value.items())
    return _text(value)


# -- commands that need files, not a server ----------------------------------------------------


def _site(options: argparse.Namespace) -> tuple[SiteConfig, ScireConfig, Path]:
    if options.config is None:
        raise ConfigError([Fault("--config", "name the site file")])
    config = read(options.config, config_classes())
    section = config.sections.get("scire", ScireConfig())
    assert isinstance(section, ScireConfig)
    state = config.path(config.site.state_dir)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return config, section, state


def _hosts(options: argparse.Namespace, site: SiteConfig) -> list[str]:
    return [*(options.host or []), site.site.address, "localhost", "127.0.0.1"]


def _init_ca(options: argparse.Namespace) -> None:
    site, section, state = _site(options)
    installing.create_authority(section, state, f"{site.site.name} fleet")
    installing.create_server_certificate(section, state, _hosts(options, site))
    path = state / section.tls.fleet_ca
    print(f"authority in {path}")
    print(f"fingerprint {fingerprint(path)}")


def fingerprint(path: Path) -> str:
    """SHA-256 of a certificate in a PEM file: what clients may be given to know it by."""
    return sha256(ssl.PEM_cert_to_DER_cert(path.read_text("ascii"))).hexdigest()


def _server_certificate(options: argparse.Namespace) -> None:
    site, section, state = _site(options)
    installing.create_server_certificate(section, state, _hosts(options, site))
    print(f"certificate in {state / section.tls.certificate}")


def _user_token(options: argparse.Namespace) -> None:
    _, section, state = _site(options)
    database = open_database(section.database, state, 1, "command")
    print(installing.create_user_token(database, options.user, "made on the server's host"))


def _init(options: argparse.Namespace) -> None:
    _, section, state = _site(options)
    _init_ca(options)
    database = open_database(section.database, state, 1, "command")
    token = installing.create_user_token(database, "root", "made by gridnet scire init")
    installing.write_private(state / TOKEN_FILE, token.encode("ascii"))
    print(f"root's token in {state / TOKEN_FILE}")


_OWN = {
    "init": (_init, "make authority, server certificate, tables and root's token"),
    "init-ca": (_init_ca, "make the authority and this server's certificate"),
    "server-certificate": (_server_certificate, "make this server's certificate"),
    "user-token": (_user_token, "make a token of a user, straight in the database"),
}


# -- commands that ask the server --------------------------------------------------------------


_ADMIN = re.compile(r"tcp6?:(?:port=)?(\d+)(?:.*:interface=((?:\\:|[^:])+))?.*")


def admin_url(endpoint: str) -> str:
    """
    Where the administration listener of a site file is.

    :raises ConfigError: there is none, or nobody can tell.
    """
    found = _ADMIN.fullmatch(endpoint)
    if found is None or found[1] == "0":
        what = f"cannot tell the URL from {endpoint!r}; name it with --url"
        raise ConfigError([Fault("scire.listen_admin", what)])
    host = (found[2] or "127.0.0.1").replace("\\:", ":")
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return f"https://{shown}:{found[1]}/RPC2"


def _channel(options: argparse.Namespace) -> Channel:
    url, ca, token_file = options.url, options.ca, options.token_file
    if options.config is not None:
        _, section, state = _site(options)
        url = url or admin_url(section.listen_admin)
        ca = ca or state / section.tls.fleet_ca
        token_file = token_file or state / TOKEN_FILE
    if url is None or ca is None or (token_file is None and options.user is None):
        what = "name the site file, or --url, --ca and --token-file"
        raise ConfigError([Fault("gridnet scire", what)])
    try:
        context = ssl.create_default_context(cafile=str(ca))
        if options.user is not None:
            from getpass import getpass

            secret = f"{options.user}:{getpass()}".encode()
            authorization = f"Basic {b64encode(secret).decode('ascii')}"
        else:
            authorization = f"Bearer {token_file.read_text('ascii').strip()}"
    except OSError as error:
        raise ConfigError([Fault("gridnet scire", str(error))]) from None
    return Channel(url, context, _CONNECT_SECONDS, _CALL_SECONDS, authorization)


def _output(channel: Channel, words: Sequence[str]) -> None:
    """Everything that a run wrote."""
    if not 1 <= len(words) <= 2:
        raise ConfigError([Fault("output", "takes RUN [stdout|stderr]")])
    run, offset, stream = _integer(words[0]), 0, words[1] if len(words) > 1 else "stdout"
    while True:
        answer = channel.call("admin.run_output", [run, stream, offset, _PIECE])
        sys.stdout.buffer.write(answer["data"])
        offset += len(answer["data"])
        if not answer["data"] or offset >= answer["size"]:
            break
    sys.stdout.buffer.flush()


def _upload(channel: Channel, words: Sequence[str]) -> None:
    """Store a file; prints the digest by which definitions name it."""
    if not words:
        raise ConfigError([Fault("upload", "takes FILE...")])
    for word in words:
        octets = Path(word).read_bytes()
        digest = f"sha256:{sha256(octets).hexdigest()}"
        offset, done = 0, False
        while not done:
            piece = octets[offset : offset + _PIECE]
            done = offset + len(piece) >= len(octets)
            offset = channel.call("admin.file_put", [digest, offset, piece, done])
            done = offset >= len(octets)
        print(f"{digest}  {word}")


_LARGE = {
    "output": (_output, "RUN [stdout|stderr]", "print what a run wrote"),
    "upload": (_upload, "FILE...", "store files to attach to jobs"),
}


def _parser(methods: Mapping[str, Method]) -> argparse.ArgumentParser:
    lines = [f"  {name:<22} {text}" for name, (_, text) in _OWN.items()]
    lines += [f"  {name:<22} {words}" for name, (_, words, _) in _LARGE.items()]
    lines += [f"  {name:<22} {usage(method)}" for name, method in methods.items()]
    parser = argparse.ArgumentParser(
        prog="gridnet scire",
        description="Administer the job server.",
        epilog="commands (COMMAND --help tells more):\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="the site file of a server on this host")
    parser.add_argument("--url", help="of an administration listener")
    parser.add_argument("--ca", type=Path, help="the fleet's authority (PEM)")
    parser.add_argument("--token-file", type=Path, help="where a token of yours stands")
    parser.add_argument(
        "--user", help="your name, to be asked for the password; for user-token: whose"
    )
    parser.add_argument("--host", action="append", help="init: name or address of this server")
    parser.add_argument("--json", action="store_true", help="answers as JSON")
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("words", nargs="*", metavar="ARGUMENT")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    from gridnet.scire.service import admin_methods

    methods = {
        command_name(method): method
        for method in admin_methods().values()
        if method.name.startswith("admin.")
    }
    parser = _parser(methods)
    if not {"-h", "--help"}.isdisjoint(arguments):
        for word in arguments:
            if word in methods:
                print(explain(methods[word]))
                return 0
            if word in _OWN or word in _LARGE:
                words, text = ("", _OWN[word][1]) if word in _OWN else _LARGE[word][1:]
                print(f"usage: gridnet scire ... {word} {words}".rstrip() + f"\n\n{text}")
                return 0
    options = parser.parse_intermixed_args(arguments)
    try:
        own = _OWN.get(options.command)
        if own is not None:
            options.user = options.user or "root"
            own[0](options)
            return 0
        large = _LARGE.get(options.command)
        if large is not None:
            large[0](_channel(options), options.words)
            return 0
        method = methods.get(options.command)
        if method is None:
            print(f"gridnet scire: no command {options.command!r}", file=sys.stderr)
            return 2
        values = arguments_of(method, options.words)
        print(shown(_channel(options).call(method.name, values), options.json))
    except BrokenPipeError:
        raise
    except (GridnetError, OSError, ValueError, http.client.HTTPException) as error:
        text = f"fault {error}" if isinstance(error, ScireFault) else str(error)
        print(f"gridnet scire: {text}", file=sys.stderr)
        return 1
    return 0
