"""Days, hours and holidays, held to their vectors."""

from __future__ import annotations

from datetime import date, datetime

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.schedule import (
    DAYS,
    HOLIDAY,
    ScheduleElement,
    federal_holidays,
    in_schedule,
    parse_element,
)
from tests.lbsmd.support import VECTORS


def element(text: str) -> ScheduleElement:
    """The element that *text* is."""
    found = parse_element(text)
    assert found is not None, text
    return found


class ScheduleTests(SynchronousTestCase):
    """When a server is meant to run."""

    def test_every_schedule_of_the_vectors(self) -> None:
        """At the local time of each row."""
        for row in VECTORS["schedules"]:
            elements = [element(text) for text in row["schedule"]]
            moment = datetime.fromisoformat(row["time"])
            self.assertEqual(in_schedule(elements, moment), row["runs"], row["id"])

    def test_every_holiday_of_the_vectors(self) -> None:
        """The days themselves and those of their observance, and no other day."""
        for year, days in VECTORS["holidays"].items():
            self.assertEqual(
                sorted(day.isoformat() for day in federal_holidays(int(year))), days, year
            )

    def test_without_elements_it_always_runs(self) -> None:
        """Only what is written can keep it from running."""
        self.assertTrue(in_schedule((), datetime(2026, 3, 2)))

    def test_the_first_day_of_the_calendar_has_no_yesterday(self) -> None:
        """And no exception."""
        first = datetime.combine(date.min, datetime.min.time())
        self.assertFalse(in_schedule([element("@22-6")], first))

    def test_printed_elements_read_back(self) -> None:
        """All there are: any days, any hours that make sense, negated or not."""
        ranges = [(first, last) for first in DAYS for last in DAYS if first != last]
        days = ["", *DAYS, HOLIDAY, *("-".join(each) for each in ranges)]
        hours = ["", *(f"@{begin}" for begin in range(24))]
        hours += [f"@{a}-{b}" for a in range(24) for b in range(25) if a != b]
        for day_text, hour_text in [*((day, "@9-5") for day in days), *(("Fr", h) for h in hours)]:
            for text in (f"{day_text}{hour_text}", f"~{day_text}{hour_text}"):
                found = element(text)
                self.assertEqual(parse_element(str(found)), found, text)
                self.assertEqual(found.negated, text[0] == "~")
                if found.hours is not None:
                    begin, end = found.hours
                    self.assertTrue(0 <= begin < end <= begin + 24, text)
