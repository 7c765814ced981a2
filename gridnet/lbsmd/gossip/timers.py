"""Rare things that are to be done at some time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf
from typing import Any


class Timers:
    """
    What is to be done when, on the clock of the caller.

    :ivar next: when the first of it is due, in seconds; infinite: nothing is to be done.
    """

    __slots__ = ("_heap", "_number", "next")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._number = 0
        self.next = inf

    def at(self, time: float, action: Callable[[float, Any], None], argument: Any) -> None:
        """Call *action* with the time it is then and *argument*, not before *time*."""
        self._number += 1
        heapq.heappush(self._heap, (time, self._number, action, argument))
        self.next = self._heap[0][0]

    def run(self, now: float) -> None:
        """Do what is due, in the order of its times."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, action, argument = heapq.heappop(heap)
            action(now, argument)
        self.next = heap[0][0] if heap else inf
