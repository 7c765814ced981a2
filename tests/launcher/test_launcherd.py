"""``gridnet launcherd``, option by option: its pure parts, then as a real process."""

from __future__ import annotations

import fcntl
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from threading import Thread

import psutil
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

import gridnet
from gridnet.errors import LaunchError
from gridnet.launcher.launcherd.command import main
from gridnet.launcher.launcherd.lock import AlreadyRunningError, ServiceLock
from gridnet.launcher.launcherd.log import LaunchLog
from gridnet.launcher.launcherd.options import Options, UsageError, parse
from gridnet.launcher.launcherd.statistics import Statistics
from tests import prepared
from tests.hypothesis_profile import examples
from tests.integration.demo_process import DemoProcess
from tests.ports import free_block, free_port

ROOT = Path(gridnet.__file__).parent.parent
CAT = "/bin/cat"
#: Far more than anything here takes; a wait that ends later has failed.
PATIENCE_SECONDS = 60.0


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def test_each_option(self) -> None:
        base = Options(service="Echo", words=(CAT,))
        self.assertEqual(parse(["Echo", CAT]), base)
        for letter, name in (
            ("q", "quiet"),
            ("v", "verbose"),
            ("n", "no_statistics"),
            ("d", "foreground"),
            ("i", "internal"),
        ):
            found = parse([f"-{letter}", "Echo", CAT])
            self.assertEqual(found, Options(service="Echo", words=(CAT,), **{name: True}))  # type: ignore[arg-type]
        self.assertEqual(parse(["-p", "7000", "Echo", CAT]).port, 7000)
        self.assertEqual(parse(["-l", "/x", "Echo", CAT]).log, "/x")

    def test_options_may_be_joined_and_values_too(self) -> None:
        found = parse(["-qvp7000", "-dl", "-", "Echo", CAT])
        self.assertEqual((found.quiet, found.verbose, found.foreground), (True, True, True))
        self.assertEqual((found.port, found.log), (7000, "-"))
        self.assertEqual(parse(["-l/a-q", "Echo", CAT]).log, "/a-q")

    def test_what_follows_the_command_is_its_own(self) -> None:
        found = parse(["-q", "--", "Echo", CAT, "-v", "--", "-p", "x"])
        self.assertEqual((found.service, found.words), ("Echo", (CAT, "-v", "--", "-p", "x")))
        self.assertFalse(found.verbose)
        self.assertEqual(parse(["Echo", CAT, "-q"]).quiet, False)

    def test_help_whatever_else_there_is(self) -> None:
        for words in (["-h"], ["-xqh"], ["-p", "x", "-h"], ["-qh", "Echo", CAT]):
            self.assertTrue(parse(words).help, words)
        self.assertFalse(parse(["Echo", CAT, "-h"]).help)

    def test_nonsense_is_refused(self) -> None:
        for words in (
            [],
            ["Echo"],
            ["-x", "Echo", CAT],
            ["--quiet", "Echo", CAT],
            ["-p"],
            ["-l"],
            ["-p", "0", "Echo", CAT],
            ["-p", "65536", "Echo", CAT],
            ["-p", "-1", "Echo", CAT],
            ["-p", "٣", "Echo", CAT],
            ["-p7x", "Echo", CAT],
            ["-", "Echo"],
            ["../Echo", CAT],
            ["a b", CAT],
            ["", CAT],
            ["Echo", ""],
        ):
            self.assertRaises(UsageError, parse, words)

    @examples(500)
    @given(st.lists(st.text(alphabet="-hqvndiplx7/ e", max_size=5), max_size=6))
    def test_any_words_are_options_or_refused(self, words: list[str]) -> None:
        try:
            found = parse(words)
        except UsageError:
            return
        self.assertTrue(found.help or (found.service and found.words))


class StatisticsTests(SynchronousTestCase):
    """Counting."""

    def test_connections_are_counted_from_their_beginning_to_their_end(self) -> None:
        found = Statistics()
        found.began()
        found.began()
        found.over(1.0, False)
        found.over(3.0, True)
        found.began()
        found.failed()
        self.assertEqual(
            found.text(), "connections=4 running=1 most=2 mean=2.000 longest=3.000 failures=2"
        )


class LogTests(SynchronousTestCase):
    """Lines in a file."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.path = self.directory / "log"

    def log(self, verbose: bool = False) -> LaunchLog:
        found = LaunchLog(str(self.path), "Echo", verbose, lambda: 1_700_000_000.1239)
        self.addCleanup(lambda: found._stream and found._stream.close())
        return found

    def test_a_line_an_event(self) -> None:
        log = self.log()
        log.write("start", "port=1")
        log.detail("connect", "peer=x")
        log.write("stop")
        first, second = self.path.read_text().splitlines()
        self.assertRegex(
            first,
            r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.123 launcherd\[\d+\] Echo start port=1$",
        )
        self.assertTrue(second.endswith("Echo stop"))

    def test_it_is_added_to_and_followed_when_moved_or_removed(self) -> None:
        self.path.write_text("before\n")
        log = self.log(verbose=True)
        log.detail("one", "")
        moved = self.path.rename(self.path.with_suffix(".old"))
        log.write("two")
        self.path.unlink()
        log.write("three")
        self.assertEqual(len(moved.read_text().splitlines()), 2)
        self.assertTrue(self.path.read_text().endswith("three\n"))

    def test_a_stream_is_no_file_and_nothing_is_no_log(self) -> None:
        said = io.StringIO()
        with redirect_stdout(said):
            LaunchLog("+", "Echo", False, time.time).write("start")
        self.assertIn("Echo start", said.getvalue())
        LaunchLog("", "Echo", False, time.time).write("start")


class LockTests(SynchronousTestCase):
    """One launcher a service."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()

    def test_it_is_held_once_named_in_lower_case_and_told_by_whom(self) -> None:
        lock = ServiceLock(self.directory, "Echo")
        lock.sign()
        self.assertEqual(lock.path.name, "launcherd.echo.pid")
        error = self.assertRaises(AlreadyRunningError, ServiceLock, self.directory, "ECHO")
        self.assertEqual(error.pid, str(os.getpid()))
        ServiceLock(self.directory, "Other").release()
        lock.release()
        lock.release()
        self.assertFalse(lock.path.exists())
        ServiceLock(self.directory, "Echo").release()

    def test_a_directory_that_others_could_have_made_is_refused(self) -> None:
        self.directory.mkdir()
        self.directory.chmod(0o777)
        self.assertRaises(LaunchError, ServiceLock, self.directory, "Echo")
        self.directory.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(self.directory, 12345, 12345)
            self.patch(os, "geteuid", lambda: 54321)
            self.assertRaises(LaunchError, ServiceLock, self.directory, "Echo")

    def test_a_leftover_is_taken_over(self) -> None:
        self.directory.mkdir()
        (self.directory / "launcherd.echo.pid").write_text("123456789\n")
        lock = ServiceLock(self.directory, "Echo")
        lock.sign()
        self.assertEqual(lock.path.read_text(), f"{os.getpid()}\n")
        lock.release()

    def test_a_file_that_was_removed_meanwhile_is_made_anew(self) -> None:
        self.directory.mkdir()
        path = self.directory / "launcherd.echo.pid"
        flock = fcntl.flock

        def removed(fd: int, operation: int) -> None:
            flock(fd, operation)
            if not seen:
                path.unlink()
            seen.append(fd)

        seen: list[int] = []
        self.patch(fcntl, "flock", removed)
        lock = ServiceLock(self.directory, "Echo")
        self.assertEqual(len(seen), 2)
        self.assertTrue(path.exists())
        lock.release()


class ProcessCase(SynchronousTestCase):
    """Real launchers."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-launcherd-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.log = self.directory / "log"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GRIDNET_RUNDIR": str(self.directory / "run"),
            "GRIDNET_CONTROL": str(self.directory / "none"),
        }
        self.port = free_port()
        self.addCleanup(self.end_all)

    def end_all(self) -> None:
        for path in (self.directory / "run").glob("*.pid"):
            try:
                process = psutil.Process(int(path.read_text()))
            except (ValueError, psutil.Error, FileNotFoundError):
                continue
            family = [process, *process.children(recursive=True)]
            for each in family:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    pass
            for each in family:
                self.until_gone(each)

    def launch(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What the start says, and its exit status."""
        return prepared.run(["launcherd", *words], self.environment, self.directory)

    def started(self, *words: str, options: tuple[str, ...] = ()) -> psutil.Process:
        """A launcher that serves, in the background."""
        before = len(self.events("start"))
        begun = self.launch("-p", str(self.port), "-l", str(self.log), *options, "--", *words)
        self.assertEqual((begun.returncode, begun.stdout, begun.stderr), (0, "", ""))
        (path,) = (self.directory / "run").iterdir()
        self.until(lambda: len(self.events("start")) > before)
        return psutil.Process(int(path.read_text()))

    def script(self, text: str) -> tuple[str, ...]:
        """The words of a Python program."""
        path = self.directory / f"script{len(list(self.directory.iterdir()))}.py"
        path.write_text(text)
        return (sys.executable, "-S", str(path))

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                self.fail(self.log.read_text() if self.log.exists() else "no log")
            time.sleep(0.01)

    def until_gone(self, process: psutil.Process) -> None:
        """Until *process* has ended, whether or not the system's first process knows of it yet."""

        def gone() -> bool:
            try:
                return bool(process.status() == psutil.STATUS_ZOMBIE)
            except psutil.NoSuchProcess:
                return True

        self.until(gone)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS)
        self.addCleanup(connection.close)
        return connection

    def talk(self, said: bytes) -> bytes:
        """What comes back for *said*."""
        connection = self.connect()

        def say() -> None:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)

        saying = Thread(target=say)
        saying.start()
        with connection.makefile("rb") as stream:
            heard = stream.read()
        saying.join()
        connection.close()
        return heard

    def events(self, name: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if re.search(rf"\] \S+ {name}\b", line)]


class StartTests(ProcessCase):
    """How it starts, or does not."""

    def test_help_and_usage(self) -> None:
        helped = self.launch("-xh")
        self.assertEqual((helped.returncode, helped.stderr), (0, ""))
        self.assertIn("usage: gridnet launcherd", helped.stdout)
        refused = self.launch("-x", "Echo", CAT)
        self.assertEqual((refused.returncode, refused.stdout), (1, ""))
        self.assertIn("unknown option -x\nusage:", refused.stderr)

    def test_the_port_must_be_known(self) -> None:
        found = self.launch("Echo", CAT)
        self.assertEqual(found.returncode, 2)
        self.assertIn("service must be STANDALONE to find its port", found.stderr)
        self.assertEqual(list((self.directory / "run").iterdir()), [])

    def test_the_port_must_be_free_and_the_command_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            found = self.launch("-p", str(taken.getsockname()[1]), "Echo", CAT)
            self.assertEqual(found.returncode, 3)
            self.assertIn("in use", found.stderr)
        writable = self.directory / "writable"
        writable.write_text("#!/bin/sh\n")
        writable.chmod(0o777)
        for command in ("/nonexistent", "/etc/passwd", "/", str(writable)):
            found = self.launch("-p", str(self.port), "Echo", command)
            self.assertEqual((found.returncode, found.stdout), (4, ""), command)
        self.assertEqual(list((self.directory / "run").iterdir()), [])

    def test_a_second_start_leaves_the_first_alone(self) -> None:
        process = self.started("Echo", CAT)
        size = self.log.stat().st_size
        again = self.launch("-p", str(self.port), "-l", str(self.log), "ECHO", CAT)
        self.assertEqual((again.returncode, again.stderr), (0, ""))
        self.assertIn(f"runs already, process {process.pid}", again.stdout)
        for _ in range(20):
            quiet = self.launch("-q", "-l", str(self.log), "Echo", CAT)
            self.assertEqual((quiet.returncode, quiet.stdout, quiet.stderr), (0, "", ""))
        self.assertEqual(self.log.stat().st_size, size)
        self.assertEqual(self.talk(b"still here"), b"still here")

    def test_a_killed_one_is_started_again(self) -> None:
        first = self.started("Echo", CAT)
        first.kill()
        self.until_gone(first)
        second = self.started("Echo", CAT)
        self.assertNotEqual(first.pid, second.pid)
        self.assertEqual(self.talk(b"again"), b"again")

    def test_it_becomes_a_daemon(self) -> None:
        process = self.started("Echo", CAT)
        self.assertEqual(process.cwd(), "/")
        self.assertEqual(os.getsid(process.pid), process.pid)
        status = Path(f"/proc/{process.pid}/status").read_text()
        self.assertIn("Umask:\t0022", status)
        for fd in (0, 1, 2):
            self.assertEqual(os.readlink(f"/proc/{process.pid}/fd/{fd}"), "/dev/null")

    def test_internal_is_loopback_only(self) -> None:
        for options, address in (((), "0.0.0.0"), (("-i",), "127.0.0.1")):
            process = self.started("Echo", CAT, options=options)
            listening = [c for c in process.net_connections("inet") if c.status == "LISTEN"]
            self.assertEqual([tuple(c.laddr) for c in listening], [(address, self.port)])
            process.terminate()
            self.until_gone(process)

    def test_the_foreground_logs_to_the_terminal(self) -> None:
        for options, stream in ((("-d",), "stderr"), (("-d", "-l", "+"), "stdout")):
            words = ["launcherd", "-p", str(self.port), *options, "Echo", CAT]
            with subprocess.Popen(
                [sys.executable, "-m", "gridnet.cli", *words],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                said = getattr(process, stream)
                self.assertIn("Echo start", said.readline())
                process.terminate()
                rest = process.communicate(timeout=PATIENCE_SECONDS)
                self.assertIn("Echo statistics", "".join(rest))
                self.assertEqual(process.returncode, 0)

    def test_limits_come_from_the_site_file(self) -> None:
        path = self.directory / "site.toml"
        path.write_text("[launcher]\nper_service = 0\n")
        found = self.launch("-p", str(self.port), "Echo", CAT)
        self.assertEqual(found.returncode, 4)
        self.assertIn("launcher.per_service", found.stderr)
        other = path.rename(self.directory / "other.toml")
        other.write_text("[launcher]\nopen_files = 17\n")
        self.environment["GRIDNET_SITE"] = str(other)
        self.started("Limit", *self.script("import resource as r; print(r.getrlimit(7)[0])"))
        self.assertEqual(self.talk(b""), b"17\n")


class TableTests(ProcessCase):
    """The port of a service that the daemon knows."""

    def test_the_port_is_that_of_the_standalone_server(self) -> None:
        servrc = self.directory / "servrc.cfg"
        servrc.write_text(
            f"Filter [0] STANDALONE 10.1.1.1:9 L=no\n"
            f"Filter [0] STANDALONE :{self.port} R=0\n"
            f"Cgi [0] NCBID :80 '' | {CAT}\n"
        )
        demo = DemoProcess(free_block(100), ["--servrc", str(servrc)])
        self.addCleanup(demo.kill)
        self.environment["GRIDNET_CONTROL"] = demo.ready["lbsmd"]["control"]
        for name in ("Cgi", "Unknown"):
            found = self.launch(name, CAT)
            self.assertEqual(found.returncode, 2)
            self.assertIn("must be STANDALONE", found.stderr)
        found = self.launch("-l", str(self.log), "FILTER", CAT)
        self.assertEqual((found.returncode, found.stdout, found.stderr), (0, "", ""))
        self.assertEqual(self.talk(b"by the table"), b"by the table")


class ServingTests(ProcessCase):
    """What its clients see."""

    def test_ten_megabytes_pass_unchanged(self) -> None:
        self.started("Echo", CAT)
        data = random.Random(5).randbytes(10_000_000)
        self.assertEqual(self.talk(data), data)

    def test_many_at_once_are_each_served_and_none_is_left_over(self) -> None:
        process = self.started("Echo", CAT, options=("-v",))
        before = process.num_fds()
        results: dict[int, bytes] = {}

        def client(number: int) -> None:
            results[number] = self.talk(b"%d " % number * 1000)

        threads = [Thread(target=client, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, {number: b"%d " % number * 1000 for number in range(50)})
        self.until(lambda: len(self.events("exit")) == 50)
        self.assertEqual(process.children(), [])
        self.until(lambda: process.num_fds() == before)

    def test_over_the_limit_clients_wait(self) -> None:
        (self.directory / "site.toml").write_text("[launcher]\nper_service = 2\n")
        process = self.started("Echo", CAT)
        first, second, third = (self.connect() for _ in range(3))
        for each in (first, second, third):
            each.sendall(b"x")
        self.assertEqual((first.recv(1), second.recv(1)), (b"x", b"x"))
        self.until(lambda: len(self.events("full")) == 1)
        self.assertEqual(len(process.children()), 2)
        first.close()
        self.assertEqual(third.recv(1), b"x")

    def test_a_program_knows_its_client_and_inherits_nothing_else(self) -> None:
        self.environment["COLOUR"] = "red"
        self.started(
            "Ask",
            *self.script(
                "import os\n"
                "print(os.environ['NI_CLIENT_IPADDR'], os.environ['COLOUR'], os.getpgid(0) == "
                "os.getpid(), sorted(os.listdir('/proc/self/fd'))[:-1])"
            ),
            "-v",
        )
        self.assertEqual(self.talk(b""), b"127.0.0.1 red True ['0', '1', '2']\n")

    def test_a_program_that_fails_costs_its_own_connection(self) -> None:
        process = self.started("Bad", *self.script("import os; os.abort()"), options=("-v",))
        for _ in range(2):
            self.assertEqual(self.talk(b""), b"")
        self.until(lambda: len(self.events("exit")) == 2)
        self.assertIn("SIGABRT", self.events("exit")[0])
        process.terminate()
        self.until_gone(process)
        self.assertIn("connections=2", self.events("statistics")[0])
        self.assertIn("failures=2", self.events("statistics")[0])

    def test_a_program_that_cannot_be_started_any_more(self) -> None:
        program = self.directory / "program"
        program.write_text("#!/bin/cat\n")
        program.chmod(0o755)
        self.started("Gone", str(program))
        self.assertEqual(self.talk(b""), b"#!/bin/cat\n")
        program.unlink()
        self.assertEqual(self.talk(b""), b"")
        self.assertIn("cannot be started", self.events("error")[0])
        program.write_text("#!/bin/cat\n")
        program.chmod(0o755)
        self.assertEqual(self.talk(b""), b"#!/bin/cat\n")

    def test_complaints_are_logged(self) -> None:
        self.started("Loud", *self.script("import sys; print('alas', file=sys.stderr)"))
        self.talk(b"")
        self.until(lambda: self.events("stderr"))
        self.assertRegex(self.events("stderr")[0], r"stderr pid=\d+ alas$")

    def test_a_terse_log_and_no_statistics(self) -> None:
        process = self.started("Echo", CAT, options=("-n",))
        self.talk(b"x")
        process.terminate()
        self.until_gone(process)
        lines = self.log.read_text().splitlines()
        self.assertEqual([line.split()[4] for line in lines], ["start", "stop"])


class EndTests(ProcessCase):
    """Signals."""

    def test_running_programs_go_on(self) -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            process = self.started("Echo", CAT)
            connection = self.connect()
            connection.sendall(b"before")
            self.assertEqual(connection.recv(10), b"before")
            process.send_signal(number)
            self.until(lambda: not list((self.directory / "run").iterdir()))
            with socket.socket() as probe:
                self.until(lambda: probe.connect_ex(("127.0.0.1", self.port)) != 0)
            connection.sendall(b"after")
            self.assertEqual(connection.recv(10), b"after")
            self.assertTrue(process.is_running())
            connection.shutdown(socket.SHUT_WR)
            self.assertEqual(connection.recv(10), b"")
            self.until_gone(process)

    def test_a_second_signal_ends_them(self) -> None:
        process = self.started("Echo", CAT)
        connection = self.connect()
        connection.sendall(b"x")
        connection.recv(1)
        (child,) = process.children()
        process.terminate()
        self.until(lambda: self.events("stop"))
        process.terminate()
        self.until_gone(process)
        self.assertEqual(connection.recv(1), b"")
        self.until_gone(child)
        self.assertEqual(len(self.events("kill")), 1)


class MainTests(SynchronousTestCase):
    """In this process."""

    def test_help(self) -> None:
        said = io.StringIO()
        with redirect_stdout(said):
            self.assertEqual(main(["-h"]), 0)
        for option in ("-h", "-q", "-v", "-n", "-d", "-i", "-p #", "-l file"):
            self.assertIn(f"  {option} ", said.getvalue())
