"""
Catalogues: which object types there are, and which events tell of them.

:data:`GRID_ENGINE` is the one that real event clients know, with its fixed numbers;
:func:`own_catalogue` makes one of lists that only have names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from attrs import field, frozen

from gridnet.mirror.model import Action

#: Obligatory events: every client has them, none can give them up.
MASTER_GOES_DOWN = 60
SHUTDOWN = 72
TIMED_OUT = 97
OBLIGATORY = (MASTER_GOES_DOWN, SHUTDOWN, TIMED_OUT)


class Shape(Enum):
    """How a type's data are kept."""

    KEYED = "a list of elements with keys"
    WHOLE = "one value, replaced by every event"
    NESTED = "inside the elements of another type"
    TRIGGER = "no data"
    UNAVAILABLE = "exists, cannot be subscribed"


class KeyPlace(Enum):
    """Where an event carries the key of its element."""

    TEXT = "text key"
    NUMBER = "integer key"
    TEXT_NUMBER = "text key that is a decimal number"
    NONE = "no key"


@frozen
class ObjectType:
    """One object type."""

    number: int  #: what callbacks see
    name: str
    element: str = ""  #: type of its elements (``JB``)
    key: str = ""  #: attribute that tells elements apart
    place: KeyPlace = KeyPlace.NONE
    shape: Shape = Shape.TRIGGER
    #: action -> event number
    events: Mapping[Action, int] = field(factory=dict)
    #: further events that tell of it
    also: tuple[int, ...] = ()
    is_host: bool = False  #: the key is a host name and compares as one
    parent: str = ""  #: type whose elements contain these
    #: events among :attr:`also` that carry something else than elements of the type: filters
    #: are not about them
    unfiltered: tuple[int, ...] = ()
    #: attributes of its elements that another type's events maintain
    maintained_elsewhere: tuple[str, ...] = ()

    @property
    def all_events(self) -> tuple[int, ...]:
        """Every event that tells of it, the list event first."""
        return (*self.events.values(), *self.also)

    @property
    def list_event(self) -> int:
        """Number of its list event; 0: it has none."""
        return self.events.get(Action.LIST, 0)

    @property
    def can_be_subscribed(self) -> bool:
        """May a mirror ask for it?"""
        return self.shape is not Shape.UNAVAILABLE


class Catalogue:
    """
    A set of object types.

    :ivar types: in order of their numbers.
    :ivar by_name: name -> type; names are looked up in upper case too.
    :ivar highest_event: events 1..highest may be subscribed.
    :ivar initial: types in the order in which a new client gets their lists.
    """

    def __init__(
        self,
        types: Iterable[ObjectType],
        initial: Iterable[str] | None = None,
        event_names: Mapping[int, str] | None = None,
    ) -> None:
        self.types: tuple[ObjectType, ...] = ()
        self.by_name: dict[str, ObjectType] = {}
        self.by_number: dict[int, ObjectType] = {}
        self._meaning: dict[int, tuple[ObjectType, Action]] = {}
        self.highest_event = max(OBLIGATORY)
        for each in sorted(types, key=lambda kind: kind.number):
            self._add(each)
        order: Iterable[str] = self.by_name if initial is None else initial
        self.initial = tuple(self.by_name[name] for name in order if self.by_name[name].list_event)
        self._event_names = dict(event_names or {})

    def _add(self, kind: ObjectType) -> None:
        self.types = (*self.types, kind)
        self.by_name[kind.name] = kind
        self.by_number[kind.number] = kind
        for event in kind.also:
            self._meaning[event] = (kind, Action.MODIFY)
        for action, event in kind.events.items():
            self._meaning[event] = (kind, action)
        self.highest_event = max(self.highest_event, *kind.all_events, 0)

    def meaning(self, event: int) -> tuple[ObjectType, Action] | None:
        """Type and action of an event number; None: unknown."""
        return self._meaning.get(event)

    def find(self, name: str | int) -> ObjectType:
        """
        The type of that name (in any case) or number.

        :raises KeyError: there is none.
        """
        if isinstance(name, int):
            return self.by_number[name]
        found = self.by_name.get(name) or self.by_name.get(name.upper())
        if found is None:
            raise KeyError(name)
        return found

    def element_of(self, event: int) -> str:
        """Type of the elements that *event* carries."""
        meaning = self.meaning(event)
        return meaning[0].element if meaning else ""

    def event_name(self, event: int) -> str:
        """A name for people: ``JOB ADD``."""
        known = self._event_names.get(event)
        if known is not None:
            return known
        meaning = self.meaning(event)
        return f"{meaning[0].name} {meaning[1].name}" if meaning else str(event)

    def subscribable(self) -> tuple[ObjectType, ...]:
        """Every type that a mirror may ask for, in order of numbers."""
        return tuple(each for each in self.types if each.can_be_subscribed)


def _crud(first: int, add: int, delete: int, modify: int) -> Mapping[Action, int]:
    return {Action.LIST: first, Action.ADD: add, Action.MODIFY: modify, Action.DELETE: delete}


def _row(first: int) -> Mapping[Action, int]:
    """Most types have their events in a row: list, add, delete, modify."""
    return _crud(first, first + 1, first + 2, first + 3)


def _keyed(
    number: int,
    name: str,
    element: str,
    key: str,
    first: int,
    *,
    is_host: bool = False,
    place: KeyPlace = KeyPlace.TEXT,
    also: tuple[int, ...] = (),
    unfiltered: tuple[int, ...] = (),
    maintained_elsewhere: tuple[str, ...] = (),
) -> ObjectType:
    return ObjectType(
        number,
        name,
        element,
        key,
        place,
        Shape.KEYED,
        _row(first),
        also,
        is_host,
        unfiltered=unfiltered,
        maintained_elsewhere=maintained_elsewhere,
    )


#: Events with a meaning of their own.
TASK_LIST_ADD, TASK_DELETE, TASK_MODIFY = 26, 27, 28
JOB_PRIORITY, JOB_USAGE, JOB_FINAL_USAGE, JOB_FINISHED = 35, 36, 37, 38
INSTANCE_SUSPENDED, INSTANCE_UNSUSPENDED = 68, 69

_GRID_ENGINE_TYPES = (
    _keyed(0, "ADMINHOST", "AH", "AH_name", 1, is_host=True),
    _keyed(1, "CALENDAR", "CAL", "CAL_name", 5),
    _keyed(2, "CKPT", "CK", "CK_name", 9),
    _keyed(3, "CONFIG", "CONF", "CONF_name", 17, is_host=True),
    ObjectType(4, "GLOBAL_CONFIG", events={Action.TRIGGER: 25}),
    _keyed(5, "EXECHOST", "EH", "EH_name", 21, is_host=True),
    ObjectType(
        6,
        "JATASK",
        "JAT",
        "JAT_task_number",
        KeyPlace.NUMBER,
        Shape.NESTED,
        {Action.ADD: 26, Action.MODIFY: 28, Action.DELETE: 27},
        parent="JOB",
        maintained_elsewhere=("JAT_task_list",),
    ),
    ObjectType(
        7,
        "PETASK",
        "PET",
        "PET_id",
        KeyPlace.TEXT,
        Shape.NESTED,
        {Action.ADD: 29, Action.DELETE: 30},
        parent="JATASK",
    ),
    _keyed(
        8,
        "JOB",
        "JB",
        "JB_job_number",
        31,
        place=KeyPlace.NUMBER,
        also=(JOB_PRIORITY, JOB_USAGE, JOB_FINAL_USAGE),
        unfiltered=(JOB_USAGE, JOB_FINAL_USAGE),
        maintained_elsewhere=("JB_ja_tasks",),
    ),
    ObjectType(9, "JOB_SCHEDD_INFO", "SME", shape=Shape.WHOLE, events=_row(39)),
    _keyed(10, "MANAGER", "UM", "UM_name", 43),
    _keyed(11, "OPERATOR", "UO", "UO_name", 47),
    ObjectType(12, "SHARETREE", "STN", "STN_name", shape=Shape.WHOLE, events={Action.LIST: 51}),
    _keyed(13, "PE", "PE", "PE_name", 52),
    _keyed(14, "PROJECT", "PR", "PR_name", 56),
    _keyed(15, "CQUEUE", "CQ", "CQ_name", 61, maintained_elsewhere=("CQ_qinstances",)),
    ObjectType(
        16,
        "QINSTANCE",
        "QU",
        "QU_qhostname",
        KeyPlace.TEXT,
        Shape.NESTED,
        {Action.ADD: 65, Action.MODIFY: 67, Action.DELETE: 66},
        (INSTANCE_SUSPENDED, INSTANCE_UNSUSPENDED),
        is_host=True,
        parent="CQUEUE",
    ),
    ObjectType(17, "SCHEDD_CONF", "SC", shape=Shape.WHOLE, events={Action.LIST: 70}),
    ObjectType(18, "SCHEDD_MONITOR", events={Action.TRIGGER: 71}),
    ObjectType(19, "SHUTDOWN", events={Action.TRIGGER: SHUTDOWN}),
    ObjectType(
        20, "MARK_4_REGISTRATION", events={Action.TRIGGER: MASTER_GOES_DOWN}, also=(TIMED_OUT,)
    ),
    _keyed(21, "SUBMITHOST", "SH", "SH_name", 73, is_host=True),
    _keyed(22, "USER", "UU", "UU_name", 77),
    _keyed(23, "USERSET", "US", "US_name", 81),
    _keyed(24, "HGROUP", "HGRP", "HGRP_name", 85, is_host=True),
    _keyed(25, "CENTRY", "CE", "CE_name", 13),
    ObjectType(26, "ZOMBIE", "JB", shape=Shape.UNAVAILABLE),
    ObjectType(27, "SUSER", "SU", shape=Shape.UNAVAILABLE),
    _keyed(28, "RQS", "RQS", "RQS_name", 89),
    _keyed(29, "AR", "AR", "AR_id", 93, place=KeyPlace.TEXT_NUMBER),
    ObjectType(30, "JOBSCRIPT", "STU", shape=Shape.UNAVAILABLE),
)

#: What Son of Grid Engine 8.1 mirrors.
GRID_ENGINE = Catalogue(
    _GRID_ENGINE_TYPES,
    # The order in which a qmaster sends initial lists; clients rely on jobs before queues.
    initial=(
        "ADMINHOST",
        "CALENDAR",
        "CKPT",
        "CENTRY",
        "CONFIG",
        "EXECHOST",
        "JOB",
        "JOB_SCHEDD_INFO",
        "MANAGER",
        "OPERATOR",
        "PE",
        "CQUEUE",
        "SCHEDD_CONF",
        "SUBMITHOST",
        "USERSET",
        "SHARETREE",
        "PROJECT",
        "USER",
        "HGROUP",
        "RQS",
        "AR",
    ),
    event_names={
        MASTER_GOES_DOWN: "MASTER GOES DOWN",
        SHUTDOWN: "SHUTDOWN",
        TIMED_OUT: "ACKNOWLEDGEMENT TIMEOUT",
        JOB_PRIORITY: "JOB PRIORITY",
        JOB_USAGE: "JOB USAGE",
        JOB_FINAL_USAGE: "JOB FINAL USAGE",
        JOB_FINISHED: "JOB FINISHED",
        INSTANCE_SUSPENDED: "QINSTANCE SUSPENDED",
        INSTANCE_UNSUSPENDED: "QINSTANCE UNSUSPENDED",
    },
)

#: First event of gridnet's own types: above every number that Grid Engine uses.
FIRST_OWN_EVENT = 1000
#: Attribute that every element of gridnet's own lists has.
OWN_KEY = "key"


class OwnCatalogue(Catalogue):
    """
    gridnet's own lists: types that are only names, made as they come up.

    Their numbers mean nothing outside of one process; the wire has names.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        fixed = ("SHUTDOWN", "MARK_4_REGISTRATION")
        super().__init__([each for each in _GRID_ENGINE_TYPES if each.name in fixed])
        for name in names:
            self.own(name)

    def own(self, name: str) -> ObjectType:
        """The type of the list *name*, whose elements have their key as attribute ``key``."""
        known = self.by_name.get(name)
        if known is not None:
            return known
        place = len(self.types) - 2
        kind = ObjectType(
            100 + place,
            name,
            key=OWN_KEY,
            place=KeyPlace.TEXT,
            shape=Shape.KEYED,
            events=_row(FIRST_OWN_EVENT + 4 * place),
        )
        self._add(kind)
        self.initial = (*self.initial, kind)
        return kind

    def find(self, name: str | int) -> ObjectType:
        """The type of that name or number."""
        return self.by_number[name] if isinstance(name, int) else self.by_name[name]
