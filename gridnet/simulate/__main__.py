"""``python -m gridnet.simulate``: simulate a site and print what was measured."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attrs import Attribute, asdict, evolve, fields

from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.simulate import huge_pages
from gridnet.simulate.measure import Outcome
from gridnet.simulate.network import NetworkTraits
from gridnet.simulate.report import write_report
from gridnet.simulate.scenario import Scenario, run

#: From so many hosts on huge pages are worth a second start; smaller sites gain nothing.
LARGE_SITE = 2000


def start() -> None:
    """The command: :func:`main`, for a large site in huge pages."""
    if _parser().parse_args().hosts >= LARGE_SITE:
        huge_pages.start_anew()
    main()


def main(arguments: list[str] | None = None) -> None:
    """Print one line a figure."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    runs, report, as_json = options.pop("runs"), options.pop("report"), options.pop("json")
    lifeguard = not options.pop("plain_swim")
    traits = NetworkTraits(**{a.name: options.pop(a.name) for a in _numbers(NetworkTraits)})
    times = GossipTimes(
        **{a.name: options.pop(a.name) for a in _numbers(GossipTimes)}, lifeguard=lifeguard
    )
    scenario = Scenario(**options, traits=traits, times=times)
    if scenario.hosts < 3 or scenario.services < 1 or runs < 1:
        parser.error("a site needs at least 3 hosts with 1 service, and there must be a run")
    # Millions of objects that live on: looking through them for garbage would take a third of
    # the time, and the simulation makes no cycles.
    gc.freeze()
    gc.disable()
    outcomes = []
    for number in range(runs):
        outcomes.append(run(evolve(scenario, seed=scenario.seed + number)))
        gc.collect()
    if as_json:
        for outcome in outcomes:
            print(json.dumps(asdict(outcome, filter=lambda a, _: bool(a.repr))))
    else:
        show(outcomes)
    if report:
        write_report(Path(report), scenario, outcomes)


def show(outcomes: Sequence[Outcome]) -> None:
    """One line a figure; of several runs the least, the median and the most."""
    for attribute in fields(Outcome):
        if not attribute.repr:
            continue
        values = [getattr(outcome, attribute.name) for outcome in outcomes]
        if len(values) == 1:
            shown = _shown(values[0])
        elif attribute.name == "trace_hash":
            shown = " ".join(values)
        else:
            known = sorted(value for value in values if value is not None)
            shown = "-"
            if known:
                shown = f"{_shown(known[0])} {_shown(median(known))} {_shown(known[-1])}"
            if len(known) < len(values):
                shown += f" ({len(values) - len(known)} of {len(values)} runs without)"
        print(f"{attribute.name:28} {shown}")


def _shown(figure: object) -> str:
    if figure is None:
        return "-"
    return f"{figure:.3f}" if isinstance(figure, float) else str(figure)


def _numbers(kind: type) -> list[Attribute[Any]]:
    return [
        a
        for a in fields(kind)
        if isinstance(a.default, int | float | str) and a.name != "lifeguard"
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gridnet.simulate",
        description=__doc__,
        epilog=f"With {LARGE_SITE} hosts or more it starts itself anew with its memory in huge "
        f"pages, where Linux has them to give; not with {huge_pages.CHOICE}=no in the environment.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    groups = (
        (Scenario, "the site and what happens to it"),
        (NetworkTraits, "the network"),
        (GossipTimes, "the protocol, as in [lbsmd.gossip]"),
    )
    for kind, title in groups:
        group = parser.add_argument_group(title)
        for attribute in _numbers(kind):
            group.add_argument(
                "--" + attribute.name.replace("_", "-"),
                type=type(attribute.default),
                default=attribute.default,
                metavar={int: "N", float: "X", str: "WORD"}[type(attribute.default)],
                choices=("block", "stop") if attribute.name == "slow_kind" else None,
                help=attribute.metadata.get("meaning", " "),
            )
    parser.add_argument("--plain-swim", action="store_true", help="without Lifeguard")
    parser.add_argument("--runs", type=int, default=1, help="runs, each with the next seed")
    parser.add_argument("--report", metavar="FILE", help="write an HTML page with plots")
    parser.add_argument("--json", action="store_true", help="one object a run")
    return parser


if __name__ == "__main__":
    start()
