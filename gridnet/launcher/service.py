"""The launcher as a service."""

from __future__ import annotations

import os
import pwd
import random
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gridnet.errors import ConfigError, Fault, shown
from gridnet.interfaces import IPenaltyBox, IProgramLauncher
from gridnet.launcher.config import LauncherConfig
from gridnet.launcher.office import ProgramLauncher
from gridnet.site import Site

_GAUGES = frozenset(["running", "ports_waiting"])


def make_launcher(config: LauncherConfig, site: Site) -> IService:
    """
    The launcher of *site*.

    :raises ConfigError: no program could be started that way on this host.
    """
    _check(config)
    service: Service = LauncherService(config, site)
    return IService(service)


def _check(config: LauncherConfig) -> None:
    """See that the host has what programs are to start with: it shows now, not at their clients."""
    faults = []
    if not os.path.isdir(config.directory):
        faults.append(Fault("launcher.directory", f"no directory {shown(config.directory)}"))
    if config.user:
        try:
            number = pwd.getpwnam(config.user).pw_uid
        except KeyError:
            faults.append(Fault("launcher.user", f"no user {shown(config.user)}"))
        else:
            if os.geteuid() not in (0, number):
                text = f"{shown(config.user)} is another user; only root may run programs as such"
                faults.append(Fault("launcher.user", text))
    if faults:
        raise ConfigError(faults)


class LauncherService(Service):
    """Offers the launcher, and ends its programs."""

    def __init__(self, config: LauncherConfig, site: Site) -> None:
        self._config = config
        self._site = site
        self.launcher = ProgramLauncher(
            config,
            site.reactor,
            config.advertise or site.section.address,
            self._note_unused,
            self._is_refused,
            random.SystemRandom(),
        )
        site.provide(IProgramLauncher, self.launcher)
        site.status.facts["launcher"] = self.launcher.facts
        site.status.metrics.register(LauncherCollector(self.launcher))

    def _note_unused(self, client: str, service: str) -> None:
        box = self._site.find(IPenaltyBox)
        if box is not None:
            box.note_unused(client, service)

    def _is_refused(self, client: str) -> str:
        box = self._site.find(IPenaltyBox)
        return "" if box is None else str(box.refusal(client))

    def stopService(self) -> Deferred[Any]:
        """Ask programs to end, and after ``stop_seconds`` make them."""
        super().stopService()
        launcher = self.launcher
        launcher.close()
        clock = IReactorTime(self._site.reactor)
        killing = clock.callLater(self._config.stop_seconds, launcher.kill)

        def gone(_: object) -> None:
            if killing.active():
                killing.cancel()

        return launcher.all_gone().addCallback(gone)


class LauncherCollector(Collector):
    """Shows the numbers when Prometheus asks."""

    def __init__(self, launcher: ProgramLauncher) -> None:
        self._launcher = launcher

    def describe(self) -> list[Metric]:
        """Called by the registry: nothing is promised, so nothing is collected to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        for name, number in self._launcher.facts().items():
            family = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
            text = name.replace("_", " ").capitalize() + "."
            yield family(f"gridnet_launcher_{name}", text, number)
