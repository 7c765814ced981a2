"""Commands that start themselves anew in huge pages: when, how often, and with what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest import skipUnless
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from gridnet.simulate import __main__ as command
from gridnet.simulate import huge_pages
from gridnet.simulate.huge_pages import environment_with_huge_pages
from tests.prepared import ROOT
from tests.simulate import acceptance

MODES = "always [madvise] never\n"
ASKED = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "PYTHONMALLOC": "malloc",
    "GRIDNET_HUGE_PAGES": "asked",
}

#: Says what it is; the first of it asks for huge pages, as on a machine that has them.
_PROGRAM = """
import json, os, sys
from gridnet.simulate import huge_pages
print("before", flush=True)
huge_pages.start_anew("glibc 2.36", "[madvise]")
print(json.dumps([os.getpid(), sys.argv[1:], dict(os.environ), sys.executable, sys.path]))
"""


class EnvironmentTests(SynchronousTestCase):
    """What is added to the environment, and when."""

    def test_both_allocators_are_told_and_the_rest_stays(self) -> None:
        given = {"HOME": "/x"}
        added = environment_with_huge_pages(given, "glibc 2.35", MODES)
        self.assertEqual(added, {"HOME": "/x", **ASKED})
        self.assertEqual(given, {"HOME": "/x"})

    def test_other_tunables_stay(self) -> None:
        given = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
        added = environment_with_huge_pages(given, "glibc 2.36", MODES)
        assert added is not None
        self.assertEqual(added["GLIBC_TUNABLES"], "glibc.malloc.check=1:glibc.malloc.hugetlb=1")

    def test_once_only(self) -> None:
        added = environment_with_huge_pages({}, "glibc 2.36", MODES)
        assert added is not None
        self.assertIsNone(environment_with_huge_pages(added, "glibc 2.36", MODES))
        del added["GLIBC_TUNABLES"], added["PYTHONMALLOC"]
        self.assertIsNone(environment_with_huge_pages(added, "glibc 2.36", MODES))

    def test_not_where_somebody_has_chosen(self) -> None:
        for chosen in (
            {"GRIDNET_HUGE_PAGES": "no"},
            {"PYTHONMALLOC": "debug"},
            {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        ):
            self.assertIsNone(environment_with_huge_pages(chosen, "glibc 2.36", MODES))

    def test_not_where_there_are_none(self) -> None:
        for library in ("", "glibc 2.34", "glibc 1.99", "musl 2.40"):
            self.assertIsNone(environment_with_huge_pages({}, library, MODES))
        for modes in ("", "[always] madvise never", "always madvise [never]"):
            self.assertIsNone(environment_with_huge_pages({}, "glibc 2.36", modes))
        self.assertIsNotNone(environment_with_huge_pages({}, "glibc 3.0", MODES))


class StartTests(SynchronousTestCase):
    """Real processes."""

    def started(self, *flags: str, **environment: str) -> tuple[int, list[str]]:
        """A process with two arguments: its number, and its lines."""
        unset = {name: value for name, value in os.environ.items() if name not in ASKED}
        process = subprocess.Popen(
            [sys.executable, *flags, "-c", _PROGRAM, "a b", "--c"],
            cwd=ROOT,
            env={**unset, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        said, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        return process.pid, said.splitlines()

    @skipUnless(sys.platform == "linux", "elsewhere commands do not start anew")
    def test_it_begins_anew_as_it_was_called(self) -> None:
        number, (first, again, said) = self.started(LANGUAGE="x")
        self.assertEqual((first, again), ("before", "before"))
        found, arguments, environment, executable, path = json.loads(said)
        self.assertEqual((found, arguments), (number, ["a b", "--c"]))
        self.assertEqual(environment, environment | ASKED | {"LANGUAGE": "x"})
        self.assertEqual(executable, sys.executable)
        self.assertIn(str(ROOT), path)

    def test_it_goes_on_where_it_was_told_to(self) -> None:
        for flags, chosen in (((), {"GRIDNET_HUGE_PAGES": "no"}), (("-E",), {})):
            _, lines = self.started(*flags, **chosen)
            self.assertEqual(len(lines), 2, lines)
            self.assertNotIn("PYTHONMALLOC", json.loads(lines[1])[2])

    def test_it_goes_on_on_a_machine_without_them(self) -> None:
        with patch.object(os, "execve") as started:
            huge_pages.start_anew("musl", MODES)
            huge_pages.start_anew("glibc 2.36", "")
        started.assert_not_called()


class CommandTests(SynchronousTestCase):
    """Who asks for them."""

    def asked(self, *arguments: str) -> bool:
        """Whether the simulator does, with these arguments."""
        with (
            patch.object(huge_pages, "start_anew") as started,
            patch.object(command, "main") as main,
            patch.object(sys, "argv", ["simulate", *arguments]),
        ):
            command.start()
        main.assert_called_once_with()
        return started.called

    def test_the_simulator_for_large_sites(self) -> None:
        self.assertTrue(self.asked("--hosts", str(command.LARGE_SITE)))
        self.assertFalse(self.asked("--hosts", str(command.LARGE_SITE - 1)))
        self.assertFalse(self.asked())

    def test_nobody_who_calls_its_function(self) -> None:
        with patch.object(os, "execve") as started, self.assertRaises(SystemExit):
            command.main(["--hosts", str(command.LARGE_SITE), "--services", "0"])
        started.assert_not_called()

    def test_the_acceptance_run_before_its_first_item(self) -> None:
        order: list[str] = []

        def main() -> int:
            order.append("main")
            return 0

        with (
            patch.object(huge_pages, "start_anew", lambda: order.append("anew")),
            patch.object(acceptance, "main", main),
        ):
            self.assertEqual(acceptance.start(), 0)
        self.assertEqual(order, ["anew", "main"])
