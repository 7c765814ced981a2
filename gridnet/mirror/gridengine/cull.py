"""
Packed lists: Grid Engine's binary form of objects (docs/protocols/event-mirror.rst, "Packed data").

The octets describe themselves: every list and every free object brings a descriptor with the
number and kind of its fields.  A :class:`~gridnet.mirror.gridengine.dialect.Dialect` gives the
fields names.  Reading is bounded by the octets at hand and by :data:`MAX_DEPTH`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from itertools import groupby
from typing import Any, TypeAlias

from attrs import frozen

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.mirror.element import Element, ElementList, Layout


class Kind(IntEnum):
    """Kinds of fields that travel."""

    DOUBLE = 2
    ULONG = 3
    BOOL = 6
    STRING = 8
    LIST = 9
    OBJECT = 10
    REFERENCE = 11
    HOST = 12
    ULONG64 = 13


class Status(IntEnum):
    """How an element is held, as its packed form says."""

    FREE = 1  #: brings a descriptor of its own
    IN_LIST = 2
    IN_TRANSIT = 4
    IN_OBJECT = 8


#: How deeply lists and objects may be nested; real ones reach 6.
MAX_DEPTH = 24
#: How many fields a descriptor may have; the largest real one has 85.
MAX_FIELDS = 4096
#: Mask of the kind in a type word; the rest are flags.
KIND_MASK = 0xFF
#: Set in the type word of elements that a filter reduced.
REDUCED = 0x200000

#: The kinds as plain numbers.
TRAVELLING = frozenset(int(kind) for kind in Kind)
_STATUSES = frozenset(int(status) for status in Status)
_FORMATS = {Kind.DOUBLE: "d", Kind.ULONG: "I", Kind.ULONG64: "Q"}
_ULONG = struct.Struct(">I")
_TEXT = ("utf-8", "surrogateescape")
_ABSENT = b"\0\0\0\0"
_IN_LIST = b"\0\0\0\2"  # status of an element in a list


@frozen
class Field:
    """One attribute as a descriptor gives it."""

    number: int
    type_word: int
    name: str

    @property
    def kind(self) -> int:
        """The kind without flags."""
        return self.type_word & KIND_MASK


#: (what to do, its argument): a run of numbers of fixed size is read at once
_Step: TypeAlias = tuple[int, Any]
_RUN, _BOOLS, _STRINGS, _LIST, _OBJECT, _REFERENCES = range(6)


def _steps(fields: Sequence[Field]) -> tuple[_Step, ...]:
    def group(entry: Field) -> int:
        kind = entry.kind
        if kind in _FORMATS:
            return _RUN
        return {
            Kind.BOOL: _BOOLS,
            Kind.STRING: _STRINGS,
            Kind.HOST: _STRINGS,
            Kind.LIST: _LIST,
            Kind.OBJECT: _OBJECT,
            Kind.REFERENCE: _REFERENCES,
        }[Kind(kind)]

    steps: list[_Step] = []
    for step, entries in groupby(fields, group):
        run = list(entries)
        if step == _RUN:
            steps.append((step, struct.Struct(">" + "".join(_FORMATS[Kind(e.kind)] for e in run))))
        else:
            steps.append((step, len(run)))
    return tuple(steps)


class Descriptor(Layout):
    """
    The layout of packed elements: number and type word of each field.

    :ivar fields: the fields in order.
    :ivar octets: its own packed form.
    """

    __slots__ = (
        "_selections",
        "bit_count",
        "bitmap",
        "bitmap_octets",
        "fields",
        "octets",
        "steps",
    )

    def __init__(self, fields: Iterable[Field]) -> None:
        self.fields: tuple[Field, ...] = tuple(fields)
        super().__init__(entry.name for entry in self.fields)
        words = [word for entry in self.fields for word in (entry.number, entry.type_word)]
        self.octets = struct.pack(f">{1 + len(words)}I", len(self.fields), *words)
        self.steps = _steps(self.fields)
        #: the marks of changed fields that precede the values: a count, and that many zero bits
        self.bitmap = _ULONG.pack(len(self.fields)) + bytes((len(self.fields) + 7) // 8)
        self.bit_count = self.bitmap[:4]
        self.bitmap_octets = len(self.bitmap)
        self._selections: dict[tuple[str, ...], Descriptor] = {}

    def selected(self, names: Sequence[str]) -> Descriptor:
        """The descriptor of elements reduced to *names*, each field marked as reduced."""
        key = tuple(names)
        found = self._selections.get(key)
        if found is None:
            chosen = [self.fields[self.index[name]] for name in names]
            found = Descriptor(Field(f.number, f.type_word | REDUCED, f.name) for f in chosen)
            if len(self._selections) < 256:
                self._selections[key] = found
        return found


#: Gives the descriptor for its packed form (without the count).
DescriptorMaker: TypeAlias = Callable[[bytes], Descriptor]


class Unpacker:
    """
    Reads packed values from *octets*, front to back.

    Every method raises :class:`gridnet.errors.RemoteProtocolError` for octets that are not what
    it reads, or end too early.
    """

    __slots__ = ("_depth", "_make", "_octets", "_place")

    def __init__(self, octets: bytes, make_descriptor: DescriptorMaker, place: int = 0) -> None:
        self._octets = octets
        self._make = make_descriptor
        self._place = place
        self._depth = 0

    @property
    def left(self) -> int:
        """How many octets are unread."""
        return len(self._octets) - self._place

    def end(self) -> None:
        """Everything must have been read."""
        if self.left:
            raise RemoteProtocolError(f"{self.left} octets are left over after the packed data")

    def _short(self) -> RemoteProtocolError:
        return RemoteProtocolError(f"packed data end early, at octet {len(self._octets)}")

    def ulong(self) -> int:
        """An unsigned 32-bit integer."""
        place = self._place
        try:
            value: int = _ULONG.unpack_from(self._octets, place)[0]
        except struct.error:
            raise self._short() from None
        self._place = place + 4
        return value

    def number(self, form: struct.Struct) -> Any:
        """One number in *form*."""
        try:
            value = form.unpack_from(self._octets, self._place)[0]
        except struct.error:
            raise self._short() from None
        self._place += form.size
        return value

    def flag(self) -> bool:
        """An integer that is 0 or 1."""
        value = self.ulong()
        if value > 1:
            raise RemoteProtocolError(f"expected a flag 0 or 1, found {value}")
        return value == 1

    def string(self) -> str | None:
        """Text up to a zero octet; empty and absent are the same on the wire: None."""
        octets, place = self._octets, self._place
        end = octets.find(b"\0", place)
        if end < 0:
            raise self._short()
        self._place = end + 1
        return octets[place:end].decode(*_TEXT) if end > place else None

    def element_list(self) -> ElementList | None:
        """A list, or None where it is absent."""
        if not self.flag():
            return None
        count = self.ulong()
        name = self.string() or ""
        changed = self.ulong()
        descriptor = self.descriptor()
        # An element has a status and a bit count at least: no count makes us reserve more
        # than the octets at hand can fill.
        if count * 8 > self.left:
            raise RemoteProtocolError(f"a list of {count} elements in {self.left} octets")
        self._descend()
        elements = [self._element(descriptor) for _ in range(count)]
        self._depth -= 1
        return ElementList(elements, descriptor, name, changed)

    def object(self) -> Element | None:
        """An object with its descriptor, or None where it is absent."""
        if not self.flag():
            return None
        descriptor = self.descriptor()
        self._descend()
        element = self._element(descriptor)
        self._depth -= 1
        return element

    def free_element(self) -> Element:
        """An element that stands alone and so brings its descriptor."""
        return self._element(None)

    def descriptor(self) -> Descriptor:
        """A descriptor."""
        count = self.ulong()
        if count > MAX_FIELDS:
            raise RemoteProtocolError(f"a descriptor of {count} fields")
        end = self._place + 8 * count
        if end > len(self._octets):
            raise self._short()
        descriptor = self._make(self._octets[self._place : end])
        self._place = end
        return descriptor

    def _descend(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RemoteProtocolError(f"packed data nested deeper than {MAX_DEPTH}")

    def _element(self, descriptor: Descriptor | None) -> Element:
        octets, place = self._octets, self._place
        if descriptor is not None and octets.startswith(_IN_LIST, place):  # most are
            place += 4
        else:
            descriptor = self._other_element(descriptor)
            place = self._place
        end = place + descriptor.bitmap_octets
        if not octets.startswith(descriptor.bit_count, place):
            raise RemoteProtocolError("the bits of an element do not match its fields")
        if end > len(octets):
            raise self._short()
        self._place = end
        return Element(descriptor, self._values(descriptor))

    def _other_element(self, descriptor: Descriptor | None) -> Descriptor:
        """Read the status of an element; gives its descriptor."""
        status = self.ulong()
        if status not in _STATUSES:
            raise RemoteProtocolError(f"an element with the unknown status {status}")
        if status == Status.FREE:
            return self.descriptor()
        if descriptor is None:
            raise RemoteProtocolError(f"expected a free element, found status {status}")
        return descriptor

    def _values(self, descriptor: Descriptor) -> list[Any]:
        octets = self._octets
        values: list[Any] = []
        for step, argument in descriptor.steps:
            if step == _RUN:
                try:
                    values += argument.unpack_from(octets, self._place)
                except struct.error:
                    raise self._short() from None
                self._place += argument.size
            elif step == _STRINGS:
                for _ in range(argument):
                    place = self._place
                    end = octets.find(b"\0", place)
                    if end < 0:
                        raise self._short()
                    self._place = end + 1
                    values.append(octets[place:end].decode(*_TEXT) if end > place else None)
            elif step == _LIST:
                for _ in range(argument):
                    if octets.startswith(_ABSENT, self._place):  # most are
                        self._place += 4
                        values.append(None)
                    else:
                        values.append(self.element_list())
            elif step == _BOOLS:
                for _ in range(argument):
                    values.append(self.flag())
            elif step == _OBJECT:
                for _ in range(argument):
                    values.append(self.object())
            else:
                values += [None] * argument
        return values


def pack_ulong(value: int) -> bytes:
    """An unsigned 32-bit integer."""
    try:
        return _ULONG.pack(value)
    except struct.error:
        raise LocalProtocolError(f"{value!r} is not an unsigned 32-bit integer") from None


def pack_string(value: str | None) -> bytes:
    """Text with its zero octet; None is the same as empty."""
    if not value:
        return b"\0"
    octets = value.encode(*_TEXT)
    if b"\0" in octets:
        raise LocalProtocolError("text with a zero octet cannot be packed")
    return octets + b"\0"


def pack_list(value: ElementList | None) -> bytes:
    """A list; all its elements must have the list's descriptor."""
    if value is None:
        return _ABSENT
    descriptor = value.layout
    if descriptor is None:
        descriptor = value[0].layout if value else NO_FIELDS
    if not isinstance(descriptor, Descriptor):
        raise LocalProtocolError("elements without a descriptor cannot be packed")
    out = [_PRESENT, pack_ulong(len(value)), pack_string(value.name), pack_ulong(value.changed)]
    out.append(descriptor.octets)
    for element in value:
        if element.layout is not descriptor and element.layout.names != descriptor.names:
            raise LocalProtocolError("elements of one packed list must have one descriptor")
        out.append(_IN_LIST)
        _pack_values(descriptor, element.values_, out)
    return b"".join(out)


def pack_object(value: Element | None) -> bytes:
    """An object with its descriptor."""
    if value is None:
        return _ABSENT
    descriptor = _descriptor_of(value)
    out = [_PRESENT, descriptor.octets, _IN_OBJECT]
    _pack_values(descriptor, value.values_, out)
    return b"".join(out)


def pack_free_element(value: Element) -> bytes:
    """An element that stands alone."""
    descriptor = _descriptor_of(value)
    out = [_FREE, descriptor.octets]
    _pack_values(descriptor, value.values_, out)
    return b"".join(out)


_ABSENT = _ULONG.pack(0)
_PRESENT = _ULONG.pack(1)
_FREE = _ULONG.pack(Status.FREE)
_IN_LIST = _ULONG.pack(Status.IN_LIST)
_IN_OBJECT = _ULONG.pack(Status.IN_OBJECT)
NO_FIELDS = Descriptor(())


def _descriptor_of(element: Element) -> Descriptor:
    if not isinstance(element.layout, Descriptor):
        raise LocalProtocolError("an element without a descriptor cannot be packed")
    return element.layout


def _pack_values(descriptor: Descriptor, values: tuple[Any, ...], out: list[bytes]) -> None:
    out.append(descriptor.bitmap)
    place = 0
    for step, argument in descriptor.steps:
        if step == _RUN:
            count = len(argument.format) - 1
            try:
                out.append(argument.pack(*values[place : place + count]))
            except struct.error as error:
                names = ", ".join(descriptor.names[place : place + count])
                raise LocalProtocolError(f"one of {names} does not fit: {error}") from None
            place += count
            continue
        for value in values[place : place + argument]:
            if step == _STRINGS:
                out.append(pack_string(value))
            elif step == _LIST:
                out.append(pack_list(value))
            elif step == _BOOLS:
                out.append(_PRESENT if value else _ABSENT)
            elif step == _OBJECT:
                out.append(pack_object(value))
        place += argument


def read_fields(octets: bytes, names: Callable[[int], str]) -> Descriptor:
    """
    The descriptor with the packed fields *octets*.

    :param names: gives a field number its name.
    :raises RemoteProtocolError: a kind that does not exist, or a field twice.
    """
    words = struct.unpack(f">{len(octets) // 4}I", octets)
    fields = [Field(n, word, names(n)) for n, word in zip(words[::2], words[1::2], strict=True)]
    for entry in fields:
        if entry.kind not in TRAVELLING:
            raise RemoteProtocolError(f"field {entry.number} is of the unknown kind {entry.kind}")
    if len({entry.name for entry in fields}) != len(fields):
        raise RemoteProtocolError("a descriptor names a field twice")
    return Descriptor(fields)
