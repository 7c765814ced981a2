"""The serve socket: queries, purges and the event stream go out here.

Source: docs/protocols/lbproxy.rst, "HTTP", "Queries", "Event stream".
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections import deque
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import GridnetError
from gridnet.lbproxy import answers, http, query, reply_xml, request_xml, stream
from gridnet.lbproxy.answers import Answer, AnswerLimits
from gridnet.lbproxy.book import JobBook, Overloaded
from gridnet.lbproxy.connections import BoundedConnection, BoundedFactory, Budget
from gridnet.lbproxy.http import HttpRequest, RequestReader
from gridnet.lbproxy.ledger import StoredEvent
from gridnet.lbproxy.purging import Purger
from gridnet.lbproxy.query import BadRequest, PurgeRequest, QueryError
from gridnet.lbproxy.store import QueryTimeout, Snapshot, failure_reply
from gridnet.lbproxy.stream import StreamError, StreamRequest
from gridnet.lbproxy.subscriptions import Batch, Subscription
from gridnet.lbproxy.writer import StoreClosed

_TOO_MANY_FOLLOWERS = "too many followers"


class _Abandoned(GridnetError):
    """Nobody waits for the answer any more."""


class ServeFactory(BoundedFactory):
    """
    Makes serve connections.

    :ivar queries: requests answered since the start.
    """

    def __init__(self, book: JobBook, purger: Purger, clock: Any, budget: Budget) -> None:
        config = book.config
        super().__init__(clock, config.max_connections, config.idle_seconds, config.request_seconds)
        self.book = book
        self.purger = purger
        self.queries = 0
        self.limits = AnswerLimits(config.max_results, config.max_reply_octets)
        self._budget = budget

    def make_connection(self) -> ServeConnection:
        """A serve connection."""
        return ServeConnection(self._budget)


def _json_reply(status: int, value: object) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode("ascii")
    return _plain_reply(status, stream.JSON, body)


def _plain_reply(status: int, media_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} {http.REASONS.get(status, 'Unknown')}\r\n"
        "Cache-Control: no-cache\r\n"
        f"Server: {http.SERVER}\r\n"
        f"Content-Type: {media_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


@implementer(IHalfCloseableProtocol)
class ServeConnection(BoundedConnection):
    """One client: any number of requests, one after the other."""

    factory: ServeFactory
    _log = Logger()

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self._reader: RequestReader | None = None
        self._requests: deque[HttpRequest] = deque()
        self._answering = False
        self._closes = False
        self._fault = ""
        self._paused = False
        self._in_turn = False
        self._ended = False
        self._follower: _Follower | _Poll | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered, or the stream goes out here."""
        return self._answering

    def connectionMade(self) -> None:
        """Start (called by Twisted)."""
        super().connectionMade()
        config = self.factory.book.config
        self._reader = RequestReader(config.max_head_octets, config.max_request_octets)

    def dataReceived(self, data: bytes) -> None:
        """Take octets (called by Twisted)."""
        reader = self._reader
        if reader is None or self._fault:
            return
        self._requests.extend(reader.receive(data))
        self._fault = reader.fault
        if not self.note_progress(reader.held_octets, reader.in_request):
            return
        if len(self._requests) >= self.factory.book.config.max_pipelined and not self._paused:
            self._paused = True
            self.stream.pauseProducing()
        self._next()

    def _next(self) -> None:
        """Answer what can be answered, one request after the other."""
        if self._in_turn:
            return
        # A loop: requests that are answered at once must not pile up on the stack.
        self._in_turn = True
        try:
            while not self._answering and not self.is_clogged and self._requests:
                self._answer(self._requests.popleft())
        finally:
            self._in_turn = False
        if self._answering or self.is_clogged or self not in self.factory.connections:
            return
        if self._ended:
            return
        if self._fault:
            self._log.warn(
                "{peer}: {reason}; connection closed", peer=str(self.peer), reason=self._fault
            )
            self._ended = True
            self.stream.write(http.encode_reply(400, b""))
            self.close()
        elif self._closes:
            self._ended = True
            self.close()
        elif self._paused:
            self._paused = False
            self.stream.resumeProducing()

    def _answer(self, request: HttpRequest) -> None:
        self._answering = True
        self._closes = self._closes or request.closes
        if request.path in (stream.PATH, stream.CURSOR_PATH):
            answering = Deferred.fromCoroutine(self._stream_request(request))
            answering.addErrback(self._stream_failed)
        else:
            querying = Deferred.fromCoroutine(self._query(request))
            querying.addErrback(self._query_failed, request)
            answering = querying.addCallback(self._write_answer)
        answering.addErrback(self._broken)

    def _write_answer(self, answer: Answer) -> None:
        self.factory.queries += 1
        self._write(http.encode_reply(answer.status, answer.body))

    def _write(self, octets: bytes) -> None:
        if self in self.factory.connections:
            self.write_body(octets)

    def reply_written(self) -> None:
        """Go on with the next request."""
        self._answering = False
        self.active_at = self.factory.clock.seconds()
        if self._requests or self._closes or self._fault or self._paused:
            self._next()

    def unclogged(self) -> None:
        """Go on with the stream, or with the next request."""
        if isinstance(self._follower, _Follower):
            self._follower.go_on()
        elif not self._answering:
            self._next()

    def _broken(self, failure: Failure) -> None:
        self._log.failure("a reply could not be written", failure)
        self.abort()

    # -- queries and purges -----------------------------------------------------------------------

    async def _query(self, request: HttpRequest) -> Answer:
        status = http.request_status(request, query.PATHS, query.ABSENT_PATHS)
        if status == 501:
            error = QueryError(errno.ENOSYS, "not offered by this service")
            return Answer(501, reply_xml.write_error(request.path, error))
        if status != 200:
            error = QueryError(errno.EPERM, "not allowed")
            return Answer(status, reply_xml.write_error(request.path, error))
        if request.path == "/purgeRequest":
            # In a thread as well: a list of jobs can be long.
            asked = await self.factory.book.read(
                lambda reader: request_xml.parse_request(
                    request.path, request.body, reader.check_time
                )
            )
            assert isinstance(asked, PurgeRequest)
            return await self.factory.purger.purge(asked)
        limits = self.factory.limits

        def work(connection: Snapshot) -> Answer:
            def check() -> None:
                if self not in self.factory.connections:
                    raise _Abandoned
                connection.check_time()

            check()
            asked = request_xml.parse_request(request.path, request.body, check)
            return answers.answer(connection, asked, evolve(limits, check_time=check))

        return await self.factory.book.read(work)

    def _query_failed(self, failure: Failure, request: HttpRequest) -> Answer:
        path = request.path
        error = failure.value
        if isinstance(error, BadRequest):
            self._log.debug("{peer}: {reason}", peer=str(self.peer), reason=str(error))
            return Answer(400)
        if isinstance(error, QueryError):
            return Answer(query.http_status(error.number, path), reply_xml.write_error(path, error))
        if isinstance(error, (Overloaded, StoreClosed)):
            busy = QueryError(errno.EAGAIN, str(error))
            return Answer(503, reply_xml.write_error(path, busy))
        if isinstance(error, _Abandoned):
            return Answer(500)
        if isinstance(error, QueryTimeout):
            self._log.warn("{peer}: a query took {reason}", peer=str(self.peer), reason=str(error))
        elif isinstance(error, (sqlite3.Error, OSError)):
            self._log.warn("{path} failed: {reason}", path=path, reason=str(error))
        else:
            self._log.failure("answering {path}", failure, path=path)
        return Answer(500)

    # -- the event stream -------------------------------------------------------------------------

    async def _stream_request(self, request: HttpRequest) -> None:
        _, _, text = request.target.partition("?")
        if request.path == stream.CURSOR_PATH:
            if request.method not in ("POST", "PUT"):
                raise StreamError("expected POST")
            consumer, position = stream.parse_cursor(text)
            if await self.factory.book.move_cursor(consumer, position):
                self._write(_json_reply(200, {"position": position}))
            else:
                self._write(_json_reply(503, {"error": "too many consumers"}))
            return
        if request.method != "GET":
            raise StreamError("expected GET")
        config = self.factory.book.config.stream
        wanted = stream.parse_request(text, request.headers, config.max_filter_values)
        as_stream = stream.EVENT_STREAM in request.headers.get("accept", "")
        await self._follow(wanted, as_stream)

    async def _follow(self, wanted: StreamRequest, as_stream: bool) -> None:
        book = self.factory.book
        after = wanted.after
        if wanted.consumer:
            if after is None:
                after = await book.cursor(wanted.consumer)
                if after is None:  # its first visit: from the beginning of what there is
                    after = 0
            elif not await book.move_cursor(wanted.consumer, after):
                self._write(_json_reply(503, {"error": "too many consumers"}))
                return
        if after is None:
            after = book.hub.newest
        if self not in self.factory.connections:
            return
        follower = _Follower(self) if as_stream else _Poll(self, wanted, after)
        subscription = book.hub.subscribe(wanted.filter, after, follower)
        if subscription is None:
            self._write(_json_reply(503, {"error": _TOO_MANY_FOLLOWERS}))
            return
        self._follower = follower
        follower.start(subscription)

    def _stream_failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, StreamError):
            self._write(_json_reply(400, {"error": str(error)}))
        elif isinstance(error, (Overloaded, QueryTimeout, StoreClosed)):
            self._write(_json_reply(503, {"error": str(error)}))
        elif isinstance(error, sqlite3.Error):
            reason = failure_reply(error).text
            self._log.warn("{path} failed: {reason}", path=stream.CURSOR_PATH, reason=reason)
            self._write(_json_reply(503, {"error": reason}))
        else:
            self._log.failure("serving the event stream", failure)
            self._write(_json_reply(500, {"error": "internal error"}))

    def poll_done(self, events: list[StoredEvent], after: int, trimmed: int) -> None:
        """A long poll has what it waited for, or waited long enough."""
        self._follower = None
        shown = b",".join(stream.as_json(one) for one in events)
        body = b'{"events":[%s],"next":%d,"trimmed":%d}' % (shown, after, trimmed)
        self._write(_plain_reply(200, stream.JSON, body))

    # -- ends -------------------------------------------------------------------------------------

    def readConnectionLost(self) -> None:
        """The peer sends no more but may still read (called by Twisted)."""
        if self._follower is not None:
            self.close()
            return
        self._closes = True
        self._next()

    def writeConnectionLost(self) -> None:
        """The peer reads no more (called by Twisted)."""
        self.close()

    def connectionLost(self, reason: Any = None) -> None:
        """The end (called by Twisted)."""
        super().connectionLost(reason)
        self._requests.clear()
        if self._follower is not None:
            self._follower.stop()
            self._follower = None


class _Follower:
    """Sends the stream as server-sent events for as long as the connection lives."""

    def __init__(self, connection: ServeConnection) -> None:
        self._connection = connection
        self._subscription: Subscription | None = None
        self._heartbeat: IDelayedCall | None = None
        self._written_at = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether the connection takes more."""
        return self._subscription is not None and not self._connection.is_clogged

    def start(self, subscription: Subscription) -> None:
        """Begin; the head of the reply says that it has no end."""
        self._subscription = subscription
        self._connection.stream.write(
            b"HTTP/1.1 200 OK\r\nCache-Control: no-cache\r\n"
            b"Content-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            b": gridnet\n" + stream.position_sse(subscription.cursor)
        )
        self._beat()
        subscription.resume()

    def _beat(self) -> None:
        factory = self._connection.factory
        now = factory.clock.seconds()
        seconds = factory.book.config.stream.heartbeat_seconds
        subscription = self._subscription
        if subscription is not None and self.is_ready and now - self._written_at >= seconds:
            self._written_at = now
            self._connection.stream.write(b": \n" + stream.position_sse(subscription.reached))
        self._heartbeat = factory.clock.callLater(seconds, self._beat)

    def deliver(self, batch: Batch) -> None:
        """Send events."""
        self._written_at = self._connection.factory.clock.seconds()
        self._connection.stream.write(batch.octets)

    def tell_trimmed(self, position: int) -> None:
        """Say that events up to *position* may be missing."""
        self._connection.stream.write(stream.trimmed_sse(position))

    def caught_up(self) -> None:
        """Nothing is to be said of that."""

    def fail(self, reason: str) -> None:
        """End the stream; the follower comes again."""
        self._connection.stream.write(f": {reason}\n\n".encode("ascii"))
        self.stop()
        self._connection.close()

    def go_on(self) -> None:
        """The connection takes more."""
        if self._subscription is not None:
            self._subscription.resume()

    def stop(self) -> None:
        """Follow no more."""
        if self._heartbeat is not None and self._heartbeat.active():
            self._heartbeat.cancel()
        if self._subscription is not None:
            self._subscription.cancel()
            self._subscription = None


class _Poll:
    """Waits for the first events, then answers with them."""

    def __init__(self, connection: ServeConnection, wanted: StreamRequest, after: int) -> None:
        config = connection.factory.book.config.stream
        self._connection = connection
        self._wait = min(wanted.wait_seconds, config.max_wait_seconds)
        self._most = min(wanted.limit or config.page_events, config.page_events)
        self._after = after
        self._trimmed = 0
        self._subscription: Subscription | None = None
        self._timer: IDelayedCall | None = None
        self._is_overdue = False
        self.is_ready = True

    def start(self, subscription: Subscription) -> None:
        """Begin to wait."""
        self._subscription = subscription
        self._timer = self._connection.factory.clock.callLater(self._wait, self._waited)
        subscription.resume()

    def deliver(self, batch: Batch) -> None:
        """Answer with the first events."""
        events = list(batch.events[: self._most])
        self._finish(events, events[-1].position)

    def tell_trimmed(self, position: int) -> None:
        """Note that events up to *position* may be missing."""
        self._trimmed = position

    def caught_up(self) -> None:
        """There is nothing yet: the time that has passed meanwhile counts now."""
        if self._is_overdue:
            self._finish_empty()

    def fail(self, reason: str) -> None:
        """Answer with nothing; the follower comes again."""
        self._finish([], self._after)

    def _waited(self) -> None:
        if self._subscription is not None and not self._subscription.is_live:
            self._is_overdue = True  # the store is still being read
        else:
            self._finish_empty()

    def _finish_empty(self) -> None:
        # What was looked at and not wanted need not be looked at again.
        reached = self._subscription.reached if self._subscription is not None else self._after
        self._finish([], max(reached, self._after))

    def _finish(self, events: list[StoredEvent], after: int) -> None:
        self.stop()
        self._connection.poll_done(events, after, self._trimmed)

    def stop(self) -> None:
        """Wait no more."""
        self.is_ready = False
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._subscription is not None:
            self._subscription.cancel()
            self._subscription = None
