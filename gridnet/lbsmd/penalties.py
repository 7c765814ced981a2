"""
Penalties and base rates that people have set for the servers of this host, kept by the clock.

The daemon that configured a server keeps them, whoever asked wherever
(docs/protocols/lbsmd-config.rst, Penalties).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import translate
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from attrs import evolve, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.lbsmd.authority import Authority
from gridnet.lbsmd.dependencies import Key
from gridnet.lbsmd.feedback import (
    BaseRate,
    PenaltyRequest,
    Target,
    format_argument,
)
from gridnet.lbsmd.local_services import LocalService, LocalServices
from gridnet.lbsmd.orders import Order, RefusedError
from gridnet.lbsmd.penalty import ANNOUNCED_STEP, Penalty
from gridnet.lbsmd.penalty_store import Kept, PenaltyStore
from gridnet.lbsmd.repeats import Repeats
from gridnet.table.address import is_loopback
from gridnet.table.model import Entry

#: A step is announced this late at most, so that many that fall together make one timer.
_NOT_BEFORE_SECONDS = 0.05
#: Between two refusals of one asker that are logged.
REFUSAL_SECONDS = 1.0


@frozen
class Outcome:
    """What came of an order."""

    servers: int  #: that it was carried out for
    forbidden: int = 0  #: that it was meant for as well, but the asker may not operate on


def fits(target: Target, entry: Entry, this_host: str) -> bool:
    """
    Whether *target* means the server of *entry*, as far as it names its service.

    :param target: with an address, or no host: then servers on this host.
    :param this_host: address of this host; so are the loopback ones in its own definitions.
    """
    info = entry.info
    if target.type is not None and not info.type & target.type:
        return False
    if target.port is not None and info.port != target.port:
        return False
    host = target.host or this_host
    if info.host == host:
        return True
    return host == this_host == entry.owner and is_loopback(info.host)


class Penalties(Service):
    """
    Carries out orders for the servers of this host, and lets penalties wear off.

    :param store: keeps what was asked over a restart; None: a restart forgets it.
    """

    _log = Logger()

    def __init__(
        self,
        local: LocalServices,
        authority: Authority,
        clock: IReactorTime,
        store: PenaltyStore | None = None,
    ) -> None:
        self._local = local
        self._authority = authority
        self._clock = clock
        self._store = store
        self._kept: dict[Key, Kept] = {}
        self._due: list[tuple[float, int, Key]] = []
        self._due_at: dict[Key, float] = {}
        self._ticket = count()
        self._timer: IDelayedCall | None = None
        self._refused = Repeats(REFUSAL_SECONDS)
        self.orders = 0  #: carried out
        self.refusals = 0
        local.subscribe(self._loaded)

    def restore(self) -> None:
        """Put in force what was kept over a restart; blocks, once, before the daemon starts."""
        if self._store is None:
            return
        now = self._clock.seconds()
        for key, kept in self._store.load().items():
            if self._local.get(key) is not None and not kept.is_over(now):
                self._kept[key] = kept
                if kept.rate is not None or kept.reserved:
                    self._local.rerate(key, kept.rate, kept.reserved)
                self._announce(key, now)

    def startService(self) -> None:
        """Begin to let penalties wear off."""
        super().startService()
        self._arrange()

    def stopService(self) -> None:
        """Let them be."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def kept(self, key: Key) -> Kept | None:
        """What people have asked of that server; None: nothing that is still in force."""
        return self._kept.get(key)

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        return {
            "orders": self.orders,
            "orders_refused": self.refusals,
            "penalized": sum(1 for each in self._kept.values() if each.penalty.percent),
            "rerated": sum(
                1 for each in self._kept.values() if each.rate is not None or each.reserved
            ),
        }

    def matching(self, target: Target) -> Mapping[Key, LocalService]:
        """The servers of this host that *target* means."""
        named = re.compile(translate(target.service.lower())).match
        return {
            key: service
            for key, service in self._local.services().items()
            if fits(target, service.configured, self._local.address)
            and named(service.configured.service.lower())
        }

    def carry_out(self, order: Order) -> Deferred[Outcome]:
        """
        Do what *order* asks to the servers of this host that it means.

        :returns: fires once that is in force and, if it is to outlast a restart, on the disk.
            Fails with :exc:`RefusedError` with the reason for the asker, which is logged too.
        """
        try:
            outcome = self._carry_out(order)
        except RefusedError as error:
            self.refusals += 1
            left_out = self._refused.left_out(order.asker, self._clock.seconds())
            if left_out is not None:
                self._log.warn(
                    "{asker} may not have {request}: {reason}",
                    asker=str(order.asker),
                    request=format_argument(order.request),
                    reason=str(error),
                    left_out=left_out,
                )
            return fail(error)
        if self._store is None:
            return succeed(outcome)

        def stored(_: None) -> Outcome:
            return outcome

        def not_stored(failure: Failure) -> Outcome:
            reason = failure.getErrorMessage()
            raise RefusedError(f"in force, but lost at a restart of the daemon: {reason}")

        return self._store.save(self._kept).addCallbacks(stored, not_stored)

    # --- inside -----------------------------------------------------------------------------

    def _carry_out(self, order: Order) -> Outcome:
        meant = self.matching(order.request.target)
        if not meant:
            raise RefusedError("this host has no such server")
        allowed = [
            key for key, service in meant.items() if self._authority.operates(order.asker, service)
        ]
        if not allowed:
            names = sorted({service.placed.record.name for service in meant.values()})
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise RefusedError(
                f"{order.asker.user} may not operate on {', '.join(names[:3])}{more} of "
                f"{self._local.address}: neither root, the daemon's user, one of the host's "
                "authority list, nor one of the server's own users and groups"
            )
        with self._local.one_step():
            for key in allowed:
                self._change(key, order)
        self._arrange()
        self.orders += 1
        self._log.info(
            "{asker} has {request} for {servers} servers{why}",
            asker=str(order.asker),
            request=format_argument(order.request),
            servers=len(allowed),
            why=f": {order.reason}" if order.reason else "",
        )
        forbidden = len(meant) - len(allowed)
        if forbidden:
            self._log.warn(
                "{asker} may not have {request} for {forbidden} more servers",
                asker=str(order.asker),
                request=format_argument(order.request),
                forbidden=forbidden,
            )
        return Outcome(len(allowed), forbidden)

    def _change(self, key: Key, order: Order) -> None:
        now = self._clock.seconds()
        request, asker = order.request, str(order.asker)
        kept = self._kept.get(key, Kept())
        if isinstance(request, PenaltyRequest):
            hold = float(request.hold_seconds) if request.percent else 0.0
            kept = evolve(
                kept,
                penalty=Penalty(float(request.percent), hold, now),
                penalized_by=asker if request.percent else "",
                penalty_reason=order.reason if request.percent else "",
            )
            self._keep(key, kept, now)
            self._announce(key, now)
            return
        default = request.rate is BaseRate.DEFAULT
        reserved = request.rate is BaseRate.RESERVE
        rate = None if isinstance(request.rate, BaseRate) else request.rate
        kept = evolve(
            kept,
            rate=rate,
            reserved=reserved,
            rerated_by="" if default else asker,
            rerate_reason="" if default else order.reason,
        )
        self._keep(key, kept, now)
        self._local.rerate(key, rate, reserved)

    def _keep(self, key: Key, kept: Kept, now: float) -> None:
        if kept.is_over(now):
            self._kept.pop(key, None)
        else:
            self._kept[key] = kept

    def _announce(self, key: Key, now: float) -> None:
        """Publish what is left of the penalty of that server, and see when it will be less."""
        kept = self._kept.get(key)
        value = 0.0 if kept is None else kept.penalty.value(now)
        self._local.penalize(key, value)
        if kept is None or not value:
            self._due_at.pop(key, None)
            if kept is not None:
                self._keep(key, evolve(kept, penalty=Penalty()), now)
            return
        due = max(kept.penalty.falls_to(value - ANNOUNCED_STEP), now + _NOT_BEFORE_SECONDS)
        self._due_at[key] = due
        heappush(self._due, (due, next(self._ticket), key))
        if len(self._due) > 2 * len(self._due_at) + 64:
            # Replaced penalties leave records behind.
            self._due = [(at, next(self._ticket), of) for of, at in self._due_at.items()]
            heapify(self._due)

    def _arrange(self) -> None:
        """See to it that somebody looks when the next step is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._due and self._due_at.get(self._due[0][2]) != self._due[0][0]:
            heappop(self._due)  # of a penalty that another has replaced, or that is gone
        if self._due and self.running:
            wait = max(0.0, self._due[0][0] - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        with self._local.one_step():
            for key in list(self._take_due(now)):
                self._announce(key, now)
        self._arrange()

    def _take_due(self, now: float) -> Iterator[Key]:
        while self._due and self._due[0][0] <= now:
            due, _, key = heappop(self._due)
            if self._due_at.get(key) == due:
                yield key

    def _loaded(self) -> None:
        """The definitions are new: what was asked of servers that are gone is gone too."""
        for key in [key for key in self._kept if self._local.get(key) is None]:
            del self._kept[key]
            self._due_at.pop(key, None)
        self._arrange()
