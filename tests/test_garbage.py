"""gridnet.garbage"""

from __future__ import annotations

import gc

from twisted.trial.unittest import SynchronousTestCase

from gridnet import garbage


class ThresholdsTests(SynchronousTestCase):
    """What is set once holds for the process."""

    def setUp(self) -> None:
        self.addCleanup(gc.set_threshold, *gc.get_threshold())

    def test_raised(self) -> None:
        """From Python's own."""
        gc.set_threshold(700, 10, 10)
        garbage.search_seldom()
        self.assertEqual(gc.get_threshold(), garbage.THRESHOLDS)

    def test_never_lowered(self) -> None:
        """Where somebody wants it more seldom still."""
        gc.set_threshold(1_000_000, 5, 1000)
        garbage.search_seldom()
        self.assertEqual(gc.get_threshold(), (1_000_000, 20, 1000))

    def test_none_at_all(self) -> None:
        """A search that was turned off stays so."""
        gc.set_threshold(0, 10, 10)
        garbage.search_seldom()
        self.assertEqual(gc.get_threshold(), (0, 10, 10))
