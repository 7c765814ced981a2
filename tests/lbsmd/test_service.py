"""The daemon as a component: how a site makes it, and its console command."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.config import SiteConfig, SiteSection, parse, structure
from gridnet.demo.plan import DemoPlan
from gridnet.errors import ConfigError
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.check_config import main
from gridnet.lbsmd.component import COMPONENT
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.demo import section
from gridnet.lbsmd.service import Daemon, make_lbsmd
from gridnet.site import Site


class DaemonCase(SynchronousTestCase):
    """A directory with definitions."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.main = self.directory / "servrc.cfg"
        self.main.write_text("A STANDALONE 10.1.1.1:1\n%include more.cfg\n")
        self.more = self.directory / "more.cfg"
        self.more.write_text("db=PubMed\n:8080\nB STANDALONE :2\n")


class DaemonTests(DaemonCase):
    """The daemon in a site."""

    def make(self, **keys: Any) -> tuple[Daemon, Site]:
        """The daemon, started, in a site of its own."""
        site = Site(
            SiteConfig(SiteSection(address="10.0.0.1"), {}, self.directory), MemoryReactorClock()
        )
        keys = {"servrc": "servrc.cfg", "directory": ".", **keys}
        daemon = make_lbsmd(LbsmdConfig(**keys), site, run_in_thread=maybeDeferred)
        assert isinstance(daemon, Daemon)
        daemon.startService()
        self.addCleanup(daemon.stopService)
        return daemon, site

    def test_it_says_how_it_is(self) -> None:
        """Facts for the status page, a check for its health, a seam for SIGHUP."""
        daemon, site = self.make()
        facts = site.status.facts["lbsmd"]()
        self.assertEqual(
            {key: facts[key] for key in ("services", "loads", "zone", "monitored_ports")},
            {"services": 2, "loads": 1, "zone": "0xffff", "monitored_ports": [8080]},
        )
        self.assertEqual(facts["files"], [str(self.main), str(self.more)])
        self.assertEqual(site.status.failures(), {})
        self.more.write_text("nonsense here\n")
        (holder,) = [holder for _, holder in site.offers(IConfigurationHolder)]
        self.assertEqual(len(self.successResultOf(holder.reload())), 1)
        self.assertIn("more.cfg:1:10", site.status.failures()["lbsmd"])
        self.assertEqual(site.status.facts["lbsmd"]()["refused_fault_count"], 1)
        self.assertEqual(len(daemon.local.services()), 2)

    def test_records_keep_their_checks(self) -> None:
        """For whoever runs them."""
        self.main.write_text("A [7,/bin/ask,*ops] STANDALONE :1\n")
        daemon, _ = self.make()
        (service,) = daemon.local.services().values()
        plan = service.placed.plan
        self.assertEqual(plan.interval.period_seconds, 7)
        self.assertEqual([group.name for group in plan.groups], ["ops"])

    def test_keys_reach_the_language(self) -> None:
        """Mail domain, locality, validity, zone."""
        self.main.write_text("@dev\nA [a@example.org] DNS :1\n")
        _, site = self.make(
            mail_domain="example.org", default_local=True, default_time_seconds=9, site_bits=0xC0
        )
        entry = site.table.entries("A")[0]
        self.assertEqual((entry.info.local, entry.info.time, entry.zone), (True, 9, 0x80))

    def test_an_impossible_section_is_refused(self) -> None:
        """Each key for its reason."""
        for keys, reason in (
            ({"poll_seconds": 0.0}, "more than 0"),
            ({"site_bits": 5}, "contiguous"),
            ({"site_bits": 0x10000}, "contiguous"),
            ({"site_bits": 0x3, "zone_bits": 4}, "part of site_bits"),
            ({"site_role": "x"}, "x"),
            ({"default_time_seconds": 0}, "1 or more"),
            ({"servrc": 5}, "str"),
        ):
            error = self.assertRaises(ConfigError, structure, LbsmdConfig, keys, "lbsmd")
            self.assertIn(reason, str(error))
            self.assertIn("lbsmd", str(error))

    def test_the_toolkits_own_socket_is_opened_where_that_can_be(self) -> None:
        """Another place is meant to be possible; none is none."""
        self.assertFalse(LbsmdConfig(feedback_socket="").takes_feedback)
        self.assertTrue(LbsmdConfig(feedback_socket="/no/where").takes_feedback)
        for may in (False, True):
            asked: list[object] = []

            def access(path: object, mode: int, may: bool = may, asked: Any = asked) -> bool:
                asked.append(path)
                return may

            self.patch(os, "access", access)
            self.assertEqual(LbsmdConfig().takes_feedback, may)
            self.assertEqual(asked, ["/opt/machine/lbsm/run"])

    def test_the_demo_section_is_one(self) -> None:
        """What it says fits the keys."""
        plan = DemoPlan(self.directory, 27600, self.main, "python")
        values: Mapping[str, object] = section(plan)
        self.assertEqual(
            structure(COMPONENT.config_class(), values, "lbsmd").servrc, str(self.main)
        )

    def test_the_section_is_found_by_its_name(self) -> None:
        """``[lbsmd]``."""
        config = parse('[lbsmd]\nservrc = "x"\n', {COMPONENT.name: COMPONENT.config_class()})
        self.assertEqual(config.sections["lbsmd"], LbsmdConfig(servrc="x"))


class CheckConfigTests(DaemonCase):
    """``gridnet check-config``."""

    def call(self, *words: str) -> tuple[int, str, str]:
        """Status, output, errors; from another directory."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(["--directory", str(self.directory), *words])
        return status, out.getvalue(), err.getvalue()

    def test_a_good_set_is_status_0(self) -> None:
        """And a line that says how much there is."""
        status, out, err = self.call(str(self.main))
        self.assertEqual((status, err), (0, ""))
        self.assertIn("2 services in 2 files", out)

    def test_every_fault_of_every_set_is_printed(self) -> None:
        """Status 1."""
        self.more.write_text("A STANDALONE\nB STANDALONE :1 Q=1 R=x\n")
        other = self.directory / "other"
        other.write_text(":0\n")
        status, _, err = self.call(str(self.main), str(other))
        self.assertEqual((status, len(err.splitlines())), (1, 4))

    def test_hosts_are_looked_up_unless_told_otherwise(self) -> None:
        """An unknown one is a fault."""
        self.more.write_text(f"A DNS {'x' * 70}.invalid\n")
        self.assertEqual(self.call(str(self.main))[0], 1)
        self.assertEqual(self.call("--no-resolve", str(self.main))[0], 0)

    def test_contacts_follow_the_site_file_or_the_command_line(self) -> None:
        """Whose mail domain applies."""
        self.more.write_text("A [a@example.org] DNS\n")
        self.assertEqual(self.call(str(self.main))[0], 1)
        self.assertEqual(self.call("--mail-domain", "example.org", str(self.main))[0], 0)
        site = self.directory / "site.toml"
        site.write_text('[lbsmd]\nmail_domain = "example.org"\n')
        self.assertEqual(self.call("--config", str(site), str(self.main))[0], 0)

    def test_a_bad_site_file_is_status_2(self) -> None:
        """Its faults are printed."""
        site = self.directory / "site.toml"
        site.write_text("[lbsmd]\nnonsense = 1\n")
        status, _, err = self.call("--config", str(site), str(self.main))
        self.assertEqual(status, 2)
        self.assertIn("lbsmd.nonsense", err)

    def test_remarks_are_no_faults(self) -> None:
        """They are printed all the same."""
        self.more.write_text("A DNS :1\nA DNS :1\n")
        status, _, err = self.call(str(self.main))
        self.assertEqual(status, 0)
        self.assertIn("(remark)", err)
