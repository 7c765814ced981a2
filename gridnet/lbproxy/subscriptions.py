"""
Followers of the event stream: those who are up to date are told at once, the others read on.

A follower is never owed memory: while its connection takes nothing it is just *behind*, and once
it takes something again it reads on from its cursor, out of the recent events held in memory or
out of the store.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gridnet.lbproxy import stream
from gridnet.lbproxy.config import StreamConfig
from gridnet.lbproxy.ledger import StoredEvent
from gridnet.lbproxy.stream import EventFilter, Page

T = TypeVar("T")

#: Runs a function on a snapshot of the store, in a thread.
Read = Callable[[Callable[[sqlite3.Connection], T]], "Deferred[T]"]


class Batch:
    """Some events for everyone with one filter; their octets are made once."""

    def __init__(self, events: Sequence[StoredEvent], recent: dict[int, bytes]) -> None:
        self.events = events
        self._recent = recent
        self._octets: bytes | None = None

    @property
    def octets(self) -> bytes:
        """The events as server-sent events."""
        if self._octets is None:
            parts = []
            for one in self.events:
                made = self._recent.get(one.position)
                if made is None:
                    made = self._recent[one.position] = stream.as_sse(one)
                parts.append(made)
            self._octets = b"".join(parts)
        return self._octets


class Sink(Protocol):
    """Where a subscription delivers to."""

    def deliver(self, batch: Batch) -> None:
        """Take events, in order."""

    def tell_trimmed(self, position: int) -> None:
        """Learn that events up to *position* may be missing."""

    def caught_up(self) -> None:
        """Learn that everything there was has been delivered; may be told more than once."""

    def fail(self, reason: str) -> None:
        """Learn that there will be no more."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes more now; it calls :meth:`Subscription.resume` once it does again."""


@define(eq=False, slots=True)
class Subscription:
    """
    One follower.

    :ivar cursor: position of the last event it was given, or had looked at for it.
    """

    wanted: EventFilter
    cursor: int
    sink: Sink
    _hub: Hub
    is_live: bool = False  #: is told of new events as they come
    is_reading: bool = False  #: a page is on its way from the store
    is_over: bool = False
    told_trimmed: int = 0  #: position up to which it was told that events may be missing

    @property
    def reached(self) -> int:
        """Position up to which everything was given to it, or looked at and not wanted."""
        return self._hub.newest if self.is_live else self.cursor

    def resume(self) -> None:
        """Deliver what has come since; to be called when the sink takes more."""
        self._hub.catch_up(self)

    def cancel(self) -> None:
        """Deliver nothing more."""
        self._hub.drop(self)


@define(eq=False)
class Hub:
    """
    All followers of one store.

    :ivar newest: position of the newest event that was told.
    :ivar delivered: events given to followers so far.
    """

    config: StreamConfig
    read: Read[Page]
    newest: int = 0
    delivered: int = 0
    _recent: deque[StoredEvent] = field(factory=deque, init=False)
    _recent_octets: int = field(default=0, init=False)
    _floor: int = field(default=0, init=False)  # newest event that is not held in memory
    _everyone: set[Subscription] = field(factory=set, init=False)
    _by_job: dict[str, set[Subscription]] = field(factory=dict, init=False)
    _general: set[Subscription] = field(factory=set, init=False)

    _log = Logger()

    def start(self, newest: int) -> None:
        """*newest* is the position of the newest event of the store."""
        self.newest = self._floor = newest

    @property
    def followers(self) -> int:
        """How many there are."""
        return len(self._everyone)

    def subscribe(self, wanted: EventFilter, after: int, sink: Sink) -> Subscription | None:
        """
        Follow from *after* on; None when there are too many followers.

        Call :meth:`Subscription.resume` once the sink can take events.
        """
        if len(self._everyone) >= self.config.max_subscribers:
            return None
        subscription = Subscription(wanted, min(after, self.newest), sink, self)
        self._everyone.add(subscription)
        if wanted.jobs:
            for unique in wanted.jobs:
                self._by_job.setdefault(unique, set()).add(subscription)
        else:
            self._general.add(subscription)
        return subscription

    def drop(self, subscription: Subscription) -> None:
        """End *subscription*; again does no harm."""
        subscription.is_over = True
        self._everyone.discard(subscription)
        self._general.discard(subscription)
        for unique in subscription.wanted.jobs:
            found = self._by_job.get(unique)
            if found is not None:
                found.discard(subscription)
                if not found:
                    del self._by_job[unique]

    def close(self) -> None:
        """End all."""
        for subscription in list(self._everyone):
            self.drop(subscription)
            subscription.sink.fail("the service is stopping")

    def publish(self, events: Sequence[StoredEvent]) -> None:
        """Tell of *events*, which are in the store now; positions only grow."""
        if not events:
            return
        self.newest = events[-1].position
        self._remember(events)
        if not self._everyone:
            return
        made: dict[int, bytes] = {}
        if self._general:
            self._publish_generally(events, made)
        if self._by_job:
            self._publish_by_job(events, made)

    def _publish_generally(self, events: Sequence[StoredEvent], made: dict[int, bytes]) -> None:
        batches: dict[EventFilter, Batch | None] = {}
        for subscription in list(self._general):
            if not subscription.is_live:
                continue
            wanted = subscription.wanted
            if wanted not in batches:
                fitting = [one for one in events if wanted.fits(one)]
                batches[wanted] = Batch(fitting, made) if fitting else None
            self._give(subscription, batches[wanted])

    def _publish_by_job(self, events: Sequence[StoredEvent], made: dict[int, bytes]) -> None:
        chosen: dict[Subscription, list[StoredEvent]] = {}
        for one in events:
            for subscription in self._by_job.get(one.event.job_id.unique, ()):
                if subscription.is_live and subscription.wanted.fits(one):
                    chosen.setdefault(subscription, []).append(one)
        for subscription, fitting in chosen.items():
            self._give(subscription, Batch(fitting, made))

    def _give(self, subscription: Subscription, batch: Batch | None) -> None:
        if batch is None:
            return
        if not subscription.sink.is_ready or batch.events[0].position <= subscription.cursor:
            subscription.is_live = False
            if subscription.sink.is_ready:
                self.catch_up(subscription)
            return
        subscription.cursor = batch.events[-1].position
        self.delivered += len(batch.events)
        subscription.sink.deliver(batch)

    def _remember(self, events: Sequence[StoredEvent]) -> None:
        recent = self._recent
        recent.extend(events)
        for one in events:
            self._recent_octets += len(one.event.line)
        config = self.config
        while recent and (
            len(recent) > config.recent_events or self._recent_octets > config.recent_octets
        ):
            oldest = recent.popleft()
            self._recent_octets -= len(oldest.event.line)
            self._floor = oldest.position

    # -- those who are behind ---------------------------------------------------------------------

    def catch_up(self, subscription: Subscription) -> None:
        """Bring *subscription* up to date, as far as its sink takes it."""
        if subscription.is_over or subscription.is_reading or subscription.is_live:
            return
        if not subscription.sink.is_ready:
            return
        if subscription.cursor >= self._floor:
            self._catch_up_from_memory(subscription)
        else:
            self._catch_up_from_store(subscription)

    def _catch_up_from_memory(self, subscription: Subscription) -> None:
        missing: list[StoredEvent] = []
        for one in reversed(self._recent):
            if one.position <= subscription.cursor:
                break
            missing.append(one)
        missing.reverse()
        wanted = subscription.wanted
        for page in self._pages(missing):
            fitting = [one for one in page if wanted.fits(one)]
            subscription.cursor = page[-1].position
            if fitting:
                self.delivered += len(fitting)
                subscription.sink.deliver(Batch(fitting, {}))
            if subscription.is_over or not subscription.sink.is_ready:
                return
        subscription.is_live = True
        subscription.sink.caught_up()

    def _pages(self, events: Sequence[StoredEvent]) -> Iterator[list[StoredEvent]]:
        page: list[StoredEvent] = []
        octets = 0
        for one in events:
            page.append(one)
            octets += len(one.event.line)
            if len(page) >= self.config.page_events or octets > self.config.page_octets:
                yield page
                page, octets = [], 0
        if page:
            yield page

    def _catch_up_from_store(self, subscription: Subscription) -> None:
        subscription.is_reading = True
        wanted, after, config = subscription.wanted, subscription.cursor, self.config
        reading = self.read(
            lambda connection: stream.read_page(
                connection, wanted, after, config.page_events, config.page_octets
            )
        )
        reading.addCallback(self._page_read, subscription)
        reading.addErrback(self._page_failed, subscription)

    def _page_read(self, page: Page, subscription: Subscription) -> None:
        subscription.is_reading = False
        if subscription.is_over:
            return
        if 0 < subscription.cursor < page.trimmed and page.trimmed > subscription.told_trimmed:
            subscription.told_trimmed = page.trimmed
            subscription.sink.tell_trimmed(page.trimmed)
        subscription.cursor = page.through
        if page.events:
            self.delivered += len(page.events)
            subscription.sink.deliver(Batch(page.events, {}))
        self.catch_up(subscription)

    def _page_failed(self, failure: object, subscription: Subscription) -> None:
        subscription.is_reading = False
        if not subscription.is_over:
            self.drop(subscription)
            self._log.warn("a follower cannot read on: {failure}", failure=failure)
            subscription.sink.fail("the store cannot be read")
