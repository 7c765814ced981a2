"""What NCBI's clients were captured sending, through the dispatcher's own protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch import upstream
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.front import Front
from gridnet.dispatch.tls import ClientTls, client_context
from gridnet.table.address_range import AddressRanges
from gridnet.table.model import Entry, ServiceTable
from gridnet.table.server_info import parse

CAPTURES = Path(__file__).parent.parent / "vectors" / "dispatch"
NOW = 1_795_313_379.0

#: The services that the captured clients asked for, as far as their requests tell.
SERVICES = """\
DemoStand STANDALONE 127.0.0.1:27510 L=no
DemoState STANDALONE 127.0.0.1:27510 L=no S=yes
DemoState HTTP 127.0.0.1:27512 /echo.cgi L=no
DemoHttp HTTP 127.0.0.1:27512 /echo.cgi?fixed=1 L=no
DemoFilter NCBID 127.0.0.1:27500 '' L=no
DemoMany STANDALONE 127.0.0.1:27520 L=no
DemoMany STANDALONE 127.0.0.1:27521 L=no
DemoMany STANDALONE 127.0.0.1:27522 L=no
DemoMany STANDALONE 127.0.0.1:27523 L=no
DemoMany STANDALONE 127.0.0.1:27524 L=no
DemoMany STANDALONE 127.0.0.1:27525 L=no
DemoMany STANDALONE 127.0.0.1:27526 L=no
DemoMixed STANDALONE 127.0.0.1:27510 L=no
DemoMixed NCBID 127.0.0.1:27500 '' L=no
DemoMixed HTTP 127.0.0.1:27512 /echo.cgi L=no
DemoFail STANDALONE 127.0.0.1:27514 L=no R=100000
DemoFail STANDALONE 127.0.0.1:27511 L=no R=10
DemoDown STANDALONE 127.0.0.1:27510 L=no
DemoDown STANDALONE 127.0.0.1:27515 L=no R=0
DemoDown STANDALONE 127.0.0.1:27516 L=no R=1000 !
DemoLocal STANDALONE 127.0.0.1:27510 L=yes
SeqFetch HTTP 127.0.0.1:27512 /echo.cgi L=no
ID1 STANDALONE 127.0.0.1:27513 L=no
blast4 HTTP_POST 127.0.0.1:27512 /echo.cgi L=no C=x-ncbi-data/x-asn-binary
"""

#: Look-up -> (status, the servers told: type and place; a set where they are drawn).
LOOKUPS: dict[str, tuple[int, list[str] | set[str]]] = {
    "asn2gb-firewall-1": (200, ["FIREWALL 127.0.0.1:27512 HTTP"]),
    "blastn-remote": (200, ["HTTP_POST 127.0.0.1:27512 /echo.cgi C=x-ncbi-data/x-asn-binary"]),
    "firewall.c-1": (200, ["FIREWALL 127.0.0.1:27510 STANDALONE"]),
    "firewall.cxx-1": (200, ["FIREWALL 127.0.0.1:27510 STANDALONE"]),
    "idfetch": (200, ["STANDALONE 127.0.0.1:27513"]),
    "lookup-affinity.cxx": (200, ["STANDALONE 127.0.0.1:27510"]),
    "lookup-client-host.cxx": (204, []),
    "lookup-external.c": (204, []),
    "lookup-firewall.c-1": (200, ["FIREWALL 127.0.0.1:27510 STANDALONE"]),
    "lookup-firewall.c-2": (204, []),
    "lookup-http-1.1.cxx": (200, ["STANDALONE 127.0.0.1:27510"]),
    "lookup-mask.c-1": (
        200,
        [
            "DemoStand STANDALONE 127.0.0.1:27510",
            "DemoState STANDALONE 127.0.0.1:27510",
            "DemoState HTTP 127.0.0.1:27512 /echo.cgi",
        ],
    ),
    "lookup-mask.c-2": (204, []),
    "lookup-next-http.cxx": (204, []),
    "lookup-next-ncbid.c": (204, []),
    "lookup-next.c-1": (200, {f"STANDALONE 127.0.0.1:{port}" for port in range(27523, 27527)}),
    "lookup-next.c-2": (200, ["STANDALONE 127.0.0.1:27526"]),
    "lookup-next.cxx-1": (200, {f"STANDALONE 127.0.0.1:{port}" for port in range(27523, 27527)}),
    "lookup-next.cxx-2": (200, ["STANDALONE 127.0.0.1:27526"]),
    "lookup-ok-down.c": (200, ["STANDALONE 127.0.0.1:27510", "STANDALONE 127.0.0.1:27515"]),
    "lookup-ok-suppressed.c": (200, ["STANDALONE 127.0.0.1:27510", "STANDALONE 127.0.0.1:27516"]),
    "lookup-promiscuous.cxx": (
        200,
        [f"STANDALONE 127.0.0.1:{port}" for port in (27510, 27515, 27516)],
    ),
    "lookup-reverse-dns.c": (200, ["DemoStand STANDALONE 127.0.0.1:27510"]),
    "lookup-server-count.cxx": (
        200,
        {f"STANDALONE 127.0.0.1:{port}" for port in range(27520, 27527)},
    ),
    "lookup-skip.c": (200, {f"STANDALONE 127.0.0.1:{port}" for port in range(27521, 27527)}),
    "lookup-stateless.c": (200, ["HTTP 127.0.0.1:27512 /echo.cgi"]),
    "lookup-types.c": (200, ["HTTP 127.0.0.1:27512 /echo.cgi"]),
    "lookup-types.cxx": (200, {"STANDALONE 127.0.0.1:27510", "NCBID 127.0.0.1:27500 ''"}),
    "lookup.c": (200, ["STANDALONE 127.0.0.1:27510"]),
    "lookup.cxx": (200, ["STANDALONE 127.0.0.1:27510"]),
    "relay-retry.cxx-1": (
        200,
        {"STANDALONE 127.0.0.1:27514", "STANDALONE 127.0.0.1:27511"},
    ),
    "relay-retry.cxx-4": (
        200,
        {"STANDALONE 127.0.0.1:27514", "STANDALONE 127.0.0.1:27511"},
    ),
}
#: Relayed request -> (port of its server, what the server is sent).
RELAYED = {
    "asn2gb-firewall-2": (27512, b"POST /echo.cgi?service=SeqFetch"),
    "blastn-remote-firewall": (27512, b"POST /echo.cgi?service=blast4"),
    "idfetch-stateless": (27513, b""),
    "relay-arguments.cxx": (27512, b"POST /echo.cgi?service=DemoHttp"),
    "relay-client-platform.c": (27512, b"POST /echo.cgi?service=DemoHttp"),
    "relay-http.c": (27512, b"POST /echo.cgi?service=DemoHttp"),
    "relay-ncbid.cxx": (27500, b"POST /Service/ncbid.cgi?service=DemoFilter"),
    "relay-retry.cxx-2": (27514, b""),
    "relay-retry.cxx-3": (27511, b""),
    "relay-standalone.c": (27510, b""),
    "relay-standalone.cxx": (27510, b""),
    "try-stateless.c-2": (27510, b""),
    "try-stateless.cxx-2": (27510, b""),
}
AUX = {
    "firewall-fallback-ports.cxx",
    "firewall-ncbid.c",
    "firewall-regular-ports.cxx",
    "firewall.c-2",
    "firewall.cxx-2",
    "try-stateless.c-1",
    "try-stateless.cxx-1",
}
NCBID = {"ncbid-stateful.c-1", "ncbid-stateful.cxx-1", "ncbid-stateless.c"}


def table() -> ServiceTable:
    """A table with :data:`SERVICES`."""
    found = ServiceTable()
    for line in SERVICES.splitlines():
        text, bang, _ = line.partition(" !")
        service, _, descriptor = text.partition(" ")
        if " R=" not in descriptor:
            descriptor += " R=1000"
        found.put(
            Entry(
                service,
                parse(f"{descriptor} T=30"),
                owner="127.0.0.1",
                static=True,
                penalty=100.0 if bang else 0.0,
            )
        )
    return found


def capture(name: str) -> bytes:
    """The octets of a captured request."""
    return (CAPTURES / f"{name}.http").read_bytes()


def descriptors(reply: bytes) -> list[str]:
    """The values of ``Server-Info-<n>`` in *reply*."""
    return [text.decode() for text in re.findall(rb"^Server-Info-\d+: (.*)\r$", reply, re.M)]


class CaptureCase(SynchronousTestCase):
    """A dispatcher without a socket, and servers that are pieces of string."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.front = Front(
            DispatchConfig(),
            self.clock,
            table(),
            AddressRanges.from_texts(["10/8"]),
            ClientTls(client_context(None), self.clock),
            "127.0.0.1",
            lambda: None,
            lambda: None,
        )
        #: (port, factory) of connections that the dispatcher wants to make.
        self.attempts: list[tuple[int, Any]] = []
        self.patch(upstream, "connect", self._connect)

    def _connect(
        self, reactor: Any, host: str, port: int, factory: Any, timeout_seconds: float
    ) -> Any:
        self.assertEqual(host, "127.0.0.1")
        self.attempts.append((port, factory))
        return self

    def disconnect(self) -> None:
        """Called on what :meth:`_connect` gives."""

    def ask(self, *pieces: bytes, host: str = "127.0.0.1") -> StringTransport:
        """A connection on which *pieces* have come."""
        address = IPv4Address("TCP", host, 40000)
        protocol = self.front.factory.buildProtocol(address)
        assert protocol is not None
        transport = _Transport(peerAddress=address)
        protocol.makeConnection(transport)
        for piece in pieces:
            protocol.dataReceived(piece)
        return transport

    def server(self) -> tuple[Any, _Transport]:
        """The latest attempt, connected."""
        _, factory = self.attempts[-1]
        protocol = factory.buildProtocol(None)
        transport = _Transport()
        protocol.makeConnection(transport)
        return protocol, transport


class _Transport(StringTransport):
    """Bears what TCP does: half-closes, and a producer that leaves twice."""

    ended = False

    def unregisterProducer(self) -> None:
        if self.producer is not None:
            super().unregisterProducer()

    def loseWriteConnection(self) -> None:
        self.ended = True

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class LookupTests(CaptureCase):
    """INFO, LIST and REVERSE."""

    def test_every_capture_is_in_a_table_here(self) -> None:
        """None is forgotten."""
        names = {path.name.removesuffix(".http") for path in CAPTURES.glob("*.http")}
        self.assertEqual(names, {*LOOKUPS, *RELAYED, *AUX, *NCBID})

    def test_each_look_up_is_told_its_servers(self) -> None:
        """The status, and who; however the request is cut."""
        for name, (status, wanted) in LOOKUPS.items():
            octets = capture(name)
            pieces = [octets[at : at + 7] for at in range(0, len(octets), 7)]
            for cut in ([octets], pieces):
                reply = self.ask(*cut).value()
                self.assertTrue(reply.startswith(b"HTTP/1.1 %d " % status), (name, reply))
                self.assertIn(b"\r\nService: ", reply)
                self.assertTrue(reply.endswith(b"\r\n\r\n"))
                infos = descriptors(reply)
                for text in infos:
                    self.assertTrue(parse(text.removeprefix(self._name(text))).time == 30, name)
                told = [text.partition(" L=")[0] for text in infos]
                if isinstance(wanted, set):
                    self.assertEqual(len(told), len(wanted) if "count" in name else len(set(told)))
                    self.assertLessEqual(set(told), wanted, name)
                    self.assertGreaterEqual(len(told), min(len(wanted), 3), name)
                else:
                    self.assertEqual(told, wanted, name)

    @staticmethod
    def _name(text: str) -> str:
        return f"{text.split()[0]} " if text.startswith("Demo") else ""

    def test_the_recorded_answers_are_ours(self) -> None:
        """Another dispatcher gave them, and the clients went on happily."""
        for name in ("lookup.c", "lookup-firewall.c-1", "lookup-mask.c-1"):
            recorded = (CAPTURES / f"{name}.reply").read_bytes()
            wanted = [self._parsed(text) for text in descriptors(recorded)]
            told = [self._parsed(text) for text in descriptors(self.ask(capture(name)).value())]
            self.assertEqual(told, wanted, name)

    def _parsed(self, text: str) -> tuple[str, object]:
        name = self._name(text)
        return name, parse(text.removeprefix(name))

    def test_connections_are_kept_as_the_client_asks(self) -> None:
        """One library wants them kept, the other does not know how."""
        kept = self.ask(capture("lookup.cxx"))
        self.assertIn(b"Connection: keep-alive\r\n", kept.value())
        self.assertFalse(kept.disconnecting)
        closed = self.ask(capture("lookup.c"))
        self.assertIn(b"Connection: close\r\n", closed.value())
        self.assertTrue(closed.disconnecting)

    def test_many_requests_in_one_segment_are_answered_in_order(self) -> None:
        """Pipelining."""
        transport = self.ask(capture("lookup.cxx") + capture("lookup-promiscuous.cxx"))
        heads = transport.value().split(b"\r\n\r\n")[:-1]
        self.assertEqual([len(descriptors(head)) for head in heads], [1, 3])

    def test_an_outsider_is_told_of_the_way_round(self) -> None:
        """The same request, from elsewhere."""
        reply = self.ask(capture("lookup.cxx"), host="192.0.2.9").value()
        self.assertEqual(
            descriptors(reply), ["FIREWALL 127.0.0.1:27510 STANDALONE L=no R=1000.00 S=no T=30"]
        )


class RelayTests(CaptureCase):
    """Requests that go on to a server."""

    def test_each_goes_to_the_server_that_it_means(self) -> None:
        """The body goes with it, and the reply comes back with what made it."""
        for name, (port, begin) in RELAYED.items():
            octets = capture(name)
            body = octets.partition(b"\r\n\r\n")[2]
            client = self.ask(octets)
            self.assertEqual(self.attempts[-1][0], port, name)
            protocol, server = self.server()
            sent = server.value()
            self.assertTrue(sent.startswith(begin), (name, sent))
            self.assertTrue(sent.endswith(body), name)
            if begin:
                protocol.dataReceived(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            else:
                self.assertEqual(sent, body, name)
                self.assertTrue(server.ended, name)
                protocol.dataReceived(b"hello")
                protocol.readConnectionLost()
            head, _, reply_body = client.value().partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 200 "), (name, head))
            self.assertEqual(reply_body, b"hello", name)
            self.assertRegex(head, rb"\r\nRelay-Path: DISPD -> [A-Z_]+ 127\.0\.0\.1:%d\r" % port)
            self.assertNotIn(b"Connection-Info", head)

    def test_the_recorded_answers_name_what_ours_do(self) -> None:
        """The server, as the client knows it, and the way to it."""
        for name in ("relay-standalone.c", "relay-http.c", "try-stateless.c-2"):
            recorded = (CAPTURES / f"{name}.reply").read_bytes()
            client = self.ask(capture(name))
            protocol, _ = self.server()
            if RELAYED[name][1]:
                protocol.dataReceived(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                protocol.readConnectionLost()
            reply = client.value()
            (wanted,), (told,) = descriptors(recorded), descriptors(reply)
            self.assertEqual(parse(told), parse(wanted), name)
            for path in re.findall(rb"\r\n(Relay-Path: .*)\r\n", recorded):
                self.assertIn(path, reply)

    def test_a_dead_server_is_named_so_that_the_client_avoids_it(self) -> None:
        """With a moment for T; the client's retry goes to its next choice."""
        client = self.ask(capture("relay-retry.cxx-2"))
        _, factory = self.attempts[-1]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        reply = client.value()
        self.assertTrue(reply.startswith(b"HTTP/1.1 502 "), reply)
        (used,) = re.findall(rb"\r\nUsed-Server-Info-1: (.*)\r\n", reply)
        info = parse(used.decode())
        self.assertEqual((info.port, info.time > NOW), (27514, True))
        self.assertIn(b"Dispatcher-Failures: ", reply)
        self.ask(capture("relay-retry.cxx-3"))
        self.assertEqual(self.attempts[-1][0], 27511)

    def test_a_service_that_is_gone_ends_it(self) -> None:
        """As it did for the captured client."""
        self.front.dispatcher.table.replace_owner("127.0.0.1", [])
        reply = self.ask(capture("relay-retry.cxx-3")).value()
        self.assertTrue(reply.startswith(b"HTTP/1.1 404 "), reply)
        self.assertIn(b"Dispatcher-Failures: ", reply)

    def test_a_service_without_a_server_ends_it(self) -> None:
        """503 and the reason."""
        everything = self.front.dispatcher.table.all_entries()
        for entry in everything:
            self.front.dispatcher.table.put(evolve(entry, penalty=100.0))
        reply = self.ask(capture("relay-standalone.c")).value()
        self.assertTrue(reply.startswith(b"HTTP/1.1 503 "), reply)
        self.assertIn(b"Dispatcher-Failures: ", reply)


class DedicatedTests(CaptureCase):
    """Requests for a connection of one's own, on a site without relay and launcher."""

    def test_without_a_relay_clients_are_asked_to_come_back_stateless(self) -> None:
        """Once, in a reply of status 200, without a body."""
        for name in sorted(AUX):
            reply = self.ask(capture(name)).value()
            self.assertTrue(reply.startswith(b"HTTP/1.1 200 "), (name, reply))
            self.assertEqual(reply.count(b"\r\nConnection-Info: TRY_STATELESS\r\n"), 1, name)
            self.assertTrue(reply.endswith(b"\r\n\r\n"), name)

    def test_without_a_launcher_no_program_is_run(self) -> None:
        """An error status and the reason; never a hint to come back."""
        for name in sorted(NCBID):
            reply = self.ask(capture(name)).value()
            self.assertRegex(reply, rb"^HTTP/1\.1 (404|503) ", name)
            self.assertIn(b"Dispatcher-Failures: ", reply, name)
            self.assertNotIn(b"Connection-Info", reply, name)


class BuiltinTests(CaptureCase):
    """What the dispatcher answers from itself."""

    def test_the_connection_checker_finds_its_page(self) -> None:
        """A Service header, and two phrases early in the body."""
        reply = self.ask(b"GET /Service/dispd.cgi?service=test&platform=x HTTP/1.0\r\n\r\n").value()
        head, _, body = reply.partition(b"\r\n\r\n")
        self.assertIn(b"\r\nService: test", head)
        self.assertIn(b"NCBI Dispatcher Test Page", body[:1024])
        self.assertIn(b"Welcome", body[:1024])

    def test_the_address_loader_gets_its_file(self) -> None:
        """In plain HTTP, without any dispatching header."""
        reply = self.ask(
            b"GET /Service/dispd.cgi?service=LOCAL_IPS&address=h&platform=x HTTP/1.0\r\n"
            b"User-Agent: ncbi_localip\r\n\r\n"
        ).value()
        self.assertTrue(reply.startswith(b"HTTP/1.1 200 "), reply)
        self.assertIn(b"10.0.0.0/8", reply.partition(b"\r\n\r\n")[2])
