"""
The book that events are entered into: one connection to the store, one caller at a time.

A group of events is applied inside one transaction and written together; whoever calls
:meth:`Ledger.apply` gets the replies only after the commit.  This module knows no threads
(:mod:`gridnet.lbproxy.writer` does) and no reactor.  The steps of an event are
docs/protocols/lbproxy.rst, "What happens to a stored event".
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from attrs import define, field, frozen

from gridnet.lbproxy import family, frames, rows
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.changes import COUNTING_TYPES
from gridnet.lbproxy.departures import MAX_GENERATIONS, Departures
from gridnet.lbproxy.event_types import PRIORITY_DIRECT, PRIORITY_EXCLUSIVE, PRIORITY_INTERNAL
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.frames import Major, Reply
from gridnet.lbproxy.held_jobs import HeldJob, HeldJobs, JobChanges, fingerprint
from gridnet.lbproxy.identity import comparison_key, is_nobody, normal_form
from gridnet.lbproxy.jobid import JobIdError, subjob
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.record import COMPOUND, JobRecord, subjob_record
from gridnet.lbproxy.state import apply
from gridnet.lbproxy.statements import INSERT_NEW_JOBS

T = TypeVar("T")

TOO_MANY_SUBJOBS = Reply(Major.DATABASE, errno.E2BIG, "too many subjobs in one registration")
SPOOL_FULL = Reply(Major.DATABASE, errno.ENOSPC, "forwarding spool is full")


@frozen
class LedgerRules:
    """What the ledger does besides storing."""

    host: str = "localhost"  #: that computed events come from
    #: state number -> seconds that a job stays after reaching it; states not named stay
    keep_seconds: Mapping[int, float] = field(factory=dict)
    stream_keep_seconds: float = 0.0  #: how long events of purged jobs stay for the stream
    forwards: bool = False  #: whether events go on to the jobs' servers
    #: ``host:port`` of servers that share this store: nothing is forwarded to them
    local_servers: frozenset[str] = frozenset()
    max_spooled: int = 1_000_000  #: events waiting to be forwarded
    drops_when_full: bool = False  #: a full spool: store and do not forward, instead of refusing
    max_subjobs: int = 100_000  #: of one registration
    cache_octets: int = 64 << 20  #: of jobs held in memory, roughly


class StoredEvent(NamedTuple):
    """One event that is in the store now."""

    position: int
    event: Event
    job_id: str
    owner: str
    state_before: int
    state: int
    arrived: int  #: seconds since the epoch


@define(slots=True)
class GroupResult:
    """What became of a group, in its order."""

    replies: list[Reply] = field(factory=list)
    stored: list[StoredEvent] = field(factory=list)
    destinations: set[str] = field(factory=set)  #: that there is something new for
    duplicates: int = 0
    purged: int = 0
    not_forwarded: int = 0  #: for want of room in the spool


class Ledger:
    """
    Applies events to the store behind *connection*.

    :ivar rules: what it goes by.
    """

    def __init__(self, connection: sqlite3.Connection, rules: LedgerRules) -> None:
        self.rules = rules
        self._db = connection
        self._jobs = HeldJobs(connection)
        self._result = GroupResult()
        self._serial = 1
        self._departures = Departures(
            connection, self._jobs, rules.stream_keep_seconds, lambda: self._serial
        )
        self.spooled = 0
        self._recount()

    # -- transactions -----------------------------------------------------------------------------

    def _recount(self) -> None:
        """Learn from the tables what is held in memory about them."""
        (highest,) = self._db.execute(
            "SELECT max((SELECT ifnull(max(position), 0) FROM events),"
            " (SELECT ifnull(max(id), 0) FROM jobs),"
            " (SELECT ifnull(max(job), 0) FROM purged),"
            " (SELECT ifnull(max(value), 0) FROM marks))"
        ).fetchone()
        self._serial = highest + 1
        (self.spooled,) = self._db.execute("SELECT count(*) FROM spool").fetchone()

    def transaction(self, work: Callable[[], T]) -> T:
        """
        Do *work* in one transaction: all of it is durable afterwards, or nothing.

        :raises sqlite3.Error: nothing was written; the next transaction starts afresh.
        """
        spooled = self.spooled
        try:
            self._db.execute("BEGIN IMMEDIATE")
            done = work()
            self._jobs.flush()
            self._db.execute("COMMIT")
        except BaseException:
            self.spooled = spooled
            self._forget()
            raise
        self._jobs.trim(self.rules.cache_octets)
        return done

    def _forget(self) -> None:
        """Give up the transaction and everything that memory holds of it."""
        self._jobs.forget()
        with suppress(sqlite3.Error):  # what still holds then shows in ``in_transaction``
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def take_changes(self) -> JobChanges:
        """What has happened to the list of jobs since the last call, all of it committed."""
        return self._jobs.take_changes()

    def drop_changes(self) -> None:
        """Forget what has happened to the list of jobs since the last call: nobody asks."""
        self._jobs.drop_changes()

    def apply(self, group: Sequence[Event], now: float) -> GroupResult:
        """
        Enter *group* in its order, in one transaction.

        :param now: seconds since the epoch, the events' time of arrival.
        :raises sqlite3.Error: nothing of the group was stored.
        """

        def work() -> GroupResult:
            self._result = result = GroupResult()
            for event in group:
                result.replies.append(self._enter(event, now))
            return result

        return self.transaction(work)

    # -- one event --------------------------------------------------------------------------------

    def _enter(self, event: Event, now: float) -> Reply:
        if is_nobody(event.user):
            return frames.NOBODY
        unique = event.job_id.unique
        entry = self._jobs.entry(unique)
        registers = event.type.name == "RegJob"
        if registers:
            refusal = self._check_registration(entry, event)
            if refusal is not None:
                return refusal
        if entry is None and not registers:
            return frames.NOT_REGISTERED
        mark = fingerprint(event)
        if entry is not None and self._jobs.is_known(entry, mark):
            self._result.duplicates += 1
            return frames.OK
        destination = self._destination(event)
        if destination and self.spooled >= self.rules.max_spooled:
            if not self.rules.drops_when_full:
                return SPOOL_FULL
            destination = ""
            self._result.not_forwarded += 1
        is_new = entry is None
        if entry is None:
            record = JobRecord(event.job_id, normal_form(event.user))
            entry = self._jobs.add(self._next_serial(), record)
        position = self._happen(entry, event, mark, now)
        if destination:
            self._jobs.spool_rows.append((position, destination, entry.id))
            self.spooled += 1
            self._result.destinations.add(destination)
        ahead = self._meet_family(entry) if is_new else ""
        if registers:
            self._make_subjobs(entry, event)
        if ahead:
            self._follow_children(entry, ahead, event, now)
        self._settle(entry, now)
        return frames.OK

    def _check_registration(self, entry: HeldJob | None, event: Event) -> Reply | None:
        exclusive = event.priority & PRIORITY_EXCLUSIVE
        if entry is not None:
            if comparison_key(event.user) != comparison_key(entry.record.owner):
                return frames.OTHER_OWNER
            if exclusive:
                return frames.EXISTS
        elif exclusive and self._was_purged(event.job_id.unique):
            return frames.EXISTS
        if event.fields.get("nsubjobs", 0) > self.rules.max_subjobs:
            return TOO_MANY_SUBJOBS
        return None

    def _was_purged(self, unique: str) -> bool:
        found = self._db.execute("SELECT 1 FROM purged WHERE unique_part = ?", (unique,))
        return found.fetchone() is not None

    def _destination(self, event: Event) -> str:
        """Where the event goes on to; empty: nowhere."""
        if not self.rules.forwards or event.priority & (PRIORITY_DIRECT | PRIORITY_INTERNAL):
            return ""
        server = event.job_id.server
        return "" if server in self.rules.local_servers else server

    def _next_serial(self) -> int:
        serial = self._serial
        self._serial += 1
        return serial

    def _happen(self, entry: HeldJob, event: Event, mark: int, now: float) -> int:
        """Let *event* happen to the job and to its parents; returns its position."""
        record = entry.record
        before, old_class, was_new = record.state, record.child_class, entry.is_new
        apply(record, event)
        if event.type.name == "RegJob":
            entry.parent = _unique_of(record.get("parent_job"))
        position = self._next_serial()
        self._jobs.event_rows.append(
            (
                position,
                entry.id,
                mark,
                event.type.number,
                event.source,
                event.level,
                event.timestamp,
                int(now),
                before,
                record.state,
                event.line,
            )
        )
        self._jobs.remember(entry, mark)
        self._jobs.soil(entry)
        self._result.stored.append(
            StoredEvent(
                position,
                event,
                entry.job_id,
                record.owner,
                before,
                record.state,
                int(now),
            )
        )
        if record.state != before or was_new:
            keep = self.rules.keep_seconds.get(record.state)
            entry.due_at = None if keep is None else now + keep
        if entry.parent and record.child_class != old_class:
            self._tell_parent(entry, old_class, event, now)
        return position

    def _parent_of(self, child: HeldJob) -> HeldJob | None:
        """The compound job that *child* names as its parent, if it is in the store."""
        parent = self._jobs.entry(child.parent) if child.parent else None
        if parent is None or parent is child or parent.record.job_type not in COMPOUND:
            return None
        return parent

    def _tell_parent(self, child: HeldJob, old_class: int, event: Event, now: float) -> None:
        """Count a child that moved, and log the parent's new state if that changes it."""
        parent = self._parent_of(child)
        if parent is None:
            return
        family.move_child(parent.record, old_class, child.record.child_class)
        self._jobs.soil(parent)
        self._follow_children(parent, str(child.record.job_id), event, now)

    def _follow_children(self, parent: HeldJob, child: str, event: Event, now: float) -> None:
        """Log the state that its children give *parent*, if it is another than it has."""
        state = family.computed_state(parent.record)
        if state is None or state == parent.record.state:
            return
        if self._generation(parent) > MAX_GENERATIONS:
            return
        made = family.collection_event(
            parent.record,
            state,
            child,
            event.type.name,
            self.rules.host,
            int(now * MICROSECONDS),
        )
        self._happen(parent, made, fingerprint(made), now)

    def _meet_family(self, entry: HeldJob) -> str:
        """
        Count a new job where its parent has not said how many it will have, and its children.

        :returns: the id of a child that was there before it, when one of them has moved already.
        """
        parent = self._parent_of(entry)
        if parent is not None and not parent.record.get("children_num"):
            parent.record.class_counts[entry.record.child_class] += 1
            self._jobs.soil(parent)
        if entry.record.job_type not in COMPOUND:
            return ""
        self._jobs.flush()
        found = self._db.execute(
            "SELECT state, json_extract(record, '$[0].done_code'), count(*), max(id) FROM jobs"
            " WHERE parent = ? AND id <> ? GROUP BY 1, 2",
            (entry.record.job_id.unique, entry.id),
        ).fetchall()
        if not found:
            return ""
        self._jobs.soil(entry)
        if not family.count_early(entry.record, [row[:3] for row in found]):
            return ""
        (child,) = self._db.execute(
            "SELECT job_id FROM jobs WHERE id = ?", (max(row[3] for row in found),)
        ).fetchone()
        return str(child)

    def _generation(self, entry: HeldJob) -> int:
        depth = 0
        above: HeldJob | None = entry
        while above is not None and above.parent and depth <= MAX_GENERATIONS:
            above = self._jobs.entry(above.parent)
            depth += 1
        return depth

    def _make_subjobs(self, entry: HeldJob, event: Event) -> None:
        """Create the subjobs that a registration announces, unless they exist."""
        record = entry.record
        total = int(record.get("children_num"))
        if event.fields["jobtype"] not in COUNTING_TYPES or not total:
            return
        self._jobs.flush()
        core = ""
        unique = event.job_id.unique
        made = []
        for index in range(total):
            job_id = subjob(event.job_id, event.get("seed"), index)
            child = subjob_record(record, job_id)
            core = core or rows.dump(child.core())
            made.append(
                (
                    self._next_serial(),
                    job_id.unique,
                    str(job_id),
                    record.owner,
                    comparison_key(record.owner),
                    child.job_type,
                    child.state,
                    unique,
                    child.entered_at,
                    child.updated_at,
                    None,
                    core,
                )
            )
            self._jobs.note_change(child, unique)
        INSERT_NEW_JOBS.write(self._db, made)

    # -- leaving ----------------------------------------------------------------------------------

    def _settle(self, entry: HeldJob, now: float) -> None:
        """Remove the job, and its family, if it may leave at once."""
        if entry.due_at is not None and entry.due_at <= now:
            gone = self._departures.remove_families([self._root(entry)], now, only_due=True)
            self._result.purged += len(gone)

    def _root(self, entry: HeldJob) -> str:
        """The unique part of the oldest ancestor that is in the store."""
        seen = set()
        while entry.parent and entry.parent not in seen:
            seen.add(entry.record.job_id.unique)
            above = self._jobs.entry(entry.parent)
            if above is None:
                break
            entry = above
        return entry.record.job_id.unique

    def sweep(self, now: float, most: int) -> int:
        """
        Remove jobs that are due, with their families; at most *most* roots at a time.

        :returns: how many jobs went.
        """
        return self.transaction(lambda: self._departures.sweep(now, most))

    def trim(self, now: float, remember_seconds: float, most: int) -> int:
        """
        Drop events of purged jobs that nobody is owed any more, and forget old purges.

        :param remember_seconds: how long a purged id is told from an unknown one.
        :returns: how many jobs' events went.
        """
        return self.transaction(lambda: self._departures.trim(now, remember_seconds, most))

    def reschedule(self, now: float) -> None:
        """
        Give every job the time of leaving that the present rules say.

        For the start of the service: the rules may have changed since the file was written.
        Jobs that already had a time keep it if the rules still remove their state.
        """
        self.transaction(lambda: self._departures.reschedule(self.rules.keep_seconds, now))
        self._jobs.clear()

    def purge_candidates(self, timeouts: Sequence[float | None], now: float) -> list[str]:
        """
        Unique parts of the roots whose whole family is older than its states' time-outs.

        :param timeouts: seconds by state number; None: never.
        """
        return self._departures.purge_candidates(timeouts, now)

    def purge(
        self,
        roots: Sequence[str],
        now: float,
        *,
        timeouts: Sequence[float | None] | None = None,
        dump: Path | None = None,
        really: bool = True,
    ) -> list[str]:
        """
        Remove *roots* and their families in one transaction.

        One that has its parent in the store leaves with that only, and is passed over.

        :param timeouts: check again that each family is old enough; None: it does not matter.
        :param dump: append the events to this file first, synced before they go.
        :param really: False: only say what would go.
        :returns: job ids that went.
        """
        return self.transaction(
            lambda: self._departures.purge(roots, now, timeouts=timeouts, dump=dump, really=really)
        )

    # -- forwarding and consumers -----------------------------------------------------------------

    def forwarded(self, positions: Sequence[int]) -> None:
        """Take events out of the spool: their servers have them."""

        def work() -> None:
            before = self._db.total_changes
            self._db.execute(
                "DELETE FROM spool WHERE position IN (SELECT value FROM json_each(?))",
                (json.dumps(list(positions)),),
            )
            removed = self._db.total_changes - before
            self.spooled -= removed

        self.transaction(work)

    def set_cursor(
        self, name: str, position: int, now: float, most: int, keep_seconds: float
    ) -> bool:
        """
        Note how far the consumer *name* has come.

        :param most: consumers that there may be.
        :param keep_seconds: one that was not seen for longer makes room for others.
        :returns: False: it would be one more.
        """

        def work() -> bool:
            (others,) = self._db.execute(
                "SELECT count(*) FROM consumers WHERE name <> ?", (name,)
            ).fetchone()
            if others >= most:
                dropped = self._db.execute(
                    "DELETE FROM consumers WHERE seen_at < ? AND name <> ?",
                    (now - keep_seconds, name),
                ).rowcount
                if others - dropped >= most:
                    return False
            self._db.execute(
                "INSERT INTO consumers VALUES (?, ?, ?) ON CONFLICT (name)"
                " DO UPDATE SET position = excluded.position, seen_at = excluded.seen_at",
                (name, position, now),
            )
            return True

        return self.transaction(work)


def _unique_of(job_id: str) -> str:
    try:
        return parse_job_id(job_id).unique if job_id else ""
    except JobIdError:
        return ""
