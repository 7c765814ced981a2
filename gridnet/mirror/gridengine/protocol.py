"""gridnet as a client of a real qmaster: the link over TCP."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault, GridnetError, RemoteProtocolError
from gridnet.mirror.catalogue import GRID_ENGINE, Catalogue
from gridnet.mirror.gridengine import commlib
from gridnet.mirror.gridengine.cell import Cell, read_cell
from gridnet.mirror.gridengine.commlib import Peer
from gridnet.mirror.gridengine.dialect import Dialect, dialect
from gridnet.mirror.gridengine.gdi import Claim
from gridnet.mirror.gridengine.session import ClientSession
from gridnet.mirror.link import Link, LinkUser
from gridnet.mirror.model import Event, Registration, said
from gridnet.mirror.protocol import OneProtocol


class DeniedError(GridnetError):
    """
    A qmaster refused the connection.

    :ivar retry_seconds: before the next try makes sense.
    """

    def __init__(self, text: str, retry_seconds: float) -> None:
        super().__init__(text)
        self.retry_seconds = retry_seconds


def own_claim() -> str:
    """Who this process is, as a claim of security mode ``none``."""
    user_id, group_id = os.geteuid(), os.getegid()
    try:
        user = pwd.getpwuid(user_id).pw_name
    except KeyError:
        user = str(user_id)
    try:
        group = grp.getgrgid(group_id).gr_name
    except KeyError:
        group = str(group_id)
    return Claim(user_id, group_id, user, group).text()


class QmasterProtocol(Protocol):
    """
    A link to a qmaster.

    :ivar ready: fires with itself once the qmaster has accepted the connection.
    """

    transport: Any

    def __init__(self, user: LinkUser, connector: GridEngineConnector, cell: Cell) -> None:
        self._user: LinkUser | None = user
        self._reason = ""
        self._clock = connector.clock
        self._denied: DeniedError | None = None
        self._timer: IDelayedCall | None = None
        self.ready: Deferred[Link] = Deferred(lambda _: self.abort())
        self._session = ClientSession(
            self,
            connector.dialect,
            Peer(cell.names.named(cell.master_host), "qmaster", 1),
            Peer(cell.names.named(connector.local_host), connector.component, 0),
            connector.authentication,
            self._clock.seconds(),
            connector.max_body_octets,
        )

    def connectionMade(self) -> None:
        """Shake hands."""
        self._session.begin()

    def dataReceived(self, data: bytes) -> None:
        """Read; anything malformed ends the connection."""
        try:
            self._session.receive(data, self._clock.seconds())
        except RemoteProtocolError as error:
            self._reason = str(error)
            self.transport.abortConnection()
            return
        if self._session.pending and self._user is not None:
            self._user.heard()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The link is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        user, self._user = self._user, None
        text = self._reason or reason.getErrorMessage()
        if not self.ready.called:
            self.ready.errback(self._denied or RemoteProtocolError(text))
        elif user is not None:
            user.lost(text)

    # -- what the session asks for

    def write(self, octets: bytes) -> None:
        """Send."""
        self.transport.write(octets)

    def opened(self) -> None:
        """The qmaster accepted the connection."""
        if not self.ready.called:
            self.ready.callback(self)

    def denied(self, reason: str, retry_seconds: float) -> None:
        """The qmaster refused it."""
        self._denied = DeniedError(said(reason), retry_seconds)
        self.transport.loseConnection()

    def accepted(self, client_id: int) -> None:
        """The registration was accepted."""
        if self._user is not None:
            self._user.accepted(client_id)

    def refused(self, reason: str) -> None:
        """The registration was refused."""
        if self._user is not None:
            self._user.refused(said(reason))

    def unknown_to_master(self, reason: str) -> None:
        """A modification was refused."""
        if self._user is not None:
            self._user.unknown_to_master(said(reason))

    def reported(self, events: Sequence[tuple[int, Event]]) -> None:
        """A report came."""
        if self._user is not None:
            self._user.reported(events)

    def close(self, reason: str) -> None:
        """Everything is said."""
        self._reason = reason
        self.transport.loseConnection()

    # -- the link

    def register(self, wish: Registration) -> None:
        """Send a registration."""
        self._session.register(wish)

    def modify(self, wish: Registration) -> None:
        """Send a modification."""
        self._session.modify(wish)

    def acknowledge(self, number: int, client_id: int) -> None:
        """Send an acknowledgement."""
        self._session.acknowledge(number, client_id)

    def leave(self, client_id: int) -> None:
        """Leave, wait for the answer to the close, close."""
        self._session.leave(client_id)

    def abort(self) -> None:
        """Drop the connection."""
        self._user = None
        if self.transport is not None:
            self.transport.abortConnection()


class GridEngineConnector:
    """
    Leads to the qmaster of a cell.

    :param cell: the cell; with a directory it is read again for every connection, since a
        shadow master may have taken over.
    :param component: the component name that the qmaster shows for this client.
    :param tls: for mode ``csp``: :class:`gridnet.mirror.tls.CellCreator`.
    :param endpoint: makes the endpoint for host and port; None: TCP, or TLS in mode ``csp``.
    """

    # A real qmaster sends what fits, and says nothing when that ceases; and it deletes for all.
    judges_conditions = False

    def __init__(
        self,
        reactor: Any,
        cell: Cell,
        *,
        component: str = "gridnet",
        local_host: str = "",
        dialect_name: str = "sge-8.1",
        authentication: Callable[[], str] = own_claim,
        tls: IOpenSSLClientConnectionCreator | None = None,
        endpoint: Callable[[str, int], IStreamClientEndpoint] | None = None,
        max_body_octets: int = commlib.MAX_BODY_OCTETS,
    ) -> None:
        self._reactor = reactor
        self.clock = IReactorTime(reactor)
        self._cell = cell
        self.component = component
        self.local_host = local_host or socket.gethostname()
        self.dialect: Dialect = dialect(dialect_name)
        self.authentication = authentication
        self._tls = tls
        self._endpoint = endpoint or self._plain_or_tls
        self.max_body_octets = max_body_octets
        self.catalogue: Catalogue = GRID_ENGINE
        self.canonical_host = cell.names.canonical
        if cell.security_mode not in ("none", "csp"):
            raise ConfigError(
                [Fault("security_mode", f"{cell.security_mode!r}; expected none or csp")]
            )

    def _plain_or_tls(self, host: str, port: int) -> IStreamClientEndpoint:
        plain = HostnameEndpoint(self._reactor, host, port)
        if self._cell.security_mode != "csp":
            return plain
        if self._tls is None:
            raise ConfigError([Fault("security_mode", "csp needs certificate, key and authority")])
        return wrapClientTLS(self._tls, plain)

    def connect(self, user: LinkUser) -> Deferred[Link]:
        """Connect and shake hands."""
        if self._cell.directory is not None:
            try:
                self._cell = read_cell(self._cell.directory, self._cell.port)
            except ConfigError as error:
                failed: Deferred[Link] = Deferred()
                failed.errback(DeniedError(str(error), 60.0))
                return failed
        protocol = QmasterProtocol(user, self, self._cell)
        connecting: Deferred[Any] = self._endpoint(self._cell.master_host, self._cell.port).connect(
            OneProtocol(protocol)
        )
        return connecting.addCallback(lambda _: protocol.ready)

    def describe(self) -> str:
        """For logs."""
        return f"gridengine://{self._cell.master_host}:{self._cell.port}"
