"""
gridnet's own transport of lists: frames of JSON (docs/protocols/event-mirror.rst, "gridnet's
own transport").  No I/O.

A frame is its length, four octets with the high one first, and that many octets of UTF-8 JSON:
one object with one key that says what it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from attrs import frozen

from gridnet.errors import RemoteProtocolError
from gridnet.mirror.catalogue import OBLIGATORY, OwnCatalogue
from gridnet.mirror.element import Element, ElementList, as_json
from gridnet.mirror.feed import Run
from gridnet.mirror.filters import Chosen, Operator, What, Where
from gridnet.mirror.model import Action, Event, Registration, Report, Subscribed

#: What a master says first; a client of another version is told so and let go.
VERSION = 1
#: A frame, unless the reader is told otherwise: 64 MiB.
MAX_FRAME_OCTETS = 64 * 1024 * 1024
#: From a client: registrations and acknowledgements are small.
MAX_REQUEST_OCTETS = 1024 * 1024
#: Subscriptions of one registration.
MAX_SUBSCRIPTIONS = 4096
#: Lists of one master.
MAX_TYPES = 1000
#: Length of a name of a list.
MAX_NAME_CHARACTERS = 200

_LENGTH = struct.Struct(">I")
_ENCODED = "gridnet"


def pack(message: Mapping[str, Any]) -> bytes:
    """The octets of a frame."""
    octets = _dump(message)
    return _LENGTH.pack(len(octets)) + octets


class FrameReader:
    """
    Cuts octets into messages, however TCP cut them before.

    :param max_octets: a longer frame is refused before it is read.
    """

    def __init__(self, max_octets: int = MAX_FRAME_OCTETS) -> None:
        self._max = max_octets
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[dict[str, Any]]:
        """
        Take *data*; give the messages that are whole now.

        :raises RemoteProtocolError: too long, or not an object of JSON.
        """
        buffer = self._buffer
        buffer += data
        messages = []
        place = 0
        while len(buffer) - place >= 4:
            length = _LENGTH.unpack_from(buffer, place)[0]
            if length > self._max:
                raise RemoteProtocolError(f"a frame of {length} octets, {self._max} are allowed")
            end = place + 4 + length
            if len(buffer) < end:
                break
            messages.append(read_object(bytes(memoryview(buffer)[place + 4 : end])))
            place = end
        del buffer[:place]
        return messages

    @property
    def pending(self) -> int:
        """Octets of a message that is not whole yet."""
        return len(self._buffer)


def read_object(octets: bytes) -> dict[str, Any]:
    """
    The JSON object in *octets*.

    :raises RemoteProtocolError: it is none, or nested too deeply.
    """
    try:
        message = json.loads(octets)
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError is a ValueError; deep nesting ends in a RecursionError.
        raise RemoteProtocolError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise RemoteProtocolError("a message that is not an object")
    return message


# -- filters


def where_as_json(where: Where | None) -> Any:
    """A condition as JSON: ``[operator, attribute, value]`` or ``[operator, part, ...]``."""
    if where is None:
        return None
    name = where.operator.name.lower()
    if where.operator is Operator.SUBSCOPE:
        return [name, where.attribute, where_as_json(where.parts[0])]
    if where.parts:
        return [name, *map(where_as_json, where.parts)]
    return [name, where.attribute, where.value]


def read_where(value: Any, depth: int = 0) -> Where | None:
    """
    The condition in *value*.

    :raises RemoteProtocolError: malformed.
    """
    if value is None:
        return None
    if depth > 32 or not isinstance(value, list) or len(value) < 2:
        raise RemoteProtocolError("a malformed condition")
    try:
        operator = Operator[str(value[0]).upper()]
    except KeyError:
        raise RemoteProtocolError(f"a condition with the unknown operator {value[0]!r}") from None
    if operator in (Operator.AND, Operator.OR, Operator.NOT):
        parts = tuple(read_where(part, depth + 1) for part in value[1:])
        if None in parts or (operator is Operator.NOT and len(parts) != 1):
            raise RemoteProtocolError("a connective with the wrong parts")
        return Where(operator, parts=tuple(part for part in parts if part is not None))
    if len(value) != 3 or not isinstance(value[1], str):
        raise RemoteProtocolError("a malformed comparison")
    if operator is Operator.SUBSCOPE:
        inner = read_where(value[2], depth + 1)
        if inner is None:
            raise RemoteProtocolError("a condition on a list without a condition inside")
        return Where(operator, value[1], parts=(inner,))
    if not isinstance(value[2], (str, int, float, bool, type(None))):
        raise RemoteProtocolError("a comparison with something that is not a scalar")
    return Where(operator, value[1], value[2])


def what_as_json(what: What | None) -> Any:
    """A choice as JSON: names, or ``[name, choice]`` for what of a list."""
    if what is None:
        return None
    return [
        chosen.attribute if chosen.inner is None else [chosen.attribute, what_as_json(chosen.inner)]
        for chosen in what.chosen
    ]


def read_what(value: Any, depth: int = 0) -> What | None:
    """
    The choice in *value*.

    :raises RemoteProtocolError: malformed.
    """
    if value is None:
        return None
    if depth > 32 or not isinstance(value, list):
        raise RemoteProtocolError("a malformed choice of attributes")
    chosen: dict[str, Chosen] = {}
    for entry in value:
        if isinstance(entry, str):
            chosen[entry] = Chosen(entry)
        elif isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
            chosen[entry[0]] = Chosen(entry[0], read_what(entry[1], depth + 1))
        else:
            raise RemoteProtocolError("a malformed choice of attributes")
    return What(tuple(chosen.values()))


# -- registrations


def registration_as_json(wish: Registration, catalogue: OwnCatalogue) -> dict[str, Any]:
    """*wish* as a client sends it; the three events that everyone has are not mentioned."""
    rows: list[dict[str, Any]] | None = None
    if wish.subscriptions is not None:
        rows = []
        for each in wish.subscriptions:
            if each.event in OBLIGATORY:
                continue
            meaning = catalogue.meaning(each.event)
            if meaning is None:
                continue
            row: dict[str, Any] = {"type": meaning[0].name, "action": int(meaning[1])}
            if each.flush_seconds >= 0:
                row["flush"] = each.flush_seconds
            if each.where is not None:
                row["where"] = where_as_json(each.where)
            if each.what is not None:
                row["what"] = what_as_json(each.what)
            rows.append(row)
    return {
        "name": wish.name,
        "id": wish.id,
        "delivery_seconds": wish.delivery_seconds,
        "busy_policy": int(wish.busy_policy),
        "busy": wish.busy,
        "session": wish.session,
        "subscriptions": rows,
    }


def _value(message: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = message.get(name, default)
    if type(value) is not kind:
        raise RemoteProtocolError(f"{name}: expected {kind.__name__}, found {value!r:.50}")
    return value


def read_registration(message: Any, catalogue: OwnCatalogue) -> Registration:
    """
    The registration in *message*; lists that the master does not have are left out.

    :raises RemoteProtocolError: malformed.
    """
    if not isinstance(message, dict):
        raise RemoteProtocolError("a registration that is not an object")
    rows = message.get("subscriptions")
    subscriptions: tuple[Subscribed, ...] | None = None
    if rows is not None:
        if not isinstance(rows, list) or len(rows) > MAX_SUBSCRIPTIONS:
            raise RemoteProtocolError("malformed subscriptions, or too many")
        found = [Subscribed(event, 0) for event in OBLIGATORY]
        found += [each for row in rows if (each := _read_subscription(row, catalogue))]
        subscriptions = tuple(found)
    return Registration(
        name=_value(message, "name", str, ""),
        id=_value(message, "id", int, 0),
        delivery_seconds=_value(message, "delivery_seconds", int, 10),
        subscriptions=subscriptions,
        changed=subscriptions is not None,
        busy_policy=_value(message, "busy_policy", int, 1),
        busy=_value(message, "busy", bool, False),
        session=_value(message, "session", str, ""),
    )


def _read_subscription(row: Any, catalogue: OwnCatalogue) -> Subscribed | None:
    if not isinstance(row, dict):
        raise RemoteProtocolError("a subscription that is not an object")
    name = _value(row, "type", str, None)
    flush = _value(row, "flush", int, -1)
    where, what = read_where(row.get("where")), read_what(row.get("what"))
    kind = catalogue.by_name.get(name)
    number = _value(row, "action", int, None)
    try:
        action = Action(number)
    except ValueError:
        raise RemoteProtocolError(f"a subscription of the unknown action {number}") from None
    if kind is None or action not in kind.events:
        return None
    return Subscribed(kind.events[action], min(max(flush, -1), 86_400), where, what)


# -- reports


def pack_report(report: Report, catalogue: OwnCatalogue) -> list[bytes]:
    """
    The frame of a report, in pieces; what an event says is encoded once for all clients.
    """

    def pack_event(event: Event) -> Sequence[bytes]:
        return _event_pieces(event, catalogue)

    pieces = [b'{"report":%d,"events":[' % report.first]
    for part in report.parts:
        if len(pieces) > 1 and part:
            pieces.append(b",")
        if isinstance(part, Run):
            pieces += part.pieces(_ENCODED, pack_event, b",")
        else:
            for place, event in enumerate(part):
                if place:
                    pieces.append(b",")
                pieces += pack_event(event)
    pieces.append(b"]}")
    length = sum(map(len, pieces))
    return [_LENGTH.pack(length), *pieces]


def _event_pieces(event: Event, catalogue: OwnCatalogue) -> Sequence[bytes]:
    known = event.encoded
    if known is not None and _ENCODED in known:
        return (known[_ENCODED],)
    meaning = catalogue.meaning(event.event)
    timestamp = int(event.timestamp)
    if event.event in OBLIGATORY or meaning is None:
        return (b"[%d,5,%d,null,null]" % (event.event, timestamp),)
    kind, action = meaning
    head = b"[%b,%d,%d,%b," % (
        _dump(kind.name),
        int(action),
        timestamp,
        _dump(event.text_key),
    )
    if action is Action.LIST:
        # Made anew for each client, from the octets of the elements: keeping it would hold one
        # whole list for every client that registers.
        rows = event.elements or ()
        return [head, b"[", *_joined(rows), b"]]"]
    element = event.element
    octets = head + (b"null" if element is None else element_octets(element)) + b"]"
    if known is None:
        known = event.encoded = {}
    known[_ENCODED] = octets
    return (octets,)


def _joined(rows: Iterable[Element]) -> Iterable[bytes]:
    first = True
    for row in rows:
        if not first:
            yield b","
        first = False
        yield element_octets(row)


def element_octets(element: Element) -> bytes:
    """*element* as JSON; encoded once."""
    octets = element.encoded
    if octets is None:
        octets = element.encoded = _dump(element.as_json())
    return octets


_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=as_json
).encode


def _dump(value: Any) -> bytes:
    try:
        text = _encode(value)
    except ValueError:
        text = _encode(_finite(value))
    return text.encode("utf-8", "surrogatepass")


def _finite(value: Any) -> Any:
    """*value* with null for what JSON has no numbers for: a browser reads nothing of the rest."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value


def read_report(message: Mapping[str, Any], catalogue: OwnCatalogue) -> list[tuple[int, Event]]:
    """
    The numbered events of a report message; lists that come up are added to *catalogue*.

    :raises RemoteProtocolError: malformed.
    """
    first, rows = message.get("report"), message.get("events")
    if type(first) is not int or first < 1 or not isinstance(rows, list):
        raise RemoteProtocolError("a malformed report")
    try:
        return [
            (number, _read_event(row, catalogue, number)) for number, row in enumerate(rows, first)
        ]
    except (TypeError, ValueError, KeyError) as error:
        raise RemoteProtocolError(f"a malformed event: {error}") from None


def _read_event(row: Any, catalogue: OwnCatalogue, number: int) -> Event:
    name, action_number, timestamp, key, content = row
    if type(timestamp) is not int or not isinstance(key, (str, type(None))):
        raise ValueError("its timestamp or key is of another kind")
    if isinstance(name, int):
        return Event(name, timestamp, number=number)
    if name not in catalogue.by_name and len(catalogue.by_name) >= MAX_TYPES:
        raise ValueError(f"more than {MAX_TYPES} lists")
    kind = catalogue.own(check_name(name))
    action = Action(action_number)
    elements: ElementList | None = None
    if action is Action.LIST:
        elements = ElementList([Element.of(_object(entry)) for entry in content or ()])
    elif content is not None:
        elements = ElementList((Element.of(_object(content)),))
    return Event(kind.events[action], timestamp, text_key=key, elements=elements, number=number)


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an element that is not an object")
    return value


def check_name(name: Any) -> str:
    """
    *name* as the name of a list.

    :raises RemoteProtocolError: it cannot be one.
    """
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MAX_NAME_CHARACTERS
        or not name.isprintable()
    ):
        raise RemoteProtocolError(f"{name!r:.50} cannot be the name of a list")
    return name


@frozen
class Greeting:
    """What a master says first."""

    version: int
    types: tuple[str, ...]
    host: str = ""

    def pack(self) -> bytes:
        """Its frame."""
        hello = {"version": self.version, "types": self.types, "host": self.host}
        return pack({"hello": hello})


def read_greeting(message: Mapping[str, Any]) -> Greeting:
    """
    The greeting in *message*.

    :raises RemoteProtocolError: malformed, or of another version.
    """
    hello = message.get("hello")
    if not isinstance(hello, dict):
        raise RemoteProtocolError("the peer does not greet like a gridnet master")
    version = _value(hello, "version", int, None)
    if version != VERSION:
        raise RemoteProtocolError(f"the peer speaks version {version}, this is {VERSION}")
    return Greeting(version, read_types(hello.get("types")), _value(hello, "host", str, ""))


def read_types(types: Any) -> tuple[str, ...]:
    """
    The names of lists in a message.

    :raises RemoteProtocolError: malformed, or too many.
    """
    if not isinstance(types, list) or len(types) > MAX_TYPES:
        raise RemoteProtocolError(f"malformed names of lists, or more than {MAX_TYPES}")
    return tuple(map(check_name, types))
