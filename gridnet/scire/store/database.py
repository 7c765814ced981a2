"""
Transactions, and threads that run them: what both backends share.

An operation is a function of a :class:`Transaction`; it is pure but for the database, so that it
may be run again when its transaction could not be kept.  Several operations that wait at the
same time share one transaction and one commit: each is answered after that commit, and one that
fails is taken out and leaves the others as they are.  What costs then are journeys to the
database: an operation :class:`InSteps` says what it is about to read, and the reads of all that
share the transaction travel together.

The reactor never waits for a database: it submits an operation and gets a Deferred.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import compress
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.scire.faults import FaultCode, ScireFault

T = TypeVar("T")
Parameters = Sequence[Any]
#: That one statement inserts at most.
_MOST_ROWS = 32


class Row(Protocol):
    """One row; columns by name."""

    def __getitem__(self, name: str) -> Any: ...

    def keys(self) -> Any: ...


@frozen
class Notice:
    """Told to every server on the same database, after the commit."""

    channel: str  #: work, control, schedule
    payload: str  #: an id


@frozen
class Event:
    """Told to this server after the commit: something to count, to log or to tell people."""

    kind: str
    facts: Mapping[str, Any]


class Transaction(ABC):
    """
    What an operation sees of the database.

    Statements have ``?`` for each parameter; what stands in ``/*pg ... */`` is for PostgreSQL
    only (row locks, which SQLite's single writer does not need).

    :ivar now: seconds since the epoch by the database's clock, the same all through.
    """

    now: float

    def __init__(self, now: float) -> None:
        self.now = now
        self.events: list[Event] = []
        self.notices: list[Notice] = []
        self.wrote = False
        self._gathered: dict[str, list[Parameters]] = {}

    def turn_to(self, outcome: Outcome) -> None:
        """An operation begins or goes on, whose *outcome* takes what it tells."""
        self.events, self.notices, self.wrote = outcome.events, outcome.notices, outcome.wrote

    def read_ahead(self, reads: Reads) -> None:  # noqa: B027 - a hint
        """
        Say that :meth:`one` or :meth:`all` will be called with each of *reads* next.

        Where a database is far away, they then take one journey.
        """

    @abstractmethod
    def all(self, sql: str, parameters: Parameters = ()) -> Sequence[Row]:
        """Every row of the result."""

    @abstractmethod
    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first row of the result; None: there is none."""

    @abstractmethod
    def run(self, sql: str, parameters: Parameters = ()) -> int:
        """Run a statement that writes; how many rows it changed."""

    @abstractmethod
    def later(self, sql: str, parameters: Parameters = (), expected: int | None = None) -> None:
        """
        Run a statement that writes, whose result nobody waits for.

        :param expected: rows that it must change; if others, the operation is run again
            (:class:`Raced`).
        """

    def append(self, into: str, values: Parameters) -> None:
        """
        Insert a row into a table that nobody reads in the same transaction.

        Those of all operations that share the transaction are written together, in order, before
        the commit.

        :param into: the table with its columns, ``table (a, b)``.
        """
        self.wrote = True
        self._gathered.setdefault(into, []).append(values)

    def write_appended(self) -> None:
        """Write what was appended, a few rows a statement."""
        for into, rows in self._gathered.items():
            start = 0
            while start < len(rows):
                # Powers of two, so that there are few statements to prepare.
                count = min(_MOST_ROWS, 1 << (len(rows) - start).bit_length() - 1)
                part = rows[start : start + count]
                row = f"({', '.join('?' * len(part[0]))})"
                sql = f"INSERT INTO {into} VALUES {', '.join([row] * count)}"
                self.later(sql, [value for values in part for value in values])
                start += count
        self._gathered.clear()

    @abstractmethod
    def insert(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Run a statement that writes and has RETURNING; its first row."""

    def notify(self, channel: str, payload: object) -> None:
        """Tell all servers, once this is committed; the same notice twice is one."""
        notice = Notice(channel, str(payload))
        if notice not in self.notices:
            self.notices.append(notice)

    def event(self, kind: str, **facts: Any) -> None:
        """Tell this server, once this is committed."""
        self.events.append(Event(kind, facts))


Operation = Callable[[Transaction], T]
#: Statements that read, and their parameters.
Reads = Sequence[tuple[str, Parameters]]
Steps = Generator[Reads, None, T]


def alone(transaction: Transaction, steps: Steps[T]) -> T:
    """Run what is written in *steps* without anybody beside it."""
    try:
        while True:
            transaction.read_ahead(next(steps))
    except StopIteration as end:
        value: T = end.value
        return value


class InSteps(Generic[T]):
    """
    An operation that stops before it reads, to say what.

    Between two steps others of the same transaction may have their turn, and may change what was
    read ahead: an operation in steps writes nothing but what is guarded, by the values read or by
    a key, so that it is raced then and starts again alone.

    :param steps: the operation as a generator; it yields what it reads next.
    """

    def __init__(self, steps: Callable[[Transaction], Steps[T]]) -> None:
        self.steps = steps

    def __call__(self, transaction: Transaction) -> T:
        """Run it alone in *transaction*."""
        return alone(transaction, self.steps(transaction))


def course_of(operation: Operation[T], transaction: Transaction) -> Steps[T]:
    """Any operation in steps, if only one."""
    if isinstance(operation, InSteps):
        value: T = yield from operation.steps(transaction)
        return value
    return operation(transaction)


class Raced(Exception):
    """Another transaction was first: run the operation again."""


class NotAhead(Exception):
    """A result is wanted that was not asked for ahead, where nobody may wait for it."""


class Unavailable(Exception):
    """The database cannot be reached, or gave up in the middle."""


@define
class Submitted(Generic[T]):
    """One submitted operation."""

    operation: Operation[T]
    done: Deferred[T]
    write: bool


@define
class Outcome:
    """What became of one operation."""

    value: Any = None
    error: BaseException | None = None
    events: list[Event] = field(factory=list)
    notices: list[Notice] = field(factory=list)
    wrote: bool = False
    apart: bool = False  #: it was taken out, and is to be run where it may wait


def take_step(transaction: Transaction, course: Steps[Any], outcome: Outcome) -> Reads | None:
    """Let an operation of a shared transaction go on: what it reads next; None: it has ended."""
    transaction.turn_to(outcome)
    try:
        return next(course)
    except StopIteration as end:
        outcome.value = end.value
    except ScireFault as fault:
        if transaction.wrote:
            raise
        # It has read only: the others need not start again for it.
        outcome.error = fault
        outcome.events.clear()
        outcome.notices.clear()
    except NotAhead:
        if transaction.wrote:
            raise
        outcome.apart = True
    finally:
        outcome.wrote = transaction.wrote
    return None


class Session(ABC):
    """One thread's connection."""

    #: how often an operation is run again because of others
    RETRIES = 3

    @abstractmethod
    def begin(self, write: bool) -> Transaction:
        """Open a transaction; :raises Unavailable: there is no database."""

    @abstractmethod
    def commit(self, transaction: Transaction) -> None:
        """Keep it; :raises Raced, Unavailable: it was not kept."""

    @abstractmethod
    def roll_back(self) -> None:
        """Give it up; never raises."""

    @abstractmethod
    def close(self) -> None:
        """End the connection; never raises."""

    @abstractmethod
    def judge(self, error: Exception) -> Exception:
        """*error* as Raced, Unavailable, a ScireFault, or itself."""

    def perform(self, operations: Sequence[Operation[Any]], write: bool) -> list[Outcome]:
        """
        Run *operations*, in one transaction if they let us.

        :returns: an outcome for each; all are durable.
        """
        if len(operations) > 1:
            together = self._together(operations, write)
            if together is not None:
                return together
        return [self._alone(operation, write) for operation in operations]

    def _together(self, operations: Sequence[Operation[Any]], write: bool) -> list[Outcome] | None:
        """None: not possible, nothing was kept."""
        outcomes = [Outcome() for _ in operations]
        try:
            transaction = self.begin(write)
            under_way = [
                (course_of(operation, transaction), outcome)
                for operation, outcome in zip(operations, outcomes, strict=True)
            ]
            while under_way:
                reads = [take_step(transaction, *course) for course in under_way]
                going = [read is not None for read in reads]
                under_way = list(compress(under_way, going))
                transaction.read_ahead([one for some in reads if some for one in some])
            transaction.notices = [notice for o in outcomes for notice in o.notices]
            transaction.write_appended()
            self.commit(transaction)
        except Exception:
            # Whatever it is, running them one by one will show whose it is.
            self.roll_back()
            return None
        return outcomes

    def _alone(self, operation: Operation[Any], write: bool) -> Outcome:
        attempts = self.RETRIES
        while True:
            try:
                transaction = self.begin(write)
                value = operation(transaction)
                transaction.write_appended()
                self.commit(transaction)
                return Outcome(value, None, transaction.events, transaction.notices)
            except Exception as error:
                self.roll_back()
                judged = self.judge(error)
                if isinstance(judged, (Raced, Unavailable)) and attempts:
                    attempts -= 1
                    if isinstance(judged, Raced) or self.reconnect():
                        continue
                return Outcome(error=judged)

    def reconnect(self) -> bool:
        """Whether a lost connection is worth another attempt at once."""
        return False


class Counted(Protocol):
    """What metrics ask of whatever runs operations."""

    seconds: float  #: spent in transactions since the start

    @property
    def waiting(self) -> int:
        """Operations that wait."""


class Lane:
    """
    Threads that run the operations of one queue.

    :param connect: makes a thread's session.
    :param threads: at most so many, started as they are needed.
    :param batch: operations that may share a transaction.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        reactor: IReactorFromThreads,
        connect: Callable[[], Session],
        deliver: Callable[[Sequence[Event], Sequence[Notice]], None],
        threads: int,
        batch: int,
    ) -> None:
        self._name = name
        self._reactor = reactor
        self._connect = connect
        self._told = deliver
        self._threads = threads
        self._batch = batch
        self._queue: deque[Submitted[Any]] = deque()
        self._ready = threading.Condition()
        self._idle = 0
        self._running: list[threading.Thread] = []
        self._stopping = False
        #: seconds spent in transactions, and how many there were
        self.seconds = 0.0
        self.transactions = 0

    @property
    def waiting(self) -> int:
        """Operations that no thread has taken yet."""
        return len(self._queue)

    def submit(self, operation: Operation[T], write: bool) -> Deferred[T]:
        """Run *operation* in a thread; call this in the reactor's thread."""
        done: Deferred[T] = Deferred()
        job = Submitted(operation, done, write)
        with self._ready:
            if self._stopping:
                done.errback(ScireFault(FaultCode.GOING_DOWN, "going down"))
                return done
            self._queue.append(job)
            if self._idle:
                self._ready.notify()
            elif len(self._running) < self._threads:
                thread = threading.Thread(
                    target=self._work, name=f"scire-{self._name}", daemon=True
                )
                self._running.append(thread)
                thread.start()
        return done

    def stop(self) -> list[threading.Thread]:
        """Take nothing more, finish what waits; the threads end by themselves."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        return self._running

    def _take(self) -> list[Submitted[Any]]:
        """The next operations, all reading or all writing; empty: the end."""
        with self._ready:
            self._idle += 1
            while not self._queue and not self._stopping:
                self._ready.wait()
            self._idle -= 1
            jobs: list[Submitted[Any]] = []
            while self._queue and len(jobs) < self._batch:
                if jobs and self._queue[0].write != jobs[0].write:
                    break
                jobs.append(self._queue.popleft())
            return jobs

    def _work(self) -> None:
        session: Session | None = None
        while jobs := self._take():
            started = monotonic()
            try:
                if session is None:
                    session = self._connect()
                outcomes = session.perform([job.operation for job in jobs], jobs[0].write)
            except Exception as error:
                self._log.failure("{lane}: no session", lane=self._name)
                fault = ScireFault(FaultCode.DATABASE_UNAVAILABLE, f"no database: {error}")
                outcomes = [Outcome(error=fault) for _ in jobs]
            self.seconds += monotonic() - started
            self.transactions += 1
            self._reactor.callFromThread(self._deliver, jobs, outcomes)
        if session is not None:
            session.close()

    def _deliver(self, jobs: Sequence[Submitted[Any]], outcomes: Sequence[Outcome]) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.error is None:
                self._told(outcome.events, outcome.notices)
                job.done.callback(outcome.value)
            else:
                job.done.errback(_as_failure(outcome.error))


def _as_failure(error: BaseException) -> Failure:
    if isinstance(error, Unavailable):
        return Failure(ScireFault(FaultCode.DATABASE_UNAVAILABLE, str(error)))
    if isinstance(error, Raced):
        return Failure(ScireFault(FaultCode.BUSY, "too much contention", retry_after=1))
    return Failure(error)


class Database(ABC):
    """
    A database of job servers.

    :ivar told: called in the reactor's thread after each commit with this server's events.
    :ivar noticed: called in the reactor's thread for each notice, of any server.
    :ivar doubtful: called in the reactor's thread when notices may have been missed.
    """

    def __init__(self) -> None:
        self.told: Callable[[Event], None] = lambda event: None
        self.noticed: Callable[[Notice], None] = lambda notice: None
        self.doubtful: Callable[[], None] = lambda: None

    @abstractmethod
    def read(self, operation: Operation[T]) -> Deferred[T]:
        """Run an operation that only reads."""

    @abstractmethod
    def write(self, operation: Operation[T]) -> Deferred[T]:
        """Run an operation that may write; fires after the commit."""

    @abstractmethod
    def run_now(self, operation: Operation[T]) -> T:
        """Run an operation in this thread: for commands and for the start."""

    @abstractmethod
    def clock_difference(self) -> float:
        """Seconds that the database's clock is ahead of this host's; blocks."""

    @abstractmethod
    def start(self, reactor: Any) -> None:
        """Open what runs all the time."""

    @abstractmethod
    def stop(self) -> Deferred[None]:
        """Finish what was submitted, then close."""

    @abstractmethod
    def close(self) -> None:
        """Close this thread's own connection, and release what :meth:`run_now` took."""

    @property
    @abstractmethod
    def leading(self) -> bool:
        """Whether the duties that one server has are this one's now."""

    @abstractmethod
    def lanes(self) -> Sequence[Counted]:
        """For metrics."""
