"""TCP ports and connections of the dispatcher, which cost little (:mod:`gridnet.lean`)."""

from __future__ import annotations

import select
import socket
from errno import EINPROGRESS
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import ConnectError, TimeoutError, getConnectError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from gridnet.lean import (
    ACCEPTS_A_TURN,
    DEFAULT_WRITE_BUFFER_OCTETS,
    LeanTransport,
    Watch,
    accept_with_care,
)

_WRITABLE = select.EPOLLOUT


class LeanPort(tcp.Port):
    """
    A listening port whose connections are lean.

    Its factory has ``admit(host)``, which gives the protocol for a client of that address, or
    None to turn it away.  Connections of any other factory are Twisted's own: endpoints put
    factories around ours (``haproxy:``) that count on them.

    :cvar watch: watches the connections.
    :cvar write_buffer_octets: what may wait for one of them.
    :cvar accepts_a_turn: connections accepted before others get their turn.
    """

    watch: Watch
    write_buffer_octets = DEFAULT_WRITE_BUFFER_OCTETS
    accepts_a_turn = ACCEPTS_A_TURN

    def startListening(self) -> None:
        """Called by Twisted.  Accepted sockets inherit the option, which saves a call for each."""
        super().startListening()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def doRead(self) -> None:
        """Called by Twisted: somebody has connected."""
        factory: Any = self.factory
        if not hasattr(factory, "admit"):
            super().doRead()
            return
        for _ in range(self.accepts_a_turn):
            if not self.connected:
                return
            try:
                sock, peer = self.socket.accept()
            except BlockingIOError:
                return
            except OSError:
                accept_with_care(self)
                return
            protocol = factory.admit(peer[0])
            if protocol is None:
                sock.close()
                continue
            sock.setblocking(False)
            transport = LeanTransport(sock, peer, protocol, self.watch, self.write_buffer_octets)
            protocol.makeConnection(transport)
            transport.start(at_once=True)


def lean_ports(watch: Watch, write_buffer_octets: int, shared: bool = False) -> type[LeanPort]:
    """
    The class of ports whose connections *watch* watches.

    :param shared: other processes accept from the same socket: one connection at a time leaves
        them their share.
    """
    more: dict[str, Any] = {"watch": watch, "write_buffer_octets": write_buffer_octets}
    if shared:
        more["accepts_a_turn"] = 1
    return type("LeanPort", (LeanPort,), more)


class HeldPort(tcp.Port):
    """A listening port that is bound for others: it accepts nothing itself."""

    def startReading(self) -> None:
        """Called by Twisted; whoever inherits the socket reads."""


class Dialling:
    """
    One connection on its way.

    :param factory: a client factory: its ``buildProtocol`` or ``clientConnectionFailed`` is called.
    """

    def __init__(
        self, watch: Watch, host: str, port: int, factory: Any, timeout_seconds: float
    ) -> None:
        self._watch = watch
        self._factory = factory
        self._peer = (host, port)
        self._over = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket: socket.socket | None = None
        self._timer: Any = None
        try:
            self._socket = sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(self._peer)
        except OSError as error:
            self._fail_later(error)
            return
        if code not in (0, EINPROGRESS):
            self._fail_later(OSError(code, ""))
            return
        watch.add(sock.fileno(), _WRITABLE, self._happened)
        self._timer = IReactorTime(watch.reactor).callLater(timeout_seconds, self._too_late)

    def disconnect(self) -> None:
        """Nobody wants the connection any more; nobody is told."""
        self._close()

    def _happened(self, events: int) -> None:
        sock = self._socket
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(getConnectError(OSError(code, "")))
            return
        protocol = self._factory.buildProtocol(None)
        if protocol is None:
            self._close()
            return
        self._over = True
        self._socket = None
        self._timer.cancel()
        self._watch.remove(sock.fileno())
        transport = LeanTransport(
            sock, self._peer, protocol, self._watch, DEFAULT_WRITE_BUFFER_OCTETS
        )
        # Before the protocol writes: what it writes may have to wait.
        transport.start(at_once=False)
        protocol.makeConnection(transport)

    def _too_late(self) -> None:
        self._fail(TimeoutError())

    def _fail_later(self, error: OSError) -> None:
        self._watch.later(lambda: self._fail(getConnectError(error)))

    def _fail(self, error: ConnectError) -> None:
        if not self._over:
            self._close()
            self._factory.clientConnectionFailed(self, Failure(error))

    def _close(self) -> None:
        self._over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        sock, self._socket = self._socket, None
        if sock is not None:
            if sock.fileno() >= 0:
                self._watch.remove(sock.fileno())
            sock.close()


def connect(watch: Watch, host: str, port: int, factory: Any, timeout_seconds: float) -> Dialling:
    """Connect *factory*, a client factory, to the IP address *host*."""
    return Dialling(watch, host, port, factory, timeout_seconds)
