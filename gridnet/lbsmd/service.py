"""The daemon: reads its definitions, watches them, and keeps the table in step."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gridnet.control import MAX_PATH_OCTETS, ControlFactory, control_listener
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.answers import Answers
from gridnet.lbsmd.authority import Authority, user_name
from gridnet.lbsmd.checks import CheckBounds, Checks
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.feedback_socket import FeedbackFactory
from gridnet.lbsmd.gossip.keyring import Secrets
from gridnet.lbsmd.gossip.messages import Address
from gridnet.lbsmd.gossip.service import Gossip
from gridnet.lbsmd.instance import InstanceLock
from gridnet.lbsmd.load import LoadBounds, LoadService, SystemSampler, find_formula
from gridnet.lbsmd.loading import Resolver, Source
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.log_file import DaemonLog
from gridnet.lbsmd.notices import Postman, smtp_sender
from gridnet.lbsmd.order_routing import OrderRouting
from gridnet.lbsmd.orders import NoCarrier
from gridnet.lbsmd.penalties import Penalties
from gridnet.lbsmd.penalty_store import PenaltyStore
from gridnet.lbsmd.port_capacity import PortCapacity, PortSocket
from gridnet.lbsmd.registrations import EXPIRE_SECONDS, Registrations
from gridnet.lbsmd.reload import ConfigurationWatch, RunInThread
from gridnet.lbsmd.version import daemon_version
from gridnet.listener import Listener
from gridnet.repeating import Repeating
from gridnet.resident import GivesBack
from gridnet.site import Site
from gridnet.table.model import HostFacts
from gridnet.table.server_text import format_connection_point
from gridnet.time_share import TimeShare

_log = Logger()


class Daemon(MultiService):
    """
    The parts of the daemon.

    :ivar local: what this host publishes.
    :ivar watch: keeps it equal to the definitions on disk.
    :ivar checks: judges it; None: checks are switched off.
    :ivar penalties: what people have asked of it; orders of other hosts go to its ``carry_out``.
    :ivar routing: takes what people of this host ask; what brings their orders to other hosts is
        its ``carrier``.
    :ivar answers: tells local tools of it.
    :ivar registrations: what has registered itself.
    :ivar gossip: connects it with the daemons of other hosts; None: nothing does.
    :ivar capacity: what is known of monitored ports.
    :ivar load: tells how loaded this host is; None: nobody looks.
    """

    gossip: Gossip | None = None

    def __init__(
        self,
        local: LocalServices,
        watch: ConfigurationWatch,
        checks: Checks | None,
        penalties: Penalties,
        routing: OrderRouting,
        answers: Answers,
        registrations: Registrations,
        capacity: PortCapacity,
        load: LoadService | None,
        lock: InstanceLock | None,
    ) -> None:
        super().__init__()
        if lock is not None:
            # The first to start and the last to stop: a second daemon touches nothing.
            lock.setServiceParent(self)
        self.local = local
        self.watch = watch
        self.checks = checks
        self.penalties = penalties
        self.routing = routing
        self.answers = answers
        self.registrations = registrations
        self.capacity = capacity
        self.load = load
        capacity.setServiceParent(self)
        if load is not None:
            load.setServiceParent(self)
        penalties.setServiceParent(self)
        if checks is not None:
            checks.postman.setServiceParent(self)
            checks.setServiceParent(self)
        watch.setServiceParent(self)

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        facts = {
            **self.watch.facts(),
            **self.registrations.facts(),
            **self.penalties.facts(),
            **self.capacity.facts(),
            **({} if self.load is None else self.load.facts()),
        }
        if self.checks is not None:
            facts |= self.checks.facts()
        return facts


def make_lbsmd(
    config: LbsmdConfig,
    site: Site,
    resolve: Resolver | None = None,
    run_in_thread: RunInThread | None = None,
) -> IService:
    """
    The daemon of *site*; its definitions are read here, so the table is full before anyone asks.

    :param resolve: looks up host names; None: the operating system does.
    :param run_in_thread: for what blocks; None: the reactor's thread pool.
    :raises gridnet.errors.ConfigError: the definitions have faults.
    """

    def in_pool(function: Any, *arguments: Any) -> Deferred[Any]:
        reactor = site.reactor
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)

    run = run_in_thread or in_pool
    clock = IReactorTime(site.reactor)
    share = TimeShare(clock, time.perf_counter)
    source = Source.of(config, site.config, site.section.address, resolve)
    local = LocalServices(site.table, source.address)
    watch = ConfigurationWatch(source, local, clock, run)
    watch.first_load()
    site.provide(IConfigurationHolder, watch, "lbsmd")
    checks = _make_checks(config, site, source, local)
    authority = Authority(local, user_name(os.geteuid()))
    penalties = _make_penalties(config, site, local, authority, run)
    capacity = PortCapacity(local, clock, config.port_stale_seconds)
    load = _make_load(config, site, local, capacity)
    routing = OrderRouting(
        site.table,
        source.address,
        penalties,
        NoCarrier(),
        source.resolve,
        run,
        clock,
        config.max_orders,
        config.resolve_seconds,
        share.run,
    )
    gossip = _make_gossip(config, site, penalties, run)
    if gossip is not None:
        routing.carrier = gossip
    answers = Answers(site, source, local, checks, penalties, routing)
    lock = InstanceLock(site.state_dir / config.pid_file) if config.pid_file else None
    registrations = Registrations(local, config, clock.seconds, random.SystemRandom())
    expiring = Repeating(clock, EXPIRE_SECONDS, registrations.expire)
    daemon = Daemon(
        local, watch, checks, penalties, routing, answers, registrations, capacity, load, lock
    )
    expiring.setServiceParent(daemon)
    if config.control:
        desk = ControlFactory(
            {
                "table": answers.table_text,
                "resolve": answers.resolve,
                "feedback": answers.feedback,
                **registrations.answerers(),
                **({} if gossip is None else gossip.answerers()),
            }
        )
        path = site.state_dir / config.control
        control = _make_socket(site, "control", path, config.control_mode, desk)
        if control is not None:
            control.setServiceParent(daemon)
    if gossip is not None:
        daemon.gossip = gossip
        gossip.setServiceParent(daemon)
    if config.log_file:
        path = site.config.path(config.log_file)
        log = DaemonLog(path, config.log_size, site.reactor)
        log.setServiceParent(daemon)
        site.status.checks["lbsmd log"] = log.check
    if config.takes_feedback:
        factory = FeedbackFactory(routing)
        path = site.state_dir / config.feedback_socket
        feedback = _make_socket(site, "feedback", path, config.feedback_mode, factory)
        if feedback is not None:
            feedback.setServiceParent(daemon)
    if config.ports_socket:
        ports = _make_ports_socket(config, site, capacity, local, authority, run)
        if ports is not None:
            ports.setServiceParent(daemon)
    if config.shared_memory:
        # Imported late, as all that few daemons have is.
        from gridnet.lbsmd.shared_table import make_shared_table

        shared = make_shared_table(config, site, source)
        shared.setServiceParent(daemon)
        answers.heap = shared.facts
    if config.give_back_seconds:
        GivesBack(clock, config.give_back_seconds).setServiceParent(daemon)
    site.status.facts["lbsmd"] = daemon.facts
    site.status.checks["lbsmd"] = watch.check
    return IService(daemon)


def _make_socket(
    site: Site, name: str, path: Path, mode: str, factory: IProtocolFactory
) -> Listener | None:
    """The UNIX stream socket *name*; None: the system takes no path as long as that."""
    key = f"lbsmd.{'control' if name == 'control' else f'{name}_socket'}"
    service = control_listener(site.reactor, path, int(mode, 8), factory, key)
    if service is None:
        _log.warn("no {name} socket: {path} is too long for one", name=name, path=str(path))
        return None
    site.starting(service.listening)
    _announce(site, {name: str(path)})
    return service


def _make_ports_socket(
    config: LbsmdConfig,
    site: Site,
    capacity: PortCapacity,
    local: LocalServices,
    authority: Authority,
    run_in_thread: RunInThread,
) -> PortSocket | None:
    """The socket for the capacity of ports; None: the system takes no path as long as that."""
    path = site.state_dir / config.ports_socket
    if len(os.fsencode(path)) > MAX_PATH_OCTETS:
        _log.warn("no {name} socket: {path} is too long for one", name="ports", path=str(path))
        return None
    _announce(site, {"ports": str(path)})
    return PortSocket(
        path,
        int(config.ports_mode, 8),
        capacity,
        local,
        authority,
        site.reactor,
        run_in_thread,
    )


def _announce(site: Site, places: Mapping[str, object]) -> None:
    """Say where more of the daemon can be reached."""
    announced = site.addresses.get("lbsmd")
    before = announced if isinstance(announced, Mapping) else {}
    site.announce("lbsmd", {**before, **places})


def _make_load(
    config: LbsmdConfig, site: Site, local: LocalServices, capacity: PortCapacity
) -> LoadService | None:
    """
    What tells how loaded this host is; None: nobody is to look.

    :raises ConfigError: there is no such formula.
    """
    if not config.load_seconds:
        return None
    now = site.reactor.seconds()
    service = LoadService(
        local,
        SystemSampler(),
        find_formula(config.load_formula),
        IReactorTime(site.reactor),
        HostFacts(daemon_version=daemon_version(), started_at=now, joined_at=now),
        LoadBounds(config.load_seconds, config.load_step, config.load_refresh_seconds),
        capacity.ports,
    )
    site.status.checks["lbsmd load"] = service.check
    return service


def _make_gossip(
    config: LbsmdConfig, site: Site, penalties: Penalties, run_in_thread: RunInThread
) -> Gossip | None:
    """What connects this daemon with those of other hosts; None: nothing does."""
    if config.gossip is None:
        return None
    secrets = Secrets.read(config.gossip, site)
    gossip = Gossip(config.gossip, site, config.site_bits, secrets, penalties, run_in_thread)
    site.status.facts["gossip"] = gossip.facts

    def bound(address: Address) -> None:
        _announce(site, {"gossip": format_connection_point(*address)})

    site.starting(gossip.listening.addCallback(bound))
    return gossip


def _make_penalties(
    config: LbsmdConfig,
    site: Site,
    local: LocalServices,
    authority: Authority,
    run_in_thread: RunInThread,
) -> Penalties:
    """What keeps penalties and set base rates, those of before a restart included."""
    store = None
    if config.keep_penalties:
        store = PenaltyStore(site.state_dir / config.keep_penalties, run_in_thread)
        site.status.checks["lbsmd penalties"] = store.check
    penalties = Penalties(local, authority, IReactorTime(site.reactor), store)
    penalties.restore()
    return penalties


def _make_checks(
    config: LbsmdConfig, site: Site, source: Source, local: LocalServices
) -> Checks | None:
    """What runs the checks, as far as *config* wants any."""
    if not config.run_checks:
        return None
    send = None
    if config.smtp_host:
        send = smtp_sender(
            site.reactor, config.smtp_host, config.smtp_port, config.sender, config.mail_seconds
        )
    postman = Postman(
        send,
        IReactorTime(site.reactor),
        config.sender,
        source.address,
        config.mail_batch_seconds,
        config.max_notices,
        config.mail_attempts,
    )
    bounds = CheckBounds(
        config.max_parallel_checks,
        config.check_jitter,
        config.check_spread_seconds,
        config.probe_seconds,
        config.script_log_octets,
    )
    return Checks(local, site.table, postman, site.reactor, source.directory, bounds)
