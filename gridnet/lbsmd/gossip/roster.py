"""
The hosts that one host knows, in the forms that gossip needs at no cost that grows with them.

Hosts lie in :data:`PARTS` parts by a hash of their names.  Each part has a fingerprint, which
is kept up to date with every change, so that two hosts find where their tables differ without
looking at what is equal.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Protocol

from attrs import define, field

from gridnet.blake2 import blake2b
from gridnet.lbsmd.gossip.messages import Address, DigestLine, Entry, Standing
from gridnet.lbsmd.gossip.records import HostRecords

PARTS = 64  #: as many fingerprints fit well into one packet
_SHIFT = 32 - PARTS.bit_length() + 1


@lru_cache(maxsize=65536)
def place_of(name: str) -> int:
    """Where *name* lies: 32 bits of its hash, the uppermost of which are its part."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big")


def part_at(place: int) -> int:
    """The part in which *place* lies."""
    return place >> _SHIFT


def range_of(part: int) -> tuple[int, int]:
    """The first and the last place of *part*."""
    return part << _SHIFT, (part + 1 << _SHIFT) - 1


@define(eq=False)
class HostState:
    """
    What is held of one host, evidence apart; to be changed by a :class:`Roster` alone.

    :ivar signature: its own, under its address in this incarnation.
    :ivar mark: 64 bits that differ where two tables should be made equal.  Suspicion passes by
        itself, and hosts that are gone are forgotten by each host in its own time: neither
        counts.
    """

    name: str
    address: Address
    incarnation: int
    standing: Standing
    key: bytes
    signature: bytes
    records: HostRecords
    place: int = field(init=False)
    mark: int = field(init=False)
    _line: DigestLine | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.place = place_of(self.name)
        self.remark()

    @property
    def is_up(self) -> bool:
        """Worth sending work to: alive, or only suspected."""
        return self.standing <= Standing.SUSPECT

    @property
    def line(self) -> DigestLine:
        """All this in brief; made once until it changes, and then shared by many digests."""
        line = self._line
        if line is None:
            records = self.records
            line = self._line = DigestLine(
                self.name, self.incarnation, self.standing, records.newest, records.fingerprint
            )
        return line

    def remark(self) -> None:
        """Renew the mark after a change."""
        self._line = None
        if self.standing > Standing.SUSPECT:
            self.mark = 0
            return
        text = f"{self.incarnation} {self.records.fingerprint} {self.name}"
        self.mark = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


by_place = attrgetter("place")  #: the key of their order


def between(states: Sequence[HostState], first: int, last: int) -> Sequence[HostState]:
    """Those of *states*, which lie in the order of their places, from one place to another."""
    return states[
        bisect_left(states, first, key=by_place) : bisect_right(states, last, key=by_place)
    ]


class Roster(Protocol):
    """
    All hosts known; :class:`OwnRoster` is that of a daemon, others may share what is equal.

    A state that was changed is replaced: ask again for it.

    :ivar prints: of each part, the marks of its hosts combined by exclusive or.
    :ivar fingerprint: of all parts together.
    :ivar up: hosts that are up.
    """

    prints: list[int]
    fingerprint: int
    up: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def get(self, name: str) -> HostState | None:
        """What is held of *name*; None: it is not known."""

    def at(self, index: int) -> HostState:
        """One of the hosts; *index* from 0, less than their number."""

    def part(self, number: int) -> Sequence[HostState]:
        """The hosts of one part in the order of their places; not to be kept."""

    def add(self, state: HostState) -> None:
        """Know one host more."""

    def remove(self, name: str) -> None:
        """Forget that host; others change their index."""

    def change(
        self,
        state: HostState,
        incarnation: int,
        standing: Standing,
        address: Address,
        signature: bytes,
    ) -> HostState:
        """Another life or standing of a host."""

    def take_entry(self, state: HostState, entry: Entry) -> bool:
        """Keep *entry* of a host if it is newer than ours and there is room."""

    def records_changed(self, state: HostState) -> None:
        """The records of *state* were changed by their owner, this host."""


class OwnRoster:
    """The hosts that a daemon knows."""

    def __init__(self) -> None:
        self.prints = [0] * PARTS
        self.fingerprint = 0
        self.up = 0
        self._hosts: dict[str, HostState] = {}
        self._order: list[HostState] = []
        self._parts: list[list[HostState]] = [[] for _ in range(PARTS)]
        self.get = self._hosts.get
        self.at = self._order.__getitem__
        self.part = self._parts.__getitem__

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._hosts))

    def add(self, state: HostState) -> None:
        """Know one host more."""
        self._hosts[state.name] = state
        self._order.append(state)
        part = part_at(state.place)
        insort(self._parts[part], state, key=by_place)
        self.prints[part] ^= state.mark
        self.fingerprint ^= state.mark
        self.up += state.is_up

    def remove(self, name: str) -> None:
        """Forget that host; others change their index."""
        state = self._hosts.pop(name)
        index = self._order.index(state)
        last = self._order.pop()
        if last is not state:
            self._order[index] = last
        part = part_at(state.place)
        self._parts[part].remove(state)
        self.prints[part] ^= state.mark
        self.fingerprint ^= state.mark
        self.up -= state.is_up

    def change(
        self,
        state: HostState,
        incarnation: int,
        standing: Standing,
        address: Address,
        signature: bytes,
    ) -> HostState:
        """Another life or standing of a host."""
        was_up = state.is_up
        state.incarnation, state.standing = incarnation, standing
        state.address, state.signature = address, signature
        self.up += state.is_up - was_up
        self.records_changed(state)
        return state

    def take_entry(self, state: HostState, entry: Entry) -> bool:
        """Keep *entry* of a host if it is newer than ours and there is room."""
        if not state.records.take(entry):
            return False
        self.records_changed(state)
        return True

    def records_changed(self, state: HostState) -> None:
        """The records of *state* were changed."""
        was = state.mark
        state.remark()
        self.prints[part_at(state.place)] ^= was ^ state.mark
        self.fingerprint ^= was ^ state.mark
