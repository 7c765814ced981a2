"""The status listener as a component."""

from gridnet.component import Component

COMPONENT = Component(
    name="status",
    summary="status pages, metrics and health check",
    config="gridnet.status.config:StatusConfig",
    factory="gridnet.status.service:make_status",
    demo="gridnet.status.demo:section",
)
