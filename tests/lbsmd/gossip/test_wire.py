"""Packets: what opens, and that nothing else does."""

from __future__ import annotations

import os
from random import Random

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.lbsmd.gossip.identity import SigningIdentity
from gridnet.lbsmd.gossip.membership import GossipTimes, Membership
from gridnet.lbsmd.gossip.messages import (
    IDENTITY_OCTETS,
    SIGNATURE_OCTETS,
    Ack,
    Belief,
    Digest,
    DigestLine,
    Entry,
    IndirectPing,
    Nack,
    Order,
    Overview,
    Ping,
    Receipt,
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
keys = st.binary(min_size=IDENTITY_OCTETS, max_size=IDENTITY_OCTETS)
signatures = st.binary(min_size=SIGNATURE_OCTETS, max_size=SIGNATURE_OCTETS)
lines = st.builds(DigestLine, names, longs, standings, longs, longs)
messages = st.one_of(
    st.builds(Ping, numbers, names, longs),
    st.builds(IndirectPing, numbers, names, addresses),
    st.builds(Ack, numbers),
    st.builds(Nack, numbers),
    st.builds(Belief, names, addresses, longs, standings, names, keys, signatures),
    st.builds(
        Entry, names, texts, longs, st.none() | st.binary(max_size=300), st.booleans(), signatures
    ),
    st.builds(Order, longs, names, st.binary(max_size=300)),
    st.builds(Receipt, longs, texts),
    st.builds(Digest, numbers, numbers, st.booleans(), st.lists(lines, max_size=5).map(tuple)),
    st.builds(Overview, st.lists(longs, max_size=64).map(tuple)),
)


def seal(me: str = "a", *keys: bytes) -> Seal:
    """A seal whose session is its name."""
    return Seal(me, keys or (OLD,), me.encode().ljust(8, b"."))


STRANGER = seal("stranger", NEW)


class MessageTests(SynchronousTestCase):
    """Messages without their seal."""

    @given(st.lists(messages, max_size=6))
    @examples(70)
    def test_round_trip_at_the_announced_size(self, said: list[Ping]) -> None:
        octets = b"".join(map(encode_message, said))
        self.assertEqual(len(octets), sum(message.octets() for message in said))
        self.assertEqual(list(decode_messages(octets)), said)

    @given(st.binary(max_size=200))
    @examples(400)
    def test_any_octets_give_messages_or_a_remote_error(self, octets: bytes) -> None:
        try:
            decode_messages(octets)
        except RemoteProtocolError:
            pass

    def test_what_does_not_fit_is_our_mistake(self) -> None:
        for message in (Ack(2**32), Ping(1, "x" * 256), Entry("a", "b", 1, b"x" * 65536)):
            self.assertRaises(LocalProtocolError, encode_message, message)


class HostilePacketTests(SynchronousTestCase):
    """A member that hears a great many packets that nobody of its site has sent now."""

    def setUp(self) -> None:
        self.random = Random(7)
        identity = SigningIdentity(b"i" * 32)
        address = ("127.0.0.2", 1)
        peer = Membership("peer", address, GossipTimes(), Random(2), 0.0, identity)
        peer.publish("key", b"value")
        peer.join([("127.0.0.1", 1)])
        ours = SigningIdentity(b"o" * 32)
        self.member = Membership("me", ("127.0.0.1", 1), GossipTimes(), Random(1), 0.0, ours)
        self.opener = seal("b")
        sealer = seal("peer")
        self.heard = []
        for _ in range(20):
            peer.join([("127.0.0.1", 1)])
            self.heard += [sealer.seal(each.messages, NOW) for each in peer.take_outgoing()]
        for packet in self.heard:
            self.hear(packet)

    def hear(self, packet: bytes) -> None:
        """As the daemon does."""
        opened = self.opener.open(packet, NOW)
        self.member.receive(1.0, ("127.0.0.2", 1), opened.sender, opened.messages)

    def state(self) -> object:
        """Everything that a packet could change."""
        member = self.member
        hosts = [
            (h.name, h.incarnation, h.standing, list(h.records)) for h in member.hosts.values()
        ]
        return hosts, member.health, member.next_time(), len(self.opener._windows)

    def hostile(self) -> bytes:
        """A random, truncated, replayed, forged or bit-flipped packet."""
        random, packet = self.random, self.random.choice(self.heard)
        match random.randrange(6):
            case 0:
                return random.randbytes(random.randrange(200))
            case 1:
                return packet[: random.randrange(len(packet))]
            case 2:
                return packet
            case 3:
                return packet[:17] + random.randbytes(random.randrange(200))
            case 4:
                # Another session of ours, sealed with a key that looks like the site's.
                head = bytearray(STRANGER.seal([Ack(1)], NOW))
                head[1:5] = packet[1:5]
                return bytes(head)
        flipped = bytearray(packet)
        for _ in range(random.randint(1, 3)):
            flipped[random.randrange(len(packet))] ^= 1 << random.randrange(8)
        return packet + b"x" if flipped == packet else bytes(flipped)

    def test_they_change_nothing(self) -> None:
        """``GRIDNET_PACKETS``: how many; 1,000,000 is the full size."""
        self.member.take_outgoing()
        self.member.take_events()
        before = self.state()
        for _ in range(int(os.environ.get("GRIDNET_PACKETS", "5000"))):
            packet = self.hostile()
            try:
                self.hear(packet)
            except RemoteProtocolError:
                continue
            self.fail(f"taken: {packet.hex()}")
        self.assertEqual(self.state(), before)
        self.assertEqual((self.member.take_outgoing(), self.member.take_events()), ([], []))


class SealTests(SynchronousTestCase):
    """Sealed packets."""

    def refused(self, opener: Seal, packet: bytes, now: float = NOW) -> None:
        self.assertRaises(RemoteProtocolError, opener.open, packet, now)

    def test_opens_once(self) -> None:
        packet, opener = seal().seal([Ack(1)], NOW), seal("b")
        opened = opener.open(packet, NOW)
        self.assertEqual((opened.sender, list(opened.messages)), ("a", [Ack(1)]))
        self.refused(opener, packet)

    def test_another_library_opens_and_seals(self) -> None:
        """It is RFC 8439, with nonce and head where the protocol has them."""
        cipher = ChaCha20Poly1305(OLD)
        packet = seal().seal([Ack(1)], NOW)
        plain = cipher.decrypt(packet[5:17], packet[17:], packet[:17])
        self.assertTrue(plain.endswith(encode_message(Ack(1))))
        head = packet[:13] + b"\0\0\0\x09"
        other = seal("b").open(head + cipher.encrypt(head[5:], plain, head), NOW)
        self.assertEqual((other.sender, list(other.messages)), ("a", [Ack(1)]))

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
    @examples(400)
    def test_random_octets_are_refused(self, octets: bytes) -> None:
        self.refused(seal("b"), octets)

    @given(st.binary(max_size=100))
    @examples(200)
    def test_forged_packets_with_a_true_head_are_refused(self, octets: bytes) -> None:
        self.refused(seal("b"), seal().seal([], NOW)[:17] + octets)
