"""
Readers of what a service answers, whatever brings the octets.

A reader takes the next octets and gives the answer once it is whole, else None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gridnet.lbproxy import frames, http
from gridnet.lbproxy.frames import BodyError, FrameReader, Reply
from gridnet.lbproxy.results import BAD_ANSWER, LbError

T = TypeVar("T")
Reader = Callable[[bytes], T | None]

MAX_REPLY_OCTETS = 1 << 30


def reply_reader() -> Reader[Reply]:
    """Of the reply to a store message; raises LbError when what comes is none."""
    reader = FrameReader(MAX_REPLY_OCTETS)

    def read(data: bytes) -> Reply | None:
        bodies = reader.receive(data)
        if bodies:
            try:
                return frames.decode_reply(bodies[0])
            except BodyError as error:
                raise LbError(frames.STORE_PROTOCOL, str(error)) from None
        if reader.fault is not None:
            raise LbError(frames.STORE_PROTOCOL, str(reader.fault))
        return None

    return read


def answer_reader() -> Reader[tuple[int, bytes]]:
    """Of status and body of an HTTP reply; raises LbError when what comes is none."""
    reader = http.ReplyReader(MAX_REPLY_OCTETS)

    def read(data: bytes) -> tuple[int, bytes] | None:
        found = reader.receive(data)
        if found is None and reader.fault:
            raise LbError(BAD_ANSWER, reader.fault)
        return found

    return read
