"""``python -m gridnet.simulate``: simulate a site and print what was measured."""

from __future__ import annotations

import argparse
import gc

from attrs import fields

from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.simulate.measure import Outcome
from gridnet.simulate.network import NetworkTraits
from gridnet.simulate.scenario import Scenario, run

OPTIONS: dict[str, str] = {}


def main(arguments: list[str] | None = None) -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(prog="python -m gridnet.simulate", description=__doc__)
    _add_options(parser)
    options = vars(parser.parse_args(arguments))
    traits = {f.name: options.pop(f.name) for f in fields(NetworkTraits)}
    times = GossipTimes(lifeguard=not options.pop("plain_swim"))
    if options["hosts"] < 3 or options["services"] < 1:
        parser.error("a site needs 3 hosts and 1 service")
    scenario = Scenario(**options, traits=NetworkTraits(**traits), times=times)
    # Millions of objects that live on: looking through them for garbage would take a third of
    # the time, and the simulation makes no cycles.
    gc.freeze()
    gc.disable()
    show(run(scenario))


def show(outcome: Outcome) -> None:
    """One line a figure."""
    for field in fields(Outcome):
        if not field.repr:
            continue
        figure = getattr(outcome, field.name)
        shown = f"{figure:.3f}" if isinstance(figure, float) else figure
        print(f"{field.name:28} {shown}")


def _add_options(parser: argparse.ArgumentParser) -> None:
    for kind in (Scenario, NetworkTraits):
        for field in fields(kind):
            if isinstance(field.default, int | float):
                parser.add_argument(
                    "--" + field.name.replace("_", "-"),
                    type=type(field.default),
                    default=field.default,
                    metavar="N" if isinstance(field.default, int) else "X",
                    help=OPTIONS.get(field.name),
                )
    parser.add_argument("--plain-swim", action="store_true", help="without Lifeguard")


if __name__ == "__main__":
    main()
