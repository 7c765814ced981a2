"""Forwarding: decisions, the chain of two services, and the original's delivery daemon."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorUNIX
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.config import structure
from gridnet.errors import ConfigError
from gridnet.lbproxy import frames
from gridnet.lbproxy.book import JobBook
from gridnet.lbproxy.config import ForwardConfig, LbproxyConfig
from gridnet.lbproxy.events import parse
from gridnet.lbproxy.forward import check_endpoints, endpoint_string
from gridnet.lbproxy.forwarding import BackOff, Queue, SpooledEvent, Verdict, judge
from gridnet.lbproxy.frames import OK, FrameReader, Reply
from gridnet.lbproxy.handover import append_line, send_notice
from gridnet.lbproxy.store import QueryTimeout
from tests.hypothesis_profile import examples
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.running import RunningProxy
from tests.lbproxy.vectors import line
from tests.mirror.certificates import Authority

LATER = Reply(700, 5, "later")
SERVER = "lb.example.org:9000"


async def until(is_enough: Callable[[], Any]) -> None:
    """Return once something has come true."""
    while not is_enough():
        waiting: Deferred[None] = Deferred()
        reactor.callLater(0.01, waiting.callback, None)
        await waiting


class JudgeTests(SynchronousTestCase):
    """What replies of a server mean."""

    def test_verdicts(self) -> None:
        """Taken, never to be taken, or later."""
        for major, minor, verdict in (
            (0, 0, Verdict.DELIVERED),
            (400, 1401, Verdict.DROPPED),
            (400, 0, Verdict.DROPPED),
            (600, 0, Verdict.DROPPED),
            (700, 2, Verdict.DROPPED),
            (700, 17, Verdict.LATER),
            (700, 28, Verdict.LATER),
            (200, 0, Verdict.LATER),
            (800, 5, Verdict.LATER),
            (900, 0, Verdict.LATER),
        ):
            self.assertIs(judge(Reply(major, minor, "")), verdict)

    def test_back_off(self) -> None:
        """Pauses double up to their bound, shortened by chance, and begin again."""
        back_off = BackOff(1.0, 8.0, random.Random(1))
        pauses = [back_off.pause() for _ in range(8)]
        for pause, base in zip(pauses, (1, 2, 4, 8, 8, 8, 8, 8), strict=True):
            self.assertTrue(base / 2 <= pause <= base)
        back_off.reset()
        self.assertLessEqual(back_off.pause(), 1.0)

    def test_endpoints(self) -> None:
        """The port of the job id plus one, unless routed elsewhere."""
        config = ForwardConfig(routes={"LB:9000": "unix:/run/x"})
        self.assertEqual(endpoint_string(config, "lb:9000"), "unix:/run/x")
        self.assertEqual(endpoint_string(config, "other:9002"), "tcp:other:9003")
        self.assertEqual(endpoint_string(config, "[::1]:9000"), r"tcp:\:\:1:9001")
        config = ForwardConfig(server="tls:{host}:{port}")
        self.assertEqual(endpoint_string(config, "lb:1"), "tls:lb:2")

    def test_endpoints_that_are_none(self) -> None:
        """Where servers are is looked at before the first event waits for one."""
        check_endpoints(ForwardConfig(), MemoryReactorClock())
        absent = "tls:{host}:{port}:trustRoots=/absent"
        for server in ("garbage", "tcp:{host}:{port", "tcp:{where}:1", "tcp:{}:1", absent):
            with self.assertRaisesRegex(ConfigError, "forward.server: expected an endpoint"):
                check_endpoints(ForwardConfig(server=server), MemoryReactorClock())
        config = ForwardConfig(routes={"lb:9000": "garbage", "LB2:9000": "tcp:x:1"})
        with self.assertRaisesRegex(ConfigError, "forward.routes.lb:9000: expected an endpoint"):
            check_endpoints(config, MemoryReactorClock())

    def test_settings_that_are_none(self) -> None:
        """Names of servers and paths are refused where they could never be found again."""
        for settings in (
            {"routes": {"lb": "tcp:x:1"}},
            {"local_servers": ["https://lb:9000/"]},
            {"spool_prefix": ""},
            {"spool_prefix": "dglogd.log"},
            {"notice_socket": "/" + "x" * 107},
        ):
            (key,) = settings
            with self.assertRaisesRegex(ConfigError, f"lbproxy.forward.{key}: expected"):
                structure(LbproxyConfig, {"forward": settings}, "lbproxy")


class QueueTests(SynchronousTestCase):
    """Order, window and held jobs."""

    def make(self, window: int) -> Queue:
        return Queue(window, 1.0, 8.0, random.Random(1), set())

    def events(self, *jobs: int) -> list[SpooledEvent]:
        return [SpooledEvent(number, one, b"") for number, one in enumerate(jobs, 1)]

    def test_one_of_a_job_at_a_time(self) -> None:
        """Up to the window, never two of one job, oldest first."""
        queue = self.make(3)
        queue.add(self.events(1, 1, 2, 3, 4, 2))
        self.assertEqual([one.position for one in queue.next_to_send()], [1, 3, 4])
        self.assertEqual(queue.next_to_send(), [])
        queue.answered(OK, 0)
        self.assertEqual([one.position for one in queue.next_to_send()], [2])

    def test_later(self) -> None:
        """A job that is wanted later waits with all its events; the others go on."""
        queue = self.make(1)
        spool = self.events(1, 2, 1, 2)
        queue.add(spool)
        queue.next_to_send()
        one, verdict = queue.answered(LATER, 100.0)
        self.assertEqual((one.position, verdict), (1, Verdict.LATER))
        self.assertEqual(queue.held_jobs, [1])
        wakes = queue.wakes_at
        assert wakes is not None
        self.assertTrue(100.5 <= wakes <= 101)
        for position in (2, 4):
            self.assertEqual([one.position for one in queue.next_to_send()], [position])
            queue.answered(OK, 100.0)
        self.assertEqual(queue.next_to_send(), [])
        queue.release(100.0)
        self.assertEqual(queue.held_jobs, [1])
        queue.release(wakes)
        self.assertEqual((queue.held_jobs, queue.read_through), ([], 0))
        queue.add(spool)
        self.assertEqual([one.position for one in queue.next_to_send()], [1])

    @given(
        st.lists(st.integers(1, 4), min_size=1, max_size=25),
        st.lists(st.sampled_from(["ok", "ok", "ok", "later", "lost"]), max_size=60),
        st.integers(1, 5),
    )
    @examples(200)
    def test_nothing_is_lost_or_turned_round(
        self, jobs: list[int], faults: list[str], window: int
    ) -> None:
        """Whatever happens on the way, the server first hears of a job's events in their order."""
        queue = self.make(window)
        spool = {one.position: one for one in self.events(*jobs)}
        heard: list[SpooledEvent] = []
        on_the_way: list[SpooledEvent] = []
        now = 0.0
        steps = iter(faults)
        for _ in range(2000):
            if not spool and not on_the_way:
                break
            held = queue.held_jobs
            page = [
                one
                for one in spool.values()
                if one.position > queue.read_through and one.job not in held
            ]
            queue.add(page[:4])
            on_the_way += queue.next_to_send()
            self.assertLessEqual(len(on_the_way), window)
            self.assertEqual(len({one.job for one in on_the_way}), len(on_the_way))
            what = next(steps, "ok")
            if what == "lost":
                # The server may have taken some of what was on the way.
                heard += [one for one in on_the_way[: len(on_the_way) // 2] if one not in heard]
                on_the_way = []
                queue.restart()
            elif on_the_way:
                one = on_the_way.pop(0)
                reply = OK if what == "ok" else LATER
                if reply is OK and one not in heard:
                    heard.append(one)
                found, verdict = queue.answered(reply, now)
                self.assertEqual(found, one)
                if verdict is Verdict.DELIVERED:
                    del spool[one.position]
            now += 0.7
            queue.release(now)
        self.assertEqual(spool, {})
        self.assertEqual(sorted(one.position for one in heard), list(range(1, len(jobs) + 1)))
        for number in set(jobs):
            positions = [one.position for one in heard if one.job == number]
            self.assertEqual(positions, sorted(positions))


class _FakeServer(Protocol):
    """Answers store messages as it is told to."""

    factory: _FakeServerFactory
    transport: Any

    def connectionMade(self) -> None:
        self.reader = FrameReader(1 << 20)
        self.factory.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        for body in self.reader.receive(data):
            event = parse(frames.event_line(body))
            replies = self.factory.replies
            reply = replies.pop(0) if replies else OK
            if reply is None:
                assert self.transport is not None
                self.transport.loseConnection()
                return
            self.factory.heard.append((event.job_id.unique, event.seqcode[:9], reply.ok))
            assert self.transport is not None
            self.transport.write(frames.encode_reply(reply))


class _FakeServerFactory(Factory):
    protocol: Any = _FakeServer
    noisy = False

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, bool]] = []
        self.replies: list[Reply | None] = []
        self.connections: list[_FakeServer] = []


class DelivererTests(TestCase):
    """The built-in deliverer against a server that misbehaves."""

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        self.server = _FakeServerFactory()
        self.proxy = RunningProxy()
        self.path = str(self.proxy.directory / "server.sock")
        forward = ForwardConfig(
            mode="deliver",
            routes={SERVER: f"unix:{self.path}"},
            server=f"unix:{self.proxy.directory}/{{host}}.sock",
            max_servers=3,
            retry_seconds=0.02,
            max_retry_seconds=0.05,
            window=4,
        )
        self.proxy.config = evolve(self.proxy.config, forward=forward)
        self.port: Any = None
        return self.proxy.start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def work() -> None:
            await self.proxy.stop(forget=False)
            if self.port is not None:
                await self.port.stopListening()
            self.proxy.forget()
            for connection in self.server.connections:
                connection.transport.abortConnection()

        return Deferred.fromCoroutine(work())

    def listen(self) -> None:
        self.port = IReactorUNIX(reactor).listenUNIX(self.path, self.server)

    async def happen(self, name: str, count: int, first: int = 1) -> None:
        for number in range(first, first + count):
            if number == 1:
                text = line("RegJob", REGISTER, job_id=job(name))
            else:
                text = line("Purge", job_id=job(name), seqcode=f"UI{number}")
            self.assertEqual(await self.proxy.log(text), OK)

    async def spool_is_empty(self) -> None:
        while True:
            (count,) = await self.proxy.service.book.read(
                lambda reader: reader.execute("SELECT count(*) FROM spool").fetchone()
            )
            if not count:
                return
            await until(lambda: True)
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.01, waiting.callback, None)
            await waiting

    def good(self, name: str) -> list[str]:
        return [code for unique, code, ok in self.server.heard if unique == name and ok]

    def run_async(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    def codes(self, count: int) -> list[str]:
        return [f"UI={number:06d}" for number in range(1, count + 1)]

    def test_says_once_that_a_server_is_away(self) -> Deferred[None]:
        """However often it is tried, each attempt is not worth a line."""

        async def work() -> None:
            await self.happen("a", 1)
            forwarder = self.proxy.service._forwarder
            assert forwarder is not None
            counts = forwarder.counts
            await until(lambda: counts.failures)
            with capturedLogs() as logged:
                await until(lambda: counts.failures >= 4)
            told = [formatEvent(one) for one in logged if one["log_level"] > LogLevel.debug]
            self.assertEqual(told, [])

        return self.run_async(work())

    def test_a_server_that_comes_late(self) -> Deferred[None]:
        """Events wait, the client does not; all arrive in order once the server is there."""

        async def work() -> None:
            await self.happen("a", 5)
            await self.happen("b", 5)
            await until(lambda: self.proxy.forwarder.counts.failures >= 2)
            self.assertIn(SERVER, self.proxy.forwarder.facts()["faults"])
            self.listen()
            await self.spool_is_empty()
            self.assertEqual((self.good("a"), self.good("b")), (self.codes(5), self.codes(5)))
            self.assertEqual(self.proxy.forwarder.facts()["faults"], {})

        return self.run_async(work())

    def test_a_server_that_goes(self) -> Deferred[None]:
        """Lost connections cost nothing but a repetition."""

        async def work() -> None:
            self.listen()
            self.server.replies = [OK, None, OK, None, None, OK, OK, None]
            await self.happen("a", 12)
            await self.spool_is_empty()
            self.assertEqual(self.good("a"), self.codes(12))

        return self.run_async(work())

    def test_one_job_is_wanted_later(self) -> Deferred[None]:
        """Its events keep their order; another job does not wait for it."""

        async def work() -> None:
            await self.happen("a", 1)
            self.server.replies = [LATER] * 3
            self.listen()
            await until(lambda: len(self.server.heard) >= 1)
            await self.happen("a", 5, first=2)
            await self.happen("b", 3)
            await self.spool_is_empty()
            self.assertEqual((self.good("a"), self.good("b")), (self.codes(6), self.codes(3)))
            self.assertGreaterEqual(self.proxy.forwarder.counts.retried, 1)

        return self.run_async(work())

    def test_refused_events_are_dropped(self) -> Deferred[None]:
        """What the server will never take does not hold up the rest."""

        async def work() -> None:
            self.server.replies = [OK, Reply(600, 0, "no"), Reply(700, 2, "who?"), OK]
            self.listen()
            await self.happen("a", 5)
            await self.spool_is_empty()
            self.assertEqual(self.proxy.forwarder.counts.dropped, 2)
            self.assertEqual(len(self.good("a")), 3)

        return self.run_async(work())

    def test_a_silent_server(self) -> Deferred[None]:
        """No reply in time is a lost connection."""

        async def work() -> None:
            self.server.protocol = _Silent
            forwarder = self.proxy.forwarder
            forwarder.config = evolve(forwarder.config, reply_timeout_seconds=0.1)
            self.listen()
            await self.happen("a", 1)
            await until(lambda: len(self.server.connections) >= 2)
            # A slow machine may be late with a reply as well, so it may be heard of again.
            self.server.protocol = _FakeServer
            await self.spool_is_empty()
            self.assertEqual(set(self.good("a")), set(self.codes(1)))

        return self.run_async(work())

    def test_many_servers(self) -> Deferred[None]:
        """Few are dealt with at once; those that do not answer hold up none that do."""

        async def work() -> None:
            forwarder = self.proxy.forwarder
            self.listen()
            await self.happen("a", 1)
            for number in range(12):
                text = line(
                    "RegJob", REGISTER, job_id=f"https://away{number}.example.org:9000/n{number}"
                )
                self.assertEqual(await self.proxy.log(text), OK)
                self.assertLessEqual(len(forwarder._deliverers), 3)
            await self.happen("a", 5, first=2)
            await until(lambda: self.good("a") == self.codes(6))
            facts = forwarder.facts()
            # The good one may have everything by now.
            self.assertIn(facts["servers at work"] + facts["servers waiting"], (12, 13))
            await until(lambda: len(forwarder.facts()["faults"]) == 12)
            for server in list(facts["faults"]):
                self.assertTrue(server.startswith("away"))

        return self.run_async(work())

    def test_servers_that_have_all(self) -> Deferred[None]:
        """One that has everything and has closed is no longer in memory."""

        async def work() -> None:
            forwarder = self.proxy.forwarder
            self.listen()
            await self.happen("a", 3)
            await self.spool_is_empty()
            for connection in list(self.server.connections):
                connection.transport.loseConnection()
            await until(lambda: not forwarder._deliverers)
            await self.happen("a", 2, first=4)
            await self.spool_is_empty()
            self.assertEqual(self.good("a"), self.codes(5))

        return self.run_async(work())

    def test_a_restart(self) -> Deferred[None]:
        """What waited goes on after the service was stopped and started."""

        async def work() -> None:
            await self.happen("a", 4)
            await self.proxy.stop(forget=False)
            self.listen()
            await self.proxy.start()
            await self.spool_is_empty()
            self.assertEqual(self.good("a"), self.codes(4))

        return self.run_async(work())

    def test_a_spool_that_cannot_be_read(self) -> Deferred[None]:
        """What waited is brought once the store can be read again."""

        async def work() -> None:
            await self.happen("a", 2)
            await self.proxy.stop(forget=False)
            self.listen()
            read, faults = JobBook.read, [QueryTimeout("slow"), QueryTimeout("slow")]

            def refuse(book: JobBook, reading: Any) -> Deferred[Any]:
                return fail(faults.pop()) if faults else read(book, reading)

            self.patch(JobBook, "read", refuse)
            await self.proxy.start()
            await until(lambda: not faults)
            await self.spool_is_empty()
            self.assertEqual(self.good("a"), self.codes(2))

        return self.run_async(work())

    def test_stopped_at_once(self) -> Deferred[None]:
        """A stop while the spool is being read is no fault."""

        async def work() -> None:
            for _ in range(5):
                await self.proxy.stop(forget=False)
                await self.proxy.start()

        return self.run_async(work())


class _Silent(_FakeServer):
    def dataReceived(self, data: bytes) -> None:
        """Say nothing."""


class ChainTests(TestCase):
    """A proxy in front of a full server, both of them ours."""

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        async def work() -> None:
            self.server = RunningProxy(
                LbproxyConfig(role="server", store_endpoint="tcp:0:interface=127.0.0.1")
            )
            await self.server.start()
            address = self.server.site.addresses["lbproxy"]["store_address"]
            port = address.rpartition(":")[2]
            self.proxy = RunningProxy(
                LbproxyConfig(
                    keep_final_seconds=0.0,
                    forward=ForwardConfig(
                        mode="deliver", routes={SERVER: f"tcp:127.0.0.1:{port}"}, window=16
                    ),
                )
            )
            await self.proxy.start()

        return Deferred.fromCoroutine(work())

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def work() -> None:
            await self.proxy.stop()
            await self.server.stop()

        return Deferred.fromCoroutine(work())

    def test_end_to_end(self) -> Deferred[None]:
        """Every event arrives once; the proxy forgets final jobs, the server keeps them."""

        async def work() -> None:
            steps = [
                line("RegJob", REGISTER, job_id=job("a")),
                line("Running", {"NODE": "n"}, job_id=job("a"), seqcode="UI2"),
                line(
                    "Done",
                    {"STATUS_CODE": "OK", "EXIT_CODE": "0"},
                    job_id=job("a"),
                    seqcode="UI3",
                    source="LogMonitor",
                ),
            ]
            for text in steps:
                self.assertEqual(await self.proxy.log(text), OK)
            self.assertEqual(await self.proxy.log(steps[1]), frames.NOT_REGISTERED)
            book = self.server.service.book
            while True:
                found = await book.read(
                    lambda reader: [
                        row[0]
                        for row in reader.execute("SELECT line FROM events ORDER BY position")
                    ]
                )
                if len(found) >= 3:
                    break
                waiting: Deferred[None] = Deferred()
                reactor.callLater(0.01, waiting.callback, None)
                await waiting
            self.assertEqual(found[:3], steps)
            states = await book.read(
                lambda reader: reader.execute("SELECT unique_part, state FROM jobs").fetchall()
            )
            self.assertEqual(states, [("a", 6)])
            self.assertEqual(self.server.service._rules.keep_seconds, {})

        return Deferred.fromCoroutine(work())


class TlsChainTests(TestCase):
    """The same chain over TLS, as the how-to has it."""

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        directory = Path(self.mktemp()).absolute()
        self.authorities, certificates = directory / "authorities", directory / "certificates"
        self.authorities.mkdir(parents=True)
        certificates.mkdir()
        certificate, key = Authority(self.authorities).issue("localhost")
        pem = certificate.read_bytes() + key.read_bytes()
        (certificates / "localhost.pem").write_bytes(pem)
        certificate.unlink()
        endpoint = f"tls:{certificates}:port=0:interface=127.0.0.1"
        self.server = RunningProxy(LbproxyConfig(role="server", store_endpoint=endpoint))
        return self.server.start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def work() -> None:
            await self.proxy.stop()
            await self.server.stop()

        return Deferred.fromCoroutine(work())

    def forward(self, authorities: Path) -> Deferred[Any]:
        """Start a proxy that believes *authorities*."""
        server = f"tls:{{host}}:{{port}}:trustRoots={authorities}"
        forward = ForwardConfig(
            mode="deliver", server=server, retry_seconds=0.02, max_retry_seconds=0.02
        )
        self.proxy = RunningProxy(LbproxyConfig(forward=forward))
        return self.proxy.start()

    async def log(self) -> None:
        """Register a job of the server, which is at the port of the job id plus one."""
        address = self.server.site.addresses["lbproxy"]["store_address"]
        port = int(address.rpartition(":")[2]) - 1
        text = line("RegJob", REGISTER, job_id=f"https://localhost:{port}/tls")
        self.assertEqual(await self.proxy.log(text), OK)

    def test_end_to_end(self) -> Deferred[None]:
        """The server is believed, and gets the event."""

        async def work() -> None:
            await self.forward(self.authorities)
            await self.log()
            await until(lambda: self.server.service.book.stored)
            await until(lambda: self.proxy.forwarder.counts.delivered)

        return Deferred.fromCoroutine(work())

    def test_a_server_that_is_not_believed(self) -> Deferred[None]:
        """It hears nothing, and the event waits."""

        async def work() -> None:
            others = self.authorities.with_name("others")
            others.mkdir()
            Authority(others)
            await self.forward(others)
            await self.log()
            await until(lambda: self.proxy.forwarder.counts.failures >= 2)
            self.assertEqual(self.server.service.book.stored, 0)
            self.assertEqual(self.proxy.forwarder.counts.delivered, 0)

        return Deferred.fromCoroutine(work())


class DaemonTests(TestCase):
    """The spool files and notices of the original's delivery daemon."""

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        self.proxy = RunningProxy()
        self.prefix = str(self.proxy.directory / "dglogd.log")
        self.notices = str(self.proxy.directory / "notice.sock")
        self.proxy.config = evolve(
            self.proxy.config,
            forward=ForwardConfig(
                mode="daemon",
                spool_prefix=self.prefix,
                notice_socket=self.notices,
                retry_seconds=0.02,
                max_retry_seconds=0.02,
            ),
        )
        return self.proxy.start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.proxy.stop())

    def test_files_and_notices(self) -> Deferred[None]:
        """One file a job, lines as received, a notice with offset and line for each."""

        async def work() -> None:
            heard = _FakeServerFactory()
            octets: list[bytes] = []

            class Listening(Protocol):
                def dataReceived(self, data: bytes) -> None:
                    octets.append(data)

            heard.protocol = Listening
            port: Any = IReactorUNIX(reactor).listenUNIX(self.notices, heard)
            lines = [
                line("RegJob", REGISTER, job_id=job("a")),
                line("Purge", job_id=job("a"), seqcode="UI2"),
            ]
            for text in lines:
                self.assertEqual(await self.proxy.log(text), OK)
            path = Path(f"{self.prefix}.a")
            await until(lambda: path.exists() and path.read_bytes() == b"".join(lines))
            await until(lambda: len(b"".join(octets)) == len(b"".join(lines)) + 16)
            self.assertEqual(octets[0], struct.pack("=q", 0) + lines[0])
            self.assertEqual(octets[1], struct.pack("=q", len(lines[0])) + lines[1])
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            await port.stopListening()

        return Deferred.fromCoroutine(work())

    def test_one_line_each(self) -> Deferred[None]:
        """One that came without its end gets it; a line feed in a value becomes its escape."""

        async def work() -> None:
            first = line("RegJob", REGISTER, job_id=job("a")).rstrip(b" \n")
            tag = {"NAME": "t", "VALUE": "one+two"}
            second = line("UserTag", tag, job_id=job("a"), seqcode="UI2")
            for text in (first, second.replace(b"+", b"\n")):
                self.assertEqual(await self.proxy.log(text), OK)
            wanted = first + b" \n" + second.replace(b"+", b"\\n")
            path = Path(f"{self.prefix}.a")
            await until(lambda: path.exists() and path.read_bytes() == wanted)

        return Deferred.fromCoroutine(work())

    def test_a_directory_that_is_not_there(self) -> Deferred[None]:
        """The client does not wait; the lines are written once they can be."""

        async def work() -> None:
            book = self.proxy.service.book
            prefix = self.proxy.directory / "later" / "dglogd.log"
            forwarder = self.proxy.forwarder
            assert forwarder is not None
            forwarder.config = evolve(forwarder.config, spool_prefix=str(prefix))
            text = line("RegJob", REGISTER, job_id=job("b"))
            self.assertEqual(await self.proxy.log(text), OK)
            await until(lambda: forwarder.counts.failures >= 2)
            self.assertEqual(book.stored, 1)
            prefix.parent.mkdir()
            path = Path(f"{prefix}.b")
            await until(lambda: path.exists() and path.read_bytes() == text)

        return Deferred.fromCoroutine(work())

    def test_a_file_that_the_daemon_removes(self) -> None:
        """A line goes into a file that is there, from the offset that is told."""
        prefix = self.mktemp()
        self.assertEqual(append_line(prefix, "u", b"one\n"), 0)
        self.assertEqual(append_line(prefix, "u", b"two\n"), 4)
        os.unlink(f"{prefix}.u")
        self.assertEqual(append_line(prefix, "u", b"three\n"), 0)
        self.assertEqual(Path(f"{prefix}.u").read_bytes(), b"three\n")

    def test_any_unique_part(self) -> None:
        """A file's name has the octets of the job id, so the longest of them fits too."""
        prefix, unique = self.mktemp(), "\xe9" * 200
        self.assertEqual(append_line(prefix, unique, b"one\n"), 0)
        self.assertTrue(os.path.exists(os.fsencode(prefix) + b"." + b"\xe9" * 200))

    def test_nobody_to_tell(self) -> None:
        """A notice that nobody hears is no fault."""
        self.assertFalse(send_notice(self.notices + "x", 0, b"line"))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.notices)
            listening.listen()
            self.assertTrue(send_notice(self.notices, 5, b"line"))
            connection, _ = listening.accept()
            with connection:
                self.assertEqual(connection.recv(100), struct.pack("=q", 5) + b"line")
