"""How long a suspected host has to refute, and why it is suspected."""

from __future__ import annotations

from math import log, log10

from attrs import define, frozen

from gridnet.lbsmd.gossip.messages import Standing
from gridnet.lbsmd.gossip.timers import Timer


@frozen(weakref_slot=False)
class Evidence:
    """One accusation; *reason* in words."""

    accuser: str
    at: float  #: seconds, our clock: when we heard it
    told_by: str  #: who passed it on; empty: this host found it
    found: str = ""
    held_for: Standing = Standing.SUSPECT

    @property
    def reason(self) -> str:
        held = "suspects it" if self.held_for is Standing.SUSPECT else "holds it for dead"
        return f"{held}: " + (self.found or f"told by {self.told_by}")


#: Accusers beyond those wanted that shorten a suspicion below the shortest, and how much each.
FURTHER_ACCUSERS = 2
FURTHER_SHARE = 0.2


@define(eq=False, weakref_slot=False)
class Suspicion:
    """
    One running suspicion; each further accuser shortens it (Lifeguard, "LHA-Suspicion").

    With no *wanted* confirmations the shortest time holds from the start; as many as are wanted
    bring it down to that.  Unlike Lifeguard's, it becomes shorter still when even more hosts,
    each of which has tried many times, agree.
    """

    since: float
    shortest: float  #: seconds
    longest: float  #: seconds
    wanted: int
    evidence: tuple[Evidence, ...] = ()
    timer: Timer | None = None  #: that ends it

    def lacks(self, accuser: str) -> bool:
        """Whether an accusation of *accuser* is new, and worth passing on."""
        evidence = self.evidence
        if len(evidence) > (self.wanted + FURTHER_ACCUSERS if self.wanted else 0):
            return False
        for known in evidence:  # noqa: SIM110 (a generator takes three times as long)
            if known.accuser == accuser:
                return False
        return True

    def accuse(self, accusation: Evidence) -> None:
        """Note an accusation of somebody new."""
        self.evidence = (*self.evidence, accusation)

    def ends_at(self) -> float:
        """When the host counts as dead, on the clock of *since*."""
        if self.wanted < 1:
            return self.since + self.shortest
        confirmations = max(0, len(self.evidence) - 1)
        further = confirmations - self.wanted
        if further > 0:
            return self.since + self.shortest * (1 - FURTHER_SHARE * further)
        share = log(confirmations + 1) / log(self.wanted + 1)
        span = self.longest - share * (self.longest - self.shortest)
        return self.since + max(self.shortest, span)


def shortest_suspicion(multiplier: float, hosts: int, interval: float) -> float:
    """The shortest suspicion in a site of *hosts*, in seconds; grows with their logarithm."""
    return multiplier * max(1.0, log10(max(1, hosts))) * interval
