"""Rare things that are to be done at some time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf
from typing import Any

from attrs import define


@define(order=False, eq=False, weakref_slot=False)
class Timer:
    """
    One thing to do; to be given back to :meth:`Timers.cancel` alone.

    Once that is over it holds its *argument* no more: what that holds may hold the timer.
    """

    action: Callable[[float, Any], None]
    argument: Any
    is_cancelled: bool = False


class Timers:
    """
    What is to be done when, on the clock of the caller.

    :ivar next: when the first of it is due, in seconds; infinite: nothing is to be done.
    """

    __slots__ = ("_heap", "_number", "next")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0
        self.next = inf

    def at(self, time: float, action: Callable[[float, Any], None], argument: Any) -> Timer:
        """Call *action* with the time it is then and *argument*, not before *time*."""
        self._number += 1
        timer = Timer(action, argument)
        heapq.heappush(self._heap, (time, self._number, timer))
        self.next = self._heap[0][0]
        return timer

    def cancel(self, timer: Timer) -> None:
        """Do not do that, if it is not done yet."""
        timer.is_cancelled = True
        timer.argument = None
        self._look()

    def run(self, now: float) -> None:
        """Do what is due, in the order of its times."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            if not timer.is_cancelled:
                argument, timer.argument = timer.argument, None
                timer.action(now, argument)
        self._look()

    def _look(self) -> None:
        heap = self._heap
        while heap and heap[0][2].is_cancelled:
            heapq.heappop(heap)
        self.next = heap[0][0] if heap else inf
