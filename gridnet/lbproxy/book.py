"""
The store as the rest of the component sees it: events in, answers out, nothing that blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gridnet.errors import JobError
from gridnet.lbproxy.config import LbproxyConfig
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.frames import Reply
from gridnet.lbproxy.held_jobs import JobChanges
from gridnet.lbproxy.ledger import Ledger, LedgerRules
from gridnet.lbproxy.pace import Pace
from gridnet.lbproxy.store import QueryTimeout, Readers, Snapshot, StoreFile
from gridnet.lbproxy.stream import Page
from gridnet.lbproxy.subscriptions import Hub
from gridnet.lbproxy.writer import Backlog, GroupReport, ReplyCallback, Submission, Writer

T = TypeVar("T")


class Overloaded(JobError):
    """Too much is waiting already; a query peer sees HTTP 503."""


class JobBook:
    """
    One store with its writing thread, its reading threads and its followers.

    All methods are for the reactor's thread.  What they tell includes all that was acknowledged,
    by whatever thread.

    :ivar backlog: events that wait for their commit, or were not told yet.
    :ivar on_forwardable: told the destinations that a group has something new for.
    :ivar on_room: told when fewer events wait again than may.
    :ivar on_jobs_changed: told what happened to the list of jobs.
    :ivar is_list_followed: whether anybody waits for that; for any thread.
    """

    _log = Logger()

    def __init__(
        self, config: LbproxyConfig, rules: LedgerRules, store: StoreFile, reactor: Any
    ) -> None:
        self.config = config
        self.store = store
        self.backlog = Backlog(config.max_waiting_events, config.max_waiting_octets)
        self.purged = self.not_forwarded = 0
        self._stored = self._duplicates = 0
        self._hub = Hub(config.stream, self._read_page)
        self.on_forwardable: Callable[[set[str]], None] = lambda destinations: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_jobs_changed: Callable[[JobChanges], None] = lambda changes: None
        self.is_list_followed: Callable[[], bool] = lambda: False
        self._reactor = reactor
        self._together: list[Submission] = []
        self._waiting_queries = 0
        self._readers = Readers(store)
        self._pool = ThreadPool(0, config.query_threads, "lbproxy-queries")
        self._slow_pool = ThreadPool(0, config.slow_query_threads, "lbproxy-slow-queries")
        self.writer = Writer(
            store,
            rules,
            deliver=reactor.callFromThread,
            committed=self._committed,
            failed=self._writer_failed,
            clock=reactor.seconds,
            max_group=config.max_group_events,
            backlog=self.backlog,
            changed=lambda changes: self.on_jobs_changed(changes),
            is_list_followed=lambda: self.is_list_followed(),
            is_awaited=lambda: self._hub.followers > 0 or self.is_list_followed(),
            pace=Pace(config.look_out_seconds, config.max_gather_seconds),
        )

    def start(self) -> None:
        """
        Open the store and start the threads.

        :raises gridnet.errors.ConfigError: the store cannot be used.
        """
        self.store.open()
        if self.store.set_aside is not None:
            self._log.error(
                "{store} was damaged: it is now {aside}, and a new store was begun",
                store=str(self.store.path),
                aside=str(self.store.set_aside),
            )
        try:
            self.writer.start()
        except BaseException as error:
            self.store.close()
            if isinstance(error, sqlite3.Error):
                raise self.store.fault(f"cannot be written: {error}") from None
            raise
        with self._readers.reading(self.config.query_seconds) as connection:
            (newest,) = connection.execute(
                # The newest may have gone with its job: who has had it is not behind.
                "SELECT max((SELECT ifnull(max(position), 0) FROM events),"
                " (SELECT ifnull(max(value), 0) FROM marks WHERE name = 'trimmed'))"
            ).fetchone()
        self._hub.start(newest)
        self._pool.start()
        self._slow_pool.start()

    def abandon(self) -> None:
        """Close at once, before anything was taken in: the start has failed."""
        self._readers.close()
        self.writer.stop()
        self.writer.join()
        self._pool.stop()
        self._slow_pool.stop()
        self.store.close()

    def stop(self) -> Deferred[None]:
        """Write what waits, then close; fires once the file is closed."""
        self._hub.close()
        self._readers.close()
        self._hand_over()
        self.writer.stop()

        def end() -> None:
            self.writer.join()

        waiting: Deferred[Any] = deferToThreadPool(self._reactor, self._pool, end)

        def close(_: Any) -> None:
            # All threads are idle by now or at the end of their last query.
            self._pool.stop()
            self._slow_pool.stop()
            self.store.close()

        return waiting.addBoth(close)

    # -- writing ----------------------------------------------------------------------------------

    def submit(self, event: Event, done: ReplyCallback) -> None:
        """Store *event*; *done* gets the reply once it is durable, or refused."""
        self.backlog.submitted += 1
        self.backlog.submitted_octets += len(event.line)
        self._together.append(Submission(event, done))
        if len(self._together) == 1:
            # What the reactor reads in one turn goes to the writer as one: each waking up of a
            # thread takes the interpreter's lock away from the other.
            self._reactor.callLater(0, self._hand_over)

    def _hand_over(self) -> None:
        if self._together:
            together, self._together = self._together, []
            self.writer.submit(together)

    def log(self, event: Event) -> Deferred[Reply]:
        """The same as a Deferred."""
        result: Deferred[Reply] = Deferred()
        self.submit(event, result.callback)
        return result

    def change(self, work: Callable[[Ledger], T]) -> Deferred[T]:
        """Have *work* done on the ledger by the writing thread."""
        result: Deferred[T] = Deferred()
        self._hand_over()
        self.writer.run(work, result.callback, lambda error: result.errback(Failure(error)))
        return result

    def _committed(self, report: GroupReport) -> None:
        result = report.result
        self._stored += len(result.stored)
        self._duplicates += result.duplicates
        self.purged += result.purged
        if result.not_forwarded:
            self.not_forwarded += result.not_forwarded
            self._log.error(
                "forwarding spool is full: {count} events stay here only",
                count=result.not_forwarded,
            )
        self._hub.publish(result.stored)
        if result.destinations:
            self.on_forwardable(result.destinations)
        if not self.backlog.is_full:
            self.on_room()

    @property
    def hub(self) -> Hub:
        """The event stream."""
        self.writer.tell()
        return self._hub

    @property
    def stored(self) -> int:
        """Events stored since the start."""
        self.writer.tell()
        return self._stored

    @property
    def duplicates(self) -> int:
        """Repeated events since the start."""
        self.writer.tell()
        return self._duplicates

    def _writer_failed(self, error: BaseException) -> None:
        self._log.failure("an event could not be entered", Failure(error))

    # -- reading ----------------------------------------------------------------------------------

    def read(self, work: Callable[[Snapshot], T]) -> Deferred[T]:
        """
        Have *work* done on a snapshot of the store, in a thread.

        What is not done soon begins again in threads for the slow, so that it holds up only
        others of its kind.

        :raises QueryTimeout: (in the Deferred) it takes too long there too.
        :raises Overloaded: (in the Deferred) too many wait.
        """
        if self._waiting_queries >= self.config.max_waiting_queries:
            return fail(Overloaded("too many queries wait"))
        self._waiting_queries += 1

        def run(seconds: float) -> T:
            with self._readers.reading(seconds) as connection:
                return work(connection)

        config = self.config
        soon = min(config.quick_query_seconds, config.query_seconds)
        reading: Deferred[T] = deferToThreadPool(self._reactor, self._pool, run, soon)

        def once_more(failure: Failure) -> Deferred[T]:
            failure.trap(QueryTimeout)
            return deferToThreadPool(self._reactor, self._slow_pool, run, config.query_seconds)

        if soon < config.query_seconds:
            reading.addErrback(once_more)
        return reading.addBoth(self._read_done)

    def _read_done(self, result: T) -> T:
        self._waiting_queries -= 1
        return result

    def read_now(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """
        Have *work* done on a snapshot of the store at once, by the caller: for short work.

        :raises sqlite3.Error: the store cannot be read.
        """
        with self._readers.reading(self.config.query_seconds) as connection:
            return work(connection)

    def _read_page(self, work: Callable[[sqlite3.Connection], Page]) -> Deferred[Page]:
        return self.read(work)

    def facts(self) -> dict[str, Any]:
        """For the status board."""
        writer = self.writer
        return {
            "store": str(self.store.path),
            "set aside": str(self.store.set_aside or ""),
            "events stored": self.stored,
            "duplicates": self.duplicates,
            "commits": writer.counts.groups,
            "failed commits": writer.counts.failed_groups,
            "jobs removed": self.purged,
            "events waiting": self.backlog.events,
            "queries waiting": self._waiting_queries,
            "followers": self.hub.followers,
            "deliveries": self.hub.delivered,
        }

    def cursor(self, consumer: str) -> Deferred[int | None]:
        """Where the consumer stopped, or None for one that is not known."""

        def find(connection: sqlite3.Connection) -> int | None:
            row = connection.execute(
                "SELECT position FROM consumers WHERE name = ?", (consumer,)
            ).fetchone()
            return row[0] if row is not None else None

        return self.read(find)

    def move_cursor(self, consumer: str, position: int) -> Deferred[bool]:
        """Note how far *consumer* has come; False: there are too many consumers."""
        config = self.config.stream
        now = self._reactor.seconds()
        return self.change(
            lambda ledger: ledger.set_cursor(
                consumer, position, now, config.max_consumers, config.keep_consumers_seconds
            )
        )
