"""Small real services for the demo site to find: an echo, a Unix filter, an HTTP program."""

from __future__ import annotations

import shutil
from typing import Any, cast

from twisted.application.service import MultiService
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProcessTransport,
    IReactorProcess,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request
from twisted.web.server import Site as WebSite
from zope.interface import implementer

from gridnet.demo.plan import ADDRESS, SECOND_ADDRESS, DemoPlan
from gridnet.listener import listener

#: Connections that one demo service holds at once.
MAX_CONNECTIONS = 256

_DONE = Failure(ConnectionDone())

ECHO_OFFSET, FILTER_OFFSET, HTTP_OFFSET = 20, 21, 22

#: Services of the demo: what they are called, and what stands behind them.
DEFINITIONS = """\
# Services of the demo site; every line is "name [checks] descriptor".
Echo   [0] STANDALONE 127.0.0.1:{echo} L=no
Echo2  [0] STANDALONE 127.0.0.1:{echo} L=no S=yes
Upper  [0] STANDALONE 127.0.0.1:{filter} L=no C=text/plain
Hello  [0] HTTP 127.0.0.1:{http} /hello?from=gridnet L=no C=text/plain
Bounce [0] HTTP 127.0.0.1:{http} /bounce L=no C=x-ncbi-data/x-unknown
"""


#: What the second host of the demo publishes.
SECOND_DEFINITIONS = """\
# Services of the demo's second host.
where=second
Echo3  [0] STANDALONE {address}:{echo} L=no
"""


def second_definitions(plan: DemoPlan) -> str:
    """The service definitions of the demo's second host."""
    return SECOND_DEFINITIONS.format(address=SECOND_ADDRESS, echo=plan.port(ECHO_OFFSET))


def definitions(plan: DemoPlan) -> str:
    """The service definitions of the demo, in the daemon's configuration language."""
    return DEFINITIONS.format(
        echo=plan.port(ECHO_OFFSET), filter=plan.port(FILTER_OFFSET), http=plan.port(HTTP_OFFSET)
    )


class _Bounded(Factory):
    """A factory that turns away what comes over :data:`MAX_CONNECTIONS`."""

    def __init__(self, protocol: type[Protocol], reactor: Any) -> None:
        self._make = protocol
        self.reactor = reactor
        self.open = 0
        self.noisy = False

    def buildProtocol(self, addr: object) -> Protocol | None:
        """Called by Twisted for each connection."""
        if self.open >= MAX_CONNECTIONS:
            return None
        protocol = self._make()
        protocol.factory = self
        return protocol


class _Counted(Protocol):
    factory: _Bounded

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.factory.open += 1

    def connectionLost(self, reason: Failure = _DONE) -> None:
        """Called by Twisted."""
        self.factory.open -= 1


@implementer(IHalfCloseableProtocol)
class Echo(_Counted):
    """Gives back what it gets, then closes when the peer has said all."""

    def connectionMade(self) -> None:
        """Called by Twisted; a peer that does not read makes us stop reading."""
        super().connectionMade()
        transport = cast(Any, self.transport)
        transport.registerProducer(transport, True)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        cast(ITCPTransport, self.transport).write(data)

    def readConnectionLost(self) -> None:
        """Called by Twisted: the peer has finished."""
        transport = cast(Any, self.transport)
        transport.unregisterProducer()
        transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Called by Twisted."""


class _FilterProcess(ProcessProtocol):
    def __init__(self, connection: Filter) -> None:
        self._connection = connection

    def outReceived(self, data: bytes) -> None:
        cast(ITCPTransport, self._connection.transport).write(data)

    def processEnded(self, reason: Failure) -> None:
        cast(ITCPTransport, self._connection.transport).loseConnection()


@implementer(IHalfCloseableProtocol)
class Filter(_Counted):
    """One run of ``tr a-z A-Z`` for each connection."""

    _log = Logger()
    _process: IProcessTransport

    def connectionMade(self) -> None:
        """Called by Twisted."""
        super().connectionMade()
        program = shutil.which("tr") or "/usr/bin/tr"
        reactor = IReactorProcess(self.factory.reactor)
        self._process = reactor.spawnProcess(_FilterProcess(self), program, ["tr", "a-z", "A-Z"])

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self._process.writeToChild(0, data)

    def readConnectionLost(self) -> None:
        """Called by Twisted: the peer has finished, so has the filter's input."""
        self._process.closeStdin()

    def writeConnectionLost(self) -> None:
        """Called by Twisted."""

    def connectionLost(self, reason: Failure = _DONE) -> None:
        """Called by Twisted."""
        super().connectionLost(reason)
        self._process.loseConnection()


class Hello(Resource):
    """An HTTP program that says who asked for what."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        """Called by twisted.web."""
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        agent = request.getHeader(b"user-agent") or b"(no agent)"
        return b"Hello from an HTTP server behind gridnet.\n%s\n%s\n" % (request.uri, agent)

    render_POST = render_GET


class Bounce(Resource):
    """An HTTP program that gives back the body of the request."""

    isLeaf = True

    def render_POST(self, request: Request) -> bytes:
        """Called by twisted.web."""
        request.setHeader(b"Content-Type", b"x-ncbi-data/x-unknown")
        return request.content.read() if request.content is not None else b""

    render_GET = render_POST


def make_backends(plan: DemoPlan, reactor: Any) -> MultiService:
    """All services of the demo, on its own ports of the loopback address."""
    root = Resource()
    root.putChild(b"hello", Hello())
    root.putChild(b"bounce", Bounce())
    web = WebSite(root)
    web.displayTracebacks = False
    service = MultiService()
    for address, offset, factory in (
        (ADDRESS, ECHO_OFFSET, _Bounded(Echo, reactor)),
        (ADDRESS, FILTER_OFFSET, _Bounded(Filter, reactor)),
        (ADDRESS, HTTP_OFFSET, web),
        (SECOND_ADDRESS, ECHO_OFFSET, _Bounded(Echo, reactor)),
    ):
        endpoint = f"tcp:{plan.port(offset)}:interface={address}"
        listener(endpoint, factory, reactor).setServiceParent(service)
    return service
