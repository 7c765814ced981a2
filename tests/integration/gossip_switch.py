"""
The network between real daemons: a process of its own, so that nobody who measures delays it.

Each host is reached through a port of ours, and is seen by the others there.  ``python -m
tests.integration.gossip_switch COUNT BASE KEY_FILE`` carries until its standard input ends; a line
of JSON there is a command, and is answered with one.

It also measures what a packet takes: from the arrival of a datagram here until it is sent on, and,
with a probe of its own now and then, from there until the daemon's answer arrives.  The kernel says
when something arrived, so that our own delay does not count twice.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from attrs import frozen

from gridnet.lbsmd.gossip.keys import read_keys
from gridnet.lbsmd.gossip.messages import Ping
from gridnet.lbsmd.gossip.wire import Seal

_CHECKOUT = Path(__file__).resolve().parents[2]
#: The sender of our probes: none of the hosts.
_PROBER = "127.99.0.1"
#: One datagram in so many is followed by a probe of the same host, so that probes come when news
#: do.  The answer takes news with it, as any: few enough that the others do not miss them.
_PROBED_SHARE = 64
#: After which a probe counts as lost, in seconds.
_PROBE_SECONDS = 10.0
_KEPT_DATAGRAMS = 32
#: How long the system may take to say when something arrives.
_TIMESTAMPS_SECONDS = 30.0
_MAX_FIGURES = 1_000_000
#: ``SO_TIMESTAMPNS`` of Linux, which Python does not name; its message has the same number.
_TIMESTAMP = 35
_TIMESPEC = struct.Struct("@qq")


@frozen
class Delays:
    """Seconds that each of many packets took, in order of length."""

    switch: Sequence[float]  #: from its arrival at the switch until it was sent on
    daemon: Sequence[float]  #: from there until the daemon's answer

    def both(self, count: int = 2000) -> tuple[float, ...]:
        """
        What so many packets take on their whole way, in order of length.

        :raises ValueError: either was not measured.
        """
        if not self.switch:
            raise ValueError("no delays: no packet was carried")
        if not self.daemon:
            raise ValueError("no delays: no daemon has answered a probe")
        random = Random(1)
        return tuple(
            sorted(random.choice(self.switch) + random.choice(self.daemon) for _ in range(count))
        )


class Carrier:
    """
    Carries datagrams.

    :param count: hosts.
    :param base: our first port; host *n* itself is at ``base + count + n``.
    """

    def __init__(self, count: int, base: int, key_file: Path) -> None:
        self._count = count
        self._first = base + count
        self._sockets = [_open(base + number) for number in range(count)]
        self._probes = _open(0)
        _await_timestamps(self._probes)
        self._seal = Seal(_PROBER, read_keys(key_file), os.urandom(8))
        self._random = Random(1)
        self._half = 0
        self._asked: dict[int, float] = {}  # port of a host -> when it was probed
        self._number = 0
        self._switched, self._answered = array("d"), array("d")
        self._kept: list[bytes] = []
        self.is_ended = False

    def run(self) -> None:
        """Carry until standard input ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._obey)
            selector.register(self._probes, selectors.EVENT_READ, self._take_answers)
            for number, opened in enumerate(self._sockets):
                selector.register(opened, selectors.EVENT_READ, number)
            while not self.is_ended:
                for key, _ in selector.select():
                    if isinstance(key.data, int):
                        self._carry(key.data)
                    else:
                        key.data()

    def _carry(self, target: int) -> None:
        for _ in range(64):
            received = _receive(self._sockets[target])
            if received is None:
                return
            datagram, port, arrived = received
            source = port - self._first
            if not 0 <= source < self._count or self._is_cut(source, target):
                continue
            try:
                self._sockets[source].sendto(datagram, ("127.0.0.1", self._first + target))
            except BlockingIOError:
                continue
            if len(self._switched) < _MAX_FIGURES:
                self._switched.append(time.time() - arrived)
            if len(self._kept) < _KEPT_DATAGRAMS:
                self._kept.append(datagram)
            if self._random.randrange(_PROBED_SHARE) == 0:
                self._probe(target)

    def _is_cut(self, source: int, target: int) -> bool:
        return (source < self._half) is not (target < self._half)

    def _probe(self, target: int) -> None:
        port, now = self._first + target, time.time()
        if now - self._asked.get(port, 0.0) < _PROBE_SECONDS:
            return
        self._number += 1
        packet = self._seal.seal([Ping(self._number, f"127.0.0.{target + 1}")], now)
        self._asked[port] = time.time()
        try:
            self._probes.sendto(packet, ("127.0.0.1", port))
        except BlockingIOError:
            del self._asked[port]

    def _take_answers(self) -> None:
        while (received := _receive(self._probes)) is not None:
            _, port, arrived = received
            asked = self._asked.pop(port, None)
            if asked is not None and len(self._answered) < _MAX_FIGURES:
                self._answered.append(arrived - asked)

    def _obey(self) -> None:
        line = sys.stdin.readline()
        if not line:
            self.is_ended = True
            return
        match json.loads(line):
            case {"part": int(half)}:
                self._half = half
                answer: Any = None
            case "delays":
                answer = {"switch": sorted(self._switched), "daemon": sorted(self._answered)}
                self._switched, self._answered = array("d"), array("d")
            case _:
                answer = [datagram.hex() for datagram in self._kept]
        print(json.dumps(answer), flush=True)


def _open(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    opened.setsockopt(socket.SOL_SOCKET, _TIMESTAMP, 1)
    opened.bind(("127.0.0.1", port))
    opened.setblocking(False)
    return opened


def _await_timestamps(opened: socket.socket) -> None:
    """
    Until the system says when something arrived at *opened*.

    It begins with that a while after it was asked to; until then it says when something was read.
    """
    deadline = time.monotonic() + _TIMESTAMPS_SECONDS
    while time.monotonic() < deadline:
        opened.sendto(b"", opened.getsockname())
        sent = time.time()
        received = _receive(opened)
        if received is not None and received[2] <= sent:
            return
        time.sleep(0.001)
    raise RuntimeError("the system does not say when datagrams arrive")


def _receive(opened: socket.socket) -> tuple[bytes, int, float] | None:
    """A datagram, the port it came from, and when it arrived in seconds since the epoch."""
    try:
        datagram, messages, _, (_, port) = opened.recvmsg(65536, 64)
    except BlockingIOError:
        return None
    seconds, nanoseconds = _TIMESPEC.unpack(messages[0][2])
    return datagram, port, seconds + nanoseconds / 1e9


class Switch:
    """The process."""

    def __init__(self, count: int, base: int, key_file: Path) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.integration.gossip_switch"),
                *(str(count), str(base), str(key_file)),
            ],
            cwd=_CHECKOUT,
            env={**os.environ, "PYTHONPATH": str(_CHECKOUT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # Until its ports are open.
        self.heard()

    def part(self, half: int) -> None:
        """Nothing goes between the first *half* hosts and the others; 0: everything goes."""
        self._ask({"part": half})

    def delays(self) -> Delays:
        """What packets took since the last time."""
        found = self._ask("delays")
        return Delays(found["switch"], found["daemon"])

    def heard(self) -> Sequence[bytes]:
        """The first datagrams that were carried."""
        return [bytes.fromhex(each) for each in self._ask("heard")]

    def _ask(self, command: object) -> Any:
        ours, theirs = self.process.stdin, self.process.stdout
        assert ours is not None and theirs is not None
        ours.write(json.dumps(command) + "\n")
        ours.flush()
        line = theirs.readline()
        if not line:
            raise AssertionError("the switch has ended")
        return json.loads(line)

    def end(self) -> None:
        """Stop carrying."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


if __name__ == "__main__":
    Carrier(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])).run()
