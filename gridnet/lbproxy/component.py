"""The LB proxy as a component."""

from gridnet.component import Component
from gridnet.lbproxy.config import LbproxyConfig

COMPONENT = Component(
    name="lbproxy",
    summary="job events: stored, queried, streamed, forwarded",
    config=LbproxyConfig,
    factory="gridnet.lbproxy.service:make_lbproxy",
    demo="gridnet.lbproxy.demo:section",
)
