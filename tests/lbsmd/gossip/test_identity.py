"""A host changes only its own records: what a member that lies can and cannot do."""

from __future__ import annotations

from random import Random
from typing import Any

from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip.identity import SigningIdentity, entry_statement, life_statement
from gridnet.lbsmd.gossip.membership import GossipTimes, Impersonation, Membership
from gridnet.lbsmd.gossip.messages import Belief, Entry, Message, Standing
from tests.hypothesis_profile import examples

HERE, THERE = ("127.0.0.1", 1), ("127.0.0.2", 1)
OURS, PEERS, LIARS = (SigningIdentity(bytes((number,)) * 32) for number in (1, 2, 3))


def life(
    identity: SigningIdentity = PEERS,
    host: str = "peer",
    incarnation: int = 3,
    standing: Standing = Standing.ALIVE,
) -> Belief:
    """What *identity* says of the life of *host*."""
    said = Belief(host, THERE, incarnation, standing, host, identity.key)
    return evolve(said, signature=identity.sign(life_statement(said)))


def entry(identity: SigningIdentity = PEERS, owner: str = "peer", version: int = 1) -> Entry:
    """An entry of *owner* as *identity* signs it."""
    said = Entry(owner, "key", version, b"value")
    return evolve(said, signature=identity.sign(entry_statement(said)))


class IdentityTests(SynchronousTestCase):
    """One host that knows one peer; a third knows the site's key and lies."""

    def setUp(self) -> None:
        self.core = self.host()
        self.hear(life())

    def host(self, **further: Any) -> Membership:
        return Membership("me", HERE, GossipTimes(), Random(1), 0.0, OURS, 5, **further)

    def hear(self, *messages: Message) -> None:
        self.core.receive(1.0, ("127.0.0.3", 1), "liar", messages)

    def test_what_the_owner_signed_is_taken_from_anybody(self) -> None:
        self.hear(entry())
        self.assertEqual([e.value for e in self.core.hosts["peer"].records], [b"value"])

    def test_an_entry_that_another_host_signed_changes_nothing(self) -> None:
        self.hear(entry(LIARS), evolve(entry(), value=b"other"), evolve(entry(), version=9))
        self.assertEqual(list(self.core.hosts["peer"].records), [])

    def test_another_key_is_not_believed_and_is_told_of(self) -> None:
        self.core.take_events()
        self.hear(life(LIARS, incarnation=9))
        self.assertEqual(self.core.hosts["peer"].incarnation, 3)
        self.assertEqual(self.core.take_events(), [Impersonation("peer")])

    def test_an_address_cannot_be_moved_by_others(self) -> None:
        self.hear(evolve(life(incarnation=9), address=HERE), evolve(life(), incarnation=9))
        self.assertEqual(self.core.hosts["peer"].address, THERE)
        self.assertEqual(self.core.hosts["peer"].incarnation, 3)

    def test_an_accusation_needs_an_incarnation_that_was(self) -> None:
        self.hear(evolve(life(), incarnation=2**63, standing=Standing.DEAD))
        self.assertIs(self.core.hosts["peer"].standing, Standing.ALIVE)
        mine = self.core.hosts["me"]
        self.hear(Belief("me", HERE, 2**64 - 1, Standing.DEAD, "liar", OURS.key))
        self.assertEqual(mine.incarnation, 5)

    def test_nobody_else_says_that_a_host_leaves(self) -> None:
        self.hear(evolve(life(), standing=Standing.LEFT))
        self.assertIs(self.core.hosts["peer"].standing, Standing.ALIVE)
        self.hear(life(standing=Standing.LEFT))
        self.assertIs(self.core.hosts["peer"].standing, Standing.LEFT)

    def test_an_accusation_of_the_present_life_is_refuted_with_a_signature(self) -> None:
        mine = self.core.hosts["me"]
        self.hear(Belief("me", HERE, 5, Standing.SUSPECT, "liar"))
        self.assertEqual(mine.incarnation, 6)
        said = Belief("me", HERE, 6, Standing.ALIVE, "me", OURS.key, mine.signature)
        self.assertTrue(PEERS.has_signed(OURS.key, life_statement(said), said.signature))

    def test_versions_cannot_be_driven_up_by_others(self) -> None:
        self.core.publish("key", b"ours")
        self.hear(entry(LIARS, "me", 2**64 - 1))
        held = self.core.own.get("key")
        self.assertEqual(held and held.version, 1)
        self.hear(entry(OURS, "me", 70))
        held = self.core.own.get("key")
        self.assertEqual(held and (held.version, held.value), (71, b"ours"))

    def test_listed_keys_count_and_others_can_be_refused(self) -> None:
        self.core = self.host(known_keys={"peer": PEERS.key}, only_known=True)
        self.hear(life(LIARS), life(LIARS, "liar"))
        self.assertEqual(list(self.core.hosts), ["me"])
        self.hear(life())
        self.assertEqual(list(self.core.hosts), ["me", "peer"])

    def test_the_published_signature_comes_out(self) -> None:
        """RFC 8032, 7.1, TEST 2."""
        secret = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
        key = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        signature = (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        )
        identity = SigningIdentity(bytes.fromhex(secret))
        self.assertEqual((identity.key.hex(), identity.sign(b"\x72").hex()), (key, signature))

    @given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
    @examples(20)
    def test_another_library_signs_and_checks_alike(self, secret: bytes, said: bytes) -> None:
        identity, private = SigningIdentity(secret), Ed25519PrivateKey.from_private_bytes(secret)
        signature = identity.sign(said)
        self.assertEqual(signature, private.sign(said))
        Ed25519PublicKey.from_public_bytes(identity.key).verify(signature, said)
        self.assertTrue(OURS.has_signed(identity.key, said, signature))
        self.assertFalse(OURS.has_signed(identity.key, said + b".", signature))

    @given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=80))
    @examples(70)
    def test_no_octets_are_a_signature(self, key: bytes, said: bytes, signature: bytes) -> None:
        self.assertFalse(OURS.has_signed(key, said, signature))

    def test_statements_of_different_content_differ(self) -> None:
        said = [
            entry_statement(Entry("ab", "c", 1, b"")),
            entry_statement(Entry("a", "bc", 1, b"")),
            entry_statement(Entry("ab", "c", 1, None)),
            entry_statement(Entry("ab", "c", 1, b"", True)),
            life_statement(Belief("ab", ("::1", 1), 1, Standing.ALIVE, "x")),
            life_statement(Belief("ab", ("::1", 1), 1, Standing.LEFT, "x")),
        ]
        self.assertEqual(len(set(said)), len(said))
