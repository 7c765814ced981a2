"""The daemon in the demo site."""

from __future__ import annotations

from collections.abc import Mapping

from gridnet.demo.plan import DemoPlan


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[lbsmd]`` of the demo; its file may be edited while the demo runs."""
    return {"servrc": str(plan.servrc), "poll_seconds": 0.5}
