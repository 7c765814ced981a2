"""``gridnet run`` as a job of a real Grid Engine: born, found, drained before its time is over."""

from __future__ import annotations

import os
import stat
import sys
import time
import urllib.request
from collections.abc import Callable

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.demo_process import ROOT, DemoProcess
from tests.mirror.cell import PrivateCell, why_not
from tests.ports import free_block

PATIENCE_SECONDS = 90.0
#: Draining begins a minute before the end.  Until then it must have been found.
LIMIT_SECONDS = 75
JOB = """\
#!/bin/sh
export PYTHONPATH={root} PATH=/usr/bin:/bin
exec {python} -m gridnet.cli run --service Born --control {control} --lease 3 --settle 0.2 \\
    --before-limit 1 --flags L=no -- {python} {root}/tests/launcher/born_echo.py 2> {log}
"""


class GridEngineTests(SynchronousTestCase):
    """One job."""

    def setUp(self) -> None:
        reason = why_not()
        if reason:
            if os.environ.get("CI"):
                self.fail(f"CI must be able to: {reason}")
            raise SkipTest(reason)
        self.demo = DemoProcess(free_block(100))
        self.addCleanup(self.demo.kill)
        self.cell = PrivateCell()
        self.addCleanup(self.cell.stop)
        self.cell.start()

    def until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                self.fail(f"{what}: {self.said()}")
            time.sleep(0.1)

    def said(self) -> str:
        try:
            return (self.demo.directory / "job.log").read_text()
        except OSError:
            return ""

    def answer(self) -> bytes:
        """What the service answers, asked through the dispatcher."""
        url = f"http://127.0.0.1:{self.demo.base}/Service/dispd.cgi?service=Born"
        try:
            with urllib.request.urlopen(url, b"hello", 20) as reply:
                found: bytes = reply.read()
        except OSError:
            return b""
        return found

    def test_a_job_serves_and_leaves_before_its_time_is_over(self) -> None:
        """The limit is what the job was submitted with; only the master knows it."""
        script = self.demo.directory / "job.sh"
        script.write_text(
            JOB.format(
                root=ROOT,
                python=sys.executable,
                control=self.demo.ready["lbsmd"]["control"],
                log=self.demo.directory / "job.log",
            )
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self.cell.run(
            *("qsub", "-b", "y", "-o", "/dev/null", "-e", "/dev/null"),
            *("-l", f"h_rt={LIMIT_SECONDS}", str(script)),
        )
        self.until(lambda: self.answer().endswith(b"HELLO"), "the service is not found")
        self.until(lambda: "has ended" in self.said(), "the service does not end")
        self.assertIn("Grid Engine ends this job in", self.said())
        self.assertIn("the time limit comes", self.said())
        self.assertIn("its clients are gone", self.said())
        self.assertEqual(self.answer(), b"")
        self.until(lambda: "job.sh" not in self.cell.run("qstat"), "the job does not end")
