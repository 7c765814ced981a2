"""The status listener's pages."""

from __future__ import annotations

import json
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Counter
from twisted.internet import reactor
from twisted.internet.protocol import ClientCreator
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource, getChildForRequest
from twisted.web.server import NOT_DONE_YET
from twisted.web.test.requesthelper import DummyRequest

from gridnet.config import SiteConfig, SiteSection
from gridnet.dispatch.tls import self_signed
from gridnet.site import Site
from gridnet.status.config import StatusConfig
from gridnet.status.report import json_pieces, site_report
from gridnet.status.resource import make_root
from gridnet.status.service import make_status
from gridnet.table.model import Entry, Host
from gridnet.table.server_info import parse
from tests.dispatch.support import Conversation


class PageTests(SynchronousTestCase):
    """What each path gives."""

    def setUp(self) -> None:
        clock = Clock()
        clock.advance(1_000_000)
        directory = Path(self.mktemp()).absolute()
        self.site = Site(SiteConfig(SiteSection(name="a <site>"), {}, directory), clock)
        self.root = make_root(self.site, StatusConfig(max_rows=2))
        self.site.table.put_host(Host("10.1.1.1", 397.62, environment=(("db", "<x>"),)))

    def put(self, service: str, text: str, **more: Any) -> None:
        """Put an entry of *text*."""
        self.site.table.put(Entry(service, parse(text), **more))

    def get(self, path: str) -> tuple[int, Headers, bytes]:
        """Status, headers and body of a GET."""
        request = DummyRequest([part.encode() for part in path.strip("/").split("/")])
        body = getChildForRequest(self.root, request).render(request)
        if body is not NOT_DONE_YET:
            request.write(body)
        return request.responseCode or 200, request.responseHeaders, b"".join(request.written)

    def test_the_page_for_people_shows_services_and_escapes_what_it_shows(self) -> None:
        """Names come from files that others write."""
        self.put("svc", "HTTP 10.1.1.1:80 /<b>?x=1 R=1000")
        _, headers, body = self.get("status")
        self.assertEqual(headers.getRawHeaders("content-type"), ["text/html; charset=utf-8"])
        self.assertIn(b"/&lt;b&gt;?x=1", body)
        self.assertIn(b"a &lt;site&gt;", body)
        self.assertIn(b"397.62", body)
        self.assertNotIn(b"<b>?", body)

    def test_the_page_for_people_is_bounded(self) -> None:
        """The rest is in the JSON."""
        for port in range(1, 6):
            self.put("svc", f"STANDALONE 10.1.1.1:{port}")
        self.assertEqual(self.get("status")[2].count(b"<td>STANDALONE</td>"), 2)
        self.assertEqual(len(json.loads(self.get("status.json")[2])["services"]), 5)

    def test_the_json_of_a_large_table_comes_in_pieces(self) -> None:
        """So that others have their turn; what a reader who leaves has not taken is not made."""
        for number in range(1000):
            self.put("svc", f"STANDALONE 10.1.1.1:{number + 1}")
        pieces = list(json_pieces(self.site, 0.0))
        self.assertLess(max(map(len, pieces)), 100_000)
        report = json.loads("".join(pieces))
        self.assertEqual(report, site_report(self.site, 0.0, 10_000))
        self.assertEqual([len(report[name]) for name in ("services", "hosts")], [1000, 1])

    def test_the_json_tells_ratings_times_and_facts(self) -> None:
        """As the reference says."""
        self.put("svc", "STANDALONE 10.1.1.1:1 R=500", penalty=50.0, expires_at=1_000_030.0)
        self.site.status.facts["tank"] = lambda: {"litres": 3}
        report = json.loads(self.get("status.json")[2])
        (service,) = report["services"]
        self.assertAlmostEqual(service["rating"], 397.62 / 4)
        self.assertEqual((service["seconds_left"], service["penalty"]), (30.0, 50.0))
        self.assertEqual(report["components"], {"tank": {"litres": 3}})
        self.assertEqual(report["hosts"][0]["environment"], ["db=<x>"])

    def test_health_names_what_is_not_well(self) -> None:
        """200 and ok; or 503 and a line for each."""
        self.assertEqual(self.get("healthz")[::2], (200, b"ok\n"))
        self.site.status.checks["tank"] = lambda: "leaks"
        self.assertEqual(self.get("healthz")[::2], (503, b"tank: leaks\n"))

    def test_metrics_are_those_on_the_board(self) -> None:
        """In Prometheus text."""
        Counter("tanks", "Tanks seen.", registry=self.site.status.metrics).inc(3)
        self.assertIn(b"tanks_total 3.0", self.get("metrics")[2])

    def test_components_may_add_pages_at_any_time(self) -> None:
        """And the page for people links them."""

        class Pool(Resource):
            isLeaf = True

            def render_GET(self, request: DummyRequest) -> bytes:
                return b"wet"

        self.assertEqual(self.get("pool")[0], 404)
        self.site.status.pages[b"pool"] = Pool()
        self.assertEqual(self.get("pool")[::2], (200, b"wet"))
        self.assertIn(b'href="/pool"', self.get("status")[2])


class ListenerTests(TestCase):
    """The listener on a real socket."""

    timeout = 30

    async def start(self, listen: str = "tcp:0:interface=127.0.0.1", **config: Any) -> int:
        """Start a status listener; gives its port."""
        core: Any = reactor
        site = Site(SiteConfig(SiteSection(), {}, Path(self.mktemp()).absolute()), core)
        service: Any = make_status(StatusConfig(listen=listen, **config), site)
        service.privilegedStartService()
        service.startService()
        self.addCleanup(service.stopService)
        addresses = await site.ready()
        return urlsplit(addresses["status"]).port or 0

    async def client(self, port: int, data: bytes) -> Conversation:
        """A client that has said *data*."""
        creator = ClientCreator(reactor, Conversation)
        client: Conversation = await creator.connectTCP("127.0.0.1", port)
        client.write(data)
        return client

    async def test_connections_are_bounded(self) -> None:
        """Those over the limit are turned away; who leaves makes room."""
        port = await self.start(max_connections=2)
        first, second = [await self.client(port, b"") for _ in range(2)]
        self.assertEqual(await (await self.client(port, b"")).ended, b"")
        first.transport.loseConnection()
        await first.ended
        again = b""
        while not again:  # the listener hears of the end a little later
            client = await self.client(port, b"GET /healthz HTTP/1.0\r\n\r\n")
            again = await client.ended
        self.assertIn(b" 200 OK\r\n", again)
        second.transport.loseConnection()
        await second.ended

    async def test_bodies_are_bounded(self) -> None:
        """In chunks or of a length that is told: it is cut off, and fills no disk."""
        port = await self.start(max_body_octets=1000)
        for head, body in (
            (b"Content-Length: 100000000000", b"x" * 1001),
            (b"Transfer-Encoding: chunked", b"3e9\r\n" + b"x" * 1001),
        ):
            request = b"POST /status HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n\r\n"
            client = await self.client(port, request + body)
            self.assertEqual(await client.ended, b"")

    async def test_browsers_are_served_over_tls(self) -> None:
        """They offer the protocols that they speak, which Twisted must find an answer to."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        certificate, key = self_signed(directory, "127.0.0.1", datetime.now(UTC))
        listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        port = await self.start(listen)

        def ask() -> bytes:
            context = ssl.create_default_context(cafile=str(certificate))
            context.set_alpn_protocols(["h2", "http/1.1"])
            with (
                socket.create_connection(("127.0.0.1", port), 30) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                self.assertEqual(connection.selected_alpn_protocol(), "http/1.1")
                connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                return connection.recv(1000)

        self.assertIn(b" 200 OK\r\n", await deferToThread(ask))
