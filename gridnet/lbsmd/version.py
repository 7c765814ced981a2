"""Which daemon this is."""

from __future__ import annotations

import gridnet


def daemon_version() -> tuple[int, int, int]:
    """Our version as host records have it."""
    version = [int(part) for part in gridnet.__version__.split(".")[:3] if part.isdigit()]
    major, minor, patch = (*version, 0, 0, 0)[:3]
    return major, minor, patch
