"""
What a host tells the others: its entries and itself, as values that travel.

Values are JSON (docs/protocols/gossip.rst, Values): a service is a list, a host an object whose
members are the fields of :class:`gridnet.table.model.Host`, so that a field more is one member
more, which daemons that do not know it leave out.  What changes all the time stands apart from it,
as a list of figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import attrs

from gridnet.config import structure
from gridnet.errors import ConfigError, DescriptorError, RemoteProtocolError
from gridnet.table.model import Entry, Host, HostFacts
from gridnet.table.numbers import MAX_RATE
from gridnet.table.server_info import parse
from gridnet.table.server_text import write

#: Host fields that do not travel with the host: known otherwise, or of the receiver alone.
_APART = frozenset({"address", "environment", "expires_at"})
_HOST_FIELDS = frozenset(field.name for field in attrs.fields(Host)) - _APART
_FACTS = tuple(field.name for field in attrs.fields(HostFacts))
#: What changes all the time, in the order in which it is told; more may be added at the end.
_STATUSES = ("status", "status_blast")
_FIGURES = (
    "load",
    "load_instant",
    "cache_pages",
    "free_pages",
    "free_swap_pages",
    "tasks",
    "ports",
    "alerts",
    "hosts_seen",
    "hosts_known",
)
_STATIC, _RESERVED = "s", "r"
_MAX_NAME_LETTERS = 256
_MAX_FIGURE, _MAX_STATUS = 1e15, 1e9


def _octets(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no figure")


def _read(octets: bytes) -> Any:
    try:
        return json.loads(octets.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"a value that is no JSON: {error}") from None


def encode_service(entry: Entry) -> bytes:
    """
    *entry* for other hosts; its owner and its end are not told.

    Nor is the program behind it: what a host runs is never decided on another one.

    :raises DescriptorError: a field holds what a descriptor cannot say.
    """
    info = entry.info
    flags = _STATIC * entry.static + _RESERVED * entry.reserved
    # The rate stands apart: a descriptor rounds it.
    return _octets([entry.service, flags, entry.zone, entry.penalty, info.rate, write(info)])


def decode_service(octets: bytes, owner: str) -> Entry:
    """
    The entry that *owner* told as *octets*.

    :raises RemoteProtocolError: it makes no sense.
    """
    parts = _read(octets)
    if not isinstance(parts, list) or len(parts) < 6:
        raise RemoteProtocolError("a service that is no list of its parts")
    service, flags, zone, penalty, rate, text = parts[:6]
    if not all(isinstance(each, str) for each in (service, flags, text)):
        raise RemoteProtocolError("a service with a part that is no text")
    if not 0 < len(service) <= _MAX_NAME_LETTERS or set(flags) - {_STATIC, _RESERVED}:
        raise RemoteProtocolError("a service with a foreign name or flag")
    if type(zone) is not int or not 0 <= zone < 2**32:
        raise RemoteProtocolError("a service with a foreign zone")
    try:
        info = parse(text)
    except DescriptorError as error:
        raise RemoteProtocolError(f"a service with a descriptor that is none: {error}") from None
    return Entry(
        service=service,
        info=attrs.evolve(info, rate=_figure(rate, -MAX_RATE, MAX_RATE)),
        owner=owner,
        static=_STATIC in flags,
        reserved=_RESERVED in flags,
        penalty=_figure(penalty, 0.0, 100.0),
        zone=zone,
    )


def _figure(value: object, least: float, most: float) -> float:
    if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
        raise RemoteProtocolError(f"found {value!r}; expected {least:g} to {most:g}")
    return float(value)  # type: ignore[arg-type]


def encode_host(host: Host) -> bytes:
    """*host* for other hosts: what does not change all the time, its environment excepted."""
    apart = {*_APART, *_STATUSES, *_FIGURES}
    # The filter sees the fields of values inside as well.
    return _octets(attrs.asdict(host, filter=lambda field, _: field.name not in apart))


def encode_load(host: Host) -> bytes:
    """What changes all the time of *host*."""
    statuses = [getattr(host, name) for name in _STATUSES]
    return _octets([*statuses, *(getattr(host.facts, name) for name in _FIGURES)])


def decode_load(octets: bytes, host: Host) -> Host:
    """
    *host* with the figures that were told as *octets*; those that are not known are left out.

    :raises RemoteProtocolError: they make no sense.
    """
    figures = _read(octets)
    if not isinstance(figures, list) or len(figures) < len(_STATUSES) or not _is_tame(figures):
        raise RemoteProtocolError("a load that is no list of plain figures")
    count = len(_STATUSES)
    statuses = dict(zip(_STATUSES, figures[:count], strict=True))
    facts = {
        **attrs.asdict(host.facts),
        **dict(zip(_FIGURES, figures[count:], strict=False)),
    }
    told = _host({"address": host.address, **statuses, "facts": facts})
    return attrs.evolve(host, status=told.status, status_blast=told.status_blast, facts=told.facts)


def decode_host(octets: bytes, address: str) -> Host:
    """
    The host at *address* that was told as *octets*; members that are not known are left out.

    :raises RemoteProtocolError: it makes no sense.
    """
    members = _read(octets)
    if not isinstance(members, dict) or not _is_tame(members):
        raise RemoteProtocolError("a host that is no object with plain figures")
    known = {name: value for name, value in members.items() if name in _HOST_FIELDS}
    if isinstance(known.get("facts"), dict):
        known["facts"] = {n: value for n, value in known["facts"].items() if n in _FACTS}
    return _host({**known, "address": address})


def _host(members: Mapping[str, object]) -> Host:
    try:
        host = structure(Host, members, "host")
    except ConfigError as error:
        raise RemoteProtocolError(str(error)) from None
    for status in (host.status, host.status_blast):
        _figure(status, 0.0, _MAX_STATUS)
    if not 0 <= host.zone < 2**32:
        raise RemoteProtocolError("a host with a foreign zone")
    return host


def _is_tame(value: object) -> bool:
    """Whether all figures within are finite and of a size that sums stand."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return True
    if isinstance(value, int | float):
        return isfinite(value) and abs(value) <= _MAX_FIGURE
    if isinstance(value, Mapping):
        return all(map(_is_tame, value.values()))
    return isinstance(value, list) and all(map(_is_tame, value))


def encode_environment(lines: Sequence[tuple[str, str]], octets: int) -> Sequence[bytes]:
    """
    *lines* as values of at most *octets* each; a line that is longer is left out.

    The receiver joins them in order of their keys.
    """
    values: list[bytes] = []
    some: list[tuple[str, str]] = []
    for line in lines:
        if len(_octets([line])) > octets:
            continue
        if some and len(_octets([*some, line])) > octets:
            values.append(_octets(some))
            some = []
        some.append(line)
    return [*values, _octets(some)] if some else values


def decode_environment(values: Iterable[bytes]) -> tuple[tuple[str, str], ...]:
    """
    The environment that was told as *values*, in order.

    :raises RemoteProtocolError: it makes no sense.
    """
    lines: list[tuple[str, str]] = []
    for value in values:
        some = _read(value)
        if not isinstance(some, list):
            raise RemoteProtocolError("an environment that is no list")
        for line in some:
            if not isinstance(line, list) or [type(part) for part in line] != [str, str]:
                raise RemoteProtocolError("an environment line that is not a name and a value")
            lines.append((line[0], line[1]))
    return tuple(lines)
