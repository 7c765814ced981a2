"""
What the site's process and a worker say to each other: frames of JSON, and the table in them.

A frame is a length (4 octets, most significant first) and that many octets of JSON, an object
with the key ``kind``.  Both ends are the same version of the same program, which the first frame
makes sure of; the bound on frames is against our own mistakes.

=========  ===========  ========================================================================
kind       direction    other keys
=========  ===========  ========================================================================
hello      to worker    ``version``, ``config``, ``site``
table      to worker    ``serial``, ``whole``, ``last``, ``entries``, ``hosts``, ``gone``
stop       to worker
ready      to site
done       to site      ``serial``: the table is as it was at that serial
tally      to site      ``tally``
=========  ===========  ========================================================================

``table`` frames come in runs that end with ``last``; a run is one step, so no request is ever
answered from half of it.  ``whole`` runs name everything there is, others what changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cattrs
from attrs import field, frozen

from gridnet.errors import LocalProtocolError
from gridnet.table.model import Change, Entry, Host, ServiceTable

VERSION = 1
#: There is room for the largest host or entry that definitions of their largest size can make.
MAX_FRAME_OCTETS = 256 * 1024 * 1024
#: A ``table`` frame with so many octets of entries and hosts takes no more of them.
FULL_FRAME_OCTETS = 1024 * 1024
_LENGTH_OCTETS = 4

_CONVERTER = cattrs.Converter()


def frame(kind: str, **keys: object) -> bytes:
    """One frame."""
    return _framed(_json({"kind": kind, **keys}).encode("ascii"))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _framed(octets: bytes) -> bytes:
    if len(octets) > MAX_FRAME_OCTETS:
        raise LocalProtocolError(f"a frame of {len(octets)} octets is too long")
    return len(octets).to_bytes(_LENGTH_OCTETS, "big") + octets


class FrameReader:
    """Takes frames from a stream, however it is cut."""

    def __init__(self) -> None:
        self._held = bytearray()

    def receive(self, data: bytes) -> list[Mapping[str, Any]]:
        """
        Take *data*; give the frames that are whole now.

        :raises LocalProtocolError: the stream is not what this program writes.
        """
        self._held += data
        found: list[Mapping[str, Any]] = []
        while len(self._held) >= _LENGTH_OCTETS:
            size = int.from_bytes(self._held[:_LENGTH_OCTETS], "big")
            if size > MAX_FRAME_OCTETS:
                raise LocalProtocolError(f"a frame of {size} octets is too long")
            end = _LENGTH_OCTETS + size
            if len(self._held) < end:
                break
            octets = bytes(self._held[_LENGTH_OCTETS:end])
            del self._held[:end]
            try:
                value = json.loads(octets)
            except ValueError as error:
                raise LocalProtocolError(f"a frame is not JSON: {error}") from None
            if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
                raise LocalProtocolError("a frame has no kind")
            found.append(value)
        return found


def snapshot(table: ServiceTable) -> Iterator[bytes]:
    """The run of frames that says all of *table*."""
    yield from _run(table.serial, True, table.all_entries(), table.hosts(), ())


def changes(serial: int, steps: Iterable[Change]) -> Iterator[bytes]:
    """
    The run of frames that says what changed.

    :param serial: of the table after the changes.
    """
    there: dict[object, Entry | Host] = {}
    gone: dict[object, Entry | Host] = {}
    for step in steps:
        if step.before is not None:
            there.pop(_key(step.before), None)
            gone[_key(step.before)] = step.before
        if step.after is not None:
            gone.pop(_key(step.after), None)
            there[_key(step.after)] = step.after
    entries = [item for item in there.values() if isinstance(item, Entry)]
    hosts = [item for item in there.values() if isinstance(item, Host)]
    yield from _run(serial, False, entries, hosts, gone.values())


def _key(item: Entry | Host) -> object:
    """What a table of one claim a server replaces by."""
    return item.address if isinstance(item, Host) else (item.key, item.owner)


def _run(
    serial: int,
    whole: bool,
    entries: Sequence[Entry],
    hosts: Sequence[Host],
    gone: Iterable[Entry | Host],
) -> Iterator[bytes]:
    items: list[tuple[str, Entry | Host]] = [("entries", entry) for entry in entries]
    items += [("hosts", host) for host in hosts]
    items += [("gone", item) for item in gone]
    part = _Part(serial, whole)
    for name, item in items:
        if part.full:
            yield part.frame(last=False)
            part = _Part(serial, whole)
        part.add(name, item)
    yield part.frame(last=True)


class _Part:
    """One frame of a run while it fills."""

    def __init__(self, serial: int, whole: bool) -> None:
        self._serial = serial
        self._whole = whole
        self._octets = 0
        self._texts: dict[str, list[str]] = {"entries": [], "hosts": [], "gone": []}

    @property
    def full(self) -> bool:
        """Whether it is large enough to be sent."""
        return self._octets >= FULL_FRAME_OCTETS

    def add(self, name: str, item: Entry | Host) -> None:
        """Put *item*, as JSON, into the list of that *name*; a host has no ``service``."""
        text = _json(_CONVERTER.unstructure(item))
        self._texts[name].append(text)
        self._octets += len(text)

    def frame(self, last: bool) -> bytes:
        """The frame, its items as they were made into JSON when they were added."""
        head = {"kind": "table", "serial": self._serial, "whole": self._whole, "last": last}
        lists = (f'"{name}":[{",".join(texts)}]' for name, texts in self._texts.items())
        return _framed(f"{_json(head)[:-1]},{','.join(lists)}}}".encode("ascii"))


def _item(value: Mapping[str, Any]) -> Entry | Host:
    kind: type[Entry] | type[Host] = Entry if "service" in value else Host
    return _CONVERTER.structure(value, kind)


@frozen
class Run:
    """A run of ``table`` frames as it comes in."""

    entries: list[Entry] = field(factory=list)
    hosts: list[Host] = field(factory=list)
    gone: list[Entry | Host] = field(factory=list)

    def add(self, value: Mapping[str, Any]) -> None:
        """Take one more frame of the run."""
        self.entries.extend(_CONVERTER.structure(each, Entry) for each in value["entries"])
        self.hosts.extend(_CONVERTER.structure(each, Host) for each in value["hosts"])
        self.gone.extend(_item(each) for each in value["gone"])

    def apply(self, table: ServiceTable, whole: bool) -> None:
        """Make *table* as the run says."""
        gone = list(self.gone)
        if whole:
            kept = {_key(entry) for entry in self.entries} | {_key(host) for host in self.hosts}
            present: tuple[Entry | Host, ...] = (*table.all_entries(), *table.hosts())
            gone += [item for item in present if _key(item) not in kept]
        for item in gone:
            if isinstance(item, Host):
                table.remove_host(item.address)
            else:
                table.remove(item)
        for host in self.hosts:
            table.put_host(host)
        for entry in self.entries:
            table.put(entry)
