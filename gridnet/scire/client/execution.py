"""
Running one job: a process of its own, its output bounded, its time limited.

Standard output and error are read as they come and only what is to be kept is kept, so a program
that writes without end costs nothing but its time.
"""

from __future__ import annotations

import errno
import os
import pwd
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from gridnet.scire.jobfile import Keep

#: The variable by which a run's processes are found again.
RUN_VARIABLE = "SCIRE_RUN"
_PIECE = 65536  # octets read at once
#: Until the kernel has ended what was killed, seconds.
_KILLED_SECONDS = 5.0


class Kept:
    """
    The head or the tail of a stream.

    :ivar size: octets that came.
    """

    def __init__(self, keep: Keep, limit: int) -> None:
        self._tail = keep is Keep.TAIL
        self._limit = 0 if keep is Keep.NONE else limit
        self._octets = bytearray()
        self.size = 0

    def add(self, octets: bytes) -> None:
        """More of the stream."""
        self.size += len(octets)
        if self._tail:
            self._octets += octets
            # Cut now and then, not for each piece.
            if len(self._octets) > 2 * self._limit + _PIECE:
                del self._octets[: len(self._octets) - self._limit]
        else:
            self._octets += octets[: self._limit - len(self._octets)]

    @property
    def octets(self) -> bytes:
        """What is kept."""
        if self._tail:
            return bytes(self._octets[max(0, len(self._octets) - self._limit) :])
        return bytes(self._octets)

    @property
    def truncated(self) -> bool:
        """Whether something is missing."""
        return self.size > len(self.octets)


@frozen
class Program:
    """What to run."""

    command: Sequence[str]
    user: str
    directory: str
    umask: int
    environment: Mapping[str, str]
    run_seconds: float
    kill_seconds: float


@define
class Ended:
    """How it went."""

    exit_code: int | None = None
    exit_signal: int | None = None
    timed_out: bool = False
    cancelled: bool = False
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_bytes: int = 0
    streams: dict[str, Kept] = field(factory=dict)


class CannotStart(Exception):
    """There is no such program, user or directory here."""


def identity(user: str) -> tuple[int | None, int | None, list[int] | None]:
    """
    uid, gid and groups to run as; None: as we are.

    :raises CannotStart: no such user, or we may not become him.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise CannotStart(f"no user {user}") from None
    if entry.pw_uid == os.getuid():
        return None, None, None
    if os.getuid() != 0:
        raise CannotStart(f"cannot become {user}: not root")
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(user, entry.pw_gid)


def run(
    program: Program,
    keep: Keep,
    output_bytes: int,
    wanted_end: Callable[[], str],
    alive: Callable[[], None],
    started: Callable[[int], None],
) -> Ended:
    """
    Run *program* and wait for its end.

    :param wanted_end: called several times a second; "cancel", "force" or "".
    :param alive: called then, too.
    :param started: called once with the session of its processes.
    :raises CannotStart: it did not start.
    """
    uid, gid, groups = identity(program.user)
    try:
        process = subprocess.Popen(
            program.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=program.directory,
            env=dict(program.environment),
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=groups,
            umask=program.umask,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise CannotStart(str(error)) from None
    ended = Ended()
    with process:
        started(process.pid)
        _follow(process, program, keep, output_bytes, wanted_end, alive, ended)
    code = process.returncode
    if code < 0:
        ended.exit_signal = -code
    else:
        ended.exit_code = code
    return ended


def _reaped(process: subprocess.Popen[bytes], ended: Ended) -> bool:
    """Whether the process has ended; then with what it took."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return False
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.user_seconds, ended.system_seconds = usage.ru_utime, usage.ru_stime
    ended.max_rss_bytes = usage.ru_maxrss * 1024
    return True


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Signal all of its process group that is left; whether there was anybody."""
    try:
        os.killpg(process.pid, number)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EPERM):
            raise
        return error.errno == errno.EPERM
    return True


def _follow(
    process: subprocess.Popen[bytes],
    program: Program,
    keep: Keep,
    output_bytes: int,
    wanted_end: Callable[[], str],
    alive: Callable[[], None],
    ended: Ended,
) -> None:
    deadline = time.monotonic() + program.run_seconds
    kill_at = None
    over = False
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            assert pipe is not None
            ended.streams[name] = Kept(keep, output_bytes)
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, ended.streams[name])
        while True:
            for key, _ in selector.select(0.2 if selector.get_map() else 0):
                octets = os.read(key.fd, _PIECE)
                if octets:
                    key.data.add(octets)
                else:
                    selector.unregister(key.fileobj)
            alive()
            over = over or _reaped(process, ended)
            # What its own children write later is nobody's output.  But when it did not end by
            # itself, those that it started are to end with it, and have the same time for it.
            if over and (kill_at is None or not _signal(process, 0)):
                _drain(selector)
                return
            if not selector.get_map():
                time.sleep(0.05)
            now = time.monotonic()
            wish = wanted_end()
            if kill_at is None and (wish or now >= deadline):
                ended.cancelled, ended.timed_out = bool(wish), not wish
                _signal(process, signal.SIGKILL if wish == "force" else signal.SIGTERM)
                kill_at = now + (0 if wish == "force" else program.kill_seconds)
            elif kill_at is not None and now >= kill_at:
                _signal(process, signal.SIGKILL)
                if over:
                    # Nobody may be there to reap them; none of them does anything any more.
                    _drain(selector)
                    return


def _drain(selector: selectors.BaseSelector) -> None:
    for key in list(selector.get_map().values()):
        try:
            while octets := os.read(key.fd, _PIECE):
                key.data.add(octets)
        except BlockingIOError:
            pass


def end_leftovers(session: int, mark: str, seconds: float) -> int:
    """
    End what an interrupted run of this client has left behind.

    Daemons that a script has started are in sessions of their own, and stay.

    :param session: of the run's processes.
    :param mark: value of :data:`RUN_VARIABLE` in their environments.
    :param seconds: between SIGTERM and SIGKILL.
    :returns: how many processes there were.
    """
    left = _leftovers(session, mark)
    count = len(left)
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, _KILLED_SECONDS)):
        deadline = time.monotonic() + patience
        _kill(left, number)
        while (left := _leftovers(session, mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
            if number == signal.SIGKILL:
                _kill(left, number)
        if not left:
            break
    return count


def _kill(processes: Iterable[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _leftovers(session: int, mark: str) -> list[int]:
    wanted, found = f"{RUN_VARIABLE}={mark}".encode(), []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) != session:
                continue
            # A number may have become another session's meanwhile.
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
