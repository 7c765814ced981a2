"""
All connections of one listener together: who is let in, what they may take, which heads are known.

Nobody has a timer of his own: :meth:`HttpFactory.sweep` looks at every connection once a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.head import RequestHead, parse_request
from gridnet.dispatch.http import Exchange, HttpConnection, peer_address, plain_address
from gridnet.dispatch.tls import ServerTls

#: How often deadlines are looked at, seconds.
SWEEP_SECONDS = 1.0
#: Part of the idle connections that makes room when there are too many.
_EVICTED_PART = 0.05
#: Endpoints behind a proxy that says in the PROXY protocol who connects.
PROXY_ENDPOINT = "haproxy:"


class Prepared(Protocol):
    """One request head, ready to be answered as often as it comes."""

    head: RequestHead
    lone: bool  #: no body follows
    keep: bool  #: the connection stays open behind a reply at once

    def respond(self, connection: HttpConnection) -> bytes | Exchange:
        """The whole reply to this client, or what becomes of its request."""


class HeadCache:
    """
    Request heads as prepared, by their octets: at least the latest *size*, at most twice as many;
    fewer when they are long.

    Two generations instead of a chain of uses: a look-up in the young one costs one hash.

    :param max_octets: of the heads of one generation.  A head as prepared takes more room than on
        the wire, up to thirty times as much when it is made of short lines.
    """

    def __init__(
        self,
        prepare: Callable[[bytes], Prepared],
        size: int,
        longest_octets: int,
        max_octets: int,
    ) -> None:
        self._prepare = prepare
        self._size = size
        self._longest = longest_octets
        self._max_octets = max_octets
        self._octets = 0  # of the young generation
        self._old: dict[bytes, Prepared] = {}
        self.young: dict[bytes, Prepared] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, raw: bytes) -> Prepared:
        """
        The head *raw* as prepared, now or before.

        :raises HttpError: it is not to be answered.
        """
        found = self.young.get(raw)
        if found is None:
            found = self._old.get(raw)
            if found is None:
                found = self._prepare(raw)
            if len(raw) <= self._longest:
                self._keep(raw, found)
        return found

    def _keep(self, raw: bytes, prepared: Prepared) -> None:
        if len(self.young) >= self._size or self._octets + len(raw) > self._max_octets:
            self._old = self.young
            self.young = {}
            self._octets = 0
        self.young[raw] = prepared
        self._octets += len(raw)


class HttpFactory(Factory):
    """
    Makes the connections of one listener, and bounds what they may take together.

    :ivar now: a clock that moves with :meth:`sweep`, seconds.
    :ivar held_octets: of unfinished heads and waiting requests, of all connections.
    :ivar refused: reason -> how often.
    :ivar replies: (kind, status) -> how many.
    :ivar accepted: connections taken so far.
    :ivar open: connections there are.
    """

    noisy = False

    def __init__(
        self,
        config: DispatchConfig,
        reactor: Any,
        prepare: Callable[[RequestHead], Prepared],
        tls: ServerTls | None = None,
    ) -> None:
        self.config = config
        self.reactor = reactor
        self.tls = tls
        self.now: float = reactor.seconds()
        self.held_octets = 0
        self.refused: Counter[str] = Counter()
        self.replies: Counter[tuple[str, int]] = Counter()
        self.connections: set[HttpConnection] = set()
        self.accepted = 0
        self.open = 0
        self._leaving = 0  # of them, those already sent away
        self._per_address: Counter[str] = Counter()
        self._handshakes: dict[HttpConnection, None] = {}  # not done yet, longest first

        def parsed(raw: bytes) -> Prepared:
            return prepare(parse_request(raw, config.max_headers))

        self.heads = HeadCache(
            parsed, config.cached_heads, config.cached_head_octets, config.cached_octets
        )

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called by Twisted for each connection that it accepts itself."""
        connection = self.admit(peer_address(addr))
        if connection is not None and self.config.listen.startswith(PROXY_ENDPOINT):
            connection.introduce_later()
        return connection

    def admit(self, host: str) -> HttpConnection | None:
        """
        A connection for a client at *host*, IP address text, or None to turn it away.
        """
        address = plain_address(host)
        config = self.config
        if self.open - self._leaving >= config.max_connections and not self._make_room(None):
            self.refused["connections"] += 1
            return None
        if self._per_address[address] >= config.max_connections_per_address and (
            not self._make_room(address)
        ):
            self.refused["connections per address"] += 1
            return None
        self.accepted += 1
        return HttpConnection(self, address)

    def opened(self, connection: HttpConnection) -> None:
        """Called by a connection as it begins."""
        self.connections.add(connection)
        if not connection.secure:
            self.open += 1
            self._per_address[connection.counted_address] += 1

    def closed(self, connection: HttpConnection) -> None:
        """Called by a connection as it ends."""
        self.connections.discard(connection)
        if connection.secure:
            return
        self.handshake_over(connection)
        self.open -= 1
        if connection.evicted:
            self._leaving -= 1
        else:
            self._forget(connection.counted_address)

    def handshake_begun(self, connection: HttpConnection) -> None:
        """Called by a connection that puts TLS above itself: the costly part of its life."""
        self._handshakes[connection] = None
        if len(self._handshakes) > self.config.max_tls_handshakes:
            longest = next(iter(self._handshakes))
            self.handshake_over(longest)
            self.refused["tls handshake"] += 1
            longest.evict()

    def handshake_over(self, connection: HttpConnection) -> None:
        """Called when the handshake above *connection* is done, or will never be."""
        self._handshakes.pop(connection, None)

    def count(self, kind: str, status: int) -> None:
        """Count a reply."""
        self.replies[kind, status] += 1

    def sweep(self) -> None:
        """End what takes too long; called every :data:`SWEEP_SECONDS`."""
        self.now = now = self.reactor.seconds()
        for connection in tuple(self.connections):
            connection.sweep(now)

    @property
    def busy(self) -> int:
        """Requests under way."""
        return sum(1 for connection in self.connections if connection.busy)

    def stop(self) -> None:
        """Close what is idle; called again and again until nothing is open."""
        for connection in tuple(self.connections):
            connection.stop()

    def abort(self) -> None:
        """Cut off whatever is left."""
        for connection in tuple(self.connections):
            connection.evict()

    def _forget(self, address: str) -> None:
        left = self._per_address[address] - 1
        if left > 0:
            self._per_address[address] = left
        else:
            del self._per_address[address]

    def _make_room(self, address: str | None) -> bool:
        """
        Send away the longest idle connections (of *address*, or of anybody).

        Several at once: looking for them costs a walk through all.
        """
        idle = [
            connection
            for connection in self.connections
            if connection.idle
            and not connection.socket_side.evicted
            and (address is None or connection.counted_address == address)
        ]
        idle.sort(key=lambda connection: connection.touched)
        leaving = idle[: max(1, int(len(idle) * _EVICTED_PART))]
        for connection in leaving:
            side = connection.socket_side
            side.evicted = True
            self._leaving += 1
            self._forget(side.counted_address)
            self.refused["evicted"] += 1
            connection.evict()
        return bool(leaving)
