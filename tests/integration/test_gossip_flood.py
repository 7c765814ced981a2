"""
Real daemons under a flood of datagrams that nobody of their site has sent now.

``GRIDNET_PACKETS``: how many (5,000); 1,000,000 is the full size.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import partial
from random import Random
from threading import Event, Thread

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.gossip_site import GossipSite, RealHost, resident_octets
from tests.ports import free_block

PACKETS = int(os.environ.get("GRIDNET_PACKETS", "5000"))
#: Octets that a daemon may have grown by; one that kept what it is sent would need more.
_GROWTH_OCTETS = 32 << 20


class Flood(Thread):
    """
    Datagrams to one port, as fast as they go.

    :param heard: what daemons of the site have sent.
    :ivar sent: how many the system took.
    """

    def __init__(self, port: int, heard: Sequence[bytes]) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self.ended = Event()
        self._target = "127.0.0.1", port
        self._heard = heard
        self._random = Random(7)

    def run(self) -> None:
        """Until all are sent, or :attr:`ended`."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            while self.sent < PACKETS and not self.ended.is_set():
                try:
                    opened.sendto(self._hostile(), self._target)
                except OSError:
                    continue
                self.sent += 1

    def _hostile(self) -> bytes:
        """Random, truncated, replayed, bit-flipped, forged behind a true head, or very long."""
        random, packet = self._random, self._random.choice(self._heard)
        match random.randrange(6):
            case 0:
                return random.randbytes(random.randrange(1500))
            case 1:
                return packet[: random.randrange(len(packet))]
            case 2:
                return packet
            case 3:
                return packet[:17] + random.randbytes(random.randrange(1400))
            case 4:
                return packet + random.randbytes(random.randrange(1, 60_000))
        flipped = bytearray(packet)
        flipped[random.randrange(len(packet))] ^= 1 << random.randrange(8)
        return bytes(flipped)


class FloodTests(SynchronousTestCase):
    """Two daemons, one of which is flooded."""

    def setUp(self) -> None:
        self.site = GossipSite(2, free_block(4))
        self.addCleanup(self.site.end)
        switch = self.site.switch
        assert switch is not None
        self.site.start()
        self.site.wait(lambda: self.site.agree(2), "agreement")
        self.site.wait(lambda: len(switch.heard()) >= 12, "datagrams to replay")
        self.heard = switch.heard()

    def test_the_site_goes_on(self) -> None:
        flooded, other = self.site.hosts
        before = self.refused(flooded)
        size = resident_octets(flooded.pid)
        flood = Flood(self.site.port_of(0), self.heard[:12])
        self.addCleanup(flood.ended.set)
        flood.start()
        for number in range(1, 4):
            # News of the flooded host, and news to it, arrive while it lasts.
            for host in (flooded, other):
                host.define(f"S{host.number} [0] STANDALONE :{number} L=no\n")
            self.site.wait(partial(self.all_see, number), "news under the flood")
        flood.join()
        self.site.wait(lambda: self.refused(flooded) > before, "refusals")
        self.site.wait(lambda: self.site.agree(2), "agreement")
        self.assertLessEqual(self.refused(flooded) - before, flood.sent)
        # Waited for: a busy machine may have one of them suspected, which passes.
        self.site.wait(lambda: set(flooded.ask("gossip")["hosts"]) == {"alive"}, "trust")
        self.assertLess(resident_octets(flooded.pid) - size, _GROWTH_OCTETS)
        log = (flooded.directory / "log").read_text()
        self.assertNotIn("Traceback", log)
        self.assertLess(log.count("datagram refused"), 100)

    def refused(self, host: RealHost) -> int:
        """Datagrams that *host* has refused."""
        count: int = host.ask("gossip")["packets"]["refused"]
        return count

    def all_see(self, port: int) -> bool:
        """Whether each knows the latest of both."""
        return all(
            {service[3] for service in services} == {port} and len(services) == 2
            for services, _ in self.site.tables()
        )
