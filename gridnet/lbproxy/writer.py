"""
The one thread that writes: it takes what there is, commits it as one group, then tells.

It also has the store socket's connections, in a loop of its own: an event is read, entered,
committed and answered with no other thread in between.  Events that come while a group is being
committed form the next one, so the number of commits follows the speed of the disk and not the
number of events.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from attrs import define, frozen

from gridnet.lbproxy.events import Event
from gridnet.lbproxy.frames import Major, Reply
from gridnet.lbproxy.held_jobs import JobChanges
from gridnet.lbproxy.ledger import GroupResult, Ledger, LedgerRules
from gridnet.lbproxy.pace import Pace
from gridnet.lbproxy.store import StoreFile, failure_reply
from gridnet.lean_loop import Loop

#: Told about one event.
ReplyCallback = Callable[[Reply], None]

INTERNAL_ERROR = Reply(Major.DATABASE, errno.EIO, "internal error; see the log of the service")
STOPPING = Reply(Major.DATABASE, errno.EAGAIN, "the service is stopping")
#: How long the callers' thread may not know what was committed while nobody waits for it there:
#: each time it is woken the interpreter's lock goes there and back.
TELL_SECONDS = 0.01


class StoreClosed(RuntimeError):
    """The service is stopping, and takes nothing more."""


class Submission(NamedTuple):
    """An event to be stored; *done* gets the reply once it is durable, or refused."""

    event: Event
    done: ReplyCallback


@frozen(slots=True, eq=False)
class _Elsewhere:
    """Wants its reply in the callers' thread."""

    done: ReplyCallback


@frozen(slots=True)
class GroupReport:
    """What *committed* is told about each group."""

    result: GroupResult
    seconds: float  #: that the transaction took


@define(slots=True, eq=False)
class Backlog:
    """
    Events that have come and of which the callers' thread does not know yet what became.

    Each number only grows, and is written by one thread.
    """

    most: int  #: events
    most_octets: int  #: of their lines
    submitted: int = 0  #: by the callers' thread
    submitted_octets: int = 0
    taken: int = 0  #: by the writing thread from its own connections
    taken_octets: int = 0
    told: int = 0  #: by the callers' thread
    told_octets: int = 0

    @property
    def events(self) -> int:
        """How many there are."""
        return self.submitted + self.taken - self.told

    @property
    def octets(self) -> int:
        """Octets of their lines."""
        return self.submitted_octets + self.taken_octets - self.told_octets

    @property
    def is_full(self) -> bool:
        """Whether no more events should be read for now."""
        # Asked at every read: written out, it is not three calls.
        return (
            self.submitted + self.taken - self.told >= self.most
            or self.submitted_octets + self.taken_octets - self.told_octets >= self.most_octets
        )


@define(slots=True)
class WriterCounts:
    """Counters since the start, written by the thread, read by anyone."""

    groups: int = 0
    events: int = 0  #: stored
    failed_groups: int = 0


class Writer:
    """
    Owns the writing connection, and the loop in whose thread it writes.

    The callers' thread hears of what was done by :meth:`tell`, which it is asked to call; it may
    also call it on its own, to know of everything that was acknowledged.

    :param deliver: brings a callable to the thread of the callers (``reactor.callFromThread``).
    :param committed: told about each group of events, in that thread, after its own replies.
    :param failed: told about faults that are ours, in that thread.
    :param changed: told what happened to the list of jobs, in that thread.
    :param is_list_followed: whether somebody wants to hear of that; for any thread.
    :param is_awaited: whether somebody there waits for what is committed; for any thread.
    :param clock: seconds since the epoch.
    :param max_group: most events in one commit.
    :param pace: what it waits for; None: for nothing.
    :ivar backlog: events that wait, or were not told yet.
    :ivar loop: its thread reads, writes the store, and answers.
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
        backlog: Backlog,
        changed: Callable[[JobChanges], None] = lambda changes: None,
        is_list_followed: Callable[[], bool] = lambda: True,
        is_awaited: Callable[[], bool] = lambda: True,
        pace: Pace | None = None,
    ) -> None:
        self.fault = ""
        self.counts = WriterCounts()
        self.loop = Loop()
        self.backlog = backlog
        self._store = store
        self._rules = rules
        self._deliver = deliver
        self._committed = committed
        self._failed = failed
        self._changed = changed
        self._is_list_followed = is_list_followed
        self._is_awaited = is_awaited
        self._clock = clock
        self._max_group = max_group
        self._pace = Pace() if pace is None else pace
        self._group: list[Event] = []
        self._dones: list[ReplyCallback | _Elsewhere] = []
        self._news: deque[Callable[[], None]] = deque()
        self._is_telling = False
        self._is_asked = False  # the callers' thread has been asked to take the news
        self._tell_at: float | None = None
        self._ledger: Ledger | None = None
        self._connection: sqlite3.Connection | None = None
        self._stopped = False
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="lbproxy-writer", daemon=True)

    # -- for the callers' thread ------------------------------------------------------------------

    def start(self) -> None:
        """
        Open the connection and start the thread.

        :raises sqlite3.Error: the store cannot be written.
        """
        self._open().reschedule(self._clock())
        self.loop.open()
        self._thread.start()

    def submit(self, together: list[Submission]) -> None:
        """Store the events of *together* in their order; each is told in the callers' thread."""
        if self._stopped:
            for one in together:
                self.backlog.told += 1
                self.backlog.told_octets += len(one.event.line)
                one.done(STOPPING)
            return

        def take() -> None:
            for one in together:
                self._group.append(one.event)
                self._dones.append(_Elsewhere(one.done))

        self.loop.call(take)

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
            self.loop.call(lambda: self._do(work, done, failed))

    def tell(self) -> None:
        """Tell everything that was done since the last time."""
        # First: what is added from now on is asked for again.
        self._is_asked = False
        if self._is_telling:
            return
        self._is_telling = True
        for _ in range(len(self._news)):
            tell = self._news.popleft()
            try:
                tell()
            except Exception as error:
                self._failed(error)
        self._is_telling = False

    def stop(self) -> None:
        """
        Take nothing more; what waits is still written and told.

        Wait for :meth:`join` elsewhere than in the thread of the callers.
        """
        if not self._stopped:
            self._stopped = True
            self.loop.call(self._end)

    def join(self) -> None:
        """Block until the thread is through and the connection closed."""
        if self._thread.ident is not None:
            self._thread.join()

    # -- in the thread ----------------------------------------------------------------------------

    def take(self, event: Event, done: ReplyCallback) -> None:
        """Store *event* with the next group; *done* gets the reply, in this thread."""
        backlog = self.backlog
        backlog.taken += 1
        backlog.taken_octets += len(event.line)
        self._group.append(event)
        self._dones.append(done)

    def _end(self) -> None:
        self._ending = True

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
        """
        What happened to the list of jobs, if anybody wants to know.

        All of it is committed: who begins to follow the list from now on finds it in the store.
        """
        if self._ledger is None:
            return []
        if self._is_list_followed():
            return self._ledger.take_changes()
        self._ledger.drop_changes()
        return []

    def _drop_connection(self) -> None:
        self._ledger = None
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _run(self) -> None:
        turn, group = self.loop.turn, self._group
        while not self._ending:
            if not group:
                turn(None if self._tell_at is None else max(0.0, self._tell_at - time.monotonic()))
            if group:
                self._gather()
                size, started = len(group), time.monotonic()
                self._commit()
                self._pace.committed(size, time.monotonic() - started)
                self._look_out()
            if self._tell_at is not None and time.monotonic() >= self._tell_at:
                self._ask()
        self._commit()  # what the look-out found
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._drop_connection()
        self._ask()
        self.loop.close()

    def _gather(self) -> None:
        """
        Read what comes while others are read: it goes into the same commit.

        Clients that were answered together come again one after the other.
        """
        turn, group, most = self.loop.turn, self._group, self._max_group
        size = 0
        while size < len(group) < most:
            size = len(group)
            turn(0)
            if size == len(group) and (seconds := self._pace.pause(size)):
                time.sleep(seconds)  # a poll set counts in milliseconds, which is too coarse
                turn(0)

    def _look_out(self) -> None:
        """Look for the next event for a little: it comes sooner than sleep does."""
        seconds = self._pace.look_out()
        if not seconds:
            return
        turn, group = self.loop.turn, self._group
        until = time.monotonic() + seconds
        while not group and not self._ending and time.monotonic() < until:
            turn(0)
        self._pace.looked_out(bool(group))

    def _commit(self) -> None:
        """Write what was taken."""
        group, dones, most = self._group, self._dones, self._max_group
        while group:
            size = min(len(group), most)
            now, told = group[:size], dones[:size]
            del group[:size], dones[:size]
            self._commit_one(now, told)

    def _commit_one(self, group: list[Event], dones: list[ReplyCallback | _Elsewhere]) -> None:
        try:
            start = self._clock()
            result = self._open().apply(group, start)
            report = GroupReport(result, self._clock() - start)
        except sqlite3.Error as error:
            self._write_failed(error)
            self._answer(group, dones, [failure_reply(error)] * len(group))
        except Exception as error:
            # A fault of ours in one event must not cost the others theirs.
            self._add_news(partial(self._failed, error))
            if len(group) == 1:
                self._answer(group, dones, [INTERNAL_ERROR])
            else:
                for one, done in zip(group, dones, strict=True):
                    self._commit_one([one], [done])
        else:
            self.fault = ""
            self.counts.groups += 1
            self.counts.events += len(result.stored)
            self._answer(group, dones, result.replies, report)

    def _write_failed(self, error: sqlite3.Error) -> None:
        self.counts.failed_groups += 1
        self.fault = failure_reply(error).text
        # Whatever it was may be mended from outside: look at the file afresh next time.
        self._drop_connection()

    def _do(
        self,
        work: Callable[[Ledger], Any],
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._commit()
        try:
            found = work(self._open())
        except sqlite3.Error as error:
            self._write_failed(error)
            self._add_news(partial(failed, error))
        except Exception as error:
            self._add_news(partial(failed, error))
        else:
            self.fault = ""
            changes = self._take_changes()

            def tell() -> None:
                done(found)
                if changes:
                    self._changed(changes)

            self._add_news(tell)

    # -- telling ----------------------------------------------------------------------------------

    def _answer(
        self,
        group: list[Event],
        dones: list[ReplyCallback | _Elsewhere],
        replies: list[Reply],
        report: GroupReport | None = None,
    ) -> None:
        """Give the *replies* to *group*, and note what else there is to tell of it."""
        octets = sum([len(event.line) for event in group])
        changes = self._take_changes() if report is not None else []
        elsewhere = [
            (done.done, reply)
            for done, reply in zip(dones, replies, strict=True)
            if isinstance(done, _Elsewhere)
        ]

        def tell() -> None:
            self.backlog.told += len(group)
            self.backlog.told_octets += octets
            for done, reply in elsewhere:
                done(reply)
            if report is not None:
                self._committed(report)
            if changes:
                self._changed(changes)

        # Before the replies: whoever has one may ask the callers' thread for what it knows.
        self._news.append(tell)
        for done, reply in zip(dones, replies, strict=True):
            if not isinstance(done, _Elsewhere):
                try:
                    done(reply)
                except Exception as error:
                    self._news.append(partial(self._failed, error))
        if elsewhere or self.backlog.is_full or self._is_awaited():
            self._ask()
        elif self._tell_at is None and not self._is_asked:
            self._tell_at = time.monotonic() + TELL_SECONDS

    def _add_news(self, tell: Callable[[], None]) -> None:
        self._news.append(tell)
        self._ask()

    def _ask(self) -> None:
        """Have the callers' thread take the news."""
        self._tell_at = None
        if not self._is_asked:
            self._is_asked = True
            self._deliver(self.tell)
