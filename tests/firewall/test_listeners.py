"""A relay whose ports are not plain TCP: TLS, and behind a proxy that says who connects."""

from __future__ import annotations

import random
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from gridnet.dispatch.tls import self_signed
from gridnet.firewall.checks import FWD_CHECK_PATH
from gridnet.firewall.movers import CopyMover
from gridnet.firewall.wire import reject_text
from gridnet.table.way_in import ConnectionPoint
from tests.firewall.test_site import HttpClient, SiteTestCase

REJECTION = reject_text()


def hear(connection: Any, octets: int) -> bytes:
    heard = bytearray()
    while len(heard) < octets and (data := connection.recv(65536)):
        heard += data
    return bytes(heard)


class TlsTests(SiteTestCase):
    """Everything from the ticket on is under TLS; Twisted moves the octets."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        certificate, key = self_signed(directory, "127.0.0.1", datetime.now(UTC))
        self.listen = f"ssl:{{port}}:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
        return super().setUp()

    def dial(self, port: int) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20))

    def test_a_conversation(self) -> Deferred[None]:
        said = random.Random(8).randbytes(300_000)

        async def scenario() -> None:
            point: ConnectionPoint = await self.office.reserve(self.wish())

            def talk() -> bytes:
                with self.dial(point.port) as connection:
                    connection.sendall(point.ticket.to_bytes(4, "big") + said)
                    return hear(connection, len(said))

            relay = next(each for each in self.service if each.name == "firewall")
            movers: list[type] = []
            make = relay.factory.make_mover

            def noted(leg: Any) -> Any:
                mover = make(leg)
                movers.append(type(mover))
                return mover

            relay.factory.make_mover = noted
            self.assertEqual(await deferToThread(talk), said)
            self.assertEqual(movers, [CopyMover])

        return Deferred.fromCoroutine(scenario())

    def test_a_wrong_ticket(self) -> Deferred[None]:
        async def scenario() -> None:
            def talk() -> bytes:
                with self.dial(self.firewall[0]) as connection:
                    connection.sendall(b"\1\2\3\4")
                    return hear(connection, 1 << 20)

            self.assertEqual(await deferToThread(talk), REJECTION)

        return Deferred.fromCoroutine(scenario())


class ProxyTests(SiteTestCase):
    """A load balancer in front, which speaks the PROXY protocol."""

    listen = "haproxy:tcp:{port}:interface=127.0.0.1"
    more = "guess_limit = 3\nbind_client = true\n"

    def talk(self, peer: str, port: int, said: bytes, octets: int) -> bytes:
        """What the relay answers the client at *peer*."""
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            head = f"PROXY TCP4 {peer} 127.0.0.1 4000 {port}\r\n"
            connection.sendall(head.encode("ascii") + said)
            return hear(connection, octets)

    def test_the_client_is_who_the_proxy_says(self) -> Deferred[None]:
        async def scenario() -> None:
            point: ConnectionPoint = await self.office.reserve(self.wish(client="192.0.2.1"))
            said = point.ticket.to_bytes(4, "big") + b"hello"
            heard = await deferToThread(self.talk, "192.0.2.1", point.port, said, 5)
            self.assertEqual(heard, b"hello")
            relay = next(each for each in self.service if each.name == "firewall")
            self.assertEqual(relay.factory._unticketed, {})
            # Bound to the client: from elsewhere it is worth nothing.
            point = await self.office.reserve(self.wish(client="192.0.2.1"))
            said = point.ticket.to_bytes(4, "big") + b"hello"
            heard = await deferToThread(self.talk, "192.0.2.2", point.port, said, 1 << 20)
            self.assertEqual(heard, REJECTION)

        return Deferred.fromCoroutine(scenario())

    def test_its_own_probe_speaks_as_the_proxy_does(self) -> Deferred[None]:
        async def scenario() -> None:
            _, _, body = await deferToThread(
                HttpClient(self.http).ask, "POST", FWD_CHECK_PATH, {}, b"selftest\n"
            )
            lines = body.decode("ascii").splitlines()
            self.assertEqual(len(lines), len(self.firewall) + len(self.fallback))
            for line in lines:
                self.assertTrue(line.endswith("OK"), line)

        return Deferred.fromCoroutine(scenario())

    def test_a_guesser_is_refused_and_not_the_proxy(self) -> Deferred[None]:
        async def scenario() -> None:
            for _ in range(3):
                heard = await deferToThread(
                    self.talk, "198.51.100.9", self.firewall[0], b"\1\2\3\4", 1 << 20
                )
                self.assertEqual(heard, REJECTION)
            self.assertTrue(self.office.refusal("198.51.100.9"))
            self.assertEqual(self.office.refusal("127.0.0.1"), "")

        return Deferred.fromCoroutine(scenario())

    def test_zeros_of_a_stranger_do_not_open_control_mode(self) -> Deferred[None]:
        """Although the proxy itself would be trusted."""

        async def scenario() -> None:
            heard = await deferToThread(
                self.talk, "198.51.100.9", self.firewall[0], b"\0\0\0\0" + b"\0" * 16, 1 << 20
            )
            self.assertEqual(heard, REJECTION)

        return Deferred.fromCoroutine(scenario())
