"""The event stream: requests, filters, resuming, followers that are slow."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.interfaces import IJobEvents
from gridnet.lbproxy import stream
from gridnet.lbproxy.config import LbproxyConfig, StreamConfig
from gridnet.lbproxy.ledger import LedgerRules, StoredEvent
from gridnet.lbproxy.log import make_filter
from gridnet.lbproxy.stream import EventFilter, StreamError, StreamRequest
from gridnet.lbproxy.subscriptions import Batch, Hub
from tests.hypothesis_profile import examples
from tests.lbproxy.ledgers import NOW, REGISTER, LedgerTestCase, job
from tests.lbproxy.running import Collector, RunningProxy, whole_http
from tests.lbproxy.vectors import line

EVERYTHING = EventFilter()
RUN = {"NODE": "n"}


class RequestTests(SynchronousTestCase):
    """Query strings."""

    def test_reads(self) -> None:
        """Every name; the header of a returning browser wins."""
        found = stream.parse_request(
            "job=https://h/a&job=https://h/b&owner=/CN=Jan&type=usertag&type=Done&state=done"
            "&after=5&consumer=me&limit=7&wait=1.5",
            {},
            100,
        )
        self.assertEqual(
            found,
            StreamRequest(
                EventFilter(
                    frozenset({"a", "b"}),
                    frozenset({"/cn=jan"}),
                    frozenset({21, 10}),
                    frozenset({6}),
                ),
                5,
                "me",
                7,
                1.5,
            ),
        )
        self.assertEqual(stream.parse_request("", {}, 100), StreamRequest())
        self.assertEqual(stream.parse_request("after=5", {"last-event-id": "9"}, 100).after, 9)
        self.assertEqual(stream.parse_cursor("consumer=a%20b&position=3"), ("a b", 3))

    def test_refuses(self) -> None:
        """Anything else is told."""
        for text in (
            "colour=blue",
            "job=x",
            "type=Novel",
            "state=Nowhere",
            "after=-1",
            "after=x",
            "consumer=",
            "consumer=%00",
            "consumer=" + "x" * 201,
            "wait=nan",
            "wait=-1",
            "wait=x",
            "novalue",
            "&".join(["state=Done"] * 101),
        ):
            with self.assertRaises(StreamError, msg=text):
                stream.parse_request(text, {}, 100)
        for text in ("", "consumer=a", "position=1", "consumer=a&position=x", "a=b&c=d&e=f"):
            with self.assertRaises(StreamError, msg=text):
                stream.parse_cursor(text)

    @given(st.text(max_size=80))
    @examples(200)
    def test_any_text(self, text: str) -> None:
        """Any text is read or refused."""
        for parse in (lambda t: stream.parse_request(t, {}, 10), stream.parse_cursor):
            try:
                parse(text)
            except StreamError:
                pass


class PageTests(LedgerTestCase):
    """Reading on from the store."""

    rules = LedgerRules(stream_keep_seconds=1000.0)

    def setUp(self) -> None:
        super().setUp()
        self.register("a")
        self.register("b", user="/CN=eva")
        self.log("a", "Running", RUN, seqcode="UI2")
        self.log("b", "UserTag", {"NAME": "n", "VALUE": "v"}, seqcode="UI2")
        self.ledger.purge(["a"], NOW)

    def page(
        self, wanted: EventFilter = EVERYTHING, after: int = 0, most: int = 100
    ) -> stream.Page:
        return stream.read_page(self.reader, wanted, after, most, 1 << 20)

    def test_filters(self) -> None:
        """By job, owner, type and state, also of jobs that are gone."""
        for wanted, count in (
            (EventFilter(), 4),
            (make_filter(jobs=[job("a")]), 2),
            (make_filter(jobs=[job("a"), job("b")]), 4),
            (make_filter(jobs=[job("x")]), 0),
            (make_filter(owners=["/CN=EVA/CN=proxy"]), 2),
            (make_filter(types=["usertag", "Running"]), 2),
            (make_filter(states=["Running"]), 1),
            (make_filter(jobs=[job("a")], states=["Submitted"]), 1),
        ):
            page = self.page(wanted)
            self.assertEqual(len(page.events), count, wanted)
            self.assertTrue(page.is_last)
            for one in page.events:
                self.assertTrue(wanted.fits(one))
        with self.assertRaises(ValueError):
            make_filter(types=["Novel"])
        with self.assertRaises(ValueError):
            make_filter(states=["Nowhere"])

    def test_pages(self) -> None:
        """Page after page gives every event once."""
        found: list[StoredEvent] = []
        after = 0
        while True:
            page = self.page(after=after, most=3)
            found += page.events
            after = page.through
            if page.is_last:
                break
        self.assertEqual(len(found), 4)
        self.assertEqual([one.position for one in found], sorted({one.position for one in found}))
        small = stream.read_page(self.reader, EventFilter(), 0, 100, 1)
        self.assertEqual((len(small.events), small.is_last), (1, False))

    def test_trimmed(self) -> None:
        """What went is told by its position."""
        self.assertEqual(self.page().trimmed, 0)
        last = self.page(make_filter(jobs=[job("a")])).events[-1].position
        self.ledger.trim(NOW + 1000, 10_000, 10)
        self.assertEqual(self.page().trimmed, last)
        self.assertEqual(len(self.page().events), 2)

    def test_what_an_event_looks_like(self) -> None:
        """JSON with names instead of numbers."""
        shown = json.loads(stream.as_json(self.page(make_filter(states=["Running"])).events[0]))
        self.assertEqual(
            {name: shown[name] for name in ("job", "owner", "event", "state", "previous_state")},
            {
                "job": job("a"),
                "owner": "/O=Grid/CN=jan",
                "event": "Running",
                "state": "Running",
                "previous_state": "Submitted",
            },
        )
        self.assertEqual(shown["fields"], {"node": "n"})
        self.assertEqual(shown["timestamp"], 1795310529.050992)


class _Sink:
    """Takes events while it is ready."""

    def __init__(self) -> None:
        self.is_ready = True
        self.positions: list[int] = []
        self.octets = b""
        self.failed = ""
        self.trimmed = 0

    def deliver(self, batch: Batch) -> None:
        self.positions += [one.position for one in batch.events]
        self.octets += batch.octets

    def tell_trimmed(self, position: int) -> None:
        self.trimmed = position

    def caught_up(self) -> None:
        pass

    def fail(self, reason: str) -> None:
        self.failed = reason


class HubTests(LedgerTestCase):
    """Followers without connections: nothing is lost, nothing comes twice."""

    def setUp(self) -> None:
        super().setUp()
        self.register("a")
        self.pending: list[tuple[Callable[[sqlite3.Connection], Any], Deferred[Any]]] = []
        self.slow = False
        self.hub = Hub(StreamConfig(recent_events=5, page_events=2), self.read)
        self.hub.start(1_000)
        self.number = 1
        self.hub.newest = self.hub._floor = 2

    def read(self, work: Callable[[sqlite3.Connection], Any]) -> Deferred[Any]:
        if not self.slow:
            return succeed(work(self.reader))
        result: Deferred[Any] = Deferred()
        self.pending.append((work, result))
        return result

    def happen(self, count: int = 1, *, tell: bool = True) -> Sequence[StoredEvent]:
        """Store some events of job a, and tell the hub."""
        lines = []
        for _ in range(count):
            self.number += 1
            lines.append(line("Purge", job_id=job("a"), seqcode=f"UI{self.number}"))
        stored = self.enter(lines).stored
        if tell:
            self.hub.publish(stored)
        return stored

    def positions(self) -> list[int]:
        rows = self.connection.execute("SELECT position FROM events ORDER BY position")
        return [position for (position,) in rows]

    def follow(self, after: int, wanted: EventFilter = EVERYTHING) -> tuple[Any, _Sink]:
        sink = _Sink()
        subscription = self.hub.subscribe(wanted, after, sink)
        assert subscription is not None
        subscription.resume()
        return subscription, sink

    def test_from_the_beginning(self) -> None:
        """All there was, then all that comes."""
        self.happen(7)
        subscription, sink = self.follow(0)
        self.assertEqual(sink.positions, self.positions())
        self.assertTrue(subscription.is_live)
        self.happen(3)
        self.assertEqual(sink.positions, self.positions())
        self.assertEqual(sink.octets.count(b"id: "), len(self.positions()))

    def test_from_anywhere(self) -> None:
        """From each position on exactly what follows."""
        self.happen(9)
        everything = self.positions()
        for after in range(everything[-1] + 3):
            _, sink = self.follow(after)
            wanted = [position for position in everything if position > after]
            self.assertEqual(sink.positions, wanted, after)

    def test_slow_followers(self) -> None:
        """One that takes nothing for a while reads on where it stopped."""
        for pause in (1, 3, 8):
            subscription, sink = self.follow(self.hub.newest)
            start = len(self.positions())
            self.happen()
            sink.is_ready = False
            for _ in range(pause):
                self.happen()
            self.assertEqual(len(sink.positions), 1)
            sink.is_ready = True
            subscription.resume()
            self.happen()
            self.assertEqual(sink.positions, self.positions()[start:])
            subscription.cancel()

    def test_pages_that_overtake(self) -> None:
        """Events read from the store before the hub was told of them come once."""
        self.happen(8)
        self.slow = True
        subscription, sink = self.follow(0)
        later: list[Sequence[StoredEvent]] = []
        while self.pending:
            later.append(self.happen(tell=False))
            work, result = self.pending.pop(0)
            result.callback(work(self.reader))
            self.happen_later(later)
        self.happen()
        self.assertEqual(sink.positions, self.positions())
        self.assertTrue(subscription.is_live)

    def happen_later(self, later: list[Sequence[StoredEvent]]) -> None:
        while later:
            self.hub.publish(later.pop(0))

    def test_filters(self) -> None:
        """Followers of a job are told of it alone."""
        self.register("b")
        _, everything = self.follow(self.hub.newest)
        _, of_b = self.follow(self.hub.newest, make_filter(jobs=[job("b")]))
        _, done = self.follow(self.hub.newest, make_filter(states=["Done"]))
        stored = self.enter(
            [
                line("Running", RUN, job_id=job("a"), seqcode="UI50"),
                line("Running", RUN, job_id=job("b"), seqcode="UI50"),
            ]
        ).stored
        self.hub.publish(stored)
        self.assertEqual(len(everything.positions), 2)
        self.assertEqual(of_b.positions, [stored[1].position])
        self.assertEqual(done.positions, [])

    def test_octets_are_shared(self) -> None:
        """A thousand followers of everything get the very same octets."""
        sinks = [self.follow(self.hub.newest)[1] for _ in range(50)]
        self.happen(2)
        self.assertEqual(len({id(sink.octets) for sink in sinks}), 1)
        self.assertEqual(self.hub.delivered, 100)

    def test_bounds(self) -> None:
        """There are only so many followers; those that went make room."""
        self.hub.config = evolve(self.hub.config, max_subscribers=2)
        first, _ = self.follow(0)
        self.follow(0, make_filter(jobs=[job("a")]))
        self.assertIsNone(self.hub.subscribe(EventFilter(), 0, _Sink()))
        first.cancel()
        first.cancel()
        self.assertIsNotNone(self.hub.subscribe(EventFilter(), 0, _Sink()))

    def test_memory_is_bounded(self) -> None:
        """Recent events are held up to a number and up to octets."""
        self.happen(20)
        self.assertEqual(len(self.hub._recent), 5)
        self.hub.config = evolve(self.hub.config, recent_octets=1)
        self.happen()
        self.assertEqual((len(self.hub._recent), self.hub._recent_octets), (0, 0))
        _, sink = self.follow(0)
        self.assertEqual(sink.positions, self.positions())

    def test_ends(self) -> None:
        """A store that cannot be read, or the end of the service, is told."""
        self.happen(8)
        self.slow = True
        _, sink = self.follow(0)
        self.pending.pop()[1].errback(sqlite3.OperationalError("no"))
        self.assertIn("cannot be read", sink.failed)
        _, other = self.follow(self.hub.newest)
        self.hub.close()
        self.assertIn("stopping", other.failed)
        self.assertEqual(self.hub.followers, 0)

    def test_everything_has_gone(self) -> None:
        """Whoever asks then is up to date at once, and gets what comes."""
        self.happen(3)
        first, newest = self.positions()[0], self.positions()[-1]
        self.hub.newest = self.hub._floor = newest
        self.hub._recent.clear()
        self.ledger.purge(["a"], NOW)
        self.assertEqual(self.positions(), [])
        for after in (0, first):
            subscription, sink = self.follow(after)
            self.assertTrue(subscription.is_live)
            self.assertEqual(sink.positions, [])

    def test_trimmed(self) -> None:
        """A follower that comes back too late is told what it may miss."""
        self.happen(3)
        first = self.positions()[0]
        self.ledger.purge(["a"], NOW)
        self.register("b")
        self.hub.newest = self.hub._floor = self.positions()[-1]
        self.hub._recent.clear()
        self.happen(0)
        _, back = self.follow(first)
        _, fresh = self.follow(0)
        self.assertGreater(back.trimmed, first)
        self.assertEqual(fresh.trimmed, 0)
        self.assertEqual(back.positions, self.positions())


class ServedStreamTests(TestCase):
    """Server-sent events and long polls on the serve socket."""

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        config = LbproxyConfig(
            stream=StreamConfig(
                recent_events=5,
                page_events=3,
                heartbeat_seconds=0.05,
                max_subscribers=3,
                max_consumers=2,
            ),
        )
        self.proxy = RunningProxy(config)
        self.number = 1
        return self.proxy.start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.proxy.stop())

    def run_async(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    async def happen(self, count: int, name: str = "a") -> None:
        if self.number == 1:
            await self.proxy.log(line("RegJob", REGISTER, job_id=job("a")))
            count -= 1
        for _ in range(count):
            self.number += 1
            await self.proxy.log(line("Purge", job_id=job(name), seqcode=f"UI{self.number}"))

    def test_restart_when_all_have_gone(self) -> Deferred[None]:
        """The place of who has had everything stays the newest, for those who come then, too."""

        async def work() -> None:
            await self.happen(3)
            _, had = await self.get("/gridnet/events?after=0&wait=0")
            newest = had["next"]
            book = self.proxy.service.book
            await book.change(lambda ledger: ledger.purge(["a"], time.time() - 10_000))
            await book.change(lambda ledger: ledger.trim(time.time(), 1e6, 10))
            await self.proxy.stop(forget=False)
            self.proxy = RunningProxy(self.proxy.config, self.proxy.directory)
            await self.proxy.start()
            for after in (0, newest):
                _, answer = await self.get(f"/gridnet/events?after={after}&wait=0")
                self.assertEqual((answer["events"], answer["next"]), ([], newest))

        return self.run_async(work())

    async def follow(self, target: str, last: int | None = None) -> Collector:
        head = f"GET /gridnet/events{target} HTTP/1.1\r\nAccept: text/event-stream\r\n"
        if last is not None:
            head += f"Last-Event-ID: {last}\r\n"
        connection = await self.proxy.connect(self.proxy.serve)
        connection.transport.write(f"{head}\r\n".encode())
        return connection

    async def get(self, target: str, verb: str = "GET") -> tuple[int, Any]:
        found = await self.proxy.send(
            self.proxy.serve, f"{verb} {target} HTTP/1.1\r\n\r\n".encode(), whole_http
        )
        head, _, body = found.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def ids(self, octets: bytes) -> list[int]:
        """Positions of events; an id alone says how far the stream is."""
        return [int(one) for one in re.findall(rb"^id: ([0-9]+)\ndata: ", octets, re.MULTILINE)]

    def test_server_sent_events(self) -> Deferred[None]:
        """From the beginning, live, and after a break with the header that browsers send."""

        async def work() -> None:
            await self.happen(8)
            first = await self.follow("?after=0")
            found = await first.until(lambda got: len(self.ids(got)) >= 8)
            self.assertIn(b"Content-Type: text/event-stream\r\n", found)
            await self.happen(4)
            found = await first.until(lambda got: len(self.ids(got)) >= 12)
            whole = self.ids(found)
            self.assertEqual(whole, sorted(set(whole)))
            first.transport.loseConnection()
            await first.lost
            second = await self.follow("", last=whole[5])
            found = await second.until(lambda got: len(self.ids(got)) >= 6)
            self.assertEqual(self.ids(found), whole[6:])
            beat = b"\n: \nid: %d\n\n" % whole[-1]
            found = await second.until(lambda got: got.count(beat) >= 2)
            second.transport.loseConnection()
            await second.lost
            while self.proxy.service.book.hub.followers:
                await self.pause()

        return self.run_async(work())

    def test_how_far_the_stream_is(self) -> Deferred[None]:
        """A follower knows where to resume before its first event, and past those of others."""

        async def work() -> None:
            await self.happen(4)
            newest = self.proxy.service.book.hub.newest
            every = await self.follow("")
            found = await every.until(lambda got: b"id: " in got and got.endswith(b"\n\n"))
            self.assertIn(b"\r\n\r\n: gridnet\nid: %d\n\n" % newest, found)
            other = await self.follow(f"?job={job('other')}&after=1")
            await self.happen(3)
            newest = self.proxy.service.book.hub.newest
            await other.until(lambda got: b"\n: \nid: %d\n\n" % newest in got)
            waiting = self.get(f"/gridnet/events?job={job('other')}&after=1&wait=0.05")
            self.assertEqual((await waiting)[1]["next"], newest)
            for one in (every, other):
                one.transport.loseConnection()
                await one.lost

        return self.run_async(work())

    def test_long_polls(self) -> Deferred[None]:
        """A poll answers with what there is, or waits, and says where to go on."""

        async def work() -> None:
            await self.happen(4)
            status, first = await self.get("/gridnet/events?after=0&limit=2")
            self.assertEqual((status, len(first["events"])), (200, 2))
            self.assertEqual(first["next"], first["events"][-1]["position"])
            _, second = await self.get(f"/gridnet/events?after={first['next']}")
            self.assertEqual(len(second["events"]), 2)
            waiting = self.get(f"/gridnet/events?after={second['next']}&wait=20")
            waiting_done = Deferred.fromCoroutine(waiting)
            while not self.proxy.service.book.hub.followers:
                await self.pause()
            await self.happen(1)
            _, third = await waiting_done
            self.assertEqual(len(third["events"]), 1)
            _, fourth = await self.get(f"/gridnet/events?after={third['next']}&wait=0.05")
            self.assertEqual(fourth["events"], [])
            self.assertGreaterEqual(fourth["next"], third["next"])
            _, now = await self.get("/gridnet/events?wait=0")
            self.assertEqual(now["events"], [])

        return self.run_async(work())

    async def pause(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.proxy.site.reactor.callLater(0.01, waiting.callback, None)
        await waiting

    def test_consumers(self) -> Deferred[None]:
        """A named follower goes on where it stopped, also after a restart of the service."""

        async def work() -> None:
            await self.happen(3)
            _, first = await self.get("/gridnet/events?consumer=c&limit=2")
            self.assertEqual(len(first["events"]), 2)
            _, again = await self.get("/gridnet/events?consumer=c&limit=2")
            self.assertEqual(again, first)
            _, second = await self.get(f"/gridnet/events?consumer=c&after={first['next']}")
            self.assertEqual(len(second["events"]), 1)
            await self.proxy.stop(forget=False)
            await self.proxy.start()
            _, third = await self.get("/gridnet/events?consumer=c")
            self.assertEqual(third["events"], second["events"])
            target = f"/gridnet/cursor?consumer=c&position={second['next']}"
            self.assertEqual((await self.get(target, "POST"))[0], 200)
            _, fourth = await self.get("/gridnet/events?consumer=c&wait=0")
            self.assertEqual(fourth["events"], [])
            stream_of_c = await self.follow("?consumer=c")
            await self.happen(1)
            found = await stream_of_c.until(lambda got: self.ids(got))
            self.assertEqual(len(self.ids(found)), 1)
            stream_of_c.transport.loseConnection()
            await stream_of_c.lost
            self.assertEqual(
                (await self.get("/gridnet/cursor?consumer=d&position=1", "POST"))[0], 200
            )
            self.assertEqual(
                (await self.get("/gridnet/cursor?consumer=e&position=1", "POST"))[0], 503
            )
            self.assertEqual((await self.get("/gridnet/events?consumer=e&after=1"))[0], 503)

        return self.run_async(work())

    def test_refusals(self) -> Deferred[None]:
        """What cannot be understood is told; one follower too many as well."""

        async def work() -> None:
            for target, verb in (
                ("/gridnet/events?colour=blue", "GET"),
                ("/gridnet/events", "POST"),
                ("/gridnet/cursor", "GET"),
                ("/gridnet/cursor?x=y", "POST"),
            ):
                status, body = await self.get(target, verb)
                self.assertEqual(status, 400, target)
                self.assertTrue(body["error"])
            held = [await self.follow("") for _ in range(3)]
            for one in held:
                await one.until(lambda got: b"gridnet" in got)
            self.assertEqual((await self.get("/gridnet/events"))[0], 503)
            for one in held:
                one.transport.loseConnection()
                await one.lost

        return self.run_async(work())

    def test_a_follower_that_does_not_read(self) -> Deferred[None]:
        """It costs nobody anything, and has it all once it reads."""

        async def work() -> None:
            await self.happen(1)
            follower = await self.follow("?after=0")
            await follower.until(lambda got: self.ids(got))
            follower.transport.pauseProducing()
            big = {"NAME": "n", "VALUE": "v" * 60_000}
            for _ in range(40):
                self.number += 1
                text = line("UserTag", big, job_id=job("a"), seqcode=f"UI{self.number}")
                await self.proxy.log(text)
            buffered = self.proxy.service.book.hub.delivered
            self.assertLess(buffered, 30)
            follower.transport.resumeProducing()
            found = await follower.until(lambda got: len(self.ids(got)) >= 41)
            self.assertEqual(self.ids(found), sorted(set(self.ids(found))))
            follower.transport.loseConnection()
            await follower.lost

        return self.run_async(work())

    def test_in_the_process(self) -> Deferred[None]:
        """Components beside the proxy log and follow through its interface."""

        async def work() -> None:
            offer = self.proxy.site.find(IJobEvents)
            found: list[StoredEvent] = []
            subscription = offer.subscribe(found.extend, make_filter(types=["RegJob"]))
            reply = await offer.log(line("RegJob", REGISTER, job_id=job("a")))
            self.assertTrue(reply.ok)
            reply = await offer.log(line("Purge", job_id=job("a"), seqcode="UI2"))
            self.assertEqual((await offer.log(b"nonsense")).minor, 1401)
            while not found:
                await self.pause()
            self.assertEqual([one.event.type.name for one in found], ["RegJob"])
            subscription.cancel()

        return self.run_async(work())
