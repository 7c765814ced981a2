"""Rules, port choice and rates."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.firewall.meter import Meter
from gridnet.firewall.policy import Rule, verdict
from gridnet.firewall.ports import PortSets, parse_ports
from gridnet.table.server_info import ServerInfo, ServerType
from gridnet.table.way_in import WayInRequest
from tests.hypothesis_profile import examples


class RuleTests(SynchronousTestCase):
    """Who may be let through to what."""

    def verdict(self, *rules: Rule, offered: bool = False, **keys: Any) -> str:
        values = {
            "client": "192.0.2.1",
            "service": "Bounce",
            "host": "10.0.0.5",
            "port": 7777,
            **keys,
        }
        return verdict(rules, offered=offered, **values)

    def test_without_rules_only_what_the_table_offers_is_reached(self) -> None:
        self.assertEqual(self.verdict(offered=True), "")
        self.assertIn("not open", self.verdict(offered=False))

    def test_the_first_rule_that_applies_decides(self) -> None:
        deny = Rule("deny", clients=("192.0.2.0/24",))
        allow = Rule("allow", services=("bou*",))
        self.assertIn("rules", self.verdict(deny, allow))
        self.assertEqual(self.verdict(allow, deny), "")
        self.assertIn("not open", self.verdict(deny, client="198.51.100.1"))

    def test_every_list_of_a_rule_must_match(self) -> None:
        rule = Rule(
            "allow", clients=("192.0.2.1",), services=("bounce",), targets=("10.0.0.*:7000-8000",)
        )
        self.assertEqual(self.verdict(rule), "")
        for change in (
            {"client": "192.0.2.2"},
            {"service": "bounces"},
            {"host": "10.0.1.5"},
            {"port": 8001},
            {"client": "no address"},
        ):
            self.assertNotEqual(self.verdict(rule, **change), "", change)

    def test_targets_take_ports_at_any_host_and_ipv6(self) -> None:
        self.assertEqual(self.verdict(Rule("allow", targets=("*:7777",))), "")
        self.assertEqual(self.verdict(Rule("allow", targets=("10.0.0.5",))), "")
        six = Rule("allow", targets=("[2001:db8::/32]:7777",))
        self.assertEqual(self.verdict(six, host="2001:db8::9"), "")
        self.assertNotEqual(self.verdict(six, host="2001:db9::9"), "")
        bare = Rule("allow", targets=("2001:db8::/32",))
        self.assertEqual(self.verdict(bare, host="2001:db8::9"), "")

    def test_faulty_rules_are_refused(self) -> None:
        for keys in (
            {"action": "maybe"},
            {"action": "allow", "clients": ("10.0.0.1/8",)},
            {"action": "allow", "targets": ("10.0.0.1:http",)},
            {"action": "allow", "targets": ("[::1",)},
        ):
            self.assertRaises(ValueError, Rule, **keys)


class PortTests(SynchronousTestCase):
    """Which port a client is sent to."""

    SETS = PortSets((5860, 5861), (4444,), (22, 443), random.Random(1))

    def choice(self, sets: PortSets = SETS, **keys: Any) -> int | None:
        server = ServerInfo(ServerType.STANDALONE, "10.0.0.1", 7777)
        return sets.choose(WayInRequest("bounce", server, "192.0.2.1", **keys))

    def test_each_kind_of_client_gets_its_ports(self) -> None:
        self.assertEqual(self.choice(), 4444)
        self.assertIn(self.choice(firewall_mode=True), (5860, 5861))
        regular = self.choice(firewall_mode=True, fallback_ports=frozenset())
        self.assertIn(regular, (5860, 5861))
        fallback = self.choice(firewall_mode=True, fallback_ports=frozenset({443, 80}))
        self.assertEqual(fallback, 443)
        other = self.choice(firewall_mode=True, fallback_ports=frozenset({80}))
        self.assertIn(other, (5860, 5861))

    def test_ports_that_do_not_answer_are_left_out(self) -> None:
        sets = self.SETS.with_only([5861, 22])
        self.assertEqual(self.choice(sets, firewall_mode=True), 5861)
        self.assertEqual(self.choice(sets), 5861)
        self.assertIsNone(self.choice(sets.with_only([22]), firewall_mode=True))

    def test_port_lists_are_read(self) -> None:
        self.assertEqual(parse_ports("5860-5862, 22 22"), (5860, 5861, 5862, 22))
        self.assertEqual(parse_ports(""), ())
        for text in ("x", "0", "65536", "5-4", "1-", "-5"):
            self.assertRaises(ValueError, parse_ports, text)


class MeterTests(SynchronousTestCase):
    """A byte rate holds in the long run."""

    @given(st.integers(100, 10**6), st.lists(st.integers(1, 10**6), min_size=5, max_size=50))
    @examples(100)
    def test_no_more_passes_than_the_rate_allows(self, rate: int, wishes: list[int]) -> None:
        meter = Meter(rate, 0.0)
        now = 0.0
        passed = 0
        for wish in wishes:
            room = meter.room(now)
            step = min(wish, room)
            meter.take(step)
            passed += step
            self.assertLessEqual(passed, rate * (1 + now) + 1)
            if not room:
                now += meter.wait()
        self.assertGreaterEqual(meter.wait(), 0.0)

    def test_waiting_as_told_makes_room(self) -> None:
        meter = Meter(1000, 0.0)
        meter.take(5000)
        self.assertEqual(meter.room(0.0), 0)
        self.assertAlmostEqual(meter.wait(), 4.05)
        self.assertGreaterEqual(meter.room(4.05), 49)
