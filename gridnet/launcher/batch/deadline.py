"""When the batch system will end this job, as far as it tells in the environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from attrs import frozen

#: Gives the text of a file and when it was written (seconds since the epoch), or raises OSError.
Read = Callable[[str], tuple[str, float]]


@frozen
class Deadline:
    """A time limit."""

    at: float  #: seconds since the epoch
    source: str  #: who sets it, for people


_MOMENT = re.compile(r"[0-9]{1,12}(?:\.[0-9]+)?")
_AD_LINE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(-?[0-9]{1,12})\s*")
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


def _slurm(environment: Mapping[str, str], read: Read, now: float) -> Iterator[float]:
    """The end is in the environment of jobs that have a limit."""
    at = _moment(environment.get("SLURM_JOB_END_TIME", ""))
    if at is not None:
        yield at


def _htcondor(environment: Mapping[str, str], read: Read, now: float) -> Iterator[float]:
    """The environment names two files: what the job may, and when its place goes away."""
    job = environment.get("_CONDOR_JOB_AD")
    if job:
        ad = _numbers(read(job)[0])
        started = ad.get("jobcurrentstartdate", now)
        executing = ad.get("jobcurrentstartexecutingdate", started)
        for name, since in (
            ("allowedjobduration", started),
            ("allowedexecuteduration", executing),
        ):
            if ad.get(name, 0) > 0:
                yield since + ad[name]
    machine = environment.get("_CONDOR_MACHINE_AD")
    if machine:
        at = _numbers(read(machine)[0]).get("glidein_todie", 0)
        if at > 0:
            yield at


def _grid_engine(environment: Mapping[str, str], read: Read, now: float) -> Iterator[float]:
    """The environment names a directory, made when the job started, with its limits in a file."""
    directory = environment.get("SGE_JOB_SPOOL_DIR")
    if not directory:
        return
    text, written_at = read(f"{directory}/config")
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("h_rt", "s_rt"):
            seconds = _span(value)
            if seconds is not None:
                yield written_at + seconds


_SOURCES = (("Slurm", _slurm), ("HTCondor", _htcondor), ("Grid Engine", _grid_engine))


def find_deadline(environment: Mapping[str, str], read: Read, now: float) -> Deadline | None:
    """
    The earliest limit that any batch system tells; None: there is none.

    A file that cannot be read, or a value that is none, tells nothing.

    :param now: seconds since the epoch, for a job that does not know when it started.
    """
    found: list[Deadline] = []
    for name, source in _SOURCES:
        try:
            found.extend(Deadline(float(at), name) for at in source(environment, read, now))
        except OSError:
            continue
    return min(found, key=lambda deadline: deadline.at, default=None)
