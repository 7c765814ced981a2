"""
Many relayed connections at once, and peers that go without a word; all is counted.

``GRIDNET_SESSIONS=1000 GRIDNET_IDLE_SESSIONS=5000 GRIDNET_IDLE_SECONDS=30`` is the full run; it
prints what it found.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from tests.firewall.relay_process import PATIENCE_SECONDS, ROOT, RelayProcess, Sessions, hear
from tests.mixin import Mixin
from tests.ports import free_port

SESSIONS = int(os.environ.get("GRIDNET_SESSIONS", "150"))
IDLE_SESSIONS = int(os.environ.get("GRIDNET_IDLE_SESSIONS", "300"))
IDLE_SECONDS = float(os.environ.get("GRIDNET_IDLE_SECONDS", "0.5"))
KILLED = 40
#: Resident memory of one relayed connection.
MAX_SESSION_OCTETS = 60_000
#: A relay keeps up to 16 pipes for the next.
KEPT_DESCRIPTORS = 32

CLIENT = """\
import socket, sys
port, name = int(sys.argv[1]), sys.argv[2]
octets = open(name, "rb").read()
held = []
for at in range(0, len(octets), 4):
    held.append(socket.create_connection(("127.0.0.1", port)))
    held[-1].sendall(octets[at : at + 4] + b"x" * 100_000)
print("ok", flush=True)
sys.stdin.read()
"""


class BothPaths(Mixin):
    """What holds whether the kernel moves the octets or Twisted does."""

    more = ""

    def relay(self, more: str = "") -> RelayProcess:
        found = RelayProcess(f"{self.more}\n{more}")
        self.addCleanup(found.close)
        # What is opened once and kept is not counted.
        warm = Sessions(found, 20)
        warm.exchange(100_000)
        warm.close()
        return found

    def test_many_sessions_cost_little_memory(self) -> None:
        relay = self.relay()
        before, descriptors = relay.resident_octets, relay.until_descriptors(KEPT_DESCRIPTORS)
        sessions = Sessions(relay, SESSIONS)
        self.addCleanup(sessions.close)
        for _ in range(3):
            sessions.exchange(20_000)
        each = (relay.resident_octets - before) / SESSIONS
        print(f"{SESSIONS} sessions: {each / 1000:.1f} kB each", file=sys.stderr)
        self.assertLess(each, MAX_SESSION_OCTETS)
        self.assertTrue(sessions.all_hold())
        sessions.close()
        self.assertLessEqual(
            relay.until_descriptors(descriptors + KEPT_DESCRIPTORS), descriptors + KEPT_DESCRIPTORS
        )

    def test_idle_sessions_hold(self) -> None:
        relay = self.relay()
        before = relay.resident_octets
        sessions = Sessions(relay, IDLE_SESSIONS)
        self.addCleanup(sessions.close)
        begin = time.monotonic()
        cpu = sum(relay.process.cpu_times()[:2])
        while time.monotonic() - begin < IDLE_SECONDS:
            time.sleep(0.1)  # being idle is what is looked at
        spent = sum(relay.process.cpu_times()[:2]) - cpu
        self.assertTrue(sessions.all_hold())
        sessions.exchange(1000)
        each = (relay.resident_octets - before) / IDLE_SESSIONS
        print(
            f"{IDLE_SESSIONS} idle sessions: {each / 1000:.1f} kB each, "
            f"{spent / IDLE_SECONDS:.1%} of a CPU while idle",
            file=sys.stderr,
        )

    def test_a_killed_server_leaves_nothing(self) -> None:
        relay = self.relay()
        before = relay.until_descriptors(KEPT_DESCRIPTORS)
        port = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.relay_backend", "echo", str(port)], cwd=ROOT
        )
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        wait_for(port)
        clients = []
        for ticket in relay.tickets(port, KILLED):
            clients.append(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_SECONDS))
            clients[-1].sendall(ticket + b"hello")
            self.assertEqual(hear(clients[-1], 5), b"hello")
        server.kill()
        for client in clients:
            # A reset, or an end: but none of them waits.
            try:
                self.assertEqual(client.recv(1), b"")
            except ConnectionResetError:
                pass
            client.close()
        most = before + KEPT_DESCRIPTORS
        self.assertLessEqual(relay.until_descriptors(most), most)

    def test_a_killed_client_leaves_nothing(self) -> None:
        relay = self.relay()
        before = relay.until_descriptors(KEPT_DESCRIPTORS)
        with socket.create_server(("127.0.0.1", 0), backlog=KILLED) as listening:
            name = relay.directory / "for-client"
            name.write_bytes(b"".join(relay.tickets(listening.getsockname()[1], KILLED)))
            client = subprocess.Popen(
                [sys.executable, "-S", "-c", CLIENT, str(relay.port), str(name)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert client.stdout is not None and client.stdin is not None
            self.assertEqual(client.stdout.readline(), b"ok\n")
            servers = [listening.accept()[0] for _ in range(KILLED)]
        client.kill()
        client.wait()
        client.stdin.close()
        client.stdout.close()
        for server in servers:
            server.settimeout(PATIENCE_SECONDS)
            heard = 0
            try:
                while data := server.recv(65536):
                    heard += len(data)
            except ConnectionResetError:
                pass
            else:
                # All that was said before, then its end.
                self.assertEqual(heard, 100_000)
            server.close()
        most = before + KEPT_DESCRIPTORS
        self.assertLessEqual(relay.until_descriptors(most), most)

    def test_peers_that_take_nothing_any_more_are_given_up(self) -> None:
        """Stopped, so that their systems still answer for them; both buffers are full."""
        relay = self.relay("stall_seconds = 1.0")
        before = relay.until_descriptors(KEPT_DESCRIPTORS)
        port = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.relay_backend", "sink", str(port)], cwd=ROOT
        )
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        wait_for(port)
        clients = []
        for ticket in relay.tickets(port, 5):
            clients.append(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_SECONDS))
            clients[-1].sendall(ticket)
        server.send_signal(signal.SIGSTOP)
        given_up = []

        def press(client: socket.socket) -> None:
            try:
                while True:
                    client.sendall(b"x" * 1_000_000)
            except OSError as error:
                given_up.append(error)
            client.close()

        threads = [Thread(target=press, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(given_up), len(clients))
        self.assertFalse([error for error in given_up if isinstance(error, TimeoutError)])
        most = before + KEPT_DESCRIPTORS
        self.assertLessEqual(relay.until_descriptors(most), most)


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


class SpliceTests(BothPaths, SynchronousTestCase):
    """The kernel moves them."""


class CopyTests(BothPaths, SynchronousTestCase):
    """Twisted moves them."""

    more = "splice = false"
