"""Simulated sites: equal seeds, each trouble that can be simulated, what is measured of them."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip.messages import Standing
from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.simulate.network import NetworkTraits
from gridnet.simulate.scenario import Run, Scenario, run

SITE = Scenario(hosts=30, seconds=40.0)
CALM = evolve(SITE, kills=0, seconds=20.0)
PLAIN_SWIM = GossipTimes(lifeguard=False)


class ScenarioTests(SynchronousTestCase):
    """Runs of a small site."""

    def test_a_change_reaches_all_and_only_the_crash_is_seen(self) -> None:
        outcome = run(SITE)
        self.assertEqual(outcome.reached, 1.0)
        self.assertEqual(outcome.false_positives, 0)
        assert outcome.reached_all_seconds is not None
        self.assertLess(outcome.reached_all_seconds, 2.2)
        self.assertEqual(outcome.crashes_detected, 1)
        assert outcome.settled_after_kill is not None

    def test_equal_seeds_give_equal_outcomes(self) -> None:
        lossy = evolve(
            SITE, traits=NetworkTraits(loss=0.2), slow=3, churn=0.1, pauses=1, partition=0.2
        )
        first = run(lossy)
        self.assertEqual(first.reproducible(), run(lossy).reproducible())
        self.assertNotEqual(first.trace_hash, run(evolve(lossy, seed=2)).trace_hash)

    def test_what_is_counted_adds_up(self) -> None:
        outcome = run(evolve(SITE, churn=0.1))
        self.assertEqual(outcome.listeners, SITE.hosts - 1 - 1 - 3)
        self.assertEqual(len(outcome.samples), 40)
        self.assertEqual(list(outcome.spread), sorted(outcome.spread))
        octets = sum(sample.octets for sample in outcome.samples)
        self.assertAlmostEqual(outcome.kilobits_per_second, octets * 8e-3 / 40 / SITE.hosts)
        rates = [sample.octets * 8e-3 / SITE.hosts for sample in outcome.samples]
        self.assertAlmostEqual(outcome.peak_kilobits_per_second, max(rates))
        self.assertGreaterEqual(
            sum(sample.verdicts for sample in outcome.samples),
            outcome.crashes_detected,
        )


class TroubleTests(SynchronousTestCase):
    """Each alone."""

    def test_delay(self) -> None:
        outcome = run(evolve(CALM, traits=NetworkTraits(delay=0.15, delay_spread=0.05)))
        self.assertEqual(outcome.reached, 1.0)
        self.assertGreaterEqual(outcome.spread[0], 0.15)
        self.assertEqual(outcome.false_positives, 0)

    def test_packets_that_take_longer_than_the_near_future_is_kept(self) -> None:
        slow = evolve(CALM, hosts=6, seconds=16.0, traits=NetworkTraits(delay=5.0))
        outcome = run(slow)
        self.assertGreaterEqual(outcome.spread[0], 5.0)

    def test_loss(self) -> None:
        half = run(evolve(CALM, traits=NetworkTraits(loss=0.5)))
        self.assertEqual((half.reached, half.false_positives), (1.0, 0))
        nothing = run(evolve(CALM, traits=NetworkTraits(loss=1.0)))
        self.assertEqual((nothing.reached, nothing.reached_all_seconds), (0.0, None))

    def test_a_partition_keeps_news_away_until_it_heals(self) -> None:
        scenario = evolve(
            CALM, partition=0.4, partition_from=2.0, partition_seconds=30.0, seconds=120.0
        )
        cut = Run(scenario)
        cut.network.run_until(30.0)
        publisher = cut.measured._changed
        assert publisher is not None
        apart = [host for host in cut.network.hosts.values() if host.group]
        self.assertEqual(len(apart), 12)
        for host in apart:
            held = host.membership.hosts[publisher[0]]
            self.assertLess(held.records.newest, publisher[2])
            self.assertIs(held.standing, Standing.DEAD)
        outcome = cut.finish()
        assert outcome.settled_after_heal is not None
        self.assertEqual({host.membership.up for host in cut.network.hosts.values()}, {30})

    def test_a_host_that_stood_still_is_back_and_blames_nobody(self) -> None:
        slept = Run(evolve(CALM, pauses=1, pause_seconds=40.0, seconds=100.0))
        outcome = slept.finish()
        self.assertEqual((outcome.false_positives, outcome.false_positives_anywhere), (0, 0))
        self.assertGreater(sum(sample.verdicts for sample in outcome.samples), 0)
        self.assertEqual({host.membership.up for host in slept.network.hosts.values()}, {30})

    def test_a_host_that_stood_still_so_briefly_that_nobody_saw_goes_on_probing(self) -> None:
        for seed in range(1, 6):
            slept = Run(evolve(CALM, changes=0, pauses=1, pause_seconds=1.5, seed=seed))
            network, (name,) = slept.network, slept._paused
            network.run_until(35.0)  # it is awake again
            before = network.hosts[name].packets
            network.run_until(65.0)
            # One probe a second, and an answer to each of the others'; one that only answers
            # sends half of that.
            self.assertGreater(network.hosts[name].packets - before, 45)

    def test_slow_hosts_mislead_plain_swim_only(self) -> None:
        for kind in ("block", "stop"):
            slow = evolve(SITE, slow=4, slow_kind=kind)
            ours = run(slow)
            self.assertEqual((ours.false_positives, ours.crashes_detected), (0, 1))
            if kind == "block":
                self.assertGreater(run(evolve(slow, times=PLAIN_SWIM)).false_positives, 50)

    def test_churn(self) -> None:
        churned = Run(evolve(CALM, churn=0.2, seconds=120.0))
        outcome = churned.finish()
        self.assertEqual((outcome.crashes, outcome.crashes_detected), (6, 6))
        self.assertEqual(outcome.false_positives, 0)
        self.assertEqual({host.membership.up for host in churned.network.hosts.values()}, {30})
        self.assertEqual(
            len({host.membership.fingerprint for host in churned.network.hosts.values()}), 1
        )

    def test_clocks_that_differ_are_borne_up_to_a_limit(self) -> None:
        self.assertEqual(run(evolve(CALM, clock_skew=200.0)).reached, 1.0)
        refused = run(evolve(CALM, clock_skew=200.0, traits=NetworkTraits(max_skew=0.0)))
        self.assertEqual(refused.reached, 0.0)
