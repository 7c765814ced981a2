"""
``python -m tests.simulate.acceptance [ITEM ...]``: sites of full size, each held to its limits.

``--scale 0.1`` is a tenth of the hosts.  Each item runs in a process of its own, whose memory is
what the item needs; one line of JSON an item says what was measured and whether it holds.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import inf
from multiprocessing import get_context
from statistics import mean

from attrs import evolve, field, frozen

from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.simulate import huge_pages
from gridnet.simulate.measure import Outcome
from gridnet.simulate.network import NetworkTraits
from gridnet.simulate.scenario import Scenario, run

#: What a host may send while news spread: what Serf's documentation estimates for its own.
MAX_KILOBITS_PER_SECOND = 328.0
_LEAST_HOSTS = 32
#: One host changes its five services; long enough for what is not to take longer than 5 s.
_NEWS = Scenario(services=5, seconds=9.0, change_from=2.0, kills=0)


@frozen
class Limit:
    """One figure and what it may not be above."""

    figure: str
    value: float | None  #: None: it never came
    most: float

    @property
    def holds(self) -> bool:
        """Whether it is as it should be."""
        return self.value is not None and self.value <= self.most


@frozen
class Finding:
    """What an item gave."""

    item: str
    limits: Sequence[Limit]
    figures: Mapping[str, object] = field(factory=dict)

    @property
    def holds(self) -> bool:
        """Whether all limits hold."""
        return all(limit.holds for limit in self.limits)

    def line(self) -> str:
        """One line of JSON."""
        limits = {limit.figure: {"value": limit.value, "most": limit.most} for limit in self.limits}
        return json.dumps({"item": self.item, "holds": self.holds, **limits, **self.figures})


def _hosts(number: int, scale: float) -> int:
    return max(_LEAST_HOSTS, int(number * scale))


def _seeds_of(number: int, scale: float) -> int:
    return max(2, int(number * scale))


def _worst(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else max(v for v in known if v is not None)


def _seeds(scenario: Scenario, number: int) -> Sequence[Outcome]:
    return [run(evolve(scenario, seed=seed)) for seed in range(1, number + 1)]


def _spread(item: str, outcomes: Sequence[Outcome], seconds: float) -> Finding:
    return Finding(
        item,
        (
            Limit(
                "reached_9999_seconds", _worst(o.reached_9999_seconds for o in outcomes), seconds
            ),
            Limit(
                "peak_kilobits_per_second",
                max(o.peak_kilobits_per_second for o in outcomes),
                MAX_KILOBITS_PER_SECOND,
            ),
        ),
        {
            "listeners": outcomes[0].listeners,
            "reached_all_seconds": [o.reached_all_seconds for o in outcomes],
            "kilobits_per_second": mean(o.kilobits_per_second for o in outcomes),
            "seeds": len(outcomes),
        },
    )


def spread_1000(scale: float) -> Finding:
    """One host of a thousand changes all it publishes; nothing is lost."""
    scenario = evolve(_NEWS, hosts=_hosts(1000, scale))
    return _spread("spread-1000", _seeds(scenario, _seeds_of(20, scale)), 2.2)


def spread_10000(scale: float) -> Finding:
    """The same among ten thousand."""
    scenario = evolve(_NEWS, hosts=_hosts(10_000, scale))
    return _spread("spread-10000", _seeds(scenario, _seeds_of(3, scale)), 2.6)


def loss_10000(scale: float) -> Finding:
    """The same where every other packet is lost."""
    scenario = evolve(_NEWS, hosts=_hosts(10_000, scale), traits=NetworkTraits(loss=0.5))
    return _spread("loss-10000", _seeds(scenario, _seeds_of(20, scale)), 5.0)


def slow(count: int, scale: float) -> Finding:
    """
    *count* of 128 hosts stall again and again: healthy ones are not misled, crashes are found.

    Beside plain SWIM with the same times, in the same run, with the same seeds.
    """
    hosts = _hosts(128, scale)
    scenario = Scenario(hosts=hosts, seconds=120.0, slow=min(count, hosts // 4), kills=6)
    ours = _seeds(scenario, 2)
    plain = _seeds(evolve(scenario, times=GossipTimes(lifeguard=False)), 2)

    def first(outcomes: Sequence[Outcome]) -> float:
        return mean(seconds for o in outcomes for seconds in o.detections)

    def last(outcomes: Sequence[Outcome]) -> float:
        return mean(o.detected_by_all_seconds or inf for o in outcomes)

    return Finding(
        f"slow-{count}",
        (
            Limit(
                "false_positives",
                sum(o.false_positives for o in ours),
                sum(o.false_positives for o in plain) / 50,
            ),
            Limit("mean_detection_seconds", first(ours), first(plain)),
            Limit("detected_by_all_seconds", last(ours), last(plain)),
            Limit("missed_crashes", sum(o.crashes - o.crashes_detected for o in ours), 0),
        ),
        {"crashes": sum(o.crashes for o in ours)},
    )


def churn(scale: float) -> Finding:
    """Ten minutes of ten thousand hosts, 1 % of which crash and come back."""
    scenario = Scenario(hosts=_hosts(10_000, scale), services=5, seconds=600.0, churn=0.01)
    began = time.monotonic()
    outcome = run(scenario)
    wall_seconds = time.monotonic() - began
    return Finding(
        "churn",
        (
            # Of the processor: what else runs on the machine is not this one's fault.
            Limit("cpu_seconds", outcome.cpu_seconds, 600.0),
            Limit("memory_megabytes", outcome.memory_megabytes, 2000.0),
            Limit("false_positives", outcome.false_positives, 0),
            Limit("missed_crashes", outcome.crashes - outcome.crashes_detected, 0),
        ),
        {
            "wall_seconds": wall_seconds,
            "crashes": outcome.crashes,
            "events": outcome.events,
            "kilobits_per_second": outcome.kilobits_per_second,
            "trace_hash": outcome.trace_hash,
        },
    )


def same_trace(scale: float) -> Finding:
    """All troubles together: the same seed gives the same trace, another one another."""
    scenario = Scenario(
        hosts=_hosts(1000, scale),
        seconds=60.0,
        kills=2,
        churn=0.02,
        slow=3,
        pauses=2,
        partition=0.2,
        clock_skew=20.0,
        traits=NetworkTraits(loss=0.05, delay=0.005, delay_spread=0.02),
    )
    traces = [run(evolve(scenario, seed=seed)).trace_hash for seed in (1, 1, 2)]
    return Finding(
        "same-trace",
        (
            Limit("differing_traces_of_one_seed", len(set(traces[:2])) - 1, 0),
            Limit("equal_traces_of_two_seeds", 2 - len(set(traces[1:])), 0),
        ),
        {"traces": traces},
    )


ITEMS: Mapping[str, Callable[[float], Finding]] = {
    "spread-1000": spread_1000,
    "spread-10000": spread_10000,
    "loss-10000": loss_10000,
    **{f"slow-{count}": partial(slow, count) for count in (1, 2, 4, 8, 16, 32)},
    "churn": churn,
    "same-trace": same_trace,
}


def measure(item: str, scale: float) -> Finding:
    """Run one item."""
    # As the command does: see gridnet/simulate/__main__.py.
    gc.freeze()
    gc.disable()
    return ITEMS[item](scale)


def start() -> int:
    """The command: :func:`main`, in huge pages."""
    huge_pages.start_anew()
    return main()


def main(arguments: list[str] | None = None) -> int:
    """Run them; status 0: all hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulate.acceptance", description=__doc__
    )
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the hosts")
    options = parser.parse_args(arguments)
    items = options.items or list(ITEMS)
    for item in items:
        if item not in ITEMS:
            parser.error(f"{item}: unknown; there are {', '.join(ITEMS)}")
    all_hold = True
    for item in items:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            finding = pool.submit(measure, item, options.scale).result()
        print(finding.line(), flush=True)
        all_hold = all_hold and finding.holds
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(start())
