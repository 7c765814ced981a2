"""Where connection requests are passed to, and what the client is told of it."""

from __future__ import annotations

from collections import Counter

from gridnet.dispatch.wire import parse_request
from gridnet.table.model import Entry
from tests.dispatch.model_case import INSIDE, NOW, OUTSIDE, ModelCase


class TargetTests(ModelCase):
    """Connection requests."""

    def test_the_server_that_the_client_means_comes_first(self) -> None:
        """Whatever its weight."""
        self.put("STANDALONE 10.1.1.1:1 R=0.01", "STANDALONE 10.1.1.1:2 R=100000")
        for _ in range(20):
            ports = self.targets(Used_Server_Info="STANDALONE 10.1.1.1:1 L=no R=120 S=no T=99")
            self.assertEqual(ports[0], 1)

    def test_a_meant_server_that_is_gone_is_replaced(self) -> None:
        """By one that is there."""
        self.put("STANDALONE 10.1.1.1:1")
        self.assertEqual(self.targets(Used_Server_Info="STANDALONE 10.1.1.1:9"), [1])

    def test_a_firewall_entry_leads_to_the_hidden_server(self) -> None:
        """Stateful or not: the client was told to come back so."""
        self.put("STANDALONE 10.1.1.1:1 S=yes", "STANDALONE 10.1.1.1:2")
        ports = self.targets(
            Used_Server_Info="FIREWALL 10.1.1.1:1 STANDALONE L=no R=1200.00 S=yes T=1795309572",
            Accepted_Server_Types="FIREWALL",
        )
        self.assertEqual(ports[0], 1)

    def test_a_retry_that_skips_everything_gets_its_last_choice(self) -> None:
        """The client lists its new pick too."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2")
        ports = self.targets(
            Skip_Info_1="STANDALONE 10.1.1.1:2", Skip_Info_2="STANDALONE 10.1.1.1:1"
        )
        self.assertEqual(ports, [1])

    def test_a_retry_that_skips_some_gets_another(self) -> None:
        """Never a skipped one."""
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in (1, 2, 3)))
        self.assertNotIn(2, self.targets(Skip_Info_1="STANDALONE 10.1.1.1:2"))

    def test_a_skip_entry_reaches_nothing_hidden(self) -> None:
        """Naming a server does not make it visible."""
        self.put("STANDALONE 10.1.1.1:1 L=yes")
        self.assertEqual(self.targets(OUTSIDE, Skip_Info_1="STANDALONE 10.1.1.1:1"), [])
        self.assertEqual(self.targets(OUTSIDE, Used_Server_Info="STANDALONE 10.1.1.1:1"), [])

    def test_the_last_choice_that_is_left_is_taken(self) -> None:
        """The highest number may be gone from the table by now."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2")
        ports = self.targets(
            Skip_Info_1="STANDALONE 10.1.1.1:1",
            Skip_Info_2="STANDALONE 10.1.1.1:2",
            Skip_Info_3="STANDALONE 10.1.1.1:9",
        )
        self.assertEqual(ports, [2])

    def test_only_what_can_be_relayed_is_a_target(self) -> None:
        """Neither stateful servers nor DNS entries, unless the client was sent to the first."""
        self.put("STANDALONE 10.1.1.1:1 S=yes", "DNS 10.1.1.1:2", "HTTP 10.1.1.1:3 /x")
        self.assertEqual(self.targets(), [3])
        self.assertEqual(self.targets(Accepted_Server_Types="DNS"), [])
        self.assertEqual(
            self.targets(Used_Server_Info="STANDALONE 10.1.1.1:1 S=yes"),
            [1, 3],
        )
        self.assertEqual(set(self.targets(Client_Mode="STATEFUL_CAPABLE")), {1, 3})

    def test_a_meant_server_that_is_out_of_use_is_replaced(self) -> None:
        """Down and suppressed ones are not eligible, whoever means them."""
        self.put("STANDALONE 10.1.1.1:1", penalty=100.0)
        self.put("STANDALONE 10.1.1.1:2 R=0")
        self.put("STANDALONE 10.1.1.1:3")
        for port in (1, 2):
            self.assertEqual(self.targets(Used_Server_Info=f"STANDALONE 10.1.1.1:{port}"), [3])

    def test_targets_are_drawn(self) -> None:
        """By rate, and no more than may be tried."""
        self.put(*(f"STANDALONE 10.1.1.1:{n} R={n}" for n in range(1, 10)))
        counts = Counter(self.targets()[0] for _ in range(4000))
        self.assertLess(abs(counts[9] / 4000 - 0.2), 0.03)
        self.assertEqual(len(self.targets()), 5)

    def test_standbys_are_targets_when_nothing_else_is(self) -> None:
        """Highest first."""
        self.put("STANDALONE 10.1.1.1:1 R=0.001", "STANDALONE 10.1.1.1:2 R=0.009")
        self.assertEqual(self.targets(), [2, 1])

    def test_masks_name_no_target(self) -> None:
        """One cannot connect to many."""
        self.put("STANDALONE 10.1.1.1:1")
        self.assertEqual(self.dispatcher.targets(self.request("sv*"), INSIDE, NOW).entries, ())

    def test_a_reply_names_the_server_that_made_it(self) -> None:
        """And others only to clients that ask for them."""
        stateful, used = self.put("STANDALONE 10.1.1.1:1 S=yes", "STANDALONE 10.1.1.1:2")
        line = b"Server-Info-1: STANDALONE 10.1.1.1:2 L=no R=1000.00 S=no T=30\r\n"

        def told(entry: Entry | None, mode: str, client: str = "STATELESS_ONLY") -> bytes:
            request = self.request(Client_Mode=client, Dispatch_Mode=mode)
            return self.dispatcher.informational(request, INSIDE, entry, NOW)

        self.assertEqual(told(used, ""), line)
        self.assertEqual(told(None, ""), b"")
        self.assertEqual(told(used, "NO_INFORMATION"), b"")
        other = b"Server-Info-2: STANDALONE 10.1.1.1:1 L=no R=1000.00 S=yes T=30\r\n"
        self.assertEqual(told(used, "STATEFUL_INCLUSIVE"), line + other)
        self.assertIn(b"1 L=no R=1000.00 S=yes", told(stateful, ""))
        browser = parse_request("GET", b"/x?service=svc", [])
        self.assertEqual(self.dispatcher.informational(browser, INSIDE, used, NOW), b"")

    def test_another_choice_than_the_clients_is_told(self) -> None:
        """A message says so; there is none when its choice is taken, or nothing is to be had."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2 R=0")
        for port, told in ((1, False), (2, True), (9, True)):
            request = self.request(Used_Server_Info=f"STANDALONE 10.1.1.1:{port}")
            found = self.dispatcher.targets(request, INSIDE, NOW)
            self.assertEqual((len(found.entries), bool(found.message)), (1, told))
        self.put("STANDALONE 10.1.1.1:1 R=0")
        found = self.dispatcher.targets(request, INSIDE, NOW)
        self.assertEqual((found.entries, found.message), ((), ""))

    def test_an_unknown_service_is_told_from_one_without_servers(self) -> None:
        """404 and 503 hang on it."""
        unknown = self.dispatcher.targets(self.request("nobody"), INSIDE, NOW)
        self.assertEqual((unknown.entries, unknown.known), ((), False))
        self.put("STANDALONE 10.1.1.1:1 R=0")
        self.assertTrue(self.dispatcher.targets(self.request(), INSIDE, NOW).known)

    def used(self, *headers: str, peer: str = INSIDE, revision: str = "7.0") -> str:
        """What a client is told of the first server of the service, which has failed."""
        (only,) = self.table.entries("svc")
        request = self.request(Client_Revision=revision, Accepted_Server_Types=" ".join(headers))
        return self.dispatcher.used_lines(request, peer, [only], 1_000_030).decode()

    def test_used_servers_are_told_with_a_moment(self) -> None:
        """A span would be forgotten at once."""
        self.put("STANDALONE 10.1.1.1:1")
        self.assertEqual(
            self.used(),
            "Used-Server-Info-1: STANDALONE 10.1.1.1:1 L=no R=1000.00 S=no T=1000030\r\n",
        )

    def test_used_servers_are_told_as_the_client_knows_them(self) -> None:
        """By the FIREWALL entry that it has, and in its dialect: else it skips nothing."""
        self.put("STANDALONE 10.1.1.1:1 A=B")
        hidden = "Used-Server-Info-1: FIREWALL 10.1.1.1:1 STANDALONE A=B L=no "
        for told in (self.used("FIREWALL"), self.used(peer=OUTSIDE)):
            self.assertTrue(told.startswith(hidden), told)
        self.assertIn(" 10.1.1.1:1 Blast B=0.00 L=no ", self.used(revision="6.260"))
