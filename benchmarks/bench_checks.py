"""
Checks of services: how many a daemon makes in a second, and how late its event loop comes
meanwhile, with 5,000 servers probed and 200 scripts run every 5 seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable

from benchmarks.common import REPOSITORY, Figure, Options, say

NAME = "checks"
SERVICES, SCRIPTS, PERIOD = 5000, 200, 5


def run(options: Options) -> Iterable[Figure]:
    """Measure a daemon of its own for each run."""
    found = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as directory:
            words = [directory, SERVICES, PERIOD, SCRIPTS, max(options.seconds, 3.0 * PERIOD)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.checks_load", *map(str, words)],
                capture_output=True,
                check=True,
                cwd=REPOSITORY,
            )
            found.append(json.loads(done.stdout))
        if found[-1]["up"] != SERVICES + SCRIPTS:
            say(f"unsound: {found[-1]}")
    what = f"{SERVICES:,} probes and {SCRIPTS} scripts every {PERIOD} s"
    rates = tuple(each["checks"] / each["seconds"] for each in found)
    yield Figure(NAME, f"checks, {what}", "1/s", rates)
    for name, member in (("99 % of looks", "late_p99_ms"), ("latest look", "late_max_ms")):
        values = tuple(each[member] for each in found)
        figure = f"lateness of the event loop, {name}"
        yield Figure(NAME, figure, "ms", values, higher_is_better=False)
