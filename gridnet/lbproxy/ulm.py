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
_TO_ESCAPE = re.compile(r'["\\\n]')


class UlmError(RemoteProtocolError):
    """The line is not a sequence of pairs; a store peer sees 400/1401."""


def _unescaped(match: re.Match[str]) -> str:
    letter = match[1]
    return "\n" if letter == "n" else letter


def _escaped(match: re.Match[str]) -> str:
    letter = match[0]
    return "\\n" if letter == "\n" else "\\" + letter


def parse(line: str) -> list[tuple[str, str]]:
    """
    The pairs of *line* in order, keys in capitals, values with escapes undone.

    :raises UlmError: not of the grammar, no pair, or more than :data:`MAX_PAIRS`.
    """
    line = line.rstrip(" \t\n")
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
            (key.upper(), bare or (_ESCAPED.sub(_unescaped, quoted) if "\\" in quoted else quoted))
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


def write(bare: Iterable[tuple[str, str]], quoted: Iterable[tuple[str, str]]) -> str:
    """
    A line of *bare* pairs, then *quoted* ones, as the original client ends it: blank, line feed.

    :raises ValueError: a value that a line cannot carry.
    """
    words = [f"{key}={value}" for key, value in bare]
    words += [f"{key}={quote(value)}" for key, value in quoted]
    return " ".join(words) + " \n"
