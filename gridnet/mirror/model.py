"""
The values that event masters and mirrors exchange: elements, events, subscriptions.

Everything here is immutable and knows no wire format: a Grid Engine job and an entry of
gridnet's service table are both an :class:`Element`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar, overload

from attrs import define, field, frozen

from gridnet.mirror.filters import What, Where

L = TypeVar("L", bound="Layout")


class Layout:
    """
    The names of an element's attributes, in order; shared by all elements of a kind.

    :ivar names: attribute names.
    :ivar index: name -> position.
    """

    __slots__ = ("__weakref__", "index", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names: tuple[str, ...] = tuple(names)
        self.index: Mapping[str, int] = {name: place for place, name in enumerate(self.names)}

    def selected(self: L, names: Sequence[str]) -> L:
        """The layout of elements reduced to *names*, in that order."""
        return type(self)(names)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' '.join(self.names)}>"


class Element(Mapping[str, Any]):
    """
    One object of a list: a mapping from attribute names to values, immutable.

    Values are None, bool, int, float, str, an :class:`Element` or an :class:`ElementList`;
    in gridnet's own lists any JSON value.

    :ivar layout: the attribute names.
    :ivar values_: the values, in the order of the layout.
    :ivar encoded: room for a wire codec to keep its octets: one element goes to many clients.
    :ivar weight: about how many octets it occupies, once :func:`weigh` has been asked.
    """

    __slots__ = ("encoded", "layout", "values_", "weight")

    def __init__(self, layout: Layout, values: Iterable[Any]) -> None:
        self.layout = layout
        self.values_: tuple[Any, ...] = tuple(values)
        self.encoded: bytes | None = None
        self.weight = 0

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Element:
        """An element with a layout of its own."""
        return cls(layout_of(tuple(attributes)), attributes.values())

    def __getitem__(self, name: str) -> Any:
        return self.values_[self.layout.index[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.layout.index

    def get(self, name: str, default: Any = None) -> Any:
        """The value of *name*, or *default* where the element has no such attribute."""
        place = self.layout.index.get(name)
        return default if place is None else self.values_[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.values_)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Element):
            return NotImplemented
        if self.layout is other.layout or self.layout.names == other.layout.names:
            return self.values_ == other.values_
        return dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def evolve(self, changes: Mapping[str, Any]) -> Element:
        """A copy with *changes*; names that it does not have are left out."""
        values = list(self.values_)
        for name, value in changes.items():
            place = self.layout.index.get(name)
            if place is not None:
                values[place] = value
        return Element(self.layout, values)

    def as_json(self) -> dict[str, Any]:
        """Plain dicts and lists, for :func:`json.dumps`."""
        return {name: as_json(value) for name, value in self.items()}

    def __repr__(self) -> str:
        return f"<Element {dict(self)!r}>"


class ElementList(Sequence[Element]):
    """
    A list of elements: the value of a list attribute, or what an event carries.

    :ivar elements: the elements.
    :ivar layout: layout of all of them, where the source has one for the list as a whole.
    :ivar name: what the source calls the list; travels with it, means nothing.
    :ivar changed: a mark that travels with it, too.
    :ivar weight: about how many octets it occupies, once :func:`weigh` has been asked.
    """

    __slots__ = ("changed", "elements", "layout", "name", "weight")

    def __init__(
        self,
        elements: Iterable[Element] = (),
        layout: Layout | None = None,
        name: str = "",
        changed: int = 0,
    ) -> None:
        self.elements: tuple[Element, ...] = tuple(elements)
        self.layout = layout
        self.name = name
        self.changed = changed
        self.weight = 0

    @overload
    def __getitem__(self, index: int) -> Element: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Element]: ...
    def __getitem__(self, index: int | slice) -> Element | Sequence[Element]:
        return self.elements[index]

    def __len__(self) -> int:
        return len(self.elements)

    def __iter__(self) -> Iterator[Element]:
        return iter(self.elements)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ElementList):
            return NotImplemented
        return self.elements == other.elements

    __hash__ = None  # type: ignore[assignment]

    def with_elements(
        self, elements: Iterable[Element], layout: Layout | None = None
    ) -> ElementList:
        """The same list with other *elements* (and their *layout*, where it differs)."""
        return ElementList(elements, layout or self.layout, self.name, self.changed)

    def __repr__(self) -> str:
        return f"<ElementList {self.name!r} {list(self.elements)!r}>"


_TEXT_CHARACTERS = 1000


def said(text: Any) -> str:
    """What a peer said, fit for logs and terminals: one line, of a bounded length."""
    found = str(text)[:_TEXT_CHARACTERS]
    return "".join(letter if letter.isprintable() else "?" for letter in found)


def as_json(value: Any) -> Any:
    """*value* of an attribute as plain dicts, lists and scalars."""
    if isinstance(value, Element):
        return value.as_json()
    if isinstance(value, ElementList):
        return [element.as_json() for element in value]
    return value


_MAX_LAYOUTS = 4096
_layouts: dict[tuple[str, ...], Layout] = {}


def layout_of(names: tuple[str, ...]) -> Layout:
    """The one layout with these *names* (so that elements of a kind share it)."""
    found = _layouts.get(names)
    if found is None:
        if len(_layouts) >= _MAX_LAYOUTS:  # names come from peers: a bound, not a leak
            _layouts.clear()
        found = _layouts[names] = Layout(names)
    return found


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


def weigh(value: Any) -> int:
    """About how many octets *value* occupies; shared strings count each time."""
    kind = type(value)
    if kind is str:
        return 60 + len(value)
    if kind in _SCALARS:
        return 8
    if isinstance(value, ElementList):
        if not value.weight:
            value.weight = 100 + sum(map(weigh, value.elements))
        return value.weight
    if isinstance(value, Element):
        if not value.weight:
            value.weight = 80 + sum(map(weigh, value.values_))
        return value.weight
    if isinstance(value, (list, tuple)):
        return 60 + sum(map(weigh, value))
    if isinstance(value, Mapping):
        return 200 + sum(weigh(k) + weigh(v) for k, v in value.items())
    return 8


_SCALARS = frozenset((int, float, bool, type(None)))


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
