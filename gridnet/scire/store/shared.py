"""
Operations in steps on the reactor: what PostgreSQL is busy with, no thread waits for.

The calls that clients make all day say ahead what they read (:class:`InSteps`) and wait for no
result of what they write.  So nothing of them needs a thread: all that arrived in one turn of the
reactor share a transaction, their statements of one kind are one statement (``sets.py``), and the
reactor goes on when the connection has the results.  What does not fit (an operation that reads
something that it did not say, one that is raced, a connection that is lost) is left to the
database's threads, which may wait; they also run every other operation.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import compress
from time import monotonic
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.store.database import (
    Event,
    NotAhead,
    Notice,
    Operation,
    Outcome,
    Parameters,
    Reads,
    Row,
    Steps,
    Submitted,
    Transaction,
    course_of,
    take_step,
)
from gridnet.scire.store.pipeline import Pipeline
from gridnet.scire.store.sets import SetForm, arrays, can_be_set, inserting, set_form

T = TypeVar("T")
#: Operations for which a transaction beside another is worth its own statements.
_ENOUGH = 4
_form = lru_cache(512)(set_form)


class SetTransaction(Transaction):
    """
    One transaction whose statements of one kind are one statement.

    What is written is gathered, and sent before the next read and before the end.  Nobody waits
    here: whatever would have to raises :class:`NotAhead`.
    """

    def __init__(self, pipeline: Pipeline, now: float) -> None:
        super().__init__(now)
        self._pipeline = pipeline
        self._kept: dict[tuple[str, Parameters], list[dict[str, Any]]] = {}
        self._writes: dict[tuple[str, bool], list[Parameters]] = {}

    def read_ahead(self, reads: Reads) -> None:
        """Send all that will be read, one statement a kind."""
        self.write_gathered()
        self._kept.clear()
        kinds: dict[str, dict[Parameters, None]] = {}
        for sql, parameters in reads:
            kinds.setdefault(sql, {})[tuple(parameters)] = None
        for sql, asked in kinds.items():
            if can_be_set(sql):
                rows = list(asked)
                form: SetForm = _form(sql)
                taken = partial(self._took_set, sql, rows)
                self._pipeline.send_for(form.sql, arrays(form.types, rows), taken)
                continue
            for parameters in asked:
                taken = partial(self._kept.__setitem__, (sql, parameters))
                self._pipeline.send_for(sql, parameters, taken)

    def _took_set(self, sql: str, asked: list[Parameters], rows: list[dict[str, Any]]) -> None:
        kept = self._kept
        for parameters in asked:
            kept[(sql, parameters)] = []
        for row in rows:
            kept[(sql, asked[row["n"] - 1])].append(row)

    def all(self, sql: str, parameters: Parameters = ()) -> Sequence[Row]:
        """The rows that were read ahead."""
        rows = self._kept.get((sql, tuple(parameters)))
        if rows is None:
            raise NotAhead(sql)
        return rows

    def one(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """The first of them."""
        rows = self.all(sql, parameters)
        return rows[0] if rows else None

    def run(self, sql: str, parameters: Parameters = ()) -> int:
        """Somebody would wait for the number of rows."""
        raise NotAhead(sql)

    def insert(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Somebody would wait for the row."""
        raise NotAhead(sql)

    def later(self, sql: str, parameters: Parameters = (), expected: int | None = None) -> None:
        """Write with the others."""
        if can_be_set(sql):
            self._writes.setdefault((sql, expected is not None), []).append(parameters)
        elif expected is not None:
            raise NotAhead(sql)
        else:
            self.write_gathered()
            self._pipeline.send(sql, parameters)
        self.wrote = True

    def write_gathered(self) -> None:
        """Send what waits to be written."""
        for (sql, guarded), rows in self._writes.items():
            form: SetForm = _form(sql, guarded)
            self._pipeline.send(form.sql, arrays(form.types, rows))
        self._writes.clear()

    def write_appended(self) -> None:
        """Write what was appended, a statement a table."""
        self.write_gathered()
        for into in [into for into in self._gathered if self._is_set(into)]:
            rows = self._gathered.pop(into)
            form: SetForm = _form(inserting(into, len(rows[0])))
            self._pipeline.send(form.sql, arrays(form.types, rows))
        super().write_appended()

    def _is_set(self, into: str) -> bool:
        return can_be_set(inserting(into, len(self._gathered[into][0])))


class SharedSession(Protocol):
    """What the reactor's transactions need of a connection."""

    @property
    def fresh(self) -> bool:
        """Whether it is connected, and knows the database's clock."""

    def refresh(self) -> None:
        """Make it so; blocks, and raises whatever is in the way."""

    @property
    def pipeline(self) -> Pipeline:
        """The statements of the connection."""

    def database_seconds(self) -> float:
        """Now, by the database's clock."""

    def fileno(self) -> int:
        """Of the connection's socket."""

    def notify(self, notices: Sequence[Notice]) -> None:
        """Send *notices* with the transaction."""

    def roll_back(self) -> None:
        """Give the transaction up; blocks, never raises."""

    def close(self) -> None:
        """End the connection."""


@implementer(IReadWriteDescriptor)
class _Channel:
    """
    One connection, and the transaction that is under way on it.

    It is *lent* to a thread while something has to be waited for: connecting, setting the clock,
    rolling back.
    """

    def __init__(self, lane: ReactorLane, session: SharedSession) -> None:
        self._lane = lane
        self._session = session
        self.busy = False
        self._descriptor = -1
        self._writing = False
        self._jobs: list[Submitted[Any]] = []
        self._outcomes: list[Outcome] = []
        self._under_way: list[tuple[Steps[Any], Outcome]] = []
        self._transaction: SetTransaction | None = None
        self._committing = False
        self._started = 0.0

    # -- what the reactor calls

    def fileno(self) -> int:
        """Of the connection: a descriptor of our own, for libpq closes its own when it likes."""
        return self._descriptor

    def logPrefix(self) -> str:
        """For the log."""
        return "scire-database"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends, or the descriptor is not one any more."""
        self._close_descriptor()

    def doRead(self) -> None:
        """Results have come, or the end of the connection."""
        pipeline = self._session.pipeline
        try:
            pipeline.consume()
            if self._transaction is None or not pipeline.collect():
                return
            if self._committing:
                pipeline.leave()
                self._committed()
                return
            self._advance()
        except Exception as error:
            self._failed(error)

    def doWrite(self) -> None:
        """The connection takes more."""
        try:
            self._flush()
        except Exception as error:
            self._failed(error)

    # -- one transaction

    def begin(self, jobs: list[Submitted[Any]]) -> None:
        """Run *jobs* in one transaction."""
        self.busy = True
        self._jobs = jobs
        self._started = monotonic()
        if not self._session.fresh:
            self._lend(self._session.refresh, self._connected)
            return
        self._run()

    def _connected(self, error: Exception | None) -> None:
        if error is None:
            self._run()
        else:
            self._give_up()

    def _run(self) -> None:
        try:
            self._watch()
            pipeline = self._session.pipeline
            pipeline.begin()
            transaction = SetTransaction(pipeline, self._session.database_seconds())
            self._transaction, self._committing = transaction, False
            self._outcomes = [Outcome() for _ in self._jobs]
            self._under_way = [
                (course_of(job.operation, transaction), outcome)
                for job, outcome in zip(self._jobs, self._outcomes, strict=True)
            ]
            self._advance()
        except Exception as error:
            self._failed(error)

    def _advance(self) -> None:
        """Let every operation go a step; send what they read next, or the end."""
        transaction, pipeline = self._transaction, self._session.pipeline
        assert transaction is not None
        reads = [take_step(transaction, *course) for course in self._under_way]
        self._under_way = list(compress(self._under_way, [read is not None for read in reads]))
        if self._under_way:
            transaction.read_ahead([one for some in reads if some for one in some])
            pipeline.request()
        else:
            transaction.write_appended()
            notices = (notice for outcome in self._outcomes for notice in outcome.notices)
            self._session.notify(list(dict.fromkeys(notices)))
            self._committing = True
            pipeline.send_commit()
        self._flush()

    def _flush(self) -> None:
        more = self._session.pipeline.flush()
        if more != self._writing:
            reactor = self._lane.reactor
            (reactor.addWriter if more else reactor.removeWriter)(self)
            self._writing = more

    def _committed(self) -> None:
        jobs, outcomes = self._end()
        self._lane.finished(self._started)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.apart:
                self._lane.apart(job)
            else:
                self._lane.tell(job, outcome)

    def _end(self) -> tuple[list[Submitted[Any]], list[Outcome]]:
        jobs, outcomes = self._jobs, self._outcomes
        self._jobs, self._outcomes, self._under_way = [], [], []
        self._transaction = None
        self.busy = False
        return jobs, outcomes

    # -- what has to be waited for

    def _failed(self, error: Exception) -> None:
        """Nothing was kept, or nobody knows: each runs alone, where it may wait."""
        self._lane.log.debug("shared transaction given up, {reason}", reason=str(error))
        self._transaction = None
        self._lend(self._session.roll_back, lambda _: self._give_up())

    def _give_up(self) -> None:
        jobs, _ = self._end()
        for job in jobs:
            self._lane.apart(job)
        self._lane.go_on()

    def _lend(self, function: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        self.busy = True
        self._forget()
        reactor = self._lane.reactor
        waiting = deferToThreadPool(reactor, reactor.getThreadPool(), function)

        def failed(failure: Failure) -> None:
            self._lane.log.warn("no connection, {reason}", reason=failure.getErrorMessage())
            done(Exception(failure.getErrorMessage()))

        waiting.addCallbacks(lambda _: done(None), failed)
        waiting.addErrback(
            lambda failure: self._lane.log.failure("shared transactions", failure=failure)
        )

    def _watch(self) -> None:
        if self._descriptor < 0:
            self._descriptor = os.dup(self._session.fileno())
            self._lane.reactor.addReader(self)

    def _forget(self) -> None:
        if self._descriptor >= 0:
            self._lane.reactor.removeReader(self)
            self._lane.reactor.removeWriter(self)
            self._writing = False
            self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """End the connection."""
        self._forget()
        self._session.close()


class ReactorLane:
    """
    Runs operations in steps, without threads of its own.

    :param connect: makes a connection's session.
    :param deliver: told what was committed.
    :param elsewhere: runs an operation that does not fit here.
    :param connections: transactions at a time.
    :param batch: operations that may share one.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        connect: Callable[[], SharedSession],
        deliver: Callable[[Sequence[Event], Sequence[Notice]], None],
        elsewhere: Callable[[Operation[Any], bool], Deferred[Any]],
        connections: int,
        batch: int,
    ) -> None:
        self.reactor = reactor
        self._told = deliver
        self._elsewhere = elsewhere
        self._batch = batch
        self._queue: deque[Submitted[Any]] = deque()
        self._channels = [_Channel(self, connect()) for _ in range(connections)]
        self._called = False
        self._stopping: Deferred[None] | None = None
        #: seconds that transactions took, and how many there were
        self.seconds = 0.0
        self.transactions = 0

    @property
    def waiting(self) -> int:
        """Operations that wait for a transaction."""
        return len(self._queue)

    def submit(self, operation: Operation[T], write: bool) -> Deferred[T]:
        """Run *operation* with those that come in the same turn of the reactor."""
        done: Deferred[T] = Deferred()
        if self._stopping is not None:
            done.errback(ScireFault(FaultCode.GOING_DOWN, "going down"))
            return done
        self._queue.append(Submitted(operation, done, write))
        if not self._called and not all(channel.busy for channel in self._channels):
            self._called = True
            self.reactor.callLater(0, self._turn)
        return done

    def _turn(self) -> None:
        self._called = False
        self.go_on()

    def go_on(self) -> None:
        """Begin transactions as long as there is something to do and a connection."""
        for channel in self._channels:
            if not self._queue:
                break
            if not channel.busy:
                if len(self._queue) < _ENOUGH and any(c.busy for c in self._channels):
                    # The transaction that is under way ends soon, and then takes them all.
                    break
                count = min(len(self._queue), self._batch)
                channel.begin([self._queue.popleft() for _ in range(count)])
        if self._stopping is not None and not self._queue:
            self._close()

    def finished(self, started: float) -> None:
        """A transaction was kept: the connection is free for the next one."""
        self.seconds += monotonic() - started
        self.transactions += 1
        self.go_on()

    def tell(self, job: Submitted[Any], outcome: Outcome) -> None:
        """Answer one that was kept, or refused."""
        if outcome.error is None:
            self._told(outcome.events, outcome.notices)
            job.done.callback(outcome.value)
        else:
            job.done.errback(Failure(outcome.error))

    def apart(self, job: Submitted[Any]) -> None:
        """Run one that did not fit where it may wait."""
        self._elsewhere(job.operation, job.write).chainDeferred(job.done)

    def stop(self) -> Deferred[None]:
        """Take nothing more; fires when all is done."""
        if self._stopping is None:
            self._stopping = Deferred()
            self.go_on()
        return self._stopping

    def _close(self) -> None:
        assert self._stopping is not None
        if self._stopping.called or any(channel.busy for channel in self._channels):
            return
        for channel in self._channels:
            channel.close()
        self._stopping.callback(None)
