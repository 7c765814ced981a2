"""Runs: every state times everything that can happen to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import machine
from gridnet.scire.machine import (
    ENDS,
    GUESSES,
    OPEN,
    RESULTS,
    TRANSITIONS,
    WITH_CLIENT,
    Held,
    Installation,
    Known,
    Recorded,
    Reported,
    RunState,
    Verdict,
    apply_report,
    reconcile,
)
from tests.hypothesis_profile import examples

S = RunState


class TransitionTests(SynchronousTestCase):
    """The table itself."""

    def test_ends_are_left_only_by_a_late_result_or_a_retry(self) -> None:
        leaving = {(a, b) for a, b in TRANSITIONS if a in ENDS}
        self.assertEqual(
            leaving, {(g, r) for g in GUESSES for r in RESULTS} | {(S.LOST, S.PENDING)}
        )

    def test_every_state_can_be_reached_and_every_open_state_be_left(self) -> None:
        reached = {b for _, b in TRANSITIONS}
        self.assertEqual(reached, set(RunState))
        self.assertLessEqual(OPEN, {a for a, _ in TRANSITIONS})


class ReportTests(SynchronousTestCase):
    """What status files do."""

    def test_every_report_in_every_state_takes_allowed_steps_only(self) -> None:
        for state in RunState:
            for reported in Reported:
                for in_order in (True, False):
                    outcome = apply_report(state, reported, in_order=in_order)
                    steps = zip((state, *outcome.path), outcome.path, strict=False)
                    for step in steps:
                        self.assertIn(step, TRANSITIONS, (state, reported))
                    if outcome.recorded is None:
                        self.assertEqual(outcome.path, ())

    def test_any_report_proves_that_the_run_was_received(self) -> None:
        for state in (S.PENDING, S.SENT):
            for reported in Reported:
                outcome = apply_report(state, reported)
                self.assertEqual(outcome.path[0], S.RECEIVED)
                self.assertIs(outcome.recorded, Recorded.NEW)
        self.assertEqual(apply_report(S.SENT, Reported.SUCCEEDED).path, (S.RECEIVED, S.SUCCEEDED))

    def test_the_clients_result_beats_the_servers_guess(self) -> None:
        for state in GUESSES:
            for result in (Reported.SUCCEEDED, Reported.FAILED, Reported.TIMEDOUT):
                outcome = apply_report(state, result)
                self.assertIs(outcome.recorded, Recorded.LATE)
                self.assertEqual(outcome.path, (RunState(result.value),))

    def test_a_result_stands(self) -> None:
        for state in RESULTS | {S.DENIED, S.REFUSED, S.SKIPPED}:
            for reported in Reported:
                self.assertIsNone(apply_report(state, reported).recorded, (state, reported))

    def test_repeated_news_is_ignored(self) -> None:
        self.assertIs(apply_report(S.RUNNING, Reported.RECEIVED).recorded, Recorded.IGNORED)
        self.assertIs(apply_report(S.RUNNING, Reported.RUNNING).recorded, Recorded.IGNORED)
        self.assertIs(apply_report(S.LOST, Reported.LOST).recorded, Recorded.IGNORED)

    def test_progress_changes_nothing(self) -> None:
        for state in WITH_CLIENT:
            self.assertEqual(apply_report(state, Reported.PROGRESS).path, ())

    def test_a_report_that_fills_a_gap_is_kept_only(self) -> None:
        for state in RunState:
            outcome = apply_report(state, Reported.RUNNING, in_order=False)
            self.assertEqual((outcome.path, outcome.recorded), ((), Recorded.IGNORED))


class DeliveryTests(SynchronousTestCase):
    """Failed deliveries."""

    def test_rests_grow_and_then_stay(self) -> None:
        self.assertEqual(
            [machine.rest_seconds(n) for n in range(1, 7)], [0, 30, 120, 600, 600, 600]
        )

    def test_attempts_run_out(self) -> None:
        states = [machine.after_failed_delivery(n, 5) for n in range(1, 6)]
        self.assertEqual(states, [S.PENDING] * 4 + [S.UNDELIVERABLE])

    def test_silence(self) -> None:
        self.assertEqual(machine.silence_limit(S.RUNNING, 1800, 86400), 2400)
        self.assertEqual(machine.silence_limit(S.RECEIVED, 1800, 86400), 86400)


class ReconcileTests(SynchronousTestCase):
    """Both sides compare notes."""

    def check(self, state: RunState, held: Held | None, *expected: Verdict, seq: int = 2) -> None:
        known = {1: Known(1, state, seq)}
        found = reconcile(known, [held] if held else [])
        self.assertEqual([verdict for _, verdict in found], list(expected), state)

    def test_what_the_client_lacks(self) -> None:
        for state in WITH_CLIENT:
            self.check(state, None, Verdict.LOST)
        self.check(S.SENT, None, Verdict.UNSENT)
        for state in {S.PENDING, S.WAITING} | ENDS:
            self.check(state, None)

    def test_what_the_client_holds(self) -> None:
        for state in (S.SENT, S.PENDING):
            self.check(state, Held(1, "received", 2), Verdict.RECEIVED)
        for state in WITH_CLIENT:
            self.check(state, Held(1, "running", 2))
            self.check(state, Held(1, "running", 3), Verdict.REPORT)
        for state in ENDS:
            self.check(state, Held(1, "received", 2), Verdict.FORGET)
            self.check(state, Held(1, "succeeded", 3), Verdict.REPORT)

    def test_a_wish_to_cancel_is_passed_on(self) -> None:
        known = {1: Known(1, S.RUNNING, 2, cancel_wanted=True)}
        self.assertEqual(reconcile(known, [Held(1, "running", 2)]), [(1, Verdict.CANCEL)])

    def test_unknown_and_repeated_entries(self) -> None:
        held = [Held(9, "running", 1), Held(9, "running", 1)]
        self.assertEqual(reconcile({}, held), [(9, Verdict.UNKNOWN)])

    @given(
        st.dictionaries(
            st.integers(1, 6),
            st.tuples(st.sampled_from(RunState), st.integers(0, 3), st.booleans()),
        ),
        st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4))),
    )
    @examples(200)
    def test_every_verdict_follows_an_allowed_transition(
        self, facts: dict[int, tuple[RunState, int, bool]], items: list[tuple[int, int]]
    ) -> None:
        known = {run: Known(run, *fact) for run, fact in facts.items()}
        target = {Verdict.LOST: S.LOST, Verdict.RECEIVED: S.RECEIVED, Verdict.UNSENT: S.PENDING}
        for run, verdict in reconcile(known, [Held(r, "x", seq) for r, seq in items]):
            if verdict in target:
                self.assertIn((known[run].state, target[verdict]), TRANSITIONS)


class InstallationTests(SynchronousTestCase):
    """One identity, one machine."""

    def judge(self, presented: str, current: str, former: list[str], seconds: float) -> str:
        return machine.judge_installation(presented, current, former, 1000.0, 1000.0 + seconds)

    def test_judgements(self) -> None:
        self.assertIs(self.judge("a", "", [], 0), Installation.NEW)
        self.assertIs(self.judge("a", "a", [], 0), Installation.SAME)
        self.assertIs(self.judge("b", "a", [], 3600), Installation.NEW)
        self.assertIs(self.judge("b", "a", [], 59), Installation.CLASH)
        self.assertIs(self.judge("a", "b", ["a"], 3600), Installation.CLASH)
