"""
One statement for many calls: statements whose parameters are arrays, one element a call.

What a server does all day is a handful of statements that read or change one row each.  Calls that
share a transaction need not issue them one by one: of a statement that is :func:`in_sets` there is
a second form that does the same for all of them at once, in the order of the arrays::

    SELECT name FROM clients WHERE id = ?
    SELECT v.n, q.* FROM unnest($1::int[]) WITH ORDINALITY AS v (p1, n),
        LATERAL (SELECT name FROM clients WHERE id = v.p1) AS q

    UPDATE runs SET state = ? WHERE id = ?
    UPDATE runs SET state = v.p1 FROM unnest($1::text[], $2::int[]) AS v (p1, p2) WHERE id = v.p2

The statement stays the one for one row, which every backend takes; the other form is made of it.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

#: What the types of parameters may be.
INT, REAL, TEXT, OCTETS = "int", "float8", "text", "bytea"

#: Of each statement: the types of its parameters, and whether the form for many locks rows.
_TYPES: dict[str, tuple[tuple[str, ...], bool]] = {}


@frozen
class SetForm:
    """
    A statement for many calls.

    :ivar sql: as PostgreSQL takes it; a reading one gives ``n``, whose row it is (from 1), first.
    :ivar types: of the parameters, which are arrays.
    """

    sql: str
    types: tuple[str, ...]


def in_sets(sql: str, *types: str, locks: bool = True) -> str:
    """
    Say that *sql* can be issued for many calls at once.

    It is one SELECT, which may end in what PostgreSQL alone takes (``/*pg FOR UPDATE*/``); or one
    UPDATE without a table beside its own; or an INSERT of one row.

    :param types: of its parameters, in order.
    :param locks: False: for many it locks no rows, since whatever is written is guarded by what
        was read; who is raced reads again, alone, and locks.
    :returns: *sql* itself.
    """
    if sql.count("?") != len(types):
        raise ValueError(f"{len(types)} types for the parameters of {sql}")
    _TYPES[sql] = (types, locks)
    return sql


def can_be_set(sql: str) -> bool:
    """Whether *sql* is known to :func:`in_sets`."""
    return sql in _TYPES


def set_form(sql: str, guarded: bool = False) -> SetForm:
    """
    The form of *sql*, which is :func:`in_sets`, for many calls.

    :param guarded: it must change one row for each, or is to fail (a division by zero).
    """
    types, locks = _TYPES[sql]
    plain, _, lock = sql.partition("/*pg ")
    pieces = (plain + lock.removesuffix("*/") if locks else plain).split("?")
    named = [f"{piece}v.p{number}" for number, piece in enumerate(pieces[:-1], 1)]
    body = "".join([*named, pieces[-1]]).strip()
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, 1))
    names = ", ".join(f"p{number}" for number in range(1, len(types) + 1))
    verb = body.split(None, 1)[0]
    if verb == "SELECT":
        text = (
            f"SELECT v.n, q.* FROM unnest({arrays}) WITH ORDINALITY AS v ({names}, n),"
            f" LATERAL ({body}) AS q"
        )
        return SetForm(text, types)
    source = f"FROM unnest({arrays}) AS v ({names})"
    if verb == "UPDATE":
        head, where, condition = body.partition(" WHERE ")
        text = f"{head} {source}{where}{condition}"
    else:
        head, _, rest = body.partition(" VALUES (")
        values, _, conflict = rest.partition(")")
        text = f"{head} SELECT {values} {source}{conflict}"
    if guarded:
        text = (
            f"WITH changed AS ({text} RETURNING 1)"
            f" SELECT 1 / (count(*) = cardinality($1::{types[0]}[]))::int FROM changed"
        )
    return SetForm(text, types)


def _quoted(value: Any) -> str:
    if value is None:
        return "NULL"
    text = str(value)
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _number(value: Any) -> str:
    return "NULL" if value is None else f"{value:d}"


def _real(value: Any) -> str:
    return "NULL" if value is None else repr(float(value))


def _octets(value: Any) -> str:
    return "NULL" if value is None else f'"\\\\x{bytes(value).hex()}"'


_FORMS = {INT: _number, REAL: _real, TEXT: _quoted, OCTETS: _octets}


def _column(kind: str, values: Sequence[Any]) -> str:
    """
    One column as the text of an array.

    Most have no NULL and no text that needs escapes, and are made without a call for each value.
    """
    if kind == TEXT:
        try:
            joined = '","'.join(values)
        except TypeError:  # NULL, or what is yet to be text
            pass
        else:
            if "\\" not in joined and joined.count('"') == 2 * (len(values) - 1):
                return f'{{"{joined}"}}'
    elif kind == INT and None not in values:
        # That of int itself: values may be true, false and members of enumerations.
        return f"{{{','.join(map(int.__repr__, values))}}}"
    elif kind == REAL and None not in values:
        return f"{{{','.join(map(float.__repr__, map(float, values)))}}}"
    return f"{{{','.join(map(_FORMS[kind], values))}}}"


def arrays(types: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The parameters of a :class:`SetForm`: the columns of *rows*, as texts of arrays."""
    return list(map(_column, types, zip(*rows, strict=True)))


def rows_in_sets(into: str, *types: str) -> str:
    """
    Say the same of inserting rows.

    :param into: the table with its columns, ``table (a, b)``.
    :returns: *into* itself.
    """
    in_sets(inserting(into, len(types)), *types)
    return into


def inserting(into: str, columns: int) -> str:
    """The statement that inserts one row of so many *columns*."""
    return f"INSERT INTO {into} VALUES ({', '.join('?' * columns)})"
