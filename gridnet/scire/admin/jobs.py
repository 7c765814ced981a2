"""Jobs: define, change, watch, withdraw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from gridnet.scire import jobs, wire
from gridnet.scire.admin.common import (
    Anybody,
    Ref,
    Struct,
    allowed,
    find,
    need,
    once,
    page,
    trace,
    user_of,
    when,
)
from gridnet.scire.calls import MAX_FILE_PIECE
from gridnet.scire.config import LimitsConfig
from gridnet.scire.definition import JobDefinition, parse_definition, plain_values
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import User
from gridnet.scire.jobcache import read_job
from gridnet.scire.jobfile import digest_of, is_digest
from gridnet.scire.machine import ENDS, OPEN, RunState
from gridnet.scire.methods import Lane, member, method
from gridnet.scire.runs import as_run, cancel, locked
from gridnet.scire.store.database import Row, Transaction

if TYPE_CHECKING:
    from gridnet.scire.server import JobServer

_TARGETS = {
    "clients": "client",
    "groups": "client-group",
    "not_clients": "client",
    "not_groups": "client-group",
}
_PREVIEWED = 5  # dates


# -- definitions as callers write them ---------------------------------------------------------


def _invalid(text: str) -> ScireFault:
    return ScireFault(FaultCode.INVALID_DEFINITION, text)


def _struct(values: Mapping[str, Any], name: str) -> Struct:
    value: object = values.get(name, {})
    if not isinstance(value, dict):
        raise _invalid(f"definition.{name}: expected a struct")
    return dict(value)


def _times(values: Struct) -> list[tuple[Any, str]]:
    """Where the times of a definition stand."""
    return [(values, "due"), (values, "deadline"), (values.get("recurrence"), "anchor")]


def _plain_times(given: Struct) -> Struct:
    """Times as seconds; an empty text stands for nothing where a time may be."""
    values = dict(given)
    if isinstance(values.get("recurrence"), dict):
        values["recurrence"] = dict(values["recurrence"])
    for struct, name in _times(values):
        if isinstance(struct, dict) and name in struct:
            if isinstance(struct[name], datetime):
                struct[name] = wire.seconds_of(struct[name])
            elif struct[name] == "":
                del struct[name]
    return values


def _keep_script(tx: Transaction, script: bytes, most: int) -> str:
    if len(script) > most:
        raise ScireFault(FaultCode.TOO_LARGE, f"a script is at most {most} octets")
    digest = digest_of(script)
    tx.run(
        "INSERT INTO scripts (digest, content, created_at) VALUES (?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET created_at = excluded.created_at",
        (digest, script, tx.now),
    )
    return digest


def _keep(tx: Transaction, table: str, digest: str) -> bool:
    """Whether there is this content; if so, nobody deletes it while no job names it yet."""
    return bool(tx.run(f"UPDATE {table} SET created_at = ? WHERE digest = ?", (tx.now, digest)))


def _attachment(tx: Transaction, values: Any, most: int) -> Struct:
    if not isinstance(values, dict):
        raise _invalid("definition.attachments: expected structs")
    wanted: Struct = dict(values)
    content = wanted.pop("content", None)
    if isinstance(content, bytes):
        wanted["digest"] = digest_of(content)
        _put_file(tx, wanted["digest"], 0, content, True, most)
    digest = str(wanted.get("digest", ""))
    _keep(tx, "files", digest)
    row = tx.one("SELECT size, complete FROM files WHERE digest = ?", (digest,))
    if row is None or not row["complete"]:
        raise _invalid("definition.attachments: content, or the digest of a file that is here")
    wanted["size"] = row["size"]
    return wanted


def read_definition(tx: Transaction, given: Struct, limits: LimitsConfig) -> JobDefinition:
    """
    A definition as a caller wrote it: names become ids, contents become digests.

    :raises ScireFault: 1040, 102x.
    """
    values = _plain_times(given)
    execute = _struct(values, "execute")
    script = execute.get("script")
    if isinstance(script, str) and not is_digest(script) and script:
        script = script.encode()
    if isinstance(script, bytes):
        execute["script"] = _keep_script(tx, script, limits.max_script)
    elif script and not _keep(tx, "scripts", str(script)):
        raise _invalid("definition.execute.script: no script with this digest is here")
    targets = _struct(values, "targets")
    for name, kind in _TARGETS.items():
        refs = targets.get(name, [])
        if not isinstance(refs, list):
            raise _invalid(f"definition.targets.{name}: expected an array")
        targets[name] = sorted({find(tx, kind, ref)["id"] for ref in refs})
    attachments = values.get("attachments", [])
    if not isinstance(attachments, list):
        raise _invalid("definition.attachments: expected an array")
    return parse_definition(
        {
            **values,
            "execute": execute,
            "targets": targets,
            "attachments": [_attachment(tx, item, limits.max_file) for item in attachments],
        }
    )


def _check_rights(
    server: JobServer, tx: Transaction, user: User, definition: JobDefinition, permission: str
) -> list[Struct]:
    """The targets now, each with whether the user may do this there."""
    directory = server.rights.directory(tx)
    clients = jobs.target_clients(tx, definition.targets, directory)
    if len(clients) > server.config.limits.max_runs_per_job:
        text = f"more than {server.config.limits.max_runs_per_job} clients at a time"
        raise ScireFault(FaultCode.TOO_LARGE, text)
    found = []
    for client in clients:
        decisions = [
            (name, directory.decide(user.id, name, client, tx.now))
            for name in (permission, definition.permission)
        ]
        bad = [(name, decision) for name, decision in decisions if not decision.allowed]
        reason = "; ".join(
            f"{name}: {decision.reason}"
            + (f" (rules {', '.join(str(r.id) for r in decision.rules)})" if decision.rules else "")
            for name, decision in bad
        )
        found.append({"client": client, "allowed": not bad, "reason": reason})
    if not found:
        need(server, tx, user, permission)
    return found


def _permitted(
    server: JobServer,
    tx: Transaction,
    user: User,
    definition: JobDefinition,
    permission: str,
    partial: bool,
    values: Struct,
) -> JobDefinition:
    """
    The definition, without the targets that the user may not have if he allows that.

    :raises ScireFault: 1010.
    """
    denied = [
        t for t in _check_rights(server, tx, user, definition, permission) if not t["allowed"]
    ]
    if not denied:
        return definition
    if not partial:
        first = denied[0]
        text = f"{len(denied)} targets are not permitted, client {first['client']}: "
        raise ScireFault(FaultCode.PERMISSION_DENIED, text + first["reason"])
    without = sorted({*definition.targets.not_clients, *(t["client"] for t in denied)})
    values = plain_values(definition)
    values["targets"]["not_clients"] = without
    return parse_definition(values)


# -- calls -------------------------------------------------------------------------------------


@method("admin.job_create", "struct", "struct", "string", optional=1)
def job_create(
    server: JobServer, tx: Transaction, caller: Anybody, definition: Struct, key: str = ""
) -> Struct:
    """
    Define a job; what is due at once becomes runs at once.

    ``runs`` counts those of the first slice; of a larger fleet the leader makes the rest.
    """
    user = user_of(caller)

    def make() -> Struct:
        given = dict(definition)
        partial = member(given, "allow_partial", bool, False)
        given.pop("allow_partial", None)
        wanted = read_definition(tx, given, server.config.limits)
        wanted = _permitted(server, tx, user, wanted, "job.create", partial, given)
        job_id = jobs.store(tx, wanted, user.id)
        trace(tx, user, "job_create", f"job:{job_id}", "", plain_values(wanted))
        jobs.expand(tx, job_id, server.jobs, server.rights.directory(tx), server.identity.who)
        row = tx.one("SELECT count(*) AS n FROM runs WHERE job_id = ?", (job_id,))
        return {"job": job_id, "runs": row["n"] if row is not None else 0}

    return once(tx, user, key, definition, make)


def _shown(row: Row) -> Struct:
    return {
        "job": row["id"],
        "name": row["name"],
        "state": row["state"],
        "user": row["user_name"],
        "created": when(row["created_at"]),
        "changed": when(row["changed_at"]),
        "next": when(row["next_occurrence"]),
        "last": when(row["last_occurrence"]),
    }


_JOBS = "SELECT j.*, u.name AS user_name FROM jobs j JOIN users u ON u.id = j.user_id"


def _sees(server: JobServer, tx: Transaction, user: User, job: Row) -> bool:
    if job["user_id"] == user.id or allowed(server, tx, user, "job.view"):
        return True
    definition = server.jobs.get(tx, job["id"], job["version"]).definition
    clients = jobs.target_clients(tx, definition.targets, server.rights.directory(tx))
    return any(allowed(server, tx, user, "job.view", client) for client in clients)


def _job(tx: Transaction, ref: Ref) -> Row:
    found = find(tx, "job", ref)
    row = tx.one(_JOBS + " WHERE j.id = ?", (found["id"],))
    assert row is not None
    return row


def _visible(server: JobServer, tx: Transaction, caller: Anybody, ref: Ref) -> Row:
    user, row = user_of(caller), _job(tx, ref)
    if not _sees(server, tx, user, row):
        raise ScireFault(FaultCode.PERMISSION_DENIED, f"job.view: job {row['id']}")
    return row


@method("admin.job_get", "struct", "ref", lane=Lane.READ)
def job_get(server: JobServer, tx: Transaction, caller: Anybody, job: Ref) -> Struct:
    """A job, its definition, and its runs by state."""
    row = _visible(server, tx, caller, job)
    counts = tx.all(
        "SELECT state, count(*) AS n FROM runs WHERE job_id = ? GROUP BY state", (row["id"],)
    )
    return {
        **_shown(row),
        "definition": _wire_definition(row["definition"]),
        "runs": {count["state"]: count["n"] for count in counts},
    }


def _wire_values(value: Any) -> Any:
    """A stored definition for the wire: what is None is left out, times are times."""
    if isinstance(value, dict):
        return {k: _wire_values(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_wire_values(v) for v in value]
    return value


def _wire_definition(text: str) -> Struct:
    values: Struct = _wire_values(json.loads(text))
    for struct, name in _times(values):
        if struct is not None and name in struct:
            struct[name] = wire.time_value(struct[name])
    return values


@method("admin.job_list", "struct", "struct", optional=1, lane=Lane.READ)
def job_list(
    server: JobServer, tx: Transaction, caller: Anybody, choice: Struct | None = None
) -> Struct:
    """Jobs; filters state, user, name."""
    user, choice = user_of(caller), choice or {}
    owner = member(choice, "user", (int, str), None)
    listed = page(
        server,
        tx,
        _JOBS,
        [
            ("j.state = ?", member(choice, "state", str, None)),
            ("j.user_id = ?", find(tx, "user", owner)["id"] if owner is not None else None),
            ("j.name = ?", member(choice, "name", str, None)),
            ("j.state <> ?", None if "state" in choice else "deleted"),
        ],
        choice,
        lambda row: {**_shown(row), "visible": _sees(server, tx, user, row)},
        key="j.id",
    )
    listed["items"] = [item for item in listed["items"] if item.pop("visible")]
    return listed


def _changeable(
    server: JobServer, tx: Transaction, caller: Anybody, ref: Ref, permission: str
) -> tuple[User, Row]:
    """The user and the job, on all of whose targets he has *permission*."""
    user = user_of(caller)
    row = _job(tx, ref)
    definition = server.jobs.get(tx, row["id"], row["version"]).definition
    clients = jobs.target_clients(tx, definition.targets, server.rights.directory(tx))
    for client in clients:
        need(server, tx, user, permission, client)
    if not clients and row["user_id"] != user.id:
        need(server, tx, user, permission)
    return user, row


@method("admin.job_change", "struct", "ref", "struct")
def job_change(
    server: JobServer, tx: Transaction, caller: Anybody, job: Ref, definition: Struct
) -> Struct:
    """Give a job another definition; the caller takes it over."""
    user, row = _changeable(server, tx, caller, job, "job.change")
    given = dict(definition)
    partial = member(given, "allow_partial", bool, False)
    given.pop("allow_partial", None)
    wanted = read_definition(tx, given, server.config.limits)
    wanted = _permitted(server, tx, user, wanted, "job.create", partial, given)
    trace(tx, user, "job_change", f"job:{row['id']}", row["definition"], plain_values(wanted))
    jobs.change(tx, row, wanted, user.id)
    jobs.expand(tx, row["id"], server.jobs, server.rights.directory(tx), server.identity.who)
    return {"job": row["id"]}


@method("admin.job_delete", "boolean", "ref")
def job_delete(server: JobServer, tx: Transaction, caller: Anybody, job: Ref) -> bool:
    """Withdraw a job's runs, and make no more of them."""
    user, row = _changeable(server, tx, caller, job, "job.change")
    waiting = jobs.dependents(tx, row["id"])
    if tx.one(
        "SELECT id FROM jobs WHERE id IN (SELECT job_id FROM job_dependencies WHERE on_job_id = ?)"
        " AND state = 'active' LIMIT 1",
        (row["id"],),
    ):
        raise ScireFault(FaultCode.IN_USE, f"jobs {waiting} wait for job {row['id']}")
    _cancel_runs(tx, user, row["id"], False)
    tx.run(
        "UPDATE jobs SET state = 'deleted', next_occurrence = NULL, occurrences = '[]',"
        " version = ? WHERE id = ?",
        (jobs.new_version(), row["id"]),
    )
    trace(tx, user, "job_delete", f"job:{row['id']}")
    return True


@method("admin.job_pause", "boolean", "ref")
def job_pause(server: JobServer, tx: Transaction, caller: Anybody, job: Ref) -> bool:
    """Make no more runs of a job and hand none out."""
    user, row = _changeable(server, tx, caller, job, "job.change")
    tx.run("UPDATE jobs SET state = 'paused' WHERE id = ?", (row["id"],))
    trace(tx, user, "job_pause", f"job:{row['id']}", row["state"])
    return True


@method("admin.job_resume", "boolean", "ref")
def job_resume(server: JobServer, tx: Transaction, caller: Anybody, job: Ref) -> bool:
    """End the pause of a job."""
    user, row = _changeable(server, tx, caller, job, "job.change")
    if row["state"] != "paused":
        raise ScireFault(FaultCode.TRANSITION, f"job {row['id']} is {row['state']}")
    tx.run("UPDATE jobs SET state = 'active' WHERE id = ?", (row["id"],))
    trace(tx, user, "job_resume", f"job:{row['id']}", row["state"])
    jobs.expand(tx, row["id"], server.jobs, server.rights.directory(tx), server.identity.who)
    for run in tx.all(
        "SELECT DISTINCT client_id FROM runs WHERE job_id = ? AND state = 'pending'", (row["id"],)
    ):
        tx.notify("work", run["client_id"])
    tx.notify("schedule", row["id"])
    return True


@method("admin.job_push", "int", "ref")
def job_push(server: JobServer, tx: Transaction, caller: Anybody, job: Ref) -> int:
    """Tell the daemon-mode clients for which a job waits to ask now; how many."""
    user, row = _changeable(server, tx, caller, job, "job.push")
    rows = tx.all(
        "SELECT DISTINCT r.client_id FROM runs r JOIN clients c ON c.id = r.client_id"
        " WHERE r.job_id = ? AND r.state = 'pending' AND c.callback_port > 0",
        (row["id"],),
    )
    for found in rows:
        tx.event("push_wanted", client=found["client_id"])
    trace(tx, user, "job_push", f"job:{row['id']}", "", f"{len(rows)} clients")
    return len(rows)


@method("admin.job_retry", "struct", "int", "string", optional=1)
def job_retry(
    server: JobServer, tx: Transaction, caller: Anybody, run: int, key: str = ""
) -> Struct:
    """Make a new run like one that has ended."""
    old = locked(tx, run)
    if old["job_state"] == "deleted":
        raise ScireFault(FaultCode.UNKNOWN_JOB, f"job {old['job_id']} is deleted")
    need(server, tx, caller, "job.create", old["client_id"])
    job = read_job(tx, old["job_id"])
    user = need(server, tx, caller, job.definition.permission, old["client_id"])

    def make() -> Struct:
        if RunState(old["state"]) not in ENDS:
            raise ScireFault(FaultCode.TRANSITION, f"run {run} is {old['state']}")
        why = f"again, after run {run}"
        made = jobs.make_run(tx, job, old["client_id"], tx.now, user.who, why)
        if made is None:
            raise ScireFault(FaultCode.CONFLICT, "there is such a run already")
        trace(tx, user, "job_retry", f"run:{run}", "", f"run:{made}")
        return {"run": made}

    return once(tx, user, key, {"job_retry": run}, make)


def _cancel_runs(tx: Transaction, user: User, job_id: int, force: bool) -> int:
    states = sorted(OPEN)
    rows = tx.all(
        "SELECT r.*, j.version AS job_version, j.watched, j.user_id, j.state AS job_state"
        " FROM runs r JOIN jobs j ON j.id = r.job_id WHERE r.job_id = ?"
        f" AND r.state IN ({', '.join('?' * len(states))}) ORDER BY r.id /*pg FOR UPDATE OF r*/",
        (job_id, *states),
    )
    for row in rows:
        cancel(tx, as_run(row), user.who, force)
    return len(rows)


@method("admin.job_cancel", "int", "struct", "boolean", optional=1)
def job_cancel(
    server: JobServer, tx: Transaction, caller: Anybody, target: Struct, force: bool = False
) -> int:
    """Withdraw {run: id}, or all runs of {job: id}; how many that were."""
    job, run_id = member(target, "job", (int, str), None), member(target, "run", int, None)
    if (job is None) == (run_id is None):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "a target is {job: id} or {run: id}")
    if run_id is not None:
        run = locked(tx, run_id)
        user = need(server, tx, caller, "job.cancel", run["client_id"])
        if RunState(run["state"]) in ENDS:
            raise ScireFault(FaultCode.TRANSITION, f"run {run_id} is {run['state']}")
        trace(tx, user, "job_cancel", f"run:{run_id}", run["state"])
        cancel(tx, run, user.who, force)
        return 1
    assert job is not None
    user, row = _changeable(server, tx, caller, job, "job.cancel")
    trace(tx, user, "job_cancel", f"job:{row['id']}")
    return _cancel_runs(tx, user, row["id"], force)


@method("admin.job_preview", "struct", "struct")
def job_preview(server: JobServer, tx: Transaction, caller: Anybody, definition: Struct) -> Struct:
    """What a definition would do: its targets, the rights on each, its next dates."""
    user = user_of(caller)
    given = dict(definition)
    given.pop("allow_partial", None)
    wanted = read_definition(tx, given, server.config.limits)
    names = {
        row["id"]: row["name"]
        for row in tx.all("SELECT id, name FROM clients WHERE state IN ('active', 'disabled')")
    }
    targets = _check_rights(server, tx, user, wanted, "job.create")
    return {
        "targets": [{**target, "name": names.get(target["client"], "")} for target in targets],
        "dates": [wire.time_value(t) for t in jobs.dates(wanted, tx.now, _PREVIEWED)],
    }


# -- attachments -------------------------------------------------------------------------------


def _put_file(tx: Transaction, digest: str, offset: int, data: bytes, last: bool, most: int) -> int:
    row = tx.one("SELECT size, complete FROM files WHERE digest = ?", (digest,))
    if row is not None and row["complete"]:
        # Stored anew as far as its time without a job goes.
        tx.run("UPDATE files SET created_at = ? WHERE digest = ?", (tx.now, digest))
        return int(row["size"])
    if row is None:
        tx.run(
            "INSERT INTO files (digest, size, complete, created_at) VALUES (?, 0, 0, ?)",
            (digest, tx.now),
        )
    size = 0 if row is None else int(row["size"])
    if offset != size:
        return size
    if size + len(data) > most:
        raise ScireFault(FaultCode.TOO_LARGE, f"a file is at most {most} octets")
    # Pieces of one size, so that a piece of an answer touches two of them at most.
    for start in range(0, len(data), MAX_FILE_PIECE):
        tx.run(
            "INSERT INTO file_pieces (digest, start, content) VALUES (?, ?, ?)",
            (digest, size + start, data[start : start + MAX_FILE_PIECE]),
        )
    size += len(data)
    if last:
        found = sha256()
        for piece in tx.all(
            "SELECT start FROM file_pieces WHERE digest = ? ORDER BY start", (digest,)
        ):
            content = tx.one(
                "SELECT content FROM file_pieces WHERE digest = ? AND start = ?",
                (digest, piece["start"]),
            )
            assert content is not None
            found.update(content["content"])
        if f"sha256:{found.hexdigest()}" != digest:
            raise ScireFault(FaultCode.DIGEST, "the file does not have this digest")
    tx.run("UPDATE files SET size = ?, complete = ? WHERE digest = ?", (size, int(last), digest))
    return size


@method("admin.file_put", "int", "string", "int", "base64", "boolean")
def file_put(
    server: JobServer,
    tx: Transaction,
    caller: Anybody,
    digest: str,
    offset: int,
    data: bytes,
    last: bool,
) -> int:
    """A piece of a file to attach to jobs, in order; the offset of the next one."""
    user_of(caller)
    if not is_digest(digest):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "a digest is sha256:<64 digits>")
    return _put_file(tx, digest, offset, data, last, server.config.limits.max_file)
