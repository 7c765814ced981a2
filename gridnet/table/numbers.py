"""
Rates, coefficients and times as descriptors write them (docs/protocols/descriptor.rst, Numbers).
"""

from __future__ import annotations

import re
from math import floor

#: Rates below this in magnitude mark a standby server.
STANDBY_RATE = 0.01
MAX_RATE = 100_000.0
MIN_RATE = 0.001
MAX_BONUS = 100.0
MIN_BONUS = 0.01

_NUMBER = re.compile(r"([+-]?)(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))")
_INTEGER = re.compile(r"([+-]?)([0-9]+)")
_U64_MAX = (1 << 64) - 1
#: Fraction digits that the released reader scales as written; it is off by ten beyond.
_EXACT_FRACTION_DIGITS = 7


def _u64(digits: str) -> int:
    """The value of *digits*, at most the largest 64-bit number."""
    if len(digits) > 20:
        digits = digits.lstrip("0")
        if len(digits) > 20:
            return _U64_MAX
    return min(int(digits or "0"), _U64_MAX)


def parse_number(text: str) -> float | None:
    """
    Read a rate or coefficient as the released clients do (``ncbi_ansi_ext.c``).

    No exponents, no hexadecimal.  A fraction of eight digits or more counts a tenth of what it
    says: that is how every client in the field reads it.

    :returns: None when *text* is not a number.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction, bare_fraction = match.groups()
    value = float(_u64(whole or "0"))
    fraction = fraction or bare_fraction
    if fraction:
        places = len(fraction)
        if places > _EXACT_FRACTION_DIGITS:
            places += 1
        if places <= 300:
            value += _u64(fraction) / 10.0**places
    return -value if sign == "-" and value else value


def parse_time(text: str) -> int | None:
    """
    Read the value of ``T=``: an integer, kept modulo 2**32 (so ``-1`` is the largest).

    :returns: None when *text* is not an integer.
    """
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    value = _u64(match[2])
    if match[1] == "-" and value != _U64_MAX:
        value = -value
    return value & 0xFFFFFFFF


def _clamp(value: float, least: float, most: float) -> float:
    magnitude = abs(value)
    if magnitude < least / 2:
        return 0.0
    magnitude = min(max(magnitude, least), most)
    return magnitude if value > 0 else -magnitude


def clamp_rate(value: float) -> float:
    """*value* as a rate can hold it: 0, or 0.001 to 100000 in magnitude."""
    return _clamp(value, MIN_RATE, MAX_RATE)


def clamp_bonus(value: float) -> float:
    """*value* as a locality coefficient can hold it: 0, or 0.01 to 100 in magnitude."""
    return _clamp(value, MIN_BONUS, MAX_BONUS)


def format_number(value: float, decimals: int) -> str:
    """
    Write *value* with that many decimals, halves of the binary value away from zero.

    :param decimals: 1..7.
    """
    magnitude = abs(value)
    scale = 10**decimals
    whole = floor(magnitude + 0.5 / scale)
    fraction = floor(scale * (magnitude - whole) + 0.5)
    # Just under a whole number the remainder may come out as -0: it is 0 then.
    fraction = max(fraction, 0)
    sign = "-" if value < 0 and (whole or fraction) else ""
    return f"{sign}{whole}.{fraction:0{decimals}d}"


def format_rate(rate: float) -> str:
    """Write *rate* as ``R=`` wants it: two decimals, three below 0.01 in magnitude."""
    return format_number(rate, 3 if abs(rate) < STANDBY_RATE else 2)
