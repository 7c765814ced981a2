"""
The ticket office: who gets a ticket for what, and what a ticket is worth when it is presented.

It knows no sockets.  Dispatchers of the same process call it; those of other hosts ask by
control record, which ends in the same calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

from gridnet.errors import PassageRefusedError, TicketError
from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.penalty_file import Penalties
from gridnet.firewall.policy import verdict
from gridnet.firewall.ports import PortSets
from gridnet.firewall.tickets import Passage, Ticket, TicketBook
from gridnet.firewall.wire import ControlFlag, ControlReply, ControlRequest, RejectCode
from gridnet.interfaces import IPenaltyBox, ITicketOffice
from gridnet.table.address import UNKNOWN_ADDRESS
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import Entry, ServiceTable
from gridnet.table.selection import (
    LOCAL_BONUS_TABLE,
    Candidate,
    draw_order,
    is_down,
    is_suppressed,
    status,
)
from gridnet.table.server_info import ServerInfo, ServerType
from gridnet.table.visibility import is_visible
from gridnet.table.way_in import ConnectionPoint, WayInRequest

THIS_HOST = "0.0.0.0"


class TicketStore(Protocol):
    """Where the tickets are: in this process, or shared by many."""

    @property
    def waiting(self) -> int:
        """Tickets of ours that nobody has presented yet."""

    def issue(self, passage: Passage, now: float) -> Deferred[Ticket]:
        """
        A new ticket.

        :raises TicketError: (in the Deferred) there can be none now.
        """

    def redeem(
        self,
        number: int,
        now: float,
        done: Callable[[Ticket | None], None],
        failed: Callable[[], None],
    ) -> None:
        """
        Call *done*, at once or soon, with the ticket, which is gone then, or with None.

        :param failed: called instead when that cannot be found out.
        """

    def expire(self, now: float) -> Deferred[Sequence[Ticket]]:
        """Our tickets that nobody presented in time, each once."""

    def revoke(self, print_of: str) -> Deferred[bool]:
        """Make the ticket with that fingerprint worthless; False: there is none."""

    def tell_revoked(self, print_of: str, now: float) -> Deferred[None]:
        """Have other relays end what has that fingerprint, if they share our tickets."""

    def hear_revoked(self, now: float) -> Deferred[Sequence[str]]:
        """Fingerprints that other relays have revoked since the last call."""


class MemoryTickets:
    """The tickets of one process."""

    def __init__(self, config: FirewallConfig, chance: random.Random) -> None:
        self._book = TicketBook(
            chance, config.ticket_ttl_seconds, config.max_waiting, config.max_waiting_per_client
        )

    @property
    def waiting(self) -> int:
        """See :class:`TicketStore`."""
        return len(self._book)

    def issue(self, passage: Passage, now: float) -> Deferred[Ticket]:
        """See :class:`TicketStore`."""
        try:
            return succeed(self._book.issue(passage, now))
        except TicketError as error:
            return fail(error)

    def redeem(
        self,
        number: int,
        now: float,
        done: Callable[[Ticket | None], None],
        failed: Callable[[], None],
    ) -> None:
        """See :class:`TicketStore`."""
        done(self._book.redeem(number, now))

    def expire(self, now: float) -> Deferred[Sequence[Ticket]]:
        """See :class:`TicketStore`."""
        return succeed(self._book.expire(now))

    def revoke(self, print_of: str) -> Deferred[bool]:
        """See :class:`TicketStore`."""
        return succeed(self._book.revoke(print_of))

    def tell_revoked(self, print_of: str, now: float) -> Deferred[None]:
        """See :class:`TicketStore`: nobody shares them."""
        return succeed(None)

    def hear_revoked(self, now: float) -> Deferred[Sequence[str]]:
        """See :class:`TicketStore`: nobody shares them."""
        return succeed([])


class ControlRefusedError(TicketError):
    """
    A control request is refused.

    :ivar code: what the asker is told.
    """

    def __init__(self, code: RejectCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@define
class Tally:
    """What the office has done so far."""

    issued: int = 0
    redeemed: int = 0
    invalid: int = 0  #: presented, but no tickets
    unheard: int = 0  #: presented by those in the penalty box
    unused: int = 0  #: never presented
    refused: int = 0  #: requests


@frozen
class _Wish:
    """Who wants to go where, as the rules judge it."""

    service: str
    client: str
    host: str
    port: int
    offered: bool


@implementer(ITicketOffice, IPenaltyBox)
@frozen
class TicketOffice:
    """
    Issues and redeems tickets.

    :ivar address: IPv4 address text that clients are sent to.
    :ivar own_address: address of this host in the table.
    :ivar chance: for the choice of servers; tickets are drawn by the store.
    """

    _log = Logger()

    config: FirewallConfig
    table: ServiceTable
    local_networks: AddressRanges
    ports: PortSets
    address: str
    own_address: str
    store: TicketStore
    penalties: Penalties
    clock: Callable[[], float]
    chance: random.Random
    tally: Tally = field(factory=Tally)

    # -- issuing

    def reserve(self, request: WayInRequest) -> Deferred[ConnectionPoint]:
        """See :class:`gridnet.interfaces.ITicketOffice`."""
        server, launched = request.server, request.launched
        host, port = (
            (launched.host, launched.port) if launched is not None else (server.host, server.port)
        )
        wish = _Wish(
            request.service,
            request.client,
            host or self.own_address,
            port,
            self._is_offered(request.service, request.client, server.host, server.port),
        )
        at = self.ports.choose(request)
        if at is None:
            return fail(TicketError("No port of the relay is open to you"))
        server_ticket = launched.ticket if launched is not None else request.server_ticket
        secure = launched.secure if launched is not None else server.secure
        issuing = self._issue(wish, server_ticket)
        return issuing.addCallback(
            lambda ticket: ConnectionPoint(self.address, at, ticket.number, secure)
        )

    def _issue(self, wish: _Wish, server_ticket: int) -> Deferred[Ticket]:
        now = self.clock()
        try:
            self._judge(wish)
        except TicketError as error:
            self.tally.refused += 1
            return fail(error)
        passage = Passage(wish.service, wish.host, wish.port, wish.client, server_ticket)

        def issued(ticket: Ticket) -> Ticket:
            self.tally.issued += 1
            return ticket

        return self.store.issue(passage, now).addCallback(issued)

    def _judge(self, wish: _Wish) -> None:
        """
        Refuse *wish*, or not.

        :raises PassageRefusedError: the penalty box or the rules say so.
        """
        refusal = self.refusal(wish.client)
        if refusal:
            raise PassageRefusedError(refusal)
        reason = verdict(
            self.config.rules, wish.client, wish.service, wish.host, wish.port, wish.offered
        )
        if reason:
            raise PassageRefusedError(reason)

    def _is_offered(self, service: str, client: str, host: str, port: int) -> bool:
        """Whether the table offers the server at *host*:*port* to *client*."""
        inside = self.local_networks.contains(client)
        return any(
            entry.info.port == port
            and (entry.info.host or entry.owner) == host
            and entry.info.type is not ServerType.DNS
            and is_visible(entry.info, client, inside)
            for entry in self.table.entries(service)
        )

    # -- control records

    def answer(self, request: ControlRequest, peer: str) -> Deferred[ControlReply]:
        """
        Reserve what *request* of the trusted *peer* asks for.

        :raises ControlRefusedError: (in the Deferred) it cannot be.
        """
        try:
            wish, info = self._understand(request, peer)
        except ControlRefusedError as error:
            return fail(error)
        firewall = bool(request.flags & ControlFlag.FIREWALL)
        at = self.ports.choose(
            WayInRequest(wish.service, info, wish.client, firewall_mode=firewall)
        )
        if at is None:
            return fail(ControlRefusedError(RejectCode.USE_DIRECT, "no port is open"))
        issuing: Deferred[Ticket] = self._issue(wish, request.server_ticket)

        def refused(failure: object) -> None:
            error = getattr(failure, "value", None)
            raise ControlRefusedError(RejectCode.REFUSED, str(error)) from None

        issuing.addErrback(refused)
        return issuing.addCallback(
            lambda ticket: ControlReply(
                self.address, at, ticket.number, ControlFlag.FIREWALL, self.address
            )
        )

    def passage(self, request: ControlRequest, peer: str) -> Passage:
        """
        Where *request*, which wants to go on in the same connection, leads.

        :raises ControlRefusedError: nowhere.
        """
        wish, _ = self._understand(request, peer)
        try:
            self._judge(wish)
        except TicketError as error:
            self.tally.refused += 1
            raise ControlRefusedError(RejectCode.REFUSED, str(error)) from None
        return Passage(wish.service, wish.host, wish.port, wish.client, request.server_ticket)

    def _understand(self, request: ControlRequest, peer: str) -> tuple[_Wish, ServerInfo]:
        origin = request.origin
        client = {THIS_HOST: peer, UNKNOWN_ADDRESS: ""}.get(origin, origin)
        host = self.own_address if request.host == THIS_HOST else request.host
        service = request.service
        if request.port:
            info = ServerInfo(ServerType.STANDALONE, host, request.port)
            offered = bool(service) and (
                self._is_offered(service, client, host, request.port)
                or (request.server_ticket != 0 and self._launches(service, host))
            )
            return _Wish(service, client, host, request.port, offered), info
        if not service:
            raise ControlRefusedError(RejectCode.BAD_REQUEST, "neither a port nor a service")
        entry = self._choose(service, client)
        if entry is None:
            raise ControlRefusedError(RejectCode.NOT_FOUND, "no such service")
        info = entry.info
        place = info.host or entry.owner or self.own_address
        return _Wish(service, client, place, info.port, True), info

    def _launches(self, service: str, host: str) -> bool:
        """Whether *host* runs programs of *service*, each on a port of its own."""
        return any(
            entry.info.type is ServerType.NCBID and (entry.info.host or entry.owner) == host
            for entry in self.table.entries(service)
        )

    def _choose(self, service: str, client: str) -> Entry | None:
        """One server of *service* that takes connections."""
        inside = self.local_networks.contains(client)
        rated = [
            (entry, status(entry, self.table.host(entry.info.host)))
            for entry in self.table.entries(service)
            if entry.info.type is ServerType.STANDALONE
            and is_visible(entry.info, client, inside)
            and not (is_down(entry) or is_suppressed(entry) or entry.reserved)
        ]
        entries = [entry for entry, value in rated if value > 0]
        candidates = [Candidate(value, entry.info.bonus) for entry, value in rated if value > 0]
        order = draw_order(entries, candidates, 1, 0.0, LOCAL_BONUS_TABLE, self.chance)
        return order[0] if order else None

    # -- gridnet.interfaces.IPenaltyBox

    def note_unused(self, client: str, service: str) -> None:
        """See :class:`gridnet.interfaces.IPenaltyBox`."""
        if client and (self.config.penalize_inside or not self.local_networks.contains(client)):
            self.penalties.note_unused(client, self.clock(), service)

    def refusal(self, client: str) -> str:
        """See :class:`gridnet.interfaces.IPenaltyBox`."""
        now = self.clock()
        penalty = self.penalties.refused(client, now)
        if penalty is None:
            return ""
        return f"{penalty.reason.text}; refused for {round(penalty.until - now + 0.5)} s more"

    # -- redeeming

    def redeem(self, number: int, peer: str, done: Callable[[Ticket | None], None]) -> None:
        """
        Find out what ticket *number*, presented by *peer*, is worth.

        :param done: called at once or soon, with None when it is worth nothing.
        """
        now = self.clock()
        if self.penalties.refused(peer, now) is not None:
            self.tally.unheard += 1
            done(None)
            return

        def found(ticket: Ticket | None) -> None:
            if ticket is None or (self.config.bind_client and ticket.passage.client != peer):
                self.tally.invalid += 1
                self.penalties.note_guess(peer, now)
                done(None)
                return
            passage = ticket.passage
            if self.config.rules and verdict(
                self.config.rules, peer, passage.service, passage.host, passage.port, True
            ):
                self.tally.refused += 1
                done(None)
                return
            self.tally.redeemed += 1
            done(ticket)

        self.store.redeem(number, now, found, lambda: done(None))

    def expire(self) -> Deferred[None]:
        """Notice the tickets that nobody presented, and who asked for them."""
        now = self.clock()

        def note(unused: Sequence[Ticket]) -> None:
            self.tally.unused += len(unused)
            for ticket in unused:
                self.note_unused(ticket.passage.client, ticket.passage.service)

        return self.store.expire(now).addCallback(note)
