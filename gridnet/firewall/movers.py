"""
The two ways to move octets between client and server: :class:`SpliceMover` takes the sockets
from Twisted and lets the kernel do it, :class:`CopyMover` leaves them to Twisted and works with
whatever transport there is (TLS, ``haproxy:``, any system).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import tcp
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPullProducer,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.firewall.bare import ABORTED, DONE, BareTransport, close, set_options
from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.meter import Meter
from gridnet.firewall.pump import Pump
from gridnet.firewall.splice import Connecting, SpliceRelay
from gridnet.firewall.tickets import Passage

Meters = tuple[tuple[Meter, ...], tuple[Meter, ...]]


class Front(Protocol):
    """The client's side, as a mover sees it."""

    transport: Any

    def server_reached(self) -> None:
        """The server took the connection; :meth:`Mover.begin` may be called."""

    def server_failed(self, reason: str) -> None:
        """It did not."""

    def relay_ended(self, reason: str) -> None:
        """All is over; ``""`` when both sides just finished.  Both connections are closed."""


class Mover(Protocol):
    """Connects to the server and moves octets."""

    @property
    def octets(self) -> tuple[int, int]:
        """Octets passed so far, to the server and to the client."""

    def connect(self, passage: Passage) -> None:
        """Begin to connect; tells the front what came of it."""

    def begin(self, to_server: bytes, to_client: bytes, meters: Meters) -> None:
        """Begin to move octets, these before all others."""

    def abort(self) -> None:
        """Cut the connection to the server; the front is not told."""

    def front_received(self, data: bytes) -> None:
        """The client sent *data*."""

    def front_ended(self) -> None:
        """The client sends no more."""

    def front_lost(self, reason: Failure) -> None:
        """The client is gone."""


def can_splice(transport: object) -> bool:
    """Whether *transport* is a bare socket of ours."""
    if isinstance(transport, BareTransport):
        return True
    return isinstance(transport, tcp.Connection) and not transport.TLS


def ends_alone(transport: Any) -> bool:
    """
    Whether one direction of *transport* can be ended, and the other go on.

    Twisted's TLS cannot; what its layers pass on to the socket below them would cut it off.
    """
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, TLSMemoryBIOProtocol):
            return False
        transport = transport.transport
    return hasattr(transport, "loseWriteConnection")


class SpliceMover:
    """
    Relays by :class:`gridnet.firewall.splice.SpliceRelay`.

    Twisted's transport of the client keeps owning its socket, but is not read while it is
    relayed; the server's socket never was Twisted's.
    """

    def __init__(self, front: Front, config: FirewallConfig, pump: Pump) -> None:
        self._front = front
        self._config = config
        self._pump = pump
        self._connecting: Connecting | None = None
        self._back: socket.socket | None = None
        self._server_spoke = False
        self._relay: SpliceRelay | None = None

    @property
    def octets(self) -> tuple[int, int]:
        """See :class:`Mover`."""
        return self._relay.octets if self._relay is not None else (0, 0)

    def connect(self, passage: Passage) -> None:
        """See :class:`Mover`."""
        self._front.transport.stopReading()
        try:
            self._connecting = Connecting(
                self._pump,
                passage.host,
                passage.port,
                lambda sock: set_options(sock, self._config),
                self._reached,
                self._failed,
            )
        except OSError as error:
            self._failed(error)
            return
        self._connecting.start()

    def _reached(self, back: socket.socket, spoke: bool) -> None:
        self._connecting = None
        self._back = back
        self._server_spoke = spoke
        self._front.server_reached()

    def _failed(self, error: OSError) -> None:
        self._connecting = None
        self._front.transport.startReading()
        self._front.server_failed(error.strerror or str(error))

    def begin(self, to_server: bytes, to_client: bytes, meters: Meters) -> None:
        """See :class:`Mover`."""
        back = self._back
        assert back is not None
        transport = self._front.transport
        self._relay = SpliceRelay(
            self._pump, transport.getHandle(), back, self._ended, self._config.drain_seconds
        )
        client_spoke = getattr(transport, "readable", False)
        self._relay.begin(to_server, to_client, *meters, client_spoke, self._server_spoke)

    def _ended(self, error: OSError | None, reset: bool) -> None:
        self._close_back(reset)
        # Closes the socket, and tells the front's protocol, which knows that it is being relayed.
        self._front.transport.connectionLost(ABORTED if reset else DONE)
        self._front.relay_ended("" if error is None else error.strerror or str(error))

    def abort(self) -> None:
        """See :class:`Mover`."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._relay is not None:
            self._relay.abort()
        elif self._back is not None:
            self._pump.forget(self._back.fileno())
        self._close_back(True)

    def _close_back(self, reset: bool) -> None:
        back, self._back = self._back, None
        if back is not None:
            close(back, reset)

    def front_received(self, data: bytes) -> None:
        """See :class:`Mover`; Twisted does not read what is spliced."""

    def front_ended(self) -> None:
        """See :class:`Mover`."""

    def front_lost(self, reason: Failure) -> None:
        """See :class:`Mover`."""


@implementer(IPushProducer)
class _Valve:
    """
    One transport as a producer for the other: open unless the other is full, or a meter is.
    """

    def __init__(self, transport: Any, clock: IReactorTime, meters: tuple[Meter, ...]) -> None:
        self._transport = transport
        self._clock = clock
        self._meters = meters
        self._full = False
        self._waiting: Any = None
        self.octets = 0

    def passed(self, count: int) -> None:
        """*count* octets came through; perhaps no more may for a while."""
        self.octets += count
        if not self._meters:
            return
        now = self._clock.seconds()
        for meter in self._meters:
            meter.take(count)
        if self._waiting is None and not all(meter.room(now) for meter in self._meters):
            pause = max(meter.wait() for meter in self._meters)
            self._waiting = self._clock.callLater(pause, self._waited)
            if not self._full:
                self._transport.pauseProducing()

    def _waited(self) -> None:
        self._waiting = None
        if not self._full:
            self._transport.resumeProducing()

    def pauseProducing(self) -> None:
        """Called by the other transport when its buffer is full."""
        self._full = True
        if self._waiting is None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Called by the other transport when its buffer is empty."""
        self._full = False
        if self._waiting is None:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """Called by the other transport when it is lost; the relay hears of it elsewhere."""

    def close(self) -> None:
        """Leave no timer behind."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


@implementer(IPullProducer)
class _AfterTheRest:
    """Is asked for more once a transport has given all it had to the kernel."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def resumeProducing(self) -> None:
        """Called by the transport."""
        self._then()

    def stopProducing(self) -> None:
        """Called by the transport when it is lost first."""


def after_the_rest(transport: Any, then: Callable[[], None]) -> None:
    """Call *then* when *transport*, which has no producer now, has nothing left to write."""
    IConsumer(transport).registerProducer(_AfterTheRest(then), False)


@implementer(IHalfCloseableProtocol)
class _BackLeg(TwistedProtocol):
    """The server's side, when Twisted moves the octets."""

    def __init__(self, mover: CopyMover) -> None:
        self._mover = mover

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.transport.pauseProducing()  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self._mover.back_received(data)

    def readConnectionLost(self) -> None:
        """Called by Twisted: the server sends no more."""
        self._mover.back_ended()

    def writeConnectionLost(self) -> None:
        """Called by Twisted: what we said is on its way, its end too."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted: the server is gone."""
        self._mover.back_lost(reason)


class CopyMover:
    """Relays by Twisted's transports, each the other's producer."""

    _log = Logger()

    def __init__(self, front: Front, config: FirewallConfig, reactor: Any) -> None:
        self._front = front
        self._config = config
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._connecting: Any = None
        self._back: Any = None
        self._from_front: _Valve | None = None
        self._from_back: _Valve | None = None
        self._front_open = True
        self._back_open = True
        self._front_held = b""
        self._over = False
        self._aborted = False
        self._front_gone = False
        self._back_gone = False
        self._reason = ""

    @property
    def octets(self) -> tuple[int, int]:
        """See :class:`Mover`."""
        if self._from_front is None or self._from_back is None:
            return 0, 0
        return self._from_front.octets, self._from_back.octets

    def connect(self, passage: Passage) -> None:
        """See :class:`Mover`."""
        self._front.transport.pauseProducing()
        kind = TCP6ClientEndpoint if ":" in passage.host else TCP4ClientEndpoint
        # The front has the time-out that counts.
        endpoint = kind(
            self._reactor, passage.host, passage.port, 2 * self._config.connect_timeout_seconds
        )
        back = _BackLeg(self)
        self._connecting = endpoint.connect(Factory.forProtocol(lambda: back))
        self._connecting.addCallbacks(self._reached, self._failed)
        self._connecting.addErrback(
            lambda failure: self._log.failure("a relayed connection failed", failure)
        )

    def _reached(self, back: _BackLeg) -> None:
        self._connecting = None
        self._back = back.transport
        handle = getattr(self._back, "getHandle", None)
        if handle is not None:
            set_options(handle(), self._config)
        self._front.server_reached()

    def _failed(self, failure: Failure) -> None:
        self._connecting = None
        if not self._over:
            self._front.transport.resumeProducing()
            self._front.server_failed(failure.getErrorMessage())

    def begin(self, to_server: bytes, to_client: bytes, meters: Meters) -> None:
        """See :class:`Mover`."""
        front, back = self._front.transport, self._back
        self._from_front = _Valve(front, self._clock, meters[0])
        self._from_back = _Valve(back, self._clock, meters[1])
        back.registerProducer(self._from_front, True)
        front.registerProducer(self._from_back, True)
        if to_client:
            front.write(to_client)
        if to_server:
            self._from_front.passed(len(to_server))
            back.write(to_server)
        if self._front_held:
            held, self._front_held = self._front_held, b""
            self.front_received(held)
        # Whoever is full or metered has been paused by its valve already.
        self._from_front.resumeProducing()
        self._from_back.resumeProducing()
        if not self._front_open:
            self.front_ended()

    def front_received(self, data: bytes) -> None:
        """See :class:`Mover`."""
        if self._from_front is None:
            self._front_held += data
            return
        self._from_front.passed(len(data))
        self._back.write(data)

    def front_ended(self) -> None:
        """See :class:`Mover`."""
        self._front_open = False
        if self._from_front is None or self._over:
            return
        if self._back_open:
            _end_output(self._back)
        else:
            self._finish()

    def front_lost(self, reason: Failure) -> None:
        """See :class:`Mover`."""
        self._front_gone = True
        if self._over:
            self._see_whether_ended()
        elif reason.check(ConnectionDone):
            # A client under TLS is gone when it has said its last word; it has been passed on.
            self._finish()
        else:
            self._lose(self._back, reason)

    def back_received(self, data: bytes) -> None:
        """The server sent *data*."""
        assert self._from_back is not None
        self._from_back.passed(len(data))
        self._front.transport.write(data)

    def back_ended(self) -> None:
        """The server sends no more."""
        self._back_open = False
        if self._over or self._from_front is None:
            return
        if not self._front_open or not ends_alone(self._front.transport):
            self._finish()
        else:
            _end_output(self._front.transport)

    def back_lost(self, reason: Failure) -> None:
        """The server is gone."""
        self._back_gone = True
        if self._over:
            self._see_whether_ended()
        else:
            self._lose(self._front.transport, reason)

    def _lose(self, other: Any, reason: Failure) -> None:
        """One side is gone, not in peace; *other* is to hear of it after all that was said."""
        self._stop()
        self._reason = reason.getErrorMessage()
        other.unregisterProducer()
        after_the_rest(other, lambda: _cut(other))

    def _finish(self) -> None:
        """Both have said all."""
        self._stop()
        for transport in (self._back, self._front.transport):
            transport.unregisterProducer()
            transport.loseConnection()
        self._see_whether_ended()

    def _see_whether_ended(self) -> None:
        if self._front_gone and self._back_gone and not self._aborted:
            self._front.relay_ended(self._reason)

    def _stop(self) -> None:
        self._over = True
        for valve in (self._from_front, self._from_back):
            if valve is not None:
                valve.close()

    def abort(self) -> None:
        """See :class:`Mover`."""
        self._stop()
        self._aborted = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._back is not None:
            self._back.unregisterProducer()
            self._back.abortConnection()
        if self._from_back is not None:
            self._front.transport.unregisterProducer()


def _end_output(transport: Any) -> None:
    """Say no more on *transport*, after what is still to be written."""
    transport.unregisterProducer()
    transport.loseWriteConnection()


def _cut(transport: Any) -> None:
    transport.unregisterProducer()
    transport.abortConnection()
