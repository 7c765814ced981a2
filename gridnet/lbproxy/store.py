"""
The file of the store: opening, checking, setting aside, migrating, and connections to it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from attrs import define, field

from gridnet.errors import ConfigError, Fault, GridnetError
from gridnet.lbproxy import rows, schema
from gridnet.lbproxy.frames import Major, Reply

T = TypeVar("T")

_SQLITE_MAGIC = b"SQLite format 3\0"
#: Instructions of SQLite between two looks at the clock.
_PROGRESS_STEPS = 20_000

#: Primary result code of SQLite -> errno and what to say.
_FAILURES = {
    sqlite3.SQLITE_FULL: (errno.ENOSPC, "disk full"),
    sqlite3.SQLITE_BUSY: (errno.EAGAIN, "store locked by another process"),
    sqlite3.SQLITE_LOCKED: (errno.EAGAIN, "store locked"),
    sqlite3.SQLITE_READONLY: (errno.EROFS, "store is read-only"),
    sqlite3.SQLITE_PERM: (errno.EACCES, "store cannot be accessed"),
    sqlite3.SQLITE_CANTOPEN: (errno.EIO, "store cannot be opened"),
    sqlite3.SQLITE_IOERR: (errno.EIO, "store input/output error"),
    sqlite3.SQLITE_CORRUPT: (errno.EIO, "store is damaged"),
    sqlite3.SQLITE_NOTADB: (errno.EIO, "store is damaged"),
}


def failure_reply(error: sqlite3.Error) -> Reply:
    """What a store peer is told when its event could not be written."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_NOMEM:
        return Reply(Major.NO_MEMORY, 0, "out of memory")
    number, text = _FAILURES.get(code, (errno.EIO, "store error"))
    return Reply(Major.DATABASE, number, f"{text}: {error}")


class QueryTimeout(Exception):
    """A query took longer than it may."""


class Snapshot(sqlite3.Connection):
    """
    A connection that reads, for a limited time.

    :ivar deadline: by the monotonic clock.
    :ivar most_seconds: what was allowed.
    """

    deadline = 0.0
    most_seconds = 0.0

    def allow(self, seconds: float) -> None:
        """Let what follows take *seconds*."""
        self.most_seconds = seconds
        self.deadline = time.monotonic() + seconds

    def check_time(self) -> None:
        """
        For work between statements, often: also lets other threads go on.

        A thread that computes keeps the interpreter for 5 ms at a time, and whoever reads a socket
        or writes a row has to wait for it: beside one large answer the service took a tenth of
        the events.

        :raises QueryTimeout: the time is over.
        """
        time.sleep(0)
        if time.monotonic() > self.deadline:
            raise QueryTimeout(f"more than {self.most_seconds} s")


@define(eq=False)
class StoreFile:
    """
    One store on disk, locked by this process while it is open.

    :ivar set_aside: where a damaged file was moved at the opening; None: it was sound.
    """

    path: Path
    busy_seconds: float = 5.0  #: how long to wait for another process that holds the file
    check: str = "quick"  #: ``quick``, ``full`` or ``none``
    clock: Callable[[], float] = time.time
    set_aside: Path | None = field(default=None, init=False)
    _lock: int = field(default=-1, init=False)

    def open(self) -> None:
        """
        Make the file ready: lock, check (setting a damaged one aside), create or migrate.

        :raises ConfigError: another process has it, it is no store of ours, it was written by a
            newer gridnet, or it cannot be made or read.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = self._take_lock()
            if self.path.exists() and not self._is_sound(known):
                self._set_aside()
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with closing(self.connect()) as connection:
                self._migrate(connection)
        except OSError as error:
            self.close()
            raise self.fault(f"cannot be used: {error}") from None
        except sqlite3.Error as error:
            self.close()
            raise self.fault(f"cannot be opened: {error}") from None
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """Give up the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def fault(self, what: str) -> ConfigError:
        """The error that says *what* of the file."""
        return ConfigError([Fault("lbproxy.store", f"{self.path} {what}")])

    def _take_lock(self) -> bool:
        """Lock the file's name; returns whether it was a store of ours before."""
        path = f"{self.path}.lock"
        known = os.path.exists(path)
        self._lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self.fault("is in use by another process") from None
        return known

    def _is_sound(self, known: bool) -> bool:
        """
        Whether the file can be worked with; False: it is damaged.

        :param known: whether it was a store of ours before, so that it is ours to move.
        """
        with open(self.path, "rb") as file:
            magic = file.read(len(_SQLITE_MAGIC))
        if magic != _SQLITE_MAGIC:
            if known:
                return False
            if not magic:
                return True  # an empty file that somebody made for us
            raise self.fault("is not a store")
        try:
            with closing(self.connect()) as connection:
                (owner,) = connection.execute("PRAGMA application_id").fetchone()
                if owner != schema.APPLICATION_ID:
                    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                    if tables and not known:
                        raise self.fault("is not a store of gridnet")
                    return not tables
                if self.check == "none":
                    return True
                pragma = "quick_check" if self.check == "quick" else "integrity_check"
                (verdict,) = connection.execute(f"PRAGMA {pragma}(1)").fetchone()
                return bool(verdict == "ok")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return False
            raise
        except sqlite3.DatabaseError:
            return False

    def _set_aside(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.clock()))
        target = Path(f"{self.path}.damaged-{stamp}")
        number = 1
        while target.exists():
            number += 1
            target = Path(f"{self.path}.damaged-{stamp}-{number}")
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.rename(f"{self.path}{suffix}", f"{target}{suffix}")
        self.set_aside = target

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > schema.VERSION:
            raise self.fault(
                f"has version {version}, this gridnet knows {schema.VERSION}: use a newer one"
            )
        for number in range(version, schema.VERSION):
            # One transaction a step: a crash in between leaves a whole older version.
            connection.executescript(
                f"BEGIN IMMEDIATE; {schema.MIGRATIONS[number]};"
                f" PRAGMA application_id = {schema.APPLICATION_ID};"
                f" PRAGMA user_version = {number + 1}; COMMIT;"
            )

    def connect(self) -> sqlite3.Connection:
        """
        A connection that may write; the file must exist.

        :raises sqlite3.Error: it cannot be opened.
        """
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=self.busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in schema.WRITER_PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect_reader(self) -> Snapshot:
        """
        A connection that only reads.

        :raises sqlite3.Error: it cannot be opened.
        """
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=self.busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            factory=Snapshot,
        )
        connection.create_function("event_text", 2, rows.event_text, deterministic=True)
        return connection


class Readers:
    """Connections for queries, shared by threads."""

    def __init__(self, store: StoreFile) -> None:
        self._store = store
        self._idle: list[Snapshot] = []
        self._busy: set[Snapshot] = set()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def reading(self, seconds: float) -> Iterator[Snapshot]:
        """
        One snapshot of the store, as of its first statement.

        :param seconds: the longest that it may take.
        :raises QueryTimeout: it took too long, or the readers are closed.
        :raises sqlite3.Error: the store cannot be read.
        """
        with self._lock:
            if self._closed:
                raise QueryTimeout("the store is closing")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._store.connect_reader()
        with self._lock:
            self._busy.add(connection)
        connection.allow(seconds)
        deadline = connection.deadline
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _PROGRESS_STEPS)
        keep = False
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
            keep = True
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
                raise QueryTimeout(f"more than {seconds} s") from None
            raise
        except (GridnetError, QueryTimeout):
            # An answer like any other: the connection is as good as before.
            connection.execute("ROLLBACK")
            keep = True
            raise
        finally:
            with self._lock:
                self._busy.discard(connection)
                keep = keep and not self._closed
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def close(self) -> None:
        """Close the connections; those in use are interrupted and closed when given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.deadline = 0.0
                connection.interrupt()
        for connection in idle:
            connection.close()
