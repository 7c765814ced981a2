"""One daemon on a host: a lock that the kernel gives back however the daemon ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from twisted.application.service import Service
from twisted.logger import Logger

from gridnet.errors import ConfigError, Fault

_KEY = "lbsmd.pid_file"


class AlreadyRunningError(ConfigError):
    """
    Another daemon of this host has the lock.

    :ivar pid: its process number; 0: it is just starting.
    """

    def __init__(self, path: Path, pid: int) -> None:
        self.pid = pid
        who = f"as process {pid}" if pid else "or is starting"
        super().__init__([Fault("", f"a daemon runs already {who}: it holds {path}")])


class InstanceLock(Service):
    """
    Holds the lock while the daemon runs; its file has the daemon's process number.

    A file that a killed daemon has left behind is no obstacle: the lock is the kernel's, not the
    file's.
    """

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1

    def look(self) -> None:
        """
        See whether the lock can be had, without a file being made.

        :raises AlreadyRunningError: another daemon has it.
        """
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return  # nobody has it; what else is wrong shows when it is taken
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunningError(self.path, _read_pid(handle)) from None
        finally:
            os.close(handle)

    def acquire(self) -> None:
        """
        Take the lock.

        :raises AlreadyRunningError: another daemon has it.
        :raises ConfigError: the file cannot be made.
        """
        while self._handle < 0:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ConfigError([Fault(_KEY, f"{self.path}: {error.strerror}")]) from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pid = _read_pid(handle)
                os.close(handle)
                raise AlreadyRunningError(self.path, pid) from None
            if _is_at(handle, self.path):
                self._handle = handle
            else:
                os.close(handle)  # its holder has removed it in the meantime

    def release(self) -> None:
        """Give the lock back, and remove the file."""
        if self._handle >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1

    def privilegedStartService(self) -> None:
        """Take the lock, with our process number in the file."""
        self.acquire()
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode("ascii"), 0)

    def startService(self) -> None:
        """Take the lock, if that has not been done."""
        self.privilegedStartService()
        super().startService()

    def stopService(self) -> None:
        """Give it back."""
        super().stopService()
        self.release()


def _read_pid(handle: int) -> int:
    text = os.pread(handle, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file *handle* is still the one at *path*."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
