"""
Connections to servers: HTTP ones, kept and used again, and plain streams.

A connection works for one :class:`User` at a time and tells it what the server says.  What it
says is read as strictly as what clients say: a server that contradicts itself costs its client a
502 and loses the connection.
"""

from __future__ import annotations

from collections import Counter
from errno import EWOULDBLOCK
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import Any, Protocol

from attrs import frozen
from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.dispatch.body import BodyReader, EndlessBody, reply_body
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.head import Framing, HttpError, ReplyHead, find_end, reply_head
from gridnet.dispatch.tls import ClientTls
from gridnet.dispatch.transport import connect
from gridnet.lean import Watch

#: A request that must not be sent twice goes by a kept connection only when the server is
#: unlikely to be closing it this very moment: it was used less than this many seconds ago.
_SURELY_OPEN_SECONDS = 2.0
#: Octets read from a server at once while a large body is passing.
BULK_READ_OCTETS = 262_144


@frozen(cache_hash=True)
class Place:
    """Where a server listens."""

    host: str  #: IP address text
    port: int
    secure: bool = False  #: TLS
    path: str = ""  #: UNIX socket instead of host and port
    name: str = ""  #: host name that it goes by in TLS; empty: none


class User(Protocol):
    """Who a connection works for."""

    def connected(self, link: Link) -> None:
        """The connection stands."""

    def connect_failed(self, reason: str, timed_out: bool) -> None:
        """It does not."""

    def request_paused(self) -> None:
        """The server reads too slowly: send no more until :meth:`request_resumed`."""

    def request_resumed(self) -> None:
        """The server has taken what there was."""

    def reply_received(self, head: ReplyHead, data: bytes, ended: bool) -> None:
        """
        A reply has begun.

        :param data: what has come of its body already.
        :param ended: the reply is whole.
        """

    def output_received(self, data: bytes, ended: bool) -> None:
        """More of the body, or of a stream."""

    def link_failed(self, reason: str, untouched: bool) -> None:
        """
        The connection broke, or the server broke the rules.

        :param untouched: the server has said nothing at all of this reply.
        """


class Link(Protocol):
    """A connection to a server as its user sees it."""

    reused: bool  #: it has carried other requests before

    def write(self, data: bytes) -> None:
        """Send *data*."""

    def end_output(self) -> None:
        """Nothing more will be sent (streams and tunnels)."""

    def pause(self) -> None:
        """Read no more for now."""

    def resume(self) -> None:
        """Read on."""

    def drop(self) -> None:
        """Close; the user hears no more."""

    def release(self, request_whole: bool) -> None:
        """The server has said all; *request_whole*: and has been sent all."""


@implementer(IPushProducer)
class _LinkBase(TwistedProtocol):
    """What both kinds of connections share."""

    transport: Any

    def __init__(self, pool: UpstreamPool, place: Place, user: User) -> None:
        self.pool = pool
        self.place = place
        self.reused = False
        self._user: User | None = user
        self._paused = False

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.transport.registerProducer(self, True)
        if self._user is None:
            self.drop()
        else:
            self._user.connected(self)

    def pauseProducing(self) -> None:
        """Called by the transport: the server reads too slowly."""
        if self._user is not None:
            self._user.request_paused()

    def resumeProducing(self) -> None:
        """Called by the transport."""
        if self._user is not None:
            self._user.request_resumed()

    def stopProducing(self) -> None:
        """Called by the transport as it ends."""

    def write(self, data: bytes) -> None:
        """See :class:`Link`."""
        self.transport.write(data)

    def pause(self) -> None:
        """See :class:`Link`."""
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def resume(self) -> None:
        """See :class:`Link`."""
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def read_in_bulk(self) -> None:
        """Much is coming: read larger pieces."""
        transport = self.transport
        if getattr(transport, "bufferSize", BULK_READ_OCTETS) < BULK_READ_OCTETS:
            transport.bufferSize = BULK_READ_OCTETS

    def end_output(self) -> None:
        """See :class:`Link`."""
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        """Called by the transport: the server has been told that this is all."""

    def drop(self) -> None:
        """See :class:`Link`."""
        self._user = None
        if self.transport is not None:
            self.transport.unregisterProducer()
            self.transport.abortConnection()

    def release(self, request_whole: bool) -> None:
        """
        The user is done, the server has said all.

        :param request_whole: the server has been sent the whole request.
        """
        self._user = None
        if self.transport is not None:
            self.transport.unregisterProducer()
            if self.place.secure:
                # A server that never says good-bye would hold it open.
                self.transport.abortConnection()
            else:
                self.transport.loseConnection()


class HttpLink(_LinkBase):
    """
    One HTTP/1.1 connection to a server.

    :ivar idle_since: when it was last used, seconds.
    :ivar waiting_for_work: whether the pool has it.
    """

    def __init__(self, pool: UpstreamPool, place: Place, user: User) -> None:
        super().__init__(pool, place, user)
        self.idle_since = 0.0
        self.waiting_for_work = False
        self._held = bytearray()
        self._searched = 0
        self._body: BodyReader | None = None
        self._waiting = False  # for the head of a reply
        self._headless = False
        self._upgrade = False
        self._tunnel = False
        self._keep = False
        self._untouched = True

    def request(self, head: bytes, headless: bool, upgrade: bool) -> None:
        """
        Send the *head* of a request.

        :param headless: HEAD: the reply has no body.
        :param upgrade: the reply may change the protocol.
        """
        self._waiting = True
        self._headless = headless
        self._upgrade = upgrade
        self._untouched = True
        self.transport.write(head)

    def take(self, user: User) -> bool:
        """Work for *user* from now on; False: the server has closed meanwhile."""
        if self._broken():
            return False
        self._user = user
        self.reused = True
        return True

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        user = self._user
        if user is None:
            self.drop()  # nobody has asked
        elif self._body is not None:
            self._take_body(data)
        elif self._tunnel:
            user.output_received(data, False)
        elif self._waiting:
            self._untouched = False
            self._held += data
            self._take_head()
        else:
            self._fail("the server speaks out of turn")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self.pool.forget(self)
        user, self._user = self._user, None
        if user is None:
            return
        orderly = reason.check(ConnectionDone) is not None
        if orderly and (self._tunnel or isinstance(self._body, EndlessBody)):
            user.output_received(b"", True)
        else:
            user.link_failed("the server closed the connection early", self._untouched)

    def _take_head(self) -> None:
        while self._waiting:
            try:
                size = find_end(self._held, self._searched, self.pool.config.max_reply_head_octets)
                if not size:
                    self._searched = len(self._held)
                    return
                head = reply_head(bytes(self._held[:size]), self.pool.config.max_headers)
            except HttpError as error:
                self._fail(str(error))
                return
            del self._held[:size]
            self._searched = 0
            if head.status == 101:
                self._switch(head)
            elif head.status >= 200:
                self._begin(head)
            # Other interim replies are for us, who sent the request, and say nothing of use.

    def _switch(self, head: ReplyHead) -> None:
        user = self._user
        if not self._upgrade or not head.upgrade or user is None:
            self._fail("the server changes the protocol unasked")
            return
        self._waiting = False
        self._tunnel = True
        data = bytes(self._held)
        self._held.clear()
        user.reply_received(head, data, False)

    def _begin(self, head: ReplyHead) -> None:
        self._waiting = False
        self._keep = head.keep_alive
        data = bytes(self._held)
        self._held.clear()
        framing = head.framing
        if self._headless or head.status in (204, 304):
            framing = Framing(content_length=0)
        body = self._body = reply_body(framing)
        if framing.content_length is None or framing.content_length > BULK_READ_OCTETS:
            self.read_in_bulk()
        if isinstance(body, EndlessBody):
            self._keep = False
        try:
            piece = body.receive(data) if data else b""
        except HttpError as error:
            self._fail(f"in the reply: {error}")
            return
        user = self._user
        if body.ended:
            self._finished(body)
        if user is not None:
            user.reply_received(head, piece, body.ended)

    def _take_body(self, data: bytes) -> None:
        body = self._body
        user = self._user
        if body is None or user is None:
            return
        try:
            piece = body.receive(data)
        except HttpError as error:
            self._fail(f"in the reply: {error}")
            return
        if body.ended:
            self._finished(body)
        if piece or body.ended:
            user.output_received(piece, body.ended)

    def _finished(self, body: BodyReader) -> None:
        """The reply is whole; the user decides whether the request was, too."""
        self._body = None
        if body.excess:
            self._keep = False

    def release(self, request_whole: bool) -> None:
        """See above; the connection is kept for another user when it can be."""
        self.resume()
        if request_whole and self._keep and not self._waiting and self._body is None:
            self._user = None
            self.pool.keep(self)
        else:
            super().release(request_whole)

    def _fail(self, reason: str) -> None:
        user = self._user
        self.drop()
        if user is not None:
            user.link_failed(reason, False)

    def _broken(self) -> bool:
        """Whether the server has closed, or said something, while nobody listened."""
        socket = getattr(self.transport, "socket", None)
        if socket is None:
            return not getattr(self.transport, "connected", True)
        try:
            socket.recv(1, MSG_PEEK | MSG_DONTWAIT)
        except OSError as error:
            return error.errno != EWOULDBLOCK
        return True


@implementer(IHalfCloseableProtocol)
class StreamLink(_LinkBase):
    """A stream to a stand-alone server."""

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self._untouched = True
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self._untouched = False
        if self._user is not None:
            self._user.output_received(data, False)

    def readConnectionLost(self) -> None:
        """Called by Twisted: the server has said all."""
        user, self._user = self._user, None
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        if user is not None:
            user.output_received(b"", True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        user, self._user = self._user, None
        if user is None:
            return
        if reason.check(ConnectionDone) is not None:
            user.output_received(b"", True)
        else:
            user.link_failed("the server broke the connection", self._untouched)


class Attempt(ClientFactory):
    """One connection to be made."""

    noisy = False

    def __init__(self, protocol: _LinkBase, user: User, tls: ClientTls | None) -> None:
        self._link = protocol
        self._user: User | None = user
        self._tls = tls
        self.connector: Any = None

    def buildProtocol(self, addr: object) -> Any:
        """Called by Twisted."""
        if self._user is None:
            return None
        if self._tls is None:
            return self._link
        return self._tls.under(self._link, self._link.place.name)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        """Called by Twisted."""
        user, self._user = self._user, None
        if user is not None:
            user.connect_failed(reason.getErrorMessage(), reason.check(TimeoutError) is not None)

    def cancel(self) -> None:
        """Nobody wants the connection any more."""
        if self._user is not None:
            self._user = None
            self._link.drop()
            self.connector.disconnect()


class UpstreamPool:
    """
    All connections to servers, idle ones included.

    :ivar in_flight: place -> requests under way.
    :ivar idle: place -> connections that wait for one, latest used last.
    :ivar idle_links: how many these are.
    """

    def __init__(
        self, config: DispatchConfig, reactor: Any, tls: ClientTls, watch: Watch | None = None
    ) -> None:
        self.config = config
        self.reactor = reactor
        self.watch = watch or Watch(reactor)
        self.tls = tls
        self.in_flight: Counter[Place] = Counter()
        self.idle: dict[Place, list[HttpLink]] = {}
        self.idle_links = 0

    def enter(self, place: Place) -> bool:
        """Count a request to *place*; False: there are too many already."""
        if self.in_flight[place] >= self.config.max_relays_per_server:
            return False
        self.in_flight[place] += 1
        return True

    def leave(self, place: Place) -> None:
        """The request is over."""
        left = self.in_flight[place] - 1
        if left > 0:
            self.in_flight[place] = left
        else:
            del self.in_flight[place]

    def kept(self, place: Place, user: User, repeatable: bool) -> HttpLink | None:
        """
        An idle connection to *place* that now works for *user*.

        :param repeatable: the request could be sent again should the connection break.
        """
        waiting = self.idle.get(place)
        while waiting:
            link = waiting[-1]
            if not repeatable and (
                self.reactor.seconds() - link.idle_since >= _SURELY_OPEN_SECONDS
            ):
                return None
            self.forget(link)
            if link.take(user):
                return link
            link.drop()
        return None

    def open_http(self, place: Place, user: User) -> Attempt:
        """Make a new connection; *user* is told."""
        return self._open(HttpLink(self, place, user), place, user)

    def open_stream(self, place: Place, user: User) -> Attempt:
        """Make a new connection; *user* is told."""
        return self._open(StreamLink(self, place, user), place, user)

    def keep(self, link: HttpLink) -> None:
        """*link* has done its work and may do more."""
        waiting = self.idle.get(link.place)
        if waiting is None:
            waiting = self.idle[link.place] = []
        config = self.config
        if len(waiting) >= config.pool_per_server or self.idle_links >= config.pool_total:
            if not waiting:
                del self.idle[link.place]
            link.release(False)
            return
        link.idle_since = self.reactor.seconds()
        link.waiting_for_work = True
        waiting.append(link)
        self.idle_links += 1

    def forget(self, link: HttpLink) -> None:
        """*link* waits for work no longer."""
        if not link.waiting_for_work:
            return
        link.waiting_for_work = False
        self.idle_links -= 1
        waiting = self.idle[link.place]
        waiting.remove(link)
        if not waiting:
            del self.idle[link.place]

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long."""
        for waiting in tuple(self.idle.values()):
            for link in tuple(waiting):
                if now - link.idle_since > self.config.pool_idle_seconds:
                    self.forget(link)
                    link.release(False)

    def close(self) -> None:
        """Close every idle connection."""
        for waiting in tuple(self.idle.values()):
            for link in tuple(waiting):
                self.forget(link)
                link.release(False)

    def _open(self, link: _LinkBase, place: Place, user: User) -> Attempt:
        attempt = Attempt(link, user, self.tls if place.secure else None)
        seconds = self.config.relay_connect_seconds
        if place.path:
            attempt.connector = self.reactor.connectUNIX(place.path, attempt, seconds)
        else:
            attempt.connector = connect(self.watch, place.host, place.port, attempt, seconds)
        return attempt
