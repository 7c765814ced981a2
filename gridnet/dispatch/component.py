"""The HTTP dispatcher as a component."""

from gridnet.component import Component
from gridnet.dispatch.config import DispatchConfig

COMPONENT = Component(
    name="dispatch",
    summary="HTTP dispatcher: look-ups, relaying, dedicated connections",
    config=DispatchConfig,
    factory="gridnet.dispatch.service:make_dispatch",
    after=("lbsmd",),
    needs=("lbsmd",),
    demo="gridnet.dispatch.demo:section",
)
