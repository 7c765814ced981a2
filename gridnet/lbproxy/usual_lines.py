"""
Event lines as the known clients write them, read quickly.

Such lines differ in little but their quoted values: what stands between those says which value is
which, and is looked up.  Whatever is not as usual, be it good or bad, is left to
:func:`gridnet.lbproxy.events.parse`, which says the same of every line that is read here, at twice
the cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, frozen

from gridnet.lbproxy import events, ulm
from gridnet.lbproxy.calendar import parse_time
from gridnet.lbproxy.events import EVENT_TYPES, Event, EventType
from gridnet.lbproxy.jobid import JobIdError
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.short_cache import cached_if_short

_DATE, _HOST = "DATE=", " HOST="
#: Keys whose values may stand without quotes.
_BARE = frozenset({"PROG", "LVL", "DG.PRIORITY"})
_QUOTED = ("DG.EVNT", "DG.SOURCE", "DG.SRC_INSTANCE", "DG.JOBID", "DG.SEQCODE", "DG.USER")


@frozen(slots=True)
class _TypePlan:
    """Where the lines of one form and type have what."""

    kind: EventType
    #: place, element, how to read it (None: as it is), null
    fields: tuple[tuple[int, str, Callable[[str], Any] | None, object], ...]
    required: tuple[str, ...]  #: elements


@define(slots=True)
class _Form:
    """What stands between the values of a line."""

    size: int  #: pieces of the line
    places: dict[str, int]  #: key -> piece that is its value
    level: int
    priority: int
    common: tuple[int, ...]  #: places of the values that every event has
    plans: dict[str, _TypePlan | None]  #: by the name of the type


@cached_if_short(256)
def _form(text: str) -> _Form | None:
    """The form of a line with *text* between its values; None when it is not as usual."""
    found = ulm.gaps(text)
    if found is None:
        return None
    keys, bare = found
    places = {key: 2 * number + 3 for number, key in enumerate(keys)}
    constants = {key: value for _, (key, value) in bare}
    all_keys = {"DATE", "HOST", *places, *constants}
    if len(all_keys) != 2 + len(keys) + len(bare) or not constants.keys() <= _BARE:
        return None
    priority = events.leading_int(constants.get("DG.PRIORITY", "-1"))
    if priority == -1 or not places.keys() >= set(_QUOTED) or not _BARE.isdisjoint(places):
        return None
    return _Form(
        size=2 * len(keys) + 3,
        places=places,
        level=events.level_number(constants.get("LVL", "")),
        priority=priority,
        common=tuple(places[key] for key in _QUOTED),
        plans={},
    )


def _plan(form: _Form, name: str) -> _TypePlan | None:
    """How to read lines of *form* of the type *name*; None: not here."""
    kind = EVENT_TYPES.get(name)  # in its own spelling: there are few of them to remember
    if kind is None:
        return None
    if not form.places.keys() <= kind.usual_keys:
        form.plans[name] = None
        return None
    fields = []
    for key, one in kind.keys.items():
        if key in form.places:
            fields.append((form.places[key], one.element, events.reader(one), one.null))
    plan = _TypePlan(kind, tuple(fields), tuple(element for _, element in kind.required))
    form.plans[name] = plan
    return plan


def _parse(line: bytes) -> Event | None:
    """The event of a usual line without a fault; None: not here."""
    pieces = ulm.cut(line.decode("latin-1"))
    if pieces is None:
        return None
    form = _form('"'.join(pieces[2:-1:2]))
    if form is None or form.size != len(pieces) or pieces[-1].strip(" \t\n"):
        return None
    at_name, at_source, at_instance, at_job, at_code, at_user = form.common
    name = pieces[at_name]
    plan = form.plans.get(name) or _plan(form, name)
    if plan is None:
        return None
    head = pieces[0]
    if not head.startswith(_DATE) or not head.endswith(_HOST):
        return None
    timestamp = parse_time(head[len(_DATE) : -len(_HOST)])
    host, code = pieces[1], pieces[at_code]
    source = events.source_number(pieces[at_source])
    if not timestamp or not host or not code or not source:
        return None
    try:
        job_id = parse_job_id(pieces[at_job])
    except JobIdError:
        return None
    fields: dict[str, Any] = {}
    for place, element, read, null in plan.fields:
        value = pieces[place]
        if value:
            if read is None:
                fields[element] = value
            elif (found := read(value)) != null:
                fields[element] = found
    for element in plan.required:
        if element not in fields:
            return None
    return Event(
        plan.kind,
        timestamp,
        host,
        form.level,
        form.priority,
        source,
        pieces[at_instance],
        job_id,
        code,
        pieces[at_user],
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
