"""A site with an event mirror in this process, and a list whose changes a test makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from twisted.application.service import MultiService
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import implementer

from gridnet.component import config_classes
from gridnet.config import parse
from gridnet.interfaces import IObjectSource
from gridnet.site import Site, make_site
from gridnet.table.model import Entry
from gridnet.table.server_info import parse as parse_server

reactor: Any = installed_reactor


class RunningSite:
    """
    A site of a test, with a status listener and an event mirror.

    :param sections: those of further components.
    """

    def __init__(
        self,
        directory: Path,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        **mirror: Any,
    ) -> None:
        document = {
            **(sections or {}),
            "site": {"name": "test", "state_dir": str(directory / "state")},
            "status": {"listen": "tcp:0:interface=127.0.0.1"},
            "mirror": {"listen": "tcp:0:interface=127.0.0.1", "wind_down_seconds": 0.2, **mirror},
        }
        config = parse(tomli_w.dumps(document), config_classes(), directory)
        self.site: Site
        self.service: MultiService
        self.site, self.service = make_site(config, reactor)
        self.mirror: Any = self.service.getServiceNamed("mirror")

    def start(self) -> Deferred[Any]:
        self.service.privilegedStartService()
        self.service.startService()
        return self.site.ready()

    def stop(self) -> Deferred[Any]:
        return maybeDeferred(self.service.stopService) if self.service.running else Deferred()

    @property
    def address(self) -> str:
        found: str = self.site.addresses["mirror"]["gridnet"]
        return found

    def put(self, port: int, rate: float = 100) -> None:
        info = parse_server(f"STANDALONE 127.0.0.1:{port} R={rate}")
        self.site.table.put(Entry("Echo", info, owner="me"))


@implementer(IObjectSource)
class Numbers:
    """A list whose changes a test makes."""

    object_type = "numbers"

    def __init__(self) -> None:
        self.rows: dict[str, Mapping[str, Any]] = {"a": {"n": 1}}
        self.subscribers: list[Callable[[str, Any], None]] = []

    def snapshot(self) -> Mapping[str, Mapping[str, Any]]:
        return dict(self.rows)

    def subscribe(self, changed: Any) -> Callable[[], None]:
        self.subscribers.append(changed)
        return lambda: self.subscribers.remove(changed)

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        self.rows[key] = row
        for subscriber in list(self.subscribers):
            subscriber(key, row)
