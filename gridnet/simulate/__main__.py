"""``python -m gridnet.simulate``: simulate a site and print what was measured."""

from __future__ import annotations

import argparse

from attrs import asdict

from gridnet.lbsmd.gossip.membership import GossipTimes
from gridnet.simulate.network import NetworkTraits
from gridnet.simulate.scenario import Scenario, run


def main(arguments: list[str] | None = None) -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(prog="python -m gridnet.simulate", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100, help="at least 3")
    parser.add_argument("--services", type=int, default=5, help="published by one host at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated time")
    parser.add_argument("--slow", type=int, default=0, help="hosts that stall again and again")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets lost, 0 to 1")
    parser.add_argument("--delay", type=float, default=0.001, help="seconds, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain-swim", action="store_true", help="without Lifeguard")
    options = parser.parse_args(arguments)
    if options.hosts < 3 or options.services < 1 or not 0 <= options.slow <= options.hosts:
        parser.error("a site needs 3 hosts, 1 service, and no more slow hosts than hosts")
    scenario = Scenario(
        options.hosts,
        options.services,
        options.seconds,
        options.slow,
        seed=options.seed,
        traits=NetworkTraits(options.loss, options.delay),
        times=GossipTimes(lifeguard=not options.plain_swim),
    )
    for name, figure in asdict(run(scenario)).items():
        shown = f"{figure:.3f}" if isinstance(figure, float) else figure
        print(f"{name:24} {shown}")


if __name__ == "__main__":
    main()
