"""Job events for the other components of the process (:class:`gridnet.interfaces.IJobEvents`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from gridnet.interfaces import IJobEvents
from gridnet.lbproxy import events
from gridnet.lbproxy.book import JobBook
from gridnet.lbproxy.event_types import event_type
from gridnet.lbproxy.events import EventError
from gridnet.lbproxy.frames import Major, Reply
from gridnet.lbproxy.identity import comparison_key
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.ledger import StoredEvent
from gridnet.lbproxy.record import state_number
from gridnet.lbproxy.stream import EventFilter
from gridnet.lbproxy.subscriptions import Batch, Subscription


class TooManyFollowers(Exception):
    """The stream has as many followers as it may."""


def make_filter(
    jobs: Iterable[str] = (),
    owners: Iterable[str] = (),
    types: Iterable[str] = (),
    states: Iterable[str] = (),
) -> EventFilter:
    """
    A filter from texts as people write them.

    :raises ValueError: an unknown event type or state.
    :raises gridnet.lbproxy.jobid.JobIdError: not a job id.
    """
    numbers, places = set(), set()
    for name in types:
        kind = event_type(name)
        if kind is None:
            raise ValueError(f"{name!r} is no event type")
        numbers.add(kind.number)
    for name in states:
        place = state_number(name)
        if place is None:
            raise ValueError(f"{name!r} is no state")
        places.add(place)
    return EventFilter(
        frozenset(parse_job_id(job).unique for job in jobs),
        frozenset(map(comparison_key, owners)),
        frozenset(numbers),
        frozenset(places),
    )


class _CallableSink:
    """Calls a function with the events of each batch."""

    is_ready = True

    def __init__(
        self,
        received: Callable[[Sequence[StoredEvent]], None],
        ended: Callable[[str], None] | None,
    ) -> None:
        self._received = received
        self._ended = ended

    def deliver(self, batch: Batch) -> None:
        self._received(batch.events)

    def tell_trimmed(self, position: int) -> None:
        """In the process nobody waits long enough for this to matter."""

    def caught_up(self) -> None:
        """Nobody asks."""

    def fail(self, reason: str) -> None:
        if self._ended is not None:
            self._ended(reason)


@implementer(IJobEvents)
class JobEvents:
    """What the LB proxy offers to the components beside it."""

    def __init__(self, book: JobBook) -> None:
        self._book = book

    def log(self, line: bytes) -> Deferred[Reply]:
        """Store one event line."""
        try:
            event = events.parse(line)
        except EventError as error:
            answered: Deferred[Reply] = Deferred()
            answered.callback(Reply(Major.PROTOCOL, error.number, str(error)))
            return answered
        return self._book.log(event)

    def subscribe(
        self,
        received: Callable[[Sequence[StoredEvent]], None],
        wanted: EventFilter | None = None,
        after: int | None = None,
        ended: Callable[[str], None] | None = None,
    ) -> Subscription:
        """Call *received* with events in order."""
        position = self._book.hub.newest if after is None else after
        subscription = self._book.hub.subscribe(
            wanted or EventFilter(), position, _CallableSink(received, ended)
        )
        if subscription is None:
            raise TooManyFollowers
        subscription.resume()
        return subscription
