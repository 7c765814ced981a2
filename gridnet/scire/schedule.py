"""
When a job's occurrences are: recurrence, blackout windows, spread, missed ones.

All instants are seconds since the epoch; wall-clock rules are read in a named time zone.  An hour
that a clock change repeats counts once; a minute that it leaves out counts as the first one after
the gap (docs/protocols/scire.rst, Schedules).  Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from hashlib import sha256
from math import ceil
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from attrs import field, frozen

_DAY_NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTH_NAMES = (
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
)  # fmt: skip
#: A rule that matches no day within this many is never due (a 30th of February; the longest wait
#: of one that can come, 29 February on a given week day, is 40 years).
_SEARCH_DAYS = 41 * 366
_PART = re.compile(r"(\*|\w+(?:-\w+)?)(?:/(\d{1,4}))?")
_WINDOW = re.compile(r"(?:(\w{3}(?:[-,]\w{3})*) )?(\d\d):(\d\d)-(\d\d):(\d\d)")


@cache
def zone(name: str) -> ZoneInfo:
    """
    The time zone *name*.

    :raises ValueError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no time zone {name[:60]!r}") from None


def instant(local: datetime, tz: ZoneInfo) -> float:
    """
    The wall-clock time *local* (naive) in *tz* as seconds since the epoch.

    The first of two that read the same; for one that is left out, the end of the gap.
    """
    first = local.replace(tzinfo=tz, fold=0)
    seconds = first.timestamp()
    if datetime.fromtimestamp(seconds, tz).replace(tzinfo=None) == local:
        return seconds
    # In a gap the two readings lie on either side of the change.
    before, after = sorted((seconds, local.replace(tzinfo=tz, fold=1).timestamp()))
    offset = datetime.fromtimestamp(before, tz).utcoffset()
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, tz).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


def _number(text: str, names: tuple[str, ...], base: int) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + base
    if not re.fullmatch(r"\d{1,2}", text, re.ASCII):
        raise ValueError(f"expected a number, found {text!r}")
    return int(text)


def _field(
    text: str, low: int, high: int, names: tuple[str, ...] = (), base: int = 0
) -> frozenset[int]:
    """The values of one cron field."""
    values: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"expected a cron field, found {text!r}")
        what, step = match[1], int(match[2] or 1)
        if what == "*":
            first, last = low, high
        else:
            start, _, end = what.partition("-")
            first = _number(start, names, base)
            last = _number(end, names, base) if end else (high if match[2] else first)
        if not low <= first <= last <= high or step < 1:
            raise ValueError(f"expected {low}..{high}, found {part!r}")
        values.update(range(first, last + 1, step))
    return frozenset(values)


@frozen
class Cron:
    """A five-field rule: minute, hour, day of month, month, day of week (0 and 7: Sunday)."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    #: both day fields restrict: a day that fits either counts, as in cron since its first days
    either_day: bool
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Cron:
        """:raises ValueError: not five fields, or a field with a value that does not exist."""
        fields = text.split()
        if len(fields) != 5:
            raise ValueError(f"expected five fields, found {len(fields)}")
        weekdays = _field(fields[4], 0, 7, _DAY_NAMES)
        rule = cls(
            minutes=_field(fields[0], 0, 59),
            hours=_field(fields[1], 0, 23),
            days=_field(fields[2], 1, 31),
            months=_field(fields[3], 1, 12, _MONTH_NAMES, 1),
            weekdays=frozenset(day % 7 for day in weekdays),
            either_day=not fields[2].startswith("*") and not fields[4].startswith("*"),
            text=text,
        )
        if rule.after(0.0, zone("UTC")) is None:
            raise ValueError(f"{text!r} is never due")
        return rule

    def _day_fits(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        of_month = day.day in self.days
        of_week = day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week

    def after(self, seconds: float, tz: ZoneInfo) -> float | None:
        """The first instant after *seconds* that fits; None: there is none."""
        start = datetime.fromtimestamp(seconds, tz).date() - timedelta(days=1)
        for offset in range(_SEARCH_DAYS):
            day = start + timedelta(days=offset)
            if not self._day_fits(day):
                continue
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    found = instant(datetime.combine(day, time(hour, minute)), tz)
                    if found > seconds:
                        return found
        return None


@frozen
class Every:
    """A fixed distance from an anchor."""

    seconds: int
    anchor: float = 0.0  #: seconds since the epoch

    def after(self, seconds: float, tz: ZoneInfo) -> float | None:
        """The first instant after *seconds*."""
        steps = (seconds - self.anchor) // self.seconds + 1
        return self.anchor + max(0, steps) * self.seconds


@frozen
class Blackout:
    """A daily window in which no occurrence is wanted: ``22:00-06:00``, ``mon-fri 08:00-18:00``."""

    start: int  #: minutes of the day, inclusive
    end: int  #: minutes of the day, exclusive; before *start*: past midnight
    weekdays: frozenset[int]  #: on which it starts
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Blackout:
        """:raises ValueError: not such a window."""
        match = _WINDOW.fullmatch(text)
        if match is None:
            raise ValueError(f"expected a window like 'mon-fri 08:00-18:00', found {text[:40]!r}")
        start, end = (int(match[n]) * 60 + int(match[n + 1]) for n in (2, 4))
        if start >= 1440 or end > 1440 or start == end:
            raise ValueError(f"no such window of the day: {text!r}")
        weekdays = _field(match[1], 0, 6, _DAY_NAMES) if match[1] else frozenset(range(7))
        return cls(start, end, weekdays, text)

    def covers(self, local: datetime) -> bool:
        """Whether the wall-clock time *local* lies in it."""
        minute, day = local.hour * 60 + local.minute, local.isoweekday() % 7
        if self.start < self.end:
            return day in self.weekdays and self.start <= minute < self.end
        return (day in self.weekdays and minute >= self.start) or (
            (day - 1) % 7 in self.weekdays and minute < self.end
        )


@frozen
class Recurrence:
    """When a job comes again."""

    rule: Cron | Every
    zone: ZoneInfo = field(factory=lambda: zone("UTC"))
    blackouts: tuple[Blackout, ...] = ()

    def after(self, seconds: float) -> float | None:
        """The first occurrence after *seconds* outside the blackouts; None: there is none."""
        found = self.rule.after(seconds, self.zone)
        # Each turn leaves one occurrence out; a rule that only falls into blackouts ends here.
        for _ in range(10_000):
            if found is None:
                return None
            local = datetime.fromtimestamp(found, self.zone)
            if not any(window.covers(local) for window in self.blackouts):
                return found
            found = self.rule.after(found, self.zone)
        return None

    def occurrences(self, after: float, until: float) -> Iterator[float]:
        """The occurrences in (*after*, *until*], oldest first."""
        found = self.after(after)
        while found is not None and found <= until:
            yield found
            found = self.after(found)


class Misfire(StrEnum):
    """What becomes of occurrences that came while no server ran."""

    ONCE = "once"  #: one run for all of them
    ALL = "all"
    SKIP = "skip"


#: An occurrence that is handled within this many seconds of its time was not missed.
PUNCTUAL_SECONDS = 60.0
#: Occurrences made at most for one job at one start.
MAX_MISSED = 1000


@frozen
class Due:
    """The occurrences to make now, and the one to wait for."""

    now: tuple[float, ...]
    next: float | None


def due(
    recurrence: Recurrence, next_occurrence: float, misfire: Misfire, window: float, now: float
) -> Due:
    """
    What is to be made of a job's occurrences at *now*.

    :param next_occurrence: the oldest that has not been made.
    :param window: seconds that are looked back at most.
    """
    if next_occurrence > now:
        return Due((), next_occurrence)
    oldest = max(next_occurrence, now - window)
    passed: list[float] = []
    for found in recurrence.occurrences(oldest - 1, now):
        passed.append(found)
        if len(passed) > MAX_MISSED:
            passed.pop(0)
    following = recurrence.after(now)
    punctual = [t for t in passed if now - t <= PUNCTUAL_SECONDS]
    if misfire is Misfire.ALL:
        return Due(tuple(passed), following)
    if misfire is Misfire.SKIP:
        return Due(tuple(punctual), following)
    missed = [t for t in passed if now - t > PUNCTUAL_SECONDS]
    return Due((*(() if punctual else missed[-1:]), *punctual), following)


def spread_seconds(job: int, client: int, spread: float) -> float:
    """How long after an occurrence this client's turn is: fixed, even over [0, *spread*)."""
    if spread <= 0:
        return 0.0
    digest = sha256(f"{job}/{client}".encode("ascii")).digest()
    return float(int(int.from_bytes(digest[:8], "big") / 2**64 * ceil(spread)))
