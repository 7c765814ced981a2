"""The socket: bounded both ways, over both families, and groups of the network."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.lbsmd.gossip.messages import Address
from gridnet.lbsmd.gossip.protocol import GossipSocket, listen, listen_to_group
from tests.lbsmd.gossip.hosts import MemoryNetwork, MemoryPort

REACTOR: Any = reactor


class BoundTests(SynchronousTestCase):
    """A system that does not take what it is given."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.socket = GossipSocket(lambda *_: None, self.network, 3)
        self.port: MemoryPort = self.network.listenUDP(21000, self.socket, "127.0.0.1")

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.socket.send(datagram, ("127.0.0.2", 1))

    def test_what_is_not_taken_waits_in_order(self) -> None:
        self.port.is_full = True
        self.send(b"1", b"2")
        self.network.run(0.1)
        self.port.is_full = False
        self.send(b"3")
        self.network.run(0.1)
        self.assertEqual([datagram for datagram, _ in self.port.sent], [b"1", b"2", b"3"])
        self.assertEqual(self.socket.dropped, 0)

    def test_too_many_waiting_drop_the_oldest(self) -> None:
        self.port.is_full = True
        self.send(b"1", b"2", b"3", b"4", b"5")
        self.port.is_full = False
        self.network.run(0.1)
        self.assertEqual([datagram for datagram, _ in self.port.sent], [b"3", b"4", b"5"])
        self.assertEqual(self.socket.dropped, 2)

    def test_no_route_is_loss(self) -> None:
        self.port.refuses = True
        self.send(b"1")
        self.port.refuses = False
        self.send(b"2")
        self.assertEqual([datagram for datagram, _ in self.port.sent], [b"2"])
        self.assertEqual(self.socket.dropped, 1)

    def test_nothing_is_planned_after_the_stop(self) -> None:
        self.port.is_full = True
        self.send(b"1")
        self.port.stopListening()
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.send(b"2")


class LoopbackTests(TestCase):
    """Real sockets."""

    def listen(self, interface: str, group: Address | None = None) -> tuple[GossipSocket, Any]:
        socket = GossipSocket(lambda *got: self.heard.append(got), REACTOR, 100)
        if group is None:
            port = listen(REACTOR, socket, interface, 0, 65536, 65536)
        else:
            port = listen_to_group(REACTOR, socket, group, interface, 65536)
        self.addCleanup(port.stopListening)
        return socket, port

    def setUp(self) -> None:
        self.heard: list[tuple[bytes, Address]] = []

    async def arrived(self, count: int) -> None:
        """Wait until *count* datagrams have."""
        for _ in range(6000):  # a minute: nothing normally takes more than milliseconds
            if len(self.heard) >= count:
                return
            await deferLater(REACTOR, 0.01)
        self.fail(f"heard {self.heard}")

    def carry(self, source: str, target: str, address: str) -> Deferred[None]:
        sender, bound = self.listen(source)
        _, receiver = self.listen(target)

        async def carry() -> None:
            sender.send(b"hello", (address, receiver.getHost().port))
            await self.arrived(1)
            datagram, came_from = self.heard[0]
            self.assertEqual(datagram, b"hello")
            self.assertEqual(came_from[1], bound.getHost().port)
            self.assertEqual(came_from[0], address)

        return Deferred.fromCoroutine(carry())

    def test_ipv4(self) -> Deferred[None]:
        return self.carry("127.0.0.1", "127.0.0.1", "127.0.0.1")

    def test_ipv6(self) -> Deferred[None]:
        return self.carry("::1", "::1", "::1")

    def test_a_socket_for_both_speaks_to_ipv4_and_hears_it(self) -> Deferred[None]:
        return self.carry("::", "127.0.0.1", "127.0.0.1")

    def test_ipv4_reaches_a_socket_for_both(self) -> Deferred[None]:
        return self.carry("127.0.0.1", "::", "127.0.0.1")

    def group(self, host: str) -> Deferred[None]:
        _, free = self.listen("127.0.0.1")
        group = (host, free.getHost().port)
        free.stopListening()
        members = [self.listen("127.0.0.1", group)[0] for _ in range(2)]

        async def carry() -> None:
            members[0].send(b"who is there", group)
            await self.arrived(2)
            self.assertEqual({datagram for datagram, _ in self.heard}, {b"who is there"})

        return Deferred.fromCoroutine(carry())

    def test_a_multicast_group_hears(self) -> Deferred[None]:
        return self.group("239.255.77.77")

    def test_a_broadcast_address_hears(self) -> Deferred[None]:
        return self.group("127.255.255.255")
