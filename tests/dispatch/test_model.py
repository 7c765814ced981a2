"""Which servers a request is answered with: every rule of the dispatcher's page."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch.dispatcher import Answer, Dispatcher
from gridnet.dispatch.model import is_named_by
from gridnet.dispatch.request import DispatchRequest
from gridnet.dispatch.wire import parse_request
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import Entry, Host, ServiceTable
from gridnet.table.server_info import parse, parse_advisory
from tests.hypothesis_profile import examples

NOW = 1_000_000.0
FIRST = "STANDALONE 10.1.1.1:1 L=no R=1000.00 S=no T=1795309516"
INSIDE, OUTSIDE = "10.0.0.9", "192.0.2.1"
INFO = {"Dispatch-Mode": "INFORMATION_ONLY", "Client-Mode": "STATEFUL_CAPABLE"}


def entry(text: str, service: str = "svc", **changes: Any) -> Entry:
    """A static entry of the descriptor *text*; rate 1000, T 30 and L=no unless it says more."""
    for tag, default in ((" L=", " L=no"), (" R=", " R=1000"), (" T=", " T=30")):
        if tag not in text:
            text += default
    return evolve(Entry(service, parse(text), owner="10.0.0.1", static=True), **changes)


class ModelCase(SynchronousTestCase):
    """A table, a dispatcher, and requests to it."""

    def setUp(self) -> None:
        self.table = ServiceTable()
        self.dispatcher = Dispatcher(
            self.table, AddressRanges.from_texts(["10/8"]), random.Random(11)
        )

    def put(self, *texts: str, service: str = "svc", **changes: Any) -> list[Entry]:
        """Put entries of *texts* into the table."""
        entries = [entry(text, service, **changes) for text in texts]
        for each in entries:
            self.table.put(each)
        return entries

    def request(self, service: str = "svc", **headers: str) -> DispatchRequest:
        """A request of a present-day client (underscores in names are dashes)."""
        headers.setdefault("Client_Revision", "7.0")
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return parse_request(
            "GET",
            f"/Service/dispd.cgi?service={service}".encode(),
            [(name.encode(), value.encode()) for name, value in pairs],
        )

    def answer(
        self, service: str = "svc", peer: str = INSIDE, now: float = NOW, **headers: str
    ) -> Answer:
        """The answer to a look-up."""
        wanted = {"Dispatch_Mode": "INFORMATION_ONLY", "Client_Mode": "STATEFUL_CAPABLE"}
        return self.dispatcher.answer(self.request(service, **{**wanted, **headers}), peer, now)

    def infos(self, *words: Any, **headers: str) -> list[str]:
        """The descriptors of the answer to a look-up."""
        lines = self.answer(*words, **headers).lines.decode()
        return re.findall(r"^Server-Info-\d+: (.*)\r$", lines, re.MULTILINE)

    def ports(self, **headers: Any) -> set[int]:
        """The ports of the servers of the answer to a look-up."""
        headers.setdefault("Server_Count", "ALL")
        return {int(re.findall(r":(\d+)", text)[0]) for text in self.infos(**headers)}

    def targets(self, peer: str = INSIDE, **headers: str) -> list[int]:
        """The ports of the servers that a connection request may be passed to."""
        headers.setdefault("Client_Mode", "STATELESS_ONLY")
        found = self.dispatcher.targets(self.request(**headers), peer, NOW)
        return [each.info.port for each in found.entries]


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

    def share(self, peer: str, **headers: str) -> float:
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
        mode = {"Dispatch_Mode": "PROMISCUOUS"}
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


class SkipTests(ModelCase):
    """What the client has had."""

    def test_skipping_matches_by_type_place_and_parameter_only(self) -> None:
        """Rates and times in a skip entry are the client's own."""
        self.put("STANDALONE 10.1.1.1:1", "HTTP 10.1.1.1:1 /x", "HTTP 10.1.1.1:1 /y")
        skip = "STANDALONE 10.1.1.1:1 L=yes R=1200.00 S=yes T=1795309516"
        self.assertEqual(
            sorted(text.split()[0] for text in self.infos(Skip_Info_1=skip)), ["HTTP", "HTTP"]
        )
        infos = self.infos(Skip_Info_7=skip, Skip_Info_9="HTTP 10.1.1.1:1 /x R=5 T=7")
        self.assertEqual([text.split()[2] for text in infos], ["/y"])

    def test_a_walk_by_skip_list_visits_every_server_once_and_ends(self) -> None:
        """The client asks with everything it got until nothing comes."""
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in range(1, 24)))
        had: list[str] = []
        for _ in range(40):
            skips = {f"Skip_Info_{n}": text for n, text in enumerate(had, 1)}
            answer = self.answer(**skips)
            if answer.status == 204:
                break
            had += re.findall(r"^Server-Info-\d+: (.*)\r$", answer.lines.decode(), re.MULTILINE)
        else:
            self.fail("the walk does not end")
        self.assertEqual(len(had), 23)
        self.assertEqual(len({text.split()[1] for text in had}), 23)

    def test_a_walk_in_firewall_mode_ends_too(self) -> None:
        """A FIREWALL skip entry names the hidden server by its place."""
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2", "HTTP 10.1.1.1:3 /x")
        had: list[str] = []
        while len(had) < 10:
            skips = {f"Skip_Info_{n}": text for n, text in enumerate(had, 1)}
            infos = self.infos(Accepted_Server_Types="FIREWALL", **skips)
            if not infos:
                break
            had += infos
        self.assertEqual(len(had), 3)
        self.assertTrue(all(text.startswith("FIREWALL 10.1.1.1:") for text in had))

    def test_a_firewall_skip_without_a_place_is_its_whole_type(self) -> None:
        """As the clients' own table reads it."""
        self.put("STANDALONE 10.1.1.1:1", "HTTP 10.1.1.1:3 /x")
        self.assertEqual(self.ports(Skip_Info_1="FIREWALL :0 STANDALONE"), {3})
        self.assertTrue(is_named_by(parse("FIREWALL :0").identity, parse("HTTP 10.1.1.1:3 /x")))

    def test_servers_of_one_place_are_told_apart_by_their_hidden_type(self) -> None:
        """Beside type and place a FIREWALL entry has nothing to tell them by."""
        self.put("HTTP 10.1.1.1:1 /x", "HTTP 10.1.1.1:1 /y", "STANDALONE 10.1.1.1:1")
        (info,) = self.infos(
            Accepted_Server_Types="FIREWALL", Skip_Info_1="FIREWALL 10.1.1.1:1 HTTP"
        )
        self.assertTrue(info.startswith("FIREWALL 10.1.1.1:1 STANDALONE "))
        self.assertEqual(self.ports(Skip_Info_1="FIREWALL 10.1.1.1:1"), set())

    def test_a_nameless_skip_counts_for_every_service(self) -> None:
        """In a mask."""
        self.put("STANDALONE 10.1.1.1:1")
        self.put("STANDALONE 10.1.1.1:1", "STANDALONE 10.1.1.1:2", service="svd")
        self.assertEqual(self.ports(service="sv*", Skip_Info_1=FIRST), {2})

    @examples(150)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["svc", "svd", "DNS"]),
                st.sampled_from(
                    [
                        "STANDALONE 10.1.1.{host}:{port}",
                        "HTTP 10.1.1.{host}:{port} /x",
                        "HTTP_GET 10.1.1.{host}:{port} /y?z",
                        "NCBID 10.1.1.{host}:{port} ''",
                        "NCBID 10.1.1.{host}:{port} a=b",
                        "DNS 10.1.1.{host}:{port}",
                        "DNS 10.1.1.{host}",
                    ]
                ),
                st.integers(1, 3),
                st.integers(1, 3),
                st.sampled_from(["", " L=yes", " R=0.005", " R=0", " R=7.5"]),
                st.sampled_from([0.0, 50.0, 100.0]),
            ),
            max_size=14,
        ),
        st.sampled_from(["svc", "sv*", "*"]),
        st.sampled_from(["INFORMATION_ONLY", "OK_DOWN", "OK_SUPPRESSED", "PROMISCUOUS"]),
        st.sampled_from(["STATEFUL_CAPABLE", "STATELESS_ONLY", "REVERSE_DNS"]),
        st.sampled_from(
            ["", "FIREWALL", "STANDALONE DNS", "NCBID STANDALONE HTTP_GET HTTP_POST DNS"]
        ),
        st.sampled_from([INSIDE, OUTSIDE]),
        st.sampled_from(["7.0", "6.101"]),
        st.sampled_from(["1", "2", "ALL"]),
    )
    def test_every_walk_ends_and_meets_nothing_twice(
        self,
        servers: list[tuple[str, str, int, int, str, float]],
        service: str,
        dispatch_mode: str,
        client_mode: str,
        types: str,
        peer: str,
        revision: str,
        count: str,
    ) -> None:
        """Whatever is asked, by whom and of what table; a client that is told again loops."""
        self.setUp()
        for name, text, host, port, tags, penalty in servers:
            self.put(text.format(host=host, port=port) + tags, service=name, penalty=penalty)
        headers = {
            "Dispatch_Mode": dispatch_mode,
            "Client_Mode": client_mode,
            "Client_Revision": revision,
            "Server_Count": count,
        }
        if types:
            headers["Accepted_Server_Types"] = types
        had: list[str] = []
        for _ in range(len(servers) + 2):
            skips = {f"Skip_Info_{n}": text for n, text in enumerate(had, 1)}
            infos = self.infos(service, peer=peer, **headers, **skips)
            if not infos:
                break
            had += infos
        else:
            self.fail("the walk does not end")
        named = "*" in service or client_mode == "REVERSE_DNS"
        if "FIREWALL" in types or peer == OUTSIDE:
            return  # servers of one place may be one FIREWALL entry
        met = [self.identity(text, named) for text in had]
        self.assertEqual(len(met), len(set(met)))

    @staticmethod
    def identity(text: str, named: bool) -> tuple[object, ...]:
        """What must not be met twice."""
        name, _, rest = text.partition(" ") if named else ("", "", text)
        info = parse_advisory(rest)
        assert info is not None
        return (name, info.identity)

    def test_a_skip_of_another_service_does_not_count(self) -> None:
        """In masks the name goes before the descriptor."""
        self.put("STANDALONE 10.1.1.1:1")
        self.put("STANDALONE 10.1.1.1:1", service="svd")
        infos = self.infos("sv*", Skip_Info_1="SVC STANDALONE 10.1.1.1:1")
        self.assertEqual([text.split()[0] for text in infos], ["svd"])

    @examples(200)
    @given(st.lists(st.integers(1, 12), max_size=12))
    def test_nothing_skipped_is_ever_told(self, skipped: list[int]) -> None:
        """For any skip list."""
        self.table = ServiceTable()
        self.dispatcher = Dispatcher(
            self.table, AddressRanges.from_texts(["10/8"]), random.Random(5)
        )
        self.put(*(f"STANDALONE 10.1.1.1:{port}" for port in range(1, 13)))
        skips = {f"Skip_Info_{n}": f"STANDALONE 10.1.1.1:{p}" for n, p in enumerate(skipped, 1)}
        self.assertEqual(self.ports(**skips), set(range(1, 13)) - set(skipped))


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
        mode = {"Client_Mode": "REVERSE_DNS"}
        self.assertEqual(self.answer(**mode).status, 204)
        self.assertIn("R=-7.00", self.infos(**mode, Dispatch_Mode="OK_SUPPRESSED")[0])

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
