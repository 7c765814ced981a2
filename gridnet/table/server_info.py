"""
Text form of one server: the descriptor (docs/protocols/descriptor.rst).

The same text stands in dispatcher headers, in the daemon's configuration and in local client
configuration.  Only the meaning of ``T=`` differs, so :attr:`ServerInfo.time` is a plain number
here and the caller says what it counts.
"""

from __future__ import annotations

import ipaddress
import math
import re
import string
from collections.abc import Callable, Sequence
from enum import Enum, IntFlag

from attrs import frozen

from gridnet.errors import DescriptorError


class ServerType(IntFlag):
    """Kind of server; the values are those of the shared-memory table."""

    NCBID = 0x01
    STANDALONE = 0x02
    HTTP_GET = 0x04
    HTTP_POST = 0x08
    HTTP = 0x0C
    FIREWALL = 0x10
    DNS = 0x20


class Algorithm(Enum):
    """Which of a host's two load figures rates the server."""

    REGULAR = 0
    BLAST = 1


@frozen
class ServerInfo:
    """One server, as a descriptor tells it."""

    type: ServerType  #: one keyword's worth of bits
    host: str = ""  #: canonical IP address text; empty: the default host (0)
    port: int = 0  #: 0..65535
    arguments: str = ""  #: NCBID: arguments; HTTP*: ``path[?args]``; else empty
    hidden_type: ServerType | None = None  #: FIREWALL only; None: any
    algorithm: Algorithm = Algorithm.REGULAR
    bonus: float = 0.0  #: locality coefficient, -100..100
    content_type: str = ""  #: canonical ``type/subtype[-encoding]``; empty: undefined
    vhost: str = ""  #: virtual host, may carry ``:port``
    local: bool = True  #: ``L``; the wire's default is yes
    private: bool = False  #: ``P``
    stateful: bool = False  #: ``S``
    secure: bool = False  #: ``$``
    interzone: bool = False  #: ``X``
    rate: float = 0.0  #: -100000..100000
    time: int = 0  #: 0..4294967295, see the module's text

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two descriptors name the same server (docs/protocols/descriptor.rst)."""
        return (self.type, self.host, self.port, self.arguments, self.hidden_type)


#: Wire keyword -> type.
KEYWORDS = {
    "NCBID": ServerType.NCBID,
    "STANDALONE": ServerType.STANDALONE,
    "HTTP_GET": ServerType.HTTP_GET,
    "HTTP_POST": ServerType.HTTP_POST,
    "HTTP": ServerType.HTTP,
    "FIREWALL": ServerType.FIREWALL,
    "DNS": ServerType.DNS,
}
_NAMES = {kind: name for name, kind in KEYWORDS.items()}

#: Bare words of older writers: (algorithm, crosses zones).
LOAD_WORDS = {
    "regular": (Algorithm.REGULAR, False),
    "blast": (Algorithm.BLAST, False),
    "regularinter": (Algorithm.REGULAR, True),
    "blastinter": (Algorithm.BLAST, True),
}

#: A descriptor longer than this is refused unread.
MAX_OCTETS = 4096
MAX_RATE = 100_000.0
MIN_RATE = 0.001
MAX_BONUS = 100.0
MIN_BONUS = 0.01
#: Rates below this in magnitude mean standby.
STANDBY_RATE = 0.01
INFINITE_TIME = 0xFFFFFFFF
#: What an unresolved host name stands for in lazy mode.
UNRESOLVED = "255.255.255.255"

_CONTENT_TYPES = ("x-ncbi-data", "text", "application")
_CONTENT_SUBTYPES = (
    "x-dispatch",
    "x-asn-text",
    "x-asn-binary",
    "x-fasta",
    "x-www-form",
    "html",
    "plain",
    "xml",
    "xml+soap",
    "octet-stream",
    "x-unknown",
)

_NUMBER = re.compile(r"([+-]?)(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))")
_TIME = re.compile(r"([+-]?)([0-9]+)")
_PORT = re.compile(r"[0-9]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_ATON_PART = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_SEPARATORS = re.compile(r"[ \t]+")


def type_name(kind: ServerType) -> str:
    """The keyword of *kind*."""
    return _NAMES[kind]


def parse_number(text: str) -> float:
    """
    Read a decimal number as the released clients do (docs/protocols/descriptor.rst, Numbers).

    No exponent, no hexadecimal.  A fraction of eight and more digits is taken for a tenth of
    itself: that is what the clients' reader makes of it, and both sides must agree.

    :raises DescriptorError: not a number.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise DescriptorError(f"expected a decimal number, found {text[:40]!r}")
    sign, whole, fraction, bare_fraction = match.groups()
    digits = fraction or bare_fraction or ""
    value = float(whole or "0")
    if digits:
        part = float(f"0.{digits}")
        value += part / 10 if len(digits) >= 8 else part
    return -value if sign == "-" else value


def clamp_rate(value: float) -> float:
    """*value* as a rate: 0 below half the least rate, then the least, at most 100000."""
    size = abs(value)
    if size < MIN_RATE / 2:
        return 0.0
    return math.copysign(min(max(size, MIN_RATE), MAX_RATE), value)


def clamp_bonus(value: float) -> float:
    """*value* as a locality coefficient: 0 below 0.005, then 0.01, at most 100."""
    size = abs(value)
    if size < MIN_BONUS / 2:
        return 0.0
    return math.copysign(min(max(size, MIN_BONUS), MAX_BONUS), value)


def parse_time(text: str) -> int:
    """
    Read ``T``'s value: an integer modulo 2**32.

    :raises DescriptorError: not an integer.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise DescriptorError(f"expected whole seconds, found {text[:40]!r}")
    # The clients' reader saturates at 64 bits before the modulo is taken.
    size = int(match[2]) if len(match[2].lstrip("0")) <= 19 else 2**64 - 1
    if size == 2**64 - 1:
        return INFINITE_TIME
    return (-size if match[1] == "-" else size) % 2**32


def canonical_content_type(text: str) -> str:
    """
    The canonical spelling of ``C``'s value (docs/protocols/descriptor.rst, Content types).

    :raises DescriptorError: no slash in it.
    """
    kind, slash, subtype = text.lower().partition("/")
    if not slash:
        raise DescriptorError(f"expected a content type (type/subtype), found {text[:40]!r}")
    suffix = ""
    if subtype.endswith("-urlencoded"):
        subtype, suffix = subtype.removesuffix("-urlencoded"), "-urlencoded"
    elif subtype.endswith("-encoded"):
        subtype = subtype.removesuffix("-encoded")
    if kind not in _CONTENT_TYPES:
        kind = "unknown"
    if subtype not in _CONTENT_SUBTYPES:
        subtype = "x-unknown"
    return f"{kind}/{subtype}{suffix}"


def canonical_address(text: str) -> str | None:
    """
    The canonical text of an IP address in any accepted spelling, or None.

    IPv4 may be in the classic numeric forms (``16909060``, ``1.2.3``, octal and hexadecimal
    parts); an IPv4 address mapped into IPv6 becomes plain IPv4.
    """
    if ":" in text:
        if "%" in text:
            return None
        try:
            address = ipaddress.IPv6Address(text)
        except ValueError:
            return None
        return str(address.ipv4_mapped or address)
    parts = text.split(".")
    if len(parts) > 4 or not all(_ATON_PART.fullmatch(part) for part in parts):
        return None
    try:
        numbers = [
            int(part, 8 if len(part) > 1 and part[0] == "0" and part[1] not in "xX" else 0)
            for part in parts
        ]
    except ValueError:  # an 8 or 9 in an octal part, or thousands of digits
        return None
    *leading, last = numbers
    if any(number > 255 for number in leading) or last >= 256 ** (5 - len(numbers)):
        return None
    value = last
    for place, number in enumerate(leading):
        value |= number << (24 - 8 * place)
    return str(ipaddress.IPv4Address(value))


def split_host_port(text: str) -> tuple[str, int]:
    """
    Take a connection point apart: ``host[:port]``, ``:port``, ``[ip6]:port`` or ``ip6``.

    :returns: host as written (no brackets; empty: none) and port (0: none).
    :raises DescriptorError: empty or bad port, unbalanced bracket, or a colon too many.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":") or canonical_address(host) is None:
            raise DescriptorError(f"expected [address]:port, found {text[:60]!r}")
        port_text: str | None = rest[1:]
        if ":" not in host:
            raise DescriptorError(f"expected an IPv6 address in brackets, found {text[:60]!r}")
    elif text.count(":") > 1:
        if canonical_address(text) is None:
            raise DescriptorError(f"expected host:port or an IPv6 address, found {text[:60]!r}")
        host, port_text = text, None
    else:
        host, colon, tail = text.partition(":")
        port_text = tail if colon else None
    if port_text is None:
        return host, 0
    if _PORT.fullmatch(port_text) is None or len(port_text.lstrip("0")) > 5:
        raise DescriptorError(f"expected a port (0..65535), found {text[:60]!r}")
    port = int(port_text)
    if port > 65535:
        raise DescriptorError(f"expected a port (0..65535), found {port}")
    return host, port


def is_connection_point(token: str) -> bool:
    """Whether the word after the type is read as a connection point (and not as a parameter)."""
    first = token[0]
    if first in ":[":
        return True
    return not (first in string.punctuation or "=" in token or token.lower() in LOAD_WORDS)


#: Tag letters that a type does not take; ``H`` is judged once all tags are read.
_REFUSED = {
    ServerType.DNS: "PS$CH",
    ServerType.HTTP: "S",
    ServerType.HTTP_GET: "S",
    ServerType.HTTP_POST: "S",
    ServerType.NCBID: "H",
    ServerType.FIREWALL: "H",
}


def _yes_or_no(letter: str, value: str) -> bool:
    lowered = value.lower()
    if lowered not in ("yes", "no"):
        raise DescriptorError(f"tag {letter}: expected yes or no, found {value[:40]!r}")
    return lowered == "yes"


def _tags(kind: ServerType, tokens: Sequence[str]) -> dict[str, str]:
    """Letter -> value of each tag; bare load words become ``A`` (and ``X``)."""
    found: dict[str, str] = {}
    for token in tokens:
        word = LOAD_WORDS.get(token.lower())
        if word is not None:
            pairs = [("A", "B" if word[0] is Algorithm.BLAST else "R")]
            pairs += [("X", "yes")] if word[1] else []
        elif token[1:2] == "=" and token[0].upper() in "ABCHLPRST$X":
            pairs = [(token[0].upper(), token[2:])]
        else:
            raise DescriptorError(f"expected a tag, found {token[:40]!r}")
        for letter, value in pairs:
            if letter in found:
                raise DescriptorError(f"tag {letter} given twice")
            if letter in _REFUSED.get(kind, ""):
                raise DescriptorError(f"tag {letter} does not go with {type_name(kind)}")
            found[letter] = value
    return found


def _without_fragment(token: str) -> str:
    return token.partition("#")[0]


def parse(text: str, resolve: Callable[[str], str] | None = None) -> ServerInfo:
    """
    Read a descriptor (docs/protocols/descriptor.rst).

    :param resolve: host name -> IPv4 address text; raises OSError when there is none.  None: names
        are not looked up and stand for 255.255.255.255.
    :raises DescriptorError: anything that the grammar does not allow; a descriptor is taken whole
        or not at all.
    """
    if len(text) > MAX_OCTETS:
        raise DescriptorError(f"expected at most {MAX_OCTETS} characters, found {len(text)}")
    if text[:1] in ("", " ", "\t"):
        raise DescriptorError("expected a server type at the start")
    tokens = _SEPARATORS.split(text.rstrip(" \t"))
    kind = KEYWORDS.get(tokens[0].upper())
    if kind is None:
        raise DescriptorError(f"expected a server type, found {tokens[0][:40]!r}")
    at = 1
    host, port, name = "", 0, ""
    if at < len(tokens) and is_connection_point(tokens[at]):
        written, port = split_host_port(tokens[at])
        at += 1
        if written:
            address = canonical_address(written)
            if address is None:
                name = written
                address = _resolve(written, resolve)
            host = "" if address == "0.0.0.0" else address
    arguments, hidden = "", None
    web = bool(kind & ServerType.HTTP)
    if kind is ServerType.NCBID:
        if at < len(tokens):
            arguments = "" if tokens[at] == "''" else _without_fragment(tokens[at])
            at += 1
    elif web:
        if at == len(tokens):
            raise DescriptorError(f"{type_name(kind)} needs a path")
        arguments = _without_fragment(tokens[at])
        at += 1
        if arguments.endswith("?") and arguments.count("?") == 1:
            arguments = arguments[:-1]
        if arguments[:1] in ("", "?"):
            raise DescriptorError(f"expected a path, found {tokens[at - 1][:40]!r}")
    elif kind is ServerType.FIREWALL and at < len(tokens) and tokens[at].upper() in KEYWORDS:
        hidden = KEYWORDS[tokens[at].upper()]
        at += 1
    tags = _tags(kind, tokens[at:])
    secure = "$" in tags and _yes_or_no("$", tags["$"])
    if port == 0:
        if kind is ServerType.STANDALONE:
            raise DescriptorError("STANDALONE needs a port")
        if kind is ServerType.NCBID or web:
            port = 443 if "$" in tags else 80
    vhost = ""
    takes_vhost = web or (kind is ServerType.STANDALONE and secure)
    if "H" in tags:
        if not takes_vhost:
            raise DescriptorError("tag H goes with HTTP, or with a secure STANDALONE")
        vhost = "" if tags["H"] == "''" else tags["H"]
        if tags["H"] != "''" and not 1 <= len(vhost) <= 255:
            raise DescriptorError("tag H: expected 1 to 255 characters or ''")
    elif takes_vhost and "." in name and len(name) <= 255:
        vhost = name
    algorithm = tags.get("A", "R")
    if algorithm not in ("B", "R"):
        raise DescriptorError(f"tag A: expected B or R, found {algorithm[:40]!r}")
    return ServerInfo(
        type=kind,
        host=host,
        port=port,
        arguments=arguments,
        hidden_type=hidden,
        algorithm=Algorithm.BLAST if algorithm == "B" else Algorithm.REGULAR,
        bonus=clamp_bonus(parse_number(tags["B"])) if "B" in tags else 0.0,
        content_type=canonical_content_type(tags["C"]) if "C" in tags else "",
        vhost=vhost,
        local=_yes_or_no("L", tags["L"]) if "L" in tags else True,
        private="P" in tags and _yes_or_no("P", tags["P"]),
        stateful="S" in tags and _yes_or_no("S", tags["S"]),
        secure=secure,
        interzone="X" in tags and _yes_or_no("X", tags["X"]),
        rate=clamp_rate(parse_number(tags["R"])) if "R" in tags else 0.0,
        time=parse_time(tags["T"]) if "T" in tags else 0,
    )


def _resolve(name: str, resolve: Callable[[str], str] | None) -> str:
    if _HOST_NAME.fullmatch(name) is None or len(name) > 255:
        raise DescriptorError(f"expected a host, found {name[:60]!r}")
    if resolve is None:
        return UNRESOLVED
    try:
        return resolve(name)
    except OSError as error:
        raise DescriptorError(f"host {name!r} cannot be resolved: {error}") from None


#: What old writers add and the grammar of today refuses.
_OLD_TAG = re.compile(r"[ \t]+[Qq]=[^ \t]*")


def parse_advisory(text: str) -> ServerInfo | None:
    """
    Read what a client says of a server (``Skip-Info``, ``Used-Server-Info``), of any generation.

    Only the identity matters there, so an old client's ``Q=`` is passed over, and what cannot be
    read at all is None: the header is ignored.
    """
    try:
        return parse(text)
    except DescriptorError:
        pass
    try:
        return parse(_OLD_TAG.sub("", text[:MAX_OCTETS]))
    except DescriptorError:
        return None


def format_number(value: float, decimals: int) -> str:
    """
    *value* with *decimals* places, halves of the binary value away from zero.

    C's and Python's own formatting round halves to even, which the released clients do not.
    """
    scale = 10**decimals
    size = abs(value)
    whole = math.floor(size + 0.5 / scale)
    part = math.floor(scale * (size - whole) + 0.5)
    # Rounding of the whole part may leave a tiny negative rest.
    part = max(0, part)
    return f"{'-' if value < 0 else ''}{whole}.{part:0{decimals}d}"


def format_rate(value: float) -> str:
    """*value* as ``R=`` writes it: three places below 0.01, else two."""
    return format_number(value, 3 if abs(value) < STANDBY_RATE else 2)


def format_connection_point(host: str, port: int) -> str:
    """``host:port``, ``:port``, ``[ip6]:port``, or the host alone when there is no port."""
    if not host:
        return f":{port}"
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _head(info: ServerInfo) -> list[str]:
    """Type, connection point, parameter."""
    words = [type_name(info.type), format_connection_point(info.host, info.port)]
    if info.type is ServerType.NCBID:
        words.append(info.arguments or "''")
    elif info.type & ServerType.HTTP:
        words.append(info.arguments)
    elif info.type is ServerType.FIREWALL and info.hidden_type is not None:
        words.append(type_name(info.hidden_type))
    return words


def write(info: ServerInfo) -> str:
    """The canonical text of *info*, as the present clients write it."""
    words = _head(info)
    if info.algorithm is Algorithm.BLAST:
        words.append("A=B")
    if info.bonus:
        words.append(f"B={format_number(info.bonus, 2)}")
    if info.content_type:
        words.append(f"C={info.content_type}")
    if info.vhost:
        words.append(f"H={info.vhost}")
    words.append("L=yes" if info.local else "L=no")
    if info.private:
        words.append("P=yes")
    words.append(f"R={format_rate(info.rate)}")
    if info.type is not ServerType.DNS and not info.type & ServerType.HTTP:
        words.append("S=yes" if info.stateful else "S=no")
    if info.secure:
        words.append("$=yes")
    if info.time:
        words.append(f"T={info.time}")
    if info.interzone:
        words.append("X=yes")
    return " ".join(words)


def write_legacy(info: ServerInfo) -> str | None:
    """
    The text of *info* for a client before revision 7, or None when it cannot be said to one.

    Such clients refuse ``A=``, ``H=``, ``$=``, ``X=`` and IPv6.
    """
    if info.secure or info.interzone or info.vhost or ":" in info.host:
        return None
    words = _head(info)
    if info.algorithm is Algorithm.BLAST:  # Regular is what they take when nothing is said
        words.append("Blast")
    if info.bonus:
        words.append(f"B={format_number(info.bonus, 2)}")
    if info.content_type:
        words.append(f"C={info.content_type}")
    words.append("L=yes" if info.local else "L=no")
    if info.private:
        words.append("P=yes")
    words.append(f"R={format_rate(info.rate)}")
    if info.type is not ServerType.DNS and not info.type & ServerType.HTTP:
        words.append("S=yes" if info.stateful else "S=no")
    if info.time:
        words.append(f"T={info.time}")
    return " ".join(words)
