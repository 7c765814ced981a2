"""Connections of both sockets: time-outs, taking over, starting and stopping."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from prometheus_client import generate_latest
from twisted.internet import reactor
from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogEvent, formatEvent
from twisted.trial.unittest import TestCase

from gridnet.errors import ConfigError
from gridnet.lbproxy import connections, frames, http
from gridnet.lbproxy.config import ForwardConfig
from gridnet.lbproxy.connections import BoundedFactory, Peer
from gridnet.lbproxy.service import shown_address
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.running import RunningProxy, SocketTestCase, replies_in
from tests.lbproxy.vectors import line
from tests.log_events import observe_log

CONFIG = SocketTestCase.config


class TimeoutTests(SocketTestCase):
    """Connections that do nothing, or begin something and do not end it."""

    config = evolve(CONFIG, idle_seconds=2.0, request_seconds=4.0)

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        def started(_: Any) -> None:
            # The sockets are real and their time is ours: a machine that stalls ends no connection.
            self.clock = Clock()
            for factory in (self.proxy.service._store_factory, self.proxy.service._serve_factory):
                factory.stopFactory()
                factory.clock = factory._reaper.clock = self.clock
                factory.startFactory()

        return super().setUp().addCallback(started)

    async def pass_time_until(self, is_enough: Callable[[], object]) -> None:
        """Let time pass until *is_enough*."""
        while not is_enough():
            self.clock.advance(1.0)
            await self.pause()

    def test_a_follower_of_long_standing(self) -> Deferred[None]:
        """One that takes nothing for a moment is not closed for the time before it."""

        async def work() -> None:
            follower = await self.proxy.connect(self.proxy.serve)
            follower.transport.write(
                b"GET /gridnet/events HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n"
            )
            await follower.until(lambda got: b"id: " in got)
            (connection,) = self.proxy.service._serve_factory.connections
            self.clock.advance(100.0)
            connection.pauseProducing()
            self.assertFalse(connection.is_overdue(self.clock.seconds() + 1.0))
            self.assertTrue(connection.is_overdue(self.clock.seconds() + 5.0))
            connection.resumeProducing()
            follower.transport.loseConnection()
            await follower.lost

        return self.run_async(work())

    def test_time_outs(self) -> Deferred[None]:
        """Idle and half-sent ones are closed, on both sockets; the service lives."""

        async def work() -> None:
            waiting = []
            for path, octets in (
                (self.proxy.store, b""),
                (self.proxy.store, b"      "),
                (self.proxy.store, b"%16d\nx" % 100),
                (self.proxy.serve, b""),
                (self.proxy.serve, b"POST /queryJobs HTT"),
                (self.proxy.serve, b"POST /queryJobs HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"),
            ):
                for _ in range(20):
                    connection = await self.proxy.connect(path)
                    connection.transport.write(octets)
                    waiting.append(connection.lost)
            while self.proxy.service._connections() < len(waiting):
                await self.pause()
            self.clock.advance(1.5)
            for _ in range(5):
                await self.pause()
            self.assertEqual(self.proxy.service._connections(), len(waiting))
            await self.pass_time_until(lambda: not self.proxy.service._connections())
            self.assertEqual(set(await gatherResults(waiting)), {b""})
            await self.check_lives()

        return self.run_async(work())

    def test_a_reader_that_stopped(self) -> Deferred[None]:
        """A client that asks for much and does not read is closed in the end."""

        async def work() -> None:
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            for number in range(2, 12):
                text = {"NAME": f"tag{number}", "VALUE": "v" * 150_000}
                await self.proxy.log(line("UserTag", text, job_id=job("a"), seqcode=f"UI{number}"))
            body = (
                b"<edg_wll_QueryJobsRequest><and><orJobConditions><equal>"
                b"<jobId>%s</jobId></equal></orJobConditions></and></edg_wll_QueryJobsRequest>"
                % job("a").encode()
            )
            connection = await self.proxy.connect(self.proxy.serve)
            connection.transport.write(http.encode_request("/queryJobs", body))
            connection.transport.pauseProducing()
            factory = self.proxy.service._serve_factory
            await self.pass_time_until(lambda: factory.timed_out)
            connection.transport.resumeProducing()
            await connection.lost

        return self.run_async(work())

    def test_senders_and_followers_that_stopped_reading(self) -> Deferred[None]:
        """So is one that only sends, and a follower that takes nothing."""

        async def work() -> None:
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            sender = await self.proxy.connect(self.proxy.store)
            sender.transport.pauseProducing()
            sender.transport.write(frames.frame(b"x") * 60_000)
            follower = await self.proxy.connect(self.proxy.serve)
            follower.transport.write(
                b"GET /gridnet/events?after=0 HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n"
            )
            await follower.until(lambda got: b"data: " in got)
            follower.transport.pauseProducing()
            for number in range(2, 12):
                text = {"NAME": f"tag{number}", "VALUE": "v" * 150_000}
                await self.proxy.log(line("UserTag", text, job_id=job("a"), seqcode=f"UI{number}"))
            service = self.proxy.service
            await self.pass_time_until(
                lambda: service._store_factory.timed_out and service._serve_factory.timed_out
            )
            while service.book.hub.followers:
                await self.pause()
            for connection in (sender, follower):
                connection.transport.resumeProducing()
                await connection.lost
            await self.check_lives()

        return self.run_async(work())


class PeerTests(TestCase):
    """Who the kernel says is there."""

    def setUp(self) -> None:
        self.factory = BoundedFactory(Clock(), 10, 1.0, 1.0)
        self.lines: list[str] = []

        def note(event: LogEvent) -> None:
            if event["log_namespace"].endswith("BoundedFactory"):
                self.lines.append(formatEvent(event))

        observe_log(self, note)

    def pair(self, family: int) -> Any:
        """One end of a connection, as a transport has it."""
        with socket.socket(family) as listening:
            if family == socket.AF_UNIX:
                listening.bind(self.mktemp())
            listening.listen()
            client = socket.socket(family)
            self.addCleanup(client.close)
            client.connect(listening.getsockname())
            accepted, _ = listening.accept()
        self.addCleanup(accepted.close)
        return SimpleNamespace(socket=accepted)

    def test_each_process_is_logged_once(self) -> None:
        """However many connections it makes."""
        ends = [self.pair(socket.AF_UNIX) for _ in range(3)]
        peers = [self.factory.peer_of(end) for end in ends]
        me = Peer(os.getpid(), os.geteuid(), os.getegid())
        self.assertEqual(peers, [me] * 3)
        self.assertEqual(self.lines, [f"connections from {me}"])

    def test_no_more_are_remembered_than_that(self) -> None:
        """With one more, all are new again."""
        self.factory.max_connections = 2
        for pid in (1, 2, 1, 3, 1):
            octets = struct.pack("3i", pid, 5, 6)
            handle = SimpleNamespace(getsockopt=lambda *_, octets=octets: octets)
            peer = self.factory.peer_of(SimpleNamespace(socket=handle))
            self.assertEqual(peer, Peer(pid, 5, 6))
        self.assertEqual(
            [text.split()[2] for text in self.lines], ["pid=1", "pid=2", "pid=3", "pid=1"]
        )

    def test_others_have_none(self) -> None:
        """A TCP connection, and one without a socket."""
        self.assertIsNone(self.factory.peer_of(self.pair(socket.AF_INET)))
        self.assertIsNone(self.factory.peer_of(object()))
        self.assertEqual(self.lines, [])


class StartTests(TestCase):
    """Taking over sockets, and being the only one."""

    def setUp(self) -> None:
        self.proxy = RunningProxy(evolve(CONFIG, socket_mode=0o660))

    def test_takes_over_a_stale_socket(self) -> Deferred[None]:
        """A file left by a crash is removed; the mode is the configured one."""

        async def work() -> None:
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(self.proxy.store)
            await self.proxy.start()
            self.assertEqual(os.stat(self.proxy.store).st_mode & 0o777, 0o660)
            self.assertEqual(
                await self.proxy.log(line("RegJob", REGISTER, job_id=job("a"))), frames.OK
            )
            await self.proxy.stop(forget=False)
            self.assertFalse(os.path.exists(self.proxy.store))
            self.assertFalse(os.path.exists(self.proxy.serve))
            self.proxy.forget()

        return Deferred.fromCoroutine(work())

    def test_two_take_over_at_once(self) -> None:
        """One that listens by the time a stale file is taken away gets it back."""
        path = self.proxy.store
        for found in (True, False):  # what the first look says
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(path)
            with socket.socket(socket.AF_UNIX) as other:
                if found:
                    os.unlink(path)
                    other.bind(path)
                    other.listen()
                else:
                    looked = connections._answers

                    def look(
                        path: str, what: str, other: socket.socket = other, looked: Any = looked
                    ) -> bool:
                        self.patch(connections, "_answers", looked)
                        answered = bool(looked(path, what))
                        os.unlink(path)
                        other.bind(path)
                        other.listen()
                        return answered

                    self.patch(connections, "_answers", look)
                with self.assertRaisesRegex(ConfigError, "another instance"):
                    connections.take_over(path, "lbproxy.store_socket")
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)
            os.unlink(path)
        self.assertEqual(os.listdir(self.proxy.directory), [])
        self.proxy.forget()

    def test_refuses_to_start_twice(self) -> Deferred[None]:
        """A socket that answers, or a store in use, belongs to another instance."""

        async def work() -> None:
            await self.proxy.start()
            other = RunningProxy(CONFIG)
            other.config = evolve(other.config, store_socket=self.proxy.store)
            with self.assertRaisesRegex(ConfigError, "another instance answers"):
                other.start()
            self.assertFalse(os.path.exists(other.serve))
            same = RunningProxy(CONFIG, self.proxy.directory)
            same.config = evolve(
                same.config, store_socket=f"{other.store}2", serve_socket=other.serve
            )
            with self.assertRaisesRegex(ConfigError, "in use by another process"):
                same.start()
            other.forget()
            self.assertEqual(
                await self.proxy.log(line("RegJob", REGISTER, job_id=job("a"))), frames.OK
            )
            await self.proxy.stop()

        return Deferred.fromCoroutine(work())

    def test_does_not_remove_other_files(self) -> None:
        """Something that is no socket stays."""
        Path(self.proxy.serve).write_text("precious")
        with self.assertRaisesRegex(ConfigError, "no socket"):
            self.proxy.start()
        self.assertEqual(Path(self.proxy.serve).read_text(), "precious")
        self.assertFalse(os.path.exists(self.proxy.store))
        self.proxy.forget()

    def test_names_what_cannot_be_listened_at(self) -> None:
        """An endpoint that is none, or that is taken, ends the start and is named by its key."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            wrong: tuple[tuple[str, Any, str], ...] = (
                ("store_endpoint", "garbage", "expected an endpoint, found 'garbage'"),
                ("store_endpoint", f"tcp:{port}:interface=127.0.0.1", "cannot listen"),
                ("serve_endpoint", "tcp:99999", "cannot listen"),
            )
            for key, endpoint, what in wrong:
                proxy = RunningProxy(evolve(CONFIG, **{key: endpoint}))
                with self.assertRaisesRegex(ConfigError, f"lbproxy.{key}: {what}"):
                    proxy.start()
                self.assertFalse(os.path.exists(proxy.store))
                self.assertFalse(os.path.exists(proxy.serve))
                proxy.forget()
        self.proxy.forget()

    def test_says_where_further_listeners_are(self) -> Deferred[None]:
        """Whatever their kind, so that a client can be pointed there."""

        async def work() -> None:
            path = str(self.proxy.directory / "further.sock")
            for endpoint, wanted in (
                (f"unix:{path}", re.escape(path)),
                ("tcp:0:interface=127.0.0.1", r"127\.0\.0\.1:[0-9]+"),
            ):
                self.proxy.config = evolve(self.proxy.config, store_endpoint=endpoint)
                await self.proxy.start()
                found = self.proxy.site.addresses["lbproxy"]
                await self.proxy.stop(forget=False)
                self.assertRegex(found["store_address"], f"^{wanted}$")
            self.proxy.forget()
            self.assertEqual(shown_address(IPv6Address("TCP", "::1", 9001)), "[::1]:9001")

        return Deferred.fromCoroutine(work())

    def test_names_a_group_that_it_may_not_give(self) -> None:
        """A group that the process is no member of is a fault of the configuration."""

        def chown(*_: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        self.patch(os, "chown", chown)
        with self.assertRaisesRegex(ConfigError, "lbproxy.socket_group: .* be given to 0: "):
            connections.let_in(self.proxy.store, 0o660, "0")
        self.proxy.forget()

    def test_stops_while_busy(self) -> Deferred[None]:
        """Events that were read are answered, and those answered well are stored."""

        async def work() -> None:
            await self.proxy.start()
            connection = await self.proxy.connect(self.proxy.store)
            for number in range(200):
                text = line("RegJob", REGISTER, job_id=job(f"j{number}"))
                connection.transport.write(frames.encode_message(text))
            await connection.until(replies_in)
            await self.proxy.stop(forget=False)
            good = [reply for reply in replies_in(await connection.lost) if reply.ok]
            self.assertGreater(len(good), 0)
            await self.proxy.start()
            (count,) = await self.proxy.service.book.read(
                lambda reader: reader.execute("SELECT count(*) FROM events").fetchone()
            )
            self.assertGreaterEqual(count, len(good))
            await self.proxy.stop()

        return Deferred.fromCoroutine(work())

    def test_stops_amid_everything(self) -> Deferred[None]:
        """Whatever is being logged, asked, followed, purged or forwarded: a stop is no fault."""
        query = http.encode_request(
            "/queryJobs",
            b"<edg_wll_QueryJobsRequest><and><orJobConditions><equal><status>Submitted</status>"
            b"</equal></orJobConditions></and></edg_wll_QueryJobsRequest>",
        )
        purges = [
            http.encode_request(
                "/purgeRequest",
                b"<edg_wll_PurgeRequest><timeout><Submitted>0</Submitted></timeout>"
                b"<flags>really_purge+%s</flags><target_runtime>60</target_runtime>"
                b"</edg_wll_PurgeRequest>" % flag,
            )
            for flag in (b"background", b"server_dump")
        ]
        asked = [
            query * 3,
            *purges,
            b"GET /gridnet/events?consumer=x&wait=60 HTTP/1.1\r\n\r\n",
            b"GET /gridnet/events?after=0 HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n",
            b"POST /gridnet/cursor?consumer=x&position=1 HTTP/1.1\r\n\r\n" * 3,
        ]
        logged = b"".join(
            frames.encode_message(line("RegJob", REGISTER, job_id=job(f"j{number}")))
            for number in range(20)
        )

        async def work() -> None:
            for seconds in (0, 0, 0.002, 0.01, 0.03):
                for mode in ("deliver", "daemon"):
                    forward = ForwardConfig(
                        mode=mode, server="unix:/nowhere", spool_prefix="/nowhere/spool"
                    )
                    proxy = RunningProxy(evolve(CONFIG, sweep_seconds=0.01, forward=forward))
                    await proxy.start()
                    connections = []
                    for path, octets in (
                        (proxy.store, logged),
                        *((proxy.serve, one) for one in asked),
                    ):
                        connection = await proxy.connect(path)
                        connection.transport.write(octets)
                        connections.append(connection)
                    await deferLater(reactor, seconds)
                    await proxy.stop()
                    for connection in connections:
                        await connection.lost
            self.proxy.forget()

        return Deferred.fromCoroutine(work())

    def test_status(self) -> Deferred[None]:
        """Facts, health and metrics tell what goes on."""

        async def work() -> None:
            await self.proxy.start()
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            await self.proxy.log(line("Purge", job_id=job("x")))
            board = self.proxy.site.status
            facts = board.facts["lbproxy"]()
            self.assertEqual((facts["events stored"], facts["refused messages"]), (1, 1))
            self.assertEqual(board.checks["lbproxy"](), "")
            self.proxy.service.book.writer.fault = "disk full"
            self.assertIn("disk full", board.checks["lbproxy"]())
            shown = generate_latest(board.metrics).decode()
            self.assertIn("gridnet_lbproxy_events_total 1.0", shown)
            self.assertIn('gridnet_lbproxy_refusals_total{major="700"} 1.0', shown)
            self.assertEqual(
                self.proxy.site.addresses["lbproxy"],
                {"store": self.proxy.store, "serve": self.proxy.serve},
            )
            await self.proxy.stop()

        return Deferred.fromCoroutine(work())
