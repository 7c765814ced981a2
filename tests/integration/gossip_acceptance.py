"""
``python -m tests.integration.gossip_acceptance``: a site of real daemons, held to the simulator.

Starts the daemons on loopback, has them join, change services, part and come together again, and
lose a host, and compares how long each takes with what the simulator says of the same site.  It
is the same only where packets take as long and loads change as often, so both are measured first.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import sub
from random import Random
from threading import Event, Thread
from typing import Any

from attrs import asdict, frozen

from gridnet.control import ControlError
from gridnet.lbsmd.gossip.messages import Standing
from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.simulate.network import Network, NetworkTraits
from tests.integration.gossip_site import GossipSite, RealHost, starved_seconds

#: Part by which a measured time may be above the longest that was predicted.
TOLERANCE = 0.2
#: Within which a dead service, or a penalty, is known to all.
PROMPT_SECONDS = 5.0
_STEP_SECONDS = 0.02
#: What is measured once is any of its rounds: the longest of a few is shorter than the longest of
#: many, and a bound of few is one that a sound site breaks now and then.
_SITES_OF_CHANGES = 8
_ROUNDS_OF_CHANGES = 25  #: in each of them
_SITES_THAT_HEAL = 40
_SITES_WITH_A_CRASH = 100


@frozen
class Finding:
    """What was measured of one thing, and what it is held to."""

    what: str
    seconds: tuple[float, ...]
    predicted: tuple[float, ...] = ()  #: by the simulator, one a seed
    #: of each measured time, how long the daemon that waited most for a processor did
    starved: tuple[float, ...] = ()
    limit: float | None = None  #: seconds; None: the longest predicted and the tolerance

    @property
    def bound(self) -> float:
        """What no measured time may be above."""
        return max(self.predicted) * (1 + TOLERANCE) if self.limit is None else self.limit

    @property
    def holds(self) -> bool:
        """
        Whether it is as it should be.

        A simulated host always has its processor; time without one is not the protocol's.
        """
        starved = self.starved or (0.0,) * len(self.seconds)
        return max(map(sub, self.seconds, starved)) <= self.bound


@frozen
class Circumstances:
    """What the machine does to a site: with 30 processes on two processors, not little."""

    delay: float = 0.0003  #: seconds that a packet takes, at least
    delay_spread: float = 0.0005  #: and at most beside that
    load_seconds: float = 10.0  #: between two changes of a host's load


class Prediction:
    """The same site in the simulator."""

    def __init__(
        self, hosts: int, services: int, seed: int, circumstances: Circumstances = Circumstances()
    ) -> None:
        self.names = [f"127.0.0.{number + 1}" for number in range(hosts)]
        self.circumstances = circumstances
        traits = NetworkTraits(delay=circumstances.delay, delay_spread=circumstances.delay_spread)
        self.network = Network(seed, traits, GossipTimes())
        self.random = Random(seed)
        self.services = services
        self.version = self.loads = 0
        self.changed: set[str] = set()
        self.network.add_acquainted(self.names, self._entries)
        self.network.run_until(5.0)

    def _entries(self, name: str) -> Iterable[tuple[str, bytes]]:
        for number in range(self.services):
            text = f'["S{number}","",65535,0.0,{self.version}.0,"STANDALONE {name}:{number} L=no'
            yield f"s{number}", f'{text} R={self.version} S=no T=30"]'.encode()

    def change(self, names: Sequence[str]) -> None:
        """All services of those hosts."""
        self.version += 1
        for name in names:
            host = self.network.hosts[name]
            for key, value in self._entries(name):
                host.membership.publish(key, value)
            self.network.acted(host)
        self.changed.update(names)

    def change_loads(self) -> None:
        """Those of a few hosts: as many as change in one step of time."""
        for host in self.network.hosts.values():
            if (
                host.is_running
                and self.random.random() < _STEP_SECONDS / self.circumstances.load_seconds
            ):
                self.loads += 1
                host.membership.publish("l", f"{self.loads:080}".encode(), True)
                self.network.acted(host)

    def until(self, is_true: Callable[[], bool]) -> float:
        """Seconds until *is_true*."""
        began = self.network.now
        while not is_true():
            if self.network.now - began > 300:
                raise AssertionError("the simulator does not come to an end")
            self.change_loads()
            self.network.run_until(self.network.now + _STEP_SECONDS)
        return self.network.now - began

    def agree(self) -> bool:
        """Whether all hold the services that were changed."""
        for name in tuple(self.changed):
            owned = self.network.hosts[name].membership.own
            for host in self.network.hosts.values():
                if not host.is_running or host.name == name:
                    continue
                held = host.membership.hosts[name].records
                for number in range(self.services):
                    ours, theirs = owned.get(f"s{number}"), held.get(f"s{number}")
                    if ours is None or theirs is None or ours.version != theirs.version:
                        return False
            self.changed.discard(name)
        return True

    def burst(self, hosts: int) -> float:
        """So many hosts change all their services at once."""
        self.change(self.random.sample(self.names, hosts))
        return self.until(self.agree)

    def heal(self) -> float:
        """Halves that held each other for dead, and changed, come together."""
        half = self.names[: len(self.names) // 2]
        for name in half:
            self.network.hosts[name].group = 1
        self.until(lambda: self._counts() == {len(half), len(self.names) - len(half)})
        self.change([self.names[0], self.names[-1]])
        self.network.run_until(self.network.now + 10.0)
        for name in half:
            self.network.hosts[name].group = 0
        return self.until(lambda: self._counts() == {len(self.names)} and self.agree())

    def _counts(self) -> set[int]:
        return {h.membership.up for h in self.network.hosts.values() if h.is_running}

    def crash(self) -> float:
        """One host is killed."""
        victim = self.names[-1]
        self.network.hosts[victim].is_running = False
        others = [self.network.hosts[name].membership for name in self.names[:-1]]
        return self.until(
            lambda: all(each.hosts[victim].standing is Standing.DEAD for each in others)
        )


def predict(
    hosts: int, services: int, at_once: int, circumstances: Circumstances
) -> Mapping[str, Sequence[float]]:
    """What the simulator says of each step, one figure a seed or more."""

    def sites(count: int) -> Iterator[Prediction]:
        for seed in range(1, count + 1):
            yield Prediction(hosts, services, seed, circumstances)

    return {
        "changes": [
            site.burst(at_once)
            for site in sites(_SITES_OF_CHANGES)
            for _ in range(_ROUNDS_OF_CHANGES)
        ],
        "a partition heals": [site.heal() for site in sites(_SITES_THAT_HEAL)],
        "kill -9 of a host": [site.crash() for site in sites(_SITES_WITH_A_CRASH)],
    }


def _definitions(host: RealHost, services: int, version: int) -> str:
    return "".join(
        f"S{number} [0] STANDALONE {host.address}:{number + 1000} L=no R={version}\n"
        for number in range(services)
    )


class Acceptance:
    """The steps, in their order."""

    def __init__(
        self,
        site: GossipSite,
        services: int,
        changes: int,
        at_once: int = 3,
    ) -> None:
        self.site = site
        self.predicted: Mapping[str, Sequence[float]] = {}
        self.at_once = min(at_once, len(site.hosts))
        self.count = len(site.hosts)
        self.services = services
        self.changes = changes
        self.version = 1

    def join(self) -> Finding:
        """All start, and know all."""
        for host in self.site.hosts:
            host.servrc.write_text(_definitions(host, self.services, self.version))
        began = time.monotonic()
        self.site.start()
        started = time.monotonic()
        self.site.wait(lambda: self.site.agree(self.count), "agreement of all", 0.2)
        _say(f"started in {started - began:.1f} s")
        # Starting takes most of it, and no simulator starts processes.
        return Finding("join, after the last start", (time.monotonic() - started,), limit=60.0)

    def measure(self, rounds: int = 5) -> Circumstances:
        """How long daemons take to get to a message while services change, and loads change."""
        waited: list[float] = []
        ended = Event()
        random = Random(1)

        def ask() -> None:
            while not ended.wait(0.02):
                began = time.monotonic()
                random.choice(self.site.hosts).ask("gossip")
                waited.append(time.monotonic() - began)

        def told() -> int:
            return sum(each["version"] for each in self.site.facts())

        asking = Thread(target=ask)
        before, began = told(), time.monotonic()
        asking.start()
        for _ in range(rounds):
            self.change_once(self.at_once)
        ended.set()
        asking.join()
        seconds = time.monotonic() - began
        loads = told() - before - rounds * self.at_once * self.services
        waited.sort()
        shortest = waited[len(waited) // 10]
        spread = 2 * (sum(waited) / len(waited) - shortest)
        return Circumstances(shortest, spread, self.count * seconds / max(1, loads))

    def change(self) -> Finding:
        """Services change at several hosts at once, again and again, each time at others."""
        rounds = -(-self.changes // (self.at_once * self.services))
        seconds, starved = [], []
        for _ in range(rounds):
            took, without_processor = self.change_once(self.at_once)
            seconds.append(took)
            starved.append(without_processor)
            if len(seconds) % 10 == 1:
                _say(f"round {len(seconds)} of {rounds}: agreed after {seconds[-1]:.2f} s")
        return self._finding("changes", seconds, starved)

    def _finding(
        self, what: str, seconds: Sequence[float], starved: Sequence[float] = ()
    ) -> Finding:
        return Finding(what, tuple(seconds), tuple(self.predicted[what]), tuple(starved))

    def change_once(self, at_once: int) -> tuple[float, float]:
        """
        All services of so many hosts change.

        :returns: seconds until all tables agree; those for which one daemon had no processor.
        """
        self.version += 1
        hosts = [
            self.site.hosts[(self.version * at_once + number) % self.count]
            for number in range(at_once)
        ]
        for host in hosts:
            host.define(_definitions(host, self.services, self.version))
        for host in hosts:
            # Reading definitions is not gossip: its time begins when the last owner has them.
            self.site.wait(lambda host=host: self._own_rate(host) == self.version, "reload", 0.01)
        before = [starved_seconds(host.pid) for host in self.site.hosts]
        seconds = self.site.wait(lambda: self.site.agree(self.count), "agreement of all")
        after = [starved_seconds(host.pid) for host in self.site.hosts]
        return seconds, max(map(sub, after, before))

    def _own_rate(self, host: RealHost) -> float:
        servers = host.ask("resolve", service=f"S{self.services - 1}")["servers"]
        return max(each["base_rate"] for each in servers if each["owner"] == host.address)

    def heal(self) -> Finding:
        """The site is parted, changes on both sides, and comes together."""
        return self._finding("a partition heals", [self.part_and_heal()])

    def part_and_heal(self) -> float:
        """The same; seconds until all tables agree."""
        half, switch = self.count // 2, self.site.switch
        assert switch is not None
        switch.is_cut = lambda source, target: (source < half) != (target < half)
        sides = self.site.hosts[:half], self.site.hosts[half:]
        for side in sides:
            self.site.wait(
                lambda side=side: {f["up"] for f in self.site.facts(side)} == {len(side)},
                "verdicts",
                0.5,
            )
        self.version += 1
        for host in (self.site.hosts[0], self.site.hosts[-1]):
            host.define(_definitions(host, self.services, self.version))
        for side in sides:
            self.site.wait(lambda side=side: self.site.agree(len(side), side), "agreement", 0.2)
        switch.is_cut = lambda source, target: False
        return self.site.wait(lambda: self.site.agree(self.count), "agreement of all", 0.1)

    def dead_service(self) -> Finding:
        """A service whose port is closed is down in every table."""
        host = self.site.hosts[1]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(100)
            port = listener.getsockname()[1]
            host.define(f"Dying [1] STANDALONE 127.0.0.1:{port} L=no R=77\n")
            self._all_see("Dying", lambda each: each["base_rate"] == 77)
        self.site.wait(lambda: self._sees(host, "Dying", _is_down), "verdict of its own check")
        seconds = self._all_see("Dying", _is_down)
        return Finding("a dead service, after its check", (seconds,), limit=PROMPT_SECONDS)

    def penalty(self) -> Finding:
        """A penalty asked for at one host, of another's server, is in every table."""
        asker, owner = self.site.hosts[0], self.site.hosts[-1]
        argument = f"S0 STANDALONE {owner.address}:1000 100 600"

        def is_taken() -> bool:
            try:
                asker.ask("feedback", argument=argument)
            except ControlError:
                return False  # the owner counts as down just now: a busy machine may do that
            return True

        began = time.monotonic()
        self.site.wait(is_taken, "owner of the server")
        self._all_see("S0", lambda each: each["penalty"] == 100, owner.address)
        return Finding("a penalty", (time.monotonic() - began,), limit=PROMPT_SECONDS)

    def _sees(
        self,
        host: RealHost,
        service: str,
        is_so: Callable[[dict[str, Any]], bool],
        owner: str = "",
    ) -> bool:
        servers = host.ask("resolve", service=service)["servers"]
        return any(is_so(each) for each in servers if not owner or each["owner"] == owner)

    def _all_see(
        self, service: str, is_so: Callable[[dict[str, Any]], bool], owner: str = ""
    ) -> float:
        return self.site.wait(
            lambda: all(self._sees(host, service, is_so, owner) for host in self.site.running()),
            f"{service} in every table",
        )

    def crash(self) -> Finding:
        """A host is killed, and is out of every table."""
        return self._finding("kill -9 of a host", [self.kill_one()])

    def kill_one(self) -> float:
        """The same; seconds until all tables agree."""
        self.site.hosts[-1].kill()
        return self.site.wait(lambda: self.site.agree(self.count - 1), "verdicts of all", 0.1)

    def same_tables(self) -> bool:
        """Whether all tables show the same, entry by entry."""
        tables = self.site.tables()
        return all(table == tables[0] for table in tables)


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    return {
        "count": len(ordered),
        "median": round(ordered[len(ordered) // 2], 3),
        "p90": round(ordered[len(ordered) * 9 // 10], 3),
        "max": round(ordered[-1], 3),
    }


def _is_down(server: dict[str, Any]) -> bool:
    return bool(server["base_rate"] == 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run it; status 0: everything is as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.gossip_acceptance", description=__doc__
    )
    parser.add_argument("--hosts", type=int, default=30)
    parser.add_argument("--services", type=int, default=20, help="of each host")
    parser.add_argument("--changes", type=int, default=10_000, help="of services, at least")
    parser.add_argument("--at-once", type=int, default=3, help="hosts that change together")
    parser.add_argument("--base", type=int, default=21500, help="first of 2 UDP ports a host")
    options = parser.parse_args(arguments)
    site = GossipSite(options.hosts, options.base)
    try:
        steps = Acceptance(site, options.services, options.changes, options.at_once)
        findings = []

        def join() -> Finding:
            joined = steps.join()
            found = steps.measure()
            print(json.dumps({"what": "circumstances", **asdict(found)}), flush=True)
            steps.predicted = predict(options.hosts, options.services, options.at_once, found)
            return joined

        for step in (
            join,
            steps.change,
            steps.penalty,
            steps.heal,
            steps.dead_service,
            steps.crash,
        ):
            finding = step()
            findings.append(finding)
            line = {
                **asdict(finding, recurse=False, filter=lambda field, _: field.name != "predicted"),
                "seconds": _spread(finding.seconds),
                "starved": _spread(finding.starved),
                "without it": _spread(list(map(sub, finding.seconds, finding.starved))),
                "predicted": _spread(finding.predicted),
                "bound": finding.bound,
                "holds": finding.holds,
            }
            print(json.dumps(line), flush=True)
        same = steps.same_tables()
        print(json.dumps({"what": "every table shows the same", "holds": same}), flush=True)
        return 0 if same and all(finding.holds for finding in findings) else 1
    finally:
        site.end()


if __name__ == "__main__":
    sys.exit(main())
