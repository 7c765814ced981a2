"""
Processes of ``gridnet`` that begin with their modules loaded already.

Loading them takes longer than most of what tests have such a process do.  A server of this module
has loaded them once and forks for each start, before any reactor is there; what runs then is the
command itself, in a process of its own with its own environment, directory and output.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Thread

import gridnet
from gridnet.component import components, load_object

ROOT = Path(gridnet.__file__).parent.parent
#: What commands load late, beside the components; not ``twisted.internet.reactor``, which installs
#: one.
MODULES = (
    "gridnet.cli",
    "gridnet.demo.command",
    "gridnet.launcher.batch.command",
    "gridnet.launcher.batch.service",
    "gridnet.launcher.launcherd.command",
    "gridnet.launcher.launcherd.service",
    "twisted.internet.epollreactor",
)
PATIENCE_SECONDS = 60.0
_LENGTH = struct.Struct(">i")


class PreparedProcess:
    """
    ``gridnet`` *words*, started.

    :ivar pid: of the process.
    :ivar output: what it and whoever inherited that has said on its standard output, until now.
    :ivar errors: the same of its standard error.
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], directory: str | Path
    ) -> None:
        self.output = self.errors = b""
        self._status: int | None = None
        # The streams go with the first octets; the rest is of any length.
        request = json.dumps([list(words), dict(environment), str(directory)]).encode()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.settimeout(PATIENCE_SECONDS)
        self._server.connect(_server_path())
        readers, writers = zip(os.pipe(), os.pipe(), strict=True)
        try:
            socket.send_fds(self._server, [_LENGTH.pack(len(request))], writers)
        finally:
            for fd in writers:
                os.close(fd)
        self._server.sendall(request)
        self._threads = [
            Thread(target=self._hear, args=(fd, name), daemon=True)
            for fd, name in zip(readers, ("output", "errors"), strict=True)
        ]
        for thread in self._threads:
            thread.start()
        self.pid = _LENGTH.unpack(_exactly(self._server, 4))[0]
        # It ends when the process does.
        self._server.settimeout(None)

    def _hear(self, fd: int, name: str) -> None:
        with open(fd, "rb", buffering=0) as stream:
            while data := stream.read(65536):
                setattr(self, name, getattr(self, name) + data)

    def wait(self, seconds: float | None = None) -> int:
        """
        Its exit status, as :class:`subprocess.Popen` tells it.

        :raises TimeoutError: it has not ended within *seconds*.
        """
        if self._status is None:
            if not select.select([self._server], [], [], seconds)[0]:
                raise TimeoutError(f"process {self.pid} goes on")
            with self._server:
                self._status = _LENGTH.unpack(_exactly(self._server, 4))[0]
        return self._status

    def hear_out(self) -> None:
        """Wait until nobody can say anything more on its output."""
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def send_signal(self, number: int) -> None:
        """Send it the signal *number*, unless it has ended."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait()


def run(
    words: Sequence[str], environment: Mapping[str, str], directory: str | Path
) -> subprocess.CompletedProcess[str]:
    """``gridnet`` *words* to its end and that of its output."""
    process = PreparedProcess(words, environment, directory)
    status = process.wait()
    process.hear_out()
    return subprocess.CompletedProcess(
        [*words], status, process.output.decode(), process.errors.decode()
    )


@cache
def _server_path() -> str:
    """Where the server of this test process is; started by who asks first."""
    directory = tempfile.TemporaryDirectory(prefix="gridnet-prepared-")
    path = os.path.join(directory.name, "socket")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.prepared", path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None and server.stdout is not None

    def end() -> None:
        server.kill()
        server.wait()
        directory.cleanup()

    atexit.register(end)
    if server.stdout.readline() != b"ready\n":
        raise AssertionError("no server of prepared processes")
    return path


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError("the server of prepared processes is gone")
        data += more
    return data


# -- the server


def _serve(path: str) -> None:
    for name in MODULES:
        import_module(name)
    for component in components().values():
        load_object(component.factory)
        load_object(component.config)
    assert "twisted.internet.reactor" not in sys.modules
    # Its children are not waited for: those are the watchers below, which have told already.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        # Standard input ends with the process that runs the tests, however that ends.
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            if os.fork():
                connection.close()
                continue
            listening.close()
            try:
                _watch(connection)
            finally:
                os._exit(0)


def _watch(connection: socket.socket) -> None:
    """Start what is asked for, say its process number, wait, and say its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, 2)
    words, environment, directory = json.loads(_exactly(connection, *_LENGTH.unpack(length)))
    pid = os.fork()
    if not pid:
        connection.close()
        _become(words, environment, directory, streams)
    for fd in streams:
        os.close(fd)
    with suppress(OSError):
        connection.sendall(_LENGTH.pack(pid))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.sendall(_LENGTH.pack(status))


def _become(
    words: Sequence[str], environment: Mapping[str, str], directory: str, streams: Sequence[int]
) -> None:
    """Be the process; never returns."""
    from gridnet.cli import main

    status = 70
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for fd, wanted in zip((null, *streams), (0, 1, 2), strict=True):
            os.dup2(fd, wanted)
        os.closerange(3, 256)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        status = main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
