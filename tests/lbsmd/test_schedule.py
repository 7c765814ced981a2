"""Days, hours and holidays, held to their vectors."""

from __future__ import annotations

from datetime import date, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.schedule import (
    DAYS,
    ScheduleElement,
    federal_holidays,
    in_schedule,
    parse_element,
)
from tests.hypothesis_profile import examples
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

    @examples(3000)
    @given(
        st.sampled_from([(), *((day,) for day in DAYS), ("Hd",), ("Fr", "Sa", "Su", "Mo"), DAYS]),
        st.none() | st.tuples(st.integers(0, 23), st.integers(0, 24)),
        st.booleans(),
    )
    def test_printed_elements_read_back(
        self, days: tuple[str, ...], hours: tuple[int, int] | None, negated: bool
    ) -> None:
        """Any days, any hours that make sense."""
        day_text = "-".join(days[:: len(days) - 1]) if len(days) > 1 else "".join(days)
        hour_text = "" if hours is None else f"@{hours[0]}-{hours[1]}"
        text = f"{'~' if negated else ''}{day_text}{hour_text}"
        try:
            found = parse_element(text)
        except ValueError:
            self.assertEqual(hours and hours[0], hours and hours[1])
            return
        if found is None:
            self.assertIn(text, ("", "~"))
            return
        self.assertEqual(found.days, days)
        self.assertEqual(parse_element(str(found)), found)
        if found.hours is not None:
            begin, end = found.hours
            self.assertTrue(0 <= begin < end <= begin + 24)
