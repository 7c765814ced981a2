"""
The released C library resolves from shared memory that changes under it.

Needs ``GRIDNET_NCBI_CONNECT``: path of a shared build of the C++ Toolkit's CONNECT library with
its shared-memory mapper (docs/protocols/shared-memory.rst tells how it is built), and the right to
make an IPC namespace; skipped otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import gridnet

ROOT = Path(gridnet.__file__).parent.parent


class ReleasedClientTests(SynchronousTestCase):
    def test_no_look_up_is_torn_and_a_killed_daemon_harms_nobody(self) -> None:
        library = os.environ.get("GRIDNET_NCBI_CONNECT", "")
        unshare = shutil.which("unshare")
        if not library or unshare is None:
            raise SkipTest("GRIDNET_NCBI_CONNECT names no library, or there is no unshare")
        if subprocess.run([unshare, "--ipc", "true"], capture_output=True).returncode:
            raise SkipTest("no IPC namespace can be made")
        done = subprocess.run(
            [
                *(unshare, "--ipc", sys.executable, "-m", "tests.integration.heap_lookup"),
                *(library, "20000", "50"),
            ],
            capture_output=True,
            timeout=120,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        found = json.loads(done.stdout)
        self.assertEqual((found["torn"], found["missed"]), (0, False))
        self.assertGreater(found["generations"], 5)
        self.assertIsNone(found["after_kill"])
        self.assertGreater(found["after_restart"], 30_000)
