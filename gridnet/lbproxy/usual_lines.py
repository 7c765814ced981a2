"""
Event lines as the known clients write them, read quickly.

What stands before the job identifier in such a line, but for the time, says where the event comes
from and of what type it is: few such texts exist, and each is read once.  What stands between the
quoted values after it says which value is which: few such texts exist, too.  The values are left.
Whatever is not as usual, be it good or bad, is left to :func:`gridnet.lbproxy.events.parse`, which
says the same of every line that is read here, at twice the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attrs import frozen

from gridnet.lbproxy import events, ulm
from gridnet.lbproxy.calendar import FULL_TIME, parse_time
from gridnet.lbproxy.event_types import (
    EVENT_TYPES,
    EventType,
    event_type,
    level_number,
    source_number,
)
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.jobid import JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.short_cache import cached_if_short

_DATE, _HOST, _JOB_ID = "DATE=", ' HOST="', ' DG.JOBID="'
_DATE_END = len(_DATE) + FULL_TIME
#: What may stand before the job identifier.
_ORIGIN_KEYS = frozenset(
    {"DATE", "HOST", "PROG", "LVL", "DG.PRIORITY", "DG.SOURCE", "DG.SRC_INSTANCE", "DG.EVNT"}
)
#: What may stand after it, besides the fields of the type.
_OTHER_KEYS = frozenset({"DG.SEQCODE", "DG.USER", "DG.ARRIVED", "ARR_DATE", "DG.TYPE"})


@frozen(slots=True)
class _Form:
    """Which value after the job identifier is which, by its place."""

    size: int  #: pieces: values and what follows each
    code: int
    user: int
    #: place, element, how to read it (None: as it is), null, whether it must be there
    fields: tuple[tuple[int, str, Callable[[str], Any] | None, object, bool], ...]


@frozen(slots=True)
class _Source:
    """What stands between host and job identifier."""

    kind: EventType
    level: int
    priority: int
    number: int
    instance: str
    #: what stands between the values after the job identifier -> their form; None: not as usual
    form: Callable[[str], _Form | None]


def _form(kind: EventType, text: str) -> _Form | None:
    """The form of lines of *kind* with *text* between and after their values."""
    between, _, end = text.rpartition('"')
    found = ulm.gaps(between)
    if found is None or end.strip(" \t\n"):
        return None
    keys, bare = found
    places = {key: 2 * number for number, key in enumerate(keys, 1)}
    if bare or len(places) != len(keys) or not places.keys() <= _OTHER_KEYS.union(kind.keys):
        return None
    if "DG.SEQCODE" not in places or "DG.USER" not in places:
        return None
    if any(key not in places for key, _ in kind.required):
        return None
    return _Form(
        2 * len(keys) + 2,
        places["DG.SEQCODE"],
        places["DG.USER"],
        tuple(
            (places[key], one.element, events.reader(one), one.null, one.required)
            for key, one in kind.keys.items()
            if key in places
        ),
    )


_FORMS: Mapping[str, Callable[[str], _Form | None]] = {
    kind.name: cached_if_short(16)(partial(_form, kind)) for kind in EVENT_TYPES.values()
}


@cached_if_short(1024)
def _source(text: str) -> _Source | None:
    """What *text* says, from after the host to the job identifier; None: not as usual."""
    if not text.endswith('"'):
        return None
    try:
        pairs = ulm.parse('DATE=0 HOST="h"' + text)
    except ulm.UlmError:
        return None
    values = dict(pairs)
    if len(values) != len(pairs) or not values.keys() <= _ORIGIN_KEYS:
        return None
    kind = event_type(values.get("DG.EVNT", ""))
    priority = events.priority_number(values.get("DG.PRIORITY", ""))
    number = source_number(values.get("DG.SOURCE", ""))
    if kind is None or priority == -1 or not number:
        return None
    return _Source(
        kind,
        level_number(values.get("LVL", "")),
        priority,
        number,
        values.get("DG.SRC_INSTANCE", ""),
        _FORMS[kind.name],
    )


@cached_if_short(4096)
def _origin(text: str) -> tuple[str, _Source] | None:
    """Host and source that *text* says, from after the time to the job identifier."""
    if not text.startswith(_HOST):
        return None
    host, _, rest = text[len(_HOST) :].partition('"')
    source = _source(rest)  # hosts can be many: what else they say is the same
    if source is None or not host or "\\" in host or "\0" in host:
        return None
    return host, source


def _parse(line: bytes) -> Event | None:
    """The event of a usual line without a fault; None: not here."""
    head, _, rest = line.decode("latin-1").partition(_JOB_ID)
    if not rest or not head.startswith(_DATE):
        return None
    origin = _origin(head[_DATE_END:])
    pieces = ulm.cut(rest, 0)
    if origin is None or pieces is None:
        return None
    host, source = origin
    form = source.form('"'.join(pieces[1::2]))
    if form is None or form.size != len(pieces):
        return None
    timestamp = parse_time(head[len(_DATE) : _DATE_END])
    code = pieces[form.code]
    if not timestamp or not code:
        return None
    try:
        job_id = parse_job_id(pieces[0])
    except JobIdError:
        return None
    fields: dict[str, Any] = {}
    for place, element, read, null, is_required in form.fields:
        value: Any = pieces[place]
        if value:
            if read is None:
                fields[element] = value
                continue
            value = read(value)
            if value != null:
                fields[element] = value
                continue
        if is_required:
            return None
    return Event(
        source.kind,
        timestamp,
        host,
        source.level,
        source.priority,
        source.number,
        source.instance,
        job_id,
        code,
        pieces[form.user],
        fields,
        line,
    )


def parse(line: bytes) -> Event:
    """
    Read and check one event line.

    :param line: with or without its line end.
    :raises EventError: refused, as :func:`gridnet.lbproxy.events.parse` does.
    """
    return _parse(line) or events.parse(line)
