"""How much of the relay one client, and all of them, can have; the same on both paths."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.tickets import Passage
from gridnet.firewall.wire import reject_text, ticket_octets
from tests.firewall.fixture import Relay, Talker, dial, reactor

REJECTED = len(reject_text())


class BothPaths:
    """What holds whoever moves the octets."""

    timeout = 120
    config = FirewallConfig(drain_seconds=0.2)

    def relaying(self: Any, **limits: Any) -> Relay:
        relay = Relay(evolve(self.config, **limits)).start()
        self.addCleanup(lambda: Deferred.fromCoroutine(relay.stop()))
        return relay

    async def session(self, relay: Relay, say: bytes = b"x") -> tuple[Talker, Talker]:
        """A client and the server that it has reached."""
        server = Talker(stay=True)
        port = relay.listen(Factory.forProtocol(lambda: server))
        client = await dial(relay.port, Talker(relay.ticket(port) + say, stay=True))
        await server.hears(1)
        return client, server

    async def is_turned_away(self: Any, relay: Relay) -> None:
        """A client with a good ticket is rejected, and its server hears nothing."""
        server = Talker(stay=True)
        port = relay.listen(Factory.forProtocol(lambda: server))
        client = await dial(relay.port, Talker(relay.ticket(port), stay=True))
        await client.hears(REJECTED)
        self.assertEqual(client.heard, reject_text())
        self.assertFalse(server.made.called)

    async def goes(self, relay: Relay, client: Talker) -> None:
        """*client* leaves, and the relay has noticed."""
        before = len(relay.factory.legs)
        client.transport.abortConnection()
        while len(relay.factory.legs) == before:
            await deferLater(reactor, 0.01, lambda: None)

    def test_open_connections(self: Any) -> Deferred[None]:
        """Of one client, and in all; who leaves makes room."""

        async def scenario() -> None:
            for limits in ({"max_open_per_client": 2}, {"max_open": 2}):
                relay = self.relaying(**limits)
                first, _ = await self.session(relay)
                await self.session(relay)
                await self.is_turned_away(relay)
                self.assertEqual(len(relay.factory.sessions), 2)
                self.assertEqual(relay.factory.counts["over limits"], 1)
                await self.goes(relay, first)
                await self.session(relay)

        return Deferred.fromCoroutine(scenario())

    def test_connections_without_a_ticket(self: Any) -> Deferred[None]:
        """Those over the limit are closed at once; a ticket, or leaving, makes room."""

        async def scenario() -> None:
            for limits in ({"max_unticketed_per_client": 2}, {"max_unticketed": 2}):
                relay = self.relaying(**limits)
                await self.session(relay)
                silent = [await dial(relay.port, Talker(stay=True)) for _ in range(2)]
                while len(relay.factory.legs) < 3:
                    await deferLater(reactor, 0.01, lambda: None)
                third = await dial(relay.port, Talker(stay=True))
                await third.peer_end
                self.assertEqual(third.heard, b"")
                third.transport.abortConnection()
                await third.over
                self.assertEqual(relay.factory.counts["over limits"], 1)
                await self.goes(relay, silent[0])
                await self.session(relay)

        return Deferred.fromCoroutine(scenario())

    def test_time_in_all(self: Any) -> Deferred[None]:
        async def scenario() -> None:
            relay = self.relaying(total_timeout_seconds=1000.0)
            client, server = await self.session(relay)
            now = reactor.seconds()
            relay.factory.sessions.sweep(now + 900)
            self.assertEqual(len(relay.factory.sessions), 1)
            relay.factory.sessions.sweep(now + 1001)
            await client.over
            await server.over

        return Deferred.fromCoroutine(scenario())

    def test_the_byte_rate_of_a_client(self: Any) -> Deferred[None]:
        """All of its connections share it."""

        async def scenario() -> None:
            relay = self.relaying(client_octets_per_second=200_000)
            begin = reactor.seconds()
            pairs = [await self.session(relay, b"x" * 150_000) for _ in range(2)]
            for _, server in pairs:
                await server.hears(150_000)
            # One second's worth passes at once; what was read in one go is owed.
            self.assertGreater(reactor.seconds() - begin, 0.15)

        return Deferred.fromCoroutine(scenario())

    def test_a_ticket_of_somebody_else(self: Any) -> Deferred[None]:
        async def scenario() -> None:
            relay = self.relaying(bind_client=True)
            issued: list[Any] = []
            for client in ("192.0.2.9", "127.0.0.1"):
                passage = Passage("test", "127.0.0.1", relay.port, client)
                store = relay.factory.office.store
                store.issue(passage, reactor.seconds()).addCallback(issued.append)
            stranger, owner = issued
            talker = Talker(ticket_octets(stranger.number), stay=True)
            await dial(relay.port, talker)
            await talker.hears(REJECTED)
            self.assertEqual(relay.factory.office.tally.invalid, 1)
            await dial(relay.port, Talker(ticket_octets(owner.number), stay=True))
            while not relay.factory.office.tally.redeemed:
                await deferLater(reactor, 0.01, lambda: None)

        return Deferred.fromCoroutine(scenario())


class SpliceTests(BothPaths, TestCase):
    """The kernel."""


class CopyTests(BothPaths, TestCase):
    """Twisted."""

    config = evolve(BothPaths.config, splice=False)
