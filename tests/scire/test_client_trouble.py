"""What the client does when its disk, its servers or its scripts do not behave."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet import durable
from gridnet.errors import ConfigError
from gridnet.scire import wire
from gridnet.scire.client import spool, work
from gridnet.scire.client.agent import Agent
from gridnet.scire.client.config import ClientConfig, Mode, read_config
from gridnet.scire.client.execution import Program, end_leftovers, run
from gridnet.scire.client.spool import ReportName, Spool, Started
from gridnet.scire.client.work import Worker
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.jobfile import (
    FileToFetch,
    JobFile,
    Keep,
    OnInterrupt,
    Work,
    digest_of,
    format_job,
)
from gridnet.scire.machine import Reported
from gridnet.scire.statusfile import parse_status
from tests.mounts import own_mounts
from tests.scire.processes import ProcessMixin, wait_until
from tests.scire.test_client import _USER, ClientCase

_PATIENCE = 60.0  # seconds
DISK_KIB = 256


def is_alive(pid: int) -> bool:
    """Whether a process is there and not just unburied."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def job_file(run_id: int = 1, **values: Any) -> JobFile:
    """A job for client 7 that does nothing."""
    now = float(int(time.time()))
    made = JobFile(
        run_id, 1, 1, "job", 7, "c1.example.org", "root", now, now, Work.SCRIPT,
        user=_USER, script=b"exit 0\n", run_seconds=60, kill_seconds=0,
    )  # fmt: skip
    return evolve(made, **values)


class SpoolTests(ProcessMixin, SynchronousTestCase):
    """What is on the disk."""

    def setUp(self) -> None:
        self.spool = Spool(self.place() / "client")

    def keep(self, job: JobFile) -> JobFile:
        self.spool.store(job, format_job(job))
        self.spool.acknowledged(job.run)
        return job

    def test_what_the_disk_has_damaged_is_set_aside(self) -> None:
        """It does not keep the rest from being done."""
        self.keep(job_file(1))
        started = self.keep(job_file(2))
        directory = self.spool.directory
        (directory / "queue" / "3.job").write_bytes(b"\0" * 100)
        (directory / "queue" / "2.started").write_bytes(b"\0" * 10)
        (directory / "queue" / "odd.started").write_bytes(b"")
        (directory / "reports" / "4.0.1.xml").write_bytes(b"<scire-status")
        (directory / "reported" / "5.0.1.xml").write_bytes(b"")
        (directory / "journal").write_bytes(b"12 0 17\n\xff\xff x\n9 0 17\n")
        again = Spool(directory)
        self.assertEqual(again.recover(), [started])
        self.assertEqual([job.run for job in again.runs()], [1, 2])
        self.assertEqual([item["run"] for item in again.held()], [1, 2])
        self.assertEqual(
            sorted(os.listdir(directory / "damaged")), ["3.job", "4.0.1.xml", "5.0.1.xml"]
        )
        self.assertEqual(set(again.ended), {9, 12})

    def test_a_line_of_the_journal_is_whole_or_not_there(self) -> None:
        path = self.spool.directory / "journal"
        durable.append_durably(path, b"1 0 17\n")
        written = os.write

        def full(handle: int, octets: bytes) -> int:
            if len(octets) < 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return written(handle, octets[:4])

        self.patch(os, "write", full)
        with self.assertRaises(OSError):
            durable.append_durably(path, b"2 0 17\n")
        with self.assertRaises(OSError):
            durable.write_durably(self.spool.directory / "other", b"2 0 17\n")
        self.assertEqual(path.read_bytes(), b"1 0 17\n")
        self.assertNotIn(".other.tmp", os.listdir(self.spool.directory))

    def test_a_job_whose_receipt_is_unknown_may_come_again(self) -> None:
        job = job_file()
        self.spool.store(job, format_job(job))
        self.spool.drop(job.run)
        self.assertFalse(self.spool.knows(job.run, 0))
        self.keep(job)
        self.spool.drop(job.run)  # one that the server knows to be here stays
        self.assertTrue(self.spool.knows(job.run, 0))

    def test_a_report_that_could_not_be_finished_is_written_once(self) -> None:
        """The number of a report stays the same, however often it is tried."""
        job = self.keep(job_file())
        stopping = threading.Event()
        worker = Worker(
            ClientConfig(), self.spool, "one", lambda *_: None, lambda: None, lambda: 1000, stopping
        )
        self.patch(work, "RETRY_SECONDS", 0.0)
        failures = [OSError(errno.ENOSPC, "full")] * 3
        append = durable.append_durably

        def full(path: Path, octets: bytes) -> None:
            if failures:
                raise failures.pop()
            append(path, octets)

        self.patch(spool, "append_durably", full)
        worker.report(job, Reported.FAILED, "why")
        self.assertEqual(self.spool.unreported(), [ReportName(1, 0, 1)])
        self.assertEqual((self.spool.size, self.spool.ended), (0, {1: 0}))
        # Not for ever, though, when it is to end.
        failures.append(OSError(errno.ENOSPC, "full"))
        other = self.keep(job_file(2))
        stopping.set()
        with self.assertRaises(OSError):
            worker.report(other, Reported.FAILED)

    def test_who_is_killed_while_he_fetches_has_not_started(self) -> None:
        file = FileToFetch("data", digest_of(b"x"), 1)
        self.keep(job_file(files=(file,)))

        class Killed(BaseException):
            pass

        def fetch(job: JobFile, place: Path) -> None:
            raise Killed

        worker = Worker(
            ClientConfig(), self.spool, "one", fetch, lambda: None, lambda: 1000, threading.Event()
        )
        with self.assertRaises(Killed):
            worker.next()
        self.assertEqual(Spool(self.spool.directory).recover(), [])
        self.assertEqual(self.spool.unreported(), [])

    def test_what_is_interrupted_does_not_run_again_when_its_window_is_over(self) -> None:
        late = job_file(interrupt=OnInterrupt.RERUN, not_after=time.time() - 10)
        self.keep(late)
        self.spool.start(late, Started(time.time() - 20, ""))
        worker = Worker(
            ClientConfig(), self.spool, "one", lambda *_: None, lambda: None, lambda: 1000,
            threading.Event(),
        )  # fmt: skip
        worker.take_up(self.spool.recover())
        (name,) = self.spool.unreported()
        self.assertIs(parse_status(self.spool.read_report(name)).state, Reported.LOST)

    def test_windows_are_judged_by_the_servers_clock(self) -> None:
        """Of a machine whose own is wrong, also when somebody sets it meanwhile."""
        hour = 3600.0
        server = time.time() + hour
        worker = Worker(
            ClientConfig(), self.spool, "one", lambda *_: None, lambda: None, lambda: 1000,
            threading.Event(),
        )  # fmt: skip
        self.keep(job_file(1, not_before=server - 60))
        self.keep(job_file(2, not_after=server - 60, priority=40))
        self.assertGreater(worker.seconds_until_due() or 0, hour - 120)
        worker.set_clock(float(int(server)))
        self.assertEqual(worker.seconds_until_due(), 0.0)
        self.patch(time, "time", lambda: 17.0)
        for _ in range(2):
            worker.next()
        found = [parse_status(self.spool.read_report(name)) for name in self.spool.unreported()]
        self.assertEqual(
            [(status.run, status.state.value) for status in found],
            [(1, "running"), (1, "succeeded"), (2, "expired")],
        )
        for status in found:
            self.assertLess(abs(status.time - server), 600)
        # Only a difference that counts is one.
        before = worker._clock_offset
        worker.set_clock(worker.now() + 2)
        self.assertEqual(worker._clock_offset, before)

    def test_signs_of_life_do_not_pile_up(self) -> None:
        job = self.keep(job_file())
        worker = Worker(
            ClientConfig(), self.spool, "one", lambda *_: None, lambda: None, lambda: 1000,
            threading.Event(),
        )  # fmt: skip
        for _ in range(5):
            worker._report_progress(job)
        self.assertEqual(self.spool.unreported(), [ReportName(1, 0, 1)])
        self.spool.answered(ReportName(1, 0, 1))
        worker._report_progress(job)
        self.assertEqual(self.spool.unreported(), [ReportName(1, 0, 2)])


class ConversationTests(ProcessMixin, SynchronousTestCase):
    """What the client makes of answers; no server is there."""

    def setUp(self) -> None:
        directory = self.place()
        self.spool = Spool(directory)
        self.renewals = 0

        def renew(servers: Any) -> None:
            self.renewals += 1

        context: Any = None
        config = ClientConfig(directory=directory, mode=Mode.DAEMON)
        urls = ["https://a/"]
        self.agent = Agent(config, self.spool, context, renew, Random(1), urls)
        self.agent._client_id = 7
        self.calls: list[tuple[str, Any]] = []

    def answers(self, answer: Callable[[str, Any], Any]) -> None:
        """Have the servers answer so."""

        def call(method: str, *params: Any) -> Any:
            self.calls.append((method, params))
            return answer(method, params)

        self.agent.servers.call = call  # type: ignore[method-assign]

    def delivery(self, job: JobFile, receipt: str) -> dict[str, Any]:
        octets = format_job(job)
        return {"run": job.run, "receipt": receipt, "file": octets, "digest": digest_of(octets)}

    def test_a_server_that_has_lost_a_receipt_may_hand_the_run_out_again(self) -> None:
        job = job_file()
        again = evolve(job, attempt=2)
        script: dict[str, list[Any]] = {
            "": [self.delivery(job, "r1"), self.delivery(again, "r2")],
            "r1": [ScireFault(FaultCode.UNKNOWN_RECEIPT, "unknown receipt")],
            "r2": [{"more": False}],
        }

        def answer(method: str, params: Any) -> Any:
            found = script[params[0]].pop(0)
            if isinstance(found, ScireFault):
                raise found
            return found

        self.answers(answer)
        self.assertTrue(self.agent._fetch_all())
        self.assertEqual([job.attempt for job in self.spool.runs(acknowledged=True)], [2])
        self.assertEqual(self.spool.ended, {})

    def test_a_daemon_that_is_not_approved_yet_asks_later(self) -> None:
        pauses: list[float | None] = []

        def answer(method: str, params: Any) -> Any:
            raise ScireFault(FaultCode.ENROLMENT_PENDING, "not approved yet")

        def wait(seconds: float | None = None) -> bool:
            pauses.append(seconds)
            if len(pauses) > 3:  # the first is before the first poll
                self.agent.stopping.set()
            return True

        self.answers(answer)
        self.agent.poll_wanted.wait = wait  # type: ignore[method-assign,assignment]
        self.agent._poll_for_ever()
        self.assertEqual([method for method, _ in self.calls], ["scire.hello"] * 3)
        self.assertIsNone(self.agent._gave_up)
        for seconds in pauses[1:]:
            assert seconds is not None
            self.assertGreater(seconds, 50.0)

    def test_whoever_polls_once_ends_when_it_is_not_approved_yet(self) -> None:
        fault = ScireFault(FaultCode.ENROLMENT_PENDING, "not approved yet")

        def answer(method: str, params: Any) -> Any:
            raise fault

        self.answers(answer)
        self.agent.config = evolve(self.agent.config, mode=Mode.NORMAL)
        self.agent._poll_for_ever()
        self.assertEqual(len(self.calls), 1)
        assert self.agent._gave_up is not None
        self.assertIs(self.agent._gave_up.fault, fault)

    def test_a_queue_that_is_full_takes_no_more(self) -> None:
        self.agent.config = evolve(self.agent.config, max_queue=2)
        jobs = [job_file(number) for number in range(1, 5)]

        def answer(method: str, params: Any) -> Any:
            if method == "scire.job_received":
                return {"run": 2, "state": "received", "duplicate": False}
            job = jobs.pop(0)
            return self.delivery(job, f"r{job.run}")

        self.answers(answer)
        self.assertTrue(self.agent._fetch_all())
        self.assertTrue(self.agent._fetch_all())
        self.assertEqual([job.run for job in self.spool.runs(acknowledged=True)], [1, 2])
        self.assertEqual(
            self.calls,
            [
                ("scire.next_job", ("",)),
                ("scire.next_job", ("r1",)),
                ("scire.job_received", ("r2",)),
            ],
        )
        self.spool.forget(1, 0, 17.0)
        self.agent._fetch_all()
        self.assertEqual(
            self.calls[3:], [("scire.next_job", ("",)), ("scire.job_received", ("r3",))]
        )

    def test_output_that_is_not_taken_does_not_keep_the_end_back(self) -> None:
        job = job_file()
        self.spool.store(job, format_job(job))
        self.agent.worker.report(job, Reported.SUCCEEDED)
        self.spool.output_path(1, 0, "stdout").write_bytes(b"x" * 10)

        def answer(method: str, params: Any) -> Any:
            if method == "scire.put_output":
                raise ScireFault(FaultCode.TOO_LARGE, "too large")
            return {"control": []}

        self.answers(answer)
        self.agent._send_reports()
        self.assertEqual([name for name, _ in self.calls], ["scire.put_output", "scire.job_status"])
        self.assertEqual(self.spool.unreported(), [])
        self.assertEqual(os.listdir(self.spool.directory / "output"), [])

    def test_a_renewal_that_is_refused_is_not_asked_for_at_each_poll(self) -> None:
        def answer(method: str, params: Any) -> Any:
            if method == "scire.hello":
                return {
                    "client": 7,
                    "time": wire.time_value(time.time()),
                    "poll_interval": 60,
                    "max_output": 1000,
                    "servers": [],
                    "control": [],
                    "renew_after": wire.time_value(1.0),
                }
            return {"more": False}

        self.answers(answer)
        for _ in range(5):
            self.agent._converse()
        self.assertEqual(self.renewals, 1)
        self.assertEqual([name for name, _ in self.calls].count("scire.hello"), 1)


class ProcessTests(ProcessMixin, SynchronousTestCase):
    """What scripts leave behind."""

    def setUp(self) -> None:
        self.directory = self.place()
        self.session = 0

    def program(self, script: str, run_seconds: float = 60.0, kill_seconds: float = 1.0) -> Program:
        path = self.directory / "script"
        path.write_text(script)
        environment = {"PATH": os.environ["PATH"], "SCIRE_RUN": "one:1"}
        return Program(
            ["/bin/sh", str(path)], _USER, str(self.directory), 0o022, environment,
            run_seconds, kill_seconds,
        )  # fmt: skip

    def follow(self, program: Program, wish: Callable[[], str] = lambda: "") -> Any:
        def started(session: int) -> None:
            self.session = session

        return run(program, Keep.TAIL, 1000, wish, lambda: None, started)

    def read_pid(self, name: str) -> int:
        pid = int((self.directory / name).read_text())

        def kill() -> None:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)

        self.addCleanup(kill)
        return pid

    def test_what_a_cancelled_script_has_started_ends_with_it(self) -> None:
        """Although it does not hear, and the script itself is gone already."""
        script = (
            "(trap '' TERM; echo ready > ready; while :; do sleep 0.1; done) & echo $! > pid; wait"
        )
        ready = self.directory / "ready"
        ended = self.follow(
            self.program(script, kill_seconds=0.5), lambda: "cancel" if ready.exists() else ""
        )
        self.assertTrue(ended.cancelled)
        pid = self.read_pid("pid")
        wait_until(lambda: not is_alive(pid), "it has ended", _PATIENCE)

    def test_a_daemon_that_a_script_starts_stays(self) -> None:
        script = (
            "setsid sh -c 'echo $$ > pid; exec sleep 600' >/dev/null 2>&1 &"
            " while ! test -s pid; do sleep 0.05; done; echo started"
        )
        ended = self.follow(self.program(script))
        self.assertEqual((ended.exit_code, ended.streams["stdout"].octets), (0, b"started\n"))
        pid = self.read_pid("pid")
        self.assertEqual(end_leftovers(self.session, "one:1", 0.0), 0)
        self.assertTrue(is_alive(pid))

    def test_a_script_that_leaves_children_with_its_output_open_has_ended(self) -> None:
        """Whoever holds the pipes is not waited for."""
        script = "sh -c 'echo $$ > pid; exec sleep 600' & while ! test -s pid; do sleep 0.05; done"
        ended = self.follow(self.program(script))
        self.assertEqual(ended.exit_code, 0)
        self.read_pid("pid")

    def test_only_processes_of_the_run_are_ended(self) -> None:
        """A session's number may be another's by now."""
        self.follow(self.program("sleep 600 & echo $! > pid; exec >&- 2>&-"))
        pid = self.read_pid("pid")
        self.assertEqual(end_leftovers(self.session, "one:2", 0.0), 0)
        self.assertTrue(is_alive(pid))
        self.assertEqual(end_leftovers(self.session, "one:1", 0.0), 1)
        wait_until(lambda: not is_alive(pid), "it has ended", _PATIENCE)


class KilledTests(ClientCase):
    """``kill -9`` in the middle of a script."""

    def test_what_is_called_lost_does_not_run_any_more(self) -> None:
        client = self.enrolled()
        run = self.job(
            f"trap '' TERM HUP; echo $$ > {self.marks}; while :; do sleep 0.1; done",
            limits={"kill_seconds": 0},
        )
        client.start("run", "--mode", "normal")
        wait_until(lambda: self.marks.exists() and self.marks.read_text().strip(), "it runs")
        pid = int(self.marks.read_text())
        client.kill()
        self.assertTrue(is_alive(pid))
        self.run_to_the_end(client)
        self.assertEqual(self.states(run)[-2:], ["running", "lost"])
        self.assertFalse(is_alive(pid))


class DiskTests(ClientCase):
    """A disk that is full, until somebody makes room."""

    def test_a_result_waits_for_room(self) -> None:
        unshare = own_mounts()
        if not unshare:
            # No mounts for us here: files that may not grow are the nearest thing.
            self.test_a_result_waits_until_files_may_grow()
            return
        client = self.enrolled()
        var, gate = client.directory / "var", client.directory / "gate"
        var.mkdir()
        for name in ("certificate.pem", "key.pem"):
            shutil.copy(client.directory / name, var)
        text = client.site_file.read_text().replace(
            f'directory = "{client.directory}"', f'directory = "{var}"'
        )
        self.assertIn(str(var), text)
        client.site_file.write_text(text)
        mount = (
            f'cp -r "{var}" "{var}.kept"'
            f' && mount -t tmpfs -o mode=700,size={DISK_KIB}k tmpfs "{var}"'
            f' && cp "{var}.kept"/* "{var}" && exec "$@"'
        )
        usual = client.command
        client.command = lambda *words: [  # type: ignore[method-assign]
            *unshare, "sh", "-c", mount, "sh", *usual(*words),
        ]  # fmt: skip
        client.start("run", "--mode", "daemon")
        wait_until(lambda: "in conversation" in client.log, "it is there", _PATIENCE)
        as_root = {"user": "root"} if "-r" in unshare else {}
        run = self.job(
            f"while ! test -e {gate}; do sleep 0.1; done; echo done >> {self.marks}",
            execute=as_root,
        )
        self.wait_for(run, "running")
        assert client.process is not None
        ballast = Path(f"/proc/{client.process.pid}/root{var}/ballast")

        def fill() -> None:
            with open(ballast, "ab", buffering=0) as file, self.assertRaises(OSError):
                while True:
                    file.write(b"x" * 512)

        fill()
        gate.touch()
        wait_until(lambda: "cannot write, trying again" in client.log, "it is full", _PATIENCE)
        # It drops what was answered long ago, which may be room enough.
        ballast.unlink()
        self.wait_for(run, "succeeded")
        wait_until(lambda: not os.listdir(ballast.parent / "queue"), "it is done", _PATIENCE)
        fill()
        refused = self.job("true", "no room", execute=as_root)
        self.wait_for(refused, "refused")
        self.assertIn("No space left", self.root.admin.run_history(refused)[-1]["detail"])
        ballast.unlink()
        self.wait_for(run, "succeeded")
        later = self.job(f"echo later >> {self.marks}", "later", execute=as_root)
        self.wait_for(later, "succeeded")
        self.assertEqual(self.marks.read_text(), "done\nlater\n")
        self.assertNotIn("Traceback", client.log)

    def test_a_result_waits_until_files_may_grow(self) -> None:
        """A limit on the size of files, set while it runs."""
        client = self.enrolled(mode="daemon")
        gate = client.directory / "gate"
        client.start()
        run = self.job(f"while ! test -e {gate}; do sleep 0.1; done; echo done >> {self.marks}")
        self.wait_for(run, "running")
        assert client.process is not None
        before = resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
        gate.touch()
        wait_until(self.marks.exists, "the script has ended", _PATIENCE)
        refused = self.job("true", "no room")
        self.wait_for(refused, "refused")
        self.assertEqual(self.state(run), "running")
        resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, before)
        self.wait_for(run, "succeeded")
        later = self.job(f"echo later >> {self.marks}", "later")
        self.wait_for(later, "succeeded")
        self.assertEqual(self.marks.read_text(), "done\nlater\n")


class RoomTests(ClientCase):
    """A client that holds one run at a time, and a server where nobody may wait."""

    keys = {"heartbeat_seconds": 0.2, "limits": {"max_waits": 0}}

    def test_a_small_queue_gets_everything_done(self) -> None:
        client = self.enrolled(max_queue=1)
        script = f"ls {client.directory}/queue | grep -c job >> {self.marks}"
        runs = [self.job(script, f"job {number}") for number in range(4)]
        self.run_to_the_end(client)
        self.assertEqual([self.state(run) for run in runs], ["succeeded"] * 4)
        self.assertEqual(self.marks.read_text().split(), ["1"] * 4)

    def test_without_a_place_to_wait_it_polls_as_ever(self) -> None:
        client = self.enrolled(mode="daemon", poll_interval=0.2)
        client.start()
        wait_until(lambda: "1060" in client.log, "it is sent away", _PATIENCE)
        for number in range(3):
            run = self.job(f"echo {number} >> {self.marks}", f"job {number}")
            self.wait_for(run, "succeeded")
        self.assertEqual(client.log.count("waiting at"), 1)


class FileTests(ProcessMixin, SynchronousTestCase):
    """The client's own file."""

    def test_urls_that_are_none_are_named(self) -> None:
        path = self.place() / "client.toml"
        path.write_text('[client]\nservers = ["http://a/"]\nenrol = ["https://b:x/", "https://"]\n')
        error = self.assertRaises(ConfigError, read_config, path)
        self.assertEqual(
            [fault.where for fault in error.faults],
            ["client.servers", "client.enrol", "client.enrol"],
        )


class WindowTests(ClientCase):
    """The first poll of a daemon."""

    def test_a_fleet_that_starts_at_once_does_not_ask_at_once(self) -> None:
        def first(seed: int) -> float:
            waited: list[float | None] = []
            config = ClientConfig(mode=Mode.DAEMON, first_poll_seconds=60.0)
            context: Any = None
            agent = Agent(
                config, Spool(self.place()), context, lambda _: None, Random(seed), ["https://a/"]
            )

            def wait(seconds: float | None = None) -> bool:
                waited.append(seconds)
                agent.stopping.set()
                return True

            agent.poll_wanted.wait = wait  # type: ignore[method-assign,assignment]
            agent._poll_for_ever()
            assert waited[0] is not None
            return waited[0]

        pauses = sorted(first(seed) for seed in range(40))
        self.assertLess(pauses[0], 10.0)
        self.assertGreater(pauses[-1], 50.0)
        self.assertLess(pauses[-1], 60.0)

    def test_starting_in_normal_mode_means_ask_now(self) -> None:
        client = self.enrolled(first_poll_seconds=1e6)
        run = self.job(f"echo x >> {self.marks}")
        self.run_to_the_end(client)
        self.assertEqual(self.state(run), "succeeded")
