"""The LB proxy as a service."""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from twisted.application.service import IService, Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet import garbage
from gridnet.interfaces import IJobEvents, IObjectSource
from gridnet.lbproxy.book import JobBook
from gridnet.lbproxy.config import LbproxyConfig
from gridnet.lbproxy.connections import BoundedFactory, Budget, let_in, listen_unix, take_over
from gridnet.lbproxy.forward import Forwarder, check_endpoints
from gridnet.lbproxy.job_list import JobSource
from gridnet.lbproxy.ledger import LedgerRules
from gridnet.lbproxy.log import JobEvents
from gridnet.lbproxy.paths import Side, socket_path
from gridnet.lbproxy.purging import Purger
from gridnet.lbproxy.serve_socket import ServeFactory
from gridnet.lbproxy.store import StoreFile
from gridnet.lbproxy.store_socket import Identities, StoreFactory
from gridnet.lean import Watch
from gridnet.lean_loop import Loop
from gridnet.listener import listener
from gridnet.open_files import raise_file_limit
from gridnet.site import Site

#: Open files beside connections: the store, logs, forwarding.
_SPARE_FILES = 400
#: How long connections may take to get their last replies when the service stops.
STOP_SECONDS = 2.0


def make_lbproxy(config: LbproxyConfig, site: Site) -> IService:
    """
    The LB proxy of *site*.

    :raises ConfigError: paths or identities cannot be used.
    """
    return IService(LbproxyService(config, site, os.environ))


def rules_of(config: LbproxyConfig) -> LedgerRules:
    """What *config* says about keeping and forwarding."""
    forward = config.forward
    return LedgerRules(
        host=socket.getfqdn(),
        keep_seconds=config.keep_by_state(),
        stream_keep_seconds=config.stream.keep_seconds,
        forwards=forward.mode != "none" and config.role == "proxy",
        local_servers=frozenset(name.lower() for name in forward.local_servers),
        max_spooled=forward.max_spooled,
        drops_when_full=forward.when_full == "keep",
        max_subjobs=config.max_subjobs,
        cache_octets=config.cache_octets,
    )


def shown_address(address: Any) -> str:
    """Where a further listener is: ``host:port``, or a path."""
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name or b"")
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


class LbproxyService(Service):
    """
    Two sockets over one store.

    :ivar book: the store.
    """

    _log = Logger()

    def __init__(self, config: LbproxyConfig, site: Site, environment: Mapping[str, str]) -> None:
        self._config = config
        self._reactor = reactor = site.reactor
        self.paths = {
            Side.STORE: socket_path(Side.STORE, config.store_socket, environment),
            Side.SERVE: socket_path(Side.SERVE, config.serve_socket, environment),
        }
        self._site = site
        store = StoreFile(
            site.config.path(Path(site.section.state_dir) / config.store),
            config.busy_seconds,
            config.check_at_start,
            reactor.seconds,
        )
        identities = Identities.from_config(config.identities) if config.check_identity else None
        self._rules = rules_of(config)
        self.book = JobBook(config, self._rules, store, reactor)
        budget = Budget(config.max_buffered_octets)
        dumps = site.config.path(Path(site.section.state_dir) / config.purge.dump_directory)
        self._purger = Purger(self.book, dumps, reactor)
        writer, backlog = self.book.writer, self.book.backlog
        #: of the UNIX socket, whose connections live in the writing thread
        self._store_factory = StoreFactory(
            config, reactor, budget, identities, take=writer.take, backlog=backlog
        )
        self._store_factory.run = writer.loop.call
        #: of ``store_endpoint``
        self._further_store_factory = StoreFactory(
            config, reactor, budget, identities, take=self.book.submit, backlog=backlog
        )
        self._serve_factory = ServeFactory(self.book, self._purger, reactor, budget)
        self.book.on_room = self._make_room
        self._forwarder: Forwarder | None = None
        if self._rules.forwards:
            if config.forward.mode == "deliver":
                check_endpoints(config.forward, reactor)
            self._forwarder = Forwarder(self.book, config.forward, reactor, random.Random())
        self._sweep = LoopingCall(self._sweep_once)
        self._sweep.clock = reactor
        self._ports: list[Any] = []
        further = {
            "store": (config.store_endpoint, self._further_store_factory),
            "serve": (config.serve_endpoint, self._serve_factory),
        }
        self._listeners = {
            side: listener(endpoint, factory, reactor, f"lbproxy.{side}_endpoint")
            for side, (endpoint, factory) in further.items()
            if endpoint
        }
        self._watch = Watch(reactor)
        self._ready: Deferred[None] = Deferred()
        site.starting(self._ready)
        site.provide(IJobEvents, JobEvents(self.book))
        jobs = JobSource(self.book, config.max_listed_jobs)
        site.provide(IObjectSource, jobs, jobs.object_type)
        site.status.facts["lbproxy"] = self.facts
        site.status.checks["lbproxy"] = self.check
        site.status.metrics.register(self)

    # -- start and stop ---------------------------------------------------------------------------

    def startService(self) -> None:
        """
        Open the store and the sockets (called by Twisted).

        :raises ConfigError: the store or a path cannot be used; the process ends.
        """
        super().startService()
        garbage.search_seldom()
        _ = self._site.state_dir  # made, and closed to others
        wanted = 2 * self._config.max_connections + _SPARE_FILES
        allowed = raise_file_limit(wanted)
        if allowed < wanted:
            self._log.warn(
                "only {allowed} files may be open, {wanted} are wanted for max_connections",
                allowed=allowed,
                wanted=wanted,
            )
        try:
            for side, path in self.paths.items():
                take_over(path, f"lbproxy.{side.name.lower()}_socket")
            self.book.start()
            try:
                self._listen()
            except BaseException:
                self.book.abandon()
                raise
        except BaseException:  # it ends the process: nobody waits to be ready any more
            for port in self._ports:
                port.stopListening()
            for one in self._listeners.values():
                one.stopService()
            raise
        self._sweep.start(self._config.sweep_seconds, now=False)
        if self._forwarder is not None:
            self._forwarder.start()
        bound = [one.listening for one in self._listeners.values()]
        gatherResults(bound, consumeErrors=True).addCallbacks(self._started, self._not_started)

    def _listen(self) -> None:
        config = self._config
        for one in self._listeners.values():
            one.startService()
        places: tuple[tuple[Side, BoundedFactory, Watch | Loop], ...] = (
            (Side.STORE, self._store_factory, self.book.writer.loop),
            (Side.SERVE, self._serve_factory, self._watch),
        )
        for side, factory, watch in places:
            self._ports.append(
                listen_unix(
                    self._reactor,
                    self.paths[side],
                    factory,
                    backlog=config.backlog,
                    what=f"lbproxy.{side.name.lower()}_socket",
                    watch=watch,
                )
            )
            let_in(self.paths[side], config.socket_mode, config.socket_group)

    def _started(self, bound: list[Any]) -> None:
        addresses: dict[str, str] = {
            "store": self.paths[Side.STORE],
            "serve": self.paths[Side.SERVE],
        }
        for name, address in zip(self._listeners, bound, strict=True):
            addresses[f"{name}_address"] = shown_address(address)
        self._site.announce("lbproxy", addresses)
        self._log.info(
            "events at {store}, queries at {serve}",
            store=addresses["store"],
            serve=addresses["serve"],
        )
        self._ready.callback(None)

    def _not_started(self, failure: Failure) -> None:
        self._log.failure("a further listener cannot be bound", failure)
        self._ready.errback(failure)

    def stopService(self) -> Deferred[None]:
        """Accept nothing more, answer what waits, close the store (called by Twisted)."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._sweep.running:
            self._sweep.stop()
        ports, self._ports = self._ports, []
        ending = [maybeDeferred(port.stopListening) for port in ports]
        ending += [one.stopService() for one in self._listeners.values()]
        await gatherResults(ending)
        if self._forwarder is not None:
            await self._forwarder.stop()
        self._purger.stop()
        # The writing thread's own connections go with it.
        self._store_factory.end_all()
        await self._until_gone(self._store_factory)
        await self.book.stop()
        # Every reply is with its connection now; those that do not take it do not hold us up.
        others = self._further_store_factory, self._serve_factory
        for factory in others:
            factory.stopFactory()
            factory.end_all()
        await self._until_gone(*others)

    async def _until_gone(self, *factories: BoundedFactory) -> None:
        """Wait for the ends of connections, and end those that take too long."""
        waited = 0.0
        while any(factory.connections for factory in factories) and waited < STOP_SECONDS:
            await _pause(self._reactor, 0.02)
            waited += 0.02
        for factory in factories:
            factory.abort_all()

    def _make_room(self) -> None:
        for factory in self._store_factories:
            factory.release()

    @property
    def _store_factories(self) -> tuple[StoreFactory, StoreFactory]:
        return self._store_factory, self._further_store_factory

    def _connections(self) -> int:
        factories = *self._store_factories, self._serve_factory
        return sum(len(factory.connections) for factory in factories)

    # -- leaving ----------------------------------------------------------------------------------

    def _sweep_once(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._sweep_and_trim()).addErrback(self._sweep_failed)

    async def _sweep_and_trim(self) -> None:
        config, now = self._config, self._reactor.seconds()
        if self._rules.keep_seconds:
            gone = await self.book.change(lambda ledger: ledger.sweep(now, config.sweep_jobs))
            if gone:
                self.book.purged += gone
                self._log.debug("{count} jobs left", count=gone)
        await self.book.change(
            lambda ledger: ledger.trim(now, config.remember_purged_seconds, config.sweep_jobs)
        )

    def _sweep_failed(self, failure: Failure) -> None:
        if self.running:
            self._log.warn("jobs could not be removed: {reason}", reason=failure.getErrorMessage())

    # -- status -----------------------------------------------------------------------------------

    def facts(self) -> Mapping[str, Any]:
        """For the status pages."""
        found = {
            "role": self._config.role,
            "store socket": self.paths[Side.STORE],
            "serve socket": self.paths[Side.SERVE],
            "connections": self._connections(),
            "queries": self._serve_factory.queries,
            "refused messages": sum(self._refusals().values()),
            **self.book.facts(),
        }
        if self._forwarder is not None:
            found["forwarding"] = self._forwarder.facts()
        return found

    def check(self) -> str:
        """What is wrong, in one line; empty: nothing."""
        if not self.running:
            return "not running"
        return (
            f"events cannot be stored: {self.book.writer.fault}" if self.book.writer.fault else ""
        )

    def _refusals(self) -> Counter[int]:
        """Messages refused, by first number of the reply."""
        found: Counter[int] = Counter()
        for factory in self._store_factories:
            found.update(factory.refusals.copy())
        return found

    def describe(self) -> list[Any]:
        """Nothing to say before the first scrape (called by prometheus_client)."""
        return []

    def collect(self) -> list[Any]:
        """Metrics (called by prometheus_client)."""
        book, serves = self.book, self._serve_factory
        factories = *self._store_factories, serves
        counters = {
            "events": ("events stored", book.stored),
            "duplicates": ("repeated events, answered and not stored again", book.duplicates),
            "commits": ("groups of events committed", book.writer.counts.groups),
            "failed_commits": (
                "groups that could not be written",
                book.writer.counts.failed_groups,
            ),
            "removed_jobs": ("jobs that left", book.purged),
            "queries": ("requests answered", serves.queries),
            "deliveries": ("events given to followers", book.hub.delivered),
            "timed_out_connections": (
                "connections closed for their time-outs",
                sum(factory.timed_out for factory in factories),
            ),
            "refused_connections": (
                "connections closed for their number",
                sum(factory.refused for factory in factories),
            ),
        }
        gauges = {
            "waiting_events": ("events that wait for their commit", book.backlog.events),
            "connections": ("open connections", self._connections()),
            "followers": ("followers of the event stream", book.hub.followers),
        }
        if self._forwarder is not None:
            counts = self._forwarder.counts
            counters["forwarded"] = ("events taken by their servers", counts.delivered)
            counters["not_wanted"] = ("events refused for good by their servers", counts.dropped)
        found: list[Any] = [
            CounterMetricFamily(f"gridnet_lbproxy_{name}", text, value=value)
            for name, (text, value) in counters.items()
        ]
        found += [
            GaugeMetricFamily(f"gridnet_lbproxy_{name}", text, value=value)
            for name, (text, value) in gauges.items()
        ]
        refusals = CounterMetricFamily(
            "gridnet_lbproxy_refusals", "messages refused", labels=["major"]
        )
        for major, count in sorted(self._refusals().items()):
            refusals.add_metric([str(major)], count)
        return [*found, refusals]


def _pause(reactor: Any, seconds: float) -> Deferred[None]:
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting
