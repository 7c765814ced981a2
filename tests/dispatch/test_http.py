"""One client's connection: order, limits, time, and what cuts cannot change."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch.body import LAST_CHUNK, chunk
from gridnet.dispatch.http_factory import HeadCache, Prepared
from tests.dispatch.support import Bench, FakePrepared, cuts
from tests.hypothesis_profile import examples

DONE = Failure(ConnectionDone())
LOST = Failure(ConnectionLost())


def get(path: bytes = b"/now", version: bytes = b"1.1", *lines: bytes) -> bytes:
    """A request without a body."""
    return b"\r\n".join((b"GET %b HTTP/%b" % (path, version), b"Host: x", *lines, b"", b""))


def post(path: bytes, body: bytes, *lines: bytes) -> bytes:
    """A request with a body of known length."""
    start = (b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % len(body))
    return b"\r\n".join((*start, *lines, b"", body))


def ok(body: bytes) -> bytes:
    """The fake's reply."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class OrderTests(SynchronousTestCase):
    """Replies come in the order of the requests."""

    def setUp(self) -> None:
        self.bench = Bench()
        self.connection, self.transport = self.bench.connect()

    def test_requests_one_after_the_other(self) -> None:
        """A kept connection answers as often as it is asked."""
        for _ in range(3):
            self.connection.dataReceived(get())
        self.assertEqual(self.transport.value(), ok(b"GET /now") * 3)
        self.assertFalse(self.transport.over)

    def test_a_pipeline_at_once(self) -> None:
        """Requests in one segment are all answered."""
        self.connection.dataReceived(get() + post(b"/now", b"dropped") + get(b"/now/2"))
        self.assertEqual(
            self.transport.value(), ok(b"GET /now") + ok(b"POST /now") + ok(b"GET /now/2")
        )

    def test_a_pipeline_behind_an_exchange(self) -> None:
        """What can be answered at once waits for what cannot."""
        self.connection.dataReceived(get(b"/later") + get() + get(b"/later/2") + get())
        self.assertEqual(self.transport.value(), b"")
        self.bench.exchange.reply(b"one")
        self.assertEqual(self.transport.value(), ok(b"one") + ok(b"GET /now"))
        self.bench.exchange.reply(b"two")
        self.assertEqual(
            self.transport.value(),
            ok(b"one") + ok(b"GET /now") + ok(b"two") + ok(b"GET /now"),
        )

    def test_an_exchange_that_replies_while_it_starts(self) -> None:
        """Synchronous replies do not recurse, however many there are."""
        count = 300
        bench = self.bench

        def prompt(exchange: Any) -> None:
            exchange.reply(b"now")

        original = FakePrepared.respond

        def respond(prepared: FakePrepared, connection: Any) -> Any:
            exchange = original(prepared, connection)
            if not isinstance(exchange, bytes):
                exchange.start = lambda: prompt(exchange)  # type: ignore[method-assign]
            return exchange

        self.patch(FakePrepared, "respond", respond)
        self.connection.dataReceived(get(b"/later") * count)
        while bench.clock.getDelayedCalls():
            bench.clock.advance(0)
        self.assertEqual(self.transport.value(), ok(b"now") * count)

    def test_others_get_their_turn(self) -> None:
        """A long pipeline is answered in parts."""
        bench = Bench(max_pipelined_requests=10)
        connection, transport = bench.connect()
        connection.dataReceived(get() * 25)
        self.assertEqual(transport.value(), ok(b"GET /now") * 10)
        self.assertFalse(transport.reads)
        bench.clock.advance(0)
        bench.clock.advance(0)
        self.assertEqual(transport.value(), ok(b"GET /now") * 25)
        self.assertTrue(transport.reads)

    def test_costly_requests_take_turns(self) -> None:
        """Few of them fill a turn."""
        bench = Bench()
        prepare = bench.factory.heads.get

        def slowly(raw: bytes) -> Prepared:
            bench.clock.rightNow += 0.015
            return prepare(raw)

        self.patch(bench.factory.heads, "get", slowly)
        connection, transport = bench.connect()
        connection.dataReceived(get() * 5)
        self.assertEqual(transport.value(), ok(b"GET /now") * 2)
        bench.clock.advance(0)
        self.assertEqual(transport.value(), ok(b"GET /now") * 5)

    def test_empty_lines_before_a_request(self) -> None:
        """Old clients send one behind a body."""
        self.connection.dataReceived(b"\r\n\r\n" + get() + b"\r\n" + get())
        self.assertEqual(self.transport.value(), ok(b"GET /now") * 2)

    def test_the_end_is_announced_and_kept(self) -> None:
        """A client that asks for the end gets it behind its reply."""
        self.connection.dataReceived(get(b"/now", b"1.1", b"Connection: close") + get())
        self.assertEqual(self.transport.value(), ok(b"GET /now"))
        self.assertTrue(self.transport.disconnecting)

    def test_old_clients_get_the_end(self) -> None:
        """HTTP/1.0 ends behind the reply."""
        self.connection.dataReceived(get(b"/now", b"1.0"))
        self.assertTrue(self.transport.disconnecting)


class BodyTests(SynchronousTestCase):
    """Bodies go to whom they are for, and nobody reads faster than he can."""

    def setUp(self) -> None:
        self.bench = Bench(max_ignored_body_octets=100, max_pipelined_octets=1024)
        self.connection, self.transport = self.bench.connect()

    def test_a_body_with_its_head(self) -> None:
        """All in one segment, the next request behind it."""
        self.connection.dataReceived(post(b"/later", b"hello") + get())
        exchange = self.bench.exchange
        self.assertEqual((exchange.body, exchange.events), (b"hello", ["start", "whole"]))
        exchange.reply(b"x")
        self.assertEqual(self.transport.value(), ok(b"x") + ok(b"GET /now"))

    def test_a_body_in_chunks(self) -> None:
        """Chunks become octets."""
        self.connection.dataReceived(
            b"POST /later HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunk(b"hel")
            + chunk(b"lo")
            + LAST_CHUNK
        )
        self.assertEqual(self.bench.exchange.body, b"hello")
        self.assertEqual(self.bench.exchange.events, ["start", "whole"])

    def test_leave_to_send(self) -> None:
        """A client that waits for leave gets it when the exchange wants the body, once."""
        self.connection.dataReceived(
            b"POST /later HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assertEqual(self.transport.value(), b"")
        self.connection.want_body()
        self.connection.want_body()
        self.assertEqual(self.transport.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.connection.dataReceived(b"ok")
        self.assertEqual(self.bench.exchange.body, b"ok")

    def test_leave_is_not_given_behind_a_reply(self) -> None:
        """Who is refused before the body must not send it."""
        self.connection.dataReceived(
            b"POST /now HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        self.assertEqual(self.transport.value(), ok(b"POST /now"))
        self.assertTrue(self.transport.over)

    def test_a_body_waits_for_its_reader(self) -> None:
        """A paused exchange stops the reading, and a resumed one goes on."""
        self.connection.dataReceived(post(b"/later", b"x" * 50)[:-20])
        self.connection.pause_body()
        self.assertFalse(self.transport.reads)
        self.connection.resume_body()
        self.assertTrue(self.transport.reads)

    def test_a_small_unwanted_body_is_dropped(self) -> None:
        """The connection lives on behind it."""
        self.connection.dataReceived(post(b"/now", b"x" * 100) + get())
        self.assertEqual(self.transport.value(), ok(b"POST /now") + ok(b"GET /now"))

    def test_a_large_unwanted_body_ends_the_connection(self) -> None:
        """Whoever sends on and on is not read for ever."""
        self.connection.dataReceived(
            b"POST /now HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.connection.dataReceived(chunk(b"x" * 101))
        self.assertTrue(self.transport.half_closed)
        self.connection.dataReceived(chunk(b"x" * 5000))
        self.assertEqual(self.transport.value(), ok(b"POST /now"))

    def test_an_early_reply(self) -> None:
        """A reply before the body's end: the rest is dropped, the next request answered."""
        self.connection.dataReceived(post(b"/later", b"x" * 50)[:-20])
        self.bench.exchange.reply(b"early")
        self.connection.dataReceived(b"x" * 20 + get())
        self.assertEqual(self.transport.value(), ok(b"early") + ok(b"GET /now"))
        self.assertEqual(len(self.bench.exchange.body), 30)

    def test_a_broken_body(self) -> None:
        """The exchange loses its client, the client gets a 400."""
        self.connection.dataReceived(
            b"POST /later HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
        self.assertEqual(self.bench.exchange.events, ["start", "lost"])
        self.assertIn(b"HTTP/1.1 400 ", self.transport.value())
        self.assertTrue(self.transport.half_closed)

    def test_waiting_requests_are_bounded(self) -> None:
        """Requests behind an exchange are read up to a limit."""
        self.connection.dataReceived(get(b"/later"))
        self.assertTrue(self.transport.reads)
        self.connection.dataReceived(get() * 40)
        self.assertFalse(self.transport.reads)
        self.bench.exchange.reply()
        self.assertEqual(self.transport.value(), ok(b"") + ok(b"GET /now") * 40)
        self.assertTrue(self.transport.reads)
        self.assertEqual(self.bench.factory.held_octets, 0)

    def test_a_slow_reader_is_not_read(self) -> None:
        """While replies wait, no further requests are taken."""
        self.connection.dataReceived(get())
        self.connection.pauseProducing()
        self.assertFalse(self.transport.reads)
        self.connection.dataReceived(get())
        self.assertEqual(self.transport.value(), ok(b"GET /now"))
        self.connection.resumeProducing()
        self.assertEqual(self.transport.value(), ok(b"GET /now") * 2)
        self.assertTrue(self.transport.reads)

    def test_an_exchange_hears_of_a_slow_reader(self) -> None:
        """It is told to stop writing, and to go on."""
        self.connection.dataReceived(get(b"/later"))
        self.connection.pauseProducing()
        self.connection.resumeProducing()
        self.assertEqual(self.bench.exchange.events, ["start", "whole", "paused", "resumed"])


class RefusalTests(SynchronousTestCase):
    """Bad input gets a clear reply, and ends the connection."""

    def setUp(self) -> None:
        self.bench = Bench(max_head_octets=1024, max_headers=16)
        self.connection, self.transport = self.bench.connect()

    def refused(self, data: bytes, status: int) -> None:
        """*data* is refused with *status*."""
        self.connection.dataReceived(data)
        value = self.transport.value()
        self.assertTrue(value.startswith(b"HTTP/1.1 %d " % status), value)
        self.assertIn(b"\r\nConnection: close\r\n", value)
        self.assertIn(b"\r\nDispatcher-Failures: ", value)
        self.assertTrue(self.transport.half_closed)

    def test_malformed(self) -> None:
        """No HTTP at all."""
        self.refused(b"\x80\x01nonsense\r\n\r\n", 400)

    def test_malformed_behind_good_ones(self) -> None:
        """Good requests before it keep their replies."""
        self.connection.dataReceived(get() + b"GET /now HTTP/1.1\r\nHost : x\r\n\r\n" + get())
        value = self.transport.value()
        self.assertTrue(value.startswith(ok(b"GET /now") + b"HTTP/1.1 400 "))
        self.assertEqual(value.count(b"HTTP/1.1"), 2)

    def test_a_bare_lf_is_refused_at_once(self) -> None:
        """Who ends lines with LF would wait for ever for the end of the head."""
        self.refused(b"GET /now HTTP/1.1\nHost: x\n", 400)

    def test_a_head_too_long(self) -> None:
        """The limit holds however the octets come."""
        for octet in b"GET /" + b"a" * 1018:
            self.connection.dataReceived(bytes([octet]))
        self.assertEqual(self.transport.value(), b"")
        self.refused(b"aaa", 431)

    def test_too_many_headers(self) -> None:
        """The number of lines is bounded, too."""
        self.refused(get(b"/now", b"1.1", *(b"A: b" for _ in range(16))), 431)

    def test_what_comes_behind_is_drained(self) -> None:
        """The peer is heard out for a while so that it gets to read the reply."""
        self.refused(b"nonsense\r\n\r\n", 400)
        size = len(self.transport.value())
        self.connection.dataReceived(get() * 3)
        self.assertEqual(len(self.transport.value()), size)
        self.assertTrue(self.transport.reads)
        self.connection.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_the_draining_ends(self) -> None:
        """A peer that never stops is cut off."""
        self.refused(b"nonsense\r\n\r\n", 400)
        self.connection.writeConnectionLost()
        self.bench.pass_time(4)
        self.assertTrue(self.transport.aborted)

    def test_held_octets_of_all_connections(self) -> None:
        """Unfinished heads are bounded together, too: the latest has to go."""
        bench = Bench(max_held_octets=65536, max_head_octets=60000)
        first, first_transport = bench.connect()
        second, second_transport = bench.connect()
        first.dataReceived(b"GET /" + b"a" * 40000)
        second.dataReceived(b"GET /" + b"a" * 40000)
        self.assertFalse(first_transport.over)
        self.assertIn(b"HTTP/1.1 503 ", second_transport.value())
        self.assertNotIn(b"Dispatcher-Failures", second_transport.value())
        self.assertEqual(bench.factory.held_octets, 40005)
        first.connectionLost(LOST)
        self.assertEqual(bench.factory.held_octets, 0)


class TimeTests(SynchronousTestCase):
    """Nobody holds a connection by being slow."""

    def setUp(self) -> None:
        self.bench = Bench(
            head_timeout_seconds=5.0,
            keep_alive_seconds=20.0,
            body_timeout_seconds=10.0,
            linger_seconds=2.0,
        )
        self.connection, self.transport = self.bench.connect()

    def test_silence_from_the_start(self) -> None:
        """A client that says nothing is closed without a word."""
        self.bench.pass_time(6)
        self.assertEqual(self.transport.value(), b"")
        self.assertTrue(self.transport.disconnecting)

    def test_a_slow_head(self) -> None:
        """Octets that drip do not prolong the time for a head."""
        for octet in b"GET /no":
            self.connection.dataReceived(bytes([octet]))
            self.bench.pass_time(1)
        self.assertIn(b"HTTP/1.1 408 ", self.transport.value())
        self.assertTrue(self.transport.over)

    def test_an_idle_connection(self) -> None:
        """Between requests there is more time."""
        self.connection.dataReceived(get())
        self.bench.pass_time(19)
        self.assertFalse(self.transport.over)
        self.connection.dataReceived(get())
        self.bench.pass_time(19)
        self.assertFalse(self.transport.over)
        self.bench.pass_time(3)
        self.assertTrue(self.transport.disconnecting)

    def test_a_body_that_stalls(self) -> None:
        """The exchange loses its client, the client gets a 408."""
        self.connection.dataReceived(post(b"/later", b"x" * 10)[:-5])
        self.bench.pass_time(9)
        self.connection.dataReceived(b"x")
        self.bench.pass_time(9)
        self.assertFalse(self.transport.over)
        self.bench.pass_time(3)
        self.assertEqual(self.bench.exchange.events, ["start", "lost"])
        self.assertIn(b"HTTP/1.1 408 ", self.transport.value())

    def test_a_body_that_we_do_not_read(self) -> None:
        """Time while the exchange is paused is not the client's fault."""
        self.connection.dataReceived(post(b"/later", b"x" * 10)[:-5])
        self.connection.pause_body()
        self.bench.pass_time(60)
        self.assertFalse(self.transport.over)

    def test_an_exchange_takes_its_time(self) -> None:
        """A client that waits for its reply is not slow."""
        self.connection.dataReceived(get(b"/later"))
        self.bench.pass_time(600)
        self.assertFalse(self.transport.over)

    def test_a_reader_that_stalls(self) -> None:
        """Replies that nobody reads are given up."""
        self.connection.dataReceived(get(b"/later"))
        self.connection.write(b"HTTP/1.1 200 OK\r\n\r\n")
        self.connection.pauseProducing()
        self.bench.pass_time(12)
        self.assertTrue(self.transport.aborted)
        self.assertEqual(self.bench.exchange.events[-1], "lost")

    def test_a_pipeline_that_nobody_reads(self) -> None:
        """The same without an exchange."""
        self.connection.dataReceived(get())
        self.connection.pauseProducing()
        self.bench.pass_time(12)
        self.assertTrue(self.transport.aborted)

    def test_a_close_that_does_not_end(self) -> None:
        """A peer that takes no more octets is cut off in the end."""
        self.connection.dataReceived(get(b"/now", b"1.0"))
        self.bench.pass_time(9)
        self.assertFalse(self.transport.aborted)
        self.bench.pass_time(3)
        self.assertTrue(self.transport.aborted)


class EndTests(SynchronousTestCase):
    """Connections end in many ways; none is an error."""

    def setUp(self) -> None:
        self.bench = Bench()
        self.connection, self.transport = self.bench.connect()

    def test_a_reset_between_requests(self) -> None:
        """What the released clients do behind every look-up."""
        self.connection.dataReceived(get())
        self.connection.connectionLost(LOST)
        self.assertEqual(self.bench.factory.open, 0)
        self.assertEqual(self.bench.factory.connections, set())

    def test_a_reset_in_an_exchange(self) -> None:
        """The exchange is told, once."""
        self.connection.dataReceived(get(b"/later"))
        self.connection.connectionLost(LOST)
        self.assertEqual(self.bench.exchange.events, ["start", "whole", "lost"])

    def test_half_close_behind_a_request(self) -> None:
        """A client that has said all gets its reply, then the end."""
        self.connection.dataReceived(get(b"/later"))
        self.connection.readConnectionLost()
        self.assertFalse(self.transport.over)
        self.bench.exchange.reply(b"late")
        self.assertEqual(self.transport.value(), ok(b"late"))
        self.assertTrue(self.transport.disconnecting)

    def test_half_close_behind_a_pipeline(self) -> None:
        """All of it is answered."""
        self.connection.dataReceived(get(b"/later") + get() + get(b"/later") + get())
        self.connection.readConnectionLost()
        self.bench.exchange.reply(b"1")
        self.bench.exchange.reply(b"2")
        self.assertEqual(
            self.transport.value(), (ok(b"1") + ok(b"GET /now") + ok(b"2") + ok(b"GET /now"))
        )
        self.assertTrue(self.transport.disconnecting)

    def test_half_close_when_idle(self) -> None:
        """Nothing is left to do."""
        self.connection.dataReceived(get())
        self.connection.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)

    def test_half_close_in_a_body(self) -> None:
        """A body cut short is no body."""
        self.connection.dataReceived(post(b"/later", b"hello")[:-2])
        self.connection.readConnectionLost()
        self.assertEqual(self.bench.exchange.events, ["start", "lost"])
        self.assertTrue(self.transport.disconnecting)

    def test_a_reply_cut_off(self) -> None:
        """A reply that cannot be completed resets the connection."""
        self.connection.dataReceived(get(b"/later") + get())
        self.connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal")
        self.connection.abort()
        self.assertTrue(self.transport.aborted)
        self.assertNotIn(b"GET /now", self.transport.value())

    def test_stopping(self) -> None:
        """Idle connections end at once, busy ones behind their reply."""
        busy, busy_transport = self.bench.connect()
        busy.dataReceived(get(b"/later"))
        self.bench.factory.stop()
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(busy_transport.over)
        self.bench.exchange.reply()
        self.bench.factory.stop()
        self.assertTrue(busy_transport.disconnecting)

    def test_a_tunnel(self) -> None:
        """Octets pass as they are; each side may end first."""
        self.connection.dataReceived(get(b"/later") + b"raw")
        exchange = self.bench.exchange
        self.connection.start_tunnel()
        self.connection.dataReceived(b" octets\r\n\r\n")
        self.assertEqual(exchange.body, b"raw octets\r\n\r\n")
        self.connection.readConnectionLost()
        self.assertEqual(exchange.events, ["start", "whole", "whole"])
        self.connection.finish(False)
        self.assertTrue(self.transport.disconnecting)


class CrowdTests(SynchronousTestCase):
    """Many connections are bounded, and new ones still get in."""

    def test_the_longest_idle_makes_room(self) -> None:
        """A crowd of idle connections does not keep others out."""
        bench = Bench(max_connections=10)
        crowd = []
        for _ in range(10):
            crowd.append(bench.connect())
            bench.pass_time(1)
        crowd[0][0].dataReceived(get())  # now it is the latest
        connection, transport = bench.connect()
        connection.dataReceived(get())
        self.assertEqual(transport.value(), ok(b"GET /now"))
        self.assertEqual([t.aborted for _, t in crowd], [False, True] + [False] * 8)
        crowd[1][0].connectionLost(LOST)
        self.assertEqual(bench.factory.open, 10)

    def test_busy_ones_stay(self) -> None:
        """When all are busy the newcomer is turned away."""
        bench = Bench(max_connections=3)
        for _ in range(3):
            connection, _ = bench.connect()
            connection.dataReceived(get(b"/later"))
        with self.assertRaises(AssertionError):
            bench.connect()
        self.assertEqual(bench.factory.refused["connections"], 1)

    def test_one_address_makes_room_for_itself(self) -> None:
        """The limit of an address costs only that address."""
        bench = Bench(max_connections_per_address=2)
        _, other_transport = bench.connect("10.0.0.9")
        ours = [bench.connect("10.0.0.1") for _ in range(2)]
        bench.connect("10.0.0.1")
        self.assertEqual([t.aborted for _, t in ours].count(True), 1)
        self.assertFalse(other_transport.aborted)

    def test_room_is_made_once_for_several(self) -> None:
        """Those sent away count as gone before they are."""
        bench = Bench(max_connections=100)
        for _ in range(150):
            bench.connect()
        self.assertEqual(bench.factory.refused["evicted"], 50)
        for connection in tuple(bench.factory.connections):
            connection.connectionLost(LOST)
        self.assertEqual((bench.factory.open, bench.factory._leaving), (0, 0))
        self.assertFalse(bench.factory._per_address)


class HeadCacheTests(SynchronousTestCase):
    """Heads are kept parsed, in bounded number."""

    def test_the_same_octets_are_parsed_once(self) -> None:
        """Heads used again and again stay, others go."""
        parsed: list[bytes] = []

        def prepare(raw: bytes) -> Any:
            parsed.append(raw)
            return raw  # the cache does not look into it

        cache = HeadCache(prepare, 10, 100, 10_000)
        for number in range(1000):
            cache.get(b"always")
            cache.get(b"%d" % number)
            self.assertLessEqual(len(cache), 20)
        self.assertEqual(parsed.count(b"always"), 1)
        self.assertEqual(len(parsed), 1001)

    def test_few_of_the_longer_heads_are_kept(self) -> None:
        """What they take together is bounded."""
        cache = HeadCache(lambda raw: raw, 1000, 100, 500)  # type: ignore[arg-type,return-value]
        for number in range(100):
            cache.get(b"%099d" % number)
            self.assertLessEqual(sum(map(len, cache.young)), 500)
            self.assertLessEqual(len(cache), 10)
        self.assertIn(b"%099d" % 99, cache.young)

    def test_long_heads_are_not_kept(self) -> None:
        """The cache's size in octets is bounded, too."""
        cache = HeadCache(lambda raw: raw, 10, 100, 10_000)  # type: ignore[arg-type,return-value]
        cache.get(b"a" * 101)
        self.assertEqual(len(cache), 0)


_REQUESTS = st.lists(
    st.sampled_from(
        [
            get(),
            get(b"/now/2", b"1.1", b"X: y"),
            get(b"/later"),
            post(b"/now", b"body"),
            post(b"/later", b"x" * 40),
            b"POST /later HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunk(b"abc")
            + chunk(b"d" * 20)
            + LAST_CHUNK,
            b"\r\n" + get(),
            get(b"/now", b"1.0"),
            get(b"/now", b"1.0", b"Connection: keep-alive"),
            b"GET /now HTTP/1.1\r\nHost: x\r\nBad Name: x\r\n\r\n",
            b"GET /now HTTP/1.1\nHost: x\n\n",
            b"POST /later HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"GET /now HTTP/3.0\r\nHost: x\r\n\r\n",
        ]
    ),
    max_size=7,
)


class CuttingTests(SynchronousTestCase):
    """A stream of requests means the same however TCP cuts it."""

    @given(_REQUESTS, st.lists(st.integers(0, 99999), max_size=12))
    @examples(1000)
    def test_cuts_change_nothing(self, requests: list[bytes], places: list[int]) -> None:
        """Same replies, same bodies, same end."""
        data = b"".join(requests)
        self.assertEqual(self.outcome([data]), self.outcome(cuts(data, places)))

    @staticmethod
    def outcome(pieces: list[bytes]) -> object:
        """What comes of *pieces*; exchanges reply as soon as their request is whole."""
        bench = Bench()
        connection, transport = bench.connect()
        answered: set[int] = set()

        def answer() -> None:
            for number, exchange in enumerate(bench.exchanges):
                if number not in answered and "whole" in exchange.events:
                    answered.add(number)
                    exchange.reply(exchange.body)
                    answer()
                    return

        for piece in filter(None, pieces):
            connection.dataReceived(piece)
            answer()
        return (
            transport.value(),
            transport.over,
            [(exchange.body, exchange.events) for exchange in bench.exchanges],
            bytes(connection._held) if not transport.over else b"",
        )

    @given(st.lists(st.binary(max_size=200), max_size=5))
    @examples(400)
    def test_any_octets_are_survived(self, pieces: list[bytes]) -> None:
        """Replies or a refusal, never an exception."""
        bench = Bench()
        connection, _ = bench.connect()
        for piece in filter(None, pieces):
            connection.dataReceived(piece)
        connection.readConnectionLost()
        connection.connectionLost(DONE)
        self.assertEqual((bench.factory.open, bench.factory.held_octets), (0, 0))
