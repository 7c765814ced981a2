"""The daemon in the demo site."""

from __future__ import annotations

from collections.abc import Mapping

from gridnet.demo.plan import DemoPlan
from gridnet.lbsmd.shared_table import PUBLIC_NAME


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[lbsmd]`` of the demo; its file may be edited while the demo runs."""
    return {
        "servrc": str(plan.servrc),
        "poll_seconds": 0.5,
        "shared_memory": PUBLIC_NAME if plan.heap else f"demo {plan.directory}",
    }
