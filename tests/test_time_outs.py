"""gridnet.time_outs"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.time_outs import look_seconds

SECONDS = st.floats(1e-9, 1e9)


class LookSecondsTests(SynchronousTestCase):
    """How often connections are looked at."""

    def test_usual(self) -> None:
        """Once a second."""
        self.assertEqual(look_seconds(120.0, 10.0), 1.0)

    def test_short(self) -> None:
        """A quarter of the shortest."""
        self.assertEqual(look_seconds(120.0, 0.5, 2.0), 0.125)

    @given(SECONDS, SECONDS)
    def test_bounds(self, first: float, second: float) -> None:
        """Neither a busy loop nor seldom."""
        self.assertTrue(0.02 <= look_seconds(first, second) <= 1.0)
