"""
The one thread that writes: it takes what waits, commits it as one group, then tells.

Events that come while a group is being committed form the next one, so the number of commits
follows the speed of the disk and not the number of events.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from attrs import define, frozen

from gridnet.lbproxy.events import Event
from gridnet.lbproxy.frames import Major, Reply
from gridnet.lbproxy.held_jobs import JobChanges
from gridnet.lbproxy.ledger import GroupResult, Ledger, LedgerRules
from gridnet.lbproxy.store import StoreFile, failure_reply

#: Told about one event, in the thread that *deliver* brings it to.
ReplyCallback = Callable[[Reply], None]

INTERNAL_ERROR = Reply(Major.DATABASE, errno.EIO, "internal error; see the log of the service")
STOPPING = Reply(Major.DATABASE, errno.EAGAIN, "the service is stopping")


class StoreClosed(RuntimeError):
    """The service is stopping, and takes nothing more."""


class Submission(NamedTuple):
    """An event to be stored; *done* gets the reply once it is durable, or refused."""

    event: Event
    done: ReplyCallback


@frozen(slots=True, eq=False)
class _Chore:
    work: Callable[[Ledger], Any]
    done: Callable[[Any], None]
    failed: Callable[[BaseException], None]


@frozen(slots=True)
class GroupReport:
    """What *committed* is told about each group."""

    result: GroupResult
    seconds: float  #: that the transaction took


@define(slots=True)
class WriterCounts:
    """Counters since the start, written by the thread, read by anyone."""

    groups: int = 0
    events: int = 0  #: stored
    failed_groups: int = 0


class Writer:
    """
    Owns the writing connection.

    :param deliver: brings a callable to the thread of the callers (``reactor.callFromThread``).
    :param committed: told about each group of events, in that thread, after the replies.
    :param failed: told about faults that are ours, in that thread.
    :param changed: told what happened to the list of jobs, in that thread.
    :param clock: seconds since the epoch.
    :param max_group: most events in one commit.
    :ivar fault: why the last attempt to write failed; empty when it did not.
    """

    def __init__(
        self,
        store: StoreFile,
        rules: LedgerRules,
        *,
        deliver: Callable[..., object],
        committed: Callable[[GroupReport], None],
        failed: Callable[[BaseException], None],
        clock: Callable[[], float],
        max_group: int = 512,
        changed: Callable[[JobChanges], None] = lambda changes: None,
    ) -> None:
        self.fault = ""
        self.counts = WriterCounts()
        self._store = store
        self._rules = rules
        self._deliver = deliver
        self._committed = committed
        self._failed = failed
        self._changed = changed
        self._clock = clock
        self._max_group = max_group
        self._queue: SimpleQueue[list[Submission] | _Chore | None] = SimpleQueue()
        self._ledger: Ledger | None = None
        self._connection: sqlite3.Connection | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="lbproxy-writer", daemon=True)

    def start(self) -> None:
        """
        Open the connection and start the thread.

        :raises sqlite3.Error: the store cannot be written.
        """
        self._open().reschedule(self._clock())
        self._thread.start()

    def submit(self, together: list[Submission]) -> None:
        """Store the events of *together*, which is the writer's from now on, in their order."""
        if self._stopped:
            for one in together:
                one.done(STOPPING)
        else:
            self._queue.put(together)

    def run(
        self,
        work: Callable[[Ledger], Any],
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Have *work* done on the ledger, between groups; one of *done* and *failed* is called."""
        if self._stopped:
            failed(StoreClosed("the store is closed"))
        else:
            self._queue.put(_Chore(work, done, failed))

    def stop(self) -> None:
        """
        Take nothing more; what waits is still written and told.

        Wait for :meth:`join` elsewhere than in the thread of the callers.
        """
        if not self._stopped:
            self._stopped = True
            self._queue.put(None)

    def join(self) -> None:
        """Block until the thread is through and the connection closed."""
        if self._thread.ident is not None:
            self._thread.join()

    # -- in the thread ----------------------------------------------------------------------------

    def _open(self) -> Ledger:
        if self._ledger is None:
            connection = self._store.connect()
            try:
                self._ledger = Ledger(connection, self._rules)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._ledger

    def _take_changes(self) -> JobChanges:
        return self._ledger.take_changes() if self._ledger is not None else []

    def _drop_connection(self) -> None:
        self._ledger = None
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _run(self) -> None:
        queue = self._queue
        while True:
            item = queue.get()
            group: list[Submission] = []
            ending = False
            while True:
                if isinstance(item, list):
                    group += item
                    if len(group) >= self._max_group:
                        break
                else:
                    self._commit(group)
                    group = []
                    if item is None:
                        ending = True
                        break
                    self._do(item)
                try:
                    item = queue.get_nowait()
                except Empty:
                    break
            self._commit(group)
            if ending:
                break
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._drop_connection()

    def _commit(self, group: list[Submission]) -> None:
        most = self._max_group
        for start in range(0, len(group), most):
            self._commit_one(group[start : start + most])

    def _commit_one(self, group: list[Submission]) -> None:
        try:
            report = self._apply([one.event for one in group])
        except sqlite3.Error as error:
            self._write_failed(error)
            replies = [failure_reply(error)] * len(group)
            self._tell(group, replies)
        except Exception as error:
            # A fault of ours in one event must not cost the others theirs.
            self._deliver(self._failed, error)
            if len(group) == 1:
                self._tell(group, [INTERNAL_ERROR])
            else:
                for one in group:
                    self._commit_one([one])
        else:
            self.fault = ""
            self.counts.groups += 1
            self.counts.events += len(report.result.stored)
            self._tell(group, report.result.replies, report)

    def _apply(self, events: list[Event]) -> GroupReport:
        start = self._clock()
        result = self._open().apply(events, start)
        return GroupReport(result, self._clock() - start)

    def _write_failed(self, error: sqlite3.Error) -> None:
        self.counts.failed_groups += 1
        self.fault = failure_reply(error).text
        # Whatever it was may be mended from outside: look at the file afresh next time.
        self._drop_connection()

    def _do(self, chore: _Chore) -> None:
        try:
            done = chore.work(self._open())
        except sqlite3.Error as error:
            self._write_failed(error)
            self._deliver(chore.failed, error)
        except Exception as error:
            self._deliver(chore.failed, error)
        else:
            self.fault = ""
            self._deliver(chore.done, done)
            if changes := self._take_changes():
                self._deliver(self._changed, changes)

    def _tell(
        self, group: list[Submission], replies: list[Reply], report: GroupReport | None = None
    ) -> None:
        """Bring all there is to say of *group* to the callers, in one go: each wakes them up."""
        changes = self._take_changes() if report is not None else []

        def tell() -> None:
            for one, reply in zip(group, replies, strict=True):
                one.done(reply)
            if report is not None:
                self._committed(report)
            if changes:
                self._changed(changes)

        self._deliver(tell)
