"""
What every benchmark shares: the figure, its output, and private servers for a run.

A subject is a module ``benchmarks/bench_<subject>.py`` (a dash in the subject is an underscore
in the file) with a docstring and ``run(options: Options) -> Iterable[Figure]``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from attrs import field, frozen

REPOSITORY = Path(__file__).resolve().parent.parent


@frozen
class Options:
    """How a benchmark is to be run."""

    runs: int = 3  #: repetitions of each figure
    seconds: float = 3.0  #: length of one repetition, where it is a matter of time
    json: bool = False  #: one JSON object a line instead of text
    arguments: tuple[str, ...] = ()  #: further words of the command line


@frozen
class Figure:
    """One measured quantity, beside a peer's when there is one."""

    benchmark: str
    name: str
    unit: str
    values: tuple[float, ...]  #: gridnet's, one a run
    peer: str = ""
    peer_values: tuple[float, ...] = field(default=())
    higher_is_better: bool = True

    @property
    def value(self) -> float:
        """The median of gridnet's runs."""
        return statistics.median(self.values)

    @property
    def peer_value(self) -> float | None:
        """The median of the peer's runs."""
        return statistics.median(self.peer_values) if self.peer_values else None

    @property
    def ratio(self) -> float | None:
        """gridnet / peer, of the medians; None: no peer, or a difference that is below nothing."""
        peer = self.peer_value
        return self.value / peer if peer and peer > 0 and self.value >= 0 else None

    def as_json(self) -> Mapping[str, object]:
        """The documented form of one output line."""
        return {
            "benchmark": self.benchmark,
            "figure": self.name,
            "unit": self.unit,
            "gridnet": self.value,
            "peer": self.peer or None,
            "peer_value": self.peer_value,
            "ratio": self.ratio,
            "runs": len(self.values),
        }

    def as_text(self) -> str:
        """One line for people: median (min..max), peer, ratio."""

        def spread(values: Sequence[float]) -> str:
            return f"{statistics.median(values):,.4g} ({min(values):,.4g}..{max(values):,.4g})"

        text = f"{self.benchmark}: {self.name}: {spread(self.values)} {self.unit}"
        if self.peer and self.peer_values:
            text += f"; {self.peer} {spread(self.peer_values)}"
        if self.ratio is not None:
            text += f"; ratio {self.ratio:.3g}"
        return text


def say(text: str) -> None:
    """A remark (a peer that is missing, a phase): standard error, so that output stays data."""
    print(text, file=sys.stderr, flush=True)


def show(figures: Iterable[Figure], options: Options) -> None:
    """Print *figures* as they come."""
    if not options.json:
        print(f"# {platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    for figure in figures:
        print(json.dumps(figure.as_json()) if options.json else figure.as_text(), flush=True)


def peer(program: str, *places: str) -> str | None:
    """Path of a peer's *program*, or None after saying that it is skipped."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", *places])
    found = shutil.which(program, path=path)
    if found is None:
        say(f"skipped: {program} is not installed")
    return found


def wait_for_port(port: int, seconds: float = 15.0) -> None:
    """
    Return once something listens on loopback *port*.

    :raises TimeoutError: nothing does within *seconds*.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on 127.0.0.1:{port} after {seconds} s")


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes away with the run; peers that shed privileges can read it."""
    with tempfile.TemporaryDirectory(prefix="gridnet-bench-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server process for the length of the block: its whole group is ended afterwards."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=output or subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(5)
                break
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def site(toml: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``twistd gridnet`` with the site file *toml*, in *directory*; log in ``twistd.log``."""
    path = directory / "site.toml"
    path.write_text(toml)
    twistd: list[str | Path] = [
        sys.executable,
        "-m",
        "twisted",
        "--log-level=warn",
        "gridnet",
        "--config",
        path,
    ]
    with open(directory / "twistd.log", "wb") as log:
        with running(twistd, cwd=directory, output=log) as process:
            yield process
