"""Keeps what strangers ask for from taking the whole event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: Of all time that work may take.
DEFAULT_SHARE = 0.5


class TimeShare:
    """
    Runs pieces of work of several users, in turns, and only so much of the time.

    A piece that finds nobody waiting is run at once; after it the event loop has as long for
    itself as the share says.  So one user who asks without end slows himself down, others wait
    for one piece of his at most, and everything else goes on.

    :param share: part of the time that work may take, above 0, below 1.
    :param max_waiting: pieces of one user that may wait.
    :param measure: seconds of a clock that runs on while a piece is at work.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        measure: Callable[[], float],
        share: float = DEFAULT_SHARE,
        max_waiting: int = 256,
    ) -> None:
        self._clock = clock
        self._measure = measure
        self._rest = (1.0 - share) / share
        self._max_waiting = max_waiting
        self._waiting: dict[Hashable, deque[Callable[[], object]]] = {}
        self._turns: deque[Hashable] = deque()
        self._free_at = 0.0
        self._call: IDelayedCall | None = None
        self._working = False

    def run(self, user: Hashable, work: Callable[[], object]) -> bool:
        """
        Have *work* run now or when it is the turn of *user*.

        :returns: False: too much of theirs waits already; it is not run.
        """
        if not self._turns and not self._working and self._clock.seconds() >= self._free_at:
            self._work(work)
            return True
        queue = self._waiting.get(user)
        if queue is None:
            queue = self._waiting[user] = deque()
            self._turns.append(user)
        if len(queue) >= self._max_waiting:
            return False
        queue.append(work)
        self._arrange()
        return True

    def _work(self, work: Callable[[], object]) -> None:
        began = self._measure()
        self._working = True
        try:
            work()
        except Exception:
            self._log.failure("work for a user")
        finally:
            self._working = False
            spent = max(0.0, self._measure() - began)
            self._free_at = self._clock.seconds() + spent * self._rest

    def _arrange(self) -> None:
        if self._call is None and self._turns:
            wait = max(0.0, self._free_at - self._clock.seconds())
            self._call = self._clock.callLater(wait, self._turn)

    def _turn(self) -> None:
        self._call = None
        user = self._turns.popleft()
        queue = self._waiting[user]
        work = queue.popleft()
        if queue:
            self._turns.append(user)
        else:
            del self._waiting[user]
        self._work(work)
        self._arrange()
