"""SIGHUP: everything that can be read anew is read anew."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.signal_service import SignalService


class HangupService(SignalService):
    """
    Reloads every :class:`gridnet.interfaces.IConfigurationHolder` when the process gets SIGHUP.

    It passes the signal on to whoever had it before.
    """

    _log = Logger()

    def __init__(self, reactor: Any, holders: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """
        :param holders: gives name and holder of each, at the time of the signal.
        """
        what = "SIGHUP has the configuration read anew"
        super().__init__(reactor, signal.SIGHUP, self.reload, what)
        self._holders = holders

    def reload(self) -> None:
        """Have every holder read its configuration anew."""
        for name, holder in self._holders():
            self._log.info("SIGHUP: reading {name} anew", name=name)
            holder.reload().addErrback(self._failed, name)

    def _failed(self, failure: Failure, name: str) -> None:
        self._log.failure("reading {name} anew", failure, name=name)
