"""``/scire`` on the status listener: runs, clients, what waits and why.  Read-only and live."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import SERVICE_UNAVAILABLE
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from gridnet.scire.faults import ScireFault
from gridnet.scire.store.database import Row, Transaction
from gridnet.scire.upkeep import OPEN_PARTS, overview

if TYPE_CHECKING:
    from gridnet.scire.server import JobServer

_ROWS = 100  #: of each table
_SHOWN = """
    SELECT r.*, j.name AS job_name, j.state AS job_state, c.name AS client_name,
           c.state AS client_state, c.contact_at FROM runs r JOIN jobs j ON j.id = r.job_id
    JOIN clients c ON c.id = r.client_id WHERE r."""
_ENDED = _SHOWN.replace(
    "c.contact_at",
    "c.contact_at, (SELECT detail FROM history h WHERE h.run_id = r.id ORDER BY h.id DESC LIMIT 1)"
    " AS detail",
) + ("ended_at IS NOT NULL ORDER BY r.ended_at DESC LIMIT ?")
_TO_COME = """
    SELECT id, name, state, next_occurrence FROM jobs
    WHERE state IN ('active', 'paused') AND next_occurrence > ? ORDER BY next_occurrence LIMIT ?"""


def _open(tx: Transaction) -> list[Row]:
    """The open runs that have been due longest."""
    rows = [
        row
        for part in OPEN_PARTS
        for row in tx.all(f"{_SHOWN}{part} ORDER BY r.due, r.id LIMIT ?", (_ROWS,))
    ]
    return sorted(rows, key=lambda row: (row["due"], row["id"]))[:_ROWS]


def why(row: Row, now: float) -> str:
    """Why an open run is where it is, in words for people."""
    state = row["state"]
    if row["client_state"] != "active":
        return f"client is {row['client_state']}"
    if row["job_state"] == "paused":
        return "job is paused"
    if state == "waiting":
        if row["due"] > now:
            return f"due in {_span(row['due'] - now)}"
        return "waits for other runs: dependencies, its batch or its predecessor"
    if state == "pending":
        if row["ready_at"] > now:
            return f"rests {_span(row['ready_at'] - now)} after {row['failures']} failed deliveries"
        if not row["contact_at"]:
            return "client has never asked"
        return f"client last asked {_span(now - row['contact_at'])} ago"
    if state == "sent":
        return f"acknowledgement within {_span((row['lease_until'] or now) - now)}"
    if row["cancel_wanted"]:
        return "cancel wanted, client has not confirmed"
    return f"last sign of life {_span(now - (row['sign_at'] or now))} ago"


def _span(seconds: float) -> str:
    seconds = max(0, round(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _run(row: Row, now: float) -> dict[str, Any]:
    return {
        "run": row["id"],
        "job": row["job_name"],
        "client": row["client_name"],
        "state": row["state"],
        "attempt": row["attempt"],
        "why": why(row, now) if row["ended_at"] is None else row["message"] or row["detail"],
        "ended": None if row["ended_at"] is None else f"{_span(now - row['ended_at'])} ago",
    }


def report(tx: Transaction) -> dict[str, Any]:
    """What the page shows, as plain values."""
    clients = tx.all(
        "SELECT name, state, reason, mode, contact_at, push_result FROM clients"
        " WHERE state <> 'retired' ORDER BY contact_at LIMIT ?",
        (_ROWS,),
    )
    return {
        "time": tx.now,
        "overview": overview(tx),
        "open": [_run(row, tx.now) for row in _open(tx)],
        "ended": [_run(row, tx.now) for row in tx.all(_ENDED, (_ROWS,))],
        "to_come": [
            {
                "job": row["name"],
                "state": row["state"],
                "due": f"in {_span(row['next_occurrence'] - tx.now)}",
            }
            for row in tx.all(_TO_COME, (tx.now, _ROWS))
        ],
        "clients": [
            {
                "name": row["name"],
                "state": row["state"],
                "reason": row["reason"],
                "mode": row["mode"],
                "push": row["push_result"],
                "contact": _span(tx.now - row["contact_at"]) if row["contact_at"] else "never",
            }
            for row in clients
        ],
        "requests": [
            {"request": row["id"], "fingerprint": row["key_digest"], "address": row["address"]}
            for row in tx.all(
                "SELECT id, key_digest, address FROM enrolments WHERE state = 'requested'"
                " ORDER BY id LIMIT ?",
                (_ROWS,),
            )
        ],
        "servers": [
            {"name": row["name"], "role": row["role"], "state": row["state"], "url": row["url"]}
            for row in tx.all("SELECT * FROM servers ORDER BY id")
        ],
    }


class RunsPage(Resource):
    """The page, and with ``?format=json`` what stands on it."""

    isLeaf = True

    def __init__(self, server: JobServer) -> None:
        super().__init__()
        self._server = server
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        text = files("gridnet.scire").joinpath("templates", "scire.html").read_text("utf-8")
        self._template = environment.from_string(text)

    def render_GET(self, request: Request) -> int:
        """Called by twisted.web (HEAD too)."""
        request.setHeader(b"Cache-Control", b"no-store")
        if self._server.state == "recovering":
            self._unavailable(request, "recovering")
            return NOT_DONE_YET
        finished: Deferred[Any] = request.notifyFinish()
        gone: list[object] = []
        finished.addErrback(gone.append)

        def write(found: Mapping[str, Any]) -> None:
            if not gone:
                self._write(request, found)

        def failed(failure: Failure) -> None:
            failure.trap(ScireFault)
            if not gone:
                self._unavailable(request, str(failure.value))

        reading = self._server.database.read(report)
        reading.addCallbacks(write, failed)
        return NOT_DONE_YET

    def _write(self, request: Request, found: Mapping[str, Any]) -> None:
        args: Mapping[bytes, list[bytes]] = request.args or {}
        if args.get(b"format") == [b"json"]:
            request.setHeader(b"Content-Type", b"application/json")
            request.write(json.dumps(found).encode())
        else:
            request.setHeader(b"Content-Type", b"text/html; charset=utf-8")
            time = datetime.fromtimestamp(found["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")
            page = self._template.render(found, server=self._server.name, shown_at=time)
            request.write(page.encode())
        request.finish()

    def _unavailable(self, request: Request, reason: str) -> None:
        request.setResponseCode(SERVICE_UNAVAILABLE)
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        request.write(f"{reason}\n".encode())
        request.finish()
