"""``gridnet-twistd``: what is loaded late works when it is wanted."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent

#: A process as it is when a daemon begins to be made.
_STARTED = """
    import sys
    from gridnet.twistd import SELDOM_USED
    from gridnet.unloaded import leave_unloaded
    leave_unloaded(SELDOM_USED)
    import twisted.scripts.twistd
    from gridnet import tap
    leave_unloaded(tap.TLS)
    from twisted.internet import reactor
    assert "OpenSSL" not in sys.modules
    """

_CERTIFICATE = """
    import datetime, os
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(1)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .not_valid_before(now - day).not_valid_after(now + day)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    """

_TALK = """
    from twisted.internet.protocol import Factory, Protocol
    from twisted.internet import defer
    class Echo(Protocol):
        def dataReceived(self, data):
            self.transport.write(data.upper())
    class Client(Protocol):
        def connectionMade(self):
            self.before()
            self.transport.write(b"secret")
        def before(self):
            pass
        def dataReceived(self, data):
            assert data == b"SECRET"
            import OpenSSL
            print("talked", type(self.transport.getPeerCertificate()).__name__)
            reactor.stop()
        def connectionLost(self, reason):
            if reactor.running:
                print(reason)
                reactor.stop()
    reactor.callLater(60, reactor.stop)
    """


def _run(*programs: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    text = "\n".join(map(textwrap.dedent, programs))
    return subprocess.run(
        [sys.executable, *(arguments or ("-c", text))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


class TwistdTests(SynchronousTestCase):
    """The command."""

    def test_it_is_twistd(self) -> None:
        """With its options and all its commands."""
        done = _run(arguments=("-m", "gridnet.twistd", "--help"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for word in ("--nodaemon", "--reactor", "gridnet-lbsmd", "gridnet-scire", " web "):
            self.assertIn(word, done.stdout)

    def test_its_errors_are_those_of_twistd(self) -> None:
        """A command that misses what it needs says so."""
        done = _run(arguments=("-m", "gridnet.twistd", "-n", "--pidfile=", "gridnet-lbsmd"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("--config FILE is required", done.stdout)


class LateTests(SynchronousTestCase):
    """What was left unloaded."""

    def test_endpoints_of_tls_work(self) -> None:
        """A server of an endpoint string, and a client beside it."""
        done = _run(
            _STARTED,
            _CERTIFICATE,
            _TALK,
            """
            import tempfile
            from twisted.internet.endpoints import (
                HostnameEndpoint, connectProtocol, serverFromString, wrapClientTLS,
            )
            from twisted.internet.ssl import Certificate, optionsForClientTLS
            file = tempfile.NamedTemporaryFile(suffix=".pem")
            file.write(pem)
            file.flush()
            text = f"ssl:0:interface=127.0.0.1:privateKey={file.name}"
            def listening(port):
                trust = Certificate.loadPEM(pem)
                options = optionsForClientTLS("localhost", trustRoot=trust)
                place = HostnameEndpoint(reactor, "127.0.0.1", port.getHost().port)
                return connectProtocol(wrapClientTLS(options, place), Client())
            done = serverFromString(reactor, text).listen(Factory.forProtocol(Echo))
            done.addCallback(listening).addErrback(lambda f: (print(f), reactor.stop()))
            reactor.run()
            """,
        )
        self.assertEqual((done.stdout, done.stderr), ("talked X509\n", ""))

    def test_a_connection_can_begin_to_speak_tls(self) -> None:
        """``startTLS``, where a transport was made long before TLS was loaded."""
        done = _run(
            _STARTED,
            _TALK,
            """
            class Server(Echo):
                def connectionMade(self):
                    self.transport.startTLS(contexts())
            def contexts():
                return certificate_of(pem).options()
            def certificate_of(pem):
                from twisted.internet.ssl import PrivateCertificate
                return PrivateCertificate.loadPEM(pem)
            class Starting(Client):
                def before(self):
                    from twisted.internet import ssl
                    self.transport.startTLS(ssl.CertificateOptions())
            factory = Factory.forProtocol(Server)
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")
            from twisted.internet.protocol import ClientCreator
            made = ClientCreator(reactor, Starting).connectTCP("127.0.0.1", port.getHost().port)
            made.addErrback(lambda f: (print(f), reactor.stop()))
            """,
            _CERTIFICATE,
            "reactor.run()",
        )
        self.assertEqual((done.stdout, done.stderr), ("talked X509\n", ""))

    def test_the_other_event_loop_works(self) -> None:
        """Twisted's own names of asyncio, and the rest of it."""
        done = _run(
            _STARTED,
            """
            import asyncio
            from twisted.internet.defer import Deferred, succeed
            async def main():
                future = succeed(3).asFuture(asyncio.get_running_loop())
                other = Deferred.fromFuture(asyncio.ensure_future(asyncio.sleep(0, 4)))
                return await future + await other.asFuture(asyncio.get_running_loop())
            print(asyncio.run(main()))
            async def short():
                return await succeed(5)
            Deferred.fromCoroutine(short()).addCallback(print)
            """,
        )
        self.assertEqual((done.stdout, done.stderr), ("7\n5\n", ""))

    def test_twisted_has_its_other_names(self) -> None:
        """Of HTTP, HTML, processes and archives."""
        done = _run(
            _STARTED,
            """
            from twisted.python.compat import cookielib, escape
            print(escape("<"), cookielib.CookieJar().__class__.__name__)
            import subprocess
            print(subprocess.run(["echo", "out"], stdout=subprocess.PIPE).stdout)
            import tempfile, zipfile, os
            from twisted.python.zippath import ZipArchive
            with tempfile.TemporaryDirectory() as place:
                path = os.path.join(place, "archive.zip")
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("name", b"octets")
                print(ZipArchive(path).child("name").getContent())
            import unittest
            from twisted.trial.unittest import TestCase
            print(issubclass(TestCase, unittest.TestCase))
            """,
        )
        self.assertEqual(done.stdout, "&lt; CookieJar\nb'out\\n'\nb'octets'\nTrue\n", done.stderr)
