"""
Orders to other hosts: what somebody asks of a server goes to the daemon that publishes it.

Only that daemon knows who may ask, keeps what was asked and announces it to all.  The gossip of a
site carries orders (docs/protocols/gossip.rst, Orders); a daemon without gossip has no courier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gridnet.errors import GridnetError

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

#: Octets of the longest order, and of the longest answer to one.
MAX_ORDER_OCTETS = 900

#: Does what another host orders: gets the address of that host and the order, and says why it
#: refuses; empty: it is done.
OrderTaker = Callable[[str, str], str]


class OrderError(GridnetError):
    """An order is refused by its host, or cannot be delivered; whoever asked is told why."""


class OrderCourier(Protocol):
    """Takes orders to other hosts."""

    def send(self, host: str, order: str) -> Deferred[None]:
        """
        Have *order* done by the daemon of *host*.

        It is sent again until it is answered, and done once however often it arrives.

        :param host: address under which that daemon publishes (``owner`` of its entries).
        :param order: any text of at most :data:`MAX_ORDER_OCTETS`.
        :returns: fires once it is done there.
        :raises OrderError: (in the Deferred) refused, unknown host, or no answer in time.
        """

    def take_orders(self, taker: OrderTaker) -> None:
        """Let *taker* do what other hosts order of this one; before that they are refused."""
