"""
Why a look-up comes out as it does: every server of a service, and every factor of the choice.

The factors are computed by the very functions that choose (docs/protocols/load-balancing.rst), so
that an explanation cannot differ from the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from attrs import evolve, frozen

from gridnet.table.affinity import Affinity, Fit, fit
from gridnet.table.model import Entry, Host, ServiceTable
from gridnet.table.selection import (
    LOCAL_BONUS_TABLE,
    Candidate,
    is_down,
    is_standby,
    is_suppressed,
    select,
    status,
    usable_band,
)
from gridnet.table.server_info import Algorithm, ServerType
from gridnet.table.visibility import in_zone, is_visible

#: With more candidates shares are in proportion to ratings; preference is then left aside.
_MAX_EXACT = 200
#: How finely shares are told apart: to 2**-40.
_STEPS = 40
#: The last random number below 1.
_LAST = 1.0 - 2.0**-53


@frozen
class Question:
    """What is looked up, and by whom."""

    service: str  #: name; compares without case
    client: str = "127.0.0.1"  #: IP address text
    inside: bool = True  #: whether the client is inside the site
    this_host: str = ""  #: address under which the asked host publishes
    zone: int = 0  #: zone bits of the reader; 0: every zone
    types: frozenset[ServerType] = frozenset()  #: empty: all
    preferred_host: str = ""  #: IP address text; empty: none
    preferred_port: int = 0  #: 0: any
    preference: float = 0.0  #: 0..1, or -1 for a latch
    affinity: Affinity | None = None
    bonus: float = LOCAL_BONUS_TABLE  #: factor for a server on the preferred host


@frozen
class Factors:
    """One server, and what made it likely or impossible."""

    entry: Entry
    host_status: float | None  #: the figure of its host that counts; None: static or standby
    rating: float  #: base rate, host and penalty together
    affinity: Fit | None  #: how well its host suits; None: nothing was asked
    ruled_out: str  #: why it is not handed out; empty: it may be
    share: float = 0.0  #: of all single look-ups, 0..1


def explain(table: ServiceTable, question: Question, now: float) -> Sequence[Factors]:
    """
    All servers of the service that *question* asks for, in the order of the table.

    :param now: seconds since the epoch.
    """
    found = [
        _judge(entry, table.host(entry.info.host), question, now)
        for entry in table.entries(question.service)
    ]
    found = _by_affinity(found)
    found = _by_band(found)
    usable = [index for index, each in enumerate(found) if not each.ruled_out]
    for index, share in zip(usable, _shares([found[i] for i in usable], question), strict=True):
        found[index] = evolve(found[index], share=share)
    return found


def _judge(entry: Entry, host: Host | None, question: Question, now: float) -> Factors:
    """*entry* by itself."""
    if host is not None and host.expires_at < now:
        host = None
    rating = status(entry, host)
    counts = not entry.static and not is_standby(entry) and host is not None
    host_status = None
    if counts and host is not None:
        blast = entry.info.algorithm is Algorithm.BLAST
        host_status = host.status_blast if blast else host.status
    wanted = question.affinity
    suits = None if wanted is None else fit(wanted, () if host is None else host.environment)
    return Factors(entry, host_status, rating, suits, _ruled_out(entry, rating, question, now))


def _ruled_out(entry: Entry, rating: float, question: Question, now: float) -> str:
    info = entry.info
    if entry.expires_at < now:
        return "expired"
    if question.types and info.type not in question.types:
        return f"type {info.type.name} is not asked for"
    if not in_zone(entry.zone, question.zone, info.interzone):
        return f"zone {entry.zone:#x} is out of sight of {question.zone:#x}"
    if not is_visible(info, question.client, question.inside, question.this_host):
        return "private to its host" if info.private else "local to the site"
    if is_down(entry):
        return "down"
    if entry.reserved:
        return "reserved"
    if is_suppressed(entry):
        return "suppressed by a penalty"
    if not rating:
        return "its host is not in the table"
    return ""


def _rule_out(each: Factors, why: str) -> Factors:
    return each if each.ruled_out else evolve(each, ruled_out=why)


def _by_affinity(found: Sequence[Factors]) -> list[Factors]:
    """Only the best class that is present is used, and the bad one never."""
    classes = [each.affinity for each in found if each.affinity is not None and not each.ruled_out]
    if not classes:
        return list(found)
    best = min(classes)
    return [
        each
        if each.affinity is best and best is not Fit.BAD
        else _rule_out(each, f"affinity is {Fit(each.affinity or 0).name.lower()}")
        for each in found
    ]


def _by_band(found: Sequence[Factors]) -> list[Factors]:
    """Standby servers are for when no regular one is there, suppressed ones counted."""
    considered = [each.entry for each in found if each.ruled_out in ("", "suppressed by a penalty")]
    usable = {id(entry) for entry in usable_band(considered, considered)}
    return [
        each
        if each.ruled_out or id(each.entry) in usable
        else _rule_out(each, "standby, and a regular server is there")
        for each in found
    ]


def candidate(each: Factors, question: Question) -> Candidate:
    """*each* as the draw that answers *question* sees it."""
    info = each.entry.info
    is_preferred = (
        bool(question.preferred_host)
        and info.host == question.preferred_host
        and question.preferred_port in (0, info.port)
    )
    return Candidate(each.rating, info.bonus, is_preferred, info.local or info.private)


def _shares(found: Sequence[Factors], question: Question) -> Sequence[float]:
    """How often each is what one look-up gives."""
    if not found:
        return ()
    if is_standby(found[0].entry):
        first = max(each.rating for each in found)
        ties = sum(each.rating == first for each in found)
        return [1.0 / ties if each.rating == first else 0.0 for each in found]
    total = sum(each.rating for each in found)
    if len(found) > _MAX_EXACT:
        return [each.rating / total for each in found]
    candidates = [candidate(each, question) for each in found]
    preferred = bool(question.preferred_host)

    def drawn(point: float) -> int | None:
        return select(candidates, question.preference, question.bonus, lambda: point, preferred)

    if drawn(0.0) is None:
        return [0.0] * len(found)

    def reached(index: int) -> float:
        """Up to which random number a server no later than *index* is drawn: they only grow."""
        low, high = 0.0, 1.0
        if (drawn(_LAST) or 0) <= index:
            return high
        if (drawn(low) or 0) > index:
            return low
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if (drawn(middle) or 0) <= index:
                low = middle
            else:
                high = middle
        return high

    bounds = [0.0, *(reached(index) for index in range(len(found)))]
    return [end - begin for begin, end in pairwise(bounds)]
