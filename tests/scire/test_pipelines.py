"""Peers that send on before they are answered, or do not take their answers; through real TLS."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import xmlrpc.client
from collections.abc import Callable
from typing import Any

from tests.scire.processes import ServerProcess
from tests.scire.test_hostile import MEBIBYTE, HostileCase, resident_octets

_PATIENCE = 60.0  # seconds
_ANSWER = 60_000  # octets of a large one
#: Requests whose answers, and which themselves, are more than kernels keep on the way.
_MANY = 500
#: Calls of somebody else while a peer is stuck.
_OTHERS = 20


def request(method: str, *params: Any) -> bytes:
    """A POST."""
    body = xmlrpc.client.dumps(params, method).encode()
    return (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    ) + body


def large(number: int) -> bytes:
    """A call whose answer is large, and says its number."""
    name = f"call-{number}-".ljust(_ANSWER, "x")
    return request("system.multicall", [{"methodName": name, "params": []}])


class Peer:
    """A TLS connection with small buffers, of which each step is taken apart."""

    def __init__(self, server: ServerProcess, context: ssl.SSLContext) -> None:
        self.socket = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self.socket.setsockopt(socket.SOL_SOCKET, option, 65536)
        self.socket.settimeout(_PATIENCE)
        self.socket.connect(("127.0.0.1", server.work))
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        #: octets of the connection that are still to be sent
        self.unsent = b""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                self._incoming.write(self.socket.recv(65536))
            else:
                break
        self.socket.sendall(self._outgoing.read())

    def put(self, octets: bytes) -> None:
        """Have *octets* sent later."""
        self._tls.write(octets)
        self.unsent += self._outgoing.read()

    def push(self) -> bool:
        """Send what the connection takes now; whether that was anything."""
        self.socket.setblocking(False)
        try:
            sent = self.socket.send(self.unsent[: 4 * 65536])
        except BlockingIOError:
            return False
        finally:
            self.socket.settimeout(_PATIENCE)
        self.unsent = self.unsent[sent:]
        return True

    def take(self) -> bytes:
        """Some octets of answers; waits for them."""
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                octets = self.socket.recv(16384)
                if not octets:
                    raise ConnectionResetError("the server closed the connection") from None
                self._incoming.write(octets)


def bodies(octets: bytes) -> tuple[list[bytes], bytes]:
    """The bodies of the whole answers in *octets*, and the rest."""
    found: list[bytes] = []
    while True:
        head, end, rest = octets.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if not end or length is None or len(rest) < int(length[1]):
            return found, octets
        found.append(rest[: int(length[1])])
        octets = rest[int(length[1]) :]


class PipelineTests(HostileCase):
    """More than one call at a time on one connection."""

    def peer(self) -> Peer:
        made = Peer(self.one, self.machine.context(self.one))
        self.addCleanup(made.socket.close)
        return made

    def answers(self, peer: Peer, count: int, between: Callable[[], object] = bool) -> list[bytes]:
        """So many answers; *between* is called now and then."""
        found: list[bytes] = []
        rest = b""
        while len(found) < count:
            rest += peer.take()
            more, rest = bodies(rest)
            found += more
            between()
        self.assertEqual(rest, b"")
        return found

    def test_answers_come_in_the_order_of_the_calls(self) -> None:
        """However the octets are cut, and whether the database is asked or not."""
        calls = [
            request("scire.get_job", 1_000_000 + number) if number % 2 else large(number)
            for number in range(20)
        ]
        for size in (7001, 16384, 1_000_000):
            peer, octets = self.peer(), b"".join(calls)
            for start in range(0, len(octets), size):
                peer.put(octets[start : start + size])
            while peer.unsent:
                peer.push()
            for number, body in enumerate(self.answers(peer, len(calls))):
                run = 1_000_000 + number
                self.assertIn(b"unknown run %d" % run if number % 2 else b"call-%d-" % number, body)

    def test_a_call_that_waits_is_not_overtaken(self) -> None:
        peer = self.peer()
        peer.put(request("scire.wait", 1) + request("scire.ping"))
        while peer.unsent:
            peer.push()
        first, second = self.answers(peer, 2)
        self.assertIn(b"<name>work</name>", first)
        self.assertIn(b"<name>version</name>", second)

    def stuck(self, peer: Peer) -> None:
        """Send until the server takes no more for as long as somebody else makes some calls."""
        with self.machine.proxy(self.one) as other:
            refused = 0
            while refused < _OTHERS:
                if peer.push():
                    refused = 0
                    self.assertTrue(peer.unsent, "the server took everything")
                else:
                    refused += 1
                    self.assertEqual(other.scire.ping()["version"], "1.0")

    def test_a_slow_reader_is_waited_for_and_misses_nothing(self) -> None:
        """The server reads no further calls of a peer that does not take his answers."""
        before = resident_octets(self.one)
        peer = self.peer()
        for number in range(_MANY):
            peer.put(large(number))
        self.stuck(peer)
        found = self.answers(peer, _MANY, lambda: peer.unsent and peer.push())
        self.assertEqual(
            [number for number, body in enumerate(found) if b"call-%d-" % number not in body], []
        )
        self.assertLess(resident_octets(self.one) - before, 30 * MEBIBYTE)

    def test_a_reader_that_takes_nothing_loses_the_connection(self) -> None:
        """After ``request_seconds``."""
        self.hurry()
        peer = self.peer()
        for number in range(_MANY):
            peer.put(large(number))
        received = 0
        with contextlib.suppress(ConnectionError):
            peer.socket.sendall(peer.unsent)
            while octets := peer.socket.recv(65536):
                received += len(octets)
        self.assertLess(received, _MANY * _ANSWER // 2)
