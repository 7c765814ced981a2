"""
Address ranges, files of local addresses, and who counts as a local client.

The grammar of a range and of the file is that of the released clients
(docs/protocols/load-balancing.rst, Local addresses).
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import field, frozen

from gridnet.errors import TableError

#: Ranges that one file may hold.
MAX_RANGES = 257
DOMAIN_CHARACTERS = 15

_OCTET = r"(?:0|[1-9][0-9]{0,2})"
_IPV4_HEAD = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{0,3}}")
_HOST_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

_LOOPBACK = ("127/8", "::1")


@frozen
class AddressRange:
    """Addresses *first* to *last*, as numbers, of one family."""

    version: int  #: 4 or 6
    first: int
    last: int

    def __str__(self) -> str:
        make = ipaddress.IPv4Address if self.version == 4 else ipaddress.IPv6Address
        if self.first == self.last:
            return str(make(self.first))
        networks = list(ipaddress.summarize_address_range(make(self.first), make(self.last)))
        if len(networks) == 1:
            return str(networks[0])
        first, last = str(make(self.first)), str(make(self.last))
        head, _, low = first.rpartition(".")
        tail_head, _, high = last.rpartition(".")
        if self.version == 4 and head == tail_head:
            return f"{head}.{low}-{high}"
        # Whole octets: 130.14.8.0 to 130.14.9.255 is 130.14.8-9.
        octets = list(zip(first.split("."), last.split("."), strict=True))
        while octets and octets[-1] == ("0", "255"):
            octets.pop()
        *same, (low, high) = octets
        return ".".join([a for a, _ in same] + [f"{low}-{high}"])


def _bad(text: str, why: str) -> TableError:
    return TableError(f"address range {text[:60]!r}: {why}")


def _octets(text: str, whole: str) -> list[int]:
    if _IPV4_HEAD.fullmatch(text) is None:
        raise _bad(whole, "expected numbers 0 to 255 between dots")
    numbers = [int(part) for part in text.split(".")]
    if any(number > 255 for number in numbers):
        raise _bad(whole, "expected numbers 0 to 255 between dots")
    return numbers


def _span(octets: Sequence[int]) -> tuple[int, int]:
    """First and last address that begin with *octets*."""
    value = 0
    for octet in octets:
        value = value << 8 | octet
    shift = 8 * (4 - len(octets))
    return value << shift, (value << shift) | ((1 << shift) - 1)


def parse_range(text: str, resolve: Callable[[str], str] | None = None) -> AddressRange:
    """
    Read one range.

    :param resolve: host name -> IPv4 address text; None: host names are refused.
    :raises TableError: not a range; the text says why.
    """
    if ":" in text:
        try:
            network = ipaddress.IPv6Network(text, strict=True)
        except ValueError as error:
            raise _bad(text, str(error)) from None
        if network.prefixlen == 0:
            raise _bad(text, "expected a prefix of 1 to 128 bits")
        return AddressRange(6, int(network.network_address), int(network.broadcast_address))
    if _HOST_NAME.fullmatch(text):
        if resolve is None:
            raise _bad(text, "host names are not looked up here")
        try:
            address = int(ipaddress.IPv4Address(resolve(text)))
        except (OSError, ValueError) as error:
            raise _bad(text, f"cannot be resolved: {error}") from None
        return AddressRange(4, address, address)
    if "/" in text:
        return _network(text)
    if text.endswith(".*"):
        octets = _octets(text[:-2], text)
        if len(octets) > 3:
            raise _bad(text, "the star stands for at least one number")
        return AddressRange(4, *_span(octets))
    head, dash, high_text = text.partition("-")
    octets = _octets(head, text)
    if not dash:
        if len(octets) != 4:
            raise _bad(text, "expected four numbers, a prefix, a star or a dash")
        return AddressRange(4, *_span(octets))
    high = _octets(high_text, text)
    if len(high) != 1 or high[0] <= octets[-1]:
        raise _bad(text, "expected a greater number after the dash")
    return AddressRange(4, _span(octets)[0], _span([*octets[:-1], high[0]])[1])


def _network(text: str) -> AddressRange:
    head, _, mask = text.partition("/")
    octets = _octets(head, text)
    first = _span(octets)[0]
    if "." in mask:
        bits = _octets(mask, text)
        if len(bits) != 4:
            raise _bad(text, "expected a mask of four numbers")
        value = _span(bits)[0]
        prefix = value.bit_count()
        if value != (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF:
            raise _bad(text, "the mask has a hole")
    else:
        if not (mask.isascii() and mask.isdecimal() and len(mask) <= 2 and int(mask) <= 32):
            raise _bad(text, "expected a prefix of 0 to 32 bits")
        prefix = int(mask)
    if prefix == 0:
        if len(octets) != 4 or first == 0 or octets[0] == 0:
            raise _bad(text, "expected a host when the prefix is 0")
        prefix = 32
    if octets[0] == 0:
        raise _bad(text, "network 0 is nobody's")
    size = 1 << (32 - prefix)
    if first % size:
        raise _bad(text, "host bits are set")
    return AddressRange(4, first, first + size - 1)


def _number(address: str) -> tuple[int, int] | None:
    """(version, number) of an address text; IPv4 mapped into IPv6 is IPv4."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    if found.version == 6:
        mapped = ipaddress.IPv6Address(int(found)).ipv4_mapped
        if mapped is not None:
            return 4, int(mapped)
    return found.version, int(found)


@frozen
class AddressRanges:
    """A set of address ranges; loopback always belongs to it."""

    ranges: tuple[AddressRange, ...] = ()
    domains: Mapping[str, tuple[AddressRange, ...]] = field(factory=dict)
    #: version -> (first addresses, last addresses) of disjoint ranges in order
    _index: Mapping[int, tuple[list[int], list[int]]] = field(init=False, repr=False, eq=False)

    @_index.default
    def _make_index(self) -> Mapping[int, tuple[list[int], list[int]]]:
        index = {}
        for version in (4, 6):
            firsts: list[int] = []
            lasts: list[int] = []
            everything = [*map(parse_range, _LOOPBACK), *self.ranges]
            for each in sorted(
                (r for r in everything if r.version == version), key=lambda r: r.first
            ):
                if lasts and each.first <= lasts[-1] + 1:
                    lasts[-1] = max(lasts[-1], each.last)
                else:
                    firsts.append(each.first)
                    lasts.append(each.last)
            index[version] = (firsts, lasts)
        return index

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], resolve: Callable[[str], str] | None = None
    ) -> AddressRanges:
        """
        The set of the ranges *texts*.

        :raises TableError: one of them is no range.
        """
        return cls(tuple(parse_range(text, resolve) for text in texts))

    @classmethod
    def from_file_text(
        cls, text: str, resolve: Callable[[str], str] | None = None
    ) -> AddressRanges:
        """
        Read a file of local addresses: ranges, one a line, under ``[domain]`` headings.

        Comments (``#``, ``!``) may follow a range too, which the released clients do not bear in a
        file of theirs.

        :raises TableError: a line that is neither, or too many ranges; names the line.
        """
        domains: dict[str, tuple[AddressRange, ...]] = {}
        everything: list[AddressRange] = []
        domain = ""
        for number, line in enumerate(text.splitlines(), 1):
            words = re.split(r"[#!]", line, maxsplit=1)[0].strip()
            if not words:
                continue
            if words.startswith("[") and words.endswith("]") and len(words) > 2:
                domain = words[1:-1].strip()[:DOMAIN_CHARACTERS]
                domains.setdefault(domain, ())
                continue
            try:
                found = parse_range(words, resolve)
            except TableError as error:
                raise TableError(f"line {number}: {error}") from None
            everything.append(found)
            if len(everything) > MAX_RANGES:
                raise TableError(f"line {number}: expected at most {MAX_RANGES} ranges")
            if domain:
                domains[domain] = (*domains[domain], found)
        return cls(tuple(everything), domains)

    def contains(self, address: str) -> bool:
        """Whether *address* (IP address text) is in the set; False for what is no address."""
        number = _number(address)
        if number is None:
            return False
        firsts, lasts = self._index[number[0]]
        place = bisect_right(firsts, number[1]) - 1
        return place >= 0 and number[1] <= lasts[place]

    __contains__ = contains

    def file_text(self) -> str:
        """The set as a file of local addresses that every client reads: no comments, LF."""
        return "".join(f"{each}\n" for each in self.ranges)


#: Headers that mark a request as an outsider's.
_EXTERNAL_MARKS = ("ncbi-external", "caf-external")
#: Headers in which proxies name the client, in the order in which they are probed.
_PROXY_HEADERS = ("caf-proxied-host", "x-forwarded-for", "proxied_ip", "x-fwd-ip-addr")


def client_address(headers: Mapping[str, str], peer: str, local: AddressRanges) -> tuple[str, bool]:
    """
    Who asks, and whether from inside (docs/protocols/load-balancing.rst, Who is local).

    What headers say of the client is believed only when the peer itself is inside.

    :param headers: lower-case name -> value.
    :param peer: IP address text of the TCP peer.
    :returns: the client's address, and True for a client from inside.
    """
    if not local.contains(peer):
        return peer, False
    external = any(name in headers for name in _EXTERNAL_MARKS)
    named: list[str] = []
    for name in _PROXY_HEADERS:
        addresses = [word.strip() for word in headers.get(name, "").split(",")]
        named += [word for word in addresses if _number(word) is not None]
        for word in addresses:
            if _number(word) is not None and not local.contains(word):
                return word, False
    own = headers.get("client-host", "").strip()
    for address in (own, *named, headers.get("x-real-ip", "").strip(), peer):
        if _number(address) is not None:
            return address, not external and local.contains(address)
    return peer, not external
