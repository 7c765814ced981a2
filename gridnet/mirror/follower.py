"""
Lists of other masters, offered again (docs/protocols/event-mirror.rst, "Following a master").

One mirror of a busy master serves everyone behind it: as gridnet's own lists, and for real event
clients as the lists of a qmaster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from gridnet.interfaces import IObjectSource
from gridnet.mirror import narrow
from gridnet.mirror.catalogue import OBLIGATORY, OWN_KEY, ObjectType, Shape
from gridnet.mirror.element import Element, as_json
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.lists import ApplyError
from gridnet.mirror.mirror import ALL, Change, Mirror
from gridnet.mirror.model import Action

Attributes = Mapping[str, Any]


def key_text(kind: ObjectType, element: Element, place: int) -> str:
    """The key of *element* as text; where its type has none, its place in the list."""
    key = element.get(kind.key) if kind.key else None
    return str(place) if key is None else str(key)


def attributes_of(element: Element) -> Attributes:
    """The attributes of *element*, as plain values; its key goes beside them."""
    return {name: as_json(value) for name, value in element.items() if name != OWN_KEY}


@implementer(IObjectSource)
class FollowedList:
    """One list of a mirror as a source."""

    def __init__(self, mirror: Mirror, kind: ObjectType, object_type: str) -> None:
        self.object_type = object_type
        self._mirror = mirror
        self._kind = kind

    def _rows(self) -> dict[str, Element]:
        rows = enumerate(self._mirror.elements(self._kind.name))
        return {key_text(self._kind, element, place): element for place, element in rows}

    def snapshot(self) -> Mapping[str, Attributes]:
        """The list now."""
        return {key: attributes_of(element) for key, element in self._rows().items()}

    def subscribe(self, changed: Callable[[str, Attributes | None], None]) -> Callable[[], None]:
        """
        Call *changed* at each change.

        A list that comes anew, after its master was away, is told by its differences.
        """
        known = self._rows()

        def put(key: str, element: Element | None) -> None:
            if element is None:
                if known.pop(key, None) is not None:
                    changed(key, None)
            elif known.get(key) != element:
                known[key] = element
                changed(key, attributes_of(element))

        def look(change: Change) -> None:
            root = self._root(change)
            if root is None:
                return
            if root is ALL:
                rows = self._rows()
                for key in [key for key in known if key not in rows]:
                    put(key, None)
                for key, element in rows.items():
                    put(key, element)
                return
            put(str(root), self._mirror.find(self._kind.name, root))

        return self._mirror.watch(look)

    def _root(self, change: Change) -> Any:
        """Key of the element of this list that changed; ALL: the list; None: another's."""
        if change.object_type is self._kind:
            if change.action is Action.LIST or self._kind.shape is Shape.WHOLE:
                return ALL
        elif change.object_type.parent == "" or change.action is Action.LIST:
            return None
        named = narrow.Change.of(change.event, self._mirror.catalogue)
        if named is None or named.kinds[0] is not self._kind:
            return None
        return named.keys[0][0]


class Follower:
    """
    Offers the lists of one mirror again.

    :param name: what its lists are called: ``name/list``.
    :param offered: called when there is a list more.
    :ivar sources: what there is.
    """

    def __init__(self, name: str, service: MirrorService, offered: Callable[[], None]) -> None:
        self.name = name
        self.service = service
        self.sources: dict[str, FollowedList] = {}
        self._offered = offered
        service.mirror.watch(self._look)

    def _look(self, change: Change) -> None:
        kind = change.object_type
        if change.action is not Action.LIST or kind.name in self.sources:
            return
        self.sources[kind.name] = FollowedList(
            self.service.mirror, kind, f"{self.name}/{kind.name}"
        )
        self._offered()

    def __iter__(self) -> Iterator[FollowedList]:
        return iter(list(self.sources.values()))


class Repeater:
    """
    Repeats the events of a mirrored qmaster to a master for real event clients.

    What is addressed to one client (that the master goes down, that it is to leave) is not.
    """

    _log = Logger()

    def __init__(self, mirror: Mirror, keeper: MasterService) -> None:
        self._keeper = keeper
        self.failures = 0
        mirror.watch(self._look)

    def _look(self, change: Change) -> None:
        if change.event.event in OBLIGATORY:
            return
        try:
            self._keeper.record(change.event.received(0))
        except ApplyError as error:
            # The mirror notices such things itself, and gets fresh lists.
            self.failures += 1
            self._log.warn("an event could not be repeated: {reason}", reason=str(error))
