"""What the simulator says of a site of real daemons: the same steps, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from random import Random

from attrs import frozen

from gridnet.lbsmd.gossip.messages import Standing
from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.simulate.network import Network, NetworkTraits

#: The steps that are predicted.
JOIN, CHANGES, HEALING, CRASH = "join", "changes", "a partition heals", "kill -9 of a host"
#: Seconds between two attempts to join by a seed that has not answered.
_JOIN_AGAIN = 0.75
#: Sites that change as often as the real one.
_SITES_OF_CHANGES = 6
#: Sites that part, heal and lose a host, after a few changes: a real one does so once, and what is
#: measured once may be any of many.
_SITES = 100
_FEW_CHANGES = 2
_STEP_SECONDS = 0.02


@frozen
class Circumstances:
    """What the machine did to a site, and the script between its steps; times in seconds."""

    hosts: int
    services: int  #: of each host
    at_once: int  #: hosts that change together
    rounds: int  #: of such changes
    delays: tuple[float, ...]  #: that packets took
    load_seconds: float  #: between two changes of a host's load
    between_rounds: float  #: from the agreement on one round until the changes of the next
    before_crash: float  #: from the agreement of the halves until the kill
    starts: tuple[float, ...]  #: when each host began, before the last one did
    start_delays: tuple[float, ...]  #: that packets took while hosts began and joined


class Prediction:
    """One site in the simulator, chosen by *seed*; nobody is there yet."""

    def __init__(self, circumstances: Circumstances, delays: Sequence[float], seed: int) -> None:
        self.names = [f"127.0.0.{number + 1}" for number in range(circumstances.hosts)]
        self.circumstances = circumstances
        self.network = Network(seed, NetworkTraits(delays=tuple(delays)), GossipTimes())
        self.random = Random(seed)
        self.version = self.loads = 0
        self.changed: set[str] = set()

    def settle(self) -> None:
        """All hosts are there, and know all."""
        self.network.add_acquainted(self.names, self._entries)
        self.pass_time(5.0)

    def join(self) -> float:
        """Hosts begin one after the other, the first is their seed: from the last one's begin."""
        starts = self.circumstances.starts
        for name, before in zip(self.names, starts, strict=True):
            self.network.at(max(starts) - before, partial(self._begin, name))
        self.until(lambda: len(self.network.hosts) == len(self.names))
        began = max(starts)
        self.until(lambda: self._counts() == {len(self.names)} and self.agree(self.names))
        return self.network.now - began

    def _begin(self, name: str) -> None:
        host = self.network.add(name)
        for key, value in self._entries(name):
            host.membership.publish(key, value)
        self.changed.add(name)
        self._ask_seed(name)

    def _ask_seed(self, name: str) -> None:
        seed, host = self.network.hosts.get(self.names[0]), self.network.hosts[name]
        if host is not seed and host.membership.up == 1:
            if seed is not None:
                host.membership.join([seed.address])
            self.network.at(self.network.now + _JOIN_AGAIN, partial(self._ask_seed, name))
        self.network.acted(host)

    def _entries(self, name: str) -> Iterable[tuple[str, bytes]]:
        for number in range(self.circumstances.services):
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

    def pass_time(self, seconds: float) -> None:
        """So long nothing happens but what always does."""
        end = self.network.now + seconds
        self.until(lambda: self.network.now >= end)

    def agree(self, names: Sequence[str]) -> bool:
        """Whether those of *names* that run hold the services that were changed by one of them."""
        for name in self.changed.intersection(names):
            owned = self.network.hosts[name].membership.own
            for host in map(self.network.hosts.__getitem__, names):
                if not host.is_running or host.name == name:
                    continue
                held = host.membership.hosts[name].records
                for number in range(self.circumstances.services):
                    ours, theirs = owned.get(f"s{number}"), held.get(f"s{number}")
                    if ours is None or theirs is None or ours.version != theirs.version:
                        return False
        return True

    def burst(self) -> float:
        """Some hosts change all their services at once."""
        self.pass_time(self.circumstances.between_rounds)
        self.changed.clear()
        self.change(self.random.sample(self.names, self.circumstances.at_once))
        return self.until(lambda: self.agree(self.names))

    def heal(self) -> float:
        """Halves that held each other for dead, and changed, come together."""
        middle = len(self.names) // 2
        halves = self.names[:middle], self.names[middle:]
        for name in halves[0]:
            self.network.hosts[name].group = 1
        self.until(lambda: self._counts() == {len(half) for half in halves})
        self.pass_time(self.circumstances.between_rounds)
        self.changed.clear()
        self.change([self.names[0], self.names[-1]])
        self.until(lambda: all(map(self.agree, halves)))
        for name in halves[0]:
            self.network.hosts[name].group = 0
        return self.until(lambda: self._counts() == {len(self.names)} and self.agree(self.names))

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


def _steps(circumstances: Circumstances, rounds: int, seed: int) -> Mapping[str, Sequence[float]]:
    """What one site takes for each step of the script."""
    joined = Prediction(circumstances, circumstances.start_delays, seed).join()
    site = Prediction(circumstances, circumstances.delays, seed)
    site.settle()
    changes = [site.burst() for _ in range(rounds)]
    healing = site.heal()
    site.pass_time(circumstances.before_crash)
    return {JOIN: (joined,), CHANGES: changes, HEALING: (healing,), CRASH: (site.crash(),)}


def predict(circumstances: Circumstances) -> Mapping[str, Sequence[Sequence[float]]]:
    """What the simulator says of each step: of each of many sites, what is measured of one."""
    long = partial(_steps, circumstances, circumstances.rounds)
    short = partial(_steps, circumstances, min(_FEW_CHANGES, circumstances.rounds))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        many = list(pool.map(long, range(1, _SITES_OF_CHANGES + 1)))
        first = _SITES_OF_CHANGES + 1
        sites = many + list(pool.map(short, range(first, first + _SITES)))
    return {
        JOIN: [site[JOIN] for site in sites],
        CHANGES: [site[CHANGES] for site in many],
        HEALING: [site[HEALING] for site in sites],
        CRASH: [site[CRASH] for site in sites],
    }
