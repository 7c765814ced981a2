"""
The daemon's log: how long it may grow, and how much goes into it
(docs/protocols/lbsmd-config.rst, Log).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

from twisted.application.service import MultiService
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    globalLogPublisher,
    textFileLogObserver,
)
from zope.interface import implementer

from gridnet.lbsmd.repeats import Repeats
from gridnet.signal_service import SignalService

KIB = 1024
#: Sizes that are no bounds: the file is made if need be; it must be there already.
NO_LIMIT, ONLY_IF_THERE = 0, -1
_MOVED = "the log goes on elsewhere: this file was moved or removed"
_FULL = "the log ends: this file has come to its limit"
#: Device and inode of a file.
_Identity = tuple[int, int]
#: Seconds in which warnings that say the same count as one, unless all are wanted.
REPEAT_SECONDS = 60.0


class SizedLog:
    """
    A file of a bounded size, to whose end lines are added; the file-like object of an observer.

    When the file was moved or removed, or has come to its limit, a last line in it says so.  What
    is at the path at the next message is then opened anew.

    :ivar failure: why the last message could not be written; empty: it was, or was not meant to.
    :param size: KiB; 0: no limit; -1: no limit, but nothing is logged while there is no file.
    :param now: text of the time, for the last line.
    """

    def __init__(self, path: Path, size: int, now: Callable[[], str]) -> None:
        self.failure = ""
        self.path = path
        self.size = size
        self._now = now
        self._handle = -1
        #: the file at the path that has no room, and how long it was then
        self._full: tuple[_Identity, int] | None = None

    def write(self, text: str) -> None:
        """Add *text*, whole lines, if there is room."""
        octets = text.encode("utf-8", "replace")
        try:
            self._write(octets)
            self.failure = ""
        except OSError as error:
            # A log that cannot be written must not stop the daemon.
            self.failure = f"{self.path}: {error.strerror or error}"
            self.close()

    def flush(self) -> None:
        """Everything has been written already."""

    def close(self) -> None:
        """Close the file; the next message opens it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _write(self, octets: bytes) -> None:
        if self._handle >= 0 and _identity(self.path) != _identity_of(self._handle):
            self._put(self._line(_MOVED))
            self.close()
        if self._handle < 0 and not self._open():
            return
        size = os.fstat(self._handle).st_size
        if self.size > 0 and size + len(octets) > self.size * KIB:
            if not self._ends_with(_FULL, size):
                self._put(self._line(_FULL))
            self._full = _identity_of(self._handle), size
            self.close()
            return
        self._put(octets)

    def _open(self) -> bool:
        """Open what is at the path; False: there is nothing, or no room in it."""
        found = _identity(self.path)
        if found is None:
            self._full = None
            if self.size == ONLY_IF_THERE:
                return False
        elif self._full is not None and found == self._full[0]:
            if self.path.stat().st_size >= self._full[1]:
                return False
            self._full = None  # somebody has cut it short
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        create = 0 if self.size == ONLY_IF_THERE else os.O_CREAT
        self._handle = os.open(self.path, flags | create, 0o644)
        return True

    def _line(self, reason: str) -> bytes:
        return f"{self._now()} {reason}\n".encode()

    def _ends_with(self, reason: str, size: int) -> bool:
        """Whether an earlier life of the daemon has written that last line."""
        wanted = f" {reason}\n".encode()
        return os.pread(self._handle, len(wanted), max(0, size - len(wanted))) == wanted

    def _put(self, octets: bytes) -> None:
        view = memoryview(octets)
        while view:
            view = view[os.write(self._handle, view) :]


def _identity(path: Path) -> _Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _identity_of(handle: int) -> _Identity:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino


@implementer(ILogObserver)
class Verbosity:
    """
    Lets through what is to be logged: all but debugging, and a warning that repeats only now and
    then.

    :ivar all_warnings: let every warning through.
    """

    def __init__(self, observer: ILogObserver) -> None:
        self.all_warnings = False
        self._observer = observer
        self._warnings = Repeats(REPEAT_SECONDS)

    def toggle(self) -> None:
        """Less, or all warnings."""
        self.all_warnings = not self.all_warnings
        self._warnings.clear()

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if level is LogLevel.debug:
            return
        if level is LogLevel.warn and not self.all_warnings:
            left_out = self._left_out(event)
            if left_out is None:
                return
            if left_out:
                event = {
                    **event,
                    "log_format": f"{event.get('log_format')} ({{left_out}} like it left out)",
                    "left_out": left_out,
                }
        self._observer(event)

    def _left_out(self, event: LogEvent) -> int | None:
        """How many like this were left out since the last that was logged; None: so is this."""
        kind = (str(event.get("log_namespace")), str(event.get("log_format")))
        return self._warnings.left_out(kind, float(event.get("log_time", 0.0)))


class DaemonLog(MultiService):
    """
    Writes everything that is logged to the daemon's own file while it runs.

    SIGUSR1 toggles between less (the start) and all warnings.
    """

    _log = Logger()

    def __init__(self, path: Path, size: int, reactor: Any) -> None:
        super().__init__()
        self.file = SizedLog(path, size, _now)
        self.verbosity = Verbosity(textFileLogObserver(cast(IO[Any], self.file)))
        # twistd would turn its own log over at that signal.
        SignalService(
            reactor,
            signal.SIGUSR1,
            self.toggle,
            "SIGUSR1 toggles between less and all warnings",
            pass_on=False,
        ).setServiceParent(self)

    def startService(self) -> None:
        """Begin to write."""
        globalLogPublisher.addObserver(self.verbosity)
        super().startService()
        self._log.info("logging to {file}", file=str(self.file.path))
        if self.file.failure:
            self._log.error("no log of the daemon's own: {reason}", reason=self.file.failure)

    def check(self) -> str:
        """For the health page."""
        return f"the log cannot be written: {self.file.failure}" if self.file.failure else ""

    def stopService(self) -> Any:
        """Write no more."""
        stopping = super().stopService()
        globalLogPublisher.removeObserver(self.verbosity)
        self.file.close()
        return stopping

    def toggle(self) -> None:
        """Between less and all warnings."""
        self.verbosity.toggle()
        self._log.info(
            "logging {what} from now on",
            what="all warnings" if self.verbosity.all_warnings else "warnings that repeat once",
        )


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%dT%H:%M:%S%z")
