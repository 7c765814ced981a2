"""
The shared-memory layout in which local clients read the table (docs/protocols/shared-memory.rst).

An image is a row of blocks: one that tells version and validity, hosts, services, and the path of
the configuration, which fills what is left.  Numbers are in the machine's byte order, addresses
in the network's.  The layout is that of heap version 1.3 of the NCBI C++ Toolkit
(``ncbi_lbsm.h``, ``ncbi_heapmgr.c``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from zlib import adler32

from attrs import field, frozen

from gridnet.errors import TableError
from gridnet.table.address import address_number, address_text, quad
from gridnet.table.descriptor_words import CONTENT_ENCODINGS, CONTENT_SUBTYPES, CONTENT_TYPES
from gridnet.table.heap_version import HEAP_VERSION
from gridnet.table.model import DEFAULT_TIME_SECONDS, Change, Entry, Host, HostFacts, ServiceTable
from gridnet.table.numbers import STANDBY_RATE
from gridnet.table.selection import NORMAL_STATUS
from gridnet.table.server_info import KEYWORDS, Algorithm, ServerInfo, ServerType, is_http

#: How long what does not expire is good, counted from the making of an image.
VALIDITY_SECONDS = 30
#: Blocks are multiples of this.
ALIGNMENT = 16
#: Images are multiples of this, as the original daemon's are.
PAGE_OCTETS = 4096
MAX_U16 = 0xFFFF
MAX_U32 = 0xFFFFFFFF

_HOST, _SERVICE, _VERSION, _PENDING, _CONFIG = 1, 2, 3, 4, 5
_USED, _LAST = 1, 2

_ENTRY = struct.Struct("=IIII")  # flags, size, type, good
_VERSION_BLOCK = struct.Struct("=IIIIHHII4sIIHH4x")
_HOST_BLOCK = struct.Struct("=IIII4sdddd6I4H4BHHIIIHHHHIHHIH2x")
_SERVICE_BLOCK = struct.Struct("=IIIIId4sI4sHBBIddiiiB16sBH")
_U32 = struct.Struct("=I")
_GOOD_OFFSET = 12
_CHECKSUM_OFFSET = 24

_STATEFUL, _SECURE = 1, 2
_LOCAL, _PRIVATE, _INTERZONE = 1, 2, 4
_NO_IPV4 = b"\xff\xff\xff\xff"
_MAPPED = bytes(10) + b"\xff\xff"


class HeapError(TableError):
    """An image cannot be used, or a table does not fit into one."""


def _bounded(value: float, most: int) -> int:
    return min(max(int(value), 0), most)


def _version_code(version: tuple[int, int, int]) -> int:
    major, minor, patch = (_bounded(part, 15) for part in version)
    return major << 8 | minor << 4 | patch


def _padded(block: bytearray) -> bytearray:
    """*block* with its size, a multiple of the alignment, in its head."""
    block.extend(bytes(-len(block) % ALIGNMENT))
    _U32.pack_into(block, 4, len(block))
    return block


def _ipv4(address: str) -> bytes | None:
    """Octets of an IPv4 address; None for others."""
    number = address_number(address)
    if number is None or number[0] != 4:
        return None
    return number[1].to_bytes(4, "big")


def _text(text: str) -> bytes:
    """Octets of *text* up to the first NUL: nothing after it could be read."""
    return text.encode("latin-1", "replace").partition(b"\0")[0]


def _pack_host(host: Host) -> bytearray | None:
    """The block of *host*, good through time 0; None: the layout cannot name it."""
    facts = host.facts
    address = _ipv4(host.address)
    if address is None or address == bytes(4):
        return None
    environment = b"\n".join(
        _text(f"{name}={value}").replace(b"\n", b" ") for name, value in host.environment
    )
    ports = [(port, _bounded(used * 200 + 0.5, 200)) for port, used in facts.ports[:4]]
    ports += [(0, 0)] * (4 - len(ports))
    major, minor, patch = facts.kernel
    block = bytearray(
        _HOST_BLOCK.pack(
            _USED,
            0,
            _HOST,
            0,
            address,
            facts.load,
            facts.load_instant,
            host.status,
            host.status_blast,
            _bounded(facts.ram_pages, MAX_U32),
            _bounded(facts.cache_pages, MAX_U32),
            _bounded(facts.free_pages, MAX_U32),
            _bounded(facts.swap_pages, MAX_U32),
            _bounded(facts.free_swap_pages, MAX_U32),
            _bounded(facts.tasks, MAX_U32),
            *(_bounded(port, MAX_U16) for port, _ in ports),
            *(used for _, used in ports),
            _version_code(facts.daemon_version),
            _bounded(facts.machine, MAX_U16),
            _bounded(facts.booted_at, MAX_U32),
            _bounded(facts.started_at, MAX_U32),
            _bounded(major, 255) << 24 | _bounded(minor, 255) << 16 | _bounded(patch, 0x7FFF),
            _bounded(facts.page_octets // 1024, MAX_U16),
            _bounded(facts.clock_ghz * 128 + 0.5, MAX_U16),
            _bounded(facts.processor_units, 255) << 8 | _bounded(facts.processors, 255),
            _bounded(facts.alerts, MAX_U16),
            _bounded(facts.joined_at, MAX_U32),
            _bounded(facts.hosts_seen, MAX_U16),
            _bounded(facts.hosts_known, MAX_U16),
            _HOST_BLOCK.size if environment else 0,
            host.zone & MAX_U16,
        )
    )
    if environment:
        block += environment + b"\0"
    return _padded(block)


def _content_type_numbers(text: str) -> tuple[int, int, int]:
    if not text:
        return -1, -1, 0
    kind, _, subtype = text.partition("/")
    encoding = 0
    if subtype.endswith("-urlencoded"):
        subtype, encoding = subtype[: -len("-urlencoded")], 1
    return CONTENT_TYPES.index(kind), CONTENT_SUBTYPES.index(subtype), encoding


def _pack_service(entry: Entry, host: str, host_status: float | None) -> bytearray | None:
    """
    The block of *entry*, good through time 0; None: the layout cannot name it.

    :param host: canonical address of the server, never empty.
    :param host_status: makes the entry static with this status of its host taken into its rate,
        as is needed for IPv6 servers, whose hosts the layout cannot name; None: leave it.
    """
    info = entry.info
    if info.type is ServerType.FIREWALL:
        return None
    number = address_number(host)
    if number is None:
        return None
    version, value = number
    ipv4 = value.to_bytes(4, "big") if version == 4 else _NO_IPV4
    if ipv4 == bytes(4):
        return None
    address = _MAPPED + ipv4 if version == 4 else value.to_bytes(16, "big")
    rate = abs(info.rate)
    static = entry.static
    if host_status is not None and not static:
        static = True
        if rate >= STANDBY_RATE:
            rate = max(rate * host_status / NORMAL_STATUS, STANDBY_RATE)
    vhost = _text(info.vhost)[:255]
    name = _text(entry.service)
    arguments = _text(info.arguments)
    if info.type is ServerType.NCBID:
        rest = struct.pack("=I", 4) + arguments + b"\0"
    elif is_http(info.type):
        path, question, query = arguments.partition(b"?")
        query_offset = 8 + len(path) + (1 if question else 0)
        rest = struct.pack("=II", 8, query_offset) + path + b"\0"
        rest += query + b"\0" if question else b""
    else:
        rest = b"\0"
    if vhost:
        rest += vhost + b"\0"
    kind, subtype, encoding = _content_type_numbers(info.content_type)
    block = bytearray(
        _SERVICE_BLOCK.pack(
            _USED,
            0,
            _SERVICE,
            0,
            _SERVICE_BLOCK.size + len(rest),
            min(max(entry.penalty, 0.0), 100.0),
            _ipv4(entry.owner) or bytes(4),
            info.type.value,
            ipv4,
            info.port,
            (_STATEFUL if info.stateful else 0) | (_SECURE if info.secure else 0),
            (_LOCAL if info.local else 0)
            | (_PRIVATE if info.private else 0)
            | (_INTERZONE if info.interzone else 0),
            info.time or DEFAULT_TIME_SECONDS,
            info.bonus,
            -rate if static and rate else rate,
            kind,
            subtype,
            encoding,
            info.algorithm.value,
            address,
            len(vhost),
            0,
        )
    )
    block += rest + name + b"\0"
    return _padded(block)


@frozen
class _Piece:
    """One block of the image to come."""

    block: bytearray
    expires_at: float  #: inf: as long as the daemon says so
    needs: str = ""  #: host that must be in the image too


class HeapBuilder:
    """
    Keeps the blocks of a table ready, so that an image costs little when little changed.

    Left out are entries that are reserved or switched off, dynamic servers without a host (both as
    clients require), and what the layout cannot name.  Dynamic IPv6 servers are published as
    static ones with their host's status in their rate.

    :ivar used_octets: of the last image; the rest of it was filler.
    :param local: address of this host; servers without a host are on it.
    :param started_at: seconds since the epoch when the daemon started.
    :param config: path of its configuration.
    :param daemon_version: three numbers, each 0..15.
    """

    def __init__(
        self,
        local: str,
        started_at: float,
        config: str = "",
        daemon_version: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        self.used_octets = 0
        self._local = local
        self._started_at = started_at
        self._config = _text(config)
        self._daemon_version = daemon_version
        self._hosts: dict[str, Host] = {}
        self._host_pieces: dict[str, _Piece] = {}
        self._service_pieces: dict[tuple[object, ...], _Piece] = {}
        #: dynamic entries on IPv6 hosts, whose blocks depend on their host
        self._folded: dict[str, dict[tuple[object, ...], Entry]] = {}

    def follow(self, table: ServiceTable) -> Callable[[], None]:
        """Take all of *table*, and all that changes in it; returns the end of it."""
        for host in table.hosts():
            self._host_changed(host.address, host)
        for entry in table.all_entries():
            self._entry_changed(None, entry)
        return table.subscribe(self.changed)

    def changed(self, step: Sequence[Change]) -> None:
        """Take what one step of a table changed."""
        for change in step:
            before, after = change.before, change.after
            if isinstance(after, Host):
                self._host_changed(after.address, after)
            elif isinstance(before, Host):
                self._host_changed(before.address, None)
            elif after is None or isinstance(after, Entry):
                self._entry_changed(before, after)

    def _host_changed(self, address: str, host: Host | None) -> None:
        if host is None:
            self._hosts.pop(address, None)
            self._host_pieces.pop(address, None)
        else:
            self._hosts[address] = host
            block = _pack_host(host)
            if block is not None:
                self._host_pieces[address] = _Piece(block, host.expires_at)
        for entry in tuple(self._folded.get(address, {}).values()):
            self._entry_changed(entry, entry)

    def _entry_changed(self, before: Entry | None, after: Entry | None) -> None:
        if before is not None:
            key = before.key
            self._service_pieces.pop(key, None)
            host = before.info.host or self._local
            folded = self._folded.get(host)
            if folded is not None and folded.pop(key, None) is not None and not folded:
                del self._folded[host]
        if after is None or after.reserved or (after.info.rate == 0 and after.info.time == 0):
            return
        host = after.info.host or self._local
        status = None
        needs = ""
        if not after.static and after.info.rate != 0:
            needs = host
            if ":" in host:
                self._folded.setdefault(host, {})[after.key] = after
                needs = ""
                known = self._hosts.get(host)
                if known is None:
                    return
                blast = after.info.algorithm is Algorithm.BLAST
                status = known.status_blast if blast else known.status
        block = _pack_service(after, host, status)
        if block is not None:
            self._service_pieces[after.key] = _Piece(block, after.expires_at, needs)

    def image(
        self, now: float, valid_through: float, serial: int, octets: int = 0, most: int = 1 << 26
    ) -> bytes:
        """
        The table as an image.

        :param now: seconds since the epoch; what has expired is left out.
        :param valid_through: seconds since the epoch, until when readers may trust the image and
            all in it that does not expire before.  Debugging clients refuse servers that are good
            for more than 33 seconds, so not more than :data:`VALIDITY_SECONDS` from *now*.
        :param serial: of the update, modulo 2**32; another for every image.
        :param octets: length of the segments now; the image is made as long, if it fits and does
            not waste most of it, so that they need not be replaced.
        :param most: octets that an image may have.
        :raises HeapError: it would be longer.
        """
        pieces: list[bytearray] = []
        length = _VERSION_BLOCK.size
        earliest = int(now)
        lasting = min(max(int(valid_through), earliest), MAX_U32)
        present: set[str] = set()
        for address, piece in self._host_pieces.items():
            if self._dated(piece, earliest, lasting):
                present.add(address)
                pieces.append(piece.block)
        for piece in self._service_pieces.values():
            if piece.needs and piece.needs not in present:
                continue
            if self._dated(piece, earliest, lasting):
                pieces.append(piece.block)
        length += sum(map(len, pieces))
        least = length + _ENTRY.size + len(self._config) + 1
        total = octets
        if least > octets or octets > 8 * max(least, PAGE_OCTETS):
            total = min(least + least // 8, most)
        total += -total % PAGE_OCTETS
        if least > most:
            raise HeapError(f"the table takes {least} octets, more than the {most} allowed")
        version = bytearray(
            _VERSION_BLOCK.pack(
                _USED,
                _VERSION_BLOCK.size,
                _VERSION,
                lasting,
                *HEAP_VERSION,
                serial & MAX_U32,
                0,
                _ipv4(self._local) or bytes(4),
                int(self._started_at) & MAX_U32,
                0,
                _version_code(self._daemon_version),
                0,
            )
        )
        self.used_octets = least
        # The last block has to reach the end of the segment.
        rest = total - length
        config = _ENTRY.pack(_USED | _LAST, rest, _CONFIG, lasting)
        config += self._config + bytes(rest - len(config) - len(self._config))
        image = bytearray().join((version, *pieces, config))
        _U32.pack_into(image, _CHECKSUM_OFFSET, checksum(image))
        return bytes(image)

    @staticmethod
    def _dated(piece: _Piece, earliest: int, lasting: int) -> bool:
        """Write into *piece* until when it is good; False: it has expired."""
        good = min(piece.expires_at, lasting)
        if good < earliest:
            return False
        _U32.pack_into(piece.block, _GOOD_OFFSET, int(good))
        return True


def checksum(image: bytes | bytearray | memoryview) -> int:
    """Adler-32 of *image* with the octets of the checksum itself taken as zero."""
    view = memoryview(image)
    value = adler32(view[:_CHECKSUM_OFFSET])
    value = adler32(bytes(4), value)
    return adler32(view[_CHECKSUM_OFFSET + 4 :], value)


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
    if len(image) < _VERSION_BLOCK.size:
        raise HeapError("image too short for a version")
    flags, size, kind, good, major, minor, serial, cksum, local, start, _, _, _ = (
        _VERSION_BLOCK.unpack_from(image)
    )
    if kind != _VERSION or not flags & _USED or size < _VERSION_BLOCK.size - 4:
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
        if offset + _ENTRY.size > len(image):
            raise HeapError("no last block")
        flags, size, kind, _ = _ENTRY.unpack_from(image, offset)
        end = offset + size
        if size < _ENTRY.size or size % ALIGNMENT or end > len(image):
            raise HeapError(f"block of {size} octets at {offset}")
        if flags & _USED:
            if kind == _SERVICE:
                if size < _SERVICE_BLOCK.size:
                    raise HeapError(f"service of {size} octets at {offset}")
                name_offset = _U32.unpack_from(image, offset + 16)[0]
                if not _SERVICE_BLOCK.size <= name_offset < size:
                    raise HeapError(f"service name outside its block at {offset}")
                name = _string(image, offset + name_offset, end)
                services.setdefault(name.lower(), []).append(offset)
            elif kind == _HOST:
                if size < _HOST_BLOCK.size:
                    raise HeapError(f"host of {size} octets at {offset}")
                address = int.from_bytes(image[offset + 16 : offset + 20], "big")
                hosts[quad(address)] = offset
            elif kind == _CONFIG:
                config = _string(image, offset + _ENTRY.size, end)
            elif kind not in (_VERSION, _PENDING):
                raise HeapError(f"block of type {kind} at {offset}")
        offset = end
        if flags & _LAST:
            break
    if offset != len(image):
        raise HeapError(f"the last block ends at {offset} of {len(image)}")
    index = {name: tuple(offsets) for name, offsets in services.items()}
    return HeapImage(stamp, config, image, index, hosts)


def _read_host(image: bytes, offset: int) -> Host:
    values = _HOST_BLOCK.unpack_from(image, offset)
    size, good, address = values[1], values[3], values[4]
    load, load_instant, status, status_blast = values[5:9]
    ram, cache, free, swap, free_swap, tasks = values[9:15]
    ports, used = values[15:19], values[19:23]
    daemon, machine, booted, started, kernel, pages, clock, processors = values[23:31]
    alerts, joined, seen, known, environment_offset, zone = values[31:37]
    environment: list[tuple[str, str]] = []
    if environment_offset:
        if not _HOST_BLOCK.size - 2 <= environment_offset < size:
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
    ) = _SERVICE_BLOCK.unpack_from(image, offset)
    end = offset + size
    union = offset + _SERVICE_BLOCK.size
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
            if ipv4 == _NO_IPV4
            else quad(int.from_bytes(ipv4, "big")),
            port=port,
            arguments=arguments,
            algorithm=Algorithm(algorithm),
            bonus=bonus,
            content_type=content_type,
            vhost=vhost,
            local=bool(site & _LOCAL),
            private=bool(site & _PRIVATE),
            stateful=bool(mode & _STATEFUL),
            secure=bool(mode & _SECURE),
            interzone=bool(site & _INTERZONE),
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
        start = union + _U32.unpack_from(image, union)[0]
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
