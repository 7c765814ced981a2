"""Connections that send at once: what the socket does not take follows in order."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from gridnet.scire.tls import PromptPort

reactor: Any = _reactor
PIECE = 50_000
PIECES = 400


def piece(number: int) -> bytes:
    """Octets that no other place of the stream has."""
    return b"%08d" % number * (PIECE // 8)


@implementer(IPushProducer)
class _Server(Protocol):
    """Writes whatever it is told to, as fast as it is allowed to."""

    transport: Any

    def __init__(self, case: PromptTests) -> None:
        self._case = case
        self._next = 0
        self._full = False

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        if data == b"answer":
            self.transport.write(b"at once")
            self._case.left = len(self.transport.dataBuffer) + self.transport._tempDataLen
        elif data == b"flood":
            # Nobody asks whether there is room.
            for number in range(PIECES):
                self.transport.write(piece(number))
            self.transport.write(b"")
            self.transport.loseConnection()
        elif data == b"produce":
            self.transport.registerProducer(self, True)
            self.resumeProducing()

    def pauseProducing(self) -> None:
        """Called by Twisted."""
        self._full = True
        self._case.pauses += 1

    def resumeProducing(self) -> None:
        """Called by Twisted."""
        self._full = False
        while not self._full and self._next < PIECES:
            number, self._next = self._next, self._next + 1
            self.transport.write(piece(number))
            waiting = len(self.transport.dataBuffer) + self.transport._tempDataLen
            self._case.most = max(self._case.most, waiting)
        if self._next == PIECES:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None:
        """Called by Twisted."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._case.server_lost.callback(None)


class _Client(Protocol):
    transport: Any

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self.lost: Deferred[bytes] = Deferred()
        self.answered: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self.came.append(data)
        if not self.answered.called:
            self.answered.callback(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self.lost.callback(b"".join(self.came))


class PromptTests(TestCase):
    """A connection of a :class:`PromptPort`."""

    timeout = 60

    def setUp(self) -> None:
        """Listen."""
        self.pauses = self.most = self.left = 0
        self.server_lost: Deferred[None] = Deferred()
        factory = Factory.forProtocol(lambda: _Server(self))
        self.port = PromptPort(0, factory, interface="127.0.0.1", reactor=reactor)
        self.port.startListening()
        self.addCleanup(self.port.stopListening)

    async def client(self, words: bytes) -> _Client:
        """Connect, and say *words*."""
        place = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        client: _Client = await connectProtocol(place, _Client())
        client.transport.write(words)
        return client

    async def test_an_answer_is_away_when_it_is_given(self) -> None:
        client = await self.client(b"answer")
        self.assertEqual(await client.answered, b"at once")
        self.assertEqual(self.left, 0)
        client.transport.loseConnection()
        await client.lost
        await self.server_lost

    async def test_what_does_not_fit_follows_in_order_also_at_the_end(self) -> None:
        client = await self.client(b"flood")
        found = await client.lost
        self.assertTrue(found == b"".join(map(piece, range(PIECES))))
        await self.server_lost

    async def test_a_peer_that_does_not_take_its_octets_stops_who_makes_them(self) -> None:
        client = await self.client(b"produce")
        await client.answered
        client.transport.pauseProducing()
        waited: Deferred[None] = Deferred()
        reactor.callLater(0.05, waited.callback, None)
        await waited
        client.transport.resumeProducing()
        found = await client.lost
        self.assertTrue(found == b"".join(map(piece, range(PIECES))))
        self.assertGreater(self.pauses, 0)
        self.assertLess(self.most, 65536 + 2 * PIECE)
        await self.server_lost

    async def test_a_peer_that_goes_in_the_middle(self) -> None:
        client = await self.client(b"produce")
        await client.answered
        client.transport.abortConnection()
        await client.lost
        await self.server_lost
