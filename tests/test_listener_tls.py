"""TLS endpoints, and clients that offer protocols (ALPN) as curl and HTTP libraries do."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from gridnet.dispatch.tls import self_signed
from gridnet.listener import ListeningReactor, listener
from gridnet.scire.tls import PromptPort

reactor: Any = _reactor
OFFERS: tuple[list[str], ...] = (["h2", "http/1.1"], ["h2"], [])


class _Greeting(Protocol):
    transport: Any

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.transport.write(b"welcome")


class _Page(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        """Called by Twisted."""
        return b"welcome"


class TlsEndpointTests(TestCase):
    """``ssl:`` endpoints."""

    timeout = 120

    def setUp(self) -> None:
        """Make a certificate."""
        directory = Path(self.mktemp())
        directory.mkdir()
        self.certificate, self.key = self_signed(directory, "127.0.0.1", datetime.now(UTC))

    async def serve(self, factory: Any, own_ports: bool) -> int:
        """Listen; the port."""
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"
        place = ListeningReactor(reactor, PromptPort) if own_ports else reactor
        service = listener(endpoint, factory, place)
        service.startService()
        self.addCleanup(service.stopService)
        address: Any = await service.listening
        return int(address.port)

    def said(self, port: int, offered: list[str]) -> tuple[str | None, bytes]:
        """What is negotiated with a client that offers these, and what it hears."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if offered:
            context.set_alpn_protocols(offered)
        with (
            socket.create_connection(("127.0.0.1", port), 60) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return secure.selected_alpn_protocol(), secure.recv(100)

    async def test_what_names_no_protocol_is_served_without_one(self) -> None:
        for own_ports in (False, True):
            port = await self.serve(Factory.forProtocol(_Greeting), own_ports)
            for offered in OFFERS:
                found = await deferToThread(self.said, port, offered)
                self.assertEqual(found, (None, b"welcome"), offered)

    async def test_a_web_site_names_its_own(self) -> None:
        site = Site(_Page())
        port = await self.serve(site, True)
        for offered, expected in zip(OFFERS, ("http/1.1", None, None), strict=True):
            protocol, answer = await deferToThread(self.said, port, offered)
            self.assertEqual(protocol, expected)
            self.assertIn(b" 200 OK\r\n", answer)

    async def test_curl(self) -> None:
        curl = shutil.which("curl")
        self.assertIsNotNone(curl, "curl is not installed")
        port = await self.serve(Site(_Page()), True)
        command = [str(curl), "--silent", "--show-error", "--insecure", "--max-time", "60"]
        done = await deferToThread(
            subprocess.run, [*command, f"https://127.0.0.1:{port}/"], capture_output=True
        )
        self.assertEqual((done.stdout, done.stderr), (b"welcome", b""))
