"""An LB proxy in a process of its own, for tests that kill it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import frames
from gridnet.lbproxy.blocking import connect_unix
from gridnet.lbproxy.client import Context
from gridnet.lbproxy.frames import FrameReader, Reply

REPOSITORY = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 60.0


def wait_for(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Return once *condition* holds."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        pause.wait(0.005)


class Child:
    """
    A service with its own directory.

    :param settings: further lines of ``[lbproxy]`` (and tables below it).
    :param wrap: command that becomes the service by executing the words after its own.
    """

    def __init__(
        self, settings: str = "", directory: Path | None = None, wrap: Sequence[str] = ()
    ) -> None:
        self._wrap = wrap
        self.directory = directory or Path(tempfile.mkdtemp(prefix="lbc"))
        self.store = str(self.directory / "store.sock")
        self.serve = str(self.directory / "serve.sock")
        self.database = self.directory / "state" / "lbproxy.sqlite"
        self.log = self.directory / "log"
        (self.directory / "site.toml").write_text(
            f'[lbproxy]\nstore_socket = "{self.store}"\nserve_socket = "{self.serve}"\n{settings}'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [
            *self._wrap,
            sys.executable,
            "-m",
            "twisted",
            "--log-level=info",
            "--log-format=text",
        ]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, "gridnet-lbproxy", "--config", "site.toml"],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the service ended: {self.log.read_text()[-2000:]}")
        for path in (self.store, self.serve):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(START_SECONDS)
                try:
                    probe.connect(path)
                except OSError:
                    return False
        return True

    def kill(self) -> None:
        """End it without warning."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> bool:
        """End it; returns whether it ended in order, removing its sockets."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(START_SECONDS)  # twist ends by the signal that it was sent
        left = [path for path in (self.store, self.serve) if Path(path).exists()]
        return status in (0, -signal.SIGTERM) and not left

    def forget(self) -> None:
        """Remove its directory; ends it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def context(self, user: str = "/O=Grid/CN=jan") -> Context:
        """A client of it."""
        return Context(store=self.store, serve=self.serve, user=user, host="ui.example.org")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    def lines(self, database: Path | None = None) -> list[bytes]:
        """
        The event lines in its file, in the order of their positions.

        :param database: where we see the file, if elsewhere than it does.
        """
        path = database or self.database
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT line FROM events ORDER BY position").fetchall()
        return [bytes(line) for (line,) in rows]


@cache
def shared_child() -> Child:
    """A service for all tests that only talk to it; it ends with the test run."""
    child = Child("keep_final_seconds = 600\n")
    atexit.register(child.forget)
    child.start()
    return child


class ChildTestCase(SynchronousTestCase):
    """Tests that talk to a service in a process of its own."""

    def setUp(self) -> None:
        self.child = shared_child()


class RawClient:
    """Sends store messages over one connection, which is made anew when it is lost."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def send(self, message: bytes) -> Reply:
        """
        The reply to *message*.

        :raises OSError: the connection was lost before a reply; whether it is stored is not known.
        """
        if self._socket is None:
            self._socket = connect_unix(self._path, time.monotonic() + START_SECONDS)
        try:
            self._socket.settimeout(START_SECONDS)
            self._socket.sendall(message)
            reader = FrameReader(1 << 20)
            while True:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionResetError("lost")
                bodies = reader.receive(data)
                if bodies:
                    return frames.decode_reply(bodies[0])
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
