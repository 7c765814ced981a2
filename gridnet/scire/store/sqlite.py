"""
The embedded database: SQLite, one server.

Writing goes through one thread, so that no writer ever meets another and those that wait share a
commit; reading has threads of its own (write-ahead log).  An answer is durable before it is
given: ``synchronous=FULL``.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool

from gridnet.errors import ConfigError, Fault
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.store.database import (
    Counted,
    Database,
    Event,
    Lane,
    Notice,
    Operation,
    Parameters,
    Raced,
    Row,
    Session,
    Transaction,
    Unavailable,
)

T = TypeVar("T")
MINIMUM_VERSION = (3, 35, 0)  # RETURNING
_BUSY_SECONDS = 5.0
_STATEMENTS = 256  # prepared ones kept for each connection


class SqliteTransaction(Transaction):
    """One transaction."""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        super().__init__(now)
        self._connection = connection

    def all(self, sql: str, parameters: Parameters = ()) -> Sequence[Row]:
        """Every row of the result."""
        rows: Sequence[Row] = self._connection.execute(sql, parameters).fetchall()
        return rows

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row of the result."""
        row: Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        """How many rows a writing statement changed."""
        self.wrote = True
        return self._connection.execute(sql, parameters).rowcount

    def later(self, sql: str, parameters: Parameters = (), expected: int | None = None) -> None:
        """Run a writing statement at once."""
        if self.run(sql, parameters) != expected and expected is not None:
            raise Raced

    def insert(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row that a writing statement returns."""
        self.wrote = True
        rows = self._connection.execute(sql, parameters).fetchall()
        row: Row | None = rows[0] if rows else None
        return row


class SqliteSession(Session):
    """One connection."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            path,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_STATEMENTS,
        )
        self._connection.row_factory = sqlite3.Row
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "wal_autocheckpoint=2000",
            "cache_size=-32768",
        ):
            self._connection.execute(f"PRAGMA {pragma}").fetchall()

    def begin(self, write: bool) -> Transaction:
        """Open a transaction; a writing one is the only one."""
        self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        return SqliteTransaction(self._connection, time.time())

    def commit(self, transaction: Transaction) -> None:
        """Keep it, durably."""
        self._connection.execute("COMMIT")

    def roll_back(self) -> None:
        """Give it up."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def judge(self, error: Exception) -> Exception:
        """Locks are a matter of waiting; files that cannot be used are not."""
        if isinstance(error, sqlite3.OperationalError):
            if "locked" in str(error) or "busy" in str(error):
                return ScireFault(FaultCode.BUSY, "the database is busy", retry_after=1)
            return Unavailable(f"SQLite: {error}")
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)
        ):
            return Unavailable(f"SQLite: {error}")
        return error


class SqliteDatabase(Database):
    """
    A database file of one server.

    :param readers: threads that read.
    :raises gridnet.errors.ConfigError: another process has it, or SQLite is too old.
    """

    def __init__(self, path: Path, readers: int = 2, batch: int = 64) -> None:
        super().__init__()
        if sqlite3.sqlite_version_info < MINIMUM_VERSION:
            raise ConfigError([Fault("scire.database", "needs SQLite 3.35 or newer")])
        self.path = path
        self._readers = readers
        self._batch = batch
        self._own: SqliteSession | None = None
        self._lock = -1
        self._reading: Lane | None = None
        self._writing: Lane | None = None
        self._reactor: Any = None

    def lock(self) -> None:
        """
        Keep other processes away from the file.

        :raises gridnet.errors.ConfigError: one has it.
        """
        if self._lock >= 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            what = f"{self.path} is in use by another process; one server has it at a time"
            raise ConfigError([Fault("scire.database", what)]) from None
        self._lock = handle

    def _session(self) -> SqliteSession:
        return SqliteSession(self.path)

    def start(self, reactor: Any) -> None:
        """Open the threads' queues."""
        self.lock()
        self._reactor = reactor
        threads = IReactorFromThreads(reactor)
        self._reading = Lane(
            "read", threads, self._session, self._deliver, self._readers, self._batch
        )
        self._writing = Lane("write", threads, self._session, self._deliver, 1, self._batch)

    def _deliver(self, events: Sequence[Event], notices: Sequence[Notice]) -> None:
        for event in events:
            self.told(event)
        for notice in notices:
            self.noticed(notice)

    def read(self, operation: Operation[T]) -> Deferred[T]:
        """Run an operation that only reads."""
        assert self._reading is not None
        return self._reading.submit(operation, False)

    def write(self, operation: Operation[T]) -> Deferred[T]:
        """Run an operation that may write."""
        assert self._writing is not None
        return self._writing.submit(operation, True)

    def run_now(self, operation: Operation[T]) -> T:
        """Run an operation in this thread."""
        if self._own is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._own = self._session()
        outcome = self._own.perform([operation], True)[0]
        if outcome.error is not None:
            raise outcome.error
        value: T = outcome.value
        return value

    def clock_difference(self) -> float:
        """None: the clock is this host's."""
        return 0.0

    def stop(self) -> Deferred[None]:
        """Finish what was submitted, then close."""
        threads = [thread for lane in self._lanes() for thread in lane.stop()]

        def joined() -> None:
            for thread in threads:
                thread.join()

        done = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), joined)

        def close(_: object) -> None:
            self.close()

        return done.addCallback(close)

    def close(self) -> None:
        """Release the file."""
        if self._own is not None:
            self._own.close()
            self._own = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def leading(self) -> bool:
        """Always: there is one server."""
        return True

    def lanes(self) -> Sequence[Counted]:
        """For metrics."""
        return self._lanes()

    def _lanes(self) -> Sequence[Lane]:
        return [lane for lane in (self._reading, self._writing) if lane is not None]
