"""
The jobs that the ledger has in memory, and what of them waits to be written to the tables.

An event of a job in memory costs no reading.  What changes is written by :meth:`HeldJobs.flush`,
inside the ledger's transaction; when that fails everything here is given up.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from hashlib import blake2b
from typing import Any, NamedTuple

from attrs import define

from gridnet.lbproxy import rows
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.identity import comparison_key
from gridnet.lbproxy.record import JobRecord
from gridnet.lbproxy.statements import (
    INSERT_EVENTS,
    INSERT_JOBS,
    INSERT_SPOOL,
    SET_PARTS,
    UPDATE_JOBS,
    UPDATE_STATES,
)

#: A job with more events than this asks the table for duplicates instead of remembering them.
_REMEMBERED_FINGERPRINTS = 4096
#: What an entry costs besides its texts, roughly, in octets.
_ENTRY_OCTETS, _FINGERPRINT_OCTETS, _PART_OCTETS = 2500, 90, 300


class JobSummary(NamedTuple):
    """What a list of jobs shows of one."""

    job_id: str
    owner: str  #: normal form
    state: int
    job_type: int
    parent: str  #: unique part; empty: none
    entered_at: int  #: the present state, microseconds
    updated_at: int  #: microseconds


#: What happened to the list of jobs, in its order: a job as it is now, or the id of one that went.
JobChanges = list[JobSummary | str]


@define(slots=True, eq=False)
class HeldJob:
    """A job in memory."""

    id: int
    record: JobRecord
    job_id: str  #: as a text
    parent: str  #: unique part; empty: none
    fingerprints: set[int] | None  #: of its events; None: too many, ask the table
    due_at: float | None = None
    #: parent and due_at as they are in its row
    indexed: tuple[str, float | None] = ("", None)
    is_new: bool = False
    dirty: bool = False
    octets: int = _ENTRY_OCTETS  #: at least what it takes, as far as that is known
    weigh_at: int = 2 * _ENTRY_OCTETS  #: octets from which they are to be counted anew


def fingerprint(event: Event) -> int:
    """64 bits by which a repeated event of the same job is known."""
    digest = blake2b(event.fingerprint_octets, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class HeldJobs:
    """
    Jobs in memory, over the tables behind *connection*.

    :ivar event_rows: rows of table ``events`` that wait.
    :ivar spool_rows: rows of table ``spool`` that wait.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.event_rows: list[tuple[Any, ...]] = []
        self.spool_rows: list[tuple[Any, ...]] = []
        self._db = connection
        self._cache: OrderedDict[str, HeldJob] = OrderedDict()
        self._cached_octets = 0
        self._dirty: list[HeldJob] = []
        self._pending_fingerprints: set[tuple[int, int]] = set()
        self._changes: list[HeldJob | JobSummary | str] = []

    def __len__(self) -> int:
        return len(self._cache)

    def take_changes(self) -> JobChanges:
        """What has happened to the list of jobs since the last call."""
        changes, self._changes = self._changes, []
        return [
            _summary(one.record, one.job_id, one.parent) if isinstance(one, HeldJob) else one
            for one in changes
        ]

    def drop_changes(self) -> None:
        """Forget what has happened to the list of jobs since the last call."""
        self._changes.clear()

    def add(self, number: int, record: JobRecord) -> HeldJob:
        """A job that is not in the table yet."""
        entry = HeldJob(number, record, str(record.job_id), "", set(), is_new=True)
        self._cache[record.job_id.unique] = entry
        self._cached_octets += entry.octets
        return entry

    def remember(self, entry: HeldJob, mark: int) -> None:
        """Note the fingerprint of an event that waits in :attr:`event_rows`."""
        if entry.fingerprints is None:
            self._pending_fingerprints.add((entry.id, mark))
            return
        entry.fingerprints.add(mark)
        self._grow(entry, _FINGERPRINT_OCTETS)
        if len(entry.fingerprints) > _REMEMBERED_FINGERPRINTS:
            self._stop_remembering(entry)

    def removed(self, unique: str, job_id: str) -> None:
        """The job is no longer in the table."""
        entry = self._cache.pop(unique, None)
        if entry is not None:
            self._cached_octets -= entry.octets
        self._changes.append(job_id)

    def clear(self) -> None:
        """Read every job anew from now on."""
        self._cache.clear()
        self._cached_octets = 0

    def forget(self) -> None:
        """Give up everything, also what waits."""
        self.clear()
        self._dirty.clear()
        self.event_rows.clear()
        self.spool_rows.clear()
        self._pending_fingerprints.clear()
        self._changes = []

    def is_known(self, entry: HeldJob, mark: int) -> bool:
        """Whether the job has an event of that fingerprint."""
        if entry.fingerprints is not None:
            return mark in entry.fingerprints
        if (entry.id, mark) in self._pending_fingerprints:
            return True
        found = self._db.execute(
            "SELECT 1 FROM events WHERE job = ? AND fingerprint = ?", (entry.id, mark)
        )
        return found.fetchone() is not None

    def entry(self, unique: str) -> HeldJob | None:
        """The job with that unique part, from memory or table, or None."""
        entry = self._cache.get(unique)
        if entry is not None:
            self._cache.move_to_end(unique)
            return entry
        row = self._db.execute(_LOAD_JOB, (unique,)).fetchone()
        if row is None:
            return None
        *columns, parent, due_at = row
        record = rows.record_from(tuple(columns))
        number = columns[0]
        rows.load_parts(self._db, number, record)
        marks = self._db.execute(
            "SELECT fingerprint FROM events WHERE job = ? LIMIT ?",
            (number, _REMEMBERED_FINGERPRINTS + 1),
        ).fetchall()
        known = {mark for (mark,) in marks} if len(marks) <= _REMEMBERED_FINGERPRINTS else None
        entry = HeldJob(number, record, str(record.job_id), parent or "", known, due_at)
        entry.indexed = entry.parent, due_at
        self._cache[unique] = entry
        self._cached_octets += entry.octets
        self._weigh(entry)
        return entry

    def soil(self, entry: HeldJob) -> None:
        """Note that its record is to be written."""
        if not entry.dirty:
            entry.dirty = True
            self._dirty.append(entry)

    def flush(self) -> None:
        """Write what waits in memory to the tables, inside the transaction."""
        if self._dirty:
            self._flush_jobs()
        if self.event_rows:
            INSERT_EVENTS.write(self._db, self.event_rows)
            self.event_rows.clear()
            self._pending_fingerprints.clear()
        if self.spool_rows:
            INSERT_SPOOL.write(self._db, self.spool_rows)
            self.spool_rows.clear()

    def _flush_jobs(self) -> None:
        inserts: list[tuple[Any, ...]] = []
        updates: list[tuple[Any, ...]] = []
        states: list[tuple[Any, ...]] = []
        parts: list[tuple[Any, ...]] = []
        for entry in self._dirty:
            record = entry.record
            core = rows.dump(record.core())
            indexed = entry.parent, entry.due_at
            if entry.is_new:
                inserts.append(
                    (
                        entry.id,
                        record.job_id.unique,
                        entry.job_id,
                        record.owner,
                        comparison_key(record.owner),
                        record.job_type,
                        record.state,
                        entry.parent or None,
                        record.entered_at,
                        record.updated_at,
                        entry.due_at,
                        core,
                    )
                )
                entry.is_new = False
            else:
                row = (
                    record.job_type,
                    record.state,
                    record.entered_at,
                    record.updated_at,
                    core,
                    entry.id,
                )
                if indexed == entry.indexed:
                    states.append(row)
                else:
                    updates.append((*row, entry.parent or None, entry.due_at))
            entry.indexed = indexed
            entry.dirty = False
            if record.touched:
                self._flush_parts(entry, parts)
        self._changes += self._dirty
        self._dirty.clear()
        if inserts:
            INSERT_JOBS.write(self._db, inserts)
        if states:
            UPDATE_STATES.write(self._db, states)
        if updates:
            UPDATE_JOBS.write(self._db, updates)
        if parts:
            SET_PARTS.write(self._db, parts)

    def note_change(self, record: JobRecord, parent: str) -> None:
        """Tell of a job that is not in memory as it is now."""
        self._changes.append(_summary(record, str(record.job_id), parent))

    def _flush_parts(self, entry: HeldJob, parts: list[tuple[Any, ...]]) -> None:
        record = entry.record
        job = entry.id
        octets = 0
        # Whole parts go before rows are put in.
        for part in [part for part, key in record.touched if key is None]:
            self._db.execute("DELETE FROM parts WHERE job = ? AND part = ?", (job, str(part)))
        for part, key in record.touched:
            if key is None:
                continue
            value = record.part_value(part, key)
            if value is None:
                self._db.execute(
                    "DELETE FROM parts WHERE job = ? AND part = ? AND key = ?",
                    (job, str(part), key),
                )
            else:
                text = rows.dump(value)
                parts.append((job, str(part), key, text))
                octets += len(text) + _PART_OCTETS
        self._grow(entry, octets)
        record.touched.clear()

    def _grow(self, entry: HeldJob, octets: int) -> None:
        """Count *octets* more; what they replace is seen when the job is weighed again."""
        entry.octets += octets
        self._cached_octets += octets
        if entry.octets > entry.weigh_at:
            self._weigh(entry)

    def _weigh(self, entry: HeldJob) -> None:
        weight = _weight(entry)
        self._cached_octets += weight - entry.octets
        entry.octets = weight
        entry.weigh_at = 2 * weight

    def _stop_remembering(self, entry: HeldJob) -> None:
        """Leave it to the table to know the events of a job that has this many."""
        waiting = {mark for _, job, mark, *_ in self.event_rows if job == entry.id}
        self._pending_fingerprints.update((entry.id, mark) for mark in waiting)
        entry.fingerprints = None
        self._weigh(entry)

    def trim(self, most_octets: int) -> None:
        """Give up the jobs that were not asked for the longest, down to *most_octets*."""
        while self._cached_octets > most_octets and len(self._cache) > 1:
            _, entry = self._cache.popitem(last=False)
            self._cached_octets -= entry.octets


def _summary(record: JobRecord, job_id: str, parent: str) -> JobSummary:
    return JobSummary(
        job_id,
        record.owner,
        record.state,
        record.job_type,
        parent,
        record.entered_at,
        record.updated_at,
    )


def _weight(entry: HeldJob) -> int:
    record = entry.record
    texts = sum(len(value) for value in record.values.values() if type(value) is str)
    lists = record.destinations, record.nodes, record.failures
    texts += sum(len(text) + 50 for texts_of in lists for text in texts_of) if any(lists) else 0
    texts += (
        sum(len(tag.value) + _PART_OCTETS for tag in record.tags.values()) if record.tags else 0
    )
    texts += sum(len(row.jdl) + _PART_OCTETS for row in record.branches.values())
    return _ENTRY_OCTETS + texts + _FINGERPRINT_OCTETS * len(entry.fingerprints or ())


_LOAD_JOB = f"SELECT {rows.JOB_COLUMNS}, j.parent, j.due_at FROM jobs j WHERE unique_part = ?"
