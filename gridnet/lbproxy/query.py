"""
Queries and purges: request XML in, conditions and their rules, reply XML out.

Source: docs/protocols/lbproxy.rst, "Queries".  What the conditions select is the business of
:mod:`gridnet.lbproxy.selection`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, Flag, auto

from attrs import frozen

from gridnet.errors import JobError, RemoteProtocolError
from gridnet.lbproxy import xml
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.events import Event, Kind, source_name
from gridnet.lbproxy.jobid import JobId, JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.record import COMPOUND, STATES, STATUS_FIELDS, FieldKind, JobRecord
from gridnet.lbproxy.xml import Element, XmlError, escape, escape_attribute

NO_JOBS = "no matching jobs found"
PURGED_JOB = "matching job already purged"
NO_EVENTS = "no matching events found"
NO_STATE = "no state in DB"
NO_CONDITIONS = "empty condition list"
TOO_MANY = "Query result size limit exceeded"
MIXED_GROUP = "only same attribute types supported in 'or' expressions"

#: Conditions of one request.
MAX_CONDITIONS = 400


class BadRequest(RemoteProtocolError):
    """The request cannot be understood; the peer sees HTTP 400 without a body."""


class QueryError(JobError):
    """
    The request is understood and has no answer; the peer sees *number* in an empty result.

    :ivar number: an ``errno``, or 1400 and above.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        self.text = text


class Operator(Enum):
    """How an attribute is compared with the value(s) of a condition."""

    EQUAL = "equal"
    LESS = "less"
    GREATER = "greater"
    WITHIN = "within"
    UNEQUAL = "unequal"
    CHANGED = "changed"  #: for notifications; matches nothing here


_EQUALITY = frozenset({Operator.EQUAL, Operator.UNEQUAL, Operator.CHANGED})
_PAGING = _EQUALITY | {Operator.GREATER}
_ALL = frozenset(Operator)
_OPERATORS = {one.value: one for one in Operator}

#: Job attribute -> operators.
_JOB_ATTRIBUTES: Mapping[str, frozenset[Operator]] = {
    "jobid": _PAGING,
    "owner": _EQUALITY,
    "status": _ALL,
    "location": _EQUALITY,
    "destination": _EQUALITY,
    "networkserver": _EQUALITY,
    "donecode": _ALL,
    "exitcode": _ALL,
    "usertag": _EQUALITY,
    "time": _ALL,
    "resubmitted": _EQUALITY,
    "parent_job": _EQUALITY,
    "jdl": _EQUALITY,
    "stateentertime": _ALL,
    "lastupdatetime": _ALL,
    "jobtype": _EQUALITY,
    "vm_status": _EQUALITY,
}
_EVENT_ATTRIBUTES: Mapping[str, frozenset[Operator]] = {
    "type": _ALL,
    "source": _EQUALITY,
    "level": _ALL,
    "host": _EQUALITY,
    "instance": _EQUALITY,
    "time": _ALL,
    "usertag": _EQUALITY,
}
_NUMBERS = frozenset(
    {
        "donecode",
        "exitcode",
        "time",
        "resubmitted",
        "stateentertime",
        "lastupdatetime",
        "type",
        "source",
        "level",
    }
)
_NUMBER = re.compile(r"\s*([+-]?[0-9]{1,15})(?:\.[0-9]*)?\s*")


@frozen(slots=True)
class Condition:
    """One comparison."""

    attribute: str  #: element name in small letters
    operator: Operator
    #: one, two for WITHIN: numbers for numeric attributes, job ids, else texts
    values: tuple[int | str | JobId, ...]
    name: str = ""  #: of a user tag, or the state of a time


Groups = tuple[tuple[Condition, ...], ...]  #: all groups must hold, any condition of each


class JobFlags(Flag):
    """What a reply about jobs shows."""

    NONE = 0
    CLASSADD = auto()
    CHILDREN = auto()
    CHILDSTAT = auto()
    CHILDHIST_FAST = auto()
    CHILDHIST_THOROUGH = auto()
    NO_JOBS = auto()
    NO_STATES = auto()


class ResultMode(Enum):
    """What to do when more match than the limit (``queryRes``)."""

    UNSET = 0
    NONE = 1
    ALL = 2
    LIMITED = 3


@frozen(slots=True)
class Limit:
    """The bounds of a request."""

    soft: int = 0  #: 0: none
    mode: ResultMode = ResultMode.UNSET


@frozen(slots=True)
class JobsQuery:
    """``queryJobs``"""

    root = "edg_wll_QueryJobs"
    conditions: Groups
    flags: JobFlags = JobFlags.NONE
    limit: Limit = Limit()


@frozen(slots=True)
class EventsQuery:
    """``queryEvents``"""

    root = "edg_wll_QueryEvents"
    jobs: Groups
    events: Groups
    limit: Limit = Limit()


@frozen(slots=True)
class SequenceCodeQuery:
    """``querySequenceCode``; None: the job id could not be read."""

    root = "edg_wll_QuerySequenceCode"
    job_id: JobId | None


@frozen(slots=True)
class IndexedAttributesQuery:
    """``indexedAttrs``"""

    root = "edg_wll_GetIndexedAttributes"


class PurgeFlags(Flag):
    """What a purge does."""

    NONE = 0
    REALLY = auto()
    LIST = auto()
    SERVER_DUMP = auto()
    CLIENT_DUMP = auto()
    BACKGROUND = auto()


#: Time-outs of a purge request that are no seconds.
SERVICE_DEFAULT, NEVER = -1, -2


@frozen(slots=True)
class PurgeRequest:
    """``purgeRequest``"""

    root = "edg_wll_Purge"
    #: job ids to purge whatever their age; None: all by time-out
    jobs: tuple[JobId, ...] | None = None
    #: state number -> seconds, :data:`SERVICE_DEFAULT` or :data:`NEVER`
    timeouts: tuple[int, ...] = (SERVICE_DEFAULT,) * len(STATES)
    flags: PurgeFlags = PurgeFlags.NONE
    run_seconds: int = 0  #: spread the work over this time


Request = JobsQuery | EventsQuery | SequenceCodeQuery | IndexedAttributesQuery | PurgeRequest


# -- requests in ----------------------------------------------------------------------------------


def _whole(text: str, what: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise BadRequest(f"{what} is no number")
    return int(match[1])


def _value(attribute: str, text: str) -> int | str | JobId:
    if attribute in _NUMBERS:
        return _whole(text, attribute)
    if attribute in ("jobid", "parent_job"):
        try:
            return parse_job_id(text)
        except JobIdError as error:
            raise BadRequest(str(error)) from None
    return text


def _condition(
    element: Element, known: Mapping[str, frozenset[Operator]], *, of_job: bool
) -> Condition:
    operator = _OPERATORS.get(element.name)
    if operator is None:
        raise BadRequest(f"unknown operator {element.name}")
    values = element.children
    wanted = 2 if operator is Operator.WITHIN else 1
    attribute = values[0].name.lower() if values else ""
    if attribute not in known:
        raise BadRequest(f"unknown attribute {attribute}")
    if len(values) != wanted or values[-1].name.lower() != attribute:
        raise BadRequest(f"{element.name} wants {wanted} values of one attribute")
    if operator not in known[attribute]:
        raise QueryError(errno.EINVAL, f"operator {element.name} does not go with {attribute}")
    name = ""
    if attribute in ("usertag", "jdl"):
        name = values[0].attributes.get("name", "")
        if not name:
            raise BadRequest(f"{attribute} without a name")
        if of_job:
            name = name.lower()
    elif attribute == "time" and of_job:
        name = values[0].attributes.get("state", "").upper()
        if name not in _STATE_NAMES:
            raise BadRequest("time without a state")
    return Condition(
        attribute, operator, tuple(_value(attribute, one.text) for one in values), name
    )


_STATE_NAMES = frozenset(name.upper() for name in STATES)


def _groups(root: Element, *, with_events: bool) -> tuple[Groups, Groups]:
    jobs: list[tuple[Condition, ...]] = []
    events: list[tuple[Condition, ...]] = []
    combined = root.child("and")
    groups = combined.children if combined is not None else ()
    if sum(len(group.children) for group in groups) > MAX_CONDITIONS:
        raise QueryError(errno.EINVAL, f"more than {MAX_CONDITIONS} conditions")
    for group in groups:
        if group.name == "orJobConditions":
            made = tuple(_condition(one, _JOB_ATTRIBUTES, of_job=True) for one in group.children)
            if len({(one.attribute, one.name) for one in made}) > 1:
                raise QueryError(errno.EINVAL, MIXED_GROUP)
            if made:
                jobs.append(made)
        elif group.name == "orEventConditions" and with_events:
            made = tuple(_condition(one, _EVENT_ATTRIBUTES, of_job=False) for one in group.children)
            if made:
                events.append(made)
        else:
            raise BadRequest(f"unknown group {group.name}")
    if any(one.attribute == "jdl" for group in jobs for one in group):
        raise QueryError(
            errno.EINVAL, "conditions on attributes of the job description are not offered"
        )
    return tuple(jobs), tuple(events)


def _limit(root: Element) -> Limit:
    soft = _whole(root.attributes.get("softLimit", "0"), "softLimit")
    mode = _whole(root.attributes.get("queryRes", "0"), "queryRes")
    if soft < 0 or mode not in range(4):
        raise BadRequest("softLimit or queryRes out of range")
    return Limit(soft, ResultMode(mode))


def _words(root: Element) -> list[str]:
    flags = root.child("flags")
    return flags.text.lower().split("+") if flags is not None else []


def _jobs_query(root: Element) -> JobsQuery:
    words = _words(root)
    if "anonymized" in words:
        raise QueryError(errno.EINVAL, "anonymized output is not offered")
    flags = JobFlags.NONE
    for word in words:
        flags |= JobFlags.__members__.get(word.upper(), JobFlags.NONE)
    jobs, _ = _groups(root, with_events=False)
    if not jobs:
        raise QueryError(errno.EINVAL, NO_CONDITIONS)
    return JobsQuery(jobs, flags, _limit(root))


def _events_query(root: Element) -> EventsQuery:
    jobs, events = _groups(root, with_events=True)
    if not jobs and not events:
        raise QueryError(errno.EINVAL, NO_CONDITIONS)
    return EventsQuery(jobs, events, _limit(root))


def _sequence_code_query(root: Element) -> SequenceCodeQuery:
    found = next((one for one in root.children if one.name.lower() == "jobid"), None)
    if found is None:
        raise BadRequest("no job id")
    try:
        return SequenceCodeQuery(parse_job_id(found.text))
    except JobIdError:
        return SequenceCodeQuery(None)


def _indexed_attributes(_: Element) -> IndexedAttributesQuery:
    return IndexedAttributesQuery()


_PURGE_WORDS = {
    "really_purge": PurgeFlags.REALLY,
    "list_jobs": PurgeFlags.LIST,
    "server_dump": PurgeFlags.SERVER_DUMP,
    "client_dump": PurgeFlags.CLIENT_DUMP,
    "background": PurgeFlags.BACKGROUND,
}


def _purge_request(root: Element) -> PurgeRequest:
    jobs = None
    timeouts = [SERVICE_DEFAULT] * len(STATES)
    run_seconds = 0
    for part in root.children:
        if part.name == "jobs":
            jobs = _purge_jobs(part)
        elif part.name == "timeout":
            for one in part.children:
                if one.name not in STATES:
                    raise BadRequest(f"unknown state {one.name}")
                timeouts[STATES.index(one.name)] = _whole(one.text, one.name)
        elif part.name == "target_runtime":
            run_seconds = max(0, _whole(part.text, part.name))
        elif part.name != "flags":
            raise BadRequest(f"unknown part {part.name}")
    if min(timeouts) < NEVER:
        raise QueryError(errno.EINVAL, "a time-out below -2")
    flags = PurgeFlags.NONE
    for word in _words(root):
        flags |= _PURGE_WORDS.get(word, PurgeFlags.NONE)
    return PurgeRequest(jobs, tuple(timeouts), flags, run_seconds)


def _purge_jobs(part: Element) -> tuple[JobId, ...]:
    try:
        return tuple(parse_job_id(one.text) for one in part.children)
    except JobIdError as error:
        raise QueryError(errno.EINVAL, str(error)) from None


#: Path -> (name of the root element, reader).
_READERS: Mapping[str, tuple[str, Callable[[Element], Request]]] = {
    "/queryJobs": ("edg_wll_QueryJobsRequest", _jobs_query),
    "/queryEvents": ("edg_wll_QueryEventsRequest", _events_query),
    "/querySequenceCode": ("edg_wll_QuerySequenceCodeRequest", _sequence_code_query),
    "/purgeRequest": ("edg_wll_PurgeRequest", _purge_request),
}
INDEXED_ATTRIBUTES = "/indexedAttrs"
PATHS = frozenset({*_READERS, INDEXED_ATTRIBUTES})
#: What the full server answers and a proxy does not.
ABSENT_PATHS = frozenset({"/dumpRequest", "/loadRequest", "/notifRequest", "/statsRequest"})
_RESULT_ROOTS = {path: root[: -len("Request")] for path, (root, _) in _READERS.items()}


def parse_request(path: str, body: bytes, pause: Callable[[], None] = lambda: None) -> Request:
    """
    Read the *body* of a POST to *path*, one of :data:`PATHS`.

    :param pause: called now and then while a long one is read.
    :raises BadRequest: it cannot be understood.
    :raises QueryError: it asks for what cannot be answered.
    """
    if path == INDEXED_ATTRIBUTES:
        return IndexedAttributesQuery()
    wanted, read = _READERS[path]
    try:
        root = xml.parse(body, pause)
    except XmlError as error:
        raise BadRequest(str(error)) from None
    if root.name != wanted:
        raise BadRequest(f"root element {root.name}, expected {wanted}")
    return read(root)


def http_status(number: int, path: str) -> int:
    """The HTTP status of a reply to *path* with error *number*."""
    if number == 0:
        return 200
    if number == errno.EINVAL and path in ("/purgeRequest", "/querySequenceCode"):
        return 579
    if number in (errno.EPERM, errno.E2BIG, errno.EINVAL, 1416):
        return 401
    if number == errno.ENOENT:
        return 404
    if number == errno.EIDRM:
        return 410
    return 500


# -- requests out ---------------------------------------------------------------------------------


def _write_conditions(groups: Iterable[tuple[str, Sequence[Condition]]]) -> list[str]:
    lines = ["\t<and>\r\n"]
    for name, group in groups:
        lines.append(f"\t\t<{name}>\r\n")
        for one in group:
            lines.append(f"\t\t\t<{one.operator.value}>\n")
            element = _SPELLINGS.get(one.attribute, one.attribute)
            attribute = ""
            if one.attribute in ("usertag", "jdl"):
                attribute = f' name="{escape_attribute(one.name)}"'
            elif one.attribute == "time":
                attribute = f' state="{escape_attribute(one.name or "Undefined")}"'
            lines += [
                f"\t\t\t\t\t<{element}{attribute}>{escape(str(value))}</{element}>\r\n"
                for value in one.values
            ]
            lines.append(f"\t\t\t</{one.operator.value}>\r\n")
        lines.append(f"\t\t</{name}>\r\n")
    lines.append("\t</and>\r\n")
    return lines


_SPELLINGS = {"jobid": "jobId"}


def _limits(limit: Limit) -> str:
    return f'softLimit="{limit.soft}" queryRes="{limit.mode.value}"'


def write_jobs_query(query: JobsQuery) -> bytes:
    """The body by which the original client asks *query*."""
    words = [flag.name.lower() for flag in JobFlags if flag in query.flags and flag.name]
    lines = [
        f"<edg_wll_QueryJobsRequest {_limits(query.limit)}>\r\n",
        f"\t<flags>{'+'.join(words)}</flags>\r\n",
        *_write_conditions(("orJobConditions", group) for group in query.conditions),
        "</edg_wll_QueryJobsRequest>",
    ]
    return "".join(lines).encode("latin-1")


def write_events_query(query: EventsQuery) -> bytes:
    """The body by which the original client asks *query*."""
    groups = [("orJobConditions", group) for group in query.jobs]
    groups += [("orEventConditions", group) for group in query.events]
    lines = [
        f"<edg_wll_QueryEventsRequest {_limits(query.limit)}>\r\n",
        *_write_conditions(groups),
        "</edg_wll_QueryEventsRequest>",
    ]
    return "".join(lines).encode("latin-1")


def write_sequence_code_query(job_id: JobId, source: int) -> bytes:
    """The body by which the original client asks for a job's last code."""
    return (
        "<edg_wll_QuerySequenceCodeRequest>\r\n"
        f"\t\t\t<jobId>{escape(str(job_id))}</jobId>\r\n"
        f"\t\t\t<source>{source_name(source)}</source>\r\n"
        "</edg_wll_QuerySequenceCodeRequest>\r\n"
    ).encode("latin-1")


def write_purge_request(request: PurgeRequest) -> bytes:
    """The body by which the original client asks for a purge."""
    lines = ["<edg_wll_PurgeRequest>\r\n"]
    if request.jobs is not None:
        lines.append("\t<jobs>\r\n")
        lines += [f"\t\t<jobId>{escape(str(one))}</jobId>\r\n" for one in request.jobs]
        lines.append("\t</jobs>\r\n")
    lines.append("\t<timeout>\r\n")
    lines += [
        f"\t\t<{name}>{seconds}</{name}>\r\n"
        for name, seconds in zip(STATES, request.timeouts, strict=True)
    ]
    lines.append("\t</timeout>\r\n")
    if request.run_seconds:
        lines.append(f"\t<target_runtime>{request.run_seconds}</target_runtime>\r\n")
    words = [word for word, flag in _PURGE_WORDS.items() if flag in request.flags]
    lines.append(f"\t<flags>{'+'.join(words)}</flags>\r\n")
    lines.append("</edg_wll_PurgeRequest>\r\n")
    return "".join(lines).encode("latin-1")


# -- replies out ----------------------------------------------------------------------------------


@frozen(slots=True)
class ShownJob:
    """One job as a reply shows it."""

    record: JobRecord
    children: tuple[str, ...] = ()  #: job ids, when asked for
    child_jobs: Iterable[ShownJob] = ()  #: their states, when asked for; gone through once
    histogram: tuple[int, ...] | None = None  #: true number of children per state, when asked for


@frozen(slots=True)
class ShownEvent:
    """One event as a reply shows it."""

    event: Event
    arrived: int  #: seconds since the epoch


def _result(root: str, content: str = "", error: QueryError | None = None) -> bytes:
    fault = ""
    if error is not None:
        fault = f' code="{error.number}" desc="{escape_attribute(error.text)}"'
    return f"<{root}Result{fault}>\r\n{content}</{root}Result>\r\n".encode("latin-1", "replace")


def write_error(path: str, error: QueryError, content: str = "") -> bytes:
    """An empty result (or one with the results up to the limit) that tells *error*."""
    return _result(_RESULT_ROOTS.get(path, "edg_wll_"), content, error)


def write_indexed_attributes() -> bytes:
    """Nothing is indexed here."""
    return _result(IndexedAttributesQuery.root)


def write_sequence_code(code: str) -> bytes:
    """The reply that tells a job's last code."""
    return _result(
        SequenceCodeQuery.root, f"\t\t\t<sequence_code>{escape(code)}</sequence_code>\r\n"
    )


def write_purge_result(jobs: Sequence[str], dump: str = "") -> bytes:
    """
    The reply to a purge.

    :param jobs: job ids to list.
    :param dump: path of the dump that was written.
    """
    lines = []
    if jobs:
        lines.append("\t<jobs>\r\n")
        lines += [f"\t\t<jobId>{escape(one)}</jobId>\r\n" for one in jobs]
        lines.append("\t</jobs>\r\n")
    if dump:
        lines.append(f"\t<server_file>{escape(dump)}</server_file>\r\n")
    return _result(PurgeRequest.root, "".join(lines))


def _seconds(microseconds: int) -> str:
    return f"{microseconds // MICROSECONDS}.{microseconds % MICROSECONDS:06d}"


def _states(element: str, counts: Sequence[int]) -> str:
    rows = "".join(
        f"\t\t\t\t<{name}>{count}</{name}>\r\n" for name, count in zip(STATES, counts, strict=True)
    )
    return f"\t\t\t<{element}>\r\n{rows}\t\t\t</{element}>\r\n"


def _list(element: str, item: str, texts: Iterable[str]) -> str:
    rows = "".join(f"\t\t\t\t<{item}>{escape(text)}</{item}>\r\n" for text in texts)
    return f"\t\t\t<{element}>\r\n{rows}\t\t\t</{element}>\r\n" if rows else ""


def job_status_xml(shown: ShownJob, flags: JobFlags) -> str:
    """One ``jobStat`` element."""
    job = shown.record
    described = JobFlags.CLASSADD in flags
    lines = [f'<jobStat name="{STATES[job.state]}">\r\n']
    for one in STATUS_FIELDS:
        if one.described and not described:
            continue
        value = job.status_value(one.name)
        if value == one.null:
            continue
        if one.kind is FieldKind.TEXT:
            value = escape(value)
        elif one.kind is FieldKind.TIME:
            value = _seconds(value)
        lines.append(f"\t\t\t<{one.name}>{value}</{one.name}>\r\n")
    lines.append(_list("possible_destinations", "name", job.destinations))
    lines.append(_list("possible_ce_nodes", "name", job.nodes))
    lines.append(_list("children", "jobId", shown.children))
    if job.job_type not in COMPOUND:
        lines.append(_states("children_hist", (0,) * len(STATES)))
    elif shown.histogram is not None:
        lines.append(_states("children_hist", shown.histogram))
    elif JobFlags.CHILDHIST_FAST in flags:
        lines.append(_states("children_hist", job.class_counts))
    if shown.child_jobs:
        inner = "".join(job_status_xml(child, flags) for child in shown.child_jobs)
        lines.append(f"\t\t\t<children_states>\r\n{inner}\t\t\t</children_states>\r\n")
    if job.tags:
        tags = sorted(job.tags.items(), key=lambda item: item[1].place)
        rows = "".join(
            f'\t\t\t\t<tag name="{escape_attribute(name)}">{escape(tag.value)}</tag>\r\n'
            for name, tag in tags
        )
        lines.append(f"\t\t\t<user_tags>\r\n{rows}\t\t\t</user_tags>\r\n")
    lines.append(_states("stateEnterTimes", job.entered_times))
    lines.append("</jobStat>")
    return "".join(lines)


def jobs_xml(jobs: Iterable[ShownJob], flags: JobFlags) -> str:
    """The ``edg_wll_Job`` elements of a reply."""
    if JobFlags.NO_JOBS in flags and JobFlags.NO_STATES in flags:
        return ""
    lines = []
    for shown in jobs:
        lines.append("\t<edg_wll_Job>\r\n")
        if JobFlags.NO_JOBS not in flags:
            lines.append(f"\t\t<jobId>{escape(str(shown.record.job_id))}</jobId>\r\n")
        if JobFlags.NO_STATES in flags:
            lines.append('\t\t<jobStat name="Unknown">\r\n\r\n\t\t</jobStat>\r\n')
        else:
            lines.append(f"\t\t{job_status_xml(shown, flags)}")
        lines.append("\t</edg_wll_Job>\r\n")
    return "".join(lines)


def write_jobs(content: str) -> bytes:
    """The reply to a query for jobs, *content* by :func:`jobs_xml`."""
    return _result(JobsQuery.root, content)


def event_xml(shown: ShownEvent) -> str:
    """One ``edg_wll_Event`` element."""
    event = shown.event
    rows = [
        ("timestamp", _seconds(event.timestamp)),
        ("arrived", f"{shown.arrived}.000000"),
        ("host", escape(event.host)),
        ("level", str(event.level) if event.level else ""),
        ("priority", str(event.priority)),
        ("jobId", escape(str(event.job_id))),
        ("seqcode", escape(event.seqcode)),
        ("user", escape(event.user)),
        ("source", source_name(event.source)),
    ]
    lines = [f'      <edg_wll_Event name="{event.type.name}">\r\n']
    lines += [f"\t\t\t<{name}>{text}</{name}>\r\n" for name, text in rows if text]
    lines.append(f"\t\t\t<src_instance>{escape(event.src_instance)}</src_instance>\r\n")
    for one in event.type.replied:
        value = event.fields.get(one.element)
        if value is None:
            continue
        if one.kind is Kind.SOURCE:
            text = source_name(value)
        elif one.kind is Kind.TIME:
            text = _seconds(value)
        elif one.kind is Kind.REAL:
            text = f"{value:f}"
        else:
            text = escape(str(value))
        lines.append(f"\t\t\t<{one.element}>{text}</{one.element}>\r\n")
    lines.append("      </edg_wll_Event>\r\n")
    return "".join(lines)


def write_events(content: str) -> bytes:
    """The reply to a query for events, *content* of :func:`event_xml`."""
    return _result(EventsQuery.root, content)
