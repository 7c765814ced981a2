"""When the batch system will end this job, as far as it tells in the environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import frozen

#: Gives the text of a file and when it was written (seconds since the epoch), or raises OSError.
Read = Callable[[str], tuple[str, float]]
#: Gives what a program with these words writes, or raises OSError.
Run = Callable[[Sequence[str]], str]


@frozen
class Deadline:
    """A time limit."""

    at: float  #: seconds since the epoch
    source: str  #: who sets it, for people


_MOMENT = re.compile(r"[0-9]{1,12}(?:\.[0-9]+)?")
_AD_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(-?[0-9]{1,12})\s*")
_RESOURCES = re.compile(r"hard resource_list:\s*(.*)")
_SPAN = re.compile(r"(?:(?:([0-9]{1,7}):)?([0-9]{1,7}):)?([0-9]{1,12})")


def _moment(text: str) -> float | None:
    value = float(text) if _MOMENT.fullmatch(text) else 0.0
    return value if value > 0 else None


def _span(text: str) -> float | None:
    """Seconds of ``[[hours:]minutes:]seconds``; None: no limit, or none that is understood."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds) or None


def _numbers(text: str) -> Mapping[str, int]:
    """The whole numbers of a ClassAd file, names in lower case."""
    found = {}
    for line in text.splitlines():
        match = _AD_LINE.fullmatch(line)
        if match is not None:
            found[match[1].lower()] = int(match[2])
    return found


@frozen
class _Job:
    """What a job can find out about itself."""

    environment: Mapping[str, str]
    read: Read
    run: Run
    now: float

    def slurm(self) -> Iterator[float]:
        """The end is in the environment of jobs that have a limit."""
        at = _moment(self.environment.get("SLURM_JOB_END_TIME", ""))
        if at is not None:
            yield at

    def htcondor_job(self) -> Iterator[float]:
        """The environment names a file that says what the job may."""
        path = self.environment.get("_CONDOR_JOB_AD")
        if not path:
            return
        ad = _numbers(self.read(path)[0])
        started = ad.get("jobcurrentstartdate", self.now)
        executing = ad.get("jobcurrentstartexecutingdate", started)
        for name, since in (
            ("allowedjobduration", started),
            ("allowedexecuteduration", executing),
        ):
            if ad.get(name, 0) > 0:
                yield since + ad[name]

    def htcondor_machine(self) -> Iterator[float]:
        """And another that says when the place of the job goes away."""
        path = self.environment.get("_CONDOR_MACHINE_AD")
        if path:
            at = _numbers(self.read(path)[0]).get("glidein_todie", 0)
            if at > 0:
                yield at

    def grid_engine_job(self) -> Iterator[float]:
        """
        The environment names the job, and a directory that was made when it started.

        How long it may run only the master knows.
        """
        job = self.environment.get("JOB_ID")
        if job and "SGE_JOB_SPOOL_DIR" in self.environment:
            for line in self.run([self._grid_engine("qstat"), "-j", job]).splitlines():
                match = _RESOURCES.fullmatch(line)
                for word in match[1].split(",") if match is not None else ():
                    yield from self._grid_engine_limit(*word.partition("=")[::2])

    def grid_engine_queue(self) -> Iterator[float]:
        """A queue has limits for all of its jobs."""
        queue = self.environment.get("QUEUE")
        if queue and "SGE_JOB_SPOOL_DIR" in self.environment:
            for line in self.run([self._grid_engine("qconf"), "-sq", queue]).splitlines():
                name, _, value = line.partition(" ")
                # What is different on some hosts stands behind a comma.
                yield from self._grid_engine_limit(name, value.partition(",")[0])

    def _grid_engine(self, program: str) -> str:
        directory = self.environment.get("SGE_BINARY_PATH")
        return f"{directory}/{program}" if directory else program

    def _grid_engine_limit(self, name: str, value: str) -> Iterator[float]:
        seconds = _span(value) if name.strip() in ("h_rt", "s_rt") else None
        if seconds is not None:
            _, started = self.read(f"{self.environment['SGE_JOB_SPOOL_DIR']}/config")
            yield started + seconds


_SOURCES = (
    ("Slurm", _Job.slurm),
    ("HTCondor", _Job.htcondor_job),
    ("HTCondor", _Job.htcondor_machine),
    ("Grid Engine", _Job.grid_engine_job),
    ("Grid Engine", _Job.grid_engine_queue),
)


def find_deadline(
    environment: Mapping[str, str], read: Read, run: Run, now: float
) -> Deadline | None:
    """
    The earliest limit that any batch system tells; None: there is none.

    A file that cannot be read, a program that fails, or a value that is none, tells nothing.

    :param now: seconds since the epoch, for a job that does not know when it started.
    """
    job = _Job(environment, read, run, now)
    found: list[Deadline] = []
    for name, source in _SOURCES:
        try:
            found.extend(Deadline(float(at), name) for at in source(job))
        except OSError:
            continue
    return min(found, key=lambda deadline: deadline.at, default=None)
