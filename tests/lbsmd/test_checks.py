"""Checks on a virtual clock: when they run, in what order, and what they come to."""

from __future__ import annotations

import errno
import random
import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.checks import CheckBounds, Checks, ServiceCheck
from gridnet.lbsmd.dependencies import Key
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.notices import Notice, Postman
from gridnet.table.model import Entry, ServiceTable
from tests.lbsmd.support import loaded
from tests.lbsmd.test_reload import TestClock

#: A Monday; the virtual clock begins there.
MONDAY = datetime(2026, 3, 2, 8, 0)


@define
class FakeRun:
    """A run of a script that ends when a test says so."""

    arguments: list[str]
    piped: bool
    cpu_seconds: float
    complain: Any
    ended: Deferred[int | None] = field(factory=Deferred)
    killed: bool = False

    def kill(self) -> None:
        """Ends it, as a signal does."""
        if not self.ended.called:
            self.killed = True
            self.ended.callback(None)


class ChecksCase(SynchronousTestCase):
    """Checks of a few services, with servers and scripts of a test's making."""

    bounds = CheckBounds(jitter=0.0, spread_seconds=0.0)

    def setUp(self) -> None:
        self.clock = TestClock()
        self.table = ServiceTable()
        self.local = LocalServices(self.table, "10.0.0.1")
        self.connections: list[tuple[str, int, float]] = []
        #: what the next connections come to; True for ever after
        self.reachable: list[bool | Deferred[socket.socket]] = []
        self.runs: list[FakeRun] = []
        #: exit codes of scripts that end at once; others run on
        self.codes: list[int] = []
        self.mails: list[tuple[list[str], Notice]] = []

    def make(self, text: str, **keys: Any) -> Checks:
        """Checks of the services in *text*, running; their first check is over."""
        postman = Postman(None, self.clock, "", "", 1.0, 1, 1)
        self.patch(postman, "tell", lambda to, notice: self.mails.append((list(to), notice)))
        checks = Checks(
            self.local,
            self.table,
            postman,
            self.clock,
            Path("/"),
            keys.get("bounds", self.bounds),
            random.Random(1),
            self.connect,
            self.start_script,
            lambda seconds: MONDAY + timedelta(seconds=seconds),
        )
        self.local.load(loaded(text))
        checks.startService()
        self.addCleanup(checks.stopService)
        self.clock.advance(0)
        return checks

    def connect(self, host: str, port: int, seconds: float) -> Deferred[socket.socket]:
        """Stands for the network."""
        self.connections.append((host, port, seconds))
        answer = self.reachable.pop(0) if self.reachable else True
        if isinstance(answer, Deferred):
            return answer
        if not answer:
            return fail(OSError(errno.ECONNREFUSED, "Connection refused"))
        connection = socket.socket()
        self.addCleanup(connection.close)
        return succeed(connection)

    def start_script(self, reactor: Any, script: Any, arguments: Any, *rest: Any) -> Any:
        """Stands for the system."""
        _, connection, cpu_seconds, complain, _ = rest
        run = FakeRun(list(arguments), connection is not None, cpu_seconds, complain)
        self.runs.append(run)
        if self.codes:
            run.ended.callback(self.codes.pop(0))
        return run

    def key(self, service: str = "x") -> Key:
        """Of the one server of that service."""
        return next(
            key for key, each in self.local.services().items() if each.placed.record.name == service
        )

    def entry(self, service: str = "x") -> Entry | None:
        """What the table says of it."""
        entries = self.table.entries(service)
        return entries[0] if entries else None

    def rate(self, service: str = "x") -> float | None:
        """Its rate; None: it is not in the table."""
        entry = self.entry(service)
        return None if entry is None else entry.info.rate


class ProbeTests(ChecksCase):
    """Connection checks."""

    def test_a_service_is_probed_every_period(self) -> None:
        """Its default is 15 s; the probe has 5."""
        self.make("x STANDALONE 10.2.2.2:7")
        self.assertEqual(self.connections, [("10.2.2.2", 7, 5.0)])
        self.clock.pump([7.5] * 8)
        self.assertEqual(len(self.connections), 5)

    def test_a_short_period_shortens_the_probe(self) -> None:
        """It must be over when the next is due."""
        self.make("x [2] STANDALONE :7")
        self.assertEqual(self.connections, [("10.0.0.1", 7, 2)])

    def test_what_does_not_answer_is_down_until_it_does(self) -> None:
        """Published at once."""
        self.reachable = [True, False]
        checks = self.make("x [10] STANDALONE :7 R=500")
        self.assertEqual(self.rate(), 500.0)
        self.clock.advance(10)
        self.assertEqual(self.rate(), 0.0)
        check = checks.check(self.key())
        assert check is not None
        self.assertIn("Connection refused", check.reason)
        self.clock.advance(10)
        self.assertEqual((self.rate(), check.reason), (500.0, ""))

    def test_a_failure_is_followed_by_the_back_off(self) -> None:
        """Which may be shorter or longer than the period."""
        self.reachable = [False, False, True]
        self.make("x [10/3] STANDALONE :7")
        self.clock.pump([1] * 6)
        self.assertEqual(len(self.connections), 3)
        self.clock.pump([1] * 9)
        self.assertEqual(len(self.connections), 3)
        self.clock.advance(1)
        self.assertEqual(len(self.connections), 4)

    def test_a_probe_that_hangs_counts_as_failed(self) -> None:
        """With the time it was given."""
        waiting: Deferred[socket.socket] = Deferred()
        self.reachable = [waiting]
        checks = self.make("x [10] STANDALONE :7")
        self.assertEqual((self.rate(), checks.running_checks), (1000.0, 1))
        waiting.errback(ConnectTimeoutError("no connection within 5 s"))
        self.assertEqual((self.rate(), checks.running_checks), (0.0, 0))

    def test_what_is_not_to_be_probed_is_not(self) -> None:
        """``0``, ``-``, no port, and NCBID here, which has no point of its own."""
        self.make(
            "a [0] STANDALONE :1\nb [-5] STANDALONE :2\nc DNS\nd NCBID '' | /bin/cat\n"
            "e NCBID 10.2.2.2:80 ''\n"
        )
        self.clock.pump([1] * 20)
        self.assertEqual({point[:2] for point in self.connections}, {("10.2.2.2", 80)})
        self.assertEqual({entry.info.rate for entry in self.table.all_entries()}, {1000.0})

    def test_a_full_port_is_down_and_not_probed_until_there_is_room(self) -> None:
        """A static server's port on another host is that host's business."""
        self.make("x STANDALONE :7\ny STANDALONE 10.2.2.2:7\n")
        self.assertEqual(len(self.connections), 2)
        self.local.offer(7, 0.0)
        self.assertEqual((self.rate("x"), self.rate("y")), (0.0, 1000.0))
        self.clock.pump([1] * 16)
        self.assertEqual(self.connections[2:], [("10.2.2.2", 7, 5.0)])
        self.local.offer(7, 0.5)
        self.assertEqual((self.rate("x"), self.rate("y")), (500.0, 1000.0))
        self.clock.advance(0)
        self.assertEqual(self.connections[3:], [("10.0.0.1", 7, 5.0)])
        self.assertEqual(self.rate("x"), 500.0)


class TurnTests(ChecksCase):
    """Many services."""

    def test_only_so_many_checks_run_at_a_time(self) -> None:
        """The others wait for a turn, in order, and none is forgotten."""
        waiting: list[Deferred[socket.socket]] = [Deferred() for _ in range(10)]
        self.reachable = list(waiting)
        text = "".join(f"s{n} [10] STANDALONE :{n + 1}\n" for n in range(10))
        checks = self.make(text, bounds=CheckBounds(3, 0.0, 0.0))
        self.assertEqual((len(self.connections), checks.facts()["checks_waiting"]), (3, 7))
        for number, each in enumerate(waiting):
            self.assertLessEqual(checks.running_checks, 3)
            each.errback(OSError(errno.ECONNREFUSED, "refused"))
            self.assertEqual(len(self.connections), min(10, number + 4))
        self.assertEqual([port for _, port, _ in self.connections], list(range(1, 11)))
        self.assertEqual(checks.facts()["states"], {"down": 10})
        self.clock.advance(10)
        self.assertEqual(len(self.connections), 20)

    def test_thousands_are_spread(self) -> None:
        """The first checks over a few seconds, the later ones over their periods."""
        text = "".join(f"s{n} [20] STANDALONE :{n % 60000 + 1}\n" for n in range(2000))
        self.make(text, bounds=CheckBounds(64, 0.2, 10.0))
        counts = []
        for _ in range(30):
            before = len(self.connections)
            self.clock.advance(1)
            counts.append(len(self.connections) - before)
        self.assertGreater(min(counts[:10]), 100)
        self.assertLess(max(counts), 400)
        self.assertEqual(sum(counts[:10]), 2000)

    def test_a_reload_keeps_what_checks_have_found(self) -> None:
        """New services are checked, those gone no longer; an unchanged one keeps its rhythm."""
        self.reachable = [False]
        checks = self.make("x [10] STANDALONE :7\n")
        self.clock.advance(4)
        self.local.load(loaded("x [10] STANDALONE :7\ny [10] STANDALONE :8\n"))
        self.clock.advance(0)
        self.assertEqual(self.rate(), 0.0)
        self.assertEqual([port for _, port, _ in self.connections], [7, 8])
        self.clock.advance(6)
        self.assertEqual(
            ([port for _, port, _ in self.connections], self.rate()), ([7, 8, 7], 1000)
        )
        self.local.load(loaded("y [10] STANDALONE :8\n"))
        self.clock.pump([10] * 3)
        self.assertEqual([port for _, port, _ in self.connections][3:], [8, 8, 8])
        self.assertEqual(checks.facts()["checked"], 1)

    def test_switching_checks_off_brings_the_service_back(self) -> None:
        """As configured."""
        self.reachable = [False]
        self.make("x STANDALONE :7\n")
        self.assertEqual(self.rate(), 0.0)
        self.local.load(loaded("x [0] STANDALONE :7\n"))
        self.assertEqual(self.rate(), 1000.0)

    def test_a_changed_check_list_begins_anew_but_remembers(self) -> None:
        """The server does not come up by an edit alone; a script's history stays its own."""
        self.reachable = [False]
        self.codes = [30]
        checks = self.make("x [10,/s] STANDALONE :7\n")
        self.assertEqual(self.rate(), 0.0)
        waiting: Deferred[socket.socket] = Deferred()
        self.reachable = [waiting]
        self.local.load(loaded("x [5,/s] STANDALONE :7\n"))
        self.clock.advance(0)
        self.assertEqual(self.rate(), 0.0)
        check = checks.check(self.key())
        assert check is not None
        self.assertEqual(check.history.last_code, 30)

    def test_stopping_ends_everything(self) -> None:
        """Connections, scripts, calls."""
        cancelled: list[object] = []
        self.reachable = [Deferred(cancelled.append)]
        checks = self.make("x STANDALONE :7\ny [-5,/s] STANDALONE :8\nz DNS :9\n")
        checks.stopService()
        self.assertEqual((len(cancelled), self.runs[0].killed), (1, True))
        self.assertEqual((self.clock.getDelayedCalls(), checks.running_checks), ([], 0))
        self.assertEqual(self.rate(), 1000.0)


class ScheduleTests(ChecksCase):
    """When a server is meant to run."""

    def test_off_schedule_a_server_is_not_announced(self) -> None:
        """Neither probed, nor run, nor mailed about."""
        self.reachable = [False]
        self.make("x [3600,@8-10,/s,ann@ncbi.nlm.nih.gov] STANDALONE :7\n")
        self.assertEqual((self.rate(), len(self.mails)), (0.0, 1))
        self.clock.advance(3600)
        self.clock.advance(3600)
        self.assertIsNone(self.entry())
        self.assertEqual((len(self.connections), len(self.runs), len(self.mails)), (2, 2, 2))
        self.clock.advance(3600 * 22)
        self.assertIsNotNone(self.entry())


class DependencyTests(ChecksCase):
    """What a server needs."""

    def test_a_server_follows_what_it_depends_on(self) -> None:
        """At its next check."""
        self.reachable = [False]
        self.make("y [10] STANDALONE :8\nx [-2,+y] STANDALONE :7\nz [-2,!+y] STANDALONE :9\n")
        self.assertEqual((self.rate("x"), self.rate("z")), (0.0, 1000.0))
        self.clock.pump([1] * 12)
        self.assertEqual((self.rate("x"), self.rate("z")), (1000.0, 0.0))

    def test_the_reason_names_the_dependency(self) -> None:
        """For whoever looks."""
        checks = self.make("x [-2,10.0.0.9:5+y] STANDALONE :7\n")
        check = checks.check(self.key())
        assert check is not None
        self.assertIn("10.0.0.9:5+y", check.reason)


class ScriptTests(ChecksCase):
    """Check scripts."""

    def check(self, checks: Checks) -> ServiceCheck:
        """The one check."""
        check = checks.check(self.key())
        assert check is not None
        return check

    def test_arguments_tell_what_was(self) -> None:
        """Name, service, point; then the last code, its repetitions, and the seconds since."""
        self.codes = [30, 123, 123, 0]
        self.make("x [10,/bin/ask] STANDALONE :7\n")
        self.clock.pump([10] * 3)
        self.assertEqual(
            [run.arguments for run in self.runs],
            [
                ["/bin/ask", "x", "10.0.0.1:7"],
                ["/bin/ask", "x", "10.0.0.1:7", "30", "0", "10"],
                ["/bin/ask", "x", "10.0.0.1:7", "30", "1", "10"],
                ["/bin/ask", "x", "10.0.0.1:7", "30", "2", "10"],
            ],
        )
        self.assertEqual({(run.piped, run.cpu_seconds) for run in self.runs}, {(False, 10.0)})

    def test_codes_set_the_rate(self) -> None:
        """A part of it, none, standby, reserved."""
        self.codes = [40, 115, 200, 100, 0]
        self.make("x [10,/s] STANDALONE :7\n")
        rates = [self.rate()]
        for _ in range(4):
            self.clock.advance(10)
            rates.append(self.rate())
        self.assertEqual(rates, [600.0, 0.0, 0.005, 1000.0, 1000.0])

    def test_a_piped_script_gets_the_connection(self) -> None:
        """One connection serves the probe and the script."""
        self.codes = [0, 0]
        self.make("x [10,|/s] STANDALONE :7\ny [-10,|/s] STANDALONE :8\n")
        self.assertEqual(self.runs[0].arguments, ["|/s", "x", "|10.0.0.1:7"])
        self.assertEqual([run.piped for run in self.runs], [True, True])
        self.assertEqual([port for _, port, _ in self.connections], [7, 8])

    def test_a_piped_script_is_not_run_without_a_connection(self) -> None:
        """The server is down."""
        self.reachable = [False]
        self.make("x [10,|/s] STANDALONE :7\n")
        self.assertEqual((self.runs, self.rate()), ([], 0.0))

    def test_dependencies_and_probes_win_over_scripts(self) -> None:
        """The script is run all the same."""
        self.codes = [0, 0]
        self.reachable = [False, True]
        self.make("x [10,/s,+y] STANDALONE :7\ny [10] STANDALONE 10.3.3.3:7 R=0\nz [9,/s] DNS :1")
        self.assertEqual((len(self.runs), self.rate("x"), self.rate("z")), (2, 0.0, 1000.0))

    def test_a_late_script_is_killed_and_its_result_ignored(self) -> None:
        """The next run is on time."""
        self.codes = [115]
        checks = self.make("x [10,/s] STANDALONE :7\n")
        self.clock.advance(10)
        self.assertEqual((len(self.runs), self.rate()), (2, 0.0))
        self.clock.advance(9)
        self.assertFalse(self.runs[1].killed)
        self.clock.advance(1)
        self.assertTrue(self.runs[1].killed)
        self.clock.advance(0)
        self.assertEqual((len(self.runs), self.rate()), (3, 0.0))
        history = self.check(checks).history
        self.assertEqual((history.last_code, history.failures), (115, 1))
        self.assertEqual(self.runs[2].arguments[3:], ["115", "0", "10"])

    def test_a_script_that_always_fails_is_given_up(self) -> None:
        """A hundred times in a row; the server is available then, and probed on."""
        checks = self.make("x [10,/s] STANDALONE :7\n")
        for _ in range(120):
            if not self.runs[-1].ended.called:
                self.runs[-1].ended.callback(None)
            self.clock.advance(10)
        self.assertEqual((len(self.runs), self.rate()), (100, 1000.0))
        self.assertEqual(len(self.connections), 121)
        self.assertFalse(self.check(checks).history.active)

    def test_the_off_sequence_ends_all_checks(self) -> None:
        """The server is gone for good, also over a reload."""
        self.codes = [124, 125]
        text = "x [10,/s] STANDALONE :7\n"
        self.make(text)
        self.clock.advance(10)
        self.assertIsNone(self.entry())
        self.clock.pump([10] * 5)
        self.local.load(loaded(text))
        self.clock.pump([10] * 5)
        self.assertEqual((len(self.runs), len(self.connections), self.entry()), (2, 2, None))

    def test_a_script_that_cannot_be_started_is_as_one_that_says_127(self) -> None:
        """A warning, and the server is up."""
        self.patch(self, "start_script", lambda *arguments: 127)
        checks = self.make("x [10,/s] STANDALONE :7\n")
        self.assertEqual((self.rate(), self.check(checks).history.last_code), (1000.0, 127))

    def test_a_rerate_ends_standby(self) -> None:
        """As the script's own word does."""
        self.codes = [205]
        self.make("x [10,/s] STANDALONE :7\n")
        self.assertEqual(self.rate(), 0.005)
        self.local.rerate(self.key(), 300.0)
        self.assertEqual(self.rate(), 300.0)


class MailTests(ChecksCase):
    """What contacts are told."""

    LINE = "x [10,/s,ann@ncbi.nlm.nih.gov,bob@ncbi.nlm.nih.gov] STANDALONE :7 R=500\n"

    def texts(self) -> list[str]:
        """What they were told so far."""
        return [notice.text for _, notice in self.mails]

    def test_a_change_of_state_is_told_once(self) -> None:
        """To every contact; a change of percentage is none."""
        self.codes = [0, 40, 115, 116, 0, 0]
        self.make(self.LINE)
        self.clock.pump([10] * 5)
        self.assertEqual(
            self.texts(),
            [
                "x STANDALONE 10.0.0.1:7 is down now: script said 115",
                "x STANDALONE 10.0.0.1:7 is up now: script said 0",
            ],
        )
        self.assertEqual(self.mails[0][0], ["ann@ncbi.nlm.nih.gov", "bob@ncbi.nlm.nih.gov"])

    def test_codes_that_ask_for_mail(self) -> None:
        """Each time; one that also changes the state is told once."""
        self.codes = [215, 215, 115, 225, 225]
        self.make(self.LINE)
        self.clock.pump([10] * 4)
        self.assertEqual(
            [text.split(":7 ")[1] for text in self.texts()],
            [
                "/s said 215",
                "/s said 215",
                "is down now: script said 115",
                "is up now: script said 225",
                "/s said 225",
            ],
        )

    def test_a_full_penalty_hides_changes_until_it_ends(self) -> None:
        """Then what has remained of them is told."""
        self.codes = [0, 115, 0, 115, 115]
        self.make(self.LINE)
        self.local.penalize(self.key(), 100.0)
        self.clock.pump([10] * 3)
        self.assertEqual(self.texts(), [])
        self.local.penalize(self.key(), 99.0)
        self.assertEqual(len(self.texts()), 1)
        self.assertIn("is down now", self.texts()[0])

    def test_a_penalty_that_ends_where_it_began_tells_nothing(self) -> None:
        """Down and up again under it is nobody's business."""
        self.codes = [0, 115, 0]
        self.make(self.LINE)
        self.local.penalize(self.key(), 100.0)
        self.clock.pump([10] * 2)
        self.local.penalize(self.key(), 0.0)
        self.assertEqual(self.texts(), [])
