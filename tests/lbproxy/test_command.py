"""gridnet lb and gridnet lbproxy."""

from __future__ import annotations

import io
import json
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from gridnet.lbproxy.command import main as lb
from gridnet.lbproxy.upkeep import age
from gridnet.lbproxy.upkeep import main as upkeep
from tests.lbproxy.child import ChildTestCase
from tests.lbproxy.vectors import code


class CommandTests(ChildTestCase):
    """gridnet lb and gridnet lbproxy."""

    def run_command(self, main: Any, *words: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main(list(words))
            except SystemExit as end:
                status = int(str(end.code))
        return status, out.getvalue(), err.getvalue()

    def lb(self, verb: str, *words: str) -> tuple[int, str, str]:
        return self.run_command(
            lb, verb, "--store", self.child.store, "--serve", self.child.serve, *words
        )

    def upkeep(self, *words: str) -> tuple[int, str, str]:
        return self.run_command(upkeep, words[0], "--serve", self.child.serve, *words[1:])

    def register(self, *words: str) -> str:
        status, out, err = self.lb("register", *words)
        self.assertEqual((status, err), (0, ""))
        return out.split()[0]

    def test_a_life(self) -> None:
        """Register, log, status, events, jobs, watch: as people and as programs read them."""
        name = self.register("--user", "/CN=cli", "--jdl", "[ d ]")
        words = ("--user", "/CN=cli", name)
        self.assertEqual(
            self.lb("log", *words, "Running", "node=wn7", "--source", "LogMonitor"), (0, "", "")
        )
        self.assertEqual(self.lb("log", *words, "UserTag", "name=Tag", "value=a=b")[0], 0)
        _, out, _ = self.lb("status", name)
        self.assertIn("state              Running\n", out)
        self.assertIn("tag tag            a=b\n", out)
        shown = json.loads(self.lb("status", "--json", "--all", name)[1])
        self.assertEqual((shown["state"], shown["jdl"]), ("Running", "[ d ]"))
        _, out, _ = self.lb("events", name)
        self.assertEqual(
            [row.split()[2] for row in out.splitlines()[1:]], ["RegJob", "Running", "UserTag"]
        )
        self.assertEqual(len(self.lb("events", "--json", name)[1].splitlines()), 3)
        _, out, _ = self.lb("jobs", "--owner", "/CN=cli", "--state", "Running")
        self.assertEqual(out.splitlines()[1].split()[:2], [name, "Running"])
        out = self.lb("jobs", "--tag", "tag=a=b", "--json", "--limit", "1")[1]
        self.assertEqual(json.loads(out)["job"], name)
        self.register("--user", "/CN=cli")  # one more than the limit
        out = self.lb("jobs", "--owner", "/CN=cli", "--json", "--limit", "1")[1]
        self.assertEqual(len(out.splitlines()), 1)
        self.assertEqual(self.lb("jobs", "--owner", "/CN=none")[1].split()[0], "JOB")
        _, out, _ = self.lb("watch", name, "--after", "0", "--count", "2")
        self.assertEqual([row.split()[3] for row in out.splitlines()], ["RegJob", "Running"])
        self.lb("log", *words, "Done", "status_code=OK", "exit_code=0", "--source", "LogMonitor")
        out = self.lb("watch", name, "--after", "0", "--until-final", "--json")[1]
        self.assertEqual(json.loads(out.splitlines()[-1])["state"], "Done")

    def test_watching_goes_on_where_it_stopped(self) -> None:
        """What a consumer was shown is not shown again, and nothing is left out."""
        name = self.register()
        for number in range(5):
            self.lb("log", name, "Running", f"node=n{number}", "--source", "LogMonitor")
        seen = []
        for _ in range(3):
            _, out, _ = self.lb("watch", name, "--consumer", f"c{name}", "--count", "2")
            seen += [row.split()[-1] for row in out.splitlines()]
        self.assertEqual(seen[1:], [f"node=n{number}" for number in range(5)])

    def test_refusals(self) -> None:
        """One line on standard error and status 1; 2 for the command line."""
        for words, text in (
            (("status", "https://h/unknown"), "no matching jobs found (2)"),
            (("log", "https://h/unknown", "Purge"), "no state in DB (2)"),
            (("log", "nonsense", "Purge"), "not a job identifier"),
            (("log", "https://h/x", "Novel", "--seqcode", "x"), "is no event type"),
            (("log", "https://h/x", "UserTag", "name", "--seqcode", "x"), "expected FIELD=VALUE"),
            (
                ("log", "https://h/x", "Done", "exit_code=abc", "--seqcode", "x"),
                "'abc' is no value",
            ),
            (
                ("log", "https://h/x", "Done", "exit_code=1.5", "--seqcode", "x"),
                "'1.5' is no value",
            ),
            (("log", "https://h/x", "Running", "node=Ž9", "--seqcode", "x"), "expected Latin-1"),
            (("jobs", "--owner", "Žofie"), "expected Latin-1, found 'Ž'"),
        ):
            status, out, err = self.lb(*words)
            self.assertEqual((status, out), (1, ""), words)
            self.assertIn(text, err)
            self.assertEqual(len(err.splitlines()), 1)
        for words, text in (
            (("jobs", "--state", "Frob"), "expected one of Undefined, Submitted"),
            (("jobs", "--type", "Frob"), "expected one of Simple"),
            (("jobs", "--limit", "-1"), "expected a number, 0 or more, found '-1'"),
            (("register", "--subjobs", "-3"), "expected a number, 0 or more, found '-3'"),
        ):
            status, out, err = self.lb(*words)
            self.assertEqual((status, out), (2, ""), words)
            self.assertIn(text, err)
        self.assertEqual(self.run_command(lb, "novel")[0], 2)
        self.assertEqual(self.run_command(lb)[0], 2)

    def test_purge(self) -> None:
        """Dry run, list, dump, load again; ages as people write them."""
        name = self.register()
        self.lb("log", name, "Done", "status_code=OK", "exit_code=0", "--source", "LogMonitor")
        # Strictly older than: a second has to pass.
        threading.Event().wait(1.1)
        _, out, err = self.upkeep("purge", "--older-than", "0s", "--dry-run")
        self.assertIn(name, out)
        self.assertIn("would go", err)
        self.assertEqual(self.upkeep("purge", "--older-than", "1d", "--list")[1], "")
        jobs = self.child.directory / "jobs"
        jobs.write_text(f"{name}\n\n")
        status, out, _ = self.upkeep("purge", "--jobs-from", str(jobs), "--dump", "--json")
        found = json.loads(out)
        self.assertEqual((found["jobs"], found["purged"]), ([name], True))
        self.assertIn("(43)", self.lb("status", name)[2])
        status, _, err = self.run_command(
            upkeep, "load", "--store", self.child.store, found["dump"]
        )
        self.assertEqual((status, err.split()[0]), (0, "2"))
        self.assertIn("Done", self.lb("status", name)[1])
        status, _, err = self.run_command(
            upkeep, "load", "--store", self.child.store, str(self.child.database)
        )
        self.assertEqual(status, 0)
        self.assertEqual(
            self.upkeep("purge", "--background", "--others", "31d")[2],
            "purging in the background\n",
        )
        for text, seconds in (
            ("90", 90),
            ("2m", 120),
            ("3h", 10800),
            ("2d", 172800),
            ("never", -2),
        ):
            self.assertEqual(age(text), seconds)
        self.assertEqual(self.run_command(upkeep, "purge", "--older-than", "soon")[0], 2)
        self.assertEqual(self.run_command(upkeep, "load", "/nowhere")[0], 1)

    def test_damaged_stores_can_be_loaded(self) -> None:
        """What can be read of a damaged file is entered."""
        name = self.register()
        for number in range(30):
            self.lb(
                "log",
                name,
                "UserTag",
                "name=n",
                "value=" + "v" * 3000,
                "--seqcode",
                code(f"UI{number + 2}"),
            )
        copy = Path(self.child.directory / "copy.sqlite")
        copy.write_bytes(self.child.database.read_bytes())
        wal = Path(f"{self.child.database}-wal")
        Path(f"{copy}-wal").write_bytes(wal.read_bytes())
        status, _, err = self.run_command(upkeep, "load", "--store", self.child.store, str(copy))
        self.assertEqual(status, 0)
        self.assertGreaterEqual(int(err.split()[0]), 31)
