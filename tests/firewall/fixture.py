"""A relay on loopback, and peers that talk through it as they are told."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from attrs import define, evolve, field
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.firewall.bare import bare_ports
from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.office import MemoryTickets, TicketOffice
from gridnet.firewall.penalty_file import Penalties
from gridnet.firewall.ports import PortSets
from gridnet.firewall.protocol import FirewallFactory
from gridnet.firewall.tickets import Passage
from gridnet.firewall.wire import ticket_octets
from gridnet.listener import ListeningReactor
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import ServiceTable

reactor: Any = _reactor


def make_office(
    config: FirewallConfig,
    clock: Callable[[], float],
    table: ServiceTable | None = None,
    ports: PortSets | None = None,
    inside: tuple[str, ...] = (),
) -> TicketOffice:
    """An office without a site."""
    path = Path(config.penalty_file or Path(mkdtemp()) / ".dispd.msg")
    return TicketOffice(
        config,
        table if table is not None else ServiceTable(),
        AddressRanges.from_texts(inside),
        ports or PortSets((5860,), (4444,)),
        "127.0.0.1",
        "127.0.0.1",
        MemoryTickets(config, random.Random(1)),
        Penalties(config, path),
        clock,
        random.Random(1),
    )


@define
class Relay:
    """A listening relay."""

    config: FirewallConfig
    wrap: Callable[[Factory], Factory] = lambda factory: factory
    table: ServiceTable = field(factory=ServiceTable)
    bare: bool = True  #: accept without Twisted's transports, where octets are spliced
    factory: FirewallFactory = field(init=False)
    port: int = 0
    _listening: list[Any] = field(factory=list)

    def start(self) -> Relay:
        """Listen."""
        config = evolve(self.config, log_sessions=False)
        office = make_office(config, reactor.seconds, self.table)
        self.factory = FirewallFactory(config, reactor, office)
        pump = self.factory.pump
        accepting: Any = reactor
        if self.bare and pump is not None:
            accepting = ListeningReactor(reactor, bare_ports(pump, config))
        self.port = self.listen(self.wrap(self.factory), accepting)
        self._sweep()
        return self

    def _sweep(self) -> None:
        self.factory.sweep()
        self._sweeping = reactor.callLater(0.05, self._sweep)

    _sweeping: Any = None

    def listen(self, factory: Factory, accepting: Any = reactor) -> int:
        """Have *factory* listen too, until the end; returns the port."""
        port = accepting.listenTCP(0, factory, interface="127.0.0.1", backlog=1024)
        self._listening.append(port)
        number: int = port.getHost().port
        return number

    async def stop(self) -> None:
        """Stop listening, and see everything go."""
        for port in self._listening:
            await port.stopListening()
        self.factory.cut_all()
        await self.factory.all_gone()
        self._sweeping.cancel()
        self.factory.close()
        # Aborted connections are lost one turn later.
        await deferLater(reactor, 0, lambda: None)

    def ticket(self, port: int, service: str = "test", server_ticket: int = 0) -> bytes:
        """The octets of a ticket for the loopback server at *port*."""
        passage = Passage(service, "127.0.0.1", port, "127.0.0.1", server_ticket)
        issued: list[Any] = []
        self.factory.office.store.issue(passage, reactor.seconds()).addCallback(issued.append)
        return ticket_octets(issued[0].number)


@implementer(IHalfCloseableProtocol)
class Talker(Protocol):
    """
    Sends what it is told in pieces, ends its stream when it is told, and keeps what it hears.

    :ivar peer_end: fires once the peer says no more, or is gone.
    :ivar over: fires with the reason once the connection is gone.
    """

    transport: Any

    def __init__(
        self,
        say: bytes = b"",
        pieces: tuple[int, ...] = (65536,),
        end_after_peer: bool = False,
        stay: bool = False,
        first: bytes = b"",
    ) -> None:
        self._say = first + say
        self._pieces = list(pieces)
        self._end_after_peer = end_after_peer
        self._stay = stay
        self._peer_ended = False
        self._ended = False
        self.heard = bytearray()
        self.over: Deferred[str] = Deferred()
        self.made: Deferred[Talker] = Deferred()
        self.peer_end: Deferred[None] = Deferred()
        self.until: list[tuple[int, Deferred[None]]] = []

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, False)
        self.made.callback(self)

    def resumeProducing(self) -> None:
        if self.left:
            size = self._pieces.pop(0) if len(self._pieces) > 1 else self._pieces[0]
            piece = self._say[self._at : self._at + size]
            self._at += size
            self.transport.write(piece)
            return
        self.transport.unregisterProducer()
        if not self._stay and (self._peer_ended or not self._end_after_peer):
            self.end()
        else:
            self._waits = True

    _waits = False
    _at = 0

    @property
    def left(self) -> int:
        """Octets that it has not begun to send."""
        return max(0, len(self._say) - self._at)

    def stopProducing(self) -> None:
        pass

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self.transport.loseWriteConnection()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        for entry in list(self.until):
            if len(self.heard) >= entry[0]:
                self.until.remove(entry)
                entry[1].callback(None)

    def hears(self, count: int) -> Deferred[None]:
        """Fires when *count* octets have come."""
        waiting: Deferred[None] = Deferred()
        if len(self.heard) >= count:
            waiting.callback(None)
        else:
            self.until.append((count, waiting))
        return waiting

    def readConnectionLost(self) -> None:
        self._peer_ended = True
        self.peer_end.callback(None)
        if self._waits and not self._stay:
            self.end()
        if self._ended:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        if self._peer_ended:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        for _, waiting in self.until:
            waiting.errback(reason)
        self.until.clear()
        if not self.peer_end.called:
            self.peer_end.callback(None)
        self.over.callback(reason.getErrorMessage())


async def dial(port: int, talker: Talker) -> Talker:
    """Connect *talker* to loopback *port*."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    await endpoint.connect(Factory.forProtocol(lambda: talker))
    return talker


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
