"""One logical line to one value (docs/protocols/lbsmd-config.rst, Lines and Server descriptor)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from attrs import evolve, frozen

from gridnet.errors import DescriptorError
from gridnet.lbsmd.servrc.check_list import Check, parse_checks
from gridnet.lbsmd.servrc.fault import LineFault
from gridnet.table.address import canonical_address
from gridnet.table.server_info import (
    ALGORITHM_WORDS,
    KEYWORDS,
    TYPES,
    Algorithm,
    ServerType,
    clamp_bonus,
    clamp_rate,
    format_number,
    format_rate,
    is_http,
    parse_number,
    split_connection_point,
)

DEFAULT_RATE = 1000.0
NAMEHOLD = "NAMEHOLD"
MAX_TIME = 0xFFFFFFFE


@frozen
class Include:
    """Read another file here."""

    file: str
    prefix: str = ""  #: put in front of each of its lines


@frozen
class Zone:
    """This host's zone, as written; :func:`gridnet.lbsmd.servrc.zone.zone_bits` reads it."""

    text: str


@frozen
class MonitoredPort:
    """A port whose capacity is polled."""

    port: int


@frozen
class Environment:
    """A line that is published with the host."""

    name: str
    value: str


@frozen
class Authority:
    """A user, or the members of a group, who may operate on every record of this host."""

    name: str
    group: bool = False


@frozen
class Service:
    """A server of a service, as configured."""

    name: str
    type: ServerType
    host: str = ""  #: as written (no brackets); empty: this host
    port: int | None = None  #: None: not written; a default applies when there is one
    arguments: str | None = None  #: NCBID: arguments; HTTP*: path; None: the type has none
    rate: float = DEFAULT_RATE
    local: bool = False
    private: bool = False
    stateful: bool = False
    secure: bool = False
    content_type: str = ""  #: as written; empty: none
    bonus: float = 0.0
    time_seconds: int = 0  #: validity; 0: the daemon's own
    algorithm: Algorithm = Algorithm.REGULAR
    interzone: bool = False
    vhost: str = ""
    checks: tuple[Check, ...] = ()
    launcher: str = ""

    @property
    def static(self) -> bool:
        """Whether its rate is constant: a host is given."""
        return bool(self.host)

    def __str__(self) -> str:
        words = [self.name]
        if self.checks:
            words.append(f"[{','.join(map(str, self.checks))}]")
        words.append(KEYWORDS[self.type])
        if self.host or self.port is not None:
            host = f"[{self.host}]" if ":" in self.host else self.host
            words.append(host + ("" if self.port is None else f":{self.port}"))
        if self.arguments is not None:
            words.append(self.arguments or "''")
        if self.algorithm is Algorithm.BLAST:
            words.append("BlastInter" if self.interzone else "Blast")
        elif self.interzone:
            words.append("RegularInter")
        if self.bonus:
            words.append(f"B={format_number(self.bonus, 2)}")
        if self.content_type:
            words.append(f"C={self.content_type}")
        if self.vhost:
            words.append(f"H={self.vhost}")
        words.append(f"L={'yes' if self.local else 'no'}")
        words += [
            f"{letter}=yes"
            for letter, on in (("P", self.private), ("S", self.stateful), ("$", self.secure))
            if on
        ]
        words.append(f"R={format_rate(self.rate)}")
        if self.time_seconds:
            words.append(f"T={self.time_seconds}")
        if self.launcher:
            words.append(f"| {self.launcher}")
        return " ".join(words)


@frozen
class NameHold:
    """Keeps a name and type from being defined elsewhere."""

    name: str
    held_type: ServerType
    host: str = ""  #: empty: any
    port: int = 0  #: 0: any


Value = Include | Zone | MonitoredPort | Environment | Authority | Service | NameHold

_INCLUDE = re.compile(r"%include[ \t]+([^ \t|](?:[^|]*[^ \t|])?)[ \t]*(?:\|(.*))?", re.DOTALL)
_ZONE = re.compile(r"@[ \t]*([0-9A-Za-z_-]+)[ \t]*")
_ZONE_WORD = re.compile(r"[0-9]{1,10}|0x[0-9a-f]{1,8}|try|qa|dev|[0-9a-z_-]*prod[0-9a-z_-]*")
_PORT = re.compile(r":([0-9]{1,5})[ \t]*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AUTHORITY = re.compile(r"(\*?)([A-Za-z_][A-Za-z0-9_-]*)")
_SERVICE_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)[ \t]*(?=[ \t\[])")
_WORD = re.compile(r"[^ \t]+")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_FLAG = re.compile(r"([A-Za-z$])=(.+)")
_WHOLE = re.compile(r"[0-9]{1,10}")
_CONTENT = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+")


def parse_line(text: str, mail_domain: str) -> Value:
    """
    Read one logical line that is not blank.

    :param mail_domain: the one domain that contacts may be of.
    :raises LineFault: what is wrong, and where in *text*.
    """
    start = len(text) - len(text.lstrip(" \t"))
    body = text[start:]
    if body[0] == "%":
        match = _INCLUDE.fullmatch(body)
        if match is None:
            raise LineFault(start, f"{body[:40]!r}: expected %include FILE [|TEXT]")
        return Include(match[1], match[2] or "")
    if body[0] == "@":
        match = _ZONE.fullmatch(body)
        if match is None or _ZONE_WORD.fullmatch(match[1].lower()) is None:
            raise LineFault(start, f"{body[:40]!r}: expected @ and a number, prod, dev, try or qa")
        return Zone(match[1])
    if body[0] == ":":
        match = _PORT.fullmatch(body)
        if match is None or not 1 <= int(match[1]) <= 65535:
            raise LineFault(start, f"{body[:40]!r}: expected : and a port (1..65535)")
        return MonitoredPort(int(match[1]))
    head, equals, value = text.partition("=")
    name = head.strip(" \t")
    if equals and not re.search(r"[ \t\[|]", name):
        if _IDENTIFIER.fullmatch(name) is None:
            raise LineFault(start, f"{name[:40]!r}: expected a name (letters, digits, _) before =")
        return Environment(name, value)
    words = body.split()
    if len(words) == 1 and "[" not in body:
        match = _AUTHORITY.fullmatch(words[0])
        if match is None:
            raise LineFault(start, f"{words[0][:40]!r}: expected a user, *group, or a service line")
        return Authority(match[2], bool(match[1]))
    return _parse_service(text, start, mail_domain)


def _parse_service(text: str, start: int, mail_domain: str) -> Service | NameHold:
    match = _SERVICE_NAME.match(text, start)
    if match is None:
        raise LineFault(start, f"{text[start : start + 40]!r}: expected a service name")
    at = match.end()
    while text[at] in " \t":
        at += 1
        if at == len(text):
            raise LineFault(at, "expected a server type")
    checks: tuple[Check, ...] = ()
    if text[at] == "[":
        end = text.find("]", at)
        if end < 0:
            raise LineFault(at, "expected ] after the list of checks")
        checks = parse_checks(text[at + 1 : end], at + 1, mail_domain)
        at = end + 1
    descriptor, bar, launcher = text[at:].partition("|")
    tokens = [(word.group(), at + word.start()) for word in _WORD.finditer(descriptor)]
    if not tokens:
        raise LineFault(at, "expected a server type")
    keyword, where = tokens[0]
    if keyword.upper() == NAMEHOLD:
        if bar:
            raise LineFault(at + len(descriptor), "NAMEHOLD takes no launcher information")
        return _parse_namehold(match[1], tokens)
    kind = TYPES.get(keyword.upper())
    if kind is None or kind is ServerType.FIREWALL:
        known = ", ".join([*(name for name in TYPES if name != "FIREWALL"), NAMEHOLD])
        raise LineFault(where, f"{keyword[:40]!r}: expected one of {known}")
    server = _parse_server(match[1], kind, tokens[1:], checks, at + len(descriptor))
    command = launcher.strip(" \t")
    if kind is not ServerType.NCBID:
        if bar:
            raise LineFault(at + len(descriptor), "launcher information is for NCBID only")
        return server
    if not command and (bar or not server.static):
        raise LineFault(
            at + len(descriptor), "expected launcher information (| command) for a local NCBID"
        )
    return evolve(server, launcher=command)


def _is_point(token: str) -> bool:
    return token[0] in ":[" or (
        token[0].isalnum() and "=" not in token and token.lower() not in ALGORITHM_WORDS
    )


def _point(token: str, at: int) -> tuple[str, int | None]:
    """Host as written without brackets, port or None."""
    try:
        host, port = split_connection_point(token)
    except DescriptorError as error:
        raise LineFault(at, str(error)) from None
    if host and canonical_address(host) is None and _HOST.fullmatch(host) is None:
        raise LineFault(at, f"{token[:60]!r}: expected [host][:port]")
    return host, port


def _parse_namehold(name: str, tokens: Sequence[tuple[str, int]]) -> NameHold:
    words = tokens[1:]
    host, port = "", 0
    if len(words) == 2:
        host, written = _point(*words[0])
        port = written or 0
        words = words[1:]
    if len(words) != 1:
        raise LineFault(tokens[0][1], "NAMEHOLD: expected [host][:port] and one server type")
    kind = TYPES.get(words[0][0].upper())
    if kind is None or kind is ServerType.FIREWALL:
        raise LineFault(words[0][1], f"{words[0][0][:40]!r}: expected a server type to hold")
    return NameHold(name, kind, host, port)


def _parse_server(
    name: str,
    kind: ServerType,
    tokens: Sequence[tuple[str, int]],
    checks: tuple[Check, ...],
    end: int,
) -> Service:
    words = list(tokens)
    host, port = "", None
    if words and _is_point(words[0][0]):
        host, port = _point(*words.pop(0))
    arguments: str | None = None
    web = is_http(kind)
    if kind is ServerType.NCBID:
        arguments = ""
        if words:
            word, _ = words.pop(0)
            arguments = "" if word == "''" else word
    elif web:
        if not words or not words[0][0].startswith("/"):
            found = words[0] if words else ("the end", end)
            raise LineFault(found[1], f"{KEYWORDS[kind]}: expected a path, found {found[0][:40]!r}")
        arguments, at = words.pop(0)
        if arguments.endswith("?"):
            raise LineFault(at, f"{arguments[:40]!r}: the question mark has no parameters")
    flags = _parse_flags(kind, words)
    if kind is ServerType.STANDALONE and not port:
        raise LineFault(end, "STANDALONE needs a port (host:port or :port)")
    if port is None and (web or kind is ServerType.NCBID):
        port = 443 if web and flags.get("secure") else 80
    server = Service(name, kind, host, port, arguments, checks=checks)
    server = evolve(server, **flags)
    if server.static and server.algorithm is Algorithm.BLAST:
        raise LineFault(end, "Blast is not for a static server (a host is given)")
    if server.vhost and not (web or (kind is ServerType.STANDALONE and server.secure)):
        raise LineFault(end, "H goes with HTTP, or with a secure STANDALONE")
    return server


_YES_NO = {"L": "local", "P": "private", "S": "stateful", "$": "secure", "X": "interzone"}
_REFUSED = {
    ServerType.DNS: "SPC$",
    ServerType.HTTP: "S",
    ServerType.HTTP_GET: "S",
    ServerType.HTTP_POST: "S",
}


def _parse_flags(kind: ServerType, words: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Attribute of :class:`Service` -> value, of each flag."""
    flags: dict[str, Any] = {}
    seen: set[str] = set()

    def once(letter: str, at: int) -> None:
        if letter in seen:
            raise LineFault(at, f"flag {letter} repeated")
        seen.add(letter)

    for word, at in words:
        load = ALGORITHM_WORDS.get(word.lower())
        if load is not None:
            once("A", at)
            flags["algorithm"] = load[0]
            if load[1]:
                once("X", at)
                flags["interzone"] = True
            continue
        match = _FLAG.fullmatch(word)
        letter = match[1].upper() if match else ""
        if match is None or letter not in "ABCHLPRST$X":
            raise LineFault(at, f"{word[:40]!r}: expected a flag (such as R=1000 or L=no)")
        if letter in _REFUSED.get(kind, ""):
            raise LineFault(at, f"flag {letter} does not go with {KEYWORDS[kind]}")
        once(letter, at)
        flags.update([_flag(letter, match[2], at)])
    return flags


def _flag(letter: str, value: str, at: int) -> tuple[str, object]:
    if letter in _YES_NO:
        if value.lower() not in ("yes", "no"):
            raise LineFault(at, f"flag {letter}: expected yes or no, found {value[:40]!r}")
        return _YES_NO[letter], value.lower() == "yes"
    if letter in "RB":
        number = parse_number(value)
        if number is None:
            raise LineFault(at, f"flag {letter}: expected a number, found {value[:40]!r}")
        if letter == "B":
            return "bonus", clamp_bonus(number)
        return "rate", max(0.0, clamp_rate(number))
    if letter == "A":
        if value not in ("B", "R"):
            raise LineFault(at, f"flag A: expected B or R, found {value[:40]!r}")
        return "algorithm", Algorithm.BLAST if value == "B" else Algorithm.REGULAR
    if letter == "T":
        if _WHOLE.fullmatch(value) is None or int(value) > MAX_TIME:
            raise LineFault(at, f"flag T: expected whole seconds, found {value[:40]!r}")
        return "time_seconds", int(value)
    if letter == "C":
        if _CONTENT.fullmatch(value) is None:
            raise LineFault(at, f"flag C: expected type/subtype, found {value[:40]!r}")
        return "content_type", value
    return "vhost", "" if value == "''" else value
