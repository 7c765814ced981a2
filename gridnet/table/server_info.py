"""
Text form of one server: the descriptor (docs/protocols/descriptor.rst).

The same text stands in dispatcher headers, in the daemon's configuration and in local client
configuration.  Only the meaning of ``T=`` differs, so :attr:`ServerInfo.time` is a plain number
here and the caller says what it counts.

Texts are sequences of octets decoded as ISO 8859-1, so no character is above U+00FF.

The pieces (words, host and port, numbers, content types) are public, because the
configuration language has the same words but other defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import Enum, IntFlag
from math import floor
from typing import NamedTuple

from attrs import evolve, frozen

from gridnet.errors import DescriptorError, shown
from gridnet.table.address import UNKNOWN_ADDRESS, canonical_address

#: Rates below this in magnitude mark a standby server.
STANDBY_RATE = 0.01
MAX_RATE = 100_000.0
MIN_RATE = 0.001
MAX_BONUS = 100.0
MIN_BONUS = 0.01
#: ``T`` of a server that never goes stale.
INFINITE_TIME = 0xFFFFFFFF
MAX_VHOST_OCTETS = 255


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
        """
        What makes two descriptors name the same server (docs/protocols/descriptor.rst).

        Plain numbers and texts, since tables and skip lists hash thousands of these.
        """
        hidden = self.hidden_type
        # int() is several times as fast as the flag's value.
        return (
            int(self.type),
            self.host,
            self.port,
            self.arguments,
            0 if hidden is None else int(hidden),
        )


#: Keyword (upper case) -> type.
TYPES: dict[str, ServerType] = {
    "NCBID": ServerType.NCBID,
    "STANDALONE": ServerType.STANDALONE,
    "HTTP_GET": ServerType.HTTP_GET,
    "HTTP_POST": ServerType.HTTP_POST,
    "HTTP": ServerType.HTTP,
    "FIREWALL": ServerType.FIREWALL,
    "DNS": ServerType.DNS,
}
#: Type -> keyword.
KEYWORDS: dict[ServerType, str] = {kind: word for word, kind in TYPES.items()}

#: Bare word (lower case) -> what it says: algorithm, and whether it crosses zones.
ALGORITHM_WORDS: dict[str, tuple[Algorithm, bool]] = {
    "regular": (Algorithm.REGULAR, False),
    "blast": (Algorithm.BLAST, False),
    "regularinter": (Algorithm.REGULAR, True),
    "blastinter": (Algorithm.BLAST, True),
}

_HTTP = frozenset({ServerType.HTTP, ServerType.HTTP_GET, ServerType.HTTP_POST})
#: Type -> tag letters that it does not take, not even with their default value.
FORBIDDEN_TAGS: dict[ServerType, str] = {
    ServerType.NCBID: "H",
    ServerType.STANDALONE: "",
    ServerType.HTTP_GET: "S",
    ServerType.HTTP_POST: "S",
    ServerType.HTTP: "S",
    ServerType.FIREWALL: "H",
    ServerType.DNS: "CHPS$",
}


def is_http(kind: ServerType) -> bool:
    """Whether *kind* is one of the three HTTP types."""
    return kind in _HTTP


# --- words -------------------------------------------------------------------------------------


class Word(NamedTuple):
    """A word of a text and where it begins."""

    text: str
    column: int  #: of its first character, from 1


_WORD = re.compile(r"[^ \t]+")
#: Neither control characters (a tab is a blank) nor what is more than one octet.
_FOREIGN = re.compile("[^\t\x20-\x7e\x80-\xff]")


def words(text: str) -> Iterator[Word]:
    """The words of *text*, which blanks and tabs part."""
    for match in _WORD.finditer(text):
        yield Word(match[0], match.start() + 1)


def check_characters(text: str) -> None:
    """
    See that *text* can be a descriptor at all.

    :raises DescriptorError: a control character (also a line end) or one above U+00FF.
    """
    match = _FOREIGN.search(text)
    if match is not None:
        raise DescriptorError(
            f"character {match[0]!r}", "printable ISO 8859-1 text", match.start() + 1
        )


# --- numbers -----------------------------------------------------------------------------------

_NUMBER = re.compile(r"([+-]?)(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))")
_INTEGER = re.compile(r"([+-]?)([0-9]+)")
_U64_MAX = (1 << 64) - 1
#: Fraction digits that the released reader scales as written; it is off by ten beyond.
_EXACT_FRACTION_DIGITS = 7


def _u64(digits: str) -> int:
    """The value of *digits*, at most the largest 64-bit number."""
    if len(digits) > 20:
        digits = digits.lstrip("0")
        if len(digits) > 20:
            return _U64_MAX
    return min(int(digits or "0"), _U64_MAX)


def parse_number(text: str) -> float | None:
    """
    Read a rate or coefficient as the released clients do (``ncbi_ansi_ext.c``).

    No exponents, no hexadecimal.  A fraction of eight digits or more counts a tenth of what it
    says: that is how every client in the field reads it.

    :returns: None when *text* is not a number.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction, bare_fraction = match.groups()
    value = float(_u64(whole or "0"))
    fraction = fraction or bare_fraction
    if fraction:
        places = len(fraction)
        if places > _EXACT_FRACTION_DIGITS:
            places += 1
        if places <= 300:
            value += _u64(fraction) / 10.0**places
    return -value if sign == "-" and value else value


def parse_time(text: str) -> int | None:
    """
    Read the value of ``T=``: an integer, kept modulo 2**32 (so ``-1`` is the largest).

    :returns: None when *text* is not an integer.
    """
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    value = _u64(match[2])
    if match[1] == "-" and value != _U64_MAX:
        value = -value
    return value & 0xFFFFFFFF


def _clamp(value: float, least: float, most: float) -> float:
    magnitude = abs(value)
    if magnitude < least / 2:
        return 0.0
    magnitude = min(max(magnitude, least), most)
    return magnitude if value > 0 else -magnitude


def clamp_rate(value: float) -> float:
    """*value* as a rate can hold it: 0, or 0.001 to 100000 in magnitude."""
    return _clamp(value, MIN_RATE, MAX_RATE)


def clamp_bonus(value: float) -> float:
    """*value* as a locality coefficient can hold it: 0, or 0.01 to 100 in magnitude."""
    return _clamp(value, MIN_BONUS, MAX_BONUS)


def format_number(value: float, decimals: int) -> str:
    """
    Write *value* with that many decimals, halves of the binary value away from zero.

    :param decimals: 1..7.
    """
    magnitude = abs(value)
    scale = 10**decimals
    whole = floor(magnitude + 0.5 / scale)
    fraction = floor(scale * (magnitude - whole) + 0.5)
    # Just under a whole number the remainder may come out as -0: it is 0 then.
    fraction = max(fraction, 0)
    sign = "-" if value < 0 and (whole or fraction) else ""
    return f"{sign}{whole}.{fraction:0{decimals}d}"


def format_rate(rate: float) -> str:
    """Write *rate* as ``R=`` wants it: two decimals, three below 0.01 in magnitude."""
    return format_number(rate, 3 if abs(rate) < STANDBY_RATE else 2)


# --- content types -----------------------------------------------------------------------------

#: Known content types, in the order of their numbers in the shared-memory table.
CONTENT_TYPES = ("x-ncbi-data", "text", "application", "unknown")
CONTENT_SUBTYPES = (
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
CONTENT_ENCODINGS = ("", "urlencoded")


def canonical_content_type(text: str) -> str | None:
    """
    The canonical spelling of ``type/subtype[-encoding]``; what is not known becomes unknown.

    :returns: None when there is no ``/``.
    """
    kind, slash, subtype = text.lower().partition("/")
    if not slash:
        return None
    if kind not in CONTENT_TYPES:
        kind = "unknown"
    encoding = ""
    stem, dash, suffix = subtype.rpartition("-")
    if dash and suffix in ("urlencoded", "encoded"):
        subtype = stem
        encoding = "-urlencoded" if suffix == "urlencoded" else ""
    if subtype not in CONTENT_SUBTYPES:
        subtype = "x-unknown"
    return f"{kind}/{subtype}{encoding}"


# --- connection points -------------------------------------------------------------------------

_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_BRACKETED = re.compile(r"\[([^\[\]]*)\]:([0-9]+)")
#: Begins with a letter or digit; with a letter somewhere, else it is a mistyped address.
_HOST_NAME = re.compile(r"(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9][A-Za-z0-9_.-]*")


class ConnectionText(NamedTuple):
    """A connection point as it is written."""

    host: str  #: without brackets; empty: the default host
    port: int | None  #: None: not given


def is_connection_point(word: str) -> bool:
    """Whether the word after the type is a connection point, and not yet a parameter or tag."""
    first = word[0]
    if first in ":[":
        return True
    return first not in _PUNCTUATION and "=" not in word and word.lower() not in ALGORITHM_WORDS


def parse_port(text: str) -> int | None:
    """
    Read a port, 0..65535; leading zeros do not matter.

    :returns: None when *text* is not one.
    """
    if not (text.isascii() and text.isdigit()):
        return None
    text = text.lstrip("0")
    if len(text) > 5:
        return None
    port = int(text or "0")
    return port if port <= 0xFFFF else None


def split_connection_point(word: str, column: int = 0) -> ConnectionText:
    """
    Part ``host[:port]``, ``:port``, ``[ipv6]:port`` or a bare IPv6 address.

    :param column: where *word* stands, for the error.
    :raises DescriptorError: none of these.
    """
    if word.startswith("["):
        match = _BRACKETED.fullmatch(word)
        if match is None:
            raise DescriptorError(
                f"connection point {shown(word)}", "[address]:port after a bracket", column
            )
        host, port_text = match[1], match[2]
        if canonical_address(host) is None:
            raise DescriptorError(f"address {shown(host)}", "an IP address in the brackets", column)
    elif word.count(":") > 1:
        if canonical_address(word) is None:
            raise DescriptorError(
                f"connection point {shown(word)}",
                "host, host:port, :port or an IPv6 address",
                column,
            )
        return ConnectionText(word, None)
    else:
        host, colon, port_text = word.partition(":")
        if not colon:
            return ConnectionText(host, None)
    port = parse_port(port_text)
    if port is None:
        raise DescriptorError(
            f"port {shown(port_text)}",
            "a number from 0 to 65535",
            column and column + len(host) + 1,
        )
    return ConnectionText(host, port)


def resolve_host(
    host: str, resolve: Callable[[str], str] | None, column: int = 0
) -> tuple[str, str]:
    """
    The address behind *host*, a numeric address or a name.

    :param resolve: as for :func:`parse`.
    :returns: canonical address (empty for address 0), and the name if it was one with a dot
        that can stand for a virtual host, else an empty text.
    :raises DescriptorError: not a host name, or unknown.
    """
    address = canonical_address(host)
    if address is not None:
        return ("" if address == "0.0.0.0" else address), ""
    if _HOST_NAME.fullmatch(host) is None:
        raise DescriptorError(f"host {shown(host)}", "an IP address or a host name", column)
    if resolve is None:
        address = UNKNOWN_ADDRESS
    else:
        try:
            address = canonical_address(resolve(host))
        except OSError:
            address = None
        if address is None:
            raise DescriptorError(f"host {shown(host)}, which is unknown", "a known host", column)
    implicit = host if "." in host and 2 <= len(host) <= MAX_VHOST_OCTETS else ""
    return ("" if address == "0.0.0.0" else address), implicit


def default_port(kind: ServerType, secure: bool) -> int:
    """
    The port of a server of that type when none, or 0, is given.

    :param secure: on the wire: a ``$=`` tag is there, whatever it says.
    :returns: 0 when there is no default.
    """
    if kind in (ServerType.STANDALONE, ServerType.FIREWALL, ServerType.DNS):
        return 0
    return 443 if secure else 80


# --- parameters --------------------------------------------------------------------------------


def clean_arguments(word: str) -> str:
    """The arguments that the NCBID parameter *word* stands for."""
    return "" if word == "''" else word.partition("#")[0]


def clean_path(word: str) -> str:
    """
    The ``path[?args]`` that the HTTP parameter *word* stands for.

    :returns: empty when there is no path in it.
    """
    path, question, arguments = word.partition("#")[0].partition("?")
    if not path:
        return ""
    return f"{path}{question}{arguments}" if arguments else path


# --- parsing -----------------------------------------------------------------------------------

_YES_NO = {"yes": True, "no": False}
_FLAGS = {"L": "local", "P": "private", "S": "stateful", "$": "secure", "X": "interzone"}


class Tags:
    """
    Collects the tags of one descriptor, each at most once.

    The configuration language has the same tags, but takes fewer values: it overrides
    :meth:`take`.

    :ivar seen: letters of the tags so far.
    :ivar values: what they say, by attribute of :class:`ServerInfo`.
    """

    __slots__ = ("kind", "seen", "values")

    def __init__(self, kind: ServerType) -> None:
        self.kind = kind
        self.seen: set[str] = set()
        self.values: dict[str, object] = {}

    def _claim(self, letter: str, word: Word) -> None:
        if letter in FORBIDDEN_TAGS[self.kind]:
            raise DescriptorError(
                f"tag {shown(word.text)}, which {KEYWORDS[self.kind]} does not take",
                "",
                word.column,
            )
        if letter in self.seen:
            raise DescriptorError(f"tag {shown(word.text)}", f"{letter}= only once", word.column)
        self.seen.add(letter)

    def add(self, word: Word) -> None:
        """
        Take one word.

        :raises DescriptorError: unknown, given before, not for this type, or a bad value.
        """
        algorithm_word = ALGORITHM_WORDS.get(word.text.lower())
        if algorithm_word is not None:
            self._claim("A", word)
            self.values["algorithm"], crosses = algorithm_word
            if crosses:
                self._claim("X", word)
                self.values["interzone"] = True
            return
        letter, value = word.text[:1].upper(), word.text[2:]
        if word.text[1:2] != "=" or letter not in "ABCHLPRS$TX":
            raise DescriptorError(
                shown(word.text), "a tag A= B= C= H= L= P= R= S= $= T= or X=", word.column
            )
        self._claim(letter, word)
        self.take(letter, value, word.column + 2)

    def take(self, letter: str, value: str, column: int) -> None:
        """
        Keep what the tag *letter* says.

        :param column: where *value* stands, from 1.
        :raises DescriptorError: the tag does not take that value.
        """
        if letter in _FLAGS:
            flag = _YES_NO.get(value.lower())
            if flag is None:
                raise DescriptorError(f"value {shown(value)} of {letter}=", "yes or no", column)
            self.values[_FLAGS[letter]] = flag
        elif letter == "A":
            if value not in ("B", "R"):
                raise DescriptorError(f"value {shown(value)} of A=", "B or R", column)
            self.values["algorithm"] = Algorithm.BLAST if value == "B" else Algorithm.REGULAR
        elif letter in "BR":
            number = parse_number(value)
            if number is None:
                raise DescriptorError(f"value {shown(value)} of {letter}=", "a number", column)
            if letter == "B":
                self.values["bonus"] = clamp_bonus(number)
            else:
                self.values["rate"] = clamp_rate(number)
        elif letter == "T":
            time = parse_time(value)
            if time is None:
                raise DescriptorError(f"value {shown(value)} of T=", "an integer", column)
            self.values["time"] = time
        elif letter == "C":
            content_type = canonical_content_type(value)
            if content_type is None:
                raise DescriptorError(f"value {shown(value)} of C=", "type/subtype", column)
            self.values["content_type"] = content_type
        elif not 1 <= len(value) <= MAX_VHOST_OCTETS:
            raise DescriptorError(
                f"{len(value)} characters of H=", f"1 to {MAX_VHOST_OCTETS}, or ''", column
            )
        else:
            self.values["vhost"] = "" if value == "''" else value


def parse(text: str, resolve: Callable[[str], str] | None = None) -> ServerInfo:
    """
    Read a descriptor by the wire's grammar (docs/protocols/descriptor.rst).

    :param resolve: gives the IP address text of a host name, or raises OSError.  None: names
        are not looked up; their address becomes 255.255.255.255 (the lazy mode of clients'
        own configuration).
    :raises DescriptorError: with what was found, what was expected, and the column.
    """
    check_characters(text)
    stream = words(text)
    first = next(stream, None)
    if first is None or first.column != 1:
        raise DescriptorError(
            "nothing" if first is None else "blanks first", "a server type in column 1", 1
        )
    kind = TYPES.get(first.text.upper())
    if kind is None:
        raise DescriptorError(f"server type {shown(first.text)}", ", ".join(TYPES), 1)
    end = len(text) + 1
    word = next(stream, None)

    host, port, implicit_vhost = "", 0, ""
    point_column = end
    if word is not None and is_connection_point(word.text):
        point_column = word.column
        point = split_connection_point(word.text, word.column)
        port = point.port or 0
        if point.host:
            host, implicit_vhost = resolve_host(point.host, resolve, word.column)
        elif point.port is None:
            raise DescriptorError("an empty connection point", "host or :port", word.column)
        word = next(stream, None)

    arguments, hidden_type = "", None
    if kind is ServerType.NCBID:
        if word is not None:
            arguments = clean_arguments(word.text)
            word = next(stream, None)
    elif kind in _HTTP:
        arguments = "" if word is None else clean_path(word.text)
        if word is None or not arguments:
            raise DescriptorError(
                "no path" if word is None else f"path {shown(word.text)}",
                f"path[?arguments] after {KEYWORDS[kind]}",
                end if word is None else word.column,
            )
        word = next(stream, None)
    elif kind is ServerType.FIREWALL and word is not None:
        hidden_type = TYPES.get(word.text.upper())
        if hidden_type is not None:
            word = next(stream, None)

    tags = Tags(kind)
    while word is not None:
        tags.add(word)
        word = next(stream, None)
    values = tags.values

    if not port:
        port = default_port(kind, "$" in tags.seen)
        if not port and kind is ServerType.STANDALONE:
            raise DescriptorError("no port", "host:port or :port, port not 0", point_column)
    if kind is ServerType.STANDALONE and not values.get("secure"):
        if "H" in tags.seen:
            raise DescriptorError("H= without $=yes", "a virtual host only on secure STANDALONE")
    elif (kind in _HTTP or kind is ServerType.STANDALONE) and "H" not in tags.seen:
        values["vhost"] = implicit_vhost
    return ServerInfo(kind, host, port, arguments, hidden_type, **values)  # type: ignore[arg-type]


# --- what clients say of servers they know -----------------------------------------------------

_PLAIN = re.compile(
    r"(NCBID|STANDALONE|HTTP_GET|HTTP_POST|HTTP|FIREWALL|DNS)[ \t]+"
    r"((?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}"
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9]))"
    r":([1-9][0-9]{0,4})"
    r"(?:[ \t]+((?![A-Za-z$]=|[RB][el])[^ \t]+))?"
    r"(?:[ \t]+(?:[A-Za-z$]=[!-~\x80-\xff]+|Regular|Blast))*[ \t]*"
)


def parse_identity(text: str) -> tuple[object, ...] | None:
    """
    The :attr:`ServerInfo.identity` of a descriptor that a client sent, or None if it is none.

    As :func:`parse_advisory` reads it, but several times as fast for the canonical texts that
    clients send a thousand of.
    """
    match = _PLAIN.fullmatch(text)
    if match is not None and match[2] != "0.0.0.0":
        kind, host, port, parameter = TYPES[match[1]], match[2], int(match[3]), match[4]
        if port <= 0xFFFF:
            if parameter is None:
                if kind in (ServerType.STANDALONE, ServerType.DNS, ServerType.FIREWALL):
                    return (kind.value, host, port, "", 0)
            elif kind in _HTTP:
                if parameter[0] not in "?#":
                    return (kind.value, host, port, clean_path(parameter), 0)
            elif kind is ServerType.NCBID:
                return (kind.value, host, port, clean_arguments(parameter), 0)
            elif kind is ServerType.FIREWALL and parameter in TYPES:
                return (kind.value, host, port, "", TYPES[parameter].value)
    info = parse_advisory(text)
    return None if info is None else info.identity


def parse_advisory(text: str) -> ServerInfo | None:
    """
    Read a descriptor that a client of any age sent back (docs/protocols/descriptor.rst).

    What identifies the server must follow the grammar.  Beyond that it is advice: tags of
    older dialects are passed over, and a tag whose value makes no sense keeps its default.

    :returns: None when the text names no server; the header that held it is to be ignored.
    """
    stripped = text.strip(" \t")
    try:
        return parse(stripped, _refuse_name)
    except DescriptorError:
        pass
    if _FOREIGN.search(stripped) is not None:
        return None
    all_words = list(words(stripped))
    kept = _identifying_words(all_words)
    if kept is None:
        return None
    kind = TYPES[all_words[0].text.upper()]
    tags = Tags(kind)
    for word in all_words[len(kept) :]:
        if word.text[1:2] != "=" and word.text.lower() not in ALGORITHM_WORDS:
            return None
        try:
            tags.add(word)
        except DescriptorError:
            continue
    # A `$=` decides the default port, so it takes part in what identifies the server.
    if "$" in tags.seen:
        kept.append("$=no")
    try:
        info = parse(" ".join(kept), _refuse_name)
    except DescriptorError:
        return None
    return evolve(info, **tags.values)  # type: ignore[arg-type]


def _refuse_name(host: str) -> str:
    raise OSError(f"{host}: clients name servers by address")


def _identifying_words(all_words: list[Word]) -> list[str] | None:
    """The first words of a descriptor: type, connection point, parameter; None: no type."""
    texts = [word.text for word in all_words]
    if not texts or texts[0].upper() not in TYPES:
        return None
    kind = TYPES[texts[0].upper()]
    count = 1
    if len(texts) > count and is_connection_point(texts[count]):
        count += 1
    if len(texts) > count and (
        kind is ServerType.NCBID
        or kind in _HTTP
        or (kind is ServerType.FIREWALL and texts[count].upper() in TYPES)
    ):
        count += 1
    return texts[:count]


# --- writing -----------------------------------------------------------------------------------


def format_connection_point(host: str, port: int) -> str:
    """``host:port``, ``:port`` for the default host, ``[ipv6]:port``; port 0 is left out."""
    if not host:
        return f":{port}"
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_writable(info: ServerInfo) -> None:
    """
    See that the text of *info* would be read back.

    :raises DescriptorError: a field holds what the grammar cannot say.
    """
    for what, text in (
        ("host", info.host),
        ("arguments", info.arguments),
        ("content type", info.content_type),
        ("virtual host", info.vhost),
    ):
        if " " in text or "\t" in text or _FOREIGN.search(text) is not None:
            raise DescriptorError(f"{what} {shown(text)}", "one printable word")
    refused = FORBIDDEN_TAGS[info.type]
    for letter, given in (
        ("C", info.content_type),
        ("H", info.vhost),
        ("P", info.private),
        ("S", info.stateful),
        ("$", info.secure),
    ):
        if given and letter in refused:
            raise DescriptorError(f"{letter}= on {KEYWORDS[info.type]}", "a type that takes it")
    if info.vhost and info.type is ServerType.STANDALONE and not info.secure:
        raise DescriptorError("H= without $=yes", "a virtual host only on secure STANDALONE")
    if info.type in _HTTP:
        if not info.arguments or info.arguments != clean_path(info.arguments):
            raise DescriptorError(
                f"path {shown(info.arguments)}", "path[?arguments] without fragment"
            )
    elif info.type is ServerType.NCBID:
        if info.arguments != clean_arguments(info.arguments):
            raise DescriptorError(
                f"arguments {shown(info.arguments)}", "arguments without fragment"
            )
    elif info.arguments:
        raise DescriptorError(f"arguments on {KEYWORDS[info.type]}", "none")
    if info.hidden_type is not None and info.type is not ServerType.FIREWALL:
        raise DescriptorError(f"a hidden type on {KEYWORDS[info.type]}", "none")
    if not info.port and info.type not in (ServerType.FIREWALL, ServerType.DNS):
        raise DescriptorError("port 0", "a port from 1 to 65535")


def _opening(info: ServerInfo) -> str:
    """Type, connection point and parameter."""
    _check_writable(info)
    text = f"{KEYWORDS[info.type]} {format_connection_point(info.host, info.port)}"
    if info.type is ServerType.NCBID:
        return f"{text} {info.arguments or chr(39) * 2}"
    if info.arguments:
        return f"{text} {info.arguments}"
    if info.hidden_type is not None:
        return f"{text} {KEYWORDS[info.hidden_type]}"
    return text


def _has_state(kind: ServerType) -> bool:
    return "S" not in FORBIDDEN_TAGS[kind]


def _yes_no(flag: bool) -> str:
    return "yes" if flag else "no"


class DescriptorWriter:
    """
    Writes one server again and again with another rate and time, at little cost.

    :raises DescriptorError: (when made) a field holds what the grammar cannot say.
    """

    __slots__ = ("_after_time", "_before_rate", "_before_time")

    def __init__(self, info: ServerInfo) -> None:
        head = [_opening(info)]
        if info.algorithm is Algorithm.BLAST:
            head.append("A=B")
        if info.bonus:
            head.append(f"B={format_number(info.bonus, 2)}")
        if info.content_type:
            head.append(f"C={info.content_type}")
        if info.vhost:
            head.append(f"H={info.vhost}")
        head.append(f"L={_yes_no(info.local)}")
        if info.private:
            head.append("P=yes")
        self._before_rate = " ".join((*head, "R="))
        middle = ""
        if _has_state(info.type):
            middle += f" S={_yes_no(info.stateful)}"
        if info.secure:
            middle += " $=yes"
        self._before_time = middle
        self._after_time = " X=yes" if info.interzone else ""

    def text(self, rate: float, time: int) -> str:
        """The canonical descriptor with this rate and this time."""
        moment = f" T={time}" if time else ""
        return (
            f"{self._before_rate}{format_rate(rate)}{self._before_time}{moment}{self._after_time}"
        )


def write(info: ServerInfo) -> str:
    """
    The canonical descriptor of *info* (docs/protocols/descriptor.rst).

    :raises DescriptorError: a field holds what the grammar cannot say.
    """
    return DescriptorWriter(info).text(info.rate, info.time)


class LegacyDescriptorWriter:
    """
    As :class:`DescriptorWriter`, in the dialect of clients before revision 7.

    Use :func:`write_legacy` or :meth:`of`: not every server can be told to such clients.
    """

    __slots__ = ("_before_rate", "_before_time")

    def __init__(self, info: ServerInfo) -> None:
        head = [
            _opening(info),
            "Blast" if info.algorithm is Algorithm.BLAST else "Regular",
            f"B={format_number(info.bonus, 2)}",
        ]
        if info.content_type:
            head.append(f"C={info.content_type}")
        head.append(f"L={_yes_no(info.local)}")
        if info.private:
            head.append("P=yes")
        self._before_rate = " ".join((*head, "R="))
        self._before_time = f" S={_yes_no(info.stateful)}" if _has_state(info.type) else ""

    @classmethod
    def of(cls, info: ServerInfo) -> LegacyDescriptorWriter | None:
        """A writer; None when *info* needs IPv6 or a tag that such clients refuse."""
        if info.vhost or info.secure or info.interzone or ":" in info.host:
            return None
        return cls(info)

    def text(self, rate: float, time: int) -> str:
        """The descriptor with this rate and this time."""
        return f"{self._before_rate}{format_rate(rate)}{self._before_time} T={time}"


def write_legacy(info: ServerInfo) -> str | None:
    """
    The descriptor for clients whose ``Client-Revision`` is below 7, or missing.

    :returns: None when *info* needs IPv6 or a tag that such clients refuse.
    :raises DescriptorError: a field holds what the grammar cannot say.
    """
    writer = LegacyDescriptorWriter.of(info)
    return None if writer is None else writer.text(info.rate, info.time)


def behind_firewall(info: ServerInfo) -> ServerInfo:
    """
    The ``FIREWALL`` entry that stands for *info*: same host and port, its type hidden inside.

    Arguments and virtual host are left out, since that type does not take them.
    """
    if info.type is ServerType.FIREWALL:
        return info
    return evolve(info, type=ServerType.FIREWALL, hidden_type=info.type, arguments="", vhost="")
