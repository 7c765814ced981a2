"""
Stream transports that cost little.

Twisted's own are made for every purpose: each event passes the reactor's logging context, each
write two changes of the poll set and one more turn of the loop, each connection a dozen
attributes that many a protocol never needs.  These are watched by a poll set of their own, which
the reactor sees as one descriptor, are read as soon as they are accepted, and write at once.
With a constant reply over TCP 44,000 requests a second became 125,000
(docs/design/dispatch-performance.rst).
"""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    UserError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IPushProducer,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_READABLE = select.EPOLLIN
_WRITABLE = select.EPOLLOUT
_BROKEN = select.EPOLLHUP | select.EPOLLERR
_NOT_STARTED = -1

#: Octets read at once, unless much is coming.
READ_OCTETS = 65_536
#: Octets that wait for a slow peer before whoever writes is asked to stop.
DEFAULT_WRITE_BUFFER_OCTETS = 65_536
#: Connections accepted in one turn of the reactor, by a process that has the port for itself.
ACCEPTS_A_TURN = 64
#: Events taken from the poll set in one turn of the reactor.
_EVENTS_A_TURN = 256
#: Pieces given to the kernel in one call.
_PIECES_A_CALL = 64
_LINGER_ZERO = b"\1\0\0\0\0\0\0\0"

_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())
_ABORTED = Failure(ConnectionAborted())


class Watching(Protocol):
    """What watches lean transports."""

    def add(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        """Call *handler* with the events of *descriptor*; broken ones are always told."""

    def change(self, descriptor: int, events: int) -> None:
        """Watch for other events."""

    def remove(self, descriptor: int) -> None:
        """Watch no longer; to be called before the descriptor is closed."""

    def later(self, call: Callable[[], None]) -> None:
        """Call *call* soon, but not from within what is going on."""


@implementer(IReadDescriptor)
class Watch:
    """
    The poll set of lean transports, as one descriptor of the reactor.

    It is known to the reactor only while it has something to watch.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._poll: select.epoll | None = None
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._later: list[Callable[[], None]] = []
        self._later_called = False

    def add(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        """Call *handler* with the events of *descriptor*; broken ones are always told."""
        if self._poll is None:
            self._poll = select.epoll()
        if not self._handlers:
            IReactorFDSet(self.reactor).addReader(self)
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Watch for other events."""
        if self._poll is not None:
            self._poll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Watch no longer; to be called before the descriptor is closed."""
        if self._poll is None or self._handlers.pop(descriptor, None) is None:
            return
        self._poll.unregister(descriptor)
        if not self._handlers:
            IReactorFDSet(self.reactor).removeReader(self)

    def later(self, call: Callable[[], None]) -> None:
        """Call *call* soon, but not from within what is going on."""
        self._later.append(call)
        if not self._later_called:
            self._later_called = True
            IReactorTime(self.reactor).callLater(0, self._call_later)

    def _call_later(self) -> None:
        self._later_called = False
        calls, self._later = self._later, []
        for call in calls:
            try:
                call()
            except Exception:
                self._log.failure("a connection's end was not taken well")

    def fileno(self) -> int:
        """Called by the reactor."""
        return -1 if self._poll is None else self._poll.fileno()

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "lean"

    def doRead(self) -> None:
        """Called by the reactor: something has happened to what is watched."""
        if self._poll is None:
            return
        handlers = self._handlers
        for descriptor, events in self._poll.poll(0, _EVENTS_A_TURN):
            handler = handlers.get(descriptor)
            if handler is not None:
                try:
                    handler(events)
                except Exception:
                    # It must not reach the reactor, which would give up all connections for one.
                    self._log.failure("an event was not taken well")

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor as it ends."""


@implementer(ITransport, IConsumer, IPushProducer)
class LeanTransport:
    """
    One connection over a TCP or UNIX socket.

    :ivar bufferSize: octets to read at once.
    """

    __slots__ = (
        "_at_end",
        "_closing",
        "_events",
        "_fileno",
        "_limit",
        "_lost",
        "_paused",
        "_peer",
        "_pending",
        "_pending_octets",
        "_producer",
        "_protocol",
        "_reading",
        "_shutting",
        "_socket",
        "_watch",
        "bufferSize",
    )
    _log = Logger()

    def __init__(
        self,
        sock: socket.socket,
        peer: Any,
        protocol: Any,
        watch: Watching,
        write_buffer_octets: int,
    ) -> None:
        self._socket = sock
        self._fileno = sock.fileno()
        self._peer = peer
        self._protocol = protocol
        self._watch = watch
        self._limit = write_buffer_octets
        self._events = _NOT_STARTED  # what the watch looks for; 0: it does not look
        self._pending: deque[bytes | memoryview] = deque()
        self._pending_octets = 0
        self._producer: Any = None
        self._paused = False  # the producer
        self._reading = True
        self._at_end = False  # of what the peer has to say
        self._closing = False
        self._shutting = False
        self._lost = False
        self.bufferSize = READ_OCTETS

    def start(self, at_once: bool) -> None:
        """
        Begin to read.

        :param at_once: something has probably come already.
        """
        if at_once:
            self._happened(_READABLE)
        if not self._lost:
            self._events = 0
            self._rearm()

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return not self._lost

    @property
    def socket(self) -> socket.socket | None:
        """The socket; None once it is closed."""
        return None if self._lost else self._socket

    # -- what happens

    def _happened(self, events: int) -> None:
        """Called by the watch."""
        try:
            if events & _READABLE:
                self._read()
            elif events & _BROKEN:
                self._end(_LOST)
            if events != _READABLE:
                self._happened_besides(events)
        except Exception:
            self._log.failure("an event of a connection was not taken well")
            self.abortConnection()

    def _happened_besides(self, events: int) -> None:
        """Deal with what is not to be read."""
        if events & _WRITABLE and self._pending:
            self._flush()

    def _read(self) -> None:
        try:
            data = self._socket.recv(self.bufferSize)
        except BlockingIOError:
            return
        except OSError:
            self._end(_LOST)
            return
        if data:
            self._protocol.dataReceived(data)
            return
        half_closed = getattr(self._protocol, "readConnectionLost", None)
        if half_closed is None:
            self._end(_DONE)
            return
        self._reading = False
        self._at_end = True
        self._rearm()
        half_closed()

    def _flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        pending = self._pending
        while pending:
            try:
                sent = self._socket.sendmsg(list(islice(pending, _PIECES_A_CALL)))
            except BlockingIOError:
                self._rearm()
                return
            except OSError:
                self._unwritable()
                return
            self._pending_octets -= sent
            while sent:
                first = pending[0]
                if len(first) > sent:
                    pending[0] = memoryview(first)[sent:]
                    break
                sent -= len(first)
                pending.popleft()
        self._drained()

    def _drained(self) -> None:
        """Everything is sent."""
        if self._producer is not None and self._paused:
            self._paused = False
            self._producer.resumeProducing()
            if self._pending or self._lost:
                return
        if self._closing:
            self._end(_DONE)
            return
        self._rearm()
        if self._shutting:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._end(_LOST)
            else:
                self._watch.later(self._protocol.writeConnectionLost)

    def _unwritable(self) -> None:
        """The peer takes no more; what it has said before may still be there to be read."""
        self._pending.clear()
        self._pending_octets = 0
        self._shutting = True
        if self._reading:
            self._rearm()
        else:
            self._watch.later(self._lose)

    def _lose(self) -> None:
        self._end(_LOST)

    def _rearm(self) -> None:
        """Have the watch look for what is of interest now."""
        before = self._events
        wanted = (_READABLE if self._reading else 0) | (_WRITABLE if self._pending else 0)
        if wanted == before or before == _NOT_STARTED or self._lost:
            return
        self._events = wanted
        if not before:
            self._watch.add(self._fileno, wanted, self._happened)
        elif wanted:
            self._watch.change(self._fileno, wanted)
        else:
            # A peer that has closed would be told of again and again, though what it said
            # before is not wanted yet.
            self._watch.remove(self._fileno)

    def _end(self, reason: Failure) -> None:
        """Close the socket; the protocol hears of it a little later."""
        if self._lost:
            return
        self._lost = True
        self._reading = False
        self._pending.clear()
        self._pending_octets = 0
        self._producer = None
        self._watch.remove(self._fileno)
        if reason is _ABORTED:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._socket.close()
        protocol, self._protocol = self._protocol, None
        self._watch.later(lambda: protocol.connectionLost(reason))

    # -- what protocols call

    def write(self, data: bytes) -> None:
        """Send *data* now, as far as the kernel takes it; the rest when it can."""
        if self._lost or self._shutting:
            return
        if not self._pending:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._unwritable()
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]  # type: ignore[assignment]
        self._pending.append(data)
        self._pending_octets += len(data)
        self._rearm()
        if self._pending_octets > self._limit and self._producer is not None and not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send the pieces of *iovec* as one."""
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        """Close, after what is still to be sent."""
        if self._lost or self._closing:
            return
        self._closing = True
        self._reading = False
        if self._pending:
            self._rearm()
        else:
            self._end(_DONE)

    def loseWriteConnection(self) -> None:
        """Say no more, after what is still to be sent."""
        if self._lost or self._shutting:
            return
        self._shutting = True
        if not self._pending:
            self._drained()

    def abortConnection(self) -> None:
        """Reset the connection."""
        self._end(_ABORTED)

    def pauseProducing(self) -> None:
        """Read no more for now."""
        if self._reading:
            self._reading = False
            self._rearm()

    def resumeProducing(self) -> None:
        """Read on."""
        if not self._reading and not self._lost and not self._closing:
            self._reading = True
            self._rearm()

    def stopProducing(self) -> None:
        """Read no more at all."""
        self.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Ask *producer* to pause while much waits to be sent; it must be a streaming one."""
        if not streaming:
            raise UserError("lean transports have streaming producers only")
        if self._lost:
            producer.stopProducing()
            return
        self._producer = producer
        self._paused = False

    def unregisterProducer(self) -> None:
        """Ask no more."""
        self._producer = None

    def getPeer(self) -> IPv4Address | IPv6Address | UNIXAddress:
        """Who is connected."""
        return _address(self._peer)

    def getHost(self) -> IPv4Address | IPv6Address | UNIXAddress:
        """To which of our addresses."""
        return _address(self._socket.getsockname())


def _address(name: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    if not isinstance(name, tuple):
        return UNIXAddress(name or None)
    kind = IPv4Address if len(name) == 2 else IPv6Address
    return kind("TCP", *name[:2])


class LeanUnixTransport(LeanTransport):
    """
    One connection over a UNIX socket.

    Here the kernel tells a peer that has gone from one that has only said all it has to say: the
    protocol of the former hears at once that the connection is lost.
    """

    __slots__ = ()

    def _happened_besides(self, events: int) -> None:
        super()._happened_besides(events)
        if events & select.EPOLLHUP and self._at_end:
            self._end(_LOST)


class LeanUnixPort(unix.Port):
    """
    A listening UNIX socket whose connections are lean.

    :ivar watch: watches the connections.
    """

    watch: Watching

    def doRead(self) -> None:
        """Called by Twisted: somebody has connected."""
        factory: Any = self.factory
        for _ in range(ACCEPTS_A_TURN):
            if not self.connected:
                return
            try:
                sock, peer = self.socket.accept()
            except BlockingIOError:
                return
            except OSError:
                accept_with_care(self)
                return
            protocol = factory.buildProtocol(_address(peer))
            if protocol is None:
                sock.close()
                continue
            transport = self._lean(sock, peer, protocol)
            protocol.makeConnection(transport)
            transport.start(at_once=True)

    def _lean(self, sock: socket.socket, peer: Any, protocol: Any) -> LeanUnixTransport:
        sock.setblocking(False)
        return LeanUnixTransport(sock, peer, protocol, self.watch, DEFAULT_WRITE_BUFFER_OCTETS)

    def transport(  # type: ignore[override]
        self, sock: socket.socket, protocol: Any, peer: Any, *_: Any
    ) -> LeanUnixTransport:
        """Called by Twisted where it has accepted after all."""
        made = self._lean(sock, peer, protocol)
        made.start(at_once=False)
        return made


def accept_with_care(port: tcp.Port) -> None:
    """
    Let Twisted accept: it knows what to do when there are no descriptors left.

    It turns away what waits, with the descriptor that it has put by for this.
    """
    port.numberAccepts = 1
    tcp.Port.doRead(port)


def listen_unix(
    reactor: Any, path: Any, factory: Any, backlog: int, mode: int, watch: Watch
) -> LeanUnixPort:
    """
    Listen at the socket *path*.

    :param mode: permissions, set once the socket is bound.
    :raises twisted.internet.error.CannotListenError: it cannot be bound.
    """
    port = LeanUnixPort(path, factory, backlog, mode, reactor=reactor)
    port.watch = watch
    port.startListening()
    return port
