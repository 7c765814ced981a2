"""The event mirror as a service: a master for own lists, one for real clients, and followers."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.ssl import Certificate, PrivateCertificate
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory

from gridnet.errors import ConfigError, Fault
from gridnet.interfaces import IListMaster, IObjectSource
from gridnet.listener import Listener, listener
from gridnet.mirror.address import connector_to, read_source
from gridnet.mirror.catalogue import GRID_ENGINE, OwnCatalogue
from gridnet.mirror.config import FollowConfig, MirrorConfig
from gridnet.mirror.feeder import SourceFeeder
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.follower import Follower, Repeater
from gridnet.mirror.gridengine.own import OwnJobs
from gridnet.mirror.gridengine.serve import EventClientFactory, QmasterLimits
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.lists import MirrorError
from gridnet.mirror.local import LocalConnector
from gridnet.mirror.master import MasterLimits
from gridnet.mirror.mirror import ALL
from gridnet.mirror.model import Registration
from gridnet.mirror.protocol import MasterFactory, ServerLimits
from gridnet.mirror.source import table_sources
from gridnet.mirror.stream import MirrorPage
from gridnet.mirror.tls import read_authorities, read_identity, server_options
from gridnet.site import Site
from gridnet.table.address_range import AddressRanges


def make_mirror(config: MirrorConfig, site: Site) -> IService:
    """
    The event mirror of *site*.

    :raises ConfigError: files or keys that cannot be used.
    """
    return IService(ListService(config, site))


class ListService(MultiService):
    """
    Everything of this site that can be mirrored, and what it mirrors itself.

    :ivar keeper: the master of gridnet's own lists.
    :ivar native: the master for real event clients; None: there is none.
    """

    _log = Logger()

    def __init__(self, config: MirrorConfig, site: Site) -> None:
        super().__init__()
        self._config = config
        self._site = site
        self._reactor = reactor = site.reactor
        self._limits = MasterLimits(
            max_clients=config.max_clients,
            max_queued_events=config.max_queued_events,
            max_queued_octets=config.max_queued_octets,
            min_timeout_seconds=config.min_timeout_seconds,
            max_timeout_seconds=config.max_timeout_seconds,
            scheduler_timeout_seconds=config.scheduler_timeout_seconds,
        )
        self._identity, self._authorities = self._read_tls()
        self.catalogue = OwnCatalogue()
        self.keeper = MasterService(
            reactor,
            self.catalogue,
            self._limits,
            wind_down_seconds=config.wind_down_seconds,
        )
        self._own = table_sources(site.table)
        self.followers: list[Follower] = []
        self.feeder = SourceFeeder(
            reactor, self.keeper, self.catalogue, self._sources, config.linger_seconds
        )
        self.native: MasterService | None = None
        self._factory = MasterFactory(
            reactor,
            self.keeper,
            self.catalogue,
            ServerLimits(config.max_connections, config.registration_seconds),
            AddressRanges.from_texts(config.allowed, where="mirror.allowed"),
            site.section.name,
            self.feeder.names,
        )
        self._native_factory: EventClientFactory | None = None
        self._listeners: dict[str, Listener] = {}
        self._page = MirrorPage(
            reactor,
            self.keeper,
            self.catalogue,
            self.feeder.names,
            config.max_streams,
            config.stream_alive_seconds,
        )
        self._repeater: Repeater | None = None
        self._mirrors: list[MirrorService] = []
        self._coming_back: list[IDelayedCall] = []
        self._follow_all()
        self._listen()
        self._offer()

    def _offer(self) -> None:
        site = self._site
        for source in self._own:
            site.provide(IObjectSource, source, source.object_type)
        site.provide(IListMaster, self)
        site.status.pages[b"mirror"] = self._page
        site.status.facts["mirror"] = self.facts
        site.status.checks["mirror"] = self.check
        site.status.metrics.register(self)

    def _read_tls(self) -> tuple[PrivateCertificate | None, list[Certificate] | None]:
        tls = self._config.tls
        path = self._site.config.path
        identity = authorities = None
        if (tls.certificate is None) != (tls.key is None):
            raise ConfigError([Fault("mirror.tls", "certificate and key belong together")])
        if tls.certificate is not None and tls.key is not None:
            identity = read_identity(path(tls.certificate), path(tls.key), "mirror.tls.certificate")
        if tls.authority is not None:
            authorities = read_authorities(path(tls.authority), "mirror.tls.authority")
        return identity, authorities

    # -- the lists

    def _sources(self) -> Iterator[Any]:
        offered = (source for _, source in self._site.offers(IObjectSource))
        return chain(offered, *self.followers)

    def offered(self) -> None:
        """There are lists that were not there before."""
        self.feeder.offered()
        self._factory.announce()

    def connector(self) -> LocalConnector:
        """A way to the master of own lists, for mirrors in this process."""
        return LocalConnector(self._reactor, self.keeper)

    def _follow_all(self) -> None:
        names: set[str] = set()
        for place, follow in enumerate(self._config.follow):
            where = f"mirror.follow[{place}]"
            source = read_source(follow.source, f"{where}.source")
            connector = connector_to(
                source,
                self._reactor,
                identity=self._identity,
                authorities=self._authorities,
                max_frame_octets=self._config.max_frame_octets,
            )
            name = follow.name or source.host or connector.describe()
            if name in names:
                raise ConfigError([Fault(f"{where}.name", f"{name!r} is another's name too")])
            names.add(name)
            try:
                mirror = self._mirror(connector, follow)
            except MirrorError as error:
                raise ConfigError([Fault(f"{where}.types", str(error))]) from None
            self.followers.append(Follower(name, mirror, self.offered))
            if source.is_grid_engine and self._repeater is None:
                self.native = self._make_native(connector.canonical_host)
                self._repeater = Repeater(mirror.mirror, self.native)

    def _mirror(self, connector: Any, follow: FollowConfig) -> MirrorService:
        mirror = MirrorService(
            self._reactor,
            connector,
            Registration(name="gridnet", delivery_seconds=follow.delivery_seconds),
        )
        for name in follow.types or (ALL,):
            mirror.subscribe(name)
        self._mirrors.append(mirror)

        def told(state: str, reason: str) -> None:
            if state == "ended":
                # Somebody there asked it to leave; a site that is to follow comes back.
                delay = self._config.comes_back_seconds
                waiting = [call for call in self._coming_back if call.active()]
                self._coming_back = [*waiting, self._reactor.callLater(delay, mirror.restart)]

        mirror.on_state(told)
        return mirror

    def _make_native(self, canonical_host: Any = str.lower) -> MasterService:
        return MasterService(
            self._reactor,
            GRID_ENGINE,
            self._limits,
            canonical_host,
            self._config.wind_down_seconds,
        )

    # -- the listeners

    def _listen(self) -> None:
        config = self._config
        if config.listen:
            factory: Any = self._factory
            if self._identity is not None:
                options = server_options(self._identity, self._authorities)
                factory = TLSMemoryBIOFactory(options, False, self._factory, self._reactor)
            self._add_listener("gridnet", config.listen, factory)
        if config.gridengine_listen:
            if self.native is None:
                self.native = self._make_native()
                OwnJobs(self._site.section.name, self.native).follow(self._local_mirror())
            self._native_factory = EventClientFactory(
                self._reactor,
                self.native,
                config.gridengine_host or socket.gethostname(),
                AddressRanges.from_texts(
                    config.gridengine_allowed, where="mirror.gridengine_allowed"
                ),
                limits=QmasterLimits(
                    max_connections=config.max_connections,
                    idle_seconds=config.idle_seconds,
                    max_request_octets=config.max_request_octets,
                ),
                fixed_id_clients=config.fixed_id_clients,
                drop_on_disconnect=config.drop_on_disconnect,
            )
            self._add_listener("gridengine", config.gridengine_listen, self._native_factory)

    def _local_mirror(self) -> MirrorService:
        wish = Registration(name="own lists for event clients", delivery_seconds=5)
        mirror = MirrorService(self._reactor, self.connector(), wish)
        self._mirrors.append(mirror)
        return mirror

    def _add_listener(self, name: str, endpoint: str, factory: Any) -> None:
        key = "listen" if name == "gridnet" else "gridengine_listen"
        service = listener(endpoint, factory, self._reactor, f"mirror.{key}")
        service.setServiceParent(self)
        self._listeners[name] = service
        self._site.starting(service.listening.addCallback(self._bound, name))

    def _bound(self, address: IAddress, name: str) -> None:
        host, port = getattr(address, "host", ""), getattr(address, "port", None)
        secure = "s" if name == "gridnet" and self._identity is not None else ""
        if port is None:  # a UNIX socket
            path = getattr(address, "name", b"")
            text = path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path)
        else:
            text = f"{name}{secure}://{f'[{host}]' if ':' in host else host}:{port}"
        known = self._site.addresses.get("mirror")
        self._site.announce("mirror", {**(known or {}), name: text})
        self._log.info("{name} mirrors at {address}", name=name, address=text)

    # -- start and stop

    def startService(self) -> None:
        """Begin (called by Twisted)."""
        self.keeper.startService()
        if self.native is not None:
            self.native.startService()
        super().startService()
        for mirror in self._mirrors:
            mirror.startService()

    def stopService(self) -> Deferred[None]:
        """Tell mirrors that the masters go down, leave what is followed (called by Twisted)."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for call in self._coming_back:
            if call.active():
                call.cancel()
        stopping = [maybeDeferred(super().stopService)]
        stopping += [mirror.stopService() for mirror in self._mirrors]
        self._page.end()
        for keeper in (self.keeper, self.native):
            if keeper is not None:
                stopping.append(keeper.stopService())
        await gatherResults(stopping, consumeErrors=True)
        self.feeder.stop()
        await self._factory.close_all()
        if self._native_factory is not None:
            await self._native_factory.close_all()

    # -- status

    def facts(self) -> Mapping[str, Any]:
        """For the status pages."""
        found: dict[str, Any] = {
            "lists": ", ".join(self.feeder.names()),
            "mirrors": len(self.keeper.master.clients),
            "lists kept current": ", ".join(self.feeder.attached),
            "changes": self.keeper.master.recorded,
            "deliveries": self.keeper.master.delivered,
            "browser streams": self._page.streams,
        }
        if self.native is not None:
            found["event clients"] = len(self.native.master.clients)
        for follower in self.followers:
            state = follower.service.client.state
            found[f"follows {follower.name}"] = f"{state}, {len(follower.sources)} lists"
        return found

    def check(self) -> str:
        """What is wrong, in one line; empty: nothing."""
        if not self.running:
            return "not running"
        away = [each.name for each in self.followers if not each.service.client.is_registered]
        return f"not registered with {', '.join(away)}" if away else ""

    def describe(self) -> list[Any]:
        """Nothing to say before the first scrape (called by prometheus_client)."""
        return []

    def collect(self) -> list[Any]:
        """Metrics (called by prometheus_client)."""
        masters = {"gridnet": self.keeper.master}
        if self.native is not None:
            masters["gridengine"] = self.native.master
        found: list[Any] = []
        for name, text, counts in (
            ("changes", "changes recorded", lambda m: m.recorded),
            ("deliveries", "events handed to mirrors, repeats included", lambda m: m.delivered),
        ):
            counter = CounterMetricFamily(f"gridnet_mirror_{name}", text, labels=["master"])
            for label, master in masters.items():
                counter.add_metric([label], counts(master))
            found.append(counter)
        for name, text, amounts in (
            ("clients", "registered mirrors", lambda m: len(m.clients)),
            (
                "queued_events",
                "events that mirrors have not acknowledged",
                lambda m: sum(client.queued for client in m.clients.values()),
            ),
        ):
            gauge = GaugeMetricFamily(f"gridnet_mirror_{name}", text, labels=["master"])
            for label, master in masters.items():
                gauge.add_metric([label], amounts(master))
            found.append(gauge)
        return found
