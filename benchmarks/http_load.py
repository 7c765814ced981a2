"""HTTP load by wrk, and the peers that answer or pass it on, for the HTTP benchmarks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.common import peer, running, wait_for_port

#: Connections that wrk keeps busy.
CONNECTIONS = 64

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SIZES = {"B": 1.0, "KB": 1024.0, "MB": 1024.0**2, "GB": 1024.0**3}


@frozen
class Load:
    """What one run of wrk saw."""

    requests_per_second: float
    octets_per_second: float
    p99_ms: float


def measure(
    port: int,
    path: str,
    headers: Mapping[str, str],
    seconds: float,
    *,
    connections: int = CONNECTIONS,
    script: Path | None = None,
) -> Load:
    """
    Load ``http://127.0.0.1:port`` with wrk for *seconds*.

    :raises RuntimeError: wrk saw an error or a status other than 2xx.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
    command += ["--timeout", "30s"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    if script is not None:
        command += ["-s", str(script)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=False
    )
    text = done.stdout
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", text)
    size = re.search(r"Transfer/sec:\s+([0-9.]+)(\w+)", text)
    late = re.search(r"99%\s+([0-9.]+)(\w+)", text)
    if rate is None or size is None or late is None:
        raise RuntimeError(f"wrk: {text}{done.stderr}")
    # One run ends in the middle of replies, so reads cut off at its end are no errors.
    if re.search(r"Non-2xx|connect [1-9]|timeout [1-9]", text):
        raise RuntimeError(f"wrk: {text}")
    return Load(
        float(rate[1]),
        float(size[1]) * _SIZES[size[2]],
        float(late[1]) * _UNITS[late[2]],
    )


def warm_up(port: int, path: str, headers: Mapping[str, str], script: Path | None = None) -> None:
    """A second of load, not counted."""
    measure(port, path, headers, 1.0, script=script)


@contextmanager
def nginx(directory: Path, port: int, location: str, upstream: int | None = None) -> Iterator[bool]:
    """
    nginx with one worker on *port*; False when it is not installed.

    :param location: body of ``location /``.
    :param upstream: port of the server ``upstream`` that *location* may pass to.
    """
    program = peer("nginx")
    if program is None:
        yield False
        return
    path = directory / f"nginx-{port}.conf"
    behind = f"upstream upstream {{ server 127.0.0.1:{upstream}; keepalive 64; }}"
    path.write_text(
        f"""
worker_processes 1;
daemon off;
error_log /dev/null;
pid {directory}/nginx-{port}.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 100000000;
  client_body_temp_path {directory}/body-{port};
  proxy_temp_path {directory}/proxy-{port};
  fastcgi_temp_path {directory}/fastcgi-{port};
  uwsgi_temp_path {directory}/uwsgi-{port};
  scgi_temp_path {directory}/scgi-{port};
  {behind if upstream else ""}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ {location} }} }}
}}
"""
    )
    with running([program, "-c", path, "-p", directory]):
        wait_for_port(port)
        yield True


@contextmanager
def haproxy(directory: Path, port: int, upstream: int) -> Iterator[bool]:
    """HAProxy with one thread on *port* in front of *upstream*; False when not installed."""
    program = peer("haproxy")
    if program is None:
        yield False
        return
    path = directory / f"haproxy-{port}.cfg"
    path.write_text(
        f"""
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  default_backend back
backend back
  server one 127.0.0.1:{upstream}
"""
    )
    with running([program, "-f", path, "-db"]):
        wait_for_port(port)
        yield True


@contextmanager
def etcd(directory: Path, port: int, peer_port: int) -> Iterator[bool]:
    """One etcd on *port*; False when it is not installed."""
    program = peer("etcd")
    if program is None:
        yield False
        return
    command: Sequence[str | Path] = [
        program,
        "--data-dir",
        directory / "etcd",
        f"--listen-client-urls=http://127.0.0.1:{port}",
        f"--advertise-client-urls=http://127.0.0.1:{port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
    ]
    with running(command):
        wait_for_port(port)
        yield True
