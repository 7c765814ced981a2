"""Fakes and shorthands that several test files of the dispatcher use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from attrs import evolve
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.front import Front
from gridnet.dispatch.head import RequestHead
from gridnet.dispatch.http import Exchange, HttpConnection
from gridnet.dispatch.http_factory import HttpFactory
from gridnet.dispatch.tls import ClientTls, client_context
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import Entry, ServiceTable
from gridnet.table.server_info import parse

HERE = "127.0.0.1"
INFO = (
    b"GET /Service/dispd.cgi?service=bounce&address=localhost&platform=x HTTP/1.1\r\n"
    b"Host: localhost\r\nClient-Revision: 7.0\r\nDispatch-Mode: INFORMATION_ONLY\r\n\r\n"
)


def make_table(text: str, owner: str = HERE) -> ServiceTable:
    """A table of the lines ``name descriptor [| launcher]``; what has no rate gets 1000."""
    table = ServiceTable()
    for line in filter(None, map(str.strip, text.splitlines())):
        definition, _, launcher = line.partition("|")
        name, _, descriptor = definition.strip().partition(" ")
        info = parse(descriptor)
        if " R=" not in descriptor:
            info = evolve(info, rate=1000.0)
        table.put(
            Entry(
                name,
                evolve(info, time=info.time or 30),
                owner=owner,
                static=True,
                launcher=launcher.strip(),
            )
        )
    return table


def make_front(
    table: ServiceTable,
    reactor: Any,
    config: DispatchConfig | None = None,
    ticket_office: Any = None,
    launcher: Any = None,
    **more: Any,
) -> Front:
    """The listening side of a process, not started."""
    return Front(
        config or DispatchConfig(),
        reactor,
        table,
        AddressRanges.from_texts(["10/8"]),
        ClientTls(client_context(None), reactor),
        HERE,
        lambda: ticket_office,
        lambda: launcher,
        **more,
    )


class Transport(StringTransport):
    """Remembers how it was ended, and lets a test be a slow reader."""

    aborted = False
    half_closed = False
    reads = True

    def abortConnection(self) -> None:
        """Called by the protocol under test."""
        self.aborted = True

    def loseWriteConnection(self) -> None:
        """Called by the protocol under test."""
        self.half_closed = True

    def pauseProducing(self) -> None:
        """Called by the protocol under test."""
        self.reads = False

    def resumeProducing(self) -> None:
        """Called by the protocol under test."""
        self.reads = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Called by the protocol under test."""
        self.producer = producer
        self.streaming = streaming

    def unregisterProducer(self) -> None:
        """Called by the protocol under test."""
        self.producer = None

    @property
    def over(self) -> bool:
        """Whether the protocol has ended the connection, in whatever way."""
        return self.disconnecting or self.aborted or self.half_closed


def connected(factory: HttpFactory, host: str = HERE) -> tuple[HttpConnection, Transport]:
    """A connection of *factory* over a fake transport."""
    protocol = factory.buildProtocol(IPv4Address("TCP", host, 40000))
    if protocol is None:
        raise AssertionError("the connection was refused")
    transport = Transport()
    protocol.makeConnection(transport)
    return protocol, transport


class FakeExchange:
    """Writes down what it is told; replies when a test says so."""

    def __init__(self, connection: HttpConnection, head: RequestHead) -> None:
        self.connection = connection
        self.head = head
        self.events: list[Any] = []
        self.body = b""

    def start(self) -> None:
        """Called by the connection."""
        self.events.append("start")

    def body_received(self, data: bytes) -> None:
        """Called by the connection."""
        self.body += data

    def body_ended(self) -> None:
        """Called by the connection."""
        self.events.append("whole")

    def reply_paused(self) -> None:
        """Called by the connection."""
        self.events.append("paused")

    def reply_resumed(self) -> None:
        """Called by the connection."""
        self.events.append("resumed")

    def client_lost(self) -> None:
        """Called by the connection."""
        self.events.append("lost")

    def reply(self, body: bytes = b"", keep: bool = True) -> None:
        """Send a whole reply."""
        self.connection.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.connection.finish(keep)


class FakePrepared:
    """Paths that begin with ``/now`` are answered at once, others become exchanges."""

    def __init__(self, head: RequestHead, exchanges: list[FakeExchange]) -> None:
        self.head = head
        self.lone = head.framing.empty
        self.keep = head.keep_alive and not head.expects_continue
        self._exchanges = exchanges

    def respond(self, connection: HttpConnection) -> bytes | Exchange:
        """Called by the connection."""
        if self.head.target.startswith(b"/now"):
            body = self.head.method.encode() + b" " + self.head.target
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        exchange = FakeExchange(connection, self.head)
        self._exchanges.append(exchange)
        return exchange


class Bench:
    """An HTTP factory with fake exchanges and a clock."""

    def __init__(self, **config: Any) -> None:
        self.clock = Clock()
        self.exchanges: list[FakeExchange] = []
        self.config = DispatchConfig(**config)
        self.factory = HttpFactory(
            self.config, self.clock, lambda head: FakePrepared(head, self.exchanges)
        )

    def connect(self, host: str = HERE) -> tuple[HttpConnection, Transport]:
        """One more connection."""
        return connected(self.factory, host)

    def pass_time(self, seconds: float) -> None:
        """Let time go by, with a look at deadlines each second."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.factory.sweep()

    @property
    def exchange(self) -> FakeExchange:
        """The latest exchange."""
        return self.exchanges[-1]


class Conversation(TwistedProtocol):
    """
    A client on a real connection: collects what comes, and lets a test wait for it.

    :ivar received: all octets so far.
    :ivar ended: fires with all octets when the connection ends.
    """

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.ended: Deferred[bytes] = Deferred()
        self.connected_now: Deferred[Conversation] = Deferred()
        self.reason: Failure | None = None
        self._waiting: list[tuple[Callable[[bytes], bool], Deferred[bytes]]] = []

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.connected_now.callback(self)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self.received += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self.reason = reason
        self.ended.callback(self.received)
        for _, waiting in self._waiting:
            waiting.errback(AssertionError(f"ended with {self.received[-200:]!r}"))
        self._waiting.clear()

    def write(self, data: bytes) -> None:
        """Send *data*."""
        self.transport.write(data)

    def until(self, enough: bytes | int | Callable[[bytes], bool]) -> Deferred[bytes]:
        """Fires with what was received once it holds *enough* (octets, or that many of them)."""
        if isinstance(enough, bytes):
            wanted = enough
            test: Callable[[bytes], bool] = lambda data: wanted in data  # noqa: E731
        elif isinstance(enough, int):
            size = enough
            test = lambda data: len(data) >= size  # noqa: E731
        else:
            test = enough
        waiting: Deferred[bytes] = Deferred()
        self._waiting.append((test, waiting))
        self._look()
        return waiting

    def _look(self) -> None:
        done = [pair for pair in self._waiting if pair[0](self.received)]
        self._waiting = [pair for pair in self._waiting if pair not in done]
        for _, waiting in done:
            waiting.callback(self.received)


def serving(make: Callable[[], TwistedProtocol]) -> Factory:
    """A quiet factory of *make*."""
    factory = Factory()
    factory.noisy = False
    factory.buildProtocol = lambda addr: make()  # type: ignore[method-assign]
    return factory


def cuts(data: bytes, places: Iterable[int]) -> list[bytes]:
    """*data* in pieces, cut at *places*."""
    edges = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(edges)]
