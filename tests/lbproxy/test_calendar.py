"""Times of event lines."""

from __future__ import annotations

from calendar import timegm

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy.calendar import parse_time, time_text
from tests.hypothesis_profile import examples


class TimeTests(SynchronousTestCase):
    """gridnet.lbproxy.calendar"""

    def test_reads_times(self) -> None:
        """Whole times, with and without a fraction, and the decimal sense of a short one."""
        seconds = timegm((2026, 11, 22, 1, 22, 9))
        for text, fraction in (
            ("20261122012209.050992", 50992),
            ("20261122012209", 0),
            ("20261122012209.", 0),
            ("20261122012209.5", 500000),
            ("20261122012209.0000019", 1),
        ):
            self.assertEqual(parse_time(text), seconds * 1_000_000 + fraction)

    def test_reads_odd_dates(self) -> None:
        """Missing digits and numbers that are too high are accepted."""
        self.assertEqual(parse_time("2026"), timegm((2026, 1, 1, 0, 0, 0)) * 1_000_000)
        self.assertEqual(parse_time("20261301"), timegm((2027, 1, 1, 0, 0, 0)) * 1_000_000)
        self.assertEqual(parse_time("20260131250000"), timegm((2026, 2, 1, 1, 0, 0)) * 1_000_000)

    def test_no_time_is_zero(self) -> None:
        """What is no time, or before the epoch, is 0."""
        for text in ("", "x", "19691231235959", "0", ".5", "2026-01-01", "20260101000000.5x"):
            self.assertEqual(parse_time(text), 0, text)
        for text in (
            "20261122012209.05099\xb2",
            "2026112201220\xb9.050992",
            "2026112.012209.050992",
        ):
            self.assertEqual(parse_time(text), 0, text)

    @given(st.integers(1, 253_402_300_799_999_999))
    @examples(200)
    def test_reads_back_what_it_writes(self, microseconds: int) -> None:
        """Any time to the year 9999 survives."""
        self.assertEqual(parse_time(time_text(microseconds)), microseconds)
