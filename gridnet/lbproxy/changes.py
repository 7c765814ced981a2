"""What the machines of all job types share: the verdict on an event, and a few changes."""

from __future__ import annotations

from enum import Enum

from gridnet.lbproxy import record as states
from gridnet.lbproxy import seqcode
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.record import JobRecord

#: Numbers of ``JOBTYPE`` whose registrations count their children.
COUNTING_TYPES = frozenset({2, 4, 5, 9})


class Effect(Enum):
    """What became of an event."""

    OK = "ok"  #: it changed the job
    LATE = "late"  #: only its data were taken
    IGNORED = "ignored"  #: as late, but by its nature: the start of something
    ODD = "odd"  #: it makes no sense from that source; nothing more was done


def note_entry(job: JobRecord, timestamp: int) -> None:
    """Set the times of having entered the present state, *timestamp* in microseconds."""
    job.entered_at = timestamp
    job.entered_times[job.state] = timestamp // MICROSECONDS


def set_tag(job: JobRecord, event: Event) -> None:
    """Take over a user tag unless the job has a newer value of it."""
    name = event.get("name").lower()
    tag = job.tags.get(name)
    if tag is None or seqcode.compare(event.seqcode, tag.code) > 0:
        job.set_tag(name, event.get("value"), event.seqcode)


def take_family(job: JobRecord, event: Event) -> None:
    """Take over from a registration who the parent is and how many children there are."""
    job.set("parent_job", event.get("parent"))
    if event.fields["jobtype"] in COUNTING_TYPES:
        count = max(0, event.fields.get("nsubjobs", 0))
        job.set("children_num", count)
        if count:  # otherwise those that name it as their parent are counted as they come
            elsewhere = sum(job.class_counts) - job.class_counts[states.UNKNOWN]
            job.class_counts[states.UNKNOWN] = max(0, count - elsewhere)
