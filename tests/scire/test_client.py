"""The client as a process: what it does, and what it survives."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from pathlib import Path
from threading import Event
from typing import Any

from gridnet.scire.client.config import read_config
from gridnet.scire.client.credentials import Credentials
from gridnet.scire.client.spool import Spool
from gridnet.scire.store.opening import open_database
from tests.scire.databases import SqliteMixin
from tests.scire.fleet import check_histories
from tests.scire.processes import ClientProcess, wait_until, waits
from tests.scire.test_server import ServerCase

#: As whom the scripts run: whoever runs the tests.
_USER = pwd.getpwuid(os.getuid()).pw_name


class ClientCase(SqliteMixin, ServerCase):
    """One server, one client."""

    def setUp(self) -> None:
        super().setUp()
        self.marks = self.place() / "marks"

    def job(self, script: str, name: str = "job", **values: Any) -> int:
        """Define a job for all clients; its run, if there is one client."""
        execute = {"script": script.encode(), "user": _USER, **values.pop("execute", {})}
        given = {"name": name, "targets": {"all": True}, "execute": execute, **values}
        made = self.root.admin.job_create(given)
        runs = self.root.admin.run_list({"job": made["job"]})["items"]
        return int(runs[0]["run"]) if runs else 0

    def enrolled(self, name: str = "c1.example.org", *others: Any, **keys: Any) -> ClientProcess:
        """A client that has a certificate already."""
        client = self.client(self.one, name, *others, **keys)
        config = read_config(client.site_file)
        self.assertTrue(Credentials(config).enrol(self.one.enrol_token, False, Event()))
        return client

    def run_to_the_end(self, client: ClientProcess) -> None:
        """Run a client in normal mode until nothing is left."""
        client.start("run", "--mode", "normal")
        self.assertEqual(client.wait(60), 0, client.log)

    def state(self, run: int) -> str:
        return str(self.root.admin.run_get(run)["state"])

    def states(self, run: int) -> list[str]:
        return [row["to"] for row in self.root.admin.run_history(run)]

    def wait_for(self, run: int, state: str) -> None:
        wait_until(lambda: self.state(run) == state, f"run {run} is {state}")


class NormalTests(ClientCase):
    """Normal mode: poll, run, report, end."""

    def test_scripts_run_in_order_and_are_reported(self) -> None:
        client = self.enrolled()
        mark = f"echo $SCIRE_JOB >> {self.marks}"
        low = self.job(mark, "low", priority=1)
        high = self.job(f"{mark}; echo out; echo err >&2; exit 3", "high", priority=90)
        self.run_to_the_end(client)
        jobs = [self.root.admin.run_get(run)["job"] for run in (high, low)]
        self.assertEqual([int(word) for word in self.marks.read_text().split()], jobs)
        self.assertEqual(self.states(low)[-2:], ["running", "succeeded"])
        shown = self.root.admin.run_get(high)
        self.assertEqual((shown["state"], shown["exit_code"]), ("failed", 3))
        for stream, text in (("stdout", b"out\n"), ("stderr", b"err\n")):
            answer = self.root.admin.run_output(high, stream, 0, 100)
            self.assertEqual((answer["data"], answer["truncated"]), (text, False))
        # Nothing is left behind but the memory of what was done.
        for name in ("queue", "reports", "output", "work"):
            self.assertEqual(os.listdir(client.directory / name), [], name)

    def test_what_a_script_is_given(self) -> None:
        client = self.enrolled()
        script = 'pwd; umask; echo "$1 $WHAT"; cat "$SCIRE_FILES/data"; cat'
        run = self.job(
            script,
            execute={
                "directory": "/tmp",
                "umask": "027",
                "arguments": ["a b"],
                "variables": {"WHAT": "ü"},
            },
            attachments=[{"name": "data", "content": b"content\n" * 100_000}],
        )
        self.run_to_the_end(client)
        self.assertEqual(self.state(run), "succeeded", self.root.admin.run_get(run))
        answer = self.root.admin.run_output(run, "stdout", 0, 1_000_000)
        self.assertTrue(answer["data"].startswith("/tmp\n0027\na b ü\ncontent\n".encode()))
        self.assertEqual(answer["bytes"], 17 + 800_000.0)

    def test_large_output_is_kept_to_its_limit(self) -> None:
        client = self.enrolled()
        limits = {"output_bytes": 3_000_000}
        run = self.job("yes 0123456 | head -c 8000000", limits=limits)
        self.run_to_the_end(client)
        answer = self.root.admin.run_output(run, "stdout", 2_999_990, 1000)
        self.assertEqual(answer["size"], 3_000_000)
        self.assertEqual((answer["bytes"], answer["truncated"]), (8_000_000.0, True))
        self.assertEqual(answer["data"], b"3456\n"[-2:] + b"0123456\n")

    def test_time_limits(self) -> None:
        client = self.enrolled()
        limits = {"run_seconds": 1, "kill_seconds": 1}
        run = self.job("trap '' TERM; sleep 60 & wait; sleep 60", limits=limits)
        self.run_to_the_end(client)
        shown = self.root.admin.run_get(run)
        self.assertEqual((shown["state"], shown["exit_signal"]), ("timedout", 9))

    def test_what_is_not_done_here_is_refused(self) -> None:
        client = self.enrolled()
        run = self.job("true", execute={"directory": "/no/such/directory"})
        package = {"kind": "package", "packages": [{"name": "no-such"}], "user": _USER}
        made = self.root.admin.job_create(
            {"name": "p", "targets": {"all": True}, "execute": package}
        )
        other = self.root.admin.run_list({"job": made["job"]})["items"][0]["run"]
        self.run_to_the_end(client)
        self.assertEqual(self.states(run)[-1], "refused")
        self.assertEqual(self.states(other)[-1], "refused")

    def test_files_are_put_in_place(self) -> None:
        client = self.enrolled()
        target = self.place()
        made = self.root.admin.job_create(
            {
                "name": "files",
                "targets": {"all": True},
                "execute": {"kind": "file", "directory": str(target), "user": _USER},
                "attachments": [{"name": "motd", "content": b"hello\n", "mode": "0640"}],
            }
        )
        self.run_to_the_end(client)
        self.assertEqual((target / "motd").read_bytes(), b"hello\n")
        self.assertEqual((target / "motd").stat().st_mode & 0o777, 0o640)
        runs = self.root.admin.run_list({"job": made["job"]})["items"]
        self.assertEqual([run["state"] for run in runs], ["succeeded"])

    def test_a_second_client_does_not_get_the_directory(self) -> None:
        client = self.enrolled(mode="daemon")
        client.start()
        wait_until(lambda: (client.directory / "servers.json").exists(), "it is there")
        second = ClientProcess(client.site_file).start()
        self.assertEqual(second.wait(), 1)
        self.assertIn("another client works in", second.log)

    def test_a_renewal_in_time(self) -> None:
        client = self.enrolled(mode="daemon", poll_interval=0.2)
        before = (client.directory / "certificate.pem").read_text()
        database = open_database(self.one.database, self.one.state, 1, "test")
        self.addCleanup(database.close)
        database.run_now(
            lambda tx: tx.run(
                "UPDATE certificates SET issued_at = ?, not_after = ?",
                (tx.now - 89 * 86400, tx.now + 86400),
            )
        )
        client.start()
        wait_until(
            lambda: (client.directory / "certificate.pem").read_text() != before, "it renews"
        )
        run = self.job(f"echo renewed >> {self.marks}")
        self.wait_for(run, "succeeded")


class DaemonTests(ClientCase):
    """Daemon mode: for ever, told of news at once."""

    def test_work_arrives_at_once_and_can_be_cancelled(self) -> None:
        client = self.enrolled(mode="daemon")
        client.start()
        wait_until(lambda: waits(self.one) == 1, "it waits")
        run = self.job("exec sleep 100")
        self.wait_for(run, "running")
        self.root.admin.job_cancel({"run": run})
        self.wait_for(run, "cancelled")
        self.assertEqual(self.root.admin.run_get(run)["exit_signal"], signal.SIGTERM)
        stubborn = self.job(f"trap '' TERM; echo x > {self.marks}; while :; do sleep 0.1; done")
        self.wait_for(stubborn, "running")
        wait_until(self.marks.exists, "it does not hear")
        self.root.admin.job_cancel({"run": stubborn}, True)
        self.wait_for(stubborn, "cancelled")

    def test_it_survives_its_server(self) -> None:
        client = self.enrolled(mode="daemon", poll_interval=0.5)
        client.start()
        wait_until(lambda: (client.directory / "servers.json").exists(), "it is there")
        run = self.job("sleep 1; echo done")
        self.wait_for(run, "running")
        self.one.kill()
        wait_until(lambda: os.listdir(client.directory / "reports"), "it keeps its report", 20)
        self.root("close")()
        self.one.start()
        self.wait_for(run, "succeeded")
        self.assertEqual(self.states(run).count("succeeded"), 1)

    def test_it_gives_up_where_an_administrator_must_act(self) -> None:
        client = self.enrolled(mode="daemon", poll_interval=0.2)
        client.start()
        wait_until(lambda: (client.directory / "servers.json").exists(), "it is there")
        self.root.admin.client_disable("c1.example.org", "lost")
        self.assertEqual(client.wait(), 3)
        self.assertIn("1002", client.log)


class KillTests(ClientCase):
    """``kill -9`` at any line of its code."""

    #: lines at which it is killed, spread over all that a run takes
    KILLS = int(os.environ.get("GRIDNET_CLIENT_KILLS", "6"))

    def _dying(self, client: ClientProcess, line: int) -> int:
        client.command = lambda *words: [  # type: ignore[method-assign]
            *(sys.executable, "-m", "tests.scire.dying_client", str(line)),
            *("--config", str(client.site_file), *words),
        ]
        try:
            client.start("run", "--mode", "normal")
            return client.wait(60)
        finally:
            del client.command

    def test_every_run_ends_and_none_is_executed_twice(self) -> None:
        client = self.enrolled()
        os.environ["GRIDNET_LINES"] = str(client.directory / "lines")
        self.addCleanup(os.environ.pop, "GRIDNET_LINES", None)
        run = self.job(f"echo x >> {self.marks}.0")
        self.assertEqual(self._dying(client, -1), 0, client.log)
        lines = int(Path(os.environ["GRIDNET_LINES"]).read_text())
        self.assertEqual(self.state(run), "succeeded")
        killed, interrupted = 0, 0
        for number in range(1, self.KILLS + 1):
            marks = Path(f"{self.marks}.{number}")
            run = self.job(f"echo x >> {marks}; echo $SCIRE_JOB", f"job {number}")
            # Odd numbers beside one another fall on different lines of loops.
            killed += self._dying(client, 1 + lines * number // (self.KILLS + 1)) != 0
            self.run_to_the_end(client)
            executed = marks.read_text().count("x") if marks.exists() else 0
            state, states = self.state(run), self.states(run)
            self.assertIn(state, ("succeeded", "lost"), states)
            self.assertLessEqual(executed, 1)
            if state == "succeeded":
                self.assertEqual(executed, 1)
            interrupted += state == "lost"
            for once in ("received", "running", state):
                self.assertLessEqual(states.count(once), 1, states)
        self.assertGreater(killed, self.KILLS // 2)
        self.assertLess(interrupted, self.KILLS)
        database = open_database(self.one.database, self.one.state, 1, "test")
        self.addCleanup(database.close)
        self.assertEqual(database.run_now(check_histories), [])

    def test_a_job_that_may_run_twice_is_run_to_its_end(self) -> None:
        client = self.enrolled()
        run = self.job(
            f"echo x >> {self.marks}; test $(wc -l < {self.marks}) = 2 || sleep 60",
            on_interrupt="rerun",
        )
        client.start("run", "--mode", "normal")
        wait_until(self.marks.exists, "it runs")
        client.kill()
        self.run_to_the_end(client)
        self.assertEqual(self.state(run), "succeeded")
        self.assertEqual(self.marks.read_text().count("x"), 2)

    def test_an_interrupted_run_is_reported_lost(self) -> None:
        client = self.enrolled()
        run = self.job(f"echo x >> {self.marks}; sleep 60")
        client.start("run", "--mode", "normal")
        wait_until(self.marks.exists, "it runs")
        client.kill()
        self.run_to_the_end(client)
        self.assertEqual(self.states(run)[-2:], ["running", "lost"])
        self.assertEqual(self.marks.read_text().count("x"), 1)

    def test_a_disk_that_tears_the_journal(self) -> None:
        client = self.enrolled()
        run = self.job(f"echo x >> {self.marks}")
        self.run_to_the_end(client)
        with open(client.directory / "journal", "ab") as journal:
            journal.write(b"99999 0 17")
        spool = Spool(client.directory)
        self.assertIn(run, spool.ended)
        self.assertNotIn(99999, spool.ended)
        self.run_to_the_end(client)
