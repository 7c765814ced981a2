"""The ticketed relay as a component."""

from gridnet.component import Command, Component

COMPONENT = Component(
    name="firewall",
    summary="ticketed relay: lets outside clients through to public services",
    config="gridnet.firewall.config:FirewallConfig",
    factory="gridnet.firewall.service:make_firewall",
    after=("lbsmd",),
    demo="gridnet.firewall.demo:section",
    commands=(
        Command(
            "relay",
            "show the relay's connections, end them, refuse clients",
            "gridnet.firewall.tools:main",
        ),
    ),
)
