"""The daemon: reads its configuration, watches it, and keeps the table in step with it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping
from pathlib import PurePath
from types import FrameType
from typing import Any

from attrs import frozen
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import ConfigError, Fault, TableError
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.entries import entries, host_names
from gridnet.lbsmd.files import Signature, read_text, signature, signatures
from gridnet.lbsmd.servrc.configuration import Configuration, load
from gridnet.site import Site
from gridnet.table.model import Entry, Host


@frozen
class Reading:
    """One look at the file set: what it says, and the files' states when it was read."""

    configuration: Configuration
    entries: tuple[Entry, ...]
    faults: tuple[Fault, ...]
    states: Mapping[str, Signature]


def read_configuration(config: LbsmdConfig, site: Site) -> Reading:
    """Read the whole file set; blocks, and so belongs in a thread once the site runs."""
    states: dict[str, Signature] = {}

    def read(path: str) -> str:
        # The state is taken first: a change during the reading is then noticed at the next look.
        states[path] = signature(path)
        return read_text(path)

    main = PurePath(site.config.path(config.servrc).absolute())
    start = PurePath(site.config.path(config.start_dir).absolute())
    configuration = load(read, main, start, config.rules())
    resolved = {name: _resolve(name) for name in host_names(configuration)}
    found, faults = entries(configuration, site.section.address, resolved)
    return Reading(configuration, tuple(found), (*configuration.faults, *faults), states)


def _resolve(name: str) -> str | None:
    try:
        return socket.gethostbyname(name)
    except (OSError, UnicodeError):
        return None


@implementer(IConfigurationHolder)
class ConfigurationKeeper(Service):
    """
    Keeps the table's entries of this host equal to the configuration.

    A changed file set takes effect as one step; one with a fault takes none, and says so in the
    log and on the status page until it is mended.

    :ivar in_force: the reading in force; None before the first start.
    :ivar refused: faults of the newest reading when it was refused; else empty.
    """

    _log = Logger()

    def __init__(self, config: LbsmdConfig, site: Site) -> None:
        self._config = config
        self._site = site
        self._clock = IReactorTime(site.reactor)
        self._lock = DeferredLock()
        self._watch = LoopingCall(self._look)
        self._watch.clock = self._clock
        self._states: Mapping[str, Signature] = {}
        self._previous_hangup: Any = None
        self.in_force: Reading | None = None
        self.refused: tuple[Fault, ...] = ()
        self.loaded_at = 0.0
        self.reloads = 0

    def start_reading(self) -> None:
        """
        The first reading, before anything is served.

        :raises ConfigError: it has faults, and the site does not start with faults.
        """
        reading = read_configuration(self._config, self._site)
        if reading.faults and not self._config.start_with_faults:
            raise ConfigError(reading.faults)
        for fault in reading.faults:
            self._log.error("left out: {fault}", fault=str(fault))
        self._take(reading)
        self.refused = reading.faults

    def startService(self) -> None:
        """Begin to watch the files, and listen for SIGHUP."""
        super().startService()
        self._watch.start(self._config.poll_seconds, now=False)
        if getattr(self._site.reactor, "_installSignalHandlers", False):
            self._previous_hangup = signal.signal(signal.SIGHUP, self._hangup)

    def stopService(self) -> Deferred[Any] | None:
        """Stop watching; what is being read is read to its end and dropped."""
        super().stopService()
        if self._watch.running:
            self._watch.stop()
        if self._previous_hangup is not None:
            signal.signal(signal.SIGHUP, self._previous_hangup)
            self._previous_hangup = None
        return self._lock.run(succeed, None)

    def reload(self) -> Deferred[tuple[Fault, ...]]:
        """Read anew now; the Deferred gives the faults, none when it is in force."""
        return self._lock.run(self._reload)

    def _hangup(self, number: int, frame: FrameType | None) -> None:
        IReactorFromThreads(self._site.reactor).callFromThread(self._reload_and_log)
        if callable(self._previous_hangup):
            self._previous_hangup(number, frame)

    def _reload_and_log(self) -> None:
        self.reload().addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("reading the configuration anew", failure)

    def _look(self) -> Deferred[Any] | None:
        """Compare the files with their states at the last reading."""
        if signatures(self._states) == self._states:
            return None
        return self.reload().addErrback(self._failed)

    def _reload(self) -> Deferred[tuple[Fault, ...]]:
        reactor = self._site.reactor
        reading = deferToThreadPool(
            reactor, reactor.getThreadPool(), read_configuration, self._config, self._site
        )
        return reading.addCallback(self._judge)

    def _judge(self, reading: Reading) -> tuple[Fault, ...]:
        self._states = reading.states
        faults = reading.faults
        if not faults and self.in_force is not None:
            try:
                self._take(reading)
            except TableError as error:
                faults = (Fault(str(self._config.servrc), str(error)),)
        self.refused = faults
        if faults:
            self._log.error(
                "configuration refused, {count} faults; the one in force stays", count=len(faults)
            )
            for fault in faults[:20]:
                self._log.error("refused: {fault}", fault=str(fault))
        else:
            self._log.info(
                "configuration in force: {services} services from {files} files",
                services=len(reading.entries),
                files=len(reading.configuration.files),
            )
        return faults

    def _take(self, reading: Reading) -> None:
        table, address = self._site.table, self._site.section.address
        configuration = reading.configuration
        table.replace_owner(address, reading.entries)
        host = Host(address, environment=configuration.environment, zone=configuration.zone)
        if table.host(address) != host:
            table.put_host(host)
        self._states = reading.states
        self.in_force = reading
        self.loaded_at = self._clock.seconds()
        self.reloads += 1

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        running = self.in_force
        return {
            "files": list(running.configuration.files) if running else [],
            "services": len(running.entries) if running else 0,
            "loaded_at": self.loaded_at,
            "readings": self.reloads,
            "zone": f"{running.configuration.zone:#x}" if running else "",
            "refused": [str(fault) for fault in self.refused],
        }

    def check(self) -> str:
        """For the health check: empty while the newest configuration is in force."""
        if not self.refused:
            return ""
        more = f" (and {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
        return f"configuration refused: {self.refused[0]}{more}"


def make_lbsmd(config: LbsmdConfig, site: Site) -> IService:
    """
    The daemon of *site*; its configuration is read here, so the table is full before anyone asks.

    :raises ConfigError: the configuration has faults.
    """
    keeper = ConfigurationKeeper(config, site)
    keeper.start_reading()
    site.provide(IConfigurationHolder, keeper)
    site.status.facts["lbsmd"] = keeper.facts
    site.status.checks["lbsmd"] = keeper.check
    return IService(keeper)
