"""
Making two tables equal ("anti-entropy"): only what differs is sent.

A host sends an overview of its table, one fingerprint a part.  The peer answers, for the parts
that differ, with a digest, one line a host, or with all it knows where the other knows nothing.
A digest is answered with what its sender knows less well, and with a digest of the same places.
What is newer than the newest of the sender may not be all that it lacks: on a site of few hosts a
digest of that one place follows, to compare the host once more.  Who holds the same is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from gridnet.lbsmd.gossip.messages import (
    Belief,
    Digest,
    DigestLine,
    Message,
    Overview,
    Standing,
)
from gridnet.lbsmd.gossip.roster import (
    PARTS,
    HostState,
    Roster,
    between,
    part_at,
    range_of,
)
from gridnet.lbsmd.gossip.settings import GossipTimes


class Exchange:
    """
    Compares a *roster* with what peers say of theirs.

    Every host begins a comparison now and then, and sooner after one that found a difference.
    What is told in answer is bounded in each second: a small question must not cause a flood.

    :param belief_of: what to tell of a host, or of it in another standing.
    :ivar next_at: when this host is to send its next overview, in seconds.
    """

    __slots__ = (
        "_allowance",
        "_allowed_at",
        "_belief_of",
        "_packet_octets",
        "_random",
        "_roster",
        "_times",
        "next_at",
    )

    def __init__(
        self,
        roster: Roster,
        belief_of: Callable[[HostState, Standing], Belief],
        times: GossipTimes,
        random: Random,
        now: float,
    ) -> None:
        self._roster = roster
        self._belief_of = belief_of
        self._packet_octets = times.packet_octets
        self._times = times
        self._random = random
        self.next_at = now + random.random() * times.exchange_interval
        self._allowance = times.max_exchange_packets
        self._allowed_at = now

    def begin(self, now: float) -> None:
        """This host sends an overview now: plan the next one."""
        self.next_at = now + self._times.exchange_interval * (0.75 + self._random.random() / 2)

    def compare(self, now: float, theirs: Overview) -> Iterator[tuple[int, list[Message]]]:
        """Packets that answer an overview: how many octets, and which messages."""
        parts = self._differing(theirs)
        if parts:
            self._begin_soon(now, len(parts))
            yield from self._allowed(now, self._answer_overview(theirs, parts))

    def compare_parts(self, now: float, theirs: Digest) -> Iterator[tuple[int, list[Message]]]:
        """Packets that answer a digest; none if it is of one host that is held alike here."""
        states = self._states(theirs.first, theirs.last)
        if not _is_again(theirs) or theirs.is_answer or not _are_equal(states, theirs.lines):
            self._begin_soon(now, 1)
            yield from self._allowed(now, self._answer_digest(theirs, states))

    def _begin_soon(self, now: float, parts: int) -> None:
        """Tables differ: compare again, sooner if in much, until they do not."""
        wait = self._times.exchange_again / (4 if parts > PARTS // 4 else 1)
        self.next_at = min(self.next_at, now + wait * (0.5 + self._random.random()))

    def _allowed(
        self, now: float, messages: Iterable[Message]
    ) -> Iterator[tuple[int, list[Message]]]:
        if now - self._allowed_at >= 1.0:
            self._allowed_at, self._allowance = now, self._times.max_exchange_packets
        for packet in packed(messages, self._packet_octets):
            if self._allowance <= 0:
                return
            self._allowance -= 1
            yield packet

    def overview(self) -> Overview:
        """Our whole table in brief."""
        return Overview(tuple(self._roster.prints))

    def _differing(self, theirs: Overview) -> Sequence[int]:
        """The parts in which the peer's table is not equal to ours, in a random order."""
        mine = self._roster.prints
        if len(theirs.prints) != PARTS:
            return ()
        parts = [part for part in range(PARTS) if mine[part] != theirs.prints[part]]
        # An answer may be cut short: no part may always be the last.
        self._random.shuffle(parts)
        return parts

    def _answer_overview(self, theirs: Overview, parts: Iterable[int]) -> Iterator[Message]:
        """What to tell the peer about *parts*."""
        for part in parts:
            states = self._roster.part(part)
            if theirs.prints[part]:
                yield from self._digests(*range_of(part), states, False)
            else:
                for state in states:
                    if state.is_up:
                        yield self._belief_of(state, state.standing)
                        yield from state.records

    def _states(self, first: int, last: int) -> Sequence[HostState]:
        """The hosts from one place to another."""
        begun, ended = part_at(first), part_at(last)
        states = self._roster.part(begun)
        if begun < ended:
            parts = range(begun, ended + 1)
            states = [state for number in parts for state in self._roster.part(number)]
        return between(states, first, last)

    def _answer_digest(self, theirs: Digest, states: Sequence[HostState]) -> Iterator[Message]:
        """What the peer should know of *states*, and what we know of them."""
        if not theirs.is_answer:
            yield from self._digests(theirs.first, theirs.last, states, True)
        # On a large site comparing once more, each time, would cost more than it gains.
        is_last = _is_again(theirs) or len(self._roster) > PARTS
        known = {line.host: line for line in theirs.lines}
        for state in states:
            line = known.get(state.name)
            if line != state.line:
                yield from self._better(state, line, is_last)

    def _better(
        self, state: HostState, line: DigestLine | None, is_last: bool
    ) -> Iterator[Message]:
        if line is None:
            if state.is_up:
                yield self._belief_of(state, state.standing)
                yield from state.records
            return
        held = state.standing
        if (state.incarnation, held) > (line.incarnation, line.standing):
            if (
                held is Standing.DEAD
                and line.standing is Standing.ALIVE
                and line.incarnation == state.incarnation
            ):
                # It may live on the peer's side of a partition: let it refute, not die again.
                held = Standing.SUSPECT
            yield self._belief_of(state, held)
        if state.is_up and line.fingerprint != state.records.fingerprint:
            newer = [entry for entry in state.records if entry.version > line.newest]
            if newer:
                yield from newer
                if not is_last:
                    # The peer may have missed older ones too: a load does not wait for a service.
                    yield Digest(state.place, state.place, False, (state.line,))
            elif state.records.newest == line.newest:
                # The peer missed older ones; it is not known which.
                missed = list(state.records)
                self._random.shuffle(missed)
                yield from missed

    def _digests(
        self, first: int, last: int, states: Iterable[HostState], is_answer: bool
    ) -> Iterator[Digest]:
        """
        Digests of the places from *first* to *last*, each small enough for one packet.

        :param states: in the order of their places.
        """
        lines: list[DigestLine] = []
        room = self._packet_octets * 2 // 3
        begun = first
        for state in states:
            line = state.line
            octets = line.octets()
            if octets > room and lines and state.place > begun:
                yield Digest(begun, state.place - 1, is_answer, tuple(lines))
                lines, begun = [], state.place
                room = self._packet_octets * 2 // 3
            lines.append(line)
            room -= octets
        yield Digest(begun, last, is_answer, tuple(lines))


def _is_again(digest: Digest) -> bool:
    """Whether it is of one place: its host has been compared already, and told some news."""
    return digest.first == digest.last


def _are_equal(states: Sequence[HostState], lines: Sequence[DigestLine]) -> bool:
    """Whether *lines* say of all *states* what is held of them."""
    if len(states) != len(lines):
        return False
    said = {line.host: line for line in lines}
    return all(said.get(state.name) == state.line for state in states)


def packed(messages: Iterable[Message], packet_octets: int) -> Iterator[tuple[int, list[Message]]]:
    """*messages* in packets: how many octets, and which."""
    packet: list[Message] = []
    octets = 0
    for message in messages:
        size = message.octets()
        if octets + size > packet_octets and packet:
            yield octets, packet
            packet, octets = [], 0
        packet.append(message)
        octets += size
    if packet:
        yield octets, packet
