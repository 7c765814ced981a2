"""
What one subscription sees of a change (docs/protocols/event-mirror.rst, "Filters").

A condition can begin or cease to hold for an element by a change of it.  A mirror that asked
for such elements only must then see it arrive or go, not a modification of something that it
does not have: so a change is judged by the element before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define, evolve

from gridnet.mirror.catalogue import Catalogue, ObjectType, Shape
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.filters import What, Where
from gridnet.mirror.lists import ObjectLists
from gridnet.mirror.model import Action, Event, Subscribed

#: Type -> (attribute with the elements of the type nested in it, event whose filter they have).
INSIDE: Mapping[str, tuple[str, str, int]] = {
    "JOB": ("JB_ja_tasks", "JATASK", 26),
    "JATASK": ("JAT_task_list", "PETASK", 29),
    "CQUEUE": ("CQ_qinstances", "QINSTANCE", 65),
}

Subscriptions = Mapping[int, Subscribed]


def chain(catalogue: Catalogue, kind: ObjectType) -> list[ObjectType]:
    """*kind* and the types that it is nested in, the outermost first."""
    found = [kind]
    while found[0].parent:
        found.insert(0, catalogue.by_name[found[0].parent])
    return found


def condition(kind: ObjectType, subscriptions: Subscriptions) -> Where | None:
    """The condition that *subscriptions* put on elements of *kind*."""
    for event in kind.all_events:
        wanted = subscriptions.get(event)
        if wanted is not None and wanted.where is not None:
            return wanted.where
    return None


def has_conditions(subscriptions: Subscriptions) -> bool:
    """Is there any condition among *subscriptions*?"""
    return any(each.where is not None for each in subscriptions.values())


def has_filters(subscriptions: Subscriptions) -> bool:
    """Is there any condition or choice of attributes among *subscriptions*?"""
    return any(each.where is not None or each.what is not None for each in subscriptions.values())


@define(eq=False)
class Change:
    """
    An event with what it changed, from the outermost element to the one it names.

    :ivar before: the elements before it, None where there was none; empty when nobody has
        conditions, since finding them is not free.
    """

    event: Event
    kind: ObjectType
    action: Action
    kinds: Sequence[ObjectType]
    keys: Sequence[tuple[object, ...]]
    before: Sequence[Element | None] = ()

    @classmethod
    def of(cls, event: Event, catalogue: Catalogue) -> Change | None:
        """The change of *event*; None: the catalogue does not know it."""
        meaning = catalogue.meaning(event.event)
        if meaning is None:
            return None
        kind, action = meaning
        kinds = chain(catalogue, kind)
        if len(kinds) == 1:
            key: object = event.text_key or ""
            if kind.name == "JOB":
                key = event.int_key
            elif kind.name == "AR" and event.text_key:
                key = int(event.text_key) if event.text_key.isdecimal() else event.text_key
            return cls(event, kind, action, kinds, ((key,),))
        names: tuple[object, ...] = (event.int_key, event.int_key2, event.text_key)
        if kinds[0].name == "CQUEUE":
            names = (event.text_key or "", event.text_key2 or "")
        return cls(event, kind, action, kinds, [names[: n + 1] for n in range(len(kinds))])

    def elements(self, lists: ObjectLists) -> list[Element | None]:
        """The elements as they are in *lists* now."""
        if self.kind.shape not in (Shape.KEYED, Shape.NESTED) or self.action is Action.LIST:
            return []
        return [
            lists.find(kind.name, *key) for kind, key in zip(self.kinds, self.keys, strict=True)
        ]


def narrowed(
    change: Change,
    subscriptions: Subscriptions,
    after: Callable[[], Sequence[Element | None]],
) -> Event | None:
    """
    The event that a client with *subscriptions* gets for *change*; None: none.

    :param after: gives the changed elements as they are now.
    """
    event = change.event
    if event.event in subscriptions and not has_filters(subscriptions):
        return event
    if change.before and has_conditions(subscriptions):
        now = after()
        for place, kind in enumerate(change.kinds):
            where = condition(kind, subscriptions)
            if where is None:
                continue
            old, new = change.before[place], now[place]
            fitted = old is not None and where.fits(old)
            fits = new is not None and where.fits(new)
            if fitted and fits:
                continue
            if fitted == fits:
                return None
            if not _is_itself(change, place, Action.DELETE if fitted else Action.ADD):
                return _moved(change, place, new if fits else None, subscriptions)
    wanted = subscriptions.get(event.event)
    return None if wanted is None else reduced(event, change, wanted, subscriptions)


def _is_itself(change: Change, place: int, action: Action) -> bool:
    return place == len(change.kinds) - 1 and change.action is action


def _moved(
    change: Change, place: int, element: Element | None, subscriptions: Subscriptions
) -> Event | None:
    """The arrival of *element*, or the departure of the one at *place*."""
    kind = change.kinds[place]
    number = kind.events.get(Action.DELETE if element is None else Action.ADD, 0)
    wanted = subscriptions.get(number)
    if wanted is None:
        return None
    event = change.event
    moved = Event(number, event.timestamp)
    keys = change.keys[place]
    if change.kinds[0].name == "JOB":
        moved.int_key = event.int_key
        moved.int_key2 = event.int_key2 if place else 0
        moved.text_key = event.text_key if place > 1 else None
    else:
        moved.text_key = str(keys[0])
        moved.text_key2 = str(keys[1]) if len(keys) > 1 else None
    if element is None:
        return moved
    moved.elements = ElementList((element,), element.layout)
    return reduced(moved, evolve(change, kind=kind, action=Action.ADD), wanted, subscriptions)


def reduced(
    event: Event, change: Change, wanted: Subscribed, subscriptions: Subscriptions
) -> Event | None:
    """*event* with only what *wanted*, and those for nested types, choose; None: nothing left."""
    rows = event.elements
    if rows is None:
        return event
    if event.event in change.kind.unfiltered:
        return event
    if change.before:  # the condition was judged by whole elements; parts may be left out here
        wanted = evolve(wanted, where=None)
    chosen = reduced_rows(rows, change.kind.name, wanted, subscriptions)
    if chosen is rows:
        return event
    if not chosen and change.action is not Action.LIST:
        return None
    return Event(
        event.event,
        event.timestamp,
        event.int_key,
        event.int_key2,
        event.text_key,
        event.text_key2,
        chosen,
    )


def reduced_rows(
    rows: ElementList, name: str, wanted: Subscribed | None, subscriptions: Subscriptions
) -> ElementList:
    """*rows*, elements of type *name*, as filters leave them; the same object if they leave all."""
    where: Where | None = wanted.where if wanted else None
    what: What | None = wanted.what if wanted else None
    inside = INSIDE.get(name)
    if where is None and what is None and not _filters_inside(inside, subscriptions):
        return rows
    kept = [row for row in rows if where is None or where.fits(row)]
    if inside is not None:
        kept = [_reduce_inside(row, inside, subscriptions) for row in kept]
    chosen = rows.with_elements(kept)
    return chosen if what is None else what.reduce_all(chosen)


def _filters_inside(inside: tuple[str, str, int] | None, subscriptions: Subscriptions) -> bool:
    if inside is None:
        return False
    _, name, event = inside
    wanted = subscriptions.get(event)
    if wanted is not None and (wanted.where is not None or wanted.what is not None):
        return True
    return _filters_inside(INSIDE.get(name), subscriptions)


def _reduce_inside(
    row: Element, inside: tuple[str, str, int], subscriptions: Subscriptions
) -> Element:
    attribute, name, event = inside
    rows = row.get(attribute)
    if not isinstance(rows, ElementList):
        return row
    chosen = reduced_rows(rows, name, subscriptions.get(event), subscriptions)
    return row if chosen is rows else row.evolve({attribute: chosen})
