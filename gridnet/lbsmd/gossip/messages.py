"""What daemons tell each other; every message knows the most octets it takes on the wire."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

from attrs import Factory, field, frozen

Address: TypeAlias = tuple[str, int]  #: IP address as text, UDP port


class Standing(IntEnum):
    """What is believed of a host; a higher one wins within one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


#: Octets of the key that a host is known by, and of what it signs with it.
IDENTITY_OCTETS = 32
SIGNATURE_OCTETS = 64
_NO_KEY, _UNSIGNED = bytes(IDENTITY_OCTETS), bytes(SIGNATURE_OCTETS)

ACK_OCTETS = 5


def _text(text: str) -> int:
    return 1 + len(text.encode())


@frozen
class _Counted:
    """News are passed on many times: how large they are is found out at the first."""

    _octets: int = field(default=0, init=False, eq=False, repr=False)

    def octets(self) -> int:
        octets = self._octets
        if not octets:
            octets = self._count()
            object.__setattr__(self, "_octets", octets)
        return octets

    def _count(self) -> int:
        raise NotImplementedError  # pragma: no cover - every one of them has it


@frozen
class Ping:
    """
    Are you *target*?  Answered with an Ack of the same number.

    Who holds another table than the *fingerprint* says, and has no news to tell, adds its latest.
    """

    number: int
    target: str
    fingerprint: int = 0  #: of all that the sender holds, 64 bits; 0: not told

    def octets(self) -> int:
        return 13 + _text(self.target)


@frozen
class IndirectPing:
    """Probe *target* for me; answer Ack, or Nack when it does not reply in time."""

    number: int
    target: str
    address: Address

    def octets(self) -> int:
        return 7 + _text(self.target) + _text(self.address[0])


@frozen
class Ack:
    """The probe of that number was answered."""

    number: int

    def octets(self) -> int:
        return ACK_OCTETS


@frozen
class Nack:
    """I am well, but the host you asked me to probe does not answer me."""

    number: int

    def octets(self) -> int:
        return 5


@frozen
class Belief(_Counted):
    """
    What *accuser* holds of *host*.

    A host's own *incarnation* is raised by that host alone, to refute what is said of it.
    Whatever is held of it, *signature* is its own, under its address in that incarnation.
    """

    host: str
    address: Address
    incarnation: int
    standing: Standing
    accuser: str
    key: bytes = _NO_KEY  #: of *host*
    signature: bytes = _UNSIGNED  #: of *host*

    def _count(self) -> int:
        texts = _text(self.host) + _text(self.address[0]) + _text(self.accuser)
        return 12 + IDENTITY_OCTETS + SIGNATURE_OCTETS + texts


@frozen
class Entry(_Counted):
    """One published value of *owner*; None: withdrawn.  The higher version wins."""

    owner: str
    key: str
    version: int
    value: bytes | None
    is_load: bool = False  #: gives way to everything else when room is short
    signature: bytes = _UNSIGNED  #: of *owner*
    #: What it is about: made once, since it is looked up whenever the entry is heard.
    matter: tuple[str, str] = field(
        init=False,
        eq=False,
        repr=False,
        default=Factory(lambda entry: (entry.owner, entry.key), takes_self=True),
    )

    def _count(self) -> int:
        texts = _text(self.owner) + _text(self.key)
        return 12 + SIGNATURE_OCTETS + texts + len(self.value or b"")


@frozen
class Overview:
    """
    Fingerprints of all hosts that are up, by the parts of :mod:`.roster`.

    The peer answers for the parts in which its own differ; equal tables cost one packet.
    """

    prints: tuple[int, ...]  #: 64 bits each

    def octets(self) -> int:
        return 2 + 8 * len(self.prints)


@frozen
class DigestLine(_Counted):
    """The state of one host in brief."""

    host: str
    incarnation: int
    standing: Standing
    newest: int  #: highest version among its entries
    fingerprint: int  #: of its entries, 64 bits

    def _count(self) -> int:
        return 25 + _text(self.host)


@frozen
class Digest(_Counted):
    """
    All hosts I know whose places (:func:`.roster.place_of`) lie from *first* to *last*.

    The peer sends what it knows better, and a digest of its own unless this is an answer.
    """

    first: int
    last: int
    is_answer: bool
    lines: tuple[DigestLine, ...]

    def _count(self) -> int:
        return 12 + sum(line.octets() for line in self.lines)


@frozen
class Order:
    """Let *target* do what *text* says, once for this *number*; answered with a Receipt."""

    number: int  #: chosen at random, 64 bits
    target: str
    text: bytes

    def octets(self) -> int:
        return 11 + _text(self.target) + len(self.text)


@frozen
class Receipt:
    """The order of that number is done, or refused for that reason."""

    number: int
    refusal: str  #: empty: done

    def octets(self) -> int:
        return 11 + len(self.refusal.encode())


Message: TypeAlias = (
    Ping | IndirectPing | Ack | Nack | Belief | Entry | Overview | Digest | Order | Receipt
)
