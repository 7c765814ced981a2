"""What the daemon tells local tools about its table, as plain values."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure

import gridnet
from gridnet.control import JsonText
from gridnet.errors import DescriptorError, RemoteProtocolError
from gridnet.lbsmd.checks import Checks
from gridnet.lbsmd.feedback import parse_argument
from gridnet.lbsmd.loading import Source
from gridnet.lbsmd.local_services import LocalServices
from gridnet.lbsmd.order_routing import OrderRouting
from gridnet.lbsmd.penalties import Penalties
from gridnet.site import Site
from gridnet.status.report import entry_report, host_report
from gridnet.table.address import canonical_address
from gridnet.table.affinity import Affinity
from gridnet.table.descriptor_words import split_connection_point
from gridnet.table.explain import Factors, Question, candidate, explain
from gridnet.table.heap_version import HEAP_VERSION
from gridnet.table.model import Entry, Host
from gridnet.table.selection import Lottery, is_standby, standby_order
from gridnet.table.server_info import TYPES, Algorithm, ServerType
from gridnet.table.server_text import write

#: Of making the table's text, and of letting others have the event loop in between.
_SLICE_SECONDS = 0.005
#: How long the text of a table that does not change serves.
_TEXT_SECONDS = 0.5


class _Slice:
    """Says when a piece of cooperative work has to end."""

    def __init__(self) -> None:
        self._until = time.perf_counter() + _SLICE_SECONDS

    def __call__(self) -> bool:
        return time.perf_counter() >= self._until


class Answers:
    """
    Answers the questions of local tools.

    :ivar started_at: seconds since the epoch.
    """

    def __init__(
        self,
        site: Site,
        source: Source,
        local: LocalServices,
        checks: Checks | None,
        penalties: Penalties,
        routing: OrderRouting,
    ) -> None:
        self._site = site
        self._source = source
        self._local = local
        self._checks = checks
        self._penalties = penalties
        self._routing = routing
        #: facts of the shared-memory table, when there is one
        self.heap: Callable[[], Mapping[str, Any]] | None = None
        self._chance = random.Random()
        self.started_at = site.reactor.seconds()
        # As much time for everything else as for the table.
        self._cooperator = Cooperator(
            scheduler=lambda call: site.reactor.callLater(_SLICE_SECONDS, call),
            terminationPredicateFactory=_Slice,
        )
        self._waiting: list[Deferred[JsonText]] = []
        #: serial of the table, when it was made, and the text
        self._text: tuple[int, float, JsonText] | None = None

    def table(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """``table``: everything that ``gridnet lbsmc`` shows."""
        now = self._site.reactor.seconds()
        entries = self._site.table.all_entries()
        return {
            **self._head(now),
            "hosts": [_host(host, now) for host in self._site.table.hosts()],
            "services": [self._entry(entry, now) for entry in entries],
        }

    def table_text(self, question: Mapping[str, Any]) -> Deferred[JsonText]:
        """
        The same as text, made a few entries at a time.

        Who asks while it is being made gets it too, and so does who asks right after for a table
        that has not changed.
        """
        answer: Deferred[JsonText] = Deferred()
        made = self._text
        now = self._site.reactor.seconds()
        if (
            made is not None
            and made[0] == self._site.table.serial
            and now - made[1] < _TEXT_SECONDS
        ):
            answer.callback(made[2])
            return answer
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            making = self._cooperator.cooperate(self._make_text())
            making.whenDone().addErrback(self._not_made)
        return answer

    def _make_text(self) -> Iterator[None]:
        now, serial = self._site.reactor.seconds(), self._site.table.serial
        entries = self._site.table.all_entries()
        head = json.dumps(self._head(now))[:-1]
        hosts, services = [], []
        for host in self._site.table.hosts():
            hosts.append(json.dumps(_host(host, now)))
            yield
        for entry in entries:
            services.append(json.dumps(self._entry(entry, now)))
            yield
        members = f'"hosts": [{", ".join(hosts)}], "services": [{", ".join(services)}]'
        text = JsonText(f"{head}, {members}}}".encode())
        self._text = serial, self._site.reactor.seconds(), text
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(text)

    def _not_made(self, failure: Failure) -> None:
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.errback(failure)

    def _head(self, now: float) -> Mapping[str, Any]:
        """All but the hosts and services."""
        site = self._site
        table = site.table
        loaded = self._local.loaded
        return {
            "version": gridnet.__version__,
            "time": now,
            "site": site.section.name,
            "address": self._local.address,
            "zone": 0 if loaded is None else loaded.configuration.zone,
            "started_at": self.started_at,
            "pid": os.getpid(),
            "config": str(self._source.main),
            "heap_version": ".".join(map(str, HEAP_VERSION)),
            "serial": table.serial,
            "heap": None if self.heap is None else dict(self.heap()),
        }

    def resolve(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        ``resolve``: one look-up, and every factor of it.

        :raises RemoteProtocolError: the question makes no sense.
        """
        asked = self._question(question)
        found = explain(self._site.table, asked, self._site.reactor.seconds())
        return {
            "service": asked.service,
            "chosen": [write(self._told(each)) for each in self._draw(found, asked)],
            "servers": [{**_factors(each), **self._standing(each.entry)} for each in found],
        }

    def feedback(self, question: Mapping[str, Any]) -> Deferred[str]:
        """
        ``feedback``: a penalty or a base rate for servers, in the name of whoever asks.

        :raises FeedbackError: the request does not follow the grammar.
        """
        request = parse_argument(_text(question, "argument"))
        return self._routing.ask(request, question["uid"], _text(question, "reason"))

    def _entry(self, entry: Entry, now: float) -> Mapping[str, Any]:
        info = entry.info
        report = dict(entry_report(entry, self._site.table.host(info.host), now))
        report |= {
            "bonus": info.bonus,
            "time": info.time,
            "blast": info.algorithm is Algorithm.BLAST,
            "content_type": info.content_type,
            "virtual_host": info.vhost,
            "interzone": info.interzone,
            "zone": entry.zone,
            "launcher": entry.launcher,
            "error": self._error(entry),
        }
        return report | self._standing(entry)

    def _error(self, entry: Entry) -> str:
        """Why readers cannot use *entry* as it is stored; empty: they can."""
        needs_host = not entry.static and entry.info.rate != 0.0
        if needs_host and self._site.table.host(entry.info.host) is None:
            return f"host {entry.info.host} is not in the table"
        return ""

    def _standing(self, entry: Entry) -> dict[str, Any]:
        """What made *entry* what it is, if that is ours: checks, ports, people."""
        service = self._local.get(entry.key)
        if service is None or entry.owner != self._local.address:
            return {}
        found: dict[str, Any] = {
            "configured_rate": service.configured.info.rate,
            "availability": service.standing.availability,
        }
        check = None if self._checks is None else self._checks.check(entry.key)
        if check is not None:
            found["check"] = {
                "state": check.verdict.state.value,
                "percent": check.verdict.percent,
                "reason": check.reason,
                "checked_at": check.checked_at,
                "due_at": check.due_at,
            }
        kept = self._penalties.kept(entry.key)
        if kept is not None:
            found["asked"] = {
                "penalty": kept.penalty.percent,
                "penalty_ends_at": kept.penalty.ends_at(),
                "penalized_by": kept.penalized_by,
                "penalty_reason": kept.penalty_reason,
                "rate": kept.rate,
                "reserved": kept.reserved,
                "rerated_by": kept.rerated_by,
                "rerate_reason": kept.rerate_reason,
            }
        return found

    def _question(self, asked: Mapping[str, Any]) -> Question:
        """
        The question behind the members of *asked*.

        :raises RemoteProtocolError: a member is missing, unknown or makes no sense.
        """
        service = _text(asked, "service")
        if not service:
            raise RemoteProtocolError('expected the name of a service in "service"')
        client = _address(_text(asked, "client") or "127.0.0.1")
        inside = asked.get("inside", self._site.local_networks.contains(client))
        host, port = _point(_text(asked, "preferred"))
        preference = asked.get("preference", 0.0)
        if not isinstance(inside, bool):
            raise RemoteProtocolError('expected true or false in "inside"')
        if not isinstance(preference, int | float) or not (-1 <= preference <= 1):
            raise RemoteProtocolError('expected -1, or 0 to 1, in "preference"')
        argument, equals, value = _text(asked, "affinity").partition("=")
        local = self._site.table.host(self._local.address)
        return Question(
            service,
            client,
            inside,
            self._local.address,
            0 if local is None else local.zone,
            _types(_text(asked, "types")),
            host,
            port or 0,
            float(preference),
            Affinity(argument, value if equals else None) if argument else None,
        )

    def _draw(self, found: Sequence[Factors], asked: Question) -> Sequence[Factors]:
        """Those of *found* that may be handed out, in an order as a client would get them."""
        usable = [each for each in found if not each.ruled_out]
        if usable and is_standby(usable[0].entry):
            by_entry = {id(each.entry): each for each in usable}
            order = standby_order([each.entry for each in usable], self._chance)
            return [by_entry[id(entry)] for entry in order]
        candidates = [candidate(each, asked) for each in usable]
        preferred = bool(asked.preferred_host)
        lottery = Lottery(usable, candidates, asked.preference, asked.bonus, preferred)
        return lottery.draw(len(usable), self._chance)

    def _told(self, each: Factors) -> Any:
        return evolve(each.entry.info, rate=each.rating)


def _host(host: Host, now: float) -> Mapping[str, Any]:
    return {**host_report(host, now), "zone": host.zone}


def _factors(each: Factors) -> Mapping[str, Any]:
    entry = each.entry
    return {
        "server": write(entry.info),
        "type": entry.info.type.name,
        "host": entry.info.host,
        "port": entry.info.port,
        "owner": entry.owner,
        "static": entry.static,
        "base_rate": entry.info.rate,
        "host_status": each.host_status,
        "penalty": entry.penalty,
        "bonus": entry.info.bonus,
        "rating": each.rating,
        "affinity": None if each.affinity is None else each.affinity.name.lower(),
        "ruled_out": each.ruled_out,
        "share": round(each.share, 6),
    }


def _text(asked: Mapping[str, Any], member: str) -> str:
    value = asked.get(member, "")
    if not isinstance(value, str):
        raise RemoteProtocolError(f'expected a text in "{member}"')
    return value


def _address(text: str) -> str:
    address = canonical_address(text)
    if address is None:
        raise RemoteProtocolError(f"found {text!r}; expected an IP address")
    return address


def _point(text: str) -> tuple[str, int | None]:
    if not text:
        return "", None
    try:
        host, port = split_connection_point(text)
    except DescriptorError as error:
        raise RemoteProtocolError(str(error)) from None
    return _address(host), port


def _types(text: str) -> frozenset[ServerType]:
    words = [word for word in text.upper().split(",") if word]
    unknown = [word for word in words if word not in TYPES]
    if unknown:
        raise RemoteProtocolError(f"found type {unknown[0]!r}; expected {', '.join(TYPES)}")
    return frozenset(TYPES[word] for word in words)
