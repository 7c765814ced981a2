"""One logical line to one record (docs/protocols/lbsmd-config.rst, Lines and Service lines)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import evolve

from gridnet.errors import DescriptorError, shown
from gridnet.lbsmd.servrc.check_list import Check, list_end, parse_checks
from gridnet.lbsmd.servrc.fault import MAX_LINE_FAULTS, Found, LineFault
from gridnet.lbsmd.servrc.records import (
    MAX_DECIMALS,
    Authority,
    Environment,
    Include,
    MonitoredPort,
    NameHold,
    Record,
    ServiceRecord,
    Zone,
)
from gridnet.table.descriptor_words import (
    ConnectionText,
    Word,
    check_characters,
    clean_arguments,
    resolve_host,
    split_connection_point,
    words,
)
from gridnet.table.server_info import (
    ALGORITHM_WORDS,
    INFINITE_TIME,
    KEYWORDS,
    TYPES,
    Algorithm,
    ServerType,
    Tags,
    default_port,
    is_connection_point,
    is_http,
)

NAMEHOLD = "NAMEHOLD"
_CONFIGURABLE = [name for name in TYPES if name != "FIREWALL"]

_INCLUDE = re.compile(r"%include[ \t]+([^ \t|](?:[^|]*[^ \t|])?)[ \t]*(?:\|(.*))?")
_ZONE = re.compile(r"@[ \t]*([0-9A-Za-z_-]+)[ \t]*")
_ZONE_WORD = re.compile(r"[0-9]{1,10}|0x[0-9a-f]{1,8}|try|qa|dev|[0-9a-z_-]*prod[0-9a-z_-]*")
_PORT = re.compile(r":([0-9]{1,5})[ \t]*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_AUTHORITY = re.compile(r"(\*?)([A-Za-z_][A-Za-z0-9_-]*)")
_SERVICE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?=[ \t\[])")
_TAG_LIKE = re.compile(r"[A-Za-z$]=.*")
_CONTENT_TYPE = re.compile(r"[^/]+/[^/]+")


def parse_line(text: str, mail_domain: str = "", default_local: bool = False) -> Record:
    """
    Read one logical line that is not blank.

    :param text: octets decoded as ISO 8859-1.
    :param mail_domain: the one domain that contacts may be of; empty: there are no contacts.
    :param default_local: what a service line without ``L=`` means.
    :raises LineFault: with all that is wrong in the line, and where.
    """
    try:
        check_characters(text)
    except DescriptorError as error:
        raise LineFault.of(error) from None
    start = len(text) - len(text.lstrip(" \t"))
    body = text[start:]
    if body[0] == "%":
        match = _INCLUDE.fullmatch(body)
        if match is None:
            raise LineFault.at(start, shown(body), "%include FILE, or %include FILE |TEXT")
        return Include(match[1], match[2] or "")
    if body[0] == "@":
        match = _ZONE.fullmatch(body)
        if match is None or _ZONE_WORD.fullmatch(match[1].lower()) is None:
            raise LineFault.at(start, shown(body), "@ and a number, prod, dev, try or qa")
        return Zone(match[1])
    if body[0] == ":":
        match = _PORT.fullmatch(body)
        if match is None or not 1 <= int(match[1]) <= 0xFFFF:
            raise LineFault.at(start, shown(body), "a colon and a port from 1 to 65535")
        return MonitoredPort(int(match[1]))
    head, equals, value = text.partition("=")
    name = head.strip(" \t")
    if equals and re.search(r"[ \t\[|]", name) is None:
        if _IDENTIFIER.fullmatch(name) is None:
            raise LineFault.at(start, f"{shown(name)} before =", "a name of letters, digits and _")
        return Environment(name, value)
    body = body.rstrip(" \t")
    if re.search(r"[ \t\[]", body) is None:
        match = _AUTHORITY.fullmatch(body)
        if match is None:
            raise LineFault.at(start, shown(body), "a user, *group, or a service line")
        return Authority(match[2], bool(match[1]))
    return _service_line(text, start, mail_domain, default_local)


def _service_line(
    text: str, start: int, mail_domain: str, default_local: bool
) -> ServiceRecord | NameHold:
    """``name [checks] descriptor | launcher``; faults of checks and descriptor come together."""
    match = _SERVICE_NAME.match(text, start)
    if match is None:
        raise LineFault.at(start, shown(text[start:]), "the name of a service, then its server")
    name, at = match[0], match.end()
    while text[at : at + 1] in (" ", "\t"):
        at += 1
    faults: list[Found] = []
    checks: tuple[Check, ...] = ()
    if text[at : at + 1] == "[":
        end = list_end(text, at)
        if end is None:
            raise LineFault.at(at, "a list of checks without an end", "]")
        try:
            checks = parse_checks(text[at + 1 : end], at + 1, mail_domain)
        except LineFault as fault:
            faults.extend(fault.found)
        at = end + 1
    # The first bar after the checks begins the launcher information.
    bar = text.find("|", at)
    end = len(text) if bar < 0 else bar
    launcher = None if bar < 0 else text[bar + 1 :].strip(" \t")
    parts = [Word(word, at + column) for word, column in words(text[at:end])]
    try:
        record = _descriptor(name, parts, end, launcher, default_local)
    except LineFault as fault:
        faults.extend(fault.found)
    if faults:
        raise LineFault(faults)
    return evolve(record, checks=checks) if isinstance(record, ServiceRecord) else record


def _descriptor(
    name: str, parts: Sequence[Word], end: int, launcher: str | None, default_local: bool
) -> ServiceRecord | NameHold:
    """
    Type and what follows.

    :param end: offset of the end of the descriptor.
    :param launcher: what follows the bar; None: no bar.
    """
    if not parts:
        raise LineFault.at(end, "no server", f"one of {', '.join(_CONFIGURABLE)}, {NAMEHOLD}")
    keyword = parts[0].text.upper()
    if keyword == NAMEHOLD:
        if launcher is not None:
            raise LineFault.at(end, "launcher information", f"none with {NAMEHOLD}")
        return _name_hold(name, parts, end)
    kind = TYPES.get(keyword)
    if kind is None or kind is ServerType.FIREWALL:
        raise LineFault.at(
            parts[0].column - 1,
            f"server type {shown(parts[0].text)}",
            f"one of {', '.join(_CONFIGURABLE)}, {NAMEHOLD}",
        )
    try:
        record = _server(name, kind, parts[1:], end, default_local)
    except DescriptorError as error:
        raise LineFault.of(error, end) from None
    if kind is not ServerType.NCBID:
        if launcher is not None:
            raise LineFault.at(end, f"launcher information with {keyword}", "it with NCBID only")
        return record
    if not launcher and (launcher is not None or not record.static):
        raise LineFault.at(end, "no launcher information", "| and the command behind it")
    return evolve(record, launcher=launcher or "")


def _point(word: Word) -> ConnectionText:
    """
    A connection point whose host can be one.

    :raises DescriptorError: it is none.
    """
    point = split_connection_point(word.text, word.column)
    if point.host and not resolve_host(point.host, None, word.column)[0]:
        raise DescriptorError(f"host {point.host}", "a host, or none for this host", word.column)
    return point


def _name_hold(name: str, parts: Sequence[Word], end: int) -> NameHold:
    """``[host][:port] TYPE``; a lone word is the type, not a host."""
    if not 2 <= len(parts) <= 3:
        where = parts[3].column - 1 if len(parts) > 3 else end
        found = shown(parts[3].text) if len(parts) > 3 else "nothing more"
        raise LineFault.at(where, found, f"{NAMEHOLD} [host][:port] and one server type")
    host, port = "", 0
    if len(parts) == 3:
        try:
            point = _point(parts[1])
        except DescriptorError as error:
            raise LineFault.of(error, end) from None
        host, port = point.host, point.port or 0
    kind = TYPES.get(parts[-1].text.upper())
    if kind is None or kind is ServerType.FIREWALL:
        raise LineFault.at(
            parts[-1].column - 1,
            f"server type {shown(parts[-1].text)}",
            f"one of {', '.join(_CONFIGURABLE)}",
        )
    return NameHold(name, kind, host, port)


def _server(
    name: str, kind: ServerType, parts: Sequence[Word], end: int, default_local: bool
) -> ServiceRecord:
    """
    Connection point, parameter and flags of one server.

    :raises DescriptorError: a part of it is wrong.
    :raises LineFault: several flags are.
    """
    rest = list(parts)
    host, port = "", None
    if rest and is_connection_point(rest[0].text):
        host, port = _point(rest.pop(0))
    arguments: str | None = None
    if kind is ServerType.NCBID:
        arguments = clean_arguments(rest.pop(0).text) if rest else ""
    elif is_http(kind):
        if not rest or _TAG_LIKE.fullmatch(rest[0].text) or rest[0].text.lower() in ALGORITHM_WORDS:
            found = f"no path after {KEYWORDS[kind]}"
            column = rest[0].column if rest else end + 1
            raise DescriptorError(found, "/path, or /path?arguments", column)
        word = rest.pop(0)
        path, question, query = word.text.partition("?")
        if not path or (question and not query):
            raise DescriptorError(
                f"path {shown(word.text)}", "a path, and arguments behind a ?", word.column
            )
        arguments = word.text
    tags = _flags(kind, rest)
    record = ServiceRecord(
        name,
        kind,
        host,
        port,
        arguments,
        **{"local": default_local, **tags.values},  # type: ignore[arg-type]
    )
    if kind is ServerType.STANDALONE and not port:
        raise DescriptorError("no port", "host:port or :port, port not 0", end + 1)
    if port is None and kind is not ServerType.DNS:
        record = evolve(record, port=default_port(kind, is_http(kind) and record.secure))
    if record.static and record.algorithm is Algorithm.BLAST:
        raise DescriptorError("Blast on a static server", "Regular, since a host is given", end + 1)
    if record.vhost and kind is ServerType.STANDALONE and not record.secure:
        raise DescriptorError("H= without $=yes", "a virtual host only if secure", end + 1)
    return record


def _flags(kind: ServerType, parts: Sequence[Word]) -> _FileTags:
    """
    The flags behind a server.

    :raises LineFault: with every one that is wrong.
    """
    tags = _FileTags(kind)
    faults: list[Found] = []
    for word in parts:
        try:
            tags.add(word)
        except DescriptorError as error:
            faults.extend(LineFault.of(error).found)
            if len(faults) >= MAX_LINE_FAULTS:
                break
    if faults:
        raise LineFault(faults)
    return tags


class _FileTags(Tags):
    """The tags of a descriptor, as configuration takes them: stricter than the wire."""

    def take(self, letter: str, value: str, column: int) -> None:
        if letter in "BR" and len(value.partition(".")[2]) > MAX_DECIMALS:
            # Clients in the field scale longer fractions wrongly.
            raise DescriptorError(
                f"value {shown(value)} of {letter}=", f"at most {MAX_DECIMALS} decimals", column
            )
        if letter == "T":
            if re.fullmatch(r"[0-9]{1,10}", value) is None or int(value) >= INFINITE_TIME:
                raise DescriptorError(
                    f"value {shown(value)} of T=", f"seconds, 0 to {INFINITE_TIME - 1}", column
                )
            self.values["time_seconds"] = int(value)
            return
        if letter == "C" and _CONTENT_TYPE.fullmatch(value) is None:
            raise DescriptorError(f"value {shown(value)} of C=", "type/subtype", column)
        super().take(letter, value, column)
        if letter == "R":
            # A negative rate means unreachable, and is kept as 0.
            rate = self.values["rate"]
            if isinstance(rate, float) and rate < 0:
                self.values["rate"] = 0.0
