"""
The mirror: copies of whole object lists, kept current, and callbacks for what changes.

Pure; :mod:`gridnet.mirror.follow` connects it to a network (docs/protocols/event-mirror.rst,
"Mirror").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, TypeAlias

from attrs import frozen

from gridnet.mirror.catalogue import OBLIGATORY, SHUTDOWN, Catalogue, ObjectType, Shape
from gridnet.mirror.client import EventClient
from gridnet.mirror.element import Element
from gridnet.mirror.filters import Chosen, What, Where
from gridnet.mirror.lists import Applied, ApplyError, MirrorError, ObjectLists
from gridnet.mirror.model import Action, Event, Result
from gridnet.mirror.narrow import Change as NamedChange
from gridnet.mirror.narrow import chain

#: Stands for every type that can be subscribed.
ALL = "ALL"
_WRONG_COPY = (Result.DUPLICATE_KEY, Result.KEY_NOT_FOUND)
#: Types that every mirror has.
ALWAYS = ("SHUTDOWN", "MARK_4_REGISTRATION")


class Outcome(Enum):
    """What a callback may say; saying nothing is OK."""

    OK = "ok"
    IGNORE = "ignore"  #: the event ends here; an ignored "before" leaves the list as it was
    FAILURE = "failure"  #: the event ends here, and counts as an error


class Resync(Enum):
    """What callbacks get when lists come anew after trouble."""

    LIST = "list"  #: the whole list, as at the start
    DIFF = "diff"  #: what is different from the old copy, as adds, deletions and modifications


#: Called with (mirror, type, action, element, event, client data).
Callback: TypeAlias = Callable[
    ["Mirror", ObjectType, Action, Element | None, Event, Any], Outcome | None
]
#: Called with a sentence about what went wrong, and the error behind it if it is a callback's.
Trouble: TypeAlias = Callable[[str, BaseException | None], None]


@frozen
class Following:
    """The subscription of one type."""

    kind: ObjectType
    before: Callback | None = None
    after: Callback | None = None
    client_data: Any = None
    where: Where | None = None
    what: What | None = None


@frozen
class Change:
    """One change of a mirrored list, as watchers get it."""

    object_type: ObjectType
    action: Action
    #: after the change; of a deletion the removed one; None for whole lists and triggers
    element: Element | None
    event: Event


class Mirror:
    """
    Copies of the lists of one master.

    :param client: the event client it works through.
    :param judges: conditions are judged here, since the master does not tell of elements for which
        they begin or cease to hold; the whole list is kept then, and shown as if it were not.
    :param strict: an event that does not fit the copy proves the copy wrong: register anew.
    :param trouble: told about errors, which never stop the events that follow.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        client: EventClient,
        *,
        strict: bool = True,
        resync: Resync = Resync.LIST,
        canonical_host: Callable[[str], str] = str.lower,
        judges: bool = False,
        trouble: Trouble = lambda text, error: None,
    ) -> None:
        self.catalogue = catalogue
        self.client = client
        self.strict = strict
        self.resync = resync
        self._judges = judges
        self.processed = 0  #: events since the start
        self._trouble = trouble
        self._following: dict[str, Following] = {}
        self.lists = ObjectLists(catalogue, canonical_host, self._following)
        self._wants_all: Following | None = None
        self._awaited: set[str] = set()  #: types whose list is to come before anything else
        self._stale: set[str] = set()
        self._unknown: set[int] = set()
        self._watchers: list[Callable[[Change], None]] = []
        for name in ALWAYS:
            self._following[name] = Following(catalogue.by_name[name])

    # -- reading

    def list(self, object_type: str | int) -> list[Element]:
        """
        The elements of a type, as of the last event processed.

        :raises MirrorError: the type is not mirrored.
        """
        return list(self.elements(object_type))

    def elements(self, object_type: str | int) -> Iterator[Element]:
        """The elements of a type, one after the other; see :meth:`list`."""
        kind = self._kind(object_type)
        self._required(kind)
        if kind.shape is Shape.NESTED:
            return iter(self._shown(kind).values())
        rows = self.lists.elements(kind.name)
        where = self._own_condition(kind)
        return rows if where is None else filter(where.fits, rows)

    def _own_condition(self, kind: ObjectType) -> Where | None:
        """The condition that is judged here for elements of *kind*."""
        following = self._following.get(kind.name)
        return following.where if self._judges and following is not None else None

    def _shown(self, kind: ObjectType) -> dict[Any, Element]:
        """The elements of *kind* for which the conditions judged here hold, by key."""
        rows = self.lists.entries(kind.name)
        where, root = self._own_condition(kind), chain(self.catalogue, kind)[0]
        outer = self._own_condition(root) if root is not kind else None
        if where is not None:
            rows = {key: row for key, row in rows.items() if where.fits(row)}
        if outer is not None:
            rows = {key: row for key, row in rows.items() if self._root_fits(outer, root, key[0])}
        return rows

    def _root_fits(self, where: Where, root: ObjectType, key: object) -> bool:
        element = self.lists.find(root.name, key)
        return element is not None and where.fits(element)

    def find(self, object_type: str | int, *key: Any) -> Element | None:
        """
        The element with that key; see :meth:`gridnet.mirror.lists.ObjectLists.find`.

        :raises MirrorError: the type is not mirrored.
        """
        kind = self._kind(object_type)
        self._required(kind)
        element = self.lists.find(kind.name, *key)
        if element is None or not self._judges:
            return element
        where, root = self._own_condition(kind), chain(self.catalogue, kind)[0]
        outer = self._own_condition(root) if root is not kind else None
        if where is not None and not where.fits(element):
            return None
        return element if outer is None or self._root_fits(outer, root, key[0]) else None

    def is_current(self, object_type: str | int) -> bool:
        """Did the list of the type arrive, and is the master there to keep it current?"""
        kind = self._kind(object_type)
        return self.lists.has(kind.name) and kind.name not in self._stale

    @property
    def followed(self) -> tuple[ObjectType, ...]:
        """The types that are subscribed."""
        return tuple(each.kind for each in self._following.values())

    def lacks(self, names: Sequence[str]) -> bool:
        """Is any of the lists *names* subscribed, and never came?"""
        return any(name in self._following and not self.lists.has(name) for name in names)

    def _required(self, kind: ObjectType) -> None:
        if kind.name not in self._following:
            raise MirrorError(Result.NOT_INITIALIZED, f"{kind.name} is not mirrored")

    def _kind(self, object_type: str | int) -> ObjectType:
        try:
            return self.catalogue.find(object_type)
        except KeyError:
            raise MirrorError(Result.BAD_ARGUMENT, f"no object type {object_type}") from None

    # -- subscribing

    def subscribe(
        self,
        object_type: str | int,
        callback: Callback | None = None,
        client_data: Any = None,
        *,
        before: Callback | None = None,
        where: Where | None = None,
        what: What | None = None,
        flush_seconds: int | None = None,
    ) -> None:
        """
        Mirror a type; sent with the next commit.

        Subscribing it again replaces callbacks and client data.

        :param callback: called after each change of the list.
        :param before: called before it.
        :param where: only elements for which this holds.
        :param what: only these attributes; the key comes along in any case.
        :param flush_seconds: have changes delivered within this time.
        :raises MirrorError: no such type, or one that cannot be subscribed.
        """
        if object_type == ALL:
            self._wants_all = Following(self.catalogue.types[0], before, callback, client_data)
            self.follow_all()
            return
        kind = self._kind(object_type)
        if not kind.can_be_subscribed:
            raise MirrorError(Result.NOT_INITIALIZED, f"{kind.name} cannot be subscribed")
        if what is not None and kind.key and kind.key not in what.inner:
            what = What((Chosen(kind.key), *what.chosen))
        if what is not None and where is not None and self._judges:
            lacking = where.attributes - what.inner.keys()
            what = What((*what.chosen, *map(Chosen, sorted(lacking))))
        following = Following(kind, before, callback, client_data, where, what)
        known = self._following.get(kind.name)
        self._following[kind.name] = following
        asked = None if self._judges else where
        for event in kind.all_events:
            seconds = 0 if event in OBLIGATORY else flush_seconds
            if event in kind.unfiltered:
                self.client.subscribe(event, seconds)
            else:
                self.client.subscribe(event, seconds, asked, what)
        same = known is not None and known.what == what and (known.where == where or self._judges)
        if kind.list_event and not same:
            self._awaited.add(kind.name)
        if not same:
            self._renew_parents(kind)

    def _renew_parents(self, kind: ObjectType) -> None:
        """The list that contains a nested type has it as of when it was not subscribed."""
        while kind.parent:
            kind = self.catalogue.by_name[kind.parent]
            if kind.name in self._following and kind.list_event and self.lists.has(kind.name):
                self.client.renew(kind.list_event)
                self._awaited.add(kind.name)

    def follow_all(self) -> None:
        """If all types are wanted: subscribe those that are new in the catalogue."""
        wish = self._wants_all
        if wish is None:
            return
        for kind in self.catalogue.subscribable():
            known = self._following.get(kind.name)
            if known is None or kind.name in ALWAYS:
                self.subscribe(kind.name, wish.after, wish.client_data, before=wish.before)

    def unsubscribe(self, object_type: str | int) -> None:
        """
        Mirror a type no more: its callbacks and its copy are gone.

        :raises MirrorError: no such type, or one that every mirror has.
        """
        if object_type == ALL:
            self._wants_all = None
            for name in list(self._following):
                if name in ALWAYS:
                    self._following[name] = Following(self.catalogue.by_name[name])
                else:
                    self._give_up(name)
            return
        kind = self._kind(object_type)
        if kind.name in ALWAYS:
            raise MirrorError(Result.BAD_ARGUMENT, f"{kind.name} belongs to every mirror")
        if kind.name in self._following:
            self._give_up(kind.name)

    def _give_up(self, name: str) -> None:
        following = self._following.pop(name)
        for event in following.kind.all_events:
            self.client.unsubscribe(event)
        if following.kind.shape is not Shape.NESTED:
            self.lists.drop(name)
        self._awaited.discard(name)
        self._stale.discard(name)

    # -- what happens to the client

    def registered(self) -> None:
        """The client is registered, for the first time or again: every list will come."""
        self._awaited = {f.kind.name for f in self._following.values() if f.kind.list_event}

    def parted(self) -> None:
        """The client is not registered: the lists stay, as they were."""
        self._stale = {name for name in self._following if self.lists.has(name)}

    def process(self, now: float, limited: bool = False) -> Result:
        """
        Apply the events that have come, and call back.

        :param limited: see :meth:`gridnet.mirror.client.EventClient.take`.
        :returns: ``OK``, or ``PROCESS_ERRORS`` if any event failed.
        """
        result = Result.OK
        for batch in self.client.take(now, limited):
            current = batch.epoch == self.client.core.epoch
            for _, event in batch.events:
                if not self._apply(event, current, now):
                    result = Result.PROCESS_ERRORS
                if event.event == SHUTDOWN:
                    break
            self.client.processed(batch)
        return result

    def _apply(self, event: Event, current: bool, now: float) -> bool:
        self.processed += 1
        meaning = self.catalogue.meaning(event.event)
        if meaning is None:
            if event.event not in self._unknown and len(self._unknown) < 1000:
                self._unknown.add(event.event)
                self._trouble(f"event {event.event} is unknown and skipped", None)
            return True
        kind, action = meaning
        following = self._following.get(kind.name)
        if following is None:  # given up while it was on its way, or blanked by the master
            return True
        if action is not Action.LIST and self._is_awaited(kind):
            return True
        old = None
        if action is Action.LIST:
            self._awaited.discard(kind.name)
            if self.resync is Resync.DIFF and kind.name in self._stale:
                old = self._entries(kind)
        try:
            fitted = self._judges and self._fits(following, event)
            if following.before is not None and (fitted or self._may_fit(following, event)):
                said = self._call(following, following.before, action, self._early(event), event)
                if said is not Outcome.OK:
                    return said is Outcome.IGNORE
            applied = self.lists.apply(event)
            if action is Action.LIST:
                self._stale.discard(kind.name)
            if applied is None:
                return True
            if old is not None:
                return self._call_differences(old, event)
            judged = self._judged(following, fitted, applied) if self._judges else applied
            if judged is None:
                return True
            applied = judged
            return self._call_after(following, applied, event)
        except ApplyError as error:
            self._trouble(f"event {event.number}: {error}", None)
            if self.strict and current and error.result in _WRONG_COPY:
                self.client.restart(f"the copy is wrong: {error}", now)
            return False

    # -- conditions that are judged here

    def _fits(self, following: Following, event: Event) -> bool:
        """Does the condition hold for the element that *event* names, as it is now?"""
        if following.where is None:
            return False
        named = NamedChange.of(event, self.catalogue)
        found = named.elements(self.lists) if named is not None else ()
        element = found[-1] if found else None
        return element is not None and following.where.fits(element)

    def _may_fit(self, following: Following, event: Event) -> bool:
        """Does it hold for the element that *event* brings?"""
        where = following.where
        if where is None or not self._judges or event.element is None:
            return True
        return where.fits(event.element)

    def _judged(self, following: Following, fitted: bool, applied: Applied) -> Applied | None:
        """What *applied* is for somebody who sees only what fits; None: nothing."""
        if applied.action in (Action.LIST, Action.TRIGGER):
            return applied
        kind, where, key = following.kind, following.where, applied.key
        if kind.parent and isinstance(key, tuple):
            root = chain(self.catalogue, kind)[0]
            outer = self._own_condition(root)
            if outer is not None and not self._root_fits(outer, root, key[0]):
                return None
        if where is None:
            return applied
        element = applied.element
        gone = applied.action is Action.DELETE
        fits = not gone and element is not None and where.fits(element)
        if not fitted and not fits:
            return None
        action = Action.MODIFY if fitted and fits else Action.ADD if fits else Action.DELETE
        return Applied(applied.object_type, action, key, element)

    def _is_awaited(self, kind: ObjectType) -> bool:
        while True:
            if kind.name in self._awaited:
                return True
            if not kind.parent:
                return False
            kind = self.catalogue.by_name[kind.parent]

    @staticmethod
    def _early(event: Event) -> Element | None:
        """What a "before" callback gets: the element that is about to be stored."""
        return event.element

    def watch(self, watcher: Callable[[Change], None]) -> Callable[[], None]:
        """
        Have *watcher* called after the callbacks of each change of any type.

        :returns: what ends it.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    def _call_after(self, following: Following, applied: Applied, event: Event) -> bool:
        if following.after is None and not self._watchers:
            return True
        element = None if applied.action is Action.LIST else applied.element
        said = None
        if following.after is not None:
            said = self._call(following, following.after, applied.action, element, event)
        if self._watchers and said is not Outcome.FAILURE:
            change = Change(following.kind, applied.action, element, event)
            for watcher in tuple(self._watchers):
                watcher(change)
        return said is not Outcome.FAILURE

    def _call(
        self,
        following: Following,
        callback: Callback,
        action: Action,
        element: Element | None,
        event: Event,
    ) -> Outcome:
        try:
            said = callback(self, following.kind, action, element, event, following.client_data)
        except Exception as error:
            # Whatever a callback raises is its own trouble: the events that follow still count.
            self._trouble(f"a callback failed for event {event.number}", error)
            return Outcome.FAILURE
        if said is Outcome.FAILURE:
            self._trouble(f"a callback reported failure for event {event.number}", None)
        return said if said is not None else Outcome.OK

    # -- resynchronizing by differences

    def _family(self, kind: ObjectType) -> Sequence[ObjectType]:
        """*kind* and the types nested in it."""
        found = [kind]
        for each in self.catalogue.types:
            if each.parent in {one.name for one in found}:
                found.append(each)
        return found

    def _entries(self, kind: ObjectType) -> dict[str, dict[Any, Element]]:
        return {
            each.name: self._shown(each)
            for each in self._family(kind)
            if each.name in self._following
        }

    def _call_differences(self, old: dict[str, dict[Any, Element]], event: Event) -> bool:
        fine = True
        for name, before in old.items():
            following = self._following.get(name)
            if following is None:
                continue
            now = self._shown(following.kind)
            for action, key in differences(before, now):
                element = before[key] if action is Action.DELETE else now[key]
                applied = Applied(following.kind, action, key, element)
                fine = self._call_after(following, applied, event) and fine
        return fine


def differences(
    before: dict[Any, Element], now: dict[Any, Element]
) -> Iterator[tuple[Action, Any]]:
    """What turns *before* into *now*: deletions first, then adds and modifications."""
    for key in before:
        if key not in now:
            yield Action.DELETE, key
    for key, element in now.items():
        if key not in before:
            yield Action.ADD, key
        elif before[key] != element:
            yield Action.MODIFY, key
