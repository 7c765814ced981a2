"""How far a host trusts itself."""

from __future__ import annotations


class LocalHealth:
    """
    Lifeguard's local health ("LHA-Probe"): who hears little may be deaf itself.

    :ivar score: 0: well; each point stretches our own time-outs once more.
    """

    __slots__ = ("_most", "score")

    def __init__(self, most: int) -> None:
        self._most = most
        self.score = 0

    def feel(self, change: int) -> None:
        """Something speaks for (below 0) or against (above 0) our own health."""
        self.score = min(self._most, max(0, self.score + change))
