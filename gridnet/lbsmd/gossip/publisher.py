"""What this host says to the others: its part of the table, kept in step at little cost."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from math import inf
from typing import Protocol

from gridnet.errors import GridnetError
from gridnet.lbsmd.gossip.table_values import (
    encode_environment,
    encode_host,
    encode_load,
    encode_service,
)
from gridnet.table.model import Entry, Host, ServiceTable

#: Keys of what a host publishes; services and environment lines have a number behind theirs.
HOST_KEY, LOAD_KEY, SERVICE_KEY, ENVIRONMENT_KEY = "h", "l", "s", "e"
#: Octets that one value of the environment may have.
_ENVIRONMENT_OCTETS = 800


class Publish(Protocol):
    """:meth:`gridnet.lbsmd.gossip.membership.Membership.publish`."""

    def __call__(self, key: str, value: bytes | None, is_load: bool = False) -> bool: ...


class Publisher:
    """
    Publishes what *table* says of the host at *address*.

    A service is told under the number of a place, and places are used again: a host that has had
    a thousand services in its life, but ten at a time, has ten places.

    :param load_share: a change of the host's figures by less than this part of them can wait.
    :param load_seconds: how long it may wait.
    :ivar refused: why an entry cannot be told -> entry; for the log.
    """

    def __init__(
        self,
        table: ServiceTable,
        address: str,
        publish: Publish,
        load_share: float,
        load_seconds: float,
    ) -> None:
        self.refused: list[tuple[Entry, str]] = []
        self._table = table
        self._address = address
        self._publish = publish
        self._load_share = load_share
        self._load_seconds = load_seconds
        self._places: dict[tuple[object, ...], int] = {}
        self._said: dict[tuple[object, ...], Entry] = {}
        self._free: list[int] = []
        self._next_place = 0
        self._environment: tuple[tuple[str, str], ...] = ()
        self._environment_values = 0
        self._load: Host | None = None
        self._load_at = -inf

    def refresh(self, now: float) -> None:
        """
        Tell what has changed since the last time.

        :param now: seconds, on any clock that does not go back.
        """
        wanted = {entry.key: entry for entry in self._table.owned_by(self._address)}
        for key in [key for key in self._said if key not in wanted]:
            del self._said[key]
            place = self._places.pop(key)
            self._publish(f"{SERVICE_KEY}{place}", None)
            heapq.heappush(self._free, place)
        for key, entry in wanted.items():
            if self._said.get(key) is not entry:
                self._tell(key, entry)
        host = self._table.host(self._address)
        if host is not None:
            self._tell_environment(host.environment)
            self._tell_host(host, now)

    def _tell(self, key: tuple[object, ...], entry: Entry) -> None:
        self._said[key] = entry
        place = self._places.get(key)
        if place is None:
            if self._free:
                place = heapq.heappop(self._free)
            else:
                place, self._next_place = self._next_place, self._next_place + 1
            self._places[key] = place
        try:
            self._publish(f"{SERVICE_KEY}{place}", encode_service(entry))
        except GridnetError as error:
            self.refused.append((entry, str(error)))
            self._publish(f"{SERVICE_KEY}{place}", None)

    def _tell_environment(self, lines: tuple[tuple[str, str], ...]) -> None:
        if lines == self._environment:
            return
        values = encode_environment(lines, _ENVIRONMENT_OCTETS)
        for number, value in enumerate(values):
            self._publish(f"{ENVIRONMENT_KEY}{number}", value)
        for number in range(len(values), self._environment_values):
            self._publish(f"{ENVIRONMENT_KEY}{number}", None)
        self._environment, self._environment_values = lines, len(values)

    def _tell_host(self, host: Host, now: float) -> None:
        self._publish(HOST_KEY, encode_host(host))
        told = self._load
        if told is not None:
            is_small = (
                _share(told.status, host.status) < self._load_share
                and _share(told.status_blast, host.status_blast) < self._load_share
            )
            if is_small and now - self._load_at < self._load_seconds:
                return
        if self._publish(LOAD_KEY, encode_load(host), told is not None):
            self._load, self._load_at = host, now


def _share(before: float, after: float) -> float:
    """By which part of the larger *after* differs from *before*."""
    larger = max(abs(before), abs(after))
    return abs(before - after) / larger if larger else 0.0


def number_of(key: str, kind: str) -> int | None:
    """The number of a service's or environment's *key*; None: a key of another kind."""
    digits = key.removeprefix(kind)
    is_number = digits != key and digits.isascii() and digits.isdigit() and len(digits) < 8
    return int(digits) if is_number else None


def in_order(values: Iterable[tuple[int, bytes]]) -> list[bytes]:
    """Numbered *values* in the order of their numbers."""
    return [value for _, value in sorted(values)]
