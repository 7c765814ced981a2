"""gridnet's own transport of lists over TCP and TLS: both ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import RemoteProtocolError
from gridnet.mirror import wire
from gridnet.mirror.admission import RegistrationError
from gridnet.mirror.catalogue import OwnCatalogue
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.link import Link, LinkUser
from gridnet.mirror.model import Registration, Report, said
from gridnet.mirror.outflow import Outflow
from gridnet.table.address_range import AddressRanges


@frozen
class ServerLimits:
    """Bounds of the serving end."""

    max_connections: int = 4096
    #: a connection that has not registered is closed after this
    registration_seconds: float = 30.0
    #: a peer that does not read its farewell is cut off after this
    close_seconds: float = 5.0


class MasterProtocol(Protocol):
    """The master's end of one connection."""

    _log = Logger()
    transport: Any

    def __init__(self, factory: MasterFactory, number: int) -> None:
        self._factory = factory
        self._number = number
        self._reader = wire.FrameReader(wire.MAX_REQUEST_OCTETS)
        self._out: Outflow | None = None
        self._id = 0
        self._timer: IDelayedCall | None = None

    @property
    def _keeper(self) -> MasterService:
        return self._factory.keeper

    def connectionMade(self) -> None:
        """Greet, or close when there are too many."""
        self._out = Outflow(self.transport, self.transport)
        host = getattr(self.transport.getPeer(), "host", "")
        if not self._factory.admit(self, host):
            self.transport.abortConnection()
            return
        greeting = wire.Greeting(wire.VERSION, self._factory.types(), self._factory.host)
        self._out.write([greeting.pack()])
        seconds = self._factory.limits.registration_seconds
        self._timer = self._factory.clock.callLater(seconds, self._too_late)

    def announce(self) -> None:
        """Name the lists again: there are more of them."""
        if self._out is not None:
            self._out.write([wire.pack({"types": self._factory.types()})])

    def _too_late(self) -> None:
        self._timer = None
        self._refuse("no registration in time")

    def dataReceived(self, data: bytes) -> None:
        """Read requests; a malformed one costs the peer its connection."""
        try:
            for message in self._reader.receive(data):
                self._handle(message)
        except RemoteProtocolError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        peer = self.transport.getPeer()
        self._log.warn("{peer}: mirror closed, {reason}", peer=peer, reason=reason)
        self._close(reason)

    def _close(self, reason: str) -> None:
        """Say why, and close; a peer that does not read that is cut off."""
        self._send({"closed": reason})
        if self._out is not None:
            self._out.close()
        if self._timer is not None:
            self._timer.cancel()
        seconds = self._factory.limits.close_seconds
        self._timer = self._factory.clock.callLater(seconds, self._cut)

    def _cut(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _handle(self, message: Mapping[str, Any]) -> None:
        if "acknowledge" in message:
            number = message["acknowledge"]
            if type(number) is not int or number < 0:
                raise RemoteProtocolError("a malformed acknowledgement")
            if self._id:
                self._keeper.acknowledge(self._id, number)
        elif "register" in message:
            self._register(wire.read_registration(message["register"], self._factory.catalogue))
        elif "modify" in message:
            self._modify(wire.read_registration(message["modify"], self._factory.catalogue))
        elif "leave" in message:
            if self._id:
                self._keeper.leave(self._id)
                self._id = 0
            self._close("left")
        else:
            raise RemoteProtocolError("an unknown request")

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._out is not None:
            self._out.answer([wire.pack(message)])

    def _register(self, wish: Registration) -> None:
        if self._id:
            raise RemoteProtocolError("a second registration on one connection")
        host = str(getattr(self.transport.getPeer(), "host", ""))
        wish = evolve(wish, id=0, host=host, component="mirror", component_id=self._number)
        try:
            client = self._keeper.register(wish, self)
        except RegistrationError as error:
            self._send({"refused": str(error), "going_down": error.going_down})
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._id = client.id
        self._send({"registered": client.id})

    def _modify(self, wish: Registration) -> None:
        try:
            self._keeper.modify(evolve(wish, id=self._id))
        except RegistrationError as error:
            self._send({"unknown": str(error)})

    def deliver(self, report: Report) -> bool:
        """The master has a report; refused while the last one is not on its way."""
        if self._out is None or not self._out.is_free:
            return False
        self._out.write(wire.pack_report(report, self._factory.catalogue))
        return True

    def dropped(self, reason: str) -> None:
        """The master forgot the client."""
        if self._id:
            self._id = 0
            self._close(reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection ends the registration: a client that comes back registers anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._out is not None:
            self._out.stopProducing()
        identifier, self._id = self._id, 0
        if identifier:
            self._keeper.drop(identifier, "its connection is gone")
        self._factory.gone(self)


class MasterFactory(Factory):
    """
    Serves the lists of *keeper*.

    :param allowed: addresses that may connect; None: all.
    :param host: what it calls itself.
    :param names: gives the names of all lists; None: those of the catalogue.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        keeper: MasterService,
        catalogue: OwnCatalogue,
        limits: ServerLimits | None = None,
        allowed: AddressRanges | None = None,
        host: str = "",
        names: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self.clock = IReactorTime(reactor)
        self.keeper = keeper
        self.catalogue = catalogue
        self.limits = limits or ServerLimits()
        self.host = host
        self._allowed = allowed
        self._names = names or self._names_of_catalogue
        self._numbers = count(1)
        self._open: set[MasterProtocol] = set()
        self._closed: Deferred[None] | None = None

    def buildProtocol(self, addr: object) -> MasterProtocol:
        """Called by Twisted for each connection."""
        return MasterProtocol(self, next(self._numbers))

    def admit(self, protocol: MasterProtocol, host: str) -> bool:
        """May *protocol*, from *host*, stay?"""
        if self._allowed is not None and host and not self._allowed.contains(host):
            self._log.warn("{peer}: not allowed to mirror", peer=host)
            return False
        if len(self._open) >= self.limits.max_connections:
            self._log.warn("{peer}: too many mirrors", peer=host)
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

    def gone(self, protocol: MasterProtocol) -> None:
        """*protocol* lost its connection."""
        self._open.discard(protocol)
        self._look()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def types(self) -> tuple[str, ...]:
        """The names of the lists."""
        return tuple(self._names())

    def _names_of_catalogue(self) -> tuple[str, ...]:
        return tuple(kind.name for kind in self.catalogue.types if kind.list_event)

    def announce(self) -> None:
        """There are lists that were not there before: tell everyone who is connected."""
        for protocol in self._open:
            protocol.announce()


class MirrorProtocol(Protocol):
    """The mirror's end of one connection: a link."""

    transport: Any

    def __init__(self, user: LinkUser, catalogue: OwnCatalogue, max_frame_octets: int) -> None:
        self._user: LinkUser | None = user
        self._catalogue = catalogue
        self._reader = wire.FrameReader(max_frame_octets)
        self._greeted = False
        self._reason = ""
        #: fires with itself once the master has greeted
        self.ready: Deferred[Link] = Deferred(lambda _: self.abort())

    def dataReceived(self, data: bytes) -> None:
        """Read what the master sends."""
        try:
            for message in self._reader.receive(data):
                self._handle(message)
        except RemoteProtocolError as error:
            self._reason = str(error)
            self.transport.abortConnection()
            return
        if self._reader.pending and self._user is not None:
            self._user.heard()

    def _handle(self, message: Mapping[str, Any]) -> None:
        user = self._user
        if user is None:
            return
        if not self._greeted:
            greeting = wire.read_greeting(message)
            self._greeted = True
            self._name_types(user, greeting.types)
            self.ready.callback(self)
        elif "report" in message:
            user.reported(wire.read_report(message, self._catalogue))
        elif "registered" in message:
            identifier = message["registered"]
            if type(identifier) is not int or identifier < 1:
                raise RemoteProtocolError("a malformed id")
            user.accepted(identifier)
        elif "refused" in message:
            user.refused(said(message["refused"]))
        elif "unknown" in message:
            user.unknown_to_master(said(message["unknown"]))
        elif "types" in message:
            self._name_types(user, wire.read_types(message["types"]))
        elif "closed" in message:
            self._reason = said(message["closed"])
            self.transport.loseConnection()
        else:
            raise RemoteProtocolError("an unknown message")

    def _name_types(self, user: LinkUser, names: Sequence[str]) -> None:
        known = self._catalogue.by_name
        if len(known) + sum(name not in known for name in names) > wire.MAX_TYPES:
            raise RemoteProtocolError(f"more than {wire.MAX_TYPES} lists in the course of time")
        user.types_known(names)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The link is gone."""
        text = self._reason or reason.getErrorMessage()
        user, self._user = self._user, None
        if not self.ready.called:
            self.ready.errback(RemoteProtocolError(text))
        elif user is not None:
            user.lost(text)

    # -- the link

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.transport is not None:
            self.transport.write(wire.pack(message))

    def register(self, wish: Registration) -> None:
        """Send a registration."""
        self._send({"register": wire.registration_as_json(wish, self._catalogue)})

    def modify(self, wish: Registration) -> None:
        """Send a modification."""
        self._send({"modify": wire.registration_as_json(wish, self._catalogue)})

    def acknowledge(self, number: int, client_id: int) -> None:
        """Send an acknowledgement."""
        self._send({"acknowledge": number})

    def leave(self, client_id: int) -> None:
        """Leave; the master closes."""
        self._send({"leave": True})

    def abort(self) -> None:
        """Drop the connection."""
        self._user = None
        if self.transport is not None:
            self.transport.abortConnection()


class OneProtocol(Factory):
    """Gives one connection its protocol, which exists already."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> Protocol:
        """Called by Twisted once."""
        return self._protocol


class GridnetConnector:
    """
    Leads to another gridnet.

    :param endpoint: its listener.
    :param description: for logs.
    """

    judges_conditions = True

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        description: str,
        max_frame_octets: int = wire.MAX_FRAME_OCTETS,
    ) -> None:
        self._endpoint = endpoint
        self._description = description
        self._max_frame_octets = max_frame_octets
        self.catalogue = OwnCatalogue()
        self.canonical_host: Callable[[str], str] = str.lower

    def connect(self, user: LinkUser) -> Deferred[Link]:
        """Connect, and wait for the greeting."""
        factory = OneProtocol(MirrorProtocol(user, self.catalogue, self._max_frame_octets))
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(lambda protocol: protocol.ready)

    def describe(self) -> str:
        """For logs."""
        return self._description
