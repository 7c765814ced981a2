"""Blocking sockets to a proxy and to a job's own server, for the client without Twisted."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from gridnet.lbproxy.frames import Reply
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.reading import Reader, reply_reader
from gridnet.lbproxy.results import LbError

T = TypeVar("T")
#: Sends a store message to a job's own server: (job id, message, seconds) -> reply.
ServerLeg = Callable[[JobId, bytes, float], Reply]

_RETRY_SECONDS = 0.01  # while the backlog is full, as the original client does


def come_again(text: str) -> LbError:
    """No socket, refused, lost or silent: come again."""
    return LbError(errno.EAGAIN, text)


def connect_unix(path: str, deadline: float) -> socket.socket:
    """
    Connect to the socket at *path*.

    :param deadline: by :func:`time.monotonic`.
    :raises LbError: EAGAIN: nobody listens, or not in time.
    """
    while True:
        left = deadline - time.monotonic()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(max(left, 0.001))
            made.connect(path)
            return made
        except BlockingIOError:
            made.close()
            if left <= 0:
                raise come_again(f"{path}: the service is busy") from None
            time.sleep(_RETRY_SECONDS)
        except OSError as error:
            made.close()
            raise come_again(f"{path}: {error}") from None


class Line:
    """A connection to the socket at *path* that is kept between calls."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._is_fresh = False

    def close(self) -> None:
        """Close it; the next call opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, octets: bytes, deadline: float) -> None:
        """
        Send; a connection that the service has closed meanwhile is made anew.

        :raises LbError: EAGAIN: not sent.
        """
        if self._socket is not None and self._is_stale():
            self.close()
        self._is_fresh = self._socket is None
        if self._socket is None:
            self._socket = connect_unix(self._path, deadline)
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            self._socket.sendall(octets)
        except OSError as error:
            self.close()
            raise come_again(f"{self._path}: {error}") from None

    def ask(self, octets: bytes, deadline: float, reader: Callable[[], Reader[T]]) -> T:
        """
        Send, and read the answer.

        A connection that had been kept and is lost before its answer is made anew, once: the
        service may have closed it for its idleness just as we sent.  The same octets do no harm
        twice: the service knows them as repeated.

        :param reader: makes a reader of the answer.
        :raises LbError: EAGAIN: no answer, or not in time; another: it cannot be read.
        """
        try:
            self.send(octets, deadline)
            return _read(reader(), lambda: self.receive(deadline))
        except LbError as error:
            if error.number != errno.EAGAIN:
                self.close()  # whatever comes next there is no answer to the next question
                raise
            if self._is_fresh or time.monotonic() >= deadline:
                raise
        self.send(octets, deadline)
        return _read(reader(), lambda: self.receive(deadline))

    def _is_stale(self) -> bool:
        """Whether the other side has closed; nothing is expected from it between calls."""
        assert self._socket is not None
        try:
            self._socket.setblocking(False)
            self._socket.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def receive(self, deadline: float) -> bytes:
        """
        The next octets.

        :raises LbError: EAGAIN: none, or not in time.
        """
        assert self._socket is not None
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._socket.recv(1 << 18)
        except OSError as error:
            self.close()
            raise come_again(f"{self._path}: {error or 'no answer in time'}") from None
        if not data:
            self.close()
            raise come_again(f"{self._path}: the connection was lost")
        return data


def _read(read: Reader[T], receive: Callable[[], bytes]) -> T:
    while (found := read(receive())) is None:
        pass
    return found


def tcp_server_leg(
    wrap: Callable[[socket.socket, str], socket.socket] | None = None,
) -> ServerLeg:
    """
    The way to a job's own server: TCP to the port of the job id plus one.

    :param wrap: makes it secure: given the connected socket and the host name.
    """

    def leg(job_id: JobId, message: bytes, seconds: float) -> Reply:
        address = (job_id.host.strip("[]"), job_id.port + 1)
        try:
            with socket.create_connection(address, seconds) as plain:
                made = wrap(plain, address[0]) if wrap is not None else plain
                made.settimeout(seconds)
                made.sendall(message)

                def receive() -> bytes:
                    data = made.recv(1 << 16)
                    if not data:
                        raise come_again(f"{address[0]}: the connection was lost")
                    return data

                return _read(reply_reader(), receive)
        except (OSError, OverflowError, UnicodeError) as error:  # not even a name or a port
            raise come_again(f"{address[0]}:{address[1]}: {error}") from None

    return leg
