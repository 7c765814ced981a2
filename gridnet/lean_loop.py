"""
A loop of its own for lean transports, for a thread that is not the reactor's.

Where the thread that does the work also has the sockets, nothing is handed from thread to thread:
each hand-over wakes a thread and passes the interpreter's lock on, which costs more than most
requests do (docs/design/lbproxy.rst, "One writing thread").
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from gridnet.lean import LeanUnixPort

#: Events taken from the poll set at once.
_EVENTS_AT_ONCE = 1024


class Loop:
    """
    A poll set and calls from other threads.

    One thread makes it turn; what is not said to be for any thread is for that one alone.

    :ivar is_closed: whether it has not been opened yet, or has turned for the last time.
    """

    _log = Logger()

    _poll: select.epoll
    _bell: int

    def __init__(self) -> None:
        self.is_closed = True
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._later: list[Callable[[], None]] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._has_rung = True  # nothing to ring yet
        self._ringing = threading.Lock()  # the bell is not closed meanwhile

    def open(self) -> None:
        """Get what it needs of the system; it may turn from now on."""
        self._poll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add(self._bell, select.EPOLLIN, self._rung)
        os.eventfd_write(self._bell, 1)  # for calls that came before
        self.is_closed = False

    # -- for lean transports

    def add(self, descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        """Call *handler* with the events of *descriptor*; broken ones are always told."""
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """Watch for other events."""
        self._poll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Watch no longer; to be called before the descriptor is closed."""
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def later(self, call: Callable[[], None]) -> None:
        """Call *call* soon, but not from within what is going on."""
        self._later.append(call)

    # -- for any thread

    def call(self, function: Callable[[], None]) -> None:
        """
        Have *function* called by the loop's thread, after what can be read by then has been.

        Functions are called in their order.
        """
        self._calls.append(function)
        if self._has_rung:
            return
        with self._ringing:
            # Once closed it counts as rung for good: its number may be another file's by then.
            if not self._has_rung:
                self._has_rung = True
                os.eventfd_write(self._bell, 1)

    # -- turning

    def turn(self, seconds: float | None) -> None:
        """
        Wait for something to happen, and deal with all that has.

        :param seconds: the longest to wait; None: for ever.
        """
        handlers = self._handlers
        wait = seconds
        while True:
            found = self._poll.poll(wait, _EVENTS_AT_ONCE)
            for descriptor, events in found:
                handler = handlers.get(descriptor)
                if handler is not None:
                    try:
                        handler(events)
                    except Exception:
                        self._log.failure("an event was not taken well")
            if len(found) < _EVENTS_AT_ONCE:
                break
            wait = 0
        while self._later or self._calls:
            self._call_all()

    def _call_all(self) -> None:
        calls, self._later = self._later, []
        for _ in range(len(self._calls)):
            calls.append(self._calls.popleft())
        for call in calls:
            try:
                call()
            except Exception:
                self._log.failure("a call was not taken well")

    def _rung(self, events: int) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        # Before the calls are looked at: one that comes from now on rings again.
        self._has_rung = False

    def close(self) -> None:
        """Give the descriptors back; it turns no more, and takes no more calls."""
        with self._ringing:
            self.is_closed = self._has_rung = True
            os.close(self._bell)
        self._handlers.clear()
        self._poll.close()


class LoopUnixPort(LeanUnixPort):
    """
    A listening UNIX socket whose connections live in a loop.

    It is made, and told to stop, by the reactor's thread; the loop accepts.

    :ivar loop: accepts, and has the connections.
    """

    loop: Loop

    def startReading(self) -> None:
        """Called by Twisted."""
        number = self.fileno()
        self.loop.call(lambda: self.loop.add(number, select.EPOLLIN, self._acceptable))

    def _acceptable(self, events: int) -> None:
        self.doRead()

    def stopReading(self) -> None:
        """Called by Twisted, once the loop looks no longer."""

    def stopListening(self) -> Any:  # type: ignore[override]
        """
        Close the socket; the loop is turning, or closed.

        :returns: a Deferred that fires once it is done.
        """
        if self.loop.is_closed:
            return super().stopListening()
        number = self.fileno()
        stopped: Deferred[Any] = Deferred()
        from_threads = IReactorFromThreads(self.reactor)

        def stop() -> None:
            self.loop.remove(number)
            from_threads.callFromThread(stopped.callback, None)

        def close(_: None) -> Any:
            return super(LoopUnixPort, self).stopListening()

        self.loop.call(stop)
        return stopped.addCallback(close)


def listen_unix(
    reactor: Any, path: Any, factory: Any, backlog: int, mode: int, loop: Loop
) -> LoopUnixPort:
    """
    Listen at the socket *path*; connections live in *loop*.

    :param reactor: of the thread that calls; *factory* is started and stopped by it.
    :param mode: permissions, set once the socket is bound.
    :raises twisted.internet.error.CannotListenError: it cannot be bound.
    """
    port = LoopUnixPort(path, factory, backlog, mode, reactor=reactor)
    port.watch = port.loop = loop
    port.startListening()
    return port
