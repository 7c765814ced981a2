"""Tickets that several relays share through a real Redis server."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults, maybeDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from gridnet.component import config_classes
from gridnet.config import parse
from gridnet.errors import TicketError
from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.orders import Orders
from gridnet.firewall.protocol import FirewallFactory
from gridnet.firewall.redis_tickets import SKEW_SECONDS, RedisTickets
from gridnet.firewall.sessions import Session
from gridnet.firewall.tickets import Passage, Ticket
from gridnet.interfaces import ITicketOffice
from gridnet.site import make_site
from gridnet.table.redis_config import RedisConfig
from gridnet.table.redis_store import RedisStore
from gridnet.table.way_in import ConnectionPoint
from tests.firewall.fixture import Talker, dial, make_office
from tests.firewall.redis_server import RedisServer
from tests.firewall.test_site import SiteTestCase

reactor: Any = _reactor
PASSAGE = Passage("Echo", "10.0.0.1", 7000, "192.0.2.1", 0x1234)
CONFIG = FirewallConfig(ticket_ttl_seconds=30.0, max_waiting=5, max_waiting_per_client=3)


class RedisTicketsTests(TestCase):
    """Two processes' stores, one Redis."""

    timeout = 60

    def setUp(self) -> None:
        self.server = RedisServer()
        self.stores: list[RedisStore] = []
        self.now = 1_700_000_000.0
        self.here = self.make(1)
        self.there = self.make(2)

    def make(self, seed: int, config: FirewallConfig = CONFIG) -> RedisTickets:
        redis = RedisConfig(path=str(self.server.path), connections=2, connect_timeout_seconds=1.0)
        store = RedisStore(redis)
        store.startService()
        self.stores.append(store)
        return RedisTickets(config, store, random.Random(seed))

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def end() -> None:
            for store in self.stores:
                await store.stopService()
            await deferLater(reactor, 0.05, lambda: None)
            self.server.close()

        return Deferred.fromCoroutine(end())

    def redeem(self, store: RedisTickets, number: int) -> Deferred[Any]:
        """What the ticket is worth; ``"unknown"`` when that cannot be found out."""
        found: Deferred[Any] = Deferred()
        store.redeem(number, self.now, found.callback, lambda: found.callback("unknown"))
        return found

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():
            await deferLater(reactor, 0.02, lambda: None)

    def test_a_ticket_of_one_is_good_at_the_other_and_once(self) -> Deferred[None]:
        async def scenario() -> None:
            ticket = await self.here.issue(PASSAGE, self.now)
            found = await self.redeem(self.there, ticket.number)
            assert found is not None
            self.assertEqual((found.passage, found.fingerprint), (PASSAGE, ticket.fingerprint))
            self.assertIsNone(await self.redeem(self.there, ticket.number))
            self.assertIsNone(await self.redeem(self.here, ticket.number))
            self.assertIsNone(await self.redeem(self.here, 0x01020304))

        return Deferred.fromCoroutine(scenario())

    def test_of_many_that_present_it_at_once_one_gets_it(self) -> Deferred[None]:
        async def scenario() -> None:
            ticket = await self.here.issue(PASSAGE, self.now)
            stores = [self.here, self.there] * 10
            found = await gatherResults([self.redeem(each, ticket.number) for each in stores])
            self.assertEqual(sum(each is not None for each in found), 1)

        return Deferred.fromCoroutine(scenario())

    def test_a_ticket_ends_although_redis_still_has_it(self) -> Deferred[None]:
        async def scenario() -> None:
            ticket = await self.here.issue(PASSAGE, self.now)
            self.now += CONFIG.ticket_ttl_seconds + SKEW_SECONDS
            self.assertIsNone(await self.redeem(self.there, ticket.number))

        return Deferred.fromCoroutine(scenario())

    def test_the_issuer_finds_out_what_nobody_used(self) -> Deferred[None]:
        async def scenario() -> None:
            used = await self.here.issue(PASSAGE, self.now)
            unused = await self.here.issue(PASSAGE, self.now)
            await self.redeem(self.there, used.number)
            self.assertEqual(await self.here.expire(self.now), [])
            self.now += CONFIG.ticket_ttl_seconds + SKEW_SECONDS
            self.assertEqual(await self.here.expire(self.now), [unused])
            self.assertEqual(await self.there.expire(self.now), [])
            self.assertEqual(await self.here.expire(self.now), [])
            self.assertEqual(self.here.waiting, 0)
            self.assertIsNone(await self.redeem(self.there, unused.number))

        return Deferred.fromCoroutine(scenario())

    def test_nobody_fills_it(self) -> Deferred[None]:
        async def scenario() -> None:
            at_once = [self.here.issue(PASSAGE, self.now) for _ in range(10)]
            found = await DeferredList(at_once, consumeErrors=True)
            self.assertEqual(sum(good for good, _ in found), 3)
            await self.assertFailure(self.here.issue(PASSAGE, self.now), TicketError)
            for number in range(2):
                await self.here.issue(evolve(PASSAGE, client=f"192.0.2.{number + 2}"), self.now)
            more = self.here.issue(evolve(PASSAGE, client="192.0.2.9"), self.now)
            await self.assertFailure(more, TicketError)
            self.assertEqual(self.here.waiting, 5)

        return Deferred.fromCoroutine(scenario())

    def test_a_revoked_ticket_is_worth_nothing_anywhere(self) -> Deferred[None]:
        async def scenario() -> None:
            ticket = await self.here.issue(PASSAGE, self.now)
            self.assertTrue(await self.here.revoke(ticket.fingerprint))
            self.assertFalse(await self.here.revoke(ticket.fingerprint))
            self.assertIsNone(await self.redeem(self.there, ticket.number))

        return Deferred.fromCoroutine(scenario())

    def test_a_revocation_is_heard_by_others_once(self) -> Deferred[None]:
        async def scenario() -> None:
            await self.here.tell_revoked("abc", self.now)
            self.assertEqual(await self.there.hear_revoked(self.now), ["abc"])
            self.assertEqual(await self.there.hear_revoked(self.now), [])
            self.assertEqual(await self.here.hear_revoked(self.now), [])

        return Deferred.fromCoroutine(scenario())

    def test_an_order_at_one_relay_ends_what_is_the_others(self) -> Deferred[None]:
        async def scenario() -> None:
            config = evolve(CONFIG, splice=False)
            office = evolve(make_office(config, lambda: self.now), store=self.there)
            factory = FirewallFactory(config, reactor, office)
            factory.now = lambda: self.now
            ended: list[str] = []
            ticket = await self.here.issue(PASSAGE, self.now)
            name = ticket.fingerprint
            session = Session(name, PASSAGE, "192.0.2.1", self.now, lambda: (0, 0), ended.append)
            factory.sessions.open(session, self.now)
            orders = Orders(factory)
            await orders.hear()
            self.assertEqual(ended, [])
            await self.here.revoke(name)
            await self.here.tell_revoked(name, self.now)
            await orders.hear()
            await orders.hear()
            self.assertEqual(ended, ["revoked"])

        return Deferred.fromCoroutine(scenario())

    def test_without_redis_nothing_is_issued_or_redeemed_and_then_again(self) -> Deferred[None]:
        async def scenario() -> None:
            ticket = await self.here.issue(PASSAGE, self.now)
            self.server.stop()
            self.assertEqual(await self.redeem(self.there, ticket.number), "unknown")
            await self.assertFailure(self.here.issue(PASSAGE, self.now), TicketError)
            self.assertEqual(await self.there.hear_revoked(self.now), [])
            self.now += CONFIG.ticket_ttl_seconds + SKEW_SECONDS
            # It is not known whether somebody used it: nobody is blamed.
            self.assertEqual(await self.here.expire(self.now), [])
            self.assertEqual(self.here.waiting, 1)
            self.now += 10
            self.assertEqual(await self.here.expire(self.now), [])
            self.assertEqual(self.here.waiting, 0)
            self.server.start()
            again: list[Ticket] = []
            while not again:
                try:
                    again.append(await self.here.issue(PASSAGE, self.now))
                except TicketError:
                    await deferLater(reactor, 0.05, lambda: None)
            while (found := await self.redeem(self.there, again[0].number)) == "unknown":
                await deferLater(reactor, 0.05, lambda: None)
            assert found is not None
            self.assertEqual(found.passage, PASSAGE)

        return Deferred.fromCoroutine(scenario())

    def test_what_is_no_ticket_of_ours_is_none(self) -> Deferred[None]:
        async def scenario() -> None:
            store = self.stores[0]
            for number, record in enumerate(
                (b"", b"{}", b"[]", b"null", b"\xff", b'{"expires_at": "x"}', b"{" * 5000), 1
            ):
                await store.call("SET", store.key(f"ticket:{number:08x}"), record)
                self.assertIsNone(await self.redeem(self.there, number))

        return Deferred.fromCoroutine(scenario())


class SharingSitesTests(SiteTestCase):
    """A relay, and a dispatcher on another host that only issues tickets for it."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        self.server = RedisServer()
        self.more = f'[firewall.redis]\npath = "{self.server.path}"\n'
        return super().setUp()

    async def start(self) -> None:
        await super().start()
        directory = self.directory / "other"
        directory.mkdir()
        (directory / "servrc.cfg").write_text((self.directory / "servrc.cfg").read_text())
        text = (
            f'[site]\naddress = "127.0.0.1"\n[lbsmd]\nservrc = "servrc.cfg"\n[firewall]\n'
            f'serve = false\nports = "{self.firewall[0]}"\nrelay_ports = ""\n{self.more}'
        )
        config = parse(text, config_classes(), directory)
        self.other, self.other_service = make_site(config, reactor)
        self.other_service.privilegedStartService()
        self.other_service.startService()
        await self.other.ready()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def end() -> None:
            await maybeDeferred(self.other_service.stopService)
            await super(SharingSitesTests, self).tearDown()
            await deferLater(reactor, 0.05, lambda: None)
            self.server.close()

        return Deferred.fromCoroutine(end())

    def test_its_tickets_are_good_here_and_its_orders_are_heard(self) -> Deferred[None]:
        async def scenario() -> None:
            office = self.other.find(ITicketOffice)
            point: ConnectionPoint = await office.reserve(self.wish())
            self.assertEqual(point.port, self.firewall[0])
            talker = Talker(point.ticket.to_bytes(4, "big") + b"hello", stay=True)
            await dial(point.port, talker)
            await talker.hears(5)
            relay = next(each for each in self.service if each.name == "firewall")
            (session,) = list(relay.factory.sessions)
            issuer = next(each for each in self.other_service if each.name == "firewall")
            answer = issuer.orders.revoke({"session": session.name})
            self.assertEqual(answer, {"ended": False})
            await talker.over

        return Deferred.fromCoroutine(scenario())
