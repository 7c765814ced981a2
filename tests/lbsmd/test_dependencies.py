"""Dependencies among servers: when they hold, and circles of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.dependencies import Condition, Conditions, loops
from gridnet.lbsmd.loading import loop_remarks
from gridnet.table.model import Entry, ServiceTable
from tests.hypothesis_profile import examples
from tests.lbsmd.support import loaded_records


class ConditionTests(SynchronousTestCase):
    """One service, and what it needs."""

    def failing(self, check: str, table: str) -> str | None:
        """The first dependency of *check* that does not hold with *table*; None: all hold."""
        services = ServiceTable()
        (own,) = loaded_records(f"x [{check}] STANDALONE :1")
        for record in (*loaded_records(table), own):
            services.put(record.entry)
        found = Conditions(services).failing(own.conditions, own.entry.key)
        return None if found is None else found.text

    def test_conditions(self) -> None:
        """Host, port, service, each or all; turned round; and more than one."""
        for check, table, holds in (
            ("+y", "y DNS", True),
            ("+Y", "y DNS", True),
            ("+y", "z DNS", False),
            ("+y", "y DNS R=0", False),
            ("+y", "", False),
            ("!+y", "", True),
            ("!+y", "y DNS", False),
            ("!+y", "y DNS R=0", True),
            ("h:5", "y STANDALONE h:5", True),
            ("h:5", "y STANDALONE 10.0.0.7:5", True),
            ("h:5", "y STANDALONE h:6", False),
            ("10.0.0.1:6", "y STANDALONE :6", True),
            ("h+y", "y STANDALONE h:6", True),
            ("h+y", "y STANDALONE :6", False),
            (":6+y", "y STANDALONE :6\ny STANDALONE h:7", True),
            (":6+y", "y STANDALONE h:7", False),
            ("h:5+y", "z STANDALONE h:5", False),
            ("+", "x STANDALONE h:5", True),
            ("+", "", False),
            ("!+", "", True),
            ("!+", "x STANDALONE h:5", False),
            ("+y,+z", "y DNS\nz DNS", True),
            ("+y,!+z", "y DNS\nz DNS", False),
        ):
            self.assertEqual(self.failing(check, table) is None, holds, (check, table))

    def test_a_change_of_the_table_is_seen(self) -> None:
        """Also by a look-up through host and port."""
        table = ServiceTable()
        own, other = loaded_records("x [h:5] STANDALONE :1\ny STANDALONE h:5")
        conditions = Conditions(table)
        self.assertIsNotNone(conditions.failing(own.conditions, own.entry.key))
        table.put(other.entry)
        self.assertIsNone(conditions.failing(own.conditions, own.entry.key))
        table.remove(other.entry)
        failing = conditions.failing(own.conditions, own.entry.key)
        assert failing is not None
        self.assertEqual(failing.text, "h:5")


class LoopTests(SynchronousTestCase):
    """Circles."""

    def test_circles_are_remarked_with_their_places(self) -> None:
        """One remark each; a service that only needs others of its name is none."""
        remarks = loop_remarks(
            loaded_records(
                "a [+b] STANDALONE :1\nb [!+c] STANDALONE :2\nc [10.0.0.1:1] STANDALONE :3\n"
                "d [+a] STANDALONE :4\ne [+] STANDALONE :5\nf [+f] DNS :6\nF [+e] DNS :7\n"
            )
        )
        self.assertEqual(
            [str(remark) for remark in remarks],
            ["/s/a:1: dependencies run in a circle: a (/s/a:1), b (/s/a:2), c (/s/a:3)"],
        )

    def test_a_long_chain_is_no_circle_and_no_recursion(self) -> None:
        """Deeper than Python lets functions call each other."""
        text = "".join(f"s{n} [+s{n + 1}] DNS :{n + 1}\n" for n in range(2_500))
        self.assertEqual(loop_remarks(loaded_records(text)), [])
        (remark,) = loop_remarks(loaded_records(f"{text}s2500 [+s0] DNS :2501\n"))
        self.assertIn("s2499", str(remark))

    @examples(300)
    @given(st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=7, max_size=7))
    def test_circles_are_what_reaching_oneself_says(self, targets: Sequence[Sequence[int]]) -> None:
        """Two servers are in one circle when each leads to the other."""
        text = "".join(
            f"s{n} [{','.join(['0', *(f'+s{t}' for t in each)])}] DNS :{n + 1}\n"
            for n, each in enumerate(targets)
        )
        records = loaded_records(text)
        servers: Mapping[tuple[object, ...], tuple[Entry, Sequence[Condition]]] = {
            record.entry.key: (record.entry, record.conditions) for record in records
        }
        reach = [{t for t in each if t != n} for n, each in enumerate(targets)]
        for _ in targets:
            reach = [set(each).union(*(reach[t] for t in each)) for each in reach]
        wanted = {
            frozenset(m for m in range(7) if m in reach[n] and n in reach[m])
            for n in range(7)
            if n in reach[n]
        }
        keys = list(servers)
        found = {frozenset(keys.index(key) for key in loop) for loop in loops(servers)}
        self.assertEqual(found, wanted)
