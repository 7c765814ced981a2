"""
Rates, and the choice among servers (docs/protocols/load-balancing.rst).

A server's status says how good a choice it is now; a draw gives each server a share in proportion
to its status, bent by locality and preference.  The rule is that of the released clients, so that
a dispatcher answers what a look-up in the client's own table would.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from attrs import frozen

from gridnet.table.model import Entry, Host
from gridnet.table.server_info import STANDBY_RATE, Algorithm

#: Status of a host that a base rate of 1000 turns into the status of a server.
NORMAL_STATUS = 1000.0

#: Factor on the status of a server on the client's own host, by who maps.
LOCAL_BONUS_TABLE = 1.1
LOCAL_BONUS_DISPATCHER = 1.2

#: The preferred host or none.
LATCH = -1.0

T = TypeVar("T")


def status(entry: Entry, host: Host | None) -> float:
    """
    How good a choice *entry* is now, 0 and up (docs/protocols/load-balancing.rst, Rates).

    :param host: the host it runs on; None: unknown, which makes a dynamic server 0.
    """
    rate = entry.info.rate
    if rate == 0.0:
        return 0.0
    if entry.static or abs(rate) < STANDBY_RATE:
        base = NORMAL_STATUS
    elif host is None:
        return 0.0
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
    Draw up to *limit* of *items* without replacement, each draw by :func:`select`.

    The first of the list is so distributed as a single draw; a client that is handed a short
    list and draws again among it keeps the proportions.

    :param candidates: beside *items*, one each; those without a positive status are left out,
        since the rule cannot bear them.
    """
    left = [
        (item, candidate)
        for item, candidate in zip(items, candidates, strict=True)
        if candidate.status > 0 and math.isfinite(candidate.status)
    ]
    order: list[T] = []
    uniform = chance.random
    while left and len(order) < limit:
        if len(left) == 1 and not (preference < 0 and preferred_host):
            chosen: int | None = 0
        else:
            chosen = select([c for _, c in left], preference, bonus, uniform, preferred_host)
        if chosen is None:
            break
        order.append(left.pop(chosen)[0])
    return order


def draw_plain(
    items: Sequence[T], weights: Sequence[float], limit: int, chance: random.Random
) -> list[T]:
    """
    :func:`draw_order` where neither place nor preference counts: shares are the weights.

    That is nearly every look-up, and the shortest way to its answer.

    :param weights: beside *items*, one each, all above 0.
    """
    left, rest = list(items), list(weights)
    order: list[T] = []
    uniform = chance.random
    total = sum(rest)
    while rest and len(order) < limit:
        point = total * uniform()
        index = 0
        last = len(rest) - 1
        while index < last:
            point -= rest[index]
            if point < 0:
                break
            index += 1
        total -= rest.pop(index)
        order.append(left.pop(index))
    return order
