"""
Hypothesis as these tests use it: deterministic, without deadlines or an example database.

``GRIDNET_EXAMPLES_FACTOR`` multiplies every number of examples, for a long search by hand.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_FACTOR = float(os.environ.get("GRIDNET_EXAMPLES_FACTOR", "1"))


def examples(number: int) -> settings:
    """Settings, and decorator, of a property test: *number* examples, the same in every run."""
    return settings(
        max_examples=max(1, int(number * _FACTOR)),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
