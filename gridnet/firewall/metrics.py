"""The relay's numbers for Prometheus and the status page (docs/reference/firewall.rst)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gridnet.firewall.protocol import FirewallFactory


def counters(factory: FirewallFactory) -> Mapping[str, int]:
    """What only grows."""
    tally, counts = factory.office.tally, factory.counts
    up, down = factory.octets_up, factory.octets_down
    pump = factory.pump
    for session in factory.sessions:
        more_up, more_down = session.octets()
        up, down = up + more_up, down + more_down
    return {
        "tickets_issued": tally.issued,
        "tickets_redeemed": tally.redeemed,
        "tickets_invalid": tally.invalid,
        "tickets_unheard": tally.unheard,
        "tickets_unused": tally.unused,
        "requests_refused": tally.refused,
        "connections": counts["accepted"],
        "connections_over_limits": counts["over limits"],
        "connections_relayed": counts["relayed"],
        "port_checks": counts["checks"],
        "control_requests": counts["controls"],
        "servers_unreached": counts["unreached"],
        "octets_to_servers": up,
        "octets_to_clients": down,
        "looks": pump.looks if pump is not None else 0,
        "looks_answered": pump.looks_answered if pump is not None else 0,
    }


def gauges(factory: FirewallFactory, now: float) -> Mapping[str, int]:
    """What comes and goes."""
    pool = factory.pump.pool if factory.pump is not None else None
    return {
        "tickets_waiting": factory.office.store.waiting,
        "open_sessions": len(factory.sessions),
        "open_connections": len(factory.legs),
        "pipes_lent": pool.lent if pool is not None else 0,
        "clients_refused": len(factory.office.penalties.current(now)),
    }


class FirewallCollector(Collector):
    """Shows the numbers when Prometheus asks."""

    def __init__(self, factory: FirewallFactory) -> None:
        self._factory = factory

    def describe(self) -> list[Metric]:
        """Called by the registry: nothing is promised, so nothing is collected to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        for name, number in counters(self._factory).items():
            text = name.replace("_", " ").capitalize() + "."
            yield CounterMetricFamily(f"gridnet_firewall_{name}", text, number)
        for name, number in gauges(self._factory, self._factory.now()).items():
            text = name.replace("_", " ").capitalize() + "."
            yield GaugeMetricFamily(f"gridnet_firewall_{name}", text, number)


def facts(factory: FirewallFactory) -> Mapping[str, Any]:
    """All of them for the status page."""
    return {**gauges(factory, factory.now()), **counters(factory)}
