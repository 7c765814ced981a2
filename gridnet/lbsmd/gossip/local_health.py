"""How far a host trusts itself."""

from __future__ import annotations


class LocalHealth:
    """
    Lifeguard's local health ("LHA-Probe"): who hears little may be deaf itself.

    Unlike Lifeguard's, it takes a point back when the host whose silence was its reason turns out
    to be gone: where half of a site is cut off, the silence of that half says nothing of the rest.

    :ivar score: 0: well; each point stretches our own time-outs once more.
    """

    __slots__ = ("_most", "_silent", "score")

    def __init__(self, most: int) -> None:
        self._most = most
        # Host -> points for its silence.  None: never any; of most hosts of a simulation.
        self._silent: dict[str, int] | None = None
        self.score = 0

    def feel(self, change: int) -> None:
        """Something speaks for (below 0) or against (above 0) our own health."""
        self.score = min(self._most, max(0, self.score + change))
        if not self.score and self._silent:
            self._silent.clear()

    def miss(self, host: str) -> None:
        """That host should have said something, and we heard nothing."""
        if self._silent is None:
            self._silent = {}
        self._silent[host] = self._silent.get(host, 0) + 1
        self.feel(1)

    def excuse(self, host: str) -> None:
        """That host is gone: its silence was its own."""
        if self._silent:
            self.feel(-self._silent.pop(host, 0))

    def heard(self, host: str) -> None:
        """That host lives: we did not hear it."""
        if self._silent:
            self._silent.pop(host, None)
