"""
Filters: which elements (where) and which of their attributes (what) a client wants.

Both are trees of frozen values, hashable, so that clients with the same wishes can share one
queue.  They name attributes; the native transport turns names into numbers and back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from fnmatch import translate
from functools import lru_cache
from typing import Any

from attrs import field, frozen

from gridnet.mirror.element import Element, ElementList


class Operator(IntEnum):
    """Comparisons and connectives; the numbers are those of Grid Engine's condition lists."""

    SUBSCOPE = 3  #: some element of the list attribute fits the inner filter
    EQUAL = 19
    NOT_EQUAL = 20
    LOWER_EQUAL = 21
    LOWER = 22
    GREATER_EQUAL = 23
    GREATER = 24
    BITMASK = 25  #: all bits of the value are set
    SAME_TEXT = 26  #: equal but for case
    PATTERN = 27  #: shell pattern
    SAME_HOST = 28  #: equal but for case and, where the site ignores it, the domain
    AND = 29
    OR = 30
    NOT = 31


#: Connectives; everything else compares an attribute.
CONNECTIVES = frozenset({Operator.AND, Operator.OR, Operator.NOT})
#: How deeply conditions may be nested.
MAX_DEPTH = 32
#: How many comparisons, connectives and attributes one filter may have: each change of the list
#: is held against it.
MAX_PARTS = 512


@frozen
class Where:
    """A condition on an element."""

    operator: Operator
    attribute: str = ""  #: of a comparison
    value: bool | int | float | str | None = None  #: of a comparison
    parts: tuple[Where, ...] = ()  #: of a connective, or the inner filter of SUBSCOPE

    @property
    def size(self) -> int:
        """How many comparisons and connectives it has."""
        return 1 + sum(part.size for part in self.parts)

    @property
    def attributes(self) -> frozenset[str]:
        """The attributes of an element that it looks at."""
        if self.attribute:
            return frozenset((self.attribute,))
        return frozenset().union(*(part.attributes for part in self.parts))

    def fits(self, element: Element) -> bool:
        """Does *element* fit?  A comparison with an attribute that it lacks does not."""
        operator = self.operator
        if operator == Operator.AND:
            return all(part.fits(element) for part in self.parts)
        if operator == Operator.OR:
            return any(part.fits(element) for part in self.parts)
        if operator == Operator.NOT:
            return not self.parts[0].fits(element)
        if self.attribute not in element:
            return False
        found = element[self.attribute]
        if operator == Operator.SUBSCOPE:
            inner = self.parts[0]
            return any(inner.fits(each) for each in _elements(found))
        return _COMPARE[operator](found, self.value)


def _elements(value: Any) -> Sequence[Element]:
    return getattr(value, "elements", ())


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(translate(text))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def judge(found: Any, wanted: Any) -> bool:
        if isinstance(found, (int, float)) and isinstance(wanted, (int, float)):
            return compare(found, wanted)
        return compare(_text(found), _text(wanted))

    return judge


def _masked(found: Any, wanted: Any) -> bool:
    return isinstance(found, int) and isinstance(wanted, int) and found & wanted == wanted


_COMPARE: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: _ordered(lambda a, b: a == b),
    Operator.NOT_EQUAL: _ordered(lambda a, b: a != b),
    Operator.LOWER_EQUAL: _ordered(lambda a, b: a <= b),
    Operator.LOWER: _ordered(lambda a, b: a < b),
    Operator.GREATER_EQUAL: _ordered(lambda a, b: a >= b),
    Operator.GREATER: _ordered(lambda a, b: a > b),
    Operator.BITMASK: _masked,
    Operator.SAME_TEXT: lambda a, b: _text(a).lower() == _text(b).lower(),
    Operator.PATTERN: lambda a, b: _pattern(_text(b)).match(_text(a)) is not None,
    Operator.SAME_HOST: lambda a, b: _text(a).lower() == _text(b).lower(),
}


@frozen
class Chosen:
    """One attribute that is wanted; of a list attribute, what of its elements."""

    attribute: str
    inner: What | None = None


@frozen
class What:
    """
    A choice of attributes.

    :ivar chosen: those that are wanted, in that order; empty: none of them.  A choice of
        everything is written as no choice, ``None``.
    """

    chosen: tuple[Chosen, ...] = ()
    #: for speed: attribute -> inner choice
    inner: dict[str, What | None] = field(init=False, eq=False, repr=False, hash=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "inner", {c.attribute: c.inner for c in self.chosen})

    @property
    def size(self) -> int:
        """How many attributes it names, those of inner choices included."""
        return sum(1 + (each.inner.size if each.inner else 0) for each in self.chosen)

    @classmethod
    def of(cls, *names: str) -> What:
        """The choice of the attributes *names*, whole."""
        return cls(tuple(Chosen(name) for name in names))

    def reduce(self, element: Element) -> Element | None:
        """*element* with only the chosen attributes it has; None if it has none of them."""
        layout = element.layout
        names = tuple(c.attribute for c in self.chosen if c.attribute in layout.index)
        if not names:
            return None
        inner = self.inner
        values = []
        for name in names:
            value = element[name]
            choice = inner[name]
            if choice is not None and hasattr(value, "elements"):
                value = choice.reduce_all(value)
            values.append(value)
        return type(element)(layout.selected(names), values)

    def reduce_all(self, rows: ElementList) -> ElementList:
        """Each of *rows* reduced; those of which nothing is left are gone."""
        kept = [reduced for row in rows if (reduced := self.reduce(row)) is not None]
        layout = rows.layout
        if layout is not None:
            names = [c.attribute for c in self.chosen if c.attribute in layout.index]
            layout = layout.selected(names)
        return rows.with_elements(kept, layout)
