"""
``poll_now``: a daemon-mode client's own XML-RPC server (docs/protocols/scire.rst, Push).

Whoever calls needs a certificate of the fleet with the name of a server that this client knows;
what he may say is only "ask now".
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from gridnet.scire import wire
from gridnet.scire.client.agent import Agent
from gridnet.scire.faults import FaultCode, ScireFault

_log = logging.getLogger("scire-client")
_MAX_REQUEST = 65536  # octets
_PEER_SECONDS = 5.0  # for a whole call
_REPLAY_SECONDS = 120.0
_MAX_NONCES = 10_000


class Nudges:
    """Judges what servers say."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._nonces: dict[str, float] = {}

    def poll_now(self, names: set[str], params: tuple[Any, ...]) -> dict[str, Any]:
        """
        Answer one ``poll_now``.

        :param names: those in the caller's certificate.
        :raises ScireFault: 1010 not a server, -32602 not usable, 1050 said before.
        """
        if not names & self._agent.server_hosts:
            raise ScireFault(FaultCode.PERMISSION_DENIED, "not the certificate of a server")
        struct = params[0] if len(params) == 1 and isinstance(params[0], dict) else {}
        nonce, said_at = struct.get("nonce"), struct.get("time")
        if not isinstance(nonce, str) or not isinstance(said_at, datetime):
            raise ScireFault(FaultCode.WRONG_PARAMETERS, "expected server, time, nonce, reason")
        now = time.time()
        if abs(wire.seconds_of(said_at) - now) > _REPLAY_SECONDS or nonce in self._nonces:
            raise ScireFault(FaultCode.CONFLICT, "said before, or too long ago")
        self._nonces = {
            known: at for known, at in self._nonces.items() if now - at < 2 * _REPLAY_SECONDS
        }
        if len(self._nonces) >= _MAX_NONCES:
            raise ScireFault(FaultCode.TOO_MANY_CALLS, "asked too often", round(_REPLAY_SECONDS))
        self._nonces[nonce] = now
        agent = self._agent
        polling, pause = agent.polling, agent.config.poll_now_pause
        if not polling and time.monotonic() - agent.polled_at >= pause:
            agent.poll_wanted.set()
            polling = True
        return {"accepted": True, "polling": polling}


def _names(certificate: Mapping[str, Any] | None) -> set[str]:
    if not certificate:
        return set()
    return {value for _, value in certificate.get("subjectAltName", ())}


class _Request(BaseHTTPRequestHandler):
    server: NudgeServer
    timeout = _PEER_SECONDS
    protocol_version = "HTTP/1.0"

    def handle(self) -> None:
        """Called by the standard library, whose time-out is one of each octet."""
        end = threading.Timer(_PEER_SECONDS, self._end)
        end.start()
        try:
            super().handle()
        finally:
            end.cancel()

    def _end(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_POST(self) -> None:
        """Called by the standard library."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MAX_REQUEST:
            self.send_error(413 if length.isdigit() else 411)
            return
        connection = self.connection
        assert isinstance(connection, ssl.SSLSocket)
        try:
            call = wire.parse_call(self.rfile.read(int(length)))
            if call.method != "poll_now":
                raise ScireFault(FaultCode.UNKNOWN_METHOD, f"no method {call.method}")
            answer = self.server.nudges.poll_now(_names(connection.getpeercert()), call.params)
            octets = wire.format_answer(answer)
        except ScireFault as fault:
            _log.warning("poll_now of %s: %s", self.client_address[0], fault)
            octets = wire.format_fault(fault)
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, format: str, *args: Any) -> None:
        """Called by the standard library: nothing to say."""


class NudgeServer(HTTPServer):
    """Answers one caller after the other, each in bounded time."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, agent: Agent) -> None:
        self.nudges = Nudges(agent)
        self._context = context
        super().__init__(address, _Request)

    def get_request(self) -> tuple[ssl.SSLSocket, Any]:
        """Called by the standard library."""
        plain, address = self.socket.accept()
        plain.settimeout(_PEER_SECONDS)
        return self._context.wrap_socket(plain, server_side=True), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called by the standard library: a peer that broke off is his own matter."""
        _log.info("poll_now of %s broke off", client_address[0])


def serve_nudges(agent: Agent, context: ssl.SSLContext) -> NudgeServer:
    """Listen in a thread of its own."""
    config = agent.config
    server = NudgeServer((config.listen_address, config.listen_port), context, agent)
    threading.Thread(target=server.serve_forever, name="nudges", daemon=True).start()
    return server
