"""
Jobs in the database: from definitions to runs.

An occurrence of a job becomes runs in slices, each a transaction of its own that remembers how
far it came, so that a job for a whole fleet neither blocks others nor is lost half-way.  Making
a run is guarded by its key (job, client, occurrence), so doing it twice does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from secrets import randbelow
from typing import Any

from gridnet.scire import schedule
from gridnet.scire.acl import Directory, Kind, Party
from gridnet.scire.definition import JobDefinition, Overlap, Targets, plain_values
from gridnet.scire.dependencies import (
    Dependency,
    Scope,
    Verdict,
    combine,
    find_cycle,
    judge,
    releasable,
)
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.jobcache import Job, JobCache
from gridnet.scire.machine import OPEN, RunState
from gridnet.scire.runs import as_run, cancel, move, note
from gridnet.scire.schedule import spread_seconds
from gridnet.scire.store.database import Row, Transaction

S = RunState
#: Runs made, or changed, in one transaction.
SLICE = 500
_COUNTED_AS_FAILURE = (
    "failed",
    "timedout",
    "lost",
    "undeliverable",
    "refused",
    "denied",
    "expired",
)
_FOR_EVER = 1e15  # seconds since the epoch
_UNDER_WAY = ("pending", "sent", "received", "running")


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def new_version() -> int:
    """A number for a changed job; see :class:`gridnet.scire.jobcache.JobCache`."""
    return randbelow(2**31)


# -- targets -----------------------------------------------------------------------------------


def target_clients(tx: Transaction, targets: Targets, directory: Directory) -> list[int]:
    """Ids of the active clients that a job is for now, in order."""
    members: Callable[[Iterable[int]], set[int]] = lambda groups: {  # noqa: E731
        client
        for group in groups
        for client in directory.members(Party(Kind.CLIENT_GROUP, group), Kind.CLIENT)
    }
    excluded = set(targets.not_clients) | members(targets.not_groups)
    active = "SELECT id FROM clients WHERE state IN ('active', 'disabled')"
    if targets.all:
        found = {row["id"] for row in tx.all(active)}
    else:
        wanted = sorted(set(targets.clients) | members(targets.groups))
        found = set()
        for start in range(0, len(wanted), SLICE):
            part = wanted[start : start + SLICE]
            found.update(r["id"] for r in tx.all(f"{active} AND id IN ({_marks(part)})", part))
    return sorted(found - excluded)


# -- definitions -------------------------------------------------------------------------------


def store(tx: Transaction, definition: JobDefinition, user_id: int) -> int:
    """Insert a job; its runs come with :func:`expand`."""
    first = _first_occurrence(definition, tx.now)
    row = tx.insert(
        "INSERT INTO jobs (name, definition, version, state, user_id, created_at, changed_at,"
        " next_occurrence, gated, follow_groups) VALUES (?, ?, ?, 'active', ?, ?, ?, ?, ?, ?)"
        " RETURNING id",
        (
            definition.name,
            json.dumps(plain_values(definition)),
            new_version(),
            user_id,
            tx.now,
            tx.now,
            first,
            int(is_gated(definition)),
            int(definition.follow_groups),
        ),
    )
    assert row is not None
    job_id = int(row["id"])
    _store_relations(tx, job_id, definition)
    return job_id


def _first_occurrence(definition: JobDefinition, now: float) -> float | None:
    rule = definition.recurrence_rule
    due = definition.due if definition.due is not None else now
    return due if rule is None else rule.after(due - 1)


def is_gated(definition: JobDefinition) -> bool:
    """Whether more than time decides when a run of it may start."""
    batch = definition.batching
    return bool(
        definition.depends_on
        or batch.size
        or batch.max_parallel
        or (definition.recurrence is not None and definition.overlap is not Overlap.SKIP)
    )


def _store_relations(tx: Transaction, job_id: int, definition: JobDefinition) -> None:
    targets = definition.targets
    rows = {("all", 0, 0)} if targets.all else set()
    rows |= {("client", id_, 0) for id_ in targets.clients}
    rows |= {("group", id_, 0) for id_ in targets.groups}
    rows |= {("client", id_, 1) for id_ in targets.not_clients}
    rows |= {("group", id_, 1) for id_ in targets.not_groups}
    tx.run("DELETE FROM job_targets WHERE job_id = ?", (job_id,))
    for kind, id_, excluded in sorted(rows):
        tx.run(
            "INSERT INTO job_targets (job_id, kind, target_id, excluded) VALUES (?, ?, ?, ?)",
            (job_id, kind, id_, excluded),
        )
    tx.run("DELETE FROM job_dependencies WHERE job_id = ?", (job_id,))
    for on in sorted({dependency.job for dependency in definition.depends_on}):
        if tx.one("SELECT id FROM jobs WHERE id = ? AND state <> 'deleted'", (on,)) is None:
            raise ScireFault(FaultCode.UNKNOWN_JOB, f"depends_on: unknown job {on}")
        tx.run("INSERT INTO job_dependencies (job_id, on_job_id) VALUES (?, ?)", (job_id, on))
        tx.run(
            "UPDATE jobs SET watched = 1, version = ? WHERE id = ? AND watched = 0",
            (new_version(), on),
        )
    if definition.depends_on:
        graph: dict[int, list[int]] = {}
        for row in tx.all("SELECT job_id, on_job_id FROM job_dependencies"):
            graph.setdefault(row["job_id"], []).append(row["on_job_id"])
        cycle = find_cycle(graph, job_id)
        if cycle:
            path = " -> ".join(map(str, cycle))
            raise ScireFault(FaultCode.DEPENDENCY_CYCLE, f"jobs wait for each other: {path}")
    if is_gated(definition):
        tx.run("UPDATE jobs SET watched = 1 WHERE id = ?", (job_id,))


def change(tx: Transaction, job: Row, definition: JobDefinition, user_id: int) -> None:
    """Give a job another definition; runs that are there stay as they are."""
    next_occurrence = job["next_occurrence"]
    if job["last_occurrence"] is None or definition.recurrence is not None:
        next_occurrence = _first_occurrence(definition, tx.now)
    tx.run(
        "UPDATE jobs SET name = ?, definition = ?, version = ?, user_id = ?, changed_at = ?,"
        " next_occurrence = ?, gated = ?, follow_groups = ?, state = ? WHERE id = ?",
        (
            definition.name,
            json.dumps(plain_values(definition)),
            new_version(),
            user_id,
            tx.now,
            next_occurrence,
            int(is_gated(definition)),
            int(definition.follow_groups),
            "finished" if next_occurrence is None and not definition.follow_groups else "active",
            job["id"],
        ),
    )
    _store_relations(tx, job["id"], definition)


# -- occurrences -------------------------------------------------------------------------------


def expand(tx: Transaction, job_id: int, jobs: JobCache, directory: Directory, by: str) -> bool:
    """
    Make runs of what is due of a job; one slice.

    :returns: whether more is left to do.
    """
    row = tx.one("SELECT * FROM jobs WHERE id = ? /*pg FOR UPDATE SKIP LOCKED*/", (job_id,))
    if row is None or row["state"] != "active":
        return False
    job = jobs.get(tx, job_id, row["version"])
    occurrences: list[float] = json.loads(row["occurrences"])
    following = row["next_occurrence"]
    if following is not None and following <= tx.now:
        rule = job.definition.recurrence_rule
        if rule is None:
            occurrences.append(following)
            following = None
        else:
            definition = job.definition
            found = schedule.due(
                rule, following, definition.misfire, definition.misfire_window, tx.now
            )
            occurrences.extend(found.now)
            following = found.next
    expand_from, last = row["expand_from"], row["last_occurrence"]
    if occurrences:
        occurrence = occurrences[0]
        clients = target_clients(tx, job.definition.targets, directory)
        part = [client for client in clients if client > expand_from][:SLICE]
        for client in part:
            make_run(tx, job, client, occurrence, by)
        if len(part) < SLICE:
            occurrences.pop(0)
            expand_from, last = 0, occurrence
            if job.watched:
                tx.notify("schedule", job_id)
        else:
            expand_from = part[-1]
    done = not occurrences and following is None and not job.definition.follow_groups
    tx.run(
        "UPDATE jobs SET next_occurrence = ?, occurrences = ?, expand_from = ?,"
        " last_occurrence = ?, state = ? WHERE id = ?",
        (
            following,
            json.dumps(occurrences),
            expand_from,
            last,
            "finished" if done else "active",
            job_id,
        ),
    )
    return bool(occurrences)


def make_run(
    tx: Transaction, job: Job, client_id: int, occurrence: float, by: str, detail: str = ""
) -> int | None:
    """
    Make one run, unless it is there already.

    :returns: its id.
    """
    definition = job.definition
    due = occurrence
    state, gated = S.PENDING, 0
    if definition.recurrence is not None:
        due += spread_seconds(job.id, client_id, definition.recurrence.spread)
        if definition.overlap is not Overlap.QUEUE:
            earlier = _open_predecessors(tx, job.id, client_id, occurrence)
            if earlier and definition.overlap is Overlap.SKIP:
                state, detail = S.SKIPPED, "its predecessor has not ended"
            elif earlier:
                for run in earlier:
                    cancel(tx, as_run(run), by, False, "replaced by the next occurrence")
    deadline = definition.deadline_of(occurrence)
    if state is S.PENDING and (due > tx.now or is_gated(definition)):
        state, gated = S.WAITING, int(is_gated(definition))
    row = tx.insert(
        "INSERT INTO runs (job_id, client_id, occurrence, state, priority, due, ready_at,"
        " deadline, gated, created_at, changed_at, ended_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (client_id, job_id, occurrence) DO NOTHING RETURNING id",
        (
            job.id,
            client_id,
            occurrence,
            state.value,
            definition.priority,
            due,
            due,
            deadline,
            gated,
            tx.now,
            tx.now,
            tx.now if state is S.SKIPPED else None,
        ),
    )
    if row is None:
        return None
    note(tx, row["id"], None, state.value, by, detail=detail)
    if state is S.PENDING:
        tx.notify("work", client_id)
    if definition.push:
        tx.event("push_wanted", client=client_id)
    if gated:
        tx.notify("schedule", job.id)
    return int(row["id"])


def _open_predecessors(
    tx: Transaction, job_id: int, client_id: int, occurrence: float
) -> Sequence[Row]:
    open_states = sorted(OPEN)
    return tx.all(
        "SELECT r.*, j.version AS job_version, j.watched, j.user_id, j.state AS job_state"
        " FROM runs r JOIN jobs j ON j.id = r.job_id WHERE r.job_id = ? AND r.client_id = ?"
        f" AND r.occurrence < ? AND r.state IN ({_marks(open_states)}) /*pg FOR UPDATE OF r*/",
        (job_id, client_id, occurrence, *open_states),
    )


def follow_groups(
    tx: Transaction, job_id: int, jobs: JobCache, directory: Directory, by: str
) -> int:
    """Make the runs of the last occurrence for clients that came later; how many."""
    row = tx.one("SELECT * FROM jobs WHERE id = ? /*pg FOR UPDATE SKIP LOCKED*/", (job_id,))
    if row is None or row["state"] != "active" or row["last_occurrence"] is None:
        return 0
    job, occurrence = jobs.get(tx, job_id, row["version"]), row["last_occurrence"]
    deadline = job.definition.deadline_of(occurrence)
    if deadline is not None and deadline <= tx.now:
        return 0
    have = {
        r["client_id"]
        for r in tx.all(
            "SELECT client_id FROM runs WHERE job_id = ? AND occurrence = ?", (job_id, occurrence)
        )
    }
    missing = [c for c in target_clients(tx, job.definition.targets, directory) if c not in have]
    for client in missing[:SLICE]:
        make_run(tx, job, client, occurrence, by, "joined later")
    return len(missing[:SLICE])


# -- from waiting to pending -------------------------------------------------------------------


def promote_due(tx: Transaction, by: str) -> int:
    """Runs that only waited for their time; how many were there."""
    rows = tx.all(
        "SELECT r.*, j.watched FROM runs r JOIN jobs j ON j.id = r.job_id"
        " WHERE r.state = 'waiting' AND r.gated = 0 AND r.due <= ? AND j.state <> 'paused'"
        f" ORDER BY r.due LIMIT {SLICE} /*pg FOR UPDATE OF r SKIP LOCKED*/",
        (tx.now,),
    )
    for row in rows:
        run = as_run(row)
        move(tx, run, S.PENDING, by, detail="due")
        tx.notify("work", run["client_id"])
    return len(rows)


def gated_jobs(tx: Transaction, since: float | None) -> list[int]:
    """
    Jobs with runs that wait for more than their time.

    :param since: only those with runs that came due after it; None: all.
    """
    rows = tx.all(
        "SELECT DISTINCT r.job_id FROM runs r JOIN jobs j ON j.id = r.job_id"
        " WHERE r.state = 'waiting' AND r.gated = 1 AND r.due <= ? AND r.due > ?"
        " AND j.state <> 'paused'",
        (tx.now, -1.0 if since is None else since),
    )
    return [row["job_id"] for row in rows]


def dependents(tx: Transaction, job_id: int) -> list[int]:
    """Jobs that wait for a job."""
    rows = tx.all("SELECT job_id FROM job_dependencies WHERE on_job_id = ?", (job_id,))
    return [row["job_id"] for row in rows]


class _Gate:
    """Judges the waiting runs of one job, asking for each fact of other jobs once."""

    def __init__(self, tx: Transaction, job: Job, jobs: JobCache) -> None:
        self.tx = tx
        self.job = job
        self.jobs = jobs
        self._all_clients: dict[tuple[Dependency, float], Verdict] = {}
        self._others: dict[int, Row | None] = {}

    def _other(self, job_id: int) -> Row | None:
        if job_id not in self._others:
            self._others[job_id] = self.tx.one("SELECT * FROM jobs WHERE id = ?", (job_id,))
        return self._others[job_id]

    def _limit(self, other: Row, occurrence: float) -> float:
        """The latest occurrence of the other job that counts for ours."""
        others = self.jobs.get(self.tx, other["id"], other["version"]).definition.recurrence
        both = self.job.definition.recurrence is not None and others is not None
        return occurrence if both else _FOR_EVER

    def _same_client(self, on: Dependency, other: Row, client: int, occurrence: float) -> Verdict:
        row = self.tx.one(
            "SELECT state FROM runs WHERE job_id = ? AND client_id = ? AND occurrence <= ?"
            " ORDER BY occurrence DESC LIMIT 1",
            (on.job, client, self._limit(other, occurrence)),
        )
        if row is not None:
            return judge(on.condition, [RunState(row["state"])], True)
        expanded = other["last_occurrence"] is not None and not other["follow_groups"]
        return judge(on.condition, [], other["state"] in ("finished", "deleted") or expanded)

    def _every_client(self, on: Dependency, other: Row, occurrence: float) -> Verdict:
        limit = self._limit(other, occurrence)
        latest = self.tx.one(
            "SELECT max(occurrence) AS latest FROM runs WHERE job_id = ? AND occurrence <= ?",
            (on.job, limit),
        )
        if latest is None or latest["latest"] is None:
            return judge(on.condition, [], other["state"] in ("finished", "deleted"))
        rows = self.tx.all(
            "SELECT DISTINCT state FROM runs WHERE job_id = ? AND occurrence = ?",
            (on.job, latest["latest"]),
        )
        return judge(
            on.condition,
            [RunState(row["state"]) for row in rows],
            other["state"] == "deleted" or not json.loads(other["occurrences"]),
        )

    def verdict(self, run: dict[str, Any]) -> Verdict:
        """What dependencies and predecessors say about a run."""
        found = []
        for on in self.job.definition.depends_on:
            other = self._other(on.job)
            if other is None:
                found.append(Verdict.BAD)
            elif on.scope is Scope.SAME_CLIENT:
                found.append(self._same_client(on, other, run["client_id"], run["occurrence"]))
            else:
                key = (on, run["occurrence"])
                if key not in self._all_clients:
                    self._all_clients[key] = self._every_client(on, other, run["occurrence"])
                found.append(self._all_clients[key])
        definition = self.job.definition
        if definition.recurrence is not None and definition.overlap is not Overlap.SKIP:
            earlier = _open_predecessors(self.tx, self.job.id, run["client_id"], run["occurrence"])
            if earlier:
                found.append(Verdict.OPEN)
        return combine(found)


def open_gates(tx: Transaction, job_id: int, jobs: JobCache, by: str) -> bool:
    """
    Let those waiting runs of a job go that may; skip those that never will.

    :returns: whether there is more to look at at once.
    """
    row = tx.one("SELECT * FROM jobs WHERE id = ? /*pg FOR UPDATE*/", (job_id,))
    if row is None or row["state"] == "paused":
        return False
    job = jobs.get(tx, job_id, row["version"])
    rows = tx.all(
        "SELECT r.*, j.watched FROM runs r JOIN jobs j ON j.id = r.job_id WHERE r.job_id = ?"
        " AND r.state = 'waiting' AND r.due <= ? ORDER BY r.occurrence, r.due, r.id"
        f" LIMIT {4 * SLICE} /*pg FOR UPDATE OF r*/",
        (job_id, tx.now),
    )
    gate, good = _Gate(tx, job, jobs), []
    changed = 0
    for run in map(as_run, rows):
        verdict = gate.verdict(run)
        if verdict is Verdict.BAD:
            move(tx, run, S.SKIPPED, by, detail="a dependency ended badly")
            changed += 1
        elif verdict is Verdict.GOOD:
            good.append(run)
    for occurrence in sorted({run["occurrence"] for run in good}):
        waiting = [run for run in good if run["occurrence"] == occurrence]
        allowed = _allowed(tx, job, occurrence, len(waiting))
        if allowed is None:
            for run in waiting:
                move(tx, run, S.SKIPPED, by, detail="too many failures in the batches before")
            tx.event("batch_stopped", job=job_id, skipped=len(waiting))
            changed += len(waiting)
            continue
        for run in waiting[:allowed]:
            move(tx, run, S.PENDING, by, detail="may start")
            tx.notify("work", run["client_id"])
            if job.definition.push:
                tx.event("push_wanted", client=run["client_id"])
        changed += len(waiting[:allowed])
    return changed > 0 and len(rows) == 4 * SLICE


def _allowed(tx: Transaction, job: Job, occurrence: float, waiting: int) -> int | None:
    batch = job.definition.batching
    if not batch.size and not batch.max_parallel:
        return waiting
    counts = {
        row["state"]: row["n"]
        for row in tx.all(
            "SELECT state, count(*) AS n FROM runs WHERE job_id = ? AND occurrence = ?"
            " GROUP BY state",
            (job.id, occurrence),
        )
    }
    under_way = sum(counts.get(state, 0) for state in _UNDER_WAY)
    failed = sum(counts.get(state, 0) for state in _COUNTED_AS_FAILURE)
    ended = failed + counts.get("succeeded", 0)
    return releasable(batch, waiting, under_way, ended, failed)


def dates(definition: JobDefinition, now: float, count: int) -> list[float]:
    """The next *count* occurrences of a definition."""
    first = _first_occurrence(definition, now)
    found: list[float] = []
    rule = definition.recurrence_rule
    while first is not None and len(found) < count:
        found.append(first)
        first = rule.after(first) if rule is not None else None
    return found
