"""
Which servers must be up for another to be: conditions, whether they hold, and loops among them.

The rules are those of docs/protocols/lbsmd-config.rst, Dependencies.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from attrs import field, frozen

from gridnet.lbsmd.servrc.check_list import SAME_SERVICE, Dependency
from gridnet.table.address import canonical_address
from gridnet.table.model import Entry, ServiceTable

#: Identifies a server of a service (:attr:`gridnet.table.model.Entry.key`).
Key = tuple[object, ...]


@frozen
class Condition:
    """Some server that fits must be up; or, negated, none may be."""

    text: str  #: as configured, for people
    service: str | None = None  #: name in lower case; None: any
    host: str | None = None  #: IP address text; None: any
    port: int | None = None  #: None: any
    negated: bool = False

    @classmethod
    def of(cls, dependency: Dependency, service: str, addresses: Mapping[str, str]) -> Condition:
        """
        What *dependency* asks for.

        :param service: name of the service that depends.
        :param addresses: host name -> IP address text, for a host that is a name.
        """
        name = service if dependency.service == SAME_SERVICE else dependency.service
        host = dependency.host
        if host is not None:
            host = canonical_address(host) or addresses[host]
        return cls(
            str(dependency),
            None if name is None else name.lower(),
            host,
            dependency.port,
            dependency.negated,
        )

    def fits(self, entry: Entry) -> bool:
        """Whether *entry* is a server that is meant, whatever its state."""
        return (
            (self.service is None or entry.service.lower() == self.service)
            and (self.host is None or entry.info.host == self.host)
            and (self.port is None or entry.info.port == self.port)
        )


@frozen
class _ByPoint:
    """The entries of a table by host and port, as of one serial."""

    serial: int
    entries: Mapping[tuple[str, int], Sequence[Entry]]

    @classmethod
    def of(cls, table: ServiceTable) -> _ByPoint:
        entries: dict[tuple[str, int], list[Entry]] = {}
        for entry in table.all_entries():
            entries.setdefault((entry.info.host, entry.info.port), []).append(entry)
        return cls(table.serial, entries)


class Conditions:
    """Judges conditions by what a table says now."""

    def __init__(self, table: ServiceTable) -> None:
        self._table = table
        self._by_point: _ByPoint | None = None

    def failing(self, conditions: Iterable[Condition], own: Key) -> Condition | None:
        """
        The first of *conditions* that does not hold; None: all hold.

        :param own: the server that depends, which is never what it depends on.
        """
        for condition in conditions:
            if self._some_up(condition, own) is condition.negated:
                return condition
        return None

    def _some_up(self, condition: Condition, own: Key) -> bool:
        return any(
            entry.info.rate != 0.0 and condition.fits(entry) and entry.key != own
            for entry in self._candidates(condition)
        )

    def _candidates(self, condition: Condition) -> Sequence[Entry]:
        if condition.service is not None:
            return self._table.entries(condition.service)
        if self._by_point is None or self._by_point.serial != self._table.serial:
            self._by_point = _ByPoint.of(self._table)
        return self._by_point.entries.get((condition.host or "", condition.port or 0), ())


@frozen
class _Search:
    """Tarjan's search for strongly connected components, without recursion."""

    edges: Mapping[Key, Sequence[Key]]
    order: dict[Hashable, int] = field(factory=dict)
    low: dict[Hashable, int] = field(factory=dict)
    stack: list[Key] = field(factory=list)
    on_stack: set[Hashable] = field(factory=set)

    def components(self) -> Iterator[Sequence[Key]]:
        for root in self.edges:
            if root not in self.order:
                yield from self._from(root)

    def _enter(self, key: Key) -> tuple[Key, Iterator[Key]]:
        self.order[key] = self.low[key] = len(self.order)
        self.stack.append(key)
        self.on_stack.add(key)
        return key, iter(self.edges[key])

    def _from(self, root: Key) -> Iterator[Sequence[Key]]:
        path = [self._enter(root)]
        while path:
            key, targets = path[-1]
            target = next(targets, None)
            if target is not None:
                if target not in self.order:
                    path.append(self._enter(target))
                elif target in self.on_stack:
                    self.low[key] = min(self.low[key], self.order[target])
                continue
            path.pop()
            if path:
                parent = path[-1][0]
                self.low[parent] = min(self.low[parent], self.low[key])
            if self.low[key] == self.order[key]:
                component = [self.stack.pop()]
                while component[-1] != key:
                    component.append(self.stack.pop())
                self.on_stack.difference_update(component)
                yield component


def loops(servers: Mapping[Key, tuple[Entry, Sequence[Condition]]]) -> list[Sequence[Key]]:
    """
    The sets of *servers* that depend on each other in a circle, each in configuration order.

    :param servers: key -> its entry as configured, and its conditions.
    """
    by_service: dict[str, list[Key]] = {}
    by_point: dict[tuple[str, int], list[Key]] = {}
    for key, (entry, _) in servers.items():
        by_service.setdefault(entry.service.lower(), []).append(key)
        by_point.setdefault((entry.info.host, entry.info.port), []).append(key)
    edges: dict[Key, list[Key]] = {}
    for key, (_, conditions) in servers.items():
        edges[key] = [
            target
            for condition in conditions
            for target in (
                by_point.get((condition.host or "", condition.port or 0), ())
                if condition.service is None
                else by_service.get(condition.service, ())
            )
            if target != key and condition.fits(servers[target][0])
        ]
    place = {key: index for index, key in enumerate(servers)}
    found = [
        sorted(component, key=place.__getitem__)
        for component in _Search(edges).components()
        if len(component) > 1
    ]
    return sorted(found, key=lambda component: place[component[0]])
