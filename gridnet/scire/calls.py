"""The calls of clients on the work listener (docs/protocols/scire.rst, Client calls)."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.threads import deferToThreadPool

from gridnet.scire import reports, runs, wire
from gridnet.scire.enrol import renew_certificate
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import CERTIFICATE, Client, User, note_use, wants_note
from gridnet.scire.machine import Held, Reported
from gridnet.scire.methods import Lane, member, method
from gridnet.scire.reports import Kept
from gridnet.scire.statusfile import StatusFile, format_status, parse_status
from gridnet.scire.store.database import InSteps, Parameters, Steps, Transaction, alone

if TYPE_CHECKING:
    from gridnet.scire.rpc import Call
    from gridnet.scire.server import JobServer

PROTOCOL = "1.0"
MAX_FILE_PIECE = 1048576  #: octets of one ``get_file``
_LARGE_FILE = 65536  #: octets from which a status file is read in a thread
_ONLY_CLIENTS = "only clients may call this"
_MARKS = {"downloaded": "received", "finished": "succeeded"}


def _client(caller: Client | User | None) -> Client:
    if not isinstance(caller, Client):
        raise ScireFault(FaultCode.PERMISSION_DENIED, _ONLY_CLIENTS)
    return caller


def _run_states(pair: tuple[int, str]) -> dict[str, Any]:
    return {"run": pair[0], "state": pair[1]}


@method("scire.ping", "struct", lane=Lane.FREE, slot=False)
def ping(server: JobServer, call: Call) -> dict[str, Any]:
    """Whether the server is there; asks no database."""
    return {
        "server": server.name,
        "time": wire.time_value(server.seconds()),
        "version": PROTOCOL,
    }


def _held(struct: dict[str, Any]) -> list[Held]:
    items = member(struct, "in_progress", list, [])
    if len(items) > reports.MAX_HELD:
        raise ScireFault(FaultCode.TOO_LARGE, f"in_progress is over {reports.MAX_HELD} entries")
    held = []
    for item in items:
        if not isinstance(item, dict):
            raise ScireFault(FaultCode.WRONG_PARAMETERS, "in_progress is an array of structs")
        held.append(
            Held(
                member(item, "run", int, 0),
                member(item, "state", str, ""),
                member(item, "seq", int, 0),
            )
        )
    return held


@method("scire.hello", "struct", "struct")
def hello(
    server: JobServer, tx: Transaction, caller: Client | User | None, struct: dict[str, Any]
) -> dict[str, Any] | Kept:
    """Begin a conversation: who the client is, what it holds; what it should know and do."""
    client = _client(caller)
    protocol = member(struct, "protocol", str, PROTOCOL)
    if protocol.partition(".")[0] != PROTOCOL.partition(".")[0]:
        text = f"protocol {protocol[:20]} is not {PROTOCOL}"
        raise ScireFault(FaultCode.UNSUPPORTED_VERSION, text)
    install_id = member(struct, "install_id", str, "")
    port = member(struct, "callback_port", int, 0)
    for name in ("program", "version", "mode", "hostname", "boot_id"):
        member(struct, name, str, "")
    member(struct, "capabilities", list, [])
    if not 0 < len(install_id) <= 200 or not 0 <= port < 65536:
        text = "install_id is a text of 1..200 characters, callback_port below 65536"
        raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
    held = _held(struct)
    clash = reports.judge_installation(tx, client, install_id)
    if clash is not None:
        return clash
    note_use(tx, client)
    reports.note_hello(tx, client, struct, client.address)
    control = reports.reconcile(tx, client, held, server.jobs, server.identity.who)
    life = client.not_after - client.issued_at
    return {
        "client": client.id,
        "name": client.name,
        "server": server.name,
        "time": wire.time_value(tx.now),
        "poll_interval": server.poll_interval,
        "lease": server.config.lease,
        "max_output": server.max_output,
        "servers": server.servers_for_clients(tx),
        "control": control,
        "renew_after": wire.time_value(client.issued_at + life * 2 / 3),
        "version": PROTOCOL,
    }


@method("scire.get_jobs", "array", lane=Lane.READ)
@method("get_jobs", "array", lane=Lane.READ)
def get_jobs(
    server: JobServer, tx: Transaction, caller: Client | User | None
) -> list[dict[str, Any]]:
    """What waits for this client; hands nothing out."""
    client = _client(caller)
    return [
        {
            "run": row["id"],
            "job": row["job_id"],
            "name": row["name"],
            "priority": row["priority"],
            "size": len(row["definition"]),
            "due": wire.time_value(row["due"]),
            "attempt": row["attempt"],
        }
        for row in runs.waiting_for(tx, client.id)
    ]


@method("scire.next_job", "struct", "string", lane=Lane.FREE)
async def next_job(server: JobServer, call: Call, receipt: str) -> dict[str, Any]:
    """Acknowledge a receipt ("" for none), and hand out the next run that waits."""
    if not receipt and not await server.database.read(InSteps(partial(_look, server, call))):
        return server.idle_answer()

    def steps(tx: Transaction) -> Steps[runs.Delivery | None]:
        reads = _caller_reads(call)
        # Who it was the last time: then all that is read can travel together.
        expected = server.known_clients.get(call.digest, 0)
        yield [*reads, *runs.next_reads(expected, receipt, tx.now)]
        client = _authenticated(server, tx, call)
        handing = server.dispatch.acknowledge_and_next(
            tx, client, server.identity, receipt, read=expected == client.id
        )
        delivery = yield from handing
        note_use(tx, client)
        return delivery

    return await _deliver(server, await server.database.write(InSteps(steps)))


def _authenticated(server: JobServer, tx: Transaction, call: Call) -> Client:
    """The client that calls."""
    client = _client(call.listener.authenticate(tx, call))
    server.remember(call.digest, client.id)
    return client


def _caller_reads(call: Call) -> list[tuple[str, Parameters]]:
    """What authenticating a client reads."""
    return [(CERTIFICATE, (call.digest,))] if call.digest else []


def _look(server: JobServer, call: Call, tx: Transaction) -> Steps[bool]:
    """Whether a poll has to write anything."""
    expected = server.known_clients.get(call.digest, 0)
    reads = _caller_reads(call)
    yield [*reads, (runs.ANYTHING, (expected, tx.now))] if expected else reads
    client = _authenticated(server, tx, call)
    if expected != client.id:
        yield [(runs.ANYTHING, (client.id, tx.now))]
    return runs.anything(tx, client.id) or wants_note(client, tx.now)


async def _deliver(server: JobServer, delivery: runs.Delivery | None) -> dict[str, Any]:
    if delivery is None:
        return server.idle_answer()
    return delivery.as_struct(await server.signature(delivery.file))


@method("scire.get_job", "struct", "int", lane=Lane.FREE)
@method("get_job", "struct", "int", lane=Lane.FREE)
async def get_job(server: JobServer, call: Call, run: int) -> dict[str, Any]:
    """Hand out one particular run."""

    def operation(tx: Transaction) -> runs.Delivery | Kept:
        client = _client(call.listener.authenticate(tx, call))
        note_use(tx, client)
        delivery = server.dispatch.this_run(tx, client, run, server.identity)
        # It has ended just now, and that is kept.
        return delivery or Kept(ScireFault(FaultCode.RUN_WITHDRAWN, f"run {run} has ended"))

    result = await server.database.write(operation)
    if isinstance(result, Kept):
        raise result.fault
    return await _deliver(server, result)


@method("scire.job_received", "struct", "string")
def job_received(
    server: JobServer, tx: Transaction, caller: Client | User | None, receipt: str
) -> dict[str, Any]:
    """Acknowledge a delivery without asking for more."""
    acknowledging = runs.acknowledge(tx, _client(caller), receipt, server.jobs)
    run, state, duplicate = alone(tx, acknowledging)
    return {"run": run, "state": state, "duplicate": duplicate}


@method("scire.extend", "int", "string", "int")
def extend(
    server: JobServer, tx: Transaction, caller: Client | User | None, receipt: str, seconds: int
) -> int:
    """More time to acknowledge a delivery, as for large attachments; the seconds granted."""
    return runs.extend(tx, _client(caller), receipt, seconds)


@method("scire.refuse_job", "struct", "string", "string", "string")
def refuse_job(
    server: JobServer,
    tx: Transaction,
    caller: Client | User | None,
    receipt: str,
    reason: str,
    text: str,
) -> dict[str, Any]:
    """The client will not do it: unsupported, digest, policy or space."""
    return _run_states(runs.refuse(tx, _client(caller), receipt, reason, text))


@method("scire.get_file", "base64", "string", "int", "int", lane=Lane.READ)
def get_file(
    server: JobServer,
    tx: Transaction,
    caller: Client | User | None,
    digest: str,
    offset: int,
    length: int,
) -> bytes:
    """A piece of an attachment of a run that was delivered to this client."""
    client = _client(caller)
    if offset < 0 or not 0 < length <= MAX_FILE_PIECE:
        text = f"from 0 on, at most {MAX_FILE_PIECE} octets"
        raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
    known = tx.all(
        "SELECT DISTINCT j.definition FROM runs r JOIN jobs j ON j.id = r.job_id"
        " WHERE r.client_id = ? AND r.state IN ('sent', 'received', 'running')",
        (client.id,),
    )
    if not any(
        attachment["digest"] == digest
        for row in known
        for attachment in json.loads(row["definition"])["attachments"]
    ):
        raise ScireFault(FaultCode.PERMISSION_DENIED, "no file of a run that this client has")
    return server.file_piece(tx, digest, offset, length)


@method("scire.job_status", "struct", "base64", lane=Lane.FREE)
async def job_status(server: JobServer, call: Call, file: bytes) -> dict[str, Any] | Kept:
    """Record a status file, once."""
    if len(file) < _LARGE_FILE:
        status = parse_status(file)
    else:
        pool = server.reactor.getThreadPool()
        status = await deferToThreadPool(server.reactor, pool, parse_status, file)

    def steps(tx: Transaction) -> Steps[dict[str, Any] | Kept]:
        yield [*_caller_reads(call), (reports.REPORTED, (status.seq, status.run))]
        client = _authenticated(server, tx, call)
        recording = reports.record_report(tx, client, status, file, server.jobs, read=False)
        answer = yield from recording
        return answer

    return await server.database.write(InSteps(steps))


@method("scire.put_output", "int", "int", "string", "int", "base64", "boolean")
def put_output(
    server: JobServer,
    tx: Transaction,
    caller: Client | User | None,
    run: int,
    stream: str,
    offset: int,
    data: bytes,
    last: bool,
) -> int:
    """A piece of output that is too large for the status file; the offset of the next one."""
    most = server.config.limits.max_stream
    return reports.put_output(tx, _client(caller), run, stream, offset, data, last, most)


@method("scire.wait", "struct", "int", lane=Lane.FREE, slot=False)
async def wait(server: JobServer, call: Call, seconds: int) -> dict[str, Any]:
    """Wait until there is work, or something else to do; at most so many seconds."""

    def look(tx: Transaction) -> tuple[int, bool, list[tuple[int, int]]]:
        client = _client(call.listener.authenticate(tx, call))
        wishes = tx.all(
            "SELECT id, cancel_wanted FROM runs WHERE client_id = ?"
            " AND state IN ('received', 'running') AND cancel_wanted > 0",
            (client.id,),
        )
        work = runs.anything(tx, client.id)
        return client.id, work, [(row["id"], row["cancel_wanted"]) for row in wishes]

    until = server.seconds() + max(0, min(seconds, server.config.limits.wait_seconds))
    client_id, work, wishes = await server.database.read(look)
    while True:
        news = server.waits.news(client_id, frozenset(wishes))
        left = until - server.seconds()
        if work or news or left <= 0 or server.state != "serving":
            control = [reports.cancel_wish(run, wanted) for run, wanted in wishes]
            return {"work": work, "control": control}
        # Registered before the rows are looked at, so that nothing falls in between.
        woken = server.waits.wait(client_id, left)
        try:
            client_id, work, wishes = await server.database.read(look)
        except ScireFault:
            server.waits.wake(client_id)
            raise
        if work or not frozenset(wishes) <= server.waits.told(client_id):
            server.waits.wake(client_id)
        await woken
        client_id, work, wishes = await server.database.read(look)


@method("scire.inventory", "boolean", "struct")
def inventory(
    server: JobServer, tx: Transaction, caller: Client | User | None, facts: dict[str, Any]
) -> bool:
    """Replace what is known of the machine."""
    client = _client(caller)
    try:
        text = json.dumps(facts, default=_as_text)
    except (TypeError, ValueError):
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "facts that cannot be kept") from None
    most = server.config.limits.max_inventory
    if len(text) > most:
        raise ScireFault(FaultCode.TOO_LARGE, f"an inventory is at most {most} octets as JSON")
    tx.run(
        "INSERT INTO inventory (client_id, facts, at) VALUES (?, ?, ?) ON CONFLICT (client_id)"
        " DO UPDATE SET facts = excluded.facts, at = excluded.at",
        (client.id, text, tx.now),
    )
    return True


def _as_text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@method("scire.renew", "struct", "base64", lane=Lane.FREE)
async def renew(server: JobServer, call: Call, csr: bytes) -> dict[str, Any]:
    """The next certificate; the one in use ends with the first use of that one."""
    return await renew_certificate(server, call, csr)


@method("scire.bye", "boolean")
def bye(server: JobServer, tx: Transaction, caller: Client | User | None) -> bool:
    """End the conversation."""
    note_use(tx, _client(caller))
    return True


# -- aliases -----------------------------------------------------------------------------------


def _next_report(
    server: JobServer,
    tx: Transaction,
    caller: Client | User | None,
    run_id: int,
    state: str,
    exit_code: int | None,
    text: str,
) -> dict[str, Any] | Kept:
    client = _client(caller)
    try:
        reported = Reported(_MARKS.get(state, state))
    except ValueError:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"no state {state[:40]!r}") from None
    run = runs.owned(tx, run_id, client)
    if run["attempt"] == 0:
        raise ScireFault(FaultCode.TRANSITION, f"run {run_id} was never sent")
    status = StatusFile(
        run=run_id,
        attempt=run["attempt"],
        seq=run["seq"] + 1,
        state=reported,
        time=tx.now,
        exit_code=exit_code,
        message=text[:4000],
    )
    recording = reports.record_report(tx, client, status, format_status(status), server.jobs)
    return alone(tx, recording)


@method("mark_job_as", "struct", "int", "string")
def mark_job_as(
    server: JobServer, tx: Transaction, caller: Client | User | None, run: int, state: str
) -> dict[str, Any] | Kept:
    """A status report of the next free number."""
    return _next_report(server, tx, caller, run, state, None, "")


@method("job_return", "struct", "int", "int", "string")
def job_return(
    server: JobServer, tx: Transaction, caller: Client | User | None, run: int, code: int, text: str
) -> dict[str, Any] | Kept:
    """The run has ended: succeeded for code 0, else failed."""
    if not -255 <= code <= 255:
        raise ScireFault(FaultCode.WRONG_PARAMETERS, "a code is one of -255..255")
    state = "succeeded" if code == 0 else "failed"
    return _next_report(server, tx, caller, run, state, code, text)
