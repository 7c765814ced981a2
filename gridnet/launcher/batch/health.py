"""Whether a program answers at its port."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

#: Statuses of a program that is well.
_WELL = range(200, 400)


class _HangUp(Protocol):
    """That there is a connection, or an answer, is enough."""

    def connectionMade(self) -> None:
        """Called by Twisted."""
        assert self.transport is not None
        self.transport.loseConnection()


class HealthCheck:
    """
    Connects to the program, and for HTTP asks it for a page.

    :param path: of the page; empty: a connection is enough.
    """

    def __init__(self, host: str, port: int, path: str, seconds: float, reactor: Any) -> None:
        self._host, self._port, self._path = host, port, path
        self._seconds = seconds
        self._reactor = reactor

    def run(self) -> Deferred[str]:
        """Fires with what is wrong; empty: nothing."""
        checking = Deferred.fromCoroutine(self._run())
        checking.addTimeout(self._seconds, self._reactor)

        def failed(failure: Failure) -> str:
            return failure.getErrorMessage() or f"no answer within {self._seconds:g} s"

        return checking.addErrback(failed)

    async def _run(self) -> str:
        if not self._path:
            endpoint = HostnameEndpoint(self._reactor, self._host, self._port, self._seconds)
            await endpoint.connect(Factory.forProtocol(_HangUp))
            return ""
        # Imported here: it takes a while, and most services do without.
        from twisted.web.client import Agent

        host = f"[{self._host}]" if ":" in self._host else self._host
        agent = Agent(self._reactor, connectTimeout=self._seconds)
        url = f"http://{host}:{self._port}{self._path}"
        response = await agent.request(b"GET", url.encode("ascii"))
        # What it says is of no interest, but the connection is to end.
        response.deliverBody(_HangUp())
        return "" if response.code in _WELL else f"status {response.code}"
