"""Times of event lines: ``YYYYMMDDhhmmss.uuuuuu`` in UTC <-> microseconds since the epoch."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from time import gmtime

from gridnet.lbproxy.short_cache import cached_if_short

_TIME = re.compile(r"([0-9]{1,14})(?:\.([0-9]{0,6})[0-9]*)?\Z")
_EPOCH_DAY = date(1970, 1, 1).toordinal()
MICROSECONDS = 1_000_000
_FULL_SECONDS = re.compile(r"[0-9]{14}\.")
#: Octets of a time in full.
FULL_TIME = 21


@lru_cache(maxsize=256)
def _day_seconds(day: str) -> int:
    """Seconds since the epoch at the start of YYYYMMDD; months and days may be missing or odd."""
    year, month, number = int(day[:4]), int(day[4:6] or 1), int(day[6:8] or 1)
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    if not 1970 <= year <= 9999:
        return -1
    return (date(year, month, 1).toordinal() - _EPOCH_DAY + number - 1) * 86_400


def _seconds(digits: str) -> int:
    """Seconds since the epoch of a time without its fraction, or -1."""
    seconds = _day_seconds(digits[:8])
    if seconds < 0:
        return -1
    hours, minutes = int(digits[8:10] or 0), int(digits[10:12] or 0)
    return seconds + hours * 3600 + minutes * 60 + int(digits[12:] or 0)


@cached_if_short(256)
def _full_seconds(text: str) -> int:
    """The same of the fourteen digits and the point that a time in full begins with."""
    return _seconds(text[:-1]) if _FULL_SECONDS.fullmatch(text) is not None else -1


def parse_time(text: str) -> int:
    """
    Microseconds since the epoch; 0 when *text* is no time.

    Missing digits at the end are read as the earliest time that begins so; a number that is too
    high runs over into the next unit.  A fraction of fewer than six digits is a decimal fraction.
    """
    fraction = text[FULL_TIME - 6 :]
    if len(text) == FULL_TIME and fraction.isdecimal() and fraction.isascii():
        seconds = _full_seconds(text[: FULL_TIME - 6])
        if seconds >= 0:
            return seconds * MICROSECONDS + int(fraction)
    match = _TIME.match(text)
    if match is None:
        return 0
    seconds = _seconds(match[1])
    return 0 if seconds < 0 else seconds * MICROSECONDS + int((match[2] or "").ljust(6, "0"))


def time_text(microseconds: int) -> str:
    """The time as event lines carry it."""
    seconds, fraction = divmod(microseconds, MICROSECONDS)
    year, month, day, hour, minute, second, *_ = gmtime(seconds)
    return f"{year:04d}{month:02d}{day:02d}{hour:02d}{minute:02d}{second:02d}.{fraction:06d}"
