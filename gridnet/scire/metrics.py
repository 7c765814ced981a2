"""What the job server counts, for ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300)


class Metrics:
    """
    :ivar calls: by listener, method and result (``ok`` or a fault's code).
    :ivar events: deliveries repeated, duplicates, late results, lost and denied runs ...
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "scire_calls", "calls", ["listener", "method", "result"], registry=registry
        )
        self.call_seconds = Histogram(
            "scire_call_seconds", "time to answer", ["method"], registry=registry, buckets=_SECONDS
        )
        self.events = Counter("scire_events", "what happened", ["event"], registry=registry)
        self.ended = Counter("scire_runs_ended", "runs by their end", ["state"], registry=registry)
        self.pushes = Counter("scire_pushes", "poll_now by result", ["result"], registry=registry)
        self.sweep_seconds = Histogram(
            "scire_sweep_seconds",
            "time of the leader's duties",
            registry=registry,
            buckets=_SECONDS,
        )
