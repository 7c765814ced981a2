"""How a client finds a server that works: those that hang, are slow, or are alternates."""

from __future__ import annotations

import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import installing, wire
from gridnet.scire.client import rpc
from gridnet.scire.client.command import _servers
from gridnet.scire.client.config import ClientConfig
from gridnet.scire.client.rpc import Servers, Unreachable
from gridnet.scire.config import ScireConfig
from gridnet.scire.faults import ScireFault
from tests.scire.processes import ProcessMixin

#: Longer than a test may take: whoever waits for so long has not found out by himself.
_FOR_EVER = 3600.0
_PATIENCE = 60.0  # seconds
#: What a server that does nothing is given for a connection, or for saying that it is there.
_SOON = 2.0  # seconds


class _Request(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        """Called by the standard library."""
        call = wire.parse_call(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            octets = wire.format_answer(self.server.answer(call.method))
        except ScireFault as fault:
            octets = wire.format_fault(fault)
        self.send_response(200)
        self.send_header("Content-Length", str(len(octets)))
        if self.server.closing:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, format: str, *args: Any) -> None:
        """Called by the standard library: nothing to say."""


class Server(ThreadingHTTPServer):
    """
    One that answers every call with its name.

    :ivar closing: it ends each connection with its answer.
    """

    daemon_threads = True
    closing = False

    def __init__(self, name: str, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.name = name
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://127.0.0.1:{self.server_address[1]}/RPC2"

    def answer(self, method: str) -> str:
        """What it says."""
        self.asked.append(method)
        return self.name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called by the standard library: clients may go when they like."""


class Silent(Server):
    """One that answers nothing."""

    def answer(self, method: str) -> str:
        """Never."""
        threading.Event().wait(_FOR_EVER)
        return ""


class Slow(Server):
    """One that answers a call after it has been asked twice whether it is there."""

    def __init__(self, name: str, context: ssl.SSLContext) -> None:
        self.pings = threading.Semaphore(0)
        super().__init__(name, context)

    def answer(self, method: str) -> str:
        """What it says, in time."""
        if method == "scire.ping":
            self.pings.release()
        else:
            for _ in range(2):
                self.pings.acquire(timeout=_PATIENCE)
        return super().answer(method)


class SwitchTests(ProcessMixin, SynchronousTestCase):
    """The next server is taken when one does not work, and only then."""

    def setUp(self) -> None:
        place = self.place()
        config = ScireConfig()
        installing.create_authority(config, place, "test fleet")
        installing.create_server_certificate(config, place, ["127.0.0.1"])
        self.context = ssl.create_default_context(cafile=str(place / config.tls.fleet_ca))
        self.shown = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.shown.load_cert_chain(place / config.tls.certificate, place / config.tls.key)
        self.switched: list[str] = []

    def make(self, kind: type[Server], name: str) -> Server:
        server = kind(name, self.shown)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return server

    def servers(
        self,
        *urls: str,
        connect: float = _PATIENCE,
        call: float = _FOR_EVER,
        failback: float = 0.0,
    ) -> Servers:
        stopping = threading.Event()
        self.addCleanup(stopping.set)
        made = Servers(urls, self.context, connect, call, failback, Random(1), stopping, 0.1)
        made.pauses = (0.0,)
        made.switched = lambda url, reason: self.switched.append(reason)
        self.addCleanup(made.close)
        return made

    def call(self, servers: Servers, method: str, *params: Any) -> Any:
        """A call that may take some rounds, on a machine with so much else to do."""
        for _ in range(20):
            try:
                return servers.call(method, *params)
            except Unreachable:
                continue
        return self.fail(f"no server answered: {self.switched}")

    def test_a_server_that_takes_connections_and_does_nothing_with_them(self) -> None:
        """As one that is stopped, or hangs: its kernel takes connections all the same."""
        with socket.create_server(("127.0.0.1", 0)) as hanging:
            url = f"https://127.0.0.1:{hanging.getsockname()[1]}/RPC2"
            good = self.make(Server, "good")
            servers = self.servers(url, good.url, connect=_SOON)
            self.assertEqual(self.call(servers, "scire.hello"), "good")
        self.assertRegex(self.switched[0], "timed out")

    def test_a_server_that_speaks_tls_and_answers_nothing(self) -> None:
        silent, good = self.make(Silent, "silent"), self.make(Server, "good")
        servers = self.servers(silent.url, good.url, connect=_SOON)
        self.assertEqual(self.call(servers, "scire.hello"), "good")
        self.assertIn("neither the call nor a ping is answered", self.switched[0])

    def test_a_server_that_goes_silent_in_a_conversation(self) -> None:
        first, good = self.make(Server, "first"), self.make(Server, "good")
        servers = self.servers(first.url, good.url, connect=_SOON)
        self.call(servers, "scire.hello")
        servers._take(0, "test")
        self.assertEqual(self.call(servers, "scire.hello"), "first")
        silent = threading.Event()
        first.answer = lambda method: str(silent.wait(_FOR_EVER))  # type: ignore[method-assign]
        self.addCleanup(silent.set)
        self.assertEqual(self.call(servers, "scire.next_job", ""), "good")

    def test_a_server_that_takes_its_time_is_not_left(self) -> None:
        slow, other = self.make(Slow, "slow"), self.make(Server, "other")
        self.patch(rpc, "_ASK_AGAIN_SECONDS", 0)
        servers = self.servers(slow.url, other.url)
        self.assertEqual(servers.call("scire.hello"), "slow")
        self.assertEqual(servers.call("scire.ping"), "slow")
        self.assertEqual((self.switched, other.asked), ([], []))

    def test_patience_ends(self) -> None:
        """A server that is there, but never comes to the end of a call."""
        slow = self.make(Slow, "slow")
        never = threading.Event()
        self.addCleanup(never.set)
        slow.answer = lambda method: str(  # type: ignore[method-assign]
            method == "scire.ping" or never.wait(_FOR_EVER)
        )
        servers = self.servers(slow.url, call=0.5)
        with self.assertRaises(Unreachable):
            servers.call("scire.hello")

    def test_an_answer_that_ends_its_connection(self) -> None:
        server = self.make(Server, "closing")
        server.closing = True
        servers = self.servers(server.url)
        for _ in range(3):
            self.assertEqual(servers.call("scire.hello"), "closing")
        self.assertEqual(self.switched, [])

    def test_the_usual_keys_leave_a_hanging_server_within_five_seconds(self) -> None:
        config = ClientConfig()
        self.assertLessEqual(config.doubt_seconds * 1.2 + config.connect_seconds, 5.0)

    def test_only_an_alternate_is_left_for_the_first(self) -> None:
        servers = self.servers("https://a/", "https://b/", "https://c/", failback=-1.0)
        for index, url, expected in ((1, "b", "b"), (2, "c", "a"), (0, "a", "a")):
            servers.learn(["https://a/", "https://b/", "https://c/"], {"https://a/", "https://b/"})
            servers._take(index, "test")
            self.assertEqual(servers.url, f"https://{url}/")
            servers.fail_back()
            self.assertEqual(servers.url, f"https://{expected}/")

    def test_the_order_that_spreads_a_fleet_is_remembered(self) -> None:
        directory = self.place()
        config = ClientConfig(servers=("https://a/", "https://z/"), directory=directory)
        self.assertEqual(_servers(config), ["https://a/", "https://z/"])
        (directory / "servers.json").write_text('["https://b/", "https://a/"]')
        self.assertEqual(_servers(config), ["https://b/", "https://a/", "https://z/"])
        moved = ClientConfig(servers=("https://new/",), directory=directory)
        self.assertEqual(_servers(moved), ["https://new/", "https://b/", "https://a/"])
        Path(directory / "servers.json").write_text("[")
        self.assertEqual(_servers(config), ["https://a/", "https://z/"])
