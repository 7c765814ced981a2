"""The client for Twisted."""

from __future__ import annotations

import errno
import gc
from collections.abc import Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from gridnet.lbproxy.client import Context, DeferredContext, LbError, StreamEvent, make_job_id
from gridnet.lbproxy.config import LbproxyConfig, StreamConfig
from gridnet.lbproxy.frames import OK, Reply
from gridnet.lbproxy.jobid import JobId
from tests.lbproxy.running import RunningProxy
from tests.lbproxy.vectors import code

USER = "/O=Grid/O=Example/CN=Jan Novak"


class DeferredContextTests(TestCase):
    """The client for Twisted."""

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        self.proxy = RunningProxy()
        return self.proxy.start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.proxy.stop())

    def run_async(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    def make(self, **options: Any) -> DeferredContext:
        return DeferredContext(
            reactor, store=self.proxy.store, serve=self.proxy.serve, user=USER, host="ui", **options
        )

    def test_a_life(self) -> Deferred[None]:
        """The same calls, each a Deferred; calls of one context keep their order."""

        async def work() -> None:
            context = self.make()
            name = make_job_id("lb.example.org")
            await context.register_job(name, ns="wms")
            calls = [context.log_user_tag(name="n", value=str(number)) for number in range(20)]
            for call in calls:
                await call
            status = await context.job_status(name)
            self.assertEqual(status.user_tags, {"n": "19"})
            self.assertEqual(context.get_sequence_code(), code("UI22"))
            self.assertEqual(len(await context.job_log(name)), 21)
            self.assertEqual(len(await context.user_jobs()), 1)
            self.assertEqual(len(await context.query_jobs({"status": "Submitted"})), 1)
            self.assertEqual(len(await context.query_events({"jobId": name})), 21)
            self.assertEqual(await context.query_sequence_code(name), code("UI21"))
            other = self.make(source="NetworkServer")
            await other.set_logging_job_proxy(name)
            await other.log_listener(svc_name="s", svc_host="h", svc_port=1)
            self.assertEqual(await other.query_listener(name, "s"), ("h", 1))
            subjobs = await context.register_job(
                make_job_id(), ns="w", jobtype="COLLECTION", num_subjobs=1
            )
            await context.register_subjobs_proxy(context.job_id, ["[ 1 ]"], "w", subjobs)
            gone, _ = await context.purge([name])
            self.assertEqual(gone, [name])
            with self.assertRaises(LbError):
                await context.job_status(name)

        return self.run_async(work())

    def test_two_legs(self) -> Deferred[None]:
        """The leg to the server is a callable, or TCP."""

        async def work() -> None:
            heard: list[JobId] = []

            def leg(job_id: JobId, message: bytes, seconds: float) -> Deferred[Reply]:
                heard.append(job_id)
                answered: Deferred[Reply] = Deferred()
                answered.callback(OK)
                return answered

            name = make_job_id()
            await self.make(server_leg=leg).register_job_proxy(name, ns="wms")
            self.assertEqual([str(one) for one in heard], [name])
            with self.assertRaises(LbError) as caught:
                await self.make().register_job_proxy("https://127.0.0.1:1/x", ns="wms")
            self.assertEqual(caught.exception.number, errno.EAGAIN)

        return self.run_async(work())

    def test_two_legs_that_fail(self) -> Deferred[None]:
        """Both are waited for, and the fault of neither is left for the log."""

        async def work() -> None:
            for server in ("a..b", "a" * 200, "127.0.0.1:65535", "127.0.0.1:1"):
                context = DeferredContext(
                    reactor, store="/absent", serve=self.proxy.serve, user=USER, host="ui"
                )
                with self.assertRaises(LbError) as caught:
                    await context.register_job_proxy(f"https://{server}/x", ns="wms")
                self.assertEqual(caught.exception.number, errno.EAGAIN)
            gc.collect()  # a fault that nobody took would be logged now

        return self.run_async(work())

    def test_following(self) -> Deferred[None]:
        """Events come to a callable, through a restart of the service."""

        async def work() -> None:
            context = self.make()
            found: list[StreamEvent] = []
            follower = context.follow(found.append, 0)
            name = make_job_id()
            await context.register_job(name, ns="wms")
            await self.until(lambda: len(found) >= 1)
            await self.proxy.stop(forget=False)
            await self.proxy.start()
            await context.log_running(node="n")
            await self.until(lambda: len(found) >= 2)
            self.assertEqual([one.event for one in found], ["RegJob", "Running"])
            page = await context.poll(0, jobs=[name], wait=0)
            self.assertEqual([one.position for one in page.events], [one.position for one in found])
            self.assertEqual(page.reached, follower.position)
            follower.cancel()
            await self.until(lambda: not self.proxy.service.book.hub.followers)

        return self.run_async(work())

    def test_following_from_now_on(self) -> Deferred[None]:
        """What happens while the service is away is not missed, though nothing was seen before."""

        async def work() -> None:
            context = self.make()
            found: list[StreamEvent] = []
            follower = context.follow(found.append)
            await self.until(lambda: follower.position is not None)
            await self.proxy.stop(forget=False)
            await self.proxy.start()
            # Before the follower is back, or after: it makes no difference.
            await context.register_job(make_job_id(), ns="wms")
            await self.until(lambda: found)
            follower.cancel()
            await follower.done
            await context.move_cursor("c", found[0].position)
            await context.log_running(node="n")
            resumed = context.follow(found.append, consumer="c")
            await self.until(lambda: len(found) >= 2)
            self.assertEqual([one.event for one in found], ["RegJob", "Running"])
            resumed.cancel()

        return self.run_async(work())

    def test_what_may_be_missing(self) -> Deferred[None]:
        """Who asks for events of jobs that left is told, whichever way it asks."""

        async def work() -> None:
            await self.proxy.stop()
            config = LbproxyConfig(keep_final_seconds=0, stream=StreamConfig(keep_seconds=0))
            self.proxy = RunningProxy(config)
            await self.proxy.start()
            context = self.make()
            await context.register_job(make_job_id(), ns="wms")
            first = (await context.poll(0)).events[0].position
            await context.log_done(status_code="OK", exit_code=0)
            await context.register_job(make_job_id(), ns="wms")
            # What is in memory is not missed yet.
            self.assertEqual((await context.poll(first)).trimmed, 0)
            await self.proxy.stop(forget=False)
            await self.proxy.start()
            page = await context.poll(first)
            self.assertEqual([one.event for one in page.events], ["RegJob"])
            self.assertGreater(page.trimmed, first)
            found: list[StreamEvent] = []
            told: list[int] = []
            follower = context.follow(found.append, first, trimmed=told.append)
            await self.until(lambda: found)
            self.assertEqual(told, [page.trimmed])
            follower.cancel()

            def watch() -> tuple[str, list[int]]:
                told: list[int] = []
                with Context(store=self.proxy.store, serve=self.proxy.serve) as blocking:
                    event = next(blocking.watch(first, trimmed=told.append))
                return event.event, told

            self.assertEqual(await deferToThread(watch), ("RegJob", [page.trimmed]))

        return self.run_async(work())

    def test_what_is_refused(self) -> Deferred[None]:
        """A follower that asks for what is not there ends with the reason."""

        async def work() -> None:
            context = self.make()
            follower = context.follow(lambda event: None, states=["Novel"])
            with self.assertRaisesRegex(LbError, "'Novel' is no state"):
                await follower.done
            with self.assertRaisesRegex(LbError, "printable characters"):
                await context.move_cursor("\n", 1)
            self.assertEqual((await context.log_line(b"nonsense")).minor, 1401)

        return self.run_async(work())

    async def until(self, is_enough: Any) -> None:
        while not is_enough():
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.01, waiting.callback, None)
            await waiting

    def test_nobody_there(self) -> Deferred[None]:
        """No socket is error 11; a follower waits."""

        async def work() -> None:
            context = DeferredContext(reactor, store="/nowhere", serve="/nowhere", user="/CN=x")
            with self.assertRaises(LbError) as caught:
                await context.register_job(make_job_id(), ns="n")
            self.assertEqual(caught.exception.number, errno.EAGAIN)
            follower = context.follow(lambda event: None)
            await self.until(lambda: follower._timer is not None)
            follower.cancel()

        return self.run_async(work())
