"""What the job server counts, for ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300)


class Metrics:
    """
    :ivar calls: by listener, method and result (``ok`` or a fault's code).
    :ivar events: deliveries repeated, duplicates, late results, lost and denied runs ...
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "gridnet_scire_calls", "calls", ["listener", "method", "result"], registry=registry
        )
        self.call_seconds = Histogram(
            "gridnet_scire_call_seconds",
            "time to answer",
            ["method"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.events = Counter("gridnet_scire_events", "what happened", ["event"], registry=registry)
        self.ended = Counter(
            "gridnet_scire_runs_ended", "runs by their end", ["state"], registry=registry
        )
        self.pushes = Counter(
            "gridnet_scire_pushes", "poll_now by result", ["result"], registry=registry
        )
        self.sweep_seconds = Histogram(
            "gridnet_scire_sweep_seconds",
            "time of the leader's duties",
            registry=registry,
            buckets=_SECONDS,
        )
        self._registry = registry

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"gridnet_scire_{name}", text, labels, registry=registry)

        self._runs = gauge("runs", "open runs, and those of a day, by state", "state")
        self._clients = gauge("clients", "clients by state", "state")
        self._contacts = gauge("clients_in_contact", "active clients heard of lately", "within")
        self._numbers = {
            name: gauge(name, text)
            for name, text in (
                ("oldest_pending_seconds", "how long the oldest pending run has been due"),
                ("enrolments_waiting", "requests for certificates that nobody has decided"),
                ("certificates_expiring", "certificates that end within a week"),
            )
        }

    def follow(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show what *value* gives whenever somebody looks."""
        Gauge(f"gridnet_scire_{name}", text, registry=self._registry).set_function(value)

    def show(self, overview: Mapping[str, Any]) -> None:
        """What is in the database: :func:`gridnet.scire.upkeep.overview`."""
        for gauge, member in (
            (self._runs, "runs"),
            (self._clients, "clients"),
            (self._contacts, "contact"),
        ):
            # A state that nothing is in any more is not there, rather than old.
            gauge.clear()
            for label, number in overview[member].items():
                gauge.labels(label).set(number)
        for name, one in self._numbers.items():
            one.set(overview[name])
