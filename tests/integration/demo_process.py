"""A demo site in a process of its own, for tests that meet it as a user does."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gridnet

ROOT = Path(gridnet.__file__).parent.parent
START_SECONDS = 60.0


class DemoProcess:
    """
    ``gridnet demo`` as a child process.

    :ivar ready: what it printed when it was ready.
    """

    ready: dict[str, Any]

    def __init__(self, base: int, arguments: Sequence[str] = ()) -> None:
        self.base = base
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-demo-"))
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gridnet.cli",
                "demo",
                "--dir",
                str(self.directory),
                "--port-base",
                str(base),
                *arguments,
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            self.ready = json.loads(self._first_line())
        except Exception:
            self.kill()
            raise

    def _first_line(self) -> bytes:
        """The line it prints when ready; AssertionError with its errors when there is none."""
        output = self.process.stdout
        assert output is not None and self.process.stderr is not None
        os.set_blocking(output.fileno(), False)
        line = b""
        deadline = time.monotonic() + START_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"no line after {START_SECONDS} s")
                data = output.read()
                if not data:
                    raise AssertionError(self.process.stderr.read().decode())
                line += data
        return line

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send it the signal *number*; its exit status, and the seconds it took."""
        begin = time.monotonic()
        self.process.send_signal(number)
        try:
            status = self.process.wait(30)
        finally:
            seconds = time.monotonic() - begin
            self.kill()
        return status, seconds

    def kill(self) -> None:
        """End it whatever it does, and remove its directory."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        shutil.rmtree(self.directory, ignore_errors=True)
