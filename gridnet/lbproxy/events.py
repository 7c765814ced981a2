"""
Event lines on the level of their meaning.

The checks and their order are docs/protocols/lbproxy.rst, "Checks of a line".  :func:`parse` is the
hot path of the store socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define

from gridnet.errors import RemoteProtocolError
from gridnet.lbproxy import ulm
from gridnet.lbproxy.calendar import parse_time, time_text
from gridnet.lbproxy.event_types import (
    COMMON_KEYS,
    FIELD_KEYS,
    LEVEL_NUMBERS,
    SOURCE_NUMBERS,
    TYPES_BY_CAPITALS,
    EventField,
    EventType,
    Kind,
    level_name,
    source_name,
    source_number,
)
from gridnet.lbproxy.jobid import JobId, JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.short_cache import cached_if_short

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
    kind = TYPES_BY_CAPITALS.get(name.upper())
    if kind is None:
        raise EventError(UNKNOWN_TYPE, "Unknown or missing event type")
    fields: dict[str, Any] = {}
    known = kind.keys
    if len(values) != len(pairs):
        _refuse_twice(pairs, known)
    get = values.get
    if not values.keys() <= kind.usual_keys:
        for key, _ in pairs:
            if key in FIELD_KEYS and key not in known:
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
    source = SOURCE_NUMBERS.get(get("DG.SOURCE", "").upper())
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
        LEVEL_NUMBERS.get(get("LVL", "").upper(), 0),
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
        if key in COMMON_KEYS or key in known:
            if key in seen:
                raise EventError(TWICE, f"Key {key} already exists.")
            seen.add(key)
        elif key in FIELD_KEYS:
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
