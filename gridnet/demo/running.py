"""Runs a site in this process until a signal ends it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

#: The whole stop takes less than the 5 s that the demo promises.
STOP_SECONDS = 4.0
LOG_OCTETS = 10_000_000

_log = Logger()


def log_to(directory: Path) -> None:
    """Log to a file in *directory* that does not grow without end."""
    log_file = LogFile("gridnet.log", str(directory), rotateLength=LOG_OCTETS, maxRotatedFiles=3)
    globalLogBeginner.beginLoggingTo(
        [textFileLogObserver(cast(IO[Any], log_file))], redirectStandardIO=False
    )


def run_site(
    program: str,
    service: MultiService,
    ready: Callable[[], Deferred[Mapping[str, Any]]],
    answer: Callable[[Mapping[str, Any]], Deferred[Any] | None],
    reactor: Any,
) -> int:
    """
    Start *service*, run the reactor until a signal, stop; returns the exit status.

    :param program: name in front of what goes wrong at the start.
    :param ready: gives a Deferred of where everything can be reached.
    :param answer: called with it; what it gives ends the run when it fails.
    """
    outcome = [0]
    clock = IReactorTime(reactor)
    core = IReactorCore(reactor)

    def failed(failure: Failure) -> None:
        _log.failure("cannot start", failure)
        print(f"{program}: {failure.getErrorMessage()}", file=sys.stderr)
        outcome[0] = 1
        if core.running:
            core.stop()

    def start() -> None:
        try:
            service.privilegedStartService()
            service.startService()
        except Exception as error:
            failed(Failure(error))
            return
        ready().addCallback(answer).addErrback(failed)

    def stop() -> Deferred[Any] | None:
        if not service.running:
            return None
        started = time.monotonic()
        stopping: Deferred[Any] = service.stopService() or Deferred()
        if not isinstance(stopping, Deferred):
            return None
        stopping.addTimeout(STOP_SECONDS, clock)
        return stopping.addErrback(
            lambda failure: _log.failure(
                "not all stopped in {seconds} s", failure, seconds=time.monotonic() - started
            )
        )

    core.callWhenRunning(start)
    core.addSystemEventTrigger("before", "shutdown", stop)
    core.run()
    return outcome[0]
