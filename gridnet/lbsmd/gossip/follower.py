"""What the others say, in this host's table: one step for all that came at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from attrs import define, evolve, field

from gridnet.errors import RemoteProtocolError, TableError
from gridnet.lbsmd.gossip.membership import EntryChanged, Event, StandingChanged
from gridnet.lbsmd.gossip.membership import Host as Member
from gridnet.lbsmd.gossip.messages import Entry as Said
from gridnet.lbsmd.gossip.messages import Standing
from gridnet.lbsmd.gossip.publisher import (
    ENVIRONMENT_KEY,
    HOST_KEY,
    LOAD_KEY,
    SERVICE_KEY,
    in_order,
    number_of,
)
from gridnet.lbsmd.gossip.table_values import (
    decode_environment,
    decode_host,
    decode_load,
    decode_service,
)
from gridnet.table.address import canonical_address
from gridnet.table.model import DEFAULT_TIME_SECONDS, Entry, Host, ServiceTable
from gridnet.table.visibility import in_zone


@define
class _Part:
    """The part of one host in the table."""

    host: Host
    entries: dict[str, Entry] = field(factory=dict)  #: by key of the gossip
    places: dict[tuple[object, ...], str] = field(factory=dict)  #: the other way, the latest
    environment: dict[int, bytes] = field(factory=dict)
    load: bytes | None = None
    expires_at: float = inf  #: of nothing but the host: entries have each its own time


@define
class _Step:
    """What is about to change."""

    entries: dict[tuple[str, tuple[object, ...]], Entry] = field(factory=dict)
    withdrawn: list[Entry] = field(factory=list)
    hosts: dict[str, Host] = field(factory=dict)
    gone: set[str] = field(factory=set)


class Follower:
    """
    Keeps the parts of other hosts in *table*.

    Entries of a host that is alive have no end.  When it is suspected they end after their time
    ``T``, as those of a host that is not heard from; when it is dead or has left, at once.

    :param me: address of this host, whose part is not the gossip's.
    :param site_bits: zones of this site; what can be seen in none of them is left out.
    :ivar refused: values that made no sense, counted.
    :ivar faults: (host, reason) of the latest of them, to be taken by the log.
    :ivar left_out: entries that find no room; they come in when there is some.
    """

    def __init__(self, table: ServiceTable, me: str, site_bits: int) -> None:
        self.refused = 0
        self.faults: list[tuple[str, str]] = []
        self._table = table
        self._me = me
        self._site_bits = site_bits
        self._parts: dict[str, _Part] = {}
        self._left_out: dict[tuple[str, tuple[object, ...]], Entry] = {}

    @property
    def left_out(self) -> int:
        return len(self._left_out)

    def apply(self, events: Iterable[Event], members: Mapping[str, Member], now: float) -> None:
        """
        Bring the table to what *events* say, as one step.

        :param members: everybody as known after the events.
        :param now: seconds since the epoch.
        """
        step = _Step()
        for event in events:
            match event:
                case StandingChanged():
                    self._standing_changed(event, members, now, step)
                case EntryChanged():
                    said = event.entry
                    part = self._parts.get(said.owner)
                    if part is not None:
                        self._take(said, part, step)
        self._carry_out(step)

    def _standing_changed(
        self, event: StandingChanged, members: Mapping[str, Member], now: float, step: _Step
    ) -> None:
        name = event.host
        if name == self._me or canonical_address(name) != name:
            # Only hosts with an address have a place in the table.
            return
        part = self._parts.get(name)
        if event.standing in (Standing.DEAD, Standing.LEFT):
            if part is not None:
                del self._parts[name]
                step.withdrawn.extend(part.entries.values())
                step.gone.add(name)
                step.hosts.pop(name, None)
                for entry in part.entries.values():
                    step.entries.pop((name, entry.key), None)
        elif event.standing is Standing.SUSPECT:
            if part is not None:
                self._let_end(name, part, now, step)
        elif part is None:
            member = members.get(name)
            if member is None or not member.is_up:
                return
            part = self._parts[name] = _Part(Host(name))
            step.gone.discard(name)
            step.hosts[name] = part.host
            for said in member.records:
                self._take(said, part, step)
        else:
            part.expires_at = inf
            for key, entry in part.entries.items():
                self._put(part, key, evolve(entry, expires_at=inf), step)

    def _let_end(self, name: str, part: _Part, now: float, step: _Step) -> None:
        part.expires_at = now
        for key, entry in part.entries.items():
            self._put(part, key, evolve(entry, expires_at=self._end(part, entry)), step)

    def _end(self, part: _Part, entry: Entry) -> float:
        return part.expires_at + (entry.info.time or DEFAULT_TIME_SECONDS)

    def _put(self, part: _Part, key: str, entry: Entry, step: _Step) -> None:
        part.entries[key] = entry
        part.places[entry.key] = key
        step.entries[entry.owner, entry.key] = entry

    def _take(self, said: Said, part: _Part, step: _Step) -> None:
        try:
            if said.key in (HOST_KEY, LOAD_KEY):
                self._take_host(said, part, step)
            elif number_of(said.key, SERVICE_KEY) is not None:
                self._take_service(said, part, step)
            else:
                number = number_of(said.key, ENVIRONMENT_KEY)
                if number is not None:
                    self._take_environment(number, said, part, step)
        except RemoteProtocolError as error:
            self.refused += 1
            if len(self.faults) < 100:
                self.faults.append((said.owner, f"{said.key}: {error}"))

    def _take_host(self, said: Said, part: _Part, step: _Step) -> None:
        if said.value is None:
            return
        if said.key == HOST_KEY:
            host = decode_host(said.value, said.owner)
            host = evolve(host, environment=part.host.environment)
            if part.load is not None:
                host = decode_load(part.load, host)
        else:
            host = decode_load(said.value, part.host)
            part.load = said.value
        part.host = step.hosts[said.owner] = host

    def _take_environment(self, number: int, said: Said, part: _Part, step: _Step) -> None:
        if said.value is None:
            part.environment.pop(number, None)
        else:
            decode_environment([said.value])
            part.environment[number] = said.value
        lines = decode_environment(in_order(part.environment.items()))
        part.host = step.hosts[said.owner] = evolve(part.host, environment=lines)

    def _take_service(self, said: Said, part: _Part, step: _Step) -> None:
        before = part.entries.pop(said.key, None)
        # Another place may have the same server by now, which is then not to go.
        if before is not None and part.places.get(before.key) == said.key:
            del part.places[before.key]
            step.entries.pop((before.owner, before.key), None)
            step.withdrawn.append(before)
        if said.value is None:
            return
        entry = decode_service(said.value, said.owner)
        if not in_zone(entry.zone, self._site_bits, entry.info.interzone):
            return
        if part.expires_at != inf:
            entry = evolve(entry, expires_at=self._end(part, entry))
        self._put(part, said.key, entry, step)

    def _carry_out(self, step: _Step) -> None:
        waiting = self._left_out
        if waiting:
            for entry in step.withdrawn:
                waiting.pop((entry.owner, entry.key), None)
            if len(self._table) - len(step.withdrawn) < self._table.max_entries:
                step.entries = {**waiting, **step.entries}
                waiting.clear()
        entries = list(step.entries.values())
        try:
            self._table.step(entries, step.withdrawn, step.hosts.values(), step.gone)
            return
        except TableError:
            pass
        # No room for all: as many as there is room for.
        self._table.step((), step.withdrawn, step.hosts.values(), step.gone)
        for entry in entries:
            try:
                self._table.put(entry)
            except TableError:
                waiting[entry.owner, entry.key] = entry

    def forget_all(self) -> None:
        """Take all parts of other hosts out of the table."""
        step = _Step()
        for name, part in self._parts.items():
            step.withdrawn.extend(part.entries.values())
            step.gone.add(name)
        self._parts.clear()
        self._left_out.clear()
        self._carry_out(step)
