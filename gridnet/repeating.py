"""A service that does something again and again."""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Repeating(Service):
    """
    Calls *call* every *seconds* while it runs, also after a call that failed (which is logged).

    As ``TimerService`` does, whose module brings reconnecting clients and their state machines:
    0.5 MiB in a daemon that has none.

    :param first_seconds: from the start to the first call.
    """

    _next: IDelayedCall | None = None

    def __init__(
        self,
        clock: IReactorTime,
        seconds: float,
        call: Callable[[], object],
        first_seconds: float = 0.0,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._call = call
        self._first_seconds = first_seconds

    def startService(self) -> None:
        """Called by Twisted."""
        super().startService()
        self._next = self._clock.callLater(self._first_seconds, self._turn)

    def stopService(self) -> None:
        """Called by Twisted."""
        super().stopService()
        self.end()

    def end(self) -> None:
        """Call it no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self._next = self._clock.callLater(self._seconds, self._turn)
        self._call()
