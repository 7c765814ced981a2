"""Makes images of the table in the layout that local clients read (:mod:`.heap_layout`)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from attrs import frozen

from gridnet.table.address import address_number
from gridnet.table.descriptor_words import CONTENT_SUBTYPES, CONTENT_TYPES
from gridnet.table.heap_layout import (
    ALIGNMENT,
    CHECKSUM_OFFSET,
    CONFIG,
    ENTRY,
    GOOD_OFFSET,
    HOST,
    HOST_BLOCK,
    INTERZONE,
    LAST,
    LOCAL,
    MAPPED,
    MAX_U16,
    MAX_U32,
    NO_IPV4,
    PAGE_OCTETS,
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
from gridnet.table.model import DEFAULT_TIME_SECONDS, Change, Entry, Host, ServiceTable
from gridnet.table.numbers import STANDBY_RATE
from gridnet.table.selection import NORMAL_STATUS
from gridnet.table.server_info import Algorithm, ServerType, is_http


def _bounded(value: float, most: int) -> int:
    return min(max(int(value), 0), most)


def _version_code(version: tuple[int, int, int]) -> int:
    major, minor, patch = (_bounded(part, 15) for part in version)
    return major << 8 | minor << 4 | patch


def _padded(block: bytearray) -> bytearray:
    """*block* with its size, a multiple of the alignment, in its head."""
    block.extend(bytes(-len(block) % ALIGNMENT))
    U32.pack_into(block, 4, len(block))
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
        HOST_BLOCK.pack(
            USED,
            0,
            HOST,
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
            HOST_BLOCK.size if environment else 0,
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
    ipv4 = value.to_bytes(4, "big") if version == 4 else NO_IPV4
    if ipv4 == bytes(4):
        return None
    address = MAPPED + ipv4 if version == 4 else value.to_bytes(16, "big")
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
        SERVICE_BLOCK.pack(
            USED,
            0,
            SERVICE,
            0,
            SERVICE_BLOCK.size + len(rest),
            min(max(entry.penalty, 0.0), 100.0),
            _ipv4(entry.owner) or bytes(4),
            info.type.value,
            ipv4,
            info.port,
            (STATEFUL if info.stateful else 0) | (SECURE if info.secure else 0),
            (LOCAL if info.local else 0)
            | (PRIVATE if info.private else 0)
            | (INTERZONE if info.interzone else 0),
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
        length = VERSION_BLOCK.size
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
        least = length + ENTRY.size + len(self._config) + 1
        total = octets
        if least > octets or octets > 8 * max(least, PAGE_OCTETS):
            total = min(least + least // 8, most)
        total += -total % PAGE_OCTETS
        if least > most:
            raise HeapError(f"the table takes {least} octets, more than the {most} allowed")
        version = bytearray(
            VERSION_BLOCK.pack(
                USED,
                VERSION_BLOCK.size,
                VERSION,
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
        config = ENTRY.pack(USED | LAST, rest, CONFIG, lasting)
        config += self._config + bytes(rest - len(config) - len(self._config))
        image = bytearray().join((version, *pieces, config))
        U32.pack_into(image, CHECKSUM_OFFSET, checksum(image))
        return bytes(image)

    @staticmethod
    def _dated(piece: _Piece, earliest: int, lasting: int) -> bool:
        """Write into *piece* until when it is good; False: it has expired."""
        good = min(piece.expires_at, lasting)
        if good < earliest:
            return False
        U32.pack_into(piece.block, GOOD_OFFSET, int(good))
        return True
