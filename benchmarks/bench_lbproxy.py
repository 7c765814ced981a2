"""
The LB proxy: durable events a second, small jobs a second, the event stream, growth of the store.

The peer of the event figures is SQLite itself: the very statements that the ledger issues for
the same events in groups of the same size, made beforehand and run with nothing else around
them.  Beside them stands what the disk does: syncs of one page a second.  Words on the command
line choose figures: ``disk``, ``events``, ``jobs``, ``stream``, ``growth``.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import (
    REPOSITORY,
    Figure,
    Options,
    free_port,
    running,
    scratch,
    wait_for_port,
)
from benchmarks.lbproxy_load import PLACEHOLDER, small_job, unique_parts
from gridnet.lbproxy import events, frames
from gridnet.lbproxy.client import connect_unix
from gridnet.lbproxy.ledger import Ledger, LedgerRules
from gridnet.lbproxy.store import StoreFile

NAME = "lbproxy"
EVENTS_OF_A_JOB = 10
#: Published for the L&B server of 2006, which stored such jobs.
PUBLISHED_JOBS = 14.7
FOLLOWERS, STREAMED = 1000, 200


@contextmanager
def service(directory: Path) -> Iterator[tuple[str, str, int]]:
    """A service of its own: store socket, serve socket, port of its status pages."""
    store, serve, port = str(directory / "store.sock"), str(directory / "serve.sock"), free_port()
    path = directory / "site.toml"
    path.write_text(
        f'[lbproxy]\nstore_socket = "{store}"\nserve_socket = "{serve}"\n'
        f'[status]\nlisten = "tcp:{port}:interface=127.0.0.1"\n'
    )
    command = [sys.executable, "-m", "twisted", "--log-level=warn", "gridnet"]
    with open(directory / "log", "wb") as log:
        with running([*command, "--config", path], cwd=directory, output=log) as process:
            deadline = time.monotonic() + 15
            while not os.path.exists(serve):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError((directory / "log").read_text())
                time.sleep(0.02)
            connect_unix(serve, deadline).close()
            wait_for_port(port)
            yield store, serve, port


def load(store: str, clients: int, seconds: float, *words: str) -> dict[str, float]:
    """What *clients* clients got done."""
    command = [sys.executable, "-m", "benchmarks.lbproxy_load", store, str(clients), str(seconds)]
    done = subprocess.run(
        [*command, *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


# -- the limits -----------------------------------------------------------------------------------


def syncs(directory: Path, seconds: float) -> float:
    """Appends of one page, each synced, a second."""
    number = os.open(directory / "pages", os.O_CREAT | os.O_WRONLY)
    count, started = 0, time.perf_counter()
    try:
        while time.perf_counter() - started < seconds:
            os.pwrite(number, b"x" * 4096, count * 4096)
            os.fdatasync(number)
            count += 1
        return count / (time.perf_counter() - started)
    finally:
        os.close(number)


class _Recorder:
    """A connection that also writes down what is written."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.statements: list[tuple[str, Sequence[Any], bool]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        if not sql.startswith(("SELECT", "WITH")):
            self.statements.append((sql, tuple(parameters), False))
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: Sequence[Any]) -> sqlite3.Cursor:
        self.statements.append((sql, list(rows), True))
        return self._connection.executemany(sql, rows)


def _parsed(count: int) -> list[events.Event]:
    """*count* events of jobs that go on side by side, as many clients log them."""
    lines = small_job()
    uniques = unique_parts("limit-")
    found: list[events.Event] = []
    while len(found) < count:
        together = [next(uniques) for _ in range(64)]
        for line in lines:
            found += [events.parse(line.replace(PLACEHOLDER, unique)) for unique in together]
    return found[:count]


def sqlite_alone(directory: Path, group: int, seconds: float) -> float:
    """Events a second when only the statements of the ledger are run, *group* events a commit."""
    count = max(group * 4, min(20_000, int(group * 400 * seconds)))
    ordered = _parsed(count)
    with closing(_open(directory / "recorded.sqlite")) as connection:
        recorder = _Recorder(connection)
        ledger = Ledger(recorder, LedgerRules())  # type: ignore[arg-type]
        connection.execute("PRAGMA synchronous = OFF")
        for start in range(0, count, group):
            ledger.apply(ordered[start : start + group], time.time())
    with closing(_open(directory / "limit.sqlite")) as connection:
        started = time.perf_counter()
        for sql, parameters, many in recorder.statements:
            if many:
                connection.executemany(sql, parameters)
            else:
                connection.execute(sql, parameters)
        return count / (time.perf_counter() - started)


def _open(path: Path) -> sqlite3.Connection:
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    store = StoreFile(path)
    store.open()
    store.close()
    return store.connect()


# -- the figures ----------------------------------------------------------------------------------


def _events(options: Options, clients: int, *words: str) -> Iterable[Figure]:
    rates, halves, tails, limits, groups = [], [], [], [], []
    for _ in range(options.runs):
        with scratch() as directory:
            with service(directory) as (store, _, port):
                found = load(store, clients, options.seconds, *words)
                groups.append(_group_size(port))
            rates.append(found["events"] / found["seconds"])
            halves.append(found["p50"])
            tails.append(found["p99"])
            limits.append(sqlite_alone(directory, max(1, round(groups[-1])), options.seconds))
    name = f"durable events, {clients} client{'s' if clients > 1 else ''}"
    if words:
        name += ", a connection each"
    peer = f"SQLite alone, {max(1, round(sum(groups) / len(groups)))} a commit"
    yield Figure(NAME, name, "1/s", tuple(rates), peer, tuple(limits))
    yield Figure(NAME, f"{name}: p50", "ms", tuple(halves), higher_is_better=False)
    yield Figure(NAME, f"{name}: p99", "ms", tuple(tails), higher_is_better=False)


def _group_size(port: int) -> float:
    """Events of one commit, as the service counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    found = dict(re.findall(r"^gridnet_lbproxy_(events|commits)_total ([0-9.e+]+)$", text, re.M))
    return float(found["events"]) / max(1.0, float(found["commits"]))


def _jobs(options: Options, clients: int) -> Iterable[Figure]:
    rates = []
    for _ in range(options.runs):
        with scratch() as directory, service(directory) as (store, _, _):
            found = load(store, clients, options.seconds)
            rates.append(found["events"] / found["seconds"] / EVENTS_OF_A_JOB)
    yield Figure(
        NAME,
        f"small jobs to a computed state, {clients} clients",
        "1/s",
        tuple(rates),
        "L&B 2006, published",
        (PUBLISHED_JOBS,),
    )


def _growth(options: Options) -> Iterable[Figure]:
    lines = small_job()
    mean = sum(map(len, lines)) / len(lines)
    sizes = []
    for _ in range(options.runs):
        with scratch() as directory:
            with service(directory) as (store, _, _):
                found = load(store, 8, options.seconds)
            # Closed in order: the write-ahead log has gone into the file.
            sizes.append((directory / "state" / "lbproxy.sqlite").stat().st_size / found["events"])
    yield Figure(
        NAME,
        "store growth an event",
        "octets",
        tuple(sizes),
        "the line itself",
        (mean,),
        higher_is_better=False,
    )


def _deliveries(options: Options) -> Iterable[Figure]:
    rates = []
    for _ in range(options.runs):
        with scratch() as directory, service(directory) as (store, serve, _):
            rates.append(_stream(store, serve))
    yield Figure(NAME, f"event-stream deliveries to {FOLLOWERS} followers", "1/s", tuple(rates))


def _stream(store: str, serve: str) -> float:
    """Deliveries a second while one client logs as fast as it is acknowledged."""
    lines, uniques = small_job(), unique_parts("stream-")
    messages = []
    for _ in range(STREAMED // EVENTS_OF_A_JOB):
        unique = next(uniques)
        messages += [frames.encode_message(one.replace(PLACEHOLDER, unique)) for one in lines]
    command = [sys.executable, "-m", "benchmarks.lbproxy_followers", serve]
    with subprocess.Popen(
        [*command, str(FOLLOWERS), str(STREAMED)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    ) as followers:
        assert followers.stdout is not None
        followers.stdout.readline()
        with connect_unix(store, time.monotonic() + 5) as connection:
            started = time.monotonic()
            for message in messages:
                connection.sendall(message)
                connection.recv(4096)
            ended = float(followers.stdout.readline())
    return FOLLOWERS * STREAMED / (ended - started)


def run(options: Options) -> Iterable[Figure]:
    """All figures, or those whose words are on the command line."""
    chosen = options.arguments or ("disk", "events", "jobs", "stream", "growth")
    if "disk" in chosen:
        with scratch() as directory:
            rates = tuple(syncs(directory, options.seconds) for _ in range(options.runs))
        yield Figure(NAME, "syncs of the disk", "1/s", rates)
    if "events" in chosen:
        for clients in (1, 8, 64):
            yield from _events(options, clients)
        yield from _events(options, 8, "--reconnect")
    if "jobs" in chosen:
        yield from _jobs(options, 8)
        yield from _jobs(options, 64)
    if "stream" in chosen:
        yield from _deliveries(options)
    if "growth" in chosen:
        yield from _growth(options)
