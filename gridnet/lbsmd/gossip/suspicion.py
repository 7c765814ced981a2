"""How long a suspected host has to refute, and why it is suspected."""

from __future__ import annotations

from math import log, log10

from attrs import define, field, frozen


@frozen
class Evidence:
    """One accusation."""

    accuser: str
    at: float  #: seconds, our clock: when we heard it
    reason: str


@define
class Suspicion:
    """
    One running suspicion; each further accuser shortens it (Lifeguard, "LHA-Suspicion").

    With no *wanted* confirmations the shortest time holds from the start.
    """

    since: float
    shortest: float  #: seconds
    longest: float  #: seconds
    wanted: int
    evidence: list[Evidence] = field(factory=list)

    def accuse(self, accuser: str, now: float, reason: str) -> bool:
        """Note one accusation; True: of somebody new, so it is worth passing on."""
        if any(known.accuser == accuser for known in self.evidence):
            return False
        if len(self.evidence) > self.wanted:
            return False
        self.evidence.append(Evidence(accuser, now, reason))
        return True

    def ends_at(self) -> float:
        """When the host counts as dead, on the clock of *since*."""
        if self.wanted < 1:
            return self.since + self.shortest
        confirmations = max(0, len(self.evidence) - 1)
        share = log(confirmations + 1) / log(self.wanted + 1)
        span = self.longest - share * (self.longest - self.shortest)
        return self.since + max(self.shortest, span)


def shortest_suspicion(multiplier: float, hosts: int, interval: float) -> float:
    """The shortest suspicion in a site of *hosts*, in seconds; grows with their logarithm."""
    return multiplier * max(1.0, log10(max(1, hosts))) * interval
