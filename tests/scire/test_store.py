"""Transactions: kept whole or not at all, alone or together; both backends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import runs
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.store.database import InSteps, Outcome, Session, Steps, Transaction
from gridnet.scire.store.opening import open_database
from gridnet.scire.store.postgresql import translated
from tests.scire.databases import Backend, PostgresMixin, SqliteMixin

_INSERT = "INSERT INTO settings (name, value) VALUES (?, ?)"


class StoreCase(Backend, SynchronousTestCase):
    """One session; mixed with a backend."""

    abstract = True

    def setUp(self) -> None:
        if type(self).__dict__.get("abstract"):
            return
        self.names = self.database_names()
        # Each kind of database has sessions of its own kind, so the common class has none.
        self.database = cast(Any, open_database(self.names, Path(), 2, "test"))
        self.addCleanup(self.database.close)
        self.session: Session = self.database._session()
        self.addCleanup(self.session.close)

    def perform(self, *operations: Any) -> list[Outcome]:
        return self.session.perform(operations, True)

    def settings(self) -> dict[str, str]:
        found: dict[str, str] = self.database.run_now(
            lambda tx: {
                r["name"]: r["value"]
                for r in tx.all("SELECT * FROM settings WHERE name <> 'acl_version'")
            }
        )
        return found

    def put(self, name: str, value: str = "x") -> Any:
        def operation(tx: Transaction) -> str:
            tx.later(_INSERT, (name, value))
            tx.event("put", name=name)
            tx.notify("work", 5)
            tx.notify("work", 5)
            return name

        return operation

    def test_several_share_a_transaction(self) -> None:
        outcomes = self.perform(*[self.put(f"n{n}") for n in range(10)])
        self.assertEqual([o.value for o in outcomes], [f"n{n}" for n in range(10)])
        self.assertEqual([len(o.events) for o in outcomes], [1] * 10)
        self.assertEqual([len(o.notices) for o in outcomes], [1] * 10)
        self.assertEqual(len(self.settings()), 10)

    def test_one_that_fails_leaves_the_others(self) -> None:
        def fails(tx: Transaction) -> None:
            tx.later(_INSERT, ("bad", "x"))
            raise ScireFault(FaultCode.CONFLICT, "no")

        def breaks(tx: Transaction) -> None:
            tx.run("UPDATE settings SET value = ? WHERE name = ?", ("y", "before"))
            raise ZeroDivisionError

        def nonsense(tx: Transaction) -> None:
            tx.all("SELECT nonsense FROM nowhere")

        before, after = self.put("before"), self.put("after")
        outcomes = self.perform(before, fails, breaks, nonsense, after)
        self.assertEqual((outcomes[0].value, outcomes[4].value), ("before", "after"))
        self.assertIsInstance(outcomes[1].error, ScireFault)
        self.assertIsInstance(outcomes[2].error, ZeroDivisionError)
        self.assertIsNotNone(outcomes[3].error)
        self.assertEqual(self.settings(), {"before": "x", "after": "x"})
        # The session goes on.
        self.assertEqual(self.perform(self.put("later"))[0].value, "later")

    def test_a_fault_before_anything_was_written_costs_nobody_a_second_run(self) -> None:
        runs = []

        def counted(tx: Transaction) -> None:
            runs.append(1)
            tx.later(_INSERT, (f"n{len(runs)}", "x"))

        def refused(tx: Transaction) -> None:
            tx.all("SELECT * FROM settings")
            raise ScireFault(FaultCode.NOT_AUTHENTICATED, "who?")

        outcomes = self.perform(counted, refused, counted)
        self.assertEqual(len(runs), 2)
        self.assertIsInstance(outcomes[1].error, ScireFault)

    def test_rows_that_are_appended_come_in_order_and_with_their_transaction(self) -> None:
        into = "audit (at, who, address, action, object, before_text, after_text)"

        def appends(first: int, count: int, fails: bool = False) -> Any:
            def operation(tx: Transaction) -> None:
                for number in range(first, first + count):
                    tx.append(into, (number, "w", "", "a", "", "", "ü ?"))
                if fails:
                    raise ScireFault(FaultCode.CONFLICT, "no")

            return operation

        def rows(tx: Transaction) -> list[float]:
            return [row["at"] for row in tx.all("SELECT at FROM audit ORDER BY id")]

        self.perform(appends(0, 40), appends(40, 1), appends(41, 66))
        self.assertEqual(self.database.run_now(rows), [float(n) for n in range(107)])
        outcomes = self.perform(appends(107, 3), appends(500, 3, True), appends(110, 1))
        self.assertEqual([o.error is None for o in outcomes], [True, False, True])
        self.assertEqual(self.database.run_now(rows), [float(n) for n in range(111)])

    def test_operations_in_steps_take_turns_and_see_what_the_others_wrote(self) -> None:
        told: list[str] = []
        reads = ("SELECT value FROM settings WHERE name = ?", ("turn",))

        def steps(name: str) -> InSteps[str]:
            def course(tx: Transaction) -> Steps[str]:
                yield [reads]
                row = tx.one(*reads)
                told.append(name)
                tx.event(name)
                tx.later("INSERT INTO settings (name, value) VALUES (?, ?)", (name, "x"))
                # What was read ahead before is old: this is read again.
                yield [("SELECT value FROM settings WHERE name = ?", ("a",))]
                seen = tx.one("SELECT value FROM settings WHERE name = ?", ("a",))
                return f"{name} {row and row['value']} {seen and seen['value']}"

            return InSteps(course)

        def refused(tx: Transaction) -> Steps[None]:
            yield [reads]
            raise ScireFault(FaultCode.NOT_AUTHENTICATED, "who?")

        outcomes = self.perform(steps("a"), self.put("turn", "first"), InSteps(refused), steps("b"))
        self.assertEqual([o.value for o in outcomes], ["a first x", "turn", None, "b first x"])
        self.assertEqual(told, ["a", "b"])
        self.assertEqual(
            [[e.kind for e in o.events] for o in outcomes], [["a"], ["put"], [], ["b"]]
        )
        self.assertIsInstance(outcomes[2].error, ScireFault)
        # Alone it does the same.
        self.assertEqual(self.perform(steps("c"))[0].value, "c first x")
        self.assertEqual(self.database.run_now(steps("d")), "d first x")

    def test_one_in_steps_that_is_raced_starts_again_alone(self) -> None:
        """Both read the row before either writes; what the second writes is guarded."""
        reads = ("SELECT value FROM settings WHERE name = ? /*pg FOR UPDATE*/", ("count",))

        def course(tx: Transaction) -> Steps[None]:
            yield [reads]
            row = tx.one(*reads)
            assert row is not None
            tx.later(
                "UPDATE settings SET value = ? WHERE name = 'count' AND value = ?",
                (str(int(row["value"]) + 1), row["value"]),
                1,
            )

        self.perform(self.put("count", "0"))
        outcomes = self.perform(*[InSteps(course)] * 5)
        self.assertEqual([o.error for o in outcomes], [None] * 5)
        self.assertEqual(self.settings()["count"], "5")

    def test_a_write_that_changes_other_rows_than_it_must_is_tried_again_and_then_busy(
        self,
    ) -> None:
        tries = []

        def guarded(tx: Transaction) -> None:
            tries.append(1)
            tx.later(_INSERT, ("kept", "x"))
            tx.later("UPDATE settings SET value = ? WHERE name = ?", ("y", "nobody"), 1)

        outcome = self.perform(guarded)[0]
        self.assertGreater(len(tries), 1)
        self.assertIsNotNone(outcome.error)
        self.assertEqual(self.settings(), {})
        fits = lambda tx: tx.later(  # noqa: E731
            "UPDATE settings SET value = ? WHERE name = ?", ("z", "acl_version"), 1
        )
        self.assertIsNone(self.perform(fits)[0].error)

    def test_values_of_every_kind_come_back(self) -> None:
        values: dict[str, Any] = {
            "text": "ü 'quoted' \\ ? %s $1 \n",
            "octets": bytes(range(256)),
            "large": 2**31 - 1,
            "real": 1_800_000_000.123456,
            "nothing": None,
        }

        def operation(tx: Transaction) -> tuple[Any, ...]:
            tx.run(
                "INSERT INTO scripts (digest, content, created_at) VALUES (?, ?, ?)",
                (values["text"], values["octets"], values["real"]),
            )
            row = tx.one("SELECT * FROM scripts WHERE digest = ?", (values["text"],))
            assert row is not None
            total = tx.one("SELECT sum(1) AS n, max(created_at) AS at FROM scripts")
            assert total is not None
            return row["digest"], bytes(row["content"]), row["created_at"], total["n"], total["at"]

        self.assertEqual(
            self.database.run_now(operation),
            (values["text"], values["octets"], values["real"], 1, values["real"]),
        )

    def test_counts_and_returned_rows(self) -> None:
        def operation(tx: Transaction) -> tuple[Any, ...]:
            tx.later(_INSERT, ("a", "one"))
            tx.later(_INSERT, ("b", "one"))
            changed = tx.run("UPDATE settings SET value = '2' WHERE value = 'one'")
            row = tx.insert(
                "UPDATE settings SET value = '3' WHERE name = ? RETURNING value", ("a",)
            )
            nothing = tx.insert(_INSERT + " ON CONFLICT DO NOTHING RETURNING name", ("a", "9"))
            return changed, row and row["value"], nothing

        self.assertEqual(self.database.run_now(operation), (2, "3", None))

    def test_many_sessions_at_once(self) -> None:
        """Writers in threads of their own, each of whom adds to the same row."""
        self.perform(self.put("counter", "0"))
        problems: list[Any] = []

        def add(tx: Transaction) -> None:
            row = tx.one("SELECT value FROM settings WHERE name = 'counter' /*pg FOR UPDATE*/")
            assert row is not None
            tx.later(
                "UPDATE settings SET value = ? WHERE name = 'counter'",
                (str(int(row["value"]) + 1),),
                1,
            )

        def work() -> None:
            session = self.database._session()
            try:
                for _ in range(25):
                    problems.extend(o.error for o in session.perform([add], True) if o.error)
            finally:
                session.close()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(problems, [])
        self.assertEqual(self.settings()["counter"], "100")


class SqliteStoreTests(SqliteMixin, StoreCase):
    """On SQLite."""

    def test_what_clients_ask_all_day_is_answered_by_an_index_of_open_runs(self) -> None:
        """And so does not grow with the runs that have ended."""
        for sql, index in (
            (runs.CANDIDATES, "runs_deliverable"),
            (runs.CANDIDATES, "runs_held"),
            (runs.ANYTHING, "runs_deliverable"),
            (runs.SENT, "runs_held"),
        ):
            parameters = [1] * sql.count("?")

            def plan(
                tx: Transaction, sql: str = sql, parameters: list[int] = parameters
            ) -> list[str]:
                return [row["detail"] for row in tx.all(f"EXPLAIN QUERY PLAN {sql}", parameters)]

            found = self.database.run_now(plan)
            self.assertTrue(any(index in detail for detail in found), (index, found))
            self.assertFalse(any("TEMP B-TREE" in detail for detail in found), found)


class PostgresStoreTests(PostgresMixin, StoreCase):
    """On PostgreSQL."""

    def test_a_connection_that_is_cut_is_made_anew(self) -> None:
        self.perform(self.put("first"))

        def cut(tx: Transaction) -> None:
            tx.all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )

        self.database.run_now(cut)
        self.assertEqual(self.perform(self.put("second"))[0].value, "second")
        self.assertEqual(sorted(self.settings()), ["first", "second"])

    def test_statements_are_translated(self) -> None:
        sql = "SELECT a FROM t WHERE b = ? AND c = ? /*pg FOR UPDATE*/"
        self.assertEqual(translated(sql), b"SELECT a FROM t WHERE b = $1 AND c = $2 FOR UPDATE")


del StoreCase
