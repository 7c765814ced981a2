"""
Which servers a request is answered with (docs/protocols/dispatcher.rst, Rules).

:class:`Dispatcher` reads the table and decides; it knows HTTP only by its status codes.  All
filtering is done here, since the clients do none.

Finding the servers that suit is the costly part, so it is done once for all requests that ask
the same (a :class:`_Plan`) and kept until the table changes or an entry expires.  What is left
for each look-up is the skip list, the draw, and joining lines that are there already.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from attrs import evolve, field, frozen

from gridnet.dispatch.wire import (
    DispatchRequest,
    Kind,
    Preference,
    Skip,
    failures,
    header,
    used_server_info,
)
from gridnet.errors import DescriptorError
from gridnet.table.address_range import AddressRanges, client_address
from gridnet.table.affinity import Fit, best_class, fit
from gridnet.table.model import DEFAULT_TIME_SECONDS, Entry, ServiceTable
from gridnet.table.selection import (
    LOCAL_BONUS_TABLE,
    Candidate,
    Lottery,
    is_down,
    is_standby,
    is_suppressed,
    standby_order,
    status,
    usable_band,
)
from gridnet.table.server_info import (
    KEYWORDS,
    MAX_RATE,
    MIN_RATE,
    STANDBY_RATE,
    DescriptorWriter,
    LegacyDescriptorWriter,
    ServerInfo,
    ServerType,
    behind_firewall,
    format_connection_point,
    is_http,
    write,
)
from gridnet.table.visibility import in_zone, is_visible

#: Entries of a reply when the client does not say how many it wants.
DEFAULT_COUNT = 3
#: ``T`` of what is handed out, seconds: some clients refuse more than 33.
MAX_TIME_SECONDS = 30
#: Servers that one request may try.
MAX_TRIES = 5
#: Highest standby rate that is not read as a regular one once it is written.
_MAX_STANDBY_RATE = 0.009
_LOOPBACK = frozenset(["127.0.0.1", "::1"])
_NUMBERS = tuple(b"Server-Info-%d: " % number for number in range(1, 65))


@frozen
class Asker:
    """Who asks."""

    address: str  #: IP address text
    inside: bool  #: may see what is local to the site


class Answer(NamedTuple):
    """A reply without a body."""

    status: int
    lines: bytes  #: extension header lines, each with its line end


@frozen
class Targets:
    """The servers that a connection request may be passed to, best first."""

    entries: tuple[Entry, ...]
    known: bool  #: whether the service is in the table at all
    retry: bool  #: whether the dispatcher goes on to the next itself (else the client does)


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


def same_server(told: ServerInfo, info: ServerInfo) -> bool:
    """
    Whether *told*, which a client says, names the server *info*.

    FIREWALL entries keep the hidden server's place, so one names that server; without a place it
    names all of its type.
    """
    return _names(told.identity, info)


def _names(identity: tuple[object, ...], info: ServerInfo) -> bool:
    kind, host, port, _, hidden_type = identity
    if kind == ServerType.FIREWALL.value:
        return (host, port, hidden_type) in _stand_ins(info)
    return identity == info.identity


@frozen
class _Found:
    """A server that suits, and what is to be said of it."""

    entry: Entry
    told: ServerInfo  #: as this client is to see it, but for rate and time
    rate: float  #: to be told
    candidate: Candidate  #: as the draw sees it


class _Plan:
    """
    The servers that suit one question, with all that can be prepared for answers to it.

    :ivar serial: of the table that it was made from.
    :ivar until: seconds since the epoch when something of it expires.
    :ivar hosts: of all servers that the question is about, suitable or not.
    :ivar ready: beside *found*, the lines of servers that do not expire, once they were wanted;
        else empty.
    """

    __slots__ = (
        "_lines",
        "_request",
        "_writers",
        "found",
        "hosts",
        "lottery",
        "ready",
        "serial",
        "service_line",
        "standby",
        "until",
    )

    def __init__(
        self,
        request: DispatchRequest,
        serial: int,
        until: float,
        hosts: frozenset[str],
        found: Sequence[_Found],
    ) -> None:
        self.serial = serial
        self.until = until
        self.hosts = hosts
        self.found = found
        self.service_line = header("Service", request.service)
        self.standby = bool(found) and all(is_standby(each.entry) for each in found)
        self.lottery = _lottery(
            request.preference, range(len(found)), [each.candidate for each in found]
        )
        self._request = request
        self._writers: dict[int, DescriptorWriter | LegacyDescriptorWriter] = {}
        self._lines: dict[int, tuple[int, bytes]] = {}
        self.ready = [b""] * len(found)

    def line(self, index: int, now: float) -> bytes:
        """
        What follows ``Server-Info-<n>: ``, line end included.

        Written anew only when the seconds left are others than before.  Empty for a server that
        no descriptor can name, which no reader of configurations lets into a table.
        """
        if self.ready[index]:
            return self.ready[index]
        entry = self.found[index].entry
        seconds = _seconds(entry, now)
        kept = self._lines.get(index)
        if kept is not None and kept[0] == seconds:
            return kept[1]
        try:
            line = self._text(index, seconds).encode("latin-1") + b"\r\n"
        except DescriptorError:
            line = b""
        if entry.expires_at == math.inf:
            self.ready[index] = line
        else:
            self._lines[index] = (seconds, line)
        return line

    def _text(self, index: int, seconds: int) -> str:
        each = self.found[index]
        writer = self._writers.get(index)
        if writer is None:
            writer = self._writers[index] = _writer(each.told, self._request.legacy)
        text = writer.text(each.rate, seconds)
        if self._request.is_mask or self._request.kind is Kind.REVERSE:
            text = f"{each.entry.service} {text}"
        return text


def _writer(info: ServerInfo, legacy: bool) -> DescriptorWriter | LegacyDescriptorWriter:
    return LegacyDescriptorWriter(info) if legacy else DescriptorWriter(info)


def _is_sayable(info: ServerInfo, legacy: bool) -> bool:
    """Whether the client's dialect has words for *info*."""
    try:
        return not legacy or LegacyDescriptorWriter.of(info) is not None
    except DescriptorError:
        return False


class _Plans:
    """
    Plans at hand: the latest by request and peer, all by question.

    Bounded by the number of plans and of the servers in them, whichever is reached first.
    """

    __slots__ = ("_max_plans", "_max_servers", "_servers", "plans", "recent")

    def __init__(self, max_plans: int, max_servers: int) -> None:
        self._max_plans = max_plans
        self._max_servers = max_servers
        self._servers = 0
        self.plans: OrderedDict[tuple[object, ...], _Plan] = OrderedDict()
        self.recent: dict[tuple[DispatchRequest, str], _Plan] = {}

    def get(self, key: tuple[object, ...], serial: int, now: float) -> _Plan | None:
        """The plan for *key*, if it still is true."""
        plan = self.plans.get(key)
        if plan is None:
            return None
        if plan.serial != serial or now >= plan.until:
            self._drop(key)
            return None
        self.plans.move_to_end(key)
        return plan

    def put(self, key: tuple[object, ...], plan: _Plan) -> None:
        """Keep *plan*, at the expense of those that nobody has wanted for longest."""
        if key in self.plans:
            self._drop(key)
        self.plans[key] = plan
        self._servers += len(plan.found)
        while len(self.plans) > 1 and (
            len(self.plans) > self._max_plans or self._servers > self._max_servers
        ):
            self._drop(next(iter(self.plans)))

    def _drop(self, key: tuple[object, ...]) -> None:
        self._servers -= len(self.plans.pop(key).found)
        # It holds plans, too: those dropped must not live on in it.
        self.recent.clear()

    def note(self, request: DispatchRequest, peer: str, plan: _Plan) -> None:
        """*plan* is the one for *request* from *peer*, as long as it is true."""
        if len(self.recent) >= self._max_plans:
            self.recent.clear()
        self.recent[request, peer] = plan


@frozen
class Dispatcher:
    """
    Decides for one process.

    :ivar zone: zone bits of the dispatcher's host; 0: sees every zone.
    :ivar own_addresses: IP address texts of the dispatcher's host beside the loopback ones; a
        client with one of them, or with a loopback one, is on this host.
    :ivar default_count: servers that a look-up is told when it does not say how many.
    :ivar cache_size: questions whose answers are kept ready.
    :ivar cache_servers: servers in them, all together.
    """

    table: ServiceTable
    local_networks: AddressRanges
    chance: random.Random
    zone: int = 0
    own_addresses: frozenset[str] = frozenset()
    default_count: int = DEFAULT_COUNT
    cache_size: int = 4096
    cache_servers: int = 200_000
    _plans: _Plans = field(init=False, repr=False, eq=False)
    _here: frozenset[str] = field(init=False, repr=False, eq=False)

    @_plans.default
    def _make_plans(self) -> _Plans:
        return _Plans(self.cache_size, self.cache_servers)

    @_here.default
    def _make_here(self) -> frozenset[str]:
        return self.own_addresses | _LOOPBACK

    @property
    def cached(self) -> int:
        """How many questions have their answers ready now."""
        return len(self._plans.plans)

    def asker(self, request: DispatchRequest, peer: str) -> Asker:
        """Who sent *request*: its headers are believed when *peer* is inside."""
        if request.identity:
            address, inside = client_address(request.identity, peer, self.local_networks)
        else:
            address, inside = peer, self.local_networks.contains(peer)
        return Asker(address, inside and not request.external)

    # --- look-ups ---------------------------------------------------------------------------

    def answer(self, request: DispatchRequest, peer: str, now: float) -> Answer:
        """
        Answer INFO, LIST and REVERSE.

        :param peer: IP address text of the TCP peer.
        :param now: seconds since the epoch.
        """
        plan = self._plan(request, peer, now)
        if request.kind is Kind.REVERSE:
            lines = self._reversed(request, self.asker(request, peer), plan, now)
        else:
            chosen = self._chosen(request, plan, self._limit(request, plan))
            ready = plan.ready
            lines = [ready[index] or plan.line(index, now) for index in chosen]
            if b"" in lines:
                lines = [line for line in lines if line]
        if not lines:
            return self._nothing(request)
        return Answer(200, plan.service_line + _numbered(lines))

    def _nothing(self, request: DispatchRequest) -> Answer:
        """The end of a search, or of one for a name that nobody knows."""
        if request.is_mask or self.table.entries(request.service):
            return Answer(204, header("Service", request.service))
        return Answer(404, header("Service", request.service) + failures("Service not found"))

    def _limit(self, request: DispatchRequest, plan: _Plan) -> int:
        """How many servers the client is to be told."""
        if request.server_count is not None:
            return request.server_count or len(plan.found)
        if request.is_listing:
            return len(plan.found)
        return 1 if request.firewall_mode else self.default_count

    def _chosen(self, request: DispatchRequest, plan: _Plan, limit: int) -> Sequence[int]:
        """Indexes into what was found: listed in order, or drawn; never what was had."""
        if not request.skips:
            if request.is_listing:
                return range(min(limit, len(plan.found)))
            if not plan.standby:
                return plan.lottery.draw(limit, self.chance)
        return self._draw(request, plan, self._fresh(request, plan), limit)

    @staticmethod
    def _fresh(request: DispatchRequest, plan: _Plan) -> Sequence[int]:
        """What the client has not had."""
        if not request.skips:
            return range(len(plan.found))
        skips = SkipList(request)
        return [index for index, each in enumerate(plan.found) if each.entry not in skips]

    def _draw(
        self, request: DispatchRequest, plan: _Plan, indexes: Sequence[int], limit: int
    ) -> Sequence[int]:
        if request.is_listing:
            return indexes[:limit]
        found = plan.found
        if plan.standby:
            order = standby_order([found[index].entry for index in indexes], self.chance)
            places = {id(found[index].entry): index for index in indexes}
            return [places[id(entry)] for entry in order[:limit]]
        candidates = [found[index].candidate for index in indexes]
        return _lottery(request.preference, indexes, candidates).draw(limit, self.chance)

    # --- plans ------------------------------------------------------------------------------

    def _plan(self, request: DispatchRequest, peer: str, now: float) -> _Plan:
        plans = self._plans
        plan = plans.recent.get((request, peer))
        if plan is not None and plan.serial == self.table.serial and now < plan.until:
            return plan
        plan = self._plan_for(request, self.asker(request, peer), now)
        plans.note(request, peer, plan)
        return plan

    def _plan_for(self, request: DispatchRequest, asker: Asker, now: float) -> _Plan:
        plan = self._plan_near(request, asker.inside, frozenset(), now)
        nearby = self._around(asker.address)
        if plan.hosts.isdisjoint(nearby):
            return plan
        # Servers on the client's own host: private ones show, and nearness counts.
        return self._plan_near(request, asker.inside, nearby, now)

    def _around(self, address: str) -> frozenset[str]:
        """The addresses of the host that has *address*."""
        return self._here if address in self._here else frozenset([address])

    def _plan_near(
        self, request: DispatchRequest, inside: bool, nearby: frozenset[str], now: float
    ) -> _Plan:
        key = (request.question, inside, nearby)
        plan = self._plans.get(key, self.table.serial, now)
        if plan is None:
            plan = self._make_plan(request, inside, nearby, now)
            self._plans.put(key, plan)
        return plan

    def _make_plan(
        self, request: DispatchRequest, inside: bool, nearby: frozenset[str], now: float
    ) -> _Plan:
        if request.is_mask:
            entries = self.table.matching(request.service)
        else:
            entries = self.table.entries(request.service)
        until = math.inf
        for entry in entries:
            host = self.table.host(entry.info.host)
            moments = [entry.expires_at] if host is None else [entry.expires_at, host.expires_at]
            until = min([until, *(moment for moment in moments if moment > now)])
        preferred = self._preferred(request.preference, nearby)
        found: list[_Found] = []
        for _, group in groupby(entries, key=_service_of):
            for entry, value in self._suiting(request, list(group), inside, nearby, now):
                each = self._found(request, entry, value, inside, preferred)
                if each is not None:
                    found.append(each)
        hosts = frozenset(entry.info.host for entry in entries)
        return _Plan(request, self.table.serial, until, hosts, found)

    def _preferred(self, preference: Preference | None, nearby: frozenset[str]) -> frozenset[str]:
        """The addresses of the host to prefer: the client's own, unless it names another."""
        if preference is None or not preference.host:
            return nearby
        return self._around(preference.host)

    def _suiting(
        self,
        request: DispatchRequest,
        entries: Sequence[Entry],
        inside: bool,
        nearby: frozenset[str],
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
            if self._is_for(request, entry, inside, nearby, now)
        ]
        considered = [
            (entry, value)
            for entry, value in considered
            if value is not None and (request.include_down or not is_down(entry))
        ]
        preference = request.preference
        if preference is not None and preference.share < 0:
            preferred = self._preferred(preference, nearby)
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
        inside: bool,
        nearby: frozenset[str],
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
        return self._is_visible(entry, inside, nearby)

    def _is_visible(self, entry: Entry, inside: bool, nearby: frozenset[str]) -> bool:
        info = entry.info
        client = info.host if info.host in nearby else ""
        return in_zone(entry.zone, self.zone, info.interzone) and is_visible(info, client, inside)

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

    def _found(
        self,
        request: DispatchRequest,
        entry: Entry,
        value: float,
        inside: bool,
        preferred: frozenset[str],
    ) -> _Found | None:
        """*entry* as the client is told of it; None: its dialect has no words for that."""
        told = entry.info
        if told.type is not ServerType.DNS and (
            request.firewall_mode or (not inside and not is_http(told.type))
        ):
            told = behind_firewall(told)
        if not _is_sayable(told, request.legacy):
            return None
        port = request.preference.port if request.preference is not None else 0
        candidate = Candidate(value, told.bonus, _is_at(entry.info, preferred, port))
        return _Found(entry, told, _rate(request, entry, value), candidate)

    # --- reverse look-ups -------------------------------------------------------------------

    def _reversed(
        self, request: DispatchRequest, asker: Asker, plan: _Plan, now: float
    ) -> list[bytes]:
        """Each server swapped for the DNS entry that shares its place."""
        skips = SkipList(request)
        nearby = self._around(asker.address)
        limit = self._limit(request, plan)
        lines: dict[object, bytes] = {}
        for index, each in enumerate(plan.found):
            if len(lines) >= limit:
                break
            entry = each.entry
            if entry in skips:
                continue
            named: Sequence[Entry] = ()
            if entry.info.type is not ServerType.DNS:
                named = self.table.dns_entries_at(entry.info.host, entry.info.port)
            if not named:
                lines.setdefault(entry.key, plan.line(index, now))
                continue
            for other in named:
                if other not in skips and self._stands_in(request, other, asker, nearby, now):
                    lines.setdefault(other.key, _dns_line(request, other, each, now))
                    break
        return list(lines.values())

    def _stands_in(
        self,
        request: DispatchRequest,
        other: Entry,
        asker: Asker,
        nearby: frozenset[str],
        now: float,
    ) -> bool:
        """Whether the DNS entry *other* may be told in place of a server."""
        if other.expires_at <= now or other.info.time == 0 or other.reserved:
            return False
        if is_down(other):
            allowed = request.include_down
        else:
            allowed = request.include_suppressed or not is_suppressed(other)
        return (
            allowed
            and self._is_visible(other, asker.inside, nearby)
            and _is_sayable(other.info, request.legacy)
        )

    # --- connection requests ----------------------------------------------------------------

    def targets(self, request: DispatchRequest, peer: str, now: float) -> Targets:
        """The servers that AUX, RELAY and BROWSER requests may be passed to."""
        known = bool(self.table.entries(request.service))
        retry = request.kind is Kind.BROWSER
        if not known or request.is_mask:
            return Targets((), False, retry)
        plan = self._plan(request, peer, now)
        fresh = [
            index
            for index in self._fresh(request, plan)
            if plan.found[index].entry.info.type is not ServerType.DNS
        ]
        order = [plan.found[index].entry for index in self._draw(request, plan, fresh, MAX_TRIES)]
        first = None
        if request.used is not None:
            first = self._named(request, peer, [request.used.identity], now)
        elif not order:
            # A client that retries lists all it has had, its new choice too, as the last.
            had = [skip.identity for skip in reversed(request.skips)]
            first = self._named(request, peer, had, now)
        if first is not None:
            order = [first, *(entry for entry in order if entry is not first)]
        return Targets(tuple(order[:MAX_TRIES]), known, retry)

    def _named(
        self,
        request: DispatchRequest,
        peer: str,
        identities: Iterable[tuple[object, ...]],
        now: float,
    ) -> Entry | None:
        """The first of the servers that a client names which it may have."""
        plan = self._anyhow(request, peer, now)
        for identity in identities:
            for each in plan.found:
                if _names(identity, each.entry.info):
                    return each.entry
        return None

    def _anyhow(self, request: DispatchRequest, peer: str, now: float) -> _Plan:
        """
        All servers that the client may have been told of before.

        Stateful ones, too: a stateless client may have been told to come back for one.
        """
        anyhow = evolve(request, stateless=False, affinity=None, preference=None)
        return self._plan_for(anyhow, self.asker(request, peer), now)

    def informational(
        self, request: DispatchRequest, peer: str, entry: Entry | None, now: float
    ) -> bytes:
        """
        ``Server-Info-<n>`` lines for the reply to a connection request.

        The server that made the reply, and further ones for clients that ask for these with
        ``STATEFUL_INCLUSIVE``; nothing for browsers, and for ``NO_INFORMATION``.

        :param entry: the server that made the reply, if there is one.
        """
        if not request.inform or request.kind not in (Kind.AUX, Kind.RELAY):
            return b""
        plan = self._anyhow(request, peer, now)
        own = [i for i, each in enumerate(plan.found) if each.entry is entry]
        if request.inclusive:
            others = [i for i, each in enumerate(plan.found) if each.entry is not entry]
            own += self._draw(request, plan, others, self._limit(request, plan) - len(own))
        return _numbered([line for index in own if (line := plan.line(index, now))])


def _service_of(entry: Entry) -> str:
    return entry.service.lower()


def _is_at(info: ServerInfo, addresses: frozenset[str], port: int) -> bool:
    return info.host in addresses and port in (0, info.port)


def _lottery(
    preference: Preference | None, items: Sequence[int], candidates: Sequence[Candidate]
) -> Lottery[int]:
    # There always is a preferred host: the client's own, if it names no other.
    share = preference.share if preference is not None else 0.0
    return Lottery(items, candidates, share, LOCAL_BONUS_TABLE, True)


def _rate(request: DispatchRequest, entry: Entry, value: float) -> float:
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


def _seconds(entry: Entry, now: float) -> int:
    """``T`` of what is handed out, 1..30."""
    seconds = min(entry.info.time or DEFAULT_TIME_SECONDS, MAX_TIME_SECONDS)
    if entry.expires_at != math.inf:
        seconds = min(seconds, math.ceil(entry.expires_at - now))
    return max(1, seconds)


def _dns_line(request: DispatchRequest, other: Entry, each: _Found, now: float) -> bytes:
    """The DNS entry *other* for the server *each*, whose status it takes over."""
    value = 0.0 if is_suppressed(other) else each.candidate.status
    writer = _writer(other.info, request.legacy)
    text = writer.text(_rate(request, other, value), _seconds(other, now))
    return f"{other.service} {text}\r\n".encode("latin-1")


def _numbered(lines: Sequence[bytes]) -> bytes:
    """``Server-Info-<n>`` headers with the texts *lines*, which have their line ends."""
    found = b""
    if len(lines) <= len(_NUMBERS):
        for number, line in zip(_NUMBERS, lines, strict=False):
            found += number + line
        return found
    return b"".join([b"Server-Info-%d: %b" % pair for pair in enumerate(lines, 1)])


def used_lines(entries: Iterable[Entry], until: int) -> bytes:
    """
    ``Used-Server-Info-<n>`` for servers that were tried in vain.

    :param until: seconds since the epoch until which the client is to avoid them.
    """
    return b"".join(
        used_server_info(number, write(evolve(entry.info, time=until)))
        for number, entry in enumerate(entries, 1)
    )


def relay_path(entry: Entry) -> bytes:
    """``Relay-Path``: by whom the reply was made."""
    info = entry.info
    place = format_connection_point(info.host, info.port)
    return header("Relay-Path", f"DISPD -> {KEYWORDS[info.type]} {place}")
