"""One daemon on a host, its log, and its signals; a real twistd where it matters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, LogLevel
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

import gridnet
from gridnet.config import SiteConfig, SiteSection
from gridnet.control import ask
from gridnet.errors import ConfigError
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.instance import AlreadyRunningError, InstanceLock
from gridnet.lbsmd.log_file import (
    KIB,
    NO_LIMIT,
    ONLY_IF_THERE,
    REPEAT_SECONDS,
    DaemonLog,
    SizedLog,
    Verbosity,
)
from gridnet.lbsmd.service import make_lbsmd
from gridnet.lbsmd.tap import Options
from gridnet.site import Site

ROOT = Path(gridnet.__file__).parent.parent


class LockTests(SynchronousTestCase):
    """The lock itself."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()

    def take(self) -> InstanceLock:
        """One more that takes it."""
        lock = InstanceLock(self.path)
        lock.startService()
        self.addCleanup(lock.release)
        return lock

    def test_only_one_has_it(self) -> None:
        """Its file tells who."""
        lock = self.take()
        self.assertEqual(self.path.read_text(), f"{os.getpid()}\n")
        error = self.assertRaises(AlreadyRunningError, self.take)
        self.assertEqual(error.pid, os.getpid())
        self.assertIn(f"as process {os.getpid()}", str(error))
        self.assertRaises(AlreadyRunningError, InstanceLock(self.path).look)
        lock.stopService()
        self.assertFalse(self.path.exists())
        InstanceLock(self.path).look()
        self.assertFalse(self.path.exists())
        self.take()

    def test_what_a_killed_daemon_left_is_no_obstacle(self) -> None:
        """Whatever process has its number now."""
        self.path.write_text(f"{os.getpid()}\n")
        InstanceLock(self.path).look()
        self.take()

    def test_a_file_that_cannot_be_made_is_a_fault(self) -> None:
        """Of its key."""
        error = self.assertRaises(ConfigError, InstanceLock(self.path / "x").acquire)
        self.assertEqual(error.faults[0].where, "lbsmd.pid_file")

    def test_a_second_daemon_of_a_site_is_refused_before_it_does_anything(self) -> None:
        """Also one that is part of a whole site."""
        self.path.mkdir()
        (self.path / "servrc.cfg").write_text("A [0] STANDALONE :1\n")

        def make() -> Any:
            site = Site(SiteConfig(SiteSection(), {}, self.path), MemoryReactorClock())
            config = LbsmdConfig(servrc="servrc.cfg", control="", ports_socket="")
            return make_lbsmd(config, site, run_in_thread=maybeDeferred)

        first, second = make(), make()
        first.startService()
        self.assertRaises(AlreadyRunningError, second.privilegedStartService)
        self.assertRaises(AlreadyRunningError, second.startService)
        self.successResultOf(maybeDeferred(first.stopService))


class SizedLogTests(SynchronousTestCase):
    """How long the log may grow."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()

    def make(self, size: int) -> SizedLog:
        """A log at the path."""
        log = SizedLog(self.path, size, lambda: "NOW")
        self.addCleanup(log.close)
        return log

    def test_without_a_limit_it_is_made_and_grows(self) -> None:
        """What is there stays."""
        self.path.write_text("before\n")
        log = self.make(NO_LIMIT)
        for _ in range(100):
            log.write("x" * 1023 + "\n")
        self.assertEqual(self.path.stat().st_size, 7 + 100 * KIB)
        self.path.unlink()
        self.make(NO_LIMIT).write("new\n")
        self.assertEqual(self.path.read_text(), "new\n")

    def test_it_may_be_written_only_while_it_is_there(self) -> None:
        """It comes and goes as somebody makes and removes it."""
        log = self.make(ONLY_IF_THERE)
        log.write("lost\n")
        self.assertFalse(self.path.exists())
        self.path.touch()
        log.write("kept\n")
        self.path.rename(f"{self.path}.old")
        log.write("lost\n")
        self.assertFalse(self.path.exists())
        old = Path(f"{self.path}.old").read_text().splitlines()
        self.assertEqual(old[0], "kept")
        self.assertIn("moved or removed", old[1])
        self.assertEqual(len(old), 2)

    def test_a_limit_ends_it_with_a_last_line(self) -> None:
        """Until somebody moves or cuts it."""
        log = self.make(2)
        for number in range(100):
            log.write(f"{number:99}\n")
        lines = self.path.read_text().splitlines()
        self.assertEqual(len(lines), 21)
        self.assertEqual(lines[-1], "NOW the log ends: this file has come to its limit")
        self.assertLess(self.path.stat().st_size, 2 * KIB + 100)
        # Another life of the daemon adds nothing.
        self.make(2).write(f"{1:99}\n")
        self.assertEqual(self.path.read_text().splitlines(), lines)
        os.truncate(self.path, 0)
        log.write("again\n")
        self.assertEqual(self.path.read_text(), "again\n")
        self.path.rename(f"{self.path}.old")
        log.write("anew\n")
        self.assertEqual(self.path.read_text(), "anew\n")

    def test_a_moved_file_has_a_last_line_and_a_successor(self) -> None:
        """The next message opens it."""
        log = self.make(NO_LIMIT)
        log.write("one\n")
        self.path.rename(f"{self.path}.1")
        log.write("two\n")
        self.assertIn("moved", Path(f"{self.path}.1").read_text().splitlines()[1])
        self.assertEqual(self.path.read_text(), "two\n")

    def test_a_place_that_cannot_be_written_stops_nobody(self) -> None:
        """Messages are lost until it can."""
        self.path.mkdir()
        log = self.make(NO_LIMIT)
        log.write("lost\n")
        self.assertIn("Is a directory", log.failure)
        self.path.rmdir()
        log.write("kept\n")
        self.assertEqual(log.failure, "")
        self.assertEqual(self.path.read_text(), "kept\n")


class VerbosityTests(SynchronousTestCase):
    """How much is logged."""

    def setUp(self) -> None:
        self.events: list[Any] = []
        self.verbosity = Verbosity(self.events.append)  # type: ignore[arg-type]

    def log(self, level: LogLevel, text: str, at: float) -> None:
        """One event."""
        self.verbosity(
            {"log_level": level, "log_format": text, "log_time": at, "log_namespace": "n"}
        )

    def test_less_is_without_repeated_warnings_and_debugging(self) -> None:
        """What was left out is counted."""
        for second in range(5):
            self.log(LogLevel.warn, "w", float(second))
        self.log(LogLevel.warn, "v", 5.0)
        self.log(LogLevel.debug, "d", 5.0)
        for _ in range(3):
            self.log(LogLevel.error, "e", 5.0)
        self.assertEqual([each["log_format"] for each in self.events], ["w", "v", "e", "e", "e"])
        self.log(LogLevel.warn, "w", REPEAT_SECONDS + 1)
        self.assertEqual(self.events[-1]["log_format"], "w ({left_out} like it left out)")
        self.assertEqual(self.events[-1]["left_out"], 4)

    def test_all_warnings_are_all(self) -> None:
        """And back."""
        self.verbosity.toggle()
        for second in range(5):
            self.log(LogLevel.warn, "w", float(second))
        self.verbosity.toggle()
        for second in range(5):
            self.log(LogLevel.warn, "w", float(second))
        self.assertEqual(len(self.events), 6)

    def test_what_is_remembered_is_bounded(self) -> None:
        """However many warnings there are."""
        for number in range(5000):
            self.log(LogLevel.warn, f"w{number}", 0.0)
        self.assertEqual(len(self.events), 5000)
        self.assertLessEqual(len(self.verbosity._warnings), 1000)

    def test_it_takes_what_is_logged_while_it_runs(self) -> None:
        """With twisted.logger's own events."""
        path = Path(self.mktemp()).absolute()
        log = DaemonLog(path, 0, MemoryReactorClock())
        logger = Logger("test")
        log.startService()
        logger.warn("port {port} is odd", port=7)
        logger.warn("port {port} is odd", port=8)
        log.toggle()
        logger.warn("port {port} is odd", port=9)
        log.stopService()
        logger.warn("port {port} is odd", port=10)
        text = path.read_text()
        self.assertEqual([f"port {number}" in text for number in (7, 8, 9, 10)], [1, 0, 1, 0])


class OptionTests(SynchronousTestCase):
    """The command line of ``twistd gridnet-lbsmd``."""

    def parse(self, *words: str) -> Options:
        """Options, with a site file."""
        path = Path(self.mktemp())
        path.write_text('[lbsmd]\nlog_file = "a"\nlog_size = 5\n')
        options = Options()
        options.parseOptions(["-c", str(path), *words])
        return options

    def test_options_count_more_than_keys(self) -> None:
        """Those that are given."""
        section = self.parse().section
        assert isinstance(section, LbsmdConfig)
        self.assertEqual((section.log_file, section.log_size), ("a", 5))
        options = self.parse("-s", "-1", "-l", "b", "-q")
        found = options.site_config.sections["lbsmd"]
        assert isinstance(found, LbsmdConfig)
        self.assertEqual((found.log_file, found.log_size, options["quiet"]), ("b", -1, 1))

    def test_a_size_that_is_none_is_a_usage_error(self) -> None:
        """Each of them."""
        for text in ("x", "-2", "1.5", "", "-"):
            self.assertRaises(usage.UsageError, self.parse, "-s", text)


class ProcessTests(SynchronousTestCase):
    """Real daemons."""

    def setUp(self) -> None:
        # A short path: the system has little room for the name of a socket.
        place = tempfile.TemporaryDirectory(prefix="gridnet")
        self.addCleanup(place.cleanup)
        self.directory = Path(place.name)
        (self.directory / "servrc.cfg").write_text("A [0] STANDALONE :1\n")
        (self.directory / "site.toml").write_text(
            '[lbsmd]\nservrc = "servrc.cfg"\nlog_file = "lbsmd.log"\n'
            'feedback_socket = ""\nkeep_penalties = "penalties.json"\n'
        )
        self.log = self.directory / "lbsmd.log"

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A daemon."""
        command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        command += ["-n", "--pidfile=", "gridnet-lbsmd", "-c", "site.toml", *words]
        process = subprocess.Popen(
            command,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

        def end() -> None:
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def expect(self, text: str, times: int = 1) -> None:
        """Wait until the log says *text* so many times."""
        until = time.monotonic() + 120
        while not self.log.exists() or self.log.read_text().count(text) < times:
            self.assertLess(time.monotonic(), until, f"no {text!r} in the log")
            time.sleep(0.02)

    def test_a_second_start_is_refused_and_a_killed_daemon_replaced(self) -> None:
        """With a message, or quietly; the first goes on."""
        first = self.start()
        self.expect("SIGUSR1 toggles")
        second = self.start()
        _, errors = second.communicate(timeout=120)
        self.assertEqual(second.returncode, 1)
        self.assertIn(f"a daemon runs already as process {first.pid}", errors)
        self.assertNotIn("Traceback", errors)
        third = self.start("-q")
        _, errors = third.communicate(timeout=120)
        self.assertEqual((third.returncode, errors), (0, ""))
        self.assertIsNone(first.poll())
        first.kill()
        first.wait()
        self.start()
        self.expect("SIGUSR1 toggles", 2)

    def test_signals(self) -> None:
        """USR1 toggles, HUP reloads, INT and TERM end it and take the lock's file along."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.log.unlink(missing_ok=True)
            process = self.start()
            self.expect("SIGUSR1 toggles")
            self.expect("SIGHUP has the configuration read anew")
            pid_file = self.directory / "state" / "lbsmd.pid"
            self.assertEqual(pid_file.read_text(), f"{process.pid}\n")
            process.send_signal(signal.SIGUSR1)
            self.expect("logging all warnings")
            process.send_signal(signal.SIGUSR1)
            self.expect("warnings that repeat once")
            process.send_signal(signal.SIGHUP)
            self.expect("reading lbsmd anew")
            process.send_signal(number)
            process.wait(timeout=120)
            self.assertFalse(pid_file.exists())

    def test_what_was_acknowledged_outlasts_a_kill(self) -> None:
        """Killed right after the answer, and started again, several times."""
        control = self.directory / "state" / "lbsmd.control"
        for round_number in range(1, 4):
            process = self.start()
            self.expect("SIGUSR1 toggles", round_number)
            table = ask(control, {"ask": "table"})
            penalty = table["services"][0]["penalty"]
            if round_number > 1:
                self.assertEqual(penalty, 10.0 * (round_number - 1))
            argument = f"A ANY {10 * round_number} 600"
            ask(control, {"ask": "feedback", "argument": argument, "reason": "trial"})
            process.kill()
            process.wait()
