"""Job definitions and scripts as their rows say, kept between transactions."""

from __future__ import annotations

import json
from collections import OrderedDict
from threading import Lock

from attrs import frozen

from gridnet.scire.definition import JobDefinition, parse_definition
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.jobfile import FileToFetch, JobFile, PackageWish, Template, template_of
from gridnet.scire.store.database import Steps, Transaction, alone
from gridnet.scire.store.sets import INT, TEXT, in_sets


@frozen(eq=False)
class Job:
    """A job, read."""

    id: int
    version: int
    definition: JobDefinition
    user_id: int  #: who ordered it, with whose rights
    user_name: str
    created_at: float
    watched: bool  #: other runs wait for its runs' ends
    template: Template  #: of the files of its runs


def template_for(
    job_id: int, definition: JobDefinition, user_name: str, created_at: float, script: bytes
) -> Template:
    """What is alike in the files of all runs of a job."""
    execute = definition.execute
    return template_of(
        JobFile(
            run=0,
            job=job_id,
            attempt=0,
            client=0,
            client_name="",
            name=definition.name,
            description=definition.description,
            ordered_by=user_name,
            ordered_at=created_at,
            issued=0.0,
            requires=definition.capabilities,
            run_seconds=definition.limits.run_seconds,
            kill_seconds=definition.limits.kill_seconds,
            output_bytes=definition.limits.output_bytes,
            kind=execute.kind,
            user=execute.user,
            directory=execute.directory,
            umask=execute.umask,
            interpreter=execute.interpreter,
            variables=tuple(sorted(execute.variables.items())),
            arguments=execute.arguments,
            script=script,
            packages=tuple(PackageWish(p.name, p.version, p.action) for p in execute.packages),
            files=tuple(
                FileToFetch(a.name, a.digest, a.size, a.mode) for a in definition.attachments
            ),
            success=execute.success,
            interrupt=definition.on_interrupt,
            keep=definition.keep_output,
        )
    )


class JobCache:
    """
    The jobs used last.

    A job's ``version`` column gets a random number with each change (a number that was rolled
    back must not come again), so what is kept under the version that a transaction sees is what
    that transaction would read.

    :param most: jobs that are kept; the scripts of these are what memory goes to.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[int, int], Job] = OrderedDict()
        self._lock = Lock()

    def get(self, tx: Transaction, job_id: int, version: int) -> Job:
        """The job as *tx* sees it; *version* is what it has read of the row."""
        return alone(tx, self.in_steps(tx, job_id, version))

    def in_steps(self, tx: Transaction, job_id: int, version: int) -> Steps[Job]:
        """The same, for an operation in steps."""
        key = (job_id, version)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        job = yield from _read(tx, job_id)
        with self._lock:
            self._kept[(job_id, job.version)] = job
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return job


def read_job(tx: Transaction, job_id: int) -> Job:
    """
    Read a job.

    :raises ScireFault: 1021 there is none.
    """
    return alone(tx, _read(tx, job_id))


_JOB = in_sets(
    "SELECT j.*, u.name AS user_name FROM jobs j JOIN users u ON u.id = j.user_id WHERE j.id = ?",
    INT,
)
_SCRIPT = in_sets("SELECT content FROM scripts WHERE digest = ?", TEXT)


def _read(tx: Transaction, job_id: int) -> Steps[Job]:
    yield [(_JOB, (job_id,))]
    row = tx.one(_JOB, (job_id,))
    if row is None:
        raise ScireFault(FaultCode.UNKNOWN_JOB, f"unknown job {job_id}")
    definition = parse_definition(json.loads(row["definition"]))
    script = b""
    if definition.execute.script:
        wanted = (_SCRIPT, (definition.execute.script,))
        yield [wanted]
        stored = tx.one(*wanted)
        script = bytes(stored["content"]) if stored is not None else b""
    return Job(
        job_id,
        row["version"],
        definition,
        row["user_id"],
        row["user_name"],
        row["created_at"],
        bool(row["watched"]),
        template_for(job_id, definition, row["user_name"], row["created_at"], script),
    )
