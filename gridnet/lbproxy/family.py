"""
Collections: how the states of children make the state of their parent.

Source: docs/protocols/lbproxy.rst, "Collections".
"""

from __future__ import annotations

from collections.abc import Iterable

from gridnet.lbproxy import record as states
from gridnet.lbproxy import seqcode
from gridnet.lbproxy.event_types import EVENT_TYPES, LEVEL_SYSTEM, PRIORITY_INTERNAL
from gridnet.lbproxy.events import Event, write
from gridnet.lbproxy.record import JobRecord

#: Who logs the computed states.
PROXY_USER = "LBProxy"


def move_child(parent: JobRecord, old_class: int, new_class: int) -> None:
    """Count one child of *parent* under *new_class* instead of *old_class*."""
    counts = parent.class_counts
    counts[old_class] = max(0, counts[old_class] - 1)
    counts[new_class] += 1


def count_early(parent: JobRecord, found: Iterable[tuple[int, int | None, int]]) -> bool:
    """
    Count the children that were there before *parent* was registered.

    :param found: state, done code and number of such children.
    :returns: whether any has come further than being there.
    """
    counts = parent.class_counts
    early = [0] * len(counts)
    for state, done_code, number in found:
        early[states.child_class(state, done_code)] += number
    rest, early[states.UNKNOWN] = early[states.UNKNOWN], 0
    announced = int(parent.get("children_num"))
    counts[:] = early
    counts[states.UNKNOWN] = max(0, announced - sum(early)) if announced else rest
    return any(early)


def computed_state(parent: JobRecord) -> int | None:
    """
    The state that the children of *parent* give it.

    :returns: None when *parent* is of a type whose state does not follow its children.
    """
    counts = parent.class_counts
    total = int(parent.get("children_num")) or sum(counts)
    running, done = counts[states.RUNNING], counts[states.DONE]
    cleared, aborted = counts[states.CLEARED], counts[states.ABORTED]
    if parent.job_type == states.COLLECTION:
        if running:
            return states.RUNNING
        if cleared == total:
            return states.CLEARED
        if done + cleared == total:
            return states.DONE
        if aborted + done + cleared == total:
            return states.ABORTED
        return states.WAITING
    if parent.job_type == states.FILE_TRANSFER_COLLECTION:
        if running:
            return states.RUNNING
        if done == total:
            return states.DONE
        if done + aborted == total:
            return states.ABORTED
        return states.WAITING
    return None


def collection_event(
    parent: JobRecord, new_state: int, child: str, trigger: str, host: str, now: int
) -> Event:
    """
    The event by which the proxy tells that *parent* has come to *new_state*.

    :param child: job id of the child that moved.
    :param trigger: name of the event that moved it.
    :param host: of this service.
    :param now: microseconds since the epoch.
    """
    kind = EVENT_TYPES["CollectionState"]
    places = (states.RUNNING, states.DONE, states.ABORTED, states.CLEARED, states.UNKNOWN)
    histogram = ", ".join(
        f"{states.STATES[place]}={parent.class_counts[place]}" for place in places
    )
    # One that cannot be read is later than itself, so nothing would come of the event.
    last = parent.last_code if seqcode.components(parent.last_code) else seqcode.ZERO
    event = Event(
        type=kind,
        timestamp=now,
        host=host,
        level=LEVEL_SYSTEM,
        priority=PRIORITY_INTERNAL,
        source=seqcode.LB_SERVER,
        src_instance="",
        job_id=parent.job_id,
        seqcode=seqcode.increment(last, seqcode.LB_SERVER),
        user=PROXY_USER,
        fields={
            "state": states.STATES[new_state],
            "histogram": histogram,
            "child": child,
            "child_event": trigger,
        },
    )
    event.line = write(event)
    return event
