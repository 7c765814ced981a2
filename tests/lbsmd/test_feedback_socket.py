"""Penalties and posts through the daemon's real sockets, by its own tools and foreign users."""

from __future__ import annotations

import io
import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from gridnet.config import SiteConfig, SiteSection
from gridnet.lbsmd import feedback_tool, port_tool
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.feedback_socket import MAX_CONNECTIONS, MAX_LINE_OCTETS, FeedbackFactory
from gridnet.lbsmd.service import Daemon, make_lbsmd
from gridnet.site import Site
from tests.log_events import observe_log

DEFINITIONS = """\
:80
Alpha [0] STANDALONE :80
Beta [0,nobody] STANDALONE :81
"""


class DaemonCase(TestCase):
    """A daemon whose sockets anybody may reach."""

    timeout = 120

    def setUp(self) -> Any:
        place = tempfile.TemporaryDirectory(prefix="gridnet")
        self.addCleanup(place.cleanup)
        self.directory = Path(place.name)
        self.directory.chmod(0o755)
        (self.directory / "servrc.cfg").write_text(DEFINITIONS)
        self.keys: dict[str, Any] = {
            "servrc": "servrc.cfg",
            "control": str(self.directory / "control"),
            "feedback_socket": str(self.directory / ".lbsmd"),
            "ports_socket": str(self.directory / "ports"),
            "keep_penalties": "penalties.json",
            "load_seconds": 0,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in self.keys.items()]
        self.config = self.directory / "site.toml"
        self.config.write_text("\n".join(["[lbsmd]", *lines, ""]))
        self.events: list[LogEvent] = []
        observe_log(self, self.events.append)
        return self.start()

    def start(self) -> Any:
        """A daemon; the one of before has stopped."""
        section = SiteSection(address="10.0.0.1")
        self.site = Site(SiteConfig(section, {}, self.directory), reactor)
        daemon = make_lbsmd(LbsmdConfig(**self.keys), self.site)
        assert isinstance(daemon, Daemon)
        self.daemon = daemon
        daemon.startService()
        self.addCleanup(lambda: daemon.running and daemon.stopService())
        return self.site.ready()

    def call(self, main: Callable[..., int], *words: str) -> Deferred[tuple[int, str, str]]:
        """Status, output and errors of a tool, which blocks."""

        def run() -> tuple[int, str, str]:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                status = main([*words, "--config", str(self.config)])
            return status, out.getvalue(), err.getvalue()

        return deferToThread(run)

    def feedback(self, *words: str) -> Deferred[tuple[int, str, str]]:
        """``gridnet lbsm-feedback``."""
        return self.call(feedback_tool.main, *words)

    def as_nobody(self, script: str) -> Deferred[str]:
        """What a Python program prints that runs as another user; needs root."""
        if os.getuid() != 0:
            raise SkipTest("only root can be somebody else")
        entry = pwd.getpwnam("nobody")
        text = (
            "import os, socket, sys\n"
            "from gridnet.lbsmd import feedback_tool\n"
            f"os.setgid({entry.pw_gid}); os.setuid({entry.pw_uid})\n{script}"
        )

        def run() -> str:
            done = subprocess.run(
                [sys.executable, "-c", text],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            return done.stdout + done.stderr

        return deferToThread(run)

    def penalty(self, service: str) -> float:
        """In force."""
        (entry,) = self.site.table.entries(service)
        return entry.penalty

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what comes without an answer."""
        while not holds():
            await deferLater(reactor, 0.01)

    def logged(self, text: str) -> bool:
        """Whether some event says so."""
        return any(
            text in (str(event.get("reason", "")) + str(event.get("log_format", "")))
            for event in self.events
        )


class ToolTests(DaemonCase):
    """``gridnet lbsm-feedback`` and ``gridnet port``."""

    def test_a_penalty_is_set_told_and_ended(self) -> Deferred[None]:
        """With its reason, which the table tells on."""

        async def drive() -> None:
            status, out, err = await self.feedback("* ANY 100 120", "--reason", "disk\nswap")
            self.assertEqual((status, out, err), (0, "done for 2 servers of this host\n", ""))
            self.assertEqual((self.penalty("Alpha"), self.penalty("Beta")), (100.0, 100.0))
            told = self.daemon.answers.table({})["services"][0]["asked"]
            self.assertEqual((told["penalty"], told["penalty_reason"]), (100.0, "disk swap"))
            self.assertTrue(told["penalized_by"].endswith("@10.0.0.1"))
            await self.feedback("Alpha STANDALONE 0")
            self.assertEqual((self.penalty("Alpha"), self.penalty("Beta")), (0.0, 100.0))

        return Deferred.fromCoroutine(drive())

    def test_each_failure_has_its_status(self) -> Deferred[None]:
        """A bad argument tells the usage."""

        async def drive() -> None:
            status, _, err = await self.feedback("Alpha STANDALONE host 101")
            self.assertEqual(status, feedback_tool.BAD_ARGUMENT)
            self.assertIn("usage:", err)
            self.assertIn("0 to 100", err)
            status, _, err = await self.feedback()
            self.assertEqual(status, feedback_tool.BAD_ARGUMENT)
            status, _, err = await self.feedback("Alpha", "STANDALONE", "host", "-1")
            self.assertEqual(status, feedback_tool.BAD_ARGUMENT)
            status, _, err = await self.feedback("Gamma STANDALONE 5")
            self.assertEqual(status, feedback_tool.REFUSED)
            self.assertIn("no host of the site has such a server", err)
            status, _, err = await self.feedback("Alpha ANY 5", "--control", "/no/where")
            self.assertEqual(status, feedback_tool.NO_DAEMON)
            status, _, err = await self.feedback("Alpha ANY 5", "--socket", "/no/where")
            self.assertEqual(status, feedback_tool.NO_DAEMON)

        return Deferred.fromCoroutine(drive())

    def test_whoever_may_not_is_told_why(self) -> Deferred[None]:
        """By the credentials of the socket."""

        async def drive() -> None:
            control = str(self.directory / "control")
            script = f"print(feedback_tool.main(['{{}} ANY 50', '--control', {control!r}]))\n"
            said = await self.as_nobody(script.format("Alpha"))
            self.assertIn("nobody may not operate on Alpha of 10.0.0.1", said)
            self.assertTrue(said.startswith(str(feedback_tool.REFUSED)), said)
            said = await self.as_nobody(script.format("Beta"))
            self.assertTrue(said.startswith("done for 1 server of this host"), said)
            self.assertEqual((self.penalty("Alpha"), round(self.penalty("Beta"))), (0.0, 50))

        return Deferred.fromCoroutine(drive())

    def test_penalties_outlast_the_daemon(self) -> Deferred[None]:
        """What was acknowledged is there after the next start."""

        async def drive() -> None:
            await self.feedback("Alpha STANDALONE 70 600")
            await self.daemon.stopService()
            self.assertEqual(len(await self.start()), 1)
            self.assertEqual(self.penalty("Alpha"), 70.0)

        return Deferred.fromCoroutine(drive())

    def test_a_port_is_posted(self) -> Deferred[None]:
        """And a post that does not count says so."""

        async def drive() -> None:
            self.assertEqual(await self.call(port_tool.main, "80", "10", "6", "4"), (0, "", ""))
            (entry,) = self.site.table.entries("Alpha")
            self.assertEqual(entry.info.rate, 400.0)
            status, _, err = await self.call(port_tool.main, "81", "10", "6", "4")
            self.assertEqual(status, port_tool.REFUSED)
            self.assertIn("not monitored", err)
            status, _, err = await self.call(port_tool.main, "80", "10", "60", "4")
            self.assertEqual(status, port_tool.REFUSED)
            self.config.write_text("[lbsmd]\nports_socket = ''\n")
            status, _, err = await self.call(port_tool.main, "80", "10", "6", "4")
            self.assertEqual(status, port_tool.USAGE)

        return Deferred.fromCoroutine(drive())


class DialectTests(DaemonCase):
    """The feedback socket, as the toolkit's clients use it."""

    def test_a_line_without_an_answer(self) -> Deferred[None]:
        """The connection is closed, whatever it said."""

        async def drive() -> None:
            status, out, err = await self.feedback(
                "Alpha STANDALONE :80 30 600", "--socket", str(self.directory / ".lbsmd")
            )
            self.assertEqual((status, out, err), (0, "", ""))
            await self.until(lambda: self.penalty("Alpha") == 30.0)
            self.assertEqual(await self.say(b"0 Alpha STANDALONE :0 20\n"), b"")
            await self.until(lambda: round(self.penalty("Alpha")) == 20)
            self.assertEqual(await self.say(b"nonsense\nmore\n"), b"")
            self.assertTrue(self.logged("expected UID"))

        return Deferred.fromCoroutine(drive())

    def say(self, octets: bytes) -> Deferred[bytes]:
        """What the socket answers."""

        def run() -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(str(self.directory / ".lbsmd"))
                connection.sendall(octets)
                return connection.recv(100)

        return deferToThread(run)

    def test_who_they_say_they_are_does_not_count(self) -> Deferred[None]:
        """But who they are; a refusal is logged."""

        async def drive() -> None:
            path = str(self.directory / ".lbsmd")
            await self.as_nobody(
                f"s = socket.socket(socket.AF_UNIX); s.connect({path!r})\n"
                "s.sendall(b'0 Alpha STANDALONE :0 90\\n')\n"
            )
            await self.until(lambda: self.logged("nobody may not operate on Alpha"))
            self.assertEqual(self.penalty("Alpha"), 0.0)

        return Deferred.fromCoroutine(drive())


class ProtocolTests(SynchronousTestCase):
    """What a client can do to the socket."""

    def connect(self, factory: FeedbackFactory) -> StringTransport:
        """A client."""
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        protocol.setTimeout = lambda seconds: None  # type: ignore[method-assign]
        transport = StringTransport()
        protocol.makeConnection(transport)
        self.protocol = protocol
        return transport

    def test_only_the_first_line_counts(self) -> None:
        """And only once it is whole."""
        asked: list[tuple[bytes, int]] = []
        factory = FeedbackFactory(None)  # type: ignore[arg-type]
        self.patch(factory, "take", lambda line, uid: asked.append((line, uid)))
        transport = self.connect(factory)
        for octets in (b"1 A ANY", b" :0 5\n1 B ANY :0 6\n"):
            self.protocol.dataReceived(octets)
        self.assertEqual((asked, transport.disconnecting), ([(b"1 A ANY :0 5", -1)], True))

    def test_long_lines_and_many_clients_are_refused(self) -> None:
        """Bounded, both."""
        factory = FeedbackFactory(None)  # type: ignore[arg-type]
        transport = self.connect(factory)
        self.protocol.dataReceived(b"x" * (MAX_LINE_OCTETS + 1))
        self.assertTrue(transport.disconnecting)
        for _ in range(MAX_CONNECTIONS - 1):
            self.connect(factory)
        self.assertIsNone(factory.buildProtocol(None))
