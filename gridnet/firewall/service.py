"""The ticketed relay as a service."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.control import ControlFactory, control_listener
from gridnet.errors import ConfigError, Fault
from gridnet.firewall.asking import AskingOffice
from gridnet.firewall.bare import bare_ports
from gridnet.firewall.checks import FWD_CHECK_PATH, FwdCheckPage, PortChecks, StatusPage
from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.metrics import FirewallCollector, facts
from gridnet.firewall.office import MemoryTickets, TicketOffice, TicketStore
from gridnet.firewall.orders import Orders
from gridnet.firewall.penalty_file import Penalties
from gridnet.firewall.ports import PortSets, parse_ports
from gridnet.firewall.protocol import FirewallFactory
from gridnet.firewall.redis_tickets import RedisTickets
from gridnet.firewall.session_list import SessionSource
from gridnet.interfaces import IDispatcherPage, IObjectSource, IPenaltyBox, ITicketOffice
from gridnet.listener import ListeningReactor, listener
from gridnet.site import Site
from gridnet.table.redis_store import RedisStore

PENALTY_FILE = ".dispd.msg"
#: How often deadlines of connections that have not got through are looked at.
SWEEP_SECONDS = 0.25
#: The same for tickets and relayed connections.
EXPIRE_SECONDS = 1.0
#: How often other relays' revocations are asked for.
HEAR_SECONDS = 0.4


def make_firewall(config: FirewallConfig, site: Site) -> IService:
    """
    The ticketed relay of *site*.

    :raises ConfigError: keys that do not go together.
    """
    penalties = Penalties(
        config,
        site.config.path(config.penalty_file)
        if config.penalty_file
        else site.state_dir / PENALTY_FILE,
    )
    if config.ask:
        host, colon, port = config.ask.rpartition(":")
        if not (colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError([Fault("firewall.ask", f"expected host:port, found {config.ask!r}")])
        office = AskingOffice(
            host, int(port), penalties, config.connect_timeout_seconds, site.reactor
        )
        site.provide(ITicketOffice, office)
        service: Service = Service()
        return IService(service)
    return IService(FirewallService(config, site, penalties))


class FirewallService(MultiService):
    """Listens, and keeps time."""

    _log = Logger()

    def __init__(self, config: FirewallConfig, site: Site, penalties: Penalties) -> None:
        super().__init__()
        self._config = config
        self._site = site
        chance = random.SystemRandom()
        self.ports = PortSets(
            parse_ports(config.ports),
            parse_ports(config.relay_ports),
            parse_ports(config.fallback_ports),
            random.Random(),
        )
        self.address = config.advertise or site.section.address
        clock = IReactorTime(site.reactor)
        self._redis: RedisStore | None = None
        store: TicketStore = MemoryTickets(config, chance)
        if config.redis is not None:
            self._redis = RedisStore(config.redis)
            store = RedisTickets(config, self._redis, chance)
        self.office = TicketOffice(
            config,
            site.table,
            site.local_networks,
            self.ports,
            self.address,
            site.section.address,
            store,
            penalties,
            clock.seconds,
            random.Random(),
        )
        self.factory = FirewallFactory(config, site.reactor, self.office)
        self.orders = Orders(self.factory)
        self._listeners = MultiService()
        self._listeners.setServiceParent(self)
        self._open_control()
        if config.serve:
            self._listen()
        self._sweeping = self._looping(self.factory.sweep)
        self._expiring = self._looping(self._expire)
        self._hearing = self._looping(self.orders.hear)
        if config.serve:
            page = FwdCheckPage(self.address, self.ports, self._checks(), config.browser_check)
            site.provide(IDispatcherPage, page, FWD_CHECK_PATH)
            site.status.pages[b"firewall"] = StatusPage(page)
        site.provide(ITicketOffice, self.office)
        site.provide(IPenaltyBox, self.office)
        sessions = SessionSource(self.factory.sessions)
        site.provide(IObjectSource, sessions, sessions.object_type)
        site.status.facts["firewall"] = self._facts
        site.status.metrics.register(FirewallCollector(self.factory))

    def _open_control(self) -> None:
        if not self._config.control:
            return
        path = self._site.state_dir / self._config.control
        factory = ControlFactory(self.orders.answerers())
        service = control_listener(self._site.reactor, path, 0o600, factory, "firewall.control")
        if service is None:
            self._log.warn("no control socket: {path} is too long for one", path=str(path))
        else:
            service.setServiceParent(self._listeners)
            self._site.starting(service.listening)

    def _checks(self) -> PortChecks:
        # What is bound to one address answers there; what is bound to all answers on loopback.
        bound = re.search(r"interface=([0-9.]+)", self._config.listen)
        host = bound[1] if bound and bound[1] != "0.0.0.0" else "127.0.0.1"
        return PortChecks(
            host,
            self.ports.everything(),
            self._config.check_seconds,
            self._site.reactor,
            self._config.listen.startswith("haproxy:"),
        )

    def _looping(self, work: Any) -> LoopingCall:
        call = LoopingCall(work)
        call.clock = IReactorTime(self._site.reactor)
        return call

    def _listen(self) -> None:
        bound: list[Deferred[Any]] = []
        reactor = self._site.reactor
        pump = self.factory.pump
        if pump is not None and self._config.listen.startswith(("tcp:", "tcp6:")):
            reactor = ListeningReactor(reactor, bare_ports(pump, self._config))
        for port in self.ports.everything():
            try:
                endpoint = self._config.listen.format(port=port)
            except (ValueError, KeyError, IndexError) as error:
                raise ConfigError([Fault("firewall.listen", str(error))]) from None
            service = listener(endpoint, self.factory, reactor, "firewall.listen")
            service.setServiceParent(self._listeners)
            bound.append(service.listening)

        def all_bound(_: object) -> None:
            self._site.announce("firewall", self._announcement())
            self._log.info(
                "relaying at {address}, {count} ports", address=self.address, count=len(bound)
            )

        self._site.starting(gatherResults(bound, consumeErrors=True).addCallback(all_bound))

    def _announcement(self) -> Mapping[str, Any]:
        return {
            "address": self.address,
            "ports": list(self.ports.firewall),
            "relay_ports": list(self.ports.relay),
            "fallback_ports": list(self.ports.fallback),
        }

    def startService(self) -> None:
        """Serve."""
        if self._redis is not None:
            self._redis.startService()
            self._start(self._hearing, HEAR_SECONDS)
        super().startService()
        self._start(self._sweeping, SWEEP_SECONDS)
        self._start(self._expiring, EXPIRE_SECONDS)

    def _start(self, call: LoopingCall, seconds: float) -> None:
        call.start(seconds, now=False).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("the relay does not keep time any more", failure)

    def _expire(self) -> Deferred[None]:
        now = self.factory.now()
        with self._log.failuresHandled("looking at relayed connections"):
            self.factory.sessions.sweep(now)
            self.office.penalties.forget(now)
        return self.office.expire().addErrback(
            lambda failure: self._log.failure("tickets not looked at", failure)
        )

    def stopService(self) -> Deferred[Any]:
        """Listen no more, let connections finish for ``stop_seconds``, cut the others."""
        stopped = maybeDeferred(super().stopService)
        return stopped.addCallback(lambda _: self._drain())

    def _drain(self) -> Deferred[Any]:
        clock = IReactorTime(self._site.reactor)
        cutting = clock.callLater(self._config.stop_seconds, self.factory.cut_all)

        def gone(_: object) -> None:
            if cutting.active():
                cutting.cancel()
            for call in (self._sweeping, self._expiring, self._hearing):
                if call.running:
                    call.stop()
            self.factory.close()

        def disconnect(_: object) -> Deferred[None] | None:
            return self._redis.stopService() if self._redis is not None else None

        return self.factory.all_gone().addCallback(gone).addCallback(disconnect)

    def _facts(self) -> Mapping[str, Any]:
        return {**self._announcement(), **facts(self.factory)}
