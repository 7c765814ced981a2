"""
How jobs leave the store, with their families: at once, when they are due, or on request.

Everything here happens inside a transaction of the :class:`~gridnet.lbproxy.ledger.Ledger`.
Source: docs/protocols/lbproxy.rst, "Purge".
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from gridnet.lbproxy import ulm
from gridnet.lbproxy.calendar import MICROSECONDS, time_text
from gridnet.lbproxy.held_jobs import HeldJobs

#: Parents of parents that are followed; nobody nests collections deeper.
MAX_GENERATIONS = 8
_BEFORE_ALL = (float("-inf"), 0)


class Departures:
    """
    Removes jobs from the tables behind *connection*.

    :param jobs: what memory holds of them.
    :param stream_keep_seconds: how long events of removed jobs stay for the stream.
    :param next_serial: the number that the next row gets, so that none is ever used twice.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        jobs: HeldJobs,
        stream_keep_seconds: float,
        next_serial: Callable[[], int],
    ) -> None:
        self._db = connection
        self._jobs = jobs
        self._stream_keep_seconds = stream_keep_seconds
        self._next_serial = next_serial
        self._looked_at = _BEFORE_ALL  # by :meth:`trim`: time of the purge, job

    def family_of(self, root: str) -> list[tuple[int, str, str, str, int, int, float | None]]:
        """
        A job and everything below it: (id, unique part, job id, owner, state, updated, due).

        Empty when there is no such job.
        """
        self._jobs.flush()
        return self._db.execute(
            "WITH RECURSIVE kin (unique_part, depth) AS ("
            " SELECT unique_part, 0 FROM jobs WHERE unique_part = ?"
            " UNION SELECT j.unique_part, k.depth + 1 FROM jobs j JOIN kin k"
            "  ON j.parent = k.unique_part WHERE k.depth < ?)"
            " SELECT DISTINCT id, unique_part, job_id, owner, state, updated_at, due_at"
            " FROM jobs WHERE unique_part IN (SELECT unique_part FROM kin) ORDER BY id",
            (root, MAX_GENERATIONS),
        ).fetchall()

    def remove_families(
        self, roots: Iterable[str], now: float, *, only_due: bool = False
    ) -> list[str]:
        """
        Remove jobs with all their subjobs.

        :param only_due: leave a family alone unless each of it may leave by now.
        :returns: the job ids that went.
        """
        gone = []
        for root in roots:
            members = self.family_of(root)
            if only_due and any(due is None or due > now for *_, due in members):
                continue
            for number, unique, job_id, owner, *_ in members:
                self._remove(number, unique, job_id, owner, now)
                gone.append(job_id)
        return gone

    def _remove(self, number: int, unique: str, job_id: str, owner: str, now: float) -> None:
        execute = self._db.execute
        execute("DELETE FROM jobs WHERE id = ?", (number,))
        execute("DELETE FROM parts WHERE job = ?", (number,))
        self._jobs.removed(unique, job_id)
        keeps = self._stream_keep_seconds > 0 or self._is_spooled(number)
        execute(
            "INSERT INTO purged VALUES (?, ?, ?, ?, ?, ?)",
            (number, unique, job_id, owner, now, int(keeps)),
        )
        if not keeps:
            self._delete_events(number)

    def _is_spooled(self, job: int) -> bool:
        # Through the index of the job's events: the spool of one job may be anywhere in it.
        found = self._db.execute(
            "SELECT 1 FROM events e WHERE e.job = ?"
            " AND EXISTS (SELECT 1 FROM spool s WHERE s.position = e.position) LIMIT 1",
            (job,),
        )
        return found.fetchone() is not None

    def _delete_events(self, job: int) -> None:
        (highest,) = self._db.execute(
            "SELECT max(position) FROM events WHERE job = ?", (job,)
        ).fetchone()
        if highest is not None:
            self._db.execute("DELETE FROM events WHERE job = ?", (job,))
            self._raise_mark("trimmed", highest)
        self._raise_mark("serial", self._next_serial())

    def _raise_mark(self, name: str, value: int) -> None:
        self._db.execute(
            "INSERT INTO marks VALUES (?, ?) ON CONFLICT (name)"
            " DO UPDATE SET value = max(value, excluded.value)",
            (name, value),
        )

    def sweep(self, now: float, most: int) -> int:
        """
        Remove jobs that are due, with their families; at most *most* roots at a time.

        :returns: how many jobs went.
        """
        found = self._db.execute(
            "SELECT unique_part FROM jobs j WHERE due_at <= ? AND (parent IS NULL OR NOT"
            " EXISTS (SELECT 1 FROM jobs p WHERE p.unique_part = j.parent))"
            " AND NOT EXISTS (SELECT 1 FROM jobs c WHERE c.parent = j.unique_part"
            "  AND (c.due_at IS NULL OR c.due_at > ?))"
            " ORDER BY due_at LIMIT ?",
            (now, now, most),
        ).fetchall()
        return len(self.remove_families([unique for (unique,) in found], now, only_due=True))

    def trim(self, now: float, remember_seconds: float, most: int) -> int:
        """
        Drop events of purged jobs that nobody is owed any more, and forget old purges.

        :param remember_seconds: how long a purged id is told from an unknown one.
        :returns: how many jobs' events went.
        """
        # On from the last look: those that wait for a server that is away must not stand before
        # the others.
        found = self._db.execute(
            "SELECT purged_at, job FROM purged WHERE keeps_events AND purged_at <= ?"
            " AND (purged_at, job) > (?, ?) ORDER BY purged_at, job LIMIT ?",
            (now - self._stream_keep_seconds, *self._looked_at, most),
        ).fetchall()
        self._looked_at = found[-1] if len(found) == most else _BEFORE_ALL
        dropped = 0
        for _, job in found:
            if not self._is_spooled(job):
                self._delete_events(job)
                self._db.execute("UPDATE purged SET keeps_events = 0 WHERE job = ?", (job,))
                dropped += 1
        self._db.execute(
            "DELETE FROM purged WHERE job IN (SELECT job FROM purged"
            " WHERE purged_at <= ? AND NOT keeps_events ORDER BY purged_at LIMIT ?)",
            (now - remember_seconds, most),
        )
        return dropped

    def reschedule(self, keep_seconds: Mapping[int, float], now: float) -> None:
        """
        Give every job the time of leaving that *keep_seconds*, by state number, says.

        Jobs that already had a time keep it if their state is still one that leaves.
        """
        states = list(keep_seconds)
        marks = ", ".join("?" * len(states))
        self._db.execute(
            f"UPDATE jobs SET due_at = NULL WHERE due_at IS NOT NULL AND state NOT IN ({marks})",
            states,
        )
        for state, keep in keep_seconds.items():
            self._db.execute(
                "UPDATE jobs SET due_at = ? WHERE state = ? AND (due_at IS NULL OR due_at > ?)",
                (now + keep, state, now + keep),
            )

    def purge_candidates(self, timeouts: Sequence[float | None], now: float) -> list[str]:
        """
        Unique parts of the roots whose whole family is older than its states' time-outs.

        :param timeouts: seconds by state number; None: never.
        """
        older = " OR ".join(
            f"(j.state = {state} AND ? - j.updated_at / {MICROSECONDS} > ?)"
            for state, seconds in enumerate(timeouts)
            if seconds is not None
        )
        if not older:
            return []
        limits: list[float] = []
        for seconds in timeouts:
            if seconds is not None:
                limits += [int(now), seconds]
        found = self._db.execute(
            f"SELECT unique_part FROM jobs j WHERE ({older}) AND (parent IS NULL OR NOT EXISTS"
            " (SELECT 1 FROM jobs p WHERE p.unique_part = j.parent)) ORDER BY unique_part",
            limits,
        ).fetchall()
        return [unique for (unique,) in found if self._all_older(unique, timeouts, now)]

    def _all_older(self, root: str, timeouts: Sequence[float | None], now: float) -> bool:
        for *_, state, updated_at, _ in self.family_of(root):
            seconds = timeouts[state]
            if seconds is None or not int(now) - updated_at // MICROSECONDS > seconds:
                return False
        return True

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
        Remove *roots* and their families.

        One that has its parent in the store leaves with that only, and is passed over.

        :param timeouts: check again that each family is old enough; None: it does not matter.
        :param dump: append the events to this file first, synced before they go.
        :param really: False: only say what would go.
        :returns: job ids that went.
        """
        chosen = [
            root
            for root in roots
            if self._is_head(root) and (timeouts is None or self._all_older(root, timeouts, now))
        ]
        if dump is not None and really:
            self._dump(chosen, dump)
        if not really:
            return [job_id for root in chosen for _, _, job_id, *_ in self.family_of(root)]
        return self.remove_families(chosen, now)

    def _is_head(self, unique: str) -> bool:
        """Whether the job is there and no subjob of another, but for one of its own family."""
        family = {member for _, member, *_ in self.family_of(unique)}
        row = self._db.execute("SELECT parent FROM jobs WHERE unique_part = ?", (unique,))
        return any(
            parent is None or parent in family or self._jobs.entry(parent) is None
            for (parent,) in row
        )

    def _dump(self, roots: Iterable[str], path: Path) -> None:
        with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            for root in roots:
                for number, *_ in self.family_of(root):
                    lines = self._db.execute(
                        "SELECT arrived, line FROM events WHERE job = ? ORDER BY position",
                        (number,),
                    )
                    for arrived, line in lines:
                        stamp = time_text(arrived * MICROSECONDS).encode("ascii")
                        file.write(b"DG.ARRIVED=%s %s" % (stamp, ulm.single_line(line)))
            file.flush()
            os.fsync(file.fileno())
