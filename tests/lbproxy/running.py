"""A running LB proxy in this process, and blocking-free clients for its sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase

from gridnet.config import SiteConfig, SiteSection
from gridnet.lbproxy import frames, http
from gridnet.lbproxy.config import LbproxyConfig
from gridnet.lbproxy.connections import BoundedFactory
from gridnet.lbproxy.forward import Forwarder
from gridnet.lbproxy.frames import FrameReader, Reply
from gridnet.lbproxy.service import LbproxyService
from gridnet.site import Site
from tests.lbproxy.ledgers import REGISTER, job
from tests.lbproxy.vectors import line


class Collector(Protocol):
    """Collects octets, and fires when enough of them are there or the connection ends."""

    transport: Any

    def __init__(self) -> None:
        self.octets = b""
        self.lost: Deferred[bytes] = Deferred()
        self._waiting: list[tuple[Any, Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.octets += data
        for is_enough, waiting in list(self._waiting):
            if is_enough(self.octets):
                self._waiting.remove((is_enough, waiting))
                waiting.callback(self.octets)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(self.octets)
        for _, waiting in self._waiting:
            waiting.callback(self.octets)
        self._waiting = []

    def until(self, is_enough: Any) -> Deferred[bytes]:
        """Fires with all octets once *is_enough* says so, or the connection ends."""
        waiting: Deferred[bytes] = Deferred()
        if is_enough(self.octets):
            waiting.callback(self.octets)
        else:
            self._waiting.append((is_enough, waiting))
        return waiting


def whole_http(octets: bytes) -> bool:
    """Whether *octets* are at least one whole HTTP reply."""
    head, end, body = octets.partition(b"\r\n\r\n")
    if not end:
        return False
    for header in head.split(b"\r\n"):
        if header.lower().startswith(b"content-length:"):
            return len(body) >= int(header.split(b":")[1])
    return False


def replies_in(octets: bytes) -> list[Reply]:
    """The store replies in what came back."""
    return [frames.decode_reply(body) for body in FrameReader(1 << 20).receive(octets)]


class RunningProxy:
    """
    One service with its own directory.

    :ivar service: the service, running after :meth:`start`.
    """

    def __init__(self, config: LbproxyConfig | None = None, directory: Path | None = None) -> None:
        # Socket addresses are short: not below _trial_temp.
        self.directory = directory or Path(tempfile.mkdtemp(prefix="lbp"))
        self.store = str(self.directory / "store.sock")
        self.serve = str(self.directory / "serve.sock")
        self.config = evolve(
            config or LbproxyConfig(), store_socket=self.store, serve_socket=self.serve
        )
        self.service: LbproxyService
        self.site: Site

    def start(self) -> Deferred[Any]:
        """Start; fires once it answers."""
        section = SiteSection(state_dir=self.directory / "state")
        self.site = Site(SiteConfig(section, {}, self.directory), reactor)
        self.service = LbproxyService(self.config, self.site, {})
        try:
            self.service.startService()
        except BaseException:
            self.site.ready().addErrback(lambda _: None)
            raise
        return self.site.ready()

    async def stop(self, *, forget: bool = True) -> None:
        """Stop; remove the directory unless told to keep it."""
        await self.service.stopService()
        if forget:
            self.forget()

    def forget(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.directory)

    @property
    def forwarder(self) -> Forwarder:
        """What forwards, where that is configured."""
        forwarder = self.service._forwarder
        assert forwarder is not None
        return forwarder

    async def connect(self, path: str) -> Collector:
        """A connection to one of the sockets."""
        connecting: Deferred[Collector] = connectProtocol(
            UNIXClientEndpoint(reactor, path), Collector()
        )
        return await connecting

    async def send(self, path: str, octets: bytes, is_enough: Any) -> bytes:
        """Send *octets* over a new connection; what came back."""
        connection = await self.connect(path)
        connection.transport.write(octets)
        found = await connection.until(is_enough)
        connection.transport.loseConnection()
        await connection.lost
        return found

    async def store_octets(self, octets: bytes) -> bytes:
        """The reply to one store message."""
        return await self.send(
            self.store, octets, lambda found: FrameReader(1 << 20).receive(found)
        )

    async def log(self, text: bytes) -> Reply:
        """Log one event line."""
        found = await self.store_octets(frames.encode_message(text))
        (body,) = FrameReader(1 << 20).receive(found)
        return frames.decode_reply(body)

    async def ask_octets(self, octets: bytes) -> bytes:
        """The reply to one HTTP request."""
        return await self.send(self.serve, octets, whole_http)

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the reply to a query."""
        found = await self.ask_octets(http.encode_request(path, body))
        head, _, content = found.partition(b"\r\n\r\n")
        return int(head.split()[1]), content


class SocketTestCase(TestCase):
    """A service, and coroutines as tests."""

    config = LbproxyConfig(max_message_octets=200_000, max_buffered_octets=1 << 20)

    def setUp(self) -> Deferred[Any]:  # type: ignore[override]  # trial waits
        self.proxy = RunningProxy(self.config)
        return self.proxy.start()

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.proxy.stop())

    def run_async(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    async def store_closes(self, octets: bytes) -> bytes:
        """What comes back until the service closes the store connection."""
        connection = await self.proxy.connect(self.proxy.store)
        connection.transport.write(octets)
        return await connection.lost

    async def clogged(self, factory: BoundedFactory, answered: Callable[[], int]) -> int:
        """How many were *answered* once a peer of *factory* takes no more, nor does the kernel."""
        found, still = -1, 0
        while still < 10:
            await self.pause()
            is_still = found == answered() and any(one.is_clogged for one in factory.connections)
            found, still = answered(), still + 1 if is_still else 0
        return found

    def pause(self) -> Deferred[None]:
        """Let the reactor turn for a little."""
        waiting: Deferred[None] = Deferred()
        self.proxy.site.reactor.callLater(0.01, waiting.callback, None)
        return waiting

    async def check_lives(self) -> None:
        """The service still stores and answers."""
        name = f"alive{os.urandom(4).hex()}"
        reply = await self.proxy.log(line("RegJob", REGISTER, job_id=job(name)))
        self.assertEqual(reply, frames.OK)
