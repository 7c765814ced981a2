"""Byte rates: how much may still pass, and when more may."""

from __future__ import annotations


class Meter:
    """
    A token bucket of octets that holds one second's worth.

    :param octets_per_second: what may pass in the long run.
    """

    __slots__ = ("_at", "_level", "rate")

    def __init__(self, octets_per_second: float, now: float) -> None:
        self.rate = octets_per_second
        self._level = octets_per_second
        self._at = now

    def room(self, now: float) -> int:
        """Octets that may pass now; 0: see :meth:`wait`."""
        if now > self._at:
            self._level = min(self.rate, self._level + (now - self._at) * self.rate)
            self._at = now
        return max(0, int(self._level))

    def take(self, octets: int) -> None:
        """*octets* have passed (more than there was room for is owed)."""
        self._level -= octets

    def wait(self) -> float:
        """
        Seconds until it is worth looking again.

        That is until a twentieth of a second's worth may pass, so that a slow rate does not
        become a stream of tiny pieces.
        """
        enough = max(1.0, self.rate / 20)
        return max(0.0, (enough - self._level) / self.rate)
