"""What the README and the how-to show of the relay, run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.demo_process import ROOT, DemoProcess
from tests.ports import free_block


class ReadmeTests(SynchronousTestCase):
    """Lines for a first visitor."""

    def test_a_client_reaches_a_service_through_a_ticket(self) -> None:
        demo = DemoProcess(free_block(100))
        self.addCleanup(demo.kill)
        self.assertEqual(len(demo.ready["firewall"]["ports"]), 11)
        found = re.search(
            r"^    info=\$\(curl.*\n(?:    .*\n)+", (ROOT / "README.md").read_text(), re.M
        )
        assert found is not None
        script = found[0].replace("127.0.0.1:27600", f"127.0.0.1:{demo.base}")
        self.assertNotEqual(script, found[0])
        folder = os.path.dirname(sys.executable)
        done = subprocess.run(
            ["sh", "-ec", script],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("through a ticket", done.stdout)
