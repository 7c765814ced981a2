"""
What events do to a job (docs/protocols/lbproxy.rst, "What events do to a job").

:func:`apply` changes a record in place, one event at a time in order of arrival; nothing is
recomputed from history.
"""

from __future__ import annotations

from gridnet.lbproxy.changes import Effect
from gridnet.lbproxy.dialects import DIALECTS
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.grid import apply_grid
from gridnet.lbproxy.record import REGISTERED_TYPES, JobRecord

__all__ = ["Effect", "apply"]


def apply(job: JobRecord, event: Event) -> Effect:
    """
    Let *event* happen to *job*; the first must be a registration, which sets the job's type.

    :returns: what became of it; every event is stored and answered alike, whatever this says.
    """
    if job.job_type == -1:
        job.job_type = REGISTERED_TYPES[event.fields["jobtype"]]
    machine = DIALECTS.get(job.job_type)
    return apply_grid(job, event) if machine is None else machine(job, event)
