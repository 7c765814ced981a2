"""The daemon that fills the service table, as a component."""

from gridnet.component import Command, Component
from gridnet.lbsmd.config import LbsmdConfig

COMPONENT = Component(
    name="lbsmd",
    summary="fills the service table from its configuration",
    config=LbsmdConfig,
    factory="gridnet.lbsmd.service:make_lbsmd",
    demo="gridnet.lbsmd.demo:section",
    commands=(
        Command(
            "check-config",
            "check files of service definitions",
            "gridnet.lbsmd.check_config:main",
        ),
        Command("lbsmc", "show the hosts and services of a daemon", "gridnet.lbsmd.tools:lbsmc"),
        Command("resolve", "look a service up, and say why", "gridnet.lbsmd.tools:resolve"),
    ),
)
