"""The serve socket: queries, purges, those that take long."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults

from gridnet.lbproxy import answers, http
from gridnet.lbproxy.config import PurgeConfig
from gridnet.lbproxy.store import QueryTimeout, Snapshot
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.running import SocketTestCase, whole_http
from tests.lbproxy.test_store import ENDLESS
from tests.lbproxy.vectors import capture, line

CONFIG = SocketTestCase.config


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
            for number in range(2, 14):
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
            self.assertGreater(len(found), 2 * 12 * 150_000)
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
