"""The daemon: reads its definitions, watches them, and keeps the table in step."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.threads import deferToThreadPool

from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.loading import Resolver, Source
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.reload import ConfigurationWatch, RunInThread
from gridnet.site import Site


class Daemon(MultiService):
    """
    The parts of the daemon.

    :ivar local: what this host publishes.
    :ivar watch: keeps it equal to the definitions on disk.
    """

    def __init__(self, local: LocalServices, watch: ConfigurationWatch) -> None:
        super().__init__()
        self.local = local
        self.watch = watch
        watch.setServiceParent(self)


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

    source = Source.of(config, site.config, site.section.address, resolve)
    local = LocalServices(site.table, source.address)
    watch = ConfigurationWatch(source, local, IReactorTime(site.reactor), run_in_thread or in_pool)
    watch.first_load()
    site.provide(IConfigurationHolder, watch, "lbsmd")
    site.status.facts["lbsmd"] = watch.facts
    site.status.checks["lbsmd"] = watch.check
    return IService(Daemon(local, watch))
