"""A loop for lean transports in a thread of its own."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet import lean, lean_loop
from gridnet.lean_loop import Loop

WAIT_SECONDS = 60.0


class LoopTests(SynchronousTestCase):
    """Turned by hand."""

    def setUp(self) -> None:
        self.loop = Loop()
        self.told: list[object] = []

    def open(self) -> None:
        self.loop.open()
        self.addCleanup(self.loop.close)

    def note(self, what: object) -> Callable[[], None]:
        return lambda: self.told.append(what)

    def receive(self, ours: socket.socket, events: int) -> None:
        self.told.append(ours.recv(10))

    def test_calls_come_in_order(self) -> None:
        """Those from before the opening, from other threads and from calls themselves."""

        def call() -> None:
            self.told.append(2)
            self.loop.call(self.note(4))

        self.loop.call(self.note(1))
        self.open()
        self.loop.call(call)
        thread = threading.Thread(target=lambda: self.loop.call(self.note(3)))
        thread.start()
        thread.join(WAIT_SECONDS)
        self.loop.turn(WAIT_SECONDS)
        self.assertEqual(self.told, [1, 2, 3, 4])

    def test_a_call_does_not_ring_a_bell_that_is_closed(self) -> None:
        """Closed by its own thread just then: the number may be that of another file by now."""
        self.loop.open()
        turned = threading.Event()

        def close() -> None:
            turned.set()
            self.loop.close()

        closing = threading.Thread(target=close)
        write = os.eventfd_write

        def write_while_it_closes(descriptor: int, value: int) -> None:
            closing.start()
            turned.wait(WAIT_SECONDS)
            closing.join(0.05)  # more than it takes where nothing keeps it from closing
            write(descriptor, value)  # OSError: it is closed

        self.loop.turn(WAIT_SECONDS)
        self.patch(os, "eventfd_write", write_while_it_closes)
        self.loop.call(self.note(1))
        closing.join(WAIT_SECONDS)
        self.assertTrue(self.loop.is_closed)
        self.loop.call(self.note(2))
        self.assertEqual(self.told, [])

    def test_a_call_wakes_it(self) -> None:
        """It does not sleep on while somebody wants something, time after time."""
        self.open()
        for number in range(100):
            thread = threading.Thread(target=lambda n=number: self.loop.call(self.note(n)))
            thread.start()
            while len(self.told) <= number:
                self.loop.turn(None)
            thread.join(WAIT_SECONDS)
        self.assertEqual(self.told, list(range(100)))

    def test_reads_come_before_calls(self) -> None:
        """A call finds what could be read by then done with, however many there are."""
        self.open()
        pairs = [socket.socketpair() for _ in range(40)]
        self.patch(lean_loop, "_EVENTS_AT_ONCE", 8)
        for ours, theirs in pairs:
            self.addCleanup(ours.close)
            self.addCleanup(theirs.close)
            self.loop.add(ours.fileno(), 1, partial(self.receive, ours))
            theirs.send(b"x")
        self.loop.call(self.note("call"))
        self.loop.turn(WAIT_SECONDS)
        self.assertEqual(self.told, [b"x"] * 40 + ["call"])

    def test_faults_are_logged(self) -> None:
        """One in a handler or in a call ends nothing."""
        self.open()
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.loop.add(ours.fileno(), 1, lambda events: self.told.append(ours.recv(events)[9]))
        theirs.send(b"x")
        self.loop.call(lambda: self.told.append(1 // 0))
        self.loop.call(self.note("after"))
        self.loop.turn(WAIT_SECONDS)
        self.assertEqual(self.told, ["after"])
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class _Echo(Protocol):
    threads: set[int]

    def connectionMade(self) -> None:
        self.factory.connections.append(self)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"%d %s" % (threading.get_ident(), data))

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.connections.remove(self)


class PortTests(TestCase):
    """A listening socket whose connections are in another thread."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="lnl")
        self.addCleanup(directory.cleanup)
        self.path = str(Path(directory.name) / "socket")
        self.factory = Factory.forProtocol(_Echo)
        self.factory.connections = []  # type: ignore[attr-defined]
        self.loop = Loop()
        self.ending = False

    def listen(self) -> lean_loop.LoopUnixPort:
        return lean_loop.listen_unix(reactor, self.path, self.factory, 10, 0o600, self.loop)

    def run_loop(self) -> threading.Thread:
        def run() -> None:
            while not self.ending:
                self.loop.turn(None)
            self.loop.close()

        def end() -> None:
            self.ending = True

        self.loop.open()
        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(deferToThread, thread.join, WAIT_SECONDS)
        self.addCleanup(self.loop.call, end)
        return thread

    def ask(self) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT_SECONDS)
            client.connect(self.path)
            client.sendall(b"hello")
            return client.recv(100)

    def test_the_thread_accepts_and_answers(self) -> Deferred[None]:
        """Connections are the loop's from their beginning to their end."""

        async def work() -> None:
            thread = self.run_loop()
            port = self.listen()
            for _ in range(3):
                self.assertEqual(await deferToThread(self.ask), b"%d hello" % (thread.ident or 0))
            await port.stopListening()
            self.assertFalse(os.path.exists(self.path))
            gone: Deferred[None] = Deferred()
            self.loop.call(lambda: reactor.callFromThread(gone.callback, None))  # type: ignore[attr-defined]
            await gone
            self.assertEqual(self.factory.connections, [])  # type: ignore[attr-defined]

        return Deferred.fromCoroutine(work())

    def test_twisted_accepts(self) -> Deferred[None]:
        """Where Twisted accepts for want of descriptors, the connection is the loop's too."""

        async def work() -> None:
            thread = self.run_loop()
            port = self.listen()
            self.patch(port, "doRead", lambda: lean.accept_with_care(port))
            self.assertEqual(await deferToThread(self.ask), b"%d hello" % (thread.ident or 0))
            await port.stopListening()

        return Deferred.fromCoroutine(work())

    def test_stops_without_a_loop(self) -> Deferred[None]:
        """A loop that never turned, or turns no more, holds up nobody."""

        async def work() -> None:
            await self.listen().stopListening()
            self.assertFalse(os.path.exists(self.path))

        return Deferred.fromCoroutine(work())
