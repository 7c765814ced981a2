"""
The service table: hosts, service entries, penalties, expiry.

One :class:`ServiceTable` is the truth of one process.  The daemon fills it, the dispatcher
reads it.  Look-ups go through indexes (by service name, by host and port), never a scan.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any

from attrs import frozen

from gridnet.errors import TableError
from gridnet.table.server_info import ServerInfo, ServerType

#: Seconds that an entry lives when its ``T`` is 0 (docs/protocols/load-balancing.rst).
DEFAULT_TIME_SECONDS = 30

_Key = tuple[object, ...]


@frozen
class Host:
    """A host that publishes entries, and how loaded it is."""

    address: str  #: canonical IP address text
    status: float = 1000.0  #: smoothed status; higher is better
    status_blast: float = 1000.0  #: instant status
    environment: tuple[tuple[str, str], ...] = ()  #: published name=value lines, in order
    zone: int = 0  #: zone bits; 0: visible to every zone
    expires_at: float = inf  #: seconds since the epoch


@frozen
class Entry:
    """One server of one service."""

    service: str  #: name as configured; compares without case
    #: base rate in force as ``rate`` (0: down or off), validity in seconds as ``time``,
    #: explicit host and port
    info: ServerInfo
    owner: str = ""  #: address of the host that publishes it
    static: bool = False  #: constant rate, needs no host
    reserved: bool = False  #: kept aside: never handed out
    penalty: float = 0.0  #: percent, 0..100; 100: suppressed
    zone: int = 0  #: zone bits of the publisher; 0: visible to every zone
    expires_at: float = inf  #: seconds since the epoch
    launcher: str = ""  #: command line behind an NCBID entry

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies it in a table: service name without case, and the server."""
        return (self.service.lower(), self.info.identity)


@frozen
class Change:
    """What one step changed; ``None`` stands for absence."""

    before: Entry | Host | None
    after: Entry | Host | None


class ServiceTable:
    """
    All that one process knows of services and hosts.

    :ivar serial: grows with every change; equal serials mean an unchanged table.
    :ivar max_entries: bound on the number of entries.
    """

    def __init__(self, max_entries: int = 100_000) -> None:
        self.max_entries = max_entries
        self.serial = 0
        self._entries: dict[_Key, Entry] = {}
        # Dictionaries as ordered sets: in order of first insertion, removal by key.
        self._by_service: dict[str, dict[_Key, Entry]] = {}
        self._dns_by_place: dict[tuple[str, int], dict[_Key, Entry]] = {}
        self._by_owner: dict[str, dict[_Key, Entry]] = {}
        self._hosts: dict[str, Host] = {}
        # (when, number, what) of everything that ends; what was replaced since is passed over.
        self._deadlines: list[tuple[float, int, Entry | Host]] = []
        self._numbers = count()
        self._service_tuples: dict[str, tuple[Entry, ...]] = {}
        self._subscribers: dict[object, Callable[[Sequence[Change]], None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """
        Add *entry*, or replace the one of its key.

        :raises gridnet.errors.TableError: the table holds ``max_entries`` already.
        """
        self._changed([self._put(entry)])

    def remove(self, entry: Entry) -> bool:
        """Remove the entry of its key; False: there was none."""
        found = self._entries.get(entry.key)
        if found is None:
            return False
        self._changed([self._drop(found)])
        return True

    def put_host(self, host: Host) -> None:
        """Add *host*, or replace the one of its address."""
        before = self._hosts.get(host.address)
        self._hosts[host.address] = host
        self._due(host)
        self._changed([Change(before, host)])

    def remove_host(self, address: str) -> bool:
        """Remove the host of that address (its entries stay); False: there was none."""
        before = self._hosts.pop(address, None)
        if before is None:
            return False
        self._changed([Change(before, None)])
        return True

    def replace_owner(self, owner: str, entries: Iterable[Entry]) -> None:
        """
        Make *entries* the only ones of *owner*, as one step (one notification).

        :raises gridnet.errors.TableError: they would not all fit; nothing has changed then.
        """
        wanted = {entry.key: entry for entry in entries}
        present = self._by_owner.get(owner, {})
        gone = [entry for key, entry in present.items() if key not in wanted]
        new = sum(1 for key in wanted if key not in self._entries)
        self._check_room(len(self._entries) - len(gone) + new)
        changes = [self._drop(entry) for entry in gone]
        changes += [
            self._put(entry) for key, entry in wanted.items() if self._entries.get(key) != entry
        ]
        self._changed(changes)

    def entries(self, service: str) -> Sequence[Entry]:
        """The entries of *service* (any case), in order of first insertion.  Never a scan."""
        name = service.lower()
        found = self._service_tuples.get(name)
        if found is None:
            present = self._by_service.get(name)
            if present is None:
                return ()
            found = self._service_tuples[name] = tuple(present.values())
        return found

    def matching(self, mask: str) -> Sequence[Entry]:
        """The entries of all services whose name fits *mask* (``*``, ``?``, ``[...]``)."""
        fits = re.compile(translate(mask.lower())).match
        names = sorted(name for name in self._by_service if fits(name))
        return [entry for name in names for entry in self.entries(name)]

    def dns_entries_at(self, host: str, port: int) -> Sequence[Entry]:
        """The ``DNS`` entries of any service at *host*:*port*.  Never a scan."""
        return tuple(self._dns_by_place.get((host, port), {}).values())

    def owned(self, owner: str) -> Sequence[Entry]:
        """The entries that *owner* publishes."""
        return tuple(self._by_owner.get(owner, {}).values())

    def get(self, key: tuple[object, ...]) -> Entry | None:
        """The entry of that key (:attr:`Entry.key`)."""
        return self._entries.get(key)

    def all_entries(self) -> Sequence[Entry]:
        """Every entry, services in order of name."""
        return [entry for name in sorted(self._by_service) for entry in self.entries(name)]

    def host(self, address: str) -> Host | None:
        """The host of that address."""
        return self._hosts.get(address)

    def hosts(self) -> Sequence[Host]:
        """Every host, in order of address text."""
        return [self._hosts[address] for address in sorted(self._hosts)]

    def expire(self, now: float) -> int:
        """Remove what is past its time; returns how many.  Cheap when nothing is due."""
        changes: list[Change] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, what = heappop(self._deadlines)
            if isinstance(what, Host):
                if self._hosts.get(what.address) is what:
                    del self._hosts[what.address]
                    changes.append(Change(what, None))
            elif self._entries.get(what.key) is what:
                changes.append(self._drop(what))
        self._changed(changes)
        return len(changes)

    def subscribe(self, changed: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Call *changed* after each step with what it changed; returns the end of it."""
        token = object()
        self._subscribers[token] = changed

        def end() -> None:
            self._subscribers.pop(token, None)

        return end

    def _check_room(self, size: int) -> None:
        if size > self.max_entries:
            raise TableError(f"the table is full: expected at most {self.max_entries} entries")

    def _put(self, entry: Entry) -> Change:
        key = entry.key
        before = self._entries.get(key)
        if before is None:
            self._check_room(len(self._entries) + 1)
        elif before.owner != entry.owner:
            self._forget(self._by_owner, before.owner, key)
        self._entries[key] = entry
        name = entry.service.lower()
        self._by_service.setdefault(name, {})[key] = entry
        self._by_owner.setdefault(entry.owner, {})[key] = entry
        if entry.info.type is ServerType.DNS:
            place = (entry.info.host, entry.info.port)
            self._dns_by_place.setdefault(place, {})[key] = entry
        self._service_tuples.pop(name, None)
        self._due(entry)
        return Change(before, entry)

    def _drop(self, entry: Entry) -> Change:
        key = entry.key
        del self._entries[key]
        name = entry.service.lower()
        self._forget(self._by_service, name, key)
        self._forget(self._by_owner, entry.owner, key)
        if entry.info.type is ServerType.DNS:
            self._forget(self._dns_by_place, (entry.info.host, entry.info.port), key)
        self._service_tuples.pop(name, None)
        return Change(entry, None)

    @staticmethod
    def _forget(index: dict[Any, dict[_Key, Entry]], name: object, key: _Key) -> None:
        """Take *key* out of one bucket of *index*, and the bucket when it is empty."""
        bucket = index[name]
        del bucket[key]
        if not bucket:
            del index[name]

    def _due(self, what: Entry | Host) -> None:
        if what.expires_at == inf:
            return
        heappush(self._deadlines, (what.expires_at, next(self._numbers), what))
        # Entries that are renewed every few seconds leave their old deadlines behind.
        if len(self._deadlines) > 2 * (len(self._entries) + len(self._hosts)) + 64:
            alive: list[Entry | Host] = [*self._entries.values(), *self._hosts.values()]
            self._deadlines = [
                (each.expires_at, next(self._numbers), each)
                for each in alive
                if each.expires_at != inf
            ]
            heapify(self._deadlines)

    def _changed(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        self.serial += 1
        for tell in tuple(self._subscribers.values()):
            tell(changes)
