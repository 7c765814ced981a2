"""Definitions on disk: read at the start, watched, and swapped in one step."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gridnet.config import SiteConfig
from gridnet.errors import ConfigError
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd import loading
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.files import FileReader, changed, octet_text, state
from gridnet.lbsmd.loading import Source, resolve_all, resolve_name
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.reload import ConfigurationWatch, RunInThread
from gridnet.table.model import Change, ServiceTable

NAMES = {"web.example.org": "10.7.7.7"}


def resolve(name: str) -> str:
    """Looks names up in NAMES."""
    try:
        return NAMES[name]
    except KeyError:
        raise OSError(2, "Name or service not known") from None


@implementer(IReactorTime)
class TestClock(Clock):
    """A clock that says that it is one."""


class WatchCase(SynchronousTestCase):
    """A directory with a file set, a table, and a watch on a virtual clock."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.clock = TestClock()
        self.table = ServiceTable()
        self.main = self.directory / "servrc.cfg"
        self.main.write_text("A STANDALONE 10.1.1.1:1\n%include more.cfg\n")
        self.more = self.directory / "more.cfg"
        self.more.write_text("db=PubMed\nB STANDALONE :2\n")
        self.steps: list[Sequence[Change]] = []

    def make(
        self, run: RunInThread = maybeDeferred, table: ServiceTable | None = None, **keys: Any
    ) -> ConfigurationWatch:
        """The watch, its first reading done, running."""
        # What lies about was written long ago.
        for path in self.directory.iterdir():
            os.utime(path, (1e9, 1e9))
        keys = {"servrc": "servrc.cfg", "directory": ".", "poll_seconds": 1.0, **keys}
        site = SiteConfig(directory=self.directory)
        source = Source.of(LbsmdConfig(**keys), site, "10.0.0.1", resolve)
        self.local = LocalServices(self.table if table is None else table, source.address)
        watch = ConfigurationWatch(source, self.local, self.clock, run)
        watch.first_load()
        self.table.subscribe(self.steps.append)
        watch.startService()
        self.addCleanup(watch.stopService)
        return watch

    def look(self, seconds: float = 1.0) -> None:
        """Let the watch look at its files once."""
        self.clock.advance(seconds)

    def rewrite(self, path: Path, text: str) -> None:
        """New text in the same file, an hour apart from all that was written before."""
        path.write_text(text)
        self.age = getattr(self, "age", 1_000_000_000) + 3600
        os.utime(path, (self.age, self.age))

    def services(self) -> list[str]:
        """Names in the table."""
        return [entry.service for entry in self.table.all_entries()]


class StartTests(WatchCase):
    """The first reading."""

    def test_the_table_is_full_before_anything_runs(self) -> None:
        """Entries, this host, its environment."""
        watch = self.make()
        self.assertTrue(verifyObject(IConfigurationHolder, watch))
        self.assertEqual(self.services(), ["A", "B"])
        host = self.table.host("10.0.0.1")
        assert host is not None
        self.assertEqual((host.environment, host.zone), ((("db", "PubMed"),), 0xFFFF))
        self.assertEqual(self.table.entries("B")[0].info.time, 30)

    def test_faulty_definitions_do_not_start(self) -> None:
        """All their faults are in the error."""
        self.main.write_text("A STANDALONE\nB HTTP\nC DNS gone.example.org\n")
        error = self.assertRaises(ConfigError, self.make)
        self.assertEqual(
            [fault.where.rpartition("/")[2] for fault in error.faults],
            ["servrc.cfg:1:13", "servrc.cfg:2:7", "servrc.cfg:3"],
        )

    def test_missing_definitions_do_not_start(self) -> None:
        """The error names the file."""
        self.main.unlink()
        error = self.assertRaises(ConfigError, self.make)
        self.assertIn("servrc.cfg", str(error))

    def test_they_may_start_with_what_is_good_of_them(self) -> None:
        """And say that they are not well."""
        self.main.write_text("A STANDALONE\nB DNS\nC DNS gone.example.org\n")
        watch = self.make(start_with_errors=True)
        self.assertEqual(self.services(), ["B"])
        self.assertIn("servrc.cfg:1:13", watch.check())
        self.assertIn("and 1 more", watch.check())

    def test_a_table_that_is_too_small_is_a_fault(self) -> None:
        """With the table's own words."""
        error = self.assertRaises(ConfigError, self.make, table=ServiceTable(max_entries=1))
        self.assertIn("full", str(error))

    def test_host_names_become_addresses(self) -> None:
        """Looked up when the definitions are read."""
        self.main.write_text("A HTTP web.example.org /x\n")
        self.make()
        info = self.table.entries("A")[0].info
        self.assertEqual((info.host, info.vhost), ("10.7.7.7", "web.example.org"))

    def test_the_default_file_is_the_systems_or_the_one_at_hand(self) -> None:
        """And a file that is named has no understudy."""
        system = self.directory / "etc.cfg"
        self.patch(loading, "DEFAULT_SERVRC", system)
        site = SiteConfig(directory=self.directory)

        def main(**keys: Any) -> Path:
            return Source.of(LbsmdConfig(**keys), site, "10.0.0.1").main

        self.assertEqual(main(directory="."), self.directory / "servrc.cfg")
        self.assertEqual(main(), Path("servrc.cfg").absolute())
        system.write_text("")
        self.assertEqual(main(directory="."), system)
        self.assertEqual(main(servrc="gone.cfg"), self.directory / "gone.cfg")


class WatchTests(WatchCase):
    """Changes of the file set."""

    def test_an_edit_of_any_file_is_noticed(self) -> None:
        """Included ones too."""
        self.make()
        self.rewrite(self.more, "C STANDALONE :3\n")
        self.look()
        self.assertEqual(self.services(), ["A", "C"])
        self.rewrite(self.main, "D STANDALONE :3\n")
        self.look()
        self.assertEqual(self.services(), ["D"])

    def test_a_touch_is_noticed(self) -> None:
        """Everything is read anew; nothing changes."""
        watch = self.make()
        serial = self.table.serial
        os.utime(self.more)
        self.look()
        self.assertEqual((watch.loads, self.table.serial), (2, serial))

    def test_a_rename_over_is_noticed(self) -> None:
        """As editors and configuration tools do it."""
        self.make()
        new = self.directory / "new"
        new.write_text("D STANDALONE :4\n")
        # Alike in time and size: only the inode tells.
        self.more.write_text("D STANDALONE :5\n")
        for path in (new, self.more):
            os.utime(path, (1e9, 1e9))
        self.look()
        self.assertEqual(self.table.entries("D")[0].info.port, 5)
        new.rename(self.more)
        self.look()
        self.assertEqual(self.table.entries("D")[0].info.port, 4)

    def test_removal_of_an_included_file_is_refused_and_its_return_taken(self) -> None:
        """The definitions in force stay until it is back."""
        watch = self.make()
        self.more.unlink()
        self.look()
        self.assertEqual(self.services(), ["A", "B"])
        self.assertIn("more.cfg", watch.check())
        self.more.write_text("E STANDALONE :5\n")
        self.look()
        self.assertEqual(self.services(), ["A", "E"])
        self.assertEqual(watch.check(), "")

    def test_moving_a_file_away_and_another_in_is_noticed(self) -> None:
        """A missing file is watched too."""
        self.rewrite(self.main, "A STANDALONE :1\n%include late.cfg\n")
        watch = self.make(start_with_errors=True)
        self.assertEqual(self.services(), ["A"])
        self.more.rename(self.directory / "late.cfg")
        self.look()
        self.assertEqual((self.services(), watch.check()), (["A", "B"], ""))

    def test_a_broken_edit_changes_nothing_and_is_told(self) -> None:
        """In the facts and in the health check; then it is mended."""
        watch = self.make()
        serial = self.table.serial
        self.rewrite(self.main, "A STANDALONE 10.1.1.1:1\nB WHAT :2\n")
        self.look()
        self.assertEqual(self.table.serial, serial)
        facts = watch.facts()
        self.assertIn("servrc.cfg:2:3", facts["refused_faults"][0])
        self.assertIn("expected one of", watch.check())
        self.rewrite(self.main, "F STANDALONE 10.1.1.1:1\n")
        self.look()
        self.assertEqual((self.services(), watch.check()), (["F"], ""))
        self.assertEqual(watch.facts()["refused_faults"], [])

    def test_broken_definitions_are_read_once(self) -> None:
        """Not at every look, as long as nobody touches them."""
        reads: list[int] = []

        def run(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            reads.append(function is not changed)
            return maybeDeferred(function, *arguments)

        self.make(run=run)
        os.mkfifo(self.directory / "pipe")
        os.utime(self.directory, (1e9, 1e9))
        os.utime(self.directory / "pipe", (1e9, 1e9))
        for faulty in ("A WHAT\n", "%include .\n", "%include pipe\n", "%include gone\n"):
            self.rewrite(self.main, faulty)
            for _ in range(5):
                self.look()
            self.assertEqual((sum(reads), faulty), (1, faulty))
            reads.clear()
        (self.directory / "pipe").chmod(0o600)
        self.rewrite(self.main, "%include pipe\n")
        self.look()
        (self.directory / "pipe").chmod(0o640)  # other rights: perhaps it can be read now
        self.look()
        self.assertEqual(sum(reads), 2)

    def test_the_same_faults_are_told_once(self) -> None:
        """However often it is tried again; a person who asks is told anew."""
        watch = self.make(resolve_retry_seconds=1.0)
        with capturedLogs() as told:
            self.rewrite(self.main, "A DNS unknown.example.org:1\n")
            for _ in range(5):
                self.look()
            self.assertEqual(len(told), 2)  # the fault, and what comes of it
            self.successResultOf(watch.reload())
            self.assertEqual(len(told), 4)
            self.rewrite(self.main, "A DNS unknown.example.org:1\nB WHAT\n")
            self.look()
            self.assertEqual(len(told), 7)

    def test_a_missing_main_file_takes_its_services_along(self) -> None:
        """At the second look: an editor may take it away for a moment."""
        watch = self.make()
        text = self.main.read_text()
        self.main.unlink()
        self.look()
        self.assertEqual((self.services(), watch.check()), (["A", "B"], ""))
        self.look()
        self.assertEqual(self.services(), [])
        self.assertIn("servrc.cfg", watch.check())
        self.main.write_text(text)
        self.look()
        self.assertEqual((self.services(), watch.check()), (["A", "B"], ""))

    def test_a_main_file_that_is_only_replaced_keeps_its_services(self) -> None:
        """It is back before the second look."""
        self.make()
        self.main.unlink()
        self.look()
        self.rewrite(self.main, "G STANDALONE :1\n")
        self.look()
        self.assertEqual(self.services(), ["G"])
        self.main.unlink()
        self.look()
        self.assertEqual(self.services(), ["G"])

    def test_a_reload_is_one_step(self) -> None:
        """One notification for all servers that it changes."""
        self.make()
        self.rewrite(self.main, "X STANDALONE 10.1.1.1:1\nY STANDALONE :2\nZ STANDALONE :3\n")
        self.look()
        self.assertEqual(self.services(), ["X", "Y", "Z"])
        # The host's environment, gone with the include, is a record of its own.
        self.assertEqual([len(step) for step in self.steps], [5, 1])

    def test_unchanged_files_are_not_read_again(self) -> None:
        """A look costs a stat of each."""
        watch = self.make()
        for _ in range(5):
            self.look()
        self.assertEqual(watch.loads, 1)

    def test_a_file_written_as_it_was_read_is_read_again(self) -> None:
        """Its next change could leave no trace in the file's state."""
        watch = self.make()
        self.more.write_text("C STANDALONE :3\n")
        self.look()
        self.assertEqual(watch.loads, 2)
        self.look()
        self.assertEqual(watch.loads, 3)
        os.utime(self.more, (1e9, 1e9))
        self.look()
        self.look()
        self.assertEqual(watch.loads, 4)

    def test_a_time_stamp_in_the_future_is_only_a_time_stamp(self) -> None:
        """It does not make the file be read for ever."""
        watch = self.make()
        os.utime(self.more, (2e10, 2e10))
        for _ in range(3):
            self.look()
        self.assertEqual(watch.loads, 2)

    def test_unknown_hosts_are_tried_again(self) -> None:
        """The files do not change when a name server comes back."""
        watch = self.make(resolve_retry_seconds=5.0)
        self.rewrite(self.main, "A DNS late.example.org:1\n")
        self.look()
        self.assertIn("late.example.org", watch.check())
        NAMES["late.example.org"] = "10.8.8.8"
        self.addCleanup(NAMES.pop, "late.example.org")
        self.look(4.0)
        self.assertNotEqual(watch.check(), "")
        self.look(2.0)
        self.assertEqual((watch.check(), self.services()), ("", ["A"]))

    def test_a_table_that_becomes_too_small_refuses(self) -> None:
        """The services of before stay."""
        table = ServiceTable(max_entries=2)
        watch = self.make(table=table)
        self.rewrite(self.main, "X DNS :1\nY DNS :2\nZ DNS :3\n")
        self.look()
        self.assertEqual([entry.service for entry in table.all_entries()], ["A", "B"])
        self.assertIn("full", watch.check())

    def test_stopping_ends_the_watch(self) -> None:
        """No call is left on the clock."""
        watch = self.make()
        watch.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        watch.startService()


class SlowReader:
    """Stands for the thread pool: what it is asked to do waits to be told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """As :func:`deferToThread`."""
        done: Deferred[Any] = Deferred()
        self.calls.append((done, function, arguments))
        return done

    def work(self) -> None:
        """Do the oldest."""
        done, function, arguments = self.calls.pop(0)
        done.callback(function(*arguments))


class ReloadTests(WatchCase):
    """Reading on request."""

    def test_the_answer_tells_the_faults(self) -> None:
        """None when the definitions are in force."""
        watch = self.make()
        self.assertEqual(self.successResultOf(watch.reload()), ())
        self.main.write_text("A STANDALONE\n")
        self.assertEqual(len(self.successResultOf(watch.reload())), 1)

    def test_a_missing_main_file_goes_at_once(self) -> None:
        """Whoever asks does not want to wait."""
        watch = self.make()
        self.main.unlink()
        self.assertEqual(len(self.successResultOf(watch.reload())), 1)
        self.assertEqual(self.services(), [])

    def test_requests_during_a_reading_share_the_next(self) -> None:
        """A hundred SIGHUPs make two readings."""
        pool = SlowReader()
        watch = self.make(run=pool)
        answers = [watch.reload() for _ in range(100)]
        self.assertEqual(len(pool.calls), 1)
        self.main.write_text("Z DNS\n")
        pool.work()
        self.successResultOf(answers[0])
        self.assertNoResult(answers[1])
        pool.work()
        for answer in answers[1:]:
            self.assertEqual(self.successResultOf(answer), ())
        self.assertEqual((pool.calls, self.services()), ([], ["Z"]))

    def test_a_reading_that_fails_tells_who_asked(self) -> None:
        """And the next one works."""
        pool = SlowReader()
        watch = self.make(run=pool)
        answer = watch.reload()
        pool.calls.pop()[0].errback(Failure(MemoryError()))
        self.failureResultOf(answer, MemoryError)
        answer = watch.reload()
        pool.work()
        self.assertEqual(self.successResultOf(answer), ())

    def test_stopping_waits_for_a_reading_and_drops_it(self) -> None:
        """Nothing reaches the table after the stop."""
        pool = SlowReader()
        watch = self.make(run=pool)
        answer = watch.reload()
        later = watch.reload()
        self.main.write_text("Z DNS\n")
        stopped = watch.stopService()
        assert stopped is not None
        self.assertNoResult(stopped)
        pool.work()
        self.successResultOf(stopped)
        self.successResultOf(answer)
        self.successResultOf(later)
        self.assertEqual((self.services(), pool.calls), (["A", "B"], []))


class ThreadTests(TestCase):
    """With real threads, on a real reactor."""

    def test_lookups_go_on_while_definitions_are_rewritten(self) -> Deferred[None]:
        """Every look-up finds the service, whether the set on disk is good, broken or half."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        main = directory / "servrc.cfg"
        main.write_text("A STANDALONE :1\n")
        table = ServiceTable()
        config = LbsmdConfig(servrc="servrc.cfg", directory=".", poll_seconds=0.01)
        source = Source.of(config, SiteConfig(directory=directory), "10.0.0.1", resolve)
        local = LocalServices(table, source.address)
        watch = ConfigurationWatch(source, local, TestClock(), deferToThread)
        watch.first_load()
        finished = threading.Event()
        missed: list[str] = []

        async def rewrite() -> None:
            for number in range(40):
                broken = number % 10 == 9
                lines = [f"S{n} STANDALONE :{n + 1}" for n in range(200)]
                new = directory / "new"
                new.write_text("\n".join([f"A STANDALONE :{number + 1}", *lines, "!" * broken]))
                new.rename(main)
                faults = await watch.reload()
                self.assertEqual(bool(faults), broken)
                if not table.entries("a"):
                    missed.append(f"after {number}")
            finished.set()

        def changed(changes: Sequence[Change]) -> None:
            if not table.entries("a"):
                missed.append("during a step")

        table.subscribe(changed)
        done = Deferred.fromCoroutine(rewrite())
        return done.addCallback(lambda _: self.assertEqual((missed, watch.loads), ([], 37)))


class FileTests(SynchronousTestCase):
    """What is read from disk, and how a change is seen."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def test_octets_survive(self) -> None:
        """Text is ISO 8859-1, file names too."""
        path = self.directory / "n\u00e4me"
        path.write_bytes(bytes(range(256)))
        text = FileReader(1000).read(octet_text(path))
        self.assertEqual(text.encode("iso-8859-1"), bytes(range(256)))

    def test_no_more_is_read_than_wanted(self) -> None:
        """One more than the bound, so that going over it shows."""
        path = self.directory / "f"
        path.write_bytes(b"x" * 100)
        self.assertEqual(len(FileReader(10).read(octet_text(path))), 11)

    def test_only_regular_files_are_read(self) -> None:
        """A pipe would keep the daemon waiting."""
        pipe = self.directory / "pipe"
        os.mkfifo(pipe)
        for path in (pipe, self.directory, Path("/dev/zero"), self.directory / "no\0name"):
            self.assertRaises(OSError, FileReader(10).read, str(path))

    def test_states_tell_changes(self) -> None:
        """A change of mode too: it may make a file readable."""
        path = self.directory / "f"
        self.assertIsNone(state(str(path)))
        self.assertIsNone(state("a\0b"))
        self.assertTrue(changed({str(self.directory / "f"): state(str(self.directory))}))
        path.write_text("a")
        before = {str(path): state(str(path))}
        self.assertFalse(changed(before))
        path.unlink()
        self.assertTrue(changed(before))


class ResolveTests(SynchronousTestCase):
    """Looking up host names."""

    def test_known_and_unknown_names(self) -> None:
        """Each has an address or a reason."""
        addresses, reasons = resolve_all(["web.example.org", "x", "y"], resolve, 5.0)
        self.assertEqual(addresses, {"web.example.org": "10.7.7.7"})
        self.assertEqual(list(reasons), ["x", "y"])
        self.assertEqual(reasons["x"], "Name or service not known")

    def test_a_name_server_that_hangs_costs_a_bounded_time(self) -> None:
        """The names that it keeps count as unknown; the others are there."""
        never = threading.Event()
        self.addCleanup(never.set)

        def hang(name: str) -> str:
            if name.startswith("slow"):
                never.wait()
            return "10.1.1.1"

        names = [f"slow{n}" for n in range(3)] + [f"fast{n}" for n in range(20)]
        addresses, reasons = resolve_all(names, hang, 0.2)
        self.assertEqual(sorted(reasons), ["slow0", "slow1", "slow2"])
        self.assertIn("within 0.2 s", reasons["slow0"])
        self.assertEqual(len(addresses), 20)

    def test_nonsense_from_a_resolver_is_no_address(self) -> None:
        """It is reported like an unknown name."""
        _, reasons = resolve_all(["x"], lambda name: "not an address", 5.0)
        self.assertIn("not an address", reasons["x"])

    def test_the_systems_resolver(self) -> None:
        """Knows this host, and no impossible name."""
        self.assertEqual(resolve_name("localhost"), "127.0.0.1")
        self.assertRaises(OSError, resolve_name, "x" * 300 + ".invalid")
