"""The event mirror as a component."""

from gridnet.component import Command, Component

COMPONENT = Component(
    name="mirror",
    summary="live copies of object lists, of this site and of a Grid Engine",
    config="gridnet.mirror.config:MirrorConfig",
    factory="gridnet.mirror.service:make_mirror",
    after=("lbsmd", "lbproxy", "scire", "firewall", "launcher", "dispatch"),
    demo="gridnet.mirror.demo:section",
    commands=(
        Command("mirror", "list and follow the lists of a master", "gridnet.mirror.command:main"),
        Command("jobs", "a live table of a qmaster's jobs", "gridnet.mirror.jobs_command:main"),
    ),
)
