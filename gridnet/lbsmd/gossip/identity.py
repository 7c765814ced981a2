"""
Who may say what: a host signs its own statements, so no other host can make them.

The key of the site lets a daemon take part; it does not make it another host.  Two statements
are signed: "I live at this address in this incarnation" (or "I leave in it"), and every entry.
What hosts hold of each other, suspicion and death, is opinion: it is not signed, always carries
the signed statement that it is about, and is refuted by the next one.
"""

from __future__ import annotations

from struct import Struct
from typing import Protocol

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from gridnet.lbsmd.gossip.messages import (
    IDENTITY_OCTETS,
    SIGNATURE_OCTETS,
    Belief,
    Entry,
    Standing,
)

_STATEMENT = Struct("!16sQB")
_LIFE = b"gridnet life 1\0\0"
_ENTRY = b"gridnet entry 1\0"
_NO_SIGNATURE = bytes(SIGNATURE_OCTETS)


def _text(text: str) -> bytes:
    octets = text.encode()
    return len(octets).to_bytes(2, "big") + octets


def life_statement(belief: Belief) -> bytes:
    """What the host that *belief* is about signs: that it is there, or that it leaves."""
    host, port = belief.address
    standing = Standing.LEFT if belief.standing is Standing.LEFT else Standing.ALIVE
    numbers = _STATEMENT.pack(_LIFE, belief.incarnation, standing)
    return numbers + port.to_bytes(2, "big") + _text(belief.host) + _text(host)


def entry_statement(entry: Entry) -> bytes:
    """What the owner of *entry* signs."""
    flags = (entry.value is None) | entry.is_load << 1
    texts = _text(entry.owner) + _text(entry.key)
    return _STATEMENT.pack(_ENTRY, entry.version, flags) + texts + (entry.value or b"")


class Identity(Protocol):
    """
    Signs for one host, and tells whether others have signed.

    :ivar key: what others know this host by.
    """

    @property
    def key(self) -> bytes: ...

    def sign(self, statement: bytes) -> bytes:
        """Our signature under *statement*."""

    def has_signed(self, key: bytes, statement: bytes, signature: bytes) -> bool:
        """Whether the owner of *key* has signed *statement*."""


class SigningIdentity:
    """
    Ed25519 (RFC 8032).

    :param secret: 32 octets; the host keeps them to itself, over restarts.
    """

    def __init__(self, secret: bytes) -> None:
        self.key, self._secret = crypto_sign_seed_keypair(secret)

    def sign(self, statement: bytes) -> bytes:
        """Our signature under *statement*."""
        return crypto_sign(statement, self._secret)[:SIGNATURE_OCTETS]

    def has_signed(self, key: bytes, statement: bytes, signature: bytes) -> bool:
        """Whether the owner of *key* has signed *statement*."""
        if len(key) != IDENTITY_OCTETS or len(signature) != SIGNATURE_OCTETS:
            return False
        try:
            crypto_sign_open(signature + statement, key)
        except CryptoError:
            return False
        return True


class TrustingIdentity:
    """Believes everyone: for simulations, where only the size of a signature counts."""

    key = bytes(IDENTITY_OCTETS)

    def sign(self, statement: bytes) -> bytes:
        """As many octets as a signature has."""
        return _NO_SIGNATURE

    def has_signed(self, key: bytes, statement: bytes, signature: bytes) -> bool:
        """Yes."""
        return True


TRUSTING = TrustingIdentity()
