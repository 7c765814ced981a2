"""The ``gridnet`` command itself: subcommands, statuses, readers that go away."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import BinaryIO
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from gridnet import cli
from gridnet.component import Command

ROOT = Path(__file__).parent.parent


def refuses(words: Sequence[str]) -> int:
    print("seen", *words)
    return 3


def is_cut_off(words: Sequence[str]) -> int:
    raise BrokenPipeError(32, "Broken pipe")


COMMANDS = {
    command.name: command
    for command in (
        Command("refuses", "does as it is told", "tests.test_cli:refuses"),
        Command("cut", "loses its connection", "tests.test_cli:is_cut_off"),
    )
}


class CliTests(SynchronousTestCase):
    def call(self, *words: str) -> tuple[int, str, str]:
        with (
            patch.object(cli, "commands", lambda: COMMANDS),
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as err,
        ):
            return cli.main(words), out.getvalue(), err.getvalue()

    def test_a_subcommand_gets_its_words_and_gives_the_status(self) -> None:
        self.assertEqual(self.call("refuses", "a", "--b"), (3, "seen a --b\n", ""))

    def test_without_a_subcommand_or_with_a_wrong_one_there_is_help(self) -> None:
        self.assertEqual(self.call()[0], 2)
        status, out, err = self.call("nonsense")
        self.assertEqual((status, out), (2, ""))
        self.assertIn("no command 'nonsense'", err)
        status, out, err = self.call("--help")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("does as it is told", out)

    def test_a_connection_that_breaks_is_a_fault(self) -> None:
        """Not every broken pipe is the output's."""
        with (
            open(os.devnull, "w") as output,
            patch.object(sys, "stdout", output),
            patch.object(cli, "commands", lambda: COMMANDS),
            redirect_stderr(io.StringIO()) as err,
        ):
            status = cli.main(["cut"])
        self.assertEqual((status, err.getvalue()), (1, "gridnet cut: [Errno 32] Broken pipe\n"))

    def help_into(self, output: BinaryIO) -> tuple[int, bytes]:
        """Status and complaints of a process that writes its help to *output*."""
        done = subprocess.run(
            [sys.executable, "-m", "gridnet.cli", "--help"],
            stdout=output,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        return done.returncode, done.stderr

    def test_a_reader_that_has_seen_enough_is_no_error(self) -> None:
        """What it has not read may be all: the output is not written before the end."""
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as closed:
            self.assertEqual(self.help_into(closed), (0, b""))

    def test_an_output_that_takes_nothing_is_a_fault(self) -> None:
        """Told in a line, as other faults of the system are."""
        with open("/dev/full", "wb") as full:
            status, complaint = self.help_into(full)
        self.assertEqual(status, 1)
        self.assertEqual(complaint.count(b"\n"), 1, complaint)
        self.assertIn(b"gridnet --help: [Errno 28]", complaint)
