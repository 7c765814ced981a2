"""The daemon: reading at the start, atomic reloads, and the files it watches."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gridnet.config import SiteConfig, SiteSection
from gridnet.errors import ConfigError
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.check_config import main
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.service import ConfigurationKeeper, make_lbsmd
from gridnet.site import Site
from gridnet.table.model import Change


class InlineThreads:
    """A thread pool that works at once, in the caller."""

    def callInThreadWithCallback(self, done: Any, work: Any, *args: Any, **kw: Any) -> None:
        """As the real one, without a thread."""
        try:
            result = work(*args, **kw)
        except Exception:
            done(False, Failure())
        else:
            done(True, result)


class ThreadlessReactor(Clock):
    """A clock with a thread pool that is none."""

    def getThreadPool(self) -> InlineThreads:
        """The pool."""
        return InlineThreads()

    def callFromThread(self, call: Any, *args: Any) -> None:
        """At once."""
        call(*args)


class KeeperCase(SynchronousTestCase):
    """A directory with a file set, and a site that reads it."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.reactor = ThreadlessReactor()
        self.reactor.advance(1_000_000)
        self.main = self.directory / "servrc.cfg"
        self.main.write_text("A STANDALONE 10.1.1.1:1\n%include more.cfg\n")
        self.more = self.directory / "more.cfg"
        self.more.write_text("db=PubMed\nB STANDALONE :2\n")

    def make(self, **keys: Any) -> ConfigurationKeeper:
        """The daemon, running."""
        self.site = Site(
            SiteConfig(SiteSection(address="10.0.0.1"), {}, self.directory), self.reactor
        )
        service = make_lbsmd(LbsmdConfig(poll_seconds=1.0, **keys), self.site)
        assert isinstance(service, ConfigurationKeeper)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def services(self) -> list[str]:
        """Names in the table."""
        return [entry.service for entry in self.site.table.all_entries()]


class StartTests(KeeperCase):
    """The first reading."""

    def test_the_table_is_full_before_the_service_starts(self) -> None:
        """Entries, this host, its environment."""
        self.make()
        self.assertEqual(self.services(), ["A", "B"])
        host = self.site.table.host("10.0.0.1")
        assert host is not None
        self.assertEqual(host.environment, (("db", "PubMed"),))

    def test_a_faulty_configuration_does_not_start(self) -> None:
        """All its faults are in the error."""
        self.main.write_text("A STANDALONE\nB HTTP\n")
        error = self.assertRaises(ConfigError, self.make)
        self.assertEqual(len(error.faults), 2)

    def test_it_may_be_told_to_start_with_the_faultless_lines(self) -> None:
        """And is not well then."""
        self.main.write_text("A STANDALONE\nB DNS\n")
        keeper = self.make(start_with_faults=True)
        self.assertEqual(self.services(), ["B"])
        self.assertIn("servrc.cfg:1", keeper.check())


class ReloadTests(KeeperCase):
    """Changes of the file set."""

    def settle(self) -> None:
        """Let the daemon look at its files once."""
        self.reactor.advance(1.0)

    def rewrite(self, path: Path, text: str) -> None:
        """New text, and a state that differs from the one before for certain."""
        path.write_text(text)
        stamp = self.reactor.seconds() + len(text)
        os.utime(path, (stamp, stamp))

    def test_edits_are_noticed_in_every_file(self) -> None:
        """Included ones too."""
        self.make()
        self.rewrite(self.more, "C STANDALONE :3\n")
        self.settle()
        self.assertEqual(self.services(), ["A", "C"])

    def test_a_rename_over_is_noticed(self) -> None:
        """As editors and configuration tools do it."""
        self.make()
        new = self.directory / "new"
        new.write_text("D STANDALONE :4\n")
        new.rename(self.more)
        self.settle()
        self.assertEqual(self.services(), ["A", "D"])

    def test_removal_is_refused_and_re_creation_taken(self) -> None:
        """A missing include is a fault; the configuration in force stays until it is back."""
        keeper = self.make()
        self.more.unlink()
        self.settle()
        self.assertEqual(self.services(), ["A", "B"])
        self.assertIn("more.cfg", keeper.check())
        self.more.write_text("E STANDALONE :5\n")
        self.settle()
        self.assertEqual(self.services(), ["A", "E"])
        self.assertEqual(keeper.check(), "")

    def test_a_broken_edit_changes_nothing_and_is_told(self) -> None:
        """In the log, on the status page, in the health check; then it is mended."""
        keeper = self.make()
        serial = self.site.table.serial
        self.rewrite(self.main, "A STANDALONE 10.1.1.1:1\nB WHAT :2\n")
        self.settle()
        self.assertEqual(self.site.table.serial, serial)
        self.assertIn("servrc.cfg:2:3", keeper.facts()["refused"][0])
        self.assertIn("lbsmd", self.site.status.failures())
        self.rewrite(self.main, "F STANDALONE 10.1.1.1:1\n")
        self.settle()
        self.assertEqual((self.services(), keeper.refused), (["F"], ()))
        self.assertEqual(dict(self.site.status.failures()), {})

    def test_a_reload_is_one_step(self) -> None:
        """One notification for all that it changes."""
        self.make()
        steps: list[int] = []

        def changed(changes: list[Change]) -> None:
            steps.append(len(changes))

        self.site.table.subscribe(changed)
        self.rewrite(self.main, "X STANDALONE 10.1.1.1:1\nY STANDALONE :2\nZ STANDALONE :3\n")
        self.settle()
        self.assertEqual(self.services(), ["X", "Y", "Z"])
        # The host's environment, gone with the include, is a record of its own.
        self.assertEqual(len(steps), 2)
        self.assertEqual(steps[0], 5)

    def test_unchanged_files_are_not_read_again(self) -> None:
        """A look costs a stat of each."""
        keeper = self.make()
        for _ in range(5):
            self.settle()
        self.assertEqual(keeper.reloads, 1)

    def test_a_reload_can_be_asked_for(self) -> None:
        """Through the site's seam; it says which faults there were."""
        self.make()
        holder = self.site.find(IConfigurationHolder)
        self.assertEqual(self.successResultOf(holder.reload()), ())
        self.main.write_text("A STANDALONE\n")
        faults = self.successResultOf(holder.reload())
        self.assertEqual(len(faults), 1)

    def test_stopping_ends_the_watch(self) -> None:
        """No call is left on the clock."""
        keeper = self.make()
        stopped = keeper.stopService()
        assert isinstance(stopped, Deferred)
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        keeper.startService()


class CheckConfigTests(KeeperCase):
    """``gridnet check-config``."""

    def call(self, *words: str) -> tuple[int, str, str]:
        """Status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(words)
        return status, out.getvalue(), err.getvalue()

    def test_a_good_set_is_status_0(self) -> None:
        """And a line that says how much there is."""
        status, out, err = self.call(str(self.main))
        self.assertEqual((status, err), (0, ""))
        self.assertIn("2 services in 2 files", out)

    def test_every_fault_of_every_set_is_printed(self) -> None:
        """Status 1."""
        self.more.write_text("A STANDALONE\nB STANDALONE\n")
        other = self.directory / "other"
        other.write_text(":0\n")
        status, _, err = self.call(str(self.main), str(other))
        self.assertEqual((status, len(err.splitlines())), (1, 3))
