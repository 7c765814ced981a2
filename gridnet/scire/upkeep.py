"""
What one server at a time does for all: leases, deadlines, silence, schedules, old rows.

Each function is one short transaction over at most a slice of rows and says how many it found,
so that the caller goes on while there are more.  All of it may be done twice, or by two servers
at once, without harm: every change is guarded by its row's state.
"""

from __future__ import annotations

import json
from typing import Any

from gridnet.scire.jobcache import JobCache
from gridnet.scire.jobs import SLICE
from gridnet.scire.machine import RunState
from gridnet.scire.runs import as_run, end_delivery, fail_delivery, lose, move
from gridnet.scire.store.database import Transaction

S = RunState
_SELECT = """
    SELECT r.*, j.version AS job_version, j.watched, j.user_id, j.state AS job_state
    FROM runs r JOIN jobs j ON j.id = r.job_id WHERE """
#: Conditions that partial indexes of the runs have, which together are all that are open.
OPEN_PARTS = (
    "state = 'waiting'",
    "state IN ('pending', 'sent')",
    "state IN ('received', 'running')",
)
_LOCKED = f" LIMIT {SLICE} /*pg FOR UPDATE OF r SKIP LOCKED*/"


def end_leases(tx: Transaction, jobs: JobCache, by: str) -> int:
    """Deliveries that nobody acknowledged in time."""
    rows = tx.all(
        _SELECT + "r.state = 'sent' AND r.lease_until <= ? ORDER BY r.lease_until" + _LOCKED,
        (tx.now,),
    )
    for row in rows:
        job = jobs.get(tx, row["job_id"], row["job_version"])
        tx.event("lease_ended", run=row["id"])
        fail_delivery(tx, as_run(row), job.definition.max_deliveries, by, "lease over")
    return len(rows)


def expire(tx: Transaction, by: str) -> int:
    """Runs that were not started by their deadline."""
    rows = tx.all(
        _SELECT + "r.deadline <= ? AND r.deadline IS NOT NULL"
        " AND r.state IN ('waiting', 'pending', 'sent') ORDER BY r.deadline" + _LOCKED,
        (tx.now,),
    )
    for row in rows:
        run = as_run(row)
        end_delivery(tx, run)
        move(tx, run, S.EXPIRED, by, detail="deadline passed")
    return len(rows)


def lose_silent(tx: Transaction, jobs: JobCache, by: str) -> int:
    """Runs whose client has given no sign of life for too long."""
    rows = tx.all(
        _SELECT + "r.state IN ('received', 'running') AND r.silent_after <= ?"
        " ORDER BY r.silent_after" + _LOCKED,
        (tx.now,),
    )
    for row in rows:
        job = jobs.get(tx, row["job_id"], row["job_version"])
        lose(tx, as_run(row), job, by, "no sign of life")
    return len(rows)


def due_jobs(tx: Transaction) -> list[int]:
    """Jobs with occurrences to be made into runs."""
    rows = tx.all(
        "SELECT id FROM jobs WHERE state = 'active' AND next_occurrence <= ?"
        " UNION SELECT id FROM jobs WHERE state = 'active' AND occurrences <> '[]' LIMIT 1000",
        (tx.now,),
    )
    return [row["id"] for row in rows]


def following_jobs(tx: Transaction) -> list[int]:
    """Jobs whose groups are followed."""
    rows = tx.all("SELECT id FROM jobs WHERE state = 'active' AND follow_groups = 1 LIMIT 1000")
    return [row["id"] for row in rows]


# -- servers -----------------------------------------------------------------------------------


def register(
    tx: Transaction, name: str, url: str, enrol_url: str, role: str, weight: int
) -> tuple[int, int]:
    """
    Write this server's row, in state *recovering*.

    :returns: its id and its new epoch.
    """
    row = tx.insert(
        "INSERT INTO servers (name, url, enrol_url, role, weight, state, epoch, started_at,"
        " heartbeat_at) VALUES (?, ?, ?, ?, ?, 'recovering', 1, ?, ?) ON CONFLICT (name)"
        " DO UPDATE SET url = excluded.url, enrol_url = excluded.enrol_url, role = excluded.role,"
        " weight = excluded.weight, state = 'recovering', epoch = servers.epoch + 1,"
        " started_at = excluded.started_at, heartbeat_at = excluded.heartbeat_at"
        " RETURNING id, epoch",
        (name, url, enrol_url, role, weight, tx.now, tx.now),
    )
    assert row is not None
    return int(row["id"]), int(row["epoch"])


def say_state(tx: Transaction, server_id: int, epoch: int, state: str) -> None:
    """Write a server's state."""
    tx.run(
        "UPDATE servers SET state = ?, heartbeat_at = ? WHERE id = ? AND epoch = ?",
        (state, tx.now, server_id, epoch),
    )


def say_where(tx: Transaction, server_id: int, url: str, enrol_url: str) -> None:
    """Write where a server is, which is known once it listens."""
    tx.run("UPDATE servers SET url = ?, enrol_url = ? WHERE id = ?", (url, enrol_url, server_id))


def beat(tx: Transaction, server_id: int, epoch: int) -> str:
    """
    Write a server's heartbeat; one that counted as dead is alive again.

    :returns: its state, which an administrator may have changed to draining.
    """
    row = tx.insert(
        "UPDATE servers SET heartbeat_at = ?,"
        " state = CASE WHEN state = 'dead' THEN 'serving' ELSE state END"
        " WHERE id = ? AND epoch = ? RETURNING state",
        (tx.now, server_id, epoch),
    )
    return str(row["state"]) if row is not None else "replaced"


def bury(tx: Transaction, dead_seconds: float) -> int:
    """Servers without a heartbeat are dead."""
    return tx.run(
        "UPDATE servers SET state = 'dead' WHERE state IN ('serving', 'recovering', 'draining')"
        " AND heartbeat_at < ?",
        (tx.now - dead_seconds,),
    )


def end_own_leases(tx: Transaction, jobs: JobCache, server_id: int, epoch: int, by: str) -> int:
    """
    Deliveries of an earlier life of this server whose leases are over.

    The others keep their lease: their acknowledgement may still come.
    """
    rows = tx.all(
        _SELECT + "r.state = 'sent' AND r.server_id = ? AND r.epoch < ? AND r.lease_until <= ?"
        " ORDER BY r.id" + _LOCKED,
        (server_id, epoch, tx.now),
    )
    for row in rows:
        job = jobs.get(tx, row["job_id"], row["job_version"])
        fail_delivery(tx, as_run(row), job.definition.max_deliveries, by, "server restarted")
    return len(rows)


def drop_unreferenced(tx: Transaction) -> int:
    """
    Attachments that were never finished, and scripts and attachments that no job has; how many.

    Not before a day: they are stored first, and named by a definition afterwards.  Who names one
    makes it young again, so that none is deleted that a definition under way names.
    """
    before = tx.now - 86400
    count = tx.run("DELETE FROM files WHERE complete = 0 AND created_at < ?", (before,))
    unused = {
        table: {
            str(row["digest"])
            for row in tx.all(f"SELECT digest FROM {table} WHERE created_at < ?", (before,))
        }
        for table in ("files", "scripts")
    }
    if any(unused.values()):
        for row in tx.all("SELECT definition FROM jobs WHERE state <> 'deleted'"):
            definition = json.loads(row["definition"])
            unused["scripts"].discard(definition["execute"].get("script"))
            for attachment in definition["attachments"]:
                unused["files"].discard(attachment["digest"])
    for table, digests in unused.items():
        for digest in sorted(digests):
            count += tx.run(
                f"DELETE FROM {table} WHERE digest = ? AND created_at < ?", (digest, before)
            )
    return count


def to_be_pushed(tx: Transaction) -> list[int]:
    """Daemon-mode clients for which pushed jobs wait that they have not polled for."""
    rows = tx.all(
        "SELECT DISTINCT c.id FROM clients c JOIN runs r ON r.client_id = c.id"
        " WHERE c.state = 'active' AND c.callback_port > 0 AND r.state = 'pending'"
        " AND r.created_at > c.contact_at LIMIT 1000"
    )
    return [row["id"] for row in rows]


# -- numbers -----------------------------------------------------------------------------------


def overview(tx: Transaction) -> dict[str, Any]:
    """What is in the database now, in numbers."""

    def counts(sql: str, *parameters: object) -> dict[str, int]:
        return {str(row["name"]): int(row["n"]) for row in tx.all(sql, parameters)}

    oldest = tx.one("SELECT min(due) AS due FROM runs WHERE state = 'pending'")
    contacts = {
        name: tx.one(
            "SELECT count(*) AS n FROM clients WHERE state = 'active' AND contact_at > ?",
            (tx.now - seconds,),
        )
        for name, seconds in (("minute", 90), ("hour", 3600), ("day", 86400))
    }
    expiring = tx.one(
        "SELECT count(*) AS n FROM certificates WHERE revoked_at IS NULL AND not_after > ?"
        " AND not_after < ?",
        (tx.now, tx.now + 7 * 86400),
    )
    waiting = tx.one("SELECT count(*) AS n FROM enrolments WHERE state = 'requested'")
    return {
        # Each part can be read from an index, however many old runs there are.
        "runs": counts(
            " UNION ALL ".join(
                f"SELECT state AS name, count(*) AS n FROM runs WHERE {part} GROUP BY state"
                for part in (*OPEN_PARTS, "ended_at IS NOT NULL AND ended_at > ?")
            ),
            tx.now - 86400,
        ),
        "clients": counts("SELECT state AS name, count(*) AS n FROM clients GROUP BY state"),
        "contact": {name: row["n"] if row else 0 for name, row in contacts.items()},
        "oldest_pending_seconds": (
            0.0
            if oldest is None or oldest["due"] is None
            else round(max(0.0, tx.now - oldest["due"]), 1)
        ),
        "enrolments_waiting": waiting["n"] if waiting else 0,
        "certificates_expiring": expiring["n"] if expiring else 0,
    }


# -- old rows ----------------------------------------------------------------------------------

_PRUNED = 1000


def prune_runs(tx: Transaction, before: float) -> int:
    """Runs that ended before *before*, with all that hangs on them."""
    return tx.run(
        "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE ended_at < ?"
        f" AND ended_at IS NOT NULL ORDER BY ended_at LIMIT {_PRUNED})",
        (before,),
    )


def prune_outputs(tx: Transaction, before: float) -> int:
    """Output from before *before*."""
    return tx.run(
        "DELETE FROM outputs WHERE run_id IN (SELECT DISTINCT run_id FROM outputs WHERE at < ?"
        f" LIMIT {_PRUNED}) AND at < ?",
        (before, before),
    )


def prune_keys(tx: Transaction, before: float) -> int:
    """Idempotency keys from before *before*."""
    return tx.run(
        "DELETE FROM idempotency WHERE (user_id, key) IN (SELECT user_id, key FROM idempotency"
        f" WHERE at < ? LIMIT {_PRUNED})",
        (before,),
    )


def prune_audit(tx: Transaction, before: float) -> int:
    """Audit rows from before *before*."""
    return tx.run(
        "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ?"
        f" ORDER BY at LIMIT {_PRUNED})",
        (before,),
    )
