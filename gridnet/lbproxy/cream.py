"""
What CREAM's events do to a job, be it CREAM's own or a grid job on a CREAM element.

Source: docs/protocols/lbproxy.rst, "Other job types".
"""

from __future__ import annotations

from gridnet.lbproxy import record as states
from gridnet.lbproxy.changes import set_tag
from gridnet.lbproxy.events import Event, leading_int
from gridnet.lbproxy.record import CREAM_STATES, JobRecord

_EXECUTOR, _LRMS = 11, 7

_REGISTERED, _PENDING, _IDLE, _RUNNING, _REALLY_RUNNING, _HELD = range(6)
_DONE_OK, _DONE_FAILED, _CANCELLED, _ABORTED, _PURGED = range(6, 11)

#: State CREAM tells -> state of the job; the others leave it alone.
_TOLD = {
    _PENDING: states.WAITING,
    _IDLE: states.SCHEDULED,
    _RUNNING: states.RUNNING,
    _REALLY_RUNNING: states.RUNNING,
    _DONE_OK: states.DONE,
    _DONE_FAILED: states.DONE,
    _CANCELLED: states.CANCELLED,
    _ABORTED: states.ABORTED,
    _PURGED: states.CLEARED,
}


def apply_cream_data(job: JobRecord, event: Event) -> None:
    """Take over the data of an event from CREAM, whatever else becomes of it."""
    name = event.type.name
    if name == "RegJob":
        job.set_if_given("cream_owner", job.owner)
        job.set_if_given("jdl", event.get("jdl"))
        job.set_if_given("cream_jdl", event.get("jdl"))
        for field_name in ("cream_endpoint", "destination", "network_server"):
            job.set_if_given(field_name, event.get("ns"))
    elif name == "CREAMAccepted":
        job.set("cream_id", event.get("local_jobid"))
        job.set("globusId", event.get("local_jobid"))
    elif name == "CREAMStatus" and event.word("result") == "DONE":
        exit_code = event.get("exit_code")
        if exit_code and exit_code != "N/A":
            job.set("cream_exit_code", leading_int(exit_code))
            job.set("exit_code", leading_int(exit_code))
        for field_name in ("cream_node", "ce_node"):
            job.set_if_given(field_name, event.get("worker_node"))
        for field_name in ("cream_lrms_id", "localId"):
            job.set_if_given(field_name, event.get("LRMS_jobid"))
        if failure := event.get("failure_reason"):
            job.set("cream_failure_reason", failure)
            job.forget_failures()
            job.add_failure(failure)
    elif name == "UserTag":
        set_tag(job, event)


def apply_cream_state(job: JobRecord, event: Event, *, purges: bool) -> None:
    """
    Let an effective CREAM event change the state.

    :param purges: whether a purge command clears the job (CREAM's own jobs only).
    """
    name = event.type.name
    if name == "CREAMStore":
        _store(job, event)
    elif name == "CREAMCall":
        _call(job, event, purges)
    elif name == "CREAMCancel":
        if event.word("status_code") == "DONE":
            job.state = states.CANCELLED
            job.set("cream_state", _ABORTED)
        _set_reasons(job, event.get("reason"))
    elif name == "CREAMAbort":
        job.state = states.ABORTED
        job.set("cream_state", _ABORTED)
        _set_reasons(job, event.get("reason"))
    elif name == "CREAMStatus" and event.word("result") == "DONE":
        _told(job, event.get("new_state"))


def _set_reasons(job: JobRecord, reason: str) -> None:
    job.set("cream_reason", reason)
    job.set("reason", reason)


def _set_reasons_if_given(job: JobRecord, reason: str) -> None:
    if reason:
        _set_reasons(job, reason)


def _store(job: JobRecord, event: Event) -> None:
    if event.word("result") == "OK":
        command = event.word("command")
        if command == "CMDSTART":
            job.state = states.WAITING
            job.set("cream_state", _PENDING)
        elif command == "CMDSUSPEND":
            job.set("suspended", 1)
        elif command == "CMDRESUME":
            job.set("suspended", 0)
    _set_reasons_if_given(job, event.get("reason"))


def _call(job: JobRecord, event: Event, purges: bool) -> None:
    if event.word("result") != "OK":
        return
    command = event.word("command")
    if command == "CMDSTART":
        if event.source != _EXECUTOR or event.fields["callee"] != _LRMS:
            return
        job.state = states.SCHEDULED
        job.set("cream_state", _IDLE)
    elif command == "CMDCANCEL":
        job.set("cream_cancelling", 1)
        job.set("cancelling", 1)
    elif command == "CMDPURGE" and purges:
        job.state = states.CLEARED
        job.set("cream_state", _PURGED)
    else:
        return
    _set_reasons_if_given(job, event.get("reason"))


def _told(job: JobRecord, word: str) -> None:
    word = word.upper().replace("_", "-")
    if word not in CREAM_STATES:
        return
    told = CREAM_STATES.index(word)
    job.set("cream_state", told)
    job.state = _TOLD.get(told, job.state)
    if told == _RUNNING:
        job.set("jw_status", states.JW_WRAPPER_RUNNING)
    elif told == _REALLY_RUNNING:
        job.set("jw_status", states.JW_PAYLOAD_RUNNING)
    elif told in (_DONE_OK, _DONE_FAILED):
        code = states.DONE_OK if told == _DONE_OK else states.DONE_FAILED
        job.set("done_code", code)
        job.set("cream_done_code", code)
