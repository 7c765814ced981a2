"""
Prepared statements in libpq's pipeline mode: writes go out without waiting for their results.

A transaction of the job server is a dozen short statements, of which a few read.  What costs is
not the statements but waiting for each: with a pipeline only a reading statement waits, and what
was written before it travels along.  psycopg's own pipeline would do the same at several times
the processor time for each statement; this uses its libpq wrapper (``psycopg.pq``) directly.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from attrs import define
from psycopg import errors, pq

_OK = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK})
_BYTEA = 17


def _read_number(text: bytes) -> int | float:
    """``numeric``, which sums of big integers have."""
    return float(text) if b"." in text else int(text)


def _read_bytes(text: bytes) -> bytes:
    return bytes.fromhex(text[2:].decode("ascii"))


def _read_text(text: bytes) -> str:
    return text.decode("utf-8")


#: By the type's object id, as ``pg_type`` has them.
_READERS: dict[int, Callable[[bytes], Any]] = {
    16: lambda text: text == b"t",
    **dict.fromkeys((20, 21, 23, 26), int),
    **dict.fromkeys((700, 701), float),
    1700: _read_number,
    _BYTEA: _read_bytes,
}


def _text(value: str) -> bytes:
    octets = value.encode("utf-8")
    if b"\0" in octets:
        raise psycopg.DataError("a text with a NUL character")
    return octets


class _Writers(dict[type, Callable[[Any], "bytes | None"]]):
    """By type; a derived type (an enumeration of texts) is written as what it comes from."""

    def __missing__(self, kind: type) -> Callable[[Any], bytes | None]:
        found = next((self[base] for base in kind.__mro__ if base in self), None)
        if found is None:
            raise psycopg.ProgrammingError(f"no form for values of type {kind.__name__}")
        self[kind] = found
        return found


#: A parameter as the wire has it; only octets are in their binary form.
_WRITERS = _Writers(
    {
        type(None): lambda value: None,
        str: _text,
        int: lambda value: b"%d" % value,
        float: lambda value: repr(float(value)).encode("ascii"),
        bytes: bytes,
        bytearray: bytes,
        memoryview: bytes,
    }
)
_OCTETS = frozenset({bytes, bytearray, memoryview})


def _error(result: pq.abc.PGresult) -> psycopg.Error:
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    text = result.error_message.decode("utf-8", "replace").strip()
    try:
        kind = errors.lookup((state or b"").decode("ascii"))
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(text)


@define(eq=False)
class _Prepared:
    name: bytes
    sql: bytes
    columns: list[tuple[str, Callable[[bytes], Any]]] | None = None


@define(eq=False)
class _Sent:
    """A command whose result is still to come."""

    prepared: _Prepared | None
    expected: int | None
    key: tuple[str, tuple[Any, ...]] | None = None  #: of rows that are kept


class Pipeline:
    """
    The statements of one connection.

    :param connection: not used by anybody else between :meth:`begin` and :meth:`commit` or
        :meth:`abandon`.
    :param translate: the statement as PostgreSQL takes it, with ``$1``, ``$2`` ...
    """

    def __init__(
        self, connection: psycopg.Connection[Any], translate: Callable[[str], bytes]
    ) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._translate = translate
        self._prepared: dict[str, _Prepared] = {}
        self._sent: deque[_Sent] = deque()
        self._unexpected = False
        self._coming: set[tuple[str, tuple[Any, ...]]] = set()
        self._kept: dict[tuple[str, tuple[Any, ...]], list[dict[str, Any]]] = {}
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)

    # -- transactions

    def begin(self) -> None:
        """Open a transaction; nothing is waited for."""
        self.forget()
        self._pgconn.enter_pipeline_mode()
        self._command("BEGIN")

    def commit(self) -> bool:
        """
        Keep it.

        :returns: False: a statement changed other rows than it should have; nothing was kept.
        :raises psycopg.Error: it was not kept.
        """
        if any(sent.expected is not None for sent in self._sent):
            self._fetch()
        if self._unexpected:
            return False
        self._command("COMMIT")
        self._pgconn.pipeline_sync()
        result = self._fetch()
        self._synchronize(1)
        if result is None or result.command_status != b"COMMIT":
            raise psycopg.OperationalError("the transaction was rolled back")
        return True

    def abandon(self) -> None:
        """
        Leave pipeline mode, whatever was under way; the connection may be used as usual then.

        :raises psycopg.Error: the connection is lost.
        """
        self._unexpected = False
        self._sent.clear()
        self.forget()
        if self._pgconn.pipeline_status == pq.PipelineStatus.OFF:
            return
        self._pgconn.pipeline_sync()
        self._flush()
        self._synchronize(1)

    def _synchronize(self, syncs: int) -> None:
        """Take results up to so many synchronization points, and leave the mode."""
        while syncs:
            result = self._result()
            if result is not None and result.status == pq.ExecStatus.PIPELINE_SYNC:
                syncs -= 1
        self._pgconn.exit_pipeline_mode()

    # -- statements

    def _command(self, words: str) -> None:
        self.send(words, ())

    def send(self, sql: str, parameters: Sequence[Any], expected: int | None = None) -> None:
        """
        Send a statement; its result is taken later.

        :param expected: rows that it must change, or :meth:`commit` keeps nothing.
        """
        prepared = self._prepared.get(sql)
        if prepared is None:
            prepared = _Prepared(b"g%d" % len(self._prepared), self._translate(sql))
            self._pgconn.send_prepare(prepared.name, prepared.sql)
            self._sent.append(_Sent(None, None))
            self._prepared[sql] = prepared
        formats = None
        if not _OCTETS.isdisjoint(map(type, parameters)):
            formats = [int(type(value) in _OCTETS) for value in parameters]
        writers = _WRITERS
        values = [writers[type(value)](value) for value in parameters]
        self._pgconn.send_query_prepared(prepared.name, values, formats)
        self._sent.append(_Sent(prepared, expected))

    def rows(self, sql: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
        """Send a statement, unless that was done ahead, and wait for its rows."""
        key = (sql, tuple(parameters))
        if key in self._coming:
            self._fetch()
        kept = self._kept.pop(key, None)
        if kept is not None:
            return kept
        self.send(sql, parameters)
        prepared = self._sent[-1].prepared
        assert prepared is not None
        return self._rows(prepared, self._ask())

    def ahead(self, sql: str, parameters: Sequence[Any]) -> None:
        """Send a statement whose :meth:`rows` will be asked for after others."""
        self.send(sql, parameters)
        key = (sql, tuple(parameters))
        self._sent[-1].key = key
        self._coming.add(key)

    def forget(self) -> None:
        """Rows that were read ahead and not asked for are old."""
        for sent in self._sent:
            sent.key = None
        self._coming.clear()
        self._kept.clear()

    def _rows(self, prepared: _Prepared, result: pq.abc.PGresult) -> list[dict[str, Any]]:
        columns = prepared.columns
        if columns is None:
            columns = prepared.columns = [
                (
                    (result.fname(number) or b"").decode("utf-8"),
                    _READERS.get(result.ftype(number), _read_text),
                )
                for number in range(result.nfields)
            ]
        value = result.get_value
        return [
            {
                name: None if (text := value(row, number)) is None else read(text)
                for number, (name, read) in enumerate(columns)
            }
            for row in range(result.ntuples)
        ]

    def count(self, sql: str, parameters: Sequence[Any]) -> int:
        """Send a statement and wait for how many rows it changed."""
        self.send(sql, parameters)
        return self._ask().command_tuples or 0

    def _ask(self) -> pq.abc.PGresult:
        result = self._fetch()
        assert result is not None
        return result

    # -- results

    def _fetch(self) -> pq.abc.PGresult | None:
        """Wait for the results of all that was sent; the last one."""
        pgconn = self._pgconn
        pgconn.send_flush_request()
        self._flush()
        last = None
        is_busy, get_result = pgconn.is_busy, pgconn.get_result
        while self._sent:
            sent = self._sent.popleft()
            last = self._result() if is_busy() else get_result()
            assert last is not None
            if last.status not in _OK:
                # What comes after it is not carried out any more.
                self._sent.clear()
                error = _error(last)
                raise error
            if sent.key is not None and sent.prepared is not None:
                self._coming.discard(sent.key)
                self._kept[sent.key] = self._rows(sent.prepared, last)
            if sent.expected is not None and last.command_tuples != sent.expected:
                self._unexpected = True
            # The None that ends each result.
            self._result() if is_busy() else get_result()
        return last

    def _flush(self) -> None:
        while self._pgconn.flush():
            # The server takes no more until somebody takes what it answers.
            self._poll.modify(self._pgconn.socket, select.POLLIN | select.POLLOUT)
            self._poll.poll()
            self._poll.modify(self._pgconn.socket, select.POLLIN)
            self._pgconn.consume_input()

    def _result(self) -> pq.abc.PGresult | None:
        """The next result, waited for without holding up other threads."""
        pgconn = self._pgconn
        while pgconn.is_busy():
            self._poll.poll()
            pgconn.consume_input()
        return pgconn.get_result()
