"""
Extension headers of the dispatcher to typed values and back (docs/protocols/dispatcher.rst).

Request and reply heads are HTTP; this file knows only what gridnet's clients put into them.
Header names compare without case and in any order.  What a client says beside the point
(an odd preference, an unreadable skip entry) is passed over; only a request that names no
service is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from urllib.parse import unquote_plus

from attrs import field, frozen

from gridnet.errors import RemoteProtocolError
from gridnet.table.affinity import Affinity
from gridnet.table.server_info import TYPES, ServerInfo, ServerType, parse_advisory
from gridnet.table.way_in import ConnectionPoint

MAX_NAME_CHARACTERS = 255
ANY_TYPE = ServerType(0)
#: Clients below this revision read the older descriptor dialect only.
MODERN_REVISION = 7

_NAME = re.compile(r"[A-Za-z0-9_.*?\[\]/!^-]+")
_MASK_CHARACTERS = frozenset("*?[")
_SKIP_HEADER = re.compile(r"skip-info-([0-9]{1,9})")
_PREFERENCE = re.compile(
    r"(?:\[([0-9A-Fa-f.:]+)\]|([0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*))?"
    r"(?::([0-9]{1,5}))?[ \t]+(-?[0-9]+(?:\.[0-9]*)?)%?"
)
_REVISION = re.compile(r"([0-9]{1,4})(?:\.[0-9]+)?")

#: Headers that tell a dispatching client from a browser.
_DISPATCHING = (
    "client-revision",
    "dispatch-mode",
    "client-mode",
    "accepted-server-types",
    "connection-mode",
    "used-server-info",
)
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


class Kind(Enum):
    """What a request wants."""

    INFO = "servers of a service"
    LIST = "all servers, some unusable ones too"
    REVERSE = "the DNS entries of a service's servers"
    AUX = "a dedicated connection"
    RELAY = "to be relayed to a server"
    NCBID = "a program run on this host"
    BROWSER = "to be relayed, by somebody who knows nothing of dispatching"


class ConnectionMode(Enum):
    """How a program is to be run."""

    STATEFUL = "STATEFUL"
    STATELESS = "STATELESS"


@frozen
class Preference:
    """The host that the caller would like best."""

    host: str  #: IP address text; empty: the client's own
    port: int  #: 0: any
    share: float  #: 0..1, or -1 for that host or none


@frozen
class Skip:
    """A server that the client has had already."""

    info: ServerInfo
    service: str = ""  #: lower case; empty: the service asked for


@frozen(eq=False)
class DispatchRequest:
    """
    One request, as far as it does not depend on who sent it.

    Compared by identity: the same octets parse to the same object through a cache, which makes
    it a cheap key.
    """

    kind: Kind
    service: str  #: name, or mask
    is_mask: bool = False
    path: str = ""  #: of the target
    arguments: str = (
        ""  #: query for the service: what is left without ``service``, ``address``, ...
    )
    platform: str = ""  #: of the client
    accepted: ServerType = ANY_TYPE  #: wanted types; 0: any but DNS
    firewall_mode: bool = False
    #: None: not said; empty: regular ports only; else ports that the client can reach
    fallback_ports: frozenset[int] | None = None
    include_down: bool = False
    include_suppressed: bool = False
    stateless: bool = False
    connection_mode: ConnectionMode = ConnectionMode.STATELESS
    inform: bool = True  #: informational headers wanted in a connection reply
    skips: tuple[Skip, ...] = ()
    last_skip: Skip | None = None  #: the highest-numbered one
    used: ServerInfo | None = None  #: the server the client means
    preference: Preference | None = None
    affinity: Affinity | None = None
    server_count: int | None = None  #: None: not said; 0: all
    legacy: bool = False  #: reads the older dialect only
    external: bool = False
    identity: Mapping[str, str] = field(factory=dict)  #: lower-case headers of who it is
    session_id: str = ""  #: NCBI-SID
    hit_id: str = ""  #: NCBI-PHID


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
                raise RemoteProtocolError(f"service: expected a service name, found {value[:60]!r}")
            return value
    raise RemoteProtocolError("expected a service argument (service=NAME) in the query")


def _accepted(value: str | None) -> tuple[ServerType, bool]:
    """Wanted types, and whether the client is in firewall mode."""
    if value is None:
        return ServerType(0), False
    types = ServerType(0)
    for word in value.upper().split():
        types |= TYPES.get(word, ServerType(0))
    firewall = bool(types & ServerType.FIREWALL)
    return types & ~ServerType.FIREWALL, firewall


def _ports(value: str | None) -> frozenset[int] | None:
    if value is None:
        return None
    numbers = [int(w) for w in value.split() if w.isascii() and w.isdecimal() and len(w) <= 5]
    return frozenset(number for number in numbers if 0 < number <= 65535)


def _preference(value: str | None) -> Preference | None:
    match = _PREFERENCE.fullmatch(value) if value is not None else None
    if match is None:
        return None
    host = match[1] or match[2] or ""
    percent = float(match[4])
    port = int(match[3] or 0)
    if not host and not port:
        return None
    if port > 65535:
        return None
    share = -1.0 if percent < 0 or percent >= 100 else percent / 100
    return Preference(host, port, share)


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
    if value.isascii() and value.isdecimal() and len(value) <= 9 and int(value) > 0:
        return int(value)
    return None


def _skip(value: str, named: bool) -> Skip | None:
    first, _, rest = value.partition(" ")
    if named and first.upper() not in TYPES:
        info = parse_advisory(rest.strip(" \t"))
        return None if info is None else Skip(info, first.lower())
    info = parse_advisory(value)
    if info is None and rest and first.upper() not in TYPES:
        info = parse_advisory(rest.strip(" \t"))
        return None if info is None else Skip(info, first.lower())
    return None if info is None else Skip(info)


def _kind(
    path: str, method: str, headers: Mapping[str, str], dispatch_mode: str, client_mode: str
) -> Kind:
    if path.endswith("/ncbid.cgi"):
        return Kind.NCBID
    if client_mode == "REVERSE_DNS":
        return Kind.REVERSE
    if dispatch_mode == "INFORMATION_ONLY":
        return Kind.INFO
    if dispatch_mode in ("OK_DOWN", "OK_SUPPRESSED", "PROMISCUOUS"):
        return Kind.LIST
    if client_mode == "STATEFUL_CAPABLE" and method in ("GET", "HEAD"):
        return Kind.AUX
    if any(name in headers for name in _DISPATCHING) or any(
        name.startswith("skip-info-") for name in headers
    ):
        return Kind.RELAY
    return Kind.BROWSER


def parse_request(
    method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> DispatchRequest:
    """
    Read a request's head.

    :param headers: names and values as they came; of a name given twice the first counts.
    :raises RemoteProtocolError: no service named, or not by a name.
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        found.setdefault(raw_name.decode("latin-1").lower(), _text(raw_value))
    path, arguments = parse_target(target.decode("latin-1"))
    service = _service(arguments)
    is_mask = not _MASK_CHARACTERS.isdisjoint(service)
    dispatch_mode = found.get("dispatch-mode", "").upper()
    client_mode = found.get("client-mode", "").upper()
    kind = _kind(path, method, found, dispatch_mode, client_mode)
    named = is_mask or kind is Kind.REVERSE
    numbered: list[tuple[int, Skip]] = []
    for name, value in found.items():
        match = _SKIP_HEADER.fullmatch(name)
        skip = _skip(value, named) if match is not None else None
        if match is not None and skip is not None:
            numbered.append((int(match[1]), skip))
    numbered.sort(key=lambda pair: pair[0])
    accepted, firewall_mode = _accepted(found.get("accepted-server-types"))
    own = ("service", "address", "platform")
    platform = next((value for name, value, _ in arguments if name == "platform"), "")
    revision = _REVISION.fullmatch(found.get("client-revision", ""))
    dispatching = kind is not Kind.BROWSER and kind is not Kind.NCBID
    mode = found.get("connection-mode", "STATELESS").upper()
    if mode not in ConnectionMode.__members__:
        if kind is Kind.NCBID:
            raise RemoteProtocolError(
                f"Connection-Mode: expected STATEFUL or STATELESS, found {mode[:40]!r}"
            )
        mode = "STATELESS"
    return DispatchRequest(
        kind=kind,
        service=service,
        is_mask=is_mask,
        path=path,
        arguments="&".join(word for name, _, word in arguments if name not in own),
        platform=found.get("client-platform", platform),
        accepted=accepted,
        firewall_mode=firewall_mode,
        fallback_ports=_ports(found.get("ncbi-firewall-ports")),
        include_down=dispatch_mode in ("OK_DOWN", "PROMISCUOUS"),
        include_suppressed=dispatch_mode in ("OK_SUPPRESSED", "PROMISCUOUS"),
        stateless=client_mode == "STATELESS_ONLY",
        connection_mode=ConnectionMode(mode),
        inform=dispatch_mode != "NO_INFORMATION",
        skips=tuple(skip for _, skip in numbered),
        last_skip=numbered[-1][1] if numbered else None,
        used=parse_advisory(found["used-server-info"]) if "used-server-info" in found else None,
        preference=_preference(found.get("preference")),
        affinity=_affinity(found.get("affinity")),
        server_count=_count(found.get("server-count")),
        legacy=dispatching and (revision is None or int(revision[1]) < MODERN_REVISION),
        external="ncbi-external" in found or "caf-external" in found,
        identity={name: found[name] for name in _IDENTITY if name in found},
        session_id=found.get("ncbi-sid", ""),
        hit_id=found.get("ncbi-phid", ""),
    )


_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]+")


def header(name: str, value: str) -> bytes:
    """One header line with its line end; control characters in *value* become blanks."""
    return f"{name}: {_UNSAFE.sub(' ', value)}\r\n".encode("latin-1", "replace")


def server_info(number: int, text: str) -> bytes:
    """``Server-Info-<number>``."""
    return f"Server-Info-{number}: {text}\r\n".encode("latin-1", "replace")


def used_server_info(number: int, text: str) -> bytes:
    """``Used-Server-Info-<number>``; the descriptor's ``T`` is a moment, not a span."""
    return f"Used-Server-Info-{number}: {text}\r\n".encode("latin-1", "replace")


def connection_info(point: ConnectionPoint) -> bytes:
    """``Connection-Info``: where to connect and with what ticket."""
    secure = "$" if point.secure else ""
    return header("Connection-Info", f"{point.host} {point.port} {point.ticket:08X}{secure}")


TRY_STATELESS = b"Connection-Info: TRY_STATELESS\r\n"


def failures(text: str) -> bytes:
    """``Dispatcher-Failures``: for the client's log; with an error status it ends a look-up."""
    return header("Dispatcher-Failures", text)
