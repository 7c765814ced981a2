"""What both sockets do with connections: count, bound, time out, and say who is there."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import struct
import threading
from collections.abc import Callable, Collection
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

from gridnet import lean, lean_loop
from gridnet.errors import ConfigError, Fault
from gridnet.lean_loop import Loop
from gridnet.time_outs import look_seconds

#: Messages below this are not worth counting against the common buffer.
SMALL_OCTETS = 64 << 10
_CHUNK_OCTETS = 128 << 10
_CREDENTIALS = struct.Struct("3i")
_UNKNOWN = _CREDENTIALS.pack(0, -1, -1)  #: of sockets that are no UNIX sockets


class Budget:
    """Octets that unfinished messages of all connections may take together, for any thread."""

    def __init__(self, octets: int) -> None:
        self.left = octets
        self._lock = threading.Lock()

    def take(self, octets: int) -> bool:
        """Reserve *octets*; False: there is no room for them."""
        with self._lock:
            if octets > self.left:
                return False
            self.left -= octets
            return True

    def give_back(self, octets: int) -> None:
        """Return what was reserved."""
        with self._lock:
            self.left += octets


@frozen
class Peer:
    """Who is at the other end of a UNIX socket, as the kernel says."""

    pid: int
    uid: int
    gid: int

    @property
    def user(self) -> str:
        """The user's name, or number where it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def __str__(self) -> str:
        return f"pid={self.pid} uid={self.uid} gid={self.gid}"


def credentials_of(transport: Any) -> bytes | None:
    """What the kernel says of the peer of a connected UNIX socket, None for other transports."""
    handle = getattr(transport, "socket", None)
    if handle is None:
        return None
    found: bytes = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return None if found == _UNKNOWN else found


class BoundedFactory(Factory):
    """
    Makes connections up to a number, and looks after their time-outs.

    It is started and stopped by the reactor's thread; its connections may live in another.

    :param clock: IReactorTime.
    :ivar run: has a function called in the thread of the connections.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self, clock: Any, max_connections: int, idle_seconds: float, request_seconds: float
    ) -> None:
        self.clock = clock
        self.max_connections = max_connections
        self.idle_seconds = idle_seconds
        self.request_seconds = request_seconds
        self.connections: set[BoundedConnection] = set()
        self.refused = 0
        self.timed_out = 0
        self.run: Callable[[Callable[[], None]], None] = _call
        self._peers: dict[bytes, Peer] = {}
        self._reaper = LoopingCall(lambda: self.run(self._reap))
        self._reaper.clock = clock

    def startFactory(self) -> None:
        """Start looking after time-outs (called by Twisted with the first listener)."""
        if not self._reaper.running:
            self._reaper.start(look_seconds(self.idle_seconds, self.request_seconds), now=False)

    def stopFactory(self) -> None:
        """Stop looking after time-outs (called by Twisted with the last listener)."""
        if self._reaper.running:
            self._reaper.stop()

    def make_connection(self) -> BoundedConnection:
        """A fresh protocol."""
        raise NotImplementedError  # pragma: no cover - every factory here has one

    def buildProtocol(self, addr: Any) -> Any:
        """Accept, unless there are too many (called by Twisted)."""
        if len(self.connections) >= self.max_connections:
            self.refused += 1
            self._log.warn(
                "a connection was closed at once: {count} are open", count=len(self.connections)
            )
            return None
        connection = self.make_connection()
        connection.factory = self
        return connection

    def peer_of(self, transport: Any) -> Peer | None:
        """
        The peer of a connected UNIX socket, None for other transports.

        A process is logged with the first of its connections: many a client makes one for each
        event.  As many processes are remembered as may be connected.
        """
        credentials = credentials_of(transport)
        if credentials is None:
            return None
        peer = self._peers.get(credentials)
        if peer is None:
            if len(self._peers) >= self.max_connections:
                self._peers.clear()
            peer = self._peers[credentials] = Peer(*_CREDENTIALS.unpack(credentials))
            self._log.debug("connections from {peer}", peer=str(peer))
        return peer

    def _reap(self) -> None:
        now = self.clock.seconds()
        for connection in list(self.connections):
            if connection.is_overdue(now):
                self.timed_out += 1
                connection.time_out()

    def end_all(self) -> None:
        """Have all connections read nothing more, and close once they have what they are owed."""
        self._each(lambda connection: connection.end())

    def abort_all(self) -> None:
        """End all connections at once."""
        self._each(lambda connection: connection.abort())

    def _each(self, act: Callable[[BoundedConnection], None]) -> None:
        def act_on_all() -> None:
            for connection in list(self.connections):
                act(connection)

        self.run(act_on_all)


def _call(function: Callable[[], None]) -> None:
    function()


@implementer(IPushProducer)
class BoundedConnection(Protocol):
    """
    A connection with time-outs, a share in the common buffer, and a bound on what it is owed.

    It is its transport's producer: while the peer does not take what was written
    (:attr:`is_clogged`), nothing more is written, and subclasses read nothing more.

    :ivar active_at: when octets last came or went, seconds.
    :ivar began_at: when the present message began to come; None between messages.
    """

    factory: BoundedFactory
    _log = Logger()

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._reserved = 0
        self.active_at = 0.0
        self.began_at: float | None = None
        self.is_clogged = False
        self._rest = memoryview(b"")  # of a reply that is being written
        self.peer: Peer | None = None

    @property
    def stream(self) -> Any:
        """The transport, which is there while connected."""
        assert self.transport is not None
        return self.transport

    @property
    def is_busy(self) -> bool:
        """Whether the peer waits for us, so that no time-out of its runs."""
        return False

    def connectionMade(self) -> None:
        """Count, and see who it is (called by Twisted)."""
        self.active_at = self.factory.clock.seconds()
        self.factory.connections.add(self)
        self.stream.registerProducer(self, True)
        self.peer = self.factory.peer_of(self.transport)

    def connectionLost(self, reason: Any = None) -> None:
        """Uncount (called by Twisted)."""
        self.factory.connections.discard(self)
        self._reserve(0)

    def note_progress(self, held: int, is_partial: bool) -> bool:
        """
        Account for octets that came.

        :param held: octets that are kept of a message that is not whole.
        :param is_partial: whether part of a message has come.
        :returns: False: there is no room for it; the connection is closed.
        """
        now = self.active_at = self.factory.clock.seconds()
        if not is_partial:
            self.began_at = None
            if not self._reserved:
                return True
        elif self.began_at is None:
            self.began_at = now
        # In steps: a share that grows with each read would be counted again each time.
        if self._reserve(-(-held // SMALL_OCTETS) * SMALL_OCTETS if held > SMALL_OCTETS else 0):
            return True
        self._log.warn(
            "{peer}: no room for more than {octets} octets of a message; connection closed",
            peer=str(self.peer),
            octets=held,
        )
        self.abort()
        return False

    def _reserve(self, octets: int) -> bool:
        if octets != self._reserved:
            self._budget.give_back(self._reserved)
            self._reserved = 0
            if not self._budget.take(octets):
                return False
            self._reserved = octets
        return True

    def is_overdue(self, now: float) -> bool:
        """Whether the connection has had its time at *now*."""
        factory = self.factory
        if self.is_clogged:
            return now - self.active_at > factory.request_seconds
        if self.is_busy:
            return False
        if self.began_at is not None:
            return now - self.began_at > factory.request_seconds
        return now - self.active_at > factory.idle_seconds

    def time_out(self) -> None:
        """End an overdue connection."""
        self._log.debug("{peer}: timed out", peer=str(self.peer))
        self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        transport = self.transport
        if transport is None:
            return
        abort = getattr(transport, "abortConnection", None) or transport.loseConnection
        abort()

    def end(self) -> None:
        """Read nothing more, and close once the peer has what it is owed."""
        self.close()

    def close(self) -> None:
        """End the connection once everything written has gone."""
        if self.transport is not None:
            self.stream.unregisterProducer()
            self.stream.loseConnection()

    def write_body(self, octets: bytes) -> None:
        """Write a reply, as fast as the peer takes it; :meth:`reply_written` follows."""
        self._rest = memoryview(octets)
        self._write_on()

    def _write_on(self) -> None:
        self.active_at = self.factory.clock.seconds()
        while self._rest and not self.is_clogged:
            piece, self._rest = self._rest[:_CHUNK_OCTETS], self._rest[_CHUNK_OCTETS:]
            self.stream.write(bytes(piece))
        if not self._rest:
            self.reply_written()

    def reply_written(self) -> None:
        """For subclasses: all of a reply is with the transport."""

    def unclogged(self) -> None:
        """For subclasses: the peer takes more, and no reply is being written."""

    def pauseProducing(self) -> None:
        """The peer does not take what it was given (called by the transport)."""
        if not self.is_clogged:
            # Its time runs from here: a follower may have come and been silent long ago.
            self.active_at = self.factory.clock.seconds()
        self.is_clogged = True

    def resumeProducing(self) -> None:
        """The peer has taken everything (called by the transport)."""
        self.is_clogged = False
        if self._rest:
            self._write_on()
        else:
            self.active_at = self.factory.clock.seconds()
            self.unclogged()

    def stopProducing(self) -> None:
        """The connection is gone (called by the transport)."""
        self._rest = memoryview(b"")


# -- UNIX sockets ---------------------------------------------------------------------------------


def take_over(path: str, what: str) -> None:
    """
    Remove a socket file that nobody answers at.

    :param what: key under which a fault is told.
    :raises ConfigError: somebody answers, or the path is something else than a socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError([Fault(what, f"{path} exists and is no socket")])
    if _answers(path, what):
        raise ConfigError([Fault(what, f"{path} is in use: another instance answers")])
    # Another instance may have come to the same conclusion, and may listen there by now: what is
    # taken away is looked at once more where nobody else takes it for the socket.
    aside = os.path.join(os.path.dirname(path), f".{os.getpid()}")
    try:
        os.rename(path, aside)
        if _answers(aside, what):
            os.rename(aside, path)
            raise ConfigError([Fault(what, f"{path} is in use: another instance has just started")])
        os.unlink(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError([Fault(what, f"{path} cannot be taken over: {error}")]) from None


def _answers(path: str, what: str) -> bool:
    """
    Whether somebody listens at the socket *path*.

    :raises ConfigError: it cannot be told.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:  # a full backlog counts as an answer
            raise ConfigError([Fault(what, f"{path} is in use: {error}")]) from None
    return True


def group_number(name: str) -> int:
    """
    The number of a group.

    :raises ConfigError: there is none of that name.
    """
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError([Fault("lbproxy.socket_group", f"no group {name!r}")]) from None


def listen_unix(
    reactor: Any,
    path: str,
    factory: Factory,
    *,
    backlog: int,
    what: str,
    watch: lean.Watch | Loop,
) -> Any:
    """
    Listen at *path*, for the own user only; :func:`let_in` follows.

    :param what: key under which a fault is told.
    :param watch: watches the connections; a loop accepts them, too.
    :returns: the IListeningPort.
    :raises ConfigError: the path is taken, or cannot be made.
    """
    take_over(path, what)
    before = os.umask(0o177)
    try:
        # Twisted sets the mode after binding; until then the umask holds.
        if isinstance(watch, Loop):
            port: Any = lean_loop.listen_unix(reactor, path, factory, backlog, 0o600, watch)
        else:
            port = lean.listen_unix(reactor, path, factory, backlog, 0o600, watch)
    except Exception as error:
        raise ConfigError([Fault(what, f"{path} cannot be listened at: {error}")]) from None
    finally:
        os.umask(before)
    return port


def let_in(path: str, mode: int, group: str) -> None:
    """
    Give the socket at *path* to *group* (empty: it stays as it is), and set its permissions.

    :raises ConfigError: the process may not do that.
    """
    number = group_number(group) if group else -1
    try:
        if number >= 0:
            os.chown(path, -1, number)
        os.chmod(path, mode)
    except OSError as error:
        fault = f"{path} cannot be given to {group or 'others'}: {error}"
        raise ConfigError([Fault("lbproxy.socket_group", fault)]) from None


def users_of(numbers_or_names: Collection[str]) -> dict[int, str]:
    """User number -> the key it was given by, for those that exist on this host."""
    found = {}
    for key in numbers_or_names:
        if key.isdecimal():
            found[int(key)] = key
            continue
        try:
            found[pwd.getpwnam(key).pw_uid] = key
        except KeyError:
            raise ConfigError([Fault("lbproxy.identities", f"no user {key!r}")]) from None
    return found
