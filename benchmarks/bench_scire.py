"""
The job server: polls with nothing to do, and full cycles of fetch, acknowledge and report.

The peers are the limits of what it stands on: handshakes of ``openssl s_time`` against ``openssl
s_server`` for polls on new connections, and for cycles ``pgbench`` running the claim (the SELECT
... FOR UPDATE SKIP LOCKED and the UPDATE, taken from the server's own code; and the same with the
two rows that the server writes in that transaction) on the same PostgreSQL.
A figure "per core" is divided by the processor seconds that the server process took, and one "a
processor second" by those of everything that took part but the clients, so that they do not
depend on who else uses the machine.  Words on the command line choose figures:
``polls``, ``connections``, ``sqlite``, ``postgresql``.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, Figure, Options, peer, running, scratch, wait_for_port
from gridnet.scire import runs
from gridnet.scire.store.database import Transaction
from gridnet.scire.store.opening import open_database
from gridnet.scire.store.sets import inserting
from tests.ports import free_port
from tests.scire.databases import PostgresServer, postgres_binaries
from tests.scire.processes import ServerProcess

NAME = "scire"
CLIENTS = 16
_WITHOUT_LIMITS = {
    "calls_per_minute": 100_000_000,
    "enrol_calls_per_minute": 100_000_000,
    "handshakes_per_second": 100_000.0,
}
_TICKS = os.sysconf("SC_CLK_TCK")


def _filled(sql: str, *values: str) -> str:
    """A statement of the server, as PostgreSQL gets it, with *values* for its parameters."""
    pieces = sql.replace("/*pg ", "").replace("*/", "").split("?")
    assert len(pieces) == len(values) + 1, sql
    return "".join(f"{piece}{value}" for piece, value in zip(pieces, (*values, ""), strict=True))


#: The statements with which the server hands a run out, in the form for one call.  What it puts in
#: from Python (who asks, a new receipt, the time) is there before the transaction begins.  The run
#: goes to its end at once, as nobody reports it: the indexes of open runs stay as small as the
#: server keeps them, and the claim as fast.
_SELECT = (
    "\\set client random(1, {clients})\n"
    "\\set receipt random(1, 4000000000000000000)\n"
    "BEGIN;\n"
    + _filled(runs.CANDIDATES, "''", ":client", "2e9")
    + "\n\\gset run_\n"
    + _filled(
        runs.SEND.replace("'sent'", "'succeeded'"),
        *(":run_attempt + 1", ":receipt::text", "2e9", "1", "1", "2e9"),
        *(":run_id", ":run_state::text", ":run_attempt"),
    )
    + ";\n"
)
_NOTED = (
    _filled(
        runs.DELIVER,
        *(
            ":receipt::text",
            ":run_id",
            ":client",
            ":run_attempt + 1",
            ":run_retry",
            "1",
            "1",
            "2e9",
        ),
    )
    + ";\n"
    + _filled(
        inserting(runs.HISTORY, 8),
        *(":run_id", "'pending'", "'sent'", "'server a'", "2e9", ":run_attempt + 1", "0", "''"),
    )
    + ";\n"
)
#: Database connections that the server has.
_POOL = 3
#: What pgbench runs, and on how many connections.
_CLAIMS = {
    f"SELECT and UPDATE, {_POOL} connections as the server has": (_SELECT + "COMMIT;\n", _POOL),
    f"with its delivery and history rows, {_POOL} connections": (
        _SELECT + _NOTED + "COMMIT;\n",
        _POOL,
    ),
    f"SELECT and UPDATE, {CLIENTS} connections": (_SELECT + "COMMIT;\n", CLIENTS),
}


def _times(pid: int) -> tuple[int, float, float]:
    """Parent, and processor seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, ended = (int(fields[11]) + int(fields[12])), (int(fields[13]) + int(fields[14]))
    return int(fields[1]), own / _TICKS, ended / _TICKS


def processor_seconds(pid: int) -> float:
    """What a process has taken so far, all its threads together, and its children."""
    _, own, ended = _times(pid)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent, of_child, _ = _times(int(entry.name))
            except OSError:
                continue
            if parent == pid:
                own += of_child
    return own + ended


@contextmanager
def server(database: tuple[str, ...], **keys: Any) -> Iterator[tuple[ServerProcess, list[Path]]]:
    """A server with :data:`CLIENTS` clients that have enrolled; their directories."""
    with scratch() as directory:
        one = ServerProcess(directory / "server", database, limits=_WITHOUT_LIMITS, **keys)
        try:
            one.start()
            machines = [one.machine(f"c{n}.example.org") for n in range(CLIENTS)]
            yield one, [machine.key_file.parent for machine in machines]
        finally:
            one.kill()


def load(what: str, one: ServerProcess, seconds: float, clients: list[Path]) -> dict[str, float]:
    """What the clients got done, and what it cost the server."""
    assert one.process is not None
    before = processor_seconds(one.process.pid)
    command = [sys.executable, "-m", "benchmarks.scire_load", what, str(one.work), str(one.ca)]
    done = subprocess.run(
        [*command, str(seconds), *map(str, clients)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    found["processor"] = processor_seconds(one.process.pid) - before
    return found


def make_runs(database: tuple[str, ...], directory: Path, one: ServerProcess, each: int) -> None:
    """Give every client *each* runs that are due."""
    with one.root() as root:
        root.admin.job_create(
            {
                "name": "bench",
                "targets": {"all": True},
                "execute": {"script": b"exit 0\n" * 20, "user": "nobody"},
            }
        )

    def more(tx: Transaction) -> None:
        row = tx.one("SELECT max(id) AS id FROM jobs")
        assert row is not None
        for number in range(1, each):
            tx.run(
                "INSERT INTO runs (job_id, client_id, occurrence, state, priority, due, ready_at,"
                " gated, created_at, changed_at) SELECT job_id, client_id, occurrence + ?, state,"
                " priority, due, ready_at, gated, created_at, changed_at FROM runs"
                " WHERE job_id = ? AND occurrence = (SELECT min(occurrence) FROM runs"
                " WHERE job_id = ?)",
                (number, row["id"], row["id"]),
            )

    opened = open_database(database, directory, 1, "bench")
    opened.run_now(more)
    # What a database that has had so many for a while knows of them.
    opened.run_now(lambda tx: tx.run("ANALYZE"))
    opened.close()


# -- the limits -----------------------------------------------------------------------------------


def handshakes(one: ServerProcess, client: Path, seconds: float) -> float | None:
    """Handshakes with both certificates a second: ``openssl s_time`` and ``openssl s_server``."""
    openssl = peer("openssl")
    if openssl is None:
        return None
    port, state = free_port(), one.state / "scire"
    command = [openssl, "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", "-no_ticket"]
    command += ["-cert", str(state / "server.pem"), "-key", str(state / "server.key")]
    command += ["-CAfile", str(one.ca), "-Verify", "1", "-verify_return_error"]
    with running(command):
        wait_for_port(port)
        done = subprocess.run(
            [openssl, "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-time",
             str(max(1, round(seconds))), "-cert", str(client / "cert.pem"), "-key",
             str(client / "key.pem"), "-CAfile", str(one.ca)],
            capture_output=True,
            text=True,
        )  # fmt: skip
    match = re.search(r"(\d+) connections in (\d+) real seconds", done.stdout)
    if match is None:
        raise RuntimeError(done.stdout + done.stderr)
    return int(match[1]) / int(match[2])


def claims(
    postgres: PostgresServer, dsn: str, text: str, connections: int, seconds: float
) -> tuple[float, float] | None:
    """Claims a second, and a processor second: pgbench with the script *text* on *dsn*."""
    pgbench = peer("pgbench")
    if pgbench is None:
        return None
    with scratch() as directory:
        script = directory / "claim.sql"
        script.write_text(text.format(clients=CLIENTS))
        before = processor_seconds(postgres.pid) + _of_children()
        done = subprocess.run(
            [pgbench, "-n", "-M", "prepared", "-c", str(connections), "-j", "2", "-T",
             str(max(1, round(seconds))), "-f", str(script), dsn],
            capture_output=True,
            text=True,
        )  # fmt: skip
    took = processor_seconds(postgres.pid) + _of_children() - before
    rate = re.search(r"tps = ([0-9.]+)", done.stdout)
    count = re.search(r"actually processed: (\d+)", done.stdout)
    if rate is None or count is None or done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return float(rate[1]), int(count[1]) / took


def _of_children() -> float:
    """Processor seconds of children of this process that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# -- the figures ----------------------------------------------------------------------------------


def _latencies(name: str, found: list[dict[str, float]]) -> Iterable[Figure]:
    for which in ("p50", "p99"):
        values = tuple(one[which] for one in found)
        yield Figure(NAME, f"{name}: {which}", "ms", values, higher_is_better=False)


def _rates(name: str, found: list[dict[str, float]], **peers: Any) -> Iterable[Figure]:
    rates = tuple(one["done"] / one["seconds"] for one in found)
    yield Figure(NAME, name, "1/s", rates, **peers)
    per_core = tuple(one["done"] / one["processor"] for one in found)
    yield Figure(NAME, f"{name}, per core of the server", "1/s", per_core)


def _polls(options: Options) -> Iterable[Figure]:
    with server(("scire/scire.db",)) as (one, clients):
        found = [load("polls", one, options.seconds, clients) for _ in range(options.runs)]
    yield from _rates("polls that find nothing, keep-alive", found)
    yield from _latencies("polls that find nothing, keep-alive", found)


def _connections(options: Options) -> Iterable[Figure]:
    found, limits = [], []
    with server(("scire/scire.db",)) as (one, clients):
        for _ in range(options.runs):
            found.append(load("connections", one, options.seconds, clients[:4]))
            limit = handshakes(one, clients[0], options.seconds)
            if limit is not None:
                limits.append(limit)
    name = "polls that find nothing, each on a new TLS connection"
    peers = {"peer": "openssl s_time, s_server", "peer_values": tuple(limits)} if limits else {}
    yield from _rates(name, found, **peers)
    yield from _latencies(name, found)


def _cycles_on_sqlite(options: Options) -> Iterable[Figure]:
    found = []
    for _ in range(options.runs):
        names = ("scire/scire.db",)
        with server(names) as (one, clients):
            make_runs(names, one.state, one, round(150 * options.seconds))
            found.append(load("cycles", one, options.seconds, clients))
    yield from _rates("cycles of fetch, acknowledge, report, SQLite", found)
    yield from _latencies("cycles of fetch, acknowledge, report, SQLite", found)


def _cycles_on_postgresql(options: Options) -> Iterable[Figure]:
    if postgres_binaries() is None:
        peer("initdb")
        return
    found: list[dict[str, float]] = []
    limits: dict[str, list[tuple[float, float]]] = {name: [] for name in _CLAIMS}
    for _ in range(options.runs):
        postgres = PostgresServer()
        try:
            dsn = postgres.create()
            with server((dsn,)) as (one, clients):
                make_runs((dsn,), one.state, one, round(3000 * options.seconds))
                postgres.execute("CHECKPOINT")
                before = processor_seconds(postgres.pid)
                found.append(load("cycles", one, options.seconds, clients))
                found[-1]["all"] = found[-1]["processor"] + processor_seconds(postgres.pid) - before
                one.stop()
                for name, (text, connections) in _CLAIMS.items():
                    limit = claims(postgres, dsn, text, connections, options.seconds)
                    if limit is not None:
                        limits[name].append(limit)
        finally:
            postgres.stop()
    name = "cycles of fetch, acknowledge, report, PostgreSQL"
    for claim, pairs in limits.items():
        rates = tuple(one["done"] / one["seconds"] for one in found)
        peer_name = f"pgbench: the claim, {claim}"
        yield Figure(NAME, name, "1/s", rates, peer_name, tuple(rate for rate, _ in pairs))
        costs = tuple(one["done"] / one["all"] for one in found)
        each = f"{name}, a processor second with PostgreSQL's"
        yield Figure(NAME, each, "1/s", costs, peer_name, tuple(cost for _, cost in pairs))
    yield from _rates(name, found)
    yield from _latencies(name, found)


_PARTS = {
    "polls": _polls,
    "connections": _connections,
    "sqlite": _cycles_on_sqlite,
    "postgresql": _cycles_on_postgresql,
}


def run(options: Options) -> Iterable[Figure]:
    """All figures, or those whose words are on the command line."""
    for word in options.arguments or _PARTS:
        yield from _PARTS[word](options)
