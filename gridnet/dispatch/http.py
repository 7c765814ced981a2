"""
HTTP/1.x as the dispatcher's listener speaks it (docs/protocols/dispatcher.rst, Transport).

One connection is one :class:`HttpConnection`.  Its hot path is short: a segment that is exactly
one request head without a body, seen before, is a key of the listener's
:class:`~gridnet.dispatch.http_factory.HeadCache` and is answered with one write.  Everything else
(heads in pieces, pipelines, bodies, TLS) takes the long way through the same objects, so that it
means the same however it is cut.

A request that cannot be answered at once becomes an :class:`Exchange`.  Requests behind it wait,
so replies keep their order; their octets are bounded, then the client is no longer read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.dispatch.body import BodyReader, request_body
from gridnet.dispatch.head import HttpError, find_end
from gridnet.dispatch.reply import CONTINUE, failure
from gridnet.dispatch.tls import HANDSHAKE_OCTET
from gridnet.table.address import canonical_address

if TYPE_CHECKING:
    from gridnet.dispatch.http_factory import HttpFactory, Prepared

LOCAL_PEER = "127.0.0.1"
#: After so long the rest of a pipeline waits until others have had their turn.
TURN_SECONDS = 0.02


class Exchange(Protocol):
    """What becomes of one request that is not answered at once."""

    def start(self) -> None:
        """Begin; called once, before anything else."""

    def body_received(self, data: bytes) -> None:
        """More of the request's body, or of a tunnel; may come a little after a pause, too."""

    def body_ended(self) -> None:
        """The request is whole, or the client's side of a tunnel has ended."""

    def reply_paused(self) -> None:
        """The client reads too slowly: write no more until :meth:`reply_resumed`."""

    def reply_resumed(self) -> None:
        """The client has read what there was."""

    def client_lost(self) -> None:
        """The client is gone, or has broken the rules; nothing can be written any more."""


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class HttpConnection(TwistedProtocol):
    """
    One client's connection, plain or above TLS.

    :ivar address: IP address text of the client.
    :ivar asked_at: host and port that the client asked, when the transport cannot tell.
    :ivar secure: whether TLS is below.
    :ivar touched: when something last happened, seconds of the factory's coarse clock.
    :ivar evicted: sent away to make room.
    """

    factory: HttpFactory
    transport: Any
    _log = Logger()
    _introduced = True  # the address is the client's, not that of a proxy before it

    def __init__(
        self, factory: HttpFactory, address: str, below: HttpConnection | None = None
    ) -> None:
        self.factory = factory
        self.address = address
        self.counted_address = address  # the peer's, whoever stands behind it
        self.asked_at: tuple[str, int] | None = None
        self.secure = below is not None
        self.touched = factory.now
        self.evicted = False
        self._below = below  # the connection whose TLS layer carries this one
        self._above: HttpConnection | None = None  # the one that our TLS layer carries
        self._handshaken = below is None
        #: Nothing is under way or held: the only state of the hot path.
        self._resting = True
        self._fresh = True  # no octet has come yet
        self._held = bytearray()  # octets of heads not whole, and of requests that wait
        self._searched = 0  # octets of them that hold no end of a head
        self._body: BodyReader | None = None  # of the request under way, until it is whole
        self._dropped = 0  # octets of a body that nobody wants
        self._exchange: Exchange | None = None
        self._tunnel = False
        self._continue_due = False
        self._replied = False  # the exchange has written something
        self._advancing = False
        self._yielding = False
        self._reading = True
        self._body_paused = False
        self._write_full = False
        self._ended = False  # the client will send no more
        self._closing = False
        self._drained = False  # while closing: all is sent, the client is being heard out

    # -- what Twisted calls

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.factory.opened(self)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        if self._resting:
            prepared = self.factory.heads.young.get(data)
            if prepared is not None and prepared.lone:
                self._fresh = False
                self.touched = self.factory.now
                answer = prepared.respond(self)
                if type(answer) is bytes:
                    self.transport.write(answer)
                    if not prepared.keep:
                        self._close()
                else:
                    self._begin(cast(Exchange, answer), None)
                return
        self._received(data)

    def handshakeCompleted(self) -> None:
        """Called by Twisted's TLS layer."""
        self._handshaken = True
        self.touched = self.factory.now
        self.factory.handshake_over(self.socket_side)

    def readConnectionLost(self) -> None:
        """Called by Twisted: the client has finished sending."""
        self._ended = True
        self._resting = False
        if self._closing:
            self.transport.loseConnection()
        elif self._tunnel and self._exchange is not None:
            self._exchange.body_ended()
        elif self._body is not None:
            self._lose_exchange()
            self._close()
        elif self._exchange is None:
            self._advance()
            self._close_if_done()

    def writeConnectionLost(self) -> None:
        """Called by Twisted: what we had to say is sent."""
        self._drained = True
        self.touched = self.factory.now

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted; abrupt ends are what the released clients do."""
        self.factory.closed(self)
        self._closing = True
        self._resting = False
        self._release()
        self._lose_exchange()

    def pauseProducing(self) -> None:
        """Called by the transport: the client reads too slowly."""
        self._write_full = True
        self._resting = False
        if self._exchange is not None:
            self._exchange.reply_paused()
        self._update_reading()

    def resumeProducing(self) -> None:
        """Called by the transport: all that waited is sent."""
        if not self._write_full:
            return
        self._write_full = False
        self.touched = self.factory.now
        if self._exchange is not None:
            self._exchange.reply_resumed()
        else:
            self._advance()
            self._close_if_done()
        self._update_reading()

    def stopProducing(self) -> None:
        """Called by the transport as it ends; :meth:`connectionLost` does the work."""

    # -- what exchanges call

    def want_body(self) -> None:
        """Let the body come: a client that waits for leave gets it."""
        if self._continue_due:
            self._continue_due = False
            if self._body is not None and not self._ended:
                self.transport.write(CONTINUE)

    def pause_body(self) -> None:
        """Read no more of the body, or of the tunnel, for now."""
        if not self._body_paused:
            self._body_paused = True
            self._update_reading()

    def resume_body(self) -> None:
        """Read on."""
        if self._body_paused:
            self._body_paused = False
            self.touched = self.factory.now
            self._update_reading()

    def write(self, data: bytes) -> None:
        """Send octets of the reply."""
        self._replied = True
        self._continue_due = False
        self.touched = self.factory.now
        self.transport.write(data)

    def start_tunnel(self) -> None:
        """From now on octets pass both ways as they are."""
        self._tunnel = True
        if self._held and self._exchange is not None:
            data = bytes(self._held)
            self._release()
            self._exchange.body_received(data)
        if self._ended and self._exchange is not None:
            self._exchange.body_ended()

    def finish(self, keep: bool) -> None:
        """
        The reply is whole.

        :param keep: the reply promised that the connection stays open.
        """
        self._finish_exchange()
        if not keep:
            self._close(linger=self._body is not None)
            return
        self.touched = self.factory.now
        self._advance()
        self._close_if_done()
        self._update_reading()

    def abort(self) -> None:
        """The reply cannot be completed: cut it off so that the client notices."""
        self._finish_exchange()
        self._closing = True
        self._resting = False
        self.transport.unregisterProducer()
        self.transport.abortConnection()

    def local_place(self) -> tuple[str, int]:
        """Host and port that the client asked."""
        if self.asked_at is not None:
            return self.asked_at
        here = self.transport.getHost()
        return getattr(here, "host", ""), getattr(here, "port", 0)

    @property
    def replied(self) -> bool:
        """Whether the exchange under way has written anything."""
        return self._replied

    # -- what the factory calls

    def introduce_later(self) -> None:
        """The transport will know the client only when its first octets are there."""
        self._introduced = False
        self._resting = False

    @property
    def idle(self) -> bool:
        """Whether nobody would miss a reply if it were cut off."""
        return not self.busy and self._above is None

    @property
    def socket_side(self) -> HttpConnection:
        """The connection that has the socket: itself, or the one below its TLS layer."""
        return self._below or self

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._exchange is not None or self._body is not None

    def sweep(self, now: float) -> None:
        """End what takes too long."""
        config = self.factory.config
        silent = now - self.touched
        if self._closing:
            patience = config.linger_seconds if self._drained else config.body_timeout_seconds
            if silent > patience:
                self.transport.abortConnection()
        elif self._above is not None:
            if not self._above._handshaken and silent > config.tls_handshake_seconds:
                self.factory.refused["tls handshake"] += 1
                self._closing = True
                self.transport.abortConnection()
        elif self._exchange is not None or self._body is not None:
            self._sweep_exchange(silent)
        elif self._write_full:
            if silent > config.body_timeout_seconds:
                self.factory.refused["slow reader"] += 1
                self.transport.abortConnection()
        elif self._held or self._fresh:
            if self._handshaken and silent > config.head_timeout_seconds:
                self.factory.refused["slow head"] += 1
                if self._held:
                    self._refuse(HttpError("the head of the request took too long", 408), False)
                else:
                    self._close()
        elif silent > config.keep_alive_seconds:
            self._close()

    def stop(self) -> None:
        """Close as soon as nothing is under way."""
        if self._above is not None:
            if not self._above._handshaken:
                self.transport.abortConnection()
        elif not self.busy and not self._closing:
            self._close()

    def evict(self) -> None:
        """Make room for somebody else."""
        self._closing = True
        self._resting = False
        self.socket_side.transport.abortConnection()

    # -- the long way

    def _received(self, data: bytes) -> None:
        if self._fresh:
            self._fresh = False
            if not self._introduced:
                self._introduced = True
                self.address = peer_address(self.transport.getPeer())
            if data[0] == HANDSHAKE_OCTET and self._below is None and self.factory.tls is not None:
                self._start_tls(data)
                return
        if self._closing:
            return  # drained so that the reset does not overtake our last words
        if self._tunnel and self._exchange is not None:
            self.touched = self.factory.now
            self._exchange.body_received(data)
            return
        if self._body is not None:
            self.touched = self.factory.now
            self._take_body(data)
        else:
            if not self._held:
                self.touched = self.factory.now  # a head's time counts from its first octet
            self._hold(data)
        self._advance()
        self._close_if_done()
        self._update_reading()

    def _hold(self, data: bytes) -> None:
        self._held += data
        self._resting = False
        self.factory.held_octets += len(data)

    def _release(self, size: int | None = None) -> None:
        """Forget the first *size* of the held octets; None: all of them."""
        if size is None:
            size = len(self._held)
        del self._held[:size]
        self.factory.held_octets -= size
        self._searched = 0

    def _advance(self) -> None:
        """Take requests from what is held, as long as each is answered at once."""
        if self._advancing:
            return
        self._advancing = True
        left = self.factory.config.max_pipelined_requests
        seconds = self.factory.reactor.seconds
        until = seconds() + TURN_SECONDS
        try:
            while self._held and not self._closing:
                if self._body is not None:
                    data = bytes(self._held)
                    self._release()
                    self._take_body(data)
                    continue
                if self._exchange is not None or self._write_full or self._yielding:
                    return
                if not left or seconds() > until:
                    self._yielding = True
                    self.factory.reactor.callLater(0, self._go_on)
                    return
                if not self._next_request():
                    return
                left -= 1
        finally:
            self._advancing = False
            self._resting = not (
                self._held
                or self._exchange is not None
                or self._body is not None
                or self._closing
                or self._write_full
                or self._ended
                or self._above is not None
            )

    def _go_on(self) -> None:
        """Others have had their turn."""
        self._yielding = False
        self._advance()
        self._close_if_done()
        self._update_reading()

    def _next_request(self) -> bool:
        """Answer or begin the request at the front of what is held; False: it is not whole."""
        config = self.factory.config
        held = self._held
        while held[:2] == b"\r\n":
            self._release(2)
        if not held or held == b"\r":
            return False
        try:
            size = find_end(held, self._searched, config.max_head_octets)
            if not size:
                self._searched = len(held)
                if self.factory.held_octets > config.max_held_octets:
                    self.factory.refused["held octets"] += 1
                    self._refuse(HttpError("too many requests are waiting", 503), False, False)
                return False
            raw = bytes(held[:size])
            self._release(size)
            prepared = self.factory.heads.get(raw)
        except HttpError as error:
            self.factory.refused["malformed"] += 1
            self._refuse(error, True)
            return False
        self._serve(prepared)
        return True

    def _serve(self, prepared: Prepared) -> None:
        head = prepared.head
        self.touched = self.factory.now
        body = None if head.framing.empty else request_body(head.framing)
        answer = prepared.respond(self)
        if not isinstance(answer, bytes):
            self._continue_due = head.expects_continue
            self._begin(answer, body)
            return
        self._dropped = 0
        self._body = body
        self.transport.write(answer)
        if not prepared.keep:
            self._close(linger=body is not None)

    def _begin(self, exchange: Exchange, body: BodyReader | None) -> None:
        """A request is under way; what is left of its body is *body*."""
        self._resting = False
        self._dropped = 0
        self._replied = False
        self._body = body
        self._exchange = exchange
        exchange.start()
        if body is None and self._exchange is exchange:
            exchange.body_ended()

    def _take_body(self, data: bytes) -> None:
        """Give *data* to the exchange, or drop it when nobody wants it any more."""
        body = self._body
        if body is None:
            return
        self._continue_due = False
        try:
            piece = body.receive(data)
        except HttpError as error:
            self.factory.refused["malformed"] += 1
            replied = self._replied or self._exchange is None
            self._lose_exchange()
            if replied:
                self._close(linger=True)
            else:
                self._refuse(error, True)
            return
        exchange = self._exchange
        if body.ended:
            self._body = None
            if body.excess:
                self._hold(body.excess)
        if exchange is None:
            self._dropped += len(piece)
            if self._body is not None and (
                self._dropped > self.factory.config.max_ignored_body_octets
            ):
                self._close(linger=True)
            return
        if piece:
            exchange.body_received(piece)
        if body.ended and self._exchange is exchange:
            exchange.body_ended()

    def _refuse(self, error: HttpError, linger: bool, final: bool = True) -> None:
        """Say what is wrong, and close."""
        self.factory.count("refused", error.http_status)
        self.transport.write(failure(error.http_status, str(error), final=final))
        self._close(linger=linger)

    def _finish_exchange(self) -> None:
        self._exchange = None
        self._tunnel = False
        self._body_paused = False
        self._continue_due = False

    def _lose_exchange(self) -> None:
        exchange = self._exchange
        self._finish_exchange()
        if exchange is not None:
            exchange.client_lost()

    def _close_if_done(self) -> None:
        """A client that has said all gets its last replies, then the end."""
        if (
            self._ended
            and not self._closing
            and not self._write_full
            and not self._yielding
            and self._exchange is None
        ):
            self._close()

    def _close(self, linger: bool = False) -> None:
        """
        Send what waits, then close.

        :param linger: the client may still be sending: hear it out for a while, since a close
            with unread octets resets the connection and may destroy the reply.
        """
        if self._closing:
            return
        self._closing = True
        self._resting = False
        self.touched = self.factory.now
        self._release()
        self._body = None
        transport = self.transport
        transport.unregisterProducer()
        if linger and not self._ended and not self.secure:
            if not self._reading:
                self._reading = True
                transport.resumeProducing()
            transport.loseWriteConnection()
        else:
            transport.loseConnection()

    def _update_reading(self) -> None:
        """Read, or leave the octets with the kernel, as the state wants."""
        if self._closing or self._ended or self._above is not None:
            return
        if self._body is not None or self._tunnel:
            wanted = not self._body_paused
        elif self._exchange is not None:
            wanted = len(self._held) <= self.factory.config.max_pipelined_octets
        else:
            wanted = not (self._write_full or self._yielding)
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _sweep_exchange(self, silent: float) -> None:
        config = self.factory.config
        if silent <= config.body_timeout_seconds or self._tunnel:
            return
        if self._write_full:
            self.factory.refused["slow reader"] += 1
            self._lose_exchange()
            self.transport.abortConnection()
        elif self._body is not None and not self._body_paused:
            self.factory.refused["slow body"] += 1
            replied = self._replied or self._exchange is None
            self._lose_exchange()
            if replied:
                self.transport.abortConnection()
            else:
                self._refuse(HttpError("the body of the request took too long", 408), True)

    def _start_tls(self, data: bytes) -> None:
        """Put a TLS layer between the transport and a connection like this one."""
        transport = self.transport
        transport.unregisterProducer()
        assert self.factory.tls is not None
        above = HttpConnection(self.factory, self.address, self)
        self._above = above
        self.factory.handshake_begun(self)
        layer = self.factory.tls.under(above)
        # Whoever calls this protocol reaches the layer: no detour on the way of each segment.
        shown = cast(Any, self)
        shown.dataReceived = layer.dataReceived
        shown.readConnectionLost = transport.loseConnection
        lost = self.connectionLost

        def connection_lost(reason: Failure = connectionDone) -> None:
            layer.connectionLost(reason)
            lost(reason)

        shown.connectionLost = connection_lost
        layer.makeConnection(transport)
        layer.dataReceived(data)


def peer_address(address: IAddress | None) -> str:
    """IP address text of a peer; one that has none, such as a UNIX socket, is on this host."""
    host = getattr(address, "host", None)
    return LOCAL_PEER if host is None else plain_address(host)


def plain_address(host: str) -> str:
    """*host*, an IP address text, without the zone and the wrapping of IPv4 in IPv6."""
    return canonical_address(host.partition("%")[0]) or host
