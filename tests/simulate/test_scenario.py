"""Simulated sites: equal seeds, and what is measured of them."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.simulate.network import NetworkTraits
from gridnet.simulate.scenario import Scenario, run

SITE = Scenario(hosts=30, seconds=40.0)


class ScenarioTests(SynchronousTestCase):
    """Runs of a small site."""

    def test_a_change_reaches_all_and_only_the_crash_is_seen(self) -> None:
        outcome = run(SITE)
        self.assertEqual(outcome.reached, 1.0)
        self.assertEqual(outcome.false_positives, 0)
        assert outcome.reached_all_seconds is not None
        self.assertLess(outcome.reached_all_seconds, 2.2)
        self.assertEqual(outcome.crashes_detected, 1)

    def test_equal_seeds_give_equal_outcomes(self) -> None:
        lossy = evolve(
            SITE, traits=NetworkTraits(loss=0.2), slow=3, churn=0.1, pauses=1, partition=0.2
        )
        first = run(lossy)
        self.assertEqual(first.reproducible(), run(lossy).reproducible())
        self.assertNotEqual(first.trace_hash, run(evolve(lossy, seed=2)).trace_hash)
