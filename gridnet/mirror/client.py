"""
The event client, as a program uses it: what it wants, what happens to it, the events that came.

Pure; its life is in :mod:`gridnet.mirror.client_machine`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf

from attrs import evolve

from gridnet.errors import LocalProtocolError
from gridnet.mirror.admission import MAX_DELIVERY_SECONDS
from gridnet.mirror.catalogue import OBLIGATORY
from gridnet.mirror.client_machine import (
    Acknowledge,
    Batch,
    ClientCore,
    ClientTimes,
    Numbered,
    Surroundings,
    client_machine,
)
from gridnet.mirror.filters import What, Where
from gridnet.mirror.model import BusyPolicy, Registration, Subscribed


class EventClient:
    """
    An event client.

    :param around: its transport and its user.
    :param chance: for the jitter of its waits.
    :param wish: name, wanted id, delivery time, policy, session; its subscriptions are ignored
        in favour of those made with :meth:`subscribe`.
    :param max_waiting: events that may wait to be taken; beyond that it registers anew.
    """

    def __init__(
        self,
        around: Surroundings,
        chance: random.Random,
        wish: Registration,
        times: ClientTimes | None = None,
        acknowledge: Acknowledge = Acknowledge.PROCESSED,
        max_waiting: int = 1_000_000,
    ) -> None:
        wish = evolve(wish, delivery_seconds=min(wish.delivery_seconds, MAX_DELIVERY_SECONDS))
        self.core = ClientCore(
            around,
            chance,
            times or ClientTimes(),
            acknowledge,
            wish,
            {event: Subscribed(event, 0) for event in OBLIGATORY},
            max_waiting=max_waiting,
        )
        self._machine = client_machine(self.core)
        self._taken_at: float | None = None

    @property
    def state(self) -> str:
        """For people: ``registered``, or what it does to become that."""
        return self.core.stage

    @property
    def is_registered(self) -> bool:
        """Does the master know it?"""
        return self.core.id != 0

    @property
    def deadline(self) -> float:
        """When :meth:`elapsed` is to be called."""
        return self.core.deadline

    # -- what the client wants

    def subscribe(
        self,
        event: int,
        flush_seconds: int | None = None,
        where: Where | None = None,
        what: What | None = None,
    ) -> None:
        """
        Subscribe *event*, from the next :meth:`commit` on.

        Subscribing what is subscribed changes nothing but filters that differ.

        :param flush_seconds: deliver it within this time; None: as before, or at leisure.
        """
        known = self.core.subscribed.get(event)
        if flush_seconds is None:
            flush_seconds = known.flush_seconds if known is not None else -1
        wanted = Subscribed(event, flush_seconds, where, what)
        if known != wanted:
            self.core.subscribed[event] = wanted
            self.core.changed = True
            if known is not None and (known.where, known.what) != (where, what):
                self.core.renewed.add(event)  # a list with other filters is another list

    def unsubscribe(self, event: int) -> None:
        """
        Give up *event*, from the next :meth:`commit` on.

        :raises LocalProtocolError: it is one of the three that every client has.
        """
        if event in OBLIGATORY:
            raise LocalProtocolError(f"event {event} cannot be unsubscribed")
        if self.core.subscribed.pop(event, None) is not None:
            self.core.changed = True
            self.core.renewed.add(event)

    def renew(self, event: int) -> None:
        """Give up *event* and want it again: a list event brings its list anew."""
        if event in self.core.subscribed:
            self.core.changed = True
            self.core.renewed.add(event)

    def send_again(self) -> None:
        """Send the subscription again: the master has lists now that it had not before."""
        self.core.changed = True

    def unsubscribe_all(self) -> None:
        """Give up everything but the three events that every client has."""
        for event in list(self.core.subscribed):
            if event not in OBLIGATORY:
                self.unsubscribe(event)

    def flush(self, event: int, seconds: int) -> None:
        """
        Deliver *event* within *seconds* (-1: at leisure).

        :raises LocalProtocolError: it is not subscribed.
        """
        known = self.core.subscribed.get(event)
        if known is None:
            raise LocalProtocolError(f"event {event} is not subscribed, so it cannot be flushed")
        self.subscribe(event, seconds, known.where, known.what)

    def set_delivery_seconds(self, seconds: int) -> None:
        """Have a report every *seconds*; clamped to what masters accept."""
        self._wish(delivery_seconds=min(max(seconds, 1), MAX_DELIVERY_SECONDS))

    def set_busy_policy(self, policy: BusyPolicy) -> None:
        """When the master is to take the client for busy."""
        self._wish(busy_policy=policy)

    def set_busy(self, busy: bool) -> None:
        """Tell the master that the client is busy, or is so no more."""
        # Not guarded by a comparison: under "until released" the master sets busy by itself.
        self.core.wish = evolve(self.core.wish, busy=busy)
        self.core.wish_changed = True

    def _wish(self, **changes: object) -> None:
        wish = evolve(self.core.wish, **changes)  # type: ignore[arg-type]
        if wish != self.core.wish:
            self.core.wish = wish
            self.core.wish_changed = True

    # -- what happens to it

    def begin(self, now: float) -> None:
        """Register, and stay registered until :meth:`leave`."""
        self._machine.begin(now)

    def opened(self, now: float) -> None:
        """The connection is there."""
        self._machine.opened(now)

    def accepted(self, client_id: int, now: float) -> None:
        """The master gave it an id."""
        self._machine.accepted(client_id, now)

    def refused(self, reason: str, now: float, at_least: float = 0.0) -> None:
        """The master refused; no new try before *at_least* seconds."""
        self._machine.refused(reason, at_least, now)

    def reported(self, events: Sequence[Numbered], now: float) -> None:
        """A report came, with *events* in its order."""
        self._machine.reported(events, now)

    def lost(self, reason: str, now: float, at_least: float = 0.0) -> None:
        """The connection is gone."""
        self._machine.lost(reason, at_least, now)

    def heard(self, now: float) -> None:
        """
        A part of something long came.

        A long list takes its time on a slow way: as long as it comes the master is not silent.
        """
        if self.core.stage == "registered":
            self.core.silence(now)
        elif self.core.stage == "registering":
            # A real master may send the first lists before its answer.
            self.core.deadline = now + self.core.times.answer_seconds

    def unknown_to_master(self, reason: str, now: float) -> None:
        """The master does not know it any more."""
        self._machine.unknown_to_master(reason, now)

    def elapsed(self, now: float) -> None:
        """:attr:`deadline` has passed."""
        if now >= self.core.deadline:
            self.core.deadline = inf
            self._machine.elapsed(now)

    def commit(self, now: float) -> None:
        """Send what has changed, as one modification."""
        self._machine.commit(now)

    def leave(self, now: float) -> None:
        """Leave; all state but the subscriptions is reset, and :meth:`begin` starts anew."""
        self._machine.leave(now)

    # -- the events

    @property
    def waiting(self) -> int:
        """How many events wait to be taken."""
        return sum(len(batch.events) for batch in self.core.batches)

    def take(self, now: float, limited: bool = False) -> list[Batch]:
        """
        The events that have come, by report.

        :param limited: at most one report per second since the last call (at first: per second
            of delivery time), so that a fast master cannot hold its client in a loop.
        """
        self.commit(now)
        batches = self.core.batches
        count = len(batches)
        if limited:
            if self._taken_at is None:
                allowed = self.core.wish.delivery_seconds
            else:
                allowed = int(now - self._taken_at)
            count = min(count, max(1, allowed))
        self._taken_at = now
        return [batches.popleft() for _ in range(count)]

    def processed(self, batch: Batch) -> None:
        """*batch* is applied: it is acknowledged, unless it was on arrival."""
        core = self.core
        if core.acknowledge is Acknowledge.PROCESSED and batch.epoch == core.epoch and core.id:
            core.around.acknowledge(batch.last, core.id)

    def restart(self, reason: str, now: float) -> None:
        """The copy is not what the master has: register again."""
        self.lost(reason, now)
