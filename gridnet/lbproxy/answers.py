"""
Answers to queries, from one snapshot of the store; for a thread that may wait for the disk.

Source: docs/protocols/lbproxy.rst, "Queries".
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen

from gridnet.lbproxy import events as event_lines
from gridnet.lbproxy import query, reply_xml, rows, selection, seqcode
from gridnet.lbproxy.query import (
    Condition,
    EventsQuery,
    Groups,
    JobFlags,
    JobsQuery,
    Limit,
    Operator,
    QueryError,
    ResultMode,
    SequenceCodeQuery,
)
from gridnet.lbproxy.record import STATES, JobRecord
from gridnet.lbproxy.reply_xml import ShownEvent, ShownJob


@frozen
class AnswerLimits:
    """Bounds of the service, besides those of a request."""

    max_results: int = 100_000  #: jobs or events of one reply
    max_octets: int = 256 << 20  #: of one reply
    #: called now and then; raises when the time for the query is over
    check_time: Callable[[], None] = lambda: None


@frozen(slots=True)
class Answer:
    """What an HTTP reply is made of."""

    status: int
    body: bytes = b""


def answer(
    connection: sqlite3.Connection,
    request: query.Request,
    limits: AnswerLimits,
) -> Answer:
    """
    Answer *request*, which is no purge.

    :raises QueryError: there is none; the error is what the peer gets.
    """
    if isinstance(request, JobsQuery):
        return _answer_jobs(connection, request, limits)
    if isinstance(request, EventsQuery):
        return _answer_events(connection, request, limits)
    if isinstance(request, SequenceCodeQuery):
        return Answer(200, reply_xml.write_sequence_code(_last_code(connection, request)))
    return Answer(200, reply_xml.write_indexed_attributes())


def _joined(texts: Iterable[str], limits: AnswerLimits) -> str:
    """*texts* as one; the bound is looked at while they are made."""
    whole: list[str] = []
    size = 0
    for text in texts:
        limits.check_time()
        size += len(text)
        if size > limits.max_octets:
            raise QueryError(errno.E2BIG, query.TOO_MANY)
        whole.append(text)
    return "".join(whole)


def _fetch(cursor: sqlite3.Cursor, text: int, limits: AnswerLimits) -> list[tuple[Any, ...]]:
    """All rows of *cursor*, bounded by the octets in their column *text*."""
    found = []
    size = 0
    for row in cursor:
        size += len(row[text])
        if size > limits.max_octets:
            raise _TooMany
        found.append(row)
    return found


class _TooMany(QueryError):
    """More than the limit match."""

    def __init__(self) -> None:
        super().__init__(errno.E2BIG, query.TOO_MANY)


def _most(limit: Limit, limits: AnswerLimits) -> int:
    return min(limit.soft or limits.max_results, limits.max_results)


def _single(groups: Groups, attribute: str) -> bool:
    return len(groups) == 1 and len(groups[0]) == 1 and groups[0][0].attribute == attribute


def _bound(limit: Limit, limits: AnswerLimits, may_have_all: bool, found: int) -> tuple[int, bool]:
    """
    How many of *found* results to show, and whether to say that there are more.

    :param found: at most one above the largest number that can be shown.
    :raises QueryError: too many, and the request does not want a part of them.
    """
    most = _most(limit, limits)
    if found <= most:
        return found, False
    if limit.mode is ResultMode.ALL:
        if not may_have_all:
            raise QueryError(
                errno.EINVAL, "all results can be had with one condition on owner or job id only"
            )
        if found <= limits.max_results:
            return found, False
        raise _TooMany
    if limit.mode is ResultMode.LIMITED:
        return most, True
    raise _TooMany


# -- jobs -----------------------------------------------------------------------------------------


def _answer_jobs(
    connection: sqlite3.Connection, request: JobsQuery, limits: AnswerLimits
) -> Answer:
    clause, parameters = selection.job_clause(request.conditions)
    limit = request.limit
    wants_all = limit.mode is ResultMode.ALL
    fetched = (limits.max_results if wants_all else _most(limit, limits)) + 1
    cursor = connection.execute(
        f"SELECT {rows.JOB_COLUMNS} FROM jobs j WHERE {clause} ORDER BY j.unique_part LIMIT ?",
        [*parameters, fetched],
    )
    found = _fetch(cursor, -1, limits)
    if not found:
        raise _no_jobs(connection, request.conditions)
    shown, partly = _bound(limit, limits, _single(request.conditions, "owner"), len(found))
    flags = request.flags
    if JobFlags.NO_STATES in flags:
        jobs = (ShownJob(rows.record_from(row)) for row in found[:shown])
    else:
        jobs = (_shown_job(connection, row, flags, limits) for row in found[:shown])
    content = _joined((reply_xml.jobs_xml([job], flags) for job in jobs), limits)
    if partly:
        too_many = _TooMany()
        status = query.http_status(too_many.number, "/queryJobs")
        return Answer(status, reply_xml.write_error("/queryJobs", too_many, content))
    return Answer(200, reply_xml.write_jobs(content))


def _shown_job(
    connection: sqlite3.Connection, row: tuple[object, ...], flags: JobFlags, limits: AnswerLimits
) -> ShownJob:
    record = rows.record_from(row)
    described = JobFlags.CLASSADD in flags
    rows.load_parts(connection, int(str(row[0])), record, described=described)
    unique = record.job_id.unique
    histogram = None
    children: tuple[str, ...] = ()
    child_jobs: Iterable[ShownJob] = ()
    if JobFlags.CHILDHIST_THOROUGH in flags:
        histogram = true_histogram(connection, unique)
    if flags & (JobFlags.CHILDREN | JobFlags.CHILDSTAT):
        found = connection.execute(
            f"SELECT {rows.JOB_COLUMNS} FROM jobs j WHERE j.parent = ? ORDER BY j.id LIMIT ?",
            (unique, limits.max_results + 1),
        ).fetchall()
        if len(found) > limits.max_results:
            raise _TooMany
        if JobFlags.CHILDREN in flags:
            children = tuple(job_id for _, job_id, *_ in found)
        if JobFlags.CHILDSTAT in flags and found:
            # Read as they are shown: there can be very many.
            child_jobs = (_child(connection, row, described, limits) for row in found)
    return ShownJob(record, children, child_jobs, histogram)


def _child(
    connection: sqlite3.Connection, row: tuple[object, ...], described: bool, limits: AnswerLimits
) -> ShownJob:
    limits.check_time()
    record = rows.record_from(row)
    rows.load_parts(connection, int(str(row[0])), record, described=described)
    return ShownJob(record)


def true_histogram(connection: sqlite3.Connection, parent: str) -> tuple[int, ...]:
    """How many children of the job with unique part *parent* are in each state."""
    counts = [0] * len(STATES)
    for state, count in connection.execute(
        "SELECT state, count(*) FROM jobs WHERE parent = ? GROUP BY state", (parent,)
    ):
        counts[state] = count
    return tuple(counts)


def _no_jobs(connection: sqlite3.Connection, conditions: Groups) -> QueryError:
    named = [one for group in conditions for one in group]
    if all(_names_a_job(one) for one in named):
        uniques = [getattr(one.values[0], "unique", "") for one in named]
        found = connection.execute(
            "SELECT 1 FROM purged WHERE unique_part IN (SELECT value FROM json_each(?)) LIMIT 1",
            (json.dumps(uniques),),
        )
        if found.fetchone() is not None:
            return QueryError(errno.EIDRM, query.PURGED_JOB)
    return QueryError(errno.ENOENT, query.NO_JOBS)


def _names_a_job(condition: Condition) -> bool:
    return condition.attribute == "jobid" and condition.operator is Operator.EQUAL


def load_job(connection: sqlite3.Connection, unique: str) -> JobRecord | None:
    """The whole record of one job, or None."""
    row = connection.execute(
        f"SELECT {rows.JOB_COLUMNS} FROM jobs j WHERE j.unique_part = ?", (unique,)
    ).fetchone()
    if row is None:
        return None
    record = rows.record_from(row)
    rows.load_parts(connection, row[0], record)
    return record


# -- events ---------------------------------------------------------------------------------------


def _answer_events(
    connection: sqlite3.Connection, request: EventsQuery, limits: AnswerLimits
) -> Answer:
    job_clause, job_parameters = selection.job_clause(request.jobs)
    event_clause, event_parameters = selection.event_clause(request.events)
    limit = request.limit
    needs_all = limit.mode in (ResultMode.ALL, ResultMode.LIMITED)
    cursor = connection.execute(
        "SELECT e.line, e.arrived FROM jobs j JOIN events e ON e.job = j.id"
        f" WHERE {job_clause} AND {event_clause} LIMIT ?",
        [
            *job_parameters,
            *event_parameters,
            (limits.max_results if needs_all else _most(limit, limits)) + 1,
        ],
    )
    found = _fetch(cursor, 0, limits)
    if not found:
        raise QueryError(errno.ENOENT, query.NO_EVENTS)
    may_have_all = _single(request.jobs, "jobid") and not request.events
    shown, partly = _bound(limit, limits, may_have_all, len(found))
    events = sorted(
        (_shown_event(line, arrived, limits) for line, arrived in found),
        key=lambda one: (seqcode.sort_key(one.event.seqcode), one.event.timestamp),
    )
    content = _joined(map(reply_xml.event_xml, events[:shown]), limits)
    if partly:
        too_many = _TooMany()
        status = query.http_status(too_many.number, "/queryEvents")
        return Answer(status, reply_xml.write_error("/queryEvents", too_many, content))
    return Answer(200, reply_xml.write_events(content))


def _shown_event(line: bytes, arrived: int, limits: AnswerLimits) -> ShownEvent:
    limits.check_time()
    return ShownEvent(event_lines.parse(line), arrived)


# -- sequence code --------------------------------------------------------------------------------


def _last_code(connection: sqlite3.Connection, request: SequenceCodeQuery) -> str:
    row = None
    if request.job_id is not None:
        row = connection.execute(
            "SELECT json_extract(record, '$[3][0]') FROM jobs WHERE unique_part = ?",
            (request.job_id.unique,),
        ).fetchone()
    if row is None or not row[0]:
        raise QueryError(errno.ENOENT, query.NO_STATE)
    return str(row[0])
