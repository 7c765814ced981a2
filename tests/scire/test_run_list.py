"""The open runs as a list that mirrors follow."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface.verify import verifyObject

from gridnet.interfaces import IObjectSource
from gridnet.scire.run_list import RunSource
from gridnet.scire.store.database import Transaction, Unavailable
from tests.scire.databases import PostgresMixin, SqliteMixin
from tests.scire.fleet import FleetCase


class RunListCase(FleetCase):
    abstract = True

    def setUp(self) -> None:
        super().setUp()
        if type(self).__dict__.get("abstract"):
            return
        self.broken = False
        self.source = RunSource(self.read)
        self.told: list[tuple[str, str | None]] = []
        original = self.time.do

        def do(operation: Any) -> Any:
            """As the server does: what a transaction has told is passed on after it."""
            told: list[int] = []

            def listening(tx: Transaction) -> Any:
                value = operation(tx)
                told[:] = [event.facts["run"] for event in tx.events if event.kind == "run"]
                return value

            value = original(listening)
            for run in told:
                self.source.note(run)
            return value

        self.time.do = do  # type: ignore[method-assign]

    def read(self, operation: Any) -> Deferred[Any]:
        if self.broken:
            return fail(Unavailable("away"))
        return succeed(self.time.database.run_now(operation))

    def follow(self) -> Any:
        def changed(key: str, row: Any) -> None:
            self.told.append((key, None if row is None else row["state"]))

        return self.source.subscribe(changed)

    def test_it_is_a_source_that_knows_nothing_while_nobody_follows(self) -> None:
        verifyObject(IObjectSource, self.source)
        self.client("one")
        self.job()
        self.assertEqual(self.source.snapshot(), {})
        end = self.follow()
        self.assertEqual(self.told, [("1", "pending")])
        row = self.source.snapshot()["1"]
        self.assertEqual((row["job_name"], row["client"]), ("job", "one"))
        end()
        self.assertEqual(self.source.snapshot(), {})

    def test_the_life_of_a_run_is_told(self) -> None:
        client = self.client("one")
        self.follow()
        self.job()
        delivery = self.must_next(client)
        self.acknowledge(client, delivery.receipt)
        self.report(client, delivery.run, 1, "running")
        self.report(client, delivery.run, 2, "succeeded", exit_code=0)
        states = [state for key, state in self.told if key == "1"]
        self.assertEqual(
            states, ["pending", "sent", "received", "running", "succeeded", None], self.told
        )
        self.assertEqual(self.source.snapshot(), {})

    def test_a_database_that_is_away_is_read_with_the_next_change(self) -> None:
        client = self.client("one")
        self.job()
        self.broken = True
        self.follow()
        self.assertEqual(self.told, [])
        self.broken = False
        self.must_next(client)
        self.assertEqual(self.told, [("1", "sent")])


class SqliteRunListTests(SqliteMixin, RunListCase):
    """On SQLite."""


class PostgresRunListTests(PostgresMixin, RunListCase):
    """On PostgreSQL."""


del RunListCase
