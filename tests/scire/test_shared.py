"""Shared transactions on the reactor, and statements for many calls at once, on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import psycopg
from hypothesis import given, settings
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.scire import calls as _all_of_them  # noqa: F401 - says what statements there are
from gridnet.scire import runs
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.store import sets
from gridnet.scire.store.database import InSteps, Steps, Transaction
from gridnet.scire.store.opening import open_database
from gridnet.scire.store.postgresql import PostgresDatabase
from gridnet.scire.store.sets import INT, OCTETS, REAL, TEXT, arrays, in_sets, set_form
from tests.scire.databases import PostgresMixin, postgres

#: What the job server has said when its modules were imported.
_OURS = tuple(sets._TYPES)
_GET = in_sets("SELECT value FROM settings WHERE name = ? /*pg FOR UPDATE*/", TEXT)
_PUT = in_sets("INSERT INTO settings (name, value) VALUES (?, ?)", TEXT, TEXT)
_CHANGE = in_sets("UPDATE settings SET value = ? WHERE name = ? AND value = ?", TEXT, TEXT, TEXT)
_AUDIT = "audit (at, who, address, action, object, before_text, after_text)"


class FormTests(SynchronousTestCase):
    """The texts."""

    def test_a_statement_that_reads(self) -> None:
        sql = in_sets("SELECT a FROM t WHERE b = ? AND c < ? /*pg FOR UPDATE*/", TEXT, REAL)
        self.assertEqual(
            set_form(sql).sql,
            "SELECT v.n, q.* FROM unnest($1::text[], $2::float8[]) WITH ORDINALITY"
            " AS v (p1, p2, n), LATERAL (SELECT a FROM t WHERE b = v.p1 AND c < v.p2 FOR UPDATE)"
            " AS q",
        )
        free = in_sets("SELECT a FROM u WHERE b = ? /*pg FOR UPDATE*/", TEXT, locks=False)
        self.assertNotIn("FOR UPDATE", set_form(free).sql)

    def test_statements_that_write(self) -> None:
        self.assertEqual(
            set_form(in_sets("UPDATE t SET a = ? WHERE b = ?", INT, TEXT)).sql,
            "UPDATE t SET a = v.p1 FROM unnest($1::int[], $2::text[]) AS v (p1, p2) WHERE b = v.p2",
        )
        sql = in_sets("INSERT INTO t (a, b) VALUES (?, 'x') ON CONFLICT (a) DO NOTHING", INT)
        self.assertEqual(
            set_form(sql).sql,
            "INSERT INTO t (a, b) SELECT v.p1, 'x' FROM unnest($1::int[]) AS v (p1)"
            " ON CONFLICT (a) DO NOTHING",
        )

    def test_types_are_as_many_as_parameters(self) -> None:
        self.assertRaises(ValueError, in_sets, "SELECT 1 WHERE a = ?", INT, INT)


_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
_ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**31), 2**31 - 1),
        st.none() | st.floats(allow_nan=False),
        st.none() | _TEXTS | st.sampled_from(["NULL", "null", "", "{}", '"', "\\", ",", " "]),
        st.none() | st.binary(max_size=20),
    ),
    min_size=1,
    max_size=8,
)


class ArrayTests(PostgresMixin, SynchronousTestCase):
    """What PostgreSQL makes of the texts."""

    def setUp(self) -> None:
        self.connection = psycopg.connect(postgres().create())
        self.addCleanup(self.connection.close)

    def test_values_of_every_kind_arrive(self) -> None:
        types = (INT, REAL, TEXT, OCTETS)
        query = "SELECT * FROM unnest(%s::int[], %s::float8[], %s::text[], %s::bytea[])"

        @settings(max_examples=80, deadline=None, database=None)
        @given(_ROWS)
        def check(rows: list[tuple[Any, ...]]) -> None:
            found = self.connection.execute(query, arrays(types, rows)).fetchall()
            self.assertEqual([tuple(row) for row in found], rows)

        check()

    def test_every_statement_has_a_form_that_is_understood(self) -> None:
        move = runs._move_of(("ended_at", "message", "state"))
        self.assertGreater(len(_OURS), 10)
        number = 0
        for sql in (*_OURS, move):
            reads = sql.strip().startswith("SELECT")
            for guarded in (False,) if reads else (False, True):
                number += 1
                self.connection.execute(f"PREPARE q{number} AS {set_form(sql, guarded).sql}")


class SharedTests(PostgresMixin, TestCase):
    """Operations of one turn of the reactor."""

    def setUp(self) -> None:
        self.names = self.database_names()
        self.database: PostgresDatabase = open_database(self.names, Path(), 2, "test")  # type: ignore[assignment]
        self.events: list[str] = []
        self.database.told = lambda event: self.events.append(event.kind)
        self.database.start(reactor)
        self.addCleanup(self.database.stop)

    def settings(self) -> dict[str, str]:
        return self.database.run_now(
            lambda tx: {
                row["name"]: row["value"]
                for row in tx.all("SELECT * FROM settings WHERE name <> 'acl_version'")
            }
        )

    def together(self, *courses: Any) -> Deferred[list[Any]]:
        """Submit all in one turn: a value or an exception for each."""
        waiting = [self.database.write(InSteps(course)) for course in courses]
        done: Deferred[Any] = DeferredList(waiting, consumeErrors=True)
        return done.addCallback(
            lambda results: [value if ok else value.value for ok, value in results]
        )

    @staticmethod
    def put(name: str, value: str = "x") -> Any:
        def course(tx: Transaction) -> Steps[str]:
            yield [(_GET, (name,))]
            found = tx.one(_GET, (name,))
            tx.later(_PUT, (name, value))
            tx.append(_AUDIT, (1.0, name, "", "a", "", "", ""))
            tx.event(name)
            return f"{name} {found and found['value']}"

        return course

    async def test_many_share_one_transaction(self) -> None:
        found = await self.together(*[self.put(f"n{n}") for n in range(20)])
        self.assertEqual(found, [f"n{n} None" for n in range(20)])
        self.assertEqual(self.events, [f"n{n}" for n in range(20)])
        self.assertEqual(len(self.settings()), 20)
        traces = self.database.run_now(lambda tx: tx.all("SELECT who FROM audit ORDER BY id"))
        self.assertEqual([row["who"] for row in traces], [f"n{n}" for n in range(20)])
        assert self.database._shared is not None
        self.assertEqual(self.database._shared.transactions, 1)

    async def test_one_that_fails_costs_nobody_else(self) -> None:
        def refused(tx: Transaction) -> Steps[None]:
            yield [(_GET, ("a",))]
            raise ScireFault(FaultCode.NOT_AUTHENTICATED, "who?")

        def too_late(tx: Transaction) -> Steps[None]:
            yield [(_GET, ("a",))]
            tx.later(_PUT, ("never", "x"))
            raise ScireFault(FaultCode.CONFLICT, "no")

        def broken(tx: Transaction) -> Steps[None]:
            yield [("SELECT nonsense FROM nowhere", ())]

        def unfit(tx: Transaction) -> Steps[None]:
            yield [(_GET, ("a",))]
            tx.later(_PUT, ("nul", "\0"))

        first = await self.together(self.put("a"), refused, self.put("b"))
        self.assertEqual((first[0], first[2]), ("a None", "b None"))
        self.assertEqual(first[1].code, FaultCode.NOT_AUTHENTICATED)
        for number, bad in enumerate((too_late, broken, unfit)):
            with self.subTest(bad.__name__):
                before, after = f"c{number}", f"d{number}"
                found = await self.together(self.put(before), bad, self.put(after))
                self.assertEqual((found[0], found[2]), (f"{before} None", f"{after} None"))
                self.assertIsInstance(found[1], Exception)
        self.assertEqual(
            set(self.settings()), {"a", "b", *(f"{x}{n}" for x in "cd" for n in range(3))}
        )
        self.assertEqual(len(self.events), 8)

    async def test_one_that_reads_what_it_did_not_say_runs_where_it_may_wait(self) -> None:
        def curious(tx: Transaction) -> Steps[str]:
            yield []
            row = tx.one("SELECT count(*) AS n FROM settings")
            assert row is not None
            tx.run("UPDATE settings SET value = 'seen' WHERE name = 'acl_version'")
            return f"read {row['n'] > 0}"

        def late(tx: Transaction) -> Steps[int]:
            yield [(_GET, ("a",))]
            tx.later(_PUT, ("late", "x"))
            return tx.run("UPDATE settings SET value = 'y' WHERE name = 'late'")

        found = await self.together(self.put("a"), curious, self.put("b"))
        self.assertEqual(found, ["a None", "read True", "b None"])
        found = await self.together(self.put("c"), late, self.put("d"))
        self.assertEqual(found, ["c None", 1, "d None"])
        self.assertEqual(self.settings(), {"a": "x", "b": "x", "c": "x", "d": "x", "late": "y"})

    async def test_what_two_would_change_changes_twice(self) -> None:
        """Each reads the row before any of them writes; the guard sees to it."""

        def count(tx: Transaction) -> Steps[None]:
            yield [(_GET, ("count",))]
            row = tx.one(_GET, ("count",))
            assert row is not None
            tx.later(_CHANGE, (str(int(row["value"]) + 1), "count", row["value"]), 1)

        await self.together(self.put("count", "0"))
        found = await self.together(*[count] * 6)
        self.assertEqual(found, [None] * 6)
        self.assertEqual(self.settings(), {"count": "6"})
        # Those of several servers meet as well.
        others = [open_database(self.names, Path(), 2, f"other{n}") for n in range(2)]
        for other in others:
            other.start(reactor)
            self.addCleanup(other.stop)
        waiting = [
            database.write(InSteps(count))
            for database in (self.database, *others)
            for _ in range(4)
        ]
        outcomes = await DeferredList(waiting, consumeErrors=True)
        # A few may be told to come again; whoever was not has counted.
        counted = sum(ok for ok, _ in outcomes)
        for ok, value in outcomes:
            if not ok:
                assert isinstance(value, Failure)
                self.assertEqual(value.value.code, FaultCode.BUSY)
        self.assertEqual(self.settings(), {"count": str(6 + counted)})

    async def test_reads_see_what_others_of_the_transaction_wrote_before(self) -> None:
        def first(tx: Transaction) -> Steps[None]:
            yield []
            tx.later(_PUT, ("word", "x"))
            yield [(_GET, ("word",))]
            tx.later(_CHANGE, ("y", "word", "x"), 1)

        def second(tx: Transaction) -> Steps[str]:
            yield []
            yield [(_GET, ("word",)), (_GET, ("nobody",))]
            yield [(_GET, ("word",)), (_GET, ("nobody",))]
            row, nothing = tx.one(_GET, ("word",)), tx.one(_GET, ("nobody",))
            return f"{row and row['value']} {nothing}"

        found = await self.together(first, second)
        self.assertEqual(found, [None, "y None"])

    async def test_a_lost_connection_is_made_anew(self) -> None:
        await self.together(self.put("a"))
        for number in range(3):
            postgres().execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{self.names[0].split('/')[3].partition('?')[0]}'"
            )
            found = await self.together(self.put(f"b{number}"), self.put(f"c{number}"))
            self.assertEqual(found, [f"b{number} None", f"c{number} None"])
        self.assertEqual(len(self.settings()), 7)

    async def test_the_end_comes_when_all_is_answered(self) -> None:
        waiting = [self.database.write(InSteps(self.put(f"n{n}"))) for n in range(100)]
        stopped = self.database.stop()
        refused = self.database.write(InSteps(self.put("late")))
        found = await gatherResults(waiting)
        self.assertEqual(found, [f"n{n} None" for n in range(100)])
        await stopped
        await self.assertFailure(refused, ScireFault)
        self.assertEqual(len(self.settings()), 100)
