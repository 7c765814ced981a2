"""Writing reports to a transport no faster than the peer reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

#: Written at once; more waits until the transport asks for it.
CHUNK_OCTETS = 128 * 1024


@implementer(IPushProducer)
class Outflow:
    """
    Pieces on their way to a transport.

    The pieces of a report are octets that many clients share; joined into chunks only as the
    transport takes them, a thousand slow clients cost a thousand chunks, not copies of reports.
    It is the transport's producer all the time, so that small reports wait for the peer as well.

    :param requests: what brings the peer's requests; see :meth:`answer`.
    """

    def __init__(self, transport: Any, requests: Any = None) -> None:
        self._transport = transport
        self._requests = requests
        self._pieces: deque[bytes] = deque()
        self._paused = False
        self._ended = False
        self._then_close = False
        self._holds = False
        transport.registerProducer(self, True)

    @property
    def is_busy(self) -> bool:
        """Is anything on its way that the transport has not taken yet?"""
        return bool(self._pieces)

    @property
    def is_open(self) -> bool:
        """Can anything still be sent?"""
        return not self._ended and not self._then_close

    @property
    def is_free(self) -> bool:
        """Is it open, and does the transport take more?"""
        return self.is_open and not self._pieces and not self._paused

    def write(self, pieces: Iterable[bytes]) -> None:
        """Send *pieces* after everything that was given before."""
        if self._ended or self._then_close:
            return
        self._pieces.extend(pieces)
        self._flow()

    def answer(self, pieces: Iterable[bytes]) -> None:
        """
        Send *pieces* because the peer asked.

        While they wait for the peer to read, its further requests are not read: answers to
        somebody who only asks must not pile up.
        """
        self.write(pieces)
        if self._requests is not None and self.is_open and not self.is_free and not self._holds:
            self._holds = True
            self._requests.pauseProducing()

    def _flow(self) -> None:
        while self._pieces and not self._paused and not self._ended:
            chunk, size = [], 0
            while self._pieces and size < CHUNK_OCTETS:
                piece = self._pieces.popleft()
                chunk.append(piece)
                size += len(piece)
            self._transport.write(b"".join(chunk))
        if self._then_close and not self._pieces and not self._ended:
            self.end()
            self._transport.loseConnection()

    def close(self) -> None:
        """Close the connection once everything is on its way."""
        if not self._ended:
            self._then_close = True
            self._flow()

    def end(self) -> None:
        """Send nothing more, and leave the transport to others."""
        if not self._ended:
            self._ended = True
            self._pieces.clear()
            self._transport.unregisterProducer()

    def pauseProducing(self) -> None:
        """The transport has enough for now."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The transport takes more."""
        self._paused = False
        self._flow()
        if self._holds and self.is_free:
            self._holds = False
            self._requests.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is gone."""
        self._ended = True
        self._pieces.clear()
