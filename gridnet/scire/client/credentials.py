"""A client's key and certificate: made, asked for, renewed, loaded."""

from __future__ import annotations

import logging
import os
import platform
import ssl
import threading
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from gridnet.durable import write_durably
from gridnet.errors import ConfigError, Fault
from gridnet.scire.client.config import ClientConfig
from gridnet.scire.client.rpc import Servers, Unreachable
from gridnet.scire.faults import FaultCode, ScireFault

_log = logging.getLogger("scire-client")


class Credentials:
    """The files in the client's directory."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.key = config.directory / "key.pem"
        self.certificate = config.directory / "certificate.pem"
        self.authority = config.directory / config.ca
        self._request = config.directory / "request"

    @property
    def name(self) -> str:
        """The host name to ask for."""
        return self.config.name or platform.node()

    # -- TLS

    def _context(self, side: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(side, cafile=str(self.authority))
        except OSError as error:
            raise ConfigError([Fault("client.ca", f"{self.authority}: {error}")]) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def anonymous_context(self) -> ssl.SSLContext:
        """For the enrol listener."""
        return self._context(ssl.Purpose.SERVER_AUTH)

    def client_context(self) -> ssl.SSLContext:
        """For the work listener."""
        context = self._context(ssl.Purpose.SERVER_AUTH)
        self.show(context)
        return context

    def server_context(self) -> ssl.SSLContext:
        """For ``poll_now``."""
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        self.show(context)
        return context

    def show(self, context: ssl.SSLContext) -> None:
        """Have the connections to come of *context* show the certificate that there is now."""
        context.load_cert_chain(self.certificate, self.key)

    # -- the fleet's authority

    def fetch_authority(self) -> None:
        """
        Get the authority's certificate from an enrol listener, if its fingerprint is known.

        :raises ConfigError: nobody shows a certificate with that fingerprint.
        """
        wanted = self.config.ca_fingerprint.lower().replace(":", "")
        if self.authority.exists() or not wanted:
            return
        for url in self.config.enrol:
            parts = urlsplit(url)
            try:
                shown = _shown_chain(parts.hostname or "", parts.port or 443)
            except OSError as error:
                _log.warning("%s: %s", url, error)
                continue
            for der, pem in shown:
                if sha256(der).hexdigest() == wanted:
                    write_durably(self.authority, pem)
                    return
        what = "no server shows a certificate with this fingerprint"
        raise ConfigError([Fault("client.ca_fingerprint", what)])

    # -- asking

    def make_key(self) -> bytes:
        """The private key (PEM), made at the first call; it never leaves this machine."""
        from gridnet.scire import certificates

        if not self.key.exists():
            write_durably(self.key, certificates.key_pem(certificates.make_key()))
        return self.key.read_bytes()

    def _csr(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        from gridnet.scire import certificates

        key: Any = load_pem_private_key(self.make_key(), None)
        return certificates.make_request(key, self.name)

    def fingerprint(self) -> str:
        """What the administrator compares: SHA-256 of the public key."""
        from gridnet.scire import certificates

        return certificates.read_request(self._csr()).key_digest

    def enrol(self, token: str, wait: bool, stopping: threading.Event) -> bool:
        """
        Ask for a certificate.

        :param wait: until an administrator has decided.
        :returns: whether there is one.
        :raises ScireFault: the request was refused or denied.
        :raises Unreachable: no server answers.
        """
        self.fetch_authority()
        config = self.config
        if not config.enrol:
            raise ConfigError([Fault("client.enrol", "name an enrol URL")])
        servers = Servers(
            config.enrol,
            self.anonymous_context(),
            config.connect_seconds,
            config.call_seconds,
            config.failback_seconds,
            Random(),
            stopping,
            config.doubt_seconds,
            config.max_answer,
        )
        facts = {
            "hostname": self.name,
            "architecture": platform.machine(),
            "os": platform.platform(),
            "machine_id": _machine_id(),
        }
        try:
            answer = servers.call("scire.enrol", self._csr(), token, facts)
            _log.info("request %s, fingerprint %s", answer["request"], answer["fingerprint"])
            while answer["state"] != "active":
                if not wait or stopping.wait(answer["poll_after"]):
                    return False
                answer = self._poll(servers, answer)
        finally:
            servers.close()
        write_durably(self.certificate, answer["certificate"].encode("ascii"))
        return True

    def _poll(self, servers: Servers, answer: dict[str, Any]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = servers.call(
                "scire.enrol_poll", answer["request"], answer["secret"]
            )
        except ScireFault as fault:
            if fault.code != FaultCode.ENROLMENT_PENDING:
                raise
            return {**answer, "poll_after": fault.retry_after or answer["poll_after"]}
        except Unreachable:
            return answer
        return found

    def renew(self, servers: Servers) -> ssl.SSLContext | None:
        """A new certificate for the same key, through the work listener; None: it is refused."""
        try:
            answer = servers.call("scire.renew", self._csr())
        except ScireFault as fault:
            _log.error("no renewal: %s", fault)
            return None
        write_durably(self.certificate, answer["certificate"].encode("ascii"))
        return self.client_context()


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text("ascii").strip()
    except OSError:
        return ""


def _shown_chain(host: str, port: int) -> Sequence[tuple[bytes, bytes]]:
    """The certificates that a server shows, as DER and PEM; nothing of it is believed yet."""
    import socket

    from OpenSSL import SSL, crypto

    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    with socket.create_connection((host, port), 10) as plain:
        plain.settimeout(None)
        connection = SSL.Connection(context, plain)
        connection.set_tlsext_host_name(host.encode("idna"))
        connection.set_connect_state()
        try:
            connection.do_handshake()
        except SSL.Error as error:
            raise OSError(f"TLS: {error}") from None
        chain = connection.get_peer_cert_chain() or []
        return [
            (
                crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate),
                crypto.dump_certificate(crypto.FILETYPE_PEM, certificate),
            )
            for certificate in chain
        ]


def lock(directory: Path) -> int:
    """
    Keep a second client out of *directory*.

    :raises ConfigError: there is one.
    """
    import fcntl

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        what = f"another client works in {directory}"
        raise ConfigError([Fault("client.directory", what)]) from None
    return handle
