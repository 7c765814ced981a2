"""Hosts and the network between them; everything chosen by one seed."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from math import inf
from random import Random
from typing import Any, TypeAlias

from attrs import define, field, frozen

from gridnet.lbsmd.gossip.identity import TRUSTING
from gridnet.lbsmd.gossip.membership import (
    EntryChanged,
    Event,
    GossipTimes,
    Membership,
    Outgoing,
    StandingChanged,
)
from gridnet.lbsmd.gossip.messages import Address, Message, Standing
from gridnet.lbsmd.gossip.records import VERSION_BITS, OwnRecords
from gridnet.lbsmd.gossip.roster import HostState
from gridnet.simulate.shared_roster import CommonKnowledge, SharedRoster

TICK_SECONDS = 0.001  #: times of the simulation are multiples of this
#: Octets of a packet beside its messages: IPv4 and UDP headers; head, tag and time of
#: docs/protocols/gossip.rst; the name of the sender, an IPv4 address of the usual length.
PACKET_OVERHEAD = 28 + 33 + 8 + 1 + 12
_RING = 4096  # ticks that lie in lists; what is later lies in a heap


def option(default: Any, meaning: str) -> Any:
    """A field that is an option of the command."""
    return field(default=default, metadata={"meaning": meaning})


@frozen
class NetworkTraits:
    """What the network and the machines do to packets; times in seconds."""

    loss: float = option(0.0, "share of the packets that are lost, 0 to 1")
    delay: float = option(0.001, "seconds that a packet takes at least")
    delay_spread: float = option(0.002, "seconds that it takes longer at most")
    backlog: int = option(256, "packets that wait for a host that does not read; more are lost")
    slow_packet: float = option(0.001, "seconds that a slow host needs to read one")
    max_skew: float = option(300.0, "packets of clocks that differ by more are refused")
    #: Seconds that packets took somewhere: each takes one of them, instead of the above.
    delays: tuple[float, ...] = ()


@define(eq=False)
class SimulatedHost:
    """
    One host and what it has cost.

    :ivar paused_until: its process does not run before; what arrives waits.
    :ivar blocked_until: it neither hears nor speaks before; what arrives and leaves waits.
    """

    number: int
    name: str
    address: Address
    membership: Membership
    group: int = 0  #: partition: only hosts of one group hear each other
    is_running: bool = True
    is_slow: bool = False  #: reads one packet after the other, each takes its time
    skew: float = 0.0  #: seconds its clock is ahead
    paused_until: float = 0.0
    blocked_until: float = 0.0
    packets: int = 0
    octets: int = 0
    wakes_at: float = inf
    # Mostly empty, and then a tenth of the size of a deque.
    backlog: list[_Packet] = field(factory=list)
    unsent: list[Outgoing] = field(factory=list)
    is_reading: bool = False


_Packet: TypeAlias = tuple[SimulatedHost, SimulatedHost, Iterable[Message]]
_Event: TypeAlias = (
    tuple[SimulatedHost, SimulatedHost | None, Iterable[Message]] | Callable[[], None]
)
Observer = Callable[[float, SimulatedHost, Event], None]


def _address(number: int) -> Address:
    # The port says who it is: looked up for every packet, and faster than the address.
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", number


class Network:
    """
    Many hosts on one virtual clock.

    :ivar now: seconds since the start.
    :ivar hosts: by name.
    :ivar lost: packets that the network or a full backlog swallowed.
    :ivar events: packets that arrived and timers, in all.
    """

    def __init__(
        self,
        seed: int,
        traits: NetworkTraits,
        times: GossipTimes,
        observe: Observer | None = None,
    ) -> None:
        self.now = 0.0
        self.hosts: dict[str, SimulatedHost] = {}
        self.traits = traits
        self.lost = 0
        self.events = 0
        self._times = times
        # One for all: ten thousand of them would not fit into the caches of a processor.
        self._random = Random(seed)
        self._observe = observe
        self._by_number: list[SimulatedHost] = []
        self._common: CommonKnowledge | None = None
        self._tick = 0
        self._ring: list[list[_Event]] = [[] for _ in range(_RING)]
        self._later: list[tuple[int, int, _Event]] = []
        self._number = 0
        self._trace = blake2b(digest_size=16)
        self._trace_numbers: array[int] = array("Q")

    @property
    def trace_hash(self) -> str:
        """Of all that was sent and found so far; equal for equal seeds."""
        self._write_trace()
        return self._trace.hexdigest()

    def add(self, name: str) -> SimulatedHost:
        """A new host, which knows nobody; an old one of that name has crashed and restarts."""
        old = self.hosts.get(name)
        number = old.number if old else len(self.hosts)
        address = old.address if old else _address(number)
        if old is not None:
            old.is_running = False
        membership = Membership(name, address, self._times, self._random, self.now)
        host = SimulatedHost(number, name, address, membership)
        self._enter(host)
        return host

    def add_acquainted(
        self, names: Iterable[str], entries: Callable[[str], Iterable[tuple[str, bytes]]]
    ) -> None:
        """
        Many hosts that all know each other and what each publishes.

        :param entries: what the host of a name publishes: keys and values.
        """
        common = self._common = CommonKnowledge()
        prepared = []
        for number, name in enumerate(names):
            address = _address(number)
            # Nothing that is large stays behind: a membership holds itself, by its parts.
            own = OwnRecords(name, self._times.max_entries, TRUSTING)
            for key, value in entries(name):
                own.publish(key, value)
            signature = TRUSTING.sign(b"")
            common.add(
                HostState(name, address, 1, Standing.ALIVE, TRUSTING.key, signature, own.copy())
            )
            prepared.append((number, name, address))
        for number, name, address in prepared:
            host = self._acquainted(number, name, address, 1)
            for key, value in entries(name):
                host.membership.publish(key, value)
            host.membership.acquaint(self.now, ())  # nothing of that is news
            self._enter(host)

    def restart(
        self, name: str, entries: Callable[[str], Iterable[tuple[str, bytes]]]
    ) -> SimulatedHost:
        """A host that crashed lives again; it remembers who there was, and tells them."""
        old = self.hosts[name]
        incarnation = old.membership.hosts[name].incarnation + 1
        host = self._acquainted(old.number, name, old.address, incarnation)
        self._enter(host)
        for key, value in entries(name):
            host.membership.publish(key, value)
        return host

    def _acquainted(
        self,
        number: int,
        name: str,
        address: Address,
        incarnation: int,
    ) -> SimulatedHost:
        assert self._common is not None
        roster = SharedRoster(self._common, name)
        membership = Membership(
            name,
            address,
            self._times,
            self._random,
            self.now,
            incarnation=incarnation,
            version=incarnation - 1 << VERSION_BITS,
            roster=roster,
        )
        return SimulatedHost(number, name, address, membership)

    def _enter(self, host: SimulatedHost) -> None:
        old = self.hosts.get(host.name)
        if old is not None:
            old.is_running = False
            host.packets, host.octets, host.group = old.packets, old.octets, old.group
            self._by_number[host.number] = host
        else:
            self._by_number.append(host)
        self.hosts[host.name] = host
        self._wake_later(host)

    def acted(self, host: SimulatedHost) -> None:
        """Send what *host* has to say, after its membership was called from outside."""
        membership = host.membership
        events = membership.take_events()
        for event in events:
            self._note(host, event)
        self._send_all(host, membership.take_outgoing())
        self._wake_later(host)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do *action* when the clock is *time*, in seconds."""
        self._put(max(self._tick + 1, -int(-time / TICK_SECONDS // 1)), action)

    def run_until(self, time: float) -> None:
        """Let the clock go to *time*, in seconds."""
        last = int(time / TICK_SECONDS + 0.5)
        ring, later = self._ring, self._later
        while self._tick <= last:
            tick = self._tick
            events = ring[tick % _RING]
            while later and later[0][0] <= tick:
                events.append(heapq.heappop(later)[2])
            if events:
                self.now = tick * TICK_SECONDS
                self._trace_numbers.append(tick)
                # What happens adds no event to this tick, only to later ones.
                ring[tick % _RING] = []
                self.events += len(events)
                self._happen(events)
                if len(self._trace_numbers) > 65536:
                    self._write_trace()
            self._tick = tick + 1
        self.now = max(self.now, last * TICK_SECONDS)

    def pause(self, host: SimulatedHost, until: float) -> None:
        """Stop *host* as if its process did not get to run before *until*, in seconds."""
        host.paused_until = until
        self.at(until, lambda: self._resume(host))

    def block(self, host: SimulatedHost, until: float) -> None:
        """Let *host* neither send nor receive before *until*; its timers go on."""
        host.blocked_until = until
        self.at(until, lambda: self._unblock(host))

    def _unblock(self, host: SimulatedHost) -> None:
        if not host.is_running or host.blocked_until > self.now:
            return
        unsent, host.unsent = host.unsent, []
        self._send_all(host, unsent)
        if host.backlog and not host.is_reading:
            host.is_reading = True
            self.at(self.now, lambda: self._read(host))

    def _happen(self, events: list[_Event]) -> None:
        now, note = self.now, self._note
        for event in events:
            if type(event) is not tuple:
                event()  # type: ignore[operator]
                continue
            host, sender, messages = event
            if not host.is_running:
                continue
            if host.paused_until > now:
                if sender is not None and self._is_heard(host, sender):
                    self._keep((host, sender, messages))
                elif sender is None and host.wakes_at <= now:
                    # That wake is spent: what is due when it resumes needs another.
                    host.wakes_at = inf
                continue
            membership = host.membership
            if sender is None:
                if host.wakes_at > now:
                    continue
                host.wakes_at = inf
                skew = host.skew
                # All that is noted in this step shares one number where clocks do not differ.
                theirs = now + skew if skew else now
                if membership.due <= theirs + 1e-9:
                    membership.tick(theirs)
            elif (sender.group != host.group or sender.skew != host.skew) and not self._is_heard(
                host, sender
            ):
                continue
            elif host.is_slow:
                self._keep((host, sender, messages))
                continue
            else:
                skew = host.skew
                membership.receive(
                    now + skew if skew else now, sender.address, sender.name, messages
                )
            if membership.events:
                for found in membership.take_events():
                    note(host, found)
            if membership.outgoing:
                self._send_all(host, membership.take_outgoing())
            if membership.due - skew < host.wakes_at:
                self._wake_later(host)

    def _is_heard(self, host: SimulatedHost, sender: SimulatedHost) -> bool:
        if sender.group == host.group and abs(sender.skew - host.skew) <= self.traits.max_skew:
            return True
        self.lost += 1
        return False

    def _keep(self, packet: _Packet) -> None:
        """A host that does not read: its socket keeps what fits."""
        host = packet[0]
        if len(host.backlog) >= self.traits.backlog:
            self.lost += 1
            return
        host.backlog.append(packet)
        if not host.is_reading and max(host.paused_until, host.blocked_until) <= self.now:
            host.is_reading = True
            self.at(self.now + self.traits.slow_packet, lambda: self._read(host))

    def _resume(self, host: SimulatedHost) -> None:
        if not host.is_running or host.paused_until > self.now:
            return
        # An event loop calls what is due before it reads its sockets.
        if host.membership.next_time() <= self.now + host.skew:
            host.membership.tick(self.now + host.skew)
        self.acted(host)
        if host.backlog and not host.is_reading:
            host.is_reading = True
            self.at(self.now, lambda: self._read(host))

    def _read(self, host: SimulatedHost) -> None:
        host.is_reading = False
        if not host.is_running or max(host.paused_until, host.blocked_until) > self.now:
            return
        while host.backlog:
            _, sender, messages = host.backlog.pop(0)
            host.membership.receive(self.now + host.skew, sender.address, sender.name, messages)
            self.acted(host)
            if host.is_slow:
                break
        if host.backlog:
            host.is_reading = True
            self.at(self.now + self.traits.slow_packet, lambda: self._read(host))

    def _note(self, host: SimulatedHost, event: Event) -> None:
        if isinstance(event, StandingChanged):
            subject = self.hosts[event.host].number << 4 | event.standing
            self._trace_numbers.append(1 << 63 | host.number << 32 | subject)
        elif isinstance(event, EntryChanged):
            subject = self.hosts[event.entry.owner].number
            version = event.entry.version & 0xFFFF
            self._trace_numbers.append(1 << 62 | host.number << 36 | subject << 16 | version)
        if self._observe is not None:
            self._observe(self.now, host, event)

    def _send_all(self, host: SimulatedHost, packets: Sequence[Outgoing]) -> None:
        traits = self.traits
        if host.blocked_until > self.now:
            host.unsent += packets[: max(0, traits.backlog - len(host.unsent))]
            return
        tick, ring, by_number = self._tick, self._ring, self._by_number
        random, trace = self._random.random, self._trace_numbers.append
        loss, least, spread = traits.loss, traits.delay, traits.delay_spread
        delays = traits.delays
        sender = host.number << 40
        sent = 0
        for packet in packets:
            octets = packet.octets + PACKET_OVERHEAD
            sent += octets
            number = packet.address[1]
            trace(sender | number << 16 | octets)
            if loss and random() < loss:
                self.lost += 1
                continue
            seconds = delays[int(random() * len(delays))] if delays else least + random() * spread
            delay = int(seconds / TICK_SECONDS + 0.5) or 1
            event = by_number[number], host, packet.messages
            if delay < _RING:
                ring[(tick + delay) % _RING].append(event)
            else:
                self._put(tick + delay, event)
        host.packets += len(packets)
        host.octets += sent

    def _wake_later(self, host: SimulatedHost) -> None:
        due = host.membership.due - host.skew
        if due < host.wakes_at:
            tick = -int(-due / TICK_SECONDS // 1)
            if tick <= self._tick:
                tick = self._tick + 1
            host.wakes_at = tick * TICK_SECONDS
            if tick - self._tick < _RING:
                self._ring[tick % _RING].append((host, None, ()))
            else:
                self._put(tick, (host, None, ()))

    def _put(self, tick: int, event: _Event) -> None:
        if tick - self._tick < _RING:
            self._ring[tick % _RING].append(event)
            return
        self._number += 1
        heapq.heappush(self._later, (tick, self._number, event))

    def _write_trace(self) -> None:
        self._trace.update(self._trace_numbers.tobytes())
        del self._trace_numbers[:]
