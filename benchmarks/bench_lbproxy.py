"""
The LB proxy: durable events a second, small jobs a second, the event stream, growth of the store.

The peer of the event figures is SQLite itself: the very statements that the ledger issues for
as many events of as many clients in groups of the same size, made beforehand and run with
nothing else around them, in a process of its own: no socket, no client, no event to read.
Beside them stands what the disk does: syncs of one page a second.  ``slow-disk`` are the same
figures with every sync made longer, for both, by a small preloaded library: many a disk in a
machine room takes milliseconds, and one of a workplace lies.  Words on the command line choose
figures: ``disk``, ``events``, ``slow-disk``, ``jobs``, ``stream``, ``growth``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.common import (
    REPOSITORY,
    Figure,
    Options,
    peer,
    running,
    scratch,
    wait_for_port,
)
from benchmarks.lbproxy_load import PLACEHOLDER, small_job, unique_parts
from gridnet.lbproxy import frames
from gridnet.lbproxy.blocking import connect_unix
from gridnet.lbproxy.results import LbError
from tests.ports import free_port

NAME = "lbproxy"
EVENTS_OF_A_JOB = 10
#: Published for the L&B server of 2006, which stored such jobs.
PUBLISHED_JOBS = 14.7
FOLLOWERS, STREAMED = 1000, 200
#: About what a disk without a cache that survives a power cut takes.
SLOW_SYNC_MILLISECONDS = 2.0


@contextmanager
def service(
    directory: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str, int]]:
    """A service of its own: store socket, serve socket, port of its status pages."""
    store, serve, port = str(directory / "store.sock"), str(directory / "serve.sock"), free_port()
    path = directory / "site.toml"
    path.write_text(
        f'[lbproxy]\nstore_socket = "{store}"\nserve_socket = "{serve}"\n'
        f'[status]\nlisten = "tcp:{port}:interface=127.0.0.1"\n'
    )
    command = [sys.executable, "-m", "twisted", "--log-level=warn", "gridnet"]
    with open(directory / "log", "wb") as log:
        with running(
            [*command, "--config", path], cwd=directory, environment=environment, output=log
        ) as process:
            deadline = time.monotonic() + 15
            # It is there a little before anybody listens at it.
            while True:
                with suppress(LbError):
                    connect_unix(serve, deadline).close()
                    break
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError((directory / "log").read_text())
                time.sleep(0.02)
            wait_for_port(port)
            yield store, serve, port


def load(store: str, clients: int, seconds: float, *words: str) -> dict[str, float]:
    """What *clients* clients got done."""
    command = [sys.executable, "-m", "benchmarks.lbproxy_load", store, str(clients), str(seconds)]
    done = subprocess.run(
        [*command, *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


# -- the limits -----------------------------------------------------------------------------------


def syncs(directory: Path, seconds: float) -> float:
    """Appends of one page, each synced, a second."""
    number = os.open(directory / "pages", os.O_CREAT | os.O_WRONLY)
    count, started = 0, time.perf_counter()
    try:
        while time.perf_counter() - started < seconds:
            os.pwrite(number, b"x" * 4096, count * 4096)
            os.fdatasync(number)
            count += 1
        return count / (time.perf_counter() - started)
    finally:
        os.close(number)


def sqlite_alone(
    directory: Path, group: int, clients: int, count: int, environment: Mapping[str, str]
) -> float:
    """
    Events a second when only the statements of the ledger are run.

    :param group: events a commit.
    :param clients: that log side by side.
    :param count: events.
    """
    command = [sys.executable, "-m", "benchmarks.lbproxy_limit"]
    done = subprocess.run(
        [*command, directory, str(group), str(clients), str(count)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        check=True,
        stdout=subprocess.PIPE,
    )
    return float(done.stdout)


def slow_syncs(directory: Path, milliseconds: float) -> Mapping[str, str] | None:
    """Variables by which every sync of a process takes longer; None without a C compiler."""
    if not milliseconds:
        return {}
    compiler = peer("cc")
    if compiler is None:
        return None
    library = directory / "slow_sync.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", library, "-x", "c", "-", "-ldl"],
        input=_SLOW_SYNC,
        check=True,
    )
    return {"LD_PRELOAD": str(library), "SYNC_MICROSECONDS": str(round(milliseconds * 1000))}


_SLOW_SYNC = b"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
static void pause_a_little(void) {
    long us = atol(getenv("SYNC_MICROSECONDS"));
    struct timespec wait = { us / 1000000, us % 1000000 * 1000 };
    nanosleep(&wait, NULL);
}
int fdatasync(int fd) {
    pause_a_little();
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
int fsync(int fd) {
    pause_a_little();
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd);
}
"""


# -- the figures ----------------------------------------------------------------------------------


def _events(
    options: Options, clients: int, *words: str, sync_milliseconds: float = 0.0
) -> Iterable[Figure]:
    rates, halves, tails, limits, groups = [], [], [], [], []
    for _ in range(options.runs):
        with scratch() as directory:
            environment = slow_syncs(directory, sync_milliseconds)
            if environment is None:
                return
            with service(directory, environment) as (store, _, port):
                found = load(store, clients, options.seconds, *words)
                groups.append(_group_size(port))
            rates.append(found["events"] / found["seconds"])
            halves.append(found["p50"])
            tails.append(found["p99"])
            group = max(1, round(groups[-1]))
            count = int(found["events"])
            limits.append(sqlite_alone(directory, group, clients, count, environment))
    name = f"durable events, {clients} client{'s' if clients > 1 else ''}"
    if words:
        name += ", a connection each"
    if sync_milliseconds:
        name += f", syncs {sync_milliseconds:g} ms slower"
    peer = f"SQLite alone, {max(1, round(sum(groups) / len(groups)))} a commit"
    yield Figure(NAME, name, "1/s", tuple(rates), peer, tuple(limits))
    yield Figure(NAME, f"{name}: p50", "ms", tuple(halves), higher_is_better=False)
    yield Figure(NAME, f"{name}: p99", "ms", tuple(tails), higher_is_better=False)


def _group_size(port: int) -> float:
    """Events of one commit, as the service counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    found = dict(re.findall(r"^gridnet_lbproxy_(events|commits)_total ([0-9.e+]+)$", text, re.M))
    return float(found["events"]) / max(1.0, float(found["commits"]))


def _jobs(options: Options, clients: int) -> Iterable[Figure]:
    rates = []
    for _ in range(options.runs):
        with scratch() as directory, service(directory) as (store, _, _):
            found = load(store, clients, options.seconds)
            rates.append(found["events"] / found["seconds"] / EVENTS_OF_A_JOB)
    yield Figure(
        NAME,
        f"small jobs to a computed state, {clients} clients",
        "1/s",
        tuple(rates),
        "L&B 2006, published",
        (PUBLISHED_JOBS,),
    )


def _growth(options: Options) -> Iterable[Figure]:
    lines = small_job()
    mean = sum(map(len, lines)) / len(lines)
    sizes = []
    for _ in range(options.runs):
        with scratch() as directory:
            with service(directory) as (store, _, _):
                found = load(store, 8, options.seconds)
            # Closed in order: the write-ahead log has gone into the file.
            sizes.append((directory / "state" / "lbproxy.sqlite").stat().st_size / found["events"])
    yield Figure(
        NAME,
        "store growth an event",
        "octets",
        tuple(sizes),
        "the line itself",
        (mean,),
        higher_is_better=False,
    )


def _deliveries(options: Options) -> Iterable[Figure]:
    rates = []
    for _ in range(options.runs):
        with scratch() as directory, service(directory) as (store, serve, _):
            rates.append(_stream(store, serve))
    yield Figure(NAME, f"event-stream deliveries to {FOLLOWERS} followers", "1/s", tuple(rates))


def _stream(store: str, serve: str) -> float:
    """Deliveries a second while one client logs as fast as it is acknowledged."""
    lines, uniques = small_job(), unique_parts("stream-")
    messages = []
    for _ in range(STREAMED // EVENTS_OF_A_JOB):
        unique = next(uniques)
        messages += [frames.encode_message(one.replace(PLACEHOLDER, unique)) for one in lines]
    command = [sys.executable, "-m", "benchmarks.lbproxy_followers", serve]
    with subprocess.Popen(
        [*command, str(FOLLOWERS), str(STREAMED)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    ) as followers:
        assert followers.stdout is not None
        followers.stdout.readline()
        with connect_unix(store, time.monotonic() + 5) as connection:
            started = time.monotonic()
            for message in messages:
                connection.sendall(message)
                connection.recv(4096)
            ended = float(followers.stdout.readline())
    return FOLLOWERS * STREAMED / (ended - started)


def run(options: Options) -> Iterable[Figure]:
    """All figures, or those whose words are on the command line."""
    chosen = options.arguments or ("disk", "events", "slow-disk", "jobs", "stream", "growth")
    if "disk" in chosen:
        with scratch() as directory:
            rates = tuple(syncs(directory, options.seconds) for _ in range(options.runs))
        yield Figure(NAME, "syncs of the disk", "1/s", rates)
    if "events" in chosen:
        for clients in (1, 8, 64):
            yield from _events(options, clients)
        yield from _events(options, 8, "--reconnect")
    if "slow-disk" in chosen:
        for clients in (1, 8, 64):
            yield from _events(options, clients, sync_milliseconds=SLOW_SYNC_MILLISECONDS)
    if "jobs" in chosen:
        yield from _jobs(options, 8)
        yield from _jobs(options, 64)
    if "stream" in chosen:
        yield from _deliveries(options)
    if "growth" in chosen:
        yield from _growth(options)
