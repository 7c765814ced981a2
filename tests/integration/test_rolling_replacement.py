"""
Servers that ``gridnet run`` has started are replaced one by one while clients ask: none notices.

``GRIDNET_ROLLING=10x100`` is the full run: ten servers, a hundred requests a second.  It prints how
long the first request took to get through.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.demo_process import ROOT, DemoProcess
from tests.ports import free_block

SERVERS, RATE = map(int, os.environ.get("GRIDNET_ROLLING", "3x25").split("x"))
CLIENTS = 4
ECHO = str(ROOT / "tests" / "launcher" / "born_echo.py")
TARGET = "/Service/dispd.cgi?service=Born"
START_SECONDS = 30.0


def ask(port: int) -> str:
    """What is wrong with the answer to one request; empty: nothing."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", TARGET, b"hello")
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, HTTPException) as error:
        return repr(error)
    finally:
        connection.close()
    if reply.status != 200 or not body.endswith(b"\nHELLO"):
        return f"{reply.status} {reply.getheaders()} {body!r}"
    return ""


class Load:
    """
    Clients that ask at a steady rate.

    :ivar asked: requests so far.
    :ivar failures: what was wrong with those that failed.
    """

    def __init__(self, port: int) -> None:
        self.asked = 0
        self.failures: list[str] = []
        self._port = port
        self._due: SimpleQueue[None] = SimpleQueue()
        self._going = True
        self._threads = [
            Thread(target=self._beat),
            *(Thread(target=self._ask) for _ in range(CLIENTS)),
        ]
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        begin = time.monotonic()
        beats = 0
        while self._going:
            while beats < (time.monotonic() - begin) * RATE:
                self._due.put(None)
                beats += 1
            time.sleep(0.005)  # the rate of the load, not a wait for something

    def _ask(self) -> None:
        while self._going:
            try:
                self._due.get(timeout=0.1)
            except Empty:
                continue
            wrong = ask(self._port)
            self.asked += 1
            if wrong:
                self.failures.append(wrong)

    def stop(self) -> None:
        """Ask no more."""
        self._going = False
        for thread in self._threads:
            thread.join()


class RollingReplacementTests(SynchronousTestCase):
    """Batch jobs come and go, the service stays."""

    def setUp(self) -> None:
        self.demo = DemoProcess(free_block(100))
        self.addCleanup(self.demo.kill)
        self.started: list[subprocess.Popen[bytes]] = []
        self.addCleanup(self.kill_all)

    def kill_all(self) -> None:
        for each in self.started:
            each.kill()
            each.wait()
            if each.stderr is not None:
                each.stderr.close()

    def start(self) -> subprocess.Popen[bytes]:
        """A server that is in the table."""
        control = Path(self.demo.ready["lbsmd"]["control"])
        words = [
            *(sys.executable, "-m", "gridnet.cli", "run", "--service", "Born"),
            *("--control", str(control), "--lease", "3", "--settle", "0.5", "--flags", "L=no"),
            *("--", sys.executable, ECHO),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        running = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
        self.started.append(running)
        assert running.stderr is not None
        said = b""
        while b"in the table" not in said:
            line = running.stderr.readline()
            if not line:
                self.fail(said.decode())
            said += line
        return running

    def test_no_request_fails(self) -> None:
        """All servers are others than at the beginning."""
        begin = time.monotonic()
        servers = [self.start()]
        while ask(self.demo.base) and time.monotonic() - begin < START_SECONDS:
            pass
        first = time.monotonic() - begin
        servers += [self.start() for _ in range(SERVERS - 1)]
        load = Load(self.demo.base)
        try:
            for old in servers:
                self.start()
                old.send_signal(signal.SIGTERM)
                self.assertEqual(old.wait(60), 0)
        finally:
            load.stop()
        print(
            f"first request through after {first:.2f} s; {SERVERS} servers replaced, "
            f"{load.asked} requests, {len(load.failures)} failed",
            file=sys.stderr,
        )
        self.assertEqual(load.failures[:3], [])
        self.assertGreater(load.asked, SERVERS)
