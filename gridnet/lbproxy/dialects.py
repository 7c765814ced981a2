"""
What events do to jobs that are not grid jobs: PBS, Condor, CREAM, file transfers, machines.

These machines know no branches.  Where a flavour compares codes, an event older than the last
effective one still delivers its data.  Source: docs/protocols/lbproxy.rst, "Other job types".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gridnet.lbproxy import record as states
from gridnet.lbproxy import seqcode
from gridnet.lbproxy.changes import Effect, note_entry, set_tag, take_family
from gridnet.lbproxy.cream import apply_cream_data, apply_cream_state
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.jobid import JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.record import JobRecord

#: Changes the record; the flag says whether the state may change or only data are taken.
_Rules = Callable[[JobRecord, Event, bool], None]

_PBS_SERVER = 13
_PBS_MOMS = (14, 15)
_CLOUD_MANAGER, _VM_MANAGER, _VM_SYSTEM = 17, 18, 19
_PBS_LETTERS = "TQHWREC"


def _machine(
    rules: _Rules,
    older: Callable[[str, str], int] | None = None,
    *,
    keeps_codes: bool = True,
) -> Callable[[JobRecord, Event], Effect]:
    """
    A machine from its *rules*.

    :param older: how codes compare; None: they are not looked at.
    :param keeps_codes: whether the last code is remembered.
    """

    def apply(job: JobRecord, event: Event) -> Effect:
        old_state = job.state
        ok = older is None or not job.last_code or older(job.last_code, event.seqcode) <= 0
        if event.type.name == "RegJob":
            if ok:
                job.state = states.SUBMITTED
            take_family(job, event)
        elif event.type.name == "UserTag":
            set_tag(job, event)
        rules(job, event, ok)
        if not ok:
            return Effect.LATE
        job.updated_at = event.timestamp
        if job.state != old_state:
            note_entry(job, event.timestamp)
        if keeps_codes:
            job.last_code = event.seqcode
        return Effect.OK

    return apply


def _end(job: JobRecord, done_code: int) -> None:
    job.state = states.DONE
    job.set("done_code", done_code)


def _pbs(job: JobRecord, event: Event, ok: bool) -> None:
    _pbs_data(job, event)
    if ok:
        _pbs_state(job, event)


def _pbs_data(job: JobRecord, event: Event) -> None:
    name, fields = event.type.name, event.fields
    if name == "RegJob":
        job.set("network_server", event.get("ns"))
        job.set_if_given("jdl", event.get("jdl"))
    elif name == "PBSQueued":
        for element in ("queue", "name", "owner"):
            job.set(f"pbs_{element}", event.get(element))
    elif name == "PBSMatch":
        job.set("pbs_dest_host", event.get("dest_host"))
    elif name == "PBSPending":
        job.set("pbs_reason", event.get("reason"))
    elif name == "PBSRun":
        job.set_if_given("pbs_scheduler", event.get("scheduler"))
        job.set_if_given("pbs_dest_host", event.get("dest_host"))
        job.set("pbs_pid", fields.get("pid", 0))
    elif name == "PBSDone":
        job.set("pbs_exit_status", fields.get("exit_status", 0))
    elif name == "PBSResourceUsage":
        used = event.word("usage") == "USED"
        job.set("pbs_resource_usage" if used else "pbs_resource_requested", event.get("resources"))
    elif name == "PBSError":
        job.set("pbs_error_desc", event.get("error_desc"))


def _pbs_state(job: JobRecord, event: Event) -> None:
    name, source = event.type.name, event.source
    if name == "PBSInternalStateChange":
        number = event.fields["newstate"]
        if 0 <= number < len(_PBS_LETTERS):
            job.set("pbs_state", _PBS_LETTERS[number])
        job.set("pbs_substate", event.fields["newsubstate"])
    elif name == "PBSAccepted":
        if source == _PBS_SERVER:
            job.state = states.SUBMITTED
        elif source in _PBS_MOMS:
            job.state = states.SCHEDULED
    elif name in ("PBSQueued", "PBSPending", "PBSRerun"):
        job.state = states.WAITING
    elif name == "PBSMatch":
        job.state = states.READY
    elif name == "PBSRun":
        if source == _PBS_SERVER:
            job.state = states.SCHEDULED
        elif source in _PBS_MOMS:
            job.state = states.RUNNING
    elif name == "PBSDone" and source == _PBS_SERVER:
        _end(job, states.DONE_OK)
    elif name == "PBSError":
        _end(job, states.DONE_FAILED)


# Event -> (state, condor_status), whichever daemon tells.
_CONDOR_STATES = {
    "RegJob": (states.SUBMITTED, "Idle"),
    "CondorMatch": (states.READY, "Idle"),
    "CondorReject": (states.ABORTED, "Unexpanded"),
    "CondorShadowStarted": (states.READY, "Idle"),
    "CondorShadowExited": (states.DONE, "Completed"),
    "CondorStarterExited": (states.DONE, "Completed"),
}
_SCHED, _SHADOW, _STARTER, _START = "C", "H", "s", "S"


def _condor(job: JobRecord, event: Event, ok: bool) -> None:
    name, daemon = event.type.name, seqcode.daemon(event.seqcode)
    _condor_data(job, event, daemon)
    if not ok:
        return
    state, status = _CONDOR_STATES.get(name, (job.state, ""))
    if name == "CondorStarterStarted":
        if daemon == _START:
            state, status = states.SCHEDULED, "Idle"
        elif daemon == _STARTER:
            state, status = states.RUNNING, "Running"
    job.state = state
    job.set_if_given("condor_status", status)


def _condor_data(job: JobRecord, event: Event, daemon: str) -> None:
    name, fields = event.type.name, event.fields
    if name == "RegJob":
        job.set_if_given("jdl", event.get("jdl"))
    elif name == "CondorMatch":
        job.set_if_given("condor_owner", event.get("owner"))
        job.set_if_given("condor_dest_host", event.get("dest_host"))
        job.set_if_given("condor_preempting", event.get("preempting"))
    elif name == "CondorReject":
        if event.word("status_code") == "NOMATCH":
            job.set("condor_reason", "No match found.")
    elif name == "CondorShadowStarted" and daemon == _SCHED:
        job.set("condor_shadow_pid", fields["shadow_pid"])
    elif name == "CondorShadowExited" and daemon == _SHADOW:
        job.set("condor_shadow_exit_status", fields["shadow_exit_status"])
    elif name == "CondorStarterStarted" and daemon == _STARTER:
        job.set("condor_universe", event.get("universe"))
        job.set("condor_starter_pid", fields.get("starter_pid", 0))
    elif name == "CondorStarterExited" and daemon in (_START, _STARTER):
        job.set("condor_starter_pid", fields.get("starter_pid", 0))
        if daemon == _START:
            job.set("condor_starter_exit_status", fields.get("starter_exit_status", 0))
        else:
            job.set("condor_job_pid", fields.get("job_pid", 0))
            job.set("condor_job_exit_status", fields.get("job_exit_status", 0))
    elif name == "CondorError":
        job.set("condor_error_desc", event.get("error_desc"))


def _cream(job: JobRecord, event: Event, ok: bool) -> None:
    if ok:
        if event.type.name == "RegJob":
            job.set("cream_state", 0)
        apply_cream_state(job, event, purges=True)
    if event.type.name != "UserTag":
        apply_cream_data(job, event)


def _sandbox(job: JobRecord, event: Event) -> None:
    job.set("ft_sandbox_type", event.fields["sandbox_type"] - 1)
    try:
        job.set("ft_compute_job", str(parse_job_id(event.get("compute_job"))))
    except JobIdError:
        return


def _file_transfer(job: JobRecord, event: Event, ok: bool) -> None:
    name = event.type.name
    if name == "FileTransferRegister":
        job.set("ft_src", event.get("src"))
        job.set("ft_dest", event.get("dest"))
    elif name == "Sandbox":
        _sandbox(job, event)
    elif name == "FileTransfer" and ok:
        result = event.word("result")
        if result == "START":
            job.state = states.RUNNING
        elif result == "OK":
            _end(job, states.DONE_OK)
        else:
            _end(job, states.DONE_FAILED)
            job.forget_failures()
            if reason := event.get("reason"):
                job.add_failure(reason)
    elif name == "Abort" and ok:
        job.state = states.ABORTED
        job.set("remove_from_proxy", 1)
        job.set("reason", event.get("reason"))
        job.set("location", "none")


def _file_transfer_collection(job: JobRecord, event: Event, ok: bool) -> None:
    name = event.type.name
    if name == "Sandbox":
        _sandbox(job, event)
    elif name == "CollectionState" and ok:
        number = states.state_number(event.get("state"))
        if number is not None:
            job.state = number
            if number == states.DONE:
                job.set("done_code", event.fields.get("done_code", 0))


_VM_PENDING, _VM_BOOT, _VM_RUNNING, _VM_REALLY_RUNNING, _VM_SHUTDOWN = range(5)
_VM_STOPPED, _VM_DONE, _VM_FAILURE = range(5, 8)


def _virtual_machine(job: JobRecord, event: Event, ok: bool) -> None:
    name = event.type.name
    if name == "VMCreate":
        for element in ("require", "image", "id", "name", "hostname", "manager"):
            job.set_if_given(f"vm_{element}", event.get(element))
        job.set_if_given("destination", event.get("hostname"))
    elif name == "VMHost":
        job.set("vm_phy_hostname", event.get("hostname"))
    elif name == "VMImage":
        job.set("vm_image", event.get("image"))
    elif name in ("VMShutdown", "VMDone"):
        job.set_if_given("vm_usage", event.get("usage"))
    if ok:
        _virtual_machine_state(job, event)


def _virtual_machine_state(job: JobRecord, event: Event) -> None:
    name, source = event.type.name, event.source
    if name == "RegJob":
        job.set("vm_state", _VM_PENDING)
    elif name == "VMRunning":
        job.state = states.RUNNING
        if source == _VM_SYSTEM:
            job.set("vm_state", _VM_REALLY_RUNNING)
        elif job.get("vm_state") != _VM_REALLY_RUNNING:
            job.set("vm_state", _VM_RUNNING)
    elif name == "VMShutdown":
        if source == _CLOUD_MANAGER:
            job.state = states.WAITING
            job.set("vm_state", _VM_SHUTDOWN)
        elif source in (_VM_MANAGER, _VM_SYSTEM):
            job.set("vm_system_halting", 1)
            if source == _VM_SYSTEM and job.get("vm_state") == _VM_REALLY_RUNNING:
                job.set("vm_state", _VM_RUNNING)
    elif name == "VMStop":
        job.state = states.WAITING
        job.set("vm_state", _VM_STOPPED)
    elif name == "VMResume":
        job.state = states.WAITING
        job.set("vm_state", _VM_PENDING)
        job.set("vm_system_halting", 0)
    elif name == "VMDone":
        status = event.word("status_code")
        job.set("vm_state", _VM_FAILURE if status == "FAILURE" else _VM_DONE)
        codes = {"OK": states.DONE_OK, "DELETE": states.DONE_CANCELLED}
        _end(job, codes.get(status, states.DONE_FAILED))


#: Job type -> its machine.
DIALECTS: Mapping[int, Callable[[JobRecord, Event], Effect]] = {
    states.PBS: _machine(_pbs, seqcode.compare_pbs),
    states.CONDOR: _machine(_condor, seqcode.compare_condor),
    states.CREAM: _machine(_cream),
    states.FILE_TRANSFER_COLLECTION: _machine(_file_transfer_collection),
    states.FILE_TRANSFER: _machine(_file_transfer),
    states.VIRTUAL_MACHINE: _machine(_virtual_machine, keeps_codes=False),
}
