"""Lean transports: they behave as Twisted's do, where it matters."""

from __future__ import annotations

import os
import resource
import socket
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
    UserError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IProtocolFactory,
    IPushProducer,
    IReadDescriptor,
    ITransport,
)
from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from gridnet.dispatch.transport import connect, lean_ports
from gridnet.lean import LeanTransport, Watch
from tests.dispatch.support import HERE

LARGE = 8_000_000


class Recorder(TwistedProtocol):
    """Writes down what happens to its connection."""

    transport: Any
    raises = False

    def __init__(self) -> None:
        self.received = b""
        self.events: list[str] = []
        self.lost: Deferred[None] = Deferred()
        self.half: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Called by the transport."""
        if self.raises:
            raise ZeroDivisionError
        self.received += data

    def readConnectionLost(self) -> None:
        """Called by the transport."""
        self.events.append("read lost")
        self.half.callback(None)

    def writeConnectionLost(self) -> None:
        """Called by the transport."""
        self.events.append("write lost")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by the transport."""
        self.events.append("lost")
        self.reason = reason
        self.lost.callback(None)

    def pauseProducing(self) -> None:
        """Called by the transport."""
        self.events.append("pause")

    def resumeProducing(self) -> None:
        """Called by the transport."""
        self.events.append("resume")

    def stopProducing(self) -> None:
        """Called by the transport."""
        self.events.append("stop")


class Whole(TwistedProtocol):
    """Knows nothing of half-closed connections."""

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by the transport."""
        self.reason = reason
        self.lost.callback(None)


class Admitting:
    """A factory of one protocol."""

    noisy = False

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.hosts: list[str] = []

    def admit(self, host: str) -> Any:
        """Called by the port."""
        self.hosts.append(host)
        return self.protocol

    def doStart(self) -> None:
        """Called by the port."""

    def doStop(self) -> None:
        """Called by the port."""

    def buildProtocol(self, address: object) -> Any:
        """Called by the port when Twisted accepts."""
        return self.protocol


class TransportTests(TestCase):
    """Over a pair of connected sockets."""

    timeout = 30

    def setUp(self) -> None:
        self.core: Any = reactor
        self.watch = Watch(self.core)
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.addCleanup(self.peer.close)
        self.protocol = Recorder()
        self.transport = LeanTransport(ours, (HERE, 1), self.protocol, self.watch, 65536)
        self.protocol.makeConnection(self.transport)

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        self.transport.abortConnection()
        return deferLater(self.core, 0)

    async def peer_reads(self, size: int) -> bytes:
        """That many octets at the other end, or fewer when it ends."""
        found = b""
        while len(found) < size:
            try:
                data = self.peer.recv(1 << 20)
            except BlockingIOError:
                await deferLater(self.core, 0.001)
                continue
            if not data:
                break
            found += data
        return found

    async def settle(self) -> None:
        """Let what is on its way arrive."""
        for _ in range(5):
            await deferLater(self.core, 0.002)

    def test_interfaces(self) -> None:
        """It says what it is."""
        self.transport.start(False)
        for interface in (ITransport, IConsumer, IPushProducer):
            verifyObject(interface, self.transport)
        verifyObject(IReadDescriptor, self.watch)

    async def test_both_ways(self) -> None:
        """What is there when it starts is read at once, later octets as they come."""
        self.peer.send(b"first")
        self.transport.start(True)
        self.assertEqual(self.protocol.received, b"first")
        self.peer.send(b" second")
        await self.settle()
        self.assertEqual(self.protocol.received, b"first second")
        self.transport.write(b"third")
        self.transport.writeSequence([b" and", b" fourth"])
        self.assertEqual(await self.peer_reads(16), b"third and fourth")

    async def test_a_slow_peer(self) -> None:
        """What the kernel refuses waits, the producer pauses, order is kept."""
        self.transport.start(False)
        self.transport.registerProducer(self.protocol, True)
        block = bytes(range(256)) * (LARGE // 256)
        self.transport.write(block)
        self.assertEqual(self.protocol.events, ["pause"])
        self.transport.write(b"end")
        self.assertEqual(await self.peer_reads(len(block) + 3), block + b"end")
        await self.settle()
        self.assertEqual(self.protocol.events, ["pause", "resume"])

    async def test_closing_behind_what_waits(self) -> None:
        """Everything is sent before the end, and the end is not told from within."""
        self.transport.start(False)
        self.transport.write(b"x" * LARGE)
        self.transport.loseConnection()
        self.transport.loseConnection()
        self.assertEqual(self.protocol.events, [])
        self.assertEqual(len(await self.peer_reads(LARGE + 1)), LARGE)
        await self.protocol.lost
        self.assertIsNotNone(self.protocol.reason.check(ConnectionDone))

    async def test_closing_with_nothing_waiting(self) -> None:
        """It is closed at once; the protocol hears of it a turn later."""
        self.transport.start(False)
        self.transport.loseConnection()
        self.assertEqual((self.protocol.events, self.peer.recv(1)), ([], b""))
        self.assertFalse(self.transport.connected)
        self.transport.write(b"late")
        await self.protocol.lost

    async def test_half_closing(self) -> None:
        """One direction ends behind what waits, the other goes on."""
        self.transport.start(False)
        self.transport.write(b"x" * LARGE)
        self.transport.loseWriteConnection()
        self.transport.write(b"late")
        self.assertEqual(len(await self.peer_reads(LARGE + 1)), LARGE)
        await self.settle()
        self.assertEqual(self.protocol.events, ["write lost"])
        self.peer.send(b"answer")
        await self.settle()
        self.assertEqual(self.protocol.received, b"answer")

    async def test_a_peer_that_half_closes(self) -> None:
        """The protocol is told, and may still write."""
        self.transport.start(False)
        self.peer.send(b"all")
        self.peer.shutdown(socket.SHUT_WR)
        await self.protocol.half
        self.assertEqual(self.protocol.received, b"all")
        self.transport.write(b"answer")
        self.transport.loseConnection()
        self.assertEqual(await self.peer_reads(10), b"answer")

    async def test_a_peer_that_half_closes_on_who_cannot_bear_it(self) -> None:
        """Then it is the end."""
        whole = Whole()
        self.transport.start(False)
        self.transport._protocol = whole
        self.peer.shutdown(socket.SHUT_WR)
        await whole.lost
        self.assertIsNotNone(whole.reason.check(ConnectionDone))

    async def test_pausing(self) -> None:
        """Nothing is read meanwhile, nothing is lost, and nobody spins."""
        self.transport.start(False)
        self.transport.pauseProducing()
        self.peer.send(b"x" * 1000)
        await self.settle()
        self.assertEqual(self.protocol.received, b"")
        self.transport.resumeProducing()
        await self.settle()
        self.assertEqual(len(self.protocol.received), 1000)

    async def test_a_peer_that_closes_while_paused(self) -> None:
        """What it said before is read when it is wanted, though both directions have ended."""
        self.transport.start(False)
        self.transport.loseWriteConnection()
        self.transport.pauseProducing()
        self.peer.send(b"last words")
        self.peer.close()
        await self.settle()
        self.assertNotIn("lost", self.protocol.events)
        self.transport.resumeProducing()
        await self.protocol.half
        self.assertEqual(self.protocol.received, b"last words")

    async def test_a_peer_that_is_gone(self) -> None:
        """Writing to it ends the connection, after what it said has been read."""
        self.transport.start(False)
        self.peer.send(b"last words")
        self.peer.close()
        self.transport.write(b"x")
        self.transport.write(b"y")
        await self.protocol.half
        self.assertEqual(self.protocol.received, b"last words")
        self.transport.loseConnection()
        await self.protocol.lost

    async def test_a_peer_that_is_gone_while_paused(self) -> None:
        """Then nobody would notice but the writer."""
        self.transport.start(False)
        self.transport.pauseProducing()
        self.peer.close()
        self.transport.write(b"x")
        await self.protocol.lost
        self.assertIsNotNone(self.protocol.reason.check(ConnectionLost))

    async def test_aborting(self) -> None:
        """What waits is dropped."""
        self.transport.start(False)
        self.transport.write(b"x" * LARGE)
        self.transport.abortConnection()
        await self.protocol.lost
        self.assertIsNotNone(self.protocol.reason.check(ConnectionAborted))
        self.assertLess(len(await self.peer_reads(LARGE)), LARGE)

    async def test_a_protocol_that_fails(self) -> None:
        """It costs its connection, and is logged."""
        self.transport.start(False)
        self.protocol.raises = True
        self.peer.send(b"x")
        await self.protocol.lost
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_the_first_octets_pause_or_close(self) -> None:
        """A protocol may do anything with what comes as it starts."""
        self.protocol.dataReceived = (  # type: ignore[method-assign]
            lambda data: self.transport.pauseProducing()
        )
        self.peer.send(b"x")
        self.transport.start(True)
        self.peer.send(b"y")
        await self.settle()
        self.assertEqual(self.watch._handlers, {})
        self.protocol.dataReceived = (  # type: ignore[method-assign]
            lambda data: self.transport.loseConnection()
        )
        self.transport.resumeProducing()
        await self.protocol.lost

    def test_pull_producers(self) -> None:
        """Nobody here has them."""
        self.transport.start(False)
        with self.assertRaises(UserError):
            self.transport.registerProducer(self.protocol, False)

    async def test_a_producer_that_comes_too_late(self) -> None:
        """It is stopped at once."""
        self.transport.start(False)
        self.transport.abortConnection()
        self.transport.registerProducer(self.protocol, True)
        self.assertEqual(self.protocol.events, ["stop"])
        await self.protocol.lost


class PortTests(TestCase):
    """Accepting and connecting on the loopback address."""

    timeout = 30

    def setUp(self) -> None:
        self.core: Any = reactor
        self.watch = Watch(self.core)
        self.protocol: Any = Recorder()
        self.factory = Admitting(self.protocol)
        self.port: Any = lean_ports(self.watch, 65536)(
            0, cast(IProtocolFactory, self.factory), 50, HERE, self.core
        )
        self.port.startListening()
        self.place = (HERE, self.port.getHost().port)

    def tearDown(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        stopped: Deferred[Any] = maybeDeferred(self.port.stopListening)
        return stopped.addCallback(lambda _: deferLater(self.core, 0))

    async def dial(self, port: int, seconds: float = 5.0) -> Any:
        """A connected protocol, or the failure."""
        outcome: Deferred[Any] = Deferred()
        protocol = Recorder()
        protocol.connectionMade = (  # type: ignore[method-assign]
            lambda: outcome.callback(protocol)
        )

        class Factory(ClientFactory):
            def buildProtocol(self, addr: object) -> Any:
                return protocol

            def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
                outcome.errback(reason)

        self.dialling = connect(self.watch, HERE, port, Factory(), seconds)
        return await outcome

    async def test_a_conversation(self) -> None:
        """Both ends are lean; addresses are known."""
        client = await self.dial(self.place[1])
        client.transport.write(b"hello")
        while not self.protocol.received:
            await deferLater(self.core, 0.001)
        self.assertEqual(self.factory.hosts, [HERE])
        self.assertEqual(self.protocol.transport.getHost().port, self.place[1])
        self.assertEqual(self.protocol.transport.getPeer().port, client.transport.getHost().port)
        client.transport.loseConnection()
        await self.protocol.half
        self.protocol.transport.loseConnection()
        await self.protocol.lost
        await client.lost
        self.assertEqual(self.watch._handlers, {})

    async def test_turned_away(self) -> None:
        """Whom the factory does not want is closed."""
        self.factory.protocol = None
        client = await self.dial(self.place[1])
        await client.half
        client.transport.loseConnection()
        await client.lost

    async def test_nobody_listens(self) -> None:
        """A refused connection is told as Twisted tells it."""
        await self.port.stopListening()
        await self.assertFailure(
            Deferred.fromCoroutine(self.dial(self.place[1])), ConnectionRefusedError
        )

    async def test_too_late(self) -> None:
        """A place that does not answer is given up in time."""
        full = socket.create_server((HERE, 0), backlog=0)
        self.addCleanup(full.close)
        waiting = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            waiting.append(sock)
            self.addCleanup(sock.close)
        await self.assertFailure(
            Deferred.fromCoroutine(self.dial(full.getsockname()[1], 0.1)), TimeoutError
        )

    async def test_given_up(self) -> None:
        """Nobody is told of a connection that nobody wants."""
        outcome = Deferred.fromCoroutine(self.dial(self.place[1]))
        self.dialling.disconnect()
        await deferLater(self.core, 0.02)
        self.assertNoResult(outcome)
        self.assertEqual(self.watch._handlers, {})
        outcome.addErrback(lambda _: None)
        outcome.cancel()

    async def test_no_descriptors_left(self) -> None:
        """Those who wait are turned away instead of making the reactor spin."""
        await deferLater(self.core, 0)  # the reactor itself has what it needs
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket()
        self.addCleanup(client.close)
        client.settimeout(0)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        try:
            client.connect_ex(self.place)
            while True:
                try:
                    fillers.append(os.dup(0))
                except OSError:
                    break
            await deferLater(self.core, 0.05)
        finally:
            for filler in fillers:
                os.close(filler)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertEqual(self.factory.hosts, [])
        client.settimeout(5)
        with self.assertRaises((ConnectionResetError, AssertionError)):
            assert client.recv(1), "closed"


class WatchTests(SynchronousTestCase):
    """What is put off is done, whatever the rest does."""

    def test_one_failure_does_not_stop_the_others(self) -> None:
        """Each call stands for itself."""
        clock = Clock()
        watch = Watch(clock)
        done: list[int] = []

        def fail() -> None:
            raise ZeroDivisionError

        watch.later(lambda: done.append(1))
        watch.later(fail)
        watch.later(lambda: done.append(2))
        self.assertEqual(done, [])
        clock.advance(0)
        self.assertEqual(done, [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
