"""
The configuration is rewritten again and again while clients ask: none of them notices.

``GRIDNET_RELOAD_SECONDS`` makes the run longer (60 is the full one), at 500
requests a second or as many as the machine can.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.demo_process import DemoProcess
from tests.ports import free_block

SECONDS = float(os.environ.get("GRIDNET_RELOAD_SECONDS", "6"))
REQUESTS_PER_SECOND = 500
REQUESTS_A_REWRITE = 100  # every 200 ms, on a machine that keeps up
REQUEST = (
    b"GET /Service/dispd.cgi?service=Steady HTTP/1.1\r\nHost: x\r\nClient-Revision: 7.0\r\n"
    b"Dispatch-Mode: INFORMATION_ONLY\r\n\r\n"
)


class ReloadUnderLoadTests(SynchronousTestCase):
    """Reloading costs nobody a request."""

    def setUp(self) -> None:
        self.servrc = Path(self.mktemp()).absolute()
        self.write(0)
        # The demo looks at its files every half second; SIGHUP is not needed.
        self.demo = DemoProcess(free_block(100), ["--servrc", str(self.servrc)])
        self.addCleanup(self.demo.kill)

    def write(self, number: int) -> None:
        """A configuration of its own number; every tenth is broken."""
        broken = "Odd STANDALONE\n" if number % 10 == 9 else ""
        ports = "".join(f"Moving [0] STANDALONE :{10000 + (number + n) % 50}\n" for n in range(20))
        new = self.servrc.with_suffix(".new")
        new.write_text(f"Steady [0] STANDALONE 127.0.0.1:7007 L=no\n{ports}{broken}")
        new.rename(self.servrc)

    def test_no_request_fails(self) -> None:
        """Every look-up of a service that stays is answered with its server."""
        connection = socket.create_connection(("127.0.0.1", self.demo.base), 10)
        self.addCleanup(connection.close)
        begin = time.monotonic()
        failed: list[bytes] = []
        for asked in range(int(SECONDS * REQUESTS_PER_SECOND)):
            written, rest = divmod(asked, REQUESTS_A_REWRITE)
            if not rest:
                self.write(written + 1)
            connection.sendall(REQUEST)
            reply = b""
            while b"\r\n\r\n" not in reply:
                data = connection.recv(65536)
                if not data:
                    break
                reply += data
            if b" 200 " not in reply[:16] or b"STANDALONE 127.0.0.1:7007" not in reply:
                failed.append(reply)
            pause = (asked + 1) / REQUESTS_PER_SECOND - (time.monotonic() - begin)
            if pause > 0:
                time.sleep(pause)  # the rate of the load, not a wait for something
        self.assertEqual(failed[:1], [], f"{len(failed)} failed")
