"""The launcher as a component."""

from gridnet.component import Command, Component

COMPONENT = Component(
    name="launcher",
    summary="runs Unix filters as services",
    config="gridnet.launcher.config:LauncherConfig",
    factory="gridnet.launcher.service:make_launcher",
    demo="gridnet.launcher.demo:section",
    commands=(
        Command(
            "launcherd",
            "put one program behind one TCP port",
            "gridnet.launcher.launcherd.command:main",
        ),
        Command(
            "run",
            "run a program as a service of this host, from a batch job",
            "gridnet.launcher.batch.command:main",
        ),
    ),
)
