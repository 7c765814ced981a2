"""
The released C library resolves from shared memory that a daemon changes under it.

``GRIDNET_NCBI_CONNECT`` names a shared build of the C++ Toolkit's CONNECT library, which
``tests/integration/build_connect.sh`` makes; ``GRIDNET_HEAP_LOOKUPS`` says how many look-ups are to
be made at least (5,000).  Skipped where no namespaces can be made, and without the library.
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


#: What reads the table of a demo under the keys that every client knows.
_READ_PUBLIC = """\
import sys, time
from gridnet.table.heap_segment import HeapReader
from tests.integration.demo_process import DemoProcess
from tests.ports import free_block
demo = DemoProcess(free_block(100), sys.argv[1:])
try:
    print(demo.ready["lbsmd"]["shared_memory"]["semaphores"])
    found = HeapReader().read(time.time())
    print("none" if found is None else len(found.entries("Echo")))
finally:
    demo.stop()
print(HeapReader().read(time.time()))
"""


def can_unshare(*namespaces: str) -> str:
    """The program that makes *namespaces*; empty: they cannot be made here."""
    unshare = shutil.which("unshare") or ""
    if unshare and subprocess.run([unshare, *namespaces, "true"], capture_output=True).returncode:
        return ""
    return unshare


class DemoTests(SynchronousTestCase):
    """``gridnet demo``, in a namespace where nobody else has the keys."""

    def read_public(self, *options: str) -> list[str]:
        """The key of a demo's semaphores, and how many servers a client finds, also after it."""
        unshare = shutil.which("unshare")
        if (
            unshare is None
            or subprocess.run([unshare, "--ipc", "true"], capture_output=True).returncode
        ):
            raise SkipTest("no IPC namespace can be made")
        done = subprocess.run(
            [unshare, "--ipc", sys.executable, "-c", _READ_PUBLIC, *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return done.stdout.split()

    def test_with_heap_it_has_the_real_keys(self) -> None:
        self.assertEqual(self.read_public("--heap"), ["0x0130dfb2", "1", "None"])

    def test_without_it_has_keys_of_its_own(self) -> None:
        key, *found = self.read_public()
        self.assertNotEqual(key, "0x0130dfb2")
        self.assertEqual(found, ["none", "None"])


class ReleasedClientTests(SynchronousTestCase):
    def test_no_look_up_is_torn_and_a_killed_daemon_harms_nobody(self) -> None:
        namespaces = ["--ipc", "--mount"]
        unshare = can_unshare(*namespaces)
        if not unshare:
            raise SkipTest("no IPC and mount namespaces can be made")
        library = os.environ.get("GRIDNET_NCBI_CONNECT", "")
        if not library:
            raise SkipTest("GRIDNET_NCBI_CONNECT names no library")
        look_ups = os.environ.get("GRIDNET_HEAP_LOOKUPS", "5000")
        done = subprocess.run(
            [
                *(unshare, *namespaces, sys.executable, "-m", "tests.integration.heap_lookup"),
                *(library, look_ups, "10"),
            ],
            capture_output=True,
            timeout=600,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        found = json.loads(done.stdout)
        self.assertEqual((found["torn"], found["missed"]), (0, False), found["log"])
        self.assertGreater(found["generations"], 5)
        # Readers find no daemon after kill -9, and the next one as soon as it is there.
        self.assertEqual(set(found["after_kill"]), {None})
        self.assertNotIn(float("inf"), found["return_seconds"], found["log"])
        host = found["host"]
        self.assertEqual(host["processors"], os.cpu_count())
        self.assertGreater(host["tasks"], 0)
        self.assertGreater(min(host["statuses"]), 0.0)
        # A penalty through the library's own feedback call comes into force.
        self.assertEqual((found["penalized"], found["suppressed"]), (True, True), found["log"])
