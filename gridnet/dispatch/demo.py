"""The dispatcher in the demo site."""

from __future__ import annotations

from collections.abc import Mapping

from gridnet.demo.plan import DemoPlan


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[dispatch]`` of the demo."""
    return {"listen": f"tcp:{plan.port(0)}:interface=127.0.0.1"}
