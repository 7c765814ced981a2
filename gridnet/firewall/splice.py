"""
Moving octets between two sockets by the cheaper way, inside the reactor.

Bulk goes through a pipe with splice(2): the kernel hands pages over and Python never sees an
octet.  What one small read takes is copied instead, since that is two system calls, not two
and a pipe (docs/protocols/firewall.rst, 7).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

from gridnet.firewall.meter import Meter
from gridnet.firewall.pump import AVAILABLE, ENDED, READABLE, WRITABLE, Pipe, Pump

#: Turns of one direction before others get theirs.
_ROUNDS = 16
_UNSENT_POLL_SECONDS = 0.02

if AVAILABLE:
    _FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


def unsent(sock: socket.socket) -> int:
    """Octets that the peer of *sock* has not acknowledged yet."""
    # Imported here: not every system has it.
    import fcntl
    import termios

    count = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    except OSError:
        return 0
    return int.from_bytes(count, sys.byteorder)


class Flow:
    """
    One direction of a relayed connection.

    :ivar octets: how many have reached the sink.
    """

    __slots__ = (
        "_ended",
        "_held",
        "_meters",
        "_pipe",
        "_piped",
        "_pump",
        "_relay",
        "_sink",
        "_source",
        "_waiting",
        "bulk",
        "discarding",
        "done",
        "hung_up",
        "octets",
        "readable",
        "writable",
    )

    def __init__(
        self,
        relay: SpliceRelay,
        pump: Pump,
        source: socket.socket,
        sink: socket.socket,
        first: bytes,
        meters: tuple[Meter, ...],
    ) -> None:
        self._relay: Any = relay
        self._pump = pump
        self._source = source
        self._sink = sink
        self._held = first
        self._meters = meters
        self._pipe: Pipe | None = None
        self._piped = 0
        self._ended = False
        self._waiting: Any = None
        self.bulk = False
        self.discarding = False
        self.done = False
        self.hung_up = False
        self.octets = 0
        self.readable = False
        self.writable = True

    @property
    def busy(self) -> bool:
        """Whether something waits for the sink."""
        return bool(self._held) or self._piped > 0

    def run(self) -> None:
        """Move what can be moved now."""
        for _ in range(_ROUNDS):
            if self.done:
                return
            if self._held or self._piped:
                if not self.writable or not self._push():
                    return
            elif self._ended:
                self.done = True
                self._relay.flow_ended(self)
                return
            elif not self.readable or not self._pull():
                return
        self._pump.run_again(self.run)

    def _push(self) -> bool:
        """Give the sink what waits for it; False: there is no point in going on now."""
        try:
            if self._held:
                sent = self._sink.send(self._held)
                self._held = self._held[sent:]
            else:
                pipe = self._pipe
                assert pipe is not None
                sent = os.splice(pipe.reader, self._sink.fileno(), self._piped, None, None, _FLAGS)
                self._piped -= sent
                if not self._piped:
                    self._pipe = None
                    self._pump.pool.give_back(pipe)
        except BlockingIOError:
            self.writable = False
            return False
        except OSError as error:
            self._relay.sink_broke(self, error)
            return False
        self.octets += sent
        return True

    def _pull(self) -> bool:
        """Take from the source; False: there is no point in going on now."""
        room = self._room() if self._meters else 1 << 30
        if not room:
            return False
        if self.bulk and not self.discarding:
            pipe = self._pump.pool.borrow()
            if pipe is not None:
                return self._pull_bulk(pipe, room)
        scratch = self._pump.scratch
        limit = len(scratch) if self.bulk else self._pump.bulk_octets
        try:
            count = self._source.recv_into(scratch, min(limit, room))
        except BlockingIOError:
            self.readable = self.hung_up = False
            return False
        except OSError as error:
            self._relay.source_broke(self, error)
            return False
        if not count:
            self._ended = True
            return True
        if self._meters:
            self._take(count)
        if count >= self._pump.bulk_octets:
            self.bulk = True
        elif not self.hung_up and count < room:
            # A short read has emptied the socket, and what comes next is told anew; but its end
            # has been told already.
            self.readable = False
        if self.discarding:
            return self.readable
        sent = 0
        if self.writable:
            try:
                sent = self._sink.send(scratch[:count])
            except BlockingIOError:
                self.writable = False
            except OSError as error:
                self._relay.sink_broke(self, error)
                return False
            self.octets += sent
        if sent < count:
            self._held = bytes(scratch[sent:count])
            return self.writable
        if self.octets > count and not self.bulk:
            # Not the first message: connections of one question and one answer are not waited for.
            self._pump.conversing = True
        return self.readable

    def _pull_bulk(self, pipe: Pipe, room: int) -> bool:
        want = min(pipe.octets, room)
        try:
            count = os.splice(self._source.fileno(), pipe.writer, want, None, None, _FLAGS)
        except BlockingIOError:
            self._pump.pool.give_back(pipe)
            self.readable = self.hung_up = False
            return False
        except OSError as error:
            self._pump.pool.give_back(pipe)
            if error.errno in (errno.EINVAL, errno.ENOSYS):
                # Not a socket that splices: copy it all.
                self.bulk = False
                return True
            self._relay.source_broke(self, error)
            return False
        if not count:
            self._pump.pool.give_back(pipe)
            self._ended = True
            return True
        if self._meters:
            self._take(count)
        if count < self._pump.bulk_octets:
            self.bulk = False
        self._pipe = pipe
        self._piped = count
        return True

    # -- byte rates

    def _room(self) -> int:
        now = self._pump.clock.seconds()
        room = min(meter.room(now) for meter in self._meters)
        if not room and self._waiting is None:
            pause = max(meter.wait() for meter in self._meters)
            self._waiting = self._pump.clock.callLater(pause, self._room_again)
        return room

    def _room_again(self) -> None:
        self._waiting = None
        self.run()

    def _take(self, count: int) -> None:
        for meter in self._meters:
            meter.take(count)

    # -- the end

    def discard(self) -> None:
        """The sink is gone: read on, for the source's sake, and throw it away."""
        self.discarding = True
        self._held = b""
        self._drop_pipe()

    def close(self) -> None:
        """Hold nothing any more, and nobody who holds this."""
        self.done = True
        self._relay = None
        self._held = b""
        self._drop_pipe()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _drop_pipe(self) -> None:
        if self._pipe is not None:
            self._pump.pool.discard(self._pipe)
            self._pipe = None
            self._piped = 0


def _tell_nobody(error: OSError | None, reset: bool) -> None:
    """For a relay that is over."""


class SpliceRelay:
    """
    Two connected sockets, and the octets between them.

    The end of one direction is passed on when all before it has been; so is a reset, as one.
    When one side takes nothing any more, what it has said is still delivered.

    :param front: the client's socket, not blocking.
    :param back: the server's.
    :param ended: called once with what broke (None: both sides just finished) and whether both
        sockets, which are then not watched any more, are to be reset.
    :param linger_seconds: how long a side may take to read what is left for it.
    """

    def __init__(
        self,
        pump: Pump,
        front: socket.socket,
        back: socket.socket,
        ended: Callable[[OSError | None, bool], None],
        linger_seconds: float,
    ) -> None:
        self._pump = pump
        self._front = front
        self._back = back
        self._ended = ended
        self._linger_seconds = linger_seconds
        self._timer: Any = None
        self._over = False
        self.up: Flow
        self.down: Flow

    def begin(
        self,
        to_server: bytes,
        to_client: bytes,
        meters_up: tuple[Meter, ...],
        meters_down: tuple[Meter, ...],
        client_spoke: bool,
        server_spoke: bool,
    ) -> None:
        """
        Begin to move octets.

        :param to_server: sent to the server before anything else.
        :param to_client: the same for the client.
        :param client_spoke: the client's socket was told to be readable already.
        :param server_spoke: the server's was.
        """
        pump, front, back = self._pump, self._front, self._back
        self.up = Flow(self, pump, front, back, to_server, meters_up)
        self.down = Flow(self, pump, back, front, to_client, meters_down)
        self.up.readable = self.up.hung_up = client_spoke
        self.down.readable = self.down.hung_up = server_spoke
        pump.watch(back.fileno(), self._back_event)
        pump.watch(front.fileno(), self._front_event)
        if to_server or client_spoke:
            self.up.run()
        if to_client or server_spoke:
            self.down.run()

    @property
    def octets(self) -> tuple[int, int]:
        """Octets passed so far, to the server and to the client."""
        return self.up.octets, self.down.octets

    def _front_event(self, events: int) -> None:
        self._event(events, self.up, self.down)

    def _back_event(self, events: int) -> None:
        self._event(events, self.down, self.up)

    def _event(self, events: int, outgoing: Flow, incoming: Flow) -> None:
        """*events* of the socket that *outgoing* starts from and *incoming* goes to."""
        if events & ENDED:
            outgoing.hung_up = True
        if events & READABLE:
            outgoing.readable = True
        if events & WRITABLE and not incoming.writable:
            incoming.writable = True
            if incoming.busy:
                incoming.run()
        if outgoing.readable and not self._over:
            outgoing.run()

    def _opposite(self, flow: Flow) -> Flow:
        return self.down if flow is self.up else self.up

    def _sink_of(self, flow: Flow) -> socket.socket:
        return self._back if flow is self.up else self._front

    def flow_ended(self, flow: Flow) -> None:
        """Everything of *flow* has been delivered, and its source sends no more."""
        other = self._opposite(flow)
        if other.done:
            self._finish(None, False)
        elif not flow.discarding:
            try:
                self._sink_of(flow).shutdown(socket.SHUT_WR)
            except OSError as error:
                self._finish(error, True)
                return
            if other.discarding:
                self._hear_out()

    def sink_broke(self, flow: Flow, error: OSError) -> None:
        """Where *flow* goes nobody listens any more; but what it said may still be under way."""
        other = self._opposite(flow)
        flow.discard()
        if other.discarding:
            self._finish(error, True)
        elif other.done:
            self._reset_once_read(self._sink_of(other), error)
        else:
            other.hung_up = other.readable = True
            self._pump.run_again(other.run)
        self._pump.run_again(flow.run)

    def source_broke(self, flow: Flow, error: OSError) -> None:
        """Where *flow* comes from is gone, and not in peace; all it said has been passed on."""
        flow.done = True
        other = self._opposite(flow)
        if not other.discarding:
            other.discard()
            self._reset_once_read(self._sink_of(flow), error)
            return
        # It had stopped listening before: what it said is an answer that is whole.
        try:
            self._sink_of(flow).shutdown(socket.SHUT_WR)
        except OSError:
            self._finish(error, True)
            return
        self._hear_out()

    def _hear_out(self) -> None:
        """All has been said; the side that still talks gets a while to notice."""
        if self._timer is None:
            self._timer = self._pump.clock.callLater(
                self._linger_seconds, self._finish, None, False
            )

    def _reset_once_read(self, sink: socket.socket, error: OSError) -> None:
        """A reset overtakes what the kernel has not sent yet: let that go first."""
        until = self._pump.clock.seconds() + self._linger_seconds

        def look() -> None:
            if unsent(sink) and self._pump.clock.seconds() < until:
                self._timer = self._pump.clock.callLater(_UNSENT_POLL_SECONDS, look)
            else:
                self._finish(error, True)

        if self._timer is None:
            look()

    def abort(self) -> None:
        """Stop it; *ended* is not called."""
        self._over = True
        self._ended = _tell_nobody
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.up.close()
        self.down.close()
        self._pump.forget(self._front.fileno())
        self._pump.forget(self._back.fileno())

    def _finish(self, error: OSError | None, reset: bool) -> None:
        if not self._over:
            ended = self._ended
            self.abort()
            ended(error, reset)


class Connecting:
    """
    A connection to a server under way.

    :param reached: called once with the connected socket, which *pump* watches, and whether the
        server has sent something already.
    :param failed: called once with what went wrong instead.
    """

    def __init__(
        self,
        pump: Pump,
        host: str,
        port: int,
        options: Callable[[socket.socket], None],
        reached: Callable[[socket.socket, bool], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._pump = pump
        self._reached = reached
        self._failed = failed
        self._address = (host, port)
        self._over = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        options(self._socket)

    def start(self) -> None:
        """Begin; *reached* or *failed* may be called before this returns."""
        result = self._socket.connect_ex(self._address)
        if result == errno.EINPROGRESS:
            # On one host, or a quick network, it is already there.
            again = self._socket.connect_ex(self._address)
            result = 0 if again == errno.EISCONN else again
        if result in (0, errno.EALREADY, errno.EINPROGRESS):
            self._pump.watch(self._socket.fileno(), self._event)
            if result == 0:
                self._succeed(False)
        else:
            self._fail(result)

    def cancel(self) -> None:
        """Give it up; neither is called."""
        if not self._over:
            self._over = True
            self._pump.forget(self._socket.fileno())
            self._socket.close()

    def _event(self, events: int) -> None:
        if events & (WRITABLE | ENDED) and not self._over:
            result = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if result:
                self._pump.forget(self._socket.fileno())
                self._fail(result)
            elif events & select.EPOLLOUT:
                self._succeed(bool(events & READABLE))

    def _succeed(self, spoke: bool) -> None:
        self._over = True
        self._reached(self._socket, spoke)

    def _fail(self, number: int) -> None:
        self._over = True
        self._socket.close()
        self._failed(OSError(number, os.strerror(number)))
