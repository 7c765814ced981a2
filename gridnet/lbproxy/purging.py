"""The purge request: an outside client removes jobs (docs/protocols/lbproxy.rst, "Purge")."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.lbproxy import reply_xml
from gridnet.lbproxy.answers import Answer
from gridnet.lbproxy.book import JobBook, Overloaded
from gridnet.lbproxy.query import NEVER, SERVICE_DEFAULT, PurgeFlags, PurgeRequest
from gridnet.lbproxy.rows import chunks
from gridnet.lbproxy.writer import StoreClosed

_STOPPING = "the service is stopping"


class Purger:
    """
    Carries out purges, a batch of jobs a commit, so that events go on coming in between.

    :param dump_directory: of dumps at the service; made on first use.
    """

    _log = Logger()

    def __init__(self, book: JobBook, dump_directory: Path, reactor: Any) -> None:
        self._book = book
        self._dump_directory = dump_directory
        self._reactor = reactor
        self._dumps = 0
        self._running: set[Deferred[Answer]] = set()
        self._is_stopping = False

    def purge(self, request: PurgeRequest) -> Deferred[Answer]:
        """
        Do what *request* asks.

        With the background flag the answer comes at once, and the work goes on.

        :raises Overloaded: (in the Deferred) too many are under way, or the service stops.
        """
        if self._is_stopping:
            # Clients are heard until the store is closed; a pause begun now would outlive it.
            return fail(Overloaded(_STOPPING))
        if len(self._running) >= self._book.config.purge.max_running:
            return fail(Overloaded("too many purges are under way"))
        running: Deferred[Answer] = Deferred.fromCoroutine(self._purge(request))
        self._running.add(running)
        running.addBoth(self._ended, running)
        if PurgeFlags.BACKGROUND not in request.flags:
            return running
        running.addErrback(self._background_failed)
        answered: Deferred[Answer] = Deferred()
        answered.callback(Answer(202, reply_xml.write_purge_result(())))
        return answered

    def stop(self) -> None:
        """End what is under way between two batches, and begin nothing more."""
        self._is_stopping = True
        for running in list(self._running):
            running.cancel()

    def _ended(self, result: Any, running: Deferred[Answer]) -> Any:
        self._running.discard(running)
        if isinstance(result, Failure) and result.check(CancelledError, StoreClosed):
            raise Overloaded(_STOPPING)
        return result

    def _background_failed(self, failure: Failure) -> None:
        if failure.check(Overloaded, sqlite3.Error, OSError):
            self._log.warn(
                "a purge in the background ended early: {reason}", reason=str(failure.value)
            )
        else:
            self._log.failure("purging in the background", failure)

    def _timeouts(self, request: PurgeRequest) -> Sequence[float | None]:
        found: list[float | None] = []
        for state, seconds in enumerate(request.timeouts):
            if seconds == NEVER:
                found.append(None)
            elif seconds == SERVICE_DEFAULT:
                found.append(self._book.config.purge_timeout(state))
            else:
                found.append(float(seconds))
        return found

    async def _purge(self, request: PurgeRequest) -> Answer:
        book = self._book
        really = PurgeFlags.REALLY in request.flags
        timeouts: Sequence[float | None] | None = None
        if request.jobs is None:
            timeouts = found = self._timeouts(request)
            now = self._reactor.seconds()
            roots = await book.change(lambda ledger: ledger.purge_candidates(found, now))
        else:
            roots = list(dict.fromkeys(one.unique for one in request.jobs))
        dump: Path | None = None
        if really and roots and PurgeFlags.SERVER_DUMP in request.flags:
            dump = self._dump_path()
        batches = list(chunks(roots, book.config.purge.batch_jobs))
        spread = min(request.run_seconds, book.config.purge.max_run_seconds)
        pause = spread / len(batches) if batches else 0.0
        gone: list[str] = []
        for batch in batches:
            gone += await self._batch(batch, timeouts, dump, really)
            if pause and really:
                await deferLater(self._reactor, pause)
        if really:
            book.purged += len(gone)
            self._log.info("purged {count} jobs on request", count=len(gone))
        listed = gone if PurgeFlags.LIST in request.flags else []
        written = str(dump) if dump is not None and dump.exists() else ""
        return Answer(200, reply_xml.write_purge_result(listed, written))

    def _batch(
        self,
        batch: Sequence[str],
        timeouts: Sequence[float | None] | None,
        dump: Path | None,
        really: bool,
    ) -> Deferred[list[str]]:
        now = self._reactor.seconds()
        return self._book.change(
            lambda ledger: ledger.purge(batch, now, timeouts=timeouts, dump=dump, really=really)
        )

    def _dump_path(self) -> Path:
        self._dump_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._dumps += 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._reactor.seconds()))
        return self._dump_directory / f"purge-{stamp}-{self._dumps}.ulm"
