"""
Unmodified NCBI client libraries, from Debian's packages, against a demo site.

``c`` is the C Toolkit's library (libncbi6), ``cxx`` the C++ Toolkit's (ncbi-blast+).  Both talk
to the dispatcher's own port: look-ups over TLS, relaying in plain HTTP or TLS as each likes.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.demo_process import DemoProcess
from tests.ports import free_block

HERE = Path(__file__).parent / "ncbi"
HELLO = b"hello, world\nQUIT\n"
LIBRARIES = ("c", "cxx")


class Backend:
    """A plain TCP server in threads of this process that records what it was sent."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.received: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        everything = b""
        with connection:
            try:
                while not everything.endswith(b"QUIT\n"):
                    data = connection.recv(65536)
                    if not data:
                        break
                    everything += data
                    self.received.append(data)
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()


class Stage:
    """A demo site, backends for its services, and what muffles a false alarm of one library."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-ncbi-"))
        atexit.register(shutil.rmtree, self.directory, ignore_errors=True)
        # libncbi6 as packaged aborts in its fortified strcpy: a false alarm.
        self.shim = self.directory / "nofortify.so"
        subprocess.run(
            [
                "gcc",
                "-O1",
                "-fno-builtin",
                "-U_FORTIFY_SOURCE",
                "-shared",
                "-fPIC",
                "-o",
                self.shim,
                HERE / "nofortify.c",
            ],
            check=True,
        )
        base = free_block(100)
        self.backends = [Backend(base + n) for n in range(1, 7)]
        echo, *many = (f"127.0.0.1:{backend.port}" for backend in self.backends)
        lines = [f"DemoEcho[0] STANDALONE {echo} L=no"]
        lines += [f"DemoUpper[0] NCBID 127.0.0.1:{base} '' L=no | {shutil.which('tr')} a-z A-Z"]
        lines += [f"DemoMany[0] STANDALONE {each} L=no" for each in many]
        lines += [f"DemoKinds[0] STANDALONE {echo} L=no"]
        lines += [f"DemoKinds[0] HTTP {echo} /demo.cgi?a=1 L=no"]
        lines += [f"ID1[0] STANDALONE {echo} L=no", f"blast4[0] HTTP_POST {echo} /blast4.cgi L=no"]
        servrc = self.directory / "servrc.cfg"
        servrc.write_text("\n".join(lines) + "\n")
        self.demo = DemoProcess(base, ["--servrc", str(servrc)])
        atexit.register(self.demo.kill)


@cache
def the_stage() -> Stage:
    """One stage for all tests (trial has no fixtures of classes)."""
    return Stage()


class NcbiClientTests(SynchronousTestCase):
    """What the released clients make of a gridnet."""

    def setUp(self) -> None:
        missing = [name for name in ("gcc", "blastn", "idfetch") if shutil.which(name) is None]
        if missing:
            if os.environ.get("CI"):
                self.fail(f"CI must have installed {', '.join(missing)}")
            raise SkipTest(
                f"not installed: {', '.join(missing)} (packages gcc, ncbi-blast+, "
                "ncbi-tools-bin, libncbi6)"
            )
        stage = the_stage()
        self.demo, self.backends = stage.demo, stage.backends
        self.shim, self.directory = stage.shim, stage.directory

    def environment(self, library: str, **settings: str) -> dict[str, str]:
        """The environment that points a client at the demo."""
        found = {name: value for name, value in os.environ.items() if "CONN_" not in name}
        found.update(
            CONN_HOST="127.0.0.1",
            CONN_PORT=str(self.demo.base),
            CONN_TIMEOUT="30",
            CONN_MAX_TRY="2",
            CONN_LB_DISABLE="1",
        )
        found.update({f"CONN_{name}": value for name, value in settings.items()})
        if library == "c":
            found["LD_PRELOAD"] = str(self.shim)
        return found

    def client(self, library: str, *words: str, **settings: str) -> list[dict[str, Any]]:
        """What the library reports of one call."""
        done = subprocess.run(
            [sys.executable, HERE / "ncbi_client.py", "--lib", library, *words],
            env=self.environment(library, **settings),
            input=HELLO,
            capture_output=True,
            timeout=60,
            check=False,
        )
        self.assertIn(done.returncode, (0, 1), done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def found(self, library: str, *words: str, **settings: str) -> list[tuple[str, str]]:
        """(type, host:port) of each server that a look-up gave."""
        lines = self.client(library, "lookup", *words, **settings)
        return [tuple(line["info"].split()[:2]) for line in lines if "info" in line]

    def talk(self, library: str, service: str, **settings: str) -> tuple[bytes, str, str]:
        """Reply, connector type and peer of one conversation that says hello."""
        last = self.client(library, "connect", service, "--half-close", **settings)[-1]
        self.assertEqual(last.get("stage"), "done", last)
        return last["reply"].encode("latin-1"), last["type"], last["description"]

    def check_lookup(self, library: str) -> None:
        self.assertEqual(
            self.found(library, "DemoEcho"),
            [("STANDALONE", f"127.0.0.1:{self.backends[0].port}")],
        )

    def check_lookup_of_more_than_one_reply_holds(self, library: str) -> None:
        found = sorted(place for _, place in self.found(library, "DemoMany", "--max", "12"))
        self.assertEqual(found, [f"127.0.0.1:{each.port}" for each in self.backends[1:]])

    def check_lookup_by_type(self, library: str) -> None:
        kinds = [kind for kind, _ in self.found(library, "DemoKinds", "--types", "HTTP")]
        self.assertEqual(kinds, ["HTTP"])

    def check_lookup_by_mask(self, library: str) -> None:
        found = self.client(library, "lookup", "DemoK*", "--max", "9")
        self.assertEqual(len([line for line in found if "info" in line]), 2, found)

    def check_an_unknown_name_ends_at_once(self, library: str) -> None:
        # Waiting for nothing would take it longer than we wait for it.
        self.assertEqual(self.found(library, "DemoNothing", TIMEOUT="300"), [])

    def check_relay_of_a_stateless_client(self, library: str) -> None:
        reply, kind, _ = self.talk(library, "DemoEcho", STATELESS="1")
        self.assertEqual(reply, HELLO)
        self.assertTrue(kind.endswith("/HTTP"), kind)

    def check_direct_connection(self, library: str) -> None:
        reply, kind, _ = self.talk(library, "DemoEcho")
        self.assertEqual(reply, HELLO)
        self.assertTrue(kind.endswith("/SOCK"), kind)

    def check_ticketed_connection(self, library: str) -> None:
        reply, kind, place = self.talk(library, "DemoEcho", FIREWALL="1")
        self.assertEqual(reply, HELLO)
        self.assertTrue(kind.endswith("/SOCK"), kind)
        port = int(place.rsplit(":", 1)[1])
        self.assertIn(port, self.demo.ready["firewall"]["ports"])

    def run_program(self, words: Sequence[str], library: str) -> None:
        """Run one of NCBI's programs; it may fail, since the server behind is an echo."""
        subprocess.run(
            words,
            env=self.environment(library, TIMEOUT="20", MAX_TRY="1"),
            cwd=self.directory,
            capture_output=True,
            timeout=90,
            check=False,
        )

    def test_idfetch_reaches_the_named_server(self) -> None:
        """The service ID1 is looked up over TLS, then talked to directly."""
        self.backends[0].received.clear()
        self.run_program(["idfetch", "-g", "1234", "-t", "5"], "c")
        self.assertTrue(b"".join(self.backends[0].received))

    def test_blastn_reaches_the_named_server(self) -> None:
        """The service blast4 is an HTTP server here."""
        self.backends[0].received.clear()
        query = self.directory / "query.fa"
        query.write_text(">q\nACGTACGTACGTACGTACGTACGTACGTACGT\n")
        self.run_program(["blastn", "-remote", "-db", "nt", "-query", str(query)], "cxx")
        self.assertIn(b"POST /blast4.cgi", b"".join(self.backends[0].received))


def _add_cases() -> None:
    """Every ``check_`` for every library becomes a test of its own."""

    def case(check: Callable[[NcbiClientTests, str], None], library: str) -> Any:
        def test(self: NcbiClientTests) -> None:
            check(self, library)

        test.__name__ = f"test_{check.__name__.removeprefix('check_')}_{library}"
        return test

    for name, check in list(vars(NcbiClientTests).items()):
        if name.startswith("check_"):
            for library in LIBRARIES:
                test = case(check, library)
                setattr(NcbiClientTests, test.__name__, test)


_add_cases()
