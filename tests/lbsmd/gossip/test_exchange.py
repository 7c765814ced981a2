"""One comparison of two hosts, from the overview until neither has more to say."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip.membership import GossipTimes, Membership
from gridnet.lbsmd.gossip.messages import Belief, Digest, Entry, Message, Overview, Standing
from gridnet.lbsmd.gossip.roster import PARTS

NOW = 1.0
SERVICES = 20
#: That a comparison takes at most; far more than any here, so that none goes on for ever.
MAX_PACKETS = 40


def core(name: str, number: int, max_entries: int = 1000) -> Membership:
    """The gossip of one host at a time when it has nothing to do by itself."""
    times = GossipTimes(max_entries=max_entries)
    return Membership(name, ("127.0.0.1", number), times, Random(number), 0.0)


class ComparisonTests(SynchronousTestCase):
    """What an owner has published is held by both but for a few entries."""

    def setUp(self) -> None:
        self.owner = core("owner", 1)
        for number in range(SERVICES):
            self.owner.publish(f"s{number}", b"%d" % number)
        self.owner.publish("l", b"load 1", True)
        self.first = list(self.owner.own)
        self.asker, self.peer = core("asker", 2), core("peer", 3)

    def change(self, service: str, load: bytes) -> tuple[Entry, Entry]:
        """The owner changes a service, and then its load."""
        self.owner.publish(service, b"changed")
        self.owner.publish("l", load, True)
        told = self.owner.own.get(service), self.owner.own.get("l")
        assert told[0] is not None and told[1] is not None
        return told[0], told[1]

    def tell(self, host: Membership, entries: Iterable[Entry]) -> None:
        """*host* hears that, and is done with passing it on."""
        others = [each.my_belief() for each in (self.owner, self.asker, self.peer)]
        source = self.owner.my_belief().address
        host.receive(NOW, source, self.owner.me, [*others, *entries])
        host.take_outgoing()
        host.acquaint(NOW, ())

    def compare(self) -> list[tuple[str, Message]]:
        """The asker begins one; who said what, in order."""
        hosts = {each.my_belief().address: each for each in (self.asker, self.peer)}
        self.asker.join([self.peer.my_belief().address])
        said: list[tuple[str, Message]] = []
        packets = [(self.asker, each) for each in self.asker.take_outgoing()]
        for count, (sender, packet) in enumerate(packets):
            self.assertLess(count, MAX_PACKETS, "it does not end")
            said += [(sender.me, message) for message in packet.messages]
            host = hosts[packet.address]
            host.receive(NOW, sender.my_belief().address, sender.me, packet.messages)
            # What is found out would be passed on to others, too: here there are none.
            host.acquaint(NOW, ())
            packets += [(host, each) for each in host.take_outgoing()]
        return said

    def assert_equal(self) -> None:
        for host in (self.asker, self.peer):
            held = {entry.key: entry for entry in host.hosts["owner"].records}
            self.assertEqual(held, {entry.key: entry for entry in self.owner.own})

    def test_a_service_missed_by_the_asker_who_lacks_a_newer_load_too(self) -> None:
        service, load = self.change("s7", b"load 2")
        self.tell(self.asker, self.first)
        self.tell(self.peer, [*self.first, service, load])
        # Of two changes the asker has the second alone: a newer service, of those before.
        self.owner.publish("s8", b"changed")
        later = self.owner.own.get("s8")
        self.owner.publish("l", b"load 3", True)
        last = self.owner.own.get("l")
        assert later is not None and last is not None
        self.tell(self.asker, [later])
        self.tell(self.peer, [later, last])
        self.compare()
        self.assert_equal()

    def test_a_service_missed_by_the_asker_who_alone_has_the_newest_load(self) -> None:
        service, load = self.change("s7", b"load 2")
        self.tell(self.asker, [*self.first, load])
        self.owner.publish("l", b"load 3", True)
        last = self.owner.own.get("l")
        assert last is not None
        self.tell(self.asker, [last])
        self.tell(self.peer, [*self.first, service, load])
        self.compare()
        self.assert_equal()

    def test_a_service_missed_by_the_peer_who_lacks_a_newer_load_too(self) -> None:
        service, load = self.change("s7", b"load 2")
        self.tell(self.peer, [*self.first, load])
        self.owner.publish("l", b"load 3", True)
        last = self.owner.own.get("l")
        assert last is not None
        self.tell(self.asker, [*self.first, service, load, last])
        self.compare()
        self.assert_equal()

    def test_a_load_alone_costs_no_answer_beside_it(self) -> None:
        self.tell(self.asker, self.first)
        self.change("s7", b"load 2")
        self.tell(self.asker, self.owner.own)
        self.owner.publish("l", b"load 3", True)
        self.tell(self.peer, self.owner.own)
        said = self.compare()
        self.assert_equal()
        self.assertEqual([m for _, m in said if isinstance(m, Entry)], [self.owner.own.get("l")])
        again = [m for _, m in said if isinstance(m, Digest) and m.first == m.last]
        self.assertEqual([(m.is_answer, len(m.lines)) for m in again], [(False, 1)])

    def test_a_peer_that_can_take_no_more_is_not_told_for_ever(self) -> None:
        self.peer = core("peer", 3, max_entries=SERVICES - 5)
        service, load = self.change("s7", b"load 2")
        self.tell(self.peer, self.first)
        self.tell(self.asker, [*self.first, service, load])
        self.assertLess(len(self.compare()), 100)


class AfterNewsTests(SynchronousTestCase):
    """One host of a site, which hears news and passes them on."""

    def overviews(self, hosts: int, entry: Entry) -> int:
        """How many a host of a site of so many sends when *entry* is news and then is not."""
        host = core("me", 1)
        host.acquaint(
            NOW,
            [
                Belief(f"peer{number}", ("127.0.0.1", number), 1, Standing.ALIVE, "")
                for number in range(2, hosts + 1)
            ],
        )
        # Before it probes anybody.
        host.receive(0.0, ("127.0.0.1", 2), "peer2", [entry])
        host.tick(0.0)
        for _ in range(4):
            host.receive(0.0, ("127.0.0.1", 2), "peer2", [entry])
        told = host.take_outgoing()
        self.assertEqual({type(m) for packet in told for m in packet.messages}, {Entry})
        host.tick(GossipTimes().gossip_interval)
        said = [m for packet in host.take_outgoing() for m in packet.messages]
        return sum(isinstance(message, Overview) for message in said)

    def test_it_compares_with_one_other_when_a_service_is_told_no_more(self) -> None:
        self.assertEqual(self.overviews(30, Entry("peer2", "s1", 1, b"changed")), 1)

    def test_a_load_is_not_worth_that(self) -> None:
        self.assertEqual(self.overviews(30, Entry("peer2", "l", 1, b"load", True)), 0)

    def test_on_a_large_site_it_is_left_to_probes(self) -> None:
        self.assertEqual(self.overviews(PARTS + 1, Entry("peer2", "s1", 1, b"changed")), 0)
