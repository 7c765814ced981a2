"""Whom a host probes next."""

from __future__ import annotations

import heapq
from math import gcd
from random import Random

from gridnet.lbsmd.gossip.roster import HostState, Roster


class ProbeOrder:
    """
    Every host once in a random order, then anew: bounds the time to the first probe.

    The order is that of the multiples of a random number that has no divisor in common with
    the number of hosts, from a random one on: nothing to shuffle, nothing to keep.  Who is new
    gets a random turn of its own (SWIM, section 4.3).
    """

    __slots__ = (
        "_index",
        "_left",
        "_length",
        "_me",
        "_newcomers",
        "_probes",
        "_random",
        "_roster",
        "_step",
    )

    def __init__(self, me: str, roster: Roster, random: Random) -> None:
        self._me = me
        self._roster = roster
        self._random = random
        self._probes = 0
        # The pass under way.
        self._length = 0
        self._left = 0
        self._step = 1
        self._index = 0
        self._newcomers: list[tuple[int, str]] = []

    def met(self, name: str) -> None:
        """That host is new: it gets a turn of its own."""
        turn = self._probes + int(self._random.random() * len(self._roster))
        heapq.heappush(self._newcomers, (turn, name))

    def hurry(self, name: str) -> None:
        """That host comes next."""
        heapq.heappush(self._newcomers, (self._probes, name))

    def next(self) -> HostState | None:
        """Another host that is up; None: there is none."""
        roster = self._roster
        self._probes += 1
        while self._newcomers and self._newcomers[0][0] <= self._probes:
            state = roster.get(heapq.heappop(self._newcomers)[1])
            if state is not None and state.is_up:
                return state
        number = len(roster)
        for _ in range(number):
            if self._left <= 0 or number > self._length * 1.2 + 1:
                self._begin(number)
            index = self._index
            self._index = (index + self._step) % self._length
            self._left -= 1
            if index < number:
                state = roster.at(index)
                if state.is_up and state.name != self._me:
                    return state
        return None

    def _begin(self, number: int) -> None:
        self._length = self._left = number
        self._index = int(self._random.random() * number)
        self._step = 1 + int(self._random.random() * number)
        while gcd(self._step, number) != 1:
            self._step += 1
        self._newcomers.clear()
