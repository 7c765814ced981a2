"""How loaded this host is, and when that is told."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import ConfigError
from gridnet.lbsmd.load import (
    LoadBounds,
    LoadService,
    Sample,
    SystemSampler,
    find_formula,
    matters,
)
from gridnet.lbsmd.load_formula import LoadFigures, Statuses, book, even
from gridnet.lbsmd.local_services import LocalServices
from gridnet.table.model import Host, HostFacts, ServiceTable
from gridnet.table.selection import status
from tests.hypothesis_profile import examples
from tests.lbsmd.support import loaded

#: tasks/processors, load average, instant load -> status, instant status, as the chapter prints.
ROWS = (
    (4, 0.06, 0.03, 397.62, 3973.51),
    (4, 0.17, 0.03, 155.95, 3972.41),
    (4, 0.20, 0.03, 129.03, 3973.33),
)


def broken(figures: LoadFigures) -> Statuses:
    """A formula with a mistake."""
    return Statuses(1.0 / (figures.average - 1.0), 5.0)


class FormulaTests(SynchronousTestCase):
    """Load in, status out."""

    def test_the_rows_of_the_book(self) -> None:
        """Each status lies between those of the loads that round to the printed ones."""
        for processors, average, instant, smoothed, blast in ROWS:
            most = book(LoadFigures(average - 0.005, instant - 0.005, processors))
            least = book(LoadFigures(average + 0.005, instant + 0.005, processors))
            self.assertTrue(least.smoothed < smoothed < most.smoothed, average)
            self.assertTrue(least.instant < blast < most.instant, blast)

    @examples(500)
    @given(st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 512))
    def test_more_load_is_less_status(self, load: float, more: float, processors: int) -> None:
        """Never none, and more processors are more."""
        for formula in (book, even):
            lesser = formula(LoadFigures(load + more, load + more, processors))
            greater = formula(LoadFigures(load, load, processors))
            self.assertTrue(0 < lesser.smoothed <= greater.smoothed)
            self.assertTrue(0 < lesser.instant <= greater.instant)
            wider = formula(LoadFigures(load, load, processors + 1))
            self.assertTrue(wider.smoothed > greater.smoothed)
            self.assertTrue(wider.instant > greater.instant)

    def test_a_site_may_bring_its_own(self) -> None:
        """Named by module and function; a name that is none is a fault of the site file."""
        self.assertIs(find_formula("even"), even)
        self.assertIs(find_formula("tests.lbsmd.test_load:broken"), broken)
        for name in (
            "no.such:thing",
            "tests.lbsmd.test_load:nothing",
            "tests.lbsmd.test_load:ROWS",
        ):
            error = self.assertRaises(ConfigError, find_formula, name)
            self.assertIn("lbsmd.load_formula", str(error))


class FakeSampler:
    """A host as loaded as the test says."""

    def __init__(self) -> None:
        self.average = self.instant = 0.0
        self.failing = False

    def look(self) -> Sample:
        """See Sampler."""
        if self.failing:
            raise OSError(5, "no /proc")
        facts = HostFacts(load=self.average, load_instant=self.instant, processors=4, tasks=151)
        return Sample(LoadFigures(self.average, self.instant, 4), facts)


class LoadServiceTests(SynchronousTestCase):
    """What the table is told."""

    def make(self, formula: Any = book, **bounds: Any) -> LoadService:
        """A service, running."""
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.table = ServiceTable()
        self.local = LocalServices(self.table, "10.0.0.1")
        self.local.load(loaded("db=PubMed\nA STANDALONE :80\nB STANDALONE :80 Blast\n"))
        self.sampler = FakeSampler()
        self.ports: tuple[tuple[int, float], ...] = ()
        own = HostFacts(daemon_version=(0, 1, 2), started_at=5.0, joined_at=6.0)
        service = LoadService(
            self.local,
            self.sampler,
            formula,
            self.clock,
            own,
            LoadBounds(**{"look_seconds": 1.0, **bounds}),
            lambda: self.ports,
        )
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def host(self) -> Host:
        """This host, as the table has it."""
        found = self.table.host("10.0.0.1")
        assert found is not None
        return found

    def rating(self, service: str) -> float:
        """What its server is rated at."""
        (entry,) = self.table.entries(service)
        return status(entry, self.table.host(entry.info.host))

    def test_it_is_in_the_table_at_once_and_rates_servers(self) -> None:
        """Regular ones by the smoothed load, the others by the instant one."""
        service = self.make()
        self.assertEqual((self.rating("A"), self.rating("B")), (4000.0, 4000.0))
        self.assertEqual(self.host().environment, (("db", "PubMed"),))
        self.sampler.average, self.sampler.instant = 9 / 148, 4.0
        self.clock.advance(1)
        self.assertEqual((self.rating("A"), self.rating("B")), (400.0, 2000.0))
        facts = self.host().facts
        self.assertEqual(
            (facts.load, facts.tasks, facts.daemon_version, facts.started_at, facts.joined_at),
            (9 / 148, 151, (0, 1, 2), 5.0, 6.0),
        )
        self.assertEqual((facts.hosts_seen, facts.hosts_known), (1, 1))
        self.assertEqual((service.looks, service.told), (2, 2))

    def test_only_what_matters_is_told(self) -> None:
        """A tenth of a status at once, the rest from time to time."""
        service = self.make(step=0.1, refresh_seconds=30.0)
        serial = self.table.serial
        for tenth in range(1, 20):
            self.sampler.average = 0.000_03 * tenth
            self.clock.advance(1)
        self.assertEqual((service.told, self.table.serial), (1, serial))
        self.sampler.average = 0.001
        self.clock.advance(1)
        self.assertEqual(service.told, 2)
        self.clock.pump([1] * 29)
        self.assertEqual(service.told, 2)
        self.clock.advance(1)
        self.assertEqual(service.told, 3)

    def test_ports_that_fill_matter(self) -> None:
        """A twentieth of the capacity, or the last of it."""
        host = Host("10.0.0.1", facts=HostFacts(ports=((80, 0.5), (81, 0.99))))
        for ports, wanted in (
            (((80, 0.54), (81, 0.99)), False),
            (((80, 0.56), (81, 0.99)), True),
            (((80, 0.5), (81, 1.0)), True),
            (((80, 0.5),), True),
        ):
            now = evolve(host, facts=HostFacts(ports=ports))
            self.assertIs(matters(host, now, 0.1), wanted, ports)
        self.make()
        self.ports = ((80, 1.0),)
        self.clock.advance(1)
        self.assertEqual(self.host().facts.ports, ((80, 1.0),))

    def test_a_reload_keeps_it(self) -> None:
        """And takes the new environment."""
        self.make()
        self.sampler.average = 9 / 148
        self.clock.advance(1)
        self.local.load(loaded("x=y\nA STANDALONE :80\n"))
        self.assertEqual(self.rating("A"), 400.0)
        self.assertEqual((self.host().environment, self.host().facts.tasks), ((("x", "y"),), 151))

    def test_a_formula_that_fails_leaves_what_was(self) -> None:
        """It is logged once, told by the health check, and may mend itself."""
        service = self.make(broken)
        self.assertEqual(self.host().status, 1000.0)  # -1 is none, and there was none before
        self.sampler.average = 1.0
        self.clock.pump([1, 1])
        self.assertIn("formula", service.check())
        self.assertEqual(len(self.flushLoggedErrors(ValueError, ZeroDivisionError)), 1)
        self.sampler.average = 1.0005
        self.clock.advance(1)
        self.assertEqual((service.check(), round(self.host().status)), ("", 2000))

    def test_a_host_that_cannot_be_seen_is_told_and_looked_at_again(self) -> None:
        """The looking goes on."""
        service = self.make()
        self.sampler.failing = True
        self.clock.pump([1, 1])
        self.assertIn("no /proc", service.check())
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.sampler.failing = False
        self.sampler.average = 9 / 148
        self.clock.advance(1)
        self.assertEqual((service.check(), self.rating("A")), ("", 400.0))


class SystemTests(SynchronousTestCase):
    """This very host."""

    def test_what_the_kernel_says(self) -> None:
        """Plausible figures, all of them."""
        sampler = SystemSampler()
        sum(range(200_000))
        sample = sampler.look()
        facts = sample.facts
        self.assertEqual(facts.processors, os.cpu_count())
        self.assertTrue(1 <= facts.processor_units <= facts.processors)
        self.assertEqual(facts.page_octets, os.sysconf("SC_PAGE_SIZE"))
        self.assertEqual(facts.ram_pages, os.sysconf("SC_PHYS_PAGES"))
        self.assertTrue(0 < facts.free_pages < facts.ram_pages)
        self.assertTrue(0 <= facts.free_swap_pages <= facts.swap_pages)
        self.assertTrue(facts.tasks > 0)
        self.assertTrue(0 <= facts.load_instant <= facts.processors)
        self.assertEqual(facts.machine, 0x8080)
        self.assertTrue(os.uname().release.startswith(f"{facts.kernel[0]}.{facts.kernel[1]}"))
        self.assertTrue(facts.booted_at > 0)

    def test_work_is_seen_as_instant_load(self) -> None:
        """Of a process that is busy."""
        sampler = SystemSampler()
        subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
        self.assertGreater(sampler.look().figures.instant, 0.1)
