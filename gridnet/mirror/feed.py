"""
What waits for clients: the logs that they share, and where each of them is.

Pure.  Clients with the same wishes share a :class:`Feed`, a log of events that were chosen and
reduced once; a client's queue is what it has for itself (initial lists, mostly) and a range of its
feed.  Numbers are not stored: a queue is contiguous, so the number of its first event gives all
others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from math import inf
from typing import Protocol, overload

from attrs import define, field

from gridnet.mirror.model import Event, Registration, Report, Subscribed


class ClientPort(Protocol):
    """What the master needs of a transport, for one client."""

    def deliver(self, report: Report) -> bool:
        """Take *report* for sending; False: cannot now, or the connection is gone."""

    def dropped(self, reason: str) -> None:
        """The client is registered no more."""


class ClientState(Enum):
    """Where a client is in its life."""

    CONNECTED = "connected"
    CLOSING = "closing"  #: its shutdown event is queued; nothing is added any more
    TERMINATED = "terminated"  #: it has left; the next round removes it


#: Events of a feed that codecs keep joined: a client that gets a thousand events gets them in
#: about eighty pieces.
BLOCK_EVENTS = 64


class Run(Sequence[Event]):
    """
    A range of a feed: the events, and what codecs made of them for the clients before.

    :param position: of the first event in the feed.
    :param blocks: (codec, position / :data:`BLOCK_EVENTS`) -> joined octets; shared with the feed.
    """

    __slots__ = ("_blocks", "_events", "_position")

    def __init__(
        self,
        events: Sequence[Event],
        position: int,
        blocks: dict[tuple[str, int], bytes],
    ) -> None:
        self._events = events
        self._position = position
        self._blocks = blocks

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self._events[index]

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def pieces(
        self, codec: str, pack: Callable[[Event], Sequence[bytes]], joint: bytes
    ) -> Iterator[bytes]:
        """
        What *pack* makes of the events, with *joint* between them.

        For codecs whose octets of an event do not depend on its number.
        """
        place, end = 0, len(self._events)
        while place < end:
            if place:
                yield joint
            position = self._position + place
            if position % BLOCK_EVENTS == 0 and place + BLOCK_EVENTS <= end:
                key = (codec, position // BLOCK_EVENTS)
                block = self._blocks.get(key)
                if block is None:
                    events = self._events[place : place + BLOCK_EVENTS]
                    block = joint.join(b"".join(pack(event)) for event in events)
                    self._blocks[key] = block
                yield block
                place += BLOCK_EVENTS
            else:
                yield from pack(self._events[place])
                place += 1


@define(eq=False)
class Feed:
    """
    A log of the events that clients with one subscription and session get.

    Positions count from the first event ever; *start* is that of ``events[0]``.
    """

    subscriptions: dict[int, Subscribed]
    session: str
    key: object
    events: list[Event] = field(factory=list)
    start: int = 0
    #: running total of weights, one longer than *events*
    weights: list[int] = field(factory=lambda: [0])
    #: (position, latest time to deliver it), both rising: the earliest time that holds from a
    #: position on is the first mark at or after it
    marks: list[tuple[int, float]] = field(factory=list)
    clients: set[Client] = field(factory=set)
    #: see :class:`Run`
    blocks: dict[tuple[str, int], bytes] = field(factory=dict)

    @property
    def octets(self) -> int:
        """How much all its events occupy, about."""
        return self.weights[-1] - self.weights[0]

    @property
    def end(self) -> int:
        """Position of the event to come."""
        return self.start + len(self.events)

    def append(self, event: Event, due: float | None) -> None:
        """Add *event*, to be delivered by *due*."""
        if due is not None:
            while self.marks and self.marks[-1][1] >= due:
                self.marks.pop()
            self.marks.append((self.end, due))
        self.events.append(event)
        self.weights.append(self.weights[-1] + event.weight)

    def due(self, position: int) -> float:
        """By when something from *position* on is to be delivered; infinite: at leisure."""
        place = bisect_left(self.marks, (position, -inf))
        return self.marks[place][1] if place < len(self.marks) else inf

    def part(self, first: int) -> Run:
        """The events from position *first* on."""
        return Run(self.events[first - self.start :], first, self.blocks)

    def weight(self, first: int) -> int:
        """Octets, about, of the events from position *first* on."""
        return self.weights[-1] - self.weights[first - self.start]

    def trim(self) -> None:
        """Forget what no client needs any more."""
        needed = min((client.position for client in self.clients), default=self.end)
        gone = needed - self.start
        if gone:
            del self.events[:gone]
            del self.weights[:gone]
            base = self.weights[0]
            if base > 1 << 40:  # rarely: keep the totals small
                self.weights = [weight - base for weight in self.weights]
            self.start = needed
            for key in [key for key in self.blocks if (key[1] + 1) * BLOCK_EVENTS <= needed]:
                del self.blocks[key]
            del self.marks[: bisect_left(self.marks, (needed, -inf))]


@define(eq=False)
class Client:
    """One registered client."""

    id: int
    registration: Registration
    port: ClientPort
    feed: Feed
    position: int  #: in the feed, of the first event queued there
    last_heard: float
    next_send: float
    last_send: float = 0.0
    state: ClientState = ClientState.CONNECTED
    busy: bool = False
    first: int = 1  #: number of the first event queued
    own: list[Event] = field(factory=list)  #: queued before those of the feed
    own_weight: int = 0
    sent: int = 0  #: highest number in any report given to the transport
    flushed: int = 0  #: position in the feed whose marks count from
    #: types whose list is not known yet: their events wait until it is
    blocked: set[str] = field(factory=set)

    @property
    def next_number(self) -> int:
        """The number that the next event will have."""
        return self.first + self.queued

    @property
    def queued(self) -> int:
        """How many events are not acknowledged."""
        return len(self.own) + self.feed.end - self.position

    @property
    def octets(self) -> int:
        """How much they occupy, about."""
        return self.own_weight + self.feed.weight(self.position)

    def due(self) -> float:
        """When the next report goes out, unless it is busy."""
        return min(self.next_send, self.feed.due(self.flushed))

    def report(self) -> Report:
        """Everything that is not acknowledged."""
        return Report(self.first, (tuple(self.own), self.feed.part(self.position)))

    def take_all(self) -> None:
        """Make the whole queue its own, so that it may be changed or follow another feed."""
        for event in self.feed.part(self.position):
            self.own.append(event)
            self.own_weight += event.weight
        # Marks of what is taken along stay in force.
        self.next_send = self.due()
        self.position = self.flushed = self.feed.end

    def acknowledge(self, number: int) -> None:
        """Retire everything up to *number*, which is at most :attr:`sent`."""
        count = number - self.first + 1
        if count <= 0:
            return
        taken = self.own[:count]
        self.own_weight -= sum(event.weight for event in taken)
        del self.own[: len(taken)]
        self.position += count - len(taken)
        self.first = number + 1
