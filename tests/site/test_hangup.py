"""SIGHUP reaches whoever holds a configuration, in memory and in a real daemon."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

import gridnet
from gridnet.hangup import HangupService


class Holder:
    """Counts how often it is read anew."""

    def __init__(self, answer: Any) -> None:
        self.reloads = 0
        self._answer = answer

    def reload(self) -> Deferred[Any]:
        """As :class:`gridnet.interfaces.IConfigurationHolder`."""
        self.reloads += 1
        return fail(self._answer) if isinstance(self._answer, Exception) else succeed(self._answer)


class SignalReactor(MemoryReactorClock):
    """A reactor that takes signals, and calls from elsewhere at once."""

    _installSignalHandlers = True

    def callFromThread(self, call: Any, *args: Any, **kw: Any) -> None:
        """At once."""
        call(*args, **kw)


class HangupTests(SynchronousTestCase):
    """The service."""

    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        self.reactor = SignalReactor()
        self.holders = [("a", Holder(())), ("b", Holder(()))]

    def start(self) -> HangupService:
        """The service, running in a running reactor."""
        service = HangupService(self.reactor, lambda: self.holders)
        service.startService()
        self.reactor.run()
        return service

    def hang_up(self) -> list[int]:
        """Send the signal; how often each holder was read anew since the start."""
        os.kill(os.getpid(), signal.SIGHUP)
        return [holder.reloads for _, holder in self.holders]

    def test_every_holder_is_read_anew(self) -> None:
        """Each time."""
        self.start()
        self.assertEqual(self.hang_up(), [1, 1])
        self.assertEqual(self.hang_up(), [2, 2])

    def test_a_holder_that_fails_does_not_keep_the_others(self) -> None:
        """It is logged."""
        self.holders.insert(0, ("x", Holder(RuntimeError("no"))))
        self.start()
        self.assertEqual(self.hang_up(), [1, 1, 1])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_handler_of_before_is_called_too_and_restored(self) -> None:
        """Nobody loses the signal."""
        seen: list[int] = []

        def earlier(number: int, frame: object) -> None:
            seen.append(number)

        signal.signal(signal.SIGHUP, earlier)
        service = self.start()
        self.assertEqual((self.hang_up(), seen), ([1, 1], [signal.SIGHUP]))
        service.stopService()
        self.assertIs(signal.getsignal(signal.SIGHUP), earlier)

    def test_a_later_handler_is_left_alone(self) -> None:
        """It is not ours to take away."""
        service = self.start()

        def later(number: int, frame: object) -> None:
            pass

        signal.signal(signal.SIGHUP, later)
        service.stopService()
        self.assertIs(signal.getsignal(signal.SIGHUP), later)

    def test_a_reactor_without_signals_keeps_its_process_as_it_is(self) -> None:
        """The embedding program decides."""
        self.reactor._installSignalHandlers = False
        before = signal.getsignal(signal.SIGHUP)
        service = self.start()
        self.assertIs(signal.getsignal(signal.SIGHUP), before)
        service.stopService()
        self.assertIs(signal.getsignal(signal.SIGHUP), before)


class Output(ProcessProtocol):
    """Waits for texts in what a process writes."""

    def __init__(self) -> None:
        self.text = ""
        self.ended: Deferred[object] = Deferred()
        self._waiting: list[tuple[str, Deferred[None]]] = []

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.text += data.decode("utf-8", "replace")
        self._look()

    def _look(self) -> None:
        while self._waiting and self._waiting[0][0] in self.text:
            wanted, found = self._waiting.pop(0)
            self.text = self.text.partition(wanted)[2]
            found.callback(None)

    def expect(self, wanted: str) -> Deferred[None]:
        """Fires once *wanted* was written, after what was expected before."""
        found: Deferred[None] = Deferred()
        self._waiting.append((wanted, found))
        self._look()
        return found

    def processEnded(self, reason: Failure) -> None:
        for wanted, found in self._waiting:
            found.errback(RuntimeError(f"ended before {wanted!r}: {self.text}"))
        self._waiting = []
        value = reason.value
        assert isinstance(value, ProcessDone | ProcessTerminated)
        self.ended.callback(value.exitCode or value.signal)


class DaemonProcessTests(TestCase):
    """A real twistd."""

    timeout = 30

    def test_sighup_reads_the_definitions_of_a_running_daemon_anew(self) -> Deferred[Any]:
        """Good ones take effect, broken ones are refused, and it ends cleanly on SIGTERM."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        servrc = directory / "servrc.cfg"
        servrc.write_text("A STANDALONE 127.0.0.1:1\n")
        site = directory / "site.toml"
        site.write_text('[lbsmd]\nservrc = "servrc.cfg"\npoll_seconds = 3600.0\n')
        output = Output()
        arguments = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        arguments += ["--nodaemon", "--pidfile=", "gridnet-lbsmd", "--config", str(site)]
        root = str(Path(gridnet.__file__).parent.parent)
        process = reactor.spawnProcess(
            output, sys.executable, arguments, {**os.environ, "PYTHONPATH": root}, str(directory)
        )

        def kill() -> None:
            if process.pid:
                process.signalProcess("KILL")

        self.addCleanup(kill)

        async def drive() -> object:
            await output.expect("1 services from 1 files are in force")
            await output.expect("from now on SIGHUP")
            servrc.write_text("A STANDALONE 127.0.0.1:1\nB STANDALONE 127.0.0.1:2\n")
            process.signalProcess("HUP")
            await output.expect("2 services from 1 files are in force")
            servrc.write_text("A STANDALONE\n")
            process.signalProcess("HUP")
            await output.expect("servrc.cfg:1:13: found no port")
            await output.expect("those of before stay in force")
            process.signalProcess("TERM")
            return await output.ended

        done = Deferred.fromCoroutine(drive())
        # twistd shuts down first, then dies of the signal that made it.
        return done.addCallback(self.assertEqual, signal.SIGTERM)
