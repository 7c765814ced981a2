"""
When a server is meant to run: days, hours, federal holidays.

The rules are those of docs/protocols/lbsmd-config.rst, Schedules.  All times are the local time
of the host that configures the server; the caller brings them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from functools import lru_cache

from attrs import frozen

DAYS = ("Su", "Mo", "Tu", "We", "Th", "Fr", "Sa")
HOLIDAY = "Hd"

_DAY = "|".join((*DAYS, HOLIDAY))
_ELEMENT = re.compile(
    rf"(?P<negated>~?)(?:(?P<first>{_DAY})(?:-(?P<last>{_DAY}))?)?"
    r"(?:@(?P<begin>[0-9]{1,2})(?:-(?P<end>[0-9]{1,2}))?)?"
)


@frozen
class ScheduleElement:
    """Days and hours in which the server runs, or (negated) does not."""

    days: tuple[str, ...] = ()  #: of DAYS, in order, or HOLIDAY; empty: every day
    #: first hour, and the hour before which it ends (beyond 24: on the next day); None: all day
    hours: tuple[int, int] | None = None
    negated: bool = False

    def __str__(self) -> str:
        days = (
            "-".join(self.days[:: len(self.days) - 1]) if len(self.days) > 1 else "".join(self.days)
        )
        hours = ""
        if self.hours is not None:
            begin, end = self.hours
            hours = f"@{begin}" if end == begin + 1 else f"@{begin}-{end - 24 if end > 24 else end}"
        return f"{'~' if self.negated else ''}{days}{hours}"

    def fits(self, moment: datetime) -> bool:
        """Whether *moment* lies in its days and hours (negation left aside)."""
        if self.hours is None:
            return self._fits_day(moment.date())
        begin, end = self.hours
        if begin <= moment.hour < end and self._fits_day(moment.date()):
            return True
        if not begin <= moment.hour + 24 < end or moment.date() == date.min:
            return False
        # A span over midnight belongs to the day it began on.
        return self._fits_day(moment.date() - timedelta(days=1))

    def _fits_day(self, day: date) -> bool:
        if not self.days or DAYS[day.isoweekday() % 7] in self.days:
            return True
        return HOLIDAY in self.days and day in federal_holidays(day.year)


def parse_element(text: str) -> ScheduleElement | None:
    """
    Read one element of a schedule, ``[~][DAY[-DAY]][@HOUR[-HOUR]]``.

    :returns: None when *text* has another shape.
    :raises ValueError: it has the shape, but its days or hours make no sense.
    """
    match = _ELEMENT.fullmatch(text)
    if match is None or text in ("", "~"):
        return None
    first, last = match["first"], match["last"]
    days: tuple[str, ...] = (first,) if first is not None else ()
    if last is not None:
        if HOLIDAY in (first, last):
            raise ValueError(f"a range of days without {HOLIDAY}, which is no day of the week")
        start, stop = DAYS.index(first), DAYS.index(last)
        days = tuple(DAYS[(start + n) % 7] for n in range((stop - start) % 7 + 1))
    hours = None if match["begin"] is None else _hours(match["begin"], match["end"])
    return ScheduleElement(days, hours, bool(match["negated"]))


def _hours(begin_text: str, end_text: str | None) -> tuple[int, int]:
    begin = int(begin_text)
    if end_text is None:
        if begin > 23:
            raise ValueError("an hour from 0 to 23")
        return begin, begin + 1
    end = int(end_text)
    if begin > 23 or end > 24:
        raise ValueError("a first hour from 0 to 23 and a last from 0 to 24")
    if begin == end:
        raise ValueError("a range of hours that is not empty")
    if end == 0:
        end = 24
    if end < begin:
        # "9-5" is the working day; "22-6" the night shift.
        afternoon = begin < 12 and 1 <= end <= 11
        end += 12 if afternoon else 24
    return begin, end


def in_schedule(elements: Iterable[ScheduleElement], moment: datetime) -> bool:
    """
    Whether the server is meant to run at *moment* (local time).

    Some positive element fits, or there is none; and no negated element fits.
    """
    positive = fitting = False
    for element in elements:
        if element.negated:
            if element.fits(moment):
                return False
        else:
            positive = True
            fitting = fitting or element.fits(moment)
    return fitting or not positive


@lru_cache(maxsize=16)
def federal_holidays(year: int) -> frozenset[date]:
    """
    The US federal holidays of *year*: the days themselves, and those they are observed on.

    New Year's Day is observed on the last day of the year before when it is a Saturday.
    """
    # Imported late: the library takes longer to load than the rest of this package, and few
    # configurations name holidays.
    from holidays import country_holidays

    return frozenset(day for day in country_holidays("US", years=year) if day.year == year)
