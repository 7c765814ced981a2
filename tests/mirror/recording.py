"""A TCP proxy that notes what a real event client and its master say to each other."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from gridnet.mirror.gridengine import commlib, events, gdi
from gridnet.mirror.gridengine.commlib import FrameReader, Message
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.model import Event, Registration

SGE = dialect()


class RecordingProxy(Factory):
    """
    Passes everything on to a port of this host.

    :ivar registrations: what clients registered or modified themselves as.
    :ivar events: the numbered events that masters sent, each once.
    """

    noisy = False

    def __init__(self, reactor: Any, port: int) -> None:
        self.reactor = reactor
        self.port = port
        self.registrations: list[Registration] = []
        self.events: list[tuple[int, Event]] = []
        self.open: set[_Side] = set()

    def buildProtocol(self, addr: object) -> _Side:
        return _Side(self, None)

    def said_by_client(self, frame: commlib.Frame) -> None:
        if isinstance(frame, Message) and frame.tag == commlib.TAG_GDI:
            for task in gdi.unpack(frame.body, SGE):
                if task.target == gdi.EVENT_CLIENTS:
                    self.registrations.append(events.read_client_body(task.elements, SGE))

    def said_by_master(self, frame: commlib.Frame) -> None:
        if isinstance(frame, Message) and frame.tag == commlib.TAG_REPORT:
            for number, event in events.unpack_report(frame.body, SGE):
                if not self.events or number > self.events[-1][0]:
                    self.events.append((number, event))

    def stop(self) -> None:
        for side in list(self.open):
            side.transport.abortConnection()


class _Side(Protocol):
    """One of the two connections of a client."""

    transport: Any

    def __init__(self, proxy: RecordingProxy, other: _Side | None) -> None:
        self._proxy = proxy
        self._other = other
        self._is_master = other is not None
        self._reader = FrameReader()
        self._early: list[bytes] = []

    def connectionMade(self) -> None:
        self._proxy.open.add(self)
        if self._other is not None:
            self._other.joined(self)
        else:
            factory = ClientFactory()
            factory.noisy = False
            factory.buildProtocol = lambda addr: _Side(  # type: ignore[method-assign]
                self._proxy, self
            )
            self._proxy.reactor.connectTCP("127.0.0.1", self._proxy.port, factory)

    def joined(self, other: _Side) -> None:
        self._other = other
        for data in self._early:
            other.transport.write(data)
        self._early.clear()

    def dataReceived(self, data: bytes) -> None:
        for frame in self._reader.receive(data):
            if self._is_master:
                self._proxy.said_by_master(frame)
            else:
                self._proxy.said_by_client(frame)
        if self._other is None:
            self._early.append(data)
        else:
            self._other.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._proxy.open.discard(self)
        if self._other is not None:
            self._other.transport.loseConnection()
