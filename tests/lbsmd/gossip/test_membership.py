"""Who is up, who is suspected and why, and what each publishes."""

from __future__ import annotations

from random import Random

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip.identity import TRUSTING
from gridnet.lbsmd.gossip.local_health import LocalHealth
from gridnet.lbsmd.gossip.membership import GossipTimes, Membership
from gridnet.lbsmd.gossip.messages import Ack, Belief, Entry, IndirectPing, Nack, Ping, Standing
from gridnet.lbsmd.gossip.records import OwnRecords
from gridnet.lbsmd.gossip.rumours import Rumours
from gridnet.lbsmd.gossip.suspicion import Evidence, Suspicion
from gridnet.simulate.network import Network, NetworkTraits

TIMES = GossipTimes(exchange_interval=5.0)
HERE = ("127.0.0.1", 1)


def site(number: int, loss: float = 0.0, seed: int = 1) -> Network:
    """A site of *number* hosts that have all joined through the first."""
    network = Network(seed, NetworkTraits(loss=loss), TIMES)
    for index in range(number):
        network.add(f"h{index}")
    for second in range(1, 16):
        for host in network.hosts.values():
            if len(host.membership.hosts) == 1:
                host.membership.join([network.hosts["h0"].address])
                network.acted(host)
        network.run_until(float(second))
    return network


def standings(network: Network, name: str) -> set[Standing]:
    """What the running hosts but *name* hold of it."""
    return {
        host.membership.hosts[name].standing
        for host in network.hosts.values()
        if host.is_running and host.name != name
    }


class SiteTests(SynchronousTestCase):
    """Whole sites on a virtual clock."""

    def test_all_know_all(self) -> None:
        network = site(12)
        for host in network.hosts.values():
            self.assertEqual(len(host.membership.hosts), 12)

    def test_loss_alone_kills_nobody(self) -> None:
        network = site(12, loss=0.1)
        network.run_until(120.0)
        for name in network.hosts:
            self.assertNotIn(Standing.DEAD, standings(network, name))

    def test_a_killed_host_is_found_dead_and_the_accusers_are_named(self) -> None:
        network = site(12)
        network.hosts["h3"].is_running = False
        network.run_until(60.0)
        self.assertEqual(standings(network, "h3"), {Standing.DEAD})
        evidence = network.hosts["h5"].membership.hosts["h3"].evidence
        self.assertTrue(evidence)
        for accusation in evidence:
            self.assertIn(accusation.accuser, network.hosts)
            self.assertGreater(accusation.at, 15.0)

    def test_a_host_that_leaves_is_not_called_dead(self) -> None:
        network = site(6)
        network.hosts["h3"].membership.leave()
        network.acted(network.hosts["h3"])
        network.run_until(30.0)
        self.assertEqual(standings(network, "h3"), {Standing.LEFT})

    def test_a_host_back_from_sleep_is_believed_again(self) -> None:
        network = site(6)
        network.hosts["h2"].paused_until = 75.0
        network.run_until(74.0)
        self.assertEqual(standings(network, "h2"), {Standing.DEAD})
        network.run_until(110.0)
        self.assertEqual(standings(network, "h2"), {Standing.ALIVE})

    def test_a_partition_heals(self) -> None:
        network = site(8)
        for name in ("h0", "h1", "h2"):
            network.hosts[name].group = 1
        network.run_until(90.0)
        self.assertEqual(network.hosts["h5"].membership.hosts["h1"].standing, Standing.DEAD)
        for host in network.hosts.values():
            host.group = 0
        network.run_until(180.0)
        for name in network.hosts:
            self.assertEqual(standings(network, name), {Standing.ALIVE})

    def test_the_silence_of_those_who_are_cut_off_is_held_against_nobody_else(self) -> None:
        network = site(8)
        for name in ("h0", "h1", "h2", "h3"):
            network.hosts[name].group = 1
        network.run_until(60.0)
        self.assertEqual({host.membership.up for host in network.hosts.values()}, {4})
        self.assertEqual({host.membership.health for host in network.hosts.values()}, {0})

    def test_changes_reach_all_despite_loss(self) -> None:
        network = site(10, loss=0.2)
        for index in range(60):
            host = network.hosts[f"h{index % 10}"]
            host.membership.publish(f"service{index % 30}", b"x" * index)
            network.acted(host)
        network.run_until(80.0)
        prints = {
            tuple(h.membership.hosts[name].records.fingerprint for name in sorted(network.hosts))
            for h in network.hosts.values()
        }
        self.assertEqual(len(prints), 1)

    def test_a_restarted_host_withdraws_what_its_older_life_published(self) -> None:
        network = site(5)
        for key in ("one", "two"):
            network.hosts["h1"].membership.publish(key, b"old")
        network.acted(network.hosts["h1"])
        network.run_until(20.0)
        host = network.add("h1")
        host.membership.publish("one", b"new")
        host.membership.join([network.hosts["h0"].address])
        network.acted(host)
        network.run_until(60.0)
        records = network.hosts["h4"].membership.hosts["h1"].records
        self.assertEqual({e.key: e.value for e in records}, {"one": b"new", "two": None})

    def test_the_same_seed_gives_the_same_trace(self) -> None:
        self.assertEqual(site(5, 0.1).trace_hash, site(5, 0.1).trace_hash)
        self.assertNotEqual(site(5, 0.1).trace_hash, site(5, 0.1, seed=2).trace_hash)


class RuleTests(SynchronousTestCase):
    """Single messages."""

    def setUp(self) -> None:
        self.core = Membership("me", HERE, TIMES, Random(1), 0.0)
        self.hear(Belief("peer", ("127.0.0.1", 2), 3, Standing.ALIVE, "peer"))

    def hear(self, *messages: Belief | Entry | Ping | IndirectPing | Ack | Nack) -> None:
        self.core.receive(1.0, ("127.0.0.1", 2), "peer", messages)

    def test_an_older_incarnation_changes_nothing(self) -> None:
        self.hear(Belief("peer", HERE, 2, Standing.DEAD, "x"))
        self.assertEqual(self.core.hosts["peer"].standing, Standing.ALIVE)

    def test_an_accusation_of_ourselves_is_refuted(self) -> None:
        self.hear(Belief("me", HERE, 7, Standing.SUSPECT, "peer"))
        self.assertEqual(self.core.hosts["me"].incarnation, 8)
        self.assertEqual(self.core.health, 1)

    def test_nobody_changes_our_entries(self) -> None:
        self.core.publish("key", b"ours")
        self.hear(Entry("me", "key", 99, b"theirs"))
        entry = self.core.own.get("key")
        assert entry is not None
        self.assertEqual((entry.value, entry.version), (b"ours", 100))

    def test_an_entry_of_an_unknown_host_is_dropped(self) -> None:
        self.hear(Entry("stranger", "key", 1, b"x"))
        self.assertNotIn("stranger", self.core.hosts)

    def test_a_ping_for_another_is_not_answered(self) -> None:
        self.core.take_outgoing()
        self.hear(Ping(1, "somebody"))
        self.assertEqual(self.core.take_outgoing(), [])

    def test_an_indirect_probe_without_answer_gives_a_nack(self) -> None:
        self.hear(IndirectPing(77, "third", ("127.0.0.1", 3)))
        self.core.tick(1.45)
        said = [m for packet in self.core.take_outgoing() for m in packet.messages]
        self.assertIn(Nack(77), said)

    def test_hosts_are_bounded(self) -> None:
        core = Membership("me", HERE, evolve(TIMES, max_hosts=2), Random(1), 0.0)
        for name in "abc":
            core.receive(0.0, HERE, name, [Belief(name, HERE, 1, Standing.ALIVE, name)])
        self.assertEqual(len(core.hosts), 2)

    def test_confirmations_shorten_a_suspicion(self) -> None:
        suspicion = Suspicion(0.0, 4.0, 24.0, 2)
        suspicion.accuse(Evidence("a", 0.0, ""))
        self.assertEqual(suspicion.ends_at(), 24.0)
        self.assertTrue(suspicion.lacks("b"))
        suspicion.accuse(Evidence("b", 1.0, ""))
        self.assertFalse(suspicion.lacks("b"))
        self.assertLess(suspicion.ends_at(), 24.0)
        suspicion.accuse(Evidence("c", 1.0, ""))
        self.assertEqual(suspicion.ends_at(), 4.0)

    def test_a_late_confirmation_ends_a_suspicion_and_is_not_taken_for_a_stop(self) -> None:
        for name in ("a", "b", "c"):
            self.hear(Belief(name, HERE, 1, Standing.ALIVE, name))
        self.hear(Belief("peer", HERE, 3, Standing.SUSPECT, "a"))
        # Somewhere between the shortest and the longest time that it may take; all answer.
        while self.core.due <= 8.0:
            now = self.core.due
            self.core.tick(now)
            for packet in self.core.take_outgoing():
                for said in packet.messages:
                    if isinstance(said, Ping):
                        self.core.receive(now, HERE, said.target, [Ack(said.number)])
        self.assertEqual(self.core.hosts["peer"].standing, Standing.SUSPECT)
        for accuser in ("b", "c"):
            accusation = Belief("peer", HERE, 3, Standing.SUSPECT, accuser)
            self.core.receive(8.0, HERE, accuser, [accusation])
        self.core.tick(8.0)
        self.assertEqual(self.core.hosts["peer"].standing, Standing.DEAD)
        self.assertEqual(self.core.health, 0)

    def test_who_hears_no_nack_of_a_host_trusts_itself_less_until_that_host_is_gone(self) -> None:
        health = LocalHealth(8)
        for host in ("a", "b", "b", "c"):
            health.miss(host)
        self.assertEqual(health.score, 4)
        health.excuse("b")
        health.heard("c")
        health.excuse("c")
        self.assertEqual(health.score, 2)

    def test_what_others_answered_since_is_not_counted_twice(self) -> None:
        health = LocalHealth(8)
        health.miss("a")
        health.feel(-1)
        health.feel(1)
        health.excuse("a")
        self.assertEqual(health.score, 1)

    def test_a_nack_counts_for_the_host_that_sent_it(self) -> None:
        for name in ("a", "b", "c"):
            self.hear(Belief(name, HERE, 1, Standing.ALIVE, name))
        asked: list[int] = []
        while not asked:
            self.core.tick(self.core.due)
            said = [m for packet in self.core.take_outgoing() for m in packet.messages]
            asked = [m.number for m in said if isinstance(m, IndirectPing)]
        for _ in range(3):
            self.core.receive(self.core.due, HERE, "stranger", [Nack(asked[0])])
        while not self.core.health:
            self.core.tick(self.core.due)
        self.assertEqual(self.core.health, 3)

    def test_load_gives_way_to_services_and_packets_are_bounded(self) -> None:
        rumours = Rumours(100, 4, 8)
        for number in range(50):
            rumours.add(Entry("h", f"load{number}", 1, b"x" * 50, True))
        service = Entry("h", "service", 1, b"x" * 50)
        rumours.add(service)
        octets, taken = rumours.take(400, 3)
        self.assertEqual(taken[0], service)
        self.assertEqual(sum(message.octets() for message in taken), octets)
        self.assertLessEqual(octets, 400)

    def test_own_versions_only_rise(self) -> None:
        own = OwnRecords("me", 10, TRUSTING)
        first = own.publish("a", b"1")
        self.assertIsNone(own.publish("a", b"1"))
        second = own.publish("a", None)
        assert first is not None and second is not None
        self.assertGreater(second.version, first.version)
