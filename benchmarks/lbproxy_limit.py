"""
SQLite itself doing what the LB proxy has it do, in a process of its own.

Run by :mod:`benchmarks.bench_lbproxy`: ``python -m benchmarks.lbproxy_limit DIRECTORY GROUP
CLIENTS EVENTS`` prints events a second.  The statements are those that the ledger issues for that
many events of that many clients in groups of that size, made beforehand.  The file grows to as
many rows as the service's and has as many checkpoints.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.lbproxy_load import PLACEHOLDER, small_job, unique_parts
from gridnet.lbproxy import events
from gridnet.lbproxy.ledger import Ledger, LedgerRules
from gridnet.lbproxy.store import StoreFile


class _Recorder:
    """A connection that also writes down what is written."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.statements: list[tuple[str, Sequence[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        if not sql.startswith(("SELECT", "WITH")):
            self.statements.append((sql, tuple(parameters)))
        return self._connection.execute(sql, parameters)


def _parsed(count: int, clients: int) -> list[events.Event]:
    """*count* events of jobs that go on side by side, as so many *clients* log them."""
    lines = small_job()
    uniques = unique_parts("limit-")
    found: list[events.Event] = []
    while len(found) < count:
        together = [next(uniques) for _ in range(clients)]
        for line in lines:
            found += [events.parse(line.replace(PLACEHOLDER, unique)) for unique in together]
    return found[:count]


def run(directory: Path, group: int, clients: int, count: int) -> float:
    """
    Events a second when only the statements of the ledger are run.

    :param group: events a commit.
    :param clients: that log side by side.
    :param count: events.
    """
    ordered = _parsed(count, clients)
    with closing(_open(directory / "recorded.sqlite")) as connection:
        recorder = _Recorder(connection)
        ledger = Ledger(recorder, LedgerRules())  # type: ignore[arg-type]
        connection.execute("PRAGMA synchronous = OFF")
        for start in range(0, count, group):
            ledger.apply(ordered[start : start + group], time.time())
    with closing(_open(directory / "limit.sqlite")) as connection:
        started = time.perf_counter()
        for sql, parameters in recorder.statements:
            connection.execute(sql, parameters)
        return count / (time.perf_counter() - started)


def _open(path: Path) -> sqlite3.Connection:
    for suffix in ("", "-wal", "-shm", ".lock"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    store = StoreFile(path)
    store.open()
    store.close()
    return store.connect()


def main() -> int:
    """Run, and print the rate."""
    directory, group, clients, count = sys.argv[1:]
    print(run(Path(directory), int(group), int(clients), int(count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
