"""The daemon in the demo site, and a second one that it gossips with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred

from gridnet.demo.backends import second_definitions
from gridnet.demo.host import DemoHost
from gridnet.demo.plan import ADDRESS, SECOND_ADDRESS, DemoPlan
from gridnet.lbsmd.gossip.keys import new_key_line, write_private
from gridnet.lbsmd.shared_table import PUBLIC_NAME
from gridnet.site import Site
from gridnet.table.model import Change, Host

GOSSIP_OFFSET, SECOND_GOSSIP_OFFSET = 30, 31
SECOND_NAME = "second-host"


def _key_file(plan: DemoPlan) -> Path:
    """The key of the demo's gossip, made at its first start."""
    path = plan.directory / "gossip.key"
    if not path.exists():
        write_private(path, new_key_line())
    return path


def section(plan: DemoPlan) -> Mapping[str, object]:
    """``[lbsmd]`` of the demo; its file may be edited while the demo runs."""
    return {
        "servrc": str(plan.servrc),
        "poll_seconds": 0.5,
        "feedback_socket": "",
        "shared_memory": PUBLIC_NAME if plan.heap else f"demo {plan.directory}",
        "gossip": {
            "interface": ADDRESS,
            "port": plan.port(GOSSIP_OFFSET),
            "key_file": str(_key_file(plan)),
        },
    }


def second_host(plan: DemoPlan, site: Site) -> IService:
    """A second host with a daemon, in a process of its own."""
    directory = plan.directory / SECOND_NAME
    directory.mkdir(mode=0o700, exist_ok=True)
    has_own_services = plan.servrc != plan.own_servrc
    (directory / "servrc.cfg").write_text("" if has_own_services else second_definitions(plan))
    document = {
        "site": {
            "name": "gridnet demo",
            "address": SECOND_ADDRESS,
            "state_dir": "state",
        },
        "lbsmd": {
            "servrc": "servrc.cfg",
            "directory": ".",
            "poll_seconds": 0.5,
            "feedback_socket": "",
            "gossip": {
                "interface": ADDRESS,
                "port": plan.port(SECOND_GOSSIP_OFFSET),
                "key_file": str(_key_file(plan)),
                "seeds": [f"{ADDRESS}:{plan.port(GOSSIP_OFFSET)}"],
            },
        },
    }
    known: Deferred[Any] = Deferred()

    def changed(changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change.after, Host) and change.after.address == SECOND_ADDRESS:
                end()
                known.callback(None)
                return

    end = site.table.subscribe(changed)
    return IService(DemoHost(plan, site, SECOND_NAME, document, known))
