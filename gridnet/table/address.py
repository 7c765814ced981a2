"""
Numeric IP addresses as text, and as the numbers that ranges and indexes compare.

IPv4 text may have any of the classic forms that the C library's ``inet_aton`` takes
(``1.2.3``, ``0x7f.1``, ``16909060``); canonical text is a dotted quad, or the form of RFC 5952
for IPv6.  An IPv4-mapped IPv6 address is the IPv4 address.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

#: Stands for "an address that is not known": an unresolved name, or "this host" in calls.
UNKNOWN_ADDRESS = "255.255.255.255"

_QUAD = re.compile(
    r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    r"(?:\.(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}"
)
_PART = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")


def quad(number: int) -> str:
    """The dotted quad of a 32-bit *number*."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def ipv4_number(text: str) -> int | None:
    """
    The 32-bit number of an IPv4 address in any ``inet_aton`` form.

    One to four parts, each decimal, octal (``0...``) or hexadecimal (``0x...``); the last part
    fills all octets that are left.

    :returns: None when *text* is not one.
    """
    if len(text) > 64:
        return None
    parts = text.split(".")
    if len(parts) > 4:
        return None
    number = 0
    for index, part in enumerate(parts):
        if _PART.fullmatch(part) is None:
            return None
        if part[:2] in ("0x", "0X"):
            value = int(part[2:], 16)
        elif part[0] == "0":
            value = int(part, 8)
        else:
            value = int(part)
        if index < len(parts) - 1:
            if value > 0xFF:
                return None
            number |= value << (24 - 8 * index)
        elif value >> (32 - 8 * index):
            return None
        else:
            number |= value
    return number


def ipv6_number(text: str) -> int | None:
    """
    The 128-bit number of an IPv6 address without a scope.

    :returns: None when *text* is not one.
    """
    if "%" in text or len(text) > 45:
        return None
    try:
        return int(IPv6Address(text))
    except AddressValueError:
        return None


def address_text(number: int, version: int) -> str:
    """
    Canonical text of an address.

    :param version: 4 or 6; an IPv4-mapped IPv6 number gives IPv4 text.
    """
    if version == 4:
        return quad(number)
    if number >> 32 == 0xFFFF:
        return quad(number & 0xFFFFFFFF)
    if number >> 32 == 0 and number >> 16:
        return f"::{quad(number)}"  # as inet_ntop writes the IPv4-compatible block
    return IPv6Address(number).compressed


def canonical_address(text: str) -> str | None:
    """
    Canonical text of a numeric address in any accepted form.

    :returns: None when *text* is no numeric address (a host name, for example).
    """
    if _QUAD.fullmatch(text):
        return text
    if ":" in text:
        number = ipv6_number(text)
        return None if number is None else address_text(number, 6)
    number = ipv4_number(text)
    return None if number is None else quad(number)


@lru_cache(maxsize=4096)
def address_number(text: str) -> tuple[int, int] | None:
    """
    The address as ``(version, number)``, version 4 or 6, for comparison with ranges.

    :returns: None when *text* is no numeric address.
    """
    if ":" in text:
        number = ipv6_number(text)
        if number is None:
            return None
        if number >> 32 == 0xFFFF:
            return 4, number & 0xFFFFFFFF
        return 6, number
    number = ipv4_number(text)
    return None if number is None else (4, number)


def is_loopback(text: str) -> bool:
    """Whether *text* is an address that a host has for itself: 127/8, or ``::1``."""
    number = address_number(text)
    return number is not None and (number[1] >> 24 == 127 if number[0] == 4 else number[1] == 1)
