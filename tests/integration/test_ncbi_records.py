"""NCBI's programs fetch a record from servers that they only reach through tickets."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.integration.demo_process import DemoProcess
from tests.ports import free_block

RECORD = Path(__file__).parent.parent / "vectors" / "firewall" / "record.asnb"
SHIM_SOURCE = Path(__file__).parent / "ncbi" / "nofortify.c"
#: The choices "give me the record of a GI" and "here it is" of ID1, without their ends.
GET_RECORD, GOT_RECORD = b"\xa2\x80", b"\xa3\x80"
PROGRAMS = ("gcc", "idfetch", "asn2gb", "gbseqget")


def answer_id1(connection: socket.socket) -> None:
    """ID1: each request gets the record."""
    with connection:
        while request := connection.recv(65536):
            if request.startswith(GET_RECORD):
                connection.sendall(GOT_RECORD + RECORD.read_bytes() + b"\0\0")


def answer_fetch(connection: socket.socket) -> None:
    """SeqFetch: a query, then the record and the end."""
    with connection:
        connection.recv(65536)
        connection.sendall(RECORD.read_bytes())
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


class RecordTests(SynchronousTestCase):
    """Firewall mode, unmodified programs."""

    def setUp(self) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            if os.environ.get("CI"):
                self.fail(f"CI must have installed {', '.join(missing)}")
            raise SkipTest(f"not installed: {', '.join(missing)} (packages gcc, ncbi-tools-bin)")
        self.directory = Path(tempfile.mkdtemp(prefix="gridnet-records-"))
        self.addCleanup(shutil.rmtree, self.directory)
        # libncbi6 as packaged aborts in its fortified strcpy: a false alarm.
        shim = self.directory / "nofortify.so"
        flags = ("-O1", "-fno-builtin", "-U_FORTIFY_SOURCE", "-shared", "-fPIC")
        subprocess.run(["gcc", *flags, "-o", shim, SHIM_SOURCE], check=True)
        servrc = self.directory / "servrc.cfg"
        servrc.write_text(
            f"ID1[0] STANDALONE 127.0.0.1:{self.serve(answer_id1)} L=no\n"
            f"SeqFetch[0] STANDALONE 127.0.0.1:{self.serve(answer_fetch)} L=no\n"
        )
        self.demo = DemoProcess(free_block(100), ["--servrc", str(servrc)])
        self.addCleanup(self.demo.kill)
        self.environment = {
            **{name: value for name, value in os.environ.items() if "CONN_" not in name},
            "CONN_HOST": "127.0.0.1",
            "CONN_PORT": str(self.demo.base),
            "CONN_FIREWALL": "1",
            "CONN_TIMEOUT": "20",
            "CONN_MAX_TRY": "1",
            "LD_PRELOAD": str(shim),
        }

    def serve(self, answer: Callable[[socket.socket], None]) -> int:
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                Thread(target=answer, args=(connection,), daemon=True).start()

        Thread(target=accept, daemon=True).start()
        port: int = listening.getsockname()[1]
        return port

    def run_program(self, *words: str) -> str:
        """What it writes."""
        done = subprocess.run(
            words,
            env=self.environment,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=90,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def tickets_redeemed(self) -> int:
        url = self.demo.ready["status"].removesuffix("/status") + "/status.json"
        with urllib.request.urlopen(url, timeout=20) as reply:
            found: int = json.load(reply)["components"]["firewall"]["tickets_redeemed"]
        return found

    def test_programs_of_the_toolkit_fetch_a_record(self) -> None:
        """Each with a ticket of its own."""
        found = self.run_program("idfetch", "-g", "1234", "-t", "5")
        self.assertIn(">gi|1234|gb|AA001234.1| A record through a ticket", found)
        self.assertEqual(self.tickets_redeemed(), 1)
        found = self.run_program("asn2gb", "-A", "1234")
        self.assertIn("DEFINITION  A record through a ticket.", found)
        self.assertIn("acgttgcaac gttgcaacgt tgca", found)
        self.assertEqual(self.tickets_redeemed(), 2)
        (self.directory / "gis").write_text("1234\n")
        self.run_program("gbseqget", "-i", "gis", "-o", "found.xml")
        found = (self.directory / "found.xml").read_text()
        self.assertIn("<GBSeq_definition>A record through a ticket</GBSeq_definition>", found)
        self.assertEqual(self.tickets_redeemed(), 3)
