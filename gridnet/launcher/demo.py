"""The launcher in the demo site."""

from __future__ import annotations

from collections.abc import Mapping

from gridnet.demo.plan import DemoPlan

_FIRST, _LAST = 81, 99


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[launcher]`` of the demo."""
    return {"interface": "127.0.0.1", "ports": f"{plan.port(_FIRST)}-{plan.port(_LAST)}"}
