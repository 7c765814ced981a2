"""Job records out of the rows of the store, for those who write and those who read alike."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gridnet.lbproxy import ulm
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.record import JobRecord, Part
from gridnet.lbproxy.short_cache import cached_if_short

#: Columns that :func:`record_from` wants, in its order.
JOB_COLUMNS = "j.id, j.job_id, j.owner, j.state, j.job_type, j.entered_at, j.updated_at, j.record"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def dump(value: Any) -> str:
    """*value* as JSON, as the store keeps it."""
    return _encode(value).decode()


def record_from(row: tuple[Any, ...]) -> JobRecord:
    """A record without its parts, of a row of :data:`JOB_COLUMNS`."""
    _, job_id, owner, state, job_type, entered_at, updated_at, core = row
    record = JobRecord(parse_job_id(job_id), owner, state, job_type, entered_at, updated_at)
    record.load_core(_decode(core))
    return record


def load_parts(
    connection: sqlite3.Connection, job: int, record: JobRecord, *, described: bool = True
) -> None:
    """
    Add its parts to *record*.

    :param described: with the job descriptions, which can be long.
    """
    sql = "SELECT part, key, value FROM parts WHERE job = ?"
    if not described:
        sql += " AND NOT (part = 'long' AND key IN ('jdl', 'matched_jdl', 'condor_jdl', 'rsl'))"
    for part, key, value in connection.execute(f"{sql} ORDER BY part, key", (job,)):
        record.load_part(Part(part), str(key), _decode(value))


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """*items* in lists of at most *size*."""
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@cached_if_short(256)
def _pairs(line: bytes) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for key, value in ulm.parse(line.decode("latin-1")):
        pairs.setdefault(key, value)
    return pairs


def event_text(line: bytes, key: str) -> str | None:
    """The SQL function of that name: the value of *key* in an event line."""
    return _pairs(line).get(key, "" if key in ("HOST", "DG.SRC_INSTANCE") else None)
