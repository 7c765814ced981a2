"""The judge of real daemons: each bound from both sides, and what is no measurement."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from math import inf, nextafter
from pathlib import Path
from typing import Any

from attrs import asdict, evolve
from twisted.trial.unittest import SynchronousTestCase

from tests.integration import gossip_acceptance
from tests.integration.gossip_acceptance import LIMITS, Finding, judge, main, report
from tests.integration.gossip_prediction import (
    CHANGES,
    CRASH,
    HEALING,
    JOIN,
    Circumstances,
    Prediction,
)

PENALTY, DEAD_SERVICE = LIMITS

#: Of two simulated sites: twenty rounds of changes, and everything else once.
PREDICTED: Mapping[str, Sequence[Sequence[float]]] = {
    JOIN: [[1.0], [2.0]],
    CHANGES: [[1.0] * 12 + [2.0] * 7 + [4.0], [1.5] * 12 + [3.0] * 7 + [6.0]],
    HEALING: [[2.0], [1.0]],
    CRASH: [[8.0], [5.0]],
}
#: As it should be, in the midst of what is predicted.
MEASURED: Mapping[str, Sequence[float]] = {
    JOIN: [1.5],
    CHANGES: [1.2] * 12 + [2.5] * 7 + [5.0],
    PENALTY: [0.5],
    HEALING: [1.5],
    DEAD_SERVICE: [0.4],
    CRASH: [6.0],
}
CIRCUMSTANCES = Circumstances(
    hosts=3,
    services=2,
    at_once=1,
    rounds=20,
    delays=(0.001,),
    load_seconds=10.0,
    between_rounds=0.05,
    before_crash=1.0,
    starts=(1.0, 0.5, 0.0),
    start_delays=(0.001,),
)


def failed(step: str, *seconds: float) -> list[tuple[str, str]]:
    """What does not hold where *step* took *seconds* and all else was as it should be."""
    findings = judge({**MEASURED, step: seconds}, PREDICTED)
    return [(finding.what, finding.figure) for finding in findings if not finding.holds]


class JudgeTests(SynchronousTestCase):
    """Figures just inside of their bounds hold, those just outside do not."""

    def test_each_step_is_judged_once_by_each_of_its_figures(self) -> None:
        findings = judge(MEASURED, PREDICTED)
        self.assertEqual(
            sorted((finding.what, finding.figure) for finding in findings),
            sorted(
                [
                    *((CHANGES, figure) for figure in ("median", "nine of ten", "longest")),
                    *((step, "longest") for step in MEASURED if step != CHANGES),
                ]
            ),
        )
        self.assertEqual([finding for finding in findings if not finding.holds], [])

    def test_what_happens_once_is_a_fifth_outside_of_all_sites_at_most(self) -> None:
        for step, least, most in ((JOIN, 0.8, 2.4), (HEALING, 0.8, 2.4), (CRASH, 4.0, 9.6)):
            for seconds in (least, most):
                self.assertEqual(failed(step, seconds), [], f"{step}: {seconds}")
            for seconds in (nextafter(least, 0.0), nextafter(most, inf)):
                self.assertEqual(failed(step, seconds), [(step, "longest")], f"{step}: {seconds}")

    def test_the_longest_of_many_has_bounds_of_its_own(self) -> None:
        most = [1.2] * 12 + [2.5] * 7
        self.assertEqual(failed(CHANGES, *most, 6.0 * 1.2), [])
        self.assertEqual(failed(CHANGES, *most, nextafter(6.0 * 1.2, inf)), [(CHANGES, "longest")])
        self.assertEqual(failed(CHANGES, *most, 4.0 * 0.8), [])
        self.assertEqual(failed(CHANGES, *most, nextafter(4.0 * 0.8, 0.0)), [(CHANGES, "longest")])

    def test_half_of_many_has_bounds_of_its_own(self) -> None:
        others = [2.5] * 7 + [5.0]
        for seconds, outside in (
            (1.5 * 1.2, nextafter(1.5 * 1.2, inf)),
            (1.0 * 0.8, nextafter(1.0 * 0.8, 0.0)),
        ):
            self.assertEqual(failed(CHANGES, *[seconds] * 12, *others), [])
            self.assertEqual(failed(CHANGES, *[outside] * 12, *others), [(CHANGES, "median")])

    def test_nine_of_ten_of_many_have_bounds_of_their_own(self) -> None:
        predicted = {**PREDICTED, CHANGES: [[1.0] * 17 + [2.0, 2.0, 4.0]]}
        for seconds, holds in (
            (2.0 * 1.2, True),
            (nextafter(2.0 * 1.2, inf), False),
            (2.0 * 0.8, True),
            (nextafter(2.0 * 0.8, 0.0), False),
        ):
            measured = {**MEASURED, CHANGES: [1.0] * 18 + [seconds, 4.0]}
            found = [each.figure for each in judge(measured, predicted) if not each.holds]
            self.assertEqual(found, [] if holds else ["nine of ten"], seconds)

    def test_the_order_of_rounds_does_not_matter(self) -> None:
        self.assertEqual(failed(CHANGES, *reversed(MEASURED[CHANGES])), [])

    def test_of_few_rounds_only_the_longest_is_judged(self) -> None:
        predicted = {**PREDICTED, CHANGES: [[1.0] * 8 + [2.0]]}
        measured = {**MEASURED, CHANGES: [9.0] * 9}
        of_changes = [each for each in judge(measured, predicted) if each.what == CHANGES]
        self.assertEqual([each.figure for each in of_changes], ["longest"])
        self.assertFalse(of_changes[0].holds)

    def test_penalties_and_dead_services_are_known_within_five_seconds(self) -> None:
        for step in (PENALTY, DEAD_SERVICE):
            for seconds in (0.0, 5.0):
                self.assertEqual(failed(step, seconds), [])
            self.assertEqual(failed(step, nextafter(5.0, inf)), [(step, "longest")])
            self.assertEqual(failed(step, 0.1, 5.1, 0.1), [(step, "longest")])

    def test_a_step_that_was_not_measured_is_no_success(self) -> None:
        for step in MEASURED:
            without = {what: times for what, times in MEASURED.items() if what != step}
            for measured in (without, {**MEASURED, step: []}):
                raised = self.assertRaises(ValueError, judge, measured, PREDICTED)
                self.assertEqual(str(raised), f"not measured: {step}")

    def test_fewer_or_more_rounds_than_were_simulated_are_not_compared(self) -> None:
        for rounds in (MEASURED[CHANGES][:-1], [*MEASURED[CHANGES], 1.0]):
            raised = self.assertRaises(ValueError, judge, {**MEASURED, CHANGES: rounds}, PREDICTED)
            self.assertEqual(
                str(raised), f"changes: measured {len(rounds)} times, simulated 20 times"
            )

    def test_a_finding_says_what_was_predicted(self) -> None:
        line = Finding("a step", "longest", 3.0, 0.8, 2.4, (1.0, 1.5, 2.0)).line()
        self.assertEqual(
            json.loads(line),
            {
                "what": "a step",
                "figure": "longest",
                "seconds": 3.0,
                "least": 0.8,
                "most": 2.4,
                "predicted": [1.0, 1.5, 2.0],
                "holds": False,
            },
        )


class ReportTests(SynchronousTestCase):
    """``--judge FILE``: what is printed, and with which status it ends."""

    def setUp(self) -> None:
        self.simulated: list[Circumstances] = []
        self.patch(gossip_acceptance, "predict", self._predict)
        self.printed = io.StringIO()
        self.patch(sys, "stdout", self.printed)
        self.said = io.StringIO()
        self.patch(sys, "stderr", self.said)

    def _predict(self, circumstances: Circumstances) -> Mapping[str, Sequence[Sequence[float]]]:
        self.simulated.append(circumstances)
        return PREDICTED

    def _measured(self, **changed: Any) -> dict[str, Any]:
        measured = {
            "seconds": MEASURED,
            "circumstances": asdict(CIRCUMSTANCES),
            "dropped": 0,
            "same": True,
        }
        # As a file has it.
        read: dict[str, Any] = json.loads(json.dumps({**measured, **changed}))
        return read

    def _kept(self, measured: Mapping[str, Any]) -> str:
        path = Path(self.mktemp())
        path.write_text(json.dumps(measured))
        return str(path)

    def test_all_is_as_it_should_be(self) -> None:
        self.assertEqual(main(["--judge", self._kept(self._measured())]), 0)
        self.assertEqual(self.simulated, [CIRCUMSTANCES])
        first, *lines = map(json.loads, self.printed.getvalue().splitlines())
        self.assertEqual(first["what"], "circumstances")
        self.assertEqual(first["delays"]["longest"], 0.001)
        self.assertEqual(len(lines), 9)
        self.assertTrue(all(line["holds"] for line in lines))

    def test_a_figure_outside_of_its_bounds_fails(self) -> None:
        self.assertEqual(report(self._measured(seconds={**MEASURED, CRASH: [10.0]})), 1)

    def test_tables_that_differ_fail(self) -> None:
        self.assertEqual(report(self._measured(same=False)), 1)
        last = json.loads(self.printed.getvalue().splitlines()[-1])
        self.assertEqual(last, {"what": "every table shows the same", "holds": False})

    def test_a_file_that_lacks_something_is_refused_with_its_name(self) -> None:
        circumstances = asdict(CIRCUMSTANCES)
        del circumstances["load_seconds"]
        cut = {**MEASURED, CRASH: []}
        for measured, reason in (
            (self._measured(seconds=cut), f"not measured: {CRASH}"),
            (self._measured(circumstances=circumstances), "'load_seconds'"),
        ):
            path = self._kept(measured)
            ended = self.assertRaises(SystemExit, main, ["--judge", path])
            self.assertEqual(ended.code, 2)
            self.assertIn(path, self.said.getvalue())
            self.assertIn(reason, self.said.getvalue())


class PredictionTests(SynchronousTestCase):
    """The simulated site goes through the steps of the real one."""

    def _settled(self, circumstances: Circumstances, seed: int = 1) -> Prediction:
        site = Prediction(circumstances, circumstances.delays, seed)
        site.settle()
        return site

    def test_equal_seeds_take_equal_times(self) -> None:
        def steps(seed: int) -> Sequence[float]:
            site = self._settled(CIRCUMSTANCES, seed)
            return [site.burst(), site.heal(), site.crash()]

        self.assertEqual(steps(1), steps(1))
        self.assertNotEqual(steps(1), steps(2))
        self.assertTrue(all(seconds > 0.0 for seconds in steps(1)))

    def test_packets_that_take_long_make_changes_take_long(self) -> None:
        slow = evolve(CIRCUMSTANCES, delays=(0.4,))
        self.assertGreaterEqual(self._settled(slow).burst(), 0.4)
        self.assertLess(self._settled(CIRCUMSTANCES).burst(), 0.4)

    def test_a_killed_host_is_out_of_every_table(self) -> None:
        site = self._settled(CIRCUMSTANCES)
        site.crash()
        standings = {
            host.membership.hosts[site.names[-1]].is_up
            for host in site.network.hosts.values()
            if host.is_running
        }
        self.assertEqual(standings, {False})

    def test_hosts_that_begin_one_after_the_other_join(self) -> None:
        # The seed is the last: the others know nobody until it is there.
        late_seed = evolve(CIRCUMSTANCES, starts=(0.0, 2.0, 1.0))
        for circumstances in (CIRCUMSTANCES, late_seed):
            site = Prediction(circumstances, circumstances.start_delays, 1)
            self.assertGreater(site.join(), 0.0)
            self.assertEqual({host.membership.up for host in site.network.hosts.values()}, {3})
            self.assertEqual(
                len({host.membership.fingerprint for host in site.network.hosts.values()}), 1
            )
        self.assertGreater(site.network.now, 2.0)
