"""Tickets that many relays and dispatchers share, in a Redis server."""

from __future__ import annotations

import json
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from attrs import asdict
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import TicketError
from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.tickets import Passage, Ticket, draw_number
from gridnet.table.redis_store import RedisStore, RedisUnavailableError

#: How much the clocks of the hosts may differ.
SKEW_SECONDS = 2.0
#: How long a ticket outlives its time in Redis, for its issuer to find it unused.
_AFTERLIFE_SECONDS = 10.0
#: How far back revocations are looked for.
_REVOKED_SECONDS = 60.0
_EXPIRED_AT_ONCE = 500
#: One step, also before Redis 6.2 with its GETDEL.
_TAKE = "local v = redis.call('GET', KEYS[1]); redis.call('DEL', KEYS[1]); return v"


class RedisTickets:
    """
    A :class:`gridnet.firewall.office.TicketStore` in Redis.

    Whoever presents a ticket, wherever, takes it out, so that it works once.  Its issuer
    remembers it until its time is over, to find out whether anybody did.
    """

    _log = Logger()

    def __init__(self, config: FirewallConfig, redis: RedisStore, chance: random.Random) -> None:
        self._redis = redis
        self._chance = chance
        self._ttl = config.ticket_ttl_seconds
        self._max_waiting = config.max_waiting
        self._max_per_client = config.max_waiting_per_client
        self._issued: OrderedDict[int, Ticket] = OrderedDict()
        self._storing = 0
        self._per_client: Counter[str] = Counter()
        self._heard: OrderedDict[str, float] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Tickets of ours whose time is not over, those used elsewhere included."""
        return len(self._issued)

    def _key(self, number: int) -> str:
        return self._redis.key(f"ticket:{number:08x}")

    # -- issuing

    def issue(self, passage: Passage, now: float) -> Deferred[Ticket]:
        """See :class:`gridnet.firewall.office.TicketStore`."""
        issuing: Deferred[Ticket] = Deferred.fromCoroutine(self._issue(passage, now))
        return issuing

    async def _issue(self, passage: Passage, now: float) -> Ticket:
        client = passage.client
        if len(self._issued) + self._storing >= self._max_waiting:
            raise TicketError("Too many connections are waited for; try again later")
        if client and self._per_client[client] >= self._max_per_client:
            raise TicketError("Too many of your connections are waited for; use them first")
        # Those that are being stored count, or many at once would pass together.
        self._storing += 1
        self._per_client[client] += 1
        try:
            ticket = await self._store(passage, now)
        except BaseException as error:
            self._forget_client(client)
            if isinstance(error, RedisUnavailableError):
                self._log.error("no ticket issued, {reason}", reason=str(error))
                raise TicketError("No connection can be reserved now") from None
            raise
        finally:
            self._storing -= 1
        self._issued[ticket.number] = ticket
        return ticket

    async def _store(self, passage: Passage, now: float) -> Ticket:
        milliseconds = int((self._ttl + _AFTERLIFE_SECONDS) * 1000)
        while True:
            ticket = Ticket(draw_number(self._chance), passage, now + self._ttl)
            record = json.dumps({**asdict(passage), "expires_at": ticket.expires_at})
            stored = await self._redis.call(
                "SET", self._key(ticket.number), record, "NX", "PX", milliseconds
            )
            if stored:
                return ticket

    # -- redeeming

    def redeem(
        self,
        number: int,
        now: float,
        done: Callable[[Ticket | None], None],
        failed: Callable[[], None],
    ) -> None:
        """See :class:`gridnet.firewall.office.TicketStore`."""

        def taken(record: Any) -> None:
            self._forget(number)
            done(_ticket(number, record, now))

        def unavailable(failure: Failure) -> None:
            failure.trap(RedisUnavailableError)
            self._log.error("ticket not looked up, {reason}", reason=str(failure.value))
            failed()

        taking = self._redis.call("EVAL", _TAKE, 1, self._key(number))
        taking.addCallbacks(taken, unavailable)
        taking.addErrback(lambda failure: self._log.failure("ticket not looked up", failure))

    def _forget(self, number: int) -> Ticket | None:
        ticket = self._issued.pop(number, None)
        if ticket is not None:
            self._forget_client(ticket.passage.client)
        return ticket

    def _forget_client(self, client: str) -> None:
        self._per_client[client] -= 1
        if self._per_client[client] <= 0:
            del self._per_client[client]

    # -- the end

    def expire(self, now: float) -> Deferred[Sequence[Ticket]]:
        """See :class:`gridnet.firewall.office.TicketStore`."""
        expiring: Deferred[Sequence[Ticket]] = Deferred.fromCoroutine(self._expire(now))
        return expiring

    async def _expire(self, now: float) -> Sequence[Ticket]:
        due: list[Ticket] = []
        for ticket in self._issued.values():
            if ticket.expires_at + SKEW_SECONDS > now or len(due) >= _EXPIRED_AT_ONCE:
                break
            due.append(ticket)
        unused: list[Ticket] = []
        for ticket in due:
            record = None
            if now - ticket.expires_at < _AFTERLIFE_SECONDS:
                try:
                    record = await self._redis.call("EVAL", _TAKE, 1, self._key(ticket.number))
                except RedisUnavailableError as error:
                    self._log.warn("tickets not looked at, {reason}", reason=str(error))
                    break
            if self._forget(ticket.number) is not None and record is not None:
                unused.append(ticket)
        return unused

    def revoke(self, print_of: str) -> Deferred[bool]:
        """See :class:`gridnet.firewall.office.TicketStore`."""
        revoking: Deferred[bool] = Deferred.fromCoroutine(self._revoke(print_of))
        return revoking

    async def _revoke(self, print_of: str) -> bool:
        for ticket in list(self._issued.values()):
            if ticket.fingerprint == print_of:
                self._forget(ticket.number)
                return bool(await self._redis.call("DEL", self._key(ticket.number)))
        return False

    def tell_revoked(self, print_of: str, now: float) -> Deferred[None]:
        """See :class:`gridnet.firewall.office.TicketStore`."""
        telling: Deferred[None] = Deferred.fromCoroutine(self._tell_revoked(print_of, now))
        return telling

    async def _tell_revoked(self, print_of: str, now: float) -> None:
        key = self._redis.key("revoked")
        self._heard[print_of] = now
        await self._redis.call("ZADD", key, repr(now), print_of)
        await self._redis.call("EXPIRE", key, int(2 * _REVOKED_SECONDS))

    def hear_revoked(self, now: float) -> Deferred[Sequence[str]]:
        """See :class:`gridnet.firewall.office.TicketStore`."""
        hearing: Deferred[Sequence[str]] = Deferred.fromCoroutine(self._hear_revoked(now))
        return hearing

    async def _hear_revoked(self, now: float) -> Sequence[str]:
        key = self._redis.key("revoked")
        try:
            found = await self._redis.call(
                "ZRANGEBYSCORE", key, repr(now - _REVOKED_SECONDS), "+inf"
            )
        except RedisUnavailableError:
            return []  # said by whoever needs a ticket
        names = [name.decode("ascii", "replace") for name in found or ()]
        fresh = [name for name in names if name not in self._heard]
        self._heard.update(dict.fromkeys(fresh, now))
        while self._heard and next(iter(self._heard.values())) < now - 2 * _REVOKED_SECONDS:
            self._heard.popitem(last=False)
        return fresh


def _ticket(number: int, record: Any, now: float) -> Ticket | None:
    if record is None:
        return None
    try:
        values = json.loads(record)
        expires_at = float(values.pop("expires_at"))
        passage = Passage(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    ticket = Ticket(number, passage, expires_at)
    return ticket if now < expires_at + SKEW_SECONDS else None
