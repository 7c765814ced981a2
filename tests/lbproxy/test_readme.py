"""What the README and the demo show of the LB proxy."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy.demo import show
from tests.lbproxy.child import REPOSITORY, shared_child


class ReadmeTests(SynchronousTestCase):
    """Lines for a first visitor."""

    def test_the_lines_of_the_readme(self) -> None:
        """They run as printed: a job is logged, and watched until it is done."""
        child = shared_child()
        found = re.search(
            r"^    export GLITE_WMS_LBPROXY.*\n(?:    .*\n)+",
            (REPOSITORY / "README.md").read_text(),
            re.M,
        )
        assert found is not None
        self.assertEqual(len(found[0].splitlines()), 5)
        script = (
            found[0]
            .replace(".demo/lb_proxy_store.sock", child.store)
            .replace(".demo/lb_proxy_serve.sock", child.serve)
            .replace(".venv/bin/gridnet", f"{sys.executable} -m gridnet.cli")
        )
        done = subprocess.run(
            ["sh", "-ec", f"{script}\nwait"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        states = [line.split()[2:4] for line in done.stdout.splitlines()]
        self.assertEqual(
            states, [["Submitted", "RegJob"], ["Running", "Running"], ["Done", "Done"]]
        )

    def test_the_tour(self) -> None:
        """The demo shows a job from its registration to its end."""
        child = shared_child()
        out = io.StringIO()
        show({"store": child.store, "serve": child.serve}, out)
        told = [line.partition(": ")[2] for line in out.getvalue().splitlines()]
        self.assertEqual(told, ["RegJob -> Submitted", "Running -> Running", "Done -> Done"])
