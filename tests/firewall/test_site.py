"""The relay in a whole site: what dispatchers, connection checkers and operators meet."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gridnet.component import config_classes
from gridnet.config import parse
from gridnet.errors import ConfigError, PassageRefusedError, TicketError
from gridnet.firewall.wire import REJECT_LINE, reject_text
from gridnet.interfaces import IDispatcherPage, IPenaltyBox, ITicketOffice
from gridnet.site import Site, make_site
from gridnet.table.server_info import ServerInfo, ServerType
from gridnet.table.way_in import ConnectionPoint, WayInRequest
from tests.firewall.fixture import Talker, dial
from tests.ports import free_ports

reactor: Any = _reactor

SERVICES = """\
test_unused[0] STANDALONE 127.0.0.1:9 L=no
Bounce[0] STANDALONE 127.0.0.1:{echo} L=no
ECHO[0]   STANDALONE 127.0.0.1:{echo} L=no S=yes
Inside[0] STANDALONE 127.0.0.1:{echo} L=yes
"""

SITE = """\
[site]
address = "127.0.0.1"
state_dir = "state"
local_networks = []

[lbsmd]
servrc = "servrc.cfg"

[dispatch]
listen = "tcp:{http}:interface=127.0.0.1"

[firewall]
listen = "{listen}"
ports = "{firewall}"
relay_ports = "{relay}"
fallback_ports = "{fallback}"
stop_seconds = 0.1
penalize_inside = true
unused_limit = 3
{more}
"""


@implementer(IHalfCloseableProtocol)
class Echo(Protocol):
    """Says everything again."""

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()  # type: ignore[union-attr]

    def writeConnectionLost(self) -> None:
        pass

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]


class SiteTestCase(TestCase):
    """A site with a daemon, a dispatcher and a relay."""

    timeout = 120
    more = ""
    listen = "tcp:{port}:interface=127.0.0.1"

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.echo = reactor.listenTCP(0, Factory.forProtocol(Echo), interface="127.0.0.1")
        ports = free_ports(8)
        self.http, self.firewall, self.relay = ports[0], ports[1:4], ports[4:6]
        self.fallback = ports[6:]
        return Deferred.fromCoroutine(self.start())

    async def start(self) -> None:
        echo = self.echo.getHost().port
        (self.directory / "servrc.cfg").write_text(SERVICES.format(echo=echo))
        text = SITE.format(
            http=self.http,
            firewall=" ".join(map(str, self.firewall)),
            relay=" ".join(map(str, self.relay)),
            fallback=" ".join(map(str, self.fallback)),
            more=self.more,
            listen=self.listen,
        )
        config = parse(text, config_classes(), self.directory)
        self.site: Site
        self.service: MultiService
        self.site, self.service = make_site(config, reactor)
        self.service.privilegedStartService()
        self.service.startService()
        await self.site.ready()

    async def stop(self) -> None:
        await maybeDeferred(self.service.stopService)

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def end() -> None:
            await self.stop()
            await maybeDeferred(self.echo.stopListening)
            # Aborted connections are lost one turn later.
            await deferLater(reactor, 0.02, lambda: None)

        return Deferred.fromCoroutine(end())

    def wish(self, service: str = "Bounce", **changes: Any) -> WayInRequest:
        server = ServerInfo(ServerType.STANDALONE, "127.0.0.1", self.echo.getHost().port)
        return WayInRequest(
            service, server, changes.pop("client", "192.0.2.1"), firewall_mode=True, **changes
        )

    @property
    def office(self) -> Any:
        return self.site.find(ITicketOffice)

    async def through(self, point: ConnectionPoint, said: bytes) -> bytes:
        """What comes back through *point*."""
        talker = Talker(point.ticket.to_bytes(4, "big") + said, stay=True)
        await dial(point.port, talker)
        await talker.hears(len(said))
        talker.transport.abortConnection()
        await talker.over
        return bytes(talker.heard)


class HttpClient:
    """As much of HTTP as the checker speaks; it blocks, so threads call it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        secure: bool = True,
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """One request on a connection of its own: status, headers, body."""
        sock = socket.create_connection(("127.0.0.1", self.port), 10)
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            sock = context.wrap_socket(sock)
        lines = [f"{method} {target} HTTP/1.0", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        with sock:
            sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + body)
            reply = b""
            while data := sock.recv(65536):
                reply += data
        head, _, rest = reply.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        pairs = [tuple(field.split(":", 1)) for field in fields]
        return int(status.split()[1]), [(n.lower(), v.strip()) for n, v in pairs], rest


def probe(port: int) -> bytes:
    """The first line that *port* answers two octets with, connection open."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"\r\n")
        heard = b""
        while b"\n" not in heard and len(heard) < 200:
            data = sock.recv(200)
            if not data:
                break
            heard += data
    return heard.partition(b"\r\n")[0]


def relayed(point: tuple[str, int, int], said: bytes) -> bytes:
    """What the connection point gives back for *said*."""
    host, port, ticket = point
    with socket.create_connection((host, port), 10) as sock:
        sock.sendall(ticket.to_bytes(4, "big") + said)
        heard = b""
        while len(heard) < len(said):
            data = sock.recv(65536)
            if not data:
                break
            heard += data
    return heard


class ConnectionCheckerTests(SiteTestCase):
    """All that the C++ Toolkit's connection checker looks at (ncbi_conn_test.cpp)."""

    DISPD = "/Service/dispd.cgi?service={}&address=here(127.0.0.1)&platform=x86_64-linux"

    def test_every_stage_passes(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stages())

    async def _stages(self) -> None:
        client = HttpClient(self.http)

        async def ask(*words: Any, **keys: Any) -> tuple[int, Any, bytes]:
            found: tuple[int, Any, bytes] = await deferToThread(client.ask, *words, **keys)
            return found

        # 0: nobody here may claim that the client is inside NCBI.
        status, _, _ = await ask("GET", "/Service/getenv.cgi")
        self.assertNotEqual(status, 200)

        # 2: HTTP itself.
        status, _, body = await ask("GET", "/Service/index.html", secure=False)
        self.assertEqual(status, 200)
        self.assertTrue(body.strip())

        # 3: the dispatcher, asked as by a browser.
        status, headers, body = await ask("GET", self.DISPD.format("test"))
        self.assertEqual(status, 200)
        self.assertIn("service", dict(headers))
        start = body[:1024].lower()
        self.assertIn(b"ncbi dispatcher test page", start)
        self.assertIn(b"welcome", start)

        # 4: a stateless service.
        stateless = {"Client-Revision": "7.0", "Client-Mode": "STATELESS_ONLY"}
        information = {**stateless, "Dispatch-Mode": "INFORMATION_ONLY"}
        status, headers, _ = await ask("GET", self.DISPD.format("Bounce"), information)
        self.assertEqual(status, 200)
        self.assertIn("server-info-1", dict(headers))
        status, _, body = await ask(
            "POST", self.DISPD.format("Bounce"), stateless, b"NcbiBounceTest\n"
        )
        self.assertEqual((status, body.split()[:1]), (200, [b"NcbiBounceTest"]))

        # 5: which ports there are, for clients in firewall mode and for others.
        points = {}
        for relay_mode in (False, True):
            status, headers, body = await ask(
                "POST",
                "/IEB/ToolBox/NETWORK/fwd_check.cgi",
                {"NCBI-RELAY": str(relay_mode).upper()},
                b"selftest\n",
            )
            self.assertEqual((status, dict(headers)["content-type"]), (200, "text/plain"))
            points[relay_mode] = body.decode("ascii")
        self.assertEqual(
            points[False],
            "".join(f"127.0.0.1:{port}\tOK\r\n" for port in self.firewall)
            + "".join(f"127.0.0.1:{port}\tFB-OK\r\n" for port in self.fallback),
        )
        self.assertEqual(points[True], "".join(f"127.0.0.1:{port}\tOK\r\n" for port in self.relay))

        # 6: each of them answers.
        for port in (*self.firewall, *self.fallback, *self.relay):
            self.assertEqual(await deferToThread(probe, port), REJECT_LINE)

        # 7: a stateful service through a ticket, in each firewall mode.
        said = b"0123456789abcdef" * 50 + bytes(8)
        for mode, expected in (
            ({"Accepted-Server-Types": "FIREWALL", "NCBI-Firewall-Ports": "0"}, self.firewall),
            ({"Accepted-Server-Types": "FIREWALL"}, self.firewall),
            (
                {
                    "Accepted-Server-Types": "FIREWALL",
                    "NCBI-Firewall-Ports": f"{self.fallback[1]} 1",
                },
                self.fallback[1:],
            ),
            ({}, self.relay),
        ):
            common = {"Client-Revision": "7.0", "NCBI-External": "Y", **mode}
            stateful = {**common, "Client-Mode": "STATEFUL_CAPABLE"}
            status, headers, _ = await ask(
                "GET", self.DISPD.format("ECHO"), {**stateful, "Dispatch-Mode": "INFORMATION_ONLY"}
            )
            self.assertEqual(status, 200)
            descriptor = dict(headers)["server-info-1"]
            self.assertTrue(descriptor.startswith("FIREWALL "), descriptor)
            status, headers, _ = await ask(
                "GET", self.DISPD.format("ECHO"), {**stateful, "Used-Server-Info": descriptor}
            )
            self.assertEqual(status, 200)
            host, port, ticket = dict(headers)["connection-info"].split()
            self.assertIn(int(port), expected)
            self.assertEqual(len(ticket), 8)
            heard = await deferToThread(relayed, (host, int(port), int(ticket, 16)), said)
            self.assertEqual(heard, said)

        # Only after a failure: something that is not there says so at once.
        status, _, _ = await ask("HEAD", "/NcbiTest0123456789abcdef", secure=False)
        self.assertEqual(status, 404)

    def test_people_see_a_page(self) -> Deferred[None]:
        async def scenario() -> None:
            client = HttpClient(self.http)
            status, headers, body = await deferToThread(
                client.ask, "GET", "/IEB/ToolBox/NETWORK/fwd_check.cgi"
            )
            self.assertEqual(status, 200)
            self.assertIn("text/html", dict(headers)["content-type"])
            for port in (*self.firewall, *self.relay, *self.fallback):
                self.assertIn(f'data-port="{port}"'.encode("ascii"), body)
            page = self.site.find(IDispatcherPage, "/IEB/ToolBox/NETWORK/fwd_check.cgi")
            verifyObject(IDispatcherPage, page)
            self.assertIn(b"firewall", self.site.status.pages)

        return Deferred.fromCoroutine(scenario())

    def test_a_browser_finds_out_whether_a_port_answers(self) -> Deferred[None]:
        async def scenario() -> None:
            talker = Talker(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", stay=True)
            await dial(self.firewall[0], talker)
            await talker.peer_end
            self.assertTrue(talker.heard.startswith(b"HTTP/1.0 200 OK\r\n"))
            self.assertIn(b"Access-Control-Allow-Origin: *", talker.heard)
            talker.transport.abortConnection()
            await talker.over

        return Deferred.fromCoroutine(scenario())


class OfficeTests(SiteTestCase):
    """What dispatchers of the same site ask of the relay."""

    def test_the_office_offers_what_others_look_for(self) -> None:
        verifyObject(ITicketOffice, self.office)
        verifyObject(IPenaltyBox, self.site.find(IPenaltyBox))
        self.assertEqual(
            self.site.addresses["firewall"],
            {
                "address": "127.0.0.1",
                "ports": self.firewall,
                "relay_ports": self.relay,
                "fallback_ports": self.fallback,
            },
        )

    def test_a_public_server_is_reached(self) -> Deferred[None]:
        async def scenario() -> None:
            point = await self.office.reserve(self.wish())
            self.assertEqual(await self.through(point, b"hello"), b"hello")

        return Deferred.fromCoroutine(scenario())

    def test_nothing_else_is(self) -> Deferred[None]:
        async def scenario() -> None:
            elsewhere = ServerInfo(ServerType.STANDALONE, "127.0.0.1", 22)
            for wish in (
                self.wish("Inside"),
                self.wish("Nobody"),
                WayInRequest("Bounce", elsewhere, "192.0.2.1", firewall_mode=True),
            ):
                with self.assertRaises(PassageRefusedError) as caught:
                    await self.office.reserve(wish)
                self.assertEqual(caught.exception.http_status, 403)

        return Deferred.fromCoroutine(scenario())

    def test_a_program_that_was_launched_is_reached_where_it_waits(self) -> Deferred[None]:
        async def scenario() -> None:
            at = ConnectionPoint("127.0.0.1", self.echo.getHost().port, 0x41424344)
            server = ServerInfo(ServerType.STANDALONE, "127.0.0.1", 9)
            wish = WayInRequest("test_unused", server, "192.0.2.1", firewall_mode=True, launched=at)
            point = await self.office.reserve(wish)
            talker = Talker(point.ticket.to_bytes(4, "big"), stay=True)
            await dial(point.port, talker)
            await talker.hears(4)
            self.assertEqual(talker.heard, b"ABCD")
            talker.transport.abortConnection()
            await talker.over

        return Deferred.fromCoroutine(scenario())

    def test_who_asks_and_never_comes_is_refused_after_a_restart_too(self) -> Deferred[None]:
        async def scenario() -> None:
            for _ in range(3):
                await self.office.reserve(self.wish(client="192.0.2.66"))
            office = self.office
            for ticket in list(office.store._book.live()):
                office.store._book._tickets[ticket.number] = ticket.__class__(
                    ticket.number, ticket.passage, 0.0
                )
            await office.expire()
            with self.assertRaises(PassageRefusedError) as caught:
                await office.reserve(self.wish(client="192.0.2.66"))
            self.assertIn("never made", str(caught.exception))
            await office.reserve(self.wish(client="192.0.2.67"))
            await self.stop()
            await self.start()
            self.assertIsNot(self.office, office)
            with self.assertRaises(PassageRefusedError):
                await self.office.reserve(self.wish(client="192.0.2.66"))
            self.assertTrue((self.directory / "state" / ".dispd.msg").exists())

        return Deferred.fromCoroutine(scenario())

    def test_the_dispatcher_says_why(self) -> Deferred[None]:
        async def scenario() -> None:
            self.office.penalties.order("127.0.0.1", reactor.seconds())
            client = HttpClient(self.http)
            status, headers, _ = await deferToThread(
                client.ask,
                "GET",
                ConnectionCheckerTests.DISPD.format("ECHO"),
                {
                    "Client-Revision": "7.0",
                    "Client-Mode": "STATEFUL_CAPABLE",
                    "Accepted-Server-Types": "FIREWALL",
                },
            )
            self.assertEqual(status, 403)
            self.assertIn("are refused", dict(headers)["dispatcher-failures"])

        return Deferred.fromCoroutine(scenario())


class RulesTests(SiteTestCase):
    """Rules of the site file."""

    more = """
[[firewall.rules]]
action = "deny"
services = ["ECHO"]
clients = ["192.0.2.0/24"]

[[firewall.rules]]
action = "allow"
targets = ["127.0.0.1:1-65535"]
services = ["Anything"]
"""

    def test_rules_bend_the_default(self) -> Deferred[None]:
        async def scenario() -> None:
            with self.assertRaises(PassageRefusedError):
                await self.office.reserve(self.wish("ECHO"))
            await self.office.reserve(self.wish("ECHO", client="198.51.100.1"))
            await self.office.reserve(self.wish("Anything"))

        return Deferred.fromCoroutine(scenario())


class AskingTests(SiteTestCase):
    """A dispatcher on another host asks by control record."""

    async def ask(self, wish: WayInRequest) -> ConnectionPoint:
        config = parse(
            f'[site]\nstate_dir = "other"\n[firewall]\nask = "127.0.0.1:{self.firewall[0]}"\n',
            config_classes(),
            self.directory,
        )
        other, _ = make_site(config, reactor)
        point: ConnectionPoint = await other.find(ITicketOffice).reserve(wish)
        return point

    def test_it_gets_a_ticket(self) -> Deferred[None]:
        async def scenario() -> None:
            point = await self.ask(self.wish())
            self.assertIn(point.port, self.firewall)
            self.assertEqual(await self.through(point, b"hello"), b"hello")
            point = await self.ask(self.wish(server_ticket=0x31323334))
            talker = Talker(point.ticket.to_bytes(4, "big"), stay=True)
            await dial(point.port, talker)
            await talker.hears(4)
            self.assertEqual(talker.heard, b"1234")
            talker.transport.abortConnection()
            await talker.over

        return Deferred.fromCoroutine(scenario())

    def test_it_is_refused_like_anybody(self) -> Deferred[None]:
        async def scenario() -> None:
            with self.assertRaises(PassageRefusedError):
                await self.ask(self.wish("Inside"))
            six = ServerInfo(ServerType.STANDALONE, "::1", 1)
            with self.assertRaises(TicketError):
                await self.ask(WayInRequest("Bounce", six, "192.0.2.1"))

        return Deferred.fromCoroutine(scenario())

    def test_what_the_cross_site_client_of_the_toolkit_does(self) -> Deferred[None]:
        async def scenario() -> None:
            # Record and connection in one: flag 2, and data right behind the text.
            echo = self.echo.getHost().port
            record = bytes(4) + bytes([127, 0, 0, 1]) + echo.to_bytes(2, "big")
            record += bytes.fromhex("0003 00000000 00000000") + b"Bounce\0"
            talker = Talker(record + b"more", stay=True)
            await dial(self.firewall[0], talker)
            await talker.hears(132)
            self.assertEqual(talker.heard[8:12], bytes(4))
            self.assertEqual(talker.heard[128:], b"more")
            talker.transport.abortConnection()
            await talker.over
            # Without it: a ticket, and the connection closed right behind the record.
            ticketed = Talker(record[:11] + b"\1" + record[12:], stay=True)
            await dial(self.firewall[0], ticketed)
            await ticketed.peer_end
            self.assertEqual(len(ticketed.heard), 16)
            self.assertNotEqual(ticketed.heard[8:12], bytes(4))
            ticketed.transport.abortConnection()
            await ticketed.over

        return Deferred.fromCoroutine(scenario())

    def test_services_are_looked_up_and_nonsense_is_refused(self) -> Deferred[None]:
        async def scenario() -> None:
            for host_and_port, text, code in (
                (bytes(6), b"Bounce\0", None),
                (bytes(6), b"Nobody\0", 4),
                (bytes(6), b"\0", 1),
                (bytes([10, 0, 0, 1, 0, 22]), b"Bounce\0", 6),
                (bytes([127, 0, 0, 1, 0, 22]), b"", 6),
                (bytes(6), b"no name\0", 1),
            ):
                record = bytes(4) + host_and_port + b"\0\1" + bytes(4) + b"\xff" * 4 + text
                talker = Talker(record, stay=True)
                await dial(self.firewall[0], talker)
                await talker.peer_end
                port, flags = talker.heard[4:6], talker.heard[6:8]
                if code is None:
                    self.assertNotEqual(port, bytes(2))
                else:
                    self.assertEqual((port, flags), (bytes(2), bytes([0, code])), text)
                talker.transport.abortConnection()
                await talker.over

        return Deferred.fromCoroutine(scenario())


class DistrustTests(SiteTestCase):
    """Who is not trusted gets no control mode."""

    def test_zeros_are_rejected(self) -> Deferred[None]:
        async def scenario() -> None:
            factory = self.service.getServiceNamed("firewall").factory
            factory.is_trusted = lambda peer: False
            talker = Talker(bytes(4) + bytes(20), stay=True)
            await dial(self.firewall[0], talker)
            await talker.peer_end
            self.assertEqual(talker.heard, reject_text())
            talker.transport.abortConnection()
            await talker.over

        return Deferred.fromCoroutine(scenario())

    def test_configurations_that_cannot_work_are_refused(self) -> None:
        for text in (
            'ports = "x"',
            'listen = "tcp:{nothing}"',
            'listen = "carrier-pigeon:{port}"',
            'ask = "nowhere"',
            'control_networks = ["10.0.0.1/8"]',
            '[[firewall.rules]]\naction = "perhaps"',
        ):

            def make(text: str = text) -> None:
                config = parse(f"[firewall]\n{text}\n", config_classes(), self.directory)
                make_site(config, reactor)

            self.assertRaises(ConfigError, make)
