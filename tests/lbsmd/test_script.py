"""Probes and check scripts, with real sockets and real processes."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.lbsmd.check_codes import ScriptHistory
from gridnet.lbsmd.checks import CheckBounds, Checks
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.notices import Postman
from gridnet.lbsmd.probe import _Connecting, connect
from gridnet.lbsmd.script import ScriptRun, run_script, script_arguments
from gridnet.lbsmd.servrc.check_list import Script
from gridnet.table.model import ServiceTable
from tests.lbsmd.support import loaded

reactor: Any = _reactor


class ArgumentTests(SynchronousTestCase):
    """The words that a script is called with."""

    def test_first_and_later_runs(self) -> None:
        """A bar marks a piped one, twice."""
        first = ScriptHistory()
        again, _ = first.ended(7)
        for script, history, elapsed, wanted in (
            (Script("/a/b"), first, 0.0, ["/a/b", "s", "10.0.0.1:5"]),
            (Script("b/c", True), first, 9.0, ["|b/c", "s", "|10.0.0.1:5"]),
            (Script("/a"), again, 15.9, ["/a", "s", "10.0.0.1:5", "7", "0", "16"]),
        ):
            words = script_arguments(script, "s", "10.0.0.1", 5, history, elapsed)
            self.assertEqual(words, wanted)
        words = script_arguments(Script("/a", True), "s", "::1", 5, first, 0.0)
        self.assertEqual(words[2], "|[::1]:5")


class ProbeTests(TestCase):
    """Connecting."""

    timeout = 120

    def test_a_listener_is_reached_without_a_byte(self) -> Deferred[None]:
        """It sees a connection that ends."""
        seen: Deferred[bytes] = Deferred()

        class Watcher(Protocol):
            def __init__(self) -> None:
                self.data = b""

            def dataReceived(self, data: bytes) -> None:
                self.data += data

            def connectionLost(self, reason: object) -> None:  # type: ignore[override]
                seen.callback(self.data)

        port = reactor.listenTCP(0, Factory.forProtocol(Watcher), interface="127.0.0.1")
        self.addCleanup(port.stopListening)

        async def drive() -> None:
            connection = await connect(reactor, "127.0.0.1", port.getHost().port, 5.0)
            connection.close()
            self.assertEqual(await seen, b"")

        return Deferred.fromCoroutine(drive())

    def test_a_refusal_has_its_reason(self) -> Deferred[None]:
        """IPv4 and IPv6."""

        async def drive() -> None:
            for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
                with socket.socket(family) as unused:
                    try:
                        unused.bind((host, 0))
                    except OSError:
                        continue  # this machine has no IPv6
                    port = unused.getsockname()[1]
                    error = await self.assertFailure(connect(reactor, host, port, 5.0), OSError)
                    self.assertIn("refused", str(error))

        return Deferred.fromCoroutine(drive())

    def test_a_socket_that_reaches_itself_has_reached_nobody(self) -> Deferred[Any]:
        """The system may give a probe the port of the dead server that it is meant for."""
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.bind(("127.0.0.1", 0))
        connection.connect(connection.getsockname())
        connection.setblocking(False)
        return self.assertFailure(_Connecting(reactor, connection).done, ConnectionRefusedError)

    def silent_point(self) -> tuple[str, int]:
        """Where nobody answers: a listener whose queue is full."""
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        point: tuple[str, int] = listener.getsockname()
        for _ in range(4):
            filling = socket.socket()
            self.addCleanup(filling.close)
            filling.setblocking(False)
            filling.connect_ex(point)
        return point

    def test_silence_is_given_up(self) -> Deferred[Any]:
        """After its time."""
        probing = connect(reactor, *self.silent_point(), 0.2)
        return self.assertFailure(probing, ConnectTimeoutError)

    def test_a_probe_can_be_called_off(self) -> Deferred[Any]:
        """Nothing is left behind."""
        probing = connect(reactor, *self.silent_point(), 60.0)
        probing.cancel()
        return self.assertFailure(probing, CancelledError)

    def test_an_impossible_address_is_an_error(self) -> Deferred[Any]:
        """Not an exception."""
        return self.assertFailure(connect(reactor, "255.255.255.255", 9, 5.0), OSError)


class ScriptCase(TestCase):
    """A directory for scripts."""

    timeout = 120

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.complaints: list[str] = []

    def script(self, text: str, piped: bool = False) -> Script:
        """A shell script."""
        path = self.directory / "check.sh"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return Script(str(path), piped)

    def start(self, script: Script, *words: str, **keys: Any) -> ScriptRun | int:
        """A run of it."""
        return run_script(
            reactor,
            script,
            [script.path, *words],
            self.directory,
            keys.get("connection"),
            keys.get("cpu_seconds", 5.0),
            self.complaints.append,
            keys.get("max_log_octets", 1000),
        )

    async def end(self, script: Script, *words: str, **keys: Any) -> int | None:
        """The exit code of a run."""
        run = self.start(script, *words, **keys)
        assert isinstance(run, ScriptRun)
        return await run.ended


class ScriptTests(ScriptCase):
    """Runs."""

    def test_exit_codes(self) -> Deferred[None]:
        """And signals, which are none."""

        async def drive() -> None:
            for text, code in (("exit 0", 0), ("exit 115", 115), ("kill -9 $$", None)):
                self.assertEqual(await self.end(self.script(text)), code)

        return Deferred.fromCoroutine(drive())

    def test_words_environment_and_directory(self) -> Deferred[None]:
        """Standard input is empty, output goes nowhere, errors to the log."""

        async def drive() -> None:
            script = self.script('cat >&2; echo lost; printf "%s:" "$@" >&2; echo >&2; pwd >&2')
            self.assertEqual(await self.end(script, "svc", "h:1", "7"), 0)
            self.assertEqual(self.complaints, ["svc:h:1:7:", str(self.directory)])

        return Deferred.fromCoroutine(drive())

    def test_the_program_name_may_have_a_bar(self) -> Deferred[None]:
        """The program itself is found by its path."""

        async def drive() -> None:
            path = Path("/bin/sh")
            run = run_script(
                reactor,
                Script(str(path), True),
                ["|/bin/sh", "-c", 'echo "$0" >&2'],
                self.directory,
                None,
                5.0,
                self.complaints.append,
                100,
            )
            assert isinstance(run, ScriptRun)
            await run.ended
            self.assertEqual(self.complaints, ["|/bin/sh"])

        return Deferred.fromCoroutine(drive())

    def test_a_piped_script_talks_to_the_server(self) -> Deferred[None]:
        """Through its standard input and output."""

        class Server(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(b"hello\n")

            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(data.upper())

        port = reactor.listenTCP(0, Factory.forProtocol(Server), interface="127.0.0.1")
        self.addCleanup(port.stopListening)

        async def drive() -> None:
            connection = await connect(reactor, "127.0.0.1", port.getHost().port, 5.0)
            script = self.script(
                'read greeting; echo ping; read answer; test "$greeting/$answer" = hello/PING', True
            )
            running = self.end(script, connection=connection)
            coroutine = Deferred.fromCoroutine(running)
            connection.close()
            self.assertEqual(await coroutine, 0)

        return Deferred.fromCoroutine(drive())

    def test_what_cannot_be_started_says_why(self) -> None:
        """With the codes of a shell."""
        self.assertEqual(self.start(Script("/no/such/program")), 127)
        plain = self.directory / "plain"
        plain.write_text("")
        plain.chmod(0o644)
        self.assertEqual(self.start(Script(str(plain))), 126)
        self.assertEqual(len(self.complaints), 2)

    def test_killing_takes_what_it_started_along(self) -> Deferred[None]:
        """The whole group of processes."""
        note = self.directory / "pid"

        async def drive() -> None:
            run = self.start(
                self.script(f"sleep 60 & echo $! > {note}.new; mv {note}.new {note}; wait")
            )
            assert isinstance(run, ScriptRun)
            while not note.exists():
                await deferLater(reactor, 0.01)
            child = int(note.read_text())
            run.kill()
            self.assertIsNone(await run.ended)
            while _is_running(child):
                await deferLater(reactor, 0.01)

        return Deferred.fromCoroutine(drive())

    def test_processor_time_is_limited(self) -> Deferred[None]:
        """A script that only burns it is ended by the system."""

        async def drive() -> None:
            script = self.script("while :; do :; done")
            self.assertIsNone(await self.end(script, cpu_seconds=0.5))

        return Deferred.fromCoroutine(drive())

    def test_complaints_are_bounded(self) -> Deferred[None]:
        """A script may not fill the log."""

        async def drive() -> None:
            script = self.script("yes complaint | head -c 300000 >&2")
            self.assertEqual(await self.end(script, max_log_octets=100), 0)
            self.assertLess(sum(map(len, self.complaints)), 200)
            self.assertIn("left out", self.complaints[-1])

        return Deferred.fromCoroutine(drive())

    def test_what_stays_in_the_background_keeps_nobody_waiting(self) -> Deferred[None]:
        """It may hold standard error open as long as it likes."""

        async def drive() -> None:
            note = self.directory / "pid"
            script = self.script(f"echo first >&2; sleep 60 & echo $! > {note}; exit 3")
            self.assertEqual(await self.end(script), 3)
            self.assertEqual(self.complaints, ["first"])
            os.kill(int(note.read_text()), signal.SIGKILL)

        return Deferred.fromCoroutine(drive())


class RealCheckTests(ScriptCase):
    """All of it together."""

    def test_a_server_that_dies_is_out_of_the_table(self) -> Deferred[None]:
        """And what a script says of another counts; stopping leaves no process."""
        port = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        number = port.getHost().port
        script = self.script("sleep 0.01; exit 60")
        table = ServiceTable()
        local = LocalServices(table, "127.0.0.1")
        postman = Postman(None, reactor, "", "", 1.0, 1, 1)
        bounds = CheckBounds(spread_seconds=0.0, jitter=0.0)
        checks = Checks(local, table, postman, reactor, self.directory, bounds)
        local.load(
            loaded(
                f"x [1] STANDALONE 127.0.0.1:{number}\n"
                f"y [-1,{script.path}] STANDALONE 127.0.0.1:{number}\n"
                "z [-1,/bin/sleep] STANDALONE 127.0.0.1:1\n",
                "127.0.0.1",
            )
        )

        def rate(service: str) -> float:
            return table.entries(service)[0].info.rate

        async def drive() -> None:
            checks.startService()
            while (rate("x"), rate("y")) != (1000.0, 400.0):
                await deferLater(reactor, 0.01)
            await port.stopListening()
            while rate("x"):
                await deferLater(reactor, 0.01)
            stopped = checks.stopService()
            if stopped is not None:
                await stopped

        return Deferred.fromCoroutine(drive())


def _is_running(pid: int) -> bool:
    """Whether that process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
