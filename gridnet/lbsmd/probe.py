"""Connecting to a server: to see that it is there, and to give the connection to a script."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IWriteDescriptor
from zope.interface import implementer


@implementer(IWriteDescriptor)
class _Connecting:
    """A socket on its way: the reactor tells when it has arrived."""

    def __init__(self, reactor: Any, connection: socket.socket) -> None:
        self._reactor = reactor
        self._connection = connection
        self._waiting = True
        self.done: Deferred[socket.socket] = Deferred(self._cancelled)
        IReactorFDSet(reactor).addWriter(self)

    def fileno(self) -> int:
        """Called by the reactor."""
        return self._connection.fileno()

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "probe"

    def doWrite(self) -> None:
        """Called by the reactor: connected, or refused."""
        if not self._waiting:
            return
        self._stop()
        code = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and _is_to_itself(self._connection):
            code = errno.ECONNREFUSED
        if code:
            self._connection.close()
            self.done.errback(OSError(code, os.strerror(code)))
        else:
            self.done.callback(self._connection)

    def connectionLost(self, reason: object) -> None:
        """Called by the reactor when it has found an error, which the socket can tell."""
        self.doWrite()

    def _stop(self) -> None:
        self._waiting = False
        IReactorFDSet(self._reactor).removeWriter(self)

    def _cancelled(self, _: object) -> None:
        self._stop()
        self._connection.close()


def _is_to_itself(connection: socket.socket) -> bool:
    """
    Whether the system has given *connection* the very port that it connects to.

    That happens now and then where nobody listens on a port of this host from which the system
    takes those of outgoing connections: the two ends meet in one socket (RFC 9293, 3.5).
    """
    try:
        return bool(connection.getsockname() == connection.getpeername())
    except OSError:
        return False  # reset meanwhile: somebody was there


def connect(reactor: Any, host: str, port: int, seconds: float) -> Deferred[socket.socket]:
    """
    Connect to *host*:*port*, without a byte.

    :param host: IP address text.
    :param seconds: after which it fails with :exc:`twisted.internet.error.TimeoutError`.
    :returns: the socket (non-blocking); whoever gets it closes it.  Fails with OSError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        return _failed(error)
    code = connection.connect_ex((host, port))
    if not code and _is_to_itself(connection):
        code = errno.ECONNREFUSED
    if code not in (0, errno.EINPROGRESS):
        connection.close()
        return _failed(OSError(code, os.strerror(code)))
    done = _Connecting(reactor, connection).done
    timed_out = ConnectTimeoutError(f"no connection within {seconds:g} s")

    def too_late(_: object, __: float) -> socket.socket:
        raise timed_out

    return done.addTimeout(seconds, IReactorTime(reactor), too_late)


def _failed(error: OSError) -> Deferred[socket.socket]:
    done: Deferred[socket.socket] = Deferred()
    done.errback(error)
    return done
