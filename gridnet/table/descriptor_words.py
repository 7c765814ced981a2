"""
The words of descriptors: how texts are cut, hosts and ports, content types, parameters.

The configuration language has the same words as the wire, but other defaults, so they stand apart
from the descriptor itself (:mod:`gridnet.table.server_info`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gridnet.errors import DescriptorError, shown
from gridnet.table.address import UNKNOWN_ADDRESS, canonical_address

MAX_VHOST_OCTETS = 255


class Word(NamedTuple):
    """A word of a text and where it begins."""

    text: str
    column: int  #: of its first character, from 1


_WORD = re.compile(r"[^ \t]+")
#: Neither control characters (a tab is a blank) nor what is more than one octet.
FOREIGN = re.compile("[^\t\x20-\x7e\x80-\xff]")


def words(text: str) -> Iterator[Word]:
    """The words of *text*, which blanks and tabs part."""
    for match in _WORD.finditer(text):
        yield Word(match[0], match.start() + 1)


def check_characters(text: str) -> None:
    """
    See that *text* can be a descriptor at all.

    :raises DescriptorError: a control character (also a line end) or one above U+00FF.
    """
    match = FOREIGN.search(text)
    if match is not None:
        raise DescriptorError(
            f"character {match[0]!r}", "printable ISO 8859-1 text", match.start() + 1
        )


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

PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_BRACKETED = re.compile(r"\[([^\[\]]*)\]:([0-9]+)")
#: Begins with a letter or digit; with a letter somewhere, else it is a mistyped address.
_HOST_NAME = re.compile(r"(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9][A-Za-z0-9_.-]*")


class ConnectionText(NamedTuple):
    """A connection point as it is written."""

    host: str  #: without brackets; empty: the default host
    port: int | None  #: None: not given


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
