"""
One call at a time to whichever server works.

The rule of docs/protocols/scire.rst (Several servers): the first server of the list that works;
the next one at once when it does not; after the last a growing pause; from an alternate back to
the first after a while.  A call may be repeated on another server, as every call may.
"""

from __future__ import annotations

import http.client
import io
import ssl
import threading
import time
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any
from urllib.parse import urlsplit

from gridnet.scire import wire
from gridnet.scire.client.config import MAX_ANSWER
from gridnet.scire.faults import TRY_ANOTHER_SERVER, FaultCode, ScireFault

#: Between two questions whether a server that takes long is still there, seconds.
_ASK_AGAIN_SECONDS = 5.0


class Unreachable(Exception):
    """No server answers; the pause that is due has been made."""


class Stopped(Exception):
    """The client was asked to end while it waited."""


class _Patient(io.RawIOBase):
    """
    What comes from a socket until *deadline*.

    :param doubt: nothing comes for so long, in seconds: *ask* is called, which raises when it is
        in vain to wait on.
    :param deadline: on the monotonic clock, seconds.
    """

    def __init__(
        self, sock: ssl.SSLSocket, deadline: float, doubt: float, ask: Callable[[], None]
    ) -> None:
        super().__init__()
        self._socket, self._deadline, self._doubt, self._ask = sock, deadline, doubt, ask
        # Holds the descriptor when the connection is closed before its last answer was read.
        self._held = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Called by the standard library."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Called by the standard library."""
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no answer in time")
            self._socket.settimeout(min(left, self._doubt))
            try:
                return self._socket.recv_into(buffer)
            except TimeoutError:
                if self._deadline - time.monotonic() > 0:
                    self._ask()
                    self._doubt = max(self._doubt, _ASK_AGAIN_SECONDS)

    def close(self) -> None:
        """Called by the standard library."""
        super().close()
        self._held.close()


class _PatientSocket:
    """As much of a socket as an answer is read from."""

    def __init__(self, reader: _Patient) -> None:
        self._reader = reader

    def makefile(self, mode: str) -> io.BufferedReader:
        """Called by the standard library."""
        return io.BufferedReader(self._reader)


class Channel:
    """
    A connection to one URL, kept open.

    :param connect: seconds for a connection.
    :param call: seconds for a call.
    :param doubt: seconds without an answer after which ``scire.ping`` on another connection finds
        out whether the server is there at all; 0: never.
    :param max_answer: octets of an answer; a longer one is as good as none.
    :raises OSError, http.client.HTTPException, ScireFault: from :meth:`call`.
    """

    def __init__(
        self,
        url: str,
        context: ssl.SSLContext,
        connect: float,
        call: float,
        authorization: str = "",
        doubt: float = 0.0,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"expected https://host:port/RPC2, found {url!r}")
        self.url = url
        self._path = parts.path or "/RPC2"
        self._connect_seconds, self._call_seconds, self._doubt = connect, call, doubt
        self._max_answer = max_answer
        self._headers = {"Content-Type": "text/xml"}
        if authorization:
            self._headers["Authorization"] = authorization

        def new_connection() -> http.client.HTTPSConnection:
            return http.client.HTTPSConnection(
                parts.hostname or "", parts.port or 443, timeout=connect, context=context
            )

        self._new_connection = new_connection
        self._connection = new_connection()

    def call(self, method: str, params: Sequence[Any], seconds: float | None = None) -> Any:
        """One call; *seconds* instead of the usual patience."""
        body = wire.format_call(method, params)
        kept = self._connection.sock is not None
        try:
            octets = self._exchange(body, seconds)
        except (ConnectionError, http.client.RemoteDisconnected, ssl.SSLEOFError):
            if not kept:
                raise
            # The server has closed the connection meanwhile, or is gone: a new one will tell.
            octets = self._exchange(body, seconds)
        return wire.parse_answer(octets)

    def _exchange(self, body: bytes, seconds: float | None) -> bytes:
        connection = self._connection
        try:
            if connection.sock is None:
                connection.timeout = self._connect_seconds
                connection.connect()
            patience = seconds or self._call_seconds
            connection.sock.settimeout(patience)
            connection.request("POST", self._path, body, self._headers)
            deadline = time.monotonic() + patience
            doubt = self._doubt if self._doubt and seconds is None else patience
            reader = _Patient(connection.sock, deadline, doubt, self._ask)
            connection.response_class = _response_from(reader)
            response = connection.getresponse()
            octets = response.read(self._max_answer + 1)
            if response.status != 200 or len(octets) > self._max_answer:
                raise http.client.HTTPException(f"status {response.status}")
        except BaseException:
            # Whatever was under way, nobody knows how far: the next call starts anew.
            connection.close()
            raise
        return octets

    def _ask(self) -> None:
        """
        Ask on another connection whether the server is there; whatever it answers, it is.

        A server that hangs takes connections all the same, as its kernel does that.

        :raises OSError, http.client.HTTPException: it does not answer.
        """
        until = time.monotonic() + self._connect_seconds
        connection = self._new_connection()
        try:
            connection.connect()
            connection.sock.settimeout(max(0.1, until - time.monotonic()))
            connection.request(
                "POST", self._path, wire.format_call("scire.ping", []), self._headers
            )
            connection.getresponse()
        except TimeoutError:
            raise TimeoutError("neither the call nor a ping is answered") from None
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _response_from(reader: _Patient) -> Any:
    """What makes the standard library read an answer from *reader*."""

    def response(sock: object, *arguments: Any, **named: Any) -> http.client.HTTPResponse:
        stand_in: Any = _PatientSocket(reader)
        return http.client.HTTPResponse(stand_in, *arguments, **named)

    return response


class Servers:
    """
    The servers that a client knows, and the connection to the one in use.

    :param urls: the list to start with; :meth:`learn` replaces it.
    :param doubt_seconds: see :class:`Channel`; likewise *max_answer*.
    :param stopping: set: no more pauses.
    :ivar switched: called with the URL whenever another server is taken.
    :ivar pauses: after each round of the list in which no server worked, seconds; then the last.
    """

    pauses: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)

    def __init__(
        self,
        urls: Sequence[str],
        context: ssl.SSLContext,
        connect_seconds: float,
        call_seconds: float,
        failback_seconds: float,
        chance: Random,
        stopping: threading.Event,
        doubt_seconds: float = 0.0,
        max_answer: int = MAX_ANSWER,
    ) -> None:
        self.urls = list(urls)
        self._primaries: frozenset[str] = frozenset()
        self._doubt_seconds = doubt_seconds
        self._max_answer = max_answer
        self.context = context
        self._connect_seconds = connect_seconds
        self._call_seconds = call_seconds
        self._failback_seconds = failback_seconds
        self._chance = chance
        self._stopping = stopping
        self._channel: Channel | None = None
        self._index = 0
        self._since = 0.0
        self._rounds = 0
        self._one_at_a_time = threading.Lock()
        self.switched: Callable[[str, str], None] = lambda url, reason: None

    def learn(self, urls: Sequence[str], primaries: Collection[str] = ()) -> None:
        """
        Take the list that a server gave; those that are only in the old one come last.

        :param primaries: those of *urls* that are no alternates.
        """
        with self._one_at_a_time:
            if not urls:
                return
            self._primaries = frozenset(primaries)
            current = self.urls[self._index]
            self.urls = [*dict.fromkeys([*urls, *self.urls])]
            self._index = self.urls.index(current)

    @property
    def url(self) -> str:
        """The server in use."""
        return self.urls[self._index]

    def new_channel(self) -> Channel:
        """Another connection to the server in use, for a call that takes long."""
        # Not all clients of a server that is slow are to ask it the same at the same moment.
        doubt = self._doubt_seconds * self._chance.uniform(1.0, 1.2)
        return Channel(
            self.url,
            self.context,
            self._connect_seconds,
            self._call_seconds,
            doubt=doubt,
            max_answer=self._max_answer,
        )

    def fail_back(self) -> None:
        """Before a poll: try the first server again after a while with an alternate."""
        with self._one_at_a_time:
            if not self._index or self.url in self._primaries:
                return
            if time.monotonic() - self._since > self._failback_seconds:
                self._take(0, "time to try the first again")

    def _take(self, index: int, reason: str) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._index = index
        self._since = time.monotonic()
        self.switched(self.urls[index], reason)

    def call(self, method: str, *params: Any) -> Any:
        """
        Call whichever server works.

        :raises ScireFault: a fault that no other server would answer differently.
        :raises Unreachable: none works; a pause has been made.
        :raises Stopped: asked to end.
        """
        with self._one_at_a_time:
            for _ in range(len(self.urls)):
                try:
                    if self._channel is None:
                        self._channel = self.new_channel()
                    answer = self._patiently(self._channel, method, params)
                except ScireFault as fault:
                    if fault.code not in TRY_ANOTHER_SERVER:
                        self._rounds = 0
                        raise
                    reason = str(fault)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    reason = f"{type(error).__name__}: {error}"
                else:
                    self._rounds = 0
                    return answer
                self._take((self._index + 1) % len(self.urls), reason)
        pause = self.pauses[min(self._rounds, len(self.pauses) - 1)]
        pause *= self._chance.uniform(0.75, 1.25)
        self._rounds += 1
        if self._stopping.wait(pause):
            raise Stopped
        raise Unreachable(reason)

    def _patiently(self, channel: Channel, method: str, params: Sequence[Any]) -> Any:
        """A call to one server; one that is busy is asked again when it says."""
        while True:
            try:
                return channel.call(method, params)
            except ScireFault as fault:
                if fault.code not in (FaultCode.BUSY, FaultCode.TOO_MANY_CALLS):
                    raise
                if self._stopping.wait(min(fault.retry_after or 1, 60)):
                    raise Stopped from None

    def close(self) -> None:
        """Close the connection."""
        with self._one_at_a_time:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
