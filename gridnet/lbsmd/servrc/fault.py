"""Faults in one logical line, before it is known where that line stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from gridnet.errors import DescriptorError, GridnetError

#: Faults that one line is read for; a line with so many needs another look anyway.
MAX_LINE_FAULTS = 50


@frozen
class Found:
    """One thing in a logical line that the language does not allow there."""

    offset: int  #: where in the logical line, from 0
    found: str  #: what stands there
    expected: str  #: what may stand there; may be empty

    def __str__(self) -> str:
        return f"found {self.found}; expected {self.expected}" if self.expected else self.found


class LineFault(GridnetError):
    """
    A logical line cannot be used; whoever reads the file adds file, line and column.

    :ivar found: all that is wrong with the line, in reading order; never empty.
    """

    def __init__(self, found: Iterable[Found]) -> None:
        self.found: Sequence[Found] = tuple(found)
        super().__init__("\n".join(map(str, self.found)))

    @classmethod
    def at(cls, offset: int, found: str, expected: str) -> LineFault:
        """A line with one fault."""
        return cls((Found(offset, found, expected),))

    @classmethod
    def of(cls, error: DescriptorError, otherwise: int = 0) -> LineFault:
        """
        What the descriptor's grammar objects to, whose columns count in the logical line.

        :param otherwise: the offset when *error* does not say where.
        """
        offset = error.column - 1 if error.column else otherwise
        return cls.at(offset, error.what, error.expected)
