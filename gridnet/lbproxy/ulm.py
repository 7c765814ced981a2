"""
Event lines on the level of ``key=value`` pairs (docs/protocols/lbproxy.rst, "Event lines").

A line is text decoded as Latin-1, so that every octet survives; what the pairs mean is the
business of :mod:`gridnet.lbproxy.events`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from gridnet.errors import RemoteProtocolError
from gridnet.lbproxy.short_cache import cached_if_short

#: The original falls over above this; more are refused.
MAX_PAIRS = 100

#: A pair (key, quoted, bare), or what is no pair with all that follows it.
_PAIR = re.compile(
    r"[ \t]*+(?:([A-Za-z0-9._-]++)="
    r'(?:"([^"\\\0]*+(?:\\[^\0][^"\\\0]*+)*+)"|([^ \t\n"\\=\0]++))'
    r"(?=[ \t\n]|\Z)|([^ \t].*+))",
    re.DOTALL,
)
#: A line with more equals signs than this is not taken apart as a whole.
_MANY = 1000
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
#: The rest of a value with escapes in it, and its closing quote.
_ESCAPED_VALUE = re.compile(r'([^"\\]*+(?:\\.[^"\\]*+)++)"', re.DOTALL)

# What stands around quoted values in the lines of the known clients, see _parse_usual.
#: Before the first of them: one bare pair, a key.
_HEAD = re.compile(
    r'[ \t]*+([A-Za-z0-9._-]++)=([^ \t\n"\\=\0\1]++)[ \t]++([A-Za-z0-9._-]++)=', re.DOTALL
)
#: Between two of them: any bare pairs, a key.  The pairs are not possessive together: Python up to
#: 3.11.4 does not go back to where a pair began that turns out to be none.
_GAP = re.compile(
    r'(?:[ \t]++[A-Za-z0-9._-]++=[^ \t\n"\\=\0\1]++)*[ \t]++[A-Za-z0-9._-]++=', re.DOTALL
)
_WORD = re.compile(r"([^ \t=]++)=([^ \t]*+)")
_TO_ESCAPE = re.compile(r'["\\\n]')


class UlmError(RemoteProtocolError):
    """The line is not a sequence of pairs; a store peer sees 400/1401."""


def _unescaped(match: re.Match[str]) -> str:
    letter = match[1]
    return "\n" if letter == "n" else letter


def _escaped(match: re.Match[str]) -> str:
    letter = match[0]
    return "\\n" if letter == "\n" else "\\" + letter


@cached_if_short(256)
def gaps(text: str) -> tuple[list[str], list[tuple[int, tuple[str, str]]]] | None:
    """
    What stands between the quoted values of a line, joined by quotes; few forms of it exist.

    :returns: the keys of the values from the second on, and the bare pairs with their places
        among all pairs; None when it is not as usual.
    """
    keys: list[str] = []
    bare: list[tuple[int, tuple[str, str]]] = []
    place = 2  # after the bare pair and the value that the line begins with
    for piece in text.split('"'):
        if _GAP.fullmatch(piece) is None:
            return None
        *pairs, (last, _) = _WORD.findall(piece)
        for key, value in pairs:
            bare.append((place, (key.upper(), value)))
            place += 1
        keys.append(last.upper())
        place += 1
    return (keys, bare) if place <= MAX_PAIRS else None


def cut(line: str, first: int = 1) -> list[str] | None:
    """
    The pieces of *line* between the quotes around its values: every second one is a value.

    :param first: place of the first value: 0 in what follows the quote before it.
    :returns: escapes are undone in values; None for a line that is none of the known clients'.
    """
    if "\0" in line:
        return None
    if "\\" not in line:
        return line.split('"')
    pieces: list[str] = []
    start = 0
    while (escape := line.find("\\", start)) >= 0:
        pieces += line[start:escape].split('"')
        if len(pieces) % 2 == first:  # it is not in a value
            return None
        value = _ESCAPED_VALUE.match(line, escape - len(pieces[-1]))
        if value is None:
            return None
        pieces[-1] = _undone(value[1])
        start = value.end()
    pieces += line[start:].split('"')
    return pieces


def _undone(value: str) -> str:
    """*value* without its escapes."""
    undone = value.replace('\\"', '"')
    return _ESCAPED.sub(_unescaped, value) if "\\" in undone else undone


def _parse_usual(line: str) -> list[tuple[str, str]] | None:
    """
    The pairs of a line in the form of the known clients: one bare pair, then mostly quoted ones.

    Cutting at the quotes and looking up what stands between them costs a quarter of matching
    pair by pair.

    :returns: None for a line of another form, be it good or bad.
    """
    pieces = cut(line)
    if pieces is None or not 5 <= len(pieces) <= 2 * MAX_PAIRS or not len(pieces) % 2 or pieces[-1]:
        return None
    head = _HEAD.fullmatch(pieces[0])
    if head is None:
        return None
    form = gaps('"'.join(pieces[2:-1:2]))
    if form is None:
        return None
    values = pieces[1::2]
    keys, bare = form
    date, text, first = head.groups()
    pairs = [(date.upper(), text), (first.upper(), values[0]), *zip(keys, values[1:], strict=True)]
    for place, pair in bare:
        pairs.insert(place, pair)
    return pairs


def parse(line: str) -> list[tuple[str, str]]:
    """
    The pairs of *line* in order, keys in capitals, values with escapes undone.

    :raises UlmError: not of the grammar, no pair, or more than :data:`MAX_PAIRS`.
    """
    line = line.rstrip(" \t\n")
    usual = _parse_usual(line)
    if usual is not None:
        return usual
    return _parse_any(line)


def _parse_any(line: str) -> list[tuple[str, str]]:
    """
    The same of any line, without blanks at its end.

    :raises UlmError: as :func:`parse`.
    """
    found: list[tuple[str, ...]]
    if line.count("=") <= _MANY:
        found = _PAIR.findall(line)
    else:
        matches = islice(_PAIR.finditer(line), MAX_PAIRS + 1)
        found = [tuple(match.groups("")) for match in matches]
    if not found or found[-1][3]:  # what is no pair takes all that is left
        raise UlmError("ULM parse error")
    if "\\" in line:
        pairs = [
            (key.upper(), bare or (_undone(quoted) if "\\" in quoted else quoted))
            for key, quoted, bare, _ in found
        ]
    else:
        pairs = [(key.upper(), bare or quoted) for key, quoted, bare, _ in found]
    if len(pairs) > MAX_PAIRS:
        raise UlmError(f"more than {MAX_PAIRS} pairs")
    return pairs


def quote(value: str) -> str:
    """
    *value* in double quotes, with exactly quote, backslash and line feed escaped.

    :raises ValueError: it holds a NUL, which no line can carry.
    """
    if "\0" in value:
        raise ValueError("an event line cannot carry a NUL")
    return f'"{_TO_ESCAPE.sub(_escaped, value)}"'


_LINE_FEED = re.compile(rb"\\[^\n]|\\?\n")


def single_line(line: bytes) -> bytes:
    """
    *line* with one line feed, at its end, for files whose records are lines.

    One that stands in a value, where it may, becomes its escape; the values stay what they are.
    """
    if b"\n" in (line := line.rstrip(b" \t\n")):
        line = _LINE_FEED.sub(lambda met: b"\\n" if met[0].endswith(b"\n") else met[0], line)
    return line + b" \n"


def write(bare: Iterable[tuple[str, str]], quoted: Iterable[tuple[str, str]]) -> str:
    """
    A line of *bare* pairs, then *quoted* ones, as the original client ends it: blank, line feed.

    :raises ValueError: a value that a line cannot carry.
    """
    words = [f"{key}={value}" for key, value in bare]
    words += [f"{key}={quote(value)}" for key, value in quoted]
    return " ".join(words) + " \n"
