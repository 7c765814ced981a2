"""``gridnet why-down`` and ``gridnet gossip-key``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip import tools
from gridnet.lbsmd.gossip.keys import read_keys
from tests.lbsmd.gossip.test_service import THREE, TWO, SiteCase


def run(tool: Callable[[Sequence[str]], int], *words: str) -> tuple[int, str, str]:
    """Status, output and errors of *tool*."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        status = tool(words)
    return status, output.getvalue(), errors.getvalue()


class WhyDownTests(SiteCase):
    def why(self, host: str, *words: str) -> tuple[int, str, str]:
        """What the tool says when it asks the daemon of TWO."""
        daemon = self.hosts[TWO].gossip
        self.patch(tools, "ask", lambda path, question: daemon.why_down(question))
        return run(tools.why_down, host, "--control", "x", *words)

    def test_it_names_accusers_evidence_and_times(self) -> None:
        self.kill(THREE)
        self.network.run(30.0)
        status, text, _ = self.why(THREE)
        self.assertEqual(status, 0)
        self.assertIn(f"{THREE} is down since 2023-11-1", text)
        self.assertIn("accused:", text)
        self.assertIn("suspects it: ", text)
        self.assertIn("holds it for dead: ", text)
        status, text, _ = self.why(THREE, "--json")
        answer = json.loads(text)
        self.assertEqual((status, answer["standing"]), (0, "dead"))
        self.assertEqual({"accuser", "at", "reason"}, set(answer["accusations"][0]))

    def test_a_host_that_is_up_has_no_accusers(self) -> None:
        _, text, _ = self.why(THREE)
        self.assertIn(f"{THREE} is up since", text)
        self.assertIn("nobody has accused it", text)

    def test_a_suspected_host_has_a_time_until_which_it_may_answer(self) -> None:
        self.kill(THREE)
        daemon = self.hosts[TWO].gossip
        while daemon.membership.hosts[THREE].suspicion is None:
            self.network.run(0.1)
        _, text, _ = self.why(THREE)
        self.assertIn("it counts as down at", text)

    def test_an_unknown_host_is_status_1(self) -> None:
        status, _, errors = self.why("10.9.9.9")
        self.assertEqual(status, 1)
        self.assertIn("10.9.9.9 is not known", errors)


class KeyTests(SynchronousTestCase):
    def test_a_key_file_is_made_once_and_closed(self) -> None:
        path = Path(self.mktemp())
        self.assertEqual(run(tools.gossip_key, str(path)), (0, "", ""))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        keys = read_keys(path)
        self.assertEqual([len(key) for key in keys], [32])
        status, _, errors = run(tools.gossip_key, str(path))
        self.assertEqual((status, read_keys(path)), (1, keys))
        self.assertIn("File exists", errors)

    def test_a_printed_key_is_a_line_of_such_a_file(self) -> None:
        path = Path(self.mktemp())
        run(tools.gossip_key, str(path))
        _, line, _ = run(tools.gossip_key)
        with path.open("a") as file:
            file.write(line)
        self.assertEqual(len(read_keys(path)), 2)
