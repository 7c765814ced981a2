"""Things that are said again and again, and how often that is worth saying."""

from __future__ import annotations

from collections.abc import Hashable

from attrs import define


@define
class _Repeat:
    """Of one thing."""

    said_at: float
    left_out: int = 0


class Repeats:
    """
    Lets a thing be said once in a while, and counts the times between.

    :param seconds: between two times that the same is said.
    :param most: things that are told apart; with more the memory begins anew.
    """

    def __init__(self, seconds: float, most: int = 1000) -> None:
        self._seconds = seconds
        self._most = most
        self._known: dict[Hashable, _Repeat] = {}

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:
        """Everything may be said again at once."""
        self._known.clear()

    def left_out(self, thing: Hashable, now: float) -> int | None:
        """
        Whether *thing* is to be said.

        :returns: None: not now.  Else how often it was left out since it was said last.
        """
        known = self._known.get(thing)
        if known is not None and 0.0 <= now - known.said_at < self._seconds:
            known.left_out += 1
            return None
        if known is None and len(self._known) >= self._most:
            self._known.clear()
        self._known[thing] = _Repeat(now)
        return 0 if known is None else known.left_out
