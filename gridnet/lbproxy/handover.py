"""
Forwarding through the original's delivery daemon: lines into its spool files, and notices.

Source: docs/protocols/lbproxy.rst, "Forwarding".
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.lbproxy import ulm
from gridnet.lbproxy.book import JobBook
from gridnet.lbproxy.config import ForwardConfig
from gridnet.lbproxy.forwarding import BackOff

#: Events read from the spool at once, and octets of their lines.
PAGE_EVENTS, PAGE_OCTETS = 500, 4 << 20


@define(eq=False)
class ForwardCounts:
    """Counters since the start."""

    delivered: int = 0
    dropped: int = 0
    retried: int = 0
    failures: int = 0  #: connections that failed or were lost with events on the way


def append_line(prefix: str, unique: str, line: bytes) -> int:
    """
    Append *line*, which ends with its only line feed, to the spool file of a job, under its write
    lock, synced.

    The daemon removes files that it is through with; a file that goes while we wait for its lock
    is made anew.

    :returns: the offset at which the line begins.
    :raises OSError: it cannot be written.
    """
    # The octets of the job id: what the daemon looks for, and never longer than a name may be.
    path = b"%s.%s" % (os.fsencode(prefix), unique.encode("latin-1"))
    while True:
        number = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX)
            found = os.fstat(number)
            if found.st_nlink == 0:
                continue
            offset = found.st_size
            try:
                written = os.write(number, line)
                if written != len(line):
                    raise OSError("short write to the spool file")
                os.fsync(number)
            except OSError:
                with suppress(OSError):  # half a line would spoil the next
                    os.ftruncate(number, offset)
                raise
            return offset
        finally:
            os.close(number)


def send_notice(path: str, offset: int, line: bytes) -> bool:
    """
    Tell the daemon of a line; it finds it by itself if nobody is there to be told.

    :returns: whether it was told.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as notice:
        notice.settimeout(1.0)
        try:
            notice.connect(path)
            notice.sendall(struct.pack("=q", offset) + line)
        except OSError:
            return False
    return True


class DaemonHandover:
    """Hands everything over to the original's delivery daemon, whatever the server."""

    _log = Logger()

    def __init__(
        self,
        book: JobBook,
        config: ForwardConfig,
        reactor: Any,
        chance: random.Random,
        counts: ForwardCounts,
        settle: Callable[[int], None],
    ) -> None:
        self._book = book
        self._config = config
        self._reactor = reactor
        self._counts = counts
        self._settle = settle
        self._back_off = BackOff(config.retry_seconds, config.max_retry_seconds, chance)
        self._working = False
        self._more = True
        self._timer: IDelayedCall | None = None
        self._stopped = False
        self._through = 0
        self._idle: Deferred[None] = succeed(None)
        self.fault = ""

    def wake(self) -> None:
        """There is something new in the spool."""
        self._more = True
        if not self._working and self._timer is None and not self._stopped:
            self._working = True
            self._idle = Deferred()
            step = Deferred.fromCoroutine(self._run())
            step.addErrback(self._failed)
            step.addCallback(self._idle.callback)

    def stop(self) -> Deferred[None]:
        """Hand over nothing more; fires once the line in hand is done with."""
        self._stopped = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        return self._idle

    async def _run(self) -> None:
        while self._more and not self._stopped:
            self._more = False
            page = await self._book.read(partial(read_all_spool, after=self._through))
            for position, unique, line in page:
                if self._stopped:
                    break
                await deferToThread(self._hand_over, unique, line)
                self._through = position
                self._more = True
                self._counts.delivered += 1
                self._settle(position)
                self._back_off.reset()
                self.fault = ""
        self._working = False

    def _hand_over(self, unique: str, line: bytes) -> None:
        if line.find(b"\n") != len(line) - 1:  # the file's records are lines
            line = ulm.single_line(line)
        offset = append_line(self._config.spool_prefix, unique, line)
        send_notice(self._config.notice_socket, offset, line)

    def _failed(self, failure: Failure) -> None:
        self._working = False
        self._counts.failures += 1
        self.fault = failure.getErrorMessage()
        self._log.error("spool file: {reason}; events wait here", reason=self.fault)
        if not self._stopped:
            self._timer = self._reactor.callLater(self._back_off.pause(), self._again)

    def _again(self) -> None:
        self._timer = None
        self.wake()


def read_all_spool(connection: sqlite3.Connection, after: int) -> list[tuple[int, str, bytes]]:
    """(position, unique part, line) of what waits after a position, for any server."""
    found = connection.execute(
        "SELECT s.position, coalesce(j.unique_part, p.unique_part), e.line FROM spool s"
        " JOIN events e ON e.position = s.position LEFT JOIN jobs j ON j.id = s.job"
        " LEFT JOIN purged p ON p.job = s.job WHERE s.position > ? ORDER BY s.position LIMIT ?",
        (after, PAGE_EVENTS),
    )
    events, octets = [], 0
    for position, unique, line in found:
        events.append((position, unique, line))
        octets += len(line)
        if octets > PAGE_OCTETS:
            break
    return events
