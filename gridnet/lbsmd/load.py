"""
How loaded this host is: looks at it from time to time, and tells what matters.

See docs/protocols/host-load.rst.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Protocol

import psutil
from attrs import evolve, frozen
from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gridnet.component import load_object
from gridnet.errors import ConfigError, Fault
from gridnet.lbsmd.load_formula import FORMULAS, Formula, LoadFigures, Statuses
from gridnet.lbsmd.local_services import LocalServices
from gridnet.table.model import Host, HostFacts

#: A host in the field's terms: 64 bits, unknown processor, Linux (``ncbi_host_info.h``).
_MACHINE = 2 << 14 | 128
#: A status is never 0, which would mean that the host can take nothing at all.
LEAST_STATUS = 0.01
MOST_STATUS = 1e6
#: Shares of a port's capacity that differ by less are the same.
_PORT_STEP = 0.05
_ROUNDING = 1e-9


@frozen
class Sample:
    """One look at the host."""

    figures: LoadFigures
    facts: HostFacts  #: without ports and what only the daemon knows


class Sampler(Protocol):
    """Looks at the host."""

    def look(self) -> Sample:
        """How it is now; must not block."""


class SystemSampler:
    """Looks at this host, through psutil; a look takes well under a millisecond."""

    def __init__(self) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._processors = psutil.cpu_count() or 1
        numbers = [int(each) for each in re.findall("[0-9]+", os.uname().release)[:3]]
        major, minor, patch = (*numbers, 0, 0, 0)[:3]
        self._fixed = HostFacts(
            machine=_MACHINE,
            booted_at=psutil.boot_time(),
            kernel=(major, minor, patch),
            page_octets=self._page,
            clock_ghz=_clock_ghz(),
            processors=self._processors,
            processor_units=psutil.cpu_count(logical=False) or self._processors,
        )
        self._busy, self._all = _processor_seconds()

    def look(self) -> Sample:
        """How the host is now; the instant load is that since the last look."""
        busy, everything = _processor_seconds()
        passed = everything - self._all
        share = min(max((busy - self._busy) / passed, 0.0), 1.0) if passed > 0 else 0.0
        self._busy, self._all = busy, everything
        average = os.getloadavg()[0]
        instant = share * self._processors
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        facts = evolve(
            self._fixed,
            load=average,
            load_instant=instant,
            ram_pages=memory.total // self._page,
            cache_pages=(memory.cached + memory.buffers) // self._page,
            free_pages=memory.free // self._page,
            swap_pages=swap.total // self._page,
            free_swap_pages=swap.free // self._page,
            tasks=len(psutil.pids()),
        )
        return Sample(LoadFigures(average, instant, self._processors), facts)


def _clock_ghz() -> float:
    """Of the processors; 0: the system does not say."""
    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return 0.0
    return 0.0 if clock is None else (clock.max or clock.current) / 1000.0


def _processor_seconds() -> tuple[float, float]:
    """Seconds that all processors together have worked, and seconds altogether."""
    times = psutil.cpu_times()
    # Time of guests is part of user and nice already.
    busy = sum(
        getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")
    )
    return busy, busy + times.idle + getattr(times, "iowait", 0.0)


def find_formula(name: str) -> Formula:
    """
    The formula *name*: one of ours, or ``package.module:function``.

    :raises ConfigError: there is no such function.
    """
    known = FORMULAS.get(name)
    if known is not None:
        return known
    try:
        formula: Formula = load_object(name)
        if not callable(formula):
            raise TypeError(f"it is a {type(formula).__name__}")
    except (ImportError, AttributeError, TypeError) as error:
        fault = Fault("lbsmd.load_formula", f"found {name}, {error}; expected a function")
        raise ConfigError([fault]) from None
    return formula


def matters(told: Host, now: Host, step: float) -> bool:
    """
    Whether *now* is worth telling to whoever knows *told*.

    :param step: part of a status by which it must have changed.
    """
    if abs(now.status - told.status) > step * told.status:
        return True
    if abs(now.status_blast - told.status_blast) > step * told.status_blast:
        return True
    before, after = dict(told.facts.ports), dict(now.facts.ports)
    return before.keys() != after.keys() or any(
        abs(used - before[port]) >= _PORT_STEP - _ROUNDING
        or (used >= 1.0) is not (before[port] >= 1.0)
        for port, used in after.items()
    )


@frozen
class LoadBounds:
    """How often to look, and when to tell."""

    look_seconds: float = 2.0
    step: float = 0.1  #: part of a status by which it must have changed to be told at once
    refresh_seconds: float = 30.0  #: after which it is told even so


class LoadService(Service):
    """
    Keeps the record of this host in the table equal to how the host is.

    :ivar looks: how often it has looked.
    :ivar told: how often that was worth a new record.
    :param ports: gives the monitored ports and the shares of their capacity in use.
    :param formula: makes statuses of figures; one that fails counts as the last good ones.
    """

    _log = Logger()

    def __init__(
        self,
        local: LocalServices,
        sampler: Sampler,
        formula: Formula,
        clock: IReactorTime,
        own: HostFacts,
        bounds: LoadBounds = LoadBounds(),
        ports: Callable[[], tuple[tuple[int, float], ...]] = tuple,
    ) -> None:
        """
        :param own: what only the daemon knows: its version, start and joining time.
        """
        self.looks = self.told = 0
        self.failure = ""
        self._local = local
        self._sampler = sampler
        self._formula = formula
        self._clock = clock
        self._own = own
        self._bounds = bounds
        self._ports = ports
        self._statuses = Statuses(1000.0, 1000.0)
        self._told: Host | None = None
        self._told_at = 0.0
        self._most_hosts = 0
        self._looking = LoopingCall(self._tick)
        self._looking.clock = clock

    def startService(self) -> None:
        """Look now, and from time to time."""
        super().startService()
        self._looking.start(self._bounds.look_seconds)

    def stopService(self) -> None:
        """Look no more; the last record stays."""
        super().stopService()
        if self._looking.running:
            self._looking.stop()

    def _tick(self) -> None:
        try:
            self.look()
        except Exception as error:
            if not self.failure:
                self._log.failure("looking at the load")
            self.failure = f"the load cannot be seen: {type(error).__name__}: {error}"

    def look(self) -> None:
        """Look once, and tell if that matters."""
        self.looks += 1
        host = self._record(self._sampler.look())
        now = self._clock.seconds()
        due = now - self._told_at >= self._bounds.refresh_seconds
        if self._told is None or due or matters(self._told, host, self._bounds.step):
            self._told, self._told_at = host, now
            self.told += 1
            self._local.tell_load(host.status, host.status_blast, host.facts)

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        host = self._told
        return {
            "load_looks": self.looks,
            "load_told": self.told,
            **({"load": host.facts.load, "load_instant": host.facts.load_instant} if host else {}),
        }

    def check(self) -> str:
        """For the health page."""
        return self.failure

    # --- inside -----------------------------------------------------------------------------

    def _record(self, sample: Sample) -> Host:
        statuses = self._judge(sample.figures)
        own = self._own
        seen = self._local.hosts_seen()
        self._most_hosts = max(self._most_hosts, seen)
        facts = evolve(
            sample.facts,
            ports=self._ports(),
            daemon_version=own.daemon_version,
            started_at=own.started_at,
            joined_at=own.joined_at,
            hosts_seen=seen,
            hosts_known=self._most_hosts,
        )
        return Host(self._local.address, statuses.smoothed, statuses.instant, facts=facts)

    def _judge(self, figures: LoadFigures) -> Statuses:
        try:
            found = self._formula(figures)
            pair = (float(found.smoothed), float(found.instant))
            if not all(isfinite(each) and each >= 0.0 for each in pair):
                raise ValueError(f"statuses {pair}; expected numbers of 0 or more")
        except Exception:
            if not self.failure:
                self.failure = "the load formula fails; the statuses of before stay"
                self._log.failure("the load formula, for {figures}", figures=figures)
            return self._statuses
        self.failure = ""
        self._statuses = Statuses(*(min(max(each, LEAST_STATUS), MOST_STATUS) for each in pair))
        return self._statuses
