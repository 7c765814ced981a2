"""
``python -m tests.integration.gossip_acceptance``: a site of real daemons, held to the simulator.

Starts the daemons on loopback, has them join, change services, part and come together again, and
lose a host, and compares how long each takes with what the simulator says of the same site.  It
is the same only where packets take as long and loads change as often, so both are measured too.

``--keep FILE`` only measures, on a machine that does nothing else; ``--judge FILE`` simulates the
same steps, wherever there is time, and compares.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, frozen

from gridnet.control import ControlError
from tests.integration.gossip_prediction import (
    CHANGES,
    CRASH,
    HEALING,
    JOIN,
    Circumstances,
    predict,
)
from tests.integration.gossip_site import GossipSite, RealHost, dropped_datagrams

#: Part by which a time may be outside what was predicted.
TOLERANCE = 0.2
#: Within which a dead service, or a penalty, is known to all; seconds.
LIMITS = {"a penalty": 5.0, "a dead service, after its check": 5.0}
#: From so many times on, half of them and nine of ten are held to what the simulator says, too.
_MANY = 10


def _spread(seconds: Sequence[float]) -> Mapping[str, float]:
    ordered = sorted(seconds)
    if len(ordered) < _MANY:
        return {"longest": ordered[-1]}
    return {
        "median": ordered[len(ordered) // 2],
        "nine of ten": ordered[len(ordered) * 9 // 10],
        "longest": ordered[-1],
    }


@frozen
class Finding:
    """One figure of what was measured, and between what it has to be."""

    what: str
    figure: str
    seconds: float
    least: float
    most: float
    predicted: tuple[float, float, float] | None = None  #: the shortest, the median, the longest

    @property
    def holds(self) -> bool:
        """Whether it is as it should be."""
        return self.least <= self.seconds <= self.most

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self), "holds": self.holds})


def judge(
    measured: Mapping[str, Sequence[float]], predicted: Mapping[str, Sequence[Sequence[float]]]
) -> Sequence[Finding]:
    """
    Compare, like with like: what was measured of one site with the same of each simulated one.

    :param measured: step -> its times.
    :param predicted: step -> its times in each of several simulated sites.
    :raises ValueError: a step was not measured, or another number of times than it was simulated.
    """
    missing = [what for what in (*predicted, *LIMITS) if not measured.get(what)]
    if missing:
        raise ValueError(f"not measured: {', '.join(missing)}")
    findings = []
    for what, most in LIMITS.items():
        findings.append(Finding(what, "longest", max(measured[what]), 0.0, most))
    for what, sites in predicted.items():
        times = len(measured[what])
        for site in sites:
            if len(site) != times:
                raise ValueError(f"{what}: measured {times} times, simulated {len(site)} times")
        spreads = [_spread(site) for site in sites]
        for figure, value in _spread(measured[what]).items():
            of_sites = sorted(spread[figure] for spread in spreads)
            shortest, longest = of_sites[0], of_sites[-1]
            findings.append(
                Finding(
                    what,
                    figure,
                    value,
                    shortest * (1 - TOLERANCE),
                    longest * (1 + TOLERANCE),
                    (shortest, of_sites[len(of_sites) // 2], longest),
                )
            )
    return findings


def _definitions(host: RealHost, services: int, version: int) -> str:
    return "".join(
        f"S{number} [0] STANDALONE {host.address}:{number + 1000} L=no R={version}\n"
        for number in range(services)
    )


class Acceptance:
    """The steps, in their order; each gives the seconds that it took."""

    def __init__(self, site: GossipSite, services: int, changes: int, at_once: int = 3) -> None:
        self.site = site
        self.at_once = min(at_once, len(site.hosts))
        self.count = len(site.hosts)
        self.services = services
        self.rounds = -(-changes // (self.at_once * services))
        self.version = 1
        self.healed_at = self.killed_at = 0.0
        self.starts: tuple[float, ...] = ()
        self._reloads: list[float] = []

    def join(self) -> float:
        """All start, and know all; from when the last one is there."""
        for host in self.site.hosts:
            host.servrc.write_text(_definitions(host, self.services, self.version))
        self.site.start()
        self.site.wait(lambda: self.site.agree(self.count), "agreement of all", 0.02)
        agreed = time.time()
        began = [host.control.stat().st_ctime for host in self.site.hosts]
        self.starts = tuple(max(began) - each for each in began)
        _say(f"started in {max(self.starts):.1f} s")
        return agreed - max(began)

    def change(self) -> tuple[Sequence[float], Circumstances]:
        """Services change at several hosts at once, again and again, each time at others."""
        switch = self.site.switch
        assert switch is not None
        start_delays = switch.delays().both()
        before, began = self._told(), time.monotonic()
        self._reloads.clear()
        seconds = []
        for number in range(1, self.rounds + 1):
            seconds.append(self.change_once(self.at_once))
            if number % 10 == 1:
                _say(f"round {number} of {self.rounds}: agreed after {seconds[-1]:.2f} s")
        loads = self._told() - before - self.rounds * self.at_once * self.services
        return seconds, Circumstances(
            hosts=self.count,
            services=self.services,
            at_once=self.at_once,
            rounds=self.rounds,
            delays=switch.delays().both(),
            load_seconds=self.count * (time.monotonic() - began) / max(1, loads),
            between_rounds=sum(self._reloads) / len(self._reloads),
            before_crash=0.0,
            starts=self.starts,
            start_delays=start_delays,
        )

    def _told(self) -> int:
        return sum(each["version"] for each in self.site.facts())

    def change_once(self, at_once: int) -> float:
        """All services of so many hosts change; seconds until all tables agree."""
        began = time.monotonic()
        self.version += 1
        hosts = [
            self.site.hosts[(self.version * at_once + number) % self.count]
            for number in range(at_once)
        ]
        for host in hosts:
            host.define(_definitions(host, self.services, self.version))
        for host in hosts:
            # Reading definitions is not gossip: its time begins when the last owner has them.
            self.site.wait(partial(self._has_read, host), "reload", 0.01)
        self._reloads.append(time.monotonic() - began)
        return self.site.wait(lambda: self.site.agree(self.count), "agreement of all", 0.02)

    def _has_read(self, host: RealHost) -> bool:
        servers = host.ask("resolve", service=f"S{self.services - 1}")["servers"]
        rates = [each["base_rate"] for each in servers if each["owner"] == host.address]
        return bool(max(rates) == self.version)

    def _sees_no_others(self, side: Sequence[RealHost]) -> bool:
        return {facts["up"] for facts in self.site.facts(side)} == {len(side)}

    def heal(self) -> float:
        """The site is parted, changes on both sides, and comes together: until all tables agree."""
        half, switch = self.count // 2, self.site.switch
        assert switch is not None
        switch.part(half)
        sides = self.site.hosts[:half], self.site.hosts[half:]
        for side in sides:
            self.site.wait(
                partial(self._sees_no_others, side),
                "verdicts",
                0.5,
            )
        self.version += 1
        for host in (self.site.hosts[0], self.site.hosts[-1]):
            host.define(_definitions(host, self.services, self.version))
        for side in sides:
            self.site.wait(partial(self.site.agree, len(side), side), "agreement", 0.2)
        switch.part(0)
        seconds = self.site.wait(lambda: self.site.agree(self.count), "agreement of all", 0.1)
        self.healed_at = time.monotonic()
        return seconds

    def dead_service(self) -> float:
        """A service whose port is closed is down in every table."""
        host = self.site.hosts[1]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(100)
            port = listener.getsockname()[1]
            host.define(f"Dying [1] STANDALONE 127.0.0.1:{port} L=no R=77\n")
            self._all_see("Dying", lambda each: each["base_rate"] == 77)
        self.site.wait(lambda: self._sees(host, "Dying", _is_down), "verdict of its own check")
        return self._all_see("Dying", _is_down)

    def penalty(self) -> float:
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
        return time.monotonic() - began

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

    def crash(self) -> float:
        """A host is killed, and is out of every table."""
        self.killed_at = time.monotonic()
        self.site.hosts[-1].kill()
        return self.site.wait(lambda: self.site.agree(self.count - 1), "verdicts of all", 0.1)

    def same_tables(self) -> bool:
        """Whether all tables show the same, entry by entry."""
        tables = self.site.tables()
        return all(table == tables[0] for table in tables)


def _is_down(server: dict[str, Any]) -> bool:
    return bool(server["base_rate"] == 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(steps: Acceptance, base: int) -> dict[str, Any]:
    """Go through all of it: what it took, and under which circumstances."""
    seconds: dict[str, Sequence[float]] = {JOIN: (steps.join(),)}
    seconds[CHANGES], circumstances = steps.change()
    seconds["a penalty"] = (steps.penalty(),)
    seconds[HEALING] = (steps.heal(),)
    seconds["a dead service, after its check"] = (steps.dead_service(),)
    seconds[CRASH] = (steps.crash(),)
    circumstances = evolve(circumstances, before_crash=steps.killed_at - steps.healed_at)
    return {
        "seconds": seconds,
        "circumstances": asdict(circumstances),
        "dropped": dropped_datagrams(range(base, base + 2 * steps.count)),
        "same": steps.same_tables(),
    }


def _shown(delays: Sequence[float]) -> Mapping[str, float]:
    ordered = sorted(delays)
    return {
        "mean": sum(ordered) / len(ordered),
        **{f"{part} %": ordered[len(ordered) * part // 100] for part in (50, 90, 99)},
        "longest": ordered[-1],
    }


def report(measured: Mapping[str, Any]) -> int:
    """
    Compare with the simulator, and say it; status 0: everything is as it should be.

    :raises ValueError: something is missing in what was measured.
    """
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in measured["circumstances"].items()
    }
    try:
        circumstances = Circumstances(**told)
    except TypeError as error:
        raise ValueError(f"circumstances: {error}") from error
    shown = {
        **told,
        "delays": _shown(circumstances.delays),
        "start_delays": _shown(circumstances.start_delays),
        "starts": max(circumstances.starts),
    }
    print(json.dumps({"what": "circumstances", **shown, "dropped": measured["dropped"]}))
    findings = judge(measured["seconds"], predict(circumstances))
    for finding in findings:
        print(finding.line())
    print(json.dumps({"what": "every table shows the same", "holds": measured["same"]}))
    return 0 if measured["same"] and all(finding.holds for finding in findings) else 1


def main(arguments: list[str] | None = None) -> int:
    """Run it; status 0: everything is as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.gossip_acceptance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, default=30)
    parser.add_argument("--services", type=int, default=20, help="of each host")
    parser.add_argument("--changes", type=int, default=10_000, help="of services, at least")
    parser.add_argument("--at-once", type=int, default=3, help="hosts that change together")
    parser.add_argument("--base", type=int, default=21500, help="first of 2 UDP ports a host")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="measure, and keep it there")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="compare what is there")
    options = parser.parse_args(arguments)
    if options.judge is not None:
        try:
            return report(json.loads(options.judge.read_text()))
        except ValueError as error:
            parser.error(f"{options.judge}: {error}")
    site = GossipSite(options.hosts, options.base)
    try:
        steps = Acceptance(site, options.services, options.changes, options.at_once)
        measured = measure(steps, options.base)
    finally:
        site.end()
    if options.keep is not None:
        options.keep.write_text(json.dumps(measured))
        return 0
    return report(measured)


if __name__ == "__main__":
    sys.exit(main())
