"""
Which servers suit a request, and what is said of them (docs/protocols/dispatcher.rst, Rules).

All filtering is done here, since the clients do none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from attrs import frozen

from gridnet.dispatch.request import DispatchRequest, Kind, Preference, Skip
from gridnet.errors import DescriptorError
from gridnet.table.affinity import Fit, best_class, fit
from gridnet.table.model import DEFAULT_TIME_SECONDS, Entry, ServiceTable
from gridnet.table.numbers import MAX_RATE, MIN_RATE, STANDBY_RATE
from gridnet.table.selection import (
    Candidate,
    is_down,
    is_standby,
    is_suppressed,
    status,
    usable_band,
)
from gridnet.table.server_info import ServerInfo, ServerType, is_http
from gridnet.table.server_text import LegacyDescriptorWriter, behind_firewall
from gridnet.table.visibility import in_zone, is_visible

#: ``T`` of what is handed out, seconds: some clients refuse more than 33.
MAX_TIME_SECONDS = 30
#: Highest standby rate that is not read as a regular one once it is written.
_MAX_STANDBY_RATE = 0.009
_LOOPBACK = frozenset(["127.0.0.1", "::1"])


@frozen
class View:
    """From where a client looks at the table."""

    inside: bool  #: may see what is local to the site
    #: IP address texts of the client's own host; empty: none of the servers is there
    nearby: frozenset[str] = frozenset()


@frozen
class Found:
    """A server that suits, and what is to be said of it."""

    entry: Entry
    told: ServerInfo  #: as this client is to see it, but for rate and time
    rate: float  #: to be told
    candidate: Candidate  #: as the draw sees it


@frozen
class Findings:
    """What suits a request."""

    found: Sequence[Found]  #: in the order of the table
    until: float  #: seconds since the epoch when something of it expires
    hosts: frozenset[str]  #: of all servers that the request is about, suitable or not


class SkipList:
    """What a client has had; ``entry in skips`` costs the same however long the list is."""

    __slots__ = ("_exact", "_hidden", "_names", "_places")

    def __init__(self, request: DispatchRequest) -> None:
        #: identity -> names of the services it was had of; None: whatever it is called
        self._exact: dict[tuple[object, ...], set[str] | None] = {}
        #: (host, port, hidden type) of FIREWALL entries; without a host they cover a whole type
        self._hidden: set[tuple[object, object, object]] = set()
        self._names: set[str] = set()  # of services covered whole
        self._places: set[tuple[object, object]] = set()  # (host, port), port 0 is any
        named = request.is_mask or request.kind is Kind.REVERSE
        for skip in request.skips:
            self._add(skip, named, request.kind is Kind.REVERSE)

    def _add(self, skip: Skip, named: bool, reverse: bool) -> None:
        kind, host, port, _, hidden_type = skip.identity
        if kind == ServerType.FIREWALL.value:
            self._hidden.add((host, port, hidden_type))
            return
        if skip.service and named:
            names = self._exact.setdefault(skip.identity, set())
            if names is not None:
                names.add(skip.service)
        elif not skip.service:
            self._exact[skip.identity] = None
        if kind == ServerType.DNS.value and named:
            if host:
                if reverse:
                    self._places.add((host, port))
            elif skip.service:
                self._names.add(skip.service)

    def __contains__(self, entry: Entry) -> bool:
        info = entry.info
        identity = info.identity
        if identity in self._exact:
            names = self._exact[identity]
            if names is None or entry.service.lower() in names:
                return True
        if self._hidden and not self._hidden.isdisjoint(_stand_ins(info)):
            return True
        if self._places and not self._places.isdisjoint(((info.host, info.port), (info.host, 0))):
            return True
        return bool(self._names) and entry.service.lower() in self._names


def _stand_ins(info: ServerInfo) -> Sequence[tuple[object, object, object]]:
    """(host, port, hidden type) of the FIREWALL entries that may stand for *info*."""
    kind = info.type.value
    return ((info.host, info.port, kind), (info.host, info.port, 0), ("", 0, kind), ("", 0, 0))


def is_named_by(identity: tuple[object, ...], info: ServerInfo) -> bool:
    """
    Whether *identity*, of what a client says, names the server *info*.

    FIREWALL entries keep the hidden server's place, so one names that server; without a place it
    names all of its type.
    """
    kind, host, port, _, hidden_type = identity
    if kind == ServerType.FIREWALL.value:
        return (host, port, hidden_type) in _stand_ins(info)
    return identity == info.identity


@frozen
class Suitability:
    """
    The rules by which servers of a table suit requests.

    :ivar zone: zone bits of the dispatcher's host; 0: those of its record in the table, and every
        zone when there is none.
    :ivar own_addresses: IP address texts of the dispatcher's host beside the loopback ones.
    """

    table: ServiceTable
    zone: int = 0
    own_addresses: frozenset[str] = frozenset()

    def around(self, address: str) -> frozenset[str]:
        """The addresses of the host that has *address*."""
        if address in _LOOPBACK or address in self.own_addresses:
            return self.own_addresses | _LOOPBACK
        return frozenset([address])

    def findings(self, request: DispatchRequest, view: View, now: float) -> Findings:
        """
        The servers that suit *request*; what the client has had included.

        :param now: seconds since the epoch.
        """
        if request.is_mask:
            entries = self.table.matching(request.service)
        else:
            entries = self.table.entries(request.service)
        until = math.inf
        for entry in entries:
            host = self.table.host(entry.info.host)
            moments = [entry.expires_at] if host is None else [entry.expires_at, host.expires_at]
            until = min([until, *(moment for moment in moments if moment > now)])
        preferred = self._preferred(request.preference, view)
        found: list[Found] = []
        for _, group in groupby(entries, key=_service_of):
            for entry, value in self._suiting(request, list(group), view, now):
                each = self._find(request, entry, value, view, preferred)
                if each is not None:
                    found.append(each)
        return Findings(found, until, frozenset(entry.info.host for entry in entries))

    def _preferred(self, preference: Preference | None, view: View) -> frozenset[str]:
        """The addresses of the host to prefer: the client's own, unless it names another."""
        if preference is None or not preference.host:
            return view.nearby
        return self.around(preference.host)

    def _suiting(
        self,
        request: DispatchRequest,
        entries: Sequence[Entry],
        view: View,
        now: float,
    ) -> Sequence[tuple[Entry, float]]:
        """
        What of one service may be handed out, and its status; what the client has had included.

        Order of the tests as in the clients' own table: time, type, visibility, state, affinity,
        standby.
        """
        considered = [
            (entry, self._status(entry, now))
            for entry in entries
            if self._is_for(request, entry, view, now)
        ]
        considered = [
            (entry, value)
            for entry, value in considered
            if value is not None and (request.include_down or not is_down(entry))
        ]
        preference = request.preference
        if preference is not None and preference.share < 0:
            preferred = self._preferred(preference, view)
            considered = [
                (entry, value)
                for entry, value in considered
                if _is_at(entry.info, preferred, preference.port)
            ]
        kept: Sequence[tuple[Entry, float | None]] = considered
        if request.affinity is not None:
            affinity = request.affinity
            fits = [
                ((entry, value), fit(affinity, self._environment(entry, now)))
                for entry, value in considered
            ]
            considered = [pair for pair, each in fits if each is not Fit.BAD]
            kept = best_class(fits)
        if not request.include_suppressed:
            # A regular server of any class keeps standbys out, even where that leaves nothing
            # of the best class: the clients' rule.
            band = usable_band([entry for entry, _ in kept], [entry for entry, _ in considered])
            usable = {id(entry) for entry in band}
            kept = [
                (entry, value)
                for entry, value in kept
                if id(entry) in usable and (value or is_down(entry))
            ]
        return [(entry, value or 0.0) for entry, value in kept]

    def _is_for(
        self,
        request: DispatchRequest,
        entry: Entry,
        view: View,
        now: float,
    ) -> bool:
        """Whether *entry* is there for this client at all, whatever its state."""
        info = entry.info
        accepted = request.accepted
        if entry.expires_at <= now or entry.reserved or (info.rate == 0 and info.time == 0):
            return False
        if not (info.type & accepted if accepted else info.type is not ServerType.DNS):
            return False
        if request.stateless and info.stateful:
            return False
        return self.is_visible(entry, view)

    def is_visible(self, entry: Entry, view: View) -> bool:
        """Whether a client with that *view* may know of *entry*."""
        info = entry.info
        client = info.host if info.host in view.nearby else ""
        return in_zone(entry.zone, self._zone(), info.interzone) and is_visible(
            info, client, view.inside
        )

    def _zone(self) -> int:
        """The zone of whoever looks: as told, else that of this host's own record."""
        if self.zone:
            return self.zone
        for address in self.own_addresses:
            host = self.table.host(address)
            if host is not None:
                return host.zone
        return 0

    def _status(self, entry: Entry, now: float) -> float | None:
        """The status of *entry*; None: dynamic, and nothing is known of its host."""
        host = self.table.host(entry.info.host)
        if host is not None and host.expires_at <= now:
            host = None
        if host is None and not entry.static and not is_down(entry):
            return None
        return status(entry, host)

    def _environment(self, entry: Entry, now: float) -> Sequence[tuple[str, str]]:
        host = self.table.host(entry.info.host)
        return host.environment if host is not None and host.expires_at > now else ()

    def _find(
        self,
        request: DispatchRequest,
        entry: Entry,
        value: float,
        view: View,
        preferred: frozenset[str],
    ) -> Found | None:
        """*entry* as the client is told of it; None: its dialect has no words for that."""
        told = as_told(request, entry.info, view.inside)
        if not _is_sayable(told, request.legacy):
            return None
        port = request.preference.port if request.preference is not None else 0
        candidate = Candidate(value, told.bonus, _is_at(entry.info, preferred, port))
        return Found(entry, told, told_rate(request, entry, value), candidate)

    def stands_in(
        self,
        request: DispatchRequest,
        other: Entry,
        view: View,
        now: float,
    ) -> bool:
        """Whether the DNS entry *other* may be told in place of a server."""
        if other.expires_at <= now or other.info.time == 0 or other.reserved:
            return False
        if is_down(other):
            allowed = request.include_down
        else:
            allowed = request.include_suppressed or not is_suppressed(other)
        return allowed and self.is_visible(other, view) and _is_sayable(other.info, request.legacy)


def as_told(request: DispatchRequest, info: ServerInfo, inside: bool) -> ServerInfo:
    """*info* as the client is to know it: itself, or the FIREWALL entry that stands for it."""
    hidden = request.firewall_mode or not (inside or is_http(info.type))
    return behind_firewall(info) if hidden and info.type is not ServerType.DNS else info


def _service_of(entry: Entry) -> str:
    return entry.service.lower()


def _is_at(info: ServerInfo, addresses: frozenset[str], port: int) -> bool:
    return info.host in addresses and port in (0, info.port)


def told_rate(request: DispatchRequest, entry: Entry, value: float) -> float:
    """``R`` for *entry* of that status (docs/protocols/descriptor.rst, State)."""
    if is_down(entry):
        return 0.0
    if value <= 0:
        return -abs(entry.info.rate)
    if is_standby(entry):
        if request.include_suppressed:
            return -abs(entry.info.rate)
        return min(max(value, MIN_RATE), _MAX_STANDBY_RATE)
    return min(max(value, STANDBY_RATE), MAX_RATE)


def seconds_left(entry: Entry, now: float) -> int:
    """``T`` of what is handed out, 1..30."""
    seconds = min(entry.info.time or DEFAULT_TIME_SECONDS, MAX_TIME_SECONDS)
    if entry.expires_at != math.inf:
        seconds = min(seconds, math.ceil(entry.expires_at - now))
    return max(1, seconds)


def _is_sayable(info: ServerInfo, legacy: bool) -> bool:
    """Whether the client's dialect has words for *info*."""
    try:
        return not legacy or LegacyDescriptorWriter.of(info) is not None
    except DescriptorError:
        return False
