"""``python -m benchmarks SUBJECT``: run one benchmark, or list them."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.common import Options, show


def subjects() -> dict[str, str]:
    """Subject -> module name."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    return {f.stem.removeprefix("bench_").replace("_", "-"): f"benchmarks.{f.stem}" for f in files}


def main() -> int:
    """Parse the command line and run."""
    known = subjects()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subject", choices=[*known, "all"], help="what to measure")
    parser.add_argument("--runs", type=int, default=3, help="repetitions of each figure")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one repetition")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options, rest = parser.parse_known_args()
    chosen = Options(options.runs, options.seconds, options.json, tuple(rest))
    for subject in known if options.subject == "all" else [options.subject]:
        show(import_module(known[subject]).run(chosen), chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
