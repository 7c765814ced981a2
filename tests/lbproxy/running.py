"""A running LB proxy in this process, and blocking-free clients for its sockets."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from gridnet.config import SiteConfig, SiteSection
from gridnet.lbproxy import frames, http
from gridnet.lbproxy.config import LbproxyConfig
from gridnet.lbproxy.frames import FrameReader, Reply
from gridnet.lbproxy.service import LbproxyService
from gridnet.site import Site


class Collector(Protocol):
    """Collects octets, and fires when enough of them are there or the connection ends."""

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
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


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

    async def connect(self, path: str) -> Collector:
        """A connection to one of the sockets."""
        return await connectProtocol(UNIXClientEndpoint(reactor, path), Collector())

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

    async def log(self, line: bytes) -> Reply:
        """Log one event line."""
        found = await self.store_octets(frames.encode_message(line))
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
