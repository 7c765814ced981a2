"""Which servers a request is answered with: every rule of the dispatcher's page."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from attrs import evolve

from gridnet.dispatch.dispatcher import Answer
from gridnet.table.model import Host
from tests.dispatch.model_case import FIRST, INSIDE, NOW, OUTSIDE, ModelCase


class InfoTests(ModelCase):
    """Plain look-ups."""

    def test_a_server_is_told_with_all_that_clients_need(self) -> None:
        """Explicit L, a rate, a time of 1 to 30, and the service's name."""
        self.put("STANDALONE 10.1.1.1:80")
        self.assertEqual(
            self.answer(),
            Answer(
                200,
                b"Service: svc\r\n"
                b"Server-Info-1: STANDALONE 10.1.1.1:80 L=no R=1000.00 S=no T=30\r\n",
            ),
        )

    def test_an_unknown_name_ends_at_once(self) -> None:
        """404 and the reason; a known name without a server ends with 204."""
        answer = self.answer("nobody")
        self.assertEqual(answer.status, 404)
        self.assertIn(b"Dispatcher-Failures: ", answer.lines)
        self.put("STANDALONE 10.1.1.1:80 R=0")
        self.assertEqual(self.answer().status, 204)

    def test_names_compare_without_case(self) -> None:
        """As everywhere."""
        self.put("STANDALONE 10.1.1.1:80")
        self.assertEqual(self.answer("SVC").status, 200)

    def test_three_are_given_unless_more_are_asked_for(self) -> None:
        """``Server-Count`` says N or ALL; firewall mode has one."""
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in range(1, 8)))
        self.assertEqual(len(self.infos()), 3)
        self.assertEqual(len(self.infos(Server_Count="5")), 5)
        self.assertEqual(len(self.infos(Server_Count="ALL")), 7)
        self.assertEqual(len(self.infos(Accepted_Server_Types="FIREWALL")), 1)

    def test_types(self) -> None:
        """Absent: any but DNS; HTTP matches either flavour."""
        self.put(
            "STANDALONE 10.1.1.1:1",
            "HTTP 10.1.1.1:2 /x",
            "HTTP_GET 10.1.1.1:3 /x",
            "HTTP_POST 10.1.1.1:4 /x",
            "NCBID 10.1.1.1:5 ''",
            "DNS 10.1.1.1:6",
        )
        self.assertEqual(self.ports(), {1, 2, 3, 4, 5})
        self.assertEqual(self.ports(Accepted_Server_Types="HTTP_GET"), {2, 3})
        self.assertEqual(self.ports(Accepted_Server_Types="HTTP_GET HTTP_POST"), {2, 3, 4})
        self.assertEqual(self.ports(Accepted_Server_Types="HTTP"), {2, 3, 4})
        self.assertEqual(self.ports(Accepted_Server_Types="NCBID STANDALONE"), {1, 5})
        self.assertEqual(self.ports(Accepted_Server_Types="DNS"), {6})

    def test_stateless_clients_get_no_stateful_servers(self) -> None:
        """They could not use them."""
        self.put("STANDALONE 10.1.1.1:1 S=yes", "STANDALONE 10.1.1.1:2")
        self.assertEqual(self.ports(Client_Mode="STATELESS_ONLY"), {2})
        self.assertEqual(self.ports(), {1, 2})

    def test_a_short_time_left_is_told(self) -> None:
        """T counts down to the entry's end, and never is 0."""
        self.put("STANDALONE 10.1.1.1:1 T=300", expires_at=NOW + 12.5)
        self.assertIn("T=13", self.infos()[0])
        self.assertIn("T=3", self.infos(now=NOW + 10)[0])
        self.assertEqual(self.answer(now=NOW + 12.5).status, 204)

    def test_long_times_are_cut(self) -> None:
        """Some clients refuse more than 33 seconds."""
        self.put("STANDALONE 10.1.1.1:1 T=600")
        self.assertTrue(self.infos()[0].endswith(" T=30"))

    def test_reserved_and_off_servers_are_never_told(self) -> None:
        """Whatever the mode."""
        self.put("STANDALONE 10.1.1.1:1", reserved=True)
        self.put("STANDALONE 10.1.1.1:2 R=0 T=0")
        for mode in ("INFORMATION_ONLY", "OK_DOWN", "PROMISCUOUS"):
            self.assertEqual(self.answer(Dispatch_Mode=mode).status, 204)

    def test_old_clients_get_the_dialect_they_read(self) -> None:
        """No A, H, $, X, no IPv6; such servers are passed over."""
        self.put("STANDALONE 10.1.1.1:1 A=B", "HTTP 10.1.1.1:2 /x $=yes")
        self.put("STANDALONE [2001:db8::1]:3")
        infos = self.infos(Client_Revision="6.101", Server_Count="ALL")
        self.assertEqual(len(infos), 1)
        self.assertIn(" Blast ", infos[0])

    def test_dynamic_servers_are_rated_by_their_host(self) -> None:
        """No host, no server; a tiny status still is no standby."""
        self.put("STANDALONE 10.1.1.1:1", static=False)
        self.assertEqual(self.answer().status, 204)
        self.table.put_host(Host("10.1.1.1", status=397.62))
        self.assertIn("R=397.62", self.infos()[0])
        self.table.put_host(Host("10.1.1.1", status=0.0001))
        self.assertIn("R=0.01", self.infos()[0])

    def test_penalties_lower_the_rate_and_a_full_one_hides(self) -> None:
        """25 percent off; then gone."""
        self.put("STANDALONE 10.1.1.1:1", penalty=25.0)
        self.assertIn("R=750.00", self.infos()[0])
        self.put("STANDALONE 10.1.1.1:1", penalty=100.0)
        self.assertEqual(self.answer().status, 204)

    def test_shares_follow_the_rates(self) -> None:
        """Over many look-ups the first server is drawn in proportion."""
        self.put("STANDALONE 10.1.1.1:1 R=1000", "STANDALONE 10.1.1.1:2 R=3000")
        counts = Counter(self.infos(Server_Count="1")[0].split(":")[1][0] for _ in range(20_000))
        self.assertLess(abs(counts["1"] / 20_000 - 0.25), 0.01)

    def test_preference_and_latch(self) -> None:
        """95 percent for the preferred host; a latch takes it or nothing."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.2:2")
        drawn = Counter(
            self.infos(Server_Count="1", Preference="10.1.1.1 95.00%")[0].split()[1]
            for _ in range(5000)
        )
        self.assertLess(abs(drawn["10.1.1.1:1"] / 5000 - 0.95), 0.015)
        self.assertEqual(self.ports(Preference="10.1.1.2 -100.00%"), {2})
        self.assertEqual(self.answer(Preference="10.1.1.3 -100.00%").status, 204)

    def test_no_rate_leaves_what_clients_can_read(self) -> None:
        """0.01 to 100000, and three decimals only for standbys."""
        self.put("STANDALONE 10.1.1.1:1 R=100000", static=False)
        self.table.put_host(Host("10.1.1.1", status=4000.0))
        self.assertIn("R=100000.00", self.infos()[0])
        self.put("STANDALONE 10.1.1.1:1 R=0.0095")
        self.assertIn("R=0.009 ", self.infos()[0])
        self.put("STANDALONE 10.1.1.1:1 R=0.001", penalty=90.0)
        self.assertIn("R=0.001 ", self.infos()[0])

    def test_hosts_expire_too(self) -> None:
        """A dynamic server goes with what is known of its host."""
        self.put("STANDALONE 10.1.1.1:1", static=False)
        self.table.put_host(Host("10.1.1.1", expires_at=NOW + 5))
        self.assertEqual(self.answer(now=NOW + 4).status, 200)
        self.assertEqual(self.answer(now=NOW + 5).status, 204)

    def test_short_lists_are_drawn_without_replacement(self) -> None:
        """Each place of the list follows the shares of what is left."""
        self.put(
            "STANDALONE 10.1.1.1:1 R=100", "STANDALONE 10.1.1.1:2 R=200", "STANDALONE 10.1.1.1:3"
        )
        orders = Counter(
            tuple(text.split()[1][-1] for text in self.infos(Server_Count="2"))
            for _ in range(10_000)
        )
        for (first, second), wanted in {
            ("1", "2"): 1 / 13 * 2 / 12,
            ("1", "3"): 1 / 13 * 10 / 12,
            ("2", "3"): 2 / 13 * 10 / 11,
            ("3", "2"): 10 / 13 * 2 / 3,
        }.items():
            self.assertLess(abs(orders[first, second] / 10_000 - wanted), 0.02)

    def test_shares_among_what_is_left_follow_the_rates(self) -> None:
        """A skip list changes who is drawn from, not how."""
        self.put(*(f"STANDALONE 10.1.1.1:{n} R={n}00" for n in range(1, 6)))
        counts = Counter(
            self.infos(Server_Count="1", Skip_Info_1="STANDALONE 10.1.1.1:5")[0].split(":")[1][0]
            for _ in range(10_000)
        )
        self.assertNotIn("5", counts)
        for port in range(1, 5):
            self.assertLess(abs(counts[str(port)] / 10_000 - port / 10), 0.02)

    def test_many_servers_are_numbered_through(self) -> None:
        """From 1, without gaps, however many."""
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in range(1, 201)))
        lines = self.answer(Server_Count="ALL").lines.decode()
        numbers = re.findall(r"^Server-Info-(\d+): ", lines, re.MULTILINE)
        self.assertEqual(numbers, [str(number) for number in range(1, 201)])


class NearnessTests(ModelCase):
    """A client's own host, which counts in the draw unless it names another."""

    def share(self, peer: str, **headers: Any) -> float:
        """How often the server at port 1 comes first."""
        counts = Counter(
            self.infos(peer=peer, Server_Count="1", **headers)[0].split(":")[1][0]
            for _ in range(4000)
        )
        return counts["1"] / 4000

    def test_a_server_on_the_clients_host_has_a_small_bonus(self) -> None:
        """Ten percent, as the clients' own table gives."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.2:2")
        self.assertLess(abs(self.share("10.1.1.1") - 1.1 / 2.1), 0.025)
        self.assertLess(abs(self.share(INSIDE) - 0.5), 0.025)

    def test_a_coefficient_takes_the_place_of_the_bonus(self) -> None:
        """Positive: a factor."""
        self.put("STANDALONE 10.1.1.1:1 R=100 B=2", "STANDALONE 10.1.1.2:2 R=300")
        self.assertLess(abs(self.share("10.1.1.1") - 0.4), 0.025)
        self.assertLess(abs(self.share(INSIDE) - 0.25), 0.025)

    def test_a_negative_coefficient_takes_the_near_server_first(self) -> None:
        """Unless its rate is under that percentage of the others' average."""
        self.put("STANDALONE 10.1.1.1:1 R=100 B=-50 L=yes", "STANDALONE 10.1.1.2:2 R=100")
        self.assertEqual(self.share("10.1.1.1"), 1.0)
        self.assertLess(abs(self.share(INSIDE) - 0.5), 0.025)
        self.put("STANDALONE 10.1.1.1:1 R=10 B=-50 L=yes")
        self.assertLess(abs(self.share("10.1.1.1") - 11 / 111), 0.025)

    def test_loopback_and_own_addresses_are_one_host(self) -> None:
        """Clients on the dispatcher's host come by either."""
        self.dispatcher = evolve(self.dispatcher, own_addresses=frozenset(["10.1.1.1"]))
        self.put("STANDALONE 10.1.1.1:1 B=-50", "STANDALONE 10.1.1.2:2")
        self.put("STANDALONE 10.1.1.1:3 P=yes R=0.01 B=-0.01", "STANDALONE 127.0.0.1:4 P=yes")
        for peer in ("127.0.0.1", "::1", "10.1.1.1"):
            self.assertEqual(self.ports(peer=peer), {1, 2, 3, 4})
        self.assertEqual(self.ports(), {1, 2})

    def test_a_preferred_port_alone_is_one_of_the_clients_host(self) -> None:
        """As a latch it leaves nothing to others."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2", "STANDALONE 10.1.1.2:1")
        infos = self.infos(peer="10.1.1.1", Preference=":1 -100.00%")
        self.assertEqual([text.split()[1] for text in infos], ["10.1.1.1:1"])
        self.assertEqual(self.answer(Preference=":1 -100.00%").status, 204)

    def test_a_latch_rules_lists_too(self) -> None:
        """Other hosts are out of the question, so they keep no standby out either."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.2:2 R=0.005")
        self.assertEqual(self.ports(Preference="10.1.1.2 100%"), {2})
        self.assertEqual(self.ports(Preference="10.1.1.2 100%", Dispatch_Mode="OK_DOWN"), {2})


class StandbyTests(ModelCase):
    """Servers for when nothing else is there."""

    def test_a_regular_server_keeps_standbys_out(self) -> None:
        """Even one that is skipped or suppressed; not one that is down."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2 R=0.005")
        self.assertEqual(self.ports(), {1})
        self.assertEqual(self.answer(Skip_Info_1="STANDALONE 10.1.1.1:1").status, 204)
        self.put("STANDALONE 10.1.1.1:1", penalty=100.0)
        self.assertEqual(self.answer().status, 204)
        self.put("STANDALONE 10.1.1.1:1 R=0")
        self.assertEqual(self.infos(), ["STANDALONE 10.1.1.1:2 L=no R=0.005 S=no T=30"])

    def test_standbys_come_highest_first(self) -> None:
        """No draw, but ties are drawn."""
        self.put(
            "STANDALONE 10.1.1.1:1 R=0.003",
            "STANDALONE 10.1.1.1:2 R=0.009",
            "STANDALONE 10.1.1.1:3 R=0.003",
        )
        orders = {tuple(text.split()[1][-1] for text in self.infos()) for _ in range(60)}
        self.assertEqual(orders, {("2", "1", "3"), ("2", "3", "1")})

    def test_each_service_of_a_mask_has_its_own_standbys(self) -> None:
        """A regular server of one keeps none of another out."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2 R=0.005")
        self.put("STANDALONE 10.1.1.1:3 R=0.005", service="svd")
        self.assertEqual(self.ports(service="sv*"), {1, 3})


class ListTests(ModelCase):
    """Modes that show what is not usable too."""

    def setUp(self) -> None:
        super().setUp()
        self.put(
            "STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2 R=0", "STANDALONE 10.1.1.1:3 R=0.005"
        )
        self.put("STANDALONE 10.1.1.1:4", penalty=100.0)

    def rates(self, mode: str) -> dict[str, str]:
        """Port -> rate as told in *mode*."""
        return {
            text.split()[1][-1]: re.findall(r"R=(\S+)", text)[0]
            for text in self.infos(Dispatch_Mode=mode)
        }

    def test_each_mode_shows_its_own(self) -> None:
        """Down servers with rate 0; suppressed ones and standbys with theirs negated."""
        self.assertEqual(self.rates("INFORMATION_ONLY"), {"1": "1000.00"})
        self.assertEqual(self.rates("OK_DOWN"), {"1": "1000.00", "2": "0.000"})
        self.assertEqual(
            self.rates("OK_SUPPRESSED"), {"1": "1000.00", "3": "-0.005", "4": "-1000.00"}
        )
        self.assertEqual(
            self.rates("PROMISCUOUS"),
            {"1": "1000.00", "2": "0.000", "3": "-0.005", "4": "-1000.00"},
        )

    def test_counts_cut_lists(self) -> None:
        """From the start of the table."""
        mode: dict[str, Any] = {"Dispatch_Mode": "PROMISCUOUS"}
        self.assertEqual(len(self.infos(**mode)), 4)
        self.assertEqual(self.infos(**mode, Server_Count="2"), self.infos(**mode)[:2])
        self.assertEqual(len(self.infos(**mode, Server_Count="ALL")), 4)

    def test_what_nothing_is_known_of_is_in_no_list(self) -> None:
        """A dynamic server without its host is no server, suppressed or not."""
        self.put("STANDALONE 10.1.1.7:7", static=False, penalty=100.0)
        self.assertNotIn("7", self.rates("PROMISCUOUS"))
        self.put("STANDALONE 10.1.1.7:8 R=0", static=False)
        self.assertEqual(self.rates("OK_DOWN")["8"], "0.000")
        self.table.put_host(Host("10.1.1.7", status=0.0))
        self.assertEqual(self.rates("OK_SUPPRESSED")["7"], "-1000.00")

    def test_lists_go_on_behind_what_was_had(self) -> None:
        """In order, with the names of masks compared without case."""
        infos = self.infos("SV*", Dispatch_Mode="PROMISCUOUS", Skip_Info_5="SVC " + FIRST)
        self.assertEqual([text.split()[2][-1] for text in infos], ["2", "3", "4"])

    def test_masks_name_the_service_of_each(self) -> None:
        """All that fit, in order of name."""
        self.put("STANDALONE 10.1.1.1:9", service="svb")
        infos = self.infos("sv%3F")
        self.assertEqual([text.split()[0] for text in infos], ["svb", "svc"])
        self.assertEqual(self.answer("zz*").status, 204)


class VisibilityTests(ModelCase):
    """Who may see what."""

    def test_local_servers_are_for_clients_inside(self) -> None:
        """Outsiders, and insiders who say that they are external, do not see them."""
        self.put("HTTP 10.1.1.1:1 /x L=yes", "HTTP 10.1.1.1:2 /x")
        self.assertEqual(self.ports(), {1, 2})
        self.assertEqual(self.ports(peer=OUTSIDE), {2})
        self.assertEqual(self.ports(NCBI_External="Y"), {2})

    def test_a_client_named_by_an_outsider_is_not_believed(self) -> None:
        """Only peers from inside may say for whom they ask."""
        self.put("HTTP 10.1.1.1:1 /x L=yes")
        self.assertEqual(self.ports(peer=OUTSIDE, Client_Host="10.0.0.1"), set())
        self.assertEqual(self.ports(peer=INSIDE, Client_Host=OUTSIDE), set())
        self.assertEqual(self.ports(peer=INSIDE, X_Forwarded_For=OUTSIDE), set())
        self.assertEqual(self.ports(peer=INSIDE, Client_Host="10.0.0.1"), {1})

    def test_private_servers_are_for_their_own_host(self) -> None:
        """Nobody else sees them."""
        self.put("STANDALONE 10.1.1.1:1 P=yes")
        self.assertEqual(self.ports(peer="10.1.1.1"), {1})
        self.assertEqual(self.ports(), set())

    def test_private_servers_are_not_for_clients_that_say_they_are_outside(self) -> None:
        """Even on the same host."""
        self.put("HTTP 10.1.1.1:1 /x P=yes")
        self.assertEqual(self.ports(peer="10.1.1.1"), {1})
        self.assertEqual(self.ports(peer="10.1.1.1", NCBI_External="Y"), set())

    def test_outsiders_get_firewall_entries_but_for_http(self) -> None:
        """They cannot reach the rest."""
        self.put("STANDALONE 10.1.1.1:1 S=yes", "HTTP 10.1.1.1:2 /x")
        infos = sorted(self.infos(peer=OUTSIDE))
        self.assertEqual(
            infos,
            [
                "FIREWALL 10.1.1.1:1 STANDALONE L=no R=1000.00 S=yes T=30",
                "HTTP 10.1.1.1:2 /x L=no R=1000.00 T=30",
            ],
        )

    def test_firewall_mode_wraps_everything(self) -> None:
        """One entry, with the hidden server's place and type."""
        self.put("HTTP 10.1.1.1:2 /x H=a.b")
        self.assertEqual(
            self.infos(Accepted_Server_Types="FIREWALL"),
            ["FIREWALL 10.1.1.1:2 HTTP L=no R=1000.00 S=no T=30"],
        )

    def test_zones(self) -> None:
        """A dispatcher of another zone sees only what is marked to cross."""
        self.dispatcher = evolve(self.dispatcher, zone=2)
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2 X=yes", zone=1)
        self.put("STANDALONE 10.1.1.1:3", zone=3)
        self.assertEqual(self.ports(), {2, 3})

    def test_the_zone_is_that_of_the_dispatchers_own_host(self) -> None:
        """As its record in the table has it; without a record every zone is seen."""
        self.dispatcher = evolve(self.dispatcher, own_addresses=frozenset(["10.0.0.1"]))
        self.put("STANDALONE 10.1.1.1:1", zone=1)
        self.put("STANDALONE 10.1.1.1:2", zone=2)
        self.assertEqual(self.ports(), {1, 2})
        self.table.put_host(Host("10.0.0.1", zone=2))
        self.assertEqual(self.ports(), {2})


class AffinityTests(ModelCase):
    """Requests routed by an argument."""

    def setUp(self) -> None:
        super().setUp()
        for number, tokens in enumerate(["PubMed", "*", "~PubMed"], 1):
            address = f"10.1.1.{number}"
            self.table.put_host(Host(address, environment=(("db", tokens),)))
            self.put(f"STANDALONE {address}:{number}")

    def test_only_the_best_class_is_used(self) -> None:
        """An exact value, else a star; never one that refuses."""
        self.assertEqual(self.ports(Affinity="db=pubmed"), {1})
        self.assertEqual(self.ports(Affinity="db=gene"), {2, 3})

    def test_the_search_ends_with_the_best_class(self) -> None:
        """Skipped servers count: it does not fall to the next class."""
        answer = self.answer(Affinity="db=pubmed", Skip_Info_1="STANDALONE 10.1.1.1:1")
        self.assertEqual(answer.status, 204)


class ReverseTests(ModelCase):
    """DNS entries in place of servers."""

    def test_the_dns_entry_of_the_place_is_told_under_its_own_name(self) -> None:
        """Another service may own it."""
        self.put("STANDALONE 10.1.1.1:1")
        self.put("DNS 10.1.1.1:1", service="web_lb")
        self.assertEqual(
            self.infos(Client_Mode="REVERSE_DNS"),
            ["web_lb DNS 10.1.1.1:1 L=no R=1000.00 T=30"],
        )

    def test_a_place_without_one_keeps_the_server(self) -> None:
        """Under its own name."""
        self.put("STANDALONE 10.1.1.1:1")
        self.assertTrue(self.infos(Client_Mode="REVERSE_DNS")[0].startswith("svc STANDALONE"))

    def test_a_place_whose_dns_entries_do_not_qualify_is_dropped(self) -> None:
        """Down, suppressed or hidden ones do not."""
        self.put("STANDALONE 10.1.1.1:1")
        self.put("DNS 10.1.1.1:1 R=0", service="web_lb")
        self.assertEqual(self.answer(Client_Mode="REVERSE_DNS").status, 204)
        infos = self.infos(Client_Mode="REVERSE_DNS", Dispatch_Mode="OK_DOWN")
        self.assertEqual([text.split()[0] for text in infos], ["web_lb"])

    def test_the_dns_entry_takes_over_the_servers_rate(self) -> None:
        """It is the server that was chosen; down and suppressed ones show as such."""
        self.put("STANDALONE 10.1.1.1:1 R=300")
        self.put("DNS 10.1.1.1:1 R=7", service="web_lb")
        self.assertIn("R=300.00", self.infos(Client_Mode="REVERSE_DNS")[0])
        self.put("DNS 10.1.1.1:1 R=7", service="web_lb", penalty=100.0)
        self.assertEqual(self.answer(Client_Mode="REVERSE_DNS").status, 204)
        suppressed = self.infos(Client_Mode="REVERSE_DNS", Dispatch_Mode="OK_SUPPRESSED")
        self.assertIn("R=-7.00", suppressed[0])

    def test_dns_entries_that_an_outsider_may_not_see_do_not_qualify(self) -> None:
        """The server is dropped."""
        self.put("HTTP 10.1.1.1:1 /x")
        self.put("DNS 10.1.1.1:1 L=yes", service="web_lb")
        self.assertEqual(self.answer(peer=OUTSIDE, Client_Mode="REVERSE_DNS").status, 204)
        self.assertEqual(self.answer(Client_Mode="REVERSE_DNS").status, 200)

    def test_two_servers_of_one_place_are_one_dns_entry(self) -> None:
        """Told once."""
        self.put("STANDALONE 10.1.1.1:1", "HTTP 10.1.1.1:1 /x")
        self.put("DNS 10.1.1.1:1", service="web_lb")
        self.assertEqual(len(self.infos(Client_Mode="REVERSE_DNS")), 1)

    def test_a_dns_skip_without_a_host_covers_its_name(self) -> None:
        """The next entry of the place may do."""
        self.put("STANDALONE 10.1.1.1:1")
        self.put("DNS 10.1.1.1:1", service="a_lb")
        self.put("DNS 10.1.1.1:1", service="b_lb")
        infos = self.infos(Client_Mode="REVERSE_DNS", Skip_Info_1="A_LB DNS :0")
        self.assertEqual([text.split()[0] for text in infos], ["b_lb"])

    def test_dns_skips_cover_names_and_hosts(self) -> None:
        """Without a host a name, with one every server there."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.2:1")
        self.put("DNS 10.1.1.1:1", service="web_lb")
        infos = self.infos(Client_Mode="REVERSE_DNS", Skip_Info_1="web_lb DNS 10.1.1.1:0")
        self.assertEqual([text.split()[0] for text in infos], ["svc"])


class CacheTests(ModelCase):
    """Prepared candidates follow the table."""

    def test_every_change_of_the_table_is_seen(self) -> None:
        """The same request object, before and after."""
        request = self.request(Dispatch_Mode="INFORMATION_ONLY")
        self.assertEqual(self.dispatcher.answer(request, INSIDE, NOW).status, 404)
        (only,) = self.put("STANDALONE 10.1.1.1:1")
        self.assertEqual(self.dispatcher.answer(request, INSIDE, NOW).status, 200)
        self.table.remove(only)
        self.assertEqual(self.dispatcher.answer(request, INSIDE, NOW).status, 404)

    def test_equal_questions_share_their_answers(self) -> None:
        """Whatever else their heads say, and whoever of the same standing asks."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2")
        for number in range(20):
            self.answer(
                peer=f"10.0.1.{number}",
                NCBI_PHID=f"{number}",
                Skip_Info_1="STANDALONE 10.1.1.1:1",
                Server_Count="1",
            )
        self.assertEqual(self.dispatcher.cached, 1)
        self.answer(peer=OUTSIDE)
        self.assertEqual(self.dispatcher.cached, 2)

    def test_time_is_seen(self) -> None:
        """The same request object: seconds count down, and what expires is gone."""
        request = self.request(Dispatch_Mode="INFORMATION_ONLY")
        self.put("STANDALONE 10.1.1.1:1", expires_at=NOW + 10)
        self.put("STANDALONE 10.1.1.1:2 R=0.005")
        for seconds, wanted in ((0.0, "1 L=no R=1000.00 S=no T=10"), (3.5, "T=7"), (9.9, "T=1")):
            lines = self.dispatcher.answer(request, INSIDE, NOW + seconds).lines.decode()
            self.assertIn(f"{wanted}\r\n", lines)
        lines = self.dispatcher.answer(request, INSIDE, NOW + 10).lines.decode()
        self.assertIn(":2 L=no R=0.005 S=no T=30\r\n", lines)

    def test_hosts_are_seen(self) -> None:
        """Their load decides the rates, their environment who suits."""
        request = self.request(Dispatch_Mode="INFORMATION_ONLY", Affinity="db=x")
        self.put("STANDALONE 10.1.1.1:1", static=False)
        for status in (500.0, 250.0):
            self.table.put_host(Host("10.1.1.1", status=status))
            lines = self.dispatcher.answer(request, INSIDE, NOW).lines.decode()
            self.assertIn(f"R={status:.2f}", lines)
        self.table.put_host(Host("10.1.1.1", environment=(("db", "~x"),)))
        self.assertEqual(self.dispatcher.answer(request, INSIDE, NOW).status, 204)

    def test_the_cache_is_bounded(self) -> None:
        """However many peers ask however many questions, of however long lists."""
        self.dispatcher = evolve(self.dispatcher, cache_size=10, cache_servers=50)
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in range(1, 9)))
        for number in range(100):
            self.answer(peer=f"10.0.1.{number}", Affinity=f"a=b{number}")
        self.assertEqual(self.dispatcher.cached, 6)
        for number in range(100):
            self.answer(f"unknown{number}")
        self.assertEqual(self.dispatcher.cached, 10)
