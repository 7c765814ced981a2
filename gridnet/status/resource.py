"""The resources of the status listener.  Read-only, and off every hot path."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from jinja2 import Environment
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from twisted.internet.interfaces import IPullProducer, IReactorTime
from twisted.web.http import SERVICE_UNAVAILABLE
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request
from twisted.web.util import Redirect
from zope.interface import implementer

from gridnet.interfaces import IListMaster
from gridnet.site import Site
from gridnet.status.config import StatusConfig
from gridnet.status.report import json_pieces, site_report

_TEMPLATES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _template(name: str) -> str:
    return files("gridnet.status").joinpath("templates", name).read_text("utf-8")


class _Page(Resource):
    isLeaf = True
    content_type = "text/plain; charset=utf-8"

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._site = site

    def _now(self) -> float:
        return IReactorTime(self._site.reactor).seconds()

    def body(self, request: Request) -> bytes:
        """The page's octets."""
        raise NotImplementedError

    def announce(self, request: Request) -> None:
        """Say what the page is."""
        request.setHeader(b"Content-Type", self.content_type.encode("ascii"))
        request.setHeader(b"Cache-Control", b"no-store")

    def render_GET(self, request: Request) -> bytes | int:
        """Called by twisted.web (HEAD too)."""
        self.announce(request)
        return self.body(request)


class StatusPage(_Page):
    """``/status``: the site for people."""

    content_type = "text/html; charset=utf-8"

    def __init__(self, site: Site, config: StatusConfig) -> None:
        super().__init__(site)
        self._config = config
        self._template = _TEMPLATES.from_string(_template("status.html"))

    def body(self, request: Request) -> bytes:
        """HTML."""
        report = site_report(self._site, self._now(), self._config.max_rows)
        pages = sorted(name.decode("ascii") for name in self._site.status.pages)
        # With the event mirror in this process the tables follow their lists.
        live = self._site.find(IListMaster) is not None
        return self._template.render(
            report, pages=pages, live=live, max_rows=self._config.max_rows
        ).encode("utf-8")


@implementer(IPullProducer)
class _Pieces:
    """Writes the pieces of a page as its reader takes them."""

    def __init__(self, pieces: Iterator[str], request: Request) -> None:
        self._pieces = pieces
        self._request = request

    def resumeProducing(self) -> None:
        """Called by the transport: there is room for the next piece."""
        piece = next(self._pieces, None)
        if piece is None:
            self._request.unregisterProducer()
            self._request.finish()
        else:
            self._request.write(piece.encode("utf-8"))

    def stopProducing(self) -> None:
        """Called by the transport: the reader is gone."""
        self._pieces = iter(())


class StatusJson(_Page):
    """``/status.json``: the site for programs."""

    content_type = "application/json"

    def render_GET(self, request: Request) -> int:
        """JSON, in pieces; see :func:`gridnet.status.report.json_pieces`."""
        self.announce(request)
        pieces = json_pieces(self._site, self._now())
        request.registerProducer(_Pieces(pieces, request), False)
        return NOT_DONE_YET


class Metrics(_Page):
    """``/metrics``: Prometheus text."""

    content_type = CONTENT_TYPE_LATEST

    def body(self, request: Request) -> bytes:
        """Every collector on the board."""
        return generate_latest(self._site.status.metrics)


class Health(_Page):
    """``/healthz``: 200 and ``ok``, or 503 and a line for each component that is not well."""

    def body(self, request: Request) -> bytes:
        """Plain text."""
        failures = self._site.status.failures()
        if not failures:
            return b"ok\n"
        request.setResponseCode(SERVICE_UNAVAILABLE)
        return "".join(f"{name}: {text}\n" for name, text in failures.items()).encode("utf-8")


class _Root(Resource):
    """Finds the pages that components bring, whenever they put them on the board."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._pages = site.status.pages

    def getChild(self, path: bytes, request: Request) -> IResource:
        """Called by twisted.web for a name without a static child."""
        return self._pages.get(path) or super().getChild(path, request)


def make_root(site: Site, config: StatusConfig) -> Resource:
    """The tree of all pages, those that components bring included."""
    root = _Root(site)
    root.putChild(b"", Redirect(b"/status"))
    root.putChild(b"status", StatusPage(site, config))
    root.putChild(b"status.json", StatusJson(site))
    root.putChild(b"metrics", Metrics(site))
    root.putChild(b"healthz", Health(site))
    return root
