"""
Which servers a request is answered with (docs/protocols/dispatcher.rst, Rules).

:class:`Dispatcher` reads the table and decides; it knows HTTP only by its status codes.  All
filtering is done here, since the clients do none.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from attrs import evolve, field, frozen

from gridnet.dispatch.wire import (
    DispatchRequest,
    Kind,
    Skip,
    failures,
    header,
    server_info,
    used_server_info,
)
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
    STANDBY_RATE,
    ServerInfo,
    ServerType,
    write,
    write_legacy,
)
from gridnet.table.visibility import in_zone, is_visible

T = TypeVar("T")

#: Entries of a reply when the client does not say how many it wants.
DEFAULT_COUNT = 3
#: ``T`` of what is handed out, seconds: some clients refuse more than 33.
MAX_TIME_SECONDS = 30
#: Servers that one request may try.
MAX_TRIES = 5


@frozen
class Asker:
    """Who asks."""

    address: str  #: IP address text
    inside: bool  #: may see what is local to the site


@frozen
class Answer:
    """A reply without a body."""

    status: int
    lines: bytes  #: extension header lines, each with its line end


@frozen
class Targets:
    """The servers that a connection request may be passed to, best first."""

    entries: tuple[Entry, ...]
    known: bool  #: whether the service is in the table at all
    retry: bool  #: whether the dispatcher goes on to the next itself (else the client does)


@frozen
class _Prepared:
    """A request's candidates, ready to be drawn from."""

    serial: int
    until: float
    entries: tuple[Entry, ...]
    lines: tuple[bytes, ...]  #: text of each, to follow ``Server-Info-<n>: ``
    standby: bool
    listing: bool  #: give all, in order
    lottery: Lottery[bytes]  #: of the lines
    service: bytes  #: the ``Service`` header line


@frozen
class Dispatcher:
    """
    Decides for one process.

    :ivar zone: zone bits of the dispatcher's host; 0: sees every zone.
    :ivar cache_size: requests whose candidates are kept ready.
    """

    table: ServiceTable
    local_networks: AddressRanges
    chance: random.Random
    zone: int = 0
    default_count: int = DEFAULT_COUNT
    cache_size: int = 4096
    _prepared: OrderedDict[tuple[DispatchRequest, str], _Prepared] = field(
        factory=OrderedDict, init=False
    )

    @property
    def cached(self) -> int:
        """How many requests' candidates are ready now."""
        return len(self._prepared)

    def asker(self, request: DispatchRequest, peer: str) -> Asker:
        """Who sent *request*: its headers are believed when *peer* is inside."""
        if not request.identity:
            return Asker(peer, self.local_networks.contains(peer))
        address, inside = client_address(request.identity, peer, self.local_networks)
        return Asker(address, inside)

    def answer(self, request: DispatchRequest, peer: str, now: float) -> Answer:
        """
        Answer INFO, LIST and REVERSE.

        :param peer: IP address text of the TCP peer.
        :param now: seconds since the epoch.
        """
        key = (request, peer)
        ready = self._prepared.get(key)
        if ready is None or ready.serial != self.table.serial or now >= ready.until:
            ready = self._prepare(request, self.asker(request, peer), now)
            self._prepared[key] = ready
            if len(self._prepared) > self.cache_size:
                self._prepared.popitem(last=False)
        if not ready.entries:
            return self._nothing(request)
        if ready.listing:
            chosen: Sequence[bytes] = ready.lines
            if request.server_count:
                chosen = chosen[: request.server_count]
        else:
            chosen = self._draw(request, ready)
        if not chosen:
            return self._nothing(request)
        lines = [ready.service]
        lines += [b"Server-Info-%d: %b\r\n" % pair for pair in enumerate(chosen, 1)]
        return Answer(200, b"".join(lines))

    def _nothing(self, request: DispatchRequest) -> Answer:
        """The end of a search, or of one for a name that nobody knows."""
        if request.is_mask or self.table.entries(request.service):
            return Answer(204, header("Service", request.service))
        return Answer(404, header("Service", request.service) + failures("Service not found"))

    def _draw(self, request: DispatchRequest, ready: _Prepared) -> list[bytes]:
        limit = 1 if request.firewall_mode else self.default_count
        if request.server_count is not None:
            limit = request.server_count or len(ready.lines)
        if ready.standby:
            order = standby_order(ready.entries, self.chance)
            place = {
                id(entry): line for entry, line in zip(ready.entries, ready.lines, strict=True)
            }
            return [place[id(entry)] for entry in order[:limit]]
        return ready.lottery.draw(limit, self.chance)

    def _named(self, request: DispatchRequest) -> Sequence[Entry]:
        if request.is_mask:
            return self.table.matching(request.service)
        return self.table.entries(request.service)

    def _considered(
        self, request: DispatchRequest, asker: Asker, now: float
    ) -> list[tuple[Entry, float]]:
        """
        What may be handed out at all, skipped ones included, with its status.

        Order of the tests as in the clients' own table: time, type, visibility, state.
        """
        inside = asker.inside and not request.external
        accepted = request.accepted
        found = []
        for entry in self._named(request):
            info = entry.info
            if entry.expires_at <= now or entry.reserved or (info.rate == 0 and info.time == 0):
                continue
            if not (info.type & accepted if accepted else info.type is not ServerType.DNS):
                continue
            if not in_zone(entry.zone, self.zone, info.interzone):
                continue
            if not is_visible(info, asker.address, inside):
                continue
            if request.stateless and info.stateful:
                continue
            value = status(entry, self.table.host(info.host))
            if is_down(entry):
                if not request.include_down:
                    continue
            elif value <= 0 and not is_suppressed(entry):
                continue  # dynamic, and nothing is known of its host
            found.append((entry, value))
        if request.affinity is not None:
            fits = [
                ((entry, value), fit(request.affinity, self._environment(entry)))
                for entry, value in found
            ]
            found = best_class(fits)
            if not request.include_suppressed:
                # A regular server of any class but the last keeps standbys out, even where
                # that leaves its own class out of the choice: the clients' rule.
                borne = [entry for (entry, _), each in fits if each is not Fit.BAD]
                kept = {id(entry) for entry in usable_band([e for e, _ in found], borne)}
                found = [(entry, value) for entry, value in found if id(entry) in kept]
        return found

    def _environment(self, entry: Entry) -> Sequence[tuple[str, str]]:
        host = self.table.host(entry.info.host)
        return host.environment if host is not None else ()

    def _usable(
        self, request: DispatchRequest, asker: Asker, now: float
    ) -> list[tuple[Entry, float]]:
        """What is handed out: neither skipped, nor suppressed or standby without being wanted."""
        considered = self._considered(request, asker, now)
        skipped = _SkipList(request)
        fresh = [(entry, value) for entry, value in considered if entry not in skipped]
        if not request.include_suppressed:
            band = usable_band(
                [entry for entry, _ in fresh if not is_suppressed(entry)],
                [entry for entry, _ in considered],
            )
            kept = {id(entry) for entry in band}
            fresh = [(entry, value) for entry, value in fresh if id(entry) in kept]
        return fresh

    def _prepare(self, request: DispatchRequest, asker: Asker, now: float) -> _Prepared:
        listing = request.is_mask or request.kind in (Kind.LIST, Kind.REVERSE)
        usable = self._usable(request, asker, now)
        if request.kind is Kind.REVERSE:
            usable = self._reversed(request, asker, usable, now)
        entries: list[Entry] = []
        candidates: list[Candidate] = []
        lines: list[bytes] = []
        until = math.inf
        for entry, value in usable:
            text = self._descriptor(request, asker, entry, value, now)
            if text is None:
                continue
            if listing and (request.is_mask or request.kind is Kind.REVERSE):
                text = f"{entry.service} {text}"
            entries.append(entry)
            candidates.append(self._candidate(request, asker, entry, value))
            lines.append(text.encode("latin-1", "replace"))
            if entry.expires_at != math.inf:
                # What is handed out counts down: prepare anew each second.
                until = math.floor(now) + 1.0
        standby = bool(entries) and all(is_standby(entry) for entry in entries)
        return _Prepared(
            self.table.serial,
            until,
            tuple(entries),
            tuple(lines),
            standby,
            listing,
            self._lottery(request, lines, candidates),
            header("Service", request.service),
        )

    @staticmethod
    def _lottery(
        request: DispatchRequest, items: Sequence[T], candidates: Sequence[Candidate]
    ) -> Lottery[T]:
        preference = request.preference
        share = preference.share if preference is not None else 0.0
        return Lottery(items, candidates, share, LOCAL_BONUS_TABLE, preference is not None)

    def _candidate(
        self, request: DispatchRequest, asker: Asker, entry: Entry, value: float
    ) -> Candidate:
        info = entry.info
        preference = request.preference
        preferred = False
        if preference is not None:
            host = preference.host or asker.address
            preferred = info.host == host and preference.port in (0, info.port)
        return Candidate(value, info.bonus, preferred, info.local or info.private)

    def _descriptor(
        self, request: DispatchRequest, asker: Asker, entry: Entry, value: float, now: float
    ) -> str | None:
        """The text of *entry* for this client; None: it cannot be said to it."""
        if is_down(entry):
            rate = 0.0
        elif is_suppressed(entry):
            rate = -abs(entry.info.rate)
        elif is_standby(entry):
            rate = abs(entry.info.rate)
            rate = -rate if request.include_suppressed else rate
        else:
            rate = max(value, STANDBY_RATE)
        info = evolve(entry.info, rate=rate, time=self._seconds(entry, now))
        if self._needs_relay(request, asker, info):
            info = hidden(info)
        return write_legacy(info) if request.legacy else write(info)

    def _needs_relay(self, request: DispatchRequest, asker: Asker, info: ServerInfo) -> bool:
        """Whether the client must come through the relay to reach the server."""
        if info.type is ServerType.DNS:
            return False
        if request.firewall_mode:
            return True
        outside = request.external or not asker.inside
        return outside and not info.type & ServerType.HTTP

    @staticmethod
    def _seconds(entry: Entry, now: float) -> int:
        """``T`` of what is handed out, 1..30."""
        seconds = min(entry.info.time or DEFAULT_TIME_SECONDS, MAX_TIME_SECONDS)
        if entry.expires_at != math.inf:
            seconds = min(seconds, math.ceil(entry.expires_at - now))
        return max(1, seconds)

    def _reversed(
        self,
        request: DispatchRequest,
        asker: Asker,
        usable: Sequence[tuple[Entry, float]],
        now: float,
    ) -> list[tuple[Entry, float]]:
        """Each server swapped for the DNS entry that shares its place."""
        skipped = _SkipList(request)
        inside = asker.inside and not request.external
        found: dict[tuple[object, ...], tuple[Entry, float]] = {}
        for entry, value in usable:
            if entry.info.type is ServerType.DNS:
                found.setdefault(entry.key, (entry, value))
                continue
            named = self.table.dns_entries_at(entry.info.host, entry.info.port)
            if not named:
                found.setdefault(entry.key, (entry, value))
                continue
            for other in named:
                if other.expires_at <= now or other.info.time == 0 or other.reserved:
                    continue
                if not is_visible(other.info, asker.address, inside) or other in skipped:
                    continue
                if is_down(other) and not request.include_down:
                    continue
                if is_suppressed(other) and not request.include_suppressed:
                    continue
                rating = status(other, self.table.host(other.info.host))
                found.setdefault(other.key, (other, rating))
                break
        return list(found.values())

    def targets(self, request: DispatchRequest, peer: str, now: float) -> Targets:
        """The servers that AUX, RELAY and BROWSER requests may be passed to."""
        asker = self.asker(request, peer)
        known = bool(self.table.entries(request.service))
        retry = request.kind is Kind.BROWSER
        if not known or request.is_mask:
            return Targets((), False, retry)
        first = self._meant(request, asker, now)
        usable = self._usable(request, asker, now)
        entries = [entry for entry, _ in usable if entry.info.type is not ServerType.DNS]
        if entries and all(is_standby(entry) for entry in entries):
            order = standby_order(entries, self.chance)
        else:
            kept = {id(entry) for entry in entries}
            candidates = [
                self._candidate(request, asker, entry, value)
                for entry, value in usable
                if id(entry) in kept
            ]
            order = self._lottery(request, entries, candidates).draw(MAX_TRIES, self.chance)
        if first is None and not order and request.last_skip is not None:
            # A client that retries lists all it has had, its new choice too, as the last.
            first = self._find(request, asker, request.last_skip.info, now)
        if first is not None:
            order = [first, *(entry for entry in order if entry is not first)]
        return Targets(tuple(order[:MAX_TRIES]), known, retry)

    def _meant(self, request: DispatchRequest, asker: Asker, now: float) -> Entry | None:
        """The server that the client says it means, when it may have it."""
        if request.used is None:
            return None
        return self._find(request, asker, request.used, now)

    def _find(
        self, request: DispatchRequest, asker: Asker, wanted: ServerInfo, now: float
    ) -> Entry | None:
        # A stateless client may have been told to come back for a stateful server.
        anyhow = evolve(request, stateless=False, affinity=None)
        for entry, _ in self._considered(anyhow, asker, now):
            if same_server(wanted, entry.info) and not is_suppressed(entry):
                return entry
        return None


def hidden(info: ServerInfo) -> ServerInfo:
    """The FIREWALL entry that stands for *info*, made on the fly."""
    return evolve(info, type=ServerType.FIREWALL, hidden_type=info.type, arguments="", vhost="")


def same_server(told: ServerInfo, info: ServerInfo) -> bool:
    """Whether *told*, which a client says, names the server *info*."""
    if told.type is not ServerType.FIREWALL:
        return told.identity == info.identity
    # FIREWALL entries keep the hidden server's place, so one names that server; without a place
    # it names all of its type.
    if told.hidden_type is not None and told.hidden_type is not info.type:
        return False
    if not told.host and not told.port:
        return True
    return (told.host, told.port) == (info.host, info.port)


class _SkipList:
    """What the client has had; ``entry in skips`` is cheap however long it is."""

    def __init__(self, request: DispatchRequest) -> None:
        self._exact: set[tuple[str, tuple[object, ...]]] = set()
        self._others: list[Skip] = []
        own = "" if request.is_mask else request.service.lower()
        for skip in request.skips:
            if skip.info.type in (ServerType.FIREWALL, ServerType.DNS):
                self._others.append(skip)
            if skip.info.type is not ServerType.FIREWALL:
                self._exact.add((skip.service or own, skip.info.identity))
        self._reverse = request.kind is Kind.REVERSE

    def __contains__(self, entry: Entry) -> bool:
        name = entry.service.lower()
        if (name, entry.info.identity) in self._exact:
            return True
        return any(self._covers(skip, name, entry.info) for skip in self._others)

    def _covers(self, skip: Skip, name: str, info: ServerInfo) -> bool:
        if skip.info.type is ServerType.FIREWALL:
            return (not skip.service or skip.service == name) and same_server(skip.info, info)
        if not self._reverse:
            return False
        if not skip.info.host:
            return skip.service == name
        return skip.info.host == info.host and skip.info.port in (0, info.port)


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
    host = f"[{entry.info.host}]" if ":" in entry.info.host else entry.info.host
    return header("Relay-Path", f"DISPD -> {KEYWORDS[entry.info.type]} {host}:{entry.info.port}")


__all__ = [
    "Answer",
    "Asker",
    "Dispatcher",
    "Targets",
    "hidden",
    "relay_path",
    "same_server",
    "server_info",
    "used_lines",
]
