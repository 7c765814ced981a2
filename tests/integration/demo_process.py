"""A demo site in a process of its own, for tests that meet it as a user does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gridnet
from tests.prepared import PreparedProcess

ROOT = Path(gridnet.__file__).parent.parent
START_SECONDS = 60.0


class DemoProcess:
    """
    ``gridnet demo`` as a process of its own.

    :ivar ready: what it printed when it was ready.
    """

    ready: dict[str, Any]

    def __init__(self, base: int, arguments: Sequence[str] = ()) -> None:
        self.base = base
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-demo-"))
        words = ["demo", "--dir", str(self.directory), "--port-base", str(base), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = PreparedProcess(words, environment, os.getcwd())
        try:
            self.ready = json.loads(self._first_line())
        except Exception:
            self.kill()
            raise

    def _first_line(self) -> bytes:
        """The line it prints when ready; AssertionError with its errors when there is none."""
        deadline = time.monotonic() + START_SECONDS
        while b"\n" not in self.process.output:
            if time.monotonic() > deadline:
                raise AssertionError(f"no line after {START_SECONDS} s")
            with suppress(TimeoutError):
                self.process.wait(0.01)
                self.process.hear_out()
                raise AssertionError(self.process.errors.decode())
        return self.process.output.partition(b"\n")[0]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send it the signal *number*; its exit status, and the seconds it took."""
        begin = time.monotonic()
        self.process.send_signal(number)
        try:
            status = self.process.wait(60)
        finally:
            seconds = time.monotonic() - begin
            self.kill()
        return status, seconds

    def kill(self) -> None:
        """End it whatever it does, and remove its directory."""
        self.process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
