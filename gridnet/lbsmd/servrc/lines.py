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
        start, line, column = self.pieces[bisect_right(self.pieces, (offset, 1 << 62, 0)) - 1]
        return line, column + offset - start

    def prefixed(self, prefix: str) -> LogicalLine:
        """The line with *prefix* put in front; the prefix's place is the line's own start."""
        if not prefix:
            return self
        shifted = tuple((start + len(prefix), line, column) for start, line, column in self.pieces)
        return LogicalLine(prefix + self.text, ((0, self.line, 1), *shifted))


def logical_lines(text: str) -> Iterator[LogicalLine]:
    """
    The logical lines of *text* that are not blank.

    A ``#`` cuts the line, and ends the logical line with it; else a backslash as the very last
    character joins the next line, with nothing between.
    """
    parts: list[str] = []
    pieces: list[tuple[int, int, int]] = []
    length = 0
    for number, physical in enumerate(text.split("\n"), 1):
        line = physical.removesuffix("\r")
        head, comment, _ = line.partition("#")
        joins = not comment and head.endswith("\\")
        if joins:
            head = head[:-1]
        pieces.append((length, number, 1))
        parts.append(head)
        length += len(head)
        if joins:
            continue
        whole = "".join(parts)
        if whole.strip(" \t"):
            yield LogicalLine(whole, tuple(pieces))
        parts, pieces, length = [], [], 0
    whole = "".join(parts)
    if whole.strip(" \t"):
        yield LogicalLine(whole, tuple(pieces))
