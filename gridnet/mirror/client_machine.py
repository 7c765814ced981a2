"""
The life of an event client as a state machine: registers, checks numbers, acknowledges, and
registers again after trouble (docs/protocols/event-mirror.rst, "Event client").

Pure: it is told the time and what its transport saw, and asks its :class:`Surroundings` for
everything else.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from enum import Enum
from math import inf
from typing import Protocol

from attrs import define, evolve, field, frozen
from automat import TypeMachineBuilder

from gridnet.mirror.admission import TIMEOUT_DELIVERY_TIMES
from gridnet.mirror.catalogue import MASTER_GOES_DOWN, SHUTDOWN, TIMED_OUT
from gridnet.mirror.model import Event, Registration, Subscribed
from gridnet.quick_machine import quick

Numbered = tuple[int, Event]


class Acknowledge(Enum):
    """When a report is acknowledged."""

    RECEIVED = "received"  #: once its numbers are checked
    PROCESSED = "processed"  #: once the events are applied and the callbacks done


@frozen
class ClientTimes:
    """How long an event client waits."""

    connect_seconds: float = 30.0  #: for a connection
    answer_seconds: float = 60.0  #: for the answer to a registration
    first_retry_seconds: float = 1.0  #: doubled with every failure; the first try is at once
    last_retry_seconds: float = 60.0
    jitter: float = 0.25  #: at most this part of the wait is added by chance
    leave_seconds: float = 5.0  #: for the master to close the connection


class Surroundings(Protocol):
    """What an event client needs of its transport and of whoever uses it."""

    def open(self) -> None:
        """Make a connection; :meth:`EventClient.opened` or ``lost`` follows."""

    def close(self) -> None:
        """Drop the connection, if there is one; nothing follows."""

    def register(self, wish: Registration) -> None:
        """Send the registration; ``accepted`` or ``refused`` follows."""

    def modify(self, wish: Registration) -> None:
        """Send a modification."""

    def acknowledge(self, number: int, client_id: int) -> None:
        """Send an acknowledgement."""

    def leave(self, client_id: int) -> None:
        """Send that the client leaves, and close properly; ``lost`` follows."""

    def registered(self) -> None:
        """The client is registered; all lists come anew."""

    def arrived(self) -> None:
        """Events wait to be taken."""

    def parted(self, reason: str) -> None:
        """The client is registered no more and tries again; lists are stale."""

    def ended(self, reason: str) -> None:
        """The client has left, or was asked to."""


@define(eq=False)
class Batch:
    """The new events of one report, waiting to be taken."""

    events: Sequence[Numbered]
    last: int  #: number to acknowledge
    epoch: int  #: of the registration that they belong to


@define(eq=False)
class ClientCore:
    """The lasting data of an event client."""

    around: Surroundings
    chance: random.Random
    times: ClientTimes
    acknowledge: Acknowledge
    wish: Registration  #: what it wants to be registered as; ``id`` is the wanted one
    subscribed: dict[int, Subscribed]
    id: int = 0  #: the one given out; 0: none
    expected: int = 1  #: number of the next event
    epoch: int = 0  #: counts registrations
    changed: bool = False  #: the subscription is another than the master knows
    wish_changed: bool = False  #: something else about it is
    renewed: set[int] = field(factory=set)  #: given up and wanted again since the last commit
    batches: deque[Batch] = field(factory=deque)
    early: list[Sequence[Numbered]] = field(factory=list)  #: reports before the answer
    failures: int = 0  #: tries since the last success
    deadline: float = inf  #: when :meth:`EventClient.elapsed` has something to do
    unknown: set[int] = field(factory=set)  #: event numbers nobody knows
    last_error: str = ""
    stage: str = "idle"  #: for people: what it does
    max_waiting: int = 1_000_000

    def registration(self, subscriptions: Sequence[Subscribed] | None) -> Registration:
        """Itself as it is sent."""
        return evolve(
            self.wish,
            id=self.id or self.wish.id,
            subscriptions=None if subscriptions is None else tuple(subscriptions),
            changed=subscriptions is not None,
        )

    def open(self, now: float) -> None:
        self.stage = "connecting"
        self.deadline = now + self.times.connect_seconds
        self.around.open()

    def end(self) -> None:
        self.stage = "idle"
        self.around.close()
        self.id, self.expected, self.deadline = 0, 1, inf
        self.batches.clear()

    def register(self, now: float) -> None:
        self.stage = "registering"
        self.deadline = now + self.times.answer_seconds
        self.id, self.expected = 0, 1
        self.early.clear()
        self.changed = self.wish_changed = False
        self.renewed.clear()
        self.around.register(self.registration(list(self.subscribed.values())))

    def rest(self, now: float, at_least: float = 0.0) -> None:
        """Wait before the next try."""
        self.stage = "waiting"
        times = self.times
        seconds = 0.0
        if self.failures:
            doubled = times.first_retry_seconds * 2.0 ** min(self.failures - 1, 30)
            seconds = min(doubled, times.last_retry_seconds)
        seconds = max(seconds, at_least)
        self.failures += 1
        self.deadline = now + seconds * (1 + self.chance.random() * times.jitter)

    def silence(self, now: float) -> None:
        """Wait for the master's next sign of life."""
        self.deadline = now + TIMEOUT_DELIVERY_TIMES * self.wish.delivery_seconds

    def check(self, events: Sequence[Numbered]) -> Sequence[Numbered] | None:
        """
        The new ones of *events*; None if there is a gap (docs/protocols/event-mirror.rst,
        "Checking numbers").
        """
        expected = self.expected
        if not events or events[-1][0] < expected - 1:
            return ()
        if events[0][0] > expected:
            return None
        fresh = [numbered for numbered in events if numbered[0] >= expected]
        if any(number != expected + place for place, (number, _) in enumerate(fresh)):
            return None
        self.expected = expected + len(fresh)
        return fresh

    def take_in(self, events: Sequence[Numbered], now: float) -> str:
        """A report came; gives what makes a new registration necessary, or "" or "shut down"."""
        fresh = self.check(events)
        if fresh is None:
            return f"a report begins at {events[0][0]}, {self.expected} was expected"
        self.silence(now)
        cut = next((n for n, (_, event) in enumerate(fresh) if event.event == SHUTDOWN), None)
        if cut is not None:
            fresh = fresh[: cut + 1]
        batch = Batch(fresh, self.expected - 1, self.epoch)
        if self.acknowledge is Acknowledge.RECEIVED or (not fresh and not self.batches):
            self.around.acknowledge(batch.last, self.id)
        if not fresh:
            return ""
        if sum(len(each.events) for each in self.batches) + len(fresh) > self.max_waiting:
            # Fresh lists cost less memory than what nobody takes.
            self.batches.clear()
            return f"more than {self.max_waiting} events wait to be taken"
        self.batches.append(batch)
        self.around.arrived()
        for _, event in fresh:
            if event.event == SHUTDOWN:
                return "shut down"
            if event.event == MASTER_GOES_DOWN:
                return "the master goes down"
            if event.event == TIMED_OUT:
                return "the master gave up waiting for acknowledgements"
        return ""


class _Client(Protocol):
    """What can happen to an event client."""

    def begin(self, now: float) -> None:
        """Register, and stay registered."""

    def opened(self, now: float) -> None:
        """The connection is there."""

    def accepted(self, client_id: int, now: float) -> None:
        """The registration was accepted under that id."""

    def refused(self, reason: str, at_least: float, now: float) -> None:
        """The registration was refused; no new try before *at_least* seconds."""

    def reported(self, events: Sequence[Numbered], now: float) -> None:
        """A report came."""

    def lost(self, reason: str, at_least: float, now: float) -> None:
        """The connection is gone, or what came over it was malformed."""

    def unknown_to_master(self, reason: str, now: float) -> None:
        """A modification was refused: the master does not know the client."""

    def elapsed(self, now: float) -> None:
        """The deadline has passed."""

    def commit(self, now: float) -> None:
        """Send what has changed."""

    def leave(self, now: float) -> None:
        """Leave properly."""


_builder = TypeMachineBuilder(_Client, ClientCore)

idle = _builder.state("idle")
opening = _builder.state("opening")
registering = _builder.state("registering")
registered = _builder.state("registered")
resting = _builder.state("resting")
leaving = _builder.state("leaving")


@idle.upon(_Client.begin).to(opening)
def _begin(client: _Client, core: ClientCore, now: float) -> None:
    core.failures = 1
    core.open(now)


for _state in (opening, registering, registered, resting, leaving):
    _state.upon(_Client.begin).loop().returns(None)


@opening.upon(_Client.opened).to(registering)
def _opened(client: _Client, core: ClientCore, now: float) -> None:
    core.register(now)


@registering.upon(_Client.accepted).to(registered)
def _accepted(client: _Client, core: ClientCore, client_id: int, now: float) -> None:
    core.stage = "registered"
    core.id = client_id
    core.epoch += 1
    core.failures = 0
    core.last_error = ""
    core.silence(now)
    core.around.registered()
    early, core.early = core.early, []
    for events in early:
        client.reported(events, now)
    client.commit(now)


def _try_again(core: ClientCore, reason: str, now: float, at_least: float = 0.0) -> None:
    core.around.close()
    core.last_error = reason
    core.id = 0
    core.rest(now, at_least)
    core.around.parted(reason)


@opening.upon(_Client.lost).to(resting)
@registering.upon(_Client.lost).to(resting)
@registered.upon(_Client.lost).to(resting)
def _lost(client: _Client, core: ClientCore, reason: str, at_least: float, now: float) -> None:
    _try_again(core, reason, now, at_least)


@registering.upon(_Client.refused).to(resting)
def _refused(client: _Client, core: ClientCore, reason: str, at_least: float, now: float) -> None:
    _try_again(core, reason, now, at_least)


@registering.upon(_Client.reported).loop()
def _reported_early(
    client: _Client, core: ClientCore, events: Sequence[Numbered], now: float
) -> None:
    # Real masters may send the first report before the answer: it waits for the id that its
    # acknowledgement needs.
    if len(core.early) < 100:
        core.early.append(events)


@registered.upon(_Client.reported).loop()
def _reported(client: _Client, core: ClientCore, events: Sequence[Numbered], now: float) -> None:
    trouble = core.take_in(events, now)
    if trouble == "shut down":
        client.leave(now)
        core.around.ended("the master asked the client to leave")
    elif trouble:
        client.lost(trouble, 0.0, now)


@registered.upon(_Client.unknown_to_master).to(resting)
def _unknown(client: _Client, core: ClientCore, reason: str, now: float) -> None:
    _try_again(core, reason, now)


@opening.upon(_Client.elapsed).to(resting)
def _no_connection(client: _Client, core: ClientCore, now: float) -> None:
    _try_again(core, f"no connection within {core.times.connect_seconds:g} s", now)


@registering.upon(_Client.elapsed).to(resting)
def _no_answer(client: _Client, core: ClientCore, now: float) -> None:
    _try_again(core, f"no answer within {core.times.answer_seconds:g} s", now)


@registered.upon(_Client.elapsed).to(resting)
def _silent(client: _Client, core: ClientCore, now: float) -> None:
    _try_again(core, "the master is silent", now)


@resting.upon(_Client.elapsed).to(opening)
def _rested(client: _Client, core: ClientCore, now: float) -> None:
    core.open(now)


@leaving.upon(_Client.elapsed).to(idle)
def _left_waiting(client: _Client, core: ClientCore, now: float) -> None:
    core.end()


@leaving.upon(_Client.lost).to(idle)
def _left(client: _Client, core: ClientCore, reason: str, at_least: float, now: float) -> None:
    core.end()


@registered.upon(_Client.commit).loop()
def _commit(client: _Client, core: ClientCore, now: float) -> None:
    if core.wish_changed and not core.changed:
        core.wish_changed = False
        core.around.modify(core.registration(None))
    if not core.changed:
        return
    core.changed = core.wish_changed = False
    wanted = list(core.subscribed.values())
    less = [each for each in wanted if each.event not in core.renewed]
    core.renewed.clear()
    if len(less) < len(wanted):
        # Given up and wanted again: on the wire that takes two modifications.
        core.around.modify(core.registration(less))
    core.around.modify(core.registration(wanted))


for _state in (idle, opening, registering, resting, leaving):
    # Whatever has changed goes along with the registration, or is sent right after it.
    _state.upon(_Client.commit).loop().returns(None)


@registered.upon(_Client.leave).to(leaving)
def _leave(client: _Client, core: ClientCore, now: float) -> None:
    core.stage = "leaving"
    core.deadline = now + core.times.leave_seconds
    core.around.leave(core.id)


@opening.upon(_Client.leave).to(idle)
@registering.upon(_Client.leave).to(idle)
@resting.upon(_Client.leave).to(idle)
def _leave_at_once(client: _Client, core: ClientCore, now: float) -> None:
    core.end()


# What comes too late, or over a connection that is being given up, changes nothing.
for _state in (idle, leaving):
    _state.upon(_Client.leave).loop().returns(None)
for _state in (idle, opening, registering, registered, resting, leaving):
    if _state is not opening:
        _state.upon(_Client.opened).loop().returns(None)
    if _state is not registering:
        _state.upon(_Client.accepted).loop().returns(None)
        _state.upon(_Client.refused).loop().returns(None)
    if _state not in (registering, registered):
        _state.upon(_Client.reported).loop().returns(None)
    if _state is not registered:
        _state.upon(_Client.unknown_to_master).loop().returns(None)
idle.upon(_Client.lost).loop().returns(None)
idle.upon(_Client.elapsed).loop().returns(None)
resting.upon(_Client.lost).loop().returns(None)

client_machine = quick(_builder).build()
