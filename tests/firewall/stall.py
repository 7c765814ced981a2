"""
A network that stalls: ``python -m tests.firewall.stall`` (root, Linux).

The server is in a network namespace of its own, behind a pair of virtual interfaces.  While
octets are under way the pair is taken down, so that nothing comes back, not even a reset.  The
relay must give every connection up after ``stall_seconds``, and hold nothing afterwards.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from tests.firewall.relay_process import PATIENCE_SECONDS, ROOT, RelayProcess, hear
from tests.ports import free_port

CONNECTIONS = 50
STALL_SECONDS = 2.0
KEPT_DESCRIPTORS = 32
SERVER, HOST = "10.203.0.2", "10.203.0.1"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def stall(more: str) -> None:
    """One run; *more* is for ``[firewall]``."""
    space = subprocess.Popen(["unshare", "-n", "sleep", "300"])
    relay = RelayProcess(f"stall_seconds = {STALL_SECONDS}\n{more}")
    server = None
    try:
        time.sleep(0.3)  # until unshare has done its work
        pid = str(space.pid)
        name = f"grid{space.pid % 100000}"
        ip("link", "add", name, "type", "veth", "peer", "name", "inside", "netns", pid)
        ip("address", "add", f"{HOST}/30", "dev", name)
        ip("link", "set", name, "up")
        enter = ["nsenter", "-t", pid, "-n"]
        for words in (f"address add {SERVER}/30 dev inside", "link set inside up"):
            subprocess.run([*enter, "ip", *words.split()], check=True)
        port = free_port()
        code = (
            "import socket, threading\n"
            f"listening = socket.create_server(('{SERVER}', {port}), backlog=100)\n"
            "def echo(connection):\n"
            "    while data := connection.recv(65536): connection.sendall(data)\n"
            "while True:\n"
            "    threading.Thread(target=echo, args=(listening.accept()[0],)).start()\n"
        )
        server = subprocess.Popen([*enter, sys.executable, "-c", code], cwd=ROOT)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection((SERVER, port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
        before = relay.until_descriptors(KEPT_DESCRIPTORS)
        clients = []
        for ticket in relay.tickets_for(SERVER, port, CONNECTIONS):
            clients.append(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_SECONDS))
            clients[-1].sendall(ticket + b"hello")
            assert hear(clients[-1], 5) == b"hello"
        ip("link", "set", name, "down")
        begin = time.monotonic()
        for client in clients:
            client.sendall(b"lost" * 1000)
        for client in clients:
            try:
                assert hear(client, 1) == b""
            except ConnectionResetError:
                pass
            client.close()
        after = relay.until_descriptors(before + KEPT_DESCRIPTORS)
        seconds = time.monotonic() - begin
        print(
            f"{more or 'splice'}: {CONNECTIONS} connections given up after {seconds:.1f} s, "
            f"{before} descriptors before, {after} after"
        )
        assert after <= before + KEPT_DESCRIPTORS
    finally:
        relay.close()
        for each in (server, space):
            if each is not None:
                each.kill()
                each.wait()


if __name__ == "__main__":
    stall("")
    stall("splice = false")
