"""The ends of a program's pipes that are ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet import fdesc, main
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer


class PipeReader(FileDescriptor):
    """
    Reads what a program writes.

    :param received: called with octets.
    :param ended: called once when nobody holds the other end any more.
    """

    def __init__(
        self,
        fd: int,
        received: Callable[[bytes], None],
        ended: Callable[[], None],
        reactor: Any,
    ) -> None:
        super().__init__(reactor)
        fdesc.setNonBlocking(fd)
        self.fd = fd
        self._received = received
        self._ended = ended
        self.connected = True
        self.startReading()

    def fileno(self) -> int:
        """Called by the reactor."""
        return self.fd

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "launcher"

    def doRead(self) -> Any:
        """Called by the reactor."""
        return fdesc.readFromFD(self.fd, self._received)

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor: the end, or our own :meth:`close`."""
        if self.close():
            self._ended()

    def close(self) -> bool:
        """Read no more; False: that was so already."""
        if self.fd < 0:
            return False
        super().connectionLost(Failure(main.CONNECTION_DONE))
        os.close(self.fd)
        self.fd = -1
        return True


@implementer(IPushProducer)
class PipeWriter(FileDescriptor):
    """
    Writes what a program reads.

    A program that reads no more is none of its errors: what is left is dropped.

    :param paused: called when the program reads too slowly.
    :param resumed: called when it has taken what there was, or reads no more.
    """

    def __init__(
        self, fd: int, paused: Callable[[], None], resumed: Callable[[], None], reactor: Any
    ) -> None:
        super().__init__(reactor)
        fdesc.setNonBlocking(fd)
        self.fd = fd
        self._paused = paused
        self._resumed = resumed
        self._waiting = False
        self.connected = True
        self.registerProducer(self, True)

    def fileno(self) -> int:
        """Called by the reactor."""
        return self.fd

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "launcher"

    def writeSomeData(self, data: bytes) -> Any:
        """Called by the reactor."""
        return fdesc.writeToFD(self.fd, data)

    def pauseProducing(self) -> None:
        """Called when the buffer is full."""
        self._waiting = True
        self._paused()

    def resumeProducing(self) -> None:
        """Called when the buffer is empty."""
        if self._waiting:
            self._waiting = False
            self._resumed()

    def stopProducing(self) -> None:
        """Called when the program reads no more."""

    def end(self) -> None:
        """Close it after what is still to be written."""
        if self.fd >= 0:
            self.unregisterProducer()
            self.loseConnection()

    def connectionLost(self, reason: Failure) -> None:
        """Called by the reactor: written, or broken."""
        self.close()

    def close(self) -> None:
        """Close it now."""
        if self.fd < 0:
            return
        super().connectionLost(Failure(main.CONNECTION_DONE))
        os.close(self.fd)
        self.fd = -1
        self.resumeProducing()
