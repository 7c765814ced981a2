"""However packets are lost, repeated and reordered: views become equal, events agree."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip.identity import SigningIdentity
from gridnet.lbsmd.gossip.membership import (
    EntryChanged,
    GossipTimes,
    Membership,
    Outgoing,
    StandingChanged,
)
from gridnet.lbsmd.gossip.messages import Address, Belief, Entry, Standing
from gridnet.lbsmd.gossip.rumours import Rumours
from tests.hypothesis_profile import examples

HOSTS = 4
TIMES = GossipTimes(exchange_interval=4.0, reconnect_interval=2.0)


class Site(RuleBasedStateMachine):
    """A few hosts; the test is the network, and a bad one."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.members: dict[Address, Membership] = {}
        self.packets: list[tuple[Membership, Outgoing]] = []
        self.seen: dict[str, dict[str, Standing]] = {}
        self.entries: dict[str, dict[tuple[str, str], Entry]] = {}
        self.published: dict[str, dict[str, bytes | None]] = {}
        for number in range(HOSTS):
            name, address = f"h{number}", ("127.0.0.1", number + 1)
            identity = SigningIdentity(bytes((number + 1,)) * 32)
            member = Membership(name, address, TIMES, Random(number), 0.0, identity)
            self.members[address] = member
            self.seen[name], self.entries[name], self.published[name] = {}, {}, {}
        self.members["127.0.0.1", 2].join([("127.0.0.1", 1)])
        self.acted(self.members["127.0.0.1", 2])

    def acted(self, member: Membership) -> None:
        """Collect what *member* says and found."""
        self.packets += [(member, outgoing) for outgoing in member.take_outgoing()]
        del self.packets[: max(0, len(self.packets) - 400)]
        for event in member.take_events():
            if isinstance(event, StandingChanged):
                seen = self.seen[member.me]
                assert seen.get(event.host) is not event.standing, "told twice"
                assert event.host in seen or event.standing is Standing.ALIVE, "dead before it was"
                seen[event.host] = event.standing
            elif isinstance(event, EntryChanged):
                entry, held = event.entry, self.entries[member.me]
                before = held.get((entry.owner, entry.key))
                assert before is None or before.version < entry.version, "an older entry"
                assert entry.owner in self.seen[member.me], "an entry of a stranger"
                held[entry.owner, entry.key] = entry

    def deliver(self, index: int, keep: bool) -> None:
        """Let one packet arrive; it may come again."""
        sender, outgoing = self.packets[index] if keep else self.packets.pop(index)
        member = self.members[outgoing.address]
        source = next(a for a, m in self.members.items() if m is sender)
        member.receive(self.now, source, sender.me, outgoing.messages)
        self.acted(member)

    @rule(index=st.integers(0, 399), keep=st.booleans())
    def arrive(self, index: int, keep: bool) -> None:
        """A packet arrives, and perhaps again later."""
        if self.packets:
            self.deliver(index % len(self.packets), keep)

    @rule(index=st.integers(0, 399))
    def lose(self, index: int) -> None:
        """A packet is lost."""
        if self.packets:
            self.packets.pop(index % len(self.packets))

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3, 1.0, 7.0]))
    def wait(self, seconds: float) -> None:
        """Time passes for all."""
        self.now += seconds
        for member in self.members.values():
            if member.next_time() <= self.now:
                member.tick(self.now)
                self.acted(member)

    @rule(
        number=st.integers(1, HOSTS),
        key=st.sampled_from("abc"),
        value=st.none() | st.binary(max_size=3),
        is_load=st.booleans(),
    )
    def publish(self, number: int, key: str, value: bytes | None, is_load: bool) -> None:
        """A host changes what it publishes."""
        member = self.members["127.0.0.1", number]
        if member.publish(key, value, is_load):
            self.published[member.me][key] = value
        self.acted(member)

    @rule(number=st.integers(1, HOSTS), other=st.integers(1, HOSTS))
    def join(self, number: int, other: int) -> None:
        """A host joins by another."""
        member = self.members["127.0.0.1", number]
        member.join([("127.0.0.1", other)])
        self.acted(member)

    @invariant()
    def only_owners_change_their_entries(self) -> None:
        """Whatever a host holds of another, that other has published or withdrawn once."""
        for member in self.members.values():
            mine = {e.key: e.value for e in member.own}
            assert mine == self.published[member.me]

    def teardown(self) -> None:
        """From now on the network is good: all become equal."""
        self.packets.clear()
        for number in range(2, HOSTS + 1):
            self.join(number, 1)
        for _ in range(1200):
            while self.packets:
                self.deliver(0, False)
            self.wait(0.05)
        for member in self.members.values():
            for other in self.members.values():
                host = member.hosts[other.me]
                assert host.standing is Standing.ALIVE, (member.me, other.me, host.standing)
                assert host.incarnation == other.hosts[other.me].incarnation
                assert {e.key: e.value for e in host.records} == self.published[other.me]
                if other is not member:
                    assert self.seen[member.me][other.me] is Standing.ALIVE
                    told = self.entries[member.me]
                    assert [told[other.me, e.key] for e in host.records] == list(host.records)
            assert member.fingerprint == self.members["127.0.0.1", 1].fingerprint


class ConvergenceTests(SynchronousTestCase):
    """See the name of the file."""

    def test_any_network_that_gets_well(self) -> None:
        run_state_machine_as_test(Site, settings=examples(12))


class RumourTests(SynchronousTestCase):
    """What is told, in which order, how often."""

    @given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 400)), max_size=80))
    @examples(100)
    def test_each_is_told_often_enough_and_services_before_load(
        self, news: list[tuple[int, bool, int]]
    ) -> None:
        rumours, latest = Rumours(1000, 4, 8), {}
        for version, (key, is_load, size) in enumerate(news):
            entry = Entry("h", f"k{key}", version, b"x" * size, is_load)
            rumours.add(entry)
            latest[entry.key] = entry
        told: dict[str, int] = {}
        for _ in range(10000):
            octets, packet = rumours.take(600, 5)
            if not packet:
                break
            self.assertLessEqual(octets, 600)
            self.assertEqual(octets, sum(message.octets() for message in packet))
            self.assertEqual(len({m.key for m in packet if isinstance(m, Entry)}), len(packet))
            for message in packet:
                assert isinstance(message, Entry)
                self.assertIs(latest[message.key], message)
                told[message.key] = told.get(message.key, 0) + 1
        self.assertEqual(told, dict.fromkeys(latest, 5))
        self.assertEqual((len(rumours), rumours.hot, rumours.is_empty), (0, 0, True))

    def test_load_in_plenty_does_not_keep_a_service_waiting(self) -> None:
        rumours = Rumours(10000, 4, 8)
        for number in range(5000):
            rumours.add(Entry("h", f"load{number}", 1, b"x" * 50, True))
            rumours.take(1200, 20)
        service = Entry("h", "service", 1, b"x" * 50)
        rumours.add(service)
        for _ in range(20):
            self.assertIn(service, rumours.take(1200, 20)[1])
            rumours.add(Entry("h", "loadnew", 1, b"x" * 50, True))

    def test_hosts_in_plenty_leave_room_for_a_service(self) -> None:
        rumours = Rumours(10000, 4, 8)
        for number in range(2000):
            rumours.add(Belief(f"h{number}", ("127.0.0.1", 1), 1, Standing.ALIVE, "x"))
        service = Entry("h", "service", 1, b"x" * 50)
        rumours.add(service)
        self.assertIn(service, rumours.take(1200, 20)[1])

    def test_what_is_heard_back_often_is_told_no_more(self) -> None:
        rumours = Rumours(100, 2, 3)
        entry = Entry("h", "k", 1, b"")
        rumours.add(entry)
        rumours.heard(("h", "k"), entry)
        self.assertEqual(rumours.hot, 1)
        rumours.heard(("h", "k"), Entry("h", "k", 0, b"old"))
        rumours.heard(("h", "k"), entry)
        self.assertEqual(rumours.hot, 0)
        self.assertEqual(rumours.take(600, 20)[1], [entry])
        rumours.heard(("h", "k"), entry)
        self.assertTrue(rumours.is_empty)
        self.assertEqual(rumours.missed(600, 20)[1], [entry])

    def test_who_missed_something_is_told_services_first_and_no_suspicions(self) -> None:
        rumours = Rumours(1000, 1, 1)
        service, load = Entry("h", "k", 1, b""), Entry("h", "l", 2, b"", True)
        alive, suspect = (
            Belief(name, ("127.0.0.1", 1), 1, standing, name)
            for name, standing in (("a", Standing.ALIVE), ("s", Standing.SUSPECT))
        )
        beliefs = [Belief(f"h{n}", ("127.0.0.1", 1), 1, Standing.ALIVE, "x") for n in range(99)]
        everything: list[Belief | Entry] = [service, load, suspect, *beliefs, alive]
        for news in everything:
            rumours.add(news)
            matter = news.host if isinstance(news, Belief) else (news.owner, news.key)
            self.assertTrue(rumours.heard(matter, news))
        told = rumours.missed(100_000, 20)[1]
        self.assertEqual((told[0], told[1], told[-1]), (service, alive, load))
        self.assertEqual(len(told), 1 + 64 + 1)
        self.assertEqual(rumours.missed(service.octets() + 10, 20)[1], [service])

    def test_who_missed_something_is_told_all_services_while_hosts_come_and_go(self) -> None:
        rumours = Rumours(1000, 1, 2)
        services = [Entry("h", f"s{number}", number, b"x" * 40) for number in range(5)]
        for service in services:
            rumours.add(service)
        late, cool = services[0], services[1]
        for heard in (late, late, cool):
            rumours.heard(("h", heard.key), heard)
        for number in range(200):
            rumours.add(Belief(f"h{number}", ("127.0.0.1", 1), 1, Standing.ALIVE, "x"))
        octets, told = rumours.missed(1200, 20)
        self.assertLessEqual(octets, 1200)
        self.assertEqual(octets, sum(message.octets() for message in told))
        self.assertEqual([m for m in told if isinstance(m, Entry)], services)
        self.assertTrue(any(isinstance(message, Belief) for message in told))

    def test_services_in_plenty_leave_room_for_hosts_in_an_answer(self) -> None:
        rumours = Rumours(1000, 1, 1)
        for number in range(50):
            service = Entry("h", f"s{number}", number, b"x" * 40)
            rumours.add(service)
            if number % 2:
                rumours.heard(("h", service.key), service)
        suspected = Belief("a", ("127.0.0.1", 1), 1, Standing.SUSPECT, "x")
        rumours.add(suspected)
        self.assertIn(suspected, rumours.missed(1200, 20)[1])

    def test_who_asks_again_is_told_what_there_was_no_room_for(self) -> None:
        rumours = Rumours(1000, 1, 1)
        services = [Entry("h", f"s{number}", number, b"x" * 40) for number in range(30)]
        for service in services:
            rumours.add(service)
            rumours.heard(("h", service.key), service)
        told: list[Belief | Entry] = []
        while len(told) < len(services):
            octets, more = rumours.missed(1200, 20)
            self.assertLessEqual(octets, 1200)
            told += more
        self.assertEqual(told[: len(services)], services[::-1])

    def test_no_answer_is_larger_than_its_room_or_tells_one_thing_twice(self) -> None:
        random = Random(1)
        rumours = Rumours(200, 2, 3)
        for version in range(2000):
            name = f"h{int(random.random() * 40)}"
            news: Belief | Entry
            if random.random() < 0.5:
                standing = Standing(int(random.random() * 3))
                news = Belief(name, ("127.0.0.1", 1), version, standing, name)
            else:
                value = b"x" * int(random.random() * 400)
                news = Entry(name, "k", version, value, random.random() < 0.5)
            rumours.add(news, random.random() < 0.8)
            matter = name if isinstance(news, Belief) else (name, "k")
            for _ in range(int(random.random() * 4)):
                rumours.heard(matter, news)
            room = int(random.random() * 1200)
            octets, told = rumours.missed(room, 6)
            self.assertLessEqual(octets, room)
            self.assertEqual(octets, sum(message.octets() for message in told))
            self.assertEqual(len(set(map(id, told))), len(told))
