"""The HTTP dispatcher as a component."""

from gridnet.component import Component

COMPONENT = Component(
    name="dispatch",
    summary="HTTP dispatcher: look-ups, relaying, dedicated connections",
    config="gridnet.dispatch.config:DispatchConfig",
    factory="gridnet.dispatch.service:make_dispatch",
    after=("lbsmd",),
    needs=("lbsmd",),
    demo="gridnet.dispatch.demo:section",
)
