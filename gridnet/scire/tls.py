"""
TLS of the listeners and of ``poll_now``.

Only what the handshake itself can say is said there: that a certificate is of the fleet.  Whether
it is expired or revoked, and whose it is, each call asks the database, so that the answer is a
fault that tells the client what to do, and changes while a connection is open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet import tcp
from twisted.internet.interfaces import IProtocolFactory, IReactorTime
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    TLSVersion,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault
from gridnet.listener import serve_offers

_APPLICATION_DATA = 23  # type of a TLS record (RFC 8446, 5.1)
_MAX_RECORD = 16384  # octets in one
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED


def read_identity(certificate: Path, key: Path) -> PrivateCertificate:
    """
    The certificate and key of these PEM files.

    :raises gridnet.errors.ConfigError: they cannot be read, or do not belong together.
    """
    try:
        octets = certificate.read_bytes() + b"\n" + key.read_bytes()
        own: PrivateCertificate = PrivateCertificate.loadPEM(octets)
        return own
    except (OSError, ValueError, SSL.Error) as error:
        what = f"{certificate} and {key}: {error or 'not a certificate and its key'}"
        raise ConfigError([Fault("scire.tls", f"{what}; see gridnet scire init-ca")]) from None


def read_authorities(path: Path) -> list[Certificate]:
    """
    The certificates of authorities in a PEM file.

    :raises gridnet.errors.ConfigError: it cannot be read, or holds none.
    """
    end = b"-----END CERTIFICATE-----"
    try:
        pieces = path.read_bytes().split(end)[:-1]
        found = [Certificate.loadPEM(piece + end + b"\n") for piece in pieces]
    except (OSError, ValueError, SSL.Error) as error:
        raise ConfigError([Fault("scire.tls.fleet_ca", f"{path}: {error}")]) from None
    if not found:
        raise ConfigError([Fault("scire.tls.fleet_ca", f"{path} holds no certificate")])
    return found


def server_options(
    own: PrivateCertificate, chain: list[Certificate], authorities: list[Certificate] | None
) -> CertificateOptions:
    """
    What a listener shows and demands.

    :param chain: further certificates that are shown.
    :param authorities: demand a certificate of one of them; None: demand none.
    """
    options = CertificateOptions(
        privateKey=own.privateKey.original,
        certificate=own.original,
        extraCertChain=[certificate.original for certificate in chain],
        raiseMinimumTo=TLSVersion.TLSv1_2,
        trustRoot=trustRootFromCertificates(authorities) if authorities else None,
    )
    context = options.getContext()
    # Nothing of one connection is to stand for the certificate of another.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    serve_offers(context, (b"http/1.1",))
    if authorities is not None:

        def verified(
            connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int
        ) -> bool:
            # An expired client is told so by fault 1003.
            return bool(ok) or (error == _EXPIRED and depth == 0)

        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verified)
    return options


def client_options(name: str, own: PrivateCertificate, authorities: list[Certificate]) -> Any:
    """For calling the machine *name*, whose certificate must hold that name."""
    return optionsForClientTLS(
        name,
        trustRoot=trustRootFromCertificates(authorities),
        clientCertificate=own,
        extraCertificateOptions={"raiseMinimumTo": TLSVersion.TLSv1_2},
    )


class Records:
    """
    Where the records of a TLS stream end (RFC 8446, 5.1).

    :ivar whole: no record is under way.
    """

    def __init__(self) -> None:
        self.whole = True
        self._head = b""  # of the next record, less than its five octets
        self._missing = 0  # octets of the one under way

    def receive(self, data: bytes) -> None:
        """Follow what comes, however it is cut."""
        data = self._head + data
        position = self._missing
        while position + 5 <= len(data):
            position += 5 + int.from_bytes(data[position + 3 : position + 5], "big")
        self._missing = max(0, position - len(data))
        self._head = data[position:]
        self.whole = not self._head and not self._missing


class _PromptServer(tcp.Server):
    """
    A TCP connection that sends at once what it is given, as far as that goes.

    Twisted waits for the reactor to say that a connection takes octets, which costs three system
    calls and a turn; that of somebody who waits for an answer always does.
    """

    def write(self, data: bytes) -> None:
        """Send *data*, or leave it to the reactor where others wait already."""
        if not self._waits and self.connected and not self.disconnecting:
            sent = self.writeSomeData(data)
            if isinstance(sent, int):
                if sent == len(data):
                    return
                data = data[sent:]
            # Else the connection is lost, which the reactor will find.
        super().write(data)

    @property
    def _waits(self) -> bool:
        return bool(self.dataBuffer or self._tempDataBuffer)


class PromptPort(tcp.Port):
    """A port whose connections send at once."""

    transport = _PromptServer


class _Paced(TLSMemoryBIOProtocol):
    """
    A TLS connection that begins its handshake when its turn comes.

    It gathers no small writes, as Twisted's usual one does: an answer is one.
    """

    factory: PacedTlsFactory
    _records: Records

    def makeConnection(self, transport: Any) -> None:
        """Called by Twisted."""
        self._records = Records()
        super().makeConnection(transport)
        delay = self.factory.turn()
        if delay > 0:
            transport.pauseProducing()
            self.factory.later(delay, transport)

    def dataReceived(self, data: bytes) -> None:
        """
        Called by Twisted.

        One whole record of the application is nearly always what comes.  There is nothing behind
        it, and nothing that it makes TLS send: neither is asked for.
        """
        alone = self._records.whole
        self._records.receive(data)
        if (
            not alone
            or data[0] != _APPLICATION_DATA
            or len(data) != 5 + int.from_bytes(data[3:5], "big")
            or not self._handshakeDone
            or self._appSendBuffer
            or self._lostTLSConnection
            or self._aborted
        ):
            super().dataReceived(data)
            return
        self._tlsConnection.bio_write(data)
        try:
            octets = self._tlsConnection.recv(_MAX_RECORD)
        except (SSL.WantReadError, SSL.ZeroReturnError):
            # It was about the connection, after all.
            self._flushReceiveBIO()
        except SSL.Error:
            self._tlsShutdownFinished(Failure())
        else:
            ProtocolWrapper.dataReceived(self, octets)


class PacedTlsFactory(TLSMemoryBIOFactory):
    """
    Wraps the connections of a factory into TLS, so many handshakes a second.

    A handshake costs a millisecond of the one thread that serves everybody; a fleet that comes
    back after an outage would otherwise hold up those already connected.

    :param per_second: handshakes; a connection beyond is not read until its turn.
    """

    protocol = _Paced
    noisy = False

    def __init__(
        self,
        options: CertificateOptions,
        factory: IProtocolFactory,
        reactor: IReactorTime,
        per_second: float,
    ) -> None:
        super().__init__(options, False, factory)
        self._time = reactor
        self._distance = 1.0 / per_second
        self._next_turn = 0.0
        self._burst = min(1.0, 10 / per_second)

    def turn(self) -> float:
        """Seconds until the next handshake may begin."""
        now = self._time.seconds()
        self._next_turn = max(self._next_turn, now - self._burst) + self._distance
        return self._next_turn - now

    def later(self, delay: float, transport: Any) -> None:
        """Read *transport* after *delay* seconds."""

        def resume() -> None:
            if not transport.disconnected:
                transport.resumeProducing()

        self._time.callLater(delay, resume)
