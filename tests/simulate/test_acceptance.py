"""
What sites of full size are held to, on small ones.

``GRIDNET_SIMULATED_SHARE=1`` is the full size; see ``python -m tests.simulate.acceptance``.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.simulate.acceptance import ITEMS

SHARE = float(os.environ.get("GRIDNET_SIMULATED_SHARE", "0.01"))


class AcceptanceTests(SynchronousTestCase):
    """How soon news are everywhere, and at what cost; the rest is in :mod:`.test_scenario`."""

    def held(self, item: str) -> None:
        """That item is as it should be."""
        finding = ITEMS[item](SHARE)
        self.assertTrue(finding.holds, finding.line())

    def test_a_change_among_a_thousand(self) -> None:
        self.held("spread-1000")

    def test_a_change_among_ten_thousand(self) -> None:
        self.held("spread-10000")

    def test_a_change_at_half_loss(self) -> None:
        self.held("loss-10000")
