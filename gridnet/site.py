"""What the components of one process share, and the service that composes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from zope.interface import Interface
from zope.interface.registry import Components

from gridnet.component import Component, components
from gridnet.config import SiteConfig, SiteSection
from gridnet.errors import ConfigError, Fault
from gridnet.hangup import HangupService
from gridnet.interfaces import IConfigurationHolder
from gridnet.status.board import StatusBoard
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import ServiceTable

T = TypeVar("T")


class Site:
    """
    One process's share of a site: its table, its status board, and who offers what.

    :ivar reactor: the reactor everything runs on; parts narrow it (``IReactorTime(reactor)``).
    :ivar table: the service table of this process.
    :ivar status: where components say how they are, for the status listener.
    :ivar local_networks: whose clients are inside.
    """

    _log = Logger()

    def __init__(self, config: SiteConfig, reactor: Any) -> None:
        self.config: SiteConfig = config
        self.reactor: Any = reactor
        self.table = ServiceTable(max_entries=config.site.max_services)
        self.status = StatusBoard()
        self.local_networks = _local_networks(config)
        self.addresses: dict[str, Any] = {}
        self._offers = Components()
        self._starting: list[Deferred[Any]] = []

    @property
    def section(self) -> SiteSection:
        """``[site]``."""
        return self.config.site

    @property
    def state_dir(self) -> Path:
        """
        Directory for keys, stores and logs; made on first use, closed to other users.

        :raises gridnet.errors.ConfigError: there is none and none can be made.
        """
        path = self.config.path(self.config.site.state_dir)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError([Fault("site.state_dir", f"{path}: {error.strerror}")]) from None
        return path

    def provide(self, interface: type[Interface], offer: object, name: str = "") -> None:
        """Offer *offer*, which provides *interface*, to the other components."""
        self._offers.registerUtility(offer, interface, name)

    def find(self, interface: type[Interface], name: str = "") -> Any:
        """What some component offers under *interface*, or None."""
        return self._offers.queryUtility(interface, name)

    def offers(self, interface: type[Interface]) -> Iterator[tuple[str, Any]]:
        """All (name, offer) under *interface*."""
        return iter(self._offers.getUtilitiesFor(interface))

    def announce(self, component: str, addresses: object) -> None:
        """
        Say where *component* can be reached, for people and scripts.

        :param addresses: a JSON value: an address, or a mapping of them.
        """
        self.addresses[component] = addresses

    def starting(self, deferred: Deferred[Any]) -> None:
        """The site is not ready before *deferred* has fired."""
        self._starting.append(deferred)

    def ready(self) -> Deferred[Mapping[str, Any]]:
        """Fires with :attr:`addresses` once every component answers; call it after the start."""
        waiting = gatherResults(self._starting, consumeErrors=True)
        return waiting.addCallback(lambda _: self.addresses)


def _local_networks(config: SiteConfig) -> AddressRanges:
    """The ranges of ``local_networks``, then those of ``local_networks_file``."""
    listed = AddressRanges.from_texts(config.site.local_networks)
    if not config.site.local_networks_file:
        return listed
    path = config.path(config.site.local_networks_file)
    try:
        text = path.read_text("latin-1")
    except OSError as error:
        fault = Fault("site.local_networks_file", f"{path}: {error.strerror}")
        raise ConfigError([fault]) from None
    filed = AddressRanges.from_file_text(text, where=str(path))
    return AddressRanges((*listed.ranges, *filed.ranges))


def make_site(
    config: SiteConfig, reactor: Any, only: str | None = None
) -> tuple[Site, MultiService]:
    """
    Compose the configured components under one service.

    :param only: name of the one component to make (its section may be missing: defaults), with
        those that it needs, as far as they are configured.
    :returns: the site and its service, not yet started.
    :raises gridnet.errors.ConfigError: from a component that cannot use its section.
    """
    site = Site(config, reactor)
    service = MultiService()
    HangupService(reactor, lambda: site.offers(IConfigurationHolder)).setServiceParent(service)
    known = components()
    wanted = known if only is None else (only, *known[only].needs)
    for name, component in known.items():
        if name not in wanted:
            continue
        if name in config.sections:
            section = config.sections[name]
        elif name == only:
            section = component.config_class()()
        else:
            continue
        _make(component, section, site).setServiceParent(service)
    return site, service


def _make(component: Component, section: object, site: Site) -> IService:
    made = component.make(section, site)
    made.setName(component.name)
    return IService(made)
