"""
What is known of one job: the public status, and what its state machine keeps besides.

The public fields and their order are docs/protocols/lbproxy.rst, "Fields of a job's status".
A record is changed in place by :mod:`gridnet.lbproxy.state`; :attr:`JobRecord.touched` tells the
store which of the parts that can grow were changed, so that an event costs what it changes and
not what the job has piled up.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Any

from attrs import define, field, frozen

from gridnet.lbproxy.identity import normal_form
from gridnet.lbproxy.jobid import JobId

STATES = (
    "Undefined",
    "Submitted",
    "Waiting",
    "Ready",
    "Scheduled",
    "Running",
    "Done",
    "Cleared",
    "Aborted",
    "Cancelled",
    "Unknown",
    "Purged",
)
(
    UNDEFINED,
    SUBMITTED,
    WAITING,
    READY,
    SCHEDULED,
    RUNNING,
    DONE,
    CLEARED,
    ABORTED,
    CANCELLED,
    UNKNOWN,
    PURGED,
) = range(len(STATES))
_STATE_NUMBERS = {name.upper(): number for number, name in enumerate(STATES)}

# Job types of the status.
SIMPLE, DAG, COLLECTION = 0, 1, 4
PBS, CONDOR, CREAM, FILE_TRANSFER_COLLECTION, FILE_TRANSFER, VIRTUAL_MACHINE = range(5, 11)
JOB_TYPES: Mapping[str, int] = {
    "Simple": SIMPLE,
    "Dag": DAG,
    "Collection": COLLECTION,
    "PBS": PBS,
    "Condor": CONDOR,
    "CREAM": CREAM,
    "File_transfer_collection": FILE_TRANSFER_COLLECTION,
    "File_transfer": FILE_TRANSFER,
    "Virtual_machine": VIRTUAL_MACHINE,
}
JOB_TYPE_WORDS = {number: word for word, number in JOB_TYPES.items()}
_JOB_TYPE_NUMBERS = {word.upper(): number for word, number in JOB_TYPES.items()}
#: Types whose jobs have subjobs.
COMPOUND = frozenset({DAG, COLLECTION, FILE_TRANSFER_COLLECTION})
#: Number of ``JOBTYPE`` in a registration -> job type of the status.
REGISTERED_TYPES: Mapping[int, int] = {
    1: SIMPLE,
    2: DAG,
    3: DAG,
    4: DAG,
    5: COLLECTION,
    6: PBS,
    7: CONDOR,
    8: CREAM,
    9: FILE_TRANSFER_COLLECTION,
    10: FILE_TRANSFER,
    11: VIRTUAL_MACHINE,
}

DONE_OK, DONE_FAILED, DONE_CANCELLED = 0, 1, 2
DONE_CODES = ("OK", "FAILED", "CANCELLED")
JW_UNKNOWN, JW_WRAPPER_RUNNING, JW_PAYLOAD_RUNNING, JW_DONE = range(4)
CREAM_STATES = (
    "REGISTERED",
    "PENDING",
    "IDLE",
    "RUNNING",
    "REALLY-RUNNING",
    "HELD",
    "DONE-OK",
    "DONE-FAILED",
    "CANCELLED",
    "ABORTED",
    "PURGED",
)
VM_STATES = (
    "PENDING",
    "BOOT",
    "RUNNING",
    "REALLY-RUNNING",
    "SHUTDOWN",
    "STOPPED",
    "DONE",
    "FAILURE",
)


def state_number(name: str) -> int | None:
    """The number of a state, without regard to case, or None for a word that is none."""
    return _STATE_NUMBERS.get(name.upper())


def job_type_number(word: str) -> int | None:
    """The number of a job type, without regard to case, or None for a word that is none."""
    return _JOB_TYPE_NUMBERS.get(word.upper())


class FieldKind(Enum):
    """How a public field is shown."""

    TEXT = "text"
    NUMBER = "int"
    TIME = "time"  #: microseconds inside, seconds with six decimals outside


@frozen(slots=True)
class StatusField:
    """One public field."""

    name: str
    kind: FieldKind
    null: object  #: what is left out
    described: bool = False  #: shown only to those who ask for job descriptions


def _fields() -> tuple[StatusField, ...]:
    described = {"jdl", "matched_jdl", "condor_jdl", "rsl"}
    minus_one = {
        "jobtype",
        "done_code",
        "cpuTime",
        "cream_state",
        "cream_done_code",
        "cream_exit_code",
        "cream_jw_status",
        "ft_sandbox_type",
        "vm_state",
    }
    rows = (
        "jobId owner jobtype:int parent_job seed children_num:int condorId globusId localId jdl "
        "matched_jdl destination condor_jdl rsl reason location ce_node network_server "
        "subjob_failed:int done_code:int exit_code:int resubmitted:int cancelling:int "
        "cancelReason cpuTime:int stateEnterTime:time lastUpdateTime:time expectUpdate:int "
        "expectFrom acl payload_running:int suspended:int suspend_reason failure_reasons "
        "remove_from_proxy:int ui_host sandbox_retrieved:int jw_status:int isb_transfer "
        "osb_transfer payload_owner access_rights history pbs_state pbs_substate:int pbs_queue "
        "pbs_owner pbs_name pbs_reason pbs_scheduler pbs_dest_host pbs_pid:int "
        "pbs_resource_requested pbs_resource_usage pbs_exit_status:int pbs_error_desc "
        "condor_status condor_universe condor_owner condor_preempting condor_shadow_pid:int "
        "condor_shadow_exit_status:int condor_starter_pid:int condor_starter_exit_status:int "
        "condor_job_pid:int condor_job_exit_status:int condor_dest_host condor_reason "
        "condor_error_desc cream_state:int cream_id cream_owner cream_endpoint cream_jdl "
        "cream_reason cream_failure_reason cream_lrms_id cream_node cream_done_code:int "
        "cream_exit_code:int cream_cancelling:int cream_cpu_time:int cream_jw_status:int "
        "ft_compute_job ft_sandbox_type:int ft_src ft_dest vm_state:int vm_image vm_require "
        "vm_usage vm_hostname vm_machine vm_id vm_name vm_phy_hostname vm_system_halting:int "
        "vm_manager"
    )
    made = []
    for row in rows.split():
        name, _, kind = row.partition(":")
        null: object = "" if not kind else -1 if name in minus_one else 0
        made.append(StatusField(name, FieldKind(kind or "text"), null, name in described))
    return tuple(made)


#: All public fields with one value each, in the order of the wire.
STATUS_FIELDS = _fields()
_NULLS: Mapping[str, object] = {one.name: one.null for one in STATUS_FIELDS}
#: Fields that can be long; the store keeps each in a row of its own.
LONG_FIELDS = frozenset(
    {
        "jdl",
        "matched_jdl",
        "condor_jdl",
        "rsl",
        "cream_jdl",
        "reason",
        "cancelReason",
        "suspend_reason",
        "cream_reason",
        "cream_failure_reason",
        "pbs_resource_requested",
        "pbs_resource_usage",
        "pbs_error_desc",
        "vm_require",
        "vm_image",
        "vm_usage",
    }
)


class Part(StrEnum):
    """The parts of a record that grow, each a set of (key, value)."""

    LONG = "long"  #: a long field; key: its name
    TAG = "tag"  #: a user tag; key: its name
    DESTINATION = "destination"  #: one of ``possible_destinations``; key: its place
    NODE = "node"  #: one of ``possible_ce_nodes``; key: its place
    FAILURE = "failure"  #: one line of ``failure_reasons``; key: its place
    BRANCH = "branch"  #: a row of the branch table; key: the branch number


# Taken from their class once: there, each costs a call with some versions of Python.
_LONG, _TAG, _DESTINATION, _NODE, _FAILURE, _BRANCH = Part


@define(slots=True)
class Tag:
    """A user tag."""

    value: str
    code: str  #: sequence code it was set with
    place: int  #: in the order of first setting


@define(slots=True)
class BranchRow:
    """What is known of one branch of a resubmitted job."""

    destination: str = ""
    node: str = ""
    jdl: str = ""


@define(slots=True, eq=False)
class JobRecord:
    """One job."""

    job_id: JobId
    owner: str  #: normal form
    state: int = UNDEFINED
    job_type: int = -1
    entered_at: int = 0  #: ``stateEnterTime``, microseconds
    updated_at: int = 0  #: ``lastUpdateTime``, microseconds
    values: dict[str, Any] = field(factory=dict)  #: the other public fields that are not null
    #: state number -> seconds since the epoch when it was last entered; 0: never
    entered_times: list[int] = field(factory=lambda: [0] * len(STATES))
    #: children by class, in the places of Running, Done, Aborted, Cleared and Unknown (the rest)
    class_counts: list[int] = field(factory=lambda: [0] * len(STATES))
    tags: dict[str, Tag] = field(factory=dict)
    destinations: list[str] = field(factory=list)
    nodes: list[str] = field(factory=list)
    failures: list[str] = field(factory=list)
    branches: dict[int, BranchRow] = field(factory=dict)
    last_code: str = ""  #: of the last effective event
    last_cancel_code: str = ""
    branch_tag: str = ""  #: marks the branch whose payload really ran
    last_branch_code: str = ""  #: newest inside that branch
    deep_code: str = ""  #: of the last deep resubmission or abort
    owner_claimed: str = ""  #: who claims the payload and waits for the grant
    owner_granted: str = ""  #: whom the payload is granted to and who has not taken it
    resubmission: str = ""  #: verdict remembered: WILLRESUB, WONTRESUB, SHALLOW
    rerunning: bool = False  #: a PBS job on its way back to the queue
    #: (part, key) changed since the store last looked; key None: all of the part went
    touched: set[tuple[Part, str | int | None]] = field(factory=set)

    def get(self, name: str) -> Any:
        """A public field's value, its null when unset."""
        return self.values.get(name, _NULLS[name])

    def set(self, name: str, value: Any) -> None:
        """Set a public field; its null clears it."""
        if value == _NULLS[name]:
            if self.values.pop(name, None) is None:
                return
        else:
            self.values[name] = value
        if name in LONG_FIELDS:
            self.touched.add((_LONG, name))

    def set_if_given(self, name: str, value: str) -> None:
        """Set a public text field unless *value* is empty."""
        if value:
            self.set(name, value)

    def set_tag(self, name: str, value: str, code: str) -> None:
        """Set a user tag; a new one goes to the end."""
        tag = self.tags.get(name)
        if tag is None:
            self.tags[name] = Tag(value, code, len(self.tags))
        else:
            tag.value, tag.code = value, code
        self.touched.add((_TAG, name))

    def add_destination(self, destination: str) -> None:
        """Append to ``possible_destinations``."""
        self.touched.add((_DESTINATION, len(self.destinations)))
        self.destinations.append(destination)

    def add_node(self, node: str) -> None:
        """Append to ``possible_ce_nodes``."""
        self.touched.add((_NODE, len(self.nodes)))
        self.nodes.append(node)

    def add_failure(self, text: str) -> None:
        """Append a line to ``failure_reasons``."""
        self.touched.add((_FAILURE, len(self.failures)))
        self.failures.append(text)

    def forget_failures(self) -> None:
        """Empty ``failure_reasons``."""
        self._forget(_FAILURE)
        self.failures.clear()

    def set_branch(
        self, number: int, *, destination: str = "", node: str = "", jdl: str = ""
    ) -> None:
        """Note what is given of branch *number*; numbers below 1 have no row."""
        if number <= 0:
            return
        row = self.branches.setdefault(number, BranchRow())
        row.destination = destination or row.destination
        row.node = node or row.node
        row.jdl = jdl or row.jdl
        self.touched.add((_BRANCH, number))

    def forget_branches(self) -> None:
        """Empty the branch table and the lists of possible destinations and nodes."""
        for part in (_BRANCH, _DESTINATION, _NODE):
            self._forget(part)
        self.branches.clear()
        self.destinations.clear()
        self.nodes.clear()

    def _forget(self, part: Part) -> None:
        self.touched = {mark for mark in self.touched if mark[0] is not part}
        self.touched.add((part, None))

    def part_value(self, part: Part, key: str | int) -> Any:
        """
        What the store keeps under (*part*, *key*), as a JSON value; None when it is gone.
        """
        if part is _LONG:
            return self.values.get(str(key))
        if part is _TAG:
            tag = self.tags[str(key)]
            return [tag.value, tag.code, tag.place]
        if part is _BRANCH:
            row = self.branches[int(key)]
            return [row.destination, row.node, row.jdl]
        place = int(key)
        if part is _DESTINATION:
            return self.destinations[place]
        if part is _NODE:
            return self.nodes[place]
        return self.failures[place]

    def core(self) -> list[Any]:
        """What is not in parts nor in :attr:`state` and its neighbours, as a JSON value."""
        values = self.values
        described = LONG_FIELDS.intersection(values)
        if described:
            values = values.copy()
            for name in described:
                del values[name]
        return [
            values,
            self.entered_times,
            self.class_counts if any(self.class_counts) else 0,
            [
                self.last_code,
                self.last_cancel_code,
                self.branch_tag,
                self.last_branch_code,
                self.deep_code,
            ],
            [self.owner_claimed, self.owner_granted, self.resubmission, int(self.rerunning)],
        ]

    def load_core(self, core: list[Any]) -> None:
        """Take over what :meth:`core` gave."""
        self.values, self.entered_times, counts, codes, rest = core
        if counts:
            self.class_counts = counts
        (
            self.last_code,
            self.last_cancel_code,
            self.branch_tag,
            self.last_branch_code,
            self.deep_code,
        ) = codes
        self.owner_claimed, self.owner_granted, self.resubmission, rerunning = rest
        self.rerunning = bool(rerunning)

    def load_part(self, part: Part, key: str, value: Any) -> None:
        """Take over one part; those of a list come in the order of their places."""
        if part is _LONG:
            self.values[key] = value
        elif part is _TAG:
            self.tags[key] = Tag(*value)
        elif part is _BRANCH:
            self.branches[int(key)] = BranchRow(*value)
        elif part is _DESTINATION:
            self.destinations.append(value)
        elif part is _NODE:
            self.nodes.append(value)
        else:
            self.failures.append(value)

    def status_values(self) -> dict[str, Any]:
        """The public fields that are set, wherever they are kept; some may be null."""
        return {
            **self.values,
            "jobId": str(self.job_id),
            "owner": self.owner,
            "jobtype": self.job_type,
            "stateEnterTime": self.entered_at,
            "lastUpdateTime": self.updated_at,
            "failure_reasons": "\n".join(self.failures),
        }

    @property
    def child_class(self) -> int:
        """Under which state this job is counted in its parent's histogram."""
        return child_class(self.state, self.values.get("done_code"))


def child_class(state: int, done_code: int | None) -> int:
    """Under which state a job in *state* is counted in its parent's histogram."""
    if state == DONE:
        return DONE if done_code == DONE_OK else UNKNOWN
    if state in (CLEARED, CANCELLED):
        return CLEARED
    if state in (RUNNING, ABORTED):
        return state
    return UNKNOWN


def subjob_record(parent: JobRecord, job_id: JobId) -> JobRecord:
    """A subjob as its parent's registration makes it: without events of its own."""
    record = JobRecord(
        job_id,
        normal_form(parent.owner),
        SUBMITTED,
        SIMPLE,
        parent.entered_at,
        parent.updated_at,
    )
    record.set("parent_job", str(parent.job_id))
    record.entered_times[SUBMITTED] = parent.entered_times[SUBMITTED]
    return record
