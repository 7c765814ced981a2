"""Tickets: issued once, good for one connection within a short time."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2s

from attrs import evolve, frozen

from gridnet.errors import TicketError
from gridnet.firewall.wire import can_be_ticket


@frozen
class Passage:
    """What a ticket is good for: one connection to one server."""

    service: str  #: service name as in the table
    host: str  #: IP address text of the server
    port: int  #: 1..65535
    client: str  #: IP address text of whoever asked; empty: unknown
    server_ticket: int = 0  #: sent to the server first, when not 0


@frozen
class Ticket:
    """A number, what it is good for, and until when."""

    number: int  #: 32 bits, never 0
    passage: Passage
    expires_at: float  #: seconds since the epoch

    @property
    def fingerprint(self) -> str:
        """A name for it that may be shown and logged, since it does not give the number away."""
        return fingerprint(self.number, self.expires_at)


def fingerprint(number: int, salt: float) -> str:
    """
    Twelve digits that stand for *number*.

    Salted with the moment of its end, so that a table of all 2**32 numbers is no use.
    """
    text = f"{number:08x} {salt!r}".encode("ascii")
    return blake2s(text, digest_size=6).hexdigest()


def draw_number(chance: random.Random) -> int:
    """A number that may be a ticket; *chance* must be beyond guessing (``SystemRandom``)."""
    while True:
        number = chance.getrandbits(32)
        if can_be_ticket(number):
            return number


class TicketBook:
    """
    The tickets of one process that nobody has presented yet.

    All live equally long, so they expire in the order of their issue.

    :param ttl_seconds: how long a ticket is good.
    :param max_waiting: tickets at once.
    :param max_waiting_per_client: tickets at once of one client.
    """

    def __init__(
        self,
        chance: random.Random,
        ttl_seconds: float,
        max_waiting: int,
        max_waiting_per_client: int,
    ) -> None:
        self._chance = chance
        self._ttl = ttl_seconds
        self._max_waiting = max_waiting
        self._max_per_client = max_waiting_per_client
        self._tickets: OrderedDict[int, Ticket] = OrderedDict()
        self._per_client: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(self, passage: Passage, now: float) -> Ticket:
        """
        A new ticket for *passage*.

        :param now: seconds since the epoch.
        :raises TicketError: too many wait already, in all or of this client.
        """
        if len(self._tickets) >= self._max_waiting:
            raise TicketError("Too many connections are waited for; try again later")
        if passage.client and self._per_client[passage.client] >= self._max_per_client:
            raise TicketError("Too many of your connections are waited for; use them first")
        number = draw_number(self._chance)
        while number in self._tickets:
            number = draw_number(self._chance)
        ticket = Ticket(number, passage, now + self._ttl)
        self._tickets[number] = ticket
        self._per_client[passage.client] += 1
        return ticket

    def redeem(self, number: int, now: float) -> Ticket | None:
        """The ticket *number*, which is gone then; None: there is none, or not any more."""
        ticket = self._tickets.get(number)
        if ticket is None or ticket.expires_at <= now:
            return None
        self._forget(ticket)
        return ticket

    def revoke(self, print_of: str) -> bool:
        """Make the ticket with that fingerprint worthless; False: there is none."""
        for ticket in self._tickets.values():
            if ticket.fingerprint == print_of:
                self._forget(ticket)
                return True
        return False

    def expire(self, now: float) -> Sequence[Ticket]:
        """Remove the tickets that nobody presented in time, and tell which they were."""
        unused: list[Ticket] = []
        while self._tickets:
            ticket = next(iter(self._tickets.values()))
            if ticket.expires_at > now:
                break
            self._forget(ticket)
            unused.append(ticket)
        return unused

    def live(self) -> Sequence[Ticket]:
        """All that wait, oldest first."""
        return list(self._tickets.values())

    def _forget(self, ticket: Ticket) -> None:
        del self._tickets[ticket.number]
        client = ticket.passage.client
        self._per_client[client] -= 1
        if self._per_client[client] <= 0:
            del self._per_client[client]


@frozen
class _Tally:
    """Offences of one client within one window."""

    since: float
    count: int


class Offences:
    """
    Counts what clients do wrong, until it is too much.

    :param limit: so many within the window are too much.
    :param window_seconds: how long one counts.
    :param max_clients: clients to remember; the one quiet for longest is forgotten first.
    """

    def __init__(self, limit: int, window_seconds: float, max_clients: int) -> None:
        self._limit = limit
        self._window = window_seconds
        self._max_clients = max_clients
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tallies)

    def note(self, client: str, now: float) -> int:
        """
        One more offence of *client*.

        :returns: 0, or the number of offences when they are now too many (which settles them).
        """
        tally = self._tallies.pop(client, None)
        if tally is None or tally.since + self._window <= now:
            tally = _Tally(now, 0)
        tally = evolve(tally, count=tally.count + 1)
        if tally.count >= self._limit:
            return tally.count
        self._tallies[client] = tally
        if len(self._tallies) > self._max_clients:
            self._tallies.popitem(last=False)
        return 0


def block_of(address: str) -> str:
    """
    Whom *address* belongs to, for counting: itself, or for IPv6 its network of 64 bits.

    One customer has 2**64 addresses of a /64 at will.
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
