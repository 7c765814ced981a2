"""
Runs in the database: how they change, are handed out, acknowledged, refused and withdrawn.

Every change of state is one guarded update and one row of history in one transaction
(docs/protocols/scire.rst, Life of a run, and Delivery).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from attrs import frozen

from gridnet.scire import machine
from gridnet.scire.acl import Directory
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import Client, make_receipt
from gridnet.scire.jobcache import Job, JobCache
from gridnet.scire.jobfile import digest_of
from gridnet.scire.machine import ENDS, TRANSITIONS, WITH_CLIENT, RunState
from gridnet.scire.rights import Rights
from gridnet.scire.store.database import Parameters, Row, Steps, Transaction
from gridnet.scire.store.sets import INT, REAL, TEXT, in_sets, rows_in_sets

S = RunState
#: A run's row, as a dictionary that follows its changes.
Run = dict[str, Any]

#: What every decision about a run needs of its row and its job's.
COLUMNS = """
    r.id, r.job_id, r.client_id, r.state, r.attempt, r.retry, r.receipt, r.seq, r.ended_at,
    j.version AS job_version, j.watched"""
#: And what the others need beside it.
MORE_COLUMNS = """
    r.priority, r.due, r.deadline, r.occurrence, r.ready_at, r.failures, r.retry_attempt,
    r.lease_until, r.cancel_wanted, r.gap, j.state AS job_state"""
_SELECT = f"SELECT {COLUMNS}, {MORE_COLUMNS} FROM runs r JOIN jobs j ON j.id = r.job_id "
_BY_ID = _SELECT + "WHERE r.id = ? /*pg FOR UPDATE OF r*/"
# SQLite takes a partial index only where the query has its condition word for word.
SENT = in_sets(
    _SELECT + "WHERE r.client_id = ? AND r.state IN ('sent', 'received', 'running')"
    " AND r.state = 'sent' ORDER BY r.id /*pg FOR UPDATE OF r*/",
    INT,
)
#: The best of one client's runs that is ready: one, for each row that is looked at is locked.
#: And whether something is with the client that :data:`SENT` would find, which it seldom does,
#: beside what a receipt ("": none) came with.
CANDIDATES = in_sets(
    f"""
    SELECT {COLUMNS}, r.priority, r.due, r.deadline, r.occurrence,
           (SELECT value FROM settings WHERE name = 'acl_version') AS acl_version,
           EXISTS (SELECT 1 FROM runs s WHERE s.client_id = r.client_id
                   AND s.state IN ('sent', 'received', 'running') AND s.state = 'sent'
                   AND s.receipt <> ?) AS others
    FROM runs r JOIN jobs j ON j.id = r.job_id
    WHERE r.client_id = ? AND r.state IN ('pending', 'sent') AND r.state = 'pending'
      AND r.ready_at <= ? AND j.state IN ('active', 'finished')
    ORDER BY r.priority DESC, r.due, r.id LIMIT 1 /*pg FOR UPDATE OF r SKIP LOCKED*/""",
    TEXT,
    INT,
    REAL,
)
#: And when the best was not to be handed out.
_MORE = CANDIDATES.replace("LIMIT 1", "LIMIT 16")
#: Whether a poll would find something; the index alone answers it.
ANYTHING = in_sets(
    """
    SELECT 1 AS found FROM runs r JOIN jobs j ON j.id = r.job_id
    WHERE r.client_id = ? AND r.state IN ('pending', 'sent')
      AND (r.state = 'sent' OR r.ready_at <= ?) AND j.state IN ('active', 'finished') LIMIT 1""",
    INT,
    REAL,
)
#: Runs that one call looks at while it searches one to hand out.
_MAX_SEARCH = 200


#: A change of state.
HISTORY = rows_in_sets(
    "history (run_id, from_state, to_state, by_whom, at, attempt, seq, detail)",
    *(INT, TEXT, TEXT, TEXT, REAL, INT, INT, TEXT),
)
#: The types of columns of runs that change, other than :data:`INT`.
_CHANGING = {
    **dict.fromkeys(("state", "receipt", "message"), TEXT),
    **dict.fromkeys(
        ("changed_at", "ended_at", "lease_until", "ready_at", "sign_at", "silent_after"), REAL
    ),
    "started_at": REAL,
}


@frozen
class Server:
    """The server that acts."""

    id: int
    name: str
    epoch: int
    lease: int  #: seconds

    @property
    def who(self) -> str:
        """As history and audit name it."""
        return f"server:{self.name}"


@frozen
class Delivery:
    """A run that was just handed out."""

    run: int
    job: int
    attempt: int
    receipt: str
    lease: int
    file: bytes

    def as_struct(self, signature: str) -> dict[str, Any]:
        """The answer."""
        return {
            "run": self.run,
            "job": self.job,
            "attempt": self.attempt,
            "receipt": self.receipt,
            "lease": self.lease,
            "digest": digest_of(self.file),
            "file": self.file,
            "signature": signature,
            "more": True,
        }


def locked(tx: Transaction, run_id: int) -> Run:
    """
    The run, which nobody else changes until the end of *tx*.

    :raises ScireFault: 1022 there is none.
    """
    row = tx.one(_BY_ID, (run_id,))
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_RUN, f"unknown run {run_id}")
    return as_run(row)


def as_run(row: Row) -> Run:
    """A row of runs as a dictionary."""
    return dict(row)


def owned(tx: Transaction, run_id: int, client: Client) -> Run:
    """
    The run, locked, of *client*.

    :raises ScireFault: 1022 there is none, 1032 it is another client's.
    """
    return of_client(locked(tx, run_id), client)


def of_client(run: Run, client: Client) -> Run:
    """:raises ScireFault: 1032: *run* is not of *client*."""
    if run["client_id"] != client.id:
        raise ScireFault(FaultCode.FOREIGN, f"run {run['id']} is another client's")
    return run


def note(
    tx: Transaction,
    run_id: int,
    before: str | None,
    after: str,
    by: str,
    attempt: int = 0,
    seq: int = 0,
    detail: str = "",
) -> None:
    """Write one row of history, and tell who follows the runs of this server."""
    tx.event("run", run=run_id)
    tx.append(
        HISTORY,
        (run_id, before, after, by, tx.now, attempt, seq, detail[:1000]),
    )


@lru_cache(256)
def _move_of(names: tuple[str, ...]) -> str:
    """The guarded statement that changes these columns."""
    columns = ", ".join(f"{name} = ?" for name in names)
    return in_sets(
        f"UPDATE runs SET {columns} WHERE id = ? AND state = ? AND attempt = ? AND seq = ?",
        *(_CHANGING.get(name, INT) for name in names),
        *(INT, TEXT, INT, INT),
    )


def move(
    tx: Transaction,
    run: Run,
    to: RunState,
    by: str,
    changed: Mapping[str, Any] | None = None,
    *,
    detail: str = "",
    seq: int = 0,
    through: RunState | None = None,
    why_through: str = "",
) -> None:
    """
    Change a run's state, and the columns *changed* with it; *run* follows.

    The operation is run again if another transaction has changed it since it was read.

    :param seq: of the report that says so, for the history.
    :param through: a state that it passes on its way, *why_through*; history has a row of each.
    """
    before, was_seq = run["state"], run["seq"]
    columns = dict(changed or {})
    path = [RunState(before), to] if through is None else [RunState(before), through, to]
    for step in pairwise(path):
        if step not in TRANSITIONS:
            raise RuntimeError(f"run {run['id']}: {step[0]} -> {step[1]} is no transition")
    columns.update(state=to.value, changed_at=tx.now)
    if to is not S.SENT:
        columns.update(receipt=None, lease_until=None)
    if to in ENDS:
        columns.setdefault("ended_at", tx.now)
    elif run["ended_at"] is not None:
        columns["ended_at"] = None
    names = tuple(sorted(columns))
    tx.later(
        _move_of(names),
        (*[columns[name] for name in names], run["id"], before, run["attempt"], was_seq),
        1,
    )
    run.update(columns)
    if through is not None:
        note(tx, run["id"], before, through.value, by, run["attempt"], 0, why_through)
        before = through.value
    note(tx, run["id"], before, to.value, by, run["attempt"], seq, detail)
    if to in ENDS:
        tx.event("ended", run=run["id"], job=run["job_id"], state=to.value, before=before)
        if run["watched"]:
            tx.notify("schedule", run["job_id"])


# -- deliveries --------------------------------------------------------------------------------


_END_DELIVERY = in_sets("UPDATE deliveries SET state = ? WHERE receipt = ?", TEXT, TEXT)


def end_delivery(tx: Transaction, run: Run, receipt: str = "") -> None:
    """
    End the open delivery of a run.

    :param receipt: of the one that was acknowledged, open or not; "": of none.
    """
    if receipt:
        tx.later(_END_DELIVERY, ("acknowledged", receipt))
    if run["state"] == "sent" and run["receipt"] != receipt:
        tx.later(_END_DELIVERY, ("void", run["receipt"]))


def fail_delivery(tx: Transaction, run: Run, max_deliveries: int, by: str, why: str) -> None:
    """The open delivery of a sent run did not arrive: rest, or give up."""
    end_delivery(tx, run)
    failures = run["failures"] + 1
    to = machine.after_failed_delivery(failures, max_deliveries)
    ready_at = tx.now + machine.rest_seconds(failures)
    move(tx, run, to, by, {"failures": failures, "ready_at": ready_at}, detail=why)
    if to is S.UNDELIVERABLE:
        tx.event("undeliverable", run=run["id"], job=run["job_id"], client=run["client_id"])
    else:
        tx.event("redelivery", run=run["id"], why=why)


def end_open_deliveries(
    tx: Transaction, client_id: int, jobs: JobCache, by: str, rows: Iterable[Run] | None = None
) -> None:
    """What was sent to a client that now asks anew never arrived."""
    runs = map(as_run, tx.all(SENT, (client_id,))) if rows is None else rows
    for run in runs:
        job = jobs.get(tx, run["job_id"], run["job_version"])
        fail_delivery(tx, run, job.definition.max_deliveries, by, "asked anew")


def anything(tx: Transaction, client_id: int) -> bool:
    """Whether there may be something to hand out to a client; locks and writes nothing."""
    return tx.one(ANYTHING, (client_id, tx.now)) is not None


def job_file(run: Run, job: Job, client: Client, now: float) -> bytes:
    """The job file of a delivery: the same rows and attempt give the same octets."""
    return job.template.fill(
        run=run["id"],
        job=job.id,
        attempt=run["attempt"],
        retry=run["retry"],
        client=client.id,
        client_name=client.name,
        issued=now,
        priority=run["priority"],
        not_before=run["due"],
        not_after=run["deadline"],
        occurrence=run["occurrence"],
    )


#: The claim: a candidate is its client's.
SEND = in_sets(
    "UPDATE runs SET state = 'sent', attempt = ?, receipt = ?, lease_until = ?,"
    " server_id = ?, epoch = ?, changed_at = ? WHERE id = ? AND state = ? AND attempt = ?",
    *(INT, TEXT, REAL, INT, INT, REAL, INT, TEXT, INT),
)
#: And its receipt.
DELIVER = in_sets(
    "INSERT INTO deliveries (receipt, run_id, client_id, attempt, retry, state, server_id,"
    " epoch, sent_at) VALUES (?, ?, ?, ?, ?, 'open', ?, ?, ?)",
    *(TEXT, INT, INT, INT, INT, INT, INT, REAL),
)


def _hand_out(tx: Transaction, run: Run, job: Job, client: Client, server: Server) -> Delivery:
    receipt, attempt = make_receipt(), run["attempt"] + 1
    tx.later(
        SEND,
        (
            attempt,
            receipt,
            tx.now + server.lease,
            server.id,
            server.epoch,
            tx.now,
            run["id"],
            run["state"],
            run["attempt"],
        ),
        1,
    )
    tx.later(
        DELIVER,
        (receipt, run["id"], client.id, attempt, run["retry"], server.id, server.epoch, tx.now),
    )
    note(tx, run["id"], run["state"], "sent", server.who, attempt)
    run.update(state="sent", attempt=attempt, receipt=receipt)
    return Delivery(
        run["id"], job.id, attempt, receipt, server.lease, job_file(run, job, client, tx.now)
    )


def next_reads(client_id: int, receipt: str, now: float) -> list[tuple[str, Parameters]]:
    """
    What :meth:`Dispatch.acknowledge_and_next` reads first.

    :param client_id: who asks, as far as is known; 0: nobody knows.
    """
    reads: list[tuple[str, Parameters]] = [(DELIVERED, (receipt,))] if receipt else []
    return [*reads, best_of(client_id, receipt, now)] if client_id else reads


def best_of(client_id: int, receipt: str, now: float) -> tuple[str, Parameters]:
    """The reading statement of the best run of a client, beside what *receipt* came with."""
    return CANDIDATES, (receipt, client_id, now)


class Dispatch:
    """Hands runs out, with what that needs between transactions."""

    def __init__(self, jobs: JobCache, rights: Rights) -> None:
        self.jobs = jobs
        self.rights = rights

    def _offer(
        self, tx: Transaction, run: Run, job: Job, directory: Directory, client: Client,
        server: Server,
    ) -> Delivery | None:  # fmt: skip
        """Hand out one pending run, if deadline and permissions let us."""
        if run["deadline"] is not None and run["deadline"] <= tx.now:
            move(tx, run, S.EXPIRED, server.who, detail="deadline passed")
            return None
        decision = directory.decide(job.user_id, job.definition.permission, client.id, tx.now)
        if not decision.allowed:
            rules = ", ".join(f"rule {rule.id}" for rule in decision.rules)
            why = f"{job.definition.permission}: {decision.reason}"
            detail = f"{why} ({rules})" if rules else why
            move(tx, run, S.DENIED, server.who, detail=detail)
            tx.event("denied", run=run["id"], job=job.id, client=client.id, detail=detail)
            return None
        return _hand_out(tx, run, job, client, server)

    def acknowledge_and_next(
        self, tx: Transaction, client: Client, server: Server, receipt: str, read: bool
    ) -> Steps[Delivery | None]:
        """
        Acknowledge *receipt* ("": none), then :meth:`next_run`.

        :param read: :func:`next_reads` have been read for *client*, else without one.
        """
        best = best_of(client.id, receipt, tx.now)
        # Before anything is written, as they were read.
        rows = tx.all(*best) if read else None
        if receipt:
            run, _, _ = yield from acknowledge(tx, client, receipt, self.jobs, read=False)
            if rows and rows[0]["id"] == run:
                # Its lease was over, and it waited to be handed out again.
                rows = None
        delivery = yield from self.next_run(tx, client, server, receipt, rows)
        return delivery

    def next_run(
        self,
        tx: Transaction,
        client: Client,
        server: Server,
        receipt: str = "",
        rows: Sequence[Row] | None = None,
    ) -> Steps[Delivery | None]:
        """
        Hand out the best run that waits for *client*.

        What is sent to him already evidently never arrived: those deliveries end first.

        :param receipt: that was acknowledged in *tx*.
        :param rows: of :func:`best_of`, if they have been read.
        """
        best = best_of(client.id, receipt, tx.now)
        if rows is None:
            yield [best]
            rows = tx.all(*best)
        if not rows or rows[0]["others"]:
            yield [(SENT, (client.id,))]
            sent = tx.all(SENT, (client.id,))
            if sent:
                end_open_deliveries(tx, client.id, self.jobs, client.who, map(as_run, sent))
                # They may be the best of all again.
                yield [best]
                rows = tx.all(*best)
        looked_at = 0
        while rows:
            for run in map(as_run, rows):
                job = yield from self.jobs.in_steps(tx, run["job_id"], run["job_version"])
                directory = yield from self.rights.in_steps(tx, run["acl_version"])
                delivery = self._offer(tx, run, job, directory, client, server)
                if delivery is not None:
                    return delivery
            looked_at += len(rows)
            if looked_at >= _MAX_SEARCH:
                break
            yield [(_MORE, best[1])]
            rows = tx.all(_MORE, best[1])
        return None

    def this_run(
        self, tx: Transaction, client: Client, run_id: int, server: Server
    ) -> Delivery | None:
        """
        Hand out one particular run.

        :returns: None: it has just ended (denied, expired).
        :raises ScireFault: 1022, 1032; 1030 it is withdrawn; 1033 not to be handed out now.
        """
        run = owned(tx, run_id, client)
        end_open_deliveries(tx, client.id, self.jobs, client.who)
        run = locked(tx, run_id)
        state = RunState(run["state"])
        if state in ENDS:
            raise ScireFault(FaultCode.RUN_WITHDRAWN, f"run {run_id} is {state}")
        if state is not S.PENDING or run["ready_at"] > tx.now or run["job_state"] == "paused":
            raise ScireFault(FaultCode.TRANSITION, f"run {run_id} is {state}, not to be sent now")
        job = self.jobs.get(tx, run["job_id"], run["job_version"])
        return self._offer(tx, run, job, self.rights.directory(tx), client, server)


def waiting_for(tx: Transaction, client_id: int) -> Sequence[Row]:
    """What ``get_jobs`` lists."""
    return tx.all(
        "SELECT r.id, r.job_id, j.name, j.definition, r.priority, r.due, r.attempt FROM runs r"
        " JOIN jobs j ON j.id = r.job_id WHERE r.client_id = ?"
        " AND r.state IN ('pending', 'sent') AND j.state IN ('active', 'finished')"
        " ORDER BY r.priority DESC, r.due, r.id LIMIT 1000",
        (client_id,),
    )


DELIVERED = in_sets(
    f"""
    SELECT {COLUMNS}, r.lease_until, d.state AS delivery, d.retry AS delivery_retry
    FROM deliveries d JOIN runs r ON r.id = d.run_id JOIN jobs j ON j.id = r.job_id
    WHERE d.receipt = ? /*pg FOR UPDATE OF r, d*/""",
    TEXT,
    locks=False,
)


def _delivered(tx: Transaction, receipt: str, client: Client) -> Run:
    """
    The run that *receipt* came with, locked; ``delivery`` is what became of that delivery.

    :raises ScireFault: 1031 unknown receipt, 1032 another client's.
    """
    row = tx.one(DELIVERED, (receipt,))
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_RECEIPT, "unknown receipt")
    if row["client_id"] != client.id:
        raise ScireFault(FaultCode.FOREIGN, "the receipt is another client's")
    return as_run(row)


def receive(
    tx: Transaction, run: Run, jobs: JobCache, by: str, detail: str = "", receipt: str = ""
) -> None:
    """
    A sent or pending run has arrived at its client.

    :param receipt: that says so; "": something else does.
    """
    job = jobs.get(tx, run["job_id"], run["job_version"])
    end_delivery(tx, run, receipt)
    move(tx, run, S.RECEIVED, by, signs_of_receipt(tx, job), detail=detail)


def signs_of_receipt(tx: Transaction, job: Job) -> dict[str, Any]:
    """The columns that follow a run's arrival at its client."""
    return {"sign_at": tx.now, "silent_after": tx.now + job.definition.start_within}


def acknowledge(
    tx: Transaction, client: Client, receipt: str, jobs: JobCache, read: bool = True
) -> Steps[tuple[int, str, bool]]:
    """
    The client has durably stored what came with *receipt*.

    :param read: False: the caller has read :data:`DELIVERED` ahead.

    :returns: run, its state, whether this was said before.
    :raises ScireFault: 1030 withdrawn, 1031 unknown receipt, 1032 another client's.
    """
    if read:
        yield [(DELIVERED, (receipt,))]
    run = _delivered(tx, receipt, client)
    state = RunState(run["state"])
    if state in (S.SENT, S.PENDING) and run["delivery_retry"] == run["retry"]:
        yield from jobs.in_steps(tx, run["job_id"], run["job_version"])
        receive(tx, run, jobs, client.who, receipt=receipt)
        return run["id"], S.RECEIVED.value, False
    acknowledged = run["delivery"] == "acknowledged"
    if state in WITH_CLIENT | machine.RESULTS or (acknowledged and state is S.LOST):
        # This was said before (the client may yet know better than a server that believes the run
        # lost); or by a later delivery, or a report.
        if not acknowledged:
            end_delivery(tx, run, receipt)
        return run["id"], state.value, True
    # Withdrawn, or put back for a start that this delivery is not of: whatever was said before.
    raise ScireFault(FaultCode.RUN_WITHDRAWN, f"run {run['id']} is {state}: forget it")


def extend(tx: Transaction, client: Client, receipt: str, seconds: int) -> int:
    """
    Lengthen the lease of an open delivery.

    :returns: seconds granted, 0..3600.
    """
    run = _delivered(tx, receipt, client)
    if run["receipt"] != receipt:
        raise ScireFault(FaultCode.RUN_WITHDRAWN, "the delivery is over")
    granted = max(0, min(seconds, 3600))
    lease_until = max(run["lease_until"], tx.now + granted)
    tx.run("UPDATE runs SET lease_until = ? WHERE id = ?", (lease_until, run["id"]))
    return granted


REFUSALS = ("unsupported", "digest", "policy", "space")


def refuse(
    tx: Transaction, client: Client, receipt: str, reason: str, text: str
) -> tuple[int, str]:
    """
    The client will not do what came with *receipt*.

    :returns: run, its state.
    """
    if reason not in REFUSALS:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"reason is one of {', '.join(REFUSALS)}")
    run = _delivered(tx, receipt, client)
    if run["state"] == "refused":
        return run["id"], "refused"
    if run["state"] != "sent" or run["receipt"] != receipt:
        raise ScireFault(FaultCode.TRANSITION, f"run {run['id']} is {run['state']}")
    tx.run("UPDATE deliveries SET state = 'refused' WHERE receipt = ?", (receipt,))
    move(tx, run, S.REFUSED, client.who, {"message": text[:4000]}, detail=f"{reason}: {text}")
    tx.event("refused", run=run["id"], job=run["job_id"], client=client.id, reason=reason)
    return run["id"], "refused"


def cancel(tx: Transaction, run: Run, by: str, force: bool, why: str = "") -> None:
    """Withdraw a run that has not ended: at once, or as a wish to its client."""
    if RunState(run["state"]) in WITH_CLIENT:
        wish = 2 if force else 1
        if run["cancel_wanted"] < wish:
            tx.run("UPDATE runs SET cancel_wanted = ? WHERE id = ?", (wish, run["id"]))
            note(tx, run["id"], run["state"], run["state"], by, run["attempt"], 0, "cancel wanted")
            run["cancel_wanted"] = wish
        tx.notify("control", run["client_id"])
        return
    if RunState(run["state"]) in machine.BEFORE:
        end_delivery(tx, run)
        move(tx, run, S.CANCELLED, by, detail=why or "cancelled")


def lose(tx: Transaction, run: Run, job: Job, by: str, why: str) -> None:
    """A run with its client is lost; start it anew if its job says so."""
    move(tx, run, S.LOST, by, detail=why)
    tx.event("lost", run=run["id"], job=run["job_id"], client=run["client_id"], why=why)
    retry_if_wanted(tx, run, job, by)


def retry_if_wanted(tx: Transaction, run: Run, job: Job, by: str) -> None:
    """Put a lost run back, where its job may run twice."""
    if job.definition.on_lost.value != "retry" or run["cancel_wanted"]:
        return
    if run["deadline"] is not None and run["deadline"] <= tx.now:
        return
    anew = {
        "failures": 0,
        "retry": run["retry"] + 1,
        "retry_attempt": run["attempt"] + 1,
        "seq": 0,
        "gap": 0,
        "ready_at": tx.now,
    }
    move(tx, run, S.PENDING, by, anew, detail="started anew")
    tx.notify("work", run["client_id"])
