"""
The service table: hosts, service entries, penalties, expiry.

One :class:`ServiceTable` is the truth of one process.  The daemon fills it, the dispatcher
reads it.  Look-ups go through indexes (by service name, by host and port), never a scan.
"""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from attrs import frozen

from gridnet.errors import TableError
from gridnet.table.server_info import ServerInfo, ServerType

#: Seconds that an entry lives when its ``T`` is 0 (docs/protocols/load-balancing.rst).
DEFAULT_TIME_SECONDS = 30


@frozen
class HostFacts:
    """What a host says of itself beside its statuses; zeros where nothing is known."""

    load: float = 0.0  #: load average over one minute
    load_instant: float = 0.0  #: what the instant status comes from
    ram_pages: int = 0
    cache_pages: int = 0  #: of it, what could be discarded
    free_pages: int = 0
    swap_pages: int = 0
    free_swap_pages: int = 0
    tasks: int = 0  #: running
    #: up to four monitored ports: number, share in use (0..1)
    ports: tuple[tuple[int, float], ...] = ()
    daemon_version: tuple[int, int, int] = (0, 0, 0)  #: each 0..15
    machine: int = 0  #: bits (2), architecture (6), operating system (8)
    booted_at: float = 0.0  #: seconds since the epoch
    started_at: float = 0.0  #: of its daemon, seconds since the epoch
    kernel: tuple[int, int, int] = (0, 0, 0)  #: major, minor (0..255), patch (0..32767)
    page_octets: int = 4096
    clock_ghz: float = 0.0
    processors: int = 1  #: logical, 0..255
    processor_units: int = 1  #: physical, 0..255
    alerts: int = 0
    joined_at: float = 0.0  #: seconds since the epoch
    hosts_seen: int = 0  #: now
    hosts_known: int = 0  #: ever


_NO_FACTS = HostFacts()


@frozen
class Host:
    """A host that publishes entries, and how loaded it is."""

    address: str  #: canonical IP address text
    status: float = 1000.0  #: smoothed status; higher is better
    status_blast: float = 1000.0  #: instant status
    environment: tuple[tuple[str, str], ...] = ()  #: published name=value lines, in order
    zone: int = 0  #: zone bits; 0: visible to every zone
    expires_at: float = inf  #: seconds since the epoch
    facts: HostFacts = _NO_FACTS


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


_Key = tuple[object, ...]


def _precedence(claim: Entry) -> tuple[bool, str]:
    """Of two claims on one server the lesser is shown."""
    return (claim.info.rate == 0, claim.owner)


@lru_cache(maxsize=512)
def _mask_pattern(mask: str) -> re.Pattern[str]:
    # Clients negate a set with "^" as well as with "!".
    return re.compile(translate(mask.replace("[^", "[!")))


def _literal_prefix(mask: str) -> str:
    match = re.search(r"[*?\[]", mask)
    return mask if match is None else mask[: match.start()]


def is_mask(service: str) -> bool:
    """Whether *service* is a mask (``*``, ``?``, ``[...]``) and not a plain name."""
    return _literal_prefix(service) != service


class ServiceTable:
    """
    All that one process knows of services and hosts.

    Two hosts may publish the same server of the same service.  Both claims are kept; the
    table shows one: a server that is up before one that is down, then the claim of the
    owner whose address text is lowest.  So every table with the same claims shows the same
    servers, in whatever order the claims came, and a claim that is withdrawn uncovers the next.

    :ivar serial: grows with every change; equal serials mean an unchanged table.
    """

    def __init__(self, max_entries: int = 100_000) -> None:
        self.max_entries = max_entries
        self.serial = 0
        #: service name without case -> identity -> the entry shown, in order of insertion
        self._services: dict[str, dict[object, Entry]] = {}
        self._names: list[str] = []  #: the keys of _services, in order
        self._shown: dict[str, tuple[Entry, ...]] = {}  #: values of _services, made on demand
        self._dns: dict[tuple[str, int], dict[_Key, Entry]] = {}
        self._claims: dict[str, dict[_Key, Entry]] = {}  #: owner -> key -> its claim
        #: key -> owner -> claim, of keys that more than one owner claims
        self._rivals: dict[_Key, dict[str, Entry]] = {}
        self._size = 0
        self._hosts: dict[str, Host] = {}
        #: (when, tie breaker, owner or address, key or None for a host)
        self._due: list[tuple[float, int, str, _Key | None]] = []
        #: when the one record in _due that counts for (owner or address, key) is due
        self._due_at: dict[tuple[str, _Key | None], float] = {}
        self._ticket = count()
        self._subscribers: dict[int, Callable[[Sequence[Change]], None]] = {}
        self._claim_watchers: list[Callable[[str], None]] = []
        self._undelivered: deque[tuple[Change, ...]] = deque()
        self._delivering = False

    # --- changes --------------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """
        Add *entry*, or replace what its owner said of its key before.

        :raises gridnet.errors.TableError: the table holds ``max_entries`` already.
        """
        changes: list[Change] = []
        self._put(entry, changes)
        self._commit(changes)

    def remove(self, entry: Entry) -> bool:
        """Remove what the owner of *entry* says of its key; False: it said nothing."""
        changes: list[Change] = []
        found = self._remove(entry.owner, entry.key, changes)
        self._commit(changes)
        return found

    def put_host(self, host: Host) -> None:
        """Add *host*, or replace the one of its address."""
        before = self._hosts.get(host.address)
        if before == host:
            return
        self._hosts[host.address] = host
        self._schedule(host.address, None, host.expires_at)
        self._commit([Change(before, host)])

    def remove_host(self, address: str) -> bool:
        """Remove the host of that address (its entries stay); False: there was none."""
        before = self._hosts.pop(address, None)
        if before is None:
            return False
        self._due_at.pop((address, None), None)
        self._commit([Change(before, None)])
        return True

    def replace_owner(self, owner: str, entries: Iterable[Entry]) -> None:
        """
        Make *entries* the only ones of *owner*, as one step (one notification).

        :raises ValueError: an entry of another owner is among them; nothing has changed.
        :raises gridnet.errors.TableError: more than ``max_entries``; nothing has changed.
        """
        wanted: dict[_Key, Entry] = {}
        for entry in entries:
            if entry.owner != owner:
                raise ValueError(f"entry of {entry.owner!r} among those of {owner!r}")
            wanted[entry.key] = entry
        had = self._claims.get(owner, {})
        if self._size - len(had) + len(wanted) > self.max_entries:
            raise self._full()
        changes: list[Change] = []
        for key in [key for key in had if key not in wanted]:
            self._remove(owner, key, changes)
        for entry in wanted.values():
            self._put(entry, changes)
        self._commit(changes)

    def step(
        self,
        entries: Iterable[Entry] = (),
        withdrawn: Iterable[Entry] = (),
        hosts: Iterable[Host] = (),
        gone: Iterable[str] = (),
    ) -> None:
        """
        Change many things at once, of any owners (one notification).

        :param entries: to add, or to replace what their owners said of their keys.
        :param withdrawn: to remove first, of their owners; what is not there does not matter.
        :param hosts: to add or replace.
        :param gone: addresses of hosts to remove first.
        :raises gridnet.errors.TableError: more than ``max_entries``; nothing has changed.
        """
        wanted = {(entry.owner, entry.key): entry for entry in entries}
        unwanted = {(entry.owner, entry.key) for entry in withdrawn} - wanted.keys()
        new = sum(key not in self._claims.get(owner, {}) for owner, key in wanted)
        lost = sum(key in self._claims.get(owner, {}) for owner, key in unwanted)
        if new > lost and self._size - lost + new > self.max_entries:
            raise self._full()
        changes: list[Change] = []
        for owner, key in unwanted:
            self._remove(owner, key, changes)
        for entry in wanted.values():
            self._put(entry, changes)
        for address in gone:
            before = self._hosts.pop(address, None)
            if before is not None:
                self._due_at.pop((address, None), None)
                changes.append(Change(before, None))
        for host in hosts:
            before = self._hosts.get(host.address)
            if before != host:
                self._hosts[host.address] = host
                self._schedule(host.address, None, host.expires_at)
                changes.append(Change(before, host))
        self._commit(changes)

    def expire(self, now: float) -> int:
        """
        Remove what is past its time; returns how many.  Cheap when nothing is due.

        :param now: seconds since the epoch; an entry is valid through its ``expires_at``.
        """
        changes: list[Change] = []
        removed = 0
        while self._due and self._due[0][0] < now:
            when, _, name, key = heappop(self._due)
            if self._due_at.get((name, key)) != when:
                continue  # an earlier moment took its place
            del self._due_at[name, key]
            if key is None:
                host = self._hosts.get(name)
                if host is None:
                    continue
                if host.expires_at >= now:
                    self._schedule(name, None, host.expires_at)
                    continue
                del self._hosts[name]
                changes.append(Change(host, None))
            else:
                claim = self._claims.get(name, {}).get(key)
                if claim is None:
                    continue
                if claim.expires_at >= now:
                    self._schedule(name, key, claim.expires_at)
                    continue
                self._remove(name, key, changes)
            removed += 1
        self._commit(changes)
        return removed

    # --- look-ups -------------------------------------------------------------------------

    def entries(self, service: str) -> Sequence[Entry]:
        """The entries of *service* (any case), in order of first insertion.  Never a scan."""
        name = service.lower()
        shown = self._shown.get(name)
        if shown is None:
            group = self._services.get(name)
            if group is None:
                return ()
            shown = self._shown[name] = tuple(group.values())
        return shown

    def entry(self, service: str, info: ServerInfo) -> Entry | None:
        """The entry of *service* for the server that *info* identifies."""
        return self._services.get(service.lower(), {}).get(info.identity)

    def matching(self, mask: str) -> Sequence[Entry]:
        """
        The entries of all services whose name fits *mask* (``*``, ``?``, ``[...]``, any case).

        Services in order of name.  Looks only at names that begin like the mask.
        """
        mask = mask.lower()
        prefix = _literal_prefix(mask)
        if prefix == mask:
            return self.entries(mask)
        fits = _mask_pattern(mask).match
        found: list[Entry] = []
        for index in range(bisect_left(self._names, prefix), len(self._names)):
            name = self._names[index]
            if not name.startswith(prefix):
                break
            if fits(name):
                found.extend(self.entries(name))
        return found

    def dns_entries_at(self, host: str, port: int) -> Sequence[Entry]:
        """The ``DNS`` entries of any service at *host*:*port*.  Never a scan."""
        return tuple(self._dns.get((host, port), {}).values())

    def all_entries(self) -> Sequence[Entry]:
        """Every entry, services in order of name."""
        return [entry for name in self._names for entry in self.entries(name)]

    def owned_by(self, owner: str) -> Sequence[Entry]:
        """What *owner* says, shown or not, in order of first insertion."""
        return tuple(self._claims.get(owner, {}).values())

    def services(self) -> Sequence[str]:
        """The names of all services, as their first entry writes them, in order."""
        return [self.entries(name)[0].service for name in self._names]

    def host(self, address: str) -> Host | None:
        """The host of that address."""
        return self._hosts.get(address)

    def hosts(self) -> Sequence[Host]:
        """Every host, in order of address text."""
        return [self._hosts[address] for address in sorted(self._hosts)]

    def __len__(self) -> int:
        """How many claims the table holds; never above ``max_entries``."""
        return self._size

    # --- subscription ---------------------------------------------------------------------

    def subscribe(self, changed: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """
        Call *changed* after each step with what it changed; returns the end of it.

        Steps are told in their order, also those that a subscriber itself makes.  An exception
        out of *changed* comes out of the step, after all subscribers were told.
        """
        number = next(self._ticket)
        self._subscribers[number] = changed

        def unsubscribe() -> None:
            self._subscribers.pop(number, None)

        return unsubscribe

    def watch_claims(self, claimed: Callable[[str], None]) -> None:
        """
        Call *claimed* with the owner whenever a claim comes, changes or goes, shown or not.

        It is called in the middle of a step, so it may only note what it is told.
        """
        self._claim_watchers.append(claimed)

    # --- inside ---------------------------------------------------------------------------

    def _full(self) -> TableError:
        return TableError(f"the table is full: it holds {self.max_entries} entries")

    def _put(self, entry: Entry, changes: list[Change]) -> None:
        key, owner = entry.key, entry.owner
        claims = self._claims.setdefault(owner, {})
        before = claims.get(key)
        if before == entry:
            return
        if before is None:
            if self._size >= self.max_entries:
                if not claims:
                    del self._claims[owner]
                raise self._full()
            self._size += 1
        claims[key] = entry
        self._claimed(owner)
        self._schedule(owner, key, entry.expires_at)
        shown = self._shown_at(key)
        rivals = self._rivals.get(key)
        if rivals is None and shown is not None and shown.owner != owner:
            rivals = self._rivals[key] = {shown.owner: shown}
        if rivals is None:
            self._display(key, shown, entry, changes)
        else:
            rivals[owner] = entry
            self._display(key, shown, min(rivals.values(), key=_precedence), changes)

    def _remove(self, owner: str, key: _Key, changes: list[Change]) -> bool:
        claims = self._claims.get(owner)
        if claims is None or claims.pop(key, None) is None:
            return False
        if not claims:
            del self._claims[owner]
        self._size -= 1
        self._due_at.pop((owner, key), None)
        self._claimed(owner)
        best = None
        rivals = self._rivals.get(key)
        if rivals is not None:
            del rivals[owner]
            best = min(rivals.values(), key=_precedence)
            if len(rivals) == 1:
                del self._rivals[key]
        self._display(key, self._shown_at(key), best, changes)
        return True

    def _claimed(self, owner: str) -> None:
        for watcher in self._claim_watchers:
            watcher(owner)

    def _shown_at(self, key: _Key) -> Entry | None:
        group = self._services.get(str(key[0]))
        return None if group is None else group.get(key[1])

    def _display(
        self, key: _Key, before: Entry | None, after: Entry | None, changes: list[Change]
    ) -> None:
        """Bring the indexes from *before* to *after*."""
        if before is after:
            return
        name, identity = str(key[0]), key[1]
        self._shown.pop(name, None)
        changes.append(Change(before, after))
        if after is None:
            group = self._services[name]
            del group[identity]
            if not group:
                del self._services[name]
                del self._names[bisect_left(self._names, name)]
        else:
            found = self._services.get(name)
            if found is None:
                found = self._services[name] = {}
                insort(self._names, name)
            found[identity] = after
        entry = before or after
        if entry is not None and entry.info.type is ServerType.DNS:
            place = (entry.info.host, entry.info.port)
            if after is not None:
                self._dns.setdefault(place, {})[key] = after
            else:
                del self._dns[place][key]
                if not self._dns[place]:
                    del self._dns[place]

    def _schedule(self, name: str, key: _Key | None, when: float) -> None:
        """
        See to it that expiry looks at that claim or host by *when*.

        A record that is due earlier already serves: it is put off when its time comes.  So a
        refresh costs nothing here, and there is one record that counts for each claim.
        """
        if when == inf:
            return
        record = (name, key)
        due_at = self._due_at.get(record)
        if due_at is not None and due_at <= when:
            return
        self._due_at[record] = when
        heappush(self._due, (when, next(self._ticket), name, key))
        if len(self._due) > 2 * len(self._due_at) + 64:
            self._due = [
                (at, next(self._ticket), held, of) for (held, of), at in self._due_at.items()
            ]
            heapify(self._due)

    def _commit(self, changes: list[Change]) -> None:
        if not changes:
            return
        self.serial += 1
        self._undelivered.append(tuple(changes))
        if self._delivering:
            return
        self._delivering = True
        failures: list[Exception] = []
        try:
            while self._undelivered:
                step = self._undelivered.popleft()
                for changed in tuple(self._subscribers.values()):
                    try:
                        changed(step)
                    except Exception as failure:
                        failures.append(failure)
        finally:
            self._delivering = False
        if failures:
            raise failures[0]
