"""The hosts of a site as one of them shows them to its callers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import define

from gridnet.lbsmd.gossip.messages import Address, Standing
from gridnet.lbsmd.gossip.records import HostRecords
from gridnet.lbsmd.gossip.roster import HostState, Roster
from gridnet.lbsmd.gossip.suspicion import Evidence, Suspicion


@define(eq=False)
class Trail:
    """What a host remembers of the troubles of another; *since* its standing is what it is."""

    since: float
    suspicion: Suspicion | None = None
    evidence: tuple[Evidence, ...] = ()


class Host:
    """
    One host as this one sees it, now and later; :class:`KeyError` once it is forgotten.

    :ivar signature: its own, under its address in this incarnation.
    :ivar evidence: who accused it last, when and of what; kept after the verdict.
    """

    __slots__ = ("_hosts", "name")

    def __init__(self, hosts: Hosts, name: str) -> None:
        self._hosts = hosts
        self.name = name

    @property
    def _state(self) -> HostState:
        state = self._hosts.roster.get(self.name)
        if state is None:
            raise KeyError(self.name)
        return state

    @property
    def _trail(self) -> Trail:
        return self._hosts.trails.get(self.name) or Trail(self._hosts.began)

    @property
    def address(self) -> Address:
        return self._state.address

    @property
    def incarnation(self) -> int:
        return self._state.incarnation

    @property
    def standing(self) -> Standing:
        return self._state.standing

    @property
    def records(self) -> HostRecords:
        return self._state.records

    @property
    def key(self) -> bytes:
        return self._state.key

    @property
    def signature(self) -> bytes:
        return self._state.signature

    @property
    def since(self) -> float:
        return self._trail.since

    @property
    def suspicion(self) -> Suspicion | None:
        return self._trail.suspicion

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return self._trail.evidence

    @property
    def is_up(self) -> bool:
        """Worth sending work to: alive, or only suspected."""
        return self._state.is_up


class Hosts(Mapping[str, Host]):
    """
    All hosts of a *roster* by name.

    :param trails: of the hosts that are, or were, in trouble.
    :param began: since when hosts without a trail have been as they are.
    """

    __slots__ = ("began", "roster", "trails")

    def __init__(self, roster: Roster, trails: Mapping[str, Trail], began: float) -> None:
        self.roster = roster
        self.trails = trails
        self.began = began

    def __getitem__(self, name: str) -> Host:
        if self.roster.get(name) is None:
            raise KeyError(name)
        return Host(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.roster)

    def __len__(self) -> int:
        return len(self.roster)
