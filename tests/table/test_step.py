"""Many changes as one step, and who is told of claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import TableError
from gridnet.table.model import Change, Host, ServiceTable
from tests.table.support import entry, server

ONE = entry("one", server(port=1), owner="10.0.0.1")
TWO = entry("two", server(port=2), owner="10.0.0.1")
OTHER = entry("one", server(port=3), owner="10.0.0.2")


class StepTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = ServiceTable(max_entries=3)
        self.steps: list[Sequence[Change]] = []
        self.table.subscribe(self.steps.append)

    def test_everything_comes_as_one_step(self) -> None:
        host = Host("10.0.0.1")
        self.table.step([ONE, TWO, OTHER], hosts=[host])
        self.assertEqual(len(self.steps), 1)
        self.assertEqual(len(self.steps[0]), 4)
        moved = evolve(TWO, penalty=4.0)
        self.table.step([moved], [ONE, OTHER], [], ["10.0.0.1", "10.0.0.9"])
        self.assertEqual(len(self.steps), 2)
        self.assertEqual(self.table.all_entries(), [moved])
        self.assertEqual(self.table.hosts(), [])

    def test_what_is_both_withdrawn_and_put_stays(self) -> None:
        self.table.step([ONE])
        changed = evolve(ONE, penalty=9.0)
        self.table.step([changed], [ONE])
        self.assertEqual(self.steps[-1], (Change(ONE, changed),))

    def test_a_full_table_changes_nothing_and_room_in_the_same_step_counts(self) -> None:
        self.table.step([ONE, TWO, OTHER])
        more = entry("more", server(port=9), owner="10.0.0.3")
        self.assertRaises(TableError, self.table.step, [more], [], [Host("10.0.0.3")])
        self.assertEqual((len(self.table), self.table.hosts()), (3, []))
        self.table.step([more], [ONE])
        self.assertEqual(len(self.table), 3)

    def test_nothing_new_is_no_step(self) -> None:
        self.table.step([ONE], hosts=[Host("10.0.0.1")])
        self.table.step([ONE], [TWO], [Host("10.0.0.1")], ["10.0.0.2"])
        self.assertEqual(len(self.steps), 1)

    def test_a_host_of_a_step_expires(self) -> None:
        self.table.step(hosts=[Host("10.0.0.1", expires_at=5.0)])
        self.assertEqual(self.table.expire(6.0), 1)
        self.assertEqual(self.table.hosts(), [])


class ClaimTests(SynchronousTestCase):
    def test_owners_are_told_of_claims_that_nobody_sees(self) -> None:
        table, told = ServiceTable(), list[Any]()
        table.watch_claims(told.append)
        shown = evolve(ONE, owner="10.0.0.1")
        hidden = evolve(ONE, owner="10.0.0.2")
        for claim in (shown, hidden, evolve(hidden, penalty=3.0)):
            table.put(claim)
        self.assertEqual(table.entries("one"), (shown,))
        table.put(shown)
        table.remove(hidden)
        self.assertEqual(told, ["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.2"])
