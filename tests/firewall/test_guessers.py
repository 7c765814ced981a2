"""
Guessers against live tickets, through the whole protocol, in memory.

``GRIDNET_GUESSES=1000000`` is the full run.
"""

from __future__ import annotations

import os
import random
import sys

from attrs import evolve
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.protocol import FirewallFactory
from gridnet.firewall.tickets import Passage
from gridnet.firewall.wire import reject_text, ticket_octets
from tests.firewall.fixture import make_office

GUESSES = int(os.environ.get("GRIDNET_GUESSES", "100000"))
LIVE = 1000
SECONDS_A_GUESS = 0.001


class GuesserTests(SynchronousTestCase):
    """A number of 32 bits is a secret only as long as nobody may try many."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        directory = self.mktemp()
        os.makedirs(directory)
        self.config = FirewallConfig(
            splice=False,
            log_sessions=False,
            ticket_ttl_seconds=1e9,
            max_waiting_per_client=LIVE,
            penalty_file=os.path.join(os.path.abspath(directory), ".dispd.msg"),
        )
        office = make_office(self.config, self.clock.seconds)
        self.factory = FirewallFactory(self.config, self.clock, office)
        self.live = [
            self.successResultOf(
                office.store.issue(
                    Passage("Echo", "10.0.0.1", 7, "192.0.2.1"), self.clock.seconds()
                )
            ).number
            for _ in range(LIVE)
        ]

    def present(self, number: int, address: str) -> bool:
        """Whether *number*, shown by the client at *address*, is let through."""
        peer = IPv4Address("TCP", address, 4)
        protocol = self.factory.buildProtocol(peer)
        assert protocol is not None
        transport = StringTransport(peerAddress=peer)
        protocol.makeConnection(transport)
        protocol.dataReceived(ticket_octets(number))
        rejected = transport.value() == reject_text(self.config.help_url)
        if rejected:
            protocol.connectionLost()
        return not rejected

    def test_random_tickets_are_not_heard_for_long(self) -> None:
        chance = random.Random(4)
        let_through = 0
        for _ in range(GUESSES):
            let_through += self.present(chance.getrandbits(32), "198.51.100.9")
            self.clock.advance(SECONDS_A_GUESS)
        tally = self.factory.office.tally
        self.assertEqual(let_through, 0)
        # Some of them look like the connection checker's probe.
        heard = tally.invalid + tally.unheard + self.factory.counts["checks"]
        self.assertEqual(heard, GUESSES)
        # 10 before the first penalty, 10 between it and the second, and so on.
        spent = GUESSES * SECONDS_A_GUESS
        penalties = 1 + sum(spent > end for end in (300, 900, 2100, 4500))
        self.assertLessEqual(tally.invalid, self.config.guess_limit * penalties)
        print(f"{GUESSES} guesses, {tally.invalid} heard, none let through", file=sys.stderr)
        self.assertEqual(len(self.factory.legs), 0)
        self.assertEqual(self.factory.office.store.waiting, LIVE)

    def test_even_a_right_ticket_is_not_heard_then(self) -> None:
        for number in range(self.config.guess_limit):
            self.present(number + 1, "198.51.100.9")
        self.assertFalse(self.present(self.live[0], "198.51.100.9"))
        self.assertTrue(self.factory.office.refusal("198.51.100.9"))
        self.assertEqual(self.factory.office.refusal("198.51.100.10"), "")
        self.assertEqual(self.factory.office.store.waiting, LIVE)

    def test_probes_are_no_guesses(self) -> None:
        for _ in range(100):
            peer = IPv4Address("TCP", "198.51.100.9", 4)
            protocol = self.factory.buildProtocol(peer)
            assert protocol is not None
            protocol.makeConnection(StringTransport(peerAddress=peer))
            protocol.dataReceived(b"\r\n")
            protocol.connectionLost()
        self.assertEqual(self.factory.office.refusal("198.51.100.9"), "")

    def test_many_guessers_fill_no_memory(self) -> None:
        config = evolve(self.config, max_penalties=50)
        self.factory.office = make_office(config, self.clock.seconds)
        for number in range(2000):
            self.present(0x01010101, f"10.{number >> 8}.{number & 255}.1")
        for number in range(200):
            for _ in range(config.guess_limit):
                self.present(0x01010101, f"10.9.{number}.1")
        penalties = self.factory.office.penalties
        self.assertLessEqual(len(penalties.box), 50)
        self.assertLessEqual(len(penalties._guesses), 50)
