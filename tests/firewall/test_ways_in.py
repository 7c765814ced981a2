"""Every way in to a server, over real sockets: who is sent where, and gets through."""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from gridnet.dispatch.tls import self_signed
from tests.firewall.test_site import HttpClient, SiteTestCase, relayed

LAUNCHER = """\
[launcher]
interface = "127.0.0.1"
"""
FILTER = "/usr/bin/tr a-z A-Z"
#: Whoever comes from loopback is inside unless it says so.
OUTSIDE = {
    "Client-Revision": "7.0",
    "Client-Mode": "STATEFUL_CAPABLE",
    "NCBI-External": "Y",
}
FIREWALL = {**OUTSIDE, "Accepted-Server-Types": "FIREWALL"}
LOOK_UP = {"Dispatch-Mode": "INFORMATION_ONLY"}
POINT = re.compile(r"127\.0\.0\.1 (\d+) ([0-9A-F]{8})(\$?)")


def said_at(port: int, ticket: int) -> bytes:
    """What a program at loopback *port* makes of a shout behind *ticket*."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(ticket.to_bytes(4, "big") + b"shout")
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            return stream.read()


class WayInTests(SiteTestCase):
    """A site with servers of each kind; everybody is outside."""

    more = LAUNCHER

    async def start(self) -> None:
        self.secure_port = self.serve_tls()
        # The definitions are read when the site starts.
        await super().start()
        path = self.directory / "servrc.cfg"
        with path.open("a") as file:
            file.write(f"Secure[0] STANDALONE 127.0.0.1:{self.secure_port} L=no S=yes $=yes\n")
            file.write(
                f"Filter[0] NCBID 127.0.0.1:{self.http} '' L=no S=yes | /usr/bin/tr a-z A-Z\n"
            )
            file.write("Gone[0] STANDALONE 127.0.0.1:9 L=no R=0\n")
        daemon = next(each for each in self.service if each.name == "lbsmd")
        await daemon.watch.reload()

    def serve_tls(self) -> int:
        """A server that speaks TLS and says everything again; its port."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        certificate, key = self_signed(directory, "127.0.0.1", datetime.now(UTC))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with context.wrap_socket(connection, server_side=True) as secure:
                    while data := secure.recv(65536):
                        secure.sendall(data)

        Thread(target=serve, daemon=True).start()
        port: int = listening.getsockname()[1]
        return port

    async def ask(
        self, service: str, headers: dict[str, str], path: str = "/Service/dispd.cgi"
    ) -> tuple[int, dict[str, str]]:
        """Status and headers of one request."""
        target = f"{path}?service={service}&address=x&platform=y"
        client = HttpClient(self.http)
        status, found, _ = await deferToThread(client.ask, "GET", target, headers)
        return status, dict(found)

    async def point(self, service: str, headers: dict[str, str]) -> tuple[int, int, bool]:
        """Port, ticket, and whether TLS follows."""
        status, found = await self.ask(service, headers)
        self.assertEqual(status, 200, found)
        match = POINT.fullmatch(found["connection-info"])
        assert match is not None, found
        return int(match[1]), int(match[2], 16), bool(match[3])

    def test_a_look_up_gives_what_the_client_can_reach(self) -> Deferred[None]:
        """Outsiders and firewall clients get one wrapped entry that hides nothing but the way."""

        async def scenario() -> None:
            for headers in ({**OUTSIDE, **LOOK_UP}, {**FIREWALL, **LOOK_UP}):
                status, found = await self.ask("ECHO", headers)
                self.assertEqual(status, 200)
                place = f"127.0.0.1:{self.echo.getHost().port}"
                self.assertTrue(
                    found["server-info-1"].startswith(f"FIREWALL {place} STANDALONE"), found
                )
            status, found = await self.ask("Inside", {**FIREWALL, **LOOK_UP})
            self.assertNotIn("server-info-1", found)

        return Deferred.fromCoroutine(scenario())

    def test_a_stand_alone_server_through_the_relay(self) -> Deferred[None]:
        """The port suits the client: regular, fallback, or that of clients without a firewall."""

        async def scenario() -> None:
            for headers, ports in (
                (FIREWALL, self.firewall),
                ({**FIREWALL, "NCBI-Firewall-Ports": "0"}, self.firewall),
                ({**FIREWALL, "NCBI-Firewall-Ports": f"22 {self.fallback[1]}"}, [self.fallback[1]]),
                ({**FIREWALL, "NCBI-Firewall-Ports": "22 443"}, self.firewall),
                (OUTSIDE, self.relay),
            ):
                port, ticket, secure = await self.point("ECHO", headers)
                self.assertIn(port, ports)
                self.assertFalse(secure)
                there = ("127.0.0.1", port, ticket)
                self.assertEqual(await deferToThread(relayed, there, b"hello"), b"hello")
                # Once.
                again = await deferToThread(relayed, there, b"hello")
                self.assertEqual(again[:5], b"NCBI ")

        return Deferred.fromCoroutine(scenario())

    def test_a_program_through_the_relay(self) -> Deferred[None]:
        """The dispatcher has it launched; the relay shows it its own ticket."""

        async def scenario() -> None:
            port, ticket, _ = await self.point("Filter", FIREWALL)
            self.assertIn(port, self.firewall)
            self.assertEqual(await deferToThread(said_at, port, ticket), b"SHOUT")

        return Deferred.fromCoroutine(scenario())

    def test_a_program_without_the_relay(self) -> Deferred[None]:
        """Whoever reaches the NCBID server itself is sent to the program's own port."""

        async def scenario() -> None:
            headers = {"Client-Revision": "7.0", "Connection-Mode": "STATEFUL"}
            status, found = await self.ask("Filter", headers, "/Service/ncbid.cgi")
            self.assertEqual(status, 200, found)
            match = POINT.fullmatch(found["connection-info"])
            assert match is not None, found
            port, ticket = int(match[1]), int(match[2], 16)
            self.assertNotIn(port, (*self.firewall, *self.relay, *self.fallback))
            self.assertEqual(await deferToThread(said_at, port, ticket), b"SHOUT")

        return Deferred.fromCoroutine(scenario())

    def test_a_secure_server_through_the_relay(self) -> Deferred[None]:
        """The ticket in the clear, then TLS with the server, of which the relay sees nothing."""

        async def scenario() -> None:
            port, ticket, secure = await self.point("Secure", FIREWALL)
            self.assertTrue(secure)

            def talk() -> bytes:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                with socket.create_connection(("127.0.0.1", port), 20) as connection:
                    connection.sendall(ticket.to_bytes(4, "big"))
                    with context.wrap_socket(connection) as layer:
                        layer.sendall(b"secret")
                        return layer.recv(100)

            self.assertEqual(await deferToThread(talk), b"secret")

        return Deferred.fromCoroutine(scenario())

    def test_what_cannot_be_reached_is_said(self) -> Deferred[None]:
        """Unknown, inside, down."""

        async def scenario() -> None:
            for service, status in (("Nothing", 404), ("Inside", 503), ("Gone", 503)):
                found, headers = await self.ask(service, FIREWALL)
                self.assertEqual((service, found), (service, status))
                self.assertIn("dispatcher-failures", headers)

        return Deferred.fromCoroutine(scenario())
