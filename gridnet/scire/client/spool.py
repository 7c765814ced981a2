"""
What the client knows, on disk, so that it may be killed at any instruction.

=====================  =========================================================================
``queue/R.new``        a job file, stored; its receipt is not acknowledged yet
``queue/R.job``        the same, acknowledged: it may be started
``queue/R.started``    written before the start; with no report of an end: interrupted
``queue/R.session``    the session of the processes that do it; gone with the power, as they are
``reports/R.T.S.xml``  status file number S of run R (its T-th start), to be reported
``reported/``          status files that were answered, for a day
``output/R.T.stream``  output that does not fit into a status file
``journal``            a line for each run that ended here: run, start, seconds since the epoch
``damaged/``           what the disk gave back otherwise than it was written
=====================  =========================================================================

The order of the steps is the whole point: a job file is durable before its receipt is sent, the
mark of the start before the start, the status file and the journal's line before the job file
goes.  What a crash leaves between two steps, :meth:`Spool.recover` takes up.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from gridnet.durable import append_durably, sync_directory, write_durably
from gridnet.scire.faults import ScireFault
from gridnet.scire.jobfile import JobFile, JobFileError, parse_job
from gridnet.scire.machine import Reported
from gridnet.scire.statusfile import StatusFile, format_status, parse_status

_REPORT = re.compile(r"(\d+)\.(\d+)\.(\d+)\.xml")
_QUEUED = re.compile(r"(\d+)\.(new|job)")
_ENDS = frozenset(Reported) - {Reported.RECEIVED, Reported.RUNNING, Reported.PROGRESS}


@frozen(order=True)
class ReportName:
    """Which status file."""

    run: int
    retry: int
    seq: int

    @property
    def file(self) -> str:
        """Its name."""
        return f"{self.run}.{self.retry}.{self.seq}.xml"

    @classmethod
    def parse(cls, name: str) -> ReportName | None:
        """The inverse of :attr:`file`."""
        match = _REPORT.fullmatch(name)
        return None if match is None else cls(*map(int, match.groups()))


@frozen
class Started:
    """The mark of a start."""

    time: float
    boot_id: str


class Spool:
    """
    The client's directory; one process has it at a time.

    :ivar ended: (run, start) of every run that ended here and is remembered.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("queue", "reports", "reported", "output", "work"):
            (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._journal, self._queue = directory / "journal", directory / "queue"
        self.ended: dict[int, int] = {}
        self._read_journal()

    # -- the journal

    def _read_journal(self) -> None:
        try:
            octets = self._journal.read_bytes()
        except FileNotFoundError:
            return
        whole, _, torn = octets.rpartition(b"\n")
        if torn:
            # The line that a crash cut: what it was about is still in the queue.
            write_durably(self._journal, whole + b"\n" if whole else b"")
        for line in whole.split(b"\n"):
            fields = line.split()
            if len(fields) == 3 and all(field.isdigit() for field in fields[:2]):
                run, retry = int(fields[0]), int(fields[1])
                self.ended[run] = max(retry, self.ended.get(run, -1))

    def _note_end(self, run: int, retry: int, now: float) -> None:
        if self.ended.get(run, -1) >= retry:
            return
        append_durably(self._journal, f"{run} {retry} {int(now)}\n".encode("ascii"))
        self.ended[run] = retry

    def shorten_journal(self, before: float) -> None:
        """Forget runs that ended before *before* (seconds since the epoch)."""
        try:
            lines = self._journal.read_bytes().splitlines()
        except FileNotFoundError:
            return
        kept = [line for line in lines if len(line.split()) == 3 and int(line.split()[2]) >= before]
        if len(kept) < len(lines):
            write_durably(self._journal, b"".join(line + b"\n" for line in kept))

    # -- the queue

    def _queued(self, run: int, suffix: str) -> Path:
        return self._queue / f"{run}.{suffix}"

    def knows(self, run: int, retry: int) -> bool:
        """Whether this start of a run is, or was, here."""
        if self.ended.get(run, -1) >= retry:
            return True
        held = self.job(run)
        return held is not None and held.retry >= retry

    def store(self, job: JobFile, octets: bytes) -> None:
        """Keep a job file, durably; its receipt may be sent when this returns."""
        # An older start of the same run ends here: the server has given it up.
        # Its mark goes last: without it the old job file would count as not started.
        for suffix in ("job", "session", "started"):
            self._queued(job.run, suffix).unlink(missing_ok=True)
        write_durably(self._queued(job.run, "new"), octets)

    def drop(self, run: int) -> None:
        """A job file whose receipt the server does not know: it may come again."""
        self._queued(run, "new").unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """Runs in the queue."""
        return sum(_QUEUED.fullmatch(name) is not None for name in os.listdir(self._queue))

    def acknowledged(self, run: int) -> None:
        """The server knows that a run is here."""
        new = self._queued(run, "new")
        if new.exists():
            os.replace(new, self._queued(run, "job"))
            sync_directory(new.parent)

    def job(self, run: int) -> JobFile | None:
        """A run in the queue."""
        for suffix in ("new", "job"):
            try:
                return parse_job(self._queued(run, suffix).read_bytes())
            except FileNotFoundError:
                continue
            except JobFileError:
                # Nothing can be done with it any more.
                self._set_aside(self._queued(run, suffix))
        return None

    def _set_aside(self, path: Path) -> None:
        """The disk has damaged a file: keep it for people, out of the way."""
        (self.directory / "damaged").mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            os.replace(path, self.directory / "damaged" / path.name)

    def runs(self, acknowledged: bool = False) -> list[JobFile]:
        """The queue, in the order in which it is to be run: priority, then age."""
        found = []
        for name in os.listdir(self._queue):
            match = _QUEUED.fullmatch(name)
            if match is None or (acknowledged and match[2] == "new"):
                continue
            job = self.job(int(match[1]))
            if job is not None:
                found.append(job)
        return sorted(found, key=lambda job: (-job.priority, job.issued, job.run))

    def start(self, job: JobFile, started: Started) -> None:
        """Mark a run as started, durably; it may start when this returns."""
        octets = json.dumps({"time": started.time, "boot_id": started.boot_id}).encode()
        write_durably(self._queued(job.run, "started"), octets)

    def started(self, run: int) -> Started | None:
        """The mark of a run's start."""
        try:
            values: dict[str, Any] = json.loads(self._queued(run, "started").read_bytes())
            return Started(float(values["time"]), str(values["boot_id"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            # That it is there says enough.
            return Started(0.0, "")

    def note_session(self, run: int, session: int) -> None:
        """Keep which session a run's processes are in; as long as they live, it is enough."""
        self._queued(run, "session").write_text(str(session), "ascii")

    def session(self, run: int) -> int:
        """The session of a run's processes; 0: not known."""
        try:
            text = self._queued(run, "session").read_text("ascii")
        except (FileNotFoundError, ValueError):
            return 0
        return int(text) if text.isdigit() else 0

    def forget(self, run: int, retry: int, now: float) -> None:
        """This start of a run is not to happen here any more: delete it from the queue."""
        self._note_end(run, retry, now)
        held = self.job(run)
        if held is not None and held.retry > retry:
            return  # a later start of the same run is here already
        for suffix in ("new", "job", "session", "started"):
            self._queued(run, suffix).unlink(missing_ok=True)
        sync_directory(self._queue)

    # -- reports

    def _reports(self, where: str) -> Iterator[ReportName]:
        for name in os.listdir(self.directory / where):
            parsed = ReportName.parse(name)
            if parsed is not None:
                yield parsed

    def unreported(self) -> list[ReportName]:
        """Status files to be reported, in order."""
        return sorted(self._reports("reports"))

    def read_report(self, name: ReportName) -> bytes:
        """The octets of a status file to be reported."""
        return (self.directory / "reports" / name.file).read_bytes()

    def _status(self, where: str, name: ReportName) -> StatusFile | None:
        """A status file; None: it is gone meanwhile, or damaged."""
        path = self.directory / where / name.file
        try:
            return parse_status(path.read_bytes())
        except FileNotFoundError:
            return None
        except ScireFault:
            self._set_aside(path)
            return None

    def next_seq(self, run: int, retry: int) -> int:
        """The number of a run's next report."""
        numbers = [
            name.seq
            for where in ("reports", "reported")
            for name in self._reports(where)
            if name.run == run and name.retry == retry
        ]
        return max(numbers, default=0) + 1

    def report(self, job: JobFile, status: StatusFile) -> None:
        """
        Keep a status file until it is answered; after one of an end the run is not here any more.

        :param status: its ``seq`` is that of :meth:`next_seq`.
        """
        name = ReportName(job.run, job.retry, status.seq)
        write_durably(self.directory / "reports" / name.file, format_status(status))
        if status.state in _ENDS:
            self.forget(job.run, job.retry, status.time)

    def answered(self, name: ReportName) -> None:
        """A status file was answered: keep it for a while."""
        source = self.directory / "reports" / name.file
        if source.exists():
            os.replace(source, self.directory / "reported" / name.file)
            os.utime(self.directory / "reported" / name.file)

    def report_again(self, run: int) -> int:
        """Take the answered reports of a run as not answered; how many."""
        count = 0
        for name in list(self._reports("reported")):
            if name.run == run:
                with suppress(FileNotFoundError):  # it is cleaned away just now
                    os.replace(
                        self.directory / "reported" / name.file,
                        self.directory / "reports" / name.file,
                    )
                    count += 1
        return count

    # -- output

    def output_path(self, run: int, retry: int, stream: str) -> Path:
        """Where large output of a run is kept."""
        return self.directory / "output" / f"{run}.{retry}.{stream}"

    def drop_output(self, run: int, retry: int) -> None:
        """The server has it."""
        for stream in ("stdout", "stderr"):
            self.output_path(run, retry, stream).unlink(missing_ok=True)

    # -- both

    def held(self, most: int = 1000) -> list[dict[str, Any]]:
        """
        What a hello lists: the queue, what is not reported, and what was reported lately.

        The last are for a server that has lost some seconds of its database: it then asks.

        :param most: runs; the reported ones are left out first.
        """
        found: dict[int, dict[str, Any]] = {}
        for job in self.runs():
            state = "received" if self.started(job.run) is None else "running"
            seq = self.next_seq(job.run, job.retry) - 1
            found[job.run] = {"run": job.run, "state": state, "seq": seq}
        queued = set(found)
        for where in ("reports", "reported"):
            unlisted: dict[int, ReportName] = {}
            for name in sorted(self._reports(where)):
                if name.run not in found or (name.run not in queued and where == "reports"):
                    unlisted[name.run] = name
            for name in sorted(unlisted.values(), reverse=True)[: max(0, most - len(found))]:
                status = self._status(where, name)
                if status is not None:
                    state = status.state.value
                    found[name.run] = {"run": name.run, "state": state, "seq": name.seq}
        return [found[run] for run in sorted(found)]

    def recover(self) -> list[JobFile]:
        """
        Take up what a crash has left.

        :returns: runs that were started and have no report of an end: interrupted.
        """
        for directory in (self.directory, *self.directory.iterdir()):
            if directory.is_dir():
                for path in directory.glob(".*.tmp"):
                    path.unlink(missing_ok=True)
        for name in self.unreported():
            status = self._status("reports", name)
            if status is not None and status.state in _ENDS:
                held = self.job(name.run)
                if held is not None and held.retry == name.retry:
                    # Killed between the status file and the end of the job file.
                    self.forget(name.run, name.retry, status.time)
        interrupted = []
        for job in self.runs():
            if self.ended.get(job.run, -1) >= job.retry:
                self.forget(job.run, job.retry, job.issued)
            elif self.started(job.run) is not None:
                interrupted.append(job)
        for suffix in ("session", "started"):
            for path in self._queue.glob(f"*.{suffix}"):
                run = path.name.partition(".")[0]
                if run.isdigit() and self.job(int(run)) is None:
                    path.unlink(missing_ok=True)
        return interrupted

    def clean(self, reports_before: float) -> None:
        """Forget answered reports from before *reports_before*, of runs that are not here."""
        for name in list(self._reports("reported")):
            path = self.directory / "reported" / name.file
            with suppress(FileNotFoundError):  # it is to be reported again just now
                if path.stat().st_mtime < reports_before and self.job(name.run) is None:
                    path.unlink()
