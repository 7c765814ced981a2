"""What tests beside Debian's own Grid Engine share: its programs as processes of a test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.mirror.cell import PROGRAMS, why_not

reactor: Any = installed_reactor
_WHY_NOT = why_not()


class ChildProcess(ProcessProtocol):
    """A process that runs beside a test: an unmodified ``qevent``, mostly."""

    def __init__(self) -> None:
        self.output = ""
        self.ended: Deferred[None] = Deferred()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data.decode("utf-8", "replace")

    def processEnded(self, reason: Failure = Failure(ProcessDone(0))) -> None:  # noqa: B008
        self.ended.callback(None)

    def kill(self) -> Deferred[None]:
        if self.transport is not None and not self.ended.called:
            self.transport.signalProcess("KILL")
        return self.ended


class GridEngineTestCase(TestCase):
    """
    Tests beside Grid Engine.

    Skipped where it is not installed; under continuous integration it has to be.
    """

    timeout = 400

    if _WHY_NOT and os.environ.get("CI") != "true":
        skip = _WHY_NOT

    def setUp(self) -> None:
        # Where its processes run: qevent leaves a file in its working directory.
        self.directory = Path(mkdtemp(prefix="gridnet-qevent-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def qevent(self, environment: dict[str, str], *arguments: str) -> ChildProcess:
        """Start ``qevent``; it is killed after the test."""
        return self.spawn(environment, str(PROGRAMS / "qevent"), *arguments)

    def spawn(self, environment: dict[str, str], program: str, *arguments: str) -> ChildProcess:
        """Start a process whose output is collected; it is killed after the test."""
        protocol = ChildProcess()
        reactor.spawnProcess(
            protocol, program, [program, *arguments], environment, str(self.directory)
        )
        self.addCleanup(protocol.kill)
        return protocol

    async def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for *condition*; what takes longer than this, on any machine, never comes."""
        deadline = reactor.seconds() + seconds
        while not condition():
            self.assertLess(reactor.seconds(), deadline, "waited too long")
            await deferLater(reactor, 0.05)
