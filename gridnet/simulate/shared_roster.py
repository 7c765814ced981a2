"""
Rosters of many simulated hosts that keep once what all of them hold alike.

Ten thousand hosts that each know ten thousand are a hundred million states.  Nearly all are
equal: what everybody knew at the start is kept once, and a state that was changed by the same
statement is the same object for all that heard it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from gridnet.lbsmd.gossip.messages import Address, Entry, Standing
from gridnet.lbsmd.gossip.records import HostRecords
from gridnet.lbsmd.gossip.roster import PARTS, HostState, by_place, part_at

_Change: TypeAlias = tuple[int, int, Standing, Address, bytes]
_Content: TypeAlias = tuple[str, Address, int, Standing, bytes, bytes, int]


class CommonKnowledge:
    """What all hosts of a simulated site know from its start."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostState] = {}
        self.order: list[HostState] = []
        self.index: dict[str, int] = {}
        self.parts: list[list[HostState]] = [[] for _ in range(PARTS)]
        self.prints = [0] * PARTS
        self.fingerprint = 0
        self._changes: dict[_Change, tuple[HostState, HostState]] = {}
        self._entries: dict[tuple[int, int], tuple[HostState, Entry, HostState | None]] = {}
        self._states: dict[_Content, HostState] = {}

    def add(self, state: HostState) -> None:
        """Let all know *state*, which nobody may change from now."""
        self.index[state.name] = len(self.order)
        self.hosts[state.name] = state
        self.order.append(state)
        part = part_at(state.place)
        insort(self.parts[part], state, key=by_place)
        self.prints[part] ^= state.mark
        self.fingerprint ^= state.mark

    def changed(
        self,
        state: HostState,
        incarnation: int,
        standing: Standing,
        address: Address,
        signature: bytes,
    ) -> HostState:
        """The state that follows *state*: one object, whoever asks."""
        change = id(state), incarnation, standing, address, signature
        known = self._changes.get(change)
        if known is None:
            next_state = self._only(state, incarnation, standing, address, signature, state.records)
            # With the old state, so that its id is not given to another.
            known = self._changes[change] = state, next_state
        return known[1]

    def with_entry(self, state: HostState, entry: Entry) -> HostState | None:
        """The state that has *entry* too: one object, whoever asks; None: no room."""
        known = self._entries.get((id(state), id(entry)))
        if known is None:
            records = state.records.copy()
            next_state = None
            if records.take(entry):
                next_state = self._only(
                    state,
                    state.incarnation,
                    state.standing,
                    state.address,
                    state.signature,
                    records,
                )
            known = self._entries[id(state), id(entry)] = state, entry, next_state
        return known[2]

    def _only(
        self,
        before: HostState,
        incarnation: int,
        standing: Standing,
        address: Address,
        signature: bytes,
        records: HostRecords,
    ) -> HostState:
        """What follows *before*: the same news in another order lead to the same object."""
        name, key = before.name, before.key
        content = (name, address, incarnation, standing, key, signature, records.fingerprint)
        state = self._states.get(content)
        if state is None:
            state = self._states[content] = HostState(
                name, address, incarnation, standing, key, signature, records
            )
        return state


def _put(state: HostState, states: list[HostState]) -> None:
    """Put *state* where it belongs by its place, instead of another of the same host."""
    index = bisect_left(states, state.place, key=by_place)
    while index < len(states) and states[index].place == state.place:
        if states[index].name == state.name:
            states[index] = state
            return
        index += 1
    states.insert(index, state)


class SharedRoster:
    """
    The roster of one simulated host: what is common, and what it holds otherwise.

    Hosts that this one learns of later are its own; they can be forgotten, common ones only
    count as gone.
    """

    __slots__ = (
        "_common",
        "_later",
        "_me",
        "_own",
        "fingerprint",
        "prints",
        "up",
    )

    def __init__(self, common: CommonKnowledge, me: str) -> None:
        self.prints = list(common.prints)
        self.fingerprint = common.fingerprint
        self.up = len(common.order) - (me in common.hosts)  # all of them are up
        self._common = common
        self._me = me
        self._own: dict[str, HostState] = {}
        self._later: list[str] = []

    def __len__(self) -> int:
        return len(self._common.order) + len(self._later)

    def __iter__(self) -> Iterator[str]:
        yield from self._common.hosts
        yield from self._later

    def get(self, name: str) -> HostState | None:
        """What is held of *name*; None: it is not known."""
        return self._own.get(name) or self._common.hosts.get(name)

    def at(self, index: int) -> HostState:
        """One of the hosts."""
        order = self._common.order
        if index < len(order):
            state = order[index]
            return self._own.get(state.name, state) if self._own else state
        return self._own[self._later[index - len(order)]]

    def part(self, number: int) -> Sequence[HostState]:
        """The hosts of one part in the order of their places; not to be kept."""
        states = self._common.parts[number]
        own = [state for state in self._own.values() if part_at(state.place) == number]
        if own:
            states = states.copy()
            for state in own:
                _put(state, states)
        return states

    def add(self, state: HostState) -> None:
        """Know one host more; this one itself may be among those known to all."""
        held = self._common.hosts.get(state.name)
        if held is None:
            self._later.append(state.name)
        part = part_at(state.place)
        change = state.mark ^ (held.mark if held is not None else 0)
        self.prints[part] ^= change
        self.fingerprint ^= change
        self._own[state.name] = state
        self.up += state.is_up

    def remove(self, name: str) -> None:
        """Forget that host."""
        if name not in self._common.hosts:
            self._later.remove(name)
            state = self._own.pop(name)
            self.prints[part_at(state.place)] ^= state.mark
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
        if state.name == self._me:
            was, was_up = state.mark, state.is_up
            state.incarnation, state.standing = incarnation, standing
            state.address, state.signature = address, signature
            state.remark()
            self.prints[part_at(state.place)] ^= was ^ state.mark
            self.fingerprint ^= was ^ state.mark
            self.up += state.is_up - was_up
            return state
        changed = self._common.changed(state, incarnation, standing, address, signature)
        self.up += changed.is_up - state.is_up
        self._replace(state, changed)
        return changed

    def take_entry(self, state: HostState, entry: Entry) -> bool:
        """Keep *entry* of a host if it is newer than ours and there is room."""
        changed = self._common.with_entry(state, entry)
        if changed is not None:
            self._replace(state, changed)
        return changed is not None

    def records_changed(self, state: HostState) -> None:
        """The records of this host itself were changed."""
        was = state.mark
        state.remark()
        self.prints[part_at(state.place)] ^= was ^ state.mark
        self.fingerprint ^= was ^ state.mark

    def _replace(self, state: HostState, changed: HostState) -> None:
        self._own[state.name] = changed
        self.prints[part_at(state.place)] ^= state.mark ^ changed.mark
        self.fingerprint ^= state.mark ^ changed.mark
