"""The job server as a service: recovery, three listeners, an orderly end."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from random import SystemRandom
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault
from gridnet.interfaces import IObjectSource
from gridnet.listener import Listener, ListeningReactor, listener
from gridnet.scire import calls, enrol, system
from gridnet.scire.admin import clients as admin_clients
from gridnet.scire.admin import jobs as admin_jobs
from gridnet.scire.admin import people as admin_people
from gridnet.scire.admin import runs as admin_runs
from gridnet.scire.admin import servers as admin_servers
from gridnet.scire.authority import CommandSigner, EmbeddedSigner, NoSigner, Signer
from gridnet.scire.certificates import Authority
from gridnet.scire.config import ScireConfig
from gridnet.scire.http import RpcFactory
from gridnet.scire.methods import Method, methods_of
from gridnet.scire.metrics import Metrics
from gridnet.scire.page import RunsPage
from gridnet.scire.pushing import Pusher
from gridnet.scire.rpc import Authenticate, RpcListener, by_certificate, by_secret, nobody
from gridnet.scire.server import JobServer
from gridnet.scire.slots import Rates, Slots
from gridnet.scire.store.opening import open_database
from gridnet.scire.tls import (
    PacedTlsFactory,
    PromptPort,
    read_authorities,
    read_identity,
    server_options,
)
from gridnet.scire.upkeep import say_where
from gridnet.site import Site
from gridnet.table.model import Entry
from gridnet.table.server_info import ServerInfo, ServerType
from gridnet.time_outs import look_seconds

_TCP_PORT = re.compile(r"tcp6?:(?:port=)?(\d+)")
_ADMIN = (admin_clients, admin_jobs, admin_people, admin_runs, admin_servers)
_KEYS = {"work": "scire.listen", "enrol": "scire.listen_enrol", "admin": "scire.listen_admin"}
#: Calls at a time on the listeners that no client polls.
_SIDE_SLOTS = 4
#: Database threads, unless the site file says so: calls that wait share a transaction, and with
#: more threads fewer do.
_POOL = 3
#: How often the end looks whether calls are still under way, seconds.
_LOOK_SECONDS = 0.05


def work_methods() -> dict[str, Method]:
    """What the work listener offers: to clients, and to users with certificates."""
    return methods_of(calls, system, *_ADMIN)


def enrol_methods() -> dict[str, Method]:
    """What the enrol listener offers: to everybody."""
    return methods_of(enrol, system)


def admin_methods() -> dict[str, Method]:
    """What the administration listener offers: to users."""
    return methods_of(system, *_ADMIN)


class _Front:
    """One listener: its address, its connections, its calls."""

    def __init__(
        self,
        name: str,
        endpoint: str,
        server: JobServer,
        options: CertificateOptions,
        methods: Mapping[str, Method],
        authenticate: Authenticate,
        slots: int,
        calls_per_minute: int,
    ) -> None:
        limits, clock = server.config.limits, IReactorTime(server.reactor)
        self.name = name
        self.calls = RpcListener(
            name,
            server,
            methods,
            authenticate,
            Slots(clock, slots, limits.max_waiting, limits.waiting_seconds, server.chance),
            Rates(calls_per_minute),
        )
        server.listeners[name] = self.calls
        self.factory = RpcFactory(name, clock, limits, self.calls.request)
        paced = PacedTlsFactory(options, self.factory, clock, limits.handshakes_per_second)
        # A fleet whose other server has died comes all at once; what finds no room here would
        # try again only after seconds.
        listening = ListeningReactor(server.reactor, PromptPort, limits.backlog)
        self.service: Listener = listener(endpoint, paced, listening, _KEYS[name])


class ScireService(MultiService):
    """The job server of a site."""

    _log = Logger()

    def __init__(
        self,
        config: ScireConfig,
        site: Site,
        server: JobServer,
        fronts: Mapping[str, _Front],
    ) -> None:
        super().__init__()
        self.config = config
        self.server = server
        self.ready: Deferred[None] = Deferred()
        self._site = site
        self._fronts = fronts
        self._entry: Entry | None = None
        self._recovered: Deferred[Any] | None = None
        self._stopping = False
        self._sweep = LoopingCall(self._look_at_connections)
        self._sweep.clock = IReactorTime(site.reactor)

    def _look_at_connections(self) -> None:
        for front in self._fronts.values():
            front.factory.sweep()

    def startService(self) -> None:
        """Recover, then listen (called by Twisted)."""
        super().startService()
        self._recovered = Deferred.fromCoroutine(self._start())
        self._recovered.addErrback(self._failed)

    async def _start(self) -> None:
        await self.server.recover()
        if self._stopping:
            return
        limits = self.config.limits
        self._sweep.start(
            look_seconds(limits.handshake_seconds, limits.request_seconds, limits.idle_seconds)
        )
        for front in self._fronts.values():
            # Its parent runs, so that this binds it now.
            front.service.setServiceParent(self)
        addresses = await gatherResults([f.service.listening for f in self._fronts.values()])
        where = dict(zip(self._fronts, addresses, strict=True))
        await self._say_where(where)
        await self.server.serve()
        self._announce(where)
        self.ready.callback(None)

    async def _say_where(self, where: Mapping[str, IAddress]) -> None:
        server, host = self.server, self._site.section.address
        shown = f"[{host}]" if ":" in host else host
        ports = {name: getattr(address, "port", 0) for name, address in where.items()}
        server.url = self.config.url or f"https://{shown}:{ports['work']}/RPC2"
        server.enrol_url = self.config.enrol_url or f"https://{shown}:{ports['enrol']}/RPC2"
        addresses = {"work": server.url, "enrol": server.enrol_url}
        if "admin" in where:
            addresses["admin"] = (
                f"https://{getattr(where['admin'], 'host', '')}:{ports['admin']}/RPC2"
            )
        addresses["ca"] = str(self._site.state_dir / self.config.tls.fleet_ca)
        await server.database.write(
            lambda tx: say_where(tx, server.identity.id, server.url, server.enrol_url)
        )
        self._site.announce("scire", addresses)

    def _announce(self, where: Mapping[str, IAddress]) -> None:
        port = getattr(where["work"], "port", 0)
        if not self.config.service or not port:
            return
        info = ServerInfo(
            type=ServerType.STANDALONE,
            host=self._site.section.address,
            port=port,
            rate=self.config.rate,
            secure=True,
        )
        self._entry = Entry(self.config.service, info, owner="scire", static=True)
        self._site.table.put(self._entry)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("the job server does not start", failure)
        if not self.ready.called:
            self.ready.errback(failure)
        if not self._stopping:
            # As an address in use does: a server that cannot serve is not left running, and
            # whoever started it learns of it by its exit status.
            reactor = self._site.reactor
            reactor.addSystemEventTrigger("after", "shutdown", _exit_failed)
            reactor.callWhenRunning(reactor.stop)

    def stopService(self) -> Deferred[None]:
        """Drain, close, say goodbye (called by Twisted)."""
        self._stopping = True
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self.server.drain()
        if self._entry is not None:
            self._site.table.remove(self._entry)
            self._entry = None
        if self._recovered is not None:
            await self._recovered
        stopped = MultiService.stopService(self)
        for front in self._fronts.values():
            front.factory.drain()
        clock = IReactorTime(self._site.reactor)
        end = clock.seconds() + self.config.drain_seconds
        while self.server.running and clock.seconds() < end:
            await deferLater(self._site.reactor, _LOOK_SECONDS)
        if self._sweep.running:
            self._sweep.stop()
        await self.server.stop()
        for front in self._fronts.values():
            for connection in list(front.factory.connections):
                connection.transport.abortConnection()
        await stopped


def _exit_failed() -> None:
    """End the process with status 1, which stopping a reactor does not."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _signer(config: ScireConfig, site: Site) -> Signer:
    if config.ca.command:
        path = os.environ.get("PATH", os.defpath)
        return CommandSigner(
            site.reactor, config.ca.command, config.ca.command_seconds, config.ca.days, path
        )
    key, certificate = site.state_dir / config.ca.key, site.state_dir / config.tls.fleet_ca
    if not key.exists():
        return NoSigner()
    try:
        authority = Authority.load(key.read_bytes(), certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError([Fault("scire.ca.key", f"{key}: {error}")]) from None
    return EmbeddedSigner(site.reactor, authority, authority.pem, config.ca.days)


def _name(config: ScireConfig, site: Site) -> str:
    if config.name:
        return config.name
    match = _TCP_PORT.match(config.listen)
    port = match[1] if match is not None else "0"
    return f"{site.section.address}:{port}"


def make_scire(config: ScireConfig, site: Site) -> IService:
    """
    The job server of *site*.

    :raises gridnet.errors.ConfigError: keys or database cannot be used.
    """
    own = read_identity(site.state_dir / config.tls.certificate, site.state_dir / config.tls.key)
    authorities = read_authorities(site.state_dir / config.tls.fleet_ca)
    signer = _signer(config, site)
    name = _name(config, site)
    threads = config.pool or min(_POOL, config.limits.max_threads)
    database = open_database(config.database, site.state_dir, threads, name, serve=True)
    metrics = Metrics(site.status.metrics)
    pusher = Pusher(site.reactor, config.push, name, database, own, authorities, metrics)
    server = JobServer(
        config, name, site.reactor, database, signer, pusher, metrics, SystemRandom()
    )
    limits = config.limits
    chain = read_authorities(site.state_dir / config.tls.certificate)[1:]
    plain = server_options(own, chain, None)
    fronts = {
        "work": _Front(
            "work",
            config.listen,
            server,
            server_options(own, chain, authorities),
            work_methods(),
            by_certificate,
            limits.max_threads,
            limits.calls_per_minute,
        ),
        "enrol": _Front(
            "enrol",
            config.listen_enrol,
            server,
            # With the authority itself, for those who know only its fingerprint.
            server_options(own, [*chain, *authorities], None),
            enrol_methods(),
            nobody,
            _SIDE_SLOTS,
            limits.enrol_calls_per_minute,
        ),
    }
    if config.listen_admin:
        fronts["admin"] = _Front(
            "admin",
            config.listen_admin,
            server,
            plain,
            admin_methods(),
            by_secret,
            _SIDE_SLOTS,
            limits.calls_per_minute,
        )
    service = ScireService(config, site, server, fronts)
    site.starting(service.ready)
    site.provide(IObjectSource, server.run_list, server.run_list.object_type)
    site.status.pages[b"scire"] = RunsPage(server)
    site.status.facts["scire"] = server.facts
    site.status.checks["scire"] = server.check
    return IService(service)
