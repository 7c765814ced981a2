"""Runs: what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridnet.scire.admin.common import (
    Anybody,
    Struct,
    allowed,
    find,
    moment,
    need,
    page,
    user_of,
    when,
)
from gridnet.scire.calls import MAX_FILE_PIECE
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.methods import Lane, member, method
from gridnet.scire.statusfile import STREAMS
from gridnet.scire.store.database import Row, Transaction

if TYPE_CHECKING:
    from gridnet.scire.server import JobServer

_RUNS = """
    SELECT r.*, j.name AS job_name, c.name AS client_name FROM runs r
    JOIN jobs j ON j.id = r.job_id JOIN clients c ON c.id = r.client_id"""


def _shown(row: Row) -> Struct:
    shown: Struct = {
        "run": row["id"],
        "job": row["job_id"],
        "job_name": row["job_name"],
        "client": row["client_id"],
        "client_name": row["client_name"],
        "state": row["state"],
        "occurrence": when(row["occurrence"]),
        "due": when(row["due"]),
        "ready": when(row["ready_at"]),
        "deadline": when(row["deadline"]),
        "priority": row["priority"],
        "attempt": row["attempt"],
        "failures": row["failures"],
        "retry": row["retry"],
        "seq": row["seq"],
        "cancel_wanted": bool(row["cancel_wanted"]),
        "started": when(row["started_at"]),
        "ended": when(row["ended_at"]),
        "message": row["message"],
    }
    for name in ("exit_code", "exit_signal"):
        if row[name] is not None:
            shown[name] = row[name]
    return shown


def _run(server: JobServer, tx: Transaction, caller: Anybody, run: int, permission: str) -> Row:
    row = tx.one(_RUNS + " WHERE r.id = ?", (run,))
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_RUN, f"unknown run {run}")
    need(server, tx, caller, permission, row["client_id"])
    return row


@method("admin.run_get", "struct", "int", lane=Lane.READ)
def run_get(server: JobServer, tx: Transaction, caller: Anybody, run: int) -> Struct:
    """One run."""
    return _shown(_run(server, tx, caller, run, "job.view"))


@method("admin.run_list", "struct", "struct", optional=1, lane=Lane.READ)
def run_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Runs, newest first; filters job, client, state, since (a time of change)."""
    user, choice = user_of(caller), choice or {}
    job = member(choice, "job", (int, str), None)
    client = member(choice, "client", (int, str), None)
    listed = page(
        server,
        tx,
        _RUNS,
        [
            ("r.job_id = ?", find(tx, "job", job)["id"] if job is not None else None),
            ("r.client_id = ?", find(tx, "client", client)["id"] if client is not None else None),
            ("r.state = ?", member(choice, "state", str, None)),
            ("r.changed_at >= ?", moment(choice, "since")),
        ],
        choice,
        _shown,
        key="r.id",
        newest_first=True,
    )
    listed["items"] = [
        item for item in listed["items"] if allowed(server, tx, user, "job.view", item["client"])
    ]
    return listed


@method("admin.run_history", "array", "int", lane=Lane.READ)
def run_history(server: JobServer, tx: Transaction, caller: Anybody, run: int) -> list[Struct]:
    """Everything that happened to a run, in order."""
    _run(server, tx, caller, run, "job.view")
    return [
        {
            "from": row["from_state"] or "",
            "to": row["to_state"],
            "by": row["by_whom"],
            "at": when(row["at"]),
            "attempt": row["attempt"],
            "seq": row["seq"],
            "detail": row["detail"],
        }
        for row in tx.all("SELECT * FROM history WHERE run_id = ? ORDER BY id", (run,))
    ]


@method("admin.run_output", "struct", "int", "string", "int", "int", lane=Lane.READ)
def run_output(
    server: JobServer,
    tx: Transaction,
    caller: Anybody,
    run: int,
    stream: str,
    offset: int,
    length: int,
) -> Struct:
    """A piece of what a run wrote: data, size kept, bytes written, truncated."""
    row = _run(server, tx, caller, run, "output.view")
    if stream not in STREAMS or offset < 0 or not 0 <= length <= MAX_FILE_PIECE:
        text = f"stdout or stderr, from 0 on, at most {MAX_FILE_PIECE} octets"
        raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
    latest = tx.one(
        "SELECT max(retry) AS retry FROM outputs WHERE run_id = ? AND stream = ?", (run, stream)
    )
    retry = row["retry"] if latest is None or latest["retry"] is None else latest["retry"]
    key = (run, retry, stream)
    whole = tx.one(
        "SELECT sum(size) AS size, max(total) AS total, max(truncated) AS truncated FROM outputs"
        " WHERE run_id = ? AND retry = ? AND stream = ?",
        key,
    )
    assert whole is not None
    pieces = tx.all(
        "SELECT start, content FROM outputs WHERE run_id = ? AND retry = ? AND stream = ?"
        " AND start < ? AND start + size > ? ORDER BY start",
        (*key, offset + length, offset),
    )
    data = b"".join(bytes(piece["content"]) for piece in pieces)
    begin = offset - pieces[0]["start"] if pieces else 0
    size = int(whole["size"] or 0)
    total = whole["total"]
    return {
        "data": data[begin : begin + length],
        "size": size,
        # Streams may be longer than an XML-RPC int can say.
        "bytes": float(size if total is None else total),
        "truncated": bool(whole["truncated"]),
    }
