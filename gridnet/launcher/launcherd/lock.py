"""One launcher a service: a lock that is held for life, and goes with its holder."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from gridnet.errors import LaunchError


class AlreadyRunningError(LaunchError):
    """
    Somebody holds the lock.

    :ivar pid: who, as far as is known; empty: unknown.
    """

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"runs already, process {pid or 'unknown'} ({path})")
        self.pid = pid


def run_directory() -> Path:
    """Where locks are: a directory that nobody else may write to."""
    named = os.environ.get("GRIDNET_RUNDIR")
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return Path("/run/gridnet")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "gridnet" if runtime else Path(f"/tmp/gridnet-{os.geteuid()}")


def _check_directory(directory: Path) -> None:
    """
    See whether nobody else can have put *directory* there, or can put anything into it.

    :raises LaunchError: somebody could.
    :raises OSError: it cannot be looked at.
    """
    ours = (0, os.geteuid())
    found = directory.lstat()
    if found.st_uid not in ours or directory.stat().st_uid not in ours:
        raise LaunchError(f"{directory}: belongs to somebody else")
    if directory.stat().st_mode & stat.S_IWOTH:
        raise LaunchError(f"{directory}: anybody may write to it")


class ServiceLock:
    """
    The lock of *service*, with the holder's process number inside.

    A file that is not locked is a leftover, and taken over.

    :raises AlreadyRunningError: it is held.
    :raises LaunchError: it cannot be made.
    """

    def __init__(self, directory: Path, service: str) -> None:
        self.path = directory / f"launcherd.{service.lower()}.pid"
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            _check_directory(directory)
            self._fd = self._take()
        except OSError as error:
            raise LaunchError(f"{error.filename}: {error.strerror}") from None

    def _take(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(fd, 20).decode("ascii", "replace").strip()
                os.close(fd)
                raise AlreadyRunningError(self.path, pid) from None
            # Between opening and locking its last holder may have removed it.
            try:
                there = os.stat(self.path)
            except FileNotFoundError:
                there = None
            ours = os.fstat(fd)
            if there is not None and there.st_ino == ours.st_ino:
                return fd
            os.close(fd)

    def sign(self) -> None:
        """Write this process's number into it."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Give it up, and remove the file."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1
