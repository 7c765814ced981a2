"""
Requests of the serve socket as XML: read and checked, and written as the original client does.

Source: docs/protocols/lbproxy.rst, "Queries" and "Purge".
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from gridnet.lbproxy import xml
from gridnet.lbproxy.event_types import source_name
from gridnet.lbproxy.jobid import JobId, JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.query import (
    INDEXED_ATTRIBUTES,
    MIXED_GROUP,
    NEVER,
    NO_CONDITIONS,
    ROOTS,
    SERVICE_DEFAULT,
    BadRequest,
    Condition,
    EventsQuery,
    Groups,
    IndexedAttributesQuery,
    JobFlags,
    JobsQuery,
    Limit,
    Operator,
    PurgeFlags,
    PurgeRequest,
    QueryError,
    Request,
    ResultMode,
    SequenceCodeQuery,
)
from gridnet.lbproxy.record import STATES
from gridnet.lbproxy.xml import Element, XmlError, escape, escape_attribute

#: Conditions of one request.
MAX_CONDITIONS = 400

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


# -- in --------------------------------------------------------------------------------


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


_READERS: Mapping[str, Callable[[Element], Request]] = {
    "/queryJobs": _jobs_query,
    "/queryEvents": _events_query,
    "/querySequenceCode": _sequence_code_query,
    "/purgeRequest": _purge_request,
}


def parse_request(path: str, body: bytes, pause: Callable[[], None] = lambda: None) -> Request:
    """
    Read the *body* of a POST to *path*, one of :data:`gridnet.lbproxy.query.PATHS`.

    :param pause: called now and then while a long one is read.
    :raises BadRequest: it cannot be understood.
    :raises QueryError: it asks for what cannot be answered.
    """
    if path == INDEXED_ATTRIBUTES:
        return IndexedAttributesQuery()
    try:
        root = xml.parse(body, pause)
    except XmlError as error:
        raise BadRequest(str(error)) from None
    wanted = f"{ROOTS[path]}Request"
    if root.name != wanted:
        raise BadRequest(f"root element {root.name}, expected {wanted}")
    return _READERS[path](root)


# -- out --------------------------------------------------------------------------------


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
