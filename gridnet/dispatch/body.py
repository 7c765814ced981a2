"""
Bodies of HTTP/1.x messages: octets of the wire in, octets of the body out.

A reader takes octets as they come and gives the part of the body in them.  Whether it accepts
them does not depend on how they are cut.  Nothing is kept but a line that is not whole yet.
"""

from __future__ import annotations

import re
from typing import Protocol

from gridnet.dispatch.head import Framing, HttpError

#: Longest size line of a chunk, its extensions and CR LF included, octets.
MAX_SIZE_LINE_OCTETS = 256
#: All trailer lines together, octets.
MAX_TRAILER_OCTETS = 8192
LAST_CHUNK = b"0\r\n\r\n"

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*+;[\t \x21-\x7e\x80-\xff]*+)?+")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t \x21-\x7e\x80-\xff]*+")


class BodyReader(Protocol):
    """Reads one body."""

    ended: bool  #: the body is complete
    excess: bytes  #: octets that came after it

    def receive(self, data: bytes) -> bytes:
        """
        Take *data*; give the octets of the body in it.

        :raises HttpError: the framing is broken.
        """


class CountedBody:
    """A body of known length."""

    __slots__ = ("ended", "excess", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.ended = not length
        self.excess = b""

    def receive(self, data: bytes) -> bytes:
        """Take *data*; see :class:`BodyReader`."""
        size = len(data)
        if size < self.left:
            self.left -= size
            return data
        body = data[: self.left]
        self.excess = data[self.left :]
        self.left = 0
        self.ended = True
        return body


class EndlessBody:
    """A body that ends with the connection: whoever sees that end says so."""

    __slots__ = ("ended", "excess")

    def __init__(self) -> None:
        self.ended = False
        self.excess = b""

    def receive(self, data: bytes) -> bytes:
        """Take *data*; see :class:`BodyReader`."""
        return data


class ChunkedBody:
    """A body in chunks (RFC 9112, 7.1).  Extensions and trailers are checked and dropped."""

    __slots__ = ("_in_trailer", "_left", "_line", "_trailer_octets", "ended", "excess")

    def __init__(self) -> None:
        self.ended = False
        self.excess = b""
        self._line = b""  # what came of a line that is not whole yet
        self._left = 0  # octets of the chunk still to come, its CR LF included
        self._in_trailer = False
        self._trailer_octets = 0

    def receive(self, data: bytes) -> bytes:
        """Take *data*; see :class:`BodyReader`."""
        pieces: list[bytes] = []
        position = 0
        size = len(data)
        while position < size:
            if self._left > 2:
                piece = data[position : position + self._left - 2]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
            elif self._left:
                expected = b"\r" if self._left == 2 else b"\n"
                if data[position : position + 1] != expected:
                    raise HttpError("a chunk is longer than its size")
                position += 1
                self._left -= 1
            else:
                position = self._take_line(data, position)
                if self.ended:
                    self.excess = data[position:]
                    break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_line(self, data: bytes, position: int) -> int:
        """Read a size or trailer line that goes on at *position*; gives where to go on."""
        room = MAX_SIZE_LINE_OCTETS
        if self._in_trailer:
            room = MAX_TRAILER_OCTETS - self._trailer_octets
        held = len(self._line)
        self._line += data[position : position + room - held]
        end = self._line.find(b"\r\n", max(0, held - 1))
        if end < 0:
            if len(self._line) >= room:
                raise HttpError("a line of a chunked body is too long")
            return len(data)
        line, self._line = self._line[:end], b""
        if self._in_trailer:
            self._trailer_line(line)
        else:
            self._size_line(line)
        return position + end + 2 - held

    def _size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise HttpError("malformed chunk size")
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._in_trailer = True

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self.ended = True
        elif _TRAILER_LINE.fullmatch(line) is None:
            raise HttpError("malformed trailer line")
        self._trailer_octets += len(line) + 2


def request_body(framing: Framing) -> BodyReader:
    """The reader of a request's body."""
    if framing.chunked:
        return ChunkedBody()
    return CountedBody(framing.content_length or 0)


def reply_body(framing: Framing) -> BodyReader:
    """The reader of the body of a reply that has one."""
    if framing.chunked:
        return ChunkedBody()
    if framing.content_length is not None:
        return CountedBody(framing.content_length)
    return EndlessBody()


def chunk(data: bytes) -> bytes:
    """*data* (never empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)
