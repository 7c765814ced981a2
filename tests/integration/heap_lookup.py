"""
The NCBI library resolving from shared memory, in one process, while another changes it.

``unshare --ipc python -m tests.integration.heap_lookup LIBRARY LOOKUPS CHANGES_PER_SECOND`` prints
one JSON object.  LIBRARY is a shared build of the C++ Toolkit's CONNECT library that has the
shared-memory mapper (``ncbi_lbsmd.c``); packaged ones have a stub in its place.  The keys are the
public ones, hence the IPC namespace of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time

from gridnet.table.heap import VALIDITY_SECONDS, HeapBuilder
from gridnet.table.heap_segment import PUBLIC_KEYS, HeapPublisher
from gridnet.table.model import Host, ServiceTable
from gridnet.table.server_info import ServerType
from tests.table.support import entry, server

SERVERS = 200
_POINTER = ctypes.c_void_p


def publish(first: int, changes_per_second: float) -> None:
    """Publish one generation after the other, for ever; each tells itself everywhere."""
    table = ServiceTable()
    builder = HeapBuilder("127.0.0.1", time.time(), "/etc/lbsmd/servrc.cfg", (0, 1, 0))
    builder.follow(table)
    publisher = HeapPublisher(PUBLIC_KEYS)
    generation = first
    while True:
        generation += 1
        table.put_host(Host("10.0.0.1", environment=(("generation", str(generation)), ("x", "y"))))
        table.replace_owner(
            "10.0.0.1",
            [
                entry(
                    info=server(
                        type=ServerType.HTTP,
                        port=generation % 60_000 + 1,
                        arguments=f"/{generation}/{number}?{generation}",
                        local=False,
                        time=30,
                    )
                )
                for number in range(SERVERS)
            ],
        )
        now = time.time()
        publisher.publish(builder.image(now, now + VALIDITY_SECONDS, generation, publisher.octets))
        if generation == first + 1:
            print("published", flush=True)
        time.sleep(1 / changes_per_second)


class Publisher:
    """A process that publishes."""

    def __init__(self, first: int, changes_per_second: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "publish", str(first), str(changes_per_second)],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def kill(self) -> None:
        """As nobody expects it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Client:
    """The library, by its public C interface."""

    _SERVER = re.compile(r"HTTP 10\.0\.0\.1:(\d+) /(\d+)/\d+\?(\d+) ")

    def __init__(self, path: str) -> None:
        os.environ["CONN_DISPD_DISABLE"] = "1"
        self._library = library = ctypes.CDLL(path)
        self._c = ctypes.CDLL(None)
        self._c.free.argtypes = [_POINTER]
        library.SERV_GetInfoEx.restype = _POINTER
        library.SERV_GetInfoEx.argtypes = [
            *(ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, _POINTER, _POINTER),
            *(ctypes.c_size_t, ctypes.POINTER(_POINTER)),
        ]
        library.SERV_WriteInfo.restype = _POINTER
        library.SERV_WriteInfo.argtypes = [_POINTER]
        library.HINFO_Environment.restype = ctypes.c_char_p
        library.HINFO_Environment.argtypes = [_POINTER]

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


def main(path: str, look_ups: int, changes_per_second: float) -> None:
    """Look up, kill the publisher, find nothing, start another, look up again."""
    publisher = Publisher(0, changes_per_second)
    client = Client(path)
    generations: set[int | None] = set()
    torn = 0
    began = time.monotonic()
    for _ in range(look_ups):
        try:
            generations.add(client.look_up())
        except ValueError:
            torn += 1
    seconds = time.monotonic() - began
    publisher.kill()
    after_kill = client.look_up()
    publisher = Publisher(30_000, changes_per_second)
    after_restart = client.look_up()
    publisher.kill()
    print(
        json.dumps(
            {
                "look_ups": look_ups,
                "seconds": seconds,
                "generations": len(generations),
                "missed": None in generations,
                "torn": torn,
                "after_kill": after_kill,
                "after_restart": after_restart,
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish(int(sys.argv[2]), float(sys.argv[3]))
    else:
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
