"""The event mirror in the demo site."""

from __future__ import annotations

from collections.abc import Mapping

from gridnet.demo.plan import DemoPlan


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[mirror]`` of the demo."""
    return {
        "listen": f"tcp:{plan.port(50)}:interface=127.0.0.1",
        "gridengine_listen": f"tcp:{plan.port(51)}:interface=127.0.0.1",
    }
