"""The open runs as a list that mirrors follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from gridnet.interfaces import IObjectSource
from gridnet.scire.machine import OPEN, RunState
from gridnet.scire.store.database import Operation, Row, Transaction

Attributes = Mapping[str, Any]
Changed = Callable[[str, Attributes | None], None]

_COLUMNS = """
    SELECT r.id, r.state, r.job_id, j.name AS job_name, u.name AS owner, c.name AS client,
           r.occurrence, r.due, r.priority, r.attempt, r.started_at, r.ended_at, r.exit_code,
           r.changed_at
    FROM runs r JOIN jobs j ON j.id = r.job_id JOIN clients c ON c.id = r.client_id
    LEFT JOIN users u ON u.id = j.user_id """
_WORDS = ", ".join(f"'{state.value}'" for state in sorted(OPEN))
_OPEN = f"{_COLUMNS} WHERE r.state IN ({_WORDS}) ORDER BY r.id DESC LIMIT ?"
#: Runs that are read at a time.
_AT_ONCE = 200


def attributes_of(row: Row) -> Attributes:
    """What the list tells of a run; times in seconds since the epoch."""
    names = ("state", "job_id", "job_name", "owner", "client", "occurrence", "due", "priority")
    more = ("attempt", "started_at", "ended_at", "exit_code", "changed_at")
    return {name.removesuffix("_at"): row[name] for name in (*names, *more)}


@implementer(IObjectSource)
class RunSource:
    """
    ``runs``: every run that has not ended, by its id.

    Nothing is read or kept while nobody follows.  The database is read in threads, so a list
    that somebody begins to follow fills a moment later.  A run that ends is told with its end,
    and leaves.  Changes made by other servers of the same database are told when this one
    changes the run, or reads it anew.

    :param read: runs an operation that only reads; gives a Deferred.
    :param most: open runs of a list that fills; of more, the newest.
    """

    object_type = "runs"
    _log = Logger()

    def __init__(self, read: Callable[[Operation[Any]], Deferred[Any]], most: int = 100_000):
        self._read = read
        self._most = most
        self._followers: dict[object, Changed] = {}
        self._rows: dict[str, Attributes] = {}
        self._changed: set[int] = set()
        self._reading = False
        self._filled = False

    def snapshot(self) -> Mapping[str, Attributes]:
        """The runs that are known now."""
        return dict(self._rows)

    def subscribe(self, changed: Changed) -> Callable[[], None]:
        """Call *changed* at each change."""
        token = object()
        self._followers[token] = changed
        if len(self._followers) == 1:
            self._start(self._fill())

        def end() -> None:
            self._followers.pop(token, None)
            if not self._followers:
                self._forget()

        return end

    def _forget(self) -> None:
        self._rows.clear()
        self._changed.clear()
        self._filled = False

    def note(self, run: int) -> None:
        """A run has changed."""
        if self._followers:
            self._changed.add(run)
            if not self._reading:
                # If the list could not be read before, now is the time to try again.
                self._start(self._follow() if self._filled else self._fill())

    def _start(self, coroutine: Any) -> None:
        def failed(failure: Any) -> None:
            self._reading = False
            self._log.warn("runs could not be read: {reason}", reason=failure.getErrorMessage())

        self._reading = True
        Deferred.fromCoroutine(coroutine).addErrback(failed)

    async def _fill(self) -> None:
        rows = await self._read(lambda tx: tx.all(_OPEN, (self._most,)))
        # What changed meanwhile is newer than what was read.
        self._put(row for row in rows if row["id"] not in self._changed)
        self._filled = bool(self._followers)
        await self._follow()

    async def _follow(self) -> None:
        while self._changed:
            wanted = tuple(islice(self._changed, _AT_ONCE))
            self._changed.difference_update(wanted)

            def read(tx: Transaction, ids: tuple[int, ...] = wanted) -> Any:
                places = ", ".join("?" * len(ids))
                return tx.all(f"{_COLUMNS} WHERE r.id IN ({places}) ORDER BY r.id", ids)

            try:
                self._put(await self._read(read))
            except Exception:
                self._changed.update(wanted)  # with the next change
                raise
        self._reading = False

    def _put(self, rows: Iterable[Row]) -> None:
        for row in rows if self._followers else ():
            key, attributes = str(row["id"]), attributes_of(row)
            is_open = RunState(row["state"]) in OPEN
            if not is_open and key not in self._rows:
                continue
            if self._rows.get(key) == attributes:
                continue
            self._rows[key] = attributes
            self._tell(key, attributes)
            if not is_open:
                del self._rows[key]
                self._tell(key, None)

    def _tell(self, key: str, attributes: Attributes | None) -> None:
        for changed in list(self._followers.values()):
            changed(key, attributes)
