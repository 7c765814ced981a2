"""A relay in a process of its own, whose memory and descriptors can be counted."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import gridnet
from tests.ports import free_port

ROOT = Path(gridnet.__file__).parent.parent
#: Far more than anything here takes.
PATIENCE_SECONDS = 60.0

SITE = """\
[site]
address = "127.0.0.1"
[firewall]
listen = "tcp:{{port}}:interface=127.0.0.1:backlog=4096"
ports = "{port}"
relay_ports = ""
max_waiting = 100000
max_waiting_per_client = 100000
max_open = 100000
max_open_per_client = 100000
max_unticketed = 100000
max_unticketed_per_client = 100000
log_sessions = false
{more}
"""


class RelayProcess:
    """
    ``benchmarks.relay_site`` as a child.

    :ivar port: where it listens.
    """

    def __init__(self, more: str = "") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-relay-"))
        self.port = free_port()
        site = self.directory / "site.toml"
        site.write_text(SITE.format(port=self.port, more=more))
        self._tickets = self.directory / "tickets"
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.relay_site", str(site), str(self._tickets)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.process = psutil.Process(self._child.pid)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return
            except OSError:
                if time.monotonic() > deadline or self._child.poll() is not None:
                    self.close()
                    raise AssertionError("the relay does not start") from None
                time.sleep(0.02)

    def tickets(self, port: int, count: int) -> list[bytes]:
        """*count* tickets for the loopback server at *port*."""
        return self.tickets_for("127.0.0.1", port, count)

    def tickets_for(self, host: str, port: int, count: int) -> list[bytes]:
        """The same for the server at *host*."""
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f"{host}:{port} {count}\n".encode())
        stdin.flush()
        if stdout.readline() != b"ok\n":
            raise AssertionError("no tickets")
        octets = self._tickets.read_bytes()
        return [octets[at : at + 4] for at in range(0, len(octets), 4)]

    @property
    def resident_octets(self) -> int:
        """Memory that it has."""
        return int(self.process.memory_info().rss)

    @property
    def descriptors(self) -> int:
        """Open ones, pipes included."""
        return self.process.num_fds()

    def until_descriptors(self, most: int) -> int:
        """Wait until it has at *most* so many; how many it has then."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := self.descriptors) > most and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def close(self) -> None:
        """End it."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
        self._child.kill()
        self._child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def hear(connection: socket.socket, octets: int) -> bytes:
    """The next *octets* of *connection*; fewer: it has ended."""
    heard = bytearray()
    while len(heard) < octets and (data := connection.recv(octets - len(heard))):
        heard += data
    return bytes(heard)


class Sessions:
    """
    Relayed connections, both ends of them ours.

    :ivar clients: our end at the relay.
    :ivar servers: where the relay has connected to.
    """

    def __init__(self, relay: RelayProcess, count: int) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        port = self.listening.getsockname()[1]
        self.clients: list[socket.socket] = []
        self.servers: list[socket.socket] = []
        for ticket in relay.tickets(port, count):
            client = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_SECONDS)
            client.sendall(ticket + b"?")
            self.clients.append(client)
            server, _ = self.listening.accept()
            server.settimeout(PATIENCE_SECONDS)
            self.servers.append(server)

    def exchange(self, octets: int) -> None:
        """Each says so much to the other, in the order in which they have come."""
        for server, client in zip(self.servers, self.clients, strict=True):
            assert hear(server, 1) == b"?"
            client.sendall(b"u" * octets)
            assert hear(server, octets) == b"u" * octets
            server.sendall(b"d" * octets + b"!")
            assert hear(client, octets + 1) == b"d" * octets + b"!"
            client.sendall(b"?")

    def all_hold(self) -> bool:
        """Whether none of them has been ended."""
        for each in (*self.clients, *self.servers):
            poll = select.poll()
            poll.register(each, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
            if poll.poll(0):
                return False
        return True

    def close(self) -> None:
        """End them all."""
        for each in (*self.clients, *self.servers, self.listening):
            each.close()
