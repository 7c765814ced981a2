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

_OK = frozenset({pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.PIPELINE_SYNC})
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
    ready: bool = False  #: the server has it


@define(eq=False)
class _Sent:
    """A command whose result is still to come."""

    prepared: _Prepared | None
    expected: int | None
    key: tuple[str, tuple[Any, ...]] | None = None  #: of rows that are kept
    taken: Callable[[list[dict[str, Any]]], None] | None = None  #: called with its rows
    preparing: bool = False  #: it is the preparation of the statement
    sync: bool = False  #: the end of a pipeline


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
        self._names = 0
        self._syncs = 0  # points of synchronization that are to come
        self._sent: deque[_Sent] = deque()
        self._unexpected = False
        self._last: pq.abc.PGresult | None = None
        self._status: bytes | None = None
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

    def send_commit(self) -> None:
        """Say that it is to be kept; once :meth:`collect` has all results, :meth:`leave`."""
        self._command("COMMIT")
        self._pgconn.pipeline_sync()
        self._syncs += 1
        self._sent.append(_Sent(None, None, sync=True))

    def leave(self) -> None:
        """
        Leave pipeline mode after a commit.

        :raises psycopg.Error: nothing was kept.
        """
        if self._status != b"COMMIT":
            raise psycopg.OperationalError("the transaction was rolled back")
        self._pgconn.exit_pipeline_mode()

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
        self.send_commit()
        self._wait()
        self.leave()
        return True

    def abandon(self) -> None:
        """
        Leave pipeline mode, whatever was under way; the connection may be used as usual then.

        :raises psycopg.Error: the connection is lost.
        """
        self._unexpected = False
        self._sent.clear()
        self.forget()
        # Those of which nobody knows whether the server has taken them.
        for sql in [sql for sql, prepared in self._prepared.items() if not prepared.ready]:
            del self._prepared[sql]
        if self._pgconn.pipeline_status == pq.PipelineStatus.OFF:
            return
        self._pgconn.pipeline_sync()
        self._syncs += 1
        self._flush()
        while self._syncs:
            result = self._result()
            if result is not None and result.status == pq.ExecStatus.PIPELINE_SYNC:
                self._syncs -= 1
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
            self._names += 1
            prepared = _Prepared(b"g%d" % self._names, self._translate(sql))
            self._pgconn.send_prepare(prepared.name, prepared.sql)
            self._sent.append(_Sent(prepared, None, preparing=True))
            self._prepared[sql] = prepared
        formats = None
        if not _OCTETS.isdisjoint(map(type, parameters)):
            formats = [int(type(value) in _OCTETS) for value in parameters]
        writers = _WRITERS
        values = [writers[type(value)](value) for value in parameters]
        self._pgconn.send_query_prepared(prepared.name, values, formats)
        self._sent.append(_Sent(prepared, expected))

    def send_for(
        self,
        sql: str,
        parameters: Sequence[Any],
        taken: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        """Send a statement; *taken* is called with its rows by :meth:`collect`."""
        self.send(sql, parameters)
        self._sent[-1].taken = taken

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
        self._pgconn.send_flush_request()
        return self._wait()

    def _wait(self) -> pq.abc.PGresult | None:
        self._flush()
        while not self.collect():
            self._poll.poll()
            self._pgconn.consume_input()
        return self._last

    def request(self) -> None:
        """Ask for the results of all that was sent; nothing is waited for."""
        self._pgconn.send_flush_request()

    def collect(self) -> bool:
        """
        Take the results that have come.

        :returns: whether that is all.
        :raises psycopg.Error: a statement failed, and with it the transaction.
        """
        is_busy, get_result, sent = self._pgconn.is_busy, self._pgconn.get_result, self._sent
        nothing = 0
        while sent:
            if is_busy():
                return False
            result = get_result()
            if result is None:
                # The end of the result before.
                nothing += 1
                if nothing > 1:
                    sent.clear()
                    raise psycopg.OperationalError("no result of a statement")
                continue
            nothing = 0
            self._take(sent.popleft(), result)
        return True

    def _take(self, sent: _Sent, result: pq.abc.PGresult) -> None:
        if result.status not in _OK:
            # What comes after it is not carried out any more.
            self._sent.clear()
            error = _error(result)
            raise error
        if sent.sync:
            self._syncs -= 1
            return
        if sent.prepared is not None and sent.preparing:
            sent.prepared.ready = True
            return
        self._last = result
        self._status = result.command_status
        if sent.prepared is not None:
            if sent.taken is not None:
                sent.taken(self._rows(sent.prepared, result))
            elif sent.key is not None:
                self._coming.discard(sent.key)
                self._kept[sent.key] = self._rows(sent.prepared, result)
        if sent.expected is not None and result.command_tuples != sent.expected:
            self._unexpected = True

    def flush(self) -> bool:
        """Write what can be written; whether there is more."""
        return bool(self._pgconn.flush())

    def consume(self) -> None:
        """
        Take octets that have come.

        :raises psycopg.Error: the connection is lost.
        """
        self._pgconn.consume_input()

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
