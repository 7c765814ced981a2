"""What the code under test logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase


def observe_log(test: SynchronousTestCase, note: Callable[[LogEvent], object]) -> None:
    """Give *note* every event logged until *test* is over."""
    # Any callable is an observer to Twisted, but a type checker cannot know that of an interface.
    observer = cast(ILogObserver, note)
    globalLogPublisher.addObserver(observer)
    test.addCleanup(globalLogPublisher.removeObserver, observer)
