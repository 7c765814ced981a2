"""
What event masters and mirrors say to each other: events, subscriptions, reports.

Everything here is immutable and knows no wire format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

from attrs import define, field, frozen

from gridnet.mirror.element import Element, ElementList, weigh
from gridnet.mirror.filters import What, Where

_TEXT_CHARACTERS = 1000


def said(text: Any) -> str:
    """What a peer said, fit for logs and terminals: one line, of a bounded length."""
    return printable(str(text)[:_TEXT_CHARACTERS])


def printable(text: str) -> str:
    """*text* without what a terminal would obey, or what no encoding has."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Action(IntEnum):
    """What happened to a list (docs/protocols/event-mirror.rst, "Object types")."""

    LIST = 1  #: the whole list arrived
    ADD = 2
    MODIFY = 3
    DELETE = 4
    TRIGGER = 5  #: of types without data


class Result(IntEnum):
    """How a call of the mirror ended."""

    OK = 0
    NOT_INITIALIZED = 1
    BAD_ARGUMENT = 2
    TIMEOUT = 3
    DUPLICATE_KEY = 4
    KEY_NOT_FOUND = 5
    CALLBACK_FAILED = 6
    PROCESS_ERRORS = 7


class BusyPolicy(IntEnum):
    """When a client counts as busy (docs/protocols/event-mirror.rst, "Busy policies")."""

    NONE = 0  #: never by itself
    UNTIL_ACKNOWLEDGED = 1
    UNTIL_RELEASED = 2


@define(slots=True, eq=False)
class Event:
    """
    One change, as it is queued, delivered and applied; the number stands in the report.

    :ivar event: event number of the catalogue.
    :ivar timestamp: seconds since the epoch when it arose.
    :ivar elements: the new version: the whole list, one element, or None.
    :ivar number: on the receiving side, the number it came with; 0 on the sending side, where
        one event goes to many clients under different numbers.
    :ivar encoded: room for wire codecs to keep its octets, keyed by the codec: one event goes
        to many clients.
    """

    event: int
    timestamp: int = 0
    int_key: int = 0
    int_key2: int = 0
    text_key: str | None = None
    text_key2: str | None = None
    elements: ElementList | None = None
    number: int = 0
    encoded: dict[str, bytes] | None = field(default=None, repr=False)
    _weight: int = field(default=0, init=False, repr=False)

    @property
    def facts(self) -> tuple[object, ...]:
        """Everything but the timestamp, for comparisons."""
        return (
            self.event,
            self.int_key,
            self.int_key2,
            self.text_key,
            self.text_key2,
            self.elements,
        )

    @property
    def element(self) -> Element | None:
        """The one element of an add or modify event."""
        return self.elements[0] if self.elements else None

    @property
    def weight(self) -> int:
        """About how many octets it occupies in a queue."""
        if self._weight == 0:
            self._weight = 100 + weigh(self.elements)
        return self._weight

    def received(self, number: int) -> Event:
        """A copy under the *number* that one client got it with."""
        return Event(
            self.event,
            self.timestamp,
            self.int_key,
            self.int_key2,
            self.text_key,
            self.text_key2,
            self.elements,
            number,
        )

    def blank(self) -> Event:
        """The event without keys and data: counted by the receiver, not processed."""
        return Event(self.event, self.timestamp)


@frozen
class Subscribed:
    """The subscription of one event."""

    event: int
    #: deliver within this many seconds of the event (0: at once); -1: with the next report
    flush_seconds: int = -1
    where: Where | None = None  #: only elements that fit
    what: What | None = None  #: only these attributes


@frozen
class Registration:
    """
    What an event client says of itself when it registers or modifies itself.

    The transport replaces host, component, component id and user id by what it knows itself.
    """

    name: str = ""
    id: int = 0  #: 0: "give me one"
    host: str = ""
    component: str = ""
    component_id: int = 0
    user_id: int = 0
    delivery_seconds: int = 10
    flush_delay_seconds: int = 0
    #: None: absent, allowed only in a modification that changes no subscription
    subscriptions: tuple[Subscribed, ...] | None = ()
    changed: bool = True  #: :attr:`subscriptions` is complete and replaces the old
    busy_policy: int = BusyPolicy.UNTIL_ACKNOWLEDGED
    busy: bool = False
    session: str = ""

    @property
    def address(self) -> tuple[str, str, int]:
        """What identifies the client as a peer: a second registration replaces the first."""
        return (self.host, self.component, self.component_id)


@frozen
class Report:
    """
    What one delivery brings: events with contiguous numbers.

    :ivar first: number of the first event (of the next one to come, if there are none).
    :ivar parts: the events, in order, in several runs so that queues need not be copied.
    """

    first: int
    parts: tuple[Sequence[Event], ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Event]:
        for part in self.parts:
            yield from part

    @property
    def last(self) -> int:
        """Number of the last event; ``first - 1`` in an empty report."""
        return self.first + len(self) - 1

    def numbered(self) -> Iterator[tuple[int, Event]]:
        """The events with their numbers."""
        return enumerate(self, self.first)
