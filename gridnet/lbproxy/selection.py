"""
Conditions as SQL over the store's tables (:mod:`gridnet.lbproxy.schema`): pure text making.

In SQL a comparison with NULL is neither true nor false, which is just what the rules ask of
attributes that are unset.  Source: docs/protocols/lbproxy.rst, "Conditions".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gridnet.lbproxy.calendar import MICROSECONDS
from gridnet.lbproxy.identity import comparison_key
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.query import Condition, Groups, Operator
from gridnet.lbproxy.record import STATES, VM_STATES, job_type_number, state_number

#: An SQL expression and its parameters.
Sql = tuple[str, list[Any]]

_NOTHING: Sql = ("0", [])
_SIGNS = {
    Operator.EQUAL: "=",
    Operator.UNEQUAL: "<>",
    Operator.LESS: "<",
    Operator.GREATER: ">",
}


def _compare(expression: str, condition: Condition, values: Sequence[Any]) -> Sql:
    if condition.operator is Operator.WITHIN:
        return f"{expression} BETWEEN ? AND ?", list(values)
    return f"{expression} {_SIGNS[condition.operator]} ?", [values[0]]


def _column(expression: str) -> Callable[[Condition], Sql]:
    def compare(condition: Condition) -> Sql:
        return _compare(expression, condition, condition.values)

    return compare


def _field(name: str, null: int | None = None) -> Callable[[Condition], Sql]:
    expression = f"json_extract(j.record, '$[0].{name}')"
    return _column(expression if null is None else f"coalesce({expression}, {null})")


def _unique(column: str) -> Callable[[Condition], Sql]:
    def compare(condition: Condition) -> Sql:
        values = [one.unique for one in condition.values if isinstance(one, JobId)]
        return _compare(column, condition, values)

    return compare


def _owner(condition: Condition) -> Sql:
    name = str(condition.values[0])
    if name == "NULL":  # the caller, whom a proxy does not know
        return _NOTHING
    return _compare("j.owner_key", condition, [comparison_key(name)])


def _word(column: str, number: Callable[[str], int | None]) -> Callable[[Condition], Sql]:
    def compare(condition: Condition) -> Sql:
        numbers = [number(str(value)) for value in condition.values]
        if None in numbers:
            return _NOTHING
        return _compare(column, condition, numbers)

    return compare


def _state(word: str) -> int | None:
    # The original asks for a number in queries for events, its own client sends the name.
    return int(word) if word.isdecimal() and len(word) < 3 else state_number(word)


def _vm_state(word: str) -> int | None:
    word = word.upper().removeprefix("VM_").replace("_", "-")
    return VM_STATES.index(word) if word in VM_STATES else None


def _entered(condition: Condition) -> Sql:
    place = [name.upper() for name in STATES].index(condition.name)
    return _compare(
        f"nullif(json_extract(j.record, '$[1][{place}]'), 0)", condition, condition.values
    )


def _job_tag(condition: Condition) -> Sql:
    exists = (
        "EXISTS (SELECT 1 FROM parts p WHERE p.job = j.id AND p.part = 'tag' AND p.key = ?"
        " AND json_extract(p.value, '$[0]') = ?)"
    )
    values = [condition.name, condition.values[0]]
    return (exists if condition.operator is Operator.EQUAL else f"NOT {exists}"), values


def _event_tag(condition: Condition) -> Sql:
    comparison, values = _compare(
        "event_text(e.line, 'DG.USERTAG.VALUE')", condition, condition.values
    )
    return (
        f"(e.type = 21 AND event_text(e.line, 'DG.USERTAG.NAME') = ? AND {comparison})",
        [condition.name, *values],
    )


_SECONDS = f"/ {MICROSECONDS}"
_JOB_ATTRIBUTES: dict[str, Callable[[Condition], Sql]] = {
    "jobid": _unique("j.unique_part"),
    "owner": _owner,
    "status": _word("j.state", _state),
    "location": _field("location"),
    "destination": _field("destination"),
    "networkserver": _field("network_server"),
    "donecode": _field("done_code", -1),
    "exitcode": _field("exit_code", 0),
    "usertag": _job_tag,
    "time": _entered,
    "resubmitted": _field("resubmitted", 0),
    "parent_job": _unique("j.parent"),
    "stateentertime": _column(f"j.entered_at {_SECONDS}"),
    "lastupdatetime": _column(f"j.updated_at {_SECONDS}"),
    "jobtype": _word("j.job_type", job_type_number),
    "vm_status": _word("json_extract(j.record, '$[0].vm_state')", _vm_state),
}
_EVENT_ATTRIBUTES: dict[str, Callable[[Condition], Sql]] = {
    "type": _column("e.type"),
    "source": _column("e.source"),
    "level": _column("e.level"),
    "host": _column("event_text(e.line, 'HOST')"),
    "instance": _column("event_text(e.line, 'DG.SRC_INSTANCE')"),
    "time": _column(f"e.timestamp {_SECONDS}"),
    "usertag": _event_tag,
}


def _groups(groups: Groups, attributes: dict[str, Callable[[Condition], Sql]]) -> Sql:
    clauses, parameters = [], []
    for group in groups:
        parts = []
        for condition in group:
            if condition.operator is Operator.CHANGED:
                text, values = _NOTHING
            else:
                text, values = attributes[condition.attribute](condition)
            parts.append(text)
            parameters += values
        clauses.append(f"({' OR '.join(parts)})")
    return " AND ".join(clauses) or "1", parameters


def job_clause(groups: Groups) -> Sql:
    """The condition on table ``jobs``, called ``j``."""
    return _groups(groups, _JOB_ATTRIBUTES)


def event_clause(groups: Groups) -> Sql:
    """The condition on table ``events``, called ``e``."""
    return _groups(groups, _EVENT_ATTRIBUTES)
