"""
Text form of one server: the descriptor (docs/protocols/descriptor.rst).

The same text stands in dispatcher headers, in the daemon's configuration and in local client
configuration.  Only the meaning of ``T=`` differs, so :attr:`ServerInfo.time` is a plain number
here and the caller says what it counts.

Texts are sequences of octets decoded as ISO 8859-1, so no character is above U+00FF.

Here are the value and its reader.  What they are made of is in
:mod:`gridnet.table.descriptor_words` and :mod:`gridnet.table.numbers`, the writers are in
:mod:`gridnet.table.server_text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, IntFlag

from attrs import evolve, frozen

from gridnet.errors import DescriptorError, shown
from gridnet.table.descriptor_words import (
    FOREIGN,
    MAX_VHOST_OCTETS,
    PUNCTUATION,
    Word,
    canonical_content_type,
    check_characters,
    clean_arguments,
    clean_path,
    resolve_host,
    split_connection_point,
    words,
)
from gridnet.table.numbers import clamp_bonus, clamp_rate, parse_number, parse_time

#: ``T`` of a server that never goes stale.
INFINITE_TIME = 0xFFFFFFFF


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


def is_connection_point(word: str) -> bool:
    """Whether the word after the type is a connection point, and not yet a parameter or tag."""
    first = word[0]
    if first in ":[":
        return True
    return first not in PUNCTUATION and "=" not in word and word.lower() not in ALGORITHM_WORDS


def default_port(kind: ServerType, secure: bool) -> int:
    """
    The port of a server of that type when none, or 0, is given.

    :param secure: on the wire: a ``$=`` tag is there, whatever it says.
    :returns: 0 when there is no default.
    """
    if kind in (ServerType.STANDALONE, ServerType.FIREWALL, ServerType.DNS):
        return 0
    return 443 if secure else 80


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
    if FOREIGN.search(stripped) is not None:
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
