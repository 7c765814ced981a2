"""Starting a program with limits, and hearing of its end."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import LaunchError

#: How often a program is looked at where the system cannot tell that it has ended.
_LOOK_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


@frozen
class Confinement:
    """What one program may take; 0: no limit."""

    cpu_seconds: int = 0
    memory_octets: int = 0
    open_files: int = 0
    user: str = ""  #: empty: as this process
    directory: str = "/"
    dies_with_parent: bool = False  #: gets TERM when this process ends, however (Linux)

    def limits(self) -> Sequence[tuple[int, int]]:
        """The resource limits to set."""
        pairs = (
            (resource.RLIMIT_CPU, self.cpu_seconds),
            (resource.RLIMIT_AS, self.memory_octets),
            (resource.RLIMIT_NOFILE, self.open_files),
        )
        return [pair for pair in pairs if pair[1]]


def check_program(path: str) -> None:
    """
    See whether the program at *path* may be run.

    :raises LaunchError: it is not absolute, not an executable file, or anybody may write to it.
    """
    if not os.path.isabs(path):
        raise LaunchError(f"{path}: expected an absolute path")
    try:
        found = os.stat(path)
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK):
        raise LaunchError(f"{path}: not an executable file")
    if found.st_mode & stat.S_IWOTH:
        raise LaunchError(f"{path}: anybody may write to it")


def _find_prctl() -> Callable[[int, int], int] | None:
    """prctl(2); None: this system has none.  Looked up before the fork."""
    try:
        prctl: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return prctl


def start(
    words: Sequence[str],
    environment: Mapping[str, str],
    confinement: Confinement,
    stdin: Any,
    stdout: Any,
    stderr: Any,
) -> subprocess.Popen[bytes]:
    """
    Start a program in a session of its own, with nothing inherited but the three streams.

    :param stdin: a file descriptor or ``subprocess.PIPE``; so the others.
    :raises LaunchError: it cannot be started.
    """
    limits = confinement.limits()
    prctl = _find_prctl() if confinement.dies_with_parent else None
    parent = os.getpid()

    def confine() -> None:
        # Between fork and exec: nothing but system calls.
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
        for which, number in limits:
            _, hard = resource.getrlimit(which)
            if hard != resource.RLIM_INFINITY:
                number = min(number, hard)
            resource.setrlimit(which, (number, number))

    account: dict[str, Any] = {}
    if confinement.user:
        try:
            entry = pwd.getpwnam(confinement.user)
        except KeyError:
            raise LaunchError(f"no user {confinement.user}") from None
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
    try:
        return subprocess.Popen(
            list(words),
            env=dict(environment),
            cwd=confinement.directory,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            close_fds=True,
            start_new_session=True,
            preexec_fn=confine if limits or prctl is not None else None,
            **account,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise LaunchError(f"{words[0]} cannot be started: {error}") from None


def status_of(popen: subprocess.Popen[bytes]) -> int | None:
    """How the program ended, which stays to be collected; None: it has not."""
    try:
        found = os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return popen.returncode if popen.returncode is not None else 0
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def reason_of(status: int) -> str:
    """How a program ended, for people; empty: well."""
    if status >= 0:
        return f"exit status {status}" if status else ""
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def signal_group(popen: subprocess.Popen[bytes], number: int) -> None:
    """Send signal *number* to the program, which has not been collected, and its descendants."""
    try:
        os.killpg(popen.pid, number)
    except (ProcessLookupError, PermissionError):
        pass


@implementer(IReadDescriptor)
class ExitWatch:
    """
    Calls *exited* once the program has ended.

    Where there are process descriptors (Linux 5.3) the reactor hears of it as of any other
    descriptor, without a signal handler.
    """

    _log = Logger()

    def __init__(
        self, popen: subprocess.Popen[bytes], exited: Callable[[], None], reactor: Any
    ) -> None:
        self._popen = popen
        self._exited = exited
        self._reactor = reactor
        self._looking: Any = None
        self._fd = -1
        if hasattr(os, "pidfd_open"):
            try:
                self._fd = os.pidfd_open(popen.pid)
            except OSError:
                self._fd = -1
        if self._fd >= 0:
            reactor.addReader(self)
        else:
            self._look()

    def _look(self) -> None:
        self._looking = None
        if status_of(self._popen) is not None:
            self._exited()
        else:
            self._looking = IReactorTime(self._reactor).callLater(_LOOK_SECONDS, self._look)

    def fileno(self) -> int:
        """Called by the reactor."""
        return self._fd

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "launcher"

    def doRead(self) -> None:
        """Called by the reactor: the program has ended."""
        if status_of(self._popen) is None:
            return
        self.close()
        with self._log.failuresHandled("program {pid} ended", pid=self._popen.pid):
            self._exited()

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor at its end."""
        self.close()

    def close(self) -> None:
        """Watch no more."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._fd >= 0:
            self._reactor.removeReader(self)
            os.close(self._fd)
            self._fd = -1
