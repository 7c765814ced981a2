"""
The shared database: PostgreSQL, any number of servers.

A run is handed out once because its row is locked while it is chosen (``FOR UPDATE SKIP LOCKED``
under READ COMMITTED); servers wake each other with NOTIFY; one of them leads because it holds an
advisory lock.  Lock and listening live on a connection of their own, so that losing it loses both.

All times are the database's: each connection measures how far its clock is from this host's
monotonic one, again every :data:`CLOCK_SECONDS`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic, time
from typing import Any, TypeVar

import psycopg
from psycopg import errors, pq
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gridnet.errors import ConfigError, Fault
from gridnet.scire.store.database import (
    Counted,
    Database,
    Event,
    InSteps,
    Lane,
    Notice,
    Operation,
    Parameters,
    Raced,
    Reads,
    Row,
    Session,
    Transaction,
    Unavailable,
)
from gridnet.scire.store.pipeline import Pipeline
from gridnet.scire.store.shared import ReactorLane

T = TypeVar("T")
MINIMUM_VERSION = 120000
CLOCK_SECONDS = 30.0
#: Of the advisory lock: which server leads, and who migrates.
LEADER_LOCK = 0x5C12E001
CHANNELS = ("work", "control", "schedule")
_CHANNEL_PREFIX = "scire_"
_ATTEMPT_SECONDS = 5
#: A database host that vanished is noticed after these seconds, also by whoever only listens.
_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
#: Of shared transactions on the reactor: at a time, and calls in one.
_CONNECTIONS, _BATCH = 2, 64
_NOTIFY = "SELECT pg_notify(?, ?)"


#: What another transaction that was first looks like; a name or number that is taken by now, too.
_RACES = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.UniqueViolation,
)


def translated(sql: str) -> bytes:
    """The statement *sql* as PostgreSQL takes it."""
    first, *others = sql.split("/*pg ")
    pieces = "".join([first, *(piece.replace("*/", "", 1) for piece in others)]).split("?")
    numbered = [f"{piece}${number}" for number, piece in enumerate(pieces[:-1], 1)]
    return "".join([*numbered, pieces[-1]]).encode("utf-8")


class PostgresTransaction(Transaction):
    """One transaction."""

    def __init__(self, pipeline: Pipeline, now: float) -> None:
        super().__init__(now)
        self._pipeline = pipeline

    def read_ahead(self, reads: Reads) -> None:
        """Send reading statements along with the next one; older ones are old."""
        self._pipeline.forget()
        for sql, parameters in reads:
            self._pipeline.ahead(sql, parameters)

    def all(self, sql: str, parameters: Parameters = ()) -> Sequence[Row]:
        """Every row of the result."""
        rows: Sequence[Row] = self._pipeline.rows(sql, parameters)
        return rows

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row of the result."""
        rows = self._pipeline.rows(sql, parameters)
        row: Row | None = rows[0] if rows else None
        return row

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        """How many rows a writing statement changed."""
        self.wrote = True
        return self._pipeline.count(sql, parameters)

    def later(self, sql: str, parameters: Parameters = (), expected: int | None = None) -> None:
        """Run a writing statement; its result is looked at before the commit."""
        self.wrote = True
        self._pipeline.send(sql, parameters, expected)

    def insert(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row that a writing statement returns."""
        self.wrote = True
        return self.one(sql, parameters)


def connect(dsns: Sequence[str], **options: Any) -> psycopg.Connection[Any]:
    """
    A connection to the first of *dsns* that takes writing transactions.

    :raises Unavailable: none does.
    """
    reasons = []
    for dsn in dsns:
        try:
            connection = psycopg.connect(
                dsn, connect_timeout=_ATTEMPT_SECONDS, **_KEEPALIVE, **options
            )
        except psycopg.Error as error:
            reasons.append(str(error).strip())
            continue
        row = connection.execute("SELECT pg_is_in_recovery(), clock_timestamp()").fetchone()
        if row is not None and not row[0]:
            if not connection.autocommit:
                connection.rollback()
            return connection
        reasons.append("a standby, which takes no changes")
        connection.close()
    raise Unavailable(f"PostgreSQL: {'; '.join(reasons)}")


def _database_seconds(connection: psycopg.Connection[Any]) -> float:
    row = connection.execute(
        "SELECT extract(epoch FROM clock_timestamp())::double precision"
    ).fetchone()
    assert row is not None
    return float(row[0])


class PostgresSession(Session):
    """One connection, made anew when it is lost."""

    _SETTINGS: tuple[str, ...] = ("SET synchronous_commit = on", "SET lock_timeout = '10s'")

    def __init__(self, dsns: Sequence[str], application: str) -> None:
        self._dsns = dsns
        self._application = application
        self._connection: psycopg.Connection[Any] | None = None
        self._pipeline: Pipeline | None = None
        self._ahead = 0.0  # of the monotonic clock
        self._measured = 0.0

    def _connected(self) -> psycopg.Connection[Any]:
        connection = self._connection
        if connection is None or connection.closed:
            connection = connect(self._dsns, application_name=self._application)
            for setting in self._SETTINGS:
                connection.execute(setting)
            connection.commit()
            self._connection = connection
            self._pipeline = Pipeline(connection, translated)
            self._measured = 0.0
        now = monotonic()
        if not self._measured or now - self._measured > CLOCK_SECONDS:
            before = monotonic()
            seconds = _database_seconds(connection)
            after = monotonic()
            connection.rollback()
            self._ahead = seconds - (before + after) / 2
            self._measured = after
        return connection

    @property
    def pipeline(self) -> Pipeline:
        """The statements of the connection."""
        assert self._pipeline is not None
        return self._pipeline

    def database_seconds(self) -> float:
        """Now, by the database's clock."""
        return monotonic() + self._ahead

    def begin(self, write: bool) -> Transaction:
        """Open a transaction."""
        self._connected()
        self.pipeline.begin()
        return PostgresTransaction(self.pipeline, self.database_seconds())

    def commit(self, transaction: Transaction) -> None:
        """Keep it, durably."""
        self.notify(transaction.notices)
        if not self.pipeline.commit():
            raise Raced

    def notify(self, notices: Sequence[Notice]) -> None:
        """Send *notices* with the transaction."""
        for notice in notices:
            self.pipeline.send(_NOTIFY, (_CHANNEL_PREFIX + notice.channel, notice.payload))

    def roll_back(self) -> None:
        """Give it up."""
        if self._connection is not None and self._pipeline is not None:
            try:
                self._pipeline.abandon()
                self._connection.rollback()
            except psycopg.Error:
                self._connection.close()

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    def judge(self, error: Exception) -> Exception:
        """Deadlocks and serialization failures are races; lost connections may come back."""
        if isinstance(error, _RACES):
            return Raced()
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            return Unavailable(f"PostgreSQL: {str(error).strip()}")
        if isinstance(error, errors.ReadOnlySqlTransaction):
            # A server that became a standby; another of the list may be the primary now.
            if self._connection is not None:
                self._connection.close()
            return Unavailable("PostgreSQL: the server takes no changes any more")
        return error

    def reconnect(self) -> bool:
        """Once more when the connection itself is gone, as after a restart of PostgreSQL."""
        return self._connection is not None and (
            self._connection.closed or self._connection.info.status is not pq.ConnStatus.OK
        )


class ReactorSession(PostgresSession):
    """The connection of :class:`gridnet.scire.store.shared.ReactorLane`."""

    #: Its few statements have each an index, whatever is known of the tables by now.
    _SETTINGS = (
        *PostgresSession._SETTINGS,
        "SET enable_seqscan = off",
        "SET plan_cache_mode = force_generic_plan",
        "SET jit = off",
    )

    @property
    def fresh(self) -> bool:
        """Whether it is connected, and knows the database's clock."""
        connection = self._connection
        return (
            connection is not None
            and not connection.closed
            and monotonic() - self._measured <= CLOCK_SECONDS
        )

    def refresh(self) -> None:
        """Make it so; blocks."""
        self._connected()

    def fileno(self) -> int:
        """Of the connection's socket."""
        assert self._connection is not None
        return self._connection.pgconn.socket


class PostgresDatabase(Database):
    """
    A database that servers share.

    :param dsns: connection strings, tried in order.
    :param threads: connections at most.
    :param application: shown in ``pg_stat_activity``.
    """

    _log = Logger()

    def __init__(
        self, dsns: Sequence[str], threads: int = 8, batch: int = 16, application: str = "scire"
    ) -> None:
        super().__init__()
        self._dsns = tuple(dsns)
        self._threads = threads
        self._batch = batch
        self._application = application
        self._own: PostgresSession | None = None
        self._lane: Lane | None = None
        self._shared: ReactorLane | None = None
        self._reactor: Any = None
        self._listener: threading.Thread | None = None
        self._ending = threading.Event()
        self._leading = False

    def _session(self) -> PostgresSession:
        return PostgresSession(self._dsns, self._application)

    def check(self) -> None:
        """
        See whether it can be used.

        :raises gridnet.errors.ConfigError: no server answers, or one that is too old.
        """
        try:
            with connect(self._dsns) as connection:
                version = connection.info.server_version
        except Unavailable as error:
            raise ConfigError([Fault("scire.database", str(error))]) from None
        if version < MINIMUM_VERSION:
            raise ConfigError([Fault("scire.database", "needs PostgreSQL 12 or newer")])

    def start(self, reactor: Any) -> None:
        """Open the threads' queue and the connection that listens."""
        self._reactor = reactor
        self._lane = Lane(
            "database",
            IReactorFromThreads(reactor),
            self._session,
            self._deliver,
            self._threads,
            self._batch,
        )
        self._shared = ReactorLane(
            reactor,
            lambda: ReactorSession(self._dsns, self._application),
            self._deliver,
            self._lane.submit,
            _CONNECTIONS,
            _BATCH,
        )
        self._listener = threading.Thread(target=self._listen, name="scire-listen", daemon=True)
        self._listener.start()

    def _deliver(self, events: Sequence[Event], notices: Sequence[Notice]) -> None:
        # Notices come back through the listening connection, like those of other servers.
        for event in events:
            self.told(event)

    def _lane_of(self, operation: Operation[Any]) -> Lane | ReactorLane:
        lane = self._shared if isinstance(operation, InSteps) else self._lane
        assert lane is not None
        return lane

    def read(self, operation: Operation[T]) -> Deferred[T]:
        """Run an operation that only reads."""
        return self._lane_of(operation).submit(operation, False)

    def write(self, operation: Operation[T]) -> Deferred[T]:
        """Run an operation that may write."""
        return self._lane_of(operation).submit(operation, True)

    def run_now(self, operation: Operation[T]) -> T:
        """Run an operation in this thread."""
        if self._own is None:
            self._own = self._session()
        outcome = self._own.perform([operation], True)[0]
        if outcome.error is not None:
            raise outcome.error
        value: T = outcome.value
        return value

    def clock_difference(self) -> float:
        """Seconds that the database's clock is ahead of this host's."""

        with connect(self._dsns) as connection:
            return _database_seconds(connection) - time()

    # -- listening and leading, in a thread of their own

    def _listen(self) -> None:
        pause = 0.0
        while not self._ending.wait(pause):
            try:
                with connect(self._dsns, autocommit=True) as connection:
                    for channel in CHANNELS:
                        connection.execute(f"LISTEN {_CHANNEL_PREFIX}{channel}")
                    self._reactor.callFromThread(self._doubt)
                    self._follow(connection)
            except (psycopg.Error, Unavailable) as error:
                self._log.warn("listening connection lost, {reason}", reason=str(error).strip())
            self._leading = False
            pause = 1.0

    def _follow(self, connection: psycopg.Connection[Any]) -> None:
        while not self._ending.is_set():
            if not self._leading:
                row = connection.execute(
                    "SELECT pg_try_advisory_lock(%s)", (LEADER_LOCK,)
                ).fetchone()
                self._leading = row is not None and bool(row[0])
            for notification in connection.notifies(timeout=1.0):
                notice = Notice(
                    notification.channel.removeprefix(_CHANNEL_PREFIX), notification.payload
                )
                self._reactor.callFromThread(self._notice, notice)
                if self._ending.is_set():
                    break

    def _notice(self, notice: Notice) -> None:
        self.noticed(notice)

    def _doubt(self) -> None:
        self.doubtful()

    def stop(self) -> Deferred[None]:
        """Finish what was submitted, then close."""
        self._ending.set()
        done: Deferred[None] = self._shared.stop() if self._shared is not None else succeed(None)
        return done.addCallback(lambda _: self._stop_threads())

    def _stop_threads(self) -> Deferred[None]:
        threads = self._lane.stop() if self._lane is not None else []
        if self._listener is not None:
            threads.append(self._listener)

        def joined() -> None:
            for thread in threads:
                thread.join()

        done = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), joined)

        def close(_: object) -> None:
            self.close()

        return done.addCallback(close)

    def close(self) -> None:
        """Close this thread's own connection."""
        if self._own is not None:
            self._own.close()
            self._own = None

    @property
    def leading(self) -> bool:
        """Whether this server holds the advisory lock."""
        return self._leading

    def lanes(self) -> Sequence[Counted]:
        """For metrics."""
        return [lane for lane in (self._lane, self._shared) if lane is not None]
