"""
Rates, and the choice among servers (docs/protocols/load-balancing.rst).

A server's status says how good a choice it is now; a draw gives each server a share in proportion
to its status, bent by locality and preference.  The rule is that of the released clients, so that
a dispatcher answers what a look-up in the client's own table would.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import nsmallest
from itertools import accumulate
from typing import Generic, TypeVar

from attrs import frozen

from gridnet.table.model import Entry, Host
from gridnet.table.numbers import STANDBY_RATE
from gridnet.table.server_info import Algorithm

#: Status of a host that a base rate of 1000 turns into the status of a server.
NORMAL_STATUS = 1000.0

#: Factor on the status of a server on the client's own host.  Clients apply 1.2 to what a
#: dispatcher has told them.
LOCAL_BONUS_TABLE = 1.1

#: The preferred host or none.
LATCH = -1.0

#: Up to so many candidates a draw adds up anew; beyond, it searches sums made once.
_FEW = 32

T = TypeVar("T")


def status(entry: Entry, host: Host | None) -> float:
    """
    How good a choice *entry* is now, 0 and up (docs/protocols/load-balancing.rst, Rates).

    :param host: the host it runs on; None: unknown, which makes a dynamic server 0.
    """
    rate = entry.info.rate
    if rate == 0.0 or (host is None and not entry.static):
        return 0.0
    if host is None or entry.static or abs(rate) < STANDBY_RATE:
        base = NORMAL_STATUS
    elif entry.info.algorithm is Algorithm.BLAST:
        base = host.status_blast
    else:
        base = host.status
    fine = min(max(entry.penalty, 0.0), 100.0)
    return abs(base * rate / NORMAL_STATUS * (100.0 - fine) / 100.0)


def is_standby(entry: Entry) -> bool:
    """Whether *entry* is used only when nothing else is there."""
    return 0.0 < abs(entry.info.rate) < STANDBY_RATE


def is_suppressed(entry: Entry) -> bool:
    """Whether a full penalty keeps *entry* from being used."""
    return entry.penalty >= 100.0 and entry.info.rate != 0.0


def is_down(entry: Entry) -> bool:
    """Whether *entry* is known, and known not to serve."""
    return entry.info.rate == 0.0


def usable_band(entries: Sequence[Entry], considered: Sequence[Entry]) -> Sequence[Entry]:
    """
    The standby rule: which of *entries* may be drawn.

    :param considered: all candidates of the request, those skipped or suppressed included: a
        regular one among them that is not down keeps every standby out.
    """
    if any(not is_down(entry) and not is_standby(entry) for entry in considered):
        return [entry for entry in entries if not is_standby(entry)]
    return entries


def standby_order(entries: Sequence[Entry], chance: random.Random) -> list[Entry]:
    """Standby servers as they are handed out: highest rate first, ties drawn at random."""
    ordered = list(entries)
    chance.shuffle(ordered)
    ordered.sort(key=lambda entry: -abs(entry.info.rate))
    return ordered


def preference_share(preference: float, gap: float, count: int) -> float:
    """
    The share of a preferred server.

    :param preference: what the caller wants, 0..1.
    :param gap: the server's part of the total status, 0..1.
    :param count: number of servers, 2 and up.
    """
    if gap >= preference:
        return gap
    spread = 14.0 / (count + 12.0)
    if gap >= spread / count:
        return preference
    return 2.0 / spread * gap * preference


@frozen
class Candidate:
    """A server as the draw sees it."""

    status: float  #: above 0
    bonus: float = 0.0  #: locality coefficient
    on_preferred_host: bool = False  #: the preferred host, and port when one is given
    local_site: bool = False  #: marked local or private


def select(
    candidates: Sequence[Candidate],
    preference: float,
    bonus: float,
    uniform: Callable[[], float],
    preferred_host: bool = False,
) -> int | None:
    """
    Draw one of *candidates*.

    :param preference: 0..1, or :data:`LATCH`.
    :param bonus: factor for a server on the client's own host.
    :param uniform: gives a number in [0, 1).
    :param preferred_host: whether the caller named (or is) a host that counts as its own.
    :returns: an index; None: a latch without its host, or no candidate.
    """
    total = access = point = percent = 0.0
    pick: int | None = None
    fixed = False
    cumulative: list[float] = []
    for index, candidate in enumerate(candidates):
        value = candidate.status
        latch = candidate.on_preferred_host
        if latch or (
            not fixed and not preferred_host and candidate.bonus < 0 and candidate.local_site
        ):
            if latch and not fixed:
                fixed = True
                access = point = 0.0
            if preference != 0 or candidate.bonus <= 0:
                value *= bonus
                if access < value and (preference != 0 or candidate.bonus < 0):
                    access = value
                    point = total + value
                    percent = -candidate.bonus
                    pick = index
            else:
                value *= candidate.bonus
        total += value
        cumulative.append(total)
    count = len(cumulative)
    if not count:
        return None
    if preference < 0 and preferred_host:
        return pick if fixed else None
    if preference > 0:
        if point > 0 and access > 0 and total != access and pick is not None:
            share = preference_share(preference, access / total, count)
            cumulative = _rescaled(cumulative, pick, access, total, share)
            total = cumulative[-1]
        point = -1.0
    if point <= 0 or access * (count - 1) < percent / 100.0 * (total - access):
        point = total * uniform()
    for index, reached in enumerate(cumulative):
        if reached >= point:
            return index
    return count - 1  # only rounding of the last sum leads here


def _rescaled(
    cumulative: Sequence[float], pick: int, access: float, total: float, share: float
) -> list[float]:
    """Cumulative values of the same *total* in which *pick* has *share* of it."""
    factor = (1.0 - share) * total / (total - access)
    rescaled: list[float] = []
    before = running = 0.0
    for index, reached in enumerate(cumulative):
        own = reached - before
        before = reached
        running += share * total if index == pick else own * factor
        rescaled.append(running)
    return rescaled


class Lottery(Generic[T]):
    """
    Draws short lists from one set of servers again and again.

    Make it once for a set that does not change: with many servers a draw then costs a search
    in sums made before, not a walk over all of them.

    :param items: what is handed out.
    :param candidates: beside *items*, one each; those without a positive finite status are left
        out, since the rule cannot bear them.
    :param preference: as for :func:`select`, as are *bonus* and *preferred_host*.
    """

    def __init__(
        self,
        items: Sequence[T],
        candidates: Sequence[Candidate],
        preference: float,
        bonus: float,
        preferred_host: bool = False,
    ) -> None:
        usable = [
            (item, candidate)
            for item, candidate in zip(items, candidates, strict=True)
            if 0 < candidate.status < math.inf
        ]
        self._items: Sequence[T] = [item for item, _ in usable]
        self._candidates: Sequence[Candidate] = [candidate for _, candidate in usable]
        self._preference = preference
        self._bonus = bonus
        self._preferred_host = preferred_host
        self._weights: Sequence[float] | None = self._plain_weights()
        self._sums: Sequence[float] = ()
        if self._weights is not None and len(usable) > _FEW:
            self._sums = tuple(accumulate(self._weights))

    def __len__(self) -> int:
        return len(self._items)

    def _plain_weights(self) -> Sequence[float] | None:
        """The weights when each draw is by fixed weights alone; None: the whole rule is needed."""
        weights: list[float] = []
        for candidate in self._candidates:
            weight = candidate.status
            if candidate.on_preferred_host:
                if self._preference != 0 or candidate.bonus < 0:
                    return None
                weight *= candidate.bonus or self._bonus
            elif not self._preferred_host and candidate.bonus < 0 and candidate.local_site:
                return None
            weights.append(weight)
        if self._preference < 0 and self._preferred_host:
            return None
        return weights

    def draw(self, limit: int, chance: random.Random) -> list[T]:
        """
        Up to *limit* servers without replacement, best first; all draws follow :func:`select`.

        The first is distributed as a single draw is; a client that is handed the short list and
        draws among it keeps the proportions.
        """
        limit = min(limit, len(self._items))
        if limit <= 0:
            return []
        if self._weights is None:
            return self._draw_by_rule(limit, chance)
        if self._sums and limit <= len(self._items) // 4:
            found = self._draw_from_sums(limit, chance)
            if found is not None:
                return found
        return self._draw_by_weight(self._weights, limit, chance)

    def _draw_by_weight(
        self, weights: Sequence[float], limit: int, chance: random.Random
    ) -> list[T]:
        if limit * len(weights) > _FEW * _FEW:
            return self._draw_by_key(weights, limit, chance)
        left = list(range(len(weights)))
        total = sum(weights)
        uniform = chance.random
        order: list[T] = []
        while True:
            point = total * uniform()
            place = -1
            for index in left:
                place += 1
                point -= weights[index]
                if point <= 0:
                    break
            # The loop may end without a hit: rounding left a rest, which belongs to the last.
            chosen = left.pop(place)
            order.append(self._items[chosen])
            if len(order) == limit:
                return order
            total -= weights[chosen]
            if not total > 0:  # rounding again, by weights of very unlike size
                total = sum(weights[index] for index in left)

    def _draw_by_key(self, weights: Sequence[float], limit: int, chance: random.Random) -> list[T]:
        """
        All draws in one go (Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
        2006): the smallest of independent exponential times win, in their order.
        """
        uniform = chance.random
        times = [-math.log(1.0 - uniform()) / weight for weight in weights]
        winners = nsmallest(limit, range(len(times)), key=times.__getitem__)
        return [self._items[index] for index in winners]

    def _draw_from_sums(self, limit: int, chance: random.Random) -> list[T] | None:
        """By search; what was drawn before is drawn again.  None: too often, do it otherwise."""
        sums, uniform = self._sums, chance.random
        last = len(sums) - 1
        total = sums[last]
        drawn: dict[int, None] = {}
        for _ in range(4 * limit + 16):
            drawn[min(bisect_left(sums, total * uniform()), last)] = None
            if len(drawn) == limit:
                return [self._items[index] for index in drawn]
        return None

    def _draw_by_rule(self, limit: int, chance: random.Random) -> list[T]:
        items, candidates = list(self._items), list(self._candidates)
        order: list[T] = []
        while candidates and len(order) < limit:
            chosen = select(
                candidates, self._preference, self._bonus, chance.random, self._preferred_host
            )
            if chosen is None:
                break
            order.append(items.pop(chosen))
            taken = candidates.pop(chosen)
            if taken.on_preferred_host or taken.local_site:
                # With the last of its kind gone, plain weights may do for what is left.
                rest = Lottery(
                    items, candidates, self._preference, self._bonus, self._preferred_host
                )
                if rest._weights is not None:
                    return order + rest.draw(limit - len(order), chance)
        return order


def draw_order(
    items: Sequence[T],
    candidates: Sequence[Candidate],
    limit: int,
    preference: float,
    bonus: float,
    chance: random.Random,
    preferred_host: bool = False,
) -> list[T]:
    """
    Draw up to *limit* of *items* once; see :class:`Lottery`, which is for repeated draws.

    Arguments as there.
    """
    lottery = Lottery(items, candidates, preference, bonus, preferred_host)
    return lottery.draw(limit, chance)
