"""
Keys, certificate requests and certificates of a fleet (docs/protocols/scire.rst, Enrolment).

The embedded authority is one self-signed certificate.  Everybody of a fleet (clients, servers,
users) has a certificate of it with his name in subjectAltName; who somebody *is* stands in the
database under the digest of his certificate, never in its subject.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gridnet.scire.faults import FaultCode, ScireFault

MIN_RSA_BITS = 2048
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
#: A certificate counts from a little before it was made: clocks differ.
_BACKDATED = timedelta(minutes=5)
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def _refused(reason: str) -> ScireFault:
    return ScireFault(FaultCode.REQUEST_REFUSED, reason)


def make_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """A key as PEM (PKCS 8, without a pass phrase)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_request(key: PrivateKey, name: str) -> bytes:
    """A certificate request (DER) for the host *name*."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=False)
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@frozen
class Request:
    """A certificate request that can be granted."""

    pem: str
    key_digest: str  #: SHA-256 of the public key, hexadecimal; what people compare


def read_request(octets: bytes) -> Request:
    """
    Read a certificate request, DER or PEM.

    :raises ScireFault: 1082: not one, not signed by its key, or a key that is too weak.
    """
    try:
        if octets.lstrip().startswith(b"-----"):
            csr = x509.load_pem_x509_csr(octets)
        else:
            csr = x509.load_der_x509_csr(octets)
        genuine = csr.is_signature_valid
        key = csr.public_key()
    except (ValueError, TypeError, InvalidSignature) as error:
        raise _refused(f"no certificate request: {error}") from None
    if not genuine:
        raise _refused("the request is not signed by its own key")
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise _refused(f"an RSA key of fewer than {MIN_RSA_BITS} bits")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise _refused(f"the curve {key.curve.name} is not one of {', '.join(_CURVES)}")
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise _refused("a kind of key that is not used here")
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Request(csr.public_bytes(Encoding.PEM).decode("ascii"), sha256(spki).hexdigest())


@frozen
class Issued:
    """A certificate."""

    pem: str
    digest: str  #: SHA-256 of the DER form, hexadecimal
    key_digest: str
    not_before: float  #: seconds since the epoch
    not_after: float  #: seconds since the epoch


def read_certificate(pem: str) -> Issued:
    """
    Read the first certificate in *pem*.

    :raises ScireFault: 1082: there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise _refused(f"no certificate: {error}") from None
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Issued(
        certificate.public_bytes(Encoding.PEM).decode("ascii"),
        sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        sha256(spki).hexdigest(),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


@frozen
class Authority:
    """The embedded certificate authority."""

    key: PrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str, days: int = 3650) -> Authority:
        """A new one."""
        key = make_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, key: bytes, certificate: bytes) -> Authority:
        """
        The one of these PEM texts.

        :raises ValueError: they are none, or do not belong together.
        """
        private = load_pem_private_key(key, None)
        if not isinstance(private, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey)):
            raise ValueError("expected an EC or RSA key")
        public = x509.load_pem_x509_certificate(certificate)
        if public.public_key() != private.public_key():
            raise ValueError("the key is not that of the certificate")
        return cls(private, public)

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode("ascii")

    def sign(self, request: Request, names: Sequence[str], seconds: float) -> Issued:
        """
        A certificate for the key of *request*.

        :param names: host names and addresses, the first is the subject's; the request's own
            wishes mean nothing.
        :param seconds: how long it lives.
        """
        csr = x509.load_pem_x509_csr(request.pem.encode())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(
                min(now + timedelta(seconds=seconds), self.certificate.not_valid_after_utc)
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([_alternative(name) for name in names]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, SHA256())
        )
        return read_certificate(certificate.public_bytes(Encoding.PEM).decode("ascii"))


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
