"""
Requests that the dispatcher relays to an HTTP server, beside HAProxy and nginx in front of the same
server: one process or thread each.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common import Figure, Options, say, scratch, site, wait_for_port
from benchmarks.http_load import Load, haproxy, measure, nginx, warm_up
from tests.ports import free_port

NAME = "relay-http"
SMALL_OCTETS = 1024
LARGE_OCTETS = 100_000_000


def _site_toml(directory: Path, port: int, upstream: int) -> str:
    servrc = directory / "servrc.cfg"
    servrc.write_text(
        f"small [0] HTTP 127.0.0.1:{upstream} /small L=no\n"
        f"large [0] HTTP 127.0.0.1:{upstream} /large L=no\n"
    )
    return f"""
[site]
state_dir = "{directory / "state"}"
[lbsmd]
servrc = "{servrc}"
[dispatch]
listen = "tcp:{port}:interface=127.0.0.1"
"""


def run(options: Options) -> Iterable[Figure]:
    """Small requests per second, and octets per second of large bodies."""
    with ExitStack() as stack:
        directory = stack.enter_context(scratch())
        root = directory / "root"
        root.mkdir()
        (root / "small").write_bytes(b"x" * SMALL_OCTETS)
        with open(root / "large", "wb") as large:
            large.truncate(LARGE_OCTETS)
        upstream = free_port()
        serving = f"root {root}; sendfile on; default_type application/octet-stream;"
        if not stack.enter_context(nginx(directory, upstream, serving)):
            say("nothing to relay to: nginx serves behind the relays")
            return
        ports: dict[str, int] = {}
        place = directory / "gridnet"
        place.mkdir()
        ports["gridnet"] = free_port()
        stack.enter_context(site(_site_toml(place, ports["gridnet"], upstream), place))
        wait_for_port(ports["gridnet"])
        port = free_port()
        if stack.enter_context(haproxy(directory, port, upstream)):
            ports["haproxy"] = port
        port = free_port()
        passing = (
            "proxy_pass http://upstream; proxy_http_version 1.1; "
            'proxy_set_header Connection ""; proxy_max_temp_file_size 0;'
        )
        if stack.enter_context(nginx(directory, port, passing, upstream)):
            ports["nginx"] = port
        for label, name, connections in (("small requests", "small", 64), ("100 MB", "large", 4)):
            paths = {
                who: f"/Service/dispd.cgi?service={name}" if who == "gridnet" else f"/{name}"
                for who in ports
            }
            loads: dict[str, list[Load]] = {who: [] for who in ports}
            for who, port in ports.items():
                warm_up(port, paths[who], {})
            for _ in range(options.runs):
                for who, port in ports.items():
                    loads[who].append(
                        measure(port, paths[who], {}, options.seconds, connections=connections)
                    )
            for other in [who for who in ports if who != "gridnet"] or [""]:
                theirs = loads.get(other, [])
                if name == "small":
                    yield Figure(
                        NAME,
                        f"{label} of {SMALL_OCTETS} octets",
                        "requests/s",
                        tuple(load.requests_per_second for load in loads["gridnet"]),
                        other,
                        tuple(load.requests_per_second for load in theirs),
                    )
                else:
                    yield Figure(
                        NAME,
                        f"bodies of {label}",
                        "MB/s",
                        tuple(load.octets_per_second / 1e6 for load in loads["gridnet"]),
                        other,
                        tuple(load.octets_per_second / 1e6 for load in theirs),
                    )
