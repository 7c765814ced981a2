"""The dispatcher as a service."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.front import Front
from gridnet.dispatch.metrics import DispatchCollector, facts
from gridnet.dispatch.tally import Tally
from gridnet.dispatch.tls import ClientTls, ServerTls, client_context, self_signed, server_context
from gridnet.dispatch.transport import HeldPort
from gridnet.dispatch.workers import Crew
from gridnet.errors import ConfigError, Fault
from gridnet.interfaces import IDispatcherPage, IProgramLauncher, ITableFollower, ITicketOffice
from gridnet.listener import ListeningReactor, listener
from gridnet.site import Site

#: Endpoints that are nothing but a socket, which processes can share.
_SHARED_ENDPOINTS = ("tcp:", "tcp4:", "tcp6:", "systemd:")
_ANY_ADDRESS = frozenset(["0.0.0.0", "::"])


def make_dispatch(config: DispatchConfig, site: Site) -> IService:
    """
    The dispatcher of *site*.

    :raises ConfigError: certificates cannot be used.
    """
    return IService(Dispatching(config, site))


def client_tls(config: DispatchConfig, directory: Path, reactor: Any) -> ClientTls:
    """What relays speak to servers that want TLS."""
    authorities = directory / config.server_authorities if config.server_authorities else None
    named = client_context(authorities, named=True)
    return ClientTls(client_context(authorities), reactor, named)


def addresses(bound: IAddress, config: DispatchConfig, site_address: str) -> Mapping[str, str]:
    """Where clients find the listener that is *bound*."""
    host = getattr(bound, "host", None)
    if host is None:
        name = getattr(bound, "name", b"") or b""
        return {"http": f"unix:{name.decode('utf-8', 'replace')}"}
    if host in _ANY_ADDRESS:
        host = site_address
    place = f"[{host}]" if ":" in host else host
    schemes = ("http", "https") if config.tls else ("http",)
    port = getattr(bound, "port", 0)
    return {scheme: f"{scheme}://{place}:{port}" for scheme in schemes}


class Certificates:
    """The listener's certificate: a configured one, or one of our own making."""

    def __init__(self, config: DispatchConfig, site: Site) -> None:
        self._site = site
        self._paths: tuple[Path, Path] | None = None
        if bool(config.certificate) != bool(config.certificate_key):
            raise ConfigError(
                [Fault("dispatch.certificate_key", "expected together with certificate")]
            )
        if config.certificate:
            self._paths = (
                site.config.path(config.certificate),
                site.config.path(config.certificate_key),
            )
            server_context(*self._paths)  # what is wrong with them is said before the start

    def paths(self) -> tuple[Path, Path]:
        """Certificate and key; made now when there are none."""
        if self._paths is None:
            now = datetime.datetime.fromtimestamp(self._site.reactor.seconds(), datetime.UTC)
            self._paths = self_signed(self._site.state_dir, self._site.section.address, now)
        return self._paths


class Dispatching(Service):
    """
    The dispatcher of a site: its port, and who answers there.

    :ivar front: answers in this process: everything, or what workers hand over.
    """

    _log = Logger()

    def __init__(self, config: DispatchConfig, site: Site) -> None:
        self._config = config
        self._site = site
        self._certificates = Certificates(config, site) if config.tls else None
        self._crew: Crew | None = None
        reactor = site.reactor
        alone = config.workers == 1
        self.front = Front(
            config,
            reactor,
            site.table,
            site.local_networks,
            client_tls(config, site.config.directory, reactor),
            site.section.address,
            lambda: site.find(ITicketOffice),
            lambda: site.find(IProgramLauncher),
            for_workers=not alone,
            page=lambda path: site.find(IDispatcherPage, path),
        )
        self._listening = ListeningReactor(
            reactor, self.front.ports() if alone else HeldPort, config.backlog
        )
        factory = self.front.factory if alone else Factory()
        factory.noisy = False
        self._listener = listener(config.listen, factory, self._listening, "dispatch.listen")
        site.starting(self._listener.listening.addCallback(self._bound))
        if not alone:
            if not config.listen.startswith(_SHARED_ENDPOINTS):
                expected = " or ".join(_SHARED_ENDPOINTS)
                raise ConfigError(
                    [Fault("dispatch.listen", f"expected {expected} for several workers")]
                )
            self._crew = Crew(
                config,
                site,
                self.front,
                lambda: self._certificates.paths() if self._certificates is not None else None,
                lambda: self._listening.ports[0].fileno(),
            )
            site.provide(ITableFollower, self._crew, "dispatch")
            site.starting(self._crew.ready)
        site.status.facts["dispatch"] = self._facts
        site.status.checks["dispatch"] = self._check
        site.status.metrics.register(DispatchCollector(self.tally, lambda: self.alive))

    @property
    def alive(self) -> int:
        """Processes that accept."""
        if self._crew is not None:
            return self._crew.alive
        return int(bool(self.running))

    def tally(self) -> Tally:
        """What all processes have done."""
        return self.front.tally() if self._crew is None else self._crew.tally()

    def privilegedStartService(self) -> None:
        """Bind the port."""
        self._listener.privilegedStartService()

    def startService(self) -> None:
        """Serve."""
        super().startService()
        self._listener.startService()
        if self._crew is not None:
            self._crew.startService()
            return
        if self._certificates is not None:
            context = server_context(*self._certificates.paths())
            self.front.factory.tls = ServerTls(context, self._site.reactor)
        self.front.start()

    def stopService(self) -> Deferred[Any]:
        """Close the port, let requests under way end."""
        super().stopService()
        stopped: Deferred[Any] = maybeDeferred(self._listener.stopService)
        if self._crew is not None:
            crew = self._crew
            return stopped.addCallback(lambda _: crew.stopService())
        return stopped.addCallback(lambda _: self.front.drain())

    def _bound(self, address: IAddress) -> None:
        found = addresses(address, self._config, self._site.section.address)
        self._site.announce("dispatch", found)
        self._log.info("dispatching at {http}", http=found["http"])

    def _facts(self) -> Mapping[str, Any]:
        places = self._site.addresses.get("dispatch", {})
        pids = {} if self._crew is None else {"worker_pids": list(self._crew.pids.values())}
        return {**places, "workers": self.alive, **pids, **facts(self.tally())}

    def _check(self) -> str:
        missing = self._config.workers - self.alive
        return f"{missing} of {self._config.workers} workers do not serve" if missing else ""
