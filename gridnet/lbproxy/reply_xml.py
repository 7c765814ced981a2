"""
Replies of the serve socket as XML.

Source: docs/protocols/lbproxy.rst, "Queries" and "Purge".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.event_types import Kind, source_name
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.query import (
    ROOTS,
    EventsQuery,
    IndexedAttributesQuery,
    JobFlags,
    JobsQuery,
    PurgeRequest,
    QueryError,
    SequenceCodeQuery,
)
from gridnet.lbproxy.record import COMPOUND, STATES, STATUS_FIELDS, FieldKind, JobRecord
from gridnet.lbproxy.xml import escape, escape_attribute


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
    return _result(ROOTS.get(path, "edg_wll_"), content, error)


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


_NO_CHILDREN = _states("children_hist", (0,) * len(STATES))


def _list(element: str, item: str, texts: Iterable[str]) -> str:
    rows = "".join(f"\t\t\t\t<{item}>{escape(text)}</{item}>\r\n" for text in texts)
    return f"\t\t\t<{element}>\r\n{rows}\t\t\t</{element}>\r\n" if rows else ""


def job_status_xml(shown: ShownJob, flags: JobFlags) -> str:
    """One ``jobStat`` element."""
    job = shown.record
    described = JobFlags.CLASSADD in flags
    lines = [f'<jobStat name="{STATES[job.state]}">\r\n']
    values = job.status_values()
    for one in STATUS_FIELDS:
        value = values.get(one.name)
        if value is None or value == one.null or (one.described and not described):
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
        lines.append(_NO_CHILDREN)
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
