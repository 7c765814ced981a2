"""gridnet's own lists: what of a service table can be mirrored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from zope.interface import implementer

from gridnet.interfaces import IObjectSource
from gridnet.status.report import entry_report, host_report
from gridnet.table.model import Change, Entry, Host, ServiceTable

Attributes = Mapping[str, Any]
Changed = Callable[[str, Attributes | None], None]


def entry_key(entry: Entry) -> str:
    """What tells service entries apart, as text: service, type, server, arguments."""
    info = entry.info
    hidden = "!" if info.hidden_type else ""
    server = f"{info.host}:{info.port}" if info.port else info.host
    return f"{entry.service.lower()} {info.type.name}{hidden} {server} {info.arguments}".strip()


def entry_attributes(entry: Entry, host: Host | None) -> dict[str, Any]:
    """A service entry; how long it is valid is not part of it, or every refresh were a change."""
    found = dict(entry_report(entry, host, 0.0))
    del found["seconds_left"]
    found["rating"] = round(found["rating"], 3)
    return found


def host_attributes(host: Host) -> dict[str, Any]:
    """A host, likewise."""
    found = dict(host_report(host, 0.0))
    del found["seconds_left"]
    return found


class _TableSource:
    """What the lists of a table have in common: each change is told once, and only if it is one."""

    object_type = ""

    def __init__(self, table: ServiceTable) -> None:
        self._table = table

    def _rows(self) -> Iterator[tuple[str, Attributes]]:
        """The list now."""
        raise NotImplementedError

    def _touched(self, change: Change) -> Iterator[tuple[str, Attributes | None]]:
        """What *change* means for the list; rows that stay the same may be among them."""
        raise NotImplementedError

    def snapshot(self) -> Mapping[str, Attributes]:
        """The list now."""
        return dict(self._rows())

    def subscribe(self, changed: Changed) -> Callable[[], None]:
        """Call *changed* at each change."""
        known = dict(self._rows())

        def look(changes: Sequence[Change]) -> None:
            for change in changes:
                for key, attributes in self._touched(change):
                    if known.get(key) == attributes:
                        continue
                    if attributes is None:
                        del known[key]
                    else:
                        known[key] = attributes
                    changed(key, attributes)

        return self._table.subscribe(look)


@implementer(IObjectSource)
class ServiceSource(_TableSource):
    """``services``: every entry that the table shows, with its rating."""

    object_type = "services"

    def __init__(self, table: ServiceTable) -> None:
        super().__init__(table)
        self._by_host: dict[str, dict[str, Entry]] = {}

    def _row(self, entry: Entry) -> tuple[str, Attributes]:
        return entry_key(entry), entry_attributes(entry, self._table.host(entry.info.host))

    def _rows(self) -> Iterator[tuple[str, Attributes]]:
        self._by_host.clear()
        for entry in self._table.all_entries():
            key, attributes = self._row(entry)
            self._by_host.setdefault(entry.info.host, {})[key] = entry
            yield key, attributes

    def _touched(self, change: Change) -> Iterator[tuple[str, Attributes | None]]:
        before, after = change.before, change.after
        if isinstance(before, Entry):
            key = entry_key(before)
            self._by_host.get(before.info.host, {}).pop(key, None)
            if not isinstance(after, Entry) or entry_key(after) != key:
                yield key, None
        if isinstance(after, Entry):
            key, attributes = self._row(after)
            self._by_host.setdefault(after.info.host, {})[key] = after
            yield key, attributes
        host = after if isinstance(after, Host) else before if isinstance(before, Host) else None
        if host is not None:  # the ratings of what runs there depend on it
            yield from map(self._row, list(self._by_host.get(host.address, {}).values()))


@implementer(IObjectSource)
class HostSource(_TableSource):
    """``hosts``: every host that publishes, and how loaded it is."""

    object_type = "hosts"

    def _rows(self) -> Iterator[tuple[str, Attributes]]:
        for host in self._table.hosts():
            yield host.address, host_attributes(host)

    def _touched(self, change: Change) -> Iterator[tuple[str, Attributes | None]]:
        before, after = change.before, change.after
        if isinstance(after, Host):
            yield after.address, host_attributes(after)
        elif isinstance(before, Host):
            yield before.address, None


@implementer(IObjectSource)
class PenaltySource(_TableSource):
    """``penalties``: servers that are fined, and how much."""

    object_type = "penalties"

    @staticmethod
    def _row(entry: Entry) -> tuple[str, Attributes]:
        info = entry.info
        return entry_key(entry), {
            "service": entry.service,
            "type": info.type.name,
            "host": info.host,
            "port": info.port,
            "penalty": entry.penalty,
        }

    def _rows(self) -> Iterator[tuple[str, Attributes]]:
        for entry in self._table.all_entries():
            if entry.penalty:
                yield self._row(entry)

    def _touched(self, change: Change) -> Iterator[tuple[str, Attributes | None]]:
        before, after = change.before, change.after
        if isinstance(after, Entry) and after.penalty:
            yield self._row(after)
        elif isinstance(before, Entry) and before.penalty:
            yield entry_key(before), None
        elif isinstance(after, Entry):
            yield entry_key(after), None


def table_sources(table: ServiceTable) -> Sequence[Any]:
    """The sources of a service table."""
    return (ServiceSource(table), HostSource(table), PenaltySource(table))
