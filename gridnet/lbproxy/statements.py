"""
Statements that write many rows at once.

Python's ``executemany`` lets go of the interpreter's lock at each row and has to get it back, up
to 5 ms later when another thread computes; a statement of 64 rows does so once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

#: Rows of one statement; few sizes, so that prepared statements are found again, and each half of
#: the one before, so that few statements make up any number.
_SIZES = (64, 32, 16, 8, 4, 2, 1)

Row = tuple[Any, ...]


class ManyRows:
    """
    One statement for any number of rows.

    :param text: with ``{rows}`` where ``(?, …), (?, …)`` is to stand.
    :param columns: values of a row.
    """

    def __init__(self, text: str, columns: int) -> None:
        row = f"({', '.join('?' * columns)})"
        self._texts: Mapping[int, str] = {
            size: text.format(rows=", ".join([row] * size)) for size in _SIZES
        }

    def write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """
        Write *rows*, in their order.

        :raises sqlite3.Error: not all of them were written.
        """
        done, left = 0, len(rows)
        if left == 1:
            connection.execute(self._texts[1], rows[0])
            return
        for size in _SIZES:
            text = self._texts[size]
            while left >= size:
                values = tuple(chain.from_iterable(rows[done : done + size]))
                connection.execute(text, values)
                done += size
                left -= size


INSERT_JOBS = ManyRows("INSERT INTO jobs VALUES {rows}", 12)
INSERT_NEW_JOBS = ManyRows(
    "INSERT INTO jobs VALUES {rows} ON CONFLICT (unique_part) DO NOTHING", 12
)
#: job type, state, entered at, updated at, record, id, parent, due at
UPDATE_JOBS = ManyRows(
    "UPDATE jobs SET job_type = v.column1, state = v.column2, entered_at = v.column3,"
    " updated_at = v.column4, record = v.column5, parent = v.column7, due_at = v.column8"
    " FROM (VALUES {rows}) AS v WHERE jobs.id = v.column6",
    8,
)
#: The same without the last two, which have indexes and seldom change.
UPDATE_STATES = ManyRows(
    "UPDATE jobs SET job_type = v.column1, state = v.column2, entered_at = v.column3,"
    " updated_at = v.column4, record = v.column5"
    " FROM (VALUES {rows}) AS v WHERE jobs.id = v.column6",
    6,
)
INSERT_EVENTS = ManyRows("INSERT INTO events VALUES {rows}", 11)
INSERT_SPOOL = ManyRows("INSERT INTO spool VALUES {rows}", 3)
SET_PARTS = ManyRows(
    "INSERT INTO parts VALUES {rows} ON CONFLICT (job, part, key)"
    " DO UPDATE SET value = excluded.value",
    4,
)
