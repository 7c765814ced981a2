"""The LB proxy as a component."""

from gridnet.component import Command, Component

COMPONENT = Component(
    name="lbproxy",
    summary="job events: stored, queried, streamed, forwarded",
    config="gridnet.lbproxy.config:LbproxyConfig",
    factory="gridnet.lbproxy.service:make_lbproxy",
    demo="gridnet.lbproxy.demo:section",
    demo_tour="gridnet.lbproxy.demo:show",
    commands=(
        Command("lb", "log, query and watch job events", "gridnet.lbproxy.command:main"),
        Command("lbproxy", "purge and load an LB proxy", "gridnet.lbproxy.upkeep:main"),
    ),
)
