"""``gridnet mirror``: a master's lists, what is in them, what changes, and what to do then."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault
from gridnet.mirror.address import Source
from gridnet.mirror.catalogue import (
    JOB_FINAL_USAGE,
    OBLIGATORY,
    OWN_KEY,
    Catalogue,
    ObjectType,
    Shape,
)
from gridnet.mirror.command_line import choice, condition, options, run
from gridnet.mirror.element import Element
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.mirror import ALL, Change
from gridnet.mirror.model import Action, printable
from gridnet.mirror.narrow import Change as NamedChange

Emit = Callable[[str], None]

#: Names that ``qevent -trigger`` knows -> the events that they stand for.
_QEVENT_NAMES = {"JB_END": (JOB_FINAL_USAGE,), "JB_TASK_END": (JOB_FINAL_USAGE,)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridnet mirror", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, parents=[options()], help=summary, description=summary)

    def filters(chosen: argparse.ArgumentParser) -> None:
        chosen.add_argument(
            "--where",
            action="append",
            default=[],
            metavar="CONDITION",
            help="only elements for which all hold: ATTRIBUTE=VALUE; != < <= > >= ~ (shell "
            "pattern) & (bits) too",
        )
        chosen.add_argument(
            "--what", default="", metavar="NAME,...", help="only these attributes, and the key"
        )

    verb("types", "name the lists of the master")
    listing = verb("list", "print a list, once")
    listing.add_argument("type", metavar="TYPE")
    filters(listing)
    watch = verb("watch", "print changes as they come")
    watch.add_argument("types", nargs="*", metavar="TYPE", help="none: all")
    watch.add_argument("--count", type=int, default=0, metavar="N", help="end after N changes")
    watch.add_argument("--elements", action="store_true", help="print lists with their elements")
    filters(watch)
    trigger = verb("trigger", "run a command at each event of a kind")
    trigger.add_argument(
        "event",
        metavar="EVENT",
        help="TYPE:ACTION (add, modify, delete, list, trigger), TYPE for any, an event number, "
        "or JB_END or JB_TASK_END",
    )
    trigger.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    trigger.add_argument("--parallel", type=int, default=4, metavar="N", help="at a time (4)")
    trigger.add_argument("--count", type=int, default=0, metavar="N", help="end after N events")
    filters(trigger)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    words = _parser().parse_args(arguments)
    work = {"types": _types, "list": _list, "watch": _watch, "trigger": _trigger}[words.verb]

    def emit(line: str) -> None:
        print(printable(line), flush=True)

    async def working(source: Source, mirror: MirrorService, reactor: Any) -> int:
        return await work(words, mirror, reactor, emit)

    return run("gridnet mirror", words, working)


# -- words for people


def key_of(change: Change, catalogue: Catalogue) -> object:
    """The key of the element that changed; None for whole lists and triggers."""
    if change.action in (Action.LIST, Action.TRIGGER):
        return None
    if change.object_type.shape not in (Shape.KEYED, Shape.NESTED):
        return None
    named = NamedChange.of(change.event, catalogue)
    if named is None:
        return None
    key = named.keys[-1]
    return key[0] if len(key) == 1 else list(key)


def key_words(key: object) -> str:
    """A key for people: nested ones with dots."""
    if isinstance(key, list):
        return ".".join(str(part) for part in key)
    return "-" if key is None else str(key)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _scalars(element: Element, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        value = element.get(name)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            if value not in ("", 0):
                yield f"{name}={value}"
        elif value is True:
            yield f"{name}=true"


def _line(change: Change, mirror: MirrorService, chosen: bool) -> str:
    words = [
        f"{change.event.number:>6}",
        _clock(change.event.timestamp) if change.event.timestamp else " " * 19,
        change.object_type.name,
        change.action.name.lower(),
    ]
    if change.action is Action.LIST:
        count = len(mirror.mirror.list(change.object_type.name))
        words.append(f"{count} element{'' if count == 1 else 's'}")
    else:
        words.append(key_words(key_of(change, mirror.mirror.catalogue)))
    if change.element is not None:
        names = [name for name in change.element if name not in (OWN_KEY, change.object_type.key)]
        words += list(_scalars(change.element, names if chosen else names[:12]))
    return " ".join(words)


def as_mapping(change: Change, mirror: MirrorService, elements: bool = True) -> dict[str, Any]:
    """A change as one JSON object."""
    event = change.event
    found: dict[str, Any] = {
        "number": event.number,
        "time": event.timestamp,
        "type": change.object_type.name,
        "action": change.action.name.lower(),
        "event": event.event,
        "key": key_of(change, mirror.mirror.catalogue),
    }
    if change.element is not None:
        found["element"] = change.element.as_json()
    elif change.action is Action.LIST:
        rows = mirror.mirror.list(change.object_type.name)
        found["count"] = len(rows)
        if elements:
            found["elements"] = [element.as_json() for element in rows]
    return found


# -- the verbs


async def _known(mirror: MirrorService, name: str) -> ObjectType:
    """
    The type that people call *name*; gridnet's lists are known once the master named them.

    :raises ConfigError: there is none.
    """
    catalogue = mirror.mirror.catalogue
    for known in (name, name.upper()):
        if known in catalogue.by_name and catalogue.by_name[known].can_be_subscribed:
            return catalogue.by_name[known]
    names = ", ".join(kind.name for kind in _lists(catalogue))
    raise ConfigError([Fault("TYPE", f"the master has no list {name!r}; it has {names}")])


def _lists(catalogue: Catalogue) -> list[ObjectType]:
    return [
        kind
        for kind in catalogue.types
        if kind.can_be_subscribed and kind.shape is not Shape.TRIGGER
    ]


def _registered(mirror: MirrorService) -> Deferred[None]:
    """Fires once the master has registered the mirror; by then it has named its lists."""
    done: Deferred[None] = Deferred()

    def told(state: str, reason: str) -> None:
        if state == "registered" and not done.called:
            done.callback(None)

    mirror.on_state(told)
    mirror.startService()
    return done


async def _types(words: argparse.Namespace, mirror: MirrorService, _: Any, emit: Emit) -> int:
    await _registered(mirror)
    for kind in _lists(mirror.mirror.catalogue):
        if words.json:
            row = {"type": kind.name, "element": kind.element, "key": kind.key}
            emit(json.dumps({**row, "inside": kind.parent}))
        else:
            emit(" ".join([kind.name, *([f"(in {kind.parent})"] if kind.parent else [])]))
    return 0


def _subscribe(mirror: MirrorService, kind: ObjectType, words: argparse.Namespace) -> None:
    mirror.subscribe(
        kind.name,
        where=condition(words.where, kind),
        what=choice(words.what, kind),
        flush_seconds=0,
    )


async def _list(words: argparse.Namespace, mirror: MirrorService, _: Any, emit: Emit) -> int:
    await _registered(mirror)
    kind = await _known(mirror, words.type)
    if kind.parent:
        outer = mirror.mirror.catalogue.by_name[kind.parent]
        while outer.parent:
            mirror.subscribe(outer.name)
            outer = mirror.mirror.catalogue.by_name[outer.parent]
        mirror.subscribe(outer.name)
    _subscribe(mirror, kind, words)
    root = kind
    while root.parent:
        root = mirror.mirror.catalogue.by_name[root.parent]
    await mirror.when_current(root.name)
    for element in mirror.mirror.elements(kind.name):
        if words.json:
            emit(json.dumps(element.as_json()))
        else:
            key = element.get(kind.key) if kind.key else None
            names = [name for name in element if name != kind.key]
            emit(" ".join([str(key if key is not None else "-"), *_scalars(element, names)]))
    return 0


async def _watch(words: argparse.Namespace, mirror: MirrorService, _: Any, emit: Emit) -> int:
    await _registered(mirror)
    kinds = [await _known(mirror, name) for name in words.types]
    changes = mirror.changes()
    if not kinds:
        mirror.subscribe(ALL, flush_seconds=0)
    for kind in kinds:
        _subscribe(mirror, kind, words)
    left = words.count
    async for change in changes:
        if change.event.event in OBLIGATORY:
            continue
        if words.json:
            emit(json.dumps(as_mapping(change, mirror, words.elements)))
        else:
            emit(_line(change, mirror, bool(words.what)))
        if left:
            left -= 1
            if not left:
                break
    return 0


@frozen
class _Wanted:
    """What sets a command off."""

    kind: ObjectType
    action: Action | None = None
    events: tuple[int, ...] = ()

    def fits(self, change: Change) -> bool:
        if change.object_type is not self.kind:
            return False
        if self.events:
            return change.event.event in self.events
        if self.action is None:
            return change.action is not Action.LIST
        return change.action is self.action


async def _wanted(text: str, mirror: MirrorService) -> _Wanted:
    catalogue = mirror.mirror.catalogue
    events = _QEVENT_NAMES.get(text.upper(), (int(text),) if text.isdecimal() else ())
    if events:
        meaning = catalogue.meaning(events[0])
        if meaning is None:
            raise ConfigError([Fault("EVENT", f"the master has no event {text}")])
        return _Wanted(meaning[0], None, events)
    name, colon, action = text.rpartition(":")
    if not colon:
        return _Wanted(await _known(mirror, text))
    try:
        wanted = Action[action.upper()]
    except KeyError:
        known = ", ".join(each.name.lower() for each in Action)
        raise ConfigError([Fault("EVENT", f"expected one of {known}, found {action!r}")]) from None
    return _Wanted(await _known(mirror, name), wanted)


class _Triggered(ProcessProtocol):
    """One run of the command: the change goes to its standard input."""

    transport: Any

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.ended: Deferred[int] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._content)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()

    def errReceived(self, data: bytes) -> None:
        sys.stderr.buffer.write(data)
        sys.stderr.flush()

    def processEnded(self, reason: Failure) -> None:
        status = 0
        if isinstance(reason.value, ProcessTerminated):
            status = reason.value.exitCode or 128 + (reason.value.signal or 0)
        self.ended.callback(status)


async def _trigger(
    words: argparse.Namespace, mirror: MirrorService, reactor: Any, emit: Emit
) -> int:
    command = words.command[1:] if words.command[:1] == ["--"] else words.command
    if not command:
        raise ConfigError([Fault("COMMAND", "missing")])
    await _registered(mirror)
    wanted = await _wanted(words.event, mirror)
    changes = mirror.changes()
    _subscribe(mirror, wanted.kind, words)
    room = DeferredSemaphore(max(1, words.parallel))
    left = words.count
    async for change in changes:
        if not wanted.fits(change):
            continue
        # While all places are taken the changes wait, in a bounded queue.
        await room.acquire()
        _begin(command, words.event, change, mirror, reactor).addBoth(lambda _: room.release())
        if left:
            left -= 1
            if not left:
                break
    for _ in range(room.limit):
        await room.acquire()
    return 0


def _begin(
    command: Sequence[str], event: str, change: Change, mirror: MirrorService, reactor: Any
) -> Deferred[Any]:
    content = as_mapping(change, mirror)
    key = content["key"]
    keys = [str(part) for part in (key if isinstance(key, list) else [key]) if part is not None]
    if change.event.event == JOB_FINAL_USAGE:
        keys = [str(change.event.int_key), str(change.event.int_key2)]
    name = event.upper() if event.upper() in _QEVENT_NAMES else ""
    words = [*command, name or f"{content['type']}:{content['action']}", *keys]
    protocol = _Triggered(json.dumps(content).encode("utf-8") + b"\n")
    reactor.spawnProcess(protocol, words[0], words, env=None)

    def ended(status: int) -> None:
        if status:
            print(f"gridnet mirror: {words[0]} ended with status {status}", file=sys.stderr)

    return protocol.ended.addCallback(ended)
