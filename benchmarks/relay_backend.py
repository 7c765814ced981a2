"""Servers behind the relays of ``bench_relay``: ``benchmarks.relay_backend KIND PORT``."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(4096)
    return listening


def sink(port: int) -> None:
    """
    Swallows what comes up to an octet of 255, and says how much it was.

    Not every relay passes on the end of one direction alone.
    """

    def swallow(connection: socket.socket) -> None:
        buffer = memoryview(bytearray(1 << 20))
        count = 0
        with connection, contextlib.suppress(OSError):
            while received := connection.recv_into(buffer):
                count += received
                if buffer[received - 1] == 255:
                    break
            connection.sendall(count.to_bytes(8, "big"))

    listening = _listen(port)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=swallow, args=(connection,), daemon=True).start()


def echo(port: int) -> None:
    """Says everything again, one client a thread."""

    def repeat(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    listening = _listen(port)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=repeat, args=(connection,), daemon=True).start()


def answer(port: int) -> None:
    """Answers the first octets of each connection with one octet, and closes it; one thread."""
    listening = _listen(port)
    listening.setblocking(False)
    poll = select.epoll()
    poll.register(listening.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listening.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        connection, _ = listening.accept()
                        connections[connection.fileno()] = connection
                        poll.register(connection.fileno(), select.EPOLLIN)
                continue
            connection = connections.pop(fd)
            poll.unregister(fd)
            with connection, contextlib.suppress(OSError):
                if connection.recv(65536):
                    connection.send(b"!")


if __name__ == "__main__":
    {"sink": sink, "echo": echo, "answer": answer}[sys.argv[1]](int(sys.argv[2]))
