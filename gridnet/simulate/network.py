"""Hosts and the network between them; everything chosen by one seed."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from hashlib import blake2b
from random import Random

from attrs import define, field, frozen

from gridnet.lbsmd.gossip.membership import (
    Event,
    GossipTimes,
    Membership,
    Outgoing,
)
from gridnet.lbsmd.gossip.messages import Address

PACKET_OVERHEAD = 48  #: octets a packet has beside its messages: nonce, tag, name of the sender


@frozen
class NetworkTraits:
    """What the network does to packets."""

    loss: float = 0.0  #: share of packets lost, 0 to 1
    delay: float = 0.001  #: seconds, at least
    delay_spread: float = 0.002  #: seconds, at most, beside *delay*


@define
class SimulatedHost:
    """
    One host and what it has cost.

    :ivar paused_until: it neither hears nor speaks before; what arrives waits.
    """

    name: str
    address: Address
    membership: Membership
    group: int = 0  #: partition: only hosts of one group hear each other
    is_running: bool = True
    paused_until: float = 0.0
    packets: int = 0
    octets: int = 0
    wakes_at: float = field(default=float("inf"))


Observer = Callable[[float, SimulatedHost, Event], None]


class Network:
    """
    Many hosts on one virtual clock.

    :ivar now: seconds since the start.
    :ivar hosts: by name.
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
        self._times = times
        self._random = Random(seed)
        self._observe = observe
        self._by_address: dict[Address, SimulatedHost] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._trace = blake2b(digest_size=16)

    @property
    def trace_hash(self) -> str:
        """Of all that was sent and found so far; equal for equal seeds."""
        return self._trace.hexdigest()

    def add(self, name: str) -> SimulatedHost:
        """A new host, which knows nobody; an old one of that name has crashed and restarts."""
        old = self.hosts.get(name)
        number = len(self.hosts)
        address = (
            old.address if old else (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1)
        )
        if old is not None:
            old.is_running = False
        random = Random(self._random.getrandbits(64))
        host = SimulatedHost(
            name, address, Membership(name, address, self._times, random, self.now)
        )
        self.hosts[name] = host
        self._by_address[address] = host
        self._schedule(host)
        return host

    def acted(self, host: SimulatedHost) -> None:
        """Send what *host* has to say, after its membership was called from outside."""
        for event in host.membership.take_events():
            self._trace.update(f"{self.now!r} {host.name} {event!r}\n".encode())
            if self._observe is not None:
                self._observe(self.now, host, event)
        for outgoing in host.membership.take_outgoing():
            self._send(host, outgoing)
        self._schedule(host)

    def run_until(self, time: float) -> None:
        """Let the clock go to *time*, in seconds."""
        while self._queue and self._queue[0][0] <= time:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = time

    def _send(self, host: SimulatedHost, outgoing: Outgoing) -> None:
        octets = PACKET_OVERHEAD + sum(message.octets() for message in outgoing.messages)
        host.packets += 1
        host.octets += octets
        self._trace.update(f"{self.now!r} {host.name} {outgoing.address} {octets}\n".encode())
        target = self._by_address.get(outgoing.address)
        if self._random.random() < self.traits.loss:
            return
        if target is None or target.group != host.group:
            return
        delay = self.traits.delay + self._random.random() * self.traits.delay_spread
        self._at(self.now + delay, lambda: self._deliver(host, outgoing))

    def _deliver(self, sender: SimulatedHost, outgoing: Outgoing) -> None:
        host = self._by_address[outgoing.address]
        if not host.is_running or host.group != sender.group:
            return
        if host.paused_until > self.now:
            self._at(host.paused_until, lambda: self._deliver(sender, outgoing))
            return
        host.membership.receive(self.now, sender.address, sender.name, outgoing.messages)
        self.acted(host)

    def _schedule(self, host: SimulatedHost) -> None:
        wakes_at = max(host.membership.next_time(), host.paused_until)
        if wakes_at < host.wakes_at:
            host.wakes_at = wakes_at
            self._at(wakes_at, lambda: self._wake(host, wakes_at))

    def _wake(self, host: SimulatedHost, planned: float) -> None:
        if not host.is_running or host.wakes_at != planned:
            return
        host.wakes_at = float("inf")
        if host.paused_until <= self.now:
            host.membership.tick(self.now)
        self.acted(host)

    def _at(self, time: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._queue, (time, self._number, action))
