"""What each host publishes: versioned entries, changed by their owner alone."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from gridnet.blake2 import blake2b
from gridnet.lbsmd.gossip.identity import Identity, entry_statement
from gridnet.lbsmd.gossip.messages import Entry

#: A life has room for so many versions until those of the next one, as a power of two.
VERSION_BITS = 20


def mark_of(entry: Entry) -> int:
    """64 bits of one entry, by which equal tables are known."""
    # With the value: a life that begins anew uses versions of an earlier one again.
    said = f"{entry.key}\0{entry.version}\0".encode() + (entry.value or b"")
    return int.from_bytes(blake2b(said, digest_size=8).digest(), "big")


class HostRecords:
    """
    The entries of one host.

    :ivar fingerprint: equal for equal entries, whatever the order of arrival.
    :ivar newest: highest version among them.
    """

    __slots__ = (
        "_entries",
        "_max_entries",
        "fingerprint",
        "newest",
        "owner",
    )

    def __init__(self, owner: str, max_entries: int) -> None:
        self.owner = owner
        self.fingerprint = 0
        self.newest = 0
        self._max_entries = max_entries
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, key: str) -> Entry | None:
        """The entry of that *key*, withdrawn ones included."""
        return self._entries.get(key)

    def is_news(self, entry: Entry) -> bool:
        """Whether *entry* is newer than ours and there is room for it."""
        held = self._entries.get(entry.key)
        if held is None:
            return len(self._entries) < self._max_entries
        return held.version < entry.version

    def take(self, entry: Entry) -> bool:
        """Keep *entry* if it is newer than ours; False: old, or there is no room."""
        if not self.is_news(entry):
            return False
        held = self._entries.get(entry.key)
        if held is not None:
            self.fingerprint ^= mark_of(held)
        self._entries[entry.key] = entry
        self.fingerprint ^= mark_of(entry)
        self.newest = max(self.newest, entry.version)
        return True

    def copy(self) -> HostRecords:
        """The same entries, to be changed apart."""
        other = HostRecords(self.owner, self._max_entries)
        other.fingerprint, other.newest = self.fingerprint, self.newest
        other._entries = dict(self._entries)
        return other


class OwnRecords(HostRecords):
    """What this host publishes, signed; its versions only ever rise."""

    def __init__(self, owner: str, max_entries: int, identity: Identity, version: int = 0) -> None:
        super().__init__(owner, max_entries)
        self._identity = identity
        self._version = version

    def _signed(self, entry: Entry) -> Entry:
        return evolve(entry, signature=self._identity.sign(entry_statement(entry)))

    def publish(self, key: str, value: bytes | None, is_load: bool = False) -> Entry | None:
        """A new entry to announce; None: nothing changed, or there is no room."""
        held = self.get(key)
        if held is not None and held.value == value:
            return None
        if held is None and value is None:
            return None
        entry = self._signed(Entry(self.owner, key, self._version + 1, value, is_load))
        if not self.take(entry):
            return None
        self._version += 1
        return entry

    def correct(self, said: Entry) -> Entry | None:
        """
        What to announce when others hold *said* as ours; None: they are merely behind.

        Happens after a restart, when our versions began anew: outbid the old entry.
        """
        held = self.get(said.key)
        if held == said or (held is not None and held.version > said.version):
            return None
        if not self._identity.has_signed(self._identity.key, entry_statement(said), said.signature):
            return None
        self._version = max(self._version, said.version) + 1
        value = None if held is None else held.value
        entry = self._signed(Entry(self.owner, said.key, self._version, value, said.is_load))
        return entry if self.take(entry) else None
