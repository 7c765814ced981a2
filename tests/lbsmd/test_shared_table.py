"""The daemon publishes its table in shared memory when it is told to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from gridnet.config import SiteConfig, SiteSection, structure
from gridnet.demo.plan import DemoPlan
from gridnet.lbsmd.answers import Answers
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.demo import section
from gridnet.lbsmd.service import Daemon, make_lbsmd
from gridnet.lbsmd.shared_table import keys_of
from gridnet.site import Site
from gridnet.table.heap_layout import HeapError
from gridnet.table.heap_segment import PUBLIC_KEYS, HeapReader


class SharedTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        (self.directory / "servrc.cfg").write_text("db=PubMed\nA STANDALONE 10.1.1.1:1\n")
        self.name = f"{self.id()} {os.getpid()}"
        try:
            self.reader = HeapReader(keys_of(self.name))
        except HeapError as error:
            raise SkipTest(str(error)) from None
        self.addCleanup(self.reader.close)
        self.reactor = MemoryReactorClock()
        self.reactor.advance(1_800_000_000.0)
        self.site = Site(
            SiteConfig(SiteSection(address="10.0.0.1"), {}, self.directory), self.reactor
        )

    def make(self, **keys: Any) -> Daemon:
        keys = {"servrc": "servrc.cfg", "directory": ".", "run_checks": False, **keys}
        daemon = make_lbsmd(LbsmdConfig(**keys), self.site, run_in_thread=maybeDeferred)
        assert isinstance(daemon, Daemon)
        daemon.startService()
        self.addCleanup(daemon.stopService)
        return daemon

    def test_local_programs_find_the_table_while_the_daemon_runs(self) -> None:
        daemon = self.make(shared_memory=self.name)
        found = self.reader.read(self.reactor.seconds())
        assert found is not None
        self.assertEqual([each.info.host for each in found.entries("a")], ["10.1.1.1"])
        self.assertEqual(found.config, str(self.directory / "servrc.cfg"))
        self.assertEqual((found.stamp.local, found.stamp.started_at), ("10.0.0.1", 1_800_000_000))
        daemon.stopService()
        self.assertIsNone(self.reader.read(self.reactor.seconds()))

    def test_a_reload_is_published_soon(self) -> None:
        daemon = self.make(shared_memory=self.name)
        self.reactor.advance(1.0)
        (self.directory / "servrc.cfg").write_text("B STANDALONE 10.1.1.1:2\n")
        self.successResultOf(daemon.watch.reload())
        self.reactor.advance(0.2)
        found = self.reader.read(self.reactor.seconds())
        assert found is not None
        self.assertEqual((len(found.entries("A")), len(found.entries("B"))), (0, 1))

    def test_it_says_where_and_how_it_is(self) -> None:
        daemon = self.make(shared_memory=self.name)
        announced = self.site.addresses["lbsmd"]["shared_memory"]
        self.assertEqual(int(announced["semaphores"], 16), keys_of(self.name).semaphores)
        self.assertEqual(self.site.status.facts["shared memory"]()["serial"], 1)
        self.assertEqual(self.site.status.failures(), {})
        assert isinstance(daemon.answers, Answers)
        heap = daemon.answers.table({})["heap"]
        self.assertEqual(heap["size"], heap["used"] + heap["free"])

    def test_without_a_name_nothing_is_published(self) -> None:
        daemon = self.make()
        self.assertIsNone(daemon.answers.table({})["heap"])
        self.assertNotIn("shared memory", self.site.status.facts)

    def test_names_and_keys(self) -> None:
        self.assertEqual(keys_of("public"), PUBLIC_KEYS)
        self.assertNotEqual(keys_of("other"), PUBLIC_KEYS)
        for heap, public in ((False, False), (True, True)):
            plan = DemoPlan(self.directory, 27600, self.directory, "python", heap=heap)
            config = structure(LbsmdConfig, section(plan), "lbsmd")
            self.assertEqual(keys_of(config.shared_memory) == PUBLIC_KEYS, public)
