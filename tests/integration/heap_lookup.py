"""
The NCBI library resolving from shared memory, in one process, while a daemon changes it.

``unshare --ipc --mount python -m tests.integration.heap_lookup LIBRARY LOOKUPS
CHANGES_PER_SECOND`` prints one JSON object.  LIBRARY is a shared build of the C++ Toolkit's
CONNECT library (``tests/integration/build_connect.sh`` makes one).  The keys of the shared memory
and the path of the feedback socket are the public ones, hence the namespaces of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

SERVERS = 200
FEEDBACK = Path("/opt/machine/lbsm/run/.lbsmd")
_RESTARTS = 3
#: Of the table that are met at least, and seconds after which that is given up.
_GENERATIONS, _MOST_SECONDS = 20, 240.0
_POINTER = ctypes.c_void_p
_SITE = """\
[site]
address = "127.0.0.1"
[lbsmd]
servrc = "servrc.cfg"
poll_seconds = 0.01
shared_memory = "public"
shared_memory_interval_seconds = 0.01
feedback_socket = "{feedback}"
"""


def definitions(generation: int) -> str:
    """What the host publishes; each line of it tells the generation."""
    port = generation % 60_000 + 1
    lines = [f"generation={generation}", "x=y"]
    lines += [
        f"bounce [0] HTTP :{port} /{generation}/{number}?{generation}" for number in range(SERVERS)
    ]
    return "\n".join([*lines, ""])


class Definitions:
    """The daemon's definitions, which change all the time."""

    def __init__(self, directory: Path, changes_per_second: float) -> None:
        self.generation = 0
        self._file = directory / "servrc.cfg"
        self._seconds = 1 / changes_per_second
        self._ended = Event()
        self.change()
        self._thread = Thread(target=self._run, daemon=True)

    def change(self) -> None:
        """One generation more, as one step."""
        new = self._file.with_suffix(".new")
        new.write_text(definitions(self.generation + 1))
        new.replace(self._file)
        self.generation += 1

    def start(self) -> None:
        """Begin to change."""
        self._thread.start()

    def end(self) -> None:
        """Change no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self.change()


class Daemon:
    """``twistd gridnet-lbsmd``, which publishes."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        command += ["-n", "--pidfile=", "gridnet-lbsmd", "--config", str(directory / "site.toml")]
        with open(directory / "log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)

    def kill(self) -> None:
        """As nobody expects it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Client:
    """The library, by its public C interface."""

    _SERVER = re.compile(r"HTTP 127\.0\.0\.1:(\d+) /(\d+)/\d+\?(\d+) ")

    def __init__(self, path: str) -> None:
        os.environ["CONN_DISPD_DISABLE"] = "1"
        self._library = library = ctypes.CDLL(path)
        self._c = ctypes.CDLL(None)
        self._c.free.argtypes = [_POINTER]
        for name, result, arguments in (
            (
                "SERV_GetInfoEx",
                _POINTER,
                [
                    *(ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, _POINTER, _POINTER),
                    *(ctypes.c_size_t, ctypes.POINTER(_POINTER)),
                ],
            ),
            ("SERV_WriteInfo", _POINTER, [_POINTER]),
            ("HINFO_Environment", ctypes.c_char_p, [_POINTER]),
            ("HINFO_CpuCount", ctypes.c_int, [_POINTER]),
            ("HINFO_TaskCount", ctypes.c_int, [_POINTER]),
            ("HINFO_Status", ctypes.c_int, [_POINTER, ctypes.POINTER(ctypes.c_double * 2)]),
            ("HINFO_Memusage", ctypes.c_int, [_POINTER, ctypes.POINTER(ctypes.c_double * 5)]),
            ("SERV_OpenSimple", _POINTER, [ctypes.c_char_p]),
            ("SERV_GetNextInfo", _POINTER, [_POINTER]),
            ("SERV_PenalizeEx", ctypes.c_int, [_POINTER, ctypes.c_double, ctypes.c_uint]),
            ("SERV_Close", None, [_POINTER]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    def look_up(self) -> int | None:
        """
        The generation that server and host of one look-up tell; None: nothing was found.

        :raises ValueError: they tell different ones.
        """
        host = _POINTER()
        found = self._library.SERV_GetInfoEx(b"bounce", 0, 0, None, None, 0, ctypes.byref(host))
        if not found:
            return None
        text = self._library.SERV_WriteInfo(found)
        descriptor = ctypes.string_at(text).decode("latin-1")
        environment = self._library.HINFO_Environment(host)
        for pointer in (found, text, host):
            self._c.free(pointer)
        match = self._SERVER.match(descriptor)
        generation = int(environment.split(b"\n")[0].removeprefix(b"generation="))
        if match is None or (int(match[1]), int(match[2]), int(match[3])) != (
            generation % 60_000 + 1,
            generation,
            generation,
        ):
            raise ValueError(f"{descriptor} on a host with {environment!r}")
        return generation

    def host(self) -> dict[str, Any]:
        """What the library says of the host that serves."""
        host = _POINTER()
        found = self._library.SERV_GetInfoEx(b"bounce", 0, 0, None, None, 0, ctypes.byref(host))
        statuses, memory = (ctypes.c_double * 2)(), (ctypes.c_double * 5)()
        self._library.HINFO_Status(host, ctypes.byref(statuses))
        self._library.HINFO_Memusage(host, ctypes.byref(memory))
        told = {
            "processors": self._library.HINFO_CpuCount(host),
            "tasks": self._library.HINFO_TaskCount(host),
            "statuses": list(statuses),
            "memory_mb": memory[0],
        }
        self._c.free(found)
        self._c.free(host)
        return told

    def penalize(self, percent: float) -> bool:
        """Tell the daemon what we think of every server; whether it took it."""
        servers = self._library.SERV_OpenSimple(b"bounce")
        taken = 0
        while self._library.SERV_GetNextInfo(servers):
            taken += self._library.SERV_PenalizeEx(servers, percent, 60)
        self._library.SERV_Close(servers)
        return taken > 0


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> float:
    """Seconds until *holds*; infinitely many when it does not within *seconds*."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            return float("inf")
        time.sleep(0.005)
    return time.monotonic() - began


def make_feedback_directory() -> None:
    """An ``/opt/machine`` that only this mount namespace has."""
    with tempfile.TemporaryDirectory() as place:
        real = Path(place)
        run = ["mount", "--make-rprivate", "/"]
        subprocess.run(run, check=True)
        subprocess.run(["mount", "--rbind", "/opt", place], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/opt"], check=True)
        for each in real.iterdir():
            if each.is_dir() and not each.is_symlink():
                (Path("/opt") / each.name).mkdir()
                subprocess.run(["mount", "--rbind", each, f"/opt/{each.name}"], check=True)
        subprocess.run(["umount", "--lazy", place], check=True)
    FEEDBACK.parent.mkdir(parents=True)


def main(path: str, look_ups: int, changes_per_second: float) -> None:
    """Look up under changes; kill the daemon and start another; tell it what we think of it."""
    make_feedback_directory()
    client = Client(path)
    generations: set[int | None] = set()
    torn = missed = 0
    found: dict[str, Any] = {"look_ups": 0}

    def look() -> int | None:
        nonlocal torn
        try:
            return client.look_up()
        except ValueError:
            torn += 1
            return None

    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        (directory / "site.toml").write_text(_SITE.format(feedback=FEEDBACK))
        changing = Definitions(directory, changes_per_second)
        daemon = Daemon(directory)
        wait_until(lambda: look() is not None)
        changing.start()
        began = time.monotonic()
        while found["look_ups"] < look_ups or len(generations) < _GENERATIONS:
            generations.add(look())
            found["look_ups"] += 1
            if time.monotonic() - began > _MOST_SECONDS:
                break
        found["seconds"] = time.monotonic() - began
        found["changes"] = changing.generation
        missed = None in generations
        after_kill, returns = [], []
        for _ in range(_RESTARTS):
            # Killed in the midst of its work, while we look.
            for _ in range(200):
                look()
            daemon.kill()
            after_kill.append(look())
            daemon = Daemon(directory)
            returns.append(wait_until(lambda: look() is not None))
            generations.add(look())
        changing.end()
        wait_until(lambda: look() == changing.generation)
        found["host"] = client.host()
        began = time.monotonic()
        found["penalized"] = client.penalize(100.0)
        found["suppressed"] = wait_until(lambda: look() is None) < float("inf")
        found["penalty_seconds"] = time.monotonic() - began
        log = (directory / "log").read_text()
        daemon.kill()
    found |= {
        "generations": len(generations - {None}),
        "missed": missed,
        "torn": torn,
        "after_kill": after_kill,
        "return_seconds": returns,
        "log": log[-2000:],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
