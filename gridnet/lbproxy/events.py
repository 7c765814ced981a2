"""
Event types, and event lines on the level of their meaning.

The table of types is docs/protocols/lbproxy.rst, "Event types"; the checks and their order are
"Checks of a line" there.  :func:`parse` is the hot path of the store socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from attrs import define, field, frozen

from gridnet.errors import RemoteProtocolError
from gridnet.lbproxy import ulm
from gridnet.lbproxy.calendar import parse_time, time_text
from gridnet.lbproxy.jobid import JobId, JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.short_cache import cached_if_short

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

SYNTAX = 1401
UNKNOWN_TYPE = 1402
MISSING = 1403
TWICE = 1404
FOREIGN_KEY = 1405


class EventError(RemoteProtocolError):
    """
    An event line is refused; a store peer sees major 400, *number* as minor and the text.

    :ivar number: 1401 to 1405.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


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


_COMMON_KEYS = frozenset(
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
        usual_keys=_COMMON_KEYS.union(keys),
    )


EVENT_TYPES: Mapping[str, EventType] = {row[1]: _make_type(*row) for row in _TABLE}
TYPES_BY_NUMBER: Mapping[int, EventType] = {one.number: one for one in EVENT_TYPES.values()}
_TYPES_BY_CAPITALS = {one.name.upper(): one for one in EVENT_TYPES.values()}
_SOURCE_NUMBERS = {name.upper(): number for number, name in enumerate(SOURCES, 1)}
_LEVEL_NUMBERS = {name: number for number, name in enumerate(LEVELS, 1)}
_FIELD_KEYS = frozenset(key for one in EVENT_TYPES.values() for key in one.keys)


@define(slots=True, eq=False)
class Event:
    """One event, as its line says it.  Texts are Latin-1 decoded octets."""

    type: EventType
    timestamp: int  #: microseconds since the epoch
    host: str
    level: int  #: 1 to 10, 0 for none
    priority: int  #: delivery flags
    source: int  #: 1 to 19
    src_instance: str
    job_id: JobId
    seqcode: str
    user: str
    #: element name -> value of the fields that are not null: texts and job ids as ``str``, words
    #: and sources as their numbers, times in microseconds
    fields: dict[str, Any]
    line: bytes = b""  #: as received, with its line end

    def get(self, element: str) -> str:
        """A text field's value; empty when not given."""
        value: str = self.fields.get(element, "")
        return value

    def word(self, element: str) -> str:
        """The word of an enumerated field; empty when not given."""
        number = self.fields.get(element)
        if number is None:
            return ""
        for one in self.type.fields:
            if one.element == element:
                return one.spelling[number]
        return ""

    @property
    def fingerprint_octets(self) -> bytes:
        """What makes two events the same event, apart from the job."""
        return (
            f"{self.type.number}\0{self.source}\0{self.host}\0{self.timestamp}\0{self.level}"
            f"\0{self.user}\0{self.seqcode}"
        ).encode("latin-1")


def source_name(number: int) -> str:
    """The name of source *number* (1 to 19)."""
    return SOURCES[number - 1]


def source_number(name: str) -> int:
    """The number of a source, 0 for a name that is none; without regard to case."""
    return _SOURCE_NUMBERS.get(name.upper(), 0)


def level_name(number: int) -> str:
    """The word of level *number*; empty for 0."""
    return LEVELS[number - 1] if 1 <= number <= len(LEVELS) else ""


def level_number(word: str) -> int:
    """The number of a level word, 0 for a word that is none; without regard to case."""
    return _LEVEL_NUMBERS.get(word.upper(), 0)


def event_type(name: str) -> EventType | None:
    """The type of that name, without regard to case, or None."""
    return _TYPES_BY_CAPITALS.get(name.upper())


_LEADING_INT = re.compile(r"[ \t\n\r\f\v]*([+-]?[0-9]{1,18})")
_LEADING_REAL = re.compile(
    r"[ \t\n\r\f\v]*([+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,2})?)"
)


def leading_int(text: str) -> int:
    """The number that *text* begins with, 0 without one; more than 18 digits are cut there."""
    match = _LEADING_INT.match(text)
    return int(match[1]) if match is not None else 0


def _leading_real(text: str) -> float:
    match = _LEADING_REAL.match(text)
    return float(match[1]) if match is not None else 0.0


#: Numbers are what a text begins with.
_LEADING: Mapping[Kind, re.Pattern[str]] = {
    Kind.INT: _LEADING_INT,
    Kind.PORT: _LEADING_INT,
    Kind.REAL: _LEADING_REAL,
}


def is_read_whole(one: EventField, text: str) -> bool:
    """Whether :func:`read_value` reads all of *text*, but for blanks, as a value of the field."""
    leading = _LEADING.get(one.kind)
    return leading is None or leading.fullmatch(text.rstrip()) is not None


def _port(text: str) -> int:
    number = leading_int(text)
    return number if 1 <= number <= 65535 else 0


def _job_id(text: str) -> str:
    try:
        return str(parse_job_id(text))
    except JobIdError:
        return ""


def _nothing(_: str) -> int:
    return 0


_READERS: Mapping[Kind, Any] = {
    Kind.INT: cached_if_short(1024)(leading_int),
    Kind.REAL: _leading_real,
    Kind.PORT: _port,
    Kind.TIME: parse_time,
    Kind.SOURCE: cached_if_short(64)(source_number),
    Kind.JOB_ID: _job_id,
    Kind.NOTIFICATION_ID: _nothing,
}


def read_value(one: EventField, text: str) -> Any:
    """*text* as a value of the field *one*; its null when the text is no such value."""
    if not text:
        return one.null
    if one.kind is Kind.TEXT:
        return text
    if one.kind is Kind.WORD:
        return one.words.get(text.upper(), one.null)
    return _READERS[one.kind](text)


def reader(one: EventField) -> Callable[[str], Any] | None:
    """What reads a text that is not empty as :func:`read_value` does; None: it stays as it is."""
    if one.kind is Kind.TEXT:
        return None
    if one.kind is not Kind.WORD:
        read: Callable[[str], Any] = _READERS[one.kind]
        return read
    find, null = one.words.get, one.null

    @cached_if_short(32)
    def number(word: str) -> object:
        return find(word.upper(), null)

    return number


@cached_if_short(1024)
def priority_number(text: str) -> int:
    """The flags that *text* says, -1 when it says nothing."""
    return leading_int(text) if text else -1


def parse(line: bytes) -> Event:
    """
    Read and check one event line.

    :param line: with or without its line end.
    :raises EventError: refused, for the first reason in the documented order.
    """
    try:
        pairs = ulm.parse(line.decode("latin-1"))
    except ulm.UlmError as error:
        raise EventError(SYNTAX, "ULM parse error") from error
    values = dict(pairs)
    name = values.get("DG.EVNT", "")
    if len(values) != len(pairs):  # some key twice: the first of them counts here
        name = next((value for key, value in pairs if key == "DG.EVNT"), "")
    kind = _TYPES_BY_CAPITALS.get(name.upper())
    if kind is None:
        raise EventError(UNKNOWN_TYPE, "Unknown or missing event type")
    fields: dict[str, Any] = {}
    known = kind.keys
    if len(values) != len(pairs):
        _refuse_twice(pairs, known)
    get = values.get
    if not values.keys() <= kind.usual_keys:
        for key, _ in pairs:
            if key in _FIELD_KEYS and key not in known:
                raise EventError(FOREIGN_KEY, f"Key {key} belongs to another event type.")
    for key, one in known.items():
        text = get(key)
        if text:
            value = text if one.kind is Kind.TEXT else read_value(one, text)
            if value != one.null:
                fields[one.element] = value
    timestamp = parse_time(get("DATE", ""))
    if not timestamp:
        raise _missing("DATE")
    host = get("HOST")
    if not host:
        raise _missing("HOST")
    priority = priority_number(get("DG.PRIORITY", ""))
    if priority == -1:
        raise _missing("DG.PRIORITY")
    source = _SOURCE_NUMBERS.get(get("DG.SOURCE", "").upper())
    if source is None:
        raise _missing("DG.SOURCE")
    try:
        job_id = parse_job_id(get("DG.JOBID", ""))
    except JobIdError as error:
        raise _missing("DG.JOBID") from error
    seqcode = get("DG.SEQCODE")
    if not seqcode:
        raise _missing("DG.SEQCODE")
    user = get("DG.USER")
    if user is None:  # an empty name is there, and refused later as nobody's
        raise _missing("DG.USER")
    for key, element in kind.required:
        if element not in fields:
            raise _missing(key)
    return Event(
        kind,
        timestamp,
        host,
        _LEVEL_NUMBERS.get(get("LVL", "").upper(), 0),
        priority,
        source,
        get("DG.SRC_INSTANCE", ""),
        job_id,
        seqcode,
        user,
        fields,
        line,
    )


def _missing(key: str) -> EventError:
    return EventError(MISSING, f"Message incomplete, missing or empty field {key}.")


def _refuse_twice(pairs: list[tuple[str, str]], known: Mapping[str, EventField]) -> None:
    """
    Find the pair that decides when some key stands twice.

    :raises EventError: a known key twice, or before that a key of another type.
    """
    seen: set[str] = set()
    for key, _ in pairs:
        if key in _COMMON_KEYS or key in known:
            if key in seen:
                raise EventError(TWICE, f"Key {key} already exists.")
            seen.add(key)
        elif key in _FIELD_KEYS:
            raise EventError(FOREIGN_KEY, f"Key {key} belongs to another event type.")


def value_text(one: EventField, value: Any) -> str:
    """*value* of the field *one* as its line carries it; empty for its null."""
    if value is None or value == one.null:
        return ""
    if one.kind is Kind.WORD:
        return one.spelling[value]
    if one.kind is Kind.SOURCE:
        return source_name(value)
    if one.kind is Kind.REAL:
        return f"{value:f}"
    if one.kind is Kind.TIME:
        return time_text(value)
    return str(value)


def write(event: Event) -> bytes:
    """
    The line of *event*, in the order and spelling of the original client.

    :raises ValueError: a value that a line cannot carry (NUL, beyond Latin-1).
    """
    bare = [("DATE", time_text(event.timestamp))]
    # The original leaves HOST quoted and PROG, LVL and DG.PRIORITY bare.
    line = ulm.write(bare, [("HOST", event.host)]).rstrip(" \n")
    bare = [("PROG", "edg-wms")]
    if event.level:
        bare.append(("LVL", level_name(event.level)))
    bare.append(("DG.PRIORITY", str(event.priority)))
    quoted = [
        ("DG.SOURCE", source_name(event.source)),
        ("DG.SRC_INSTANCE", event.src_instance),
        ("DG.EVNT", event.type.name),
        ("DG.JOBID", str(event.job_id)),
        ("DG.SEQCODE", event.seqcode),
        ("DG.USER", event.user),
    ]
    for one in event.type.fields:
        text = value_text(one, event.fields.get(one.element))
        if one.kind is Kind.INT and not text:
            text = str(one.null)
        quoted.append((event.type.key(one), text))
    return f"{line} {ulm.write(bare, quoted)}".encode("latin-1")
