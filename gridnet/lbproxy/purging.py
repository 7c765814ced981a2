"""The purge request: an outside client removes jobs (docs/protocols/lbproxy.rst, "Purge")."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from gridnet.lbproxy import reply_xml
from gridnet.lbproxy.answers import Answer
from gridnet.lbproxy.book import JobBook
from gridnet.lbproxy.query import NEVER, SERVICE_DEFAULT, PurgeFlags, PurgeRequest
from gridnet.lbproxy.rows import chunks


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

    def purge(self, request: PurgeRequest) -> Deferred[Answer]:
        """
        Do what *request* asks.

        With the background flag the answer comes at once, and the work goes on.
        """
        running: Deferred[Answer] = Deferred.fromCoroutine(self._purge(request))
        if PurgeFlags.BACKGROUND not in request.flags:
            return running
        running.addErrback(lambda failure: self._log.failure("purging in the background", failure))
        answered: Deferred[Answer] = Deferred()
        answered.callback(Answer(202, reply_xml.write_purge_result(())))
        return answered

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
        pause = request.run_seconds / len(batches) if batches else 0.0
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
