"""A fault in one logical line, before it is known where that line stands."""

from __future__ import annotations

from gridnet.errors import GridnetError


class LineFault(GridnetError):
    """
    Something in a logical line that the language does not allow.

    :ivar offset: where in the logical line, from 0.
    :ivar text: what was found and what was expected.
    """

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(text)
        self.offset = offset
        self.text = text
