"""The two sockets of a running service: framing, order, limits, time-outs, permissions."""

from __future__ import annotations

import os
import pwd
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from prometheus_client import generate_latest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from gridnet.errors import ConfigError
from gridnet.lbproxy import answers, connections, frames, http
from gridnet.lbproxy.config import PurgeConfig
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.frames import FrameReader, Reply
from gridnet.lbproxy.store import QueryTimeout, Snapshot
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.running import RunningProxy, SocketTestCase, whole_http
from tests.lbproxy.test_store import ENDLESS
from tests.lbproxy.vectors import capture, line

CONFIG = SocketTestCase.config


def replies_in(octets: bytes) -> list[Reply]:
    """The store replies in what came back."""
    return [frames.decode_reply(body) for body in FrameReader(1 << 20).receive(octets)]


class StoreSocketTests(SocketTestCase):
    """Frames in, replies out."""

    def test_permissions(self) -> None:
        """Both sockets are for their owner alone."""
        for path in (self.proxy.store, self.proxy.serve):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_small_pieces(self) -> Deferred[None]:
        """A message may come octet by octet."""

        async def work() -> None:
            connection = await self.proxy.connect(self.proxy.store)
            for octet in frames.encode_message(line("RegJob", REGISTER, job_id=job("a"))):
                connection.transport.write(bytes([octet]))
            found = await connection.until(replies_in)
            self.assertEqual(replies_in(found), [frames.OK])
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_pipelined_messages(self) -> Deferred[None]:
        """Messages sent at once are answered in their order, good and bad ones."""

        async def work() -> None:
            wanted = []
            octets = b""
            for number in range(150):
                if number % 7 == 3:
                    octets += frames.frame(b"nonsense")
                    wanted.append(frames.UNREADABLE)
                elif number % 7 == 5:
                    octets += frames.encode_message(line("Purge", job_id=job("unknown")))
                    wanted.append(frames.NOT_REGISTERED)
                else:
                    text = line("RegJob", REGISTER, job_id=job(f"j{number}"))
                    octets += frames.encode_message(text)
                    wanted.append(frames.OK)
            connection = await self.proxy.connect(self.proxy.store)
            connection.transport.write(octets)
            found = await connection.until(lambda got: len(replies_in(got)) >= 150)
            self.assertEqual(replies_in(found), wanted)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_bad_events_keep_the_connection(self) -> Deferred[None]:
        """A refused event is answered with its documented numbers; the next one is taken."""

        async def work() -> None:
            good = line("RegJob", REGISTER, job_id=job("a"))
            rows = [
                (b"6 michel\n1 x\n", 400, 0, "decoding event string failed"),
                (b"6 michal\n9 x\n", 400, 0, "decoding event string failed"),
                (b"6 michal\n1 x\n", 400, 1401, "ULM parse error"),
                (b"6 michal\n3 a=1\n", 400, 1402, "Unknown or missing event type"),
                (
                    b"6 michal\n" + frames.counted(good.replace(b"DG.USER=", b"DG.X=")),
                    400,
                    1403,
                    "Message incomplete, missing or empty field DG.USER.",
                ),
                (
                    b"6 michal\n" + frames.counted(good.replace(b"PROG=", b"DATE=1 PROG=")),
                    400,
                    1404,
                    "Key DATE already exists.",
                ),
                (
                    b"6 michal\n" + frames.counted(good.replace(b"/O=Grid/CN=jan", b"")),
                    600,
                    0,
                    "LB proxy can't store using unauthenticated connection",
                ),
                (b"6 michal\n" + frames.counted(good) + b"left over", 0, 0, "OK"),
                (frames.counted(good), 0, 0, "OK"),
            ]
            connection = await self.proxy.connect(self.proxy.store)
            for number, (body, major, minor, text) in enumerate(rows, 1):
                connection.transport.write(frames.frame(body))
                found = await connection.until(lambda got: len(replies_in(got)) >= number)  # noqa: B023
                self.assertEqual(replies_in(found)[-1], Reply(major, minor, text), body)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_bad_frames_close(self) -> Deferred[None]:
        """No reply, the connection closed, the service alive; messages before it are answered."""

        async def work() -> None:
            for octets in (
                b"x" * 17,
                b"               0\n",
                b"5               \nabcde",
                b"          200001\n",
                b"              -5\n",
            ):
                self.assertEqual(await self.store_closes(octets), b"", octets)
            good = frames.encode_message(line("RegJob", REGISTER, job_id=job("a")))
            found = await self.store_closes(good + b"x" * 17 + good)
            self.assertEqual(found, frames.OK_FRAME)
            await self.check_lives()

        return self.run_async(work())

    def test_replies_that_nobody_reads(self) -> Deferred[None]:
        """A client that only sends is read no further until it takes its replies; then all come."""

        async def work() -> None:
            count = 60_000
            connection = await self.proxy.connect(self.proxy.store)
            connection.transport.pauseProducing()
            connection.transport.write(frames.frame(b"x") * count)
            factory = self.proxy.service._store_factory
            refused = await self.clogged(factory, lambda: sum(factory.refusals.values()))
            self.assertLess(refused, count // 2)
            await self.check_lives()
            self.assertEqual(sum(factory.refusals.values()), refused)
            connection.transport.resumeProducing()
            wanted = frames.encode_reply(frames.UNREADABLE) * count
            found = await connection.until(lambda got: len(got) >= len(wanted))
            self.assertEqual(found, wanted)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_half_a_message_is_not_stored(self) -> Deferred[None]:
        """A connection that ends in mid-message leaves nothing."""

        async def work() -> None:
            octets = frames.encode_message(line("RegJob", REGISTER, job_id=job("half")))
            connection = await self.proxy.connect(self.proxy.store)
            connection.transport.write(octets[:-1])
            connection.transport.loseConnection()
            await connection.lost
            reply = await self.proxy.log(line("Purge", job_id=job("half")))
            self.assertEqual(reply, frames.NOT_REGISTERED)

        return self.run_async(work())

    def test_half_closed(self) -> Deferred[None]:
        """A client that ends its sending side first still gets its reply."""

        async def work() -> None:
            connection = await self.proxy.connect(self.proxy.store)
            octets = frames.encode_message(line("RegJob", REGISTER, job_id=job("a")))
            connection.transport.write(octets)
            connection.transport.loseWriteConnection()
            self.assertEqual(await connection.lost, frames.OK_FRAME)

        return self.run_async(work())

    def test_large_messages_share_a_bound(self) -> Deferred[None]:
        """Unfinished large messages together have a limit; beyond it a connection is closed."""

        async def work() -> None:
            held = []
            for size in (100,) * 10 + (199_000,) * 4:  # announcing much is not sending it
                connection = await self.proxy.connect(self.proxy.store)
                connection.transport.write(b"%16d\n%s" % (200_000, b"x" * size))
                held.append(connection)
            while self.proxy.service._store_factory._budget.left:
                await self.pause()
            one_more = await self.store_closes(b"%16d\n%s" % (200_000, b"x" * 199_000))
            self.assertEqual(one_more, b"")
            for connection in held:
                connection.transport.loseConnection()
                await connection.lost
            big = {"NAME": "n", "VALUE": "v" * 150_000}
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            for number in range(2, 12):
                text = line("UserTag", big, job_id=job("a"), seqcode=f"UI{number}")
                self.assertEqual(await self.proxy.log(text), frames.OK)

        return self.run_async(work())

    def test_many_clients(self) -> Deferred[None]:
        """A hundred clients at once, each with its own job, all acknowledged, all visible."""

        async def client(number: int) -> None:
            connection = await self.proxy.connect(self.proxy.store)
            name = f"client{number}"
            lines = [line("RegJob", REGISTER, job_id=job(name))]
            lines += [line("Purge", job_id=job(name), seqcode=f"UI{n}") for n in range(2, 8)]
            for count, text in enumerate(lines, 1):
                connection.transport.write(frames.encode_message(text))
                found = await connection.until(lambda got: len(replies_in(got)) >= count)  # noqa: B023
                self.assertEqual(replies_in(found)[-1], frames.OK)
            connection.transport.loseConnection()
            await connection.lost
            status, _ = await self.proxy.ask(
                "/queryJobs",
                b"<edg_wll_QueryJobsRequest><flags>no_jobs</flags><and><orJobConditions><equal>"
                b"<jobId>%s</jobId></equal></orJobConditions></and></edg_wll_QueryJobsRequest>"
                % job(name).encode(),
            )
            self.assertEqual(status, 200)

        clients = [Deferred.fromCoroutine(client(number)) for number in range(100)]
        return gatherResults(clients).addCallback(self._check_groups)

    def _check_groups(self, _: object) -> None:
        book = self.proxy.service.book
        self.assertEqual(book.stored, 700)
        self.assertLess(book.writer.counts.groups, 700)


class ServeSocketTests(SocketTestCase):
    """HTTP in, HTTP out."""

    def test_many_requests_on_one_connection(self) -> Deferred[None]:
        """Requests sent at once are answered one after the other."""

        async def work() -> None:
            one = capture("08-unknown-job.query-request")
            two = capture("04-sequence-code.query-request")
            connection = await self.proxy.connect(self.proxy.serve)
            connection.transport.write(one + two + one)
            wanted = capture("08-unknown-job.query-reply")
            found = await connection.until(lambda got: got.count(b"HTTP/1.1 404") >= 3)
            self.assertTrue(found.startswith(wanted))
            self.assertTrue(found.endswith(wanted))
            self.assertIn(b"no state in DB", found)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_replies_that_nobody_reads(self) -> Deferred[None]:
        """No request is answered until the replies before it are taken; then all come."""

        async def work() -> None:
            count = 20_000
            connection = await self.proxy.connect(self.proxy.serve)
            connection.transport.pauseProducing()
            connection.transport.write(b"PUT / HTTP/1.1\r\n\r\n" * count)
            factory = self.proxy.service._serve_factory
            answered = await self.clogged(factory, lambda: factory.queries)
            self.assertLess(answered, count // 2)
            await self.check_lives()
            self.assertEqual(factory.queries, answered)
            connection.transport.resumeProducing()
            wanted = http.encode_reply(405, b"") * count
            found = await connection.until(lambda got: len(got) >= len(wanted))
            self.assertEqual(found, wanted)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_statuses(self) -> Deferred[None]:
        """Every status of the table, with a body where the original client wants one."""

        async def work() -> None:
            head = b"User-Agent: edg_wll_Api/3.0/3.0\r\nAccept: application/x-dglb\r\n"
            length = b"Content-Length: %d\r\n\r\n%s"
            nothing = b"POST /queryJobs HTTP/1.1\r\n" + head
            for octets, status in (
                (nothing + b"\r\n", 400),
                (nothing + length % (5, b"<xml/"), 400),
                (b"POST /nowhere HTTP/1.1\r\n" + head + b"\r\n", 400),
                (b"POST /statsRequest HTTP/1.1\r\n" + head + b"\r\n", 501),
                (b"GET / HTTP/1.1\r\n\r\n", 401),
                (b"DELETE / HTTP/1.1\r\n\r\n", 405),
                (b"POST /queryJobs HTTP/1.1\r\nUser-Agent: a/2.0/2.0\r\n\r\n", 415),
                (b"POST /queryJobs HTTP/1.1\r\n\r\n", 400),
                (b"POST /queryJobs HTTP/1.1\r\nUser-Agent: a/3.0/3.0\r\n\r\n", 501),
                (b"POST /indexedAttrs HTTP/1.1\r\n" + head + length % (1, b"x"), 200),
                (nothing + length % (27, b"<edg_wll_QueryJobsRequest/>"), 401),
            ):
                found = await self.proxy.ask_octets(octets)
                self.assertTrue(found.startswith(b"HTTP/1.1 %d " % status), (octets, found))
                body = found.partition(b"\r\n\r\n")[2]
                self.assertEqual(bool(body), status not in http.BODILESS, octets)

        return self.run_async(work())

    def test_faults_close(self) -> Deferred[None]:
        """What is no HTTP gets 400 and the end of the connection."""

        async def work() -> None:
            for octets in (b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\n" + b"x" * 20_000):
                connection = await self.proxy.connect(self.proxy.serve)
                connection.transport.write(octets)
                found = await connection.lost
                self.assertTrue(found.startswith(b"HTTP/1.1 400 "), octets)
            await self.check_lives()

        return self.run_async(work())

    def test_connection_close_is_honoured(self) -> Deferred[None]:
        """A client that says so sees the end after the reply."""

        async def work() -> None:
            request = capture("08-unknown-job.query-request")
            request = request.replace(b"\r\nAccept", b"\r\nConnection: close\r\nAccept", 1)
            connection = await self.proxy.connect(self.proxy.serve)
            connection.transport.write(request)
            self.assertEqual(await connection.lost, capture("08-unknown-job.query-reply"))

        return self.run_async(work())

    def test_large_replies(self) -> Deferred[None]:
        """A reply of some megabytes comes whole, to a reader that takes its time."""

        async def work() -> None:
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            for number in range(2, 32):
                text = {"NAME": f"tag{number}", "VALUE": "v" * 150_000}
                await self.proxy.log(line("UserTag", text, job_id=job("a"), seqcode=f"UI{number}"))
            body = (
                b"<edg_wll_QueryJobsRequest><flags>no_jobs</flags><and><orJobConditions><equal>"
                b"<jobId>%s</jobId></equal></orJobConditions></and></edg_wll_QueryJobsRequest>"
                % job("a").encode()
            )
            connection = await self.proxy.connect(self.proxy.serve)
            connection.transport.write(http.encode_request("/queryJobs", body) * 2)
            found = await connection.until(
                lambda got: got.count(b"</edg_wll_QueryJobsResult>") == 2
            )
            self.assertGreater(len(found), 2 * 30 * 150_000)
            first = found[: len(found) // 2]
            self.assertTrue(whole_http(first))
            self.assertEqual(found, first * 2)
            connection.transport.loseConnection()
            await connection.lost

        return self.run_async(work())

    def test_purges(self) -> Deferred[None]:
        """By list and by age, in the background, with a dump."""

        async def work() -> None:
            for name in ("a", "b", "c"):
                text = line("RegJob", REGISTER, job_id=job(name), date="20990101000000")
                await self.proxy.log(text)
            root = "edg_wll_PurgeRequest"

            async def purge(inner: str) -> tuple[int, str]:
                status, body = await self.proxy.ask(
                    "/purgeRequest", f"<{root}>{inner}</{root}>".encode()
                )
                return status, body.decode()

            every = "<timeout><Submitted>0</Submitted></timeout>"
            future = "<timeout><Submitted>0</Submitted></timeout><flags>really_purge</flags>"
            # The events are dated in the future, so nothing is old enough.
            self.assertEqual(
                await purge(future), (200, f"<{root[:-7]}Result>\r\n</{root[:-7]}Result>\r\n")
            )
            status, body = await purge(every)
            self.assertNotIn("<jobs>", body)
            named = f"<jobs><jobId>{job('a')}</jobId><jobId>{job('x')}</jobId></jobs>"
            status, body = await purge(f"{named}<flags>list_jobs</flags>")
            self.assertIn(job("a"), body)
            status, body = await purge(f"{named}<flags>really_purge+list_jobs+server_dump</flags>")
            self.assertEqual(body.count("<jobId>"), 1)
            path = body.partition("<server_file>")[2].partition("</server_file>")[0]
            self.assertTrue(Path(path).read_bytes().startswith(b"DG.ARRIVED="))
            named = f"<jobs><jobId>{job('b')}</jobId></jobs>"
            status, body = await purge(f"{named}<flags>really_purge+background</flags>")
            self.assertEqual(status, 202)
            status, body = await purge(f"{named}<flags>list_jobs</flags>")
            self.assertNotIn("<jobs>", body)
            self.assertEqual((await purge("<jobs><jobId>x</jobId></jobs>"))[0], 579)
            self.assertEqual((await purge("<flags/>"))[0], 200)

        return self.run_async(work())


class PurgeLimitTests(SocketTestCase):
    """Purges that are to take long."""

    config = evolve(CONFIG, purge=PurgeConfig(max_running=2))

    def test_how_many(self) -> Deferred[None]:
        """So many at a time, in the background or not; a stop ends them between two batches."""

        async def work() -> None:
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            root = "edg_wll_PurgeRequest"
            words = "really_purge+background"
            body = (
                f"<{root}><jobs><jobId>{job('a')}</jobId></jobs><flags>{words}</flags>"
                f"<target_runtime>100000</target_runtime></{root}>"
            ).encode()
            for status in (202, 202, 503):
                self.assertEqual((await self.proxy.ask("/purgeRequest", body))[0], status)
            waiting = await self.proxy.connect(self.proxy.serve)
            await self.proxy.stop(forget=False)
            await waiting.lost
            # Both ended: nothing is left that the reactor would wait for.
            await self.proxy.start()
            self.assertEqual((await self.proxy.ask("/purgeRequest", body))[0], 202)

        return self.run_async(work())


class TimeoutTests(SocketTestCase):
    """Connections that do nothing, or begin something and do not end it."""

    config = evolve(CONFIG, idle_seconds=2.0, request_seconds=4.0)

    def setUp(self) -> Deferred[Any]:
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


class LimitTests(SocketTestCase):
    """Numbers of connections and of waiting events."""

    config = evolve(CONFIG, max_connections=5, max_waiting_events=3, max_pipelined=4)

    def test_connections(self) -> Deferred[None]:
        """One more than may be is closed at once; when one goes, there is room again."""

        async def work() -> None:
            held = [await self.proxy.connect(self.proxy.store) for _ in range(5)]
            self.assertEqual(await (await self.proxy.connect(self.proxy.store)).lost, b"")
            self.assertEqual(self.proxy.service._store_factory.refused, 1)
            for connection in held:
                connection.transport.loseConnection()
                await connection.lost
            await self.check_lives()

        return self.run_async(work())

    def test_waiting_events(self) -> Deferred[None]:
        """Above the bound nothing more is read for a while, and nothing is lost."""

        async def work() -> None:
            connections = [await self.proxy.connect(self.proxy.store) for _ in range(5)]
            for number, connection in enumerate(connections):
                for count in range(40):
                    text = line("RegJob", REGISTER, job_id=job(f"j{number}-{count}"))
                    connection.transport.write(frames.encode_message(text))
            for connection in connections:
                found = await connection.until(lambda got: len(replies_in(got)) >= 40)
                self.assertEqual(set(replies_in(found)), {frames.OK})
                connection.transport.loseConnection()
                await connection.lost
            self.assertEqual(self.proxy.service.book.stored, 200)

        return self.run_async(work())


class SlowQueryTests(SocketTestCase):
    """Queries that take long."""

    config = evolve(
        CONFIG, query_threads=1, slow_query_threads=1, quick_query_seconds=60, query_seconds=90
    )

    def test_quick_ones_do_not_wait(self) -> Deferred[None]:
        """Slow ones stand in a line of their own; each ends when its time is over."""

        async def work() -> None:
            book = self.proxy.service.book
            gate = threading.Event()
            ended: list[bool] = []

            def slow() -> Deferred[None]:
                looks: list[int] = []

                def work(reader: Snapshot) -> bool:
                    looks.append(1)
                    if len(looks) == 1:
                        raise QueryTimeout
                    return gate.wait(60)

                asked: Deferred[bool] = book.read(work)
                return asked.addCallback(ended.append)

            waiting = [slow() for _ in range(4)]
            for _ in range(5):
                self.assertEqual((await self.proxy.ask("/indexedAttrs", b""))[0], 200)
            self.assertEqual(ended, [])
            gate.set()
            await gatherResults(waiting)
            self.assertEqual(ended, [True] * 4)
            book.config = evolve(book.config, quick_query_seconds=0.05, query_seconds=0.1)
            endless = book.read(lambda reader: reader.execute(ENDLESS).fetchone())
            await self.assertFailure(endless, QueryTimeout)
            book.config = self.config
            await self.check_lives()

        return self.run_async(work())

    def test_whoever_has_gone_is_not_answered(self) -> Deferred[None]:
        """The question of one that does not wait is not even looked at."""

        async def work() -> None:
            gate = threading.Event()
            held = self.proxy.service.book.read(lambda reader: gate.wait(60))
            answered: list[object] = []
            answer = answers.answer

            def watched(*words: Any) -> answers.Answer:
                answered.append(words)
                return answer(*words)

            self.patch(answers, "answer", watched)
            factory = self.proxy.service._serve_factory
            gone = await self.proxy.connect(self.proxy.serve)
            gone.transport.write(http.encode_request("/indexedAttrs", b""))
            while not any(one.is_busy for one in factory.connections):
                await self.pause()
            gone.transport.loseConnection()
            while factory.connections:
                await self.pause()
            gate.set()
            await held
            self.assertEqual((await self.proxy.ask("/indexedAttrs", b""))[0], 200)
            self.assertEqual(len(answered), 1)

        return self.run_async(work())


class WaitingOctetsTests(SocketTestCase):
    """Large messages that wait."""

    config = evolve(CONFIG, max_waiting_octets=100_000)

    def test_waiting_octets(self) -> Deferred[None]:
        """Above the bound nothing more is read for a while, and nothing is lost."""

        async def work() -> None:
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            book = self.proxy.service.book
            most = 0
            submit = book.submit

            def watched(event: Event, done: Any) -> None:
                nonlocal most
                submit(event, done)
                most = max(most, book.waiting_octets)

            self.patch(book, "submit", watched)
            connections = [await self.proxy.connect(self.proxy.store) for _ in range(8)]
            for number, connection in enumerate(connections):
                for count in range(10):
                    text = {"NAME": f"n{number}", "VALUE": "v" * 50_000}
                    code = f"UI{number + 1} NS{count}"
                    message = line("UserTag", text, job_id=job("a"), seqcode=code)
                    connection.transport.write(frames.encode_message(message))
            for connection in connections:
                found = await connection.until(lambda got: len(replies_in(got)) >= 10)
                self.assertEqual(set(replies_in(found)), {frames.OK})
                connection.transport.loseConnection()
                await connection.lost
            self.assertEqual((book.stored, book.waiting, book.waiting_octets), (81, 0, 0))
            # Each connection may have read a little when the bound is reached.
            self.assertLess(most, 100_000 + 8 * 2 * 51_000)

        return self.run_async(work())


class IdentityTests(SocketTestCase):
    """Peer credentials."""

    me = pwd.getpwuid(os.geteuid()).pw_name
    config = evolve(
        CONFIG, check_identity=True, identities={me: ("/O=Grid/CN=Jan", "/O=Grid/CN=robot")}
    )

    def test_names(self) -> Deferred[None]:
        """A local user may log under the listed names, in any spelling, and under no other."""

        async def work() -> None:
            for user, major in (
                ("/O=Grid/CN=jan", 0),
                ("/o=grid/cn=JAN/CN=proxy", 0),
                ("/O=Grid/CN=robot", 600),
                ("/O=Grid/CN=eva", 600),
            ):
                reply = await self.proxy.log(line("RegJob", REGISTER, job_id=job("a"), user=user))
                self.assertEqual(reply.major, major, user)

        return self.run_async(work())

    def test_who_is_there(self) -> Deferred[None]:
        """The kernel tells process and user of a peer."""

        async def work() -> None:
            await self.proxy.connect(self.proxy.store)
            await self.check_who()

        return self.run_async(work())

    async def check_who(self) -> None:
        await self.proxy.log(line("Purge", job_id=job("x")))
        peers = {one.peer for one in self.proxy.service._store_factory.connections}
        self.assertEqual(
            {(one.pid, one.uid) for one in peers if one}, {(os.getpid(), os.geteuid())}
        )

    def test_unknown_users_are_a_fault(self) -> None:
        """A user that this host does not know is told at the start."""
        config = evolve(self.config, identities={"no such user here": ("*",)})
        with self.assertRaisesRegex(ConfigError, "no user"):
            RunningProxy(config).start()


class AnybodyTests(SocketTestCase):
    """A user who may use any name."""

    config = evolve(CONFIG, check_identity=True, identities={str(os.geteuid()): ("*",)})

    def test_any_name(self) -> Deferred[None]:
        """The star is any name; users by number are known too."""

        async def work() -> None:
            await self.check_lives()

        return self.run_async(work())


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
