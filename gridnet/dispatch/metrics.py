"""The dispatcher's numbers for Prometheus and the status page (docs/reference/dispatch.rst)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gridnet.dispatch.tally import Tally

_COUNTERS = (
    ("accepted", "connections", "Connections accepted."),
    ("octets_in", "relayed_request_octets", "Octets of request bodies passed to servers."),
    ("octets_out", "relayed_reply_octets", "Octets of reply bodies passed to clients."),
)
_GAUGES = (
    ("open", "open_connections", "Connections of clients."),
    ("busy", "busy_requests", "Requests under way."),
    ("relays", "open_relays", "Requests being relayed."),
    ("idle_links", "idle_server_connections", "Connections to servers kept for reuse."),
    ("held_octets", "held_octets", "Octets of requests that are not whole or wait."),
    ("cached_heads", "cached_heads", "Request heads kept parsed."),
)


class DispatchCollector(Collector):
    """Shows a tally when Prometheus asks."""

    def __init__(self, tally: Callable[[], Tally], workers: Callable[[], int]) -> None:
        self._tally = tally
        self._workers = workers

    def describe(self) -> list[Metric]:
        """Called by the registry: nothing is promised, so nothing is collected to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        tally = self._tally()
        replies = CounterMetricFamily(
            "gridnet_dispatch_replies", "Replies sent.", labels=["kind", "status"]
        )
        for (kind, status), number in tally.replies.items():
            replies.add_metric([kind, str(status)], number)
        yield replies
        refused = CounterMetricFamily(
            "gridnet_dispatch_refused", "Connections and requests refused.", labels=["reason"]
        )
        for reason, number in tally.refused.items():
            refused.add_metric([reason], number)
        yield refused
        for field, name, text in _COUNTERS:
            yield CounterMetricFamily(f"gridnet_dispatch_{name}", text, getattr(tally, field))
        for field, name, text in _GAUGES:
            yield GaugeMetricFamily(f"gridnet_dispatch_{name}", text, getattr(tally, field))
        yield GaugeMetricFamily(
            "gridnet_dispatch_workers", "Processes that serve.", self._workers()
        )


def facts(tally: Tally) -> Mapping[str, Any]:
    """*tally* for the status page."""
    return {
        "replies": {f"{kind} {status}": n for (kind, status), n in sorted(tally.replies.items())},
        "refused": dict(sorted(tally.refused.items())),
        **{name: getattr(tally, name) for name, _, _ in (*_COUNTERS, *_GAUGES)},
    }
