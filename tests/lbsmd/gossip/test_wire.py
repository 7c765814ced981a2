"""Packets: what opens, and that nothing else does."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.lbsmd.gossip.messages import (
    Ack,
    Belief,
    Digest,
    DigestLine,
    Entry,
    IndirectPing,
    Nack,
    Ping,
    Standing,
)
from gridnet.lbsmd.gossip.wire import Seal, decode_messages, encode_message
from tests.hypothesis_profile import examples

OLD, NEW = b"o" * 32, b"n" * 32
NOW = 1.7e9

numbers = st.integers(0, 2**32 - 1)
longs = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=60)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
addresses = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))
standings = st.sampled_from(Standing)
lines = st.builds(DigestLine, names, longs, standings, longs)
messages = st.one_of(
    st.builds(Ping, numbers, names),
    st.builds(IndirectPing, numbers, names, addresses),
    st.builds(Ack, numbers),
    st.builds(Nack, numbers),
    st.builds(Belief, names, addresses, longs, standings, names),
    st.builds(Entry, names, texts, longs, st.none() | st.binary(max_size=300), st.booleans()),
    st.builds(Digest, texts, texts, st.booleans(), st.lists(lines, max_size=5).map(tuple)),
)


def seal(me: str = "a", *keys: bytes) -> Seal:
    """A seal whose session is its name."""
    return Seal(me, keys or (OLD,), me.encode().ljust(8, b"."))


class MessageTests(SynchronousTestCase):
    """Messages without their seal."""

    @given(st.lists(messages, max_size=6))
    @examples(200)
    def test_round_trip_at_the_announced_size(self, said: list[Ping]) -> None:
        octets = b"".join(map(encode_message, said))
        self.assertEqual(len(octets), sum(message.octets() for message in said))
        self.assertEqual(list(decode_messages(octets)), said)

    @given(st.binary(max_size=200))
    @examples(1000)
    def test_any_octets_give_messages_or_a_remote_error(self, octets: bytes) -> None:
        try:
            decode_messages(octets)
        except RemoteProtocolError:
            pass

    def test_what_does_not_fit_is_our_mistake(self) -> None:
        for message in (Ack(2**32), Ping(1, "x" * 256), Entry("a", "b", 1, b"x" * 65536)):
            self.assertRaises(LocalProtocolError, encode_message, message)


class SealTests(SynchronousTestCase):
    """Sealed packets."""

    def refused(self, opener: Seal, packet: bytes, now: float = NOW) -> None:
        self.assertRaises(RemoteProtocolError, opener.open, packet, now)

    def test_opens_once(self) -> None:
        packet, opener = seal().seal([Ack(1)], NOW), seal("b")
        opened = opener.open(packet, NOW)
        self.assertEqual((opened.sender, list(opened.messages)), ("a", [Ack(1)]))
        self.refused(opener, packet)

    def test_packets_may_overtake_each_other_but_not_come_twice(self) -> None:
        sealer, opener = seal(), seal("b")
        packets = [sealer.seal([Ack(n)], NOW) for n in range(50)]
        Random(1).shuffle(packets)
        for packet in packets:
            opener.open(packet, NOW)
        for packet in packets:
            self.refused(opener, packet)

    def test_what_fell_out_of_the_window_is_refused(self) -> None:
        sealer, opener = seal(), seal("b")
        packets = [sealer.seal([], NOW) for _ in range(1026)]
        opener.open(packets[1025], NOW)
        self.refused(opener, packets[1])
        opener.open(packets[2], NOW)

    def test_a_packet_of_another_time_is_refused(self) -> None:
        packet = seal().seal([], NOW)
        self.refused(seal("b"), packet, NOW + 301)
        self.refused(seal("b"), packet, NOW - 301)

    def test_senders_are_bounded_until_they_are_old(self) -> None:
        opener = Seal("b", [OLD], b"b" * 8, max_sessions=1)
        opener.open(seal("a").seal([], NOW), NOW)
        self.refused(opener, seal("c").seal([], NOW))
        opener.open(seal("c").seal([], NOW + 601), NOW + 601)

    def test_keys_change_by_overlap(self) -> None:
        self.refused(seal("b", OLD), seal("a", NEW, OLD).seal([], NOW))
        seal("b", OLD, NEW).open(seal("a", NEW, OLD).seal([], NOW), NOW)
        seal("b", NEW, OLD).open(seal("a", OLD, NEW).seal([], NOW), NOW)
        self.refused(seal("b", NEW), seal("a", OLD, NEW).seal([], NOW))

    def test_names_are_not_to_be_read_on_the_way(self) -> None:
        packet = seal("hostname").seal([Entry("hostname", "secret", 1, b"value")], NOW)
        for text in (b"hostname", b"secret", b"value"):
            self.assertNotIn(text, packet[17:])

    def test_every_truncation_and_every_flipped_bit_changes_nothing(self) -> None:
        packet = seal().seal([Belief("h", ("::1", 1), 1, Standing.DEAD, "a")], NOW)
        opener = seal("b")
        for end in range(len(packet)):
            self.refused(opener, packet[:end])
        for bit in range(len(packet) * 8):
            flipped = bytearray(packet)
            flipped[bit >> 3] ^= 1 << (bit & 7)
            self.refused(opener, bytes(flipped))
        opener.open(packet, NOW)

    @given(st.binary(max_size=300))
    @examples(1000)
    def test_random_octets_are_refused(self, octets: bytes) -> None:
        self.refused(seal("b"), octets)

    @given(st.binary(max_size=100))
    @examples(500)
    def test_forged_packets_with_a_true_head_are_refused(self, octets: bytes) -> None:
        self.refused(seal("b"), seal().seal([], NOW)[:17] + octets)
