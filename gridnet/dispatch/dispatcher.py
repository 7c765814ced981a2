"""
Answers to requests: who is told of which servers, or passed on to them.

:class:`Dispatcher` knows HTTP only by its status codes.

Finding the servers that suit is the costly part, so it is done once for all requests that ask
the same (a :class:`_Plan`) and kept until the table changes or an entry expires.  What is left
for each look-up is the skip list, the draw, and joining lines that are there already.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from attrs import evolve, field, frozen

from gridnet.dispatch.model import (
    Findings,
    Found,
    SkipList,
    Suitability,
    View,
    as_told,
    is_named_by,
    seconds_left,
    told_rate,
)
from gridnet.dispatch.request import DispatchRequest, Kind, Preference
from gridnet.dispatch.wire import failures, header, used_server_info
from gridnet.errors import DescriptorError
from gridnet.table.address_range import AddressRanges, client_address
from gridnet.table.model import Entry, ServiceTable
from gridnet.table.selection import (
    LOCAL_BONUS_TABLE,
    Candidate,
    Lottery,
    is_standby,
    is_suppressed,
    standby_order,
)
from gridnet.table.server_info import KEYWORDS, ServerInfo, ServerType
from gridnet.table.server_text import (
    DescriptorWriter,
    LegacyDescriptorWriter,
    format_connection_point,
)

#: Entries of a reply when the client does not say how many it wants.
DEFAULT_COUNT = 3
#: Servers that one request may try.
MAX_TRIES = 5
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
    message: str = ""  #: for the client, of a choice that is not what it asked for


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
        findings: Findings,
    ) -> None:
        found = findings.found
        self.serial = serial
        self.until = findings.until
        self.hosts = findings.hosts
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
        seconds = seconds_left(entry, now)
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

    :ivar zone: zone bits of the dispatcher's host; 0: those of its record in the table, and every
        zone when there is none.
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
    cache_servers: int = 50_000
    _plans: _Plans = field(init=False, repr=False, eq=False)
    _suitability: Suitability = field(init=False, repr=False, eq=False)

    @_plans.default
    def _make_plans(self) -> _Plans:
        return _Plans(self.cache_size, self.cache_servers)

    @_suitability.default
    def _make_suitability(self) -> Suitability:
        return Suitability(self.table, self.zone, self.own_addresses)

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

    def view(self, asker: Asker) -> View:
        """From where *asker* looks at the table."""
        return View(asker.inside, self._suitability.around(asker.address))

    def is_for(self, entry: Entry, request: DispatchRequest, peer: str) -> bool:
        """Whether who sent *request* may know of *entry*."""
        return self._suitability.is_visible(entry, self.view(self.asker(request, peer)))

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
        if len(indexes) == 1 and request.preference is None:
            # Nothing to draw; most services that are relayed to have one server.
            return indexes if found[indexes[0]].candidate.status > 0 else ()
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
        plan = self._plan_seen(request, View(asker.inside), now)
        nearby = self._suitability.around(asker.address)
        if plan.hosts.isdisjoint(nearby):
            return plan
        # Servers on the client's own host: private ones show, and nearness counts.
        return self._plan_seen(request, View(asker.inside, nearby), now)

    def _plan_seen(self, request: DispatchRequest, view: View, now: float) -> _Plan:
        key = (request.question, view)
        plan = self._plans.get(key, self.table.serial, now)
        if plan is None:
            findings = self._suitability.findings(request, view, now)
            plan = _Plan(request, self.table.serial, findings)
            self._plans.put(key, plan)
        return plan

    # --- reverse look-ups -------------------------------------------------------------------

    def _reversed(
        self, request: DispatchRequest, asker: Asker, plan: _Plan, now: float
    ) -> list[bytes]:
        """Each server swapped for the DNS entry that shares its place."""
        skips = SkipList(request)
        view = self.view(asker)
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
                if other not in skips and self._suitability.stands_in(request, other, view, now):
                    lines.setdefault(other.key, _dns_line(request, other, each, now))
                    break
        return list(lines.values())

    # --- connection requests ----------------------------------------------------------------

    def targets(self, request: DispatchRequest, peer: str, now: float) -> Targets:
        """The servers that AUX, RELAY and BROWSER requests may be passed to."""
        if request.is_mask or not self.table.entries(request.service):
            return Targets((), False)
        plan = self._plan(request, peer, now)
        fresh = [
            index
            for index in self._fresh(request, plan)
            if plan.found[index].entry.info.type is not ServerType.DNS
        ]
        order = [plan.found[index].entry for index in self._draw(request, plan, fresh, MAX_TRIES)]
        first = None
        message = ""
        if request.used is not None:
            first = self._named(request, peer, [request.used.identity], now)
            if first is None and order:
                message = "the server of Used-Server-Info is not to be had, another was taken"
        elif not order:
            # A client that retries lists all it has had, its new choice too, as the last.
            had = [skip.identity for skip in reversed(request.skips)]
            first = self._named(request, peer, had, now)
        if first is not None:
            order = [first, *(entry for entry in order if entry is not first)]
        return Targets(tuple(order[:MAX_TRIES]), True, message)

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
                if is_named_by(identity, each.entry.info):
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

    def used_lines(
        self, request: DispatchRequest, peer: str, entries: Iterable[Entry], until: int
    ) -> bytes:
        """
        ``Used-Server-Info-<n>`` for servers that were tried in vain, as the client knows them.

        :param until: seconds since the epoch until which the client is to avoid them.
        """
        inside = self.asker(request, peer).inside
        lines = b""
        for number, entry in enumerate(entries, 1):
            told = as_told(request, entry.info, inside)
            lines += used_server_info(number, _writer(told, request.legacy).text(told.rate, until))
        return lines


def _lottery(
    preference: Preference | None, items: Sequence[int], candidates: Sequence[Candidate]
) -> Lottery[int]:
    # There always is a preferred host: the client's own, if it names no other.
    share = preference.share if preference is not None else 0.0
    return Lottery(items, candidates, share, LOCAL_BONUS_TABLE, True)


def _dns_line(request: DispatchRequest, other: Entry, each: Found, now: float) -> bytes:
    """The DNS entry *other* for the server *each*, whose status it takes over."""
    value = 0.0 if is_suppressed(other) else each.candidate.status
    writer = _writer(other.info, request.legacy)
    text = writer.text(told_rate(request, other, value), seconds_left(other, now))
    return f"{other.service} {text}\r\n".encode("latin-1")


def _numbered(lines: Sequence[bytes]) -> bytes:
    """``Server-Info-<n>`` headers with the texts *lines*, which have their line ends."""
    found = b""
    if len(lines) <= len(_NUMBERS):
        for number, line in zip(_NUMBERS, lines, strict=False):
            found += number + line
        return found
    return b"".join([b"Server-Info-%d: %b" % pair for pair in enumerate(lines, 1)])


def relay_path(entry: Entry) -> bytes:
    """``Relay-Path``: by whom the reply was made."""
    info = entry.info
    place = format_connection_point(info.host, info.port)
    return header("Relay-Path", f"DISPD -> {KEYWORDS[info.type]} {place}")
