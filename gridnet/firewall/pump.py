"""
What all spliced connections of one process share: the pipes, and the set of sockets that is
watched.

Pipes are lent to a direction only while octets are in one, so a few serve thousands of
connections.  The sockets live in an epoll set of their own, which is one reader of the reactor.
It is edge triggered: a socket is put in once and taken out once, however often one side must
wait for the other, and nothing between the kernel and whoever is interested looks at it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

#: Whether this system has what it takes.
AVAILABLE = hasattr(os, "splice") and hasattr(select, "epoll")

_SET_PIPE_OCTETS = 1031  # F_SETPIPE_SZ
#: Turns of the pump before the rest of the reactor gets its.
_TURNS = 8
_EVENTS_A_TURN = 256
#: Messages without a look after looks that all were in vain, at most.
_MAX_UNLOOKED = 255
#: Pipes kept when nobody needs them.
_IDLE_PIPES = 16

if AVAILABLE:
    _WATCHED = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
    ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
    WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
    READABLE = select.EPOLLIN | ENDED


class Pipe:
    """A pipe, and what it holds at most."""

    __slots__ = ("octets", "reader", "writer")

    def __init__(self, octets: int) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Imported here: not every system has it.
        import fcntl

        try:
            self.octets = fcntl.fcntl(self.writer, _SET_PIPE_OCTETS, octets)
        except OSError:
            # Above the user's share of pipe memory: as large as the kernel gives.
            self.octets = 65_536

    def close(self) -> None:
        """Give both ends back."""
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """
    Pipes that nobody uses right now, most recently used (so: cached) first.

    :param octets: capacity to ask for.
    :param limit: pipes at once, lent ones included.
    """

    def __init__(self, octets: int, limit: int) -> None:
        self._octets = octets
        self._limit = limit
        self._idle: list[Pipe] = []
        self.lent = 0

    def borrow(self) -> Pipe | None:
        """An empty pipe; None: there is no more to be had."""
        if self._idle:
            self.lent += 1
            return self._idle.pop()
        if self.lent >= self._limit:
            return None
        try:
            pipe = Pipe(self._octets)
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Return *pipe*, which is empty."""
        self.lent -= 1
        if len(self._idle) < _IDLE_PIPES:
            self._idle.append(pipe)
        else:
            pipe.close()

    def discard(self, pipe: Pipe) -> None:
        """Return *pipe*, in which octets were left."""
        self.lent -= 1
        pipe.close()

    def close(self) -> None:
        """Close what is not lent."""
        while self._idle:
            self._idle.pop().close()

    @property
    def idle(self) -> int:
        """Pipes that wait to be borrowed."""
        return len(self._idle)


@implementer(IReadDescriptor)
class Pump:
    """
    Watches sockets and runs whoever is interested in them.

    :ivar pool: the pipes.
    :ivar scratch: where small reads go, one after the other.
    :ivar conversing: a small message has just been passed on that is not its sender's first, so an
        answer may come at once.
    :ivar looks: how often an answer was looked for.
    :ivar looks_answered: how often one came meanwhile.
    :param look_seconds: how long to look for such an answer without going to sleep.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, pool: PipePool, bulk_octets: int, look_seconds: float = 0.0
    ) -> None:
        self.pool = pool
        self.bulk_octets = bulk_octets
        self.conversing = False
        self.looks = self.looks_answered = 0
        self._look_seconds = look_seconds
        #: messages that go without a look after one in vain
        self._pause = 0
        #: how many of them are left
        self._unlooked = 0
        self.clock = IReactorTime(reactor)
        self.scratch = memoryview(bytearray(max(bulk_octets, 65_536)))
        self._reactor = IReactorFDSet(reactor)
        self._epoll = select.epoll()
        self._watchers: dict[int, Callable[[int], None]] = {}
        self._again: list[Callable[[], None]] = []
        #: doRead runs, or will be called: what is in the list above will not be forgotten
        self._awake = False
        self._added = False
        self._running = False
        self._closed = False

    def watch(self, fd: int, watcher: Callable[[int], None]) -> None:
        """
        Call ``watcher(events)`` whenever something changed about *fd*.

        The first call comes with what is true from the beginning, unless *fd* was watched already
        and is only handed over.
        """
        if fd not in self._watchers:
            if not self._added:
                self._added = True
                self._reactor.addReader(self)
            self._epoll.register(fd, _WATCHED)
        self._watchers[fd] = watcher

    def forget(self, fd: int) -> None:
        """Call nobody for *fd* any more, which is about to be closed and so leaves the set."""
        self._watchers.pop(fd, None)

    def run_again(self, run: Callable[[], None]) -> None:
        """Call *run* soon, when others have had their turn."""
        self._again.append(run)
        if not self._awake:
            self._awake = True
            self.clock.callLater(0, self.doRead)

    def close(self) -> None:
        """Give everything back; nothing may be watched any more."""
        self._closed = True
        if self._added:
            self._added = False
            self._reactor.removeReader(self)
        if not self._running:
            self._epoll.close()
        self.pool.close()

    # -- the reactor's side

    def fileno(self) -> int:
        """Called by the reactor."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "firewall"

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor at its end."""

    def doRead(self) -> None:
        """Called by the reactor when something changed about a watched socket."""
        if self._closed:
            return
        self._awake = self._running = True
        poll = self._epoll.poll
        watchers = self._watchers
        for _ in range(_TURNS):
            if self._again:
                again, self._again = self._again, []
                for run in again:
                    try:
                        run()
                    except Exception:
                        self._log.failure("a relayed connection failed")
            events = poll(0, _EVENTS_A_TURN)
            if self.conversing:
                self.conversing = False
                if not events and not self._again:
                    events = self._look()
            if (not events and not self._again) or self._closed:
                break
            for fd, what in events:
                watcher = watchers.get(fd)
                if watcher is None:
                    continue
                try:
                    watcher(what)
                except Exception:
                    self._log.failure("a relayed connection failed")
        self._running = False
        if self._closed:
            # By what the last connection's end set off.
            self._epoll.close()
            return
        self._awake = bool(self._again)
        if self._awake:
            self.clock.callLater(0, self.doRead)

    def _look(self) -> list[tuple[int, int]]:
        """
        What happens in the next moment, asked for again and again.

        A partner that answers at once is heard without sleep and waking, which cost more than
        to relay its message.  Whoever does not is not waited for long, and soon not at all: each
        look in vain doubles how many messages go without one, each answer halves it.
        """
        if self._unlooked or not self._look_seconds:
            self._unlooked = max(0, self._unlooked - 1)
            return []
        self.looks += 1
        poll = self._epoll.poll
        until = monotonic() + self._look_seconds
        while monotonic() < until:
            # Whoever waits for this processor, the partner perhaps, gets it.
            os.sched_yield()
            events = poll(0, _EVENTS_A_TURN)
            if events:
                self.looks_answered += 1
                self._pause >>= 1
                return events
        self._pause = self._unlooked = min(2 * self._pause + 1, _MAX_UNLOOKED)
        return []
