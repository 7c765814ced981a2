"""
Elements and lists of them: what event masters and mirrors hold.

Everything here is immutable and knows no wire format: a Grid Engine job and an entry of
gridnet's service table are both an :class:`Element`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

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
