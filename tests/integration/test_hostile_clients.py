"""
Hostile clients against a running dispatcher: memory stays bounded, and others are still served.

``GRIDNET_IDLE_CONNECTIONS`` sets how many connections stay idle (5000 is the full number).
"""

from __future__ import annotations

import http.client
import os
import resource
import socket
import ssl
import time
from contextlib import ExitStack

import psutil
from twisted.trial.unittest import SynchronousTestCase

from tests.integration.demo_process import DemoProcess
from tests.ports import free_block

IDLE = int(os.environ.get("GRIDNET_IDLE_CONNECTIONS", "1000"))
#: What the process may grow by, whatever is thrown at it here.
GROWTH_OCTETS = 150_000_000
LOOKUP = "/Service/dispd.cgi?service=Echo"


class HostileClientTests(SynchronousTestCase):
    """Bad behaviour costs its owner, nobody else."""

    def setUp(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = min(hard, max(soft, 2 * IDLE + 500))
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.demo = DemoProcess(free_block(100))
        self.addCleanup(self.demo.kill)
        self.process = psutil.Process(self.demo.process.pid)
        self.before = self.process.memory_info().rss
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def connect(self, data: bytes = b"") -> socket.socket:
        """A connection that has said *data*."""
        connection = socket.create_connection(("127.0.0.1", self.demo.base), 20)
        self.stack.callback(connection.close)
        if data:
            connection.sendall(data)
        return connection

    def send_until_cut_off(self, connection: socket.socket, data: bytes) -> None:
        """
        Send *data* again and again; the server must end that by itself.

        It hears a refused client out for a little while, lest a reset overtake its last words.
        """
        deadline = time.monotonic() + 60
        try:
            while time.monotonic() < deadline:
                connection.sendall(data)
        except OSError:
            return
        self.fail("never cut off")

    def assert_others_are_served(self) -> None:
        """A well-behaved client gets its answer, plain and over TLS, and memory is bounded."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for connection in (
            http.client.HTTPConnection("127.0.0.1", self.demo.base, timeout=20),
            http.client.HTTPSConnection("127.0.0.1", self.demo.base, timeout=20, context=context),
        ):
            connection.request("GET", LOOKUP, headers={"Dispatch-Mode": "INFORMATION_ONLY"})
            reply = connection.getresponse()
            reply.read()
            connection.close()
            self.assertEqual(reply.status, 200)
        self.assertLess(self.process.memory_info().rss - self.before, GROWTH_OCTETS)

    def test_idle_connections(self) -> None:
        """A thousand (or more) that say nothing, and as many that stop after a request."""
        for number in range(IDLE):
            self.connect(b"" if number % 2 else f"GET {LOOKUP} HTTP/1.1\r\nHost: x\r\n".encode())
        self.assert_others_are_served()

    def test_half_open_tls(self) -> None:
        """The first octets of a handshake, and nothing more."""
        for _ in range(200):
            self.connect(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20))
        self.assert_others_are_served()

    def test_endless_heads(self) -> None:
        """Header after header, until the limit: 431 or the like, and the end."""
        connection = self.connect(f"GET {LOOKUP} HTTP/1.1\r\nHost: x\r\n".encode())
        self.send_until_cut_off(connection, b"X-More: " + b"y" * 1000 + b"\r\n")
        self.assert_others_are_served()

    def test_slow_heads(self) -> None:
        """A hundred clients that send an octet now and then."""
        slow = [self.connect(b"GET / HT") for _ in range(100)]
        for _ in range(5):
            for connection in slow:
                connection.sendall(b"T")
            time.sleep(0.05)  # the pace of the slow clients, not a wait for something
        self.assert_others_are_served()

    def test_huge_bodies_that_nobody_wants(self) -> None:
        """A look-up has no use for one: it is bounded, whatever length is claimed."""
        connection = self.connect(
            f"POST {LOOKUP} HTTP/1.1\r\nHost: x\r\nDispatch-Mode: INFORMATION_ONLY\r\n"
            "Content-Length: 100000000000\r\n\r\n".encode()
        )
        self.send_until_cut_off(connection, bytes(65536))
        self.assert_others_are_served()

    def test_clients_that_do_not_read(self) -> None:
        """Pipelines of requests whose replies pile up: the client is no longer read."""
        request = f"GET {LOOKUP} HTTP/1.1\r\nHost: x\r\nDispatch-Mode: INFORMATION_ONLY\r\n\r\n"
        for _ in range(5):
            connection = self.connect()
            connection.setblocking(False)
            try:
                for _ in range(20_000):
                    connection.send(request.encode() * 10)
            except BlockingIOError:
                pass
        self.assert_others_are_served()
