"""The status listener as a service."""

from __future__ import annotations

from twisted.application.service import IService
from twisted.internet.interfaces import IAddress
from twisted.web.server import Site as WebSite

from gridnet.listener import listener
from gridnet.site import Site
from gridnet.status.config import StatusConfig
from gridnet.status.resource import make_root


class _Quiet(WebSite):
    """Keeps no access log: the pages are polled, and the log is for people."""

    def log(self, request: object) -> None:
        """Called by twisted.web for each request."""


def make_status(config: StatusConfig, site: Site) -> IService:
    """The status listener of *site*."""
    factory = _Quiet(make_root(site, config), timeout=config.idle_timeout_seconds)
    service = listener(config.listen, factory, site.reactor, "status.listen")

    def bound(address: IAddress) -> None:
        host = getattr(address, "host", "")
        site.announce("status", f"http://{host}:{getattr(address, 'port', 0)}/status")

    site.starting(service.listening.addCallback(bound))
    return IService(service)
