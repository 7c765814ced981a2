"""
HTTP/1.x as far as XML-RPC needs it: POST with a known length, one call at a time, keep-alive.

The head is judged before any of the body is kept, so a request that is too large costs its head.
Nobody has a timer of his own: :meth:`RpcFactory.sweep` looks at every connection now and then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from hashlib import sha256
from math import inf
from typing import Any

import httptools
from attrs import frozen
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, dump_certificate
from twisted.internet.interfaces import IHandshakeListener, IPushProducer, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.scire.config import LimitsConfig

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    411: b"Length Required",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}
PATHS = frozenset({b"/", b"/RPC2"})
#: Seconds that the rest of a refused request is heard out, so that its answer is read.
_LINGER_SECONDS = 2.0


@frozen
class Request:
    """One whole request."""

    body: bytes
    authorization: str  #: of that header; "" when there is none


@implementer(IHandshakeListener, IPushProducer)
class RpcConnection(Protocol):
    """
    One connection of a listener.

    :ivar address: IP address text of the peer.
    :ivar calls: requests that came on it.
    """

    factory: RpcFactory
    transport: Any
    _log = Logger()

    def __init__(self, factory: RpcFactory, address: str) -> None:
        self.factory = factory
        self.address = address
        self.calls = 0
        self._digest: str | None = None
        self._names: tuple[str, ...] = ()
        self._parser = httptools.HttpRequestParser(self)
        self._ready: deque[tuple[Request, bool]] = deque()
        self._held: list[bytes] = []  # octets that came while a call was worked on
        self._busy = False
        self._advancing = False
        self._keep = True
        self._write_full = False
        self._closing = False
        self._lost = False
        #: when patience ends, in the factory's clock
        self.deadline = factory.now + factory.limits.handshake_seconds
        self._reset()

    def _reset(self) -> None:
        self._url = b""
        self._head_octets = 0
        self._length: int | None = None
        self._chunked = False
        self._media = b""
        self._authorization = ""
        self._expects = False
        self._body: list[bytes] = []
        self._begun = False

    # -- what Twisted calls

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.transport.setTcpNoDelay(True)
        self.factory.opened(self)
        self.transport.registerProducer(self, True)

    def handshakeCompleted(self) -> None:
        """Called by Twisted's TLS layer."""
        self.deadline = self.factory.now + self.factory.limits.idle_seconds

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        if self._closing:
            return
        if self._busy or self._write_full:
            # A pipeline; the peer is not read further until this call is answered, and until he
            # takes his answers.
            self._held.append(data)
            self.transport.pauseProducing()
            return
        if not self._begun:
            self._begun = True
            self.deadline = self.factory.now + self.factory.limits.request_seconds
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400)
        except httptools.HttpParserError:
            if not self._closing:
                self._refuse(400)
        else:
            self._next()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._lost = self._closing = True
        if reason.check(SSL.Error):
            self.factory.tls_failed(self, reason)
        self._ready.clear()
        self._held.clear()
        self.factory.closed(self)

    def pauseProducing(self) -> None:
        """Called by Twisted: the peer does not take its answers."""
        self._write_full = True
        self.deadline = self.factory.now + self.factory.limits.request_seconds

    def resumeProducing(self) -> None:
        """Called by Twisted: it does."""
        self._write_full = False
        self._rest()
        self._next()

    def stopProducing(self) -> None:
        """Called by Twisted."""

    # -- what the parser calls

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count(len(name) + len(value) + 4)
        name = name.lower()
        if name == b"content-length":
            # Signs, commas and the like have been refused by the parser.
            self._length = int(value)
        elif name == b"transfer-encoding":
            self._chunked = True
        elif name == b"content-type":
            self._media = value.partition(b";")[0].strip().lower()
        elif name == b"authorization":
            self._authorization = value.decode("latin-1")
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"

    def _count(self, octets: int) -> None:
        self._head_octets += octets
        if self._head_octets > self.factory.limits.max_head and not self._closing:
            self._refuse(431)

    def on_headers_complete(self) -> None:
        """The head is whole: judge it."""
        if self._closing:
            return
        if self._parser.get_method() != b"POST":
            self._refuse(405)
        elif self._url.partition(b"?")[0] not in PATHS:
            self._refuse(404)
        elif self._chunked or self._length is None:
            self._refuse(411)
        elif self._length > self.factory.limits.max_request:
            self._refuse(413)
        elif self._media not in (b"text/xml", b"application/xml"):
            self._refuse(415)
        elif self._expects:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._closing:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._closing:
            return
        request = Request(b"".join(self._body), self._authorization)
        self._ready.append((request, self._parser.should_keep_alive()))
        self._reset()

    # -- calls and answers

    def _next(self) -> None:
        if self._advancing:
            return  # an answer that was given at once; the loop below goes on
        self._advancing = True
        try:
            while not self._busy and not self._closing and not self._write_full:
                if self._ready:
                    request, self._keep = self._ready.popleft()
                    self._busy = True
                    self.deadline = inf
                    self.calls += 1
                    self.factory.call(self, request)
                elif self._held:
                    held = b"".join(self._held)
                    self._held.clear()
                    self.transport.resumeProducing()
                    self.dataReceived(held)
                else:
                    return
        finally:
            self._advancing = False

    def answer(self, body: bytes, status: int = 200, header: bytes = b"") -> None:
        """Answer the call under way; *header* is whole lines."""
        if self._lost:
            return
        keep = self._keep and not self.factory.draining
        self._write(status, body, header, keep)
        self._busy = False
        if keep:
            self._rest()
            if self._ready or self._held:
                self._next()
        else:
            self._close()

    def _write(self, status: int, body: bytes, header: bytes, keep: bool) -> None:
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s%s\r\n%s"
            % (
                status,
                _REASONS[status],
                self.factory.date,
                b"text/xml" if status == 200 else b"text/plain",
                len(body),
                header,
                b"" if keep else b"Connection: close\r\n",
                body,
            )
        )

    def _rest(self) -> None:
        if not self._write_full and not self._busy:
            self.deadline = self.factory.now + self.factory.limits.idle_seconds

    def _refuse(self, status: int) -> None:
        header = b"Allow: POST\r\n" if status == 405 else b""
        self._write(status, _REASONS[status] + b"\n", header, False)
        self.factory.refused(self, status)
        self._closing = True
        self._body.clear()
        self.deadline = self.factory.now + _LINGER_SECONDS

    def _close(self) -> None:
        self._closing = True
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        self.deadline = self.factory.now + _LINGER_SECONDS

    def look_at_the_time(self, now: float) -> None:
        """Lose the connection when its time is over."""
        if now < self.deadline:
            return
        if self._begun and not self._closing and not self._write_full:
            # Too slow to send: say so, for what it is worth.
            self._refuse(408)
            self._close()
            return
        self.transport.abortConnection()

    def end(self) -> None:
        """Lose the connection unless a call is under way, which then is its last."""
        if not self._busy:
            self._close()

    @property
    def peer_digest(self) -> str:
        """SHA-256 of the peer's certificate, hexadecimal; "" without one."""
        if self._digest is None:
            certificate = self.transport.getPeerCertificate()
            self._digest = (
                ""
                if certificate is None
                else sha256(dump_certificate(FILETYPE_ASN1, certificate)).hexdigest()
            )
        return self._digest


class RpcFactory(Factory):
    """
    The connections of one listener.

    :param call: called with each request; answers through :meth:`RpcConnection.answer`.
    :ivar now: the coarse clock of its connections, seconds.
    :ivar draining: answers end their connections.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        name: str,
        reactor: IReactorTime,
        limits: LimitsConfig,
        call: Callable[[RpcConnection, Request], None],
    ) -> None:
        self.name = name
        self.limits = limits
        self.call = call
        self.draining = False
        self.connections: set[RpcConnection] = set()
        self._reactor = reactor
        self.sweep()

    def sweep(self) -> None:
        """
        Look at every connection's time.

        To be called several times in the shortest of their time-outs: the clock stands in between.
        """
        self.now = self._reactor.seconds()
        self.date = formatdate(self.now, usegmt=True).encode("ascii")
        for connection in [c for c in self.connections if c.deadline <= self.now]:
            connection.look_at_the_time(self.now)

    def buildProtocol(self, addr: Any) -> Any:
        """Called by Twisted."""
        if self.draining or len(self.connections) >= self.limits.max_connections:
            return None
        return RpcConnection(self, getattr(addr, "host", ""))

    def opened(self, connection: RpcConnection) -> None:
        """A connection was made."""
        self.connections.add(connection)

    def closed(self, connection: RpcConnection) -> None:
        """A connection was lost."""
        self.connections.discard(connection)

    def tls_failed(self, connection: RpcConnection, reason: Failure) -> None:
        """A TLS connection ended badly, as with a certificate of another authority."""
        self._log.warn(
            "{listener}: TLS with {peer} failed, {reason}",
            listener=self.name,
            peer=connection.address,
            reason=str(reason.value),
        )

    def refused(self, connection: RpcConnection, status: int) -> None:
        """A request was refused before it was a call."""
        self._log.warn(
            "{listener}: request of {peer} refused, {status}",
            listener=self.name,
            peer=connection.address,
            status=status,
        )

    def drain(self) -> None:
        """Take no more connections; each ends with the call that is under way."""
        self.draining = True
        for connection in list(self.connections):
            connection.end()
