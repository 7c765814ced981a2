"""
Orders to one host: acknowledged, sent again until they are, done once (docs/protocols/gossip.rst).

Without I/O or clock, as the membership is.  What an order says is for those who give and take it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import inf
from random import Random

from attrs import define, frozen

from gridnet.errors import LocalProtocolError
from gridnet.lbsmd.gossip.messages import Address, Order, Receipt

#: Octets of the longest order.
MAX_ORDER_OCTETS = 4096
_MAX_REFUSAL_LETTERS = 300


@frozen
class OrderBounds:
    """Times in seconds, and bounds."""

    seconds: float = 10.0  #: until an order without an answer has failed
    retry_seconds: float = 0.3  #: to the second sending; each next one waits twice as long
    max_retry_seconds: float = 1.0  #: but no longer
    remembered_seconds: float = 60.0  #: an answer is kept so long, for the same order again
    max_waiting: int = 1000  #: orders of ours that wait for an answer
    max_remembered: int = 10_000  #: answers of ours


@frozen
class Settled:
    """An order of ours has come to its end."""

    number: int
    refusal: str | None  #: empty: done; None: no answer in time


@define
class _Waiting:
    order: Order
    fails_at: float
    due_at: float
    wait: float


@frozen
class Arrived:
    """An order to this host, to be carried out once and then answered."""

    sender: str
    number: int
    text: bytes


@define
class _Taken:
    at: float
    source: Address
    receipt: Receipt | None = None  #: None: not yet


class OrderBook:
    """
    Orders that this host has given, and those it has taken.

    :param address_of: where a host can be reached; None: it is not known, or is down.
    """

    def __init__(
        self,
        me: str,
        bounds: OrderBounds,
        random: Random,
        address_of: Callable[[str], Address | None],
    ) -> None:
        self._me = me
        self._bounds = bounds
        self._random = random
        self._address_of = address_of
        self._waiting: dict[int, _Waiting] = {}
        self._taken: OrderedDict[tuple[str, int], _Taken] = OrderedDict()
        self._arrived: list[Arrived] = []
        self._outgoing: list[tuple[Address, Order | Receipt]] = []
        self._settled: list[Settled] = []

    def give(self, now: float, target: str, text: bytes) -> int:
        """
        Have *target* do what *text* says.

        :returns: the number that its :class:`Settled` will have.
        :raises LocalProtocolError: it is too long, the host is not known or down, or too many wait.
        """
        if len(text) > MAX_ORDER_OCTETS:
            raise LocalProtocolError(f"an order of {len(text)} octets; at most {MAX_ORDER_OCTETS}")
        if self._address_of(target) is None:
            raise LocalProtocolError(f"{target}: no daemon is known there, or it is down")
        if len(self._waiting) >= self._bounds.max_waiting:
            raise LocalProtocolError(f"{len(self._waiting)} orders wait for an answer already")
        order = Order(self._random.getrandbits(64), target, text)
        fails_at = now + self._bounds.seconds
        self._waiting[order.number] = _Waiting(order, fails_at, now, self._bounds.retry_seconds)
        self.tick(now)
        return order.number

    def receive(self, now: float, source: Address, sender: str, message: Order | Receipt) -> None:
        """Take what *sender* said, from *source*."""
        if isinstance(message, Receipt):
            waiting = self._waiting.get(message.number)
            if waiting is not None and waiting.order.target == sender:
                del self._waiting[message.number]
                self._settled.append(Settled(message.number, message.refusal))
            return
        if message.target != self._me:
            return
        self._forget(now)
        known = self._taken.get((sender, message.number))
        if known is not None:
            known.source = source
            if known.receipt is not None:
                self._outgoing.append((source, known.receipt))
            return
        if len(self._taken) >= self._bounds.max_remembered:
            # Not taken, and nothing forgotten for it: the sender asks again.
            return
        self._taken[sender, message.number] = _Taken(now, source)
        self._arrived.append(Arrived(sender, message.number, message.text))

    def answer(self, arrived: Arrived, refusal: str) -> None:
        """
        The order *arrived* has been carried out.

        :param refusal: why it was not; empty: it was.
        """
        taken = self._taken.get((arrived.sender, arrived.number))
        if taken is not None and taken.receipt is None:
            taken.receipt = Receipt(arrived.number, refusal[:_MAX_REFUSAL_LETTERS])
            self._outgoing.append((taken.source, taken.receipt))

    def next_time(self) -> float:
        """When :meth:`tick` is due; infinity: not before another order."""
        return min(
            (min(each.due_at, each.fails_at) for each in self._waiting.values()), default=inf
        )

    def tick(self, now: float) -> None:
        """Send again what is due, and give up what has waited long enough."""
        for number, waiting in list(self._waiting.items()):
            if waiting.fails_at <= now:
                del self._waiting[number]
                self._settled.append(Settled(number, None))
            elif waiting.due_at <= now:
                address = self._address_of(waiting.order.target)
                if address is not None:
                    self._outgoing.append((address, waiting.order))
                waiting.due_at = now + waiting.wait
                waiting.wait = min(waiting.wait * 2, self._bounds.max_retry_seconds)

    def take_outgoing(self) -> Sequence[tuple[Address, Order | Receipt]]:
        """What to send, once each."""
        taken, self._outgoing = self._outgoing, []
        return taken

    def take_arrived(self) -> Sequence[Arrived]:
        """Orders to carry out, once each."""
        taken, self._arrived = self._arrived, []
        return taken

    def take_settled(self) -> Sequence[Settled]:
        """Orders of ours that have come to their end, once each."""
        taken, self._settled = self._settled, []
        return taken

    def _forget(self, now: float) -> None:
        oldest = now - self._bounds.remembered_seconds
        while self._taken:
            key, taken = next(iter(self._taken.items()))
            if taken.at > oldest:
                return
            del self._taken[key]
