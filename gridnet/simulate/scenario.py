"""What is to be simulated, and one run of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import ceil
from random import Random

from attrs import field, frozen

from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.simulate.measure import Measurements, Outcome
from gridnet.simulate.network import Network, NetworkTraits, SimulatedHost, option


@frozen
class Scenario:
    """
    What to simulate; times in seconds.

    All hosts know each other from the start: joining is not what is measured here.
    """

    hosts: int = option(100, "hosts of the site")
    services: int = option(5, "services that every host publishes from the start")
    seconds: float = option(60.0, "simulated time")
    changes: int = option(1, "times that a host changes all its services, one host after another")
    change_from: float = option(5.0, "when the first change is, in seconds")
    change_interval: float = option(1.0, "seconds between two changes")
    kills: int = option(1, "hosts that crash for good")
    kill_at: float = option(0.0, "when the first of them crashes; 0: after three tenths of the run")
    churn: float = option(0.0, "share of the hosts that crash, each once, and come back; 0 to 1")
    churn_down: float = option(30.0, "seconds that each of them is away")
    slow: int = option(0, "hosts that stall again and again, and read slowly in between")
    slow_kind: str = option(
        "block", "block: they neither send nor receive; stop: nor do their timers run"
    )
    stop_seconds: float = option(16.0, "how long they stall")
    run_seconds: float = option(0.064, "how long they run in between")
    pauses: int = option(0, "hosts that stand still once, as asleep")
    pause_seconds: float = option(30.0, "how long these do")
    partition: float = option(0.0, "share of the hosts that is cut off; 0 to 1")
    partition_from: float = option(10.0, "when it is cut off, in seconds")
    partition_seconds: float = option(60.0, "seconds until the network is whole again")
    clock_skew: float = option(0.0, "seconds by which clocks differ at most")
    seed: int = option(1, "of all that is left to chance")
    traits: NetworkTraits = field(factory=NetworkTraits)
    times: GossipTimes = field(factory=GossipTimes)


def run(scenario: Scenario) -> Outcome:
    """Simulate; equal scenarios give equal outcomes, costs apart."""
    return Run(scenario).finish()


class Run:
    """
    One run.

    Hosts are cast at random: each is hit by one kind of trouble at most, so that it is known
    what a verdict on it is worth.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._random = random = Random(scenario.seed)
        names = [f"host{number}" for number in range(scenario.hosts)]
        cast = list(names)
        random.shuffle(cast)

        def take(number: int) -> list[str]:
            return [cast.pop() for _ in range(min(number, len(cast) - 1))]

        self._slow = take(scenario.slow)
        self._victims = take(scenario.kills)
        self._paused = take(scenario.pauses)
        self._churned = take(ceil(scenario.hosts * scenario.churn))
        self._cut_off = take(int(scenario.hosts * scenario.partition))
        self._publishers = cast
        self._changed: dict[str, int] = {}
        self.measured = Measurements(
            scenario.hosts,
            scenario.services,
            impaired=set(self._slow) | set(self._paused),
            steady=frozenset(cast),
        )
        self.network = Network(
            scenario.seed, scenario.traits, scenario.times, self.measured.observe
        )
        self.measured.network = self.network
        self.network.add_acquainted(names, self._entries)
        self._plan()

    def _entries(self, name: str) -> Iterable[tuple[str, bytes]]:
        change = self._changed.get(name, 0)
        for number in range(self.scenario.services):
            yield f"SERVICE{number}", b"%04d HTTP :80 R=1000 S=no T=30 %s" % (change, b"x" * 30)

    def _plan(self) -> None:
        scenario, network, random = self.scenario, self.network, self._random
        for host in network.hosts.values():
            # Not a zero of its own for each: what all share stays in the caches.
            host.skew = scenario.clock_skew * random.random() or 0.0
        for number in range(scenario.changes):
            name = self._publishers[number % len(self._publishers)]
            network.at(
                scenario.change_from + number * scenario.change_interval,
                partial(self._change, name),
            )
        for number, name in enumerate(self._victims):
            begin = scenario.kill_at or scenario.seconds * 0.3
            at = begin + scenario.seconds * 0.3 * number / len(self._victims)
            network.at(at, partial(self._crash, name, True))
        for name in self._churned:
            at = random.random() * max(1.0, scenario.seconds - scenario.churn_down - 30.0)
            network.at(at, partial(self._crash, name))
            network.at(at + scenario.churn_down, partial(self._restart, name))
        for name in self._slow:
            host = network.hosts[name]
            host.is_slow = True
            at = 5.0 + random.random() * scenario.stop_seconds
            network.at(at, partial(self._stop, host))
        for name in self._paused:
            at = random.random() * max(1.0, scenario.seconds - scenario.pause_seconds)
            network.at(at, partial(self._pause, name))
        if self._cut_off:
            until = scenario.partition_from + scenario.partition_seconds
            network.at(scenario.partition_from, lambda: self._part(1))
            network.at(until, lambda: self._part(0))

    def _change(self, name: str) -> None:
        host = self.network.hosts[name]
        self._changed[name] = self._changed.get(name, 0) + 1
        for key, value in self._entries(name):
            host.membership.publish(key, value)
        self.measured.changed(self.network.now, name, host.membership.own.newest)
        self.network.acted(host)

    def _crash(self, name: str, for_good: bool = False) -> None:
        self.network.hosts[name].is_running = False
        self.measured.crashed(self.network.now, name, for_good)

    def _restart(self, name: str) -> None:
        self._changed[name] = self._changed.get(name, 0) + 1
        host = self.network.restart(name, self._entries)
        self.measured.restarted(self.network.now, name)
        host.membership.join(self._seeds())
        self.network.acted(host)

    def _seeds(self) -> list[tuple[str, int]]:
        names = self._random.sample(self._publishers, min(3, len(self._publishers)))
        return [self.network.hosts[name].address for name in names]

    def _stop(self, host: SimulatedHost) -> None:
        scenario, now = self.scenario, self.network.now
        stall = self.network.pause if scenario.slow_kind == "stop" else self.network.block
        stall(host, now + scenario.stop_seconds)
        at = now + scenario.stop_seconds + scenario.run_seconds
        self.network.at(at, lambda: self._stop(host))

    def _pause(self, name: str) -> None:
        self.network.pause(self.network.hosts[name], self.network.now + self.scenario.pause_seconds)

    def _part(self, group: int) -> None:
        for name in self._cut_off:
            self.network.hosts[name].group = group
        self.measured.parted(self.network.now, group != 0)

    def finish(self) -> Outcome:
        """Run to the end."""
        looks = 20 if self.scenario.hosts <= 200 else 1  # a second
        for step in range(1, int(self.scenario.seconds * looks) + 1):
            now = step / looks
            self.network.run_until(now)
            self.measured.look(now)
            if step % looks == 0:
                self.measured.sample(now)
        return self.measured.outcome(self.scenario.seconds)
