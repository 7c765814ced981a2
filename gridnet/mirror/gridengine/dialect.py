"""
Dialects: what differs between versions of Grid Engine, as data.

A dialect names the format version that packed bodies begin with, the version of GDI requests,
and the attributes of every element type.  Another version is another table in ``data/``.
"""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.gridengine.cull import (
    KIND_MASK,
    TRAVELLING,
    Descriptor,
    Field,
    Kind,
    Unpacker,
    read_fields,
)

_MAX_DESCRIPTORS = 2048
_HEADER = struct.Struct(">II")

#: What a field of each kind holds when nothing was said.
_ZERO: Mapping[int, object] = {
    Kind.DOUBLE: 0.0,
    Kind.ULONG: 0,
    Kind.ULONG64: 0,
    Kind.BOOL: False,
}


class Dialect:
    """
    One version of the native protocol.

    :ivar name: as in configuration and messages, ``sge-8.1``.
    :ivar format_version: second integer of every packed body.
    :ivar gdi_version: version field of GDI requests.
    :ivar kinds: type name (``JB``) -> its descriptor, in the peer's own order of fields.
    :ivar unknown: numbers of attributes that peers sent and the table does not name.
    """

    def __init__(
        self,
        name: str,
        format_version: int,
        gdi_version: int,
        table: Mapping[str, Sequence[Sequence[Any]]],
    ) -> None:
        self.name = name
        self.format_version = format_version
        self.gdi_version = gdi_version
        self.header = _HEADER.pack(0, format_version)
        rows = {
            type_name.removesuffix("_Type"): [Field(*entry) for entry in fields]
            for type_name, fields in table.items()
        }
        # A few internal types have fields of kinds that never travel: names, no descriptor.
        self.kinds: Mapping[str, Descriptor] = {
            kind: Descriptor(fields)
            for kind, fields in rows.items()
            if all(entry.kind in TRAVELLING for entry in fields)
        }
        self._fields = {entry.number: entry for fields in rows.values() for entry in fields}
        self._owners = {entry.number: kind for kind, fields in rows.items() for entry in fields}
        self.unknown: set[int] = set()
        self._descriptors: OrderedDict[bytes, Descriptor] = OrderedDict()

    def field_name(self, number: int) -> str:
        """The name of attribute *number*; of an unknown one, its number as text."""
        known = self._fields.get(number)
        if known is not None:
            return known.name
        if len(self.unknown) < 1000:
            self.unknown.add(number)
        return str(number)

    def field(self, number: int) -> Field | None:
        """The attribute of that *number*, as this dialect has it."""
        return self._fields.get(number)

    def kind_of(self, descriptor: Descriptor) -> str:
        """Name of the type that *descriptor*, perhaps reduced, belongs to; "" when unknown."""
        return self._owners.get(descriptor.fields[0].number, "") if descriptor.fields else ""

    def misfits(self, descriptor: Descriptor) -> list[str]:
        """Attributes whose kind is not the table's: a sign that another dialect is spoken."""
        return [
            entry.name
            for entry in descriptor.fields
            if (known := self._fields.get(entry.number)) is not None
            and known.type_word & KIND_MASK != entry.kind
        ]

    def descriptor(self, octets: bytes) -> Descriptor:
        """The descriptor with these packed fields; the same octets give the same object."""
        found = self._descriptors.get(octets)
        if found is None:
            found = read_fields(octets, self.field_name)
            misfits = self.misfits(found)
            if misfits:
                raise RemoteProtocolError(
                    f"{', '.join(misfits)}: of another kind than in {self.name}; "
                    "the peer speaks another version"
                )
            if len(self._descriptors) >= _MAX_DESCRIPTORS:
                self._descriptors.popitem(last=False)
            self._descriptors[octets] = found
        return found

    def element(self, kind: str, values: Mapping[str, Any] | None = None) -> Element:
        """
        A complete element of type *kind*: *values*, and zero or absent for all others.

        :raises LocalProtocolError: *values* names an attribute that the type lacks.
        """
        descriptor = self.kinds[kind]
        values = values or {}
        strange = values.keys() - descriptor.index.keys()
        if strange:
            raise LocalProtocolError(f"{kind} has no {', '.join(sorted(strange))}")
        return Element(
            descriptor,
            [values[f.name] if f.name in values else _ZERO.get(f.kind) for f in descriptor.fields],
        )

    def list_of(
        self, kind: str, elements: Sequence[Element] = (), name: str = "", changed: int = 0
    ) -> ElementList:
        """A list of elements of type *kind*."""
        return ElementList(elements, self.kinds[kind], name, changed)

    def open(self, body: bytes) -> Unpacker:
        """
        Begin to read a packed body, its two header integers checked.

        :raises RemoteProtocolError: not packed data, or another format version.
        """
        unpacker = Unpacker(body, self.descriptor)
        first, version = unpacker.ulong(), unpacker.ulong()
        if first != 0:
            raise RemoteProtocolError(f"packed data begin with {first} instead of 0")
        if version != self.format_version:
            raise RemoteProtocolError(
                f"the peer packs in format {version:#010x}, "
                f"{self.name} is {self.format_version:#010x}"
            )
        return unpacker


_KNOWN = {"sge-8.1": (0x10020000, 0x10003001)}


@cache
def dialect(name: str = "sge-8.1") -> Dialect:
    """
    The dialect called *name*.

    :raises KeyError: there is none.
    """
    format_version, gdi_version = _KNOWN[name]
    text = files("gridnet.mirror.gridengine").joinpath("data", f"{name}.json").read_text("utf-8")
    return Dialect(name, format_version, gdi_version, json.loads(text))
