"""
How long the writing thread waits for more before it commits, and for the next before it sleeps.

Clients that were answered together come again one after the other.  Where a commit takes long, one
of those who were a little late costs all of them another; where it is short, going to sleep and
being woken takes as much of an event's time as the commit does.
"""

from __future__ import annotations

#: Part of a commit's duration that may be spent on waiting for those who are late.
_GATHER_PART = 1 / 16
#: A pause that is shorter takes longer than it says.
_SHORTEST_PAUSE_SECONDS = 0.0001
#: So many look-outs in vain, one after the other, are followed by so many groups without one.
_VAIN, _WITHOUT = 8, 64


class Pace:
    """
    Goes by the groups before.

    :param look_out_seconds: most that is spent awake on looking for the next event; 0: nothing.
    :param max_gather_seconds: the longest pause for those who are late.
    """

    def __init__(self, look_out_seconds: float = 0.0, max_gather_seconds: float = 0.0) -> None:
        self._look_out_seconds = look_out_seconds
        self._max_gather_seconds = max_gather_seconds
        self._size = 0
        self._seconds = 0.0
        self._in_vain = 0
        self._without = 0

    def pause(self, size: int) -> float:
        """
        Seconds to wait for more than the *size* events that have come; 0: commit them.

        To be asked again only if more have come.
        """
        if size >= self._size:
            return 0.0
        seconds = min(self._seconds * _GATHER_PART, self._max_gather_seconds)
        return seconds if seconds >= _SHORTEST_PAUSE_SECONDS else 0.0

    def committed(self, size: int, seconds: float) -> None:
        """A group of *size* events was committed, which took *seconds*."""
        self._size, self._seconds = size, seconds

    def look_out(self) -> float:
        """Seconds to look for the next event after a commit, awake; 0: sleep."""
        if self._in_vain < _VAIN:
            return self._look_out_seconds
        self._without += 1
        if self._without > _WITHOUT:
            self._in_vain = self._without = 0
        return 0.0

    def looked_out(self, found: bool) -> None:
        """Whether the look-out *found* an event."""
        self._in_vain = 0 if found else self._in_vain + 1
