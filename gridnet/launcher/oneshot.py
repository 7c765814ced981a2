"""
A port for one connection, and the program that gets it (docs/protocols/launcher.rst, 5).

Everything up to the program's start is done on bare sockets: a transport would read ahead, and
what it had read the program would never see.
"""

from __future__ import annotations

import hmac
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import LaunchError

TICKET_OCTETS = 4


def bind(interface: str, ports: Sequence[int], chance: random.Random) -> socket.socket:
    """
    A listening socket on one of *ports* (any free one, when there are none).

    :raises LaunchError: all are taken.
    """
    order = list(ports) or [0]
    chance.shuffle(order)
    for port in order:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((interface, port))
            # Nobody but the one: the system keeps no further connection waiting.
            sock.listen(0)
        except OSError:
            sock.close()
            continue
        return sock
    raise LaunchError("No port is free for the program", 503)


@implementer(IReadDescriptor)
class OneShotPort:
    """
    Listens for one connection; hands it over once it has shown its ticket.

    :param sock: a listening socket, not blocking.
    :param ticket: four octets that the client must send first; empty: none.
    :param accepted: called with the connection and its peer's address, nothing read from it but
        the ticket.
    :param gave_up: called instead with the reason.
    """

    _log = Logger()

    def __init__(
        self,
        sock: socket.socket,
        ticket: bytes,
        connect_seconds: float,
        ticket_seconds: float,
        accepted: Callable[[socket.socket, str], None],
        gave_up: Callable[[str], None],
        reactor: Any,
    ) -> None:
        self._socket = sock
        self._ticket = ticket
        self._ticket_seconds = ticket_seconds
        self._accepted = accepted
        self._gave_up = gave_up
        self._reactor = reactor
        self._peer = ""
        self._listening = True
        self._shown = b""
        self._timer = IReactorTime(reactor).callLater(
            connect_seconds, self._give_up, "nobody connected in time"
        )
        reactor.addReader(self)

    def fileno(self) -> int:
        """Called by the reactor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "launcher"

    def doRead(self) -> None:
        """Called by the reactor."""
        with self._log.failuresHandled("one-shot port"):
            if self._listening:
                self._accept()
            else:
                self._read_ticket()

    def _accept(self) -> None:
        try:
            connection, address = self._socket.accept()
        except OSError:
            return  # it is gone again; the next may come
        self._reactor.removeReader(self)
        self._socket.close()
        connection.setblocking(False)
        self._socket = connection
        self._listening = False
        self._peer = address[0]
        if not self._ticket:
            self._hand_over()
            return
        self._timer.reset(self._ticket_seconds)
        self._reactor.addReader(self)

    def _read_ticket(self) -> None:
        try:
            data = self._socket.recv(TICKET_OCTETS - len(self._shown))
        except BlockingIOError:
            return
        except OSError as error:
            self._give_up(f"{self._peer} went away, {error.strerror}")
            return
        self._shown += data
        if not data:
            self._give_up(f"{self._peer} went away")
        elif len(self._shown) == TICKET_OCTETS:
            if hmac.compare_digest(self._shown, self._ticket):
                self._reactor.removeReader(self)
                self._hand_over()
            else:
                self._give_up(f"{self._peer} presented a wrong ticket")

    def _hand_over(self) -> None:
        self._timer.cancel()
        connection, peer = self._socket, self._peer
        self._accepted(connection, peer)

    def _give_up(self, reason: str) -> None:
        self.close()
        self._gave_up(reason if self._listening or self._shown else f"{reason} (no ticket)")

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor when the descriptor breaks."""
        self._give_up("the port broke")

    def close(self) -> None:
        """Listen no more; nobody is called."""
        if self._timer.active():
            self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._reactor.removeReader(self)
            self._socket.close()
