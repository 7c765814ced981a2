"""``gridnet run`` as a real process, with a real daemon."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

import gridnet
from gridnet.component import load_object
from gridnet.config import SiteConfig, SiteSection
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.site import Site
from gridnet.table.model import Entry
from tests.firewall.fixture import Talker, dial
from tests.ports import free_port
from tests.prepared import PreparedProcess

reactor: Any = _reactor
ROOT = Path(gridnet.__file__).parent.parent
ECHO = str(Path(__file__).with_name("born_echo.py"))


class Running:
    """
    A ``gridnet run`` of ours.

    :ivar ended: fires with its exit status; minus the signal's number when that ended it.
    """

    def __init__(self, process: PreparedProcess) -> None:
        self._process = process
        self.over = False
        self.ended: Deferred[int] = deferToThread(process.wait)
        self.ended.addCallback(self._end)

    def _end(self, status: int) -> int:
        self.over = True
        return status

    @property
    def said(self) -> bytes:
        """All that it and its program have said until now."""
        if self.over:
            self._process.hear_out()
        return self._process.errors + self._process.output

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)


class BatchTestCase(TestCase):
    """A daemon, and services that are born."""

    timeout = 120

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        # Near the root: the path of a socket is short.
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-"))
        (self.directory / "servrc.cfg").write_text("")
        self.running: list[Running] = []
        self.start_daemon()

        async def ready() -> None:
            await self.site.ready()

        return Deferred.fromCoroutine(ready())

    def start_daemon(self) -> None:
        config = SiteConfig(SiteSection(address="127.0.0.1"), {}, self.directory)
        self.site = Site(config, reactor)
        section = LbsmdConfig(servrc="servrc.cfg", directory=".")
        self.control = section.control_path(config)
        self.daemon = MultiService()
        make = load_object("gridnet.lbsmd.service:make_lbsmd")
        make(section, self.site).setServiceParent(self.daemon)
        self.daemon.privilegedStartService()
        self.daemon.startService()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def end() -> None:
            for each in self.running:
                if not each.over:
                    each.signal(signal.SIGKILL)
                    await each.ended
            await self.daemon.stopService()
            shutil.rmtree(self.directory)

        return Deferred.fromCoroutine(end())

    def run_service(
        self,
        *options: str,
        command: tuple[str, ...] = (sys.executable, ECHO),
        environment: Mapping[str, str] = {},
    ) -> Running:
        words = [
            *("run", "--service", "Born"),
            *("--control", str(self.control), "--lease", "30", "--settle", "0.1"),
            *options,
            "--",
            *command,
        ]
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "_CONDOR_", "SGE_"))
        }
        given = {**inherited, "PYTHONPATH": str(ROOT), **environment}
        running = Running(PreparedProcess(words, given, self.directory))
        self.running.append(running)
        return running

    def entries(self) -> list[Entry]:
        return list(self.site.table.entries("Born"))

    async def until(self, holds: Callable[[], object], what: str = "") -> None:
        """Wait until *holds*; the test's own time-out is the bound."""
        while not holds():
            if all(each.over for each in self.running) and self.running and not what:
                self.fail(self.running[-1].said.decode())
            await deferLater(reactor, 0.02, lambda: None)

    async def in_table(self) -> Entry:
        await self.until(self.entries)
        return self.entries()[0]

    async def rate_is(self, rate: float) -> None:
        await self.until(lambda: [entry.info.rate for entry in self.entries()] == [rate])

    async def talk(self, port: int, words: bytes = b"hello") -> bytes:
        """What the service answers."""

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(words)
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as stream:
                    return stream.read()

        answer: bytes = await deferToThread(talk)
        return answer


class BirthTests(BatchTestCase):
    """From the start of a program to its entry in the table."""

    def test_a_program_is_in_the_table_when_it_listens_and_gone_when_it_ends(
        self,
    ) -> Deferred[None]:
        async def scenario() -> None:
            told = self.directory / "begin"
            running = self.run_service(
                *("--flags", "S=yes L=no"), environment={"START_FILE": str(told)}
            )
            await self.until(lambda: b"is to listen" in running.said)
            # Looked for many times meanwhile.
            await deferLater(reactor, 0.3, lambda: None)
            self.assertEqual(self.entries(), [])
            told.touch()
            entry = await self.in_table()
            self.assertTrue(entry.info.stateful)
            self.assertEqual((entry.info.host, entry.info.time), ("127.0.0.1", 30))
            port = entry.info.port
            self.assertEqual(await self.talk(port), b"%d\nHELLO" % port)
            running.signal(signal.SIGTERM)
            self.assertEqual(await running.ended, 0, running.said)
            self.assertEqual(self.entries(), [])

        return Deferred.fromCoroutine(scenario())

    def test_the_port_is_of_the_pool_and_may_stand_among_the_arguments(self) -> Deferred[None]:
        port = free_port()

        async def scenario() -> None:
            command = (sys.executable, ECHO, "{port}")
            pool = f"{port}-{port}"
            running = self.run_service(
                "--port-pool", pool, command=command, environment={"PORT": "1"}
            )
            self.assertEqual((await self.in_table()).info.port, port)
            second = self.run_service("--port-pool", pool)
            self.assertEqual(await second.ended, 2)
            self.assertIn(b"no port", second.said)
            self.assertFalse(running.over)

        return Deferred.fromCoroutine(scenario())

    def test_the_end_of_the_program_is_its_own(self) -> Deferred[None]:
        async def scenario() -> None:
            for text, status in (("raise SystemExit(7)", 7), ("import os; os.kill(0, 11)", 139)):
                command = (sys.executable, "-S", "-c", text)
                # In a group of its own, so that it cannot mean us.
                running = self.run_service(command=command)
                self.assertEqual(await running.ended, status, running.said)

        return Deferred.fromCoroutine(scenario())

    def test_what_never_listens_or_cannot_be_registered_is_given_up(self) -> Deferred[None]:
        async def scenario() -> None:
            idle = self.run_service("--start", "0.5", command=("/bin/sleep", "100"))
            self.assertEqual(await idle.ended, 1)
            self.assertIn(b"does not listen", idle.said)
            nowhere = str(self.directory / "none")
            alone = self.run_service("--control", nowhere, "--register", "0.2")
            self.assertEqual(await alone.ended, 1)
            self.assertIn(b"no daemon answers", alone.said)
            missing = self.run_service(command=("/nonexistent",))
            self.assertEqual(await missing.ended, 2)
            self.assertIn(b"cannot be started", missing.said)

        return Deferred.fromCoroutine(scenario())

    def test_wrong_command_lines_are_refused(self) -> Deferred[None]:
        async def scenario() -> None:
            for options, command, reason in (
                ((), (), b"expected a command"),
                (("--path", "/x"), ("/bin/true",), b"--path"),
                (("--type", "HTTP"), ("/bin/true",), b"--path"),
                (("--port-pool", "9-1"), ("/bin/true",), b"expected 1 <= A <= B"),
                (("--lease", "0"), ("/bin/true",), b"1 to 3600"),
            ):
                running = self.run_service(*options, command=command)
                self.assertEqual(await running.ended, 2, running.said)
                self.assertIn(reason, running.said)

        return Deferred.fromCoroutine(scenario())


class LifeTests(BatchTestCase):
    """What becomes of it."""

    def test_a_drain_waits_for_the_clients_of_before(self) -> Deferred[None]:
        async def scenario() -> None:
            for number in (signal.SIGUSR1, signal.SIGXCPU):
                running = self.run_service()
                port = (await self.in_table()).info.port
                client = await dial(port, Talker(b"slow", stay=True))
                await client.hears(len(b"%d\nSLOW" % port))
                running.signal(number)
                await self.until(lambda: [e.penalty for e in self.entries()] == [100.0])
                await deferLater(reactor, 0.4, lambda: None)
                self.assertEqual((running.over, len(self.entries())), (False, 1))
                client.end()
                self.assertEqual(await running.ended, 0, running.said)
                self.assertIn(b"its clients are gone", running.said)
                self.assertEqual(self.entries(), [])
                await client.over

        return Deferred.fromCoroutine(scenario())

    def test_clients_that_stay_are_cut_off(self) -> Deferred[None]:
        async def scenario() -> None:
            running = self.run_service("--drain", "0.5")
            port = (await self.in_table()).info.port
            client = await dial(port, Talker(b"slow", stay=True))
            await client.hears(4)
            # A batch system may say it to the process and to its group.
            running.signal(signal.SIGTERM)
            running.signal(signal.SIGTERM)
            self.assertEqual(await running.ended, 0)
            self.assertIn(b"clients are cut off", running.said)
            await client.peer_end
            client.transport.abortConnection()
            await client.over

        return Deferred.fromCoroutine(scenario())

    def test_it_drains_before_the_time_limit(self) -> Deferred[None]:
        async def scenario() -> None:
            limit = int(reactor.seconds()) + 62
            running = self.run_service(
                "--before-limit", "1", environment={"SLURM_JOB_END_TIME": str(limit)}
            )
            # On a slow machine it does not even listen before that.
            self.assertEqual(await running.ended, 0)
            self.assertIn(b"Slurm ends this job in", running.said)
            self.assertIn(b"the time limit comes", running.said)

        return Deferred.fromCoroutine(scenario())

    def test_a_killed_one_leaves_the_table_and_no_program(self) -> Deferred[None]:
        async def scenario() -> None:
            running = self.run_service("--lease", "2")
            port = (await self.in_table()).info.port
            running.signal(signal.SIGKILL)
            self.assertEqual(await running.ended, -signal.SIGKILL)
            await self.until(lambda: not self.entries(), "gone")

            def refuses() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", port)) != 0

            await self.until(refuses, "ended")

        return Deferred.fromCoroutine(scenario())

    def test_a_program_that_does_not_answer_gets_no_clients_until_it_does(self) -> Deferred[None]:
        async def scenario() -> None:
            # It listens, but answers no request for a page.
            page = self.directory / "page"
            text = (
                "import http.server, os, sys, pathlib\n"
                "class Page(http.server.BaseHTTPRequestHandler):\n"
                "    def do_GET(self):\n"
                f"        there = pathlib.Path({str(page)!r}).exists()\n"
                "        self.send_response(200 if there else 500)\n"
                "        self.end_headers()\n"
                "http.server.ThreadingHTTPServer(\n"
                "    ('127.0.0.1', int(os.environ['PORT'])), Page).serve_forever()\n"
            )
            page.touch()
            running = self.run_service(
                *("--health", "0.1", "--health-path", "/", "--type", "HTTP", "--path", "/x"),
                command=(sys.executable, "-c", text),
            )
            await self.in_table()
            page.unlink()
            await self.rate_is(0.0)
            await self.until(lambda: b"does not answer, status 500" in running.said, "said so")
            page.touch()
            await self.rate_is(1000.0)
            running.signal(signal.SIGINT)
            self.assertEqual(await running.ended, 0)

        return Deferred.fromCoroutine(scenario())

    def test_capacity_enters_the_rate(self) -> Deferred[None]:
        async def scenario() -> None:
            path = self.directory / "capacity"
            path.write_text("8 0")
            running = self.run_service("--rate", "400", environment={"CAPACITY_FILE": str(path)})
            self.assertEqual((await self.in_table()).info.rate, 400.0)
            for text, rate in (("8 6", 100.0), ("8 8", 0.0), ("8 0", 400.0)):
                path.write_text(text)
                await self.rate_is(rate)
            self.assertNotIn(b"not posted", running.said)

        return Deferred.fromCoroutine(scenario())

    def test_it_outlives_its_daemon(self) -> Deferred[None]:
        async def scenario() -> None:
            # It renews its entry twice within that.
            self.run_service("--rate", "70", "--lease", "2")
            before = await self.in_table()
            await self.daemon.stopService()
            self.start_daemon()
            self.assertEqual(self.entries(), [])
            await self.site.ready()
            self.assertEqual(await self.in_table(), before)

        return Deferred.fromCoroutine(scenario())
