"""The capacity behind ports: posts, who may, and what follows."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from gridnet.errors import ConfigError
from gridnet.lbsmd.authority import Authority
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.orders import Asker
from gridnet.lbsmd.port_capacity import PortCapacity, PortSocket, listens
from gridnet.port_posts import (
    MAX_POST_OCTETS,
    PortClient,
    Post,
    PostError,
    format_post,
    parse_post,
)
from gridnet.table.model import ServiceTable
from tests.hypothesis_profile import examples
from tests.lbsmd.support import loaded
from tests.log_events import observe_log

DEFINITIONS = """\
:80
:81
:82
:83
:84
A STANDALONE :80
B STANDALONE 10.0.0.1:80
C STANDALONE 10.9.9.9:80
D [5,nobody] STANDALONE :81 R=0.005
E STANDALONE 127.0.0.1:82
"""


class PostTests(SynchronousTestCase):
    """The datagram."""

    def test_a_post_reads_back(self) -> None:
        """Whole and fractional figures."""
        for post in (Post(80, 100, 30, 70), Post(65535, 0.5, 0.25, 0), Post(1, 1e9, 5, 1e9)):
            self.assertEqual(parse_post(format_post(post)), post)
        self.assertEqual(format_post(Post(80, 100, 30.5, 0)), b"PORT 80 100 30.5 0\n")
        self.assertEqual(parse_post(b"PORT 80 100 30 70"), Post(80, 100, 30, 70))

    def test_what_makes_no_sense_is_refused(self) -> None:
        """With what was expected."""
        for octets, reason in (
            (b"", "PORT number"),
            (b"\xff", "ASCII"),
            (b"PORT 80 100 30", "PORT number"),
            (b"PORT 80 100 30 70 1", "PORT number"),
            (b"port 80 100 30 70", "PORT number"),
            (b"PORT 0 1 0 1", "1 to 65535"),
            (b"PORT 65536 1 0 1", "1 to 65535"),
            (b"PORT 80 0 0 0", "more than 0"),
            (b"PORT 80 5 6 0", "used 6"),
            (b"PORT 80 5 0 6", "free 6"),
            (b"PORT 80 -5 0 6", "PORT number"),
            (b"PORT 80 1e3 0 6", "PORT number"),
        ):
            self.assertIn(reason, str(self.assertRaises(PostError, parse_post, octets)))

    @examples(500)
    @given(st.one_of(st.binary(max_size=60), st.from_regex(rb"\APORT [0-9. -]{0,40}\n?\Z")))
    def test_any_octets_are_a_post_or_an_error(self, octets: bytes) -> None:
        """What is taken reads back the same."""
        try:
            post = parse_post(octets)
        except PostError:
            return
        self.assertEqual(parse_post(format_post(post)), post)
        self.assertTrue(0.0 <= post.availability <= 1.0)

    def test_availability_comes_in_half_percents(self) -> None:
        """And is 0 only when nothing is free."""
        for free, wanted in ((1000, 1.0), (500, 0.5), (503, 0.505), (1, 0.005), (0, 0.0)):
            self.assertEqual(Post(80, 1000, 0, free).availability, wanted)


class CapacityCase(SynchronousTestCase):
    """A host with monitored ports."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.table = ServiceTable()
        self.local = LocalServices(self.table, "10.0.0.1")
        self.local.load(loaded(DEFINITIONS))
        self.capacity = PortCapacity(self.local, self.clock, 60.0)
        self.capacity.startService()
        self.addCleanup(self.capacity.stopService)

    def post(self, port: int, free: float) -> None:
        """Of a total of 100."""
        self.capacity.take(Post(port, 100, 100 - free, free))

    def rate(self, service: str) -> float:
        """In force."""
        (entry,) = self.table.entries(service)
        return entry.info.rate


class CapacityTests(CapacityCase):
    """What follows from posts."""

    def test_it_rates_the_servers_on_the_port(self) -> None:
        """Of this host, by whichever of its addresses."""
        self.post(80, 40)
        self.assertEqual([self.rate(each) for each in "ABCE"], [400.0, 400.0, 1000.0, 1000.0])
        self.post(82, 50)
        self.assertEqual(self.rate("E"), 500.0)

    def test_nothing_free_is_down(self) -> None:
        """And something free is up again."""
        self.post(80, 0)
        self.assertEqual((self.rate("A"), self.rate("C")), (0.0, 1000.0))
        self.post(80, 0.6)
        self.assertEqual(self.rate("A"), 5.0)
        self.post(80, 100)
        self.assertEqual(self.rate("A"), 1000.0)

    def test_a_standby_server_stays_one(self) -> None:
        """As long as anything is free."""
        self.post(81, 1)
        self.assertEqual(self.rate("D"), 0.001)

    def test_small_changes_are_not_told(self) -> None:
        """A rate of a whole site does not change with every connection."""
        self.post(80, 50)
        serial = self.table.serial
        for free in (51, 52, 53, 54, 46):
            self.post(80, free)
        self.assertEqual(self.table.serial, serial)
        self.post(80, 45)
        self.assertEqual(self.rate("A"), 450.0)

    def test_the_load_message_has_the_first_four_ports(self) -> None:
        """Without a post, nothing is in use."""
        self.post(81, 25)
        self.post(84, 5)
        self.assertEqual(self.capacity.ports(), ((80, 0.0), (81, 0.75), (82, 0.0), (83, 0.0)))

    def test_posts_grow_old(self) -> None:
        """The port is then as if none had come."""
        self.post(80, 0)
        self.clock.advance(30)
        self.post(81, 50)
        self.clock.advance(29)
        self.assertEqual(self.rate("A"), 0.0)
        self.clock.advance(1)
        self.assertEqual(self.rate("A"), 1000.0)
        self.assertEqual(list(self.capacity.facts()["ports"]), ["81"])
        self.clock.advance(30)
        self.assertEqual(self.capacity.facts()["ports"], {})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_monitored_ports_count(self) -> None:
        """Those that are monitored no longer are forgotten."""
        error = self.assertRaises(PostError, self.post, 90, 5)
        self.assertIn("not monitored", str(error))
        self.post(80, 0)
        self.local.load(loaded("A STANDALONE :80\n"))
        self.assertEqual(self.rate("A"), 1000.0)

    def test_a_new_server_on_the_port_is_rated_too(self) -> None:
        """As soon as it is defined."""
        self.post(80, 50)
        self.local.load(loaded(DEFINITIONS + "F STANDALONE :80\n"))
        self.assertEqual((self.rate("A"), self.rate("F")), (500.0, 500.0))


class SocketTests(TestCase):
    """Real datagrams."""

    timeout = 120

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="gridnet")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "ports"
        os.chmod(directory.name, 0o755)
        self.table = ServiceTable()
        self.local = LocalServices(self.table, "10.0.0.1")
        self.local.load(loaded(DEFINITIONS))
        self.capacity = PortCapacity(self.local, reactor)
        self.listening: set[tuple[int, int]] = set()
        self.socket = self.make()
        for each in (self.capacity, self.socket):
            each.startService()
            self.addCleanup(each.stopService)

    def make(self) -> PortSocket:
        """A socket at the path."""
        return PortSocket(
            self.path,
            0o666,
            self.capacity,
            self.local,
            Authority(self.local, "daemon"),
            reactor,
            maybeDeferred,
            lambda uid, port: (uid, port) in self.listening,
        )

    def post(self, *figures: float, seconds: float = 60.0) -> Deferred[Any]:
        """As a server does, which blocks."""

        def run() -> None:
            with PortClient(self.path, seconds) as client:
                client.post(*figures)  # type: ignore[arg-type]

        return deferToThread(run)

    def post_as(self, user: str, *figures: object) -> Deferred[str]:
        """What another user's client says; needs root."""
        if os.getuid() != 0:
            raise SkipTest("only root can be somebody else")
        entry = pwd.getpwnam(user)
        script = (
            "import os\n"
            "from gridnet.port_posts import PortClient, PostError\n"
            f"os.setgid({entry.pw_gid}); os.setuid({entry.pw_uid})\n"
            "try:\n"
            f"    PortClient({str(self.path)!r}).post{figures!r}\n"
            "except PostError as error:\n"
            "    print(error)\n"
        )

        def run() -> str:
            done = subprocess.run(
                [sys.executable, "-c", script],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            return done.stdout.strip()

        return deferToThread(run)

    def rate(self, service: str) -> float:
        """In force."""
        (entry,) = self.table.entries(service)
        return entry.info.rate

    def test_a_server_posts_and_hears_the_answer(self) -> Deferred[None]:
        """Or why it does not count."""

        async def drive() -> None:
            await self.post(80, 10, 6, 4)
            self.assertEqual(self.rate("A"), 400.0)
            error = await self.assertFailure(self.post(99, 10, 6, 4), PostError)
            self.assertIn("not monitored", str(error))
            error = await self.assertFailure(self.post(80, 10, 6, 40), PostError)
            self.assertIn("expected 0 to the total", str(error))

        return Deferred.fromCoroutine(drive())

    def test_a_server_that_does_not_wait_is_not_answered(self) -> Deferred[None]:
        """Its post counts all the same."""

        async def drive() -> None:
            await self.post(80, 10, 6, 2, seconds=0.0)
            await self.post(81, 10, 5, 5)  # comes after it
            self.assertEqual(self.rate("A"), 200.0)

        return Deferred.fromCoroutine(drive())

    def test_datagrams_that_make_no_sense_cost_nothing(self) -> Deferred[None]:
        """Also very long ones."""

        async def drive() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.connect(str(self.path))
                for octets in (b"", b"\0", b"PORT 80 1 1 0" + b" " * MAX_POST_OCTETS, b"x" * 5000):
                    client.send(octets)
            await self.post(81, 10, 5, 5)
            self.assertEqual((self.capacity.refused, self.rate("A")), (4, 1000.0))

        return Deferred.fromCoroutine(drive())

    def test_a_flood_is_refused_without_flooding_the_log(self) -> Deferred[None]:
        """And what comes after it is heard."""
        events: list[LogEvent] = []
        observe_log(self, events.append)

        def flood() -> int:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.connect(str(self.path))
                for _ in range(2000):
                    client.send(b"PORT 9999 1 1 0")
            return 2000

        async def drive() -> None:
            sent = await deferToThread(flood)
            await self.post(81, 10, 5, 5)
            self.assertEqual(self.capacity.refused, sent)
            told = [each for each in events if "is refused" in str(each.get("log_format"))]
            self.assertLess(len(told), 100)

        return Deferred.fromCoroutine(drive())

    def test_who_may(self) -> Deferred[None]:
        """Users of a server on that port, and whose socket listens there; nobody else."""
        nobody = pwd.getpwnam("nobody").pw_uid

        async def drive() -> None:
            self.assertEqual(await self.post_as("nobody", 81, 10, 5, 5), "")
            reason = await self.post_as("nobody", 80, 10, 10, 0)
            self.assertEqual(reason, "user nobody may not post the capacity of port 80")
            self.assertEqual(self.rate("A"), 1000.0)
            # What was found out is remembered for a while, in the kernel's words.
            reason = await self.post_as("nobody", 80, 10, 10, 0)
            self.assertIn(f"user {nobody} may not", reason)
            self.listening.add((nobody, 82))
            self.assertEqual(await self.post_as("nobody", 82, 10, 10, 0), "")
            self.assertEqual(self.rate("E"), 0.0)

        return Deferred.fromCoroutine(drive())

    def test_one_user_cannot_fill_the_queue(self) -> Deferred[None]:
        """While it is being found out whether he may, his further posts are refused."""
        asked: list[Deferred[Any]] = []

        def never(function: Any, *arguments: Any) -> Deferred[Any]:
            asked.append(Deferred())
            return asked[-1]

        self.socket._run_in_thread = never

        async def drive() -> None:
            posts = [self.post_as("nobody", 80, 10, 5, 5) for _ in range(2)]
            done = await DeferredList(posts, fireOnOneCallback=True)
            self.assertIn("post again", str(done))
            self.assertEqual(len(asked), 1)
            await self.post(81, 10, 5, 5)
            asked[0].callback(Asker("nobody"))
            asked[1].callback(False)
            await DeferredList(posts)
            self.assertEqual(self.rate("A"), 1000.0)

        return Deferred.fromCoroutine(drive())

    def test_a_second_daemon_is_refused_and_a_dead_ones_socket_taken_over(self) -> None:
        """One path, one daemon."""
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o666)
        error = self.assertRaises(ConfigError, self.make().startService)
        self.assertIn("lbsmd.ports_socket", str(error))
        self.socket.stopService()
        self.assertFalse(self.path.exists())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
            left.bind(str(self.path))
        other = self.make()
        other.startService()
        other.stopService()
        self.socket.startService()

    def test_without_a_daemon_the_client_says_so(self) -> Deferred[None]:
        """And does not hang."""

        async def drive() -> None:
            self.socket.stopService()
            error = await self.assertFailure(self.post(80, 1, 0, 1), PostError)
            self.assertIn("no daemon answers", str(error))
            self.socket.startService()

        return Deferred.fromCoroutine(drive())


class ListeningTests(SynchronousTestCase):
    """Whose socket listens."""

    def test_the_kernel_knows(self) -> None:
        """IPv4 and IPv6; a connected socket is no listening one."""
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as server:
                server.bind((address, 0))
                port = server.getsockname()[1]
                self.assertFalse(listens(os.getuid(), port))
                server.listen()
                self.assertTrue(listens(os.getuid(), port))
                self.assertFalse(listens(os.getuid() + 1, port))
