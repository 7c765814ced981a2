"""
The event stream: who wants which events, and what they look like.

Source: docs/protocols/lbproxy.rst, "Event stream".  The connections are the business of
:mod:`gridnet.lbproxy.subscriptions`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from attrs import frozen

from gridnet.errors import RemoteProtocolError
from gridnet.lbproxy import events as event_lines
from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.event_types import Kind, event_type, level_name, source_name
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.identity import comparison_key
from gridnet.lbproxy.jobid import JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.ledger import StoredEvent
from gridnet.lbproxy.record import STATES, state_number

PATH = "/gridnet/events"
CURSOR_PATH = "/gridnet/cursor"
EVENT_STREAM = "text/event-stream"
JSON = "application/json"
MAX_NAME_CHARACTERS = 200


class StreamError(RemoteProtocolError):
    """A request for the stream cannot be understood; the peer sees HTTP 400 and why."""


@frozen(slots=True)
class EventFilter:
    """Which events are wanted: those that fit each of the sets that are not empty."""

    jobs: frozenset[str] = frozenset()  #: unique parts
    owners: frozenset[str] = frozenset()  #: normal form without case
    types: frozenset[int] = frozenset()  #: event numbers
    states: frozenset[int] = frozenset()  #: state of the job after the event

    def fits(self, stored: StoredEvent) -> bool:
        """Whether *stored* is wanted."""
        return (
            (not self.jobs or stored.event.job_id.unique in self.jobs)
            and (not self.types or stored.event.type.number in self.types)
            and (not self.states or stored.state in self.states)
            and (not self.owners or comparison_key(stored.owner) in self.owners)
        )


@frozen(slots=True)
class StreamRequest:
    """What one follower asks for."""

    filter: EventFilter = EventFilter()
    #: position of the last event it has; None: where its consumer stopped, else from now on
    after: int | None = None
    consumer: str = ""  #: name whose cursor is kept
    limit: int = 0  #: most events of one long poll; 0: the service's own
    wait_seconds: float = 30.0  #: that a long poll waits for a first event


def _position(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise StreamError(f"{text[:40]!r} is no position")
    return int(text)


def parse_request(query: str, headers: Mapping[str, str], max_values: int) -> StreamRequest:
    """
    Read the query string of a request for the stream.

    :param max_values: most values of its filter.
    :raises StreamError: an unknown name or value.
    """
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=max_values
        )
    except ValueError as error:
        raise StreamError(str(error)) from None
    jobs: set[str] = set()
    owners: set[str] = set()
    types: set[int] = set()
    states: set[int] = set()
    after: int | None = None
    consumer, limit, wait = "", 0, 30.0
    for name, value in pairs:
        if name == "job":
            jobs.add(_unique(value))
        elif name == "owner":
            owners.add(comparison_key(value))
        elif name == "type":
            kind = event_type(value)
            if kind is None:
                raise StreamError(f"{value[:40]!r} is no event type")
            types.add(kind.number)
        elif name == "state":
            number = state_number(value)
            if number is None:
                raise StreamError(f"{value[:40]!r} is no state")
            states.add(number)
        elif name == "after":
            after = _position(value)
        elif name == "consumer":
            consumer = _name(value)
        elif name == "limit":
            limit = _position(value)
        elif name == "wait":
            wait = _seconds(value)
        else:
            raise StreamError(f"{name[:40]!r} is not known here")
    if "last-event-id" in headers:
        after = _position(headers["last-event-id"])
    chosen = EventFilter(frozenset(jobs), frozenset(owners), frozenset(types), frozenset(states))
    return StreamRequest(chosen, after, consumer, limit, wait)


def _unique(text: str) -> str:
    try:
        return parse_job_id(text).unique
    except JobIdError as error:
        raise StreamError(str(error)) from None


def _name(text: str) -> str:
    if not text or len(text) > MAX_NAME_CHARACTERS or not text.isprintable():
        raise StreamError("a consumer's name is 1 to 200 printable characters")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise StreamError(f"{text[:40]!r} is no number of seconds")
    return seconds


def parse_cursor(query: str) -> tuple[str, int]:
    """
    Read the query string of a request to move a cursor: (consumer, position).

    :raises StreamError: it is not the two.
    """
    try:
        values = dict(parse_qsl(query, strict_parsing=True, max_num_fields=2))
    except ValueError as error:
        raise StreamError(str(error)) from None
    if set(values) != {"consumer", "position"}:
        raise StreamError("expected consumer and position")
    return _name(values["consumer"]), _position(values["position"])


# -- what an event looks like ---------------------------------------------------------------------


def event_fields(event: Event) -> dict[str, Any]:
    """An event's own fields as JSON values: words and sources by name, times in seconds."""
    shown: dict[str, Any] = {}
    for one in event.type.fields:
        value = event.fields.get(one.element)
        if value is None:
            continue
        if one.kind is Kind.WORD:
            value = one.spelling[value]
        elif one.kind is Kind.SOURCE:
            value = source_name(value)
        elif one.kind is Kind.TIME:
            value = value / MICROSECONDS
        shown[one.element] = value
    return shown


def as_json(stored: StoredEvent) -> bytes:
    """One event as the stream shows it."""
    event = stored.event
    return json.dumps(
        {
            "position": stored.position,
            "job": stored.job_id,
            "owner": stored.owner,
            "event": event.type.name,
            "state": STATES[stored.state],
            "previous_state": STATES[stored.state_before],
            "timestamp": event.timestamp / MICROSECONDS,
            "arrived": stored.arrived,
            "source": source_name(event.source),
            "host": event.host,
            "instance": event.src_instance,
            "level": level_name(event.level),
            "user": event.user,
            "seqcode": event.seqcode,
            "fields": event_fields(event),
        },
        separators=(",", ":"),
    ).encode("ascii")


def as_sse(stored: StoredEvent) -> bytes:
    """The same as one server-sent event."""
    return b"id: %d\ndata: %s\n\n" % (stored.position, as_json(stored))


def position_sse(position: int) -> bytes:
    """Tells a follower how far it has come without an event: whoever comes again says it."""
    return b"id: %d\n\n" % position


def trimmed_sse(position: int) -> bytes:
    """Tells a follower that events up to *position* may have gone before it took them."""
    return b'event: trimmed\ndata: {"position":%d}\n\n' % position


# -- catching up ----------------------------------------------------------------------------------


@frozen(slots=True)
class Page:
    """Some events from the store, in order."""

    events: tuple[StoredEvent, ...]
    #: all events up to here have been looked at
    through: int
    #: whether that is the end of what the store held
    is_last: bool
    trimmed: int  #: events up to here may have gone


def read_page(
    connection: sqlite3.Connection,
    wanted: EventFilter,
    after: int,
    most: int,
    most_octets: int,
) -> Page:
    """
    The next events after position *after* that fit *wanted*.

    :param most: events.
    :param most_octets: of their lines; the one that goes beyond is the last.
    """
    (newest,) = connection.execute("SELECT ifnull(max(position), 0) FROM events").fetchone()
    (trimmed,) = connection.execute(
        "SELECT ifnull(max(value), 0) FROM marks WHERE name = 'trimmed'"
    ).fetchone()
    clauses = ["e.position > ?"]
    parameters: list[int | str] = [after]
    # Owners are compared in Python: what "without case" means there, SQLite does not know.
    columns: tuple[tuple[str, Iterable[int | str]], ...] = (
        ("e.type", wanted.types),
        ("e.state", wanted.states),
    )
    for column, values in columns:
        if values:
            clauses.append(f"{column} IN (SELECT value FROM json_each(?))")
            parameters.append(json.dumps(list(values)))
    if wanted.jobs:
        clauses.append(
            "e.job IN (SELECT id FROM jobs WHERE unique_part IN (SELECT value FROM json_each(?))"
            " UNION SELECT job FROM purged WHERE unique_part IN (SELECT value FROM json_each(?)))"
        )
        parameters += [json.dumps(list(wanted.jobs))] * 2
    found = connection.execute(
        "SELECT e.position, e.line, coalesce(j.job_id, p.job_id, ''),"
        " coalesce(j.owner, p.owner, ''), e.state_before, e.state, e.arrived"
        " FROM events e LEFT JOIN jobs j ON j.id = e.job LEFT JOIN purged p ON p.job = e.job"
        f" WHERE {' AND '.join(clauses)} ORDER BY e.position LIMIT ?",
        [*parameters, most],
    )
    return _page(found, wanted, after, (most, most_octets), newest, trimmed)


def _page(
    found: Iterable[tuple[Any, ...]],
    wanted: EventFilter,
    after: int,
    most: tuple[int, int],
    newest: int,
    trimmed: int,
) -> Page:
    events = []
    through, count, octets = after, 0, 0
    for position, line, job_id, owner, before, state, arrived in found:
        count += 1
        through = position
        stored = StoredEvent(
            position, event_lines.parse(line), job_id, owner, before, state, arrived
        )
        if wanted.fits(stored):
            events.append(stored)
        octets += len(line)
        if octets > most[1]:
            return Page(tuple(events), through, False, trimmed)
    is_last = count < most[0]
    if is_last:  # what is not there up to here has gone: nobody has to ask for it again
        through = max(through, newest, trimmed)
    return Page(tuple(events), through, is_last, trimmed)
