"""A small fleet in a database, for tests of what happens to runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import jobs, reports, runs, upkeep
from gridnet.scire.definition import parse_definition
from gridnet.scire.faults import ScireFault
from gridnet.scire.identity import Client, authenticate
from gridnet.scire.jobcache import JobCache
from gridnet.scire.jobfile import digest_of
from gridnet.scire.machine import TRANSITIONS, Held, Reported, RunState
from gridnet.scire.rights import Rights, changed
from gridnet.scire.runs import Dispatch, Server
from gridnet.scire.statusfile import StatusFile, format_status
from gridnet.scire.store.database import Steps, Transaction, alone
from gridnet.scire.store.opening import open_database
from tests.scire.databases import Backend, TimeMachine

LEASE = 60
SCRIPT = b"exit 0\n"


def check_histories(tx: Transaction) -> list[str]:
    """What is wrong with the histories in a database: each is a walk through the transitions."""
    wrong = []
    last: dict[int, str] = {}
    for row in tx.all("SELECT * FROM history ORDER BY id"):
        run, before, after = row["run_id"], row["from_state"], row["to_state"]
        if before != last.get(run):
            wrong.append(f"run {run}: {before} -> {after} follows {last.get(run)}")
        elif before != after and (
            (RunState(before) if before else None, RunState(after)) not in TRANSITIONS
        ):
            wrong.append(f"run {run}: {before} -> {after}")
        last[run] = after
    wrong.extend(
        f"run {row['id']} is {row['state']}, its history says {last.get(row['id'])}"
        for row in tx.all("SELECT id, state FROM runs")
        if row["state"] != last.get(row["id"])
    )
    return wrong


class FleetCase(Backend, SynchronousTestCase):
    """
    Two servers (as far as rows go), some clients, root's jobs; mixed with a backend.

    :ivar time: the database, and the time that it shows.
    """

    abstract = True

    def setUp(self) -> None:
        if type(self).__dict__.get("abstract"):
            return
        names = self.database_names()
        database = open_database(names, Path(), 1, "test")
        self.addCleanup(database.close)
        self.time = TimeMachine(database)
        self.jobs, self.rights = JobCache(256), Rights()
        self.dispatch = Dispatch(self.jobs, self.rights)
        self.servers = [self.server(name) for name in ("a", "b")]
        self.addCleanup(self._check_histories)

    def _check_histories(self) -> None:
        self.assertEqual(self.time.do(check_histories), [])

    def server(self, name: str) -> Server:
        id_, epoch = self.time.do(
            lambda tx: upkeep.register(tx, name, f"https://{name}/", "", "primary", 1)
        )
        return Server(id_, name, epoch, LEASE)

    # -- people and machines

    def client(self, name: str) -> Client:
        def make(tx: Transaction) -> None:
            row = tx.insert(
                "INSERT INTO clients (name, state, created_at) VALUES (?, 'active', ?)"
                " RETURNING id",
                (name, tx.now),
            )
            assert row is not None
            tx.run(
                "INSERT INTO certificates (digest, client_id, not_before, not_after, issued_at,"
                " first_used_at) VALUES (?, ?, 0, 4e9, ?, ?)",
                (f"digest of {name}", row["id"], tx.now, tx.now),
            )

        self.time.do(make)
        found = self.time.do(lambda tx: authenticate(tx, f"digest of {name}", "192.0.2.1"))
        assert isinstance(found, Client)
        return found

    def user(self, name: str) -> int:
        def make(tx: Transaction) -> int:
            row = tx.insert(
                "INSERT INTO users (name, created_at) VALUES (?, ?) RETURNING id", (name, tx.now)
            )
            changed(tx)
            assert row is not None
            return int(row["id"])

        return self.time.do(make)

    def rule(self, allow: bool, permission: str, **parties: int) -> int:
        """Parties: user, user_group, client, client_group; one of each pair, or none for all."""

        def make(tx: Transaction) -> int:
            subject = next(((k, v) for k, v in parties.items() if k.startswith("user")), ("all", 0))
            target = next(((k, v) for k, v in parties.items() if k.startswith("cl")), ("all", 0))
            row = tx.insert(
                "INSERT INTO rules (allow, subject_kind, subject_id, permission, object_kind,"
                " object_id, created_at) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (
                    int(allow),
                    subject[0].replace("_", "-"),
                    subject[1],
                    permission,
                    target[0].replace("_", "-"),
                    target[1],
                    tx.now,
                ),
            )
            changed(tx)
            assert row is not None
            return int(row["id"])

        return self.time.do(make)

    def group(self, kind: str, name: str, *members: tuple[str, int]) -> int:
        def make(tx: Transaction) -> int:
            row = tx.insert(
                "INSERT INTO groups (kind, name, created_at) VALUES (?, ?, 0) RETURNING id",
                (kind, name),
            )
            assert row is not None
            for member_kind, member in members:
                tx.run(
                    "INSERT INTO memberships (group_id, member_kind, member_id) VALUES (?, ?, ?)",
                    (row["id"], member_kind, member),
                )
            changed(tx)
            return int(row["id"])

        return self.time.do(make)

    # -- jobs

    def job(self, user: int = 1, **values: Any) -> int:
        values.setdefault("name", "job")
        values.setdefault("targets", {"all": True})
        values.setdefault("execute", {"script": digest_of(SCRIPT)})

        def make(tx: Transaction) -> int:
            tx.run(
                "INSERT INTO scripts (digest, content, created_at) VALUES (?, ?, 0)"
                " ON CONFLICT (digest) DO NOTHING",
                (digest_of(SCRIPT), SCRIPT),
            )
            job = jobs.store(tx, parse_definition(values), user)
            self._expand(tx, job)
            return job

        return self.time.do(make)

    def _expand(self, tx: Transaction, job: int) -> None:
        while jobs.expand(tx, job, self.jobs, self.rights.directory(tx), "server:a"):
            pass

    def duties(self) -> None:
        """What the leader does, until nothing is left to do."""
        who = self.servers[0].who
        do = self.time.do
        do(lambda tx: upkeep.end_leases(tx, self.jobs, who))
        do(lambda tx: upkeep.expire(tx, who))
        do(lambda tx: upkeep.lose_silent(tx, self.jobs, who))
        do(lambda tx: jobs.promote_due(tx, who))
        for job in do(upkeep.due_jobs):
            do(lambda tx, job=job: self._expand(tx, job))  # type: ignore[misc]
        for job in do(upkeep.following_jobs):
            do(
                lambda tx, job=job: jobs.follow_groups(  # type: ignore[misc]
                    tx, job, self.jobs, self.rights.directory(tx), who
                )
            )
        for _ in range(20):
            before = self.states()
            for job in do(lambda tx: jobs.gated_jobs(tx, None)):
                do(lambda tx, job=job: jobs.open_gates(tx, job, self.jobs, who))  # type: ignore[misc]
            if self.states() == before:
                return

    # -- what clients do

    def next(self, client: Client, receipt: str = "", server: int = 0) -> runs.Delivery | None:
        def operation(tx: Transaction) -> runs.Delivery | None:
            if receipt:
                alone(tx, runs.acknowledge(tx, client, receipt, self.jobs))
            return alone(tx, self.dispatch.next_run(tx, client, self.servers[server]))

        return self.time.do(operation)

    def ask(self, client: Client, receipt: str = "", server: int = 0) -> runs.Delivery | None:
        """As ``next_job`` does where it knows who asks."""

        def steps(tx: Transaction) -> Steps[runs.Delivery | None]:
            yield runs.next_reads(client.id, receipt, tx.now)
            asking = self.dispatch.acknowledge_and_next(
                tx, client, self.servers[server], receipt, read=True
            )
            delivery = yield from asking
            return delivery

        return self.time.do(lambda tx: alone(tx, steps(tx)))

    def must_next(self, client: Client, receipt: str = "", server: int = 0) -> runs.Delivery:
        delivery = self.next(client, receipt, server)
        assert delivery is not None
        return delivery

    def acknowledge(self, client: Client, receipt: str) -> tuple[int, str, bool]:
        return self.time.do(lambda tx: alone(tx, runs.acknowledge(tx, client, receipt, self.jobs)))

    def report(
        self, client: Client, run: int, seq: int, state: str, attempt: int = 1, **facts: Any
    ) -> dict[str, Any]:
        status = StatusFile(run, attempt, seq, Reported(state), self.time.now, **facts)
        octets = format_status(status)
        result = self.time.do(
            lambda tx: alone(tx, reports.record_report(tx, client, status, octets, self.jobs))
        )
        if isinstance(result, reports.Kept):
            raise result.fault
        return result

    def hello(self, client: Client, *held: tuple[int, str, int]) -> list[dict[str, Any]]:
        items = [Held(*item) for item in held]
        return self.time.do(
            lambda tx: reports.reconcile(tx, client, items, self.jobs, self.servers[0].who)
        )

    # -- what is seen

    def state(self, run: int) -> str:
        row = self.time.do(lambda tx: tx.one("SELECT state FROM runs WHERE id = ?", (run,)))
        assert row is not None
        return str(row["state"])

    def states(self) -> list[str]:
        rows = self.time.do(lambda tx: tx.all("SELECT state FROM runs ORDER BY id"))
        return [row["state"] for row in rows]

    def history(self, run: int) -> list[str]:
        rows = self.time.do(
            lambda tx: tx.all("SELECT * FROM history WHERE run_id = ? ORDER BY id", (run,))
        )
        return [row["to_state"] for row in rows]

    def fault(self, code: int, function: Any, *arguments: Any, **named: Any) -> ScireFault:
        fault: ScireFault = self.assertRaises(ScireFault, function, *arguments, **named)
        self.assertEqual(fault.code, code, fault)
        return fault
