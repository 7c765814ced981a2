"""SIGHUP: everything that can be read anew is read anew."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python.failure import Failure


class HangupService(Service):
    """
    Reloads every :class:`gridnet.interfaces.IConfigurationHolder` when the process gets SIGHUP.

    It takes the signal only from a reactor that takes signals itself, once that runs (a process
    that embeds a site keeps its own), and passes it on to whoever had it before.
    """

    _log = Logger()

    def __init__(self, reactor: Any, holders: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """
        :param holders: gives name and holder of each, at the time of the signal.
        """
        self._reactor = reactor
        self._holders = holders
        self._previous: Any = None
        self._installed = False

    def startService(self) -> None:
        """Take the signal as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        """Give the signal back."""
        super().stopService()
        if self._installed and signal.getsignal(signal.SIGHUP) == self._received:
            # None: a handler that was not set from Python, and cannot be set from here.
            previous = signal.SIG_DFL if self._previous is None else self._previous
            signal.signal(signal.SIGHUP, previous)
        self._installed = False

    def _install(self) -> None:
        # Only the reactor knows whether its run was asked to leave signals alone.
        if self.running and getattr(self._reactor, "_installSignalHandlers", False):
            self._previous = signal.signal(signal.SIGHUP, self._received)
            self._installed = True
            self._log.info("from now on SIGHUP has the configuration read anew")

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.reload)
        if callable(self._previous):
            self._previous(number, frame)

    def reload(self) -> None:
        """Have every holder read its configuration anew."""
        for name, holder in self._holders():
            self._log.info("SIGHUP: reading {name} anew", name=name)
            holder.reload().addErrback(self._failed, name)

    def _failed(self, failure: Failure, name: str) -> None:
        self._log.failure("reading {name} anew", failure, name=name)
