"""Databases for tests: an SQLite file, and a PostgreSQL server of our own."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from gridnet.scire.store.database import Database, Transaction
from gridnet.scire.store.opening import open_database
from tests.mixin import Mixin

T = TypeVar("T")
_PROGRAMS = ("postgres", "initdb", "pg_isready")
_PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


@cache
def postgres_binaries() -> Path | None:
    """Where PostgreSQL's programs are; None: not installed."""
    found = shutil.which("initdb")
    places = [*_PLACES, *([Path(found).parent] if found is not None else [])]
    # A single program on the path may be somebody's wrapper: all of them must be there.
    return next((p for p in places if all((p / name).exists() for name in _PROGRAMS)), None)


class PostgresServer:
    """A private server on a UNIX socket in a directory of its own."""

    def __init__(self, *settings: str) -> None:
        binaries = postgres_binaries()
        assert binaries is not None
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-pg-", dir="/tmp"))
        self._binaries = binaries
        # It refuses to run as root.
        self._as: dict[str, Any] = (
            {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
        )
        if self._as:
            shutil.chown(self.directory, "nobody", "nogroup")
        data = self.directory / "data"
        self._run("initdb", "-D", str(data), "-A", "trust", "-U", "scire", "-N", "-E", "UTF8")
        self._command = [str(binaries / "postgres"), "-D", str(data), "-k", str(self.directory)]
        for setting in ("listen_addresses=", "max_connections=200", *settings):
            self._command += ["-c", setting]
        self._databases = 0
        self.start()

    def start(self) -> None:
        """Start it (again)."""
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd="/", start_new_session=True, **self._as
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Of the process whose children serve."""
        return self._process.pid

    def crash(self) -> None:
        """Kill it; what was committed is there after :meth:`start`."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binaries / program), *arguments],
            check=True,
            capture_output=True,
            cwd="/",
            **self._as,
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        probe = str(self._binaries / "pg_isready")
        while subprocess.run([probe, "-h", str(self.directory)], capture_output=True).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self.directory / "log").read_text())

    def dsn(self, database: str) -> str:
        """How to connect to *database*."""
        return f"postgresql://scire@/{database}?host={self.directory}"

    def execute(self, sql: str) -> None:
        """Run one statement in the maintenance database."""
        import psycopg

        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(sql)

    def create(self) -> str:
        """A new database with the tables; its connection string."""
        self._databases += 1
        name = f"test{self._databases}"
        if self._databases == 1:
            self.execute("CREATE DATABASE empty")
            made = open_database((self.dsn("empty"),), self.directory, 1, "template")
            made.close()
        self.execute(f"CREATE DATABASE {name} TEMPLATE empty")
        return self.dsn(name)

    def stop(self) -> None:
        """End it at once, and delete all."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@cache
def postgres() -> PostgresServer:
    """The server that all tests of one process share."""
    server = PostgresServer("fsync=off", "synchronous_commit=off", "full_page_writes=off")
    atexit.register(server.stop)
    return server


class Backend(Mixin):
    """What a case that is mixed with a backend asks it for."""

    def database_names(self) -> tuple[str, ...]:
        """What the site file would say."""
        raise NotImplementedError

    @staticmethod
    def lasting_names() -> tuple[str, ...]:
        """The same for a server that outlasts the case."""
        raise NotImplementedError


class SqliteMixin(Backend):
    """Runs a case's tests on SQLite."""

    def database_names(self) -> tuple[str, ...]:
        """What the site file would say."""
        place = Path(tempfile.mkdtemp(prefix="gridnet-scire-"))
        self.addCleanup(shutil.rmtree, place, True)
        return (str(place / "scire.db"),)

    @staticmethod
    def lasting_names() -> tuple[str, ...]:
        """The same for a server that outlasts the case: a file in its own directory."""
        return ("scire/scire.db",)


class PostgresMixin(Backend):
    """Runs a case's tests on PostgreSQL."""

    def database_names(self) -> tuple[str, ...]:
        """What the site file would say."""
        return (postgres().create(),)

    @staticmethod
    def lasting_names() -> tuple[str, ...]:
        """The same for a server that outlasts the case."""
        return (postgres().create(),)

    skip: str | None = None if postgres_binaries() else "PostgreSQL is not installed"


class TimeMachine:
    """
    Runs operations on a database at whatever time a test wants.

    :ivar now: seconds since the epoch that operations see.
    """

    def __init__(self, database: Database, now: float = 1_800_000_000.0) -> None:
        self.database = database
        self.now = now
        self.events: list[str] = []
        self.notices: list[tuple[str, str]] = []

    def do(self, operation: Callable[[Transaction], T]) -> T:
        """One transaction."""
        seen: list[Transaction] = []

        def at_that_time(tx: Transaction) -> T:
            tx.now = self.now
            seen[:] = [tx]
            return operation(tx)

        value = self.database.run_now(at_that_time)
        self.events += [event.kind for event in seen[0].events]
        self.notices += [(notice.channel, notice.payload) for notice in seen[0].notices]
        return value
