"""
What events do to a grid job: a simple one, a DAG or a collection.

Source: docs/protocols/lbproxy.rst, "What events do to a job"; section names below are of that
page.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import define

from gridnet.lbproxy import record as states
from gridnet.lbproxy import seqcode
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.changes import Effect, note_entry, set_tag, take_family
from gridnet.lbproxy.cream import apply_cream_data, apply_cream_state
from gridnet.lbproxy.event_types import source_name
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.identity import comparison_key
from gridnet.lbproxy.jobid import JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.record import REGISTERED_TYPES, JobRecord
from gridnet.lbproxy.seqcode import LOG_MONITOR, NETWORK_SERVER, USER_INTERFACE, WORKLOAD_MANAGER

JOB_CONTROLLER, LRMS = 5, 7
CREAM_INTERFACE, CREAM_EXECUTOR = 10, 11

# Words of the events' enumerations, by number.
_START, _OK, _REFUSED, _FAIL = 1, 2, 3, 4
_DONE_OK, _DONE_FAILED, _DONE_CANCELLED, _DONE_KILLED = 1, 2, 3, 4
_CANCEL_REQ, _CANCEL_REFUSE, _CANCEL_DONE, _CANCEL_ABORT = 1, 2, 3, 4
_WILLRESUB, _WONTRESUB, _SHALLOW = 1, 2, 3
_UNREADABLE = (-1,) * 9  # the counts of a code that cannot be read
_COMPOUND_GRID_TYPES = frozenset({2, 4, 5})  # DAG, PARTITIONED, COLLECTION


class Branch(Enum):
    """Where an event stands among the branches of a resubmitted job."""

    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"
    TOO_OLD = "too old"


_ENDED = frozenset({states.CANCELLED, states.CLEARED, states.ABORTED})
_ARRIVED = frozenset({states.RUNNING, states.DONE})
_ON_ITS_WAY = frozenset({states.WAITING, states.READY, states.SCHEDULED})

# Taken from their classes once: there, each costs a call with some versions of Python.
_EFFECTIVE, _ODD = Effect.OK, Effect.ODD
_PLAIN, _GOOD = Branch.PLAIN, Branch.GOOD


@define(slots=True, eq=False)
class _Step:
    """One event on its way through the machine."""

    job: JobRecord
    event: Event
    old_state: int
    effect: Effect = Effect.OK
    branch: Branch = Branch.PLAIN
    keeps_code: bool = False  #: this event leaves the last code alone
    drops_lm: bool = False  #: its code is kept without the LogMonitor's count

    @property
    def ok(self) -> bool:
        return self.effect is _EFFECTIVE

    @property
    def branch_counts(self) -> bool:
        return self.branch is _PLAIN or self.branch is _GOOD

    def late_while_running(self) -> bool:
        """The guard L: an event of the way there is late once the job has arrived."""
        if self.old_state in _ARRIVED:
            self.effect = Effect.LATE
            return True
        return False

    def locate(self, place: str) -> None:
        """Set the location to *place* at the event's host and instance."""
        self.job.set("location", f"{place}/{self.event.host}/{self.event.src_instance}")

    def locate_source(self) -> None:
        """Set the location to the event's source."""
        self.locate(source_name(self.event.source))


_Handler = Callable[[_Step], None]


def apply_grid(job: JobRecord, event: Event) -> Effect:
    """Let *event* happen to the grid job *job*; see :func:`gridnet.lbproxy.state.apply`."""
    step = _judge(job, event)
    if event.source in (CREAM_INTERFACE, CREAM_EXECUTOR):
        apply_cream_data(job, event)
    handler = _HANDLERS.get(event.type.name)
    if handler is None:
        return Effect.ODD
    handler(step)
    if step.effect is _ODD:
        return _ODD
    if step.effect is _EFFECTIVE:
        _close(step)
    if event.source == NETWORK_SERVER and "network_server" not in job.values:
        job.set("network_server", f"{event.host}:{event.src_instance}")
    return step.effect


def _judge(job: JobRecord, event: Event) -> _Step:
    """Verdicts on an event before its type is looked at ("Late events")."""
    step = _Step(job, event, job.state)
    code = event.seqcode
    name = event.type.name
    if job.state in _ENDED and (job.state != states.ABORTED or name != "CollectionState"):
        step.effect = Effect.LATE
    if job.last_code and name != "Cancel" and _came_in_anew(code, job.last_code):
        job.branch_tag = job.deep_code = job.last_branch_code = ""
    if job.deep_code and seqcode.branch(code) < seqcode.branch(job.deep_code):
        step.effect = Effect.LATE
        step.branch = Branch.TOO_OLD
    elif job.branch_tag:
        if seqcode.branch(code) == seqcode.branch(job.branch_tag):
            step.branch = Branch.GOOD
            if job.last_branch_code and seqcode.compare(code, job.last_branch_code) < 0:
                step.effect = Effect.LATE
        else:
            step.branch = Branch.BAD
            step.effect = Effect.LATE
    elif job.last_code and seqcode.compare(code, job.last_code) < 0:
        step.effect = Effect.LATE
    return step


def _came_in_anew(code: str, last: str) -> bool:
    counts, before = (
        seqcode.components(code) or _UNREADABLE,
        seqcode.components(last) or _UNREADABLE,
    )
    interface, server = USER_INTERFACE - 1, NETWORK_SERVER - 1
    return counts[interface] > before[interface] or counts[server] > before[server]


def _close(step: _Step) -> None:
    """What every effective event does at the end ("Effective events")."""
    job, event = step.job, step.event
    values = job.values
    job.updated_at = event.timestamp
    if job.state != step.old_state:
        note_entry(job, event.timestamp)
        if job.state in _ON_ITS_WAY:
            job.set("jw_status", states.JW_UNKNOWN)
    if event.type.name == "Cancel":
        job.last_cancel_code = event.seqcode
    elif step.drops_lm:
        job.last_code = seqcode.without_log_monitor(event.seqcode)
    elif not step.keeps_code:
        job.last_code = event.seqcode
    if job.state != states.RUNNING and ("suspended" in values or "suspend_reason" in values):
        job.set("suspended", 0)
        job.set("suspend_reason", "")
    if step.branch is _GOOD:
        job.last_branch_code = event.seqcode


# Result and source of a Transfer -> new state; those in the second set have the guard L.
_TRANSFERS = {
    (USER_INTERFACE, _OK): states.WAITING,
    (USER_INTERFACE, _FAIL): states.SUBMITTED,
    (JOB_CONTROLLER, _OK): states.READY,
    (JOB_CONTROLLER, _FAIL): states.READY,
    (LOG_MONITOR, _OK): states.SCHEDULED,
    (LOG_MONITOR, _FAIL): states.READY,
}
_GUARDED_TRANSFERS = {(JOB_CONTROLLER, _FAIL), (LOG_MONITOR, _OK), (LOG_MONITOR, _FAIL)}


def _transfer(step: _Step) -> None:
    job, event = step.job, step.event
    if event.source not in (USER_INTERFACE, JOB_CONTROLLER, LOG_MONITOR):
        step.effect = Effect.ODD
        return
    result = event.fields["result"]
    row = (event.source, result)
    if row not in _TRANSFERS:
        step.effect = Effect.IGNORED
    else:
        if row in _GUARDED_TRANSFERS and step.late_while_running() and result == _OK:
            job.entered_times[states.SCHEDULED] = event.timestamp // MICROSECONDS
        step.drops_lm = row == (LOG_MONITOR, _OK)
    if step.ok:
        job.state = _TRANSFERS[row]
        job.set("reason", event.get("reason"))
        if result == _OK:
            place = source_name(event.fields["destination"])
            job.set("location", f"{place}/{event.get('dest_host')}/{event.get('dest_instance')}")
        else:
            step.locate_source()
    if event.source == USER_INTERFACE:
        if "jdl" not in job.values:
            job.set("jdl", event.get("job"))
    else:
        job.set("condor_jdl" if event.source == JOB_CONTROLLER else "rsl", event.get("job"))


def _accepted(step: _Step) -> None:
    job, event = step.job, step.event
    if event.source == NETWORK_SERVER:
        new_state, field_name, value = states.WAITING, "ui_host", event.get("from_host")
    elif event.source == LOG_MONITOR:
        step.late_while_running()
        step.drops_lm = True
        new_state, field_name, value = states.READY, "condorId", event.get("local_jobid")
    elif event.source == LRMS:
        new_state, field_name, value = states.SCHEDULED, "globusId", event.get("local_jobid")
    else:
        step.effect = Effect.ODD
        return
    if step.ok:
        job.state = new_state
        step.locate_source()
    job.set(field_name, value)


def _refused(step: _Step) -> None:
    job, event = step.job, step.event
    if event.source == NETWORK_SERVER:
        new_state = states.SUBMITTED
    elif event.source in (LOG_MONITOR, LRMS):
        new_state = states.READY
    else:
        step.effect = Effect.ODD
        return
    if step.ok:
        job.state = new_state
        job.set("reason", event.get("reason"))
        place = source_name(event.fields["from"])
        job.set("location", f"{place}/{event.get('from_host')}/{event.get('from_instance')}")


def _enqueued(step: _Step) -> None:
    job, event = step.job, step.event
    if event.source not in (NETWORK_SERVER, WORKLOAD_MANAGER, LOG_MONITOR):
        step.effect = Effect.ODD
        return
    result = event.fields["result"]
    new_state = states.WAITING
    if result not in (_OK, _FAIL):
        step.effect = Effect.IGNORED
    elif event.source == WORKLOAD_MANAGER and result == _OK:
        step.late_while_running()
        job.set_branch(seqcode.branch(event.seqcode), jdl=event.get("job"))
        new_state = states.READY
    elif event.source == LOG_MONITOR and result == _FAIL:
        new_state = step.old_state
    if step.ok:
        job.state = new_state
        job.set("reason", event.get("reason"))
        if result == _OK:
            step.locate(event.get("queue"))
            if event.source == LOG_MONITOR:
                job.set("resubmitted", 1)
        else:
            step.locate_source()
    if event.source == NETWORK_SERVER:
        if result == _OK or "jdl" not in job.values:
            job.set("jdl", event.get("job"))
    elif event.source == WORKLOAD_MANAGER:
        job.set("matched_jdl", event.get("job"))


def _dequeued(step: _Step) -> None:
    if step.event.source == WORKLOAD_MANAGER:
        new_state = states.WAITING
    elif step.event.source == JOB_CONTROLLER:
        step.late_while_running()
        new_state = states.READY
    else:
        step.effect = Effect.ODD
        return
    if step.ok:
        step.job.state = new_state
        step.locate_source()


def _wait_at(step: _Step, place: str) -> None:
    if step.ok:
        step.job.state = states.WAITING
        step.locate(place)


def _helper_call(step: _Step) -> None:
    _wait_at(step, step.event.get("helper_name"))


def _helper_return(step: _Step) -> None:
    _wait_at(step, "WorkloadManager")


def _match(step: _Step) -> None:
    _wait_at(step, "WorkloadManager")
    job, destination = step.job, step.event.get("dest_id")
    if step.branch_counts:
        job.set("destination", destination)
    job.set_branch(seqcode.branch(step.event.seqcode), destination=destination)
    job.add_destination(destination)


def _pending(step: _Step) -> None:
    _wait_at(step, "WorkloadManager")
    if step.ok:
        step.job.set("reason", step.event.get("reason"))


def _running(step: _Step) -> None:
    job, node = step.job, step.event.get("node")
    if step.ok:
        job.state = states.RUNNING
        job.set("jw_status", states.JW_WRAPPER_RUNNING)
        job.set("location", f"LRMS/worknode/{node}")
    if step.branch_counts:
        job.set("ce_node", node)
    job.set_branch(seqcode.branch(step.event.seqcode), node=node)
    job.add_node(node)


def _really_running(step: _Step) -> None:
    job, event = step.job, step.event
    if not step.branch_counts:
        return
    if event.source == LRMS:
        job.branch_tag = event.seqcode
        if step.ok:
            job.last_branch_code = event.seqcode
            job.state = states.RUNNING
    elif event.source == LOG_MONITOR:
        code = event.get("wn_seq")
        if not (job.branch_tag and job.last_branch_code) and seqcode.components(code) is None:
            step.effect = Effect.ODD
            return
        job.branch_tag = job.branch_tag or code
        if not job.last_branch_code and step.ok:
            job.last_branch_code = code
            job.state = states.RUNNING
    if (
        not step.ok
        and not job.last_branch_code
        and job.branch_tag
        and seqcode.branch(job.last_code) == seqcode.branch(job.branch_tag)
    ):
        job.last_branch_code = job.last_code
    job.set("jw_status", states.JW_PAYLOAD_RUNNING)
    job.set("payload_running", 1)
    _load_branch(job)


def _load_branch(job: JobRecord) -> None:
    """Show destination, node and description of the tagged branch ("Resubmission")."""
    if not job.branch_tag:
        return
    numbers = sorted(job.branches)
    tagged = seqcode.branch(job.branch_tag)
    place = numbers.index(tagged) if tagged in job.branches else len(numbers)
    for number in numbers[max(0, place - 2) : place + 1]:
        row = job.branches[number]
        job.set_if_given("destination", row.destination)
        job.set_if_given("ce_node", row.node)
        job.set_if_given("matched_jdl", row.jdl)


def _reset_branch(job: JobRecord, code: str) -> None:
    job.resubmission = "WILLRESUB"
    job.forget_branches()
    job.set("payload_running", 0)
    job.branch_tag = ""
    job.deep_code = code


def _resubmission(step: _Step) -> None:
    job, event = step.job, step.event
    result = event.fields["result"]
    if result == _WONTRESUB:
        if step.ok:
            job.set("reason", event.get("reason"))
        job.resubmission = "WONTRESUB"
    elif result == _SHALLOW:
        job.resubmission = "SHALLOW"
    elif event.source == WORKLOAD_MANAGER:
        _reset_branch(job, event.seqcode)


def _done(step: _Step) -> None:
    job, event = step.job, step.event
    if event.source == LRMS:  # the wrapper's own word is not enough
        if step.ok:
            job.set("jw_status", states.JW_DONE)
            job.set("payload_running", 0)
        return
    status = event.fields["status_code"]
    reason = event.get("reason")
    if step.ok:
        job.state = states.CANCELLED if status == _DONE_CANCELLED else states.DONE
        job.set("jw_status", states.JW_DONE)
        job.set("reason", reason)
        if step.branch is Branch.GOOD:
            job.set("payload_running", 0)
        if status in (_DONE_OK, _DONE_CANCELLED):
            job.set("location", "none")
        else:
            step.locate_source()
    if status == _DONE_KILLED:
        step.effect = Effect.ODD
        return
    if status == _DONE_FAILED:
        where = job.get("destination") if step.ok else "delayed event, destination unreliable"
        job.add_failure(f"{reason} [{where}]")
    job.set("exit_code", event.fields.get("exit_code", 0) if status == _DONE_OK else 0)
    job.set("done_code", status - 1)


def _cancel(step: _Step) -> None:
    job, event = step.job, step.event
    if step.branch is Branch.BAD or (
        job.last_cancel_code and seqcode.compare(event.seqcode, job.last_cancel_code) < 0
    ):
        step.effect = Effect.LATE
    if step.ok:
        status = event.fields["status_code"]
        if status == _CANCEL_REQ:
            job.set("cancelling", 1)
        elif status == _CANCEL_DONE:
            job.state = states.CANCELLED
            job.set("remove_from_proxy", 1)
            job.set("reason", event.get("reason"))
            job.last_code = event.seqcode
            job.set("location", "none")
            job.set("cancelling", 0)
        elif status == _CANCEL_ABORT:
            job.set("cancelling", 0)
    job.set("cancelReason", event.get("reason"))


def _abort(step: _Step) -> None:
    job, event = step.job, step.event
    if event.source == WORKLOAD_MANAGER:
        step.effect = Effect.OK
    if step.ok:
        job.state = states.ABORTED
        job.set("remove_from_proxy", 1)
        job.set("reason", event.get("reason"))
        job.set("location", "none")
        _reset_branch(job, event.seqcode)


_CLEAR_REASONS = {
    1: "user retrieved output sandbox",
    2: "timed out, resource purge forced",
    3: "no output was generated",
}


def _clear(step: _Step) -> None:
    job, reason = step.job, step.event.fields["reason"]
    if step.ok:
        job.state = states.CLEARED
        job.set("remove_from_proxy", 1)
        job.set("location", "none")
        job.set("reason", _CLEAR_REASONS[reason])
    job.set("sandbox_retrieved", reason)


def _registered(step: _Step) -> None:
    job, event = step.job, step.event
    if step.ok:
        job.state = states.SUBMITTED
    job.set_if_given("jdl", event.get("jdl"))
    job.set("network_server", event.get("ns"))
    job.set("seed", event.get("seed"))
    if event.fields["jobtype"] in _COMPOUND_GRID_TYPES:
        job.job_type = REGISTERED_TYPES[event.fields["jobtype"]]
    job.set("children_num", max(0, event.fields.get("nsubjobs", 0)))
    take_family(job, event)


def _user_tag(step: _Step) -> None:
    set_tag(step.job, step.event)


def _suspend(step: _Step) -> None:
    job, event = step.job, step.event
    if step.ok and job.state == states.RUNNING:
        job.set("suspended", 1 if event.type.name == "Suspend" else 0)
        job.set("suspend_reason", event.get("reason"))


def _collection_state(step: _Step) -> None:
    event = step.event
    number = states.state_number(event.get("state"))
    if number is None:
        step.effect = Effect.ODD
    elif step.ok:
        step.job.state = number
        if number == states.DONE:
            step.job.set("done_code", event.fields.get("done_code", 0))


def _sandbox(step: _Step) -> None:
    event = step.event
    try:
        transfer = str(parse_job_id(event.get("transfer_job")))
    except JobIdError:
        return
    is_input = event.word("sandbox_type") == "INPUT"
    step.job.set("isb_transfer" if is_input else "osb_transfer", transfer)


def _change_acl(step: _Step) -> None:
    step.keeps_code = True


def _grant_ownership(step: _Step) -> None:
    step.keeps_code = True
    job, heir = step.job, step.event.get("payload_owner")
    if job.owner_claimed:
        if comparison_key(heir) == comparison_key(job.owner_claimed):
            job.set("payload_owner", job.owner_claimed)
        job.owner_claimed = ""
    else:
        job.owner_granted = heir


def _take_ownership(step: _Step) -> None:
    step.keeps_code = True
    job, user = step.job, step.event.user
    if job.owner_granted and comparison_key(user) == comparison_key(job.owner_granted):
        job.set("payload_owner", job.owner_granted)
        job.owner_granted = ""
    else:
        job.owner_claimed = user


def _nothing(step: _Step) -> None:
    """Informational: only the times and the code follow."""


def _cream(step: _Step) -> None:
    if step.ok:
        apply_cream_state(step.job, step.event, purges=False)


_HANDLERS: dict[str, _Handler] = {
    "Transfer": _transfer,
    "Accepted": _accepted,
    "Refused": _refused,
    "EnQueued": _enqueued,
    "DeQueued": _dequeued,
    "HelperCall": _helper_call,
    "HelperReturn": _helper_return,
    "Running": _running,
    "Resubmission": _resubmission,
    "Done": _done,
    "Cancel": _cancel,
    "Abort": _abort,
    "Clear": _clear,
    "Purge": _nothing,
    "Match": _match,
    "Pending": _pending,
    "RegJob": _registered,
    "Chkpt": _nothing,
    "Listener": _nothing,
    "CurDescr": _nothing,
    "UserTag": _user_tag,
    "ChangeACL": _change_acl,
    "ResourceUsage": _nothing,
    "ReallyRunning": _really_running,
    "Suspend": _suspend,
    "Resume": _suspend,
    "CollectionState": _collection_state,
    "GrantPayloadOwnership": _grant_ownership,
    "TakePayloadOwnership": _take_ownership,
    "Sandbox": _sandbox,
    "CREAMStart": _nothing,
    "CREAMPurge": _nothing,
    "CREAMAccepted": _nothing,
    "CREAMStore": _cream,
    "CREAMCall": _cream,
    "CREAMCancel": _cream,
    "CREAMAbort": _cream,
    "CREAMStatus": _cream,
}
