"""Signals as services: taken while the reactor runs, given back at the end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger


class SignalService(Service):
    """
    Calls *received* in the reactor whenever the process gets the signal *number*.

    It takes the signal only from a reactor that takes signals itself, once that runs: a process
    that embeds a site keeps its own.

    :param what: what the signal does, for the log: ``SIGHUP has the configuration read anew``.
    :param pass_on: whether whoever had the signal before gets it too.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        number: signal.Signals,
        received: Callable[[], object],
        what: str,
        pass_on: bool = True,
    ) -> None:
        self._reactor = reactor
        self._number = number
        self._call = received
        self._what = what
        self._pass_on = pass_on
        self._previous: Any = None
        self._installed = False

    def startService(self) -> None:
        """Take the signal as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        """Give the signal back."""
        super().stopService()
        if self._installed and signal.getsignal(self._number) == self._received:
            # None: a handler that was not set from Python, and cannot be set from here.
            previous = signal.SIG_DFL if self._previous is None else self._previous
            signal.signal(self._number, previous)
        self._installed = False

    def _install(self) -> None:
        # Only the reactor knows whether its run was asked to leave signals alone.
        if self.running and getattr(self._reactor, "_installSignalHandlers", False):
            self._previous = signal.signal(self._number, self._received)
            self._installed = True
            self._log.info("from now on {what}", what=self._what)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._call)
        if self._pass_on and callable(self._previous):
            self._previous(number, frame)
