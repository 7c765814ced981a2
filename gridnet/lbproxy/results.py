"""Replies of the serve socket as a client reads them (docs/protocols/lbproxy.rst, "Queries")."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from gridnet.errors import JobError
from gridnet.lbproxy import xml
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.event_types import EVENT_TYPES, Kind, level_name
from gridnet.lbproxy.query import ROOTS
from gridnet.lbproxy.record import JOB_TYPE_WORDS, STATES, STATUS_FIELDS, FieldKind
from gridnet.lbproxy.xml import Element

_KINDS = {one.name: one.kind for one in STATUS_FIELDS}
_STATE_WORDS = {name.upper(): name for name in STATES}
_TIME = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?")


class LbError(JobError):
    """
    A call failed, as calls of the original client library do.

    :ivar number: ``errno``, or 1400 and above (docs/protocols/lbproxy.rst, "Error numbers").
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{text} ({number})")
        self.number = number
        self.text = text


#: The service answered what cannot be read.
BAD_ANSWER = 1408


@frozen
class JobStatus:
    """The state of one job."""

    job_id: str
    state: str  #: name
    owner: str = ""
    job_type: str = ""  #: word
    fields: Mapping[str, Any] = field(factory=dict)  #: the other fields, as documented
    user_tags: Mapping[str, str] = field(factory=dict)
    possible_destinations: tuple[str, ...] = ()
    possible_ce_nodes: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    children_histogram: Mapping[str, int] = field(factory=dict)
    children_states: tuple[JobStatus, ...] = ()
    state_enter_times: Mapping[str, int] = field(factory=dict)  #: states that were entered

    def as_json(self) -> dict[str, Any]:
        """All of it as a JSON value."""
        return {
            "job": self.job_id,
            "state": self.state,
            "owner": self.owner,
            "type": self.job_type,
            **self.fields,
            "user_tags": dict(self.user_tags),
            "possible_destinations": list(self.possible_destinations),
            "possible_ce_nodes": list(self.possible_ce_nodes),
            "children": list(self.children),
            "children_histogram": dict(self.children_histogram),
            "children_states": [one.as_json() for one in self.children_states],
            "state_enter_times": dict(self.state_enter_times),
        }


@frozen
class JobEvent:
    """One event of a job."""

    event: str  #: name of the type
    job_id: str
    timestamp: float  #: seconds since the epoch
    arrived: float  #: at the proxy
    host: str
    source: str
    instance: str
    level: str
    priority: int
    seqcode: str
    user: str
    fields: Mapping[str, Any] = field(factory=dict)  #: words by name

    def as_json(self) -> dict[str, Any]:
        """All of it as a JSON value."""
        return {
            "event": self.event,
            "job": self.job_id,
            "timestamp": self.timestamp,
            "arrived": self.arrived,
            "host": self.host,
            "source": self.source,
            "instance": self.instance,
            "level": self.level,
            "priority": self.priority,
            "seqcode": self.seqcode,
            "user": self.user,
            "fields": dict(self.fields),
        }


def parse_result(status: int, body: bytes, path: str = "", *, partly: bool = False) -> Element:
    """
    The root of a reply.

    :param path: what was asked; the root is named after it.
    :param partly: the first results will do when there are more than the limit.
    :raises LbError: the reply tells one, or cannot be read.
    """
    if status in (400, 405, 415, 500) or not body:
        raise LbError(BAD_ANSWER, f"the service answered with HTTP status {status}")
    try:
        root = xml.parse(body, max_elements=None)
    except xml.XmlError as error:
        raise LbError(BAD_ANSWER, str(error)) from None
    if path and root.name != f"{ROOTS[path]}Result":
        raise LbError(BAD_ANSWER, f"an answer of another kind: {root.name[:40]}")
    code = root.attributes.get("code", "0")[:9]
    if code.isdecimal() and int(code):
        if partly and int(code) == errno.E2BIG and root.children:
            return root
        raise LbError(int(code), root.attributes.get("desc", ""))
    if status not in (200, 202):
        raise LbError(BAD_ANSWER, f"the service answered with HTTP status {status}")
    return root


def _microseconds(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise LbError(BAD_ANSWER, f"{text[:40]!r} is no time")
    return int(match[1]) * MICROSECONDS + int((match[2] or "0").ljust(6, "0"))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise LbError(BAD_ANSWER, f"{text[:40]!r} is no number") from None


def _counts(element: Element) -> dict[str, int]:
    return {one.name: _number(one.text) for one in element.children if _number(one.text)}


def _texts(element: Element) -> tuple[str, ...]:
    return tuple(one.text for one in element.children)


def parse_status(element: Element) -> JobStatus:
    """
    One ``jobStat`` element.

    :raises LbError: it cannot be read.
    """
    state = _STATE_WORDS.get(element.attributes.get("name", "").upper())
    if state is None:
        raise LbError(BAD_ANSWER, "a state without a name")
    fields: dict[str, Any] = {}
    parts: dict[str, Element] = {}
    for one in element.children:
        kind = _KINDS.get(one.name)
        if kind is None:
            parts[one.name] = one
        elif kind is FieldKind.TEXT:
            fields[one.name] = one.text
        elif kind is FieldKind.TIME:
            fields[one.name] = _microseconds(one.text) / MICROSECONDS
        else:
            fields[one.name] = _number(one.text)
    empty = Element("", {})
    job_type = fields.pop("jobtype", -1)
    return JobStatus(
        job_id=fields.pop("jobId", ""),
        state=state,
        owner=fields.pop("owner", ""),
        job_type=JOB_TYPE_WORDS.get(job_type, ""),
        fields=fields,
        user_tags={
            one.attributes.get("name", ""): one.text
            for one in parts.get("user_tags", empty).children
        },
        possible_destinations=_texts(parts.get("possible_destinations", empty)),
        possible_ce_nodes=_texts(parts.get("possible_ce_nodes", empty)),
        children=_texts(parts.get("children", empty)),
        children_histogram=_counts(parts.get("children_hist", empty)),
        children_states=tuple(
            parse_status(one) for one in parts.get("children_states", empty).children
        ),
        state_enter_times=_counts(parts.get("stateEnterTimes", empty)),
    )


def parse_jobs(root: Element) -> list[JobStatus]:
    """
    The states in a reply about jobs; one that was asked for ids alone has state Unknown.

    :raises LbError: it cannot be read.
    """
    found = []
    for job in root.children:
        stat, named = job.child("jobStat"), job.child("jobId")
        if stat is not None and stat.children:
            found.append(parse_status(stat))
        elif named is not None:
            found.append(JobStatus(named.text, "Unknown"))
    return found


def parse_events(root: Element) -> list[JobEvent]:
    """
    The events in a reply.

    :raises LbError: it cannot be read.
    """
    return [_parse_event(one) for one in root.children if one.name == "edg_wll_Event"]


def _parse_event(element: Element) -> JobEvent:
    name = element.attributes.get("name", "")
    kind = EVENT_TYPES.get(name)
    texts = {one.name: one.text for one in element.children}
    fields: dict[str, Any] = {}
    for one in kind.fields if kind is not None else ():
        text = texts.get(one.element)
        if text is None:
            continue
        if one.kind is Kind.WORD:
            fields[one.element] = one.spelling.get(_number(text), text)
        elif one.kind in (Kind.INT, Kind.PORT):
            fields[one.element] = _number(text)
        elif one.kind is Kind.REAL:
            fields[one.element] = float(text)
        else:
            fields[one.element] = text
    return JobEvent(
        event=name,
        job_id=texts.get("jobId", ""),
        timestamp=_microseconds(texts.get("timestamp", "0")) / MICROSECONDS,
        arrived=_microseconds(texts.get("arrived", "0")) / MICROSECONDS,
        host=texts.get("host", ""),
        source=texts.get("source", ""),
        instance=texts.get("src_instance", ""),
        level=level_name(_number(texts.get("level", "0"))),
        priority=_number(texts.get("priority", "0")),
        seqcode=texts.get("seqcode", ""),
        user=texts.get("user", ""),
        fields=fields,
    )
