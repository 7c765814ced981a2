"""
Look-ups per second of the dispatcher, beside nginx that returns the same headers and etcd that
answers a range read (over its HTTP interface).
"""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import Figure, Options, scratch, site, wait_for_port
from benchmarks.http_load import Load, etcd, measure, nginx, warm_up
from tests.ports import free_port

NAME = "dispatch"
PATH = "/Service/dispd.cgi?service=bounce&address=localhost(127.0.0.1)&platform=x86_64-linux-gnu"
#: What a released client sends with a look-up.
HEADERS = {
    "User-Agent": "NCBIServiceDispatcher/1.2 (CXX Toolkit) NCBIHttpConnector (CXX Toolkit)",
    "Client-Revision": "7.0",
    "Accepted-Server-Types": "NCBID STANDALONE HTTP_GET HTTP_POST DNS",
    "Dispatch-Mode": "INFORMATION_ONLY",
    "Client-Mode": "STATEFUL_CAPABLE",
}
MODES = {"keep-alive": HEADERS, "one request a connection": {**HEADERS, "Connection": "close"}}
SERVERS = 5


def _servrc() -> str:
    return "".join(f"bounce [0] STANDALONE 127.0.0.1:{7000 + n} L=no\n" for n in range(SERVERS))


def _nginx_location() -> str:
    """The same headers as a reply of ours."""
    lines = ['add_header Service "bounce";']
    lines += [
        f'add_header Server-Info-{n} "STANDALONE 127.0.0.1:{7000 + n} L=no R=1000.00 S=no T=30";'
        for n in (1, 2, 3)
    ]
    return " ".join([*lines, "return 200;"])


def _site_toml(directory: Path, port: int, workers: int) -> str:
    servrc = directory / "servrc.cfg"
    servrc.write_text(_servrc())
    return f"""
[site]
state_dir = "{directory / "state"}"
[lbsmd]
servrc = "{servrc}"
[dispatch]
listen = "tcp:{port}:interface=127.0.0.1"
workers = {workers}
"""


def _range_read(directory: Path, port: int) -> Path:
    """Put what a look-up would find, and give the wrk script that reads it."""
    key = base64.b64encode(b"service/bounce/").decode()
    end = base64.b64encode(b"service/bounce0").decode()
    for n in (1, 2, 3):
        name = base64.b64encode(f"service/bounce/{n}".encode()).decode()
        text = f"STANDALONE 127.0.0.1:{7000 + n} L=no R=1000.00 S=no T=30"
        body = {"key": name, "value": base64.b64encode(text.encode()).decode()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v3/kv/put", json.dumps(body).encode()
        )
        urllib.request.urlopen(request, timeout=10).close()
    script = directory / "range.lua"
    body_text = json.dumps({"key": key, "range_end": end, "serializable": True})
    script.write_text(
        "wrk.method = 'POST'\n"
        f"wrk.body = '{body_text}'\n"
        "wrk.headers['Content-Type'] = 'application/json'\n"
    )
    return script


def run(options: Options) -> Iterable[Figure]:
    """All figures of the dispatcher."""
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        scripts: dict[str, Path] = {}
        directory = stack.enter_context(scratch())
        for workers in (1, 2):
            place = directory / str(workers)
            place.mkdir()
            port = free_port()
            stack.enter_context(site(_site_toml(place, port, workers), place))
            wait_for_port(port)
            ports[f"gridnet, {workers} worker{'s' if workers > 1 else ''}"] = port
        port = free_port()
        if stack.enter_context(nginx(directory, port, _nginx_location())):
            ports["nginx"] = port
        port, peer_port = free_port(), free_port()
        if stack.enter_context(etcd(directory, port, peer_port)):
            ports["etcd"] = port
            scripts["etcd"] = _range_read(directory, port)
        paths = {name: "/v3/kv/range" if name == "etcd" else PATH for name in ports}
        for mode, headers in MODES.items():
            loads: dict[str, list[Load]] = {name: [] for name in ports}
            sent = {
                # etcd's reader wants its own headers only.
                name: {k: v for k, v in headers.items() if k == "Connection"}
                if name == "etcd"
                else headers
                for name in ports
            }
            for name, port in ports.items():
                warm_up(port, paths[name], sent[name], scripts.get(name))
            for _ in range(options.runs):
                for name, port in ports.items():
                    load = measure(
                        port,
                        paths[name],
                        sent[name],
                        options.seconds,
                        script=scripts.get(name),
                    )
                    loads[name].append(load)
            yield from _figures(mode, loads)


def _figures(mode: str, loads: dict[str, list[Load]]) -> Iterable[Figure]:
    """Every pair of ours and a peer's."""
    peers: list[str] = [name for name in ("nginx", "etcd") if name in loads]
    for ours in (name for name in loads if name.startswith("gridnet")):
        label = f"{mode}, {ours.removeprefix('gridnet, ')}"
        for name in peers or [""]:
            theirs = loads.get(name, [])
            yield Figure(
                NAME,
                f"look-ups, {label}",
                "requests/s",
                tuple(load.requests_per_second for load in loads[ours]),
                name,
                tuple(load.requests_per_second for load in theirs),
            )
            yield Figure(
                NAME,
                f"p99 under load, {label}",
                "ms",
                tuple(load.p99_ms for load in loads[ours]),
                name,
                tuple(load.p99_ms for load in theirs),
                higher_is_better=False,
            )
