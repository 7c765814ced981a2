"""
Packets: messages <-> sealed octets.

A packet is one octet of format, four naming the key, a nonce of twelve (eight of the
sender's session, four that count its packets) and the sealed rest (ChaCha20-Poly1305,
RFC 8439), which begins with the time of sending in milliseconds and the sender's name.
The first seventeen octets are authenticated with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from struct import Struct
from struct import error as StructError
from struct import pack as struct_pack

from attrs import define, frozen
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from gridnet.blake2 import blake2b
from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.lbsmd.gossip.messages import (
    IDENTITY_OCTETS,
    SIGNATURE_OCTETS,
    Ack,
    Address,
    Belief,
    Digest,
    DigestLine,
    Entry,
    IndirectPing,
    Message,
    Nack,
    Order,
    Overview,
    Ping,
    Receipt,
    Standing,
)

MAX_PACKET_OCTETS = 65507  #: of a UDP datagram over IPv4
_FORMAT = 1
_HEAD = Struct("!B4sQI")
_TAG_OCTETS = 16
KEY_OCTETS = 32  #: of a key that seals
_NUMBER, _PORT, _TIME = Struct("!I"), Struct("!H"), Struct("!Q")
_BELIEF, _ENTRY, _LINE, _DIGEST = (
    Struct("!HQB"),
    Struct("!QBH"),
    Struct("!QBQQ"),
    Struct("!BIIH"),
)
_ORDER, _PROBE = Struct("!QH"), Struct("!IQ")
_PING, _INDIRECT, _ACK, _NACK, _SAID, _VALUE, _SUMMARY, _ASK, _ANSWER, _OVERVIEW = range(1, 11)
_WITHDRAWN, _LOAD = 1, 2


def _text(text: str) -> bytes:
    octets = text.encode()
    if len(octets) > 255:
        raise LocalProtocolError(f"text of {len(octets)} octets, at most 255 fit")
    return bytes((len(octets),)) + octets


def encode_message(message: Message) -> bytes:
    """
    The octets of *message*, as many as its ``octets()`` says.

    :raises LocalProtocolError: a text, number or value is too large for its field.
    """
    try:
        match message:
            case Ping():
                numbers = _PROBE.pack(message.number, message.fingerprint)
                return bytes((_PING,)) + numbers + _text(message.target)
            case IndirectPing():
                host, port = message.address
                numbers = _NUMBER.pack(message.number) + _PORT.pack(port)
                return bytes((_INDIRECT,)) + numbers + _text(message.target) + _text(host)
            case Ack():
                return bytes((_ACK,)) + _NUMBER.pack(message.number)
            case Nack():
                return bytes((_NACK,)) + _NUMBER.pack(message.number)
            case Belief():
                host, port = message.address
                numbers = _BELIEF.pack(port, message.incarnation, message.standing)
                texts = _text(message.host) + _text(host) + _text(message.accuser)
                return bytes((_SAID,)) + numbers + texts + message.key + message.signature
            case Entry():
                value = message.value or b""
                flags = (message.value is None) * _WITHDRAWN | message.is_load * _LOAD
                numbers = _ENTRY.pack(message.version, flags, len(value))
                texts = _text(message.owner) + _text(message.key)
                return bytes((_VALUE,)) + numbers + texts + value + message.signature
            case Overview():
                prints = message.prints
                return struct_pack(f"!BB{len(prints)}Q", _OVERVIEW, len(prints), *prints)
            case Digest():
                numbers = _DIGEST.pack(
                    message.is_answer, message.first, message.last, len(message.lines)
                )
                lines = b"".join(
                    _LINE.pack(line.incarnation, line.standing, line.newest, line.fingerprint)
                    + _text(line.host)
                    for line in message.lines
                )
                return bytes((_SUMMARY,)) + numbers + lines
            case Order():
                numbers = _ORDER.pack(message.number, len(message.text))
                return bytes((_ASK,)) + numbers + _text(message.target) + message.text
            case Receipt():
                refusal = message.refusal.encode()
                return bytes((_ANSWER,)) + _ORDER.pack(message.number, len(refusal)) + refusal
    except StructError as error:
        raise LocalProtocolError(f"a number does not fit: {error}") from None


class _Reader:
    """Takes fields off octets."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._octets)

    def take(self, number: int) -> bytes:
        end = self._at + number
        if end > len(self._octets):
            raise RemoteProtocolError("packet ends inside a field")
        octets, self._at = self._octets[self._at : end], end
        return octets

    def numbers(self, shape: Struct) -> tuple[int, ...]:
        return shape.unpack(self.take(shape.size))

    def text(self) -> str:
        try:
            return self.take(self.take(1)[0]).decode()
        except UnicodeDecodeError:
            raise RemoteProtocolError("text is not UTF-8") from None

    def name(self) -> str:
        text = self.text()
        if not text:
            raise RemoteProtocolError("empty name")
        return text

    def address(self, port: int) -> Address:
        text = self.text()
        try:
            return str(ip_address(text)), port
        except ValueError:
            raise RemoteProtocolError("malformed IP address") from None

    def standing(self, number: int) -> Standing:
        try:
            return Standing(number)
        except ValueError:
            raise RemoteProtocolError(f"unknown standing {number}") from None

    def message(self) -> Message:
        kind = self.take(1)[0]
        if kind in (_ACK, _NACK):
            (number,) = self.numbers(_NUMBER)
            return Ack(number) if kind == _ACK else Nack(number)
        if kind == _PING:
            number, fingerprint = self.numbers(_PROBE)
            return Ping(number, self.name(), fingerprint)
        if kind == _INDIRECT:
            (number,), (port,) = self.numbers(_NUMBER), self.numbers(_PORT)
            return IndirectPing(number, self.name(), self.address(port))
        if kind == _SAID:
            port, incarnation, standing = self.numbers(_BELIEF)
            host, address = self.name(), self.address(port)
            held, accuser = self.standing(standing), self.name()
            known_by, signature = self.take(IDENTITY_OCTETS), self.take(SIGNATURE_OCTETS)
            return Belief(host, address, incarnation, held, accuser, known_by, signature)
        if kind == _VALUE:
            version, flags, length = self.numbers(_ENTRY)
            owner, key, value = self.name(), self.text(), self.take(length)
            if flags & ~(_WITHDRAWN | _LOAD) or (flags & _WITHDRAWN and value):
                raise RemoteProtocolError("contradictory entry")
            kept = None if flags & _WITHDRAWN else value
            signature = self.take(SIGNATURE_OCTETS)
            return Entry(owner, key, version, kept, bool(flags & _LOAD), signature)
        if kind == _SUMMARY:
            is_answer, first, last, count = self.numbers(_DIGEST)
            return Digest(first, last, bool(is_answer), tuple(self._lines(count)))
        if kind == _OVERVIEW:
            return Overview(self.numbers(Struct(f"!{self.take(1)[0]}Q")))
        if kind == _ASK:
            number, length = self.numbers(_ORDER)
            return Order(number, self.name(), self.take(length))
        if kind == _ANSWER:
            number, length = self.numbers(_ORDER)
            try:
                return Receipt(number, self.take(length).decode())
            except UnicodeDecodeError:
                raise RemoteProtocolError("text is not UTF-8") from None
        raise RemoteProtocolError(f"unknown message {kind}")

    def _lines(self, count: int) -> Iterable[DigestLine]:
        for _ in range(count):
            incarnation, standing, newest, fingerprint = self.numbers(_LINE)
            held = self.standing(standing)
            yield DigestLine(self.name(), incarnation, held, newest, fingerprint)


def decode_messages(octets: bytes) -> Sequence[Message]:
    """
    The messages that *octets* consist of.

    :raises RemoteProtocolError: they are malformed; no message of the packet counts then.
    """
    reader = _Reader(octets)
    messages = []
    while not reader.is_done:
        messages.append(reader.message())
    return messages


@frozen
class Packet:
    """An authentic packet."""

    sender: str
    messages: Sequence[Message]
    sent_at: float  #: seconds since the epoch, by the clock of the sender


@define
class _Window:
    """Which packets of one session were seen."""

    heard_at: float
    highest: int = -1
    seen: int = 0  # bit n: highest - n


class Seal:
    """
    Seals our packets and opens those of others.

    :param keys: 32 octets each; the first seals, all open: to change keys, append the new
        one everywhere, then move it to the front everywhere, then remove the old one.
    :param session: eight random octets, new in every life of this process.
    :param max_skew: seconds a packet's time may differ from ours; older is a replay.
    :param window: packets of one sender that may overtake each other.
    :param max_sessions: senders remembered; packets of further ones are refused.
    """

    def __init__(
        self,
        me: str,
        keys: Sequence[bytes],
        session: bytes,
        max_skew: float = 300.0,
        window: int = 1024,
        max_sessions: int = 40000,
    ) -> None:
        if len(session) != 8:
            raise LocalProtocolError("a seal needs a session of 8 octets")
        self._sender = _text(me)
        self.take_keys(keys)
        self._session = int.from_bytes(session, "big")
        self._count = 0
        self._max_skew = max_skew
        self._window = window
        self._max_sessions = max_sessions
        self._windows: dict[int, _Window] = {}

    def take_keys(self, keys: Sequence[bytes]) -> None:
        """
        Use *keys* from now on, as those given at the start.

        :raises LocalProtocolError: there are none, or one has not 32 octets.
        """
        if not keys or any(len(key) != KEY_OCTETS for key in keys):
            raise LocalProtocolError("a seal needs keys of 32 octets")
        self._keys = {_key_name(key): key for key in keys}
        self._sealing = _key_name(keys[0])

    def seal(self, messages: Iterable[Message], now: float) -> bytes:
        """
        One packet.

        :param now: seconds since the epoch.
        :raises LocalProtocolError: it would be too large.
        """
        if self._count > 0xFFFFFFFF:
            # A nonce must not be used twice: go on in a session of another number.
            octets = self._session.to_bytes(8, "big")
            self._session = int.from_bytes(blake2b(octets, digest_size=8).digest(), "big")
            self._count = 0
        head = _HEAD.pack(_FORMAT, self._sealing, self._session, self._count)
        self._count += 1
        plain = _TIME.pack(int(now * 1000)) + self._sender
        plain += b"".join(map(encode_message, messages))
        if len(head) + len(plain) + _TAG_OCTETS > MAX_PACKET_OCTETS:
            raise LocalProtocolError("packet is larger than a datagram")
        key = self._keys[self._sealing]
        return head + crypto_aead_chacha20poly1305_ietf_encrypt(plain, head, head[5:], key)

    def open(self, packet: bytes, now: float) -> Packet:
        """
        What *packet* says; each opens once.

        :param now: seconds since the epoch.
        :raises RemoteProtocolError: forged, damaged, replayed, too old or malformed.
        """
        if not _HEAD.size + _TAG_OCTETS <= len(packet) <= MAX_PACKET_OCTETS:
            raise RemoteProtocolError("packet is too short or too long")
        head = packet[: _HEAD.size]
        kind, key_name, session, count = _HEAD.unpack(head)
        key = self._keys.get(key_name)
        if kind != _FORMAT or key is None:
            raise RemoteProtocolError("unknown format or key")
        try:
            plain = crypto_aead_chacha20poly1305_ietf_decrypt(
                packet[_HEAD.size :], head, head[5:], key
            )
        except CryptoError:
            raise RemoteProtocolError("forged or damaged") from None
        reader = _Reader(plain)
        (sent_at,) = reader.numbers(_TIME)
        if abs(sent_at / 1000 - now) > self._max_skew:
            raise RemoteProtocolError("sent too long ago, or clocks differ")
        self._note(session, count, now)
        sender = reader.name()
        rest = plain[_TIME.size + 1 + len(sender.encode()) :]
        return Packet(sender, decode_messages(rest), sent_at / 1000)

    def _note(self, session: int, count: int, now: float) -> None:
        window = self._windows.get(session)
        if window is None:
            if len(self._windows) >= self._max_sessions:
                self._prune(now)
            if len(self._windows) >= self._max_sessions:
                raise RemoteProtocolError("too many senders")
            window = self._windows[session] = _Window(now)
        behind = window.highest - count
        if behind >= self._window or (behind >= 0 and window.seen >> behind & 1):
            raise RemoteProtocolError("replayed")
        if behind < 0:
            # A larger step than the window forgets it all; never shift by a peer's number.
            step = min(-behind, self._window)
            window.seen = (window.seen << step | 1) & ((1 << self._window) - 1)
            window.highest = count
        else:
            window.seen |= 1 << behind
        window.heard_at = now

    def _prune(self, now: float) -> None:
        # What was last heard that long ago can only come again with a time too old.
        oldest = now - 2 * self._max_skew
        self._windows = {s: w for s, w in self._windows.items() if w.heard_at >= oldest}


def _key_name(key: bytes) -> bytes:
    return blake2b(key, digest_size=4, person=b"gridnet gossip").digest()
