"""From definitions to runs: schedules, dependencies, batches, groups, old rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gridnet.errors import ConfigError
from gridnet.scire import jobs, upkeep
from gridnet.scire.admin.jobs import read_definition
from gridnet.scire.config import LimitsConfig
from gridnet.scire.definition import JobDefinition
from gridnet.scire.faults import ScireFault
from gridnet.scire.identity import Client
from gridnet.scire.rights import changed
from gridnet.scire.store.database import Transaction
from gridnet.scire.store.opening import open_database
from tests.scire.databases import PostgresMixin, SqliteMixin
from tests.scire.fleet import FleetCase

DAY = 86400.0


def utc(text: str) -> float:
    """Seconds since the epoch of a time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class JobsCase(FleetCase):
    """Two clients; what time and other runs do to runs."""

    abstract = True

    def setUp(self) -> None:
        super().setUp()
        if not type(self).__dict__.get("abstract"):
            self.time.now = utc("2027-01-15 12:10")
            self.alice = self.client("alice.example.org")
            self.bob = self.client("bob.example.org")

    def rows(self, job: int) -> list[Any]:
        """(client, state) of a job's runs, in order of occurrence."""
        return self.time.do(
            lambda tx: [
                (row["name"].partition(".")[0], row["state"])
                for row in tx.all(
                    "SELECT c.name, r.state FROM runs r JOIN clients c ON c.id = r.client_id"
                    " WHERE r.job_id = ? ORDER BY r.occurrence, r.id",
                    (job,),
                )
            ]
        )

    def work(self, client: Client, state: str = "succeeded", job: int = 0) -> bool:
        """Fetch one run (of *job*, or any), and report it ended; whether there was one."""
        delivery = self.next(client)
        if delivery is None:
            return False
        self.acknowledge(client, delivery.receipt)
        self.report(client, delivery.run, 1, state, delivery.attempt, exit_code=0)
        if job:
            self.assertEqual(delivery.job, job)
        return True

    def later(self, seconds: float) -> None:
        """Let time pass, and the leader do its duties."""
        self.time.now += seconds
        self.duties()

    # -- time

    def test_a_job_of_tomorrow_becomes_runs_tomorrow(self) -> None:
        job = self.job(due=self.time.now + DAY)
        self.assertEqual(self.rows(job), [])
        carol = self.client("carol.example.org")
        self.later(DAY - 1)
        self.assertEqual(self.rows(job), [])
        self.later(2)
        # Whoever is there when it is due.
        self.assertEqual([client for client, _ in self.rows(job)], ["alice", "bob", "carol"])
        self.assertTrue(self.work(carol))

    def test_groups_are_expanded_at_due_time_and_followed_if_wanted(self) -> None:
        group = self.group("client-group", "printers", ("client", self.alice.id))
        once = self.job(targets={"groups": [group]}, due=self.time.now + 60)
        followed = self.job(targets={"groups": [group]}, follow_groups=True)

        def join(tx: Transaction) -> None:
            tx.run(
                "INSERT INTO memberships (group_id, member_kind, member_id)"
                " VALUES (?, 'client', ?)",
                (group, self.bob.id),
            )
            changed(tx)

        self.time.do(join)
        self.later(61)
        for job in (once, followed):
            self.assertEqual([client for client, _ in self.rows(job)], ["alice", "bob"], job)
        carol = self.client("carol.example.org")
        self.time.do(
            lambda tx: tx.run(
                "INSERT INTO memberships (group_id, member_kind, member_id)"
                " VALUES (?, 'client', ?)",
                (group, carol.id),
            )
        )
        self.time.do(changed)
        self.later(10)
        self.assertEqual(len(self.rows(once)), 2)
        self.assertEqual(len(self.rows(followed)), 3)

    def test_exclusions(self) -> None:
        job = self.job(targets={"all": True, "not_clients": [self.bob.id]})
        self.assertEqual([client for client, _ in self.rows(job)], ["alice"])

    def test_a_recurring_job_comes_again(self) -> None:
        job = self.job(targets={"clients": [self.alice.id]}, recurrence={"cron": "0 2 * * *"})
        self.assertEqual(self.rows(job), [])
        for _ in range(3):
            self.later(DAY)
            self.assertTrue(self.work(self.alice))
            self.assertFalse(self.work(self.alice))
        self.assertEqual(len(self.rows(job)), 3)

    def test_after_two_days_down(self) -> None:
        """What was missed, by each policy."""
        for misfire, count in (("once", 1), ("all", 24), ("skip", 0)):
            job = self.job(
                targets={"clients": [self.alice.id]},
                recurrence={"cron": "30 * * * *"},
                misfire=misfire,
                misfire_window=86400,
                overlap="queue",
            )
            self.later(2 * DAY)
            self.assertEqual(len(self.rows(job)), count, misfire)
            self.time.do(
                lambda tx, job=job: tx.run(  # type: ignore[misc]
                    "UPDATE jobs SET state = 'deleted' WHERE id = ?", (job,)
                )
            )

    def test_an_occurrence_whose_predecessor_goes_on(self) -> None:
        target = {"clients": [self.alice.id]}
        every = {"every": 3600}
        skip = self.job(targets=target, recurrence=every)
        queue = self.job(targets=target, recurrence=every, overlap="queue")
        cancel = self.job(targets=target, recurrence=every, overlap="cancel-old")
        self.later(3600)
        self.later(3600)
        self.assertEqual([state for _, state in self.rows(skip)], ["pending", "skipped"])
        self.assertEqual([state for _, state in self.rows(queue)], ["pending", "waiting"])
        self.assertEqual(self.rows(cancel)[0][1], "cancelled")
        while self.work(self.alice):
            self.duties()
        self.assertEqual([state for _, state in self.rows(queue)], ["succeeded", "succeeded"])
        self.assertEqual([state for _, state in self.rows(cancel)], ["cancelled", "succeeded"])

    def test_deadlines(self) -> None:
        job = self.job(deadline=self.time.now + 100)
        other = self.job(valid_seconds=50)
        self.assertTrue(self.next(self.alice))
        self.later(60)
        self.assertEqual([state for _, state in self.rows(other)], ["expired"] * 2)
        self.later(60)
        self.assertEqual([state for _, state in self.rows(job)], ["expired"] * 2)
        self.assertIsNone(self.next(self.alice))

    def test_a_paused_job_hands_nothing_out_and_makes_nothing(self) -> None:
        job = self.job(recurrence={"every": 3600}, targets={"clients": [self.alice.id]})
        self.later(3600)
        pause = "UPDATE jobs SET state = ? WHERE id = ?"
        self.time.do(lambda tx: tx.run(pause, ("paused", job)))
        self.later(7200)
        self.assertIsNone(self.next(self.alice))
        self.assertEqual(len(self.rows(job)), 1)
        self.time.do(lambda tx: tx.run(pause, ("active", job)))
        self.assertTrue(self.work(self.alice))

    # -- dependencies

    def chain(self, length: int, **values: Any) -> list[int]:
        made = [self.job(name="0", targets={"clients": [self.alice.id]})]
        for number in range(1, length):
            made.append(
                self.job(
                    name=str(number),
                    targets={"clients": [self.alice.id]},
                    depends_on=[{"job": made[-1], **values}],
                )
            )
        return made

    def chain_states(self, chain: list[int]) -> list[str]:
        return [self.rows(job)[0][1] for job in chain]

    def test_a_chain_of_five_with_a_failure_in_the_middle(self) -> None:
        chain = self.chain(5)
        self.duties()
        self.assertEqual(self.chain_states(chain), ["pending", *["waiting"] * 4])
        for number, state in enumerate(("succeeded", "succeeded", "failed")):
            self.assertTrue(self.work(self.alice, state, chain[number]))
            self.duties()
        self.assertFalse(self.work(self.alice))
        self.assertEqual(
            self.chain_states(chain), ["succeeded", "succeeded", "failed", "skipped", "skipped"]
        )

    def test_conditions_end_and_failure(self) -> None:
        first = self.job(targets={"clients": [self.alice.id]})
        made = {
            condition: self.job(
                targets={"clients": [self.alice.id]},
                depends_on=[{"job": first, "condition": condition}],
            )
            for condition in ("success", "end", "failure")
        }
        self.assertTrue(self.work(self.alice, "failed"))
        self.duties()
        states = {condition: self.rows(job)[0][1] for condition, job in made.items()}
        self.assertEqual(states, {"success": "skipped", "end": "pending", "failure": "pending"})

    def test_all_clients_must_be_done(self) -> None:
        first = self.job()
        second = self.job(
            targets={"clients": [self.alice.id]},
            depends_on=[{"job": first, "scope": "all-clients"}],
        )
        self.assertTrue(self.work(self.alice))
        self.duties()
        self.assertEqual(self.rows(second), [("alice", "waiting")])
        self.assertTrue(self.work(self.bob))
        self.duties()
        self.assertEqual(self.rows(second), [("alice", "pending")])

    def test_circles_are_refused(self) -> None:
        chain = self.chain(3)

        def close(tx: Transaction) -> None:
            row = tx.one("SELECT * FROM jobs WHERE id = ?", (chain[0],))
            assert row is not None
            definition = self.jobs.get(tx, chain[0], row["version"]).definition
            from attrs import evolve

            from gridnet.scire.dependencies import Dependency

            wanted = evolve(definition, depends_on=(Dependency(chain[2]),))
            jobs.change(tx, row, wanted, 1)

        with self.assertRaises(ScireFault) as caught:
            self.time.do(close)
        self.assertEqual(caught.exception.code, 1051)

    # -- batches

    def test_batches_stop_at_too_many_failures(self) -> None:
        names = [self.client(f"c{n}.example.org") for n in range(6)]
        everybody = [self.alice, self.bob, *names]
        job = self.job(batch={"size": 2, "stop_percent": 50.0})
        self.duties()
        self.assertEqual([s for _, s in self.rows(job)].count("pending"), 2)
        for state in ("succeeded", "failed"):
            self.assertTrue(any(self.work(client, state) for client in everybody))
        self.duties()
        self.assertEqual(sorted({s for _, s in self.rows(job)}), ["failed", "skipped", "succeeded"])

    def test_so_many_at_a_time(self) -> None:
        names = [self.client(f"c{n}.example.org") for n in range(4)]
        everybody = [self.alice, self.bob, *names]
        job = self.job(max_parallel=2)
        done = 0
        for _ in range(20):
            self.duties()
            states = [state for _, state in self.rows(job)]
            self.assertLessEqual(states.count("pending"), 2)
            done += any(self.work(client) for client in everybody)
        self.assertEqual(done, 6)

    # -- people

    def test_runs_of_a_deleted_user_are_denied(self) -> None:
        user = self.user("sam")
        self.rule(True, "run.*", user=user)
        job = self.job(user=user)

        def delete(tx: Transaction) -> None:
            tx.run("UPDATE users SET deleted_at = ? WHERE id = ?", (tx.now, user))
            changed(tx)

        self.time.do(delete)
        self.assertIsNone(self.next(self.alice))
        self.assertIn(("alice", "denied"), self.rows(job))

    # -- servers and old rows

    def test_servers_that_do_not_speak_are_dead(self) -> None:
        do = self.time.do
        first, second = self.servers
        self.time.now += 31
        self.assertEqual(do(lambda tx: upkeep.beat(tx, first.id, first.epoch)), "recovering")
        do(lambda tx: upkeep.bury(tx, 30.0))
        states = do(lambda tx: {r["name"]: r["state"] for r in tx.all("SELECT * FROM servers")})
        self.assertEqual(states, {"a": "recovering", "b": "dead"})
        self.assertEqual(do(lambda tx: upkeep.beat(tx, second.id, second.epoch)), "serving")
        again = self.server("a")
        self.assertEqual(again.epoch, first.epoch + 1)
        self.assertEqual(do(lambda tx: upkeep.beat(tx, first.id, first.epoch)), "replaced")

    def test_a_server_that_starts_again_ends_what_is_over(self) -> None:
        self.job()
        self.must_next(self.alice)
        self.time.now += 10
        again = self.server("a")
        ended = self.time.do(
            lambda tx: upkeep.end_own_leases(tx, self.jobs, again.id, again.epoch, again.who)
        )
        self.assertEqual(ended, 0)  # the acknowledgement may still come
        self.time.now += 60
        ended = self.time.do(
            lambda tx: upkeep.end_own_leases(tx, self.jobs, again.id, again.epoch, again.who)
        )
        self.assertEqual(ended, 1)

    def test_old_rows_go(self) -> None:
        self.job()
        self.assertTrue(self.work(self.alice))
        do = self.time.do

        def counts(tx: Transaction) -> dict[str, int]:
            tables = ("runs", "history", "deliveries", "reports")
            return {name: len(tx.all(f"SELECT * FROM {name}")) for name in tables}

        before = do(counts)
        self.assertEqual(do(lambda tx: upkeep.prune_runs(tx, tx.now - 1)), 0)
        self.assertEqual(do(counts), before)
        self.assertEqual(do(lambda tx: upkeep.prune_runs(tx, tx.now + 1)), 1)
        self.assertEqual(do(counts), {"runs": 1, "history": 1, "deliveries": 0, "reports": 0})
        do(lambda tx: upkeep.prune_outputs(tx, tx.now + 1))
        do(lambda tx: upkeep.prune_audit(tx, tx.now + 1))

    def test_old_keys_go_a_slice_at_a_time(self) -> None:
        def keep(tx: Transaction) -> None:
            for number in range(1005):
                tx.run(
                    "INSERT INTO idempotency (user_id, key, digest, result, at)"
                    " VALUES (1, ?, '', '', ?)",
                    (f"key {number}", tx.now - number),
                )

        do = self.time.do
        do(keep)
        self.assertEqual(do(lambda tx: upkeep.prune_keys(tx, tx.now - 1003)), 1)
        self.assertEqual(do(lambda tx: upkeep.prune_keys(tx, tx.now + 1)), 1000)
        self.assertEqual(do(lambda tx: upkeep.prune_keys(tx, tx.now + 1)), 4)

    def test_attachments_that_no_job_has_go_after_a_day(self) -> None:
        attached = {"name": "a", "digest": f"sha256:{'1' * 64}", "size": 1}

        def keep(tx: Transaction) -> None:
            for digit, complete in (("1", 1), ("2", 1), ("3", 0)):
                tx.run(
                    "INSERT INTO files (digest, size, complete, created_at) VALUES (?, 1, ?, ?)",
                    (f"sha256:{digit * 64}", complete, tx.now),
                )

        def left(tx: Transaction) -> list[str]:
            rows = tx.all("SELECT digest FROM files ORDER BY digest")
            return [str(row["digest"])[7] for row in rows]

        do = self.time.do
        do(keep)
        job = self.job(attachments=[attached])
        self.assertEqual(do(upkeep.drop_unreferenced), 0)
        self.time.now += 86401
        self.assertEqual(do(upkeep.drop_unreferenced), 2)
        self.assertEqual(do(left), ["1"])
        do(lambda tx: tx.run("UPDATE jobs SET state = 'deleted' WHERE id = ?", (job,)))
        # And its script.
        self.assertEqual(do(upkeep.drop_unreferenced), 2)
        self.assertEqual(do(left), [])

    def test_scripts_that_no_job_has_go_after_a_day(self) -> None:
        do = self.time.do

        def keep(tx: Transaction) -> JobDefinition:
            execute = {"script": b"true\n", "user": "nobody"}
            given = {"name": "x", "targets": {"all": True}, "execute": execute}
            return read_definition(tx, given, LimitsConfig())

        def left(tx: Transaction) -> list[str]:
            rows = tx.all("SELECT digest FROM scripts WHERE content = ?", (b"true\n",))
            return [str(row["digest"]) for row in rows]

        digest = do(keep).execute.script
        self.time.now += 86401
        # Naming it again, by content or by digest, makes it young.
        do(keep)
        do(upkeep.drop_unreferenced)
        self.assertEqual(do(left), [digest])
        self.time.now += 86401
        named = {"script": digest, "user": "nobody"}
        given = {"name": "x", "targets": {"all": True}, "execute": named}
        do(lambda tx: read_definition(tx, given, LimitsConfig()))
        do(upkeep.drop_unreferenced)
        self.assertEqual(do(left), [digest])
        # A job's stays as long as the job.
        job = self.job(execute=named)
        self.time.now += 86401
        do(upkeep.drop_unreferenced)
        self.assertEqual(do(left), [digest])
        do(lambda tx: tx.run("UPDATE jobs SET state = 'deleted' WHERE id = ?", (job,)))
        do(upkeep.drop_unreferenced)
        self.assertEqual(do(left), [])

    def test_numbers_for_people(self) -> None:
        self.job()
        self.time.now += 5
        self.assertTrue(self.work(self.alice))
        found = self.time.do(upkeep.overview)
        self.assertEqual(found["runs"], {"succeeded": 1, "pending": 1})
        self.assertEqual((found["clients"], found["oldest_pending_seconds"]), ({"active": 2}, 5.0))

    def test_tables_of_a_newer_program_are_left_alone(self) -> None:
        names = self.database_names()
        database = open_database(names, self.mktemp_path(), 1, "test")
        self.addCleanup(database.close)
        database.run_now(lambda tx: tx.run("INSERT INTO schema_version (version) VALUES (99)"))
        with self.assertRaises(ConfigError) as caught:
            open_database(names, self.mktemp_path(), 1, "test")
        self.assertIn("newer than this program", str(caught.exception))

    def mktemp_path(self) -> Any:
        from pathlib import Path

        return Path(self.mktemp())


class SqliteJobsTests(SqliteMixin, JobsCase):
    """On SQLite."""


class PostgresJobsTests(PostgresMixin, JobsCase):
    """On PostgreSQL."""


del JobsCase
