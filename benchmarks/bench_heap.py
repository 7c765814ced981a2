"""
The shared-memory table: what an image costs, and look-ups per second in process, from shared
memory in Python, and from shared memory in the NCBI library when ``GRIDNET_NCBI_CONNECT`` names a
build of it (docs/protocols/shared-memory.rst).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from attrs import evolve

from benchmarks.common import REPOSITORY, Figure, Options, say
from gridnet.table.heap import HeapBuilder
from gridnet.table.heap_layout import VALIDITY_SECONDS
from gridnet.table.heap_segment import HeapKeys, HeapPublisher, HeapReader
from gridnet.table.model import Entry, Host, ServiceTable
from gridnet.table.selection import Candidate, Lottery, status
from gridnet.table.server_info import ServerInfo, ServerType

NAME = "heap"
SERVICES, SERVERS = 2000, 5
WANTED = "service1000"


def _table() -> ServiceTable:
    table = ServiceTable()
    for number in range(SERVICES):
        for place in range(SERVERS):
            host = f"10.0.{number >> 8}.{number & 255}"
            info = ServerInfo(ServerType.STANDALONE, host, 1000 + place, rate=1000.0, time=30)
            table.put(Entry(f"service{number}", info, owner=host))
        table.put_host(Host(host, environment=(("db", "PubMed"),)))
    return table


def _choose(entries: Iterable[Entry], host: Callable[[str], Host | None]) -> None:
    """One look-up: rate the servers, and draw one."""
    usable = list(entries)
    candidates = [Candidate(status(entry, host(entry.info.host))) for entry in usable]
    Lottery(usable, candidates, 0.0, 1.1).draw(1, random.Random(1))


def _rate(action: Callable[[], object], seconds: float) -> float:
    """How often *action* can be done in a second."""
    done = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(20):
            action()
        done += 20
    return done / (time.perf_counter() - began)


def _figure(
    options: Options, name: str, unit: str, action: Callable[[], object], milliseconds: bool = False
) -> Figure:
    rates = [_rate(action, options.seconds) for _ in range(options.runs)]
    values = tuple(1000 / rate if milliseconds else rate for rate in rates)
    return Figure(NAME, name, unit, values, higher_is_better=not milliseconds)


def _in_c(options: Options) -> Iterable[Figure]:
    library, unshare = os.environ.get("GRIDNET_NCBI_CONNECT", ""), shutil.which("unshare")
    if not library or unshare is None:
        say("skipped: GRIDNET_NCBI_CONNECT names no NCBI library with shared memory")
        return
    namespaces = [unshare, "--ipc", "--mount", "true"]
    if subprocess.run(namespaces, capture_output=True).returncode:
        say("skipped: no IPC and mount namespaces can be made")
        return
    values = []
    for _ in range(options.runs):
        command = [
            unshare,
            "--ipc",
            "--mount",
            sys.executable,
            "-m",
            "tests.integration.heap_lookup",
        ]
        done = subprocess.run(
            [*command, library, "20000", "10"],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        found = json.loads(done.stdout)
        values.append(found["look_ups"] / found["seconds"])
        if found["torn"] or found["missed"]:
            say(f"unsound: {found}")
    name = "look-ups, NCBI library, 200 servers, table changes 10 times a second"
    yield Figure(NAME, name, "1/s", tuple(values))


def run(options: Options) -> Iterable[Figure]:
    """Measure with 10,000 servers of 2,000 services."""
    table = _table()
    builder = HeapBuilder("10.0.0.1", time.time())
    builder.follow(table)
    publisher = HeapPublisher(HeapKeys.private(f"benchmark {os.getpid()}"))
    reader = HeapReader(publisher.keys)
    changing = table.entries(WANTED)[0]
    serial = 0

    def image() -> bytes:
        nonlocal serial
        serial += 1
        table.put(evolve(changing, penalty=float(serial % 100)))
        now = time.time()
        return builder.image(now, now + VALIDITY_SECONDS, serial, publisher.octets)

    def refresh() -> None:
        publisher.publish(image())

    def read_anew() -> None:
        refresh()
        reader.read(time.time())

    def from_heap() -> None:
        found = reader.read(time.time())
        if found is not None:
            _choose(found.entries(WANTED), found.host)

    try:
        refresh()
        reader.read(time.time())
        servers = f"{SERVICES * SERVERS:,} servers"
        yield _figure(options, f"image after one change, {servers}", "ms", image, True)
        yield _figure(options, f"image and publication, {servers}", "ms", refresh, True)
        yield _figure(
            options, f"image, publication and first reading, {servers}", "ms", read_anew, True
        )
        yield _figure(
            options,
            f"look-ups in process, {servers}",
            "1/s",
            lambda: _choose(table.entries(WANTED), table.host),
        )
        refresh()
        yield _figure(options, f"look-ups from shared memory, Python, {servers}", "1/s", from_heap)
    finally:
        reader.close()
        publisher.close()
    yield from _in_c(options)
