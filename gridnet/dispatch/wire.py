"""
Extension headers of the dispatcher to typed values and back (docs/protocols/dispatcher.rst).

Request and reply heads are HTTP; this file knows only what gridnet's clients put into them.
Header names compare without case and in any order.  What a client says beside the point
(an odd preference, an unreadable skip entry) is passed over; only a request that names no
service, or whose mode nobody knows, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from urllib.parse import unquote_plus

from gridnet.dispatch.request import (
    ANY_TYPE,
    LATCH,
    ConnectionMode,
    DispatchRequest,
    Kind,
    Preference,
    Skip,
)
from gridnet.errors import RemoteProtocolError, shown
from gridnet.table.address import canonical_address
from gridnet.table.affinity import Affinity
from gridnet.table.server_info import (
    TYPES,
    ServerType,
    parse_advisory,
    parse_identity,
)
from gridnet.table.way_in import ConnectionPoint

MAX_NAME_CHARACTERS = 255
#: Where programs are run: what the path of such a request ends in.
NCBID_SUFFIX = "/ncbid.cgi"
#: Clients below this revision read the older descriptor dialect only.
MODERN_REVISION = 7

_NAME = re.compile(r"[A-Za-z0-9_.*?\[\]/!^-]+")
_MASK_CHARACTERS = frozenset("*?[")
_PREFERENCE = re.compile(
    r"(?:\[([0-9A-Fa-f.:]+)\]|([0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*))?"
    r"(?::([0-9]{1,5}))?[ \t]+(-?[0-9]+(?:\.[0-9]*)?)%?"
)
_REVISION = re.compile(r"([0-9]{1,4})(?:\.[0-9]+)?")
_OPAQUE = re.compile(r"[!-~]{1,256}")

#: Headers that tell a dispatching client from a browser.
_DISPATCHING = frozenset(
    [
        "client-revision",
        "dispatch-mode",
        "client-mode",
        "accepted-server-types",
        "connection-mode",
        "used-server-info",
    ]
)
#: Headers of which several lines say one thing together.
_LISTS = {
    "accepted-server-types": " ",
    "ncbi-firewall-ports": " ",
    "caf-proxied-host": ", ",
    "x-forwarded-for": ", ",
    "proxied_ip": ", ",
    "x-fwd-ip-addr": ", ",
}
#: Headers whose lines must not contradict each other.
_MODES = frozenset(["dispatch-mode", "client-mode", "connection-mode"])
#: Headers that say who the client is, when they can be believed.
_IDENTITY = (
    "ncbi-external",
    "caf-external",
    "caf-proxied-host",
    "x-forwarded-for",
    "proxied_ip",
    "x-fwd-ip-addr",
    "client-host",
    "x-real-ip",
)
_READ = {
    name.encode("ascii"): name
    for name in (
        *_DISPATCHING,
        *_LISTS,
        *_IDENTITY,
        "affinity",
        "client-platform",
        "ncbi-phid",
        "ncbi-sid",
        "preference",
        "server-count",
        "traceparent",
    )
}
# What CGI cannot tell apart is one header.
_READ[b"proxied-ip"] = "proxied_ip"
_SKIP_PREFIX = b"skip-info-"
_LOOKUP_MODES = frozenset(["INFORMATION_ONLY", "OK_DOWN", "OK_SUPPRESSED", "PROMISCUOUS"])
_DISPATCH_MODES = _LOOKUP_MODES | {"", "NO_INFORMATION", "STATEFUL_INCLUSIVE"}
_CLIENT_MODES = frozenset(["", "STATEFUL_CAPABLE", "STATELESS_ONLY", "REVERSE_DNS"])


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \t")


def parse_target(target: str) -> tuple[str, list[tuple[str, str, str]]]:
    """
    Path, and the query's arguments as (name, value, as written).

    :param target: origin form; an absolute form's scheme and host are passed over.
    """
    if not target.startswith("/"):
        _, scheme, rest = target.partition("://")
        if scheme:
            slash = rest.find("/")
            target = rest[slash:] if slash >= 0 else "/"
    path, _, query = target.partition("?")
    found = []
    for word in query.split("&"):
        if word:
            name, _, value = word.partition("=")
            found.append((unquote_plus(name), unquote_plus(value), word))
    return path, found


def _service(arguments: Sequence[tuple[str, str, str]]) -> str:
    for name, value, _ in arguments:
        if name == "service":
            if len(value) > MAX_NAME_CHARACTERS or _NAME.fullmatch(value) is None:
                raise RemoteProtocolError(f"service: expected a service name, found {shown(value)}")
            return value
    raise RemoteProtocolError("expected a service argument (service=NAME) in the query")


def _accepted(value: str | None) -> tuple[ServerType, bool]:
    """Wanted types, and whether the client is in firewall mode."""
    if value is None:
        return ANY_TYPE, False
    bits = 0
    for word in value.upper().replace(",", " ").split():
        kind = TYPES.get(word)
        if kind is not None:
            bits |= kind.value
    types = ServerType(bits & ~ServerType.FIREWALL.value)
    return types, bool(bits & ServerType.FIREWALL.value)


def _ports(value: str | None) -> frozenset[int] | None:
    if value is None:
        return None
    words = value.replace(",", " ").split()
    numbers = [int(word) for word in words if _is_number(word, 5)]
    return frozenset(number for number in numbers if 0 < number <= 65535)


def _is_number(text: str, digits: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= digits


def _preference(value: str | None) -> Preference | None:
    match = _PREFERENCE.fullmatch(value) if value is not None else None
    if match is None:
        return None
    text = match[1] or match[2] or ""
    host = canonical_address(text) if text else ""
    port = int(match[3] or 0)
    if host is None or port > 65535 or not (host or port):
        return None
    percent = float(match[4])
    share = LATCH if percent < 0 or percent >= 100 else percent / 100
    return Preference("" if host == "0.0.0.0" else host, port, share)


def _affinity(value: str | None) -> Affinity | None:
    if not value:
        return None
    name, equals, wanted = value.partition("=")
    if not name.strip():
        return None
    return Affinity(name.strip(), wanted.strip() if equals else None)


def _count(value: str | None) -> int | None:
    if value is None:
        return None
    if value.upper() == "ALL":
        return 0
    return int(value) if _is_number(value, 9) and int(value) > 0 else None


def _opaque(value: str | None) -> str:
    """An identifier that goes to logs and programs as it is; empty when it is not fit to."""
    return value if value is not None and _OPAQUE.fullmatch(value) else ""


def _skip(value: str, named: bool) -> Skip | None:
    """
    Read a server that the client has had.

    :param named: the service's name goes before the descriptor.  The name may look like a
        type (``dns DNS 10.1.1.1``), so this cannot be told from the text alone.
    """
    first, _, rest = value.partition(" ")
    rest = rest.lstrip(" \t")
    if named or first.upper() not in TYPES:
        identity = parse_identity(rest)
        if identity is not None:
            return Skip(identity, first.lower())
    identity = parse_identity(value)
    return None if identity is None else Skip(identity)


# A client that walks a service says at each step again what it said before.
_skip_again = lru_cache(maxsize=16_384)(_skip)
_REMEMBERED_CHARACTERS = 256


def _skips(lines: Sequence[tuple[bytes, bytes]], named: bool) -> tuple[Skip, ...]:
    numbered: list[tuple[int, str]] = []
    for raw_number, raw_value in lines:
        number = raw_number.decode("latin-1")
        if _is_number(number, 9):
            numbered.append((int(number), _text(raw_value)))
    numbered.sort()
    found = [
        _skip_again(text, named) if len(text) <= _REMEMBERED_CHARACTERS else _skip(text, named)
        for _, text in numbered
    ]
    return tuple(skip for skip in found if skip is not None)


def _kind(path: str, method: str, dispatching: bool, dispatch_mode: str, client_mode: str) -> Kind:
    if path.endswith(NCBID_SUFFIX):
        return Kind.NCBID
    if client_mode == "REVERSE_DNS":
        return Kind.REVERSE
    if dispatch_mode == "INFORMATION_ONLY":
        return Kind.INFO
    if dispatch_mode in _LOOKUP_MODES:
        return Kind.LIST
    if client_mode == "STATEFUL_CAPABLE" and method in ("GET", "HEAD"):
        return Kind.AUX
    return Kind.RELAY if dispatching else Kind.BROWSER


def _mode(name: str, value: str, known: Iterable[str]) -> str:
    mode = value.upper()
    if mode not in known:
        expected = ", ".join(sorted(filter(None, known)))
        raise RemoteProtocolError(f"{name}: expected one of {expected}, found {shown(value)}")
    return mode


class _Headers:
    """The headers that matter, read without regard to their order."""

    __slots__ = ("ambiguous_client", "dispatching", "skips", "values")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.values: dict[str, str] = {}
        self.skips: list[tuple[bytes, bytes]] = []
        repeated: dict[str, list[str]] = {}
        values = self.values
        for raw_name, raw_value in headers:
            lower = raw_name.lower()
            name = _READ.get(lower)
            if name is None:
                if lower.startswith(_SKIP_PREFIX):
                    self.skips.append((lower[len(_SKIP_PREFIX) :], raw_value))
            elif name in values:
                repeated.setdefault(name, [values[name]]).append(_text(raw_value))
            else:
                values[name] = _text(raw_value)
        self.dispatching = bool(self.skips) or not _DISPATCHING.isdisjoint(values)
        #: Two answers to who asks: the peer cannot mean both, so neither counts as inside.
        self.ambiguous_client = False
        for name, all_values in repeated.items():
            self._settle(name, all_values)

    def _settle(self, name: str, values: Sequence[str]) -> None:
        """Make one value of several lines."""
        joint = _LISTS.get(name)
        if joint is not None:
            self.values[name] = joint.join(values)
        elif len(set(values)) > 1:
            if name in _MODES:
                raise RemoteProtocolError(f"{name}: lines that contradict each other")
            self.ambiguous_client = self.ambiguous_client or name in ("client-host", "x-real-ip")
            del self.values[name]

    @property
    def get(self) -> Callable[[str], str | None]:
        """Name -> value; None: not said, or said in contradictory ways."""
        return self.values.get


def parse_request(
    method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> DispatchRequest:
    """
    Read a request's head.

    Several lines of one header: lists are joined; modes must agree; of the rest, what is said
    in contradictory ways is passed over.

    :param headers: names and values as they came.
    :raises RemoteProtocolError: no service named, or not by a name; an unknown mode.
    """
    read = _Headers(headers)
    get = read.get
    path, arguments = parse_target(target.decode("latin-1"))
    service = _service(arguments)
    is_mask = not _MASK_CHARACTERS.isdisjoint(service)
    dispatch_mode = _mode("Dispatch-Mode", get("dispatch-mode") or "", _DISPATCH_MODES)
    client_mode = _mode("Client-Mode", get("client-mode") or "", _CLIENT_MODES)
    kind = _kind(path, method, read.dispatching, dispatch_mode, client_mode)
    connection_mode = ConnectionMode.STATELESS
    if kind is Kind.NCBID:
        mode = _mode(
            "Connection-Mode", get("connection-mode") or "STATELESS", ConnectionMode.__members__
        )
        connection_mode = ConnectionMode(mode)
    accepted, firewall_mode = _accepted(get("accepted-server-types"))
    own = ("service", "address", "platform")
    platform = next((value for name, value, _ in arguments if name == "platform"), "")
    revision = _REVISION.fullmatch(get("client-revision") or "")
    used = get("used-server-info")
    return DispatchRequest(
        kind=kind,
        service=service,
        is_mask=is_mask,
        path=path,
        arguments="&".join(word for name, _, word in arguments if name not in own),
        platform=get("client-platform") or platform,
        accepted=accepted,
        firewall_mode=firewall_mode,
        fallback_ports=_ports(get("ncbi-firewall-ports")),
        include_down=dispatch_mode in ("OK_DOWN", "PROMISCUOUS"),
        include_suppressed=dispatch_mode in ("OK_SUPPRESSED", "PROMISCUOUS"),
        stateless=client_mode == "STATELESS_ONLY" or kind in (Kind.RELAY, Kind.BROWSER),
        connection_mode=connection_mode,
        inform=dispatch_mode != "NO_INFORMATION",
        inclusive=dispatch_mode == "STATEFUL_INCLUSIVE",
        skips=_skips(read.skips, is_mask or kind is Kind.REVERSE) if read.skips else (),
        used=parse_advisory(used) if used is not None else None,
        preference=_preference(get("preference")),
        affinity=_affinity(get("affinity")),
        server_count=_count(get("server-count")),
        legacy=kind not in (Kind.BROWSER, Kind.NCBID)
        and (revision is None or int(revision[1]) < MODERN_REVISION),
        external=(
            "ncbi-external" in read.values or "caf-external" in read.values or read.ambiguous_client
        ),
        identity={name: read.values[name] for name in _IDENTITY if name in read.values},
        session_id=_opaque(get("ncbi-sid")),
        hit_id=_opaque(get("ncbi-phid")),
        trace_parent=_opaque(get("traceparent")),
    )


_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+")


def header(name: str, value: str) -> bytes:
    """One header line with its line end; control characters in *value* become blanks."""
    return f"{name}: {_UNSAFE.sub(' ', value)}\r\n".encode("latin-1", "replace")


def used_server_info(number: int, text: str) -> bytes:
    """``Used-Server-Info-<number>``; the descriptor's ``T`` is a moment, not a span."""
    return f"Used-Server-Info-{number}: {text}\r\n".encode("latin-1", "replace")


def connection_info(point: ConnectionPoint) -> bytes:
    """``Connection-Info``: where to connect and with what ticket."""
    secure = "$" if point.secure else ""
    return header("Connection-Info", f"{point.host} {point.port} {point.ticket:08X}{secure}")


_CONNECTION_INFO = re.compile(
    r"((?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2}))[ \t]+([1-9][0-9]{0,4})[ \t]+"
    r"(?:0[xX])?([0-9A-Fa-f]{1,8})(\$?)(?:[ \t].*)?"
)


def parse_connection_info(value: str) -> ConnectionPoint | None:
    """What another host says in ``Connection-Info``; None: no place to connect to."""
    match = _CONNECTION_INFO.fullmatch(value.strip(" \t"))
    if match is None or int(match[2]) > 65535 or any(int(n) > 255 for n in match[1].split(".")):
        return None
    return ConnectionPoint(match[1], int(match[2]), int(match[3], 16), match[4] == "$")


TRY_STATELESS = b"Connection-Info: TRY_STATELESS\r\n"


def messages(text: str) -> bytes:
    """``Dispatcher-Messages``: what a client may want to know, though nothing failed for it."""
    return header("Dispatcher-Messages", text)


def failures(text: str) -> bytes:
    """``Dispatcher-Failures``: for the client's log; with an error status it ends a look-up."""
    return header("Dispatcher-Failures", text)
