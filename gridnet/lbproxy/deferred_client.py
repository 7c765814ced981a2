"""The LB proxy's client for Twisted: the methods of ``Context``, each giving a Deferred."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed, UserError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from gridnet.lbproxy import frames, http
from gridnet.lbproxy.frames import Reply
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.query import ResultMode
from gridnet.lbproxy.reading import MAX_REPLY_OCTETS, answer_reader, reply_reader
from gridnet.lbproxy.results import JobEvent, JobStatus, LbError
from gridnet.lbproxy.session import (
    Call,
    ClientSettings,
    Conditions,
    Exchange,
    ServerExchange,
    Session,
    StoreExchange,
    calls_by_event,
    registration_fields,
    settings_from,
)
from gridnet.lbproxy.stream_calls import (
    StreamEvent,
    StreamPage,
    check_cursor,
    cursor_target,
    parse_poll,
    stream_target,
)

T = TypeVar("T")
#: Sends a store message to a job's own server: (job id, message, seconds) -> Deferred reply.
DeferredServerLeg = Callable[[JobId, bytes, float], "Deferred[Reply]"]

_MAX_EVENT_OCTETS = 1 << 27
_ACCEPTED = b"HTTP/1.1 200"


class _Asking(Protocol):
    """Sends octets, and fires with what a reader makes of the answer."""

    def __init__(self, octets: bytes, read: Callable[[bytes], Any]) -> None:
        self._octets = octets
        self._read = read
        self.answered: Deferred[Any] = Deferred()

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(self._octets)

    def dataReceived(self, data: bytes) -> None:
        try:
            found = self._read(data)
        except LbError as error:
            self._end(Failure(error))
            return
        if found is not None:
            self._end(found)

    def connectionLost(self, reason: Any = None) -> None:
        self._end(Failure(LbError(errno.EAGAIN, "the connection was lost")))

    def _end(self, found: Any) -> None:
        if not self.answered.called:
            self.answered.callback(found)
        if self.transport is not None:
            self.transport.loseConnection()


class _EventCalls:
    """One call per event type, made from the table of event types."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Callable[..., Deferred[None]]: ...


class DeferredContext(_EventCalls):
    """
    A context of the LB proxy client; see :class:`gridnet.lbproxy.client.Context`.

    Calls of one context go one after the other, since each changes its sequence code.

    :param reactor: IReactorTime, IReactorUNIX, and IReactorTCP for jobs' own servers.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        store: str = "",
        serve: str = "",
        user: str = "",
        source: str = "UserInterface",
        host: str = "",
        instance: str = "",
        level: str = "SYSTEM",
        settings: ClientSettings | None = None,
        server_leg: DeferredServerLeg | None = None,
    ) -> None:
        self._reactor = reactor
        self._session = Session(
            settings or settings_from(os.environ, store, serve, user),
            source,
            host or socket.getfqdn(),
            instance,
            reactor.seconds,
            level,
        )
        self._server_leg = server_leg or self._tcp_leg
        self._lock = DeferredLock()

    @property
    def settings(self) -> ClientSettings:
        """Where the sockets are and how long a call may take."""
        return self._session.settings

    @property
    def job_id(self) -> str:
        """The job that is logged for; empty: none yet."""
        return str(self._session.job_id or "")

    def use_identity(self, user: str) -> None:
        """Log as *user* from now on."""
        self._session.user = user

    def log_line(self, line: bytes) -> Deferred[Reply]:
        """Log an event line as it is; the context's job and code play no part."""
        return self._exchange(StoreExchange(frames.encode_message(line)))

    def get_sequence_code(self) -> str:
        """The code that the next event will carry."""
        return self._session.seqcode

    # -- running calls ----------------------------------------------------------------------------

    def _run(self, call: Call[T]) -> Deferred[T]:
        return self._lock.run(lambda: Deferred.fromCoroutine(self._drive(call)))

    async def _drive(self, call: Call[T]) -> T:
        try:
            wanted = next(call)
            while True:
                try:
                    answers = await self._all(map(self._exchange, wanted))
                except LbError as error:
                    wanted = call.throw(error)
                else:
                    wanted = call.send(answers)
        except StopIteration as done:
            result: T = done.value
            return result

    @staticmethod
    async def _all(exchanges: Iterable[Deferred[Any]]) -> list[Any]:
        """The answers of all; the first fault when there is one, once all have come."""
        answers = []
        for good, answer in await DeferredList(list(exchanges), consumeErrors=True):
            if not good:
                answer.raiseException()
            answers.append(answer)
        return answers

    def _exchange(self, one: Exchange) -> Deferred[Any]:
        settings = self.settings
        if isinstance(one, StoreExchange):
            seconds = settings.log_seconds + one.more_seconds
            return self._ask(settings.store, one.message, reply_reader(), seconds)
        if isinstance(one, ServerExchange):
            return self._server_leg(
                one.job_id, one.message, settings.log_seconds + one.more_seconds
            )
        octets = http.encode_request(one.path, one.body)
        return self._ask(settings.serve, octets, answer_reader(), settings.query_seconds)

    def _ask(
        self, path: str, octets: bytes, read: Callable[[bytes], Any], seconds: float
    ) -> Deferred[Any]:
        endpoint = UNIXClientEndpoint(self._reactor, path, timeout=int(seconds) or 1)
        return self._ask_at(endpoint, octets, read, seconds)

    def _tcp_leg(self, job_id: JobId, message: bytes, seconds: float) -> Deferred[Reply]:
        endpoint = HostnameEndpoint(
            self._reactor, job_id.host.strip("[]"), job_id.port + 1, timeout=seconds
        )
        return self._ask_at(endpoint, message, reply_reader(), seconds)

    def _ask_at(
        self, endpoint: Any, octets: bytes, read: Callable[[bytes], Any], seconds: float
    ) -> Deferred[Any]:
        asking = _Asking(octets, read)
        connecting: Deferred[Any] = connectProtocol(endpoint, asking)
        answering = connecting.addCallback(lambda _: asking.answered)
        answering.addTimeout(seconds, self._reactor)
        return answering.addErrback(self._come_again)

    @staticmethod
    def _come_again(failure: Failure) -> None:
        if isinstance(failure.value, LbError):
            failure.raiseException()
        if failure.check(
            ConnectError,
            ConnectionClosed,
            UserError,
            TimeoutError,
            OSError,
            OverflowError,
            ValueError,
        ):
            raise LbError(errno.EAGAIN, failure.getErrorMessage() or "no answer in time")
        failure.raiseException()

    # -- logging ----------------------------------------------------------------------------------

    def set_logging_job_proxy(
        self,
        job_id: str | JobId,
        seqcode: str | None = None,
        user: str | None = None,
        *,
        duplicate: bool = False,
    ) -> Deferred[None]:
        """Log for *job_id* from now on."""
        return self._run(self._session.set_job(job_id, seqcode, user, duplicate))

    def log_event(self, event: str, /, **fields: Any) -> Deferred[None]:
        """Log one event of any type."""
        return self._run(self._session.log_event(event, fields))

    def register_job_proxy(
        self,
        job_id: str | JobId,
        *,
        ns: str,
        jdl: str = "",
        jobtype: str = "SIMPLE",
        parent: str = "",
        num_subjobs: int = 0,
        seed: str = "",
        wms_dn: str = "",
        user: str | None = None,
        exclusive: bool = False,
    ) -> Deferred[list[str]]:
        """Register a job with its own server and the proxy."""
        fields = registration_fields(ns, jdl, jobtype, parent, num_subjobs, seed, wms_dn)
        return self._run(
            self._session.register(job_id, fields, user=user, exclusive=exclusive, with_server=True)
        )

    def register_job(
        self,
        job_id: str | JobId,
        *,
        ns: str,
        jdl: str = "",
        jobtype: str = "SIMPLE",
        parent: str = "",
        num_subjobs: int = 0,
        seed: str = "",
        wms_dn: str = "",
        user: str | None = None,
        exclusive: bool = False,
    ) -> Deferred[list[str]]:
        """Register a job with the proxy alone."""
        fields = registration_fields(ns, jdl, jobtype, parent, num_subjobs, seed, wms_dn)
        return self._run(
            self._session.register(
                job_id, fields, user=user, exclusive=exclusive, with_server=False
            )
        )

    def register_subjobs_proxy(
        self,
        parent: str | JobId,
        descriptions: Sequence[str],
        ns: str,
        subjobs: Sequence[str | JobId],
    ) -> Deferred[None]:
        """Register subjobs one by one at the proxy."""
        return self._run(self._session.register_subjobs(parent, descriptions, ns, subjobs))

    # -- queries ----------------------------------------------------------------------------------

    def query_sequence_code(self, job_id: str | JobId) -> Deferred[str]:
        """The code of the job's last effective event."""
        return self._run(self._session.query_sequence_code(job_id))

    def job_status(self, job_id: str | JobId, *flags: str) -> Deferred[JobStatus]:
        """The state of one job."""
        return self._run(self._session.job_status(job_id, flags))

    def user_jobs(self, *flags: str) -> Deferred[list[JobStatus]]:
        """All jobs of the context's user."""
        return self._run(self._session.user_jobs(flags))

    def query_jobs(
        self,
        conditions: Conditions,
        *flags: str,
        limit: int = 0,
        mode: ResultMode = ResultMode.UNSET,
    ) -> Deferred[list[JobStatus]]:
        """Jobs that meet *conditions*."""
        return self._run(self._session.query_jobs(conditions, flags, limit, mode))

    def query_events(
        self,
        jobs: Conditions = (),
        events: Conditions = (),
        *,
        limit: int = 0,
        mode: ResultMode = ResultMode.UNSET,
    ) -> Deferred[list[JobEvent]]:
        """Events that meet *events* of jobs that meet *jobs*."""
        return self._run(self._session.query_events(jobs, events, limit, mode))

    def job_log(self, job_id: str | JobId, level: str = "SYSTEM") -> Deferred[list[JobEvent]]:
        """The events of a job up to and with *level*."""
        return self._run(self._session.job_log(job_id, level))

    def query_listener(self, job_id: str | JobId, name: str) -> Deferred[tuple[str, int]]:
        """Host and port where an interactive job listens."""
        return self._run(self._session.query_listener(job_id, name))

    def purge(
        self,
        jobs: Sequence[str | JobId] | None = None,
        timeouts: Mapping[str, int] | None = None,
        *,
        really: bool = True,
        dump: bool = False,
        background: bool = False,
        run_seconds: int = 0,
    ) -> Deferred[tuple[list[str], str]]:
        """Remove jobs."""
        return self._run(
            self._session.purge(
                jobs,
                timeouts,
                really=really,
                dump=dump,
                background=background,
                run_seconds=run_seconds,
            )
        )

    # -- the event stream -------------------------------------------------------------------------

    def poll(
        self,
        after: int | None = None,
        *,
        consumer: str = "",
        wait: float = 30.0,
        jobs: Iterable[str] = (),
        owners: Iterable[str] = (),
        events: Iterable[str] = (),
        states: Iterable[str] = (),
    ) -> Deferred[StreamPage]:
        """Wait for events once."""
        target = stream_target(after, consumer, wait, jobs, owners, events, states)
        octets = b"GET %s HTTP/1.1\r\n\r\n" % target.encode("ascii")
        seconds = wait + self.settings.query_seconds
        asking = self._ask(self.settings.serve, octets, answer_reader(), seconds)
        return asking.addCallback(lambda found: parse_poll(*found))

    def move_cursor(self, consumer: str, position: int) -> Deferred[None]:
        """Tell the service how far *consumer* has come."""
        octets = b"POST %s HTTP/1.1\r\n\r\n" % cursor_target(consumer, position).encode("ascii")
        settings = self.settings
        asking = self._ask(settings.serve, octets, answer_reader(), settings.query_seconds)
        return asking.addCallback(lambda found: check_cursor(*found))

    def follow(
        self,
        received: Callable[[StreamEvent], object],
        after: int | None = None,
        *,
        consumer: str = "",
        jobs: Iterable[str] = (),
        owners: Iterable[str] = (),
        events: Iterable[str] = (),
        states: Iterable[str] = (),
        trimmed: Callable[[int], object] = lambda position: None,
    ) -> Follower:
        """
        Call *received* with each event as it comes, until the follower is cancelled.

        A service that goes away is waited for, and followed on where it stopped.

        :param after: position of the last event that is known; None: where *consumer* stopped,
            else from now on.
        :param consumer: a name whose cursor the service keeps; :meth:`move_cursor` moves it.
        :param trimmed: called with a position up to which events may be missing, since they were
            asked for too long after their jobs had left.
        """
        target = stream_target(None, consumer, None, jobs, owners, events, states)
        follower = Follower(self._reactor, self.settings.serve, target, after, received, trimmed)
        follower.start()
        return follower


class Follower:
    """
    Follows the event stream by server-sent events.

    :ivar position: everything up to there was received or is not wanted; None: not known yet.
    :ivar done: fires once it is cancelled, or fails with an LbError when the service refuses it.
    """

    def __init__(
        self,
        reactor: Any,
        path: str,
        target: str,
        position: int | None,
        received: Callable[[StreamEvent], object],
        trimmed: Callable[[int], object],
    ) -> None:
        self.position = position
        self.done: Deferred[None] = Deferred()
        self._reactor = reactor
        self._path = path
        self._target = target
        self._received = received
        self._trimmed = trimmed
        self._pause = 0.1
        self._timer: IDelayedCall | None = None
        self._connection: _EventSource | None = None
        self._cancelled = False

    def start(self) -> None:
        """Connect."""
        self._timer = None
        last = b"" if self.position is None else b"Last-Event-ID: %d\r\n" % self.position
        head = b"GET %s HTTP/1.1\r\nAccept: text/event-stream\r\n%s\r\n"
        source = _EventSource(head % (self._target.encode("ascii"), last), self)
        connecting = connectProtocol(UNIXClientEndpoint(self._reactor, self._path), source)
        connecting.addCallbacks(self._connected, lambda _: self.lost())

    def _connected(self, source: _EventSource) -> None:
        self._connection = source
        if self._cancelled:
            source.end()

    def got(self, position: int, fields: Mapping[str, Any] | None) -> None:
        """One event came, or None: only how far the stream is."""
        if self._cancelled:
            return
        self._pause = 0.1
        self.position = position
        if fields is not None:
            self._received(StreamEvent(position, fields))

    def missed(self, position: int) -> None:
        """Events up to *position* may be missing."""
        if not self._cancelled:
            self._trimmed(position)

    def refused(self, error: LbError) -> None:
        """The service does not understand what was asked; asking again would not help."""
        if not self._cancelled:
            self._cancelled = True
            self.done.errback(Failure(error))

    def lost(self) -> None:
        """The connection is gone, or was not to be had."""
        self._connection = None
        if not self._cancelled:
            self._timer = self._reactor.callLater(self._pause, self.start)
            self._pause = min(self._pause * 2, 10.0)

    def cancel(self) -> None:
        """Follow no more."""
        if self._cancelled:
            return
        self._cancelled = True
        self.done.callback(None)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._connection is not None:
            self._connection.end()


class _EventSource(Protocol):
    """Reads server-sent events."""

    def __init__(self, request: bytes, follower: Follower) -> None:
        self._request = request
        self._follower = follower
        self._buffer = b""
        self._accepted = self._is_refused = False
        self._answer = http.ReplyReader(MAX_REPLY_OCTETS)

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        if self._is_refused:
            self._read_refusal(data)
            return
        if not self._accepted:
            self._buffer += data
            if len(self._buffer) < len(_ACCEPTED):
                return
            if not self._buffer.startswith(_ACCEPTED):
                self._is_refused = True
                self._read_refusal(self._buffer)
                return
            self._accepted, data = True, b""
        *blocks, self._buffer = (self._buffer + data).split(b"\n\n")
        if len(self._buffer) > _MAX_EVENT_OCTETS:
            self.end()
            return
        for block in blocks:
            self._take(block)

    def _read_refusal(self, data: bytes) -> None:
        """Another answer than a stream: it says why, or is none at all."""
        found = self._answer.receive(data)
        if found is not None:
            try:
                parse_poll(*found)
            except LbError as error:
                if error.number != errno.EAGAIN:
                    self._follower.refused(error)
        if found is not None or self._answer.fault:
            self.end()

    def _take(self, block: bytes) -> None:
        position, value, name = None, b"", b""
        for line in block.splitlines():
            if line.startswith(b"id: ") and line[4:].isdigit():
                position = int(line[4:])
            elif line.startswith(b"data: "):
                value = line[6:]
            elif line.startswith(b"event: "):
                name = line[7:]
        if position is None and name != b"trimmed":
            return
        try:
            fields = json.loads(value) if value else None
            if position is None:
                self._follower.missed(int((fields or {})["position"]))
                return
        except (ValueError, KeyError, TypeError):
            self.end()
            return
        self._follower.got(position, fields)

    def connectionLost(self, reason: Any = None) -> None:
        self._follower.lost()

    def end(self) -> None:
        """Close."""
        if self.transport is not None:
            self.transport.loseConnection()


for _name, _call in calls_by_event(DeferredContext.log_event).items():
    setattr(DeferredContext, _name, _call)
