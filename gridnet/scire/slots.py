"""
How many calls are worked on at a time, and who waits (docs/protocols/scire.rst, Load).

A call holds a slot while it is worked on.  One caller has at most one: his second call waits for
his first.  Whoever finds no slot waits in order, for a bounded time, in a bounded queue; beyond
that the answer is fault 1060 with the seconds after which to call again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from random import Random

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gridnet.scire.faults import FaultCode, ScireFault

#: Calls of one caller that wait, so that nobody takes all places.
MAX_OF_ONE = 4
#: Weight of the newest measurement in the moving averages.
_WEIGHT = 0.05


@define(eq=False)
class _Waiter:
    caller: Hashable
    ready: Deferred[None]
    timeout: IDelayedCall


class Slots:
    """
    :param slots: calls at a time.
    :param places: calls that wait.
    :param seconds: a call waits at most.
    """

    def __init__(
        self, reactor: IReactorTime, slots: int, places: int, seconds: float, chance: Random
    ) -> None:
        self._reactor = reactor
        self._slots = slots
        self._places = places
        self._seconds = seconds
        self._chance = chance
        self._running: dict[Hashable, float] = {}
        self._waiting: OrderedDict[int, _Waiter] = OrderedDict()
        self._number = 0
        self._mean_seconds = 0.01  # of one call

    @property
    def used(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._waiting)

    def _busy(self) -> ScireFault:
        ahead = (len(self._waiting) + 1) * self._mean_seconds / self._slots
        spread = self._chance.uniform(0.8, 1.2)
        return ScireFault(FaultCode.BUSY, "busy", retry_after=max(1, round(ahead * spread + 0.5)))

    def take(self, caller: Hashable) -> bool:
        """Take a slot for *caller* if he may have one at once."""
        if caller in self._running or len(self._running) >= self._slots or self._waiting:
            return False
        self._running[caller] = self._reactor.seconds()
        return True

    def wait(self, caller: Hashable) -> Deferred[None]:
        """
        Wait for a slot.

        :returns: fires when *caller* has it; fails with fault 1060.
        """
        ready: Deferred[None] = Deferred()
        ahead = sum(1 for waiter in self._waiting.values() if waiter.caller == caller)
        if len(self._waiting) >= self._places or ahead >= MAX_OF_ONE:
            ready.errback(self._busy())
            return ready
        self._number += 1
        number = self._number
        timeout = self._reactor.callLater(self._seconds, self._give_up, number)
        self._waiting[number] = _Waiter(caller, ready, timeout)
        # A slot may be free: those ahead may all wait for calls of their own.
        self._next()
        return ready

    def _give_up(self, number: int) -> None:
        self._waiting.pop(number).ready.errback(self._busy())

    def release(self, caller: Hashable) -> None:
        """Give the slot of *caller* back."""
        taken = self._running.pop(caller)
        seconds = self._reactor.seconds() - taken
        self._mean_seconds += (seconds - self._mean_seconds) * _WEIGHT
        self._next()

    def _next(self) -> None:
        while len(self._running) < self._slots:
            number = next(
                (n for n, w in self._waiting.items() if w.caller not in self._running), None
            )
            if number is None:
                return
            waiter = self._waiting.pop(number)
            waiter.timeout.cancel()
            self._running[waiter.caller] = self._reactor.seconds()
            waiter.ready.callback(None)

    def stop(self) -> None:
        """Send away all that wait."""
        for waiter in self._waiting.values():
            waiter.timeout.cancel()
        waiters = list(self._waiting.values())
        self._waiting.clear()
        for waiter in waiters:
            waiter.ready.errback(ScireFault(FaultCode.GOING_DOWN, "going down"))


class Rates:
    """
    Calls of each caller in a minute, as buckets that fill again.

    :param per_minute: calls, all of which may come at once.
    :param callers: remembered at most; the longest silent is forgotten first.
    """

    def __init__(self, per_minute: int, callers: int = 50_000) -> None:
        self._size = float(per_minute)
        self._fill = per_minute / 60.0  # a second
        self._callers = callers
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def count(self, caller: Hashable, now: float) -> None:
        """
        Count one call.

        :raises ScireFault: 1070, with the seconds until the next one is free.
        """
        level, at = self._buckets.pop(caller, (self._size, now))
        level = min(self._size, level + (now - at) * self._fill)
        allowed = level >= 1.0
        self._buckets[caller] = (level - 1.0 if allowed else level, now)
        if len(self._buckets) > self._callers:
            self._buckets.popitem(last=False)
        if not allowed:
            seconds = max(1, round((1.0 - level) / self._fill + 0.5))
            raise ScireFault(FaultCode.TOO_MANY_CALLS, "too many calls", retry_after=seconds)
