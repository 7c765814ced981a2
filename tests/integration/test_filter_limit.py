"""More clients than a filter may have processes, through the whole site."""

from __future__ import annotations

import selectors
import socket

import psutil
from twisted.trial.unittest import SynchronousTestCase

from tests.integration.demo_process import DemoProcess
from tests.ports import free_block

CLIENTS = 64
LIMIT = 32  #: ``per_service``, as it is without a word in the site file
PATIENCE_SECONDS = 60.0
REQUEST = (
    b"POST /Service/ncbid.cgi?service=Filter HTTP/1.0\r\nHost: x\r\nClient-Revision: 7.0\r\n"
    b"Connection-Mode: STATELESS\r\nContent-Length: 8\r\n\r\nhalf"
)


class FilterLimitTests(SynchronousTestCase):
    """A stateless filter, asked by 64 at once."""

    def setUp(self) -> None:
        servrc = self.mktemp()
        with open(servrc, "w") as file:
            # It answers octet by octet, so that a client knows that it runs.
            file.write("Filter [0] NCBID '' L=no | /usr/bin/stdbuf -o0 /bin/cat\n")
        self.demo = DemoProcess(free_block(100), ["--servrc", servrc])
        self.addCleanup(self.demo.kill)

    def ask(self) -> socket.socket:
        """A client that has sent half of its request."""
        client = socket.create_connection(("127.0.0.1", self.demo.base), PATIENCE_SECONDS)
        self.addCleanup(client.close)
        client.sendall(REQUEST)
        return client

    def programs(self) -> list[psutil.Process]:
        """The filters that run now, and whatever is left of those that ran."""
        site = psutil.Process(self.demo.process.pid)
        return [each for each in site.children() if self.is_filter(each)]

    def is_filter(self, process: psutil.Process) -> bool:
        return process.status() == psutil.STATUS_ZOMBIE or "cat" in process.name()

    def test_its_limit_holds_and_nothing_is_left(self) -> None:
        """Over it: 503 with the reason, at once; below it everybody is served."""
        heard: dict[socket.socket, bytes] = {self.ask(): b"" for _ in range(CLIENTS)}
        with selectors.DefaultSelector() as selector:
            for client in heard:
                selector.register(client, selectors.EVENT_READ)
            refused = 0
            running: set[socket.socket] = set()
            while refused + len(running) < CLIENTS:
                ready = selector.select(PATIENCE_SECONDS)
                self.assertTrue(ready, "somebody is not answered")
                for key, _ in ready:
                    assert isinstance(key.fileobj, socket.socket)
                    client = key.fileobj
                    data = client.recv(65536)
                    heard[client] += data
                    if not data:
                        refused += 1
                        selector.unregister(client)
                    elif b" 200 " in heard[client][:16] and heard[client].endswith(b"half"):
                        running.add(client)
                self.assertLessEqual(len(self.programs()), LIMIT)
        self.assertEqual((len(running), refused), (LIMIT, CLIENTS - LIMIT))
        for client, reply in heard.items():
            if client not in running:
                self.assertIn(b" 503 ", reply[:16])
                self.assertIn(b"\r\nDispatcher-Failures: Too many programs", reply)
        for client in running:
            client.sendall(b"more")
            with client.makefile("rb") as stream:
                self.assertTrue((heard[client] + stream.read()).endswith(b"halfmore"))
        while self.programs():
            psutil.wait_procs(self.programs(), 1)
        again = self.ask()
        again.sendall(b"more")
        with again.makefile("rb") as stream:
            self.assertTrue(stream.read().endswith(b"halfmore"))
