"""TLS between gridnets, and of Grid Engine's mode ``csp``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    PrivateCertificate,
    TLSVersion,
    optionsForClientTLS,
    platformTrust,
    trustRootFromCertificates,
)
from zope.interface import implementer

from gridnet.errors import ConfigError, Fault

_END = b"-----END CERTIFICATE-----"


def read_identity(certificate: Path, key: Path, where: str) -> PrivateCertificate:
    """
    The certificate and key of these PEM files.

    :param where: key of the configuration, for errors.
    :raises ConfigError: they cannot be read, or do not belong together.
    """
    try:
        octets = certificate.read_bytes() + b"\n" + key.read_bytes()
        found: PrivateCertificate = PrivateCertificate.loadPEM(octets)
    except (OSError, ValueError, SSL.Error) as error:
        text = f"{certificate} and {key}: {error or 'not a certificate and its key'}"
        raise ConfigError([Fault(where, text)]) from None
    return found


def read_authorities(path: Path, where: str) -> list[Certificate]:
    """
    The certificates of authorities in a PEM file.

    :raises ConfigError: it cannot be read, or holds none.
    """
    try:
        pieces = path.read_bytes().split(_END)[:-1]
        found = [Certificate.loadPEM(piece + _END + b"\n") for piece in pieces]
    except (OSError, ValueError, SSL.Error) as error:
        raise ConfigError([Fault(where, f"{path}: {error}")]) from None
    if not found:
        raise ConfigError([Fault(where, f"{path} holds no certificate")])
    return found


def server_options(
    identity: PrivateCertificate, authorities: list[Certificate] | None
) -> CertificateOptions:
    """
    What a listener shows and demands.

    :param authorities: mirrors must show a certificate of one of them; None: need none.
    """
    return CertificateOptions(
        privateKey=identity.privateKey.original,
        certificate=identity.original,
        raiseMinimumTo=TLSVersion.TLSv1_2,
        trustRoot=trustRootFromCertificates(authorities) if authorities else None,
    )


def client_options(
    host: str, authorities: list[Certificate] | None, identity: PrivateCertificate | None
) -> Any:
    """For a master at *host*, whose certificate must hold that name."""
    return optionsForClientTLS(
        host,
        trustRoot=trustRootFromCertificates(authorities) if authorities else platformTrust(),
        clientCertificate=identity,
        extraCertificateOptions={"raiseMinimumTo": TLSVersion.TLSv1_2},
    )


@implementer(IOpenSSLClientConnectionCreator)
class CellCreator:
    """
    Connections to the qmaster of a cell in mode ``csp``.

    Its certificates name users, not hosts: that one of the cell's authority is shown is all that
    can be checked, and all that real clients check.
    """

    def __init__(self, identity: PrivateCertificate, authorities: list[Certificate]) -> None:
        options = CertificateOptions(
            privateKey=identity.privateKey.original,
            certificate=identity.original,
            trustRoot=trustRootFromCertificates(authorities),
        )
        self._context = options.getContext()
        self._context.set_verify(
            SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _as_openssl_says
        )

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Called by Twisted for each connection."""
        return SSL.Connection(self._context, None)


def _as_openssl_says(
    connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int
) -> bool:
    return bool(ok)
