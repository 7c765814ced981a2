"""What tests that are mixed into a test case are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase

    Mixin = SynchronousTestCase
else:
    # No test case by itself: its tests would run without what it is to be mixed with.
    Mixin = object
