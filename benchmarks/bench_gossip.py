"""
The daemons' gossip beside Serf's agents, both as sites of real processes on loopback with the
times of the same profile: memory and processor time of an idle daemon, and how soon a killed one
is found; sealed packets that one daemon answers a second; and look-ups, as in ``heap``.  Also the
memory of a process that has loaded what every daemon of plain ``twistd`` does, and no more.

Takes ``--hosts N`` (30) and ``--kills N`` (3).
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random

from benchmarks import bench_heap
from benchmarks.common import Figure, Options, peer, say
from gridnet.lbsmd.gossip.identity import SigningIdentity
from gridnet.lbsmd.gossip.keys import read_keys
from gridnet.lbsmd.gossip.membership import Membership
from gridnet.lbsmd.gossip.messages import Ping
from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.lbsmd.gossip.wire import Seal
from tests.integration.gossip_site import (
    GossipSite,
    processor_seconds,
    proportional_octets,
    resident_octets,
)
from tests.ports import free_block

NAME = "gossip"
#: After agreement: what a start leaves behind is done by then.
_SETTLE_SECONDS = 10.0
_IDLE_SECONDS = 20.0
_FIND_SECONDS = 60.0
_WINDOW = 64
#: ``twistd`` and its reactor, in which nothing is done.
_NO_MORE = """\
import os, twisted.scripts.twistd, twisted.internet.reactor
print(os.getpid(), flush=True)
input()
"""


class SerfSite:
    """*count* agents of Serf, with encryption and the LAN profile; the first is the seed."""

    def __init__(self, program: str, count: int, base: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-serf-"))
        self._program = program
        self._base = base
        self._count = count
        self._key = base64.b64encode(os.urandom(16)).decode()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """All of them, and wait until the first knows all."""
        for number in range(self._count):
            rpc = f"127.0.0.1:{self._base + self._count + number}"
            command = [
                *(self._program, "agent", f"-node=n{number}", f"-encrypt={self._key}"),
                *(f"-bind=127.0.0.1:{self._base + number}", f"-rpc-addr={rpc}", "-profile=lan"),
                *([f"-join=127.0.0.1:{self._base}"] if number else []),
            ]
            with self._log(number).open("wb") as log:
                self.processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
            if not number:
                time.sleep(1.0)
        deadline = time.monotonic() + 60
        while self._text(0).count("EventMemberJoin") < self._count:
            if time.monotonic() > deadline:
                raise AssertionError("Serf's agents do not find each other")
            time.sleep(0.2)

    def _log(self, number: int) -> Path:
        return self.directory / f"{number}.log"

    def _text(self, number: int) -> str:
        return self._log(number).read_text("utf-8", "replace")

    def has_found(self, number: int, victim: int) -> bool:
        """Whether agent *number* has said that *victim* failed."""
        return f"EventMemberFailed: n{victim} " in self._text(number)

    def end(self) -> None:
        """Kill them all."""
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _detections(
    kill: Callable[[int], None],
    has_found: Callable[[int, int], bool],
    count: int,
    kills: int,
) -> tuple[list[float], list[float]]:
    """Seconds from each kill until the first, and until all that are left, have found it."""
    first: list[float] = []
    last: list[float] = []
    for victim in range(count - 1, count - 1 - kills, -1):
        began = time.monotonic()
        kill(victim)
        missing = set(range(victim))
        while missing:
            missing -= {number for number in missing if has_found(number, victim)}
            now = time.monotonic() - began
            if len(missing) < victim and len(first) == len(last):
                first.append(now)
            if now > _FIND_SECONDS:
                raise AssertionError(f"{len(missing)} do not find host {victim}")
            time.sleep(0.02)
        last.append(now)
    return first, last


def _idle(pids: Sequence[int]) -> tuple[float, float, float]:
    """Megabytes resident, those that are its own, and milliseconds a second, on average of each."""
    time.sleep(_SETTLE_SECONDS)
    before = sum(map(processor_seconds, pids))
    time.sleep(_IDLE_SECONDS)
    used = sum(map(processor_seconds, pids)) - before
    share = 1e3 * used / _IDLE_SECONDS / len(pids)
    resident = sum(map(resident_octets, pids)) / len(pids) / 2**20
    return resident, sum(map(proportional_octets, pids)) / len(pids) / 2**20, share


def _no_more() -> float:
    """Megabytes resident of such a process."""
    with subprocess.Popen(
        [sys.executable, "-c", _NO_MORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        pid = int(process.stdout.readline())
        resident = resident_octets(pid) / 2**20
        process.stdin.write(b"\n")
        process.stdin.close()
    return resident


def _packets(site: GossipSite, seconds: float) -> float:
    """Sealed probes that one daemon answers in a second, asked by a peer that never waits long."""
    target = site.hosts[0]
    address = ("127.0.0.1", int(target.ask("gossip")["port"]))
    keys = read_keys(site.directory / "key")
    me = "127.99.0.1"
    seal = Seal(me, keys, os.urandom(8))
    asker = Membership(
        me, ("127.0.0.1", 9), GossipTimes(), Random(1), 0.0, SigningIdentity(os.urandom(32))
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(0.5)
        opened.sendto(seal.seal([asker.my_belief()], time.time()), address)
        answered = sent = waiting = 0
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            while waiting < _WINDOW:
                packet = seal.seal([Ping(sent & 0xFFFFFFFF, target.address)], time.time())
                opened.sendto(packet, address)
                sent, waiting = sent + 1, waiting + 1
            try:
                opened.recv(65536)
                answered, waiting = answered + 1, waiting - 1
            except TimeoutError:
                waiting = 0  # lost
    return answered / (time.monotonic() - began)


def _compile(directory: str) -> None:
    """
    Have all that a daemon loads compiled in *directory*, for those that start from now on.

    An installed package is; compiling at the start would leave its rests in each daemon's memory.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = directory
    site = GossipSite(1, free_block(2), with_switch=False)
    try:
        site.start()
    finally:
        site.end()


def _gridnet(options: Options, hosts: int, kills: int) -> dict[str, tuple[float, ...]]:
    site = GossipSite(hosts, free_block(2 * hosts), with_switch=False)
    try:
        site.start()
        site.wait(lambda: site.agree(hosts), "agreement", 0.5)
        pids = [host.pid for host in site.hosts]
        resident, own, share = _idle(pids)
        first, last = _detections(
            lambda victim: site.hosts[victim].kill(),
            lambda number, victim: site.hosts[number].has_found_dead(site.hosts[victim].address),
            hosts,
            kills,
        )
        packets = [_packets(site, options.seconds) for _ in range(options.runs)]
        return {
            "memory": (resident,),
            "floor": (_no_more(),),
            "own": (own,),
            "share": (share,),
            "first": tuple(first),
            "last": tuple(last),
            "packets": tuple(packets),
        }
    finally:
        site.end()


def _serf(hosts: int, kills: int) -> dict[str, tuple[float, ...]]:
    program = peer("serf")
    if program is None:
        return {}
    site = SerfSite(program, hosts, free_block(2 * hosts))
    try:
        site.start()
        resident, own, share = _idle([process.pid for process in site.processes])
        first, last = _detections(
            lambda victim: site.processes[victim].kill(), site.has_found, hosts, kills
        )
        return {
            "memory": (resident,),
            "own": (own,),
            "share": (share,),
            "first": tuple(first),
            "last": tuple(last),
        }
    finally:
        site.end()


def run(options: Options) -> Iterable[Figure]:
    """Measure both sites, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gossip", description=__doc__)
    parser.add_argument("--hosts", type=int, default=30)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--no-look-ups", action="store_true")
    words = parser.parse_args(options.arguments)
    with tempfile.TemporaryDirectory(prefix="gridnet-compiled-") as directory:
        _compile(directory)
        say(f"starting {words.hosts} daemons")
        ours = _gridnet(options, words.hosts, words.kills)
    say(f"starting {words.hosts} of Serf's agents")
    theirs = _serf(words.hosts, words.kills)
    for key, name, unit, higher in (
        ("memory", "resident memory of an idle daemon", "MiB", False),
        ("floor", "beside it, plain twistd with its reactor that does nothing", "MiB", False),
        ("own", "the same, shared pages divided among their users", "MiB", False),
        ("share", "processor time of an idle daemon", "ms/s", False),
        ("first", "a killed host is found by the first other", "s", False),
        ("last", "a killed host is found by all others", "s", False),
        ("packets", "sealed probes answered by one daemon", "1/s", True),
    ):
        title = f"{name}, {words.hosts} hosts"
        beside = theirs.get(key, ())
        yield Figure(
            NAME, title, unit, ours[key], "serf" if beside else "", beside, higher_is_better=higher
        )
    if not words.no_look_ups:
        yield from (figure for figure in bench_heap.run(options) if "look-ups" in figure.name)
