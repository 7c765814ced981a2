"""
How a penalty wears off (docs/protocols/lbsmd-config.rst, Penalties).

A penalty holds for a while, then falls slowly at first, faster later, until nothing is left.
"""

from __future__ import annotations

import math

from attrs import frozen

#: Seconds that a penalty takes to wear off, once it no longer holds.
DECAY_SECONDS = 300.0
#: A change is announced when the value has moved by this much.
ANNOUNCED_STEP = 1.0


@frozen
class Penalty:
    """How far somebody has asked to keep away from a server."""

    percent: float = 0.0  #: 0..100; 100: suppressed
    hold_seconds: float = 0.0
    set_at: float = 0.0  #: seconds since the epoch

    def value(self, now: float) -> float:
        """What is left of it: percent, 0..100."""
        beyond = now - self.set_at - self.hold_seconds
        if beyond <= 0.0:
            return self.percent
        if now >= self.ends_at():
            return 0.0
        return self.percent * max(0.0, 1.0 - (beyond / DECAY_SECONDS) ** 2)

    def ends_at(self) -> float:
        """When nothing is left of it: seconds since the epoch."""
        return self.set_at + self.hold_seconds + DECAY_SECONDS if self.percent else self.set_at

    def falls_to(self, percent: float) -> float:
        """
        When no more than *percent* is left of it: seconds since the epoch.

        :param percent: 0..100.
        """
        if percent <= 0.0:
            return self.ends_at()
        if percent >= self.percent:
            return self.set_at
        beyond = DECAY_SECONDS * math.sqrt(1.0 - percent / self.percent)
        return self.set_at + self.hold_seconds + beyond
