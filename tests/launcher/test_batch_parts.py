"""The pure parts of a service that is born in a batch job, and its lease."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import GridnetError, LaunchError
from gridnet.launcher.batch.deadline import Deadline, find_deadline
from gridnet.launcher.batch.lease import Lease
from gridnet.launcher.batch.machine import INPUTS, STATES, Life, LifeCore, Pause, make_life
from gridnet.launcher.batch.ports import reserve_port
from gridnet.launcher.batch.service import CapacityPort
from gridnet.launcher.batch.sockets import LISTEN, TcpSocket, sockets_at
from tests.hypothesis_profile import examples

NOW = 1_700_000_000.0

JOB_AD = """\
MyType = "Job"
JobCurrentStartDate = 1700000100
AllowedJobDuration = 3600
Owner = "somebody"
Requirements = (TARGET.Arch == "X86_64")
"""

#: What ``qstat -j`` and ``qconf -sq`` of Grid Engine 8.1.9 say, shortened.
QSTAT = """\
==============================================================
job_number:                 1
hard resource_list:         h_rt=3600,h_vmem=1G,s_rt=3500
mail_list:                  root@vm
"""
QCONF = """\
qname                 all.q
slots                 20
s_rt                  INFINITY
h_rt                  00:30:00,[node1=24:00:00]
h_cpu                 00:00:10
"""
GRID_ENGINE = {
    "JOB_ID": "1",
    "QUEUE": "all.q",
    "SGE_BINARY_PATH": "/ge/bin",
    "SGE_JOB_SPOOL_DIR": "/spool",
}


class DeadlineTests(SynchronousTestCase):
    """What batch systems tell of the end of a job."""

    def find(
        self,
        environment: Mapping[str, str],
        files: Mapping[str, tuple[str, float]] = {},
        programs: Mapping[Any, str] = {},
    ) -> Deadline | None:
        def read(path: str) -> tuple[str, float]:
            try:
                return files[path]
            except KeyError:
                raise FileNotFoundError(path) from None

        def run(words: Sequence[str]) -> str:
            try:
                return programs[tuple(words)]
            except KeyError:
                raise FileNotFoundError(words[0]) from None

        return find_deadline(environment, read, run, NOW)

    def test_no_batch_system(self) -> None:
        self.assertIsNone(self.find({"PATH": "/bin"}))

    def test_slurm_says_when(self) -> None:
        found = self.find({"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "1700003600"})
        self.assertEqual(found, Deadline(1700003600.0, "Slurm"))
        for text in ("", "UNLIMITED", "0", "-5", "1e9", "9" * 40):
            self.assertIsNone(self.find({"SLURM_JOB_END_TIME": text}), text)

    def test_htcondor_names_a_file_that_says_how_long(self) -> None:
        files = {"/ad": (JOB_AD, 0.0)}
        found = self.find({"_CONDOR_JOB_AD": "/ad"}, files)
        self.assertEqual(found, Deadline(1700003700.0, "HTCondor"))
        executing = (
            "JobCurrentStartDate=1700000100\n"
            "jobcurrentstartexecutingdate = 1700000200\n"
            "ALLOWEDEXECUTEDURATION = 60\n"
        )
        found = self.find({"_CONDOR_JOB_AD": "/ad"}, {"/ad": (executing, 0.0)})
        self.assertEqual(found, Deadline(1700000260.0, "HTCondor"))
        # A job that does not know when it started started now, at the latest.
        found = self.find({"_CONDOR_JOB_AD": "/ad"}, {"/ad": ("AllowedJobDuration = 60", 0.0)})
        self.assertEqual(found, Deadline(NOW + 60, "HTCondor"))
        self.assertIsNone(self.find({"_CONDOR_JOB_AD": "/ad"}, {"/ad": ("", 0.0)}))

    def test_a_pilots_place_goes_away_before_the_job_must_end(self) -> None:
        files = {"/ad": (JOB_AD, 0.0), "/machine": ("GLIDEIN_ToDie = 1700000500\n", 0.0)}
        found = self.find({"_CONDOR_JOB_AD": "/ad", "_CONDOR_MACHINE_AD": "/machine"}, files)
        self.assertEqual(found, Deadline(1700000500.0, "HTCondor"))

    def test_grid_engine_has_a_file_as_old_as_the_job_and_a_master_that_knows_more(self) -> None:
        files = {"/spool/config": ("h_cpu=INFINITY\n", NOW - 100)}
        job, queue = ("/ge/bin/qstat", "-j", "1"), ("/ge/bin/qconf", "-sq", "all.q")
        found = self.find(GRID_ENGINE, files, {job: QSTAT})
        self.assertEqual(found, Deadline(NOW + 3400, "Grid Engine"))
        found = self.find(GRID_ENGINE, files, {job: QSTAT, queue: QCONF})
        self.assertEqual(found, Deadline(NOW + 1700, "Grid Engine"))
        for text, seconds in (("600", 600), ("10:0", 600), ("0:10:00", 600)):
            said = {job: f"hard resource_list: s_rt={text}\n"}
            found = self.find(GRID_ENGINE, files, said)
            self.assertEqual(found, Deadline(NOW - 100 + seconds, "Grid Engine"))
        self.assertIsNone(self.find(GRID_ENGINE, {}, {job: QSTAT}))
        self.assertIsNone(self.find({"JOB_ID": "1"}, files, {job: QSTAT}))

    def test_the_earliest_counts_and_what_cannot_be_read_says_nothing(self) -> None:
        environment = {
            **GRID_ENGINE,
            "SLURM_JOB_END_TIME": "1700009999",
            "_CONDOR_JOB_AD": "/gone",
        }
        files = {"/spool/config": ("", NOW)}
        programs = {("/ge/bin/qstat", "-j", "1"): QSTAT}
        found = self.find(environment, files, programs)
        self.assertEqual(found, Deadline(NOW + 3500, "Grid Engine"))
        self.assertEqual(self.find(environment), Deadline(1700009999.0, "Slurm"))

    @examples(300)
    @given(st.text(max_size=60))
    def test_any_text_is_a_limit_or_none(self, text: str) -> None:
        files = {"/ad": (text, NOW), "/spool/config": ("", NOW)}
        programs = {
            ("/ge/bin/qstat", "-j", "1"): f"hard resource_list: h_rt={text}\n{text}",
            ("/ge/bin/qconf", "-sq", "all.q"): f"h_rt {text}\n{text}",
        }
        for environment in (
            {"SLURM_JOB_END_TIME": text},
            {"_CONDOR_JOB_AD": "/ad", "_CONDOR_MACHINE_AD": "/ad"},
            GRID_ENGINE,
        ):
            found = self.find(environment, files, programs)
            if found is not None:
                self.assertGreater(found.at, 0)


class SocketTableTests(SynchronousTestCase):
    """Linux's table of sockets."""

    HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
    LISTENING = (
        "   0: 0100007F:1B58 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000"
        "        0 27177 1 0000000000000000 100 0 0 10 0\n"
    )
    CONNECTED = (
        "   1: 0100007F:1B58 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000  1000"
        "        0 28000 1 0000000000000000 20 4 30 10 -1\n"
    )
    REMEMBERED = (
        "   2: 0100007F:1B58 0100007F:D2F2 06 00000000:00000000 03:00000FFB 00000000     0"
        "        0 0 3 0000000000000000\n"
    )
    OTHER_END = (
        "   3: 0100007F:D2F0 0100007F:1B58 01 00000000:00000000 00:00000000 00000000  1000"
        "        0 28001 1 0000000000000000 20 4 30 10 -1\n"
    )
    SIX = (
        "   0: 00000000000000000000000000000000:1B58 00000000000000000000000000000000:0000 0A "
        "00000000:00000000 00:00000000 00000000  1000        0 27178 1 0000000000000000 100\n"
    )

    def test_what_listens_and_what_is_open(self) -> None:
        text = self.HEADING + self.LISTENING + self.CONNECTED + self.REMEMBERED + self.OTHER_END
        found = list(sockets_at(7000, text))
        self.assertEqual(
            [(each.listens, each.is_open) for each in found][1:], [(False, True), (False, False)]
        )
        if sys.byteorder == "little":
            self.assertEqual(found[0], TcpSocket("127.0.0.1", 7000, LISTEN, 27177))
            (six,) = sockets_at(7000, self.SIX)
            self.assertEqual(six, TcpSocket("::", 7000, LISTEN, 27178))
        self.assertEqual(list(sockets_at(7001, text)), [])

    def test_what_the_program_has_not_accepted_yet_is_open_and_leftovers_are_not(self) -> None:
        for state, inode, is_open in (
            (0x01, 0, True),
            (0x03, 0, True),
            (0x05, 0, False),
            (0x05, 9, True),
            (0x06, 0, False),
            (0x08, 0, True),
            (0x0A, 9, False),
        ):
            self.assertEqual(TcpSocket("", 1, state, inode).is_open, is_open, hex(state))

    def test_the_real_table_has_what_we_do(self) -> None:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            port = listening.getsockname()[1]
            with open("/proc/net/tcp") as file:
                (found,) = sockets_at(port, file.read())
            self.assertEqual((found.address, found.listens), ("127.0.0.1", True))

    @examples(300)
    @given(st.text(max_size=200))
    def test_any_text_is_read(self, text: str) -> None:
        self.assertEqual(list(sockets_at(7000, f"{text}:1B58 {text}\n")), [])


class CapacityTests(SynchronousTestCase):
    """What programs say of themselves."""

    def setUp(self) -> None:
        self.heard: list[float] = []
        self.answers: list[tuple[bytes, object]] = []
        self.port = CapacityPort(7000, self.heard.append)
        self.port.transport = self

    def write(self, datagram: bytes, address: object) -> None:
        """As a transport."""
        self.answers.append((datagram, address))

    def test_posts_are_taken_and_answered(self) -> None:
        self.port.datagramReceived(b"PORT 7000 8 6 2\n", b"\0abc")
        self.port.datagramReceived(b"PORT 7000 8 8 0", None)
        self.assertEqual(self.heard, [0.25, 0.0])
        self.assertEqual(self.answers, [(b"OK", b"\0abc")])

    def test_nonsense_and_other_ports_are_refused(self) -> None:
        for datagram in (b"", b"PORT 7000", b"PORT 7001 8 6 2", b"PORT 7000 8 9 0", b"\xff"):
            self.port.datagramReceived(datagram, "sender")
        self.assertEqual(self.heard, [])
        self.assertTrue(all(answer.startswith(b"ERROR ") for answer, _ in self.answers))
        self.assertEqual(len(self.answers), 5)

    def test_who_does_not_wait_is_not_missed(self) -> None:
        def gone(datagram: bytes, address: object) -> None:
            raise ConnectionRefusedError(111, "Connection refused")

        self.port.transport = type("Gone", (), {"write": staticmethod(gone)})()
        self.port.datagramReceived(b"PORT 7000 8 6 2", "sender")
        self.assertEqual(self.heard, [0.25])


#: How each state is reached from the first.
PATHS = {
    "starting": [],
    "serving": ["listened"],
    "ailing": ["listened", "fell_ill"],
    "draining": ["listened", "told_to_drain"],
    "stopping": ["told_to_stop"],
    "killed": ["told_to_stop", "time_ran_out"],
    "over": ["exited"],
}
NAMES = [each.__name__ for each in INPUTS]


@define
class Recorder:
    done: list[str] = field(factory=list)

    def wait(self, for_what: Pause) -> None:
        self.done.append(f"wait {for_what.value}")

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda: self.done.append(name)


def life_in(state: str) -> tuple[Life, Recorder]:
    hands = Recorder()
    life = make_life(LifeCore(hands))  # type: ignore[arg-type]
    for name in PATHS[state]:
        getattr(life, name)()
    hands.done.clear()
    return life, hands


class LifeTests(SynchronousTestCase):
    """Every state times every input."""

    def test_every_input_is_answered_in_every_state(self) -> None:
        self.assertEqual({state.name for state in STATES}, set(PATHS))
        for state, name in product(PATHS, NAMES):
            life, _ = life_in(state)
            getattr(life, name)()

    def test_it_is_over_exactly_once_and_only_when_the_program_has_ended(self) -> None:
        for names in product(NAMES, repeat=4):
            life, hands = life_in("starting")
            for at, name in enumerate(names):
                getattr(life, name)()
                self.assertEqual("finish" in hands.done, "exited" in names[: at + 1], names)
            self.assertLessEqual(hands.done.count("finish"), 1, names)

    def test_nobody_is_asked_to_end_while_the_table_has_it(self) -> None:
        for names in product(NAMES, repeat=4):
            life, hands = life_in("serving")
            for name in names:
                getattr(life, name)()
            for word in ("terminate", "finish"):
                if word in hands.done:
                    self.assertIn("withdraw", hands.done[: hands.done.index(word)])

    def test_a_drain(self) -> None:
        life, hands = life_in("serving")
        for name in ("fell_ill", "recovered", "told_to_drain", "fell_ill", "drained", "exited"):
            getattr(life, name)()
        self.assertEqual(
            hands.done,
            [
                *("mark_down", "mark_up", "wait drain", "drain"),
                *("withdraw", "wait termination", "terminate"),
                *("stop_waiting", "withdraw", "finish"),
            ],
        )

    def test_clients_that_stay_for_ever_are_cut_off_and_deaf_programs_killed(self) -> None:
        life, hands = life_in("draining")
        for name in ("time_ran_out", "time_ran_out"):
            getattr(life, name)()
        self.assertEqual(
            hands.done, ["withdraw", "wait termination", "terminate", "stop_waiting", "kill"]
        )

    def test_a_program_that_never_listens_is_never_published(self) -> None:
        life, hands = life_in("starting")
        for name in ("time_ran_out", "exited"):
            getattr(life, name)()
        self.assertNotIn("publish", hands.done)
        self.assertEqual(hands.done[-1], "finish")


class LeaseTests(SynchronousTestCase):
    """Keeping a server in the table."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[dict[str, Any]] = []
        self.answers: list[Deferred[Any]] = []
        self.events: list[str] = []
        self.lease = Lease(
            self.ask,
            "Born STANDALONE :7000",
            1000.0,
            9.0,
            lambda: self.events.append("registered"),
            self.events.append,
            self.clock,
        )

    def ask(self, question: Mapping[str, Any]) -> Deferred[Any]:
        self.asked.append(dict(question))
        self.answers.append(Deferred())
        return self.answers[-1]

    def answer(self) -> None:
        """The daemon says yes to the one question that is open."""
        (open_one,) = [each for each in self.answers if not each.called]
        open_one.callback({"token": f"t{len(self.answers)}", "lease_seconds": 9.0})

    def refuse(self, reason: str = "no") -> None:
        (open_one,) = [each for each in self.answers if not each.called]
        open_one.errback(GridnetError(reason))

    def asks(self) -> list[str]:
        return [question["ask"] for question in self.asked]

    def test_it_is_renewed_three_times_a_lease(self) -> None:
        self.lease.begin()
        self.answer()
        self.assertEqual(self.events, ["registered"])
        self.assertTrue(self.lease.held)
        for _ in range(3):
            self.clock.advance(3.0)
            self.answer()
        self.assertEqual(self.asks(), ["register", "renew", "renew", "renew"])
        self.assertEqual(self.asked[-1]["token"], "t1")

    def test_changes_are_told_at_once_in_their_order(self) -> None:
        self.lease.begin()
        first = self.lease.change(rate=5.0)
        self.answer()
        self.assertEqual(self.asked[-1]["rate"], 5.0)
        second = self.lease.change(penalty=100.0)
        self.assertNoResult(first)
        self.answer()
        self.assertEqual((self.asked[-1]["rate"], self.asked[-1]["penalty"]), (5.0, 100.0))
        self.answer()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.asks(), ["register", "renew", "renew"])

    def test_a_daemon_that_was_restarted_hears_everything_again(self) -> None:
        self.lease.begin()
        self.answer()
        self.lease.change(rate=5.0, penalty=40.0)
        self.answer()
        self.clock.advance(3.0)
        self.refuse("there is no such lease")
        self.assertFalse(self.lease.held)
        self.clock.advance(0.0)
        self.assertEqual((self.asks()[-1], self.asked[-1]["penalty"]), ("register", 40.0))
        self.answer()
        self.assertEqual((self.asks()[-1], self.asked[-1]["rate"]), ("renew", 5.0))
        self.answer()
        self.assertEqual(self.events, ["registered", "there is no such lease", "registered"])

    def test_a_daemon_that_is_away_is_asked_again(self) -> None:
        self.lease.begin()
        for _ in range(3):
            self.refuse("nobody there")
            self.clock.advance(1.0)
        self.answer()
        self.assertEqual(self.asks(), ["register"] * 4)
        self.assertEqual(self.events, ["nobody there"] * 3 + ["registered"])

    def test_waiting_for_a_change_ends_when_nobody_can_be_told(self) -> None:
        self.lease.begin()
        self.answer()
        waiting = self.lease.change(penalty=100.0)
        self.refuse()
        self.successResultOf(waiting)

    def test_the_end_takes_it_out_and_asks_nothing_more(self) -> None:
        self.lease.begin()
        self.answer()
        gone = self.lease.end()
        self.assertEqual(self.asks()[-1], "deregister")
        self.assertNoResult(gone)
        self.answer()
        self.successResultOf(gone)
        self.successResultOf(self.lease.end())
        self.successResultOf(self.lease.change(rate=1.0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_end_waits_for_what_is_under_way(self) -> None:
        self.lease.begin()
        gone = self.lease.end()
        self.assertEqual(self.asks(), ["register"])
        self.answer()
        self.assertEqual(self.asks(), ["register", "deregister"])
        self.refuse("too late")
        self.successResultOf(gone)
        self.assertEqual(self.events, [])

    def test_an_end_before_the_beginning(self) -> None:
        self.successResultOf(self.lease.end())
        self.assertEqual(self.asked, [])


class PortTests(SynchronousTestCase):
    """A free port."""

    def test_two_that_look_for_one_find_two(self) -> None:
        first = reserve_port(range(0), random.Random(1))
        self.addCleanup(first.release)
        pool = range(first.number, first.number + 1)
        self.assertRaises(LaunchError, reserve_port, pool, random.Random(1))
        first.release()
        second = reserve_port(pool, random.Random(1))
        self.assertEqual(second.number, first.number)
        second.release()

    def test_a_port_that_somebody_listens_at_is_not_free(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            error = self.assertRaises(
                LaunchError, reserve_port, range(port, port + 1), random.Random(1)
            )
            self.assertIn(str(port), str(error))
