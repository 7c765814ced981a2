"""The ticketed relay in the demo site."""

from __future__ import annotations

from collections.abc import Mapping

from gridnet.demo.plan import DemoPlan

_FIRST, _LAST = 60, 70
_FIRST_RELAY, _LAST_RELAY = 71, 80


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[firewall]`` of the demo."""
    first, last = plan.firewall_ports or (plan.port(_FIRST), plan.port(_LAST))
    return {
        "ports": f"{first}-{last}",
        "relay_ports": f"{plan.port(_FIRST_RELAY)}-{plan.port(_LAST_RELAY)}",
        "listen": "tcp:{port}:interface=127.0.0.1:backlog=1024",
        "advertise": "127.0.0.1",
    }
