"""
Framing of the store socket: messages, replies and the codes in them.

Source: docs/protocols/lbproxy.rst, "Store protocol".
"""

from __future__ import annotations

import errno
import re
from enum import IntEnum
from functools import lru_cache

from attrs import define, field, frozen

from gridnet.errors import RemoteProtocolError
from gridnet.lbproxy.short_cache import cached_if_short

HEADER_OCTETS = 17
MAGIC = b"michal"
#: "6 michal" with its line end, as every message of the released clients begins.
_MAGIC_STRING = b"6 michal\n"
#: Of the length of a message that is not uncommonly long.
_USUAL_DIGITS = 7
_LENGTH = re.compile(rb" *[0-9]+")
_COUNT = re.compile(rb"([0-9]{1,12}) ")
_REPLY = re.compile(rb"([0-9]{1,9})\n([0-9]{1,9})\n")


class FrameError(RemoteProtocolError):
    """The octets are no frame, or one above the limit: the connection ends without a reply."""


class BodyError(RemoteProtocolError):
    """A whole frame without an event string in it; the peer sees 400/0."""


class Major(IntEnum):
    """First number of a reply."""

    OK = 0
    NO_MEMORY = 200
    PROTOCOL = 400
    AUTHENTICATION = 500
    PERMISSION = 600
    DATABASE = 700
    SYSTEM = 800
    TIMEOUT = 900


@frozen(slots=True)
class Reply:
    """What a store peer is told about one message."""

    major: int
    minor: int
    text: str  #: for people, and for scripts that match it

    @property
    def ok(self) -> bool:
        """Whether the event is stored (or was already)."""
        return self.major == Major.OK

    @property
    def error_number(self) -> int:
        """What the original client makes of it: 0, or the number its call fails with."""
        if self.major == Major.OK:
            return 0
        if self.major == Major.NO_MEMORY:
            return errno.ENOMEM
        if self.major == Major.PERMISSION:
            return errno.EPERM
        if self.major == Major.DATABASE:
            return self.minor or STORE_PROTOCOL
        return STORE_PROTOCOL


#: Error number of a client whose message the store side did not understand.
STORE_PROTOCOL = 1417

OK = Reply(Major.OK, 0, "OK")
UNREADABLE = Reply(Major.PROTOCOL, 0, "decoding event string failed")
NOT_REGISTERED = Reply(Major.DATABASE, errno.ENOENT, "job not registered")
OTHER_OWNER = Reply(
    Major.PERMISSION, 0, "Job already registered with different owner. Rejecting event."
)
NOBODY = Reply(Major.PERMISSION, 0, "LB proxy can't store using unauthenticated connection")
EXISTS = Reply(
    Major.DATABASE, errno.EEXIST, "Job with given jobid already exists. Rejecting event."
)


def counted(octets: bytes) -> bytes:
    """*octets* as a counted string: decimal length, blank, the octets, line feed."""
    return b"%d %s\n" % (len(octets), octets)


def frame(body: bytes) -> bytes:
    """*body* behind its 17-octet header."""
    return b"%16d\n%s" % (len(body), body)


def encode_message(line: bytes) -> bytes:
    """The store message that carries one event line."""
    return frame(_MAGIC_STRING + counted(line))


def encode_reply(reply: Reply) -> bytes:
    """The frame of *reply*."""
    text = reply.text.encode("latin-1", "replace")
    return frame(b"%d\n%d\n%s" % (reply.major, reply.minor, counted(text)))


OK_FRAME = encode_reply(OK)


@lru_cache(maxsize=1024)
def _usual_beginning(size: int) -> bytes | None:
    """
    What stands before the line in a message of *size* octets by :func:`encode_message`.

    :returns: None: it makes no message of that size.
    """
    body = size - HEADER_OCTETS
    for digits in range(1, _USUAL_DIGITS + 1):
        count = body - len(_MAGIC_STRING) - digits - len(" \n")
        if count >= 0 and len(str(count)) == digits:
            return b"%16d\n%s%d " % (body, _MAGIC_STRING, count)
    return None


def _take_counted(body: bytes, start: int) -> tuple[bytes, int]:
    match = _COUNT.match(body, start)
    if match is None:
        raise BodyError("no counted string")
    end = match.end() + int(match[1])
    if body[end : end + 1] != b"\n":
        raise BodyError("a counted string that does not end where it says")
    return body[match.end() : end], end + 1


def event_line(body: bytes) -> bytes:
    """
    The event line in the *body* of a store message.

    What follows it is not looked at.  A body that is one counted string alone is taken for the
    line, as clients older than the magic word send it.

    :raises BodyError: no such strings.
    """
    if body.startswith(_MAGIC_STRING):
        return _take_counted(body, len(_MAGIC_STRING))[0]
    first, end = _take_counted(body, 0)
    if first == MAGIC:
        return _take_counted(body, end)[0]
    if end != len(body):
        raise BodyError("wrong magic word")
    return first


def decode_reply(body: bytes) -> Reply:
    """
    The reply in a frame's *body*.

    :raises BodyError: not a reply.
    """
    match = _REPLY.match(body)
    if match is None:
        raise BodyError("not a reply")
    text, _ = _take_counted(body, match.end())
    return Reply(int(match[1]), int(match[2]), text.decode("latin-1"))


@cached_if_short(1024)
def _length(header: bytes) -> int:
    """
    The length that the octets of a header say.

    :raises FrameError: it is none.
    """
    if _LENGTH.fullmatch(header, 0, HEADER_OCTETS - 1) is None:
        raise FrameError("malformed length")
    length = int(header[: HEADER_OCTETS - 1])
    if header[HEADER_OCTETS - 1] != 0x0A or length == 0:
        raise FrameError("malformed header")
    return length


@define(slots=True)
class FrameReader:
    """
    Cuts a stream into frame bodies.

    :ivar max_octets: the largest body that is let in.
    :ivar fault: why nothing more is read, once a header was of another form or its body above
        the limit; the bodies before it are good whatever way the octets came cut.
    """

    max_octets: int
    fault: FrameError | None = field(default=None, init=False)
    _buffer: bytearray = field(factory=bytearray, init=False)
    _wanted: int | None = field(default=None, init=False)

    @property
    def held_octets(self) -> int:
        """What has come of the frame that is not whole."""
        return len(self._buffer)

    @property
    def in_frame(self) -> bool:
        """Whether part of a frame has come."""
        return self._wanted is not None or bool(self._buffer)

    def usual_line(self, data: bytes) -> bytes | None:
        """
        The event line in *data* where that is one whole message as the released clients write it.

        :returns: None: it is something else, and nothing was taken; see :meth:`receive`.
        """
        size = len(data)
        if size - HEADER_OCTETS > self.max_octets or self.in_frame or self.fault is not None:
            return None
        beginning = _usual_beginning(size)
        if beginning is None or not data.startswith(beginning) or not data.endswith(b"\n"):
            return None
        return data[len(beginning) : -1]

    def receive(self, data: bytes) -> list[bytes]:
        """Take *data*; give the bodies of the frames that it completes, up to a :attr:`fault`."""
        if self.fault is not None:
            return []
        try:
            if not self._buffer and self._wanted is None:
                # The usual case: one whole message in one read.
                size = len(data)
                if size > HEADER_OCTETS:
                    length = _length(data[:HEADER_OCTETS])
                    if length == size - HEADER_OCTETS and length <= self.max_octets:
                        return [data[HEADER_OCTETS:]]
            self._buffer += data
        except FrameError as error:
            self.fault = error
            return []
        return self._cut()

    def _cut(self) -> list[bytes]:
        buffer = self._buffer
        bodies = []
        start = 0
        while True:
            if self._wanted is None:
                if len(buffer) - start < HEADER_OCTETS:
                    break
                try:
                    self._wanted = self._length(bytes(buffer[start : start + HEADER_OCTETS]))
                except FrameError as error:
                    self.fault = error
                    start = len(buffer)
                    break
                start += HEADER_OCTETS
            if len(buffer) - start < self._wanted:
                break
            bodies.append(bytes(buffer[start : start + self._wanted]))
            start += self._wanted
            self._wanted = None
        del buffer[:start]
        return bodies

    def _length(self, header: bytes) -> int:
        length = _length(header)
        if length > self.max_octets:
            raise FrameError(f"a message of {length} octets; {self.max_octets} are the limit")
        return length
