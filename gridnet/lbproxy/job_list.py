"""The jobs of the LB proxy as a list that mirrors follow."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from gridnet.interfaces import IObjectSource
from gridnet.lbproxy.book import JobBook
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.held_jobs import JobChanges, JobSummary
from gridnet.lbproxy.record import JOB_TYPE_WORDS, STATES

Attributes = Mapping[str, Any]
Changed = Callable[[str, Attributes | None], None]


def attributes_of(job: JobSummary) -> Attributes:
    """What the list tells of a job; times in seconds since the epoch."""
    return {
        "job": job.job_id,
        "owner": job.owner,
        "state": STATES[job.state],
        "type": JOB_TYPE_WORDS.get(job.job_type, ""),
        "parent": job.parent,
        "entered": job.entered_at / MICROSECONDS,
        "updated": job.updated_at / MICROSECONDS,
    }


@implementer(IObjectSource)
class JobSource:
    """
    ``jobs``: every job in the store, by its id.

    Nothing is kept for it while nobody follows.

    :param most: jobs of a snapshot; of more, the newest are shown.
    """

    object_type = "jobs"
    _log = Logger()

    def __init__(self, book: JobBook, most: int) -> None:
        self._book = book
        self._most = most
        self._followers: dict[object, Changed] = {}
        book.on_jobs_changed = self._tell
        book.is_list_followed = lambda: bool(self._followers)

    def snapshot(self) -> Mapping[str, Attributes]:
        """The jobs now."""
        found = self._book.read_now(self._read)
        if len(found) > self._most:
            self._log.warn("only the newest {count} jobs are listed", count=self._most)
            found.pop()
        return {job.job_id: attributes_of(job) for job in reversed(found)}

    def _read(self, connection: sqlite3.Connection) -> list[JobSummary]:
        rows = connection.execute(
            "SELECT job_id, owner, state, job_type, ifnull(parent, ''), entered_at, updated_at"
            " FROM jobs ORDER BY id DESC LIMIT ?",
            (self._most + 1,),
        )
        return [JobSummary(*row) for row in rows]

    def subscribe(self, changed: Changed) -> Callable[[], None]:
        """
        Call *changed* at each change; a state may be told again, never an older one last.

        For all that was before, look at a snapshot afterwards: what is committed while nobody
        follows is not kept.
        """
        token = object()
        self._followers[token] = changed

        def end() -> None:
            self._followers.pop(token, None)

        return end

    def _tell(self, changes: JobChanges) -> None:
        for changed in list(self._followers.values()):
            for change in changes:
                if isinstance(change, str):
                    changed(change, None)
                else:
                    changed(change.job_id, attributes_of(change))
