"""gridnet as a master of real event clients: the listener's side over TCP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.mirror.admission import RegistrationError
from gridnet.mirror.gridengine import commlib, gdi
from gridnet.mirror.gridengine.commlib import Connect
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.gridengine.server_session import MAX_REQUEST_OCTETS, ServerSession
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.model import Registration, Report
from gridnet.mirror.outflow import Outflow
from gridnet.table.address_range import AddressRanges

#: Component ids are given out from here to the last, then from the start again.
_FIRST_COMPONENT_ID, _LAST_COMPONENT_ID = 2, 0x7FFFFFFF


@frozen
class QmasterLimits:
    """Bounds of the serving end."""

    max_connections: int = 1024
    handshake_seconds: float = 60.0  #: to shake hands
    idle_seconds: float = 600.0  #: a connection without traffic is cut, as a real qmaster does
    close_seconds: float = 5.0  #: to answer the close
    holder_seconds: float = 5.0  #: for the holder of a fixed id to show that it lives
    max_request_octets: int = MAX_REQUEST_OCTETS


class _ClientPort:
    """One registered client of a connection."""

    def __init__(self, connection: EventClientProtocol) -> None:
        self.id = 0
        self._connection = connection

    def deliver(self, report: Report) -> bool:
        return self._connection.deliver(report)

    def dropped(self, reason: str) -> None:
        self._connection.forgotten(self, reason)


class EventClientProtocol(Protocol):
    """The master's end of one connection of a real event client."""

    _log = Logger()
    transport: Any

    def __init__(self, factory: EventClientFactory) -> None:
        self._factory = factory
        self._session = ServerSession(
            self, factory.dialect, factory.host, factory.limits.max_request_octets
        )
        self._out: Outflow | None = None
        self._ports: dict[int, _ClientPort] = {}
        self._timer: IDelayedCall | None = None
        self._newcomer: EventClientProtocol | None = None
        self.endpoint: tuple[str, str, int] | None = None

    # -- the transport

    def connectionMade(self) -> None:
        """Wait for the handshake, or close when there are too many."""
        self._out = Outflow(self.transport, self.transport)
        host = str(getattr(self.transport.getPeer(), "host", ""))
        if not self._factory.admit(self, host):
            self.transport.abortConnection()
            return
        self._wait(self._factory.limits.handshake_seconds)

    def _wait(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(seconds)
        else:
            self._timer = self._factory.clock.callLater(seconds, self._elapsed)

    def _elapsed(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Read; anything malformed costs the peer its connection."""
        self._wait(self._factory.limits.idle_seconds)
        try:
            self._session.receive(data)
        except RemoteProtocolError as error:
            peer = self.transport.getPeer()
            self._log.warn("{peer}: event client closed, {reason}", peer=peer, reason=str(error))
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """A lost connection ends no registration, unless it is configured to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._out is not None:
            self._out.stopProducing()
        self._factory.gone(self)
        if self._newcomer is not None:
            newcomer, self._newcomer = self._newcomer, None
            newcomer.settled(True)
        ports, self._ports = self._ports, {}
        if self._factory.drop_on_disconnect:
            for client_id in ports:
                self._factory.keeper.drop(client_id, "its connection is gone")

    # -- what the session asks for

    def write(self, pieces: Iterable[bytes]) -> None:
        """Send."""
        if self._out is not None:
            self._out.answer(pieces)

    def wants_in(self, connect: Connect) -> None:
        """Give the client its component id; a fixed one only if nobody alive has it."""
        wanted = connect.source.id
        source = connect.source
        if not source.component.isprintable() or not source.component:
            self._session.deny("access denied", "a component without a name")
            return
        if not wanted:
            self._enter(self._factory.next_component_id())
            return
        self.endpoint = (source.host, source.component, wanted)
        holder = self._factory.endpoints.get(self.endpoint)
        if holder is None:
            self._enter(wanted)
        else:
            holder.prove_alive(self)

    def _enter(self, component_id: int) -> None:
        peer = self._session.peer
        if peer is not None:
            self.endpoint = (peer.host, peer.component, component_id)
            self._factory.endpoints[self.endpoint] = self
        self._session.admit(component_id)

    def prove_alive(self, newcomer: EventClientProtocol) -> None:
        """*newcomer* wants this end's fixed id: ask the peer whether it lives."""
        if self._newcomer is not None:
            newcomer.settled(False)
            return
        self._newcomer = newcomer
        self._session.ask_status()
        self._factory.clock.callLater(self._factory.limits.holder_seconds, self._not_alive)

    def _not_alive(self) -> None:
        if self._newcomer is not None:
            self.transport.abortConnection()

    def answered_status(self) -> None:
        """The peer lives."""
        if self._newcomer is not None:
            newcomer, self._newcomer = self._newcomer, None
            newcomer.settled(False)

    def settled(self, is_free: bool) -> None:
        """Whether the fixed id that this end wants is free."""
        if is_free and self.endpoint is not None:
            self._enter(self.endpoint[2])
        else:
            self.endpoint = None
            self._session.deny("endpoint not unique", "another client has this name and id")

    def wants_registration(self, wish: Registration, claim: str) -> tuple[int, str, int]:
        """A client registers."""
        try:
            who = gdi.read_claim(claim)
        except RemoteProtocolError as error:
            return 0, str(error), gdi.Status.DENIED
        port = _ClientPort(self)
        fixed = wish.name in self._factory.fixed_id_clients
        try:
            client = self._factory.keeper.register(wish, port, fixed)
        except RegistrationError as error:
            return 0, str(error), error.status
        port.id = client.id
        self._ports[client.id] = port
        self._log.info(
            "{peer}: event client {name} of {user} has id {client_id}",
            peer=self.transport.getPeer(),
            name=wish.name,
            user=who.user,
            client_id=client.id,
        )
        return client.id, "", int(self._factory.keeper.now)

    def wants_modification(self, wish: Registration, claim: str) -> tuple[str, int]:
        """A client modifies itself."""
        try:
            gdi.read_claim(claim)
        except RemoteProtocolError as error:
            return str(error), gdi.Status.DENIED
        if wish.id not in self._ports:
            return f"event client {wish.id} is not registered here", gdi.Status.SYNTAX
        try:
            self._factory.keeper.modify(wish)
        except RegistrationError as error:
            return str(error), error.status
        return "", gdi.Status.OK

    def acknowledged(self, number: int, client_id: int) -> None:
        """A client acknowledges: only for itself."""
        if client_id in self._ports:
            self._factory.keeper.acknowledge(client_id, number)
        else:
            self._log.warn(
                "{peer}: acknowledges for event client {client_id}, which is another's",
                peer=self.transport.getPeer(),
                client_id=client_id,
            )

    def left(self, client_id: int) -> None:
        """A client leaves: only itself."""
        if self._ports.pop(client_id, None) is not None:
            self._factory.keeper.leave(client_id)

    def condition(self, asked: int) -> commlib.Condition:
        """What ``qping`` gets to know."""
        factory = self._factory
        return commlib.Condition(
            asked,
            int(factory.started_at),
            int(factory.clock.seconds() - factory.started_at),
            connections=factory.connections,
            text=f"gridnet event master: {len(factory.keeper.master.clients)} event clients | OK",
        )

    def close(self, reason: str) -> None:
        """Everything is said."""
        if self._out is not None:
            self._out.close()
        self._wait(self._factory.limits.close_seconds)

    # -- the master

    def deliver(self, report: Report) -> bool:
        """The master has a report; refused while the last one is not on its way."""
        if self._out is None or not self._out.is_free:
            return False
        try:
            delivered = self._session.deliver(report)
        except LocalProtocolError:
            # Elements that cannot be packed: a fault of ours that must not end the round.
            self._log.failure("a report cannot be packed")
            return False
        # Reports are traffic too: an idle client is one that neither sends nor is sent to.
        self._wait(self._factory.limits.idle_seconds)
        return delivered

    def forgotten(self, port: _ClientPort, reason: str) -> None:
        """The master forgot the client of *port*."""
        self._ports.pop(port.id, None)
        is_open = self._out is not None and self._out.is_open
        if is_open and self._factory.keeper.master.going_down and not self._ports:
            self.finish()

    def finish(self) -> None:
        """Close with the handshake."""
        self._session.finish()
        self._wait(self._factory.limits.close_seconds)


class EventClientFactory(Factory):
    """
    Serves real event clients from the lists of *keeper*, which speak Grid Engine's types.

    Mode ``none`` believes everyone: only *allowed* addresses get in.

    :param host: what the master calls itself.
    :param fixed_id_clients: names of clients that may ask for the ids 1 to 10.
    :param drop_on_disconnect: end a registration with its connection; a real qmaster keeps it
        until it times out.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        keeper: MasterService,
        host: str,
        allowed: AddressRanges,
        *,
        limits: QmasterLimits | None = None,
        fixed_id_clients: Iterable[str] = (),
        drop_on_disconnect: bool = False,
        dialect_name: str = "sge-8.1",
    ) -> None:
        self.clock = IReactorTime(reactor)
        self.keeper = keeper
        self.host = host
        self.limits = limits or QmasterLimits()
        self.fixed_id_clients = frozenset(fixed_id_clients)
        self.drop_on_disconnect = drop_on_disconnect
        self.dialect = dialect(dialect_name)
        self.endpoints: dict[tuple[str, str, int], EventClientProtocol] = {}
        self.started_at = self.clock.seconds()
        self._allowed = allowed
        self._open: set[EventClientProtocol] = set()
        self._last_component_id = _FIRST_COMPONENT_ID - 1
        self._closed: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def buildProtocol(self, addr: object) -> EventClientProtocol:
        """Called by Twisted for each connection."""
        return EventClientProtocol(self)

    def next_component_id(self) -> int:
        """An id for a client that asks for none in particular."""
        self._last_component_id += 1
        if self._last_component_id > _LAST_COMPONENT_ID:
            self._last_component_id = _FIRST_COMPONENT_ID
        return self._last_component_id

    def admit(self, protocol: EventClientProtocol, host: str) -> bool:
        """May *protocol*, from *host* ("" for UNIX sockets), stay?"""
        if host and not self._allowed.contains(host):
            self._log.warn("{peer}: not allowed as an event client", peer=host)
            return False
        if len(self._open) >= self.limits.max_connections:
            self._log.warn("{peer}: too many event clients", peer=host)
            return False
        self._open.add(protocol)
        return True

    def close_all(self) -> Deferred[None]:
        """Cut every connection; fires once all are gone."""
        self._closed = Deferred()
        done = self._closed
        for protocol in list(self._open):
            protocol.transport.abortConnection()
        self._look()
        return done

    def _look(self) -> None:
        if self._closed is not None and not self._open:
            closed, self._closed = self._closed, None
            closed.callback(None)

    def gone(self, protocol: EventClientProtocol) -> None:
        """*protocol* lost its connection."""
        self._open.discard(protocol)
        self._look()
        if protocol.endpoint and self.endpoints.get(protocol.endpoint) is protocol:
            del self.endpoints[protocol.endpoint]
