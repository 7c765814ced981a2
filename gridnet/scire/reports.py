"""
What clients say about their runs: status files, output, and what they hold.

A report and what it changes are one transaction, and (run, seq) is a key, so that a report that
is repeated, to whatever server, counts once (docs/protocols/scire.rst, Status file).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from attrs import frozen

from gridnet.scire import machine
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import IDENTITY_USED_TWICE, Client, audit
from gridnet.scire.jobcache import Job, JobCache
from gridnet.scire.machine import (
    ENDS,
    RESULTS,
    WITH_CLIENT,
    Held,
    Installation,
    Known,
    Recorded,
    Reported,
    RunState,
    Verdict,
)
from gridnet.scire.runs import (
    COLUMNS,
    Run,
    as_run,
    end_delivery,
    fail_delivery,
    lose,
    move,
    note,
    of_client,
    owned,
    receive,
    retry_if_wanted,
    signs_of_receipt,
)
from gridnet.scire.statusfile import STREAMS, StatusFile
from gridnet.scire.store.database import Steps, Transaction
from gridnet.scire.store.sets import INT, OCTETS, REAL, TEXT, in_sets

S = RunState
#: Former installations that are remembered.
_MAX_FORMER = 20


@frozen
class Kept:
    """A call that is answered with a fault although what it did is kept."""

    fault: ScireFault


Control = list[dict[str, Any]]


def _retry_of(tx: Transaction, run: Run, attempt: int) -> int:
    """Which start of the run (0 the first) delivery number *attempt* belongs to."""
    if attempt > run["attempt"]:
        raise ScireFault(FaultCode.INVALID_STATUS_FILE, f"attempt {attempt} was never sent")
    if attempt >= run["retry_attempt"]:
        return int(run["retry"])
    row = tx.one(
        "SELECT retry FROM deliveries WHERE run_id = ? AND attempt = ?", (run["id"], attempt)
    )
    return int(row["retry"]) if row is not None else 0


def cancel_wish(run_id: int, wanted: int) -> dict[str, Any]:
    """The wish to end a run; 2: without waiting for it to end by itself."""
    return {"run": run_id, "action": "cancel", "force": wanted > 1}


def control_of(run: Run) -> Control:
    """What the client should do about a run beside what it asked for."""
    wishes = []
    if RunState(run["state"]) in WITH_CLIENT and run["cancel_wanted"]:
        wishes.append(cancel_wish(run["id"], run["cancel_wanted"]))
    if run["gap"]:
        wishes.append({"run": run["id"], "action": "report"})
    return wishes


def _answer(run: Run, seq: int, recorded: Recorded) -> dict[str, Any]:
    return {
        "run": run["id"],
        "seq": seq,
        "recorded": recorded.value,
        "state": run["state"],
        "control": control_of(run),
    }


_KEEP_OUTPUT = in_sets(
    "INSERT INTO outputs (run_id, retry, stream, start, content, size, total, truncated,"
    " at) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?) ON CONFLICT (run_id, retry, stream, start)"
    " DO UPDATE SET total = excluded.total, truncated = excluded.truncated",
    *(INT, INT, TEXT, OCTETS, INT, REAL, INT, REAL),
)


def _store_output(tx: Transaction, run: Run, retry: int, status: StatusFile) -> None:
    for output in status.outputs:
        tx.later(
            _KEEP_OUTPUT,
            (
                run["id"],
                retry,
                output.stream,
                output.octets,
                len(output.octets),
                output.size,
                int(output.truncated),
                tx.now,
            ),
        )


def _ending(status: StatusFile, retry: int, run: Run, now: float) -> dict[str, Any]:
    """The columns that a report of an end fills."""
    columns: dict[str, Any] = {
        "exit_code": status.exit_code,
        "exit_signal": status.exit_signal,
        "message": status.message,
    }
    if retry != run["retry"]:
        columns["gap"] = 0
    if status.started is not None:
        columns["started_at"] = _credible(status.started, run, now)
    if status.finished is not None:
        columns["ended_at"] = _credible(status.finished, run, now)
    return columns


def _credible(moment: float, run: Run, now: float) -> float:
    """
    *moment* by a client's clock, which may be wrong, between the run's occurrence and now.

    How long the run is kept depends on it.
    """
    return max(min(moment, now), min(float(run["occurrence"]), now))


def _advance(
    tx: Transaction, run: Run, path: Sequence[RunState], status: StatusFile, retry: int, by: str,
    job: Job, detail: str, signs: Mapping[str, Any],
) -> None:  # fmt: skip
    """Take *run* along *path*; *signs* are columns that the report changes anyway."""
    if not path:
        return
    columns: dict[str, Any] = {}
    through = None
    if path[0] is S.RECEIVED:
        # The report is the receipt of the delivery that it names.
        of_open = run["state"] == "sent" and status.attempt == run["attempt"]
        end_delivery(tx, run, run["receipt"] if of_open else "")
        columns.update(signs_of_receipt(tx, job), **signs)
        if len(path) == 1:
            move(tx, run, S.RECEIVED, by, columns, detail="a report came")
            return
        through = S.RECEIVED
    state = path[-1]
    columns.update(signs)
    if state in ENDS:
        columns.update(_ending(status, retry, run, tx.now))
    elif state is S.RUNNING:
        columns["started_at"] = _credible(status.started or status.time, run, tx.now)
    move(
        tx, run, state, by, columns, detail=detail, seq=status.seq, through=through,
        why_through="a report came",
    )  # fmt: skip


_SIGNS = ("seq", "gap", "sign_at", "silent_after")
REPORTED = in_sets(
    f"""
    SELECT {COLUMNS}, r.occurrence, r.deadline, r.retry_attempt, r.cancel_wanted, r.gap,
           p.digest AS reported
    FROM runs r JOIN jobs j ON j.id = r.job_id
    LEFT JOIN reports p ON p.run_id = r.id AND p.retry = r.retry AND p.seq = ?
    WHERE r.id = ? /*pg FOR UPDATE OF r*/""",
    INT,
    INT,
    locks=False,
)
_RECORD = in_sets(
    "INSERT INTO reports (run_id, retry, seq, digest, state, recorded, recorded_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)",
    *(INT, INT, INT, TEXT, TEXT, TEXT, REAL),
)
_SIGN = in_sets(
    "UPDATE runs SET seq = ?, gap = ?, sign_at = ?, silent_after = ? WHERE id = ? AND seq = ?",
    *(INT, INT, REAL, REAL, INT, INT),
)


def record_report(
    tx: Transaction,
    client: Client,
    status: StatusFile,
    octets: bytes,
    jobs: JobCache,
    read: bool = True,
) -> Steps[dict[str, Any] | Kept]:
    """
    Record one status file.

    :param read: False: the caller has read :data:`REPORTED` ahead.
    :returns: the answer; or the fault 1033 of a report that is kept but changed nothing.
    :raises ScireFault: 1022, 1032; 1050 another report of this number was recorded.
    """
    wanted = (REPORTED, (status.seq, status.run))
    if read:
        yield [wanted]
    row = tx.one(*wanted)
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_RUN, f"unknown run {status.run}")
    run = of_client(as_run(row), client)
    retry = _retry_of(tx, run, status.attempt)
    digest = sha256(octets).hexdigest()
    known = run.pop("reported")
    if retry != run["retry"]:
        earlier = tx.one(
            "SELECT digest FROM reports WHERE run_id = ? AND retry = ? AND seq = ?",
            (run["id"], retry, status.seq),
        )
        known = None if earlier is None else earlier["digest"]
    if known is not None:
        if known != digest:
            what = f"report {status.seq} of run {run['id']} was recorded with other content"
            raise ScireFault(FaultCode.CONFLICT, what)
        tx.event("duplicate", run=run["id"], seq=status.seq)
        return _answer(run, status.seq, Recorded.DUPLICATE)
    job = yield from jobs.in_steps(tx, run["job_id"], run["job_version"])
    current = retry == run["retry"]
    signs = _signs(tx, run, status, job) if current else {}
    in_order = status.seq > run["seq"] if current else status.state.value in RESULTS
    outcome = machine.apply_report(RunState(run["state"]), status.state, in_order=in_order)
    recorded = outcome.recorded
    # Recorded by another server just now: then this is raced, and found known the next time.
    tx.later(
        _RECORD,
        (
            run["id"],
            retry,
            status.seq,
            digest,
            status.state.value,
            recorded.value if recorded is not None else "not allowed",
            tx.now,
        ),
    )
    if signs and not outcome.path:
        # Otherwise they go along with the change of state.
        tx.later(_SIGN, (*(signs[name] for name in _SIGNS), run["id"], run["seq"]), 1)
        run.update(signs)
    if recorded is None:
        what = f"{status.state.value} in state {run['state']}"
        note(
            tx, run["id"], run["state"], run["state"], client.who, status.attempt, status.seq,
            f"report not allowed: {what}",
        )  # fmt: skip
        return Kept(ScireFault(FaultCode.TRANSITION, f"run {run['id']}: {what}"))
    detail = "late" if recorded is Recorded.LATE else ""
    _advance(tx, run, outcome.path, status, retry, client.who, job, detail, signs)
    if outcome.path and outcome.path[-1] in ENDS:
        _store_output(tx, run, retry, status)
    if recorded is Recorded.LATE:
        tx.event("late", run=run["id"], job=run["job_id"], state=status.state.value)
    answer = _answer(run, status.seq, recorded)
    if outcome.path and outcome.path[-1] is S.LOST:
        tx.event("lost", run=run["id"], job=job.id, client=client.id, why="reported")
        retry_if_wanted(tx, run, job, client.who)
    return answer


def _signs(tx: Transaction, run: Run, status: StatusFile, job: Job) -> dict[str, Any]:
    """The columns that follow the numbers of the current start's reports, and signs of life."""
    gap = run["gap"]
    if status.seq > run["seq"] + 1:
        gap = 1
    elif gap:
        row = tx.one(
            "SELECT count(*) AS n FROM reports WHERE run_id = ? AND retry = ?",
            (run["id"], run["retry"]),
        )
        # This report is not among them yet.
        gap = int(row is None or row["n"] + 1 < max(run["seq"], status.seq))
    definition = job.definition
    running = status.state in (Reported.RUNNING, Reported.PROGRESS)
    silent = machine.silence_limit(
        S.RUNNING if running else S.RECEIVED, definition.limits.run_seconds, definition.start_within
    )
    return {
        "seq": max(run["seq"], status.seq),
        "gap": gap,
        "sign_at": tx.now,
        "silent_after": tx.now + silent,
    }


def put_output(
    tx: Transaction,
    client: Client,
    run_id: int,
    stream: str,
    offset: int,
    data: bytes,
    last: bool,
    most: int,
) -> int:
    """
    Take a piece of output that is too large for the status file.

    :param last: no more comes; what the stream's size was stands in the status file.
    :param most: octets of a stream that are kept.
    :returns: the offset of the next piece, which after a wrong *offset* is the right one.
    :raises ScireFault: 1022, 1032; 1042 more than is kept; -32602 no such stream.
    """
    if stream not in STREAMS or offset < 0:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "a stream is stdout or stderr, from 0 on")
    run = owned(tx, run_id, client)
    if run["attempt"] == 0:
        raise ScireFault(FaultCode.TRANSITION, f"run {run_id} was never sent")
    row = tx.one(
        "SELECT start, size FROM outputs WHERE run_id = ? AND retry = ? AND stream = ?"
        " ORDER BY start DESC LIMIT 1",
        (run_id, run["retry"], stream),
    )
    expected = 0 if row is None else row["start"] + row["size"]
    if offset != expected or (not data and not last):
        return int(expected)
    if expected + len(data) > most:
        raise ScireFault(FaultCode.TOO_LARGE, f"{stream} is over {most} octets")
    if data:
        tx.run(
            "INSERT INTO outputs (run_id, retry, stream, start, content, size, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run_id, retry, stream, start)"
            " DO UPDATE SET content = excluded.content, size = excluded.size",
            (run_id, run["retry"], stream, expected, data, len(data), tx.now),
        )
    return int(expected) + len(data)


# -- agreeing again ----------------------------------------------------------------------------

_HELD = """
    SELECT r.*, j.version AS job_version, j.watched, j.user_id, j.state AS job_state
    FROM runs r JOIN jobs j ON j.id = r.job_id
    WHERE r.client_id = ? AND (r.state IN ('sent', 'received', 'running'){more})
    ORDER BY r.id /*pg FOR UPDATE OF r*/"""
#: Runs that one hello may list.
MAX_HELD = 1000


def reconcile(
    tx: Transaction, client: Client, held: Sequence[Held], jobs: JobCache, by: str
) -> Control:
    """
    Compare what *client* holds with the rows, and mend both.

    :returns: what the client should do.
    """
    ids = sorted({item.run for item in held})
    more = f" OR r.id IN ({', '.join('?' * len(ids))})" if ids else ""
    rows = [as_run(row) for row in tx.all(_HELD.replace("{more}", more), (client.id, *ids))]
    runs = {run["id"]: run for run in rows}
    known = {
        run["id"]: Known(run["id"], RunState(run["state"]), run["seq"], bool(run["cancel_wanted"]))
        for run in rows
    }
    control: Control = []
    for run_id, verdict in machine.reconcile(known, held):
        if verdict is Verdict.UNKNOWN:
            tx.event("unknown_run", run=run_id, client=client.id)
            control.append({"run": run_id, "action": "forget"})
            continue
        run = runs[run_id]
        job = jobs.get(tx, run["job_id"], run["job_version"])
        if verdict is Verdict.LOST:
            lose(tx, run, job, by, "the client no longer knows it")
        elif verdict is Verdict.UNSENT:
            fail_delivery(tx, run, job.definition.max_deliveries, by, "asked anew")
        elif verdict is Verdict.RECEIVED:
            receive(tx, run, jobs, client.who, "listed by the client")
        elif verdict is Verdict.CANCEL:
            control.append(cancel_wish(run_id, run["cancel_wanted"]))
        else:
            control.append({"run": run_id, "action": verdict.value})
    return control


def judge_installation(tx: Transaction, client: Client, install_id: str) -> Kept | None:
    """
    See whether two machines share one identity; if so, disable it.

    :returns: the fault 1004, kept with what it did; None: all is well.
    """
    row = tx.one(
        "SELECT install_id, former_installs, hello_at FROM clients WHERE id = ? /*pg FOR UPDATE*/",
        (client.id,),
    )
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_CLIENT, f"unknown client {client.id}")
    former = json.loads(row["former_installs"])
    found = machine.judge_installation(
        install_id, row["install_id"], former, row["hello_at"], tx.now
    )
    if found is Installation.CLASH:
        tx.run(
            "UPDATE clients SET state = 'disabled', reason = ? WHERE id = ?",
            (IDENTITY_USED_TWICE, client.id),
        )
        audit(tx, client.who, "", "identity used twice", client.name, row["install_id"], install_id)
        tx.event("identity", client=client.id, name=client.name)
        tx.notify("control", client.id)
        text = "two machines use this identity"
        return Kept(ScireFault(FaultCode.IDENTITY_USED_TWICE, text))
    if found is Installation.NEW and row["install_id"]:
        former = [*former, row["install_id"]][-_MAX_FORMER:]
        audit(tx, client.who, "", "installed anew", client.name, row["install_id"], install_id)
    tx.run(
        "UPDATE clients SET install_id = ?, former_installs = ? WHERE id = ?",
        (install_id, json.dumps(former), client.id),
    )
    return None


def note_hello(tx: Transaction, client: Client, facts: Mapping[str, Any], address: str) -> None:
    """Write down what a client says of itself."""
    tx.run(
        "UPDATE clients SET boot_id = ?, mode = ?, program = ?, hostname = ?, capabilities = ?,"
        " address = ?, callback_port = ?, hello_at = ?, contact_at = ? WHERE id = ?",
        (
            str(facts.get("boot_id", ""))[:200],
            str(facts.get("mode", ""))[:20],
            f"{facts.get('program', '')} {facts.get('version', '')}".strip()[:200],
            str(facts.get("hostname", ""))[:200],
            json.dumps([str(item)[:40] for item in facts.get("capabilities", [])][:50]),
            address,
            facts.get("callback_port", 0),
            tx.now,
            tx.now,
            client.id,
        ),
    )
