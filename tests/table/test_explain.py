"""Every factor of a look-up, and the shares that follow from them."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.table.affinity import Affinity
from gridnet.table.explain import Factors, Question, candidate, explain
from gridnet.table.model import Entry, Host, ServiceTable
from gridnet.table.selection import select
from gridnet.table.server_info import ServerType, parse
from tests.hypothesis_profile import examples

#: Rate and bonus of a server.
SERVERS = st.tuples(st.integers(1, 900), st.sampled_from([0, 0, 2, -10, -90]))


def entry(text: str, **keys: Any) -> Entry:
    """A static server of ``x``."""
    return Entry("x", parse(text), **{"static": True, **keys})


class ExplainTests(SynchronousTestCase):
    """What rules a server out, and what a look-up gives."""

    def explain(self, *entries: Entry, hosts: tuple[Host, ...] = (), **keys: Any) -> list[Factors]:
        """The factors of *entries*."""
        table = ServiceTable()
        for each in entries:
            table.put(each)
        for host in hosts:
            table.put_host(host)
        return list(explain(table, Question("X", **keys), 100.0))

    def shares(self, *entries: Entry, **keys: Any) -> list[float]:
        """The share of each, in percent."""
        return [round(100 * each.share, 1) for each in self.explain(*entries, **keys)]

    def test_shares_of_the_measured_situations(self) -> None:
        """As docs/protocols/load-balancing.rst lists them."""
        one = "STANDALONE 10.0.0.1:1 L=no R=100"
        three = "STANDALONE 10.0.0.2:1 L=no R=300"
        near = {"preferred_host": "10.0.0.1"}
        for first, second, keys, wanted in (
            (one, three, {}, [25.0, 75.0]),
            (one, three, near, [26.8, 73.2]),
            (f"{one} B=2", three, near, [40.0, 60.0]),
            (one, "STANDALONE 10.0.0.2:1 R=100", {**near, "preference": 0.95}, [95.0, 5.0]),
            (one, three, {**near, "preference": -1.0}, [100.0, 0.0]),
            (f"{one} B=-50", "STANDALONE 10.0.0.2:1 R=100", near, [100.0, 0.0]),
        ):
            self.assertEqual(
                self.shares(entry(first), entry(second), **keys), wanted, (first, keys)
            )

    def test_a_latch_without_its_host_gives_nothing(self) -> None:
        """Every share is 0."""
        found = self.shares(
            entry("STANDALONE 10.0.0.1:1 R=1"), preferred_host="10.0.0.9", preference=-1.0
        )
        self.assertEqual(found, [0.0])

    def test_every_reason(self) -> None:
        """One for each server, in words."""
        host = Host("10.0.0.5", status=500.0, environment=(("db", "a"),))
        for server, keys, reason in (
            (entry("STANDALONE 10.0.0.1:1 R=5", expires_at=99.0), {}, "expired"),
            (
                entry("STANDALONE 10.0.0.1:1 R=5"),
                {"types": frozenset([ServerType.DNS])},
                "asked for",
            ),
            (entry("STANDALONE 10.0.0.1:1 R=5", zone=1), {"zone": 2}, "out of sight"),
            (entry("STANDALONE 10.0.0.1:1 R=5 L=yes"), {"inside": False}, "local to the site"),
            (entry("STANDALONE 10.0.0.1:1 R=5 P=yes"), {"client": "10.0.0.2"}, "private"),
            (entry("STANDALONE 10.0.0.1:1 R=0"), {}, "down"),
            (entry("STANDALONE 10.0.0.1:1 R=5", reserved=True), {}, "reserved"),
            (entry("STANDALONE 10.0.0.1:1 R=5", penalty=100.0), {}, "penalty"),
            (entry("STANDALONE 10.0.0.1:1 R=5", static=False), {}, "not in the table"),
            (
                entry("STANDALONE 10.0.0.5:1 R=5", static=False),
                {"hosts": (host,), "affinity": Affinity("db", "b")},
                "",
            ),
            (entry("STANDALONE 10.0.0.1:1 R=5"), {}, ""),
        ):
            (found,) = self.explain(server, **keys)
            self.assertIn(reason, found.ruled_out)
            self.assertEqual(bool(found.ruled_out), bool(reason), found)

    def test_host_figures_count_for_dynamic_servers(self) -> None:
        """The smoothed or the instant one, times base rate, less penalty."""
        host = Host("10.0.0.5", status=500.0, status_blast=2000.0)
        slow, fast = self.explain(
            entry("STANDALONE 10.0.0.5:1 R=100", static=False, penalty=50.0),
            entry("STANDALONE 10.0.0.5:2 R=100 A=B", static=False),
            hosts=(host,),
        )
        self.assertEqual((slow.host_status, slow.rating), (500.0, 25.0))
        self.assertEqual((fast.host_status, fast.rating), (2000.0, 200.0))

    def test_a_regular_server_keeps_standby_ones_out(self) -> None:
        """A suppressed one too; without it the best standby wins, ties evenly."""
        standby = [entry(f"STANDALONE 10.0.0.{n}:1 R=0.00{n}") for n in (1, 2)]
        regular = entry("STANDALONE 10.0.0.9:1 R=5", penalty=100.0)
        found = self.explain(*standby, regular)
        self.assertEqual([each.ruled_out.split(",")[0] for each in found[:2]], ["standby"] * 2)
        self.assertEqual(self.shares(*standby), [0.0, 100.0])
        tied = entry("STANDALONE 10.0.0.3:1 R=0.002")
        self.assertEqual(self.shares(*standby, tied), [0.0, 50.0, 50.0])

    def test_only_the_best_affinity_is_used(self) -> None:
        """The others are told what they are."""
        hosts = tuple(
            Host(f"10.0.0.{n}", environment=(("db", tokens),))
            for n, tokens in ((1, "a b"), (2, "*"), (3, "~a"))
        )
        found = self.explain(
            *(entry(f"STANDALONE 10.0.0.{n}:1 R=5", static=False) for n in (1, 2, 3)),
            hosts=hosts,
            affinity=Affinity("db", "a"),
        )
        self.assertEqual(
            [each.ruled_out for each in found], ["", "affinity is good", "affinity is bad"]
        )
        self.assertEqual([each.share for each in found], [1.0, 0.0, 0.0])

    def test_many_servers_have_shares_in_proportion(self) -> None:
        """They add up to one."""
        servers = [entry(f"STANDALONE 10.0.{n >> 8}.{n & 255}:1 R={n + 1}") for n in range(300)]
        found = self.explain(*servers)
        self.assertAlmostEqual(sum(each.share for each in found), 1.0)
        self.assertAlmostEqual(found[299].share / found[99].share, 3.0)

    @examples(60)
    @given(
        st.lists(
            st.tuples(st.integers(1, 900), st.sampled_from([0, 0, 2, -10, -90])),
            min_size=1,
            max_size=5,
        ),
        st.sampled_from([0.0, 0.0, 0.3, 0.95, -1.0]),
        st.booleans(),
    )
    def test_shares_are_those_of_the_draw(
        self, servers: list[tuple[int, int]], preference: float, near: bool
    ) -> None:
        """A few thousand draws agree."""
        question: dict[str, Any] = {
            "preferred_host": "10.0.0.1" if near else "",
            "preference": preference,
        }
        found = self.explain(
            *(
                entry(f"STANDALONE 10.0.0.{n + 1}:1 R={rate} B={bonus}")
                for n, (rate, bonus) in enumerate(servers)
            ),
            **question,
        )
        asked = Question("x", **question)
        candidates = [candidate(each, asked) for each in found]
        chance = random.Random(5)
        draws = Counter(
            select(candidates, preference, asked.bonus, chance.random, near) for _ in range(3000)
        )
        for index, each in enumerate(found):
            self.assertLess(abs(draws[index] / 3000 - each.share), 0.05)
