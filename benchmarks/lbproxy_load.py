"""
Clients of an LB proxy as fast as they go, in a process of their own.

Run by :mod:`benchmarks.bench_lbproxy`: ``python -m benchmarks.lbproxy_load STORE CLIENTS SECONDS
[--reconnect]`` prints one JSON object.  Each client logs the ten events of a small job one after
the other, each once the one before is acknowledged, then goes on with the next job.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence

from gridnet.lbproxy import events, frames, seqcode
from gridnet.lbproxy.event_types import EVENT_TYPES, source_number
from gridnet.lbproxy.events import Event
from gridnet.lbproxy.jobid import JobId

#: Stands for the unique part of a job id in a ready-made message; as long as a real one.
PLACEHOLDER = b"x" * 22
_USER = "/DC=org/DC=example/OU=Users/CN=Jan Novak"
_JDL = '[ Executable = "/bin/hostname"; StdOutput = "out"; OutputSandbox = { "out" }; ]'
_MATCHED = '[ CEId = "ce.example.org:2119/jobmanager-pbs-long"; Executable = "/bin/hostname" ]'
_INPUT, _QUEUE = "/var/glite/workload_manager/input.fl", "/var/glite/jobcontrol/queue.fl"

# Type, source, counts of the sequence code by place, fields.
_SMALL_JOB: tuple[tuple[str, str, dict[int, int], dict[str, str]], ...] = (
    (
        "RegJob",
        "UserInterface",
        {1: 1},
        {"JDL": _JDL, "NS": "https://wms.example.org:7443/glite_wms", "JOBTYPE": "SIMPLE"},
    ),
    (
        "Transfer",
        "UserInterface",
        {1: 2},
        {
            "DESTINATION": "NetworkServer",
            "DEST_HOST": "wms.example.org",
            "DEST_INSTANCE": "7443",
            "JOB": _JDL,
            "RESULT": "OK",
        },
    ),
    (
        "Accepted",
        "NetworkServer",
        {1: 3, 2: 1},
        {"FROM": "UserInterface", "FROM_HOST": "ui.example.org"},
    ),
    ("EnQueued", "NetworkServer", {1: 3, 2: 2}, {"QUEUE": _INPUT, "JOB": _JDL, "RESULT": "OK"}),
    ("DeQueued", "WorkloadManager", {1: 3, 2: 2, 3: 1}, {"QUEUE": _INPUT}),
    (
        "Match",
        "WorkloadManager",
        {1: 3, 2: 2, 3: 2},
        {"DEST_ID": "ce.example.org:2119/jobmanager-pbs-long"},
    ),
    (
        "EnQueued",
        "WorkloadManager",
        {1: 3, 2: 2, 3: 3},
        {"QUEUE": _QUEUE, "JOB": _MATCHED, "RESULT": "OK"},
    ),
    (
        "Transfer",
        "LogMonitor",
        {1: 3, 2: 2, 3: 3, 5: 1, 6: 1},
        {
            "DESTINATION": "LRMS",
            "DEST_HOST": "ce.example.org",
            "JOB": "&(jobtype=single)(count=1)",
            "RESULT": "OK",
        },
    ),
    ("Running", "LogMonitor", {1: 3, 2: 2, 3: 3, 5: 1, 6: 2}, {"NODE": "wn042.example.org"}),
    (
        "Done",
        "LogMonitor",
        {1: 3, 2: 2, 3: 3, 5: 1, 6: 3},
        {"STATUS_CODE": "OK", "EXIT_CODE": "0"},
    ),
)


def _line(name: str, source: str, counts: dict[int, int], fields: dict[str, str]) -> bytes:
    code = seqcode.ZERO
    for place, count in counts.items():
        code = seqcode.with_component(code, place, count)
    kind = EVENT_TYPES[name]
    values = {
        one.element: events.read_value(one, fields[one.name])
        for one in kind.fields
        if one.name in fields
    }
    event = Event(
        type=kind,
        timestamp=int(time.time() * 1_000_000),
        host="ui.example.org",
        level=8,
        priority=8,
        source=source_number(source),
        src_instance="7443",
        job_id=JobId("lb.example.org", 9000, PLACEHOLDER.decode()),
        seqcode=code,
        user=_USER,
        fields=values,
    )
    return events.write(event)


def small_job() -> list[bytes]:
    """The ten event lines that take a job from its registration to its end."""
    return [_line(*row) for row in _SMALL_JOB]


def unique_parts(name: str) -> Iterator[bytes]:
    """Unique parts as long as :data:`PLACEHOLDER`, different for each *name*."""
    number = 0
    while True:
        number += 1
        yield f"{name}{number:0{len(PLACEHOLDER) - len(name)}d}".encode("ascii")


class _Client:
    def __init__(self, path: str, name: str, messages: Sequence[bytes], reconnect: bool) -> None:
        self._path = path
        self._messages = messages
        self._reconnect = reconnect
        self._uniques = unique_parts(name)
        self._unique = next(self._uniques)
        self._next = 0
        self.started = 0.0
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        while True:
            made = socket.socket(socket.AF_UNIX)
            made.setblocking(False)
            try:
                made.connect(self._path)
            except BlockingIOError:  # the backlog is full
                made.close()
                time.sleep(0.001)
                continue
            return made

    def send(self) -> None:
        message = self._messages[self._next].replace(PLACEHOLDER, self._unique)
        self._next += 1
        if self._next == len(self._messages):
            self._next = 0
            self._unique = next(self._uniques)
        self.started = time.perf_counter()
        self.socket.sendall(message)

    def receive(self) -> None:
        data = self.socket.recv(4096)
        if data != frames.OK_FRAME:
            raise SystemExit(f"unexpected answer {data!r}")

    def again(self, poll: select.epoll, clients: dict[int, _Client]) -> None:
        if self._reconnect:
            number = self.socket.fileno()
            poll.unregister(number)
            del clients[number]
            self.socket.close()
            self.socket = self._connect()
            poll.register(self.socket.fileno(), select.EPOLLIN)
            clients[self.socket.fileno()] = self


def run(path: str, count: int, seconds: float, reconnect: bool) -> dict[str, object]:
    """Acknowledged events, the time they took, and each one's own time in milliseconds."""
    messages = [frames.encode_message(line) for line in small_job()]
    poll = select.epoll()
    clients: dict[int, _Client] = {}
    for number in range(count):
        client = _Client(path, f"{os.getpid():x}c{number:x}-", messages, reconnect)
        clients[client.socket.fileno()] = client
        poll.register(client.socket.fileno(), select.EPOLLIN)
    started = time.perf_counter()
    end = started + seconds
    times: list[float] = []
    for client in list(clients.values()):
        client.send()
    waiting = count
    while waiting:
        for number, _ in poll.poll():
            client = clients[number]
            client.receive()
            now = time.perf_counter()
            times.append((now - client.started) * 1000)
            if now < end:
                client.again(poll, clients)
                client.send()
            else:
                waiting -= 1
                poll.unregister(client.socket.fileno())
    elapsed = time.perf_counter() - started
    times.sort()
    return {
        "events": len(times),
        "seconds": elapsed,
        "p50": times[len(times) // 2],
        "p99": times[min(len(times) - 1, len(times) * 99 // 100)],
    }


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--reconnect", action="store_true", help="a connection for each event")
    options = parser.parse_args()
    found = run(options.store, options.clients, options.seconds, options.reconnect)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
