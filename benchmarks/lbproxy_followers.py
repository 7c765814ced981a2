"""
Many followers of an LB proxy's event stream, in a process of their own.

Run by :mod:`benchmarks.bench_lbproxy`: ``python -m benchmarks.lbproxy_followers SERVE FOLLOWERS
EVENTS`` prints ``ready`` once all are connected, waits until each has EVENTS events, and prints
the monotonic time of the last one.
"""

from __future__ import annotations

import select
import socket
import sys
import time

_EVENT = b"\ndata: {"


def main() -> int:
    """Connect, count, tell."""
    path, followers, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    missing: dict[int, int] = {}
    for _ in range(followers):
        made = socket.socket(socket.AF_UNIX)
        made.connect(path)
        made.sendall(b"GET /gridnet/events HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n")
        head = b""
        while not head.endswith(b"\n\n") or b": gridnet\n" not in head:
            head += made.recv(4096)
        made.setblocking(False)
        poll.register(made.fileno(), select.EPOLLIN)
        sockets[made.fileno()] = made
        missing[made.fileno()] = wanted
    tails = dict.fromkeys(sockets, b"")
    print("ready", flush=True)
    while missing:
        for number, _ in poll.poll():
            data = sockets[number].recv(1 << 18)
            if number in missing:
                found = tails[number] + data
                tails[number] = found[-len(_EVENT) + 1 :]
                missing[number] -= found.count(_EVENT)
                if missing[number] <= 0:
                    del missing[number]
            if not data:
                raise SystemExit("a follower was dropped")
    print(time.monotonic(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
