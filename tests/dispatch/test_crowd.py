"""Hostile and merely numerous clients on real connections: others are still served."""

from __future__ import annotations

import resource
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.protocol import ClientCreator
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from gridnet.dispatch.config import DispatchConfig
from gridnet.open_files import raise_file_limit
from tests.dispatch.support import HERE, INFO, Conversation, make_front, make_table

#: Idle clients; each is two open files of this process.
CROWD = 1000
#: What one idle connection may cost, octets, its client in this very process included.
OCTETS_PER_CONNECTION = 24_000


def resident_octets() -> int:
    """Memory of this process now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class CrowdTests(TestCase):
    """A dispatcher that many misuse at once."""

    timeout = 60

    def setUp(self) -> None:
        if raise_file_limit(2 * CROWD + 200) < 2 * CROWD + 200:
            self.skipTest("not enough open files are allowed")
        self.core: Any = reactor
        self.clients: list[Conversation] = []

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def close() -> None:
            for client in self.clients:
                client.transport.abortConnection()
            for client in self.clients:
                await client.ended
            await self.port.stopListening()
            await self.front.drain()

        return Deferred.fromCoroutine(close())

    def start(self, **config: Any) -> None:
        """Start the dispatcher."""
        settings = {"drain_seconds": 0.0, "backlog": 4096, **config}
        table = make_table("bounce STANDALONE 127.0.0.1:7 L=no")
        self.front = make_front(table, self.core, DispatchConfig(**settings))
        self.front.start()
        self.port = self.front.ports()(0, self.front.factory, 4096, HERE, self.core)
        self.port.startListening()

    async def crowd(self, number: int, says: bytes = b"") -> list[Conversation]:
        """Clients that connect, say that, and no more."""
        creator = ClientCreator(self.core, Conversation)
        port = self.port.getHost().port
        found: list[Conversation] = []
        for start in range(0, number, 100):
            some = [creator.connectTCP(HERE, port) for _ in range(min(100, number - start))]
            # Who is sent away at once does not even get to know that it was connected.
            found += [
                client for done, client in await DeferredList(some, consumeErrors=True) if done
            ]
        self.clients += found
        for client in found:
            if says:
                client.write(says)
        return found

    async def served(self) -> None:
        """A well-behaved client gets its answer."""
        (client,) = await self.crowd(1, INFO)
        self.assertIn(b"Server-Info-1: ", await client.until(b"\r\n\r\n"))

    async def settle(self) -> None:
        """Let what was said arrive."""
        for _ in range(20):
            await deferLater(self.core, 0.01)

    async def test_idle_connections(self) -> None:
        """A thousand cost little memory, and nobody has to wait for them."""
        self.start()
        await self.crowd(10)
        await self.settle()
        before = resident_octets()
        await self.crowd(CROWD)
        await self.settle()
        self.assertEqual(self.front.factory.open, CROWD + 10)
        self.assertLess(resident_octets() - before, CROWD * OCTETS_PER_CONNECTION)
        await self.served()

    async def test_more_than_there_is_room_for(self) -> None:
        """The longest idle ones go, whoever has something to ask gets in."""
        self.start(max_connections=300)
        await self.crowd(CROWD)
        await self.settle()
        self.assertLessEqual(self.front.factory.open, 300)
        self.assertGreaterEqual(self.front.factory.refused["evicted"], CROWD - 300)
        await self.served()

    async def test_endless_heads(self) -> None:
        """Unfinished heads are bounded together."""
        self.start(max_held_octets=4_000_000)
        await self.crowd(100, b"GET /" + b"a" * 200_000)
        for _ in range(100):
            await deferLater(self.core, 0.01)
            if self.front.factory.refused["held octets"]:
                break
        await self.settle()
        self.assertLess(self.front.factory.held_octets, 6_000_000)
        self.assertGreater(self.front.factory.refused["held octets"], 50)
        await self.served()

    async def test_slow_heads_and_half_open_tls(self) -> None:
        """They are closed in time, and others are served meanwhile."""
        self.start(head_timeout_seconds=0.5, tls_handshake_seconds=0.5, linger_seconds=0.2)
        slow = await self.crowd(100, b"GET /Service/dis")
        silent = await self.crowd(100)
        await self.served()
        for client in slow:
            self.assertIn(b"HTTP/1.1 408 ", await client.ended)
        for client in silent:
            self.assertEqual(await client.ended, b"")
        await self.served()

    async def test_huge_unwanted_bodies(self) -> None:
        """They are not read to their end."""
        self.start(linger_seconds=0.2)
        head = INFO.replace(b"\r\n\r\n", b"\r\nContent-Length: 1000000000000\r\n\r\n")
        clients = await self.crowd(20, head + b"x" * 300_000)
        for client in clients:
            self.assertIn(b"Server-Info-1: ", await client.ended)
        await self.served()
