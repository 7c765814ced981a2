"""Exit codes of check scripts, every row of the vectors."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.check_codes import (
    DOWN,
    MAX_FAILED_RUNS,
    UP,
    Action,
    ScriptHistory,
    State,
    Verdict,
)
from tests.lbsmd.support import VECTORS


def code_row(row: dict[str, Any]) -> list[Any]:
    """The codes of a row in full."""
    codes = row["codes"]
    if isinstance(codes, list):
        return codes
    repeated = [codes["repeat"]] * codes["times"]
    if row["id"] == "X44":
        # The row tells how many of each there are; its last step (a crash after a 0) tells the
        # order: the 0 stands in the middle.
        half = codes["times"] // 2
        return [*repeated[:half], *codes["then"], *repeated[half:]]
    return [*repeated, *codes["then"]]


class ExitCodeTests(SynchronousTestCase):
    """The table-driven machine."""

    def run_row(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """What each run of the row came to, as the vectors write it."""
        history = ScriptHistory()
        steps = []
        for code in code_row(row):
            before, action = history, Action.NONE
            if history.active:
                history, action = (
                    history.failed() if code in ("crash", "late") else history.ended(code)
                )
            verdict = history.verdict if row["dependency_up"] else DOWN
            steps.append(
                {
                    "code": code,
                    "argv3": before.last_code,
                    "argv4": None if before.last_code is None else before.repetitions,
                    "ran": before.active,
                    "state": verdict.state.value,
                    "rate": verdict.rate(row["base"]),
                    "actions": [
                        flag.name.lower() for flag in Action if flag in action and flag.name
                    ],
                }
            )
        return steps

    def test_every_row_of_the_vectors(self) -> None:
        """Arguments, state, rate and actions after each run."""
        for row in VECTORS["check"]:
            steps = self.run_row(row)
            wanted = row["steps"]
            if isinstance(wanted, dict):
                steps, wanted = steps[-1:], [wanted["last"]]
            self.assertEqual(steps, wanted, row["id"])

    def test_every_code_has_an_effect(self) -> None:
        """All 256, from every earlier state, without an exception."""
        for first in range(256):
            history, _ = ScriptHistory().ended(first)
            for second in range(256):
                after, _ = history.ended(second)
                self.assertIn(after.verdict.state, State)

    def test_a_normal_end_resets_the_failures(self) -> None:
        """Also one that only repeats."""
        history = ScriptHistory()
        for _ in range(MAX_FAILED_RUNS - 1):
            history, _ = history.failed()
        history, _ = history.ended(123)
        self.assertEqual(history.failures, 0)

    def test_a_rerate_ends_standby_only(self) -> None:
        """Other verdicts stay."""
        standby, _ = ScriptHistory().ended(200)
        self.assertEqual(standby.rerated().verdict, UP)
        down, _ = ScriptHistory().ended(115)
        self.assertEqual(down.rerated(), down)


class RateTests(SynchronousTestCase):
    """What a verdict makes of a base rate."""

    def test_a_percentage_never_changes_the_band(self) -> None:
        """A regular server is not made a standby one by a bad day, nor a standby one nothing."""
        self.assertEqual(Verdict(State.UP, 1).rate(0.05), 0.01)
        self.assertEqual(Verdict(State.UP, 50).rate(0.05), 0.025)
        self.assertEqual(Verdict(State.UP, 1).rate(0.005), 0.001)

    def test_a_rate_of_nothing_stays_nothing(self) -> None:
        """Neither standby nor up can bring back a server that is configured away."""
        for verdict in (UP, Verdict(State.UP, 40), Verdict(State.STANDBY), DOWN):
            self.assertEqual(verdict.rate(0.0), 0.0)
