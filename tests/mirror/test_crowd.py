"""
Many mirrors of one long list that changes all the time.

Small by default; ``GRIDNET_CROWD=1000,10000,500,60`` (mirrors, objects, changes a second, seconds)
is the size that the documents speak of.  The mirrors are processes beside the master's, as many as
there are processors but one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.demo_process import ROOT

MIRRORS, OBJECTS, CHANGES, SECONDS = map(
    int, os.environ.get("GRIDNET_CROWD", "30,300,150,2").split(",")
)
DELIVERY = 2
FULL = "GRIDNET_CROWD" in os.environ
#: Whole mirrors among them, and mirrors that stop reading.
WHOLE, STUCK = min(5, MIRRORS // 4), 1


class Child:
    """A process that takes commands a line and answers with lines of JSON."""

    def __init__(self, module: str, arguments: Sequence[object]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def line(self) -> Any:
        output: IO[bytes] | None = self.process.stdout
        assert output is not None
        text = output.readline()
        assert text, f"process {self.process.args!r} ended"
        return json.loads(text)

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class CrowdTests(SynchronousTestCase):
    def test_nobody_is_behind_and_one_that_stops_reading_costs_the_others_nothing(self) -> None:
        """Numbers without gaps, everything in time, equal lists, bounded memory."""
        master = Child("tests.mirror.crowd_master", [0, OBJECTS, CHANGES])
        self.addCleanup(master.end)
        port = master.line()["port"]
        light = MIRRORS - WHOLE - STUCK
        clients = Child("tests.mirror.crowd_clients", [port, light, WHOLE, STUCK, DELIVERY])
        self.addCleanup(clients.end)
        self.assertEqual(clients.line(), {"ready": MIRRORS})
        master.say("start")
        time.sleep(SECONDS)
        master.say("stop")
        served = master.line()
        found = self.settled(clients, served["changes"], light)
        if FULL:
            print(json.dumps({"master": served, "mirrors": found}))
        self.assertEqual((found["gaps"], found["lost"]), (0, 0))
        self.assertEqual(served["clients"], MIRRORS)
        self.assertGreater(served["changes"], CHANGES)
        self.assertLessEqual(found["events"], served["changes"] * light + served["changes"])
        self.assertGreaterEqual(found["events"], served["changes"] * light)
        self.assertEqual(found["sizes"], [OBJECTS] * WHOLE)
        self.assertEqual(found["serials"], [served["changes"]] * WHOLE)
        self.assertEqual(len(set(found["sums"])), 1)
        # What the stuck mirror does not take is bounded, and shared with the others.
        grown = served["most_octets"] - served["resting_octets"]
        self.assertLess(grown, 256 * 1024 * 1024)
        if FULL:  # in an ordinary run how busy the machine is must not matter
            self.assertLess(max(found["latest"], found["latest_whole"]), DELIVERY + 1.0)

    @staticmethod
    def settled(clients: Child, changes: int, light: int) -> Any:
        """What the mirrors found once they have everything."""
        deadline = time.monotonic() + 60
        while True:
            clients.say("result")
            found = clients.line()
            done = found["events"] >= changes * light and found["serials"] == [changes] * WHOLE
            if done or time.monotonic() > deadline:
                return found
            time.sleep(0.25)
