"""
The types of events, their fields, and the names of sources and levels.

The table is docs/protocols/lbproxy.rst, "Event types".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from attrs import field, frozen

SOURCES = (
    "UserInterface",
    "NetworkServer",
    "WorkloadManager",
    "BigHelper",
    "JobController",
    "LogMonitor",
    "LRMS",
    "Application",
    "LBServer",
    "CREAMInterface",
    "CREAMExecutor",
    "PBSClient",
    "PBSServer",
    "PBSMomSuperior",
    "PBSMom",
    "PBSScheduler",
    "CloudManager",
    "VMManager",
    "VMSystem",
)
LEVELS = (
    "EMERGENCY",
    "ALERT",
    "ERROR",
    "WARNING",
    "AUTH",
    "SECURITY",
    "USAGE",
    "SYSTEM",
    "IMPORTANT",
    "DEBUG",
)
LEVEL_SYSTEM = 8

# Delivery flags (DG.PRIORITY).
PRIORITY_PROXY = 8
PRIORITY_DIRECT = 16
PRIORITY_INTERNAL = 32
PRIORITY_EXCLUSIVE = 64


class Kind(Enum):
    """How a field's text is read."""

    TEXT = "text"
    INT = "int"
    REAL = "real"
    PORT = "port"
    TIME = "time"
    SOURCE = "source"
    JOB_ID = "jobid"
    WORD = "word"  #: one of a list
    NOTIFICATION_ID = "notifid"  #: never given by one who logs, so always missing


@frozen(slots=True)
class EventField:
    """One field of an event type."""

    name: str  #: in capitals, as in the key
    element: str  #: its element in query replies, and its name in :attr:`Event.fields`
    kind: Kind
    required: bool
    #: what counts as not given: 0 or -1 for numbers, "" for texts
    null: object
    #: number of a word (words of kind WORD only)
    words: Mapping[str, int] = field(factory=dict)
    #: word of a number, as written
    spelling: Mapping[int, str] = field(factory=dict)


@frozen(slots=True)
class EventType:
    """One event type."""

    number: int
    name: str
    fields: tuple[EventField, ...]  #: in the order of the line
    keys: Mapping[str, EventField]  #: full key -> field
    #: (key, element) of the fields without which the event is refused
    required: tuple[tuple[str, str], ...]
    replied: tuple[EventField, ...]  #: in the order of query replies
    usual_keys: frozenset[str]  #: its own and those common to all types

    def key(self, event_field: EventField) -> str:
        """The full key of one of its fields."""
        return f"DG.{self.name.upper()}.{event_field.name}"


_HANDING_OVER = "START OK REFUSED FAIL"
_ENDINGS = "OK FAILED CANCELLED KILLED"
_CANCELLING = "REQ REFUSE DONE ABORT"
_JOB_TYPES = (
    "SIMPLE DAG PARTITIONABLE PARTITIONED COLLECTION PBS CONDOR CREAM "
    "FILE_TRANSFER_COLLECTION FILE_TRANSFER VIRTUAL_MACHINE"
)
_CREAM_COMMANDS = "CMDSTART CMDCANCEL CMDPURGE CMDSUSPEND CMDRESUME"
_CREAM_RESULTS = "START OK FAILED"

# One row a type: number, name, fields.  A field is NAME[:kind][=null][?]; a trailing question
# mark means it may be missing; a kind in braces lists words.
_TABLE: tuple[tuple[int, str, str], ...] = (
    (
        1,
        "Transfer",
        (
            "DESTINATION:source DEST_HOST DEST_INSTANCE? JOB "
            f"RESULT:{{{_HANDING_OVER}}} REASON? DEST_JOBID?"
        ),
    ),
    (2, "Accepted", "FROM:source FROM_HOST FROM_INSTANCE? LOCAL_JOBID?"),
    (3, "Refused", "FROM:source FROM_HOST FROM_INSTANCE? REASON?"),
    (4, "EnQueued", f"QUEUE JOB? RESULT:{{{_HANDING_OVER}}} REASON?"),
    (5, "DeQueued", "QUEUE LOCAL_JOBID?"),
    (6, "HelperCall", "HELPER_NAME HELPER_PARAMS? SRC_ROLE:{CALLING CALLED}"),
    (7, "HelperReturn", "HELPER_NAME RETVAL? SRC_ROLE:{CALLING CALLED}"),
    (8, "Running", "NODE"),
    (9, "Resubmission", "RESULT:{WILLRESUB WONTRESUB SHALLOW} REASON? TAG?"),
    (10, "Done", f"STATUS_CODE:{{{_ENDINGS}}} REASON? EXIT_CODE:int=-1"),
    (11, "Cancel", f"STATUS_CODE:{{{_CANCELLING}}} REASON?"),
    (12, "Abort", "REASON"),
    (13, "Clear", "REASON:{USER TIMEOUT NOOUTPUT}"),
    (14, "Purge", ""),
    (15, "Match", "DEST_ID"),
    (16, "Pending", "REASON"),
    (
        17,
        "RegJob",
        f"JDL? NS PARENT:jobid? JOBTYPE:{{{_JOB_TYPES}}} NSUBJOBS:int? SEED? WMS_DN?",
    ),
    (18, "Chkpt", "TAG CLASSAD"),
    (19, "Listener", "SVC_NAME SVC_HOST SVC_PORT:port"),
    (20, "CurDescr", "DESCR"),
    (21, "UserTag", "NAME VALUE"),
    (
        22,
        "ChangeACL",
        (
            "USER_ID USER_ID_TYPE:{DN GROUP FQAN}=-1 PERMISSION:{READ TAG} "
            "PERMISSION_TYPE:{ALLOW DENY}=-1 OPERATION:{ADD REMOVE}=-1"
        ),
    ),
    (
        23,
        "Notification",
        "NOTIFID:notifid OWNER DEST_HOST DEST_PORT:port EXPIRES:int JOBSTAT DEST_URL",
    ),
    (24, "ResourceUsage", "RESOURCE QUANTITY:real UNIT"),
    (25, "ReallyRunning", "WN_SEQ?"),
    (26, "Suspend", "REASON?"),
    (27, "Resume", "REASON?"),
    (28, "CollectionState", "STATE DONE_CODE:int? HISTOGRAM CHILD:jobid CHILD_EVENT"),
    (29, "GrantPayloadOwnership", "PAYLOAD_OWNER"),
    (30, "TakePayloadOwnership", ""),
    (31, "ConnectJob", f"DEST_JOBID JOBTYPE:{{{_JOB_TYPES}}}"),
    (32, "DisconnectJob", "DEST_JOBID"),
    (
        101,
        "PBSInternalStateChange",
        "OLDSTATE:int=-1 OLDSUBSTATE:int=-1 NEWSTATE:int=-1 NEWSUBSTATE:int=-1",
    ),
    (
        102,
        "PBSTransfer",
        f"DESTINATION:source DEST_INSTANCE? RESULT:{{{_HANDING_OVER}}} REASON? DEST_JOBID?",
    ),
    (103, "PBSAccepted", "FROM:source FROM_INSTANCE? LOCAL_JOBID?"),
    (104, "PBSRefused", "FROM:source FROM_INSTANCE? REASON?"),
    (105, "PBSQueued", "QUEUE NAME OWNER"),
    (106, "PBSDequeued", ""),
    (107, "PBSMatch", "DEST_HOST"),
    (108, "PBSPending", "REASON"),
    (109, "PBSWaiting", ""),
    (110, "PBSRun", "SCHEDULER? DEST_HOST? PID:int?"),
    (111, "PBSRerun", ""),
    (112, "PBSAbort", ""),
    (113, "PBSDone", "EXIT_STATUS:int?"),
    (114, "PBSResourceUsage", "USAGE:{REQUESTED USED} RESOURCES"),
    (115, "PBSError", "ERROR_DESC"),
    (201, "CondorMatch", "OWNER DEST_HOST PREEMPTING?"),
    (202, "CondorReject", "OWNER STATUS_CODE:{NOMATCH OTHER}"),
    (
        203,
        "CondorShadowStarted",
        "SHADOW_HOST SHADOW_PORT:port SHADOW_PID:int SHADOW_STATUS?",
    ),
    (204, "CondorShadowExited", "SHADOW_PID:int SHADOW_EXIT_STATUS:int=-1"),
    (205, "CondorStarterStarted", "STARTER_PID:int? UNIVERSE?"),
    (
        206,
        "CondorStarterExited",
        "STARTER_PID:int? STARTER_EXIT_STATUS:int? JOB_PID:int? JOB_EXIT_STATUS:int?",
    ),
    (207, "CondorResourceUsage", "USAGE:{REQUESTED USED} NAME QUANTITY:real? UNIT"),
    (208, "CondorError", "ERROR_DESC"),
    (301, "CREAMStart", ""),
    (302, "CREAMPurge", ""),
    (303, "CREAMAccepted", "LOCAL_JOBID?"),
    (
        304,
        "CREAMStore",
        f"COMMAND:{{{_CREAM_COMMANDS}}} CMDID? RESULT:{{{_CREAM_RESULTS}}} REASON?",
    ),
    (
        305,
        "CREAMCall",
        (
            f"CALLEE:source COMMAND:{{{_CREAM_COMMANDS}}} CMDID? DESTID? "
            f"RESULT:{{{_CREAM_RESULTS}}} REASON?"
        ),
    ),
    (306, "CREAMRunning", "NODE?"),
    (307, "CREAMReallyRunning", ""),
    (308, "CREAMDone", f"STATUS_CODE:{{{_ENDINGS}}} REASON? EXIT_CODE?"),
    (309, "CREAMCancel", f"STATUS_CODE:{{{_CANCELLING}}} REASON?"),
    (310, "CREAMAbort", "REASON"),
    (
        311,
        "CREAMStatus",
        (
            "OLD_STATE? NEW_STATE ORIG_TIMESTAMP:time? RESULT:{ARRIVED DONE} DESCR? EXIT_CODE? "
            "FAILURE_REASON? WORKER_NODE? LRMS_JOBID?"
        ),
    ),
    (312, "CREAMSuspend", f"STATUS_CODE:{{{_CANCELLING}}} REASON?"),
    (313, "CREAMResume", f"STATUS_CODE:{{{_CANCELLING}}} REASON?"),
    (401, "FileTransferRegister", "SRC DEST"),
    (402, "FileTransfer", "RESULT:{START OK FAIL} REASON?"),
    (403, "Sandbox", "SANDBOX_TYPE:{INPUT OUTPUT} TRANSFER_JOB? COMPUTE_JOB?"),
    (501, "VMCreate", "REQUIRE ID NAME OWNER HOSTNAME MANAGER IMAGE?"),
    (502, "VMHost", "HOSTNAME"),
    (503, "VMImage", "IMAGE"),
    (504, "VMRunning", ""),
    (505, "VMShutdown", "USAGE?"),
    (506, "VMStop", ""),
    (507, "VMResume", ""),
    (508, "VMDone", "STATUS_CODE:{OK DELETE FAILURE} USAGE?"),
)
#: Elements of query replies that are not the field's name in small letters.
_ELEMENTS = {("CREAMStatus", "LRMS_JOBID"): "LRMS_jobid", ("Notification", "NOTIFID"): "notifId"}

_FIELD = re.compile(r"([A-Z_]+)(?::(?:([a-z]+)|\{([^}]*)\}))?(=-1)?(\?)?(?:\s+|\Z)")

#: Keys of every line, whatever its type.
COMMON_KEYS = frozenset(
    {
        "DATE",
        "HOST",
        "PROG",
        "LVL",
        "DG.PRIORITY",
        "DG.SOURCE",
        "DG.SRC_INSTANCE",
        "DG.EVNT",
        "DG.JOBID",
        "DG.SEQCODE",
        "DG.USER",
        "DG.ARRIVED",
        "ARR_DATE",
        "DG.TYPE",
    }
)


def _make_type(number: int, name: str, row: str) -> EventType:
    fields = []
    for field_name, kind_name, words, minus_one, optional in _FIELD.findall(row):
        kind = Kind.WORD if words else Kind(kind_name or "text")
        null: object = "" if kind in (Kind.TEXT, Kind.JOB_ID) else -1 if minus_one else 0
        first = 0 if minus_one else 1
        fields.append(
            EventField(
                name=field_name,
                element=_ELEMENTS.get((name, field_name), field_name.lower()),
                kind=kind,
                required=not optional,
                null=null,
                words={word: place for place, word in enumerate(words.split(), first)},
                spelling=dict(enumerate(words.split(), first)),
            )
        )
    keys = {f"DG.{name.upper()}.{one.name}": one for one in fields}
    replied = list(fields)
    if name == "CREAMCall":  # the original declares these two the other way round
        replied[0], replied[1] = replied[1], replied[0]
    return EventType(
        number=number,
        name=name,
        fields=tuple(fields),
        keys=keys,
        required=tuple((key, one.element) for key, one in keys.items() if one.required),
        replied=tuple(replied),
        usual_keys=COMMON_KEYS.union(keys),
    )


EVENT_TYPES: Mapping[str, EventType] = {row[1]: _make_type(*row) for row in _TABLE}
TYPES_BY_NUMBER: Mapping[int, EventType] = {one.number: one for one in EVENT_TYPES.values()}
# In capitals, which is how names in lines are looked up.
TYPES_BY_CAPITALS: Mapping[str, EventType] = {one.name.upper(): one for one in EVENT_TYPES.values()}
SOURCE_NUMBERS: Mapping[str, int] = {name.upper(): number for number, name in enumerate(SOURCES, 1)}
LEVEL_NUMBERS: Mapping[str, int] = {name: number for number, name in enumerate(LEVELS, 1)}
#: Full keys of the fields of all types.
FIELD_KEYS = frozenset(key for one in EVENT_TYPES.values() for key in one.keys)


def source_name(number: int) -> str:
    """The name of source *number* (1 to 19)."""
    return SOURCES[number - 1]


def source_number(name: str) -> int:
    """The number of a source, 0 for a name that is none; without regard to case."""
    return SOURCE_NUMBERS.get(name.upper(), 0)


def level_name(number: int) -> str:
    """The word of level *number*; empty for 0."""
    return LEVELS[number - 1] if 1 <= number <= len(LEVELS) else ""


def level_number(word: str) -> int:
    """The number of a level word, 0 for a word that is none; without regard to case."""
    return LEVEL_NUMBERS.get(word.upper(), 0)


def event_type(name: str) -> EventType | None:
    """The type of that name, without regard to case, or None."""
    return TYPES_BY_CAPITALS.get(name.upper())
