"""
What somebody has asked of the daemon, on its way to the host that owns the servers.

A penalty is kept by the daemon that configured the server (docs/protocols/lbsmd-config.rst,
Penalties); a daemon that is asked about servers of other hosts passes the order on.  Who asks is
established where they ask, by the credentials of their socket; what they may do is decided by the
owner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from attrs import evolve, frozen
from twisted.internet.defer import Deferred

from gridnet.lbsmd.feedback import FeedbackError, Request, format_argument, parse_argument

#: Octets of an order on its way to another host: it fits one datagram of any network.
MAX_ORDER_OCTETS = 900
#: Letters of the reason that somebody gives.
MAX_REASON_LETTERS = 200
#: Groups of the asker that travel with an order, if there is room.
MAX_GROUPS = 64


class RefusedError(FeedbackError):
    """The request is well-formed, but cannot or may not be met; whoever asks is told why."""


@frozen
class Asker:
    """Who asks, as the kernel and the user database of the host where they ask tell it."""

    user: str  #: login name; ``root`` for user id 0; the number of a user without a name
    groups: tuple[str, ...] = ()  #: names of the groups that the user is a member of
    host: str = ""  #: address of the host where they ask; empty: this one

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" if self.host else self.user


@frozen
class Order:
    """A request of somebody."""

    request: Request  #: with an address for a host when it goes to another host
    asker: Asker
    reason: str = ""  #: what the asker says it is for; one line


class FeedbackCarrier(Protocol):
    """Brings orders to other hosts of the site; gossip does."""

    def send_feedback(self, host_address: str, order: Order) -> Deferred[None]:
        """
        Have the daemon of another host carry out *order*.

        The other side calls :meth:`gridnet.lbsmd.penalties.Penalties.carry_out` with it.

        :param host_address: canonical address text of the owning host.
        :returns: fires once that daemon has carried it out.  Fails with :exc:`RefusedError`, whose
            text is the other daemon's, or tells that it cannot be reached.  Always within a
            bounded time.
        """


class NoCarrier:
    """Stands in where nothing connects this daemon with others."""

    def send_feedback(self, host_address: str, order: Order) -> Deferred[None]:
        """Refuse; see :class:`FeedbackCarrier`."""
        raise RefusedError(
            f"{host_address} owns the server, and this daemon has no way to other hosts"
        )


def encode_order(order: Order) -> bytes:
    """
    *order* for another host: at most :data:`MAX_ORDER_OCTETS` octets of JSON.

    Groups of somebody in very many, and the end of a long reason, are left behind if need be.

    :raises FeedbackError: it is longer all the same.
    """
    asker = order.asker
    groups, reason = list(asker.groups[:MAX_GROUPS]), order.reason
    while True:
        members = {
            "request": format_argument(order.request),
            "user": asker.user,
            "groups": groups,
            "host": asker.host,
            "reason": reason,
        }
        octets = json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "replace"
        )
        if len(octets) <= MAX_ORDER_OCTETS:
            return octets
        if reason:
            reason = reason[: len(reason) // 2]
        elif groups:
            groups = groups[: len(groups) // 2]
        else:
            raise FeedbackError("the request is too long for another host")


def decode_order(octets: bytes) -> Order:
    """
    Read what :func:`encode_order` wrote.

    :raises FeedbackError: with what was found and expected.
    """
    if len(octets) > MAX_ORDER_OCTETS:
        raise FeedbackError(
            f"an order of {len(octets)} octets; expected {MAX_ORDER_OCTETS} or less"
        )
    try:
        members = json.loads(octets.decode("utf-8"))
    except (ValueError, RecursionError):
        raise FeedbackError("an order that is no JSON") from None
    if not isinstance(members, dict):
        raise FeedbackError("an order that is no JSON object")
    groups = members.get("groups")
    if not isinstance(groups, list) or len(groups) > MAX_GROUPS:
        raise FeedbackError(f"an order without groups; expected a list of at most {MAX_GROUPS}")
    names = tuple(name for name in groups if isinstance(name, str))
    if len(names) != len(groups):
        raise FeedbackError("an order with a group that is no text")
    return Order(
        parse_argument(_text(members, "request")),
        Asker(_text(members, "user"), names, _text(members, "host")),
        one_line(_text(members, "reason")),
    )


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise FeedbackError(f"an order without {name}; expected a text")
    return value


def one_line(reason: str) -> str:
    """*reason* as it is kept: one line of printable letters, not too long."""
    words = "".join(each if each.isprintable() else " " for each in reason).split()
    return " ".join(words)[:MAX_REASON_LETTERS]


def at_host(request: Request, address: str) -> Request:
    """*request* for servers at *address*."""
    return evolve(request, target=evolve(request.target, host=address))
