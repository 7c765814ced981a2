"""Takes connections, and gives each to a program of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime, IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import LaunchError
from gridnet.launcher.config import LauncherConfig
from gridnet.launcher.launcherd.log import LaunchLog
from gridnet.launcher.launcherd.statistics import Statistics
from gridnet.launcher.program import Attached, Job, Program
from gridnet.launcher.slots import Slots

#: Connections that wait in the system while all programs are busy.  A shorter queue overflows
#: while programs are being started, and some systems reset what does not fit.
BACKLOG = 128
STATISTICS_SECONDS = 3600.0
_PAUSE_SECONDS = 1.0
_FULL_SECONDS = 60.0
#: Connections taken before the rest of the reactor gets its turn.
_ACCEPTS_A_TURN = 16


def listen(port: int, internal: bool) -> socket.socket:
    """
    A listening socket, not blocking.

    :raises OSError: the port is taken, or not ours to take.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1" if internal else "0.0.0.0", port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class _Child(Attached):
    """A program of a launcher, which says in the launcher's log how it is."""

    def __init__(
        self,
        job: Job,
        config: LauncherConfig,
        over: Callable[[Program], None],
        reactor: Any,
        connection: socket.socket,
        ended: Callable[[_Child, int, str], None],
        log: LaunchLog,
    ) -> None:
        self._said = log
        self._tell = ended
        super().__init__(job, config, over, reactor, connection)

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return self._clock.seconds() - self._began

    def _write_log(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._said.write("stderr", f"pid={self.pid} {line}")

    def _ended(self, status: int, reason: str) -> None:
        self._tell(self, status, reason)


@frozen
class LaunchPlan:
    """What is to be launched."""

    service: str
    words: Sequence[str]
    statistics: bool = True


@implementer(IReadDescriptor)
class Launcherd:
    """
    Serves one port until it is told to stop.

    :param sock: from :func:`listen`.
    :param stopped: called when it has stopped and the last program has ended.
    """

    _log = Logger()

    def __init__(
        self,
        plan: LaunchPlan,
        config: LauncherConfig,
        sock: socket.socket,
        log: LaunchLog,
        stopped: Callable[[], None],
        reactor: Any,
    ) -> None:
        self._plan = plan
        self._config = config
        self._socket = sock
        self._said = log
        self._stopped = stopped
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._slots = Slots(config.per_service, config.in_all)
        self._accepting = False
        self._stopping = False
        self._pause: Any = None
        self._full_said_at = -_FULL_SECONDS
        self.statistics = Statistics()
        self.running: set[Program] = set()
        self._hourly = LoopingCall(self._write_statistics)
        self._hourly.clock = self._clock

    def start(self) -> None:
        """Serve."""
        address, port = self._socket.getsockname()
        self._said.write("start", f"port={port} interface={address} command={self._plan.words[0]}")
        if self._plan.statistics:
            self._hourly.start(STATISTICS_SECONDS, now=False).addErrback(
                lambda failure: self._log.failure("writing statistics", failure)
            )
        self._accept_again()

    def stop(self, reason: str) -> None:
        """Take no more connections; a second time: end the programs."""
        if self._stopping:
            self._said.write("kill", f"{reason} again, running={len(self.running)}")
            for program in list(self.running):
                program.kill()
            return
        self._stopping = True
        self._pause_accepting()
        self._socket.close()
        if self._hourly.running:
            self._hourly.stop()
        self._said.write("stop", f"{reason}, running={len(self.running)}")
        if self._plan.statistics:
            self._write_statistics()
        self._see_whether_over()

    def _see_whether_over(self) -> None:
        if self._stopping and not self.running:
            self._stopped()

    def _write_statistics(self) -> None:
        self._said.write("statistics", self.statistics.text())

    # -- accepting

    def _accept_again(self) -> None:
        self._pause = None
        if not self._accepting and not self._stopping:
            self._accepting = True
            self._reactor.addReader(self)

    def _pause_accepting(self, seconds: float = 0.0) -> None:
        if self._pause is not None and self._pause.active():
            self._pause.cancel()
        self._pause = None
        if self._accepting:
            self._accepting = False
            self._reactor.removeReader(self)
        if seconds:
            self._pause = self._clock.callLater(seconds, self._accept_again)

    def fileno(self) -> int:
        """Called by the reactor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "launcherd"

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor at its end."""

    def doRead(self) -> None:
        """Called by the reactor: somebody wants to connect."""
        with self._log.failuresHandled("taking a connection"):
            for _ in range(_ACCEPTS_A_TURN):
                if not self._accepting or not self._take_one():
                    return

    def _take_one(self) -> bool:
        service = self._plan.service
        try:
            self._slots.take(service)
        except LaunchError:
            # Whoever comes now waits in the backlog.
            self._say_full()
            self._pause_accepting()
            return False
        try:
            connection, peer = self._socket.accept()
        except BlockingIOError:
            self._slots.give_back(service)
            return False
        except OSError as error:
            # Out of descriptors, perhaps: what waits stays where it is for a while.
            self._slots.give_back(service)
            self._said.write("error", f"connection not taken: {error.strerror}")
            self._pause_accepting(_PAUSE_SECONDS)
            return False
        with connection:
            try:
                self._launch(connection, peer[0])
            except LaunchError as error:
                self._slots.give_back(service)
                self.statistics.failed()
                self._said.write("error", f"peer={peer[0]} not served: {error}")
                self._pause_accepting(_PAUSE_SECONDS)
                return False
        return True

    def _say_full(self) -> None:
        # It may be so with every connection for hours.
        now = self._clock.seconds()
        if now - self._full_said_at >= _FULL_SECONDS:
            self._full_said_at = now
            self._said.write("full", f"running={len(self.running)}")

    def _launch(self, connection: socket.socket, peer: str) -> None:
        plan = self._plan
        job = Job(plan.service, plan.words, {**os.environ, "NI_CLIENT_IPADDR": peer})
        child = _Child(
            job, self._config, self._over, self._reactor, connection, self._ended, self._said
        )
        self.running.add(child)
        self.statistics.began()
        self._said.detail("connect", f"peer={peer} pid={child.pid}")

    def _over(self, program: Program) -> None:
        self.running.discard(program)
        self._slots.give_back(self._plan.service)
        if self._pause is None:
            self._accept_again()

    def _ended(self, child: _Child, status: int, reason: str) -> None:
        self.statistics.over(child.seconds, bool(reason))
        text = (
            f"pid={child.pid} status={status} seconds={child.seconds:.3f} "
            f"cpu={child.cpu_seconds:.3f}"
        )
        self._said.detail("exit", f"{text} {reason}" if reason else text)
        self._see_whether_over()
