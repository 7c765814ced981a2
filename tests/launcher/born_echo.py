"""
A service for tests: answers every connection with its name and what it was sent, in upper case.

It says of its capacity what the file ``CAPACITY_FILE`` says, and ends its last word only when the
peer ends its own.
"""

from __future__ import annotations

import os
import socketserver
import sys
import threading
import time

from gridnet.port_posts import PortClient, PostError


class Echo(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        self.request.sendall(f"{os.environ['GRIDNET_PORT']}\n".encode())
        while data := self.request.recv(65536):
            self.request.sendall(data.upper())


class Server(socketserver.ThreadingTCPServer):
    """Serves until it is killed."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def report(path: str) -> None:
    """Say what the file at *path* says, again and again."""
    with PortClient(os.environ["GRIDNET_CAPACITY"], 5.0) as client:
        while True:
            try:
                with open(path) as file:
                    total, used = map(float, file.read().split())
                client.post(int(os.environ["GRIDNET_PORT"]), total, used, total - used)
            except (OSError, ValueError):
                pass
            except PostError as error:
                print(f"not posted: {error}", flush=True)
            time.sleep(0.05)


if __name__ == "__main__":
    if "CAPACITY_FILE" in os.environ:
        arguments = (os.environ["CAPACITY_FILE"],)
        threading.Thread(target=report, args=arguments, daemon=True).start()
    while "START_FILE" in os.environ and not os.path.exists(os.environ["START_FILE"]):
        time.sleep(0.01)
    port = int(sys.argv[1] if len(sys.argv) > 1 else os.environ["PORT"])
    Server(("127.0.0.1", port), Echo).serve_forever()
