"""One run: a site at rest, slow hosts, changes, a crash; and what was measured."""

from __future__ import annotations

from random import Random

from attrs import field, frozen

from gridnet.lbsmd.gossip.membership import (
    EntryChanged,
    Event,
    GossipTimes,
    StandingChanged,
)
from gridnet.lbsmd.gossip.messages import Belief, Standing
from gridnet.simulate.network import Network, NetworkTraits, SimulatedHost


@frozen
class Scenario:
    """What to simulate; times in seconds."""

    hosts: int = 100
    services: int = 5  #: published by one host at once
    seconds: float = 60.0  #: after the start
    slow: int = 0  #: hosts that stall again and again
    stall_seconds: float = 16.0  #: length of one stall, at most
    seed: int = 1
    traits: NetworkTraits = field(factory=NetworkTraits)
    times: GossipTimes = field(factory=GossipTimes)


@frozen
class Outcome:
    """What was measured; None: it never happened."""

    trace_hash: str
    reached: float  #: share of hosts that know the change, 0 to 1
    converged_seconds: float | None  #: until 99.99 % know every service of the change
    false_positives: int  #: verdicts "dead" on hosts that never stalled nor crashed
    first_detection_seconds: float | None  #: from the crash to the first verdict
    packets_per_second: float  #: sent by one host, on average
    kilobits_per_second: float  #: sent by one host, on average


def run(scenario: Scenario) -> Outcome:
    """
    Simulate; equal scenarios give equal outcomes.

    All hosts know each other from the start: joining is not what is measured here.
    """
    names = [f"host{number}" for number in range(scenario.hosts)]
    publisher, victim = names[0], names[1]
    slow = set(names[len(names) - scenario.slow :]) - {publisher, victim}
    known: dict[str, int] = {}
    knew_at: list[float] = []
    accused: set[tuple[str, str]] = set()
    detected: list[float] = []
    published_at, crashed_at = 1.0, scenario.seconds / 2

    def observe(now: float, host: SimulatedHost, event: Event) -> None:
        if isinstance(event, EntryChanged):
            known[host.name] = known.get(host.name, 0) + 1
            if known[host.name] == scenario.services:
                knew_at.append(now - published_at)
        elif isinstance(event, StandingChanged) and event.standing is Standing.DEAD:
            if event.host == victim and now > crashed_at:
                detected.append(now - crashed_at)
            elif event.host not in slow:
                accused.add((host.name, event.host))

    network = Network(scenario.seed, scenario.traits, scenario.times, observe)
    for name in names:
        network.add(name)
    beliefs = [
        Belief(host.name, host.address, 1, Standing.ALIVE, host.name)
        for host in network.hosts.values()
    ]
    for host in network.hosts.values():
        host.membership.acquaint(0.0, beliefs)
    network.run_until(published_at)
    for number in range(scenario.services):
        network.hosts[publisher].membership.publish(f"service{number}", b"x" * 60)
    network.acted(network.hosts[publisher])
    random = Random(scenario.seed)
    now = published_at
    while now < scenario.seconds:
        for name in sorted(slow):
            host = network.hosts[name]
            if host.paused_until + 0.5 < now:
                host.paused_until = now + random.random() * scenario.stall_seconds
        if now >= crashed_at:
            network.hosts[victim].is_running = False
        now = min(now + 0.5, scenario.seconds)
        network.run_until(now)
    needed = -int(-(scenario.hosts - 1) * 0.9999 // 1)
    hosts = network.hosts.values()
    return Outcome(
        network.trace_hash,
        len(knew_at) / (scenario.hosts - 1),
        knew_at[needed - 1] if len(knew_at) >= needed else None,
        len(accused),
        detected[0] if detected else None,
        sum(host.packets for host in hosts) / scenario.seconds / scenario.hosts,
        sum(host.octets for host in hosts) * 8e-3 / scenario.seconds / scenario.hosts,
    )
