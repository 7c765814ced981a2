"""
TLS on the dispatcher's port, and towards servers that want it.

Released clients take a TLS 1.3 session ticket for a failed read, so none may be sent.  pyOpenSSL
cannot switch them off (``OP_NO_TICKET`` only makes them shorter), the ``ssl`` module of the
standard library can.  So contexts are the standard library's, and :class:`_Connection` shows them
to Twisted's TLS protocol, which does the rest, as if they were pyOpenSSL's.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
)
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from gridnet.errors import ConfigError, Fault

#: First octet of a TLS record that opens a handshake; no HTTP method begins with it.
HANDSHAKE_OCTET = 0x16

CERTIFICATE_FILE = "dispatch-certificate.pem"
KEY_FILE = "dispatch-key.pem"
_VALID_DAYS = 3650
_RENEW_DAYS = 30


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """
    What the listener speaks: TLS 1.2 and later, no session tickets.

    :raises ConfigError: certificate or key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            [Fault("dispatch.certificate", f"{certificate} with {key} cannot be used: {error}")]
        ) from None
    return context


def client_context(authorities: Path | None, named: bool = False) -> ssl.SSLContext:
    """
    What relays speak to servers marked ``$=yes``.

    :param authorities: PEM file of certificate authorities; None: servers are not verified, as
        the released clients do not.
    :param named: the certificate must be for the server's name, too.
    :raises ConfigError: the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = named and authorities is not None
    if authorities is None:
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(authorities)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            [Fault("dispatch.server_authorities", f"{authorities} cannot be used: {error}")]
        ) from None
    return context


def self_signed(directory: Path, address: str, now: datetime.datetime) -> tuple[Path, Path]:
    """
    Paths of certificate and key in *directory*; made when missing, of no use or about to expire.

    :param address: IP address text of this host, one of the certificate's names.
    :param now: time of day, with a zone.
    :raises ConfigError: the files cannot be written.
    """
    certificate, key = directory / CERTIFICATE_FILE, directory / KEY_FILE
    if not _lasts(certificate, key, now):
        try:
            _make(certificate, key, address, now)
        except OSError as error:
            fault = Fault("site.state_dir", f"no certificate can be written there: {error}")
            raise ConfigError([fault]) from None
    return certificate, key


def _lasts(certificate: Path, key: Path, now: datetime.datetime) -> bool:
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        server_context(certificate, key)
    except (OSError, ValueError, ConfigError):
        return False
    return found.not_valid_after_utc - now > datetime.timedelta(days=_RENEW_DAYS)


def _make(certificate: Path, key: Path, address: str, now: datetime.datetime) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gridnet dispatcher")])
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    host = socket.gethostname()
    if host.isascii() and host and host != "localhost":
        names.append(x509.DNSName(host))
    texts = dict.fromkeys(["127.0.0.1", "::1", address])
    names += [x509.IPAddress(ipaddress.ip_address(text)) for text in texts]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(secret, hashes.SHA256())
    )
    _write(
        key,
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        0o600,
    )
    _write(certificate, made.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, octets: bytes, mode: int) -> None:
    """Put *octets* at *path* in one step, never readable for others than *mode* says."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(octets)
            file.flush()
            os.fsync(descriptor)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


class _Connection:
    """
    A TLS connection over memory, of the standard library, in pyOpenSSL's dress.

    Only what :class:`twisted.protocols.tls.TLSMemoryBIOProtocol` calls is here.
    """

    def __init__(
        self, context: ssl.SSLContext, server_side: bool, server_name: str | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )

    def set_accept_state(self) -> None:
        """The side was chosen when the connection was made."""

    def set_connect_state(self) -> None:
        """The side was chosen when the connection was made."""

    def set_app_data(self, data: object) -> None:
        """Nobody asks for it."""

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        self._call(self._tls.do_handshake)

    def send(self, data: bytes) -> int:
        """Encrypt *data*; gives how much of it was taken."""
        sent: int = self._call(self._tls.write, data)
        return sent

    def recv(self, size: int) -> bytes:
        """Decrypted octets, at most *size*."""
        data: bytes = self._call(self._tls.read, size)
        if not data:
            raise SSL.ZeroReturnError
        return data

    def bio_write(self, data: bytes) -> int:
        """Take octets that came from the peer."""
        return self._incoming.write(data)

    def bio_read(self, size: int) -> bytes:
        """Octets to send to the peer."""
        data = self._outgoing.read(size)
        if not data:
            raise SSL.WantReadError
        return data

    def bio_shutdown(self) -> None:
        """The peer will send no more octets."""
        self._incoming.write_eof()

    def shutdown(self) -> bool:
        """Say good-bye; True once the peer has, too."""
        try:
            self._call(self._tls.unwrap)
        except SSL.WantReadError:
            return False
        return True

    def get_peer_certificate(self) -> None:
        """No client certificates here."""

    def get_alpn_proto_negotiated(self) -> bytes:
        """No protocol is negotiated."""
        return b""

    @staticmethod
    def _call(function: Any, *arguments: Any) -> Any:
        """Call *function*; its errors become pyOpenSSL's."""
        try:
            return function(*arguments)
        except ssl.SSLWantReadError:
            raise SSL.WantReadError from None
        except ssl.SSLZeroReturnError:
            raise SSL.ZeroReturnError from None
        except ssl.SSLEOFError:
            raise SSL.SysCallError(-1, "Unexpected EOF") from None
        except ssl.SSLError as error:
            raise SSL.Error([("", "", error.reason or str(error))]) from None


class TlsLayer(TLSMemoryBIOProtocol):
    """
    Twisted's TLS protocol, and a way to say that no more is coming.

    It writes at once, without gathering: replies come in one piece anyway.
    """

    _output_ended = False
    server_name = ""  #: of the server that is spoken to, where it is known by one

    def loseWriteConnection(self) -> None:
        """Close our direction, once all is sent; the peer may go on."""
        self._output_ended = True
        if self._handshakeDone and not self._appSendBuffer:
            self._shutdownTLS()

    def abortConnection(self) -> None:
        """Cut the connection off, if there still is one."""
        if self._tlsConnection is not None:
            super().abortConnection()

    def _checkHandshakeStatus(self) -> None:
        super()._checkHandshakeStatus()
        if self._output_ended and self._handshakeDone and not self._appSendBuffer:
            self._shutdownTLS()

    def _unbufferPendingWrites(self) -> None:
        super()._unbufferPendingWrites()
        if self._output_ended and not self._appSendBuffer:
            self._shutdownTLS()


class _QuietFactory(TLSMemoryBIOFactory):
    """What layers know of each other: nothing."""

    protocol = TlsLayer


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Puts the server's side of TLS under protocols."""

    def __init__(self, context: ssl.SSLContext, reactor: Any) -> None:
        self._context = context
        self._factory = _QuietFactory(self, False, Factory(), reactor)

    def serverConnectionForTLS(self, protocol: Any) -> Any:
        """Called by Twisted."""
        return _Connection(self._context, True)

    def under(self, protocol: IProtocol) -> TlsLayer:
        """A TLS layer for *protocol*, to be connected to a transport."""
        return TlsLayer(self._factory, protocol)


@implementer(IOpenSSLClientConnectionCreator)
class ClientTls:
    """
    Puts the client's side of TLS under protocols.

    :param named: the context for servers that have a name; None: the same.
    """

    def __init__(
        self, context: ssl.SSLContext, reactor: Any, named: ssl.SSLContext | None = None
    ) -> None:
        self._context = context
        self._named = named or context
        self._factory = _QuietFactory(self, True, Factory(), reactor)

    def clientConnectionForTLS(self, protocol: Any) -> Any:
        """Called by Twisted."""
        name = protocol.server_name
        return _Connection(self._named if name else self._context, False, name or None)

    def under(self, protocol: IProtocol, server_name: str = "") -> TlsLayer:
        """
        A TLS layer for *protocol*, to be connected to a transport.

        :param server_name: what the server is told that it is asked as; empty: nothing.
        """
        layer = TlsLayer(self._factory, protocol)
        layer.server_name = server_name
        return layer
