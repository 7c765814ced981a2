"""The relay on loopback sockets, the same on both paths."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.metrics import facts
from gridnet.firewall.movers import CopyMover, SpliceMover
from gridnet.firewall.wire import reject_text
from tests.firewall.fixture import (
    Relay,
    Talker,
    dial,
    open_descriptors,
    reactor,
)
from tests.mixin import Mixin
from tests.ports import free_port

#: Far more than anything here takes.
PATIENCE_SECONDS = 60.0
SIZES = (0, 0, 1, 7, 300, 5_000, 16_384, 70_000, 200_000)


def pieces(chance: random.Random) -> tuple[int, ...]:
    small = [chance.choice((1, 3, 100, 1460, 16_384, 65_536)) for _ in range(8)]
    return (*small, 65_536)


Mover = type[SpliceMover] | type[CopyMover]


class BothPaths(Mixin):
    """What any relay does; the subclasses say how octets are moved."""

    config = FirewallConfig(max_unticketed=5000, max_unticketed_per_client=5000, drain_seconds=0.5)
    mover: Mover
    timeout = 120
    conversations = 1000
    bare = True

    def setUp(self) -> None:
        self.chance = random.Random(7)
        self.relay = Relay(self.config, bare=self.bare).start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.relay.stop())

    def serve(self, *talkers: Talker) -> int:
        """A server whose connections are *talkers*, in turn."""
        waiting = list(talkers)
        return self.relay.listen(Factory.forProtocol(lambda: waiting.pop(0)))

    async def pair(self, client: Talker, server: Talker, server_ticket: int = 0) -> None:
        """Bring the two together through the relay."""
        port = self.serve(server)
        client._say = self.relay.ticket(port, server_ticket=server_ticket) + client._say
        await dial(self.relay.port, client)
        await server.made

    # -- octets

    def test_a_thousand_random_conversations_arrive_to_the_octet(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._conversations(self.conversations, 40))

    async def _conversations(self, number: int, at_once: int) -> None:
        chance = self.chance
        servers: dict[bytes, tuple[Talker, Talker, bytes, bytes]] = {}

        class Server(Talker):
            """Finds out from the first octets which conversation it is in."""

            def __init__(self) -> None:
                super().__init__(stay=True)
                self._name = b""

            def dataReceived(self, data: bytes) -> None:
                if len(self._name) == 4:
                    super().dataReceived(data)
                    return
                missing = 4 - len(self._name)
                self._name += data[:missing]
                if len(self._name) == 4:
                    _, script, *_ = servers[self._name]
                    servers[self._name] = (servers[self._name][0], self, *servers[self._name][2:])
                    self._say, self._pieces = script._say, script._pieces
                    self._end_after_peer = script._end_after_peer
                    self._stay = False
                    self._waits = False
                    if self._peer_ended:
                        self._end_after_peer = False
                    self.transport.registerProducer(self, False)
                    super().dataReceived(data[missing:])

        port = self.relay.listen(Factory.forProtocol(Server))

        async def converse(index: int) -> None:
            name = struct.pack(">I", index)
            up = chance.randbytes(chance.choice(SIZES))
            down = chance.randbytes(chance.choice(SIZES))
            client_waits = chance.random() < 0.4
            server_waits = not client_waits and chance.random() < 0.5
            script = Talker(down, pieces(chance), server_waits)
            client = Talker(name + up, pieces(chance), client_waits)
            client._say = self.relay.ticket(port) + client._say
            servers[name] = (client, script, up, down)
            await dial(self.relay.port, client)
            reason = await client.over
            client_seen, server, *_ = servers[name]
            await server.over
            self.assertEqual(bytes(server.heard), up, index)
            self.assertEqual(bytes(client_seen.heard), down, index)
            self.assertIn("cleanly", reason)
            del servers[name]

        # What is opened once and kept is not counted.
        for index in range(5):
            await converse(index)
        await self._all_ended()
        before = open_descriptors()
        indices = iter(range(5, number))

        async def work() -> None:
            for index in indices:
                await converse(index)

        await gatherResults([Deferred.fromCoroutine(work()) for _ in range(at_once)])
        await self._all_ended()
        self.assertEqual(self.relay.factory.counts["relayed"], number)
        pump = self.relay.factory.pump
        expected = before + (2 * pump.pool.idle if pump is not None else 0)
        await self.until(
            lambda: open_descriptors() <= expected,
            lambda: f"{open_descriptors()} descriptors, expected {expected}",
        )

    async def _all_ended(self) -> None:
        legs = self.relay.factory.legs
        await self.until(lambda: not legs, lambda: f"{len(legs)} connections are still there")

    async def until(self, holds: Callable[[], object], failing: Callable[[], str]) -> None:
        """Wait until *holds*, far longer than it takes."""
        begin = reactor.seconds()
        while not holds():
            if reactor.seconds() - begin > PATIENCE_SECONDS:
                self.fail(failing())
            await deferLater(reactor, 0.01, lambda: None)

    def wait_for(self, seconds: float) -> None:
        """Let the relay wait so long for whatever it waits for."""
        lengths = self.relay.factory.deadlines.lengths
        lengths.update(dict.fromkeys(lengths, seconds))

    def test_conversations_that_are_cut_off_leave_nothing(self) -> Deferred[None]:
        """Whoever cuts them off and when: what has arrived is the beginning of what was said."""
        return Deferred.fromCoroutine(self._cut_off(self.conversations // 5, 20))

    async def _cut_off(self, number: int, at_once: int) -> None:
        chance = self.chance

        async def converse() -> None:
            up = chance.randbytes(chance.choice(SIZES))
            down = chance.randbytes(chance.choice(SIZES))
            server = Talker(down, pieces(chance), end_after_peer=True, stay=True)
            client = Talker(up, pieces(chance), end_after_peer=True, stay=True)
            ticket = self.relay.ticket(self.serve(server))
            # Some do not even show all of their ticket.
            client._say = ticket + up if chance.random() < 0.9 else ticket[:2]
            await dial(self.relay.port, client)
            for _ in range(chance.choice((0, 0, 1, 3, 10, 30))):
                await deferLater(reactor, 0, lambda: None)
            cutter, other = client, server
            if server.made.called and chance.random() < 0.5:
                cutter, other = server, client
            other._stay = False
            if chance.random() < 0.5:
                cutter.transport.abortConnection()
            else:
                cutter.transport.unregisterProducer()
                cutter.transport.loseConnection()
            await cutter.over
            if other.made.called:
                await other.over
            self.assertTrue(up.startswith(bytes(server.heard)))
            self.assertTrue(
                down.startswith(bytes(client.heard)) or reject_text() == bytes(client.heard)
            )

        # What is opened once and kept is not counted.
        for _ in range(5):
            await converse()
        await self._all_ended()
        before = open_descriptors()
        turns = iter(range(number))

        async def work() -> None:
            for _ in turns:
                await converse()

        await gatherResults([Deferred.fromCoroutine(work()) for _ in range(at_once)])
        await self._all_ended()
        self.assertEqual(len(self.relay.factory.sessions), 0)
        pump = self.relay.factory.pump
        if pump is not None:
            self.assertEqual(pump.pool.lent, 0)
        # Each conversation has had a port of its own.
        expected = before + number + (2 * pump.pool.idle if pump is not None else 0)
        await self.until(
            lambda: open_descriptors() <= expected,
            lambda: f"{open_descriptors()} descriptors, expected {expected}",
        )

    def test_bulk_passes_both_ways_at_once(self) -> Deferred[None]:
        async def scenario() -> None:
            up, down = self.chance.randbytes(8_000_000), self.chance.randbytes(9_000_000)
            client, server = Talker(up), Talker(down)
            await self.pair(client, server)
            await client.over
            await server.over
            self.assertEqual(bytes(server.heard), up)
            self.assertEqual(bytes(client.heard), down)

        return Deferred.fromCoroutine(scenario())

    def test_the_path_is_the_one_meant(self) -> Deferred[None]:
        async def scenario() -> None:
            client, server = Talker(b"x", stay=True), Talker(stay=True)
            await self.pair(client, server)
            await server.hears(1)
            (leg,) = self.relay.factory.legs
            self.assertIsInstance(leg._mover, self.mover)

        return Deferred.fromCoroutine(scenario())

    def test_the_server_may_speak_first(self) -> Deferred[None]:
        async def scenario() -> None:
            client, server = Talker(stay=True), Talker(b"220 hello\r\n", stay=True)
            await self.pair(client, server)
            await client.hears(11)
            self.assertEqual(client.heard, b"220 hello\r\n")

        return Deferred.fromCoroutine(scenario())

    def test_a_ticket_may_come_octet_by_octet(self) -> Deferred[None]:
        async def scenario() -> None:
            server = Talker(stay=True)
            port = self.serve(server)
            client = await dial(self.relay.port, Talker(stay=True))
            client.transport.setTcpNoDelay(True)
            for octet in self.relay.ticket(port):
                client.transport.write(bytes([octet]))
                await deferLater(reactor, 0.02, lambda: None)
            client.transport.write(b"data")
            await server.hears(4)
            self.assertEqual(server.heard, b"data")

        return Deferred.fromCoroutine(scenario())

    def test_the_servers_own_ticket_comes_first(self) -> Deferred[None]:
        async def scenario() -> None:
            client, server = Talker(b"data", stay=True), Talker(stay=True)
            await self.pair(client, server, server_ticket=0x01020304)
            await server.hears(8)
            self.assertEqual(server.heard, b"\1\2\3\4data")

        return Deferred.fromCoroutine(scenario())

    def test_small_messages_go_back_and_forth(self) -> Deferred[None]:
        async def scenario() -> None:
            client, server = Talker(stay=True), Talker(stay=True)
            await self.pair(client, server)
            for turn in range(1, 200):
                client.transport.write(b"p" * 64)
                await server.hears(64 * turn)
                server.transport.write(b"q" * 64)
                await client.hears(64 * turn)
            shown = facts(self.relay.factory)
            self.assertEqual(
                (shown["octets_to_servers"], shown["octets_to_clients"]), (12736, 12736)
            )
            pump = self.relay.factory.pump
            looks = (pump.looks, pump.looks_answered) if pump is not None else (0, 0)
            self.assertEqual((shown["looks"], shown["looks_answered"]), looks)

        return Deferred.fromCoroutine(scenario())

    # -- back-pressure

    def test_a_server_that_does_not_read_stops_the_client(self) -> Deferred[None]:
        async def scenario() -> None:
            # More than the kernel's buffers of both sides can grow to.
            up = self.chance.randbytes(1_000_003) * 120
            client, server = Talker(up), Talker(b"", end_after_peer=True)
            await self.pair(client, server)
            server.transport.pauseProducing()
            left = -1
            while client.left != left:
                left = client.left
                await deferLater(reactor, 0.3, lambda: None)
            self.assertGreater(left, 0)
            server.transport.resumeProducing()
            await server.over
            self.assertEqual(len(server.heard), len(up))
            self.assertEqual(bytes(server.heard), up)

        return Deferred.fromCoroutine(scenario())

    # -- ends that are not in peace

    def test_a_reset_of_the_client_reaches_the_server(self) -> Deferred[None]:
        async def scenario() -> None:
            client, server = Talker(b"hello", stay=True), Talker(stay=True)
            await self.pair(client, server)
            await server.hears(5)
            client.transport.abortConnection()
            reason = await server.over
            self.assertNotIn("cleanly", reason)
            await self._all_ended()

        return Deferred.fromCoroutine(scenario())

    def test_a_reset_of_the_server_reaches_the_client_after_what_it_said(self) -> Deferred[None]:
        async def scenario() -> None:
            client, server = Talker(b"hello", stay=True), Talker(b"answer", stay=True)
            await self.pair(client, server)
            await client.hears(6)
            server.transport.abortConnection()
            reason = await client.over
            self.assertNotIn("cleanly", reason)
            await self._all_ended()

        return Deferred.fromCoroutine(scenario())

    def test_a_server_that_is_not_there_ends_the_connection(self) -> Deferred[None]:
        async def scenario() -> None:
            first = self.relay.ticket(free_port())
            client = await dial(self.relay.port, Talker(first + b"data", end_after_peer=True))
            await client.over
            self.assertEqual(client.heard, b"")
            await self._all_ended()

        return Deferred.fromCoroutine(scenario())

    def test_a_server_that_does_not_answer_is_given_up(self) -> Deferred[None]:
        # Nobody is at 192.0.2.1; a full backlog on loopback is as silent.
        silent = socket.socket()
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        fill = [socket.socket() for _ in range(3)]
        for each in fill:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        for each in (*fill, silent):
            self.addCleanup(each.close)

        async def scenario() -> None:
            self.wait_for(0.2)
            client = await dial(
                self.relay.port, Talker(self.relay.ticket(port) + b"data", end_after_peer=True)
            )
            await client.over
            await self._all_ended()

        return Deferred.fromCoroutine(scenario())

    def test_an_order_ends_a_session_at_once(self) -> Deferred[None]:
        async def scenario() -> None:
            client, server = Talker(b"x", stay=True), Talker(stay=True)
            await self.pair(client, server)
            await server.hears(1)
            (session,) = self.relay.factory.sessions
            session.end("by order")
            await client.over
            await server.over
            self.assertEqual(len(self.relay.factory.sessions), 0)
            self.assertEqual(len(self.relay.factory.legs), 0)

        return Deferred.fromCoroutine(scenario())

    def test_idle_sessions_end_and_busy_ones_do_not(self) -> Deferred[None]:
        async def scenario() -> None:
            sessions = self.relay.factory.sessions
            client, server = Talker(b"x", stay=True), Talker(stay=True)
            await self.pair(client, server)
            await server.hears(1)
            now = reactor.seconds()
            sessions.sweep(now)
            client.transport.write(b"y")
            await server.hears(2)
            sessions.sweep(now + self.config.idle_timeout_seconds + 1)
            self.assertEqual(len(sessions), 1)
            sessions.sweep(now + 2 * self.config.idle_timeout_seconds + 2)
            self.assertEqual(len(sessions), 0)
            await client.over
            await server.over

        return Deferred.fromCoroutine(scenario())

    def test_a_byte_rate_holds(self) -> Deferred[None]:
        async def scenario() -> None:
            self.relay.factory.sessions.config = evolve(
                self.config, session_octets_per_second=200_000
            )
            up = self.chance.randbytes(300_000)
            client, server = Talker(up), Talker(end_after_peer=True)
            begin = reactor.seconds()
            await self.pair(client, server)
            await server.over
            spent = reactor.seconds() - begin
            # One second's worth passes at once, the rest at the rate; what Twisted reads in one
            # go is owed.
            self.assertGreater(spent, 0.15)
            self.assertEqual(bytes(server.heard), up)

        return Deferred.fromCoroutine(scenario())

    def test_stopping_cuts_what_is_open_and_leaves_nothing(self) -> Deferred[None]:
        async def scenario() -> None:
            clients = []
            for _ in range(20):
                client, server = Talker(b"x" * 100_000, stay=True), Talker(stay=True)
                await self.pair(client, server)
                server.transport.pauseProducing()
                clients.append(client)
            self.relay.factory.cut_all()
            for client in clients:
                await client.over
            await self._all_ended()
            self.assertEqual(len(self.relay.factory.sessions), 0)
            pump = self.relay.factory.pump
            if pump is not None:
                self.assertEqual(pump.pool.lent, 0)

        return Deferred.fromCoroutine(scenario())

    # -- what is no ticket

    def test_the_probe_is_rejected_at_once_while_the_connection_is_open(self) -> Deferred[None]:
        async def scenario() -> None:
            # Nothing else than what it has sent makes the relay answer.
            self.wait_for(10 * PATIENCE_SECONDS)
            client = await dial(self.relay.port, Talker(b"\r\n", stay=True))
            await client.hears(len(reject_text()))
            self.wait_for(0.2)
            self.assertEqual(client.heard, reject_text())

        return Deferred.fromCoroutine(scenario())

    def test_wrong_tickets_and_fragments_are_rejected(self) -> Deferred[None]:
        async def scenario() -> None:
            self.wait_for(0.2)
            for said, end in (
                (b"\x12\x34\x56\x78", False),
                (b"GET / HTTP/1.0\r\n\r\n", False),
                (b"\r", False),
                (b"\n", False),
                (b"abc", False),
                (b"abc", True),
                (b"\r\nmore", False),
                (b"", False),
            ):
                client = await dial(self.relay.port, Talker(said, stay=not end))
                await client.hears(len(reject_text()))
                self.assertEqual(client.heard, reject_text(), said)
            silent = await dial(self.relay.port, Talker(b""))
            await silent.over
            self.assertEqual(silent.heard, b"")
            await self._all_ended()

        return Deferred.fromCoroutine(scenario())

    def test_the_rejection_survives_a_client_that_keeps_sending(self) -> Deferred[None]:
        async def scenario() -> None:
            client = await dial(self.relay.port, Talker(b"G" * 200_000))
            await client.over
            self.assertEqual(client.heard, reject_text())

        return Deferred.fromCoroutine(scenario())

    def test_a_ticket_works_once(self) -> Deferred[None]:
        async def scenario() -> None:
            server = Talker(stay=True)
            ticket = self.relay.ticket(self.serve(server))
            await dial(self.relay.port, Talker(ticket + b"x", stay=True))
            await server.hears(1)
            again = await dial(self.relay.port, Talker(ticket, stay=True))
            await again.hears(len(reject_text()))

        return Deferred.fromCoroutine(scenario())


class SpliceTests(BothPaths, TestCase):
    """Octets are moved by the kernel."""

    mover: Mover = SpliceMover

    def setUp(self) -> None:
        super().setUp()
        if self.relay.factory.pump is None:
            self.mover = CopyMover

    def test_pipes_are_lent_only_while_octets_are_under_way(self) -> Deferred[None]:
        async def scenario() -> None:
            pump = self.relay.factory.pump
            if pump is None:
                return
            up = self.chance.randbytes(3_000_000)
            pairs = [(Talker(up, stay=True), Talker(stay=True)) for _ in range(10)]
            for client, server in pairs:
                await self.pair(client, server)
            for _, server in pairs:
                await server.hears(len(up))
            self.assertEqual(pump.pool.lent, 0)
            self.assertGreater(pump.pool.idle, 0)

        return Deferred.fromCoroutine(scenario())

    def test_what_the_server_said_arrives_although_it_listens_no_more(self) -> Deferred[None]:
        async def scenario() -> None:
            answer = self.chance.randbytes(50_000)
            client, server = Talker(b"x", stay=True), Talker(answer, stay=True)
            await self.pair(client, server)
            await server.hears(1)
            # Closed with octets unread: the kernel resets the connection.
            server.transport.pauseProducing()
            client.transport.write(b"y" * 2_000_000)
            await client.hears(len(answer))
            server.transport.loseConnection()
            await self._all_ended()
            self.assertEqual(bytes(client.heard), answer)
            client.transport.abortConnection()

        return Deferred.fromCoroutine(scenario())


class SpliceWithoutPipesTests(BothPaths, TestCase):
    """The same sockets when there are no pipes to be had."""

    config = evolve(BothPaths.config, max_pipes=0)
    mover = SpliceMover
    conversations = 200


class SpliceFromTwistedTests(BothPaths, TestCase):
    """Octets are moved by the kernel, from sockets that Twisted accepted."""

    mover = SpliceMover
    conversations = 200
    bare = False


class CopyTests(BothPaths, TestCase):
    """Twisted moves the octets."""

    config = evolve(BothPaths.config, splice=False)
    mover = CopyMover
