"""
Filters in Grid Engine's packed form (docs/protocols/event-mirror.rst, "Filters on the wire").

A condition (where) and a choice of attributes (what) travel as text inside a ``PACK`` object:
their packed octets, each as two hexadecimal digits, the low one first.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.mirror.element import Element
from gridnet.mirror.filters import CONNECTIVES, MAX_DEPTH, Chosen, Operator, What, Where
from gridnet.mirror.gridengine.cull import (
    Descriptor,
    Field,
    Kind,
    Unpacker,
    pack_string,
    pack_ulong,
)
from gridnet.mirror.gridengine.dialect import Dialect

#: A filter of all attributes of all types is below 64 KiB.
MAX_FILTER_OCTETS = 1024 * 1024

_WHAT, _WHERE = 1, 2
_ALL, _NOTHING, _SOME = 0, 1, 2
_DOUBLE = struct.Struct(">d")
_ULONG64 = struct.Struct(">Q")

_HEX = [f"{octet & 15:X}{octet >> 4:X}" for octet in range(256)]
_OCTETS = {text: octet for octet, text in enumerate(_HEX)}


def hex_text(octets: bytes) -> str:
    """*octets* as digits, the low one of each first."""
    return "".join([_HEX[octet] for octet in octets])


def from_hex_text(text: str) -> bytes:
    """
    The octets behind *text*.

    :raises RemoteProtocolError: not such digits.
    """
    text = text.upper()
    if len(text) % 2:
        raise RemoteProtocolError("a filter text of an odd length")
    try:
        return bytes(_OCTETS[text[i : i + 2]] for i in range(0, len(text), 2))
    except KeyError:
        raise RemoteProtocolError("a filter text with something else than digits") from None


def read_what(unpacker: Unpacker, dialect: Dialect, depth: int = 0) -> What | None:
    """
    A choice of attributes; None: no choice, all of them.

    :raises RemoteProtocolError: malformed.
    """
    if not unpacker.flag():
        return None
    count = unpacker.ulong()
    if count == _ALL:
        return None
    if count == _NOTHING:
        return What()
    if count != _SOME:
        raise RemoteProtocolError(f"a choice of attributes of the unknown form {count}")
    if depth > MAX_DEPTH:
        raise RemoteProtocolError(f"a filter nested deeper than {MAX_DEPTH}")
    count = unpacker.ulong()
    if count * 16 > unpacker.left:
        raise RemoteProtocolError(f"a choice of {count} attributes in {unpacker.left} octets")
    chosen: dict[str, Chosen] = {}
    for _ in range(count):
        unpacker.ulong()  # the position in the sender's full descriptor
        unpacker.ulong()  # the type word, which the attribute's number implies
        name = dialect.field_name(unpacker.ulong())
        chosen[name] = Chosen(name, read_what(unpacker, dialect, depth + 1))
    return What(tuple(chosen.values()))


def read_where(unpacker: Unpacker, dialect: Dialect, depth: int = 0) -> Where | None:
    """
    A condition; None: none.

    :raises RemoteProtocolError: malformed.
    """
    if not unpacker.flag():
        return None
    if depth > MAX_DEPTH:
        raise RemoteProtocolError(f"a filter nested deeper than {MAX_DEPTH}")
    number = unpacker.ulong()
    try:
        operator = Operator(number)
    except ValueError:
        raise RemoteProtocolError(f"a condition with the unknown operator {number}") from None
    if operator in CONNECTIVES:
        parts = [
            read_where(unpacker, dialect, depth + 1)
            for _ in range(1 if operator == Operator.NOT else 2)
        ]
        # An absent part fits everything; there is no neutral element for it in our trees.
        if None in parts:
            raise RemoteProtocolError("a connective without its parts")
        return Where(operator, parts=tuple(part for part in parts if part is not None))
    unpacker.ulong()  # position
    kind = unpacker.ulong() & 0xFF
    name = dialect.field_name(unpacker.ulong())
    if operator == Operator.SUBSCOPE or kind in (Kind.LIST, Kind.OBJECT):
        inner = read_where(unpacker, dialect, depth + 1)
        if inner is None:
            raise RemoteProtocolError("a condition on a list without a condition inside")
        return Where(Operator.SUBSCOPE, name, parts=(inner,))
    return Where(operator, name, _read_value(unpacker, kind))


def _read_value(unpacker: Unpacker, kind: int) -> bool | int | float | str | None:
    if kind in (Kind.STRING, Kind.HOST):
        return unpacker.string()
    if kind == Kind.ULONG:
        return unpacker.ulong()
    if kind == Kind.BOOL:
        return unpacker.flag()
    if kind == Kind.DOUBLE:
        return float(unpacker.number(_DOUBLE))
    if kind == Kind.ULONG64:
        return int(unpacker.number(_ULONG64))
    raise RemoteProtocolError(f"a condition on a field of kind {kind}")


def pack_what(what: What | None, dialect: Dialect, kind: str) -> bytes:
    """
    A choice of attributes of type *kind*; of none, "all".

    :raises LocalProtocolError: the type lacks one of them.
    """
    if what is None:
        return pack_ulong(1) + pack_ulong(_ALL)
    if not what.chosen:
        return pack_ulong(1) + pack_ulong(_NOTHING)
    out = [pack_ulong(1), pack_ulong(_SOME), pack_ulong(len(what.chosen))]
    for chosen in what.chosen:
        place, entry = _find(dialect, kind, chosen.attribute)
        out += [pack_ulong(place), pack_ulong(entry.type_word), pack_ulong(entry.number)]
        if chosen.inner is None:
            out.append(pack_ulong(0))
        else:
            out.append(pack_what(chosen.inner, dialect, kind_inside(dialect, entry)))
    return b"".join(out)


def pack_where(where: Where | None, dialect: Dialect, kind: str) -> bytes:
    """
    A condition on elements of type *kind*.

    :raises LocalProtocolError: the type lacks an attribute, or a value is of another kind.
    """
    if where is None:
        return pack_ulong(0)
    out = [pack_ulong(1), pack_ulong(where.operator)]
    if where.operator in CONNECTIVES:
        # Grid Engine's connectives take two parts: longer rows are nested to the right.
        parts = where.parts
        if where.operator != Operator.NOT and len(parts) > 2:
            parts = (parts[0], Where(where.operator, parts=parts[1:]))
        return b"".join([*out, *(pack_where(part, dialect, kind) for part in parts)])
    place, entry = _find(dialect, kind, where.attribute)
    out += [pack_ulong(place), pack_ulong(entry.type_word), pack_ulong(entry.number)]
    if where.operator == Operator.SUBSCOPE:
        out.append(pack_where(where.parts[0], dialect, kind_inside(dialect, entry)))
    else:
        out.append(_pack_value(where.value, entry))
    return b"".join(out)


def _pack_value(value: Any, entry: Field) -> bytes:
    pack = _PACK.get(entry.kind)
    try:
        if pack is not None:
            return pack(value)
    except (struct.error, AttributeError, TypeError):
        pass
    raise LocalProtocolError(f"{entry.name} cannot be compared with {value!r}")


_PACK: Mapping[int, Callable[[Any], bytes]] = {
    Kind.STRING: pack_string,
    Kind.HOST: pack_string,
    Kind.ULONG: pack_ulong,
    Kind.BOOL: pack_ulong,
    Kind.DOUBLE: _DOUBLE.pack,
    Kind.ULONG64: _ULONG64.pack,
}


def _find(dialect: Dialect, kind: str, attribute: str) -> tuple[int, Field]:
    descriptor: Descriptor | None = dialect.kinds.get(kind)
    if descriptor is None or attribute not in descriptor.index:
        raise LocalProtocolError(f"{kind or 'this type'} has no attribute {attribute}")
    place = descriptor.index[attribute]
    return place, descriptor.fields[place]


#: List attribute -> type of its elements, for filters that reach into lists.
INSIDE: Mapping[str, str] = {
    "JB_ja_tasks": "JAT",
    "JB_ja_template": "JAT",
    "JB_ja_structure": "RN",
    "JB_ja_n_h_ids": "RN",
    "JB_ja_u_h_ids": "RN",
    "JB_ja_s_h_ids": "RN",
    "JB_ja_o_h_ids": "RN",
    "JB_ja_a_h_ids": "RN",
    "JB_ja_z_ids": "RN",
    "JB_pe_range": "RN",
    "JB_hard_resource_list": "CE",
    "JB_soft_resource_list": "CE",
    "JB_env_list": "VA",
    "JB_context": "VA",
    "JB_mail_list": "MR",
    "JB_job_args": "ST",
    "JB_jid_predecessor_list": "JRE",
    "JB_jid_successor_list": "JRE",
    "JAT_task_list": "PET",
    "JAT_granted_destin_identifier_list": "JG",
    "JAT_usage_list": "UA",
    "JAT_scaled_usage_list": "UA",
    "PET_usage": "UA",
    "PET_scaled_usage": "UA",
    "CQ_qinstances": "QU",
    "CQ_hostlist": "HR",
    "HGRP_host_list": "HR",
    "EH_load_list": "HL",
    "EH_consumable_config_list": "CE",
    "CONF_entries": "CF",
    "US_entries": "UE",
    "STN_children": "STN",
}


def kind_inside(dialect: Dialect, entry: Field) -> str:
    """Type of the elements of the list attribute *entry*; "" when it is not known."""
    return INSIDE.get(entry.name, "")


def pack_filter(
    what: What | None, where: Where | None, dialect: Dialect, kind: str
) -> tuple[Element | None, Element | None]:
    """The ``PACK`` objects of a choice and a condition on elements of type *kind*."""
    packed_what = packed_where = None
    if what is not None or where is not None:
        # A real qmaster ignores a condition that comes without a choice.
        packed_what = _pack(_WHAT, pack_what(what, dialect, kind), dialect)
    if where is not None:
        packed_where = _pack(_WHERE, pack_where(where, dialect, kind), dialect)
    return packed_what, packed_where


def _pack(identifier: int, octets: bytes, dialect: Dialect) -> Element:
    text = hex_text(dialect.header + octets)
    return dialect.element("PACK", {"PACK_id": identifier, "PACK_string": text})


def filter_octets(packed: Element) -> bytes:
    """
    The octets inside a ``PACK`` object.

    :raises RemoteProtocolError: malformed, or longer than :data:`MAX_FILTER_OCTETS`, also when
        it only grows to that by decompression.
    """
    text = packed.get("PACK_string") or ""
    if len(text) > 2 * MAX_FILTER_OCTETS:
        raise RemoteProtocolError(f"a filter text of {len(text)} digits")
    octets = from_hex_text(text)
    if not packed.get("PACK_compressed"):
        return octets
    inflate = zlib.decompressobj()
    try:
        octets = inflate.decompress(octets, MAX_FILTER_OCTETS)
    except zlib.error as error:
        raise RemoteProtocolError(f"a filter that cannot be decompressed: {error}") from None
    if inflate.unconsumed_tail or not inflate.eof:
        raise RemoteProtocolError(f"a filter of more than {MAX_FILTER_OCTETS} octets, or cut short")
    return octets


def unpack_what(packed: Element | None, dialect: Dialect) -> What | None:
    """The choice in a ``PACK`` object."""
    if packed is None:
        return None
    unpacker = dialect.open(filter_octets(packed))
    what = read_what(unpacker, dialect)
    unpacker.end()
    return what


def unpack_where(packed: Element | None, dialect: Dialect) -> Where | None:
    """The condition in a ``PACK`` object."""
    if packed is None:
        return None
    unpacker = dialect.open(filter_octets(packed))
    where = read_where(unpacker, dialect)
    unpacker.end()
    return where
