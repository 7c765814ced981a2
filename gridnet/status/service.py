"""The status listener as a service."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService
from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.protocols.policies import WrappingFactory
from twisted.web.server import Request
from twisted.web.server import Site as WebSite
from zope.interface import implementer

from gridnet.listener import listener
from gridnet.site import Site
from gridnet.status.config import StatusConfig
from gridnet.status.resource import make_root


class _BoundedRequest(Request):
    """A request that is cut off when its body grows too long, instead of filling the disk."""

    _octets = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Called by twisted.web: more of the body."""
        self._octets += len(data)
        channel: Any = self.channel  # it knows the site before the request does
        if self._octets > channel.site.max_body_octets:
            self.loseConnection()
        else:
            super().handleContentChunk(data)


class _Quiet(WebSite):
    """
    Keeps no access log: the pages are polled, and the log is for people.

    :ivar max_body_octets: of a request.
    """

    noisy = False

    def __init__(self, root: Any, config: StatusConfig) -> None:
        super().__init__(root, _BoundedRequest, timeout=config.idle_timeout_seconds)
        self.max_body_octets = config.max_body_octets

    def log(self, request: object) -> None:
        """Called by twisted.web for each request."""


@implementer(IProtocolNegotiationFactory)
class _Limited(WrappingFactory):
    """Turns away connections that are too many."""

    noisy = False

    def __init__(self, pages: WebSite, limit: int) -> None:
        super().__init__(pages)
        self._limit = limit

    def acceptableProtocols(self) -> list[bytes]:
        """Called by Twisted: what is spoken over TLS with browsers, which offer something."""
        return [b"http/1.1"]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Called by Twisted for each connection."""
        if len(self.protocols) >= self._limit:
            return None
        return super().buildProtocol(addr)


def make_status(config: StatusConfig, site: Site) -> IService:
    """The status listener of *site*."""
    factory = _Limited(_Quiet(make_root(site, config), config), config.max_connections)
    service = listener(config.listen, factory, site.reactor, "status.listen")

    def bound(address: IAddress) -> None:
        host = getattr(address, "host", "")
        site.announce("status", f"http://{host}:{getattr(address, 'port', 0)}/status")

    site.starting(service.listening.addCallback(bound))
    return IService(service)
