"""
Address ranges, files of local addresses, and who counts as a local client.

The grammar of a range and of the file is that of the released clients
(docs/protocols/load-balancing.rst, Local addresses).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import field, frozen

from gridnet.errors import ConfigError, Fault, TableError, shown
from gridnet.table.address import (
    address_number,
    address_text,
    canonical_address,
    ipv6_number,
    quad,
)

#: Ranges that one file may hold.
MAX_RANGES = 257
DOMAIN_CHARACTERS = 15

_OCTET = r"(?:0|[1-9][0-9]{0,2})"
_IPV4_HEAD = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{0,3}}")
_HOST_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_HEADING = re.compile(r"\[[ \t]*([^\[\]]*[^\[\] \t])[ \t]*\]")

_LOOPBACK = ("127/8", "::1")


@frozen
class AddressRange:
    """Addresses *first* to *last*, as numbers, of one family."""

    version: int  #: 4 or 6
    first: int
    last: int
    domain: str = ""  #: heading that it stood under in a file

    def overlaps(self, other: AddressRange) -> bool:
        """Whether an address is in both."""
        return (
            self.version == other.version and self.first <= other.last and other.first <= self.last
        )

    def __str__(self) -> str:
        first = address_text(self.first, self.version)
        if self.first == self.last:
            return first
        bits = 32 if self.version == 4 else 128
        size = self.last - self.first + 1
        if size & (size - 1) == 0 and self.first % size == 0 and self.first:
            return f"{first}/{bits + 1 - size.bit_length()}"
        # What is no network was written as octets and a last pair: 130.14.8-9.
        octets = list(zip(first.split("."), quad(self.last).split("."), strict=True))
        while len(octets) > 1 and octets[-1] == ("0", "255"):
            octets.pop()
        *same, (low, high) = octets
        return ".".join([a for a, _ in same] + [f"{low}-{high}"])


def _bad(text: str, why: str) -> TableError:
    return TableError(f"address range {shown(text)}: {why}")


def _octets(text: str, whole: str) -> list[int]:
    numbers = [int(part) for part in text.split(".")] if _IPV4_HEAD.fullmatch(text) else [256]
    if max(numbers) > 255:
        raise _bad(whole, "expected numbers 0 to 255 between dots")
    return numbers


def _span(octets: Sequence[int]) -> tuple[int, int]:
    """First and last address that begin with *octets*."""
    value = 0
    for octet in octets:
        value = value << 8 | octet
    shift = 8 * (4 - len(octets))
    return value << shift, (value << shift) | ((1 << shift) - 1)


def _prefix(text: str, most: int, whole: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and int(text) <= most):
        raise _bad(whole, f"expected a prefix of 0 to {most} bits")
    return int(text)


def parse_range(text: str, resolve: Callable[[str], str] | None = None) -> AddressRange:
    """
    Read one range.

    :param resolve: host name -> IP address text, or OSError; None: of host names only
        ``localhost`` is known.
    :raises TableError: not a range; the text says why.
    """
    if ":" in text:
        return _range6(text)
    if _HOST_NAME.fullmatch(text):
        return _named(text, resolve)
    if "/" in text:
        return _network(text)
    if text.endswith(".*"):
        octets = _octets(text[:-2], text)
        if len(octets) > 3 or octets[0] == 0:
            raise _bad(text, "expected one to three numbers before the star, the first not 0")
        return AddressRange(4, *_span(octets))
    head, dash, high_text = text.partition("-")
    octets = _octets(head, text)
    if not dash:
        if len(octets) != 4:
            raise _bad(text, "expected four numbers, a prefix, a star or a dash")
        return AddressRange(4, *_span(octets))
    high = _octets(high_text, text)
    if len(high) != 1 or high[0] < octets[-1]:
        raise _bad(text, "expected a number not below the one before the dash")
    return AddressRange(4, _span(octets)[0], _span([*octets[:-1], high[0]])[1])


def _range6(text: str) -> AddressRange:
    address, slash, mask = text.partition("/")
    first = ipv6_number(address)
    if first is None:
        raise _bad(text, "expected an IPv6 address")
    if first >> 32 == 0xFFFF:
        return parse_range(f"{quad(first & 0xFFFFFFFF)}{slash}{mask}")
    prefix = _prefix(mask, 128, text) if slash else 128
    if prefix == 0 or (first == 0 and prefix < 128):
        raise _bad(text, "expected an address and a prefix that are not 0")
    size = 1 << (128 - prefix)
    if first % size:
        raise _bad(text, "host bits are set")
    return AddressRange(6, first, first + size - 1)


def _named(name: str, resolve: Callable[[str], str] | None) -> AddressRange:
    if resolve is None:
        if name.lower() != "localhost":
            raise _bad(name, "host names are not looked up here")
        address = "127.0.0.1"
    else:
        try:
            address = resolve(name)
        except OSError as error:
            raise _bad(name, f"cannot be resolved: {error}") from None
    number = address_number(address)
    if number is None:
        raise _bad(name, "cannot be resolved")
    return AddressRange(number[0], number[1], number[1])


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
        prefix = _prefix(mask, 32, text)
    if prefix == 0:
        prefix = 32  # no bits at all mean the host, as the released clients have it
    if first == 0:
        raise _bad(text, "network 0 is nobody's")
    size = 1 << (32 - prefix)
    if first % size:
        raise _bad(text, "host bits are set")
    return AddressRange(4, first, first + size - 1)


@frozen
class AddressRanges:
    """A set of address ranges; loopback always belongs to it."""

    ranges: tuple[AddressRange, ...] = ()
    #: version -> (first addresses, last addresses) of disjoint ranges in order
    _index: Mapping[int, tuple[list[int], list[int]]] = field(init=False, repr=False, eq=False)

    @_index.default
    def _make_index(self) -> Mapping[int, tuple[list[int], list[int]]]:
        index: dict[int, tuple[list[int], list[int]]] = {}
        everything = [*map(parse_range, _LOOPBACK), *self.ranges]
        for version in (4, 6):
            firsts: list[int] = []
            lasts: list[int] = []
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
        cls,
        texts: Iterable[str],
        resolve: Callable[[str], str] | None = None,
        where: str = "site.local_networks",
    ) -> AddressRanges:
        """
        The set of the ranges *texts*.

        :param where: configuration key that faults are reported under.
        :raises gridnet.errors.ConfigError: some are no ranges; all of these are named.
        """
        ranges: list[AddressRange] = []
        faults: list[Fault] = []
        for index, text in enumerate(texts):
            try:
                ranges.append(parse_range(text, resolve))
            except TableError as error:
                faults.append(Fault(f"{where}[{index}]", str(error)))
        if faults:
            raise ConfigError(faults)
        return cls(tuple(ranges))

    @classmethod
    def from_file_text(
        cls,
        text: str,
        resolve: Callable[[str], str] | None = None,
        where: str = "local addresses",
    ) -> AddressRanges:
        """
        Read a file of local addresses, which must be faultless; see :func:`read_file`.

        :param where: name of the file, for faults.
        :raises gridnet.errors.ConfigError: with all faulty lines.
        """
        found = read_file(text, resolve, where)
        if found.faults:
            raise ConfigError(found.faults)
        return found.addresses

    def contains(self, address: str) -> bool:
        """Whether *address* (IP address text) is in the set; False for what is no address."""
        number = address_number(address)
        if number is None:
            return False
        firsts, lasts = self._index[number[0]]
        place = bisect_right(firsts, number[1]) - 1
        return place >= 0 and number[1] <= lasts[place]

    __contains__ = contains

    def domain(self, address: str) -> str:
        """The heading that the first range with *address* stands under; empty: none."""
        number = address_number(address)
        if number is not None:
            for each in self.ranges:
                if each.version == number[0] and each.first <= number[1] <= each.last:
                    return each.domain
        return ""

    def file_text(self) -> str:
        """
        The set as a file of local addresses that every client reads: no comments, LF.

        Clients take no more than 257 ranges; the file ends there.
        """
        lines: list[str] = []
        domain = ""
        # What stands under no heading comes first: a file cannot end a domain.
        for each in sorted(self.ranges[:MAX_RANGES], key=lambda each: each.domain != ""):
            if each.domain != domain:
                domain = each.domain
                lines.append(f"[{domain}]")
            lines.append(str(each))
        return "".join(f"{line}\n" for line in lines)


@frozen
class LocalAddressFile:
    """What a file of local addresses says, and what is wrong with it."""

    addresses: AddressRanges  #: of the lines that are in order
    faults: tuple[Fault, ...]  #: lines that were passed over
    warnings: tuple[Fault, ...]  #: ranges that overlap an earlier one; both are kept


def read_file(
    text: str, resolve: Callable[[str], str] | None = None, where: str = "local addresses"
) -> LocalAddressFile:
    """
    Read a file of local addresses: ranges, one a line, under ``[domain]`` headings.

    Comments (``#``, ``!``) may follow a range too, which the released clients do not bear in a
    file of theirs.

    :param resolve: as for :func:`parse_range`.
    :param where: name of the file, for faults.
    """
    ranges: list[AddressRange] = []
    faults: list[Fault] = []
    warnings: list[Fault] = []
    domain = ""
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{where}:{number}"
        said = re.split(r"[#!]", line, maxsplit=1)[0].strip()
        if not said:
            continue
        heading = _HEADING.fullmatch(said)
        if heading is not None:
            domain = heading[1][:DOMAIN_CHARACTERS]
            continue
        try:
            bare = parse_range(said, resolve)
        except TableError as error:
            faults.append(Fault(place, str(error)))
            continue
        if len(ranges) == MAX_RANGES:
            faults.append(Fault(place, f"expected at most {MAX_RANGES} ranges"))
            break
        found = AddressRange(bare.version, bare.first, bare.last, domain)
        for earlier in ranges:
            if earlier.overlaps(found):
                warnings.append(Fault(place, f"{said} overlaps {earlier}"))
                break
        ranges.append(found)
    return LocalAddressFile(AddressRanges(tuple(ranges)), tuple(faults), tuple(warnings))


#: Headers that mark a request as an outsider's.
_EXTERNAL_MARKS = ("ncbi-external", "caf-external")
#: Headers in which proxies name the client, in the order in which they are probed.
_PROXY_HEADERS = ("caf-proxied-host", "x-forwarded-for", "proxied_ip", "x-fwd-ip-addr")


def client_address(headers: Mapping[str, str], peer: str, local: AddressRanges) -> tuple[str, bool]:
    """
    Who asks, and whether from inside (docs/protocols/load-balancing.rst, Who is local).

    What headers say of the client is believed only when the peer itself is inside.  A proxy
    header that cannot be read means an outsider.

    :param headers: lower-case name -> value.
    :param peer: IP address text of the TCP peer.
    :returns: the client's address in its usual form (servers behind us might read ``010.0.0.1``
        otherwise than we do), and True for a client from inside.
    """
    if not local.contains(peer):
        return peer, False
    inside = not any(name in headers for name in _EXTERNAL_MARKS)
    named: list[str] = []
    for name in _PROXY_HEADERS:
        for word in re.split(r"[, \t]+", headers.get(name, "").strip(", \t")):
            if not word:
                continue
            address = canonical_address(word)
            if address is None:
                inside = False
            elif local.contains(address):
                named.append(address)
            else:
                return address, False
    own = headers.get("client-host", "").strip()
    for word in (own, *named, headers.get("x-real-ip", "").strip()):
        address = canonical_address(word)
        if address is not None:
            return address, inside and local.contains(address)
    return peer, inside
