"""The job server as a component."""

from gridnet.component import Command, Component

COMPONENT = Component(
    name="scire",
    summary="work for machines that can only call out",
    config="gridnet.scire.config:ScireConfig",
    factory="gridnet.scire.service:make_scire",
    demo="gridnet.scire.demo:section",
    demo_company="gridnet.scire.demo:client",
    demo_tour="gridnet.scire.demo:show",
    commands=(
        Command("scire", "administer the job server", "gridnet.scire.command:main"),
        Command("scire-client", "fetch, run and report jobs", "gridnet.scire.client.command:main"),
    ),
)
