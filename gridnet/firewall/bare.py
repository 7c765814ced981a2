"""
Accepted sockets without the weight of a Twisted transport.

A connection that is spliced needs its transport for four octets.  Those made here are watched by
the pump from the beginning, so the relay takes them over as they are; with Twisted's own, accepting
and closing took more time than relaying (docs/protocols/firewall.rst, 7).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import cache
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.pump import ENDED, READABLE, WRITABLE, Pump

_log = Logger()
DONE = Failure(ConnectionDone())
ABORTED = Failure(ConnectionAborted())
_LOST = Failure(ConnectionLost())
_READ_OCTETS = 16_384
#: Connections taken before the rest of the reactor gets its turn.
_ACCEPTS_A_TURN = 64
_LINGER_ZERO = b"\1\0\0\0\0\0\0\0"


@cache
def _options(keepalive_seconds: int, stall_seconds: float) -> Sequence[tuple[int, int, int]]:
    found = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    if hasattr(socket, "TCP_KEEPIDLE"):
        found.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive_seconds))
    if hasattr(socket, "TCP_USER_TIMEOUT") and stall_seconds:
        milliseconds = int(stall_seconds * 1000)
        found.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds))
    return found


def set_options(sock: socket.socket, config: FirewallConfig) -> None:
    """What every relayed socket is to have: no delay, and a way to notice a dead peer."""
    for option in _options(config.keepalive_seconds, config.stall_seconds):
        sock.setsockopt(*option)


def close(sock: socket.socket, reset: bool) -> None:
    """Close *sock*, with a reset when the peer is to know that it was not in peace."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    sock.close()


@implementer(ITransport)
class BareTransport:
    """
    As much of a transport as a :class:`gridnet.firewall.protocol.FrontLeg` needs.

    :ivar readable: something has come that has not been read.
    """

    __slots__ = (
        "_buffer",
        "_client",
        "_closing",
        "_hung_up",
        "_lost",
        "_protocol",
        "_pump",
        "_reading",
        "_shutting",
        "_socket",
        "readable",
    )

    def __init__(
        self,
        sock: socket.socket,
        protocol: Any,
        client: tuple[Any, ...],
        server: BarePort,
        sessionno: int,
        reactor: Any,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._protocol = protocol
        self._client = client
        self._pump = server.pump
        self._buffer = b""
        self._reading = True
        self._hung_up = False
        self._shutting = False
        self._closing = False
        self._lost = False
        self.readable = False
        self._pump.watch(sock.fileno(), self._event)

    def _event(self, events: int) -> None:
        if events & ENDED:
            self._hung_up = True
        if events & READABLE:
            self.readable = True
            if self._reading:
                self._read()
        if self._buffer and events & WRITABLE and not self._lost:
            self._flush()

    def _read(self) -> None:
        if not self._reading or self._lost:
            return
        try:
            data = self._socket.recv(_READ_OCTETS)
        except BlockingIOError:
            self.readable = self._hung_up = False
            return
        except OSError:
            self.connectionLost(_LOST)
            return
        if not data:
            self._reading = False
            self._protocol.readConnectionLost()
            return
        if len(data) < _READ_OCTETS and not self._hung_up:
            self.readable = False
        self._protocol.dataReceived(data)
        if self.readable and self._reading:
            self._pump.run_again(self._read)

    def stopReading(self) -> None:
        """Read no more, for now or for ever."""
        self._reading = False

    def startReading(self) -> None:
        """Read again."""
        if not self._reading and not self._lost:
            self._reading = True
            if self.readable:
                self._pump.run_again(self._read)

    pauseProducing = stopReading
    resumeProducing = startReading

    def write(self, data: bytes) -> None:
        """Send *data*, now as far as it goes."""
        if self._lost or self._closing or self._shutting:
            return
        self._buffer += data
        self._flush()

    def writeSequence(self, iovec: Any) -> None:
        """Send the pieces of *iovec*."""
        self.write(b"".join(iovec))

    def _flush(self) -> None:
        if self._buffer:
            try:
                sent = self._socket.send(self._buffer)
            except BlockingIOError:
                return
            except OSError:
                self.connectionLost(_LOST)
                return
            self._buffer = self._buffer[sent:]
        if self._buffer:
            return
        if self._closing:
            self.connectionLost(DONE)
        elif self._shutting:
            self._shut()

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.connectionLost(_LOST)
        else:
            self._protocol.writeConnectionLost()

    def loseWriteConnection(self) -> None:
        """Say no more, after what is still to be sent."""
        if not self._lost and not self._shutting:
            self._shutting = True
            if not self._buffer:
                self._shut()

    def loseConnection(self) -> None:
        """Close, after what is still to be sent."""
        self._reading = False
        if not self._lost:
            self._closing = True
            if not self._buffer:
                self.connectionLost(DONE)

    def abortConnection(self) -> None:
        """Reset the connection."""
        self.connectionLost(ABORTED)

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket and tell the protocol; a reset if *reason* is an abortion."""
        if self._lost:
            return
        self._lost = True
        self._reading = False
        self._pump.forget(self._socket.fileno())
        close(self._socket, reason is ABORTED)
        protocol, self._protocol = self._protocol, None
        protocol.connectionLost(reason)

    def getHandle(self) -> socket.socket:
        """The socket."""
        return self._socket

    def getPeer(self) -> IPv4Address | IPv6Address:
        """Who is connected."""
        return _address(self._client)

    def getHost(self) -> IPv4Address | IPv6Address:
        """To which of our addresses."""
        return _address(self._socket.getsockname())


def _address(name: tuple[Any, ...]) -> IPv4Address | IPv6Address:
    kind = IPv4Address if len(name) == 2 else IPv6Address
    return kind("TCP", *name[:2])


class BarePort(tcp.Port):
    """
    A listening port whose connections are bare.

    :cvar pump: watches them.
    :cvar config: says what the sockets are to have.
    """

    transport = BareTransport  # type: ignore[assignment]
    pump: Pump
    config: FirewallConfig

    def startListening(self) -> None:
        """Called by Twisted.  Accepted sockets inherit the options, which saves their calls."""
        super().startListening()
        set_options(self.socket, self.config)

    def doRead(self) -> None:
        """
        Called by Twisted: somebody connects.

        Twisted's own loop sees to what Python has seen to already (PEP 446), and to much else.
        """
        assert self.factory is not None
        accept, build = self.socket.accept, self.factory.buildProtocol
        kind = IPv4Address if self.addressFamily == socket.AF_INET else IPv6Address
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, name = accept()
            except BlockingIOError:
                return
            except OSError:
                # It is gone again, or there are no descriptors left: Twisted knows what to do.
                super().doRead()
                return
            try:
                protocol = build(kind("TCP", *name[:2]))
                if protocol is None:
                    sock.close()
                    continue
                self.sessionno += 1
                transport = BareTransport(sock, protocol, name, self, self.sessionno, self.reactor)
                protocol.makeConnection(transport)
            except Exception:
                sock.close()
                _log.failure("a connection was not taken")


def bare_ports(pump: Pump, config: FirewallConfig) -> type[BarePort]:
    """The class of ports whose connections *pump* watches."""
    return type("BarePort", (BarePort,), {"pump": pump, "config": config})
