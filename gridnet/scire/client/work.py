"""From a job file to its status files: what each kind of work is here."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve

from gridnet.durable import sync_directory, write_durably
from gridnet.scire.client.config import ClientConfig
from gridnet.scire.client.execution import (
    RUN_VARIABLE,
    CannotStart,
    Ended,
    Program,
    end_leftovers,
    identity,
    run,
)
from gridnet.scire.client.spool import Spool, Started
from gridnet.scire.jobfile import JobFile, OnInterrupt, PackageAction, Work
from gridnet.scire.machine import Reported
from gridnet.scire.statusfile import Output, StatusFile, Usage

_log = logging.getLogger("scire-client")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: A difference of clocks that counts, seconds.
_CLOCK_SECONDS = 5.0
#: Seconds between signs of life of a run.
PROGRESS_SECONDS = 60.0
#: Between attempts to write what must be written, on a disk that is full, seconds.
RETRY_SECONDS = 5.0


def _uptime() -> float:
    """A clock that nobody sets and that goes on while the machine sleeps, seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's name for this boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


class Worker:
    """
    Runs what is in the spool, one after the other.

    :param fetch: puts an attachment (its name, digest and size) at a path.
    :param reported: called when there is something new to report.
    :param max_output: octets of a stream that go into a status file.
    :param stopping: set: the client is to end.
    """

    def __init__(
        self,
        config: ClientConfig,
        spool: Spool,
        install_id: str,
        fetch: Callable[[JobFile, Path], None],
        reported: Callable[[], None],
        max_output: Callable[[], int],
        stopping: threading.Event,
    ) -> None:
        self._config = config
        self._spool = spool
        self._install_id = install_id
        self._fetch = fetch
        self._reported = reported
        self._max_output = max_output
        self._stopping = stopping
        self._clock_offset = time.time() - _uptime()
        self._lock = threading.Lock()
        self._current = 0
        self._wishes: dict[int, str] = {}

    # -- the time

    def set_clock(self, now: float) -> None:
        """
        Go by the server's clock: windows of jobs are in its time, and this machine's may be wrong.

        :param now: what it shows, seconds since the epoch, whole.
        """
        offset = now - _uptime()
        # Answers take their time, and say nothing of parts of a second.
        if abs(offset - self._clock_offset) > _CLOCK_SECONDS:
            own = time.time() - _uptime()
            if abs(offset - own) > _CLOCK_SECONDS:
                _log.warning("this machine's clock is %.0f s off", own - offset)
            else:
                offset = own
            self._clock_offset = offset

    def now(self) -> float:
        """The time, as the server last told it; seconds since the epoch."""
        return _uptime() + self._clock_offset

    # -- wishes of the server

    def cancel(self, run_id: int, force: bool = False) -> None:
        """End a run, or do not start it."""
        with self._lock:
            self._wishes[run_id] = "force" if force else "cancel"

    def forget(self, run_id: int) -> None:
        """Delete a run from the queue, unless it runs: its result will be reported."""
        with self._lock:
            if run_id == self._current:
                return
            job = self._spool.job(run_id)
            if job is not None:
                self._spool.forget(run_id, job.retry, self.now())
            self._wishes.pop(run_id, None)

    def _wish(self, run_id: int) -> str:
        with self._lock:
            return self._wishes.get(run_id, "")

    # -- reports

    def report(self, job: JobFile, state: Reported, message: str = "", **facts: Any) -> None:
        """Keep a report of *job* and say that there is one."""
        status = self._status(job, state, message, facts)
        self._insist(lambda: self._spool.report(job, status))
        self._reported()

    def _status(
        self, job: JobFile, state: Reported, message: str = "", facts: Mapping[str, Any] = {}
    ) -> StatusFile:
        seq = self._spool.next_seq(job.run, job.retry)
        status = StatusFile(job.run, job.attempt, seq, state, float(int(self.now())))
        return evolve(status, message=message, **facts)

    def _insist(self, write: Callable[[], None]) -> None:
        """
        Write, however long the disk is full: what has happened cannot be made undone.

        :raises OSError: the client is to end before that.
        """
        while True:
            try:
                return write()
            except OSError as error:
                _log.error("cannot write, trying again: %s", error)
                # What was answered is only kept for a server that loses its last seconds.
                self._spool.clean(float("inf"))
                if self._stopping.wait(RETRY_SECONDS):
                    raise

    def _report_progress(self, job: JobFile) -> None:
        """A sign of life, if it can be had; one that was not sent yet is enough."""
        if any(name.run == job.run for name in self._spool.unreported()):
            return
        try:
            self._spool.report(job, self._status(job, Reported.PROGRESS))
        except OSError as error:
            _log.error("no sign of life: %s", error)
        else:
            self._reported()

    # -- running

    def take_up(self, interrupted: list[JobFile]) -> None:
        """What becomes of runs that were under way when the client was killed."""
        for job in interrupted:
            mark = self._spool.started(job.run)
            session = self._spool.session(job.run)
            # What is called lost, or runs again, does not run any more.
            if session and end_leftovers(session, self._mark(job), job.kill_seconds):
                _log.warning("run %d was still at work, and is ended", job.run)
            if job.kind is Work.REBOOT and mark is not None and mark.boot_id != boot_id():
                self.report(job, Reported.SUCCEEDED, "the machine has started again")
            elif self._wish(job.run):
                self.report(job, Reported.CANCELLED, "cancelled after an interruption")
            elif job.interrupt is not OnInterrupt.RERUN:
                self.report(job, Reported.LOST, "interrupted, how it ended is not known")
            elif job.not_after is not None and self.now() >= job.not_after:
                self.report(job, Reported.LOST, "interrupted, and its window is over")
            else:
                # Its mark stays: it is not started a first time.
                self._run(job)

    def next(self) -> JobFile | None:
        """Run the first of the queue that is due; None: there is none."""
        for job in self._spool.runs(acknowledged=True):
            now = self.now()
            if job.not_after is not None and now >= job.not_after:
                self.report(job, Reported.EXPIRED, "not started in its window")
            elif self._wish(job.run):
                self.report(job, Reported.CANCELLED, "cancelled before its start")
            elif job.not_before is not None and now < job.not_before:
                continue
            else:
                self._run(job)
            return job
        return None

    def seconds_until_due(self) -> float | None:
        """Until the next of the queue is due; None: nothing waits for its time."""
        times = [j.not_before for j in self._spool.runs(acknowledged=True) if j.not_before]
        return max(0.0, min(times) - self.now()) if times else None

    def _mark(self, job: JobFile) -> str:
        return f"{self._install_id}:{job.run}"

    def _run(self, job: JobFile) -> None:
        with self._lock:
            if self._spool.job(job.run) is None:
                return  # forgotten just now
            self._current = job.run
        try:
            self._run_current(job)
        finally:
            with self._lock:
                self._current = 0
                self._wishes.pop(job.run, None)

    def _run_current(self, job: JobFile) -> None:
        place = self._spool.directory / "work" / str(job.run)
        try:
            try:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(mode=0o700)
                # Before the start: whoever is killed here has not begun.
                self._fetch(job, place)
            except OSError as error:
                self._report_failure(job, str(error), None)
                return
            if self._wish(job.run):
                self.report(job, Reported.CANCELLED, "cancelled before its start")
                return
            started = self.now()
            self._spool.start(job, Started(started, boot_id()))
            self.report(job, Reported.RUNNING, started=float(int(started)))
            try:
                ended = self._do(job, place)
            except (CannotStart, OSError) as error:
                self._report_failure(job, str(error), started)
                return
        finally:
            shutil.rmtree(place, ignore_errors=True)
        self._report_end(job, started, ended)

    def _report_failure(self, job: JobFile, why: str, started: float | None) -> None:
        self.report(
            job,
            Reported.FAILED,
            f"not started: {why}",
            started=None if started is None else float(int(started)),
            finished=float(int(self.now())),
        )

    def _report_end(self, job: JobFile, started: float, ended: Ended) -> None:
        if ended.cancelled:
            state = Reported.CANCELLED
        elif ended.timed_out:
            state = Reported.TIMEDOUT
        elif ended.exit_code is not None and ended.exit_code in job.success:
            state = Reported.SUCCEEDED
        else:
            state = Reported.FAILED
        outputs = []
        for stream, kept in ended.streams.items():
            octets = kept.octets
            if len(octets) > self._max_output():
                # Sent apart, before the status file; kept until then.
                path = self._spool.output_path(job.run, job.retry, stream)
                self._insist(partial(write_durably, path, octets))
                octets = b""
            outputs.append(Output(stream, octets, kept.size, kept.truncated))
        self.report(
            job,
            state,
            started=float(int(started)),
            finished=float(int(self.now())),
            exit_code=ended.exit_code,
            exit_signal=ended.exit_signal,
            usage=Usage(
                round(ended.user_seconds, 3), round(ended.system_seconds, 3), ended.max_rss_bytes
            ),
            outputs=tuple(outputs),
        )

    def _do(self, job: JobFile, place: Path) -> Ended:
        if job.kind not in self._config.allow:
            raise CannotStart(f"{job.kind.value} is not done here")
        if self._config.users and job.user not in self._config.users:
            raise CannotStart(f"nothing is run as {job.user} here")
        if job.kind is Work.FILE:
            return self._install_files(job, place)
        if job.kind is Work.SCRIPT:
            return self._execute(job, place, self._script(job, place))
        if job.kind is Work.PACKAGE:
            return self._packages(job, place)
        command = self._config.update if job.kind is Work.UPDATE else self._config.reboot
        return self._execute(job, place, list(command))

    def _script(self, job: JobFile, place: Path) -> list[str]:
        path = place / ".script"
        path.write_bytes(job.script)
        path.chmod(0o700)
        uid, gid, _ = identity(job.user)
        if uid is not None and gid is not None:
            for entry in (place, *place.iterdir()):
                os.chown(entry, uid, gid)
            # The way there; what lies beside it stays closed.
            for above in (place.parent, self._spool.directory):
                above.chmod(above.stat().st_mode | 0o011)
        return [job.interpreter, str(path), *job.arguments]

    def _packages(self, job: JobFile, place: Path) -> Ended:
        commands = {
            PackageAction.INSTALL: self._config.package_install,
            PackageAction.REMOVE: self._config.package_remove,
            PackageAction.UPGRADE: self._config.package_upgrade,
        }
        ended = Ended(exit_code=0)
        for action, command in commands.items():
            names = [
                f"{p.name}={p.version}"
                if p.version and action is not PackageAction.REMOVE
                else p.name
                for p in job.packages
                if p.action is action
            ]
            if names:
                ended = self._execute(job, place, [*command, "--", *names])
                if ended.exit_code not in job.success:
                    break
        return ended

    def _execute(self, job: JobFile, place: Path, command: list[str]) -> Ended:
        environment = {
            "PATH": _PATH,
            **dict(job.variables),
            RUN_VARIABLE: self._mark(job),
            "SCIRE_JOB": str(job.job),
            "SCIRE_FILES": str(place),
        }
        told = time.monotonic()

        def alive() -> None:
            nonlocal told
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                self._report_progress(job)

        program = Program(
            command,
            job.user,
            job.directory,
            int(job.umask, 8),
            environment,
            job.run_seconds,
            job.kill_seconds,
        )

        def started(session: int) -> None:
            try:
                self._spool.note_session(job.run, session)
            except OSError as error:
                _log.error("run %d would not be found after a crash: %s", job.run, error)

        return run(program, job.keep, job.output_bytes, lambda: self._wish(job.run), alive, started)

    def _install_files(self, job: JobFile, place: Path) -> Ended:
        target = Path(job.directory)
        uid, gid, _ = identity(job.user)
        for file in job.files:
            temporary = target / f".{file.name}.scire"
            shutil.copyfile(place / file.name, temporary)
            temporary.chmod(int(file.mode, 8))
            if uid is not None and gid is not None:
                os.chown(temporary, uid, gid)
            with open(temporary, "rb") as copied:
                os.fsync(copied.fileno())
            os.replace(temporary, target / file.name)
        sync_directory(target)
        return Ended(exit_code=0)
