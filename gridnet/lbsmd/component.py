"""The daemon that fills the service table, as a component."""

from gridnet.component import Command, Component

COMPONENT = Component(
    name="lbsmd",
    summary="fills the service table from its configuration",
    config="gridnet.lbsmd.config:LbsmdConfig",
    factory="gridnet.lbsmd.service:make_lbsmd",
    demo="gridnet.lbsmd.demo:section",
    demo_company="gridnet.lbsmd.demo:second_host",
    commands=(
        Command(
            "check-config",
            "check files of service definitions",
            "gridnet.lbsmd.check_config:main",
        ),
        Command("lbsmc", "show the hosts and services of a daemon", "gridnet.lbsmd.tools:lbsmc"),
        Command(
            "why-down",
            "say who holds a host for down, and why",
            "gridnet.lbsmd.gossip.tools:why_down",
        ),
        Command(
            "gossip-key",
            "make a key for the gossip of a site",
            "gridnet.lbsmd.gossip.tools:gossip_key",
        ),
        Command(
            "lbsm-feedback",
            "keep clients away from servers, or rate them anew",
            "gridnet.lbsmd.feedback_tool:main",
        ),
        Command("port", "post the capacity behind a port", "gridnet.lbsmd.port_tool:main"),
        Command("resolve", "look a service up, and say why", "gridnet.lbsmd.tools:resolve"),
    ),
)
