"""Physical lines to logical ones: comments, continuation, and where each character came from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from attrs import frozen


@frozen
class LogicalLine:
    """One logical line, with the place of each of its pieces."""

    text: str
    #: (offset in text, physical line from 1, column from 1) of each piece, in order
    pieces: tuple[tuple[int, int, int], ...]

    @property
    def line(self) -> int:
        """The physical line it begins on, from 1."""
        return self.pieces[0][1]

    def place(self, offset: int) -> tuple[int, int]:
        """(physical line, column), from 1, of the character at *offset*."""
        index = bisect_right(self.pieces, offset, key=lambda piece: piece[0]) - 1
        if index < 0:
            # Inside the prefix, which stands in another file.
            return self.line, 1
        start, line, column = self.pieces[index]
        return line, column + offset - start

    def prefixed(self, prefix: str) -> LogicalLine:
        """The line with *prefix* in front; places within the prefix are the line's own start."""
        shifted = tuple((start + len(prefix), line, column) for start, line, column in self.pieces)
        return LogicalLine(prefix + self.text, shifted)


def logical_lines(text: str) -> Iterator[LogicalLine]:
    """
    The logical lines of *text* that are not blank.

    A ``#`` cuts the line, and ends the logical line with it; else a backslash as the very last
    character joins the next line, with nothing between.
    """
    parts: list[str] = []
    pieces: list[tuple[int, int, int]] = []
    length = 0
    physical_lines = text.split("\n")
    for number, physical in enumerate(physical_lines, 1):
        head, comment, _ = physical.removesuffix("\r").partition("#")
        joins = not comment and head.endswith("\\") and number < len(physical_lines)
        head = head.removesuffix("\\") if not comment else head
        pieces.append((length, number, 1))
        parts.append(head)
        length += len(head)
        if joins:
            continue
        whole = "".join(parts)
        if whole.strip(" \t"):
            yield LogicalLine(whole, tuple(pieces))
        parts, pieces, length = [], [], 0


def effective_lines(text: str, prefix: str) -> Iterator[LogicalLine]:
    """
    The logical lines of a file that was included with *prefix*.

    The prefix is put in front of each but those that are directives themselves.
    """
    for line in logical_lines(text):
        if prefix and not line.text.lstrip(" \t").startswith("%"):
            yield line.prefixed(prefix)
        else:
            yield line
