"""TLS and plain HTTP on one port, without what old clients cannot bear."""

from __future__ import annotations

import datetime
import os
import resource
import signal
import ssl
import stat
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import ClientCreator
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.tls import (
    ClientTls,
    ServerTls,
    client_context,
    self_signed,
    server_context,
)
from gridnet.errors import ConfigError
from tests.dispatch.support import (
    HERE,
    INFO,
    Bench,
    Conversation,
    make_front,
    make_table,
    serving,
)
from tests.dispatch.test_relay import Backend, Stage, reply

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
APPLICATION_DATA = 0x17


def permissive() -> ssl.SSLContext:
    """A client that believes any certificate, as the released ones do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class MemoryClient:
    """A TLS client without a socket: feeds a connection of ours, and looks at each record."""

    def __init__(self, bench: Any, protocol: Any, transport: Any, context: ssl.SSLContext) -> None:
        self.protocol = protocol
        self.transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing)
        self.records: list[int] = []  # types of the records that came
        self.records_before_last_word = 0

    def exchange(self) -> None:
        """Pass on what either side has to say."""
        data = self._outgoing.read()
        if data:
            self.protocol.dataReceived(data)
        came = self.transport.value()
        self.transport.clear()
        self._incoming.write(came)
        while came:
            size = int.from_bytes(came[3:5], "big")
            self.records.append(came[0])
            came = came[5 + size :]

    def shake_hands(self) -> None:
        """The handshake, to its end."""
        for _ in range(5):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.exchange()
            else:
                self.records_before_last_word = len(self.records)
                self.exchange()
                return
        raise AssertionError("the handshake does not end")

    def say(self, data: bytes) -> bytes:
        """Send *data*; gives what is answered."""
        self.tls.write(data)
        self.exchange()
        answer = b""
        while True:
            try:
                piece = self.tls.read(65536)
            except ssl.SSLWantReadError:
                return answer
            if not piece:
                return answer
            answer += piece


class OnePortTests(SynchronousTestCase):
    """The first octet decides."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        self.context = server_context(*self_signed(directory, HERE, NOW))
        self.bench = Bench(tls_handshake_seconds=5.0, linger_seconds=2.0, keep_alive_seconds=20.0)
        self.bench.factory.tls = ServerTls(self.context, self.bench.clock)

    def client(self, context: ssl.SSLContext | None = None) -> MemoryClient:
        """A TLS client, connected."""
        protocol, transport = self.bench.connect()
        return MemoryClient(self.bench, protocol, transport, context or permissive())

    def test_plain_and_tls(self) -> None:
        """Each client is answered in its own way."""
        plain, transport = self.bench.connect()
        request = b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n"
        plain.dataReceived(request)
        client = self.client()
        client.shake_hands()
        self.assertEqual(client.say(request), transport.value())
        self.assertEqual(client.say(request * 2), transport.value() * 2)
        self.assertEqual(client.tls.version(), "TLSv1.3")

    def test_no_session_tickets(self) -> None:
        """After the handshake no record comes that the client has not asked for."""
        client = self.client()
        client.shake_hands()
        # Session tickets would have come as answer to the client's last word of the handshake.
        self.assertEqual(client.records[client.records_before_last_word :], [])
        self.assertEqual(client.say(b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n")[:8], b"HTTP/1.1")
        self.assertEqual(client.records[client.records_before_last_word :], [APPLICATION_DATA])

    def test_tls_12(self) -> None:
        """The oldest version that is spoken; no tickets there either."""
        context = permissive()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        client = self.client(context)
        client.shake_hands()
        self.assertEqual(client.tls.version(), "TLSv1.2")
        session = client.tls.session
        assert session is not None
        self.assertFalse(session.has_ticket)

    def test_a_handshake_cut_anywhere(self) -> None:
        """The first octet may come alone."""
        client = self.client()
        with self.assertRaises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        hello = client._outgoing.read()
        for octet in hello:
            client.protocol.dataReceived(bytes([octet]))
        client.exchange()
        client.shake_hands()

    def test_half_open_tls(self) -> None:
        """A client that begins and never goes on is closed, plain ones stay."""
        protocol, transport = self.bench.connect()
        protocol.dataReceived(b"\x16\x03\x01")
        other, other_transport = self.bench.connect()
        other.dataReceived(b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n")
        self.bench.pass_time(7)
        self.assertTrue(transport.aborted)
        self.assertFalse(other_transport.over)
        self.assertEqual(self.bench.factory.refused["tls handshake"], 1)

    def test_handshakes_at_once_are_bounded(self) -> None:
        """The longest one makes room; those that are done do not count."""
        self.bench = Bench(max_tls_handshakes=3)
        self.bench.factory.tls = ServerTls(self.context, self.bench.clock)
        done = [self.client() for _ in range(5)]
        for client in done:
            client.shake_hands()
        begun = [self.bench.connect() for _ in range(5)]
        for protocol, _ in begun:
            protocol.dataReceived(b"\x16\x03\x01")
        self.assertEqual([t.aborted for _, t in begun], [True, True, False, False, False])
        self.assertEqual(self.bench.factory.refused["tls handshake"], 2)
        begun[2][0].connectionLost()
        protocol, _ = self.bench.connect()
        protocol.dataReceived(b"\x16\x03\x01")
        self.assertFalse(begun[3][1].aborted)
        for client in done:
            self.assertFalse(client.transport.over)

    def test_silence_behind_the_handshake(self) -> None:
        """It counts as a slow head: a good-bye, and no endless wait for the client's."""
        client = self.client()
        client.shake_hands()
        self.assertEqual(client.transport.value(), b"")
        self.bench.pass_time(22)
        self.assertNotEqual(client.transport.value(), b"")
        self.assertFalse(client.transport.aborted)
        self.bench.pass_time(61)
        self.assertTrue(client.transport.aborted)

    def test_garbage_in_the_handshake(self) -> None:
        """It costs that connection, with an alert and without a log entry."""
        protocol, transport = self.bench.connect()
        protocol.dataReceived(b"\x16\x03\x01\x00\x05hello")
        self.assertTrue(transport.disconnecting or transport.aborted)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_reset_behind_the_reply(self) -> None:
        """What the released clients do; nobody hears of it."""
        client = self.client()
        client.shake_hands()
        client.say(b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n")
        client.protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.bench.factory.open, 0)
        self.assertEqual(self.bench.factory.connections, set())
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_the_end_of_a_tls_connection(self) -> None:
        """A good-bye is sent; a client that does not return it is cut off."""
        client = self.client()
        client.shake_hands()
        answer = client.say(b"GET /now HTTP/1.0\r\nHost: x\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200"))
        self.assertEqual(client.tls.read(), b"")  # the good-bye, not a mere end
        self.bench.pass_time(70)
        self.assertTrue(client.transport.aborted)

    def test_switched_off(self) -> None:
        """Without TLS a handshake is malformed HTTP."""
        self.bench.factory.tls = None
        protocol, transport = self.bench.connect()
        protocol.dataReceived(b"\x16\x03\x01\x00\x05hello\r\n\r\n")
        self.assertIn(b"HTTP/1.1 400 ", transport.value())


class CertificateTests(SynchronousTestCase):
    """A certificate of our own making."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def test_it_is_made_once(self) -> None:
        """The second start finds the first one's."""
        certificate, key = self_signed(self.directory, "10.1.2.3", NOW)
        before = certificate.read_bytes(), key.read_bytes()
        self.assertEqual(self_signed(self.directory, "10.1.2.3", NOW), (certificate, key))
        self.assertEqual((certificate.read_bytes(), key.read_bytes()), before)

    def test_the_key_is_private(self) -> None:
        """Nobody else may read it, whatever the umask."""
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        _, key = self_signed(self.directory, HERE, NOW)
        self.assertEqual(stat.S_IMODE(key.stat().st_mode), 0o600)
        self.assertEqual(len(list(self.directory.iterdir())), 2)

    def test_it_names_this_host(self) -> None:
        """By address, so that a client can check it if it will."""
        certificate, _ = self_signed(self.directory, "10.1.2.3", NOW)
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
        self.assertEqual(addresses, ["127.0.0.1", "::1", "10.1.2.3"])

    def test_it_is_renewed(self) -> None:
        """One that is about to expire is replaced, a broken one too."""
        certificate, key = self_signed(self.directory, HERE, NOW)
        before = certificate.read_bytes()
        self_signed(self.directory, HERE, NOW + datetime.timedelta(days=3640))
        self.assertNotEqual(certificate.read_bytes(), before)
        for path in (certificate, key):
            path.write_text("nonsense")
            self_signed(self.directory, HERE, NOW)
            server_context(certificate, key)
        before = key.read_bytes()
        certificate.unlink()
        self_signed(self.directory, HERE, NOW)
        key.write_bytes(before)  # the key of another certificate
        self_signed(self.directory, HERE, NOW)
        server_context(certificate, key)

    def test_a_full_disk(self) -> None:
        """The fault names the directory; nothing half written is left."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGXFSZ, handler)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with self.assertRaises(ConfigError) as caught:
            self_signed(self.directory, HERE, NOW)
        self.assertEqual(caught.exception.faults[0].where, "site.state_dir")
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_unusable_ones(self) -> None:
        """The fault names the key of the configuration."""
        with self.assertRaises(ConfigError) as caught:
            server_context(self.directory / "none", self.directory / "none")
        self.assertEqual(caught.exception.faults[0].where, "dispatch.certificate")
        with self.assertRaises(ConfigError) as caught:
            client_context(self.directory / "none")
        self.assertEqual(caught.exception.faults[0].where, "dispatch.server_authorities")


class LoopbackTests(TestCase):
    """The same over real sockets."""

    timeout = 30

    def setUp(self) -> None:
        core: Any = reactor
        directory = Path(self.mktemp())
        directory.mkdir()
        table = make_table("bounce STANDALONE 127.0.0.1:7 L=no")
        self.front = make_front(table, core, DispatchConfig(drain_seconds=0.0))
        self.front.factory.tls = ServerTls(server_context(*self_signed(directory, HERE, NOW)), core)
        self.front.start()
        self.port = self.front.ports()(0, self.front.factory, 50, HERE, core)
        self.port.startListening()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        async def close() -> None:
            await self.port.stopListening()
            await self.front.drain()

        return Deferred.fromCoroutine(close())

    async def test_both_on_one_port(self) -> None:
        """A look-up in plain HTTP and one over TLS find the same."""
        core: Any = reactor
        place = (HERE, self.port.getHost().port)
        plain: Conversation = await ClientCreator(core, Conversation).connectTCP(*place)
        plain.write(INFO)
        expected = await plain.until(b"\r\n\r\n")
        secure = Conversation()
        layer = ClientTls(permissive(), core).under(secure)
        await ClientCreator(core, lambda: layer).connectTCP(*place)
        secure.write(INFO)
        self.assertEqual(await secure.until(b"\r\n\r\n"), expected)
        self.assertIn(b"Server-Info-1: STANDALONE 127.0.0.1:7 ", expected)
        secure.transport.abortConnection()
        plain.transport.abortConnection()
        await secure.ended
        await plain.ended


class SecureServerTests(Stage):
    """Servers marked ``$=yes`` are spoken to over TLS."""

    def secure_backend(self) -> int:
        """A played server behind TLS; gives its port."""
        directory = Path(self.mktemp())
        directory.mkdir()
        self.certificate, key = self_signed(directory, HERE, NOW)
        context = server_context(self.certificate, key)
        self.asked_as: list[str | None] = []

        def told(socket: object, name: str | None, context: object) -> None:
            self.asked_as.append(name)

        context.sni_callback = told
        server = ServerTls(context, self.core)
        return self.listen(serving(lambda: server.under(Backend(self))))

    async def test_a_server_is_asked_by_its_name(self) -> None:
        """Where the table gives one that is a host name: several may share a place."""
        port = self.secure_backend()
        for name, told in (
            ("H=www.example.org", "www.example.org"),
            ("H=www.example.org:8443", "www.example.org"),
            ("H=10.1.2.3", None),
            ("H=no_host..name", None),
            ("", None),
        ):
            self.start(f"web HTTP 127.0.0.1:{port} /x L=no $=yes {name}")
            client = await self.ask()
            backend = await self.backend(len(self.asked_as))
            backend.say(reply(b"secret"))
            await client.until(b"secret")
            self.assertEqual(self.asked_as[-1], told)
            assert self.front is not None
            await self.front.drain()

    async def test_a_name_is_checked_when_certificates_are(self) -> None:
        """The certificate is for localhost and two addresses."""
        port = self.secure_backend()
        cases = (("H=localhost", b"200"), ("H=other", b"502"), ("", b"200"))
        for number, (name, status) in enumerate(cases):
            self.start(f"web HTTP 127.0.0.1:{port} /x L=no $=yes {name}")
            assert self.front is not None
            self.front.pool.tls = ClientTls(
                client_context(self.certificate),
                self.core,
                client_context(self.certificate, named=True),
            )
            client = await self.ask()
            if status == b"200":
                (await self.backend(number)).say(reply(b"secret"))
            octets = await client.until(b"\r\n\r\n")
            self.assertTrue(octets.startswith(b"HTTP/1.1 " + status), (name, octets))
            await self.front.drain()

    async def test_an_http_server(self) -> None:
        """One to one, as in the clear."""
        port = self.secure_backend()
        self.start(f"web HTTP 127.0.0.1:{port} /x L=no $=yes")
        client = await self.ask(method=b"POST", body=b"the body")
        backend = await self.backend(0, b"the body")
        backend.say(reply(b"secret"))
        await client.until(b"secret")

    async def test_a_stand_alone_server(self) -> None:
        """The end of the body is a good-bye in one direction."""
        port = self.secure_backend()
        self.start(f"raw STANDALONE 127.0.0.1:{port} L=no $=yes")
        client = await self.ask(
            b"/Service/dispd.cgi?service=raw", method=b"POST", body=b"question", version=b"1.0"
        )
        backend = await self.backend(0, b"question")
        backend.say(b"answer")
        backend.end()
        self.assertTrue((await client.ended).endswith(b"\r\n\r\nanswer"))

    async def test_a_server_that_must_be_certified(self) -> None:
        """With authorities configured, others' certificates are refused."""
        port = self.secure_backend()
        self.start(f"web HTTP 127.0.0.1:{port} /x L=no $=yes")
        directory = Path(self.mktemp())
        directory.mkdir()
        certificate, _ = self_signed(directory, HERE, NOW)
        assert self.front is not None
        self.front.pool.tls = ClientTls(client_context(certificate), self.core)
        client = await self.ask()
        self.assertIn(b"HTTP/1.1 502 ", await client.until(b"Dispatcher-Failures: "))
