"""
Clients of the job server for its benchmark: raw octets on keep-alive TLS connections.

``python -m benchmarks.scire_load WHAT PORT CA SECONDS DIRECTORY...``: each DIRECTORY holds the
``key.pem`` and ``cert.pem`` of one client, which has one thread.  WHAT is ``polls`` (calls that
find nothing), ``connections`` (the same, a new TLS connection for each) or ``cycles`` (fetch with
the acknowledgement of the one before, then report).  Prints JSON: what was done, in how many
seconds, and the median and 99th percentile of its milliseconds.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import threading
import time
from base64 import b64encode
from pathlib import Path

from gridnet.scire import wire

_RECEIPT = re.compile(rb"<name>receipt</name><value>(?:<string>)?([0-9a-f]{32})")
_RUN = re.compile(rb"<name>run</name><value><int>(\d+)")
_ATTEMPT = re.compile(rb"<name>attempt</name><value><int>(\d+)")
_LENGTH = re.compile(rb"Content-Length: (\d+)")
_STATUS = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<scire-status version="1" run="%d" attempt="%d" seq="1"><state>succeeded</state>'
    '<time>2026-01-01T00:00:00Z</time><exit code="0"/></scire-status>\n'
)


def request(body: bytes) -> bytes:
    """A POST with *body*."""
    head = b"POST /RPC2 HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


_POLL = request(wire.format_call("scire.next_job", [""]))


class Client:
    """One client's connection."""

    def __init__(self, port: int, authority: str, directory: Path) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=authority)
        self._context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        self._socket: ssl.SSLSocket | None = None

    def connect(self) -> None:
        """Make a new connection."""
        self.close()
        plain = socket.create_connection(("127.0.0.1", self._port), 30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = self._context.wrap_socket(plain, server_hostname="127.0.0.1")

    def close(self) -> None:
        """Close it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, octets: bytes) -> bytes:
        """One call; the answer's body."""
        if self._socket is None:
            self.connect()
        assert self._socket is not None
        self._socket.sendall(octets)
        answer = self._socket.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        match = _LENGTH.search(head)
        if match is None:
            raise RuntimeError(answer[:200].decode("latin-1"))
        while len(body) < int(match[1]):
            body += self._socket.recv(65536)
        if b"<fault>" in body:
            raise RuntimeError(body.decode("utf-8"))
        return body


def polls(client: Client, until: float, times: list[float]) -> None:
    """Ask for work that is not there."""
    while (began := time.perf_counter()) < until:
        client.exchange(_POLL)
        times.append(time.perf_counter() - began)


def connections(client: Client, until: float, times: list[float]) -> None:
    """The same, each on a connection of its own."""
    while (began := time.perf_counter()) < until:
        client.connect()
        client.exchange(_POLL)
        times.append(time.perf_counter() - began)


def cycles(client: Client, until: float, times: list[float]) -> None:
    """Fetch, acknowledge, report; until nothing is left."""
    receipt = ""
    while (began := time.perf_counter()) < until:
        answer = client.exchange(request(wire.format_call("scire.next_job", [receipt])))
        found, run, attempt = _RECEIPT.search(answer), _RUN.search(answer), _ATTEMPT.search(answer)
        if found is None or run is None or attempt is None:
            return
        receipt = found[1].decode("ascii")
        status = _STATUS % (int(run[1]), int(attempt[1]))
        body = (
            b'<?xml version="1.0"?><methodCall><methodName>scire.job_status</methodName>'
            b"<params><param><value><base64>" + b64encode(status.encode()) + b"</base64>"
            b"</value></param></params></methodCall>"
        )
        client.exchange(request(body))
        times.append(time.perf_counter() - began)


_KINDS = {"polls": polls, "connections": connections, "cycles": cycles}


def main() -> None:
    """Run the load and print what came of it."""
    what, port, authority, seconds, *directories = sys.argv[1:]
    clients = [Client(int(port), authority, Path(d)) for d in directories]
    for client in clients:
        client.exchange(_POLL if what != "cycles" else request(_ping()))
    times: list[list[float]] = [[] for _ in clients]
    began = time.perf_counter()
    until = began + float(seconds)
    threads = [
        threading.Thread(target=_KINDS[what], args=(client, until, mine))
        for client, mine in zip(clients, times, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    every = sorted(one for mine in times for one in mine)
    print(
        json.dumps(
            {
                "done": len(every),
                "seconds": took,
                "p50": every[len(every) // 2] * 1000,
                "p99": every[len(every) * 99 // 100] * 1000,
            }
        )
    )


def _ping() -> bytes:
    return wire.format_call("scire.ping", [])


if __name__ == "__main__":
    main()
