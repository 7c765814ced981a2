"""Everything that answers requests in one process, put together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.dedicated import Offices
from gridnet.dispatch.dispatcher import Dispatcher
from gridnet.dispatch.http_factory import SWEEP_SECONDS, HttpFactory
from gridnet.dispatch.relay import Relays
from gridnet.dispatch.routes import Router
from gridnet.dispatch.tally import Tally
from gridnet.dispatch.tls import ClientTls
from gridnet.dispatch.transport import LeanPort, lean_ports
from gridnet.dispatch.upstream import Place, UpstreamPool
from gridnet.lean import Watch
from gridnet.open_files import raise_file_limit
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import ServiceTable

#: How often a stopping front looks whether the last request is over, seconds.
_DRAIN_LOOK_SECONDS = 0.05
#: Open files beside connections: logs, the table's store, the listener.
_SPARE_FILES = 64


class Front:
    """
    The listening side of one process.

    :param office: where the site's own process takes what this worker cannot answer.
    :param for_workers: this is that process, and its clients are workers.
    :ivar factory: makes the protocols of the listener.
    """

    _log = Logger()

    def __init__(
        self,
        config: DispatchConfig,
        reactor: Any,
        table: ServiceTable,
        local_networks: AddressRanges,
        client_tls: ClientTls,
        address: str,
        ticket_office: Callable[[], Any],
        launcher: Callable[[], Any],
        office: Place | None = None,
        for_workers: bool = False,
        page: Callable[[str], Any] = lambda path: None,
    ) -> None:
        self.config = config
        self._reactor = reactor
        clock: Callable[[], float] = IReactorTime(reactor).seconds
        replies: Counter[tuple[str, int]] = Counter()
        self.dispatcher = Dispatcher(
            table,
            local_networks,
            random.Random(),
            own_addresses=frozenset([address]),
            cache_size=config.cached_answers,
            cache_servers=config.cached_servers,
        )
        self.watch = Watch(reactor)
        self.pool = UpstreamPool(config, reactor, client_tls, self.watch)
        self.relays = Relays(config, self.dispatcher, self.pool, replies, clock)
        offices = Offices(
            config,
            self.dispatcher,
            self.pool,
            replies,
            clock,
            reactor,
            address,
            ticket_office,
            launcher,
            page,
        )
        router = Router(config, self.dispatcher, self.relays, offices, clock, replies, office)
        prepare = router.prepare_handed_over if for_workers else router.prepare
        self.factory = HttpFactory(config, reactor, prepare)
        self.factory.replies = replies
        self._sweeping = LoopingCall(self._sweep)
        self._sweeping.clock = IReactorTime(reactor)

    def ports(self, shared: bool = False) -> type[LeanPort]:
        """
        The class of ports to listen with.

        :param shared: other processes accept from the same socket.
        """
        return lean_ports(self.watch, self.config.write_buffer_octets, shared)

    def start(self) -> None:
        """Begin to look at deadlines."""
        limit = raise_file_limit(2 * self.config.max_connections + _SPARE_FILES)
        if limit < self.config.max_connections + _SPARE_FILES:
            self._log.warn(
                "{limit} open files are fewer than {wanted} connections need",
                limit=limit,
                wanted=self.config.max_connections,
            )
        self._sweeping.start(SWEEP_SECONDS, now=False)

    def drain(self) -> Deferred[None]:
        """
        Close what is idle, let requests under way end, for ``drain_seconds`` at most.

        The listener must have been closed.
        """
        done: Deferred[None] = Deferred()
        deadline = self._reactor.seconds() + self.config.drain_seconds

        def look() -> None:
            self.factory.stop()
            if not self.factory.connections:
                self._ended()
                done.callback(None)
            elif self._reactor.seconds() >= deadline:
                self.factory.abort()
                # Aborted connections are lost one turn later.
                self._reactor.callLater(0, gone)
            else:
                self._reactor.callLater(_DRAIN_LOOK_SECONDS, look)

        def gone() -> None:
            self._ended()
            done.callback(None)

        look()
        return done

    def tally(self) -> Tally:
        """What has been done so far."""
        factory = self.factory
        return Tally(
            replies=Counter(factory.replies),
            refused=Counter(factory.refused),
            accepted=factory.accepted,
            octets_in=self.relays.octets_in,
            octets_out=self.relays.octets_out,
            open=factory.open,
            busy=factory.busy,
            relays=len(self.relays.active),
            idle_links=self.pool.idle_links,
            held_octets=factory.held_octets,
            cached_heads=len(factory.heads),
        )

    def _sweep(self) -> None:
        with self._log.failuresHandled("looking at deadlines"):
            self.factory.sweep()
            self.relays.sweep(self.factory.now)

    def _ended(self) -> None:
        if self._sweeping.running:
            self._sweeping.stop()
        self.pool.close()
