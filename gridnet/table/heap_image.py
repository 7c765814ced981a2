"""Reads images of the table as local clients do (:mod:`.heap_layout`)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from attrs import field, frozen

from gridnet.table.address import address_text, quad
from gridnet.table.descriptor_words import CONTENT_ENCODINGS, CONTENT_SUBTYPES, CONTENT_TYPES
from gridnet.table.heap_layout import (
    ALIGNMENT,
    CONFIG,
    ENTRY,
    HOST,
    HOST_BLOCK,
    INTERZONE,
    LAST,
    LOCAL,
    NO_IPV4,
    PENDING,
    PRIVATE,
    SECURE,
    SERVICE,
    SERVICE_BLOCK,
    STATEFUL,
    U32,
    USED,
    VERSION,
    VERSION_BLOCK,
    HeapError,
    checksum,
)
from gridnet.table.heap_version import HEAP_VERSION
from gridnet.table.model import Entry, Host, HostFacts
from gridnet.table.server_info import KEYWORDS, Algorithm, ServerInfo, ServerType, is_http


@frozen
class HeapStamp:
    """What tells one image from another, and whether it may be used."""

    good: int  #: seconds since the epoch until when it may be used
    version: tuple[int, int]
    serial: int
    checksum: int
    local: str  #: address of the host; ``0.0.0.0``: not told
    started_at: int  #: of the daemon, seconds since the epoch


def read_stamp(image: bytes | memoryview) -> HeapStamp:
    """
    Read the first block of *image*.

    :raises HeapError: there is no version, or one that clients refuse.
    """
    if len(image) < VERSION_BLOCK.size:
        raise HeapError("image too short for a version")
    flags, size, kind, good, major, minor, serial, cksum, local, start, _, _, _ = (
        VERSION_BLOCK.unpack_from(image)
    )
    if kind != VERSION or not flags & USED or size < VERSION_BLOCK.size - 4:
        raise HeapError("no version in the first block")
    if (major, minor) < HEAP_VERSION:
        raise HeapError(f"version {major}.{minor}, expected 1.3 or later")
    return HeapStamp(good, (major, minor), serial, cksum, quad(int.from_bytes(local, "big")), start)


def _string(image: bytes, start: int, end: int) -> str:
    stop = image.find(b"\0", start, end)
    if stop < 0:
        raise HeapError(f"text without an end at {start}")
    return image[start:stop].decode("latin-1")


@frozen
class HeapImage:
    """
    An image as a reader sees it; made by :func:`read_image`.

    Look-ups go through an index of names; what is asked for is decoded once, then kept.
    """

    stamp: HeapStamp
    config: str  #: path of the daemon's configuration; empty: not told
    _image: bytes = field(repr=False)
    _services: Mapping[str, tuple[int, ...]] = field(repr=False)
    _hosts: Mapping[str, int] = field(repr=False)
    _known_entries: dict[str, Sequence[Entry]] = field(init=False, repr=False, factory=dict)
    _known_hosts: dict[str, Host] = field(init=False, repr=False, factory=dict)

    def __len__(self) -> int:
        """How many services it holds."""
        return sum(map(len, self._services.values()))

    def entries(self, service: str) -> Sequence[Entry]:
        """The entries of *service*, in any case, in order."""
        name = service.lower()
        known = self._known_entries.get(name)
        if known is None:
            offsets = self._services.get(name)
            if offsets is None:
                return ()
            known = tuple(_read_service(self._image, offset) for offset in offsets)
            self._known_entries[name] = known
        return known

    def all_entries(self) -> Iterator[Entry]:
        """Every entry."""
        for name in self._services:
            yield from self.entries(name)

    def host(self, address: str) -> Host | None:
        """The host of that address."""
        known = self._known_hosts.get(address)
        if known is None:
            offset = self._hosts.get(address)
            if offset is None:
                return None
            known = self._known_hosts[address] = _read_host(self._image, offset)
        return known

    def hosts(self) -> Sequence[Host]:
        """Every host, in order."""
        return [host for host in map(self.host, self._hosts) if host is not None]


def read_image(image: bytes) -> HeapImage:
    """
    Read a whole *image*, with all the checks that a debugging client makes, and bounds.

    :raises HeapError: it is damaged, or of a version that clients refuse.
    """
    stamp = read_stamp(image)
    if stamp.checksum != checksum(image):
        raise HeapError("the checksum is wrong")
    services: dict[str, list[int]] = {}
    hosts: dict[str, int] = {}
    config = ""
    offset = 0
    while True:
        if offset + ENTRY.size > len(image):
            raise HeapError("no last block")
        flags, size, kind, _ = ENTRY.unpack_from(image, offset)
        end = offset + size
        if size < ENTRY.size or size % ALIGNMENT or end > len(image):
            raise HeapError(f"block of {size} octets at {offset}")
        if flags & USED:
            if kind == SERVICE:
                if size < SERVICE_BLOCK.size:
                    raise HeapError(f"service of {size} octets at {offset}")
                name_offset = U32.unpack_from(image, offset + 16)[0]
                if not SERVICE_BLOCK.size <= name_offset < size:
                    raise HeapError(f"service name outside its block at {offset}")
                name = _string(image, offset + name_offset, end)
                services.setdefault(name.lower(), []).append(offset)
            elif kind == HOST:
                if size < HOST_BLOCK.size:
                    raise HeapError(f"host of {size} octets at {offset}")
                address = int.from_bytes(image[offset + 16 : offset + 20], "big")
                hosts[quad(address)] = offset
            elif kind == CONFIG:
                config = _string(image, offset + ENTRY.size, end)
            elif kind not in (VERSION, PENDING):
                raise HeapError(f"block of type {kind} at {offset}")
        offset = end
        if flags & LAST:
            break
    if offset != len(image):
        raise HeapError(f"the last block ends at {offset} of {len(image)}")
    index = {name: tuple(offsets) for name, offsets in services.items()}
    return HeapImage(stamp, config, image, index, hosts)


def _read_host(image: bytes, offset: int) -> Host:
    values = HOST_BLOCK.unpack_from(image, offset)
    size, good, address = values[1], values[3], values[4]
    load, load_instant, status, status_blast = values[5:9]
    ram, cache, free, swap, free_swap, tasks = values[9:15]
    ports, used = values[15:19], values[19:23]
    daemon, machine, booted, started, kernel, pages, clock, processors = values[23:31]
    alerts, joined, seen, known, environment_offset, zone = values[31:37]
    environment: list[tuple[str, str]] = []
    if environment_offset:
        if not HOST_BLOCK.size - 2 <= environment_offset < size:
            raise HeapError(f"environment outside its block at {offset}")
        text = _string(image, offset + environment_offset, offset + size)
        for line in text.split("\n"):
            name, _, value = line.partition("=")
            environment.append((name, value))
    facts = HostFacts(
        load,
        load_instant,
        ram,
        cache,
        free,
        swap,
        free_swap,
        tasks,
        tuple((port, share / 200) for port, share in zip(ports, used, strict=True) if port),
        (daemon >> 8 & 15, daemon >> 4 & 15, daemon & 15),
        machine,
        float(booted),
        float(started),
        (kernel >> 24, kernel >> 16 & 255, kernel & 0x7FFF),
        pages * 1024,
        clock / 128,
        processors & 255,
        processors >> 8,
        alerts,
        float(joined),
        seen,
        known,
    )
    return Host(
        quad(int.from_bytes(address, "big")),
        status,
        status_blast,
        tuple(environment),
        zone,
        float(good),
        facts,
    )


def _read_service(image: bytes, offset: int) -> Entry:
    (
        _,
        size,
        _,
        good,
        name_offset,
        fine,
        owner,
        type_bits,
        ipv4,
        port,
        mode,
        site,
        time,
        bonus,
        rate,
        kind,
        subtype,
        encoding,
        algorithm,
        address,
        vhost_octets,
        _,
    ) = SERVICE_BLOCK.unpack_from(image, offset)
    end = offset + size
    union = offset + SERVICE_BLOCK.size
    try:
        server_type = ServerType(type_bits)
        KEYWORDS[server_type]
        arguments, rest = _read_arguments(image, server_type, union, end)
        vhost = _string(image, rest, end) if vhost_octets else ""
        content_type = ""
        if kind >= 0:
            content_type = f"{CONTENT_TYPES[kind]}/{CONTENT_SUBTYPES[subtype]}"
            if CONTENT_ENCODINGS[encoding]:
                content_type += f"-{CONTENT_ENCODINGS[encoding]}"
        info = ServerInfo(
            type=server_type,
            host=address_text(int.from_bytes(address, "big"), 6)
            if ipv4 == NO_IPV4
            else quad(int.from_bytes(ipv4, "big")),
            port=port,
            arguments=arguments,
            algorithm=Algorithm(algorithm),
            bonus=bonus,
            content_type=content_type,
            vhost=vhost,
            local=bool(site & LOCAL),
            private=bool(site & PRIVATE),
            stateful=bool(mode & STATEFUL),
            secure=bool(mode & SECURE),
            interzone=bool(site & INTERZONE),
            rate=abs(rate),
            time=time,
        )
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise HeapError(f"service at {offset}: {error}") from None
    return Entry(
        service=_string(image, offset + name_offset, end),
        info=info,
        owner="" if owner == bytes(4) else quad(int.from_bytes(owner, "big")),
        static=rate < 0,
        penalty=fine,
        expires_at=float(good),
    )


def _read_arguments(image: bytes, kind: ServerType, union: int, end: int) -> tuple[str, int]:
    """The parameter after the fixed part, and where the strings after it begin."""
    if kind is ServerType.NCBID:
        start = union + U32.unpack_from(image, union)[0]
        text = _string(image, start, end)
        return text, start + len(text) + 1
    if not is_http(kind):
        return "", union + 1
    path_offset, query_offset = struct.unpack_from("=II", image, union)
    path = _string(image, union + path_offset, end)
    after = union + path_offset + len(path)
    if union + query_offset == after:
        return path, after + 1
    query = _string(image, union + query_offset, end)
    return f"{path}?{query}", union + query_offset + len(query) + 1
