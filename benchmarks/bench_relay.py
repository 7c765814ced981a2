"""
The ticketed relay against HAProxy (``option splice-auto``), nginx ``stream`` and
``twisted.protocols.portforward``, each one process with one thread, in one run.

Bulk is what one and what 16 streams move from client to server; the round trip is that of 64
octets: the median, the 99th of 100, and what the relay adds, also without its look for answers
(``look_seconds = 0``); a new connection is connect, ticket, one octet each way, close.  Client and
server are processes of their own, so on a machine with few cores all share them: only ratios mean
anything.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import psutil
from attrs import frozen

from benchmarks.common import (
    REPOSITORY,
    Figure,
    Options,
    peer,
    running,
    say,
    scratch,
    wait_for_port,
)
from tests.ports import free_port

PIPE_OCTETS = 1 << 20
STREAMS = 16
IN_FLIGHT = 32
MESSAGE_OCTETS = 64


@frozen
class Way:
    """One way to a server: straight, or through a relay."""

    name: str
    ports: dict[str, int]  #: kind of server -> port to connect to
    hello: Callable[[str, int], Sequence[bytes]]  #: (kind, count) -> first octets of connections
    process: psutil.Process | None  #: the relay


def _no_hello(kind: str, count: int) -> Sequence[bytes]:
    return [b""] * count


def _dial(port: int, hello: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hello:
        connection.sendall(hello)
    return connection


def _cpu_seconds(way: Way) -> float:
    if way.process is None:
        return 0.0
    times = way.process.cpu_times()
    return float(times.user + times.system)


def bulk(way: Way, streams: int, seconds: float) -> tuple[float, float]:
    """MB/s, and CPU seconds of the relay for each GB."""
    block = bytes(1 << 20)
    counts: list[int] = []
    connections = [_dial(way.ports["sink"], hello) for hello in way.hello("sink", streams)]
    cpu = _cpu_seconds(way)
    begin = time.perf_counter()

    def send(connection: socket.socket) -> None:
        with connection:
            while time.perf_counter() - begin < seconds:
                connection.sendall(block)
            connection.sendall(b"\xff")
            counts.append(int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big"))

    threads = [threading.Thread(target=send, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begin
    total = sum(counts)
    if len(counts) != streams or not total:
        raise RuntimeError(f"{way.name}: a stream was lost")
    return total / spent / 1e6, (_cpu_seconds(way) - cpu) / (total / 1e9)


@frozen
class Trips:
    """Round trips of small messages, microseconds."""

    median: float
    p99: float
    cpu: float  #: of the relay, for each


def round_trips(way: Way, seconds: float) -> Trips:
    """One message after the other, to and fro."""
    (hello,) = way.hello("echo", 1)
    message = b"m" * MESSAGE_OCTETS
    found: list[float] = []
    cpu = _cpu_seconds(way)
    with _dial(way.ports["echo"], hello) as connection:
        until = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < until:
            connection.sendall(message)
            connection.recv(MESSAGE_OCTETS, socket.MSG_WAITALL)
            found.append(time.perf_counter() - begin)
    cpu = (_cpu_seconds(way) - cpu) / len(found)
    found = sorted(found[len(found) // 10 :])
    return Trips(median(found) * 1e6, found[len(found) * 99 // 100] * 1e6, cpu * 1e6)


def connections(way: Way, seconds: float, expected: int) -> tuple[float, float]:
    """New connections a second, :data:`IN_FLIGHT` at a time; the relay's CPU for each, us."""
    hellos = [hello + b"?" for hello in way.hello("answer", int(expected * seconds))]
    address = ("127.0.0.1", way.ports["answer"])
    poll = select.epoll()
    flying: dict[int, socket.socket] = {}
    done = 0

    def launch() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.connect_ex(address)
        flying[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLOUT)

    cpu = _cpu_seconds(way)
    begin = time.perf_counter()
    for _ in range(IN_FLIGHT):
        launch()
    while flying:
        for fd, events in poll.poll(10):
            sock = flying[fd]
            if events & select.EPOLLOUT:
                with contextlib.suppress(OSError):
                    sock.send(hellos.pop())
                poll.modify(fd, select.EPOLLIN)
                continue
            heard = b""
            with contextlib.suppress(OSError):
                heard = sock.recv(16)
            del flying[fd]
            sock.close()
            if heard != b"!":
                raise RuntimeError(f"{way.name}: a connection was lost ({heard!r})")
            done += 1
            if hellos and len(flying) < len(hellos) and time.perf_counter() - begin < seconds:
                launch()
    spent = time.perf_counter() - begin
    return done / spent, (_cpu_seconds(way) - cpu) / done * 1e6


# -- the ways


@contextmanager
def gridnet_way(
    name: str, directory: Path, servers: dict[str, int], settings: str = ""
) -> Iterator[Way]:
    """The relay, as a site file with these further *settings* makes it."""
    port = free_port()
    home = directory / name
    home.mkdir()
    path = home / "gridnet.toml"
    tickets = home / "tickets"
    path.write_text(
        "[firewall]\n"
        f'ports = "{port}"\nrelay_ports = ""\n'
        'listen = "tcp:{port}:interface=127.0.0.1:backlog=4096"\n'
        f"pipe_octets = {PIPE_OCTETS}\n"
        "max_waiting = 1000000\nmax_waiting_per_client = 1000000\n"
        "max_unticketed_per_client = 5000\n"
        "ticket_ttl_seconds = 600.0\npenalize_inside = false\nlog_sessions = false\n" + settings
    )
    command = [sys.executable, "-m", "benchmarks.relay_site", str(path), str(tickets)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        wait_for_port(port)

        def hello(kind: str, count: int) -> Sequence[bytes]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(b"%d %d\n" % (servers[kind], count))
            process.stdin.flush()
            process.stdout.readline()
            octets = tickets.read_bytes()
            return [octets[at : at + 4] for at in range(0, len(octets), 4)]

        try:
            yield Way(name, dict.fromkeys(servers, port), hello, psutil.Process(process.pid))
        finally:
            # The end of its input ends it.
            process.stdin.close()


@contextmanager
def haproxy_way(program: str, directory: Path, servers: dict[str, int]) -> Iterator[Way]:
    """HAProxy, splicing with pipes of the same size."""
    ports = {kind: free_port() for kind in servers}
    sections = "".join(
        f"listen {kind}\n  bind 127.0.0.1:{ports[kind]}\n  server one 127.0.0.1:{port}\n"
        for kind, port in servers.items()
    )
    path = directory / "haproxy.cfg"
    path.write_text(
        f"global\n  nbthread 1\n  maxconn 8000\n  tune.pipesize {PIPE_OCTETS}\n  maxpipes 256\n"
        "defaults\n  mode tcp\n  option splice-auto\n  timeout connect 10s\n"
        "  timeout client 1h\n  timeout server 1h\n"
        "  option tcp-smart-connect\n" + sections
    )
    with running([program, "-db", "-f", path]) as process:
        for port in ports.values():
            wait_for_port(port)
        yield Way("HAProxy", ports, _no_hello, psutil.Process(process.pid))


@contextmanager
def nginx_way(program: str, directory: Path, servers: dict[str, int]) -> Iterator[Way]:
    """nginx as a stream proxy, if it was built so."""
    ports = {kind: free_port() for kind in servers}
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    load = f"load_module {module};\n" if module.exists() else ""
    blocks = "".join(
        f"server {{ listen 127.0.0.1:{ports[kind]} backlog=4096; proxy_pass 127.0.0.1:{port}; "
        "tcp_nodelay on; proxy_buffer_size 64k; }\n"
        for kind, port in servers.items()
    )
    path = directory / "nginx.conf"
    path.write_text(
        f"{load}daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid;\n"
        f"error_log {directory}/nginx.log;\n"
        "events { worker_connections 8000; }\n"
        f"stream {{ access_log off; proxy_timeout 1h;\n{blocks}}}\n"
    )
    with running([program, "-p", directory, "-c", path]) as process:
        for port in ports.values():
            wait_for_port(port)
        yield Way("nginx stream", ports, _no_hello, psutil.Process(process.pid))


@contextmanager
def forward_way(kind: str, port: int) -> Iterator[Way]:
    """``twisted.protocols.portforward`` before one server."""
    at = free_port()
    with running([sys.executable, "-m", "benchmarks.relay_forward", str(at), str(port)]) as process:
        wait_for_port(at)
        yield Way("portforward", {kind: at}, _no_hello, psutil.Process(process.pid))


def _ways(
    stack: ExitStack, directory: Path, servers: dict[str, int]
) -> tuple[Way, list[dict[str, Way]]]:
    """The relay, and its peers by kind of server."""
    own = stack.enter_context(gridnet_way("gridnet", directory, servers))
    peers: list[dict[str, Way]] = []
    program = peer("haproxy")
    if program:
        way = stack.enter_context(haproxy_way(program, directory, servers))
        peers.append(dict.fromkeys(servers, way))
    program = peer("nginx")
    if program:
        try:
            way = stack.enter_context(nginx_way(program, directory, servers))
            peers.append(dict.fromkeys(servers, way))
        except TimeoutError:
            say("skipped: nginx has no stream module (libnginx-mod-stream)")
    peers.append(
        {kind: stack.enter_context(forward_way(kind, port)) for kind, port in servers.items()}
    )
    return own, peers


def run(options: Options) -> Iterator[Figure]:
    """Measure all; phases named in ``arguments`` (bulk, trip, new) only, if any are."""
    wanted = set(options.arguments) or {"bulk", "trip", "new"}
    with scratch() as directory, ExitStack() as stack:
        servers = {kind: free_port() for kind in ("sink", "echo", "answer")}
        for kind, port in servers.items():
            stack.enter_context(
                running([sys.executable, "-m", "benchmarks.relay_backend", kind, str(port)])
            )
            wait_for_port(port)
        own, peers = _ways(stack, directory, servers)
        if "bulk" in wanted:
            for streams in (1, STREAMS):
                yield from _bulk(own, peers, streams, options)
        if "trip" in wanted:
            asleep = stack.enter_context(
                gridnet_way("look_seconds = 0", directory, servers, "look_seconds = 0.0\n")
            )
            direct = Way("no relay", servers, _no_hello, None)
            others = [asleep, *(each["echo"] for each in peers)]
            yield from _trips(own, others, direct, options)
        if "new" in wanted:
            yield from _new(own, peers, options)


def _bulk(
    own: Way, peers: list[dict[str, Way]], streams: int, options: Options
) -> Iterator[Figure]:
    ways = [own, *(each["sink"] for each in peers)]
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for _ in range(options.runs):
        for way in ways:
            found[way.name].append(bulk(way, streams, options.seconds))
    ours = found[own.name]
    name = f"bulk, {streams} stream{'s' if streams > 1 else ''}"
    for way in ways[1:]:
        theirs = found[way.name]
        yield Figure(
            "relay",
            name,
            "MB/s",
            tuple(rate for rate, _ in ours),
            way.name,
            tuple(rate for rate, _ in theirs),
        )
        yield Figure(
            "relay",
            f"CPU, {name}",
            "s/GB",
            tuple(cpu for _, cpu in ours),
            way.name,
            tuple(cpu for _, cpu in theirs),
            higher_is_better=False,
        )


def _trips(own: Way, others: list[Way], direct: Way, options: Options) -> Iterator[Figure]:
    ways = [direct, own, *others]
    found: dict[str, list[Trips]] = {way.name: [] for way in ways}
    for _ in range(options.runs):
        for way in ways:
            found[way.name].append(round_trips(way, options.seconds))
    name = f"round trip of {MESSAGE_OCTETS} octets"
    straight = found[direct.name]
    for way in (direct, *others):
        kinds: dict[str, Callable[[Trips, Trips], float]] = {
            name: lambda trips, _: trips.median,
            f"99th of 100, {name}": lambda trips, _: trips.p99,
        }
        if way is not direct:
            kinds[f"added, {name}"] = lambda trips, base: trips.median - base.median
            kinds[f"CPU, {name}"] = lambda trips, _: trips.cpu
        for kind, figure in kinds.items():
            yield Figure(
                "relay",
                kind,
                "us",
                tuple(map(figure, found[own.name], straight)),
                way.name,
                tuple(map(figure, found[way.name], straight)),
                higher_is_better=False,
            )


def _new(own: Way, peers: list[dict[str, Way]], options: Options) -> Iterator[Figure]:
    ways = [own, *(each["answer"] for each in peers)]
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for _ in range(options.runs):
        for way in ways:
            found[way.name].append(connections(way, options.seconds, 12_000))
    for way in ways[1:]:
        for at, name, unit in (0, "new connections", "1/s"), (1, "CPU, new connection", "us"):
            yield Figure(
                "relay",
                name,
                unit,
                tuple(each[at] for each in found[own.name]),
                way.name,
                tuple(each[at] for each in found[way.name]),
                higher_is_better=at == 0,
            )
