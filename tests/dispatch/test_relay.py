"""Requests passed on to servers over loopback connections: what goes on, what comes back."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import ClientCreator, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from gridnet.dispatch.body import LAST_CHUNK, ChunkedBody, chunk
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.front import Front
from gridnet.dispatch.http_factory import HttpFactory
from tests.dispatch.support import HERE, Conversation, make_front, make_table, serving

RELAY = b"Client-Mode: STATELESS_ONLY\r\nClient-Revision: 7.0\r\n"
MEGABYTE = 1024 * 1024


@implementer(IHalfCloseableProtocol)
class Backend(TwistedProtocol):
    """A server whose side of the conversation a test speaks."""

    transport: Any

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.received = b""
        self.finished = False  # the dispatcher has said all
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.stage.backends.append(self)
        self.stage.look()

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self.received += data
        self.stage.look()

    def readConnectionLost(self) -> None:
        """Called by Twisted."""
        self.finished = True
        self.stage.look()

    def writeConnectionLost(self) -> None:
        """Called by Twisted."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self.gone.callback(None)
        self.stage.look()

    def say(self, data: bytes) -> None:
        """Send *data*."""
        self.transport.write(data)

    def end(self) -> None:
        """Say no more, hear no more."""
        self.transport.loseConnection()

    @property
    def over(self) -> bool:
        """Whether the dispatcher has ended the connection."""
        return self.finished or self.gone.called

    @property
    def head(self) -> bytes:
        """The first request's head."""
        return self.received.partition(b"\r\n\r\n")[0]

    @property
    def lines(self) -> dict[bytes, bytes]:
        """Its header lines, names in lower case."""
        pairs = [line.partition(b": ") for line in self.head.split(b"\r\n")[1:]]
        return {name.lower(): value for name, _, value in pairs}


class Stage(TestCase):
    """A dispatcher, a server played by the test, and clients."""

    timeout = 30

    def setUp(self) -> None:
        self.core: Any = reactor
        self.backends: list[Backend] = []
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        self.ports: list[Any] = []
        self.backend_port = self.listen(serving(lambda: Backend(self)))
        self.clients: list[Conversation] = []
        self.front: Front | None = None

    def tearDown(self) -> Deferred[None]:  # type: ignore[override]  # trial waits
        return Deferred.fromCoroutine(self.close())

    async def close(self) -> None:
        """End everything, and wait for it."""
        for client in self.clients:
            client.transport.abortConnection()
            await client.ended
        for backend in self.backends:
            backend.transport.abortConnection()
            await backend.gone
        for port in self.ports:
            await port.stopListening()
        if self.front is not None:
            await self.front.drain()

    def listen(self, factory: Any) -> int:
        """Listen with *factory*; gives the port."""
        if isinstance(factory, HttpFactory):
            assert self.front is not None
            port: Any = self.front.ports()(0, factory, 50, HERE, self.core)
            port.startListening()
        else:
            port = self.core.listenTCP(0, factory, 50, HERE)
        self.ports.append(port)
        number: int = port.getHost().port
        return number

    def start(self, table: str, office: Any = None, **config: Any) -> int:
        """Start the dispatcher; ``{port}`` in *table* is the played server's."""
        settings = {"drain_seconds": 0.0, **config}
        text = table.replace("{port}", str(self.backend_port))
        self.front = make_front(make_table(text), self.core, DispatchConfig(**settings), office)
        self.front.start()
        self.dispatch_port = self.listen(self.front.factory)
        return self.dispatch_port

    async def client(self) -> Conversation:
        """One more client's connection."""
        creator = ClientCreator(self.core, Conversation)
        client: Conversation = await creator.connectTCP(HERE, self.dispatch_port)
        self.clients.append(client)
        return client

    async def ask(
        self,
        path: bytes = b"/Service/dispd.cgi?service=web",
        lines: bytes = RELAY,
        method: bytes = b"GET",
        body: bytes = b"",
        version: bytes = b"1.1",
    ) -> Conversation:
        """A client with a request on its way."""
        client = await self.client()
        if body:
            lines += b"Content-Length: %d\r\n" % len(body)
        client.write(b"%b %b HTTP/%b\r\nHost: d\r\n%b\r\n%b" % (method, path, version, lines, body))
        return client

    def until(self, test: Callable[[], bool]) -> Deferred[None]:
        """Fires when *test*, tried at each event of a server, holds."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((test, waiting))
        self.look()
        return waiting

    def look(self) -> None:
        """Something has happened."""
        done = [pair for pair in self._waiting if pair[0]()]
        self._waiting = [pair for pair in self._waiting if pair not in done]
        for _, waiting in done:
            waiting.callback(None)

    async def backend(self, number: int = 0, has: bytes = b"\r\n\r\n") -> Backend:
        """The server's connection of that number, once it has received *has*."""
        await self.until(
            lambda: len(self.backends) > number and has in self.backends[number].received
        )
        return self.backends[number]


def reply(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    """A server's reply of known length."""
    return b"\r\n".join(
        (b"HTTP/1.1 " + status, *lines, b"Content-Length: %d" % len(body), b"", body)
    )


def split(octets: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, header lines by lower-case name, and the rest."""
    head, _, rest = octets.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    pairs = [line.partition(b": ") for line in lines]
    return first, {name.lower(): value for name, _, value in pairs}, rest


def dechunked(octets: bytes) -> bytes:
    """The body that came in chunks."""
    reader = ChunkedBody()
    body = reader.receive(octets)
    if not reader.ended:
        raise AssertionError("the last chunk is missing")
    return body


class HttpTests(Stage):
    """HTTP servers get requests one to one."""

    WEB = "web HTTP 127.0.0.1:{port} /cgi?fixed=1 L=no H=www.example.org C=text/plain"

    async def test_a_request_goes_on(self) -> None:
        """Target as the client would have built it; headers end to end; who asks."""
        self.start(self.WEB)
        await self.ask(
            b"/Service/dispd.cgi?service=web&address=a%20b&platform=p&fixed=2&x=%20y",
            RELAY
            + b"User-Agent: me\r\nClient-Platform: p\r\nX-Other: 1\r\nX-Hop: 2\r\n"
            + b"Connection: x-hop\r\nSkip-Info-1: HTTP 1.2.3.4:5 /x\r\n"
            + b"Accepted-Server-Types: HTTP\r\n",
        )
        backend = await self.backend()
        self.assertEqual(
            backend.head.split(b"\r\n")[0],
            b"GET /cgi?service=web&address=a%20b&platform=p&fixed=1&x=%20y HTTP/1.1",
        )
        lines = backend.lines
        self.assertEqual(lines[b"host"], b"www.example.org")
        self.assertEqual(lines[b"user-agent"], b"me")
        self.assertEqual(lines[b"client-platform"], b"p")
        self.assertEqual(lines[b"x-other"], b"1")
        self.assertEqual(lines[b"x-forwarded-for"], b"127.0.0.1")
        self.assertEqual(lines[b"client-host"], b"127.0.0.1")
        self.assertEqual(lines[b"x-forwarded-host"], b"d")
        self.assertEqual(lines[b"x-forwarded-proto"], b"http")
        self.assertEqual(lines[b"via"], b"1.1 gridnet")
        for name in (b"x-hop", b"connection", b"skip-info-1", b"accepted-server-types"):
            self.assertNotIn(name, lines)

    async def test_a_reply_comes_back(self) -> None:
        """Status, headers and body as they are; the path it took is added."""
        self.start(self.WEB)
        client = await self.ask()
        backend = await self.backend()
        backend.say(
            reply(
                b"hello",
                b"Content-Type: text/plain",
                b"X-One: 1",
                b"Connection: x-hop",
                b"X-Hop: 2",
                b"Connection-Info: 1.2.3.4 5 6",
                b"Server-Info-1: STANDALONE 1.2.3.4:5",
                status=b"418 Teapot",
            )
        )
        first, lines, body = split(await client.until(b"hello"))
        self.assertEqual((first, body), (b"HTTP/1.1 418 Teapot", b"hello"))
        self.assertEqual(lines[b"service"], b"web")
        self.assertEqual(lines[b"relay-path"], b"DISPD -> HTTP 127.0.0.1:%d" % self.backend_port)
        self.assertEqual((lines[b"x-one"], lines[b"via"]), (b"1", b"1.1 gridnet"))
        self.assertTrue(lines[b"server-info-1"].startswith(b"HTTP 127.0.0.1:"))
        self.assertNotIn(b"x-hop", lines)
        self.assertNotIn(b"connection-info", lines)

    async def test_a_further_relay_adds_its_path(self) -> None:
        """What a dispatcher or launcher further on says of the way is kept."""
        self.start(self.WEB)
        client = await self.ask()
        (await self.backend()).say(reply(b"x", b"Relay-Path: NCBID", b"Via: 1.0 other"))
        _, lines, _ = split(await client.until(b"\r\n\r\nx"))
        self.assertTrue(lines[b"relay-path"].endswith(b"-> NCBID"), lines[b"relay-path"])
        self.assertEqual(lines[b"via"], b"1.0 other, 1.1 gridnet")

    async def test_connections_are_used_again(self) -> None:
        """Both sides keep theirs."""
        self.start(self.WEB)
        client = await self.ask()
        for number in range(3):
            backend = await self.backend(0, b"n=%d" % number if number else b"\r\n\r\n")
            backend.received = b""
            backend.say(reply(b"reply %d" % number))
            await client.until(b"reply %d" % number)
            client.write(
                b"GET /Service/dispd.cgi?service=web&n=%d HTTP/1.1\r\nHost: d\r\n\r\n"
                % (number + 1)
            )
        await self.backend(0, b"n=3")
        self.assertEqual(len(self.backends), 1)

    async def test_a_body_goes_on(self) -> None:
        """With its length, and the content type that the server wants when there is none."""
        self.start(self.WEB)
        await self.ask(method=b"POST", body=b"the body")
        backend = await self.backend(0, b"the body")
        self.assertEqual(backend.lines[b"content-length"], b"8")
        self.assertEqual(backend.lines[b"content-type"], b"text/plain")

    async def test_chunks_go_on_as_chunks(self) -> None:
        """A body of unknown length stays one, both ways."""
        self.start(self.WEB)
        client = await self.ask(method=b"POST", lines=RELAY + b"Transfer-Encoding: chunked\r\n")
        client.write(chunk(b"one"))
        backend = await self.backend(0, b"one")
        client.write(chunk(b"two") + LAST_CHUNK)
        await self.backend(0, LAST_CHUNK)
        self.assertEqual(dechunked(backend.received.partition(b"\r\n\r\n")[2]), b"onetwo")
        backend.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"three"))
        await client.until(b"three")
        backend.say(chunk(b"four") + LAST_CHUNK)
        _, lines, rest = split(await client.until(LAST_CHUNK))
        self.assertEqual(lines[b"transfer-encoding"], b"chunked")
        self.assertEqual(dechunked(rest), b"threefour")

    async def test_chunks_for_an_old_client(self) -> None:
        """HTTP/1.0 knows no chunks: the end of the connection ends the body."""
        self.start(self.WEB)
        client = await self.ask(version=b"1.0", lines=RELAY + b"Connection: keep-alive\r\n")
        backend = await self.backend()
        backend.say(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"hello") + LAST_CHUNK
        )
        _, lines, rest = split(await client.ended)
        self.assertEqual((lines[b"connection"], rest), (b"close", b"hello"))

    async def test_a_reply_that_ends_with_its_connection(self) -> None:
        """For the client it comes in chunks, and its connection stays."""
        self.start(self.WEB)
        client = await self.ask()
        backend = await self.backend()
        backend.say(b"HTTP/1.0 200 OK\r\n\r\nhello")
        backend.end()
        _, _, rest = split(await client.until(LAST_CHUNK))
        self.assertEqual(dechunked(rest), b"hello")
        self.assertFalse(client.ended.called)

    async def test_replies_without_bodies(self) -> None:
        """HEAD, 204 and 304 have none, whatever their heads announce."""
        self.start(self.WEB)
        for method, status in [(b"HEAD", b"200 OK"), (b"GET", b"204 No"), (b"GET", b"304 Not")]:
            client = await self.ask(method=method)
            backend = await self.backend(len(self.backends) - 1 if self.backends else 0)
            backend.received = b""
            backend.say(b"HTTP/1.1 %b\r\nContent-Length: 5\r\nX: y\r\n\r\n" % status)
            first, lines, rest = split(await client.until(b"\r\n\r\n"))
            self.assertEqual((first, rest), (b"HTTP/1.1 " + status, b""))
            self.assertEqual(lines.get(b"content-length"), None if b"204" in status else b"5")
        self.assertEqual(len(self.backends), 1)

    async def test_interim_replies_are_ours(self) -> None:
        """``100 Continue`` from the server is for us; the client asks us."""
        self.start(self.WEB)
        client = await self.ask(
            method=b"POST", lines=RELAY + b"Expect: 100-continue\r\nContent-Length: 4\r\n"
        )
        await client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.write(b"body")
        backend = await self.backend(0, b"body")
        self.assertNotIn(b"expect", backend.lines)
        backend.say(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + reply(b"x")
        )
        octets = await client.until(b"\r\n\r\nx")
        self.assertEqual(octets.count(b"HTTP/1.1 "), 2)

    async def test_an_upgrade(self) -> None:
        """After 101 octets pass both ways, the first ones too, until either side ends."""
        self.start(self.WEB)
        client = await self.ask(
            lines=b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n"
        )
        backend = await self.backend()
        self.assertEqual(backend.lines[b"upgrade"], b"websocket")
        self.assertEqual(backend.lines[b"connection"], b"upgrade")
        self.assertEqual(backend.lines[b"sec-websocket-key"], b"k")
        backend.say(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: a\r\n\r\n\x81\x05first"
        )
        octets = await client.until(b"first")
        _, lines, rest = split(octets)
        self.assertEqual(lines[b"connection"], b"upgrade")
        self.assertEqual(lines[b"sec-websocket-accept"], b"a")
        self.assertEqual(rest, b"\x81\x05first")
        client.write(b"\x00\r\n\r\nGET / nonsense")
        await self.backend(0, b"nonsense")
        backend.say(b"\x81\x04last")
        await client.until(b"last")
        backend.end()
        await client.ended

    async def test_a_client_that_has_said_all_in_a_tunnel(self) -> None:
        """The server hears its end, and what it then says still arrives."""
        self.start(self.WEB)
        switching = b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: y\r\n\r\n"
        for number, early in enumerate([False, True]):
            client = await self.ask(lines=b"Connection: Upgrade\r\nUpgrade: y\r\n")
            backend = await self.backend(number)
            if early:  # before the server has agreed
                client.transport.loseWriteConnection()
                assert self.front is not None
                (connection,) = self.front.factory.connections
                while not connection._ended:
                    await deferLater(self.core, 0.01)
            backend.say(switching)
            await client.until(b"\r\n\r\n")
            if not early:
                client.write(b"last words")
                client.transport.loseWriteConnection()
                await self.backend(number, b"last words")
            await self.until(lambda backend=backend: backend.finished)  # type: ignore[misc]
            backend.say(b"farewell")
            await client.until(b"farewell")
            backend.end()
            await client.ended

    async def test_an_upgrade_refused(self) -> None:
        """A server may just answer."""
        self.start(self.WEB)
        client = await self.ask(lines=b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        (await self.backend()).say(reply(b"no"))
        first, _, _ = split(await client.until(b"\r\n\r\nno"))
        self.assertEqual(first, b"HTTP/1.1 200 OK")

    async def test_an_upgrade_unasked(self) -> None:
        """A server that changes the protocol by itself is broken."""
        self.start(self.WEB)
        client = await self.ask()
        (await self.backend()).say(b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: y\r\n\r\n")
        self.assertIn(b"HTTP/1.1 502 ", await client.until(b"\r\n\r\n"))

    async def test_server_sent_events(self) -> None:
        """Each event reaches the client when it happens."""
        self.start(self.WEB)
        client = await self.ask()
        backend = await self.backend()
        backend.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            backend.say(b"data: %d\n\n" % number)
            await client.until(b"data: %d\n\n" % number)

    async def test_what_insiders_say_of_the_client(self) -> None:
        """A proxy inside is believed, and joined to the list of proxies."""
        self.start(self.WEB)
        await self.ask(lines=RELAY + b"X-Forwarded-For: 1.2.3.4\r\nCAF-Proxied-Host: 1.2.3.4\r\n")
        backend = await self.backend()
        self.assertEqual(backend.lines[b"x-forwarded-for"], b"1.2.3.4, 127.0.0.1")
        self.assertEqual(backend.lines[b"client-host"], b"1.2.3.4")
        self.assertEqual(backend.lines[b"caf-proxied-host"], b"1.2.3.4")

    async def test_what_outsiders_say_of_themselves(self) -> None:
        """It goes no further."""
        self.start(self.WEB)
        assert self.front is not None
        client = await self.client()
        client.write(b"GET /Service/index.html HTTP/1.1\r\nHost: d\r\n\r\n")
        await client.until(b"</html>")
        (connection,) = self.front.factory.connections
        connection.address = "192.0.2.9"
        client.write(
            b"GET /Service/dispd.cgi?service=web HTTP/1.1\r\nHost: d\r\n"
            b"X-Forwarded-For: 10.0.0.1\r\nCAF-Proxied-Host: 10.0.0.1\r\nX-Real-IP: 10.0.0.1\r\n"
            b"Client-Host: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX-Kept: 1\r\n"
            # The same to a program behind CGI:
            b"CAF_Proxied_Host: 10.0.0.1\r\nClient_Host: 10.0.0.1\r\nProxied-IP: 10.0.0.1\r\n"
            b"X_Forwarded-For: 10.0.0.1\r\nTransfer_Encoding: 10.0.0.1\r\n\r\n"
        )
        backend = await self.backend()
        self.assertNotIn(b"10.0.0.1", backend.received)
        self.assertEqual(backend.lines[b"x-forwarded-for"], b"192.0.2.9")
        self.assertEqual(backend.lines[b"client-host"], b"192.0.2.9")
        self.assertEqual(backend.lines[b"x-kept"], b"1")

    async def test_a_circle_is_broken(self) -> None:
        """A request that has passed here often enough goes no further."""
        self.start("", max_hops=3)
        assert self.front is not None
        around = make_table(f"loop HTTP {HERE}:{self.dispatch_port} /Service/dispd.cgi L=no")
        self.front.dispatcher.table.put(around.entries("loop")[0])
        client = await self.ask(b"/Service/dispd.cgi?service=loop", b"")
        octets = await client.until(b"round in circles\n")
        self.assertTrue(octets.startswith(b"HTTP/1.1 508 "), octets)
        self.assertEqual(self.front.factory.accepted, 4)

    async def test_a_server_that_contradicts_itself(self) -> None:
        """Whatever might be read in two ways is a 502, and the connection is not kept."""
        self.start(self.WEB, max_reply_head_octets=4096)
        for number, head in enumerate(
            [
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
                b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx",
                b"nonsense\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nA: " + b"a" * 5000,
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            ]
        ):
            client = await self.ask()
            backend = await self.backend(number)
            backend.say(head)
            octets = await client.until(b"Dispatcher-Failures: ")
            self.assertTrue(octets.startswith(b"HTTP/1.1 502 "), octets)
            await self.until(lambda backend=backend: backend.over)  # type: ignore[misc]

    async def test_more_than_was_announced(self) -> None:
        """Octets behind the reply are not the next one's."""
        self.start(self.WEB)
        client = await self.ask()
        backend = await self.backend()
        backend.say(reply(b"hello") + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        _, _, rest = split(await client.until(b"hello"))
        self.assertEqual(rest, b"hello")
        await self.until(lambda: backend.over)


class StandAloneTests(Stage):
    """Stand-alone servers get the body as a stream; their output becomes the body of a reply."""

    RAW = "raw STANDALONE 127.0.0.1:{port} L=no"
    PATH = b"/Service/dispd.cgi?service=raw"

    async def test_a_microsession(self) -> None:
        """Body in, end of input; output out, end of output."""
        self.start(self.RAW + " C=text/plain")
        client = await self.ask(self.PATH, method=b"POST", body=b"question")
        backend = await self.backend(0, b"question")
        await self.until(lambda: backend.finished)
        self.assertEqual(backend.received, b"question")
        backend.say(b"ans")
        await client.until(b"ans")
        backend.say(b"wer")
        backend.end()
        first, lines, rest = split(await client.until(LAST_CHUNK))
        self.assertEqual((first, dechunked(rest)), (b"HTTP/1.1 200 OK", b"answer"))
        self.assertEqual((lines[b"service"], lines[b"content-type"]), (b"raw", b"text/plain"))
        self.assertEqual(
            lines[b"relay-path"], b"DISPD -> STANDALONE 127.0.0.1:%d" % self.backend_port
        )

    async def test_an_old_client(self) -> None:
        """Output up to the end of the connection; the type that says nothing."""
        self.start(self.RAW)
        client = await self.ask(self.PATH, method=b"POST", body=b"question", version=b"1.0")
        backend = await self.backend(0, b"question")
        backend.say(b"answer")
        backend.end()
        _, lines, rest = split(await client.ended)
        self.assertEqual(rest, b"answer")
        self.assertEqual(lines[b"content-type"], b"x-ncbi-data/x-unknown")

    async def test_a_conversation(self) -> None:
        """The server may answer while the body is still coming."""
        self.start(self.RAW)
        client = await self.ask(
            self.PATH, method=b"POST", lines=RELAY + b"Transfer-Encoding: chunked\r\n"
        )
        for number in range(3):
            client.write(chunk(b"question %d" % number))
            backend = await self.backend(0, b"question %d" % number)
            backend.say(b"answer %d" % number)
            await client.until(b"answer %d" % number)
        client.write(LAST_CHUNK)
        await self.until(lambda: backend.finished)
        backend.end()
        await client.until(LAST_CHUNK)

    async def test_no_output(self) -> None:
        """A server that says nothing gives an empty reply."""
        self.start(self.RAW)
        client = await self.ask(self.PATH)
        backend = await self.backend(0, b"")
        await self.until(lambda: backend.finished)
        backend.end()
        first, lines, _ = split(await client.until(b"\r\n\r\n"))
        self.assertEqual((first, lines[b"content-length"]), (b"HTTP/1.1 200 OK", b"0"))

    async def test_a_server_that_does_not_want_all(self) -> None:
        """It may end before the body does."""
        self.start(self.RAW)
        client = await self.ask(self.PATH, method=b"POST", lines=RELAY + b"Content-Length: 100\r\n")
        client.write(b"x" * 50)
        backend = await self.backend(0, b"x" * 50)
        backend.say(b"enough")
        backend.end()
        await client.until(LAST_CHUNK)
        client.write(b"x" * 50 + b"GET /Service/index.html HTTP/1.1\r\nHost: d\r\n\r\n")
        await client.until(b"</html>")

    async def test_a_server_that_breaks_off(self) -> None:
        """Before any output it is a 502; after some the client sees the reply cut off."""
        self.start(self.RAW)
        client = await self.ask(self.PATH)
        (await self.backend(0, b"")).transport.abortConnection()
        self.assertIn(b"HTTP/1.1 502 ", await client.until(b"Dispatcher-Failures: "))
        client = await self.ask(self.PATH)
        backend = await self.backend(1, b"")
        backend.say(b"half of it")
        await client.until(b"half of it")
        backend.transport.abortConnection()
        octets = await client.ended
        self.assertNotIn(LAST_CHUNK, octets)

    async def test_a_client_that_leaves(self) -> None:
        """The server's connection ends with it."""
        self.start(self.RAW)
        client = await self.ask(self.PATH, method=b"POST", lines=RELAY + b"Content-Length: 100\r\n")
        client.write(b"question")
        backend = await self.backend(0, b"question")
        client.transport.abortConnection()
        await self.until(lambda: backend.over)


class NcbidTests(Stage):
    """NCBID servers are asked over HTTP to run their program."""

    async def test_a_program_elsewhere(self) -> None:
        """At ``ncbid.cgi`` of the server's place, stateless."""
        self.start("filter NCBID 127.0.0.1:{port} a=1&b L=no")
        client = await self.ask(
            b"/Service/dispd.cgi?service=filter&address=h&c=3", method=b"POST", body=b"input"
        )
        backend = await self.backend(0, b"input")
        self.assertEqual(
            backend.head.split(b"\r\n")[0],
            b"POST /Service/ncbid.cgi?service=filter&address=h&a=1&b&c=3 HTTP/1.1",
        )
        self.assertEqual(backend.lines[b"connection-mode"], b"STATELESS")
        backend.say(reply(b"output"))
        await client.until(b"output")


class FailureTests(Stage):
    """Servers that are not there, or not well."""

    async def dead_port(self) -> int:
        """A port where nobody listens."""
        number = self.listen(serving(TwistedProtocol))
        port = self.ports.pop()
        await port.stopListening()
        return number

    async def test_a_client_of_ours_is_told(self) -> None:
        """Released clients try the next server themselves; they learn which one to avoid."""
        dead = await self.dead_port()
        self.start(
            f"web HTTP 127.0.0.1:{dead} /x L=no R=100000\nweb HTTP 127.0.0.1:{{port}} /x L=no"
        )
        used = b"Used-Server-Info: HTTP 127.0.0.1:%d /x L=no R=1 T=1\r\n" % dead
        client = await self.ask(lines=RELAY + used)
        first, lines, _ = split(await client.until(b"cannot connect"))
        self.assertEqual(first, b"HTTP/1.1 502 Bad Gateway")
        self.assertTrue(lines[b"dispatcher-failures"].startswith(b"cannot connect: "))
        failed = lines[b"used-server-info-1"]
        self.assertTrue(failed.startswith(b"HTTP 127.0.0.1:%d /x " % dead), failed)
        until = int(failed.partition(b" T=")[2].split()[0])
        self.assertLess(abs(until - 30 - self.core.seconds()), 10)
        self.assertEqual(self.backends, [])

    async def test_a_browser_gets_the_next_server(self) -> None:
        """Who knows nothing of dispatching is served by whoever is there."""
        dead = await self.dead_port()
        self.start(
            f"web HTTP 127.0.0.1:{dead} /x L=no R=100000\nweb HTTP 127.0.0.1:{{port}} /x L=no R=1"
        )
        client = await self.ask(lines=b"", method=b"POST", body=b"kept")
        backend = await self.backend(0, b"kept")
        backend.say(reply(b"fine"))
        first, lines, _ = split(await client.until(b"fine"))
        self.assertEqual(first, b"HTTP/1.1 200 OK")
        self.assertIn(b":%d " % dead, lines[b"used-server-info-1"])
        self.assertIn(b"1 tried in vain, the last: cannot connect", lines[b"dispatcher-messages"])

    async def test_another_choice_than_the_clients_is_told(self) -> None:
        """In a message, unless it wants to hear nothing."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no")
        used = RELAY + b"Used-Server-Info: HTTP 10.9.9.9:7 /y L=no R=1 T=1\r\n"
        for number, more in enumerate((b"", b"Dispatch-Mode: NO_INFORMATION\r\n")):
            client = await self.ask(lines=used + more + b"Connection: close\r\n")
            (await self.backend(number)).say(reply(b"fine", b"Connection: close"))
            _, lines, _ = split(await client.until(b"fine"))
            self.assertEqual(b"dispatcher-messages" in lines, not more)

    async def test_a_server_that_says_nothing(self) -> None:
        """A browser's GET goes to the next server, its POST does not: it may have been done."""
        second = self.listen(serving(lambda: Backend(self)))
        self.start(
            "web HTTP 127.0.0.1:{port} /x L=no R=100000\n"
            f"web HTTP 127.0.0.1:{second} /x L=no R=0.01"
        )
        client = await self.ask(lines=b"")
        (await self.backend(0)).end()
        (await self.backend(1)).say(reply(b"second"))
        await client.until(b"second")
        client = await self.ask(lines=b"", method=b"POST", body=b"order")
        (await self.backend(2, b"order")).end()
        self.assertIn(b"HTTP/1.1 502 ", await client.until(b"Dispatcher-Failures: "))

    async def test_all_servers_are_dead(self) -> None:
        """All that were tried are named."""
        dead = [await self.dead_port() for _ in range(4)]
        self.start(
            "\n".join(f"web HTTP 127.0.0.1:{port} /x L=no" for port in dead), browser_tries=3
        )
        client = await self.ask(lines=b"")
        first, lines, _ = split(await client.until(b"cannot connect"))
        self.assertEqual(first, b"HTTP/1.1 502 Bad Gateway")
        self.assertIn(b"used-server-info-3", lines)
        self.assertNotIn(b"used-server-info-4", lines)

    async def test_no_such_service(self) -> None:
        """Nobody knows the name."""
        self.start("")
        client = await self.ask(b"/Service/dispd.cgi?service=none")
        first, lines, _ = split(await client.until(b"not found\n"))
        self.assertEqual(first, b"HTTP/1.1 404 Not Found")
        self.assertEqual(lines[b"service"], b"none")

    async def test_no_server_left(self) -> None:
        """The service is known, its servers are down."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no R=0")
        client = await self.ask()
        self.assertIn(b"HTTP/1.1 503 ", await client.until(b"Dispatcher-Failures: "))

    async def test_no_server_for_the_method(self) -> None:
        """A server that takes GET only is not sent a POST."""
        self.start("web HTTP_GET 127.0.0.1:{port} /x L=no")
        client = await self.ask(method=b"POST", body=b"x")
        self.assertIn(b"HTTP/1.1 405 ", await client.until(b"Dispatcher-Failures: "))

    async def test_a_busy_server(self) -> None:
        """Requests to one server are bounded; who comes too many is told so."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no", max_relays_per_server=1)
        busy = await self.ask()
        backend = await self.backend()
        client = await self.ask()
        self.assertIn(b"HTTP/1.1 503 ", await client.until(b"server too busy\n"))
        backend.say(reply(b"done"))
        await busy.until(b"done")
        client.write(b"GET /Service/dispd.cgi?service=web&again HTTP/1.1\r\nHost: d\r\n\r\n")
        await self.backend(0, b"again")

    async def test_a_server_that_dies_in_the_middle(self) -> None:
        """The client sees its reply cut off, not ended."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no")
        for number, start in enumerate(
            [b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
        ):
            client = await self.ask()
            backend = await self.backend(number)
            backend.say(b"HTTP/1.1 200 OK\r\n" + start)
            await client.until(b"half")
            backend.end()
            octets = await client.ended
            self.assertFalse(octets.endswith(LAST_CHUNK))
            assert client.reason is not None
            self.assertIsNone(client.reason.check(ConnectionDone))

    async def test_a_server_that_never_answers(self) -> None:
        """Silence ends in a 504."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no", relay_idle_seconds=0.2)
        client = await self.ask()
        await self.backend()
        self.assertIn(b"HTTP/1.1 504 ", await client.until(b"does not answer\n"))

    async def test_a_connection_closed_while_kept(self) -> None:
        """A kept connection that the server has closed costs nobody anything."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no")
        client = await self.ask()
        backend = await self.backend()
        backend.say(reply(b"first"))
        await client.until(b"first")
        backend.end()
        await self.until(lambda: backend.gone.called)
        client.write(b"GET /Service/dispd.cgi?service=web HTTP/1.1\r\nHost: d\r\n\r\n")
        (await self.backend(1)).say(reply(b"second"))
        await client.until(b"second")

    async def test_a_connection_closed_while_it_is_used(self) -> None:
        """A request that may be repeated is, on a new connection."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no")
        client = await self.ask()
        backend = await self.backend()
        backend.say(reply(b"first"))
        await client.until(b"first")
        client.write(b"GET /Service/dispd.cgi?service=web&more HTTP/1.1\r\nHost: d\r\n\r\n")
        await self.backend(0, b"more")
        backend.end()
        (await self.backend(1, b"more")).say(reply(b"second"))
        await client.until(b"second")

    async def test_kept_connections_are_bounded(self) -> None:
        """Of many connections only so many are kept, and only for so long."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no", pool_per_server=2, pool_idle_seconds=5.0)
        clients = [await self.ask() for _ in range(4)]
        await self.backend(3)
        for backend in self.backends:
            backend.say(reply(b"done"))
        for client in clients:
            await client.until(b"done")
        assert self.front is not None
        self.assertEqual(self.front.pool.idle_links, 2)
        self.front.pool.sweep(self.core.seconds() + 6)
        self.assertEqual((self.front.pool.idle_links, self.front.pool.idle), (0, {}))
        await self.until(lambda: all(backend.over for backend in self.backends))
        self.assertFalse(self.front.pool.in_flight)


class Sink(Conversation):
    """Counts and digests instead of collecting; can stop reading."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self.size = 0
        self.enough: Deferred[None] = Deferred()
        self.wanted = 0

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        if b"\r\n\r\n" not in self.received:
            self.received += data
            _, _, data = self.received.partition(b"\r\n\r\n")
            if b"\r\n\r\n" not in self.received:
                return
        self.digest.update(data)
        self.size += len(data)
        if self.size >= self.wanted and not self.enough.called:
            self.enough.callback(None)


class Source:
    """Writes octets as fast as its transport takes them, and counts them."""

    def __init__(self, transport: Any, size: int) -> None:
        self.transport = transport
        self.left = size
        self.sent = 0
        self.digest = hashlib.sha256()
        self.finished: Deferred[None] = Deferred()
        self._number = 0
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Called by the transport."""
        if not self.left:
            self.transport.unregisterProducer()
            self.finished.callback(None)
            return
        self._number += 1
        data = (b"%08d" % self._number * 8192)[: min(65536, self.left)]
        self.digest.update(data)
        self.left -= len(data)
        self.sent += len(data)
        self.transport.write(data)

    def stopProducing(self) -> None:
        """Called by the transport."""
        self.left = 0


def peak_kilobytes() -> int:
    """Most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class BulkTests(Stage):
    """Bodies of any size pass in constant memory."""

    SIZE = 64 * MEGABYTE

    async def sink(self) -> Sink:
        """A client that digests."""
        client: Sink = await ClientCreator(self.core, Sink).connectTCP(HERE, self.dispatch_port)
        self.clients.append(client)
        return client

    async def test_a_large_reply(self) -> None:
        """64 MB from server to client, octet for octet."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no")
        client = await self.sink()
        client.wanted = self.SIZE
        client.write(b"GET /Service/dispd.cgi?service=web HTTP/1.1\r\nHost: d\r\n\r\n")
        backend = await self.backend()
        before = peak_kilobytes()
        backend.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.SIZE)
        source = Source(backend.transport, self.SIZE)
        await client.enough
        self.assertEqual(client.size, self.SIZE)
        self.assertEqual(client.digest.digest(), source.digest.digest())
        self.assertLess(peak_kilobytes() - before, 24 * 1024)

    async def test_a_reader_that_stops(self) -> None:
        """The server is made to wait, and what is under way is bounded."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no")
        client = await self.sink()
        client.wanted = self.SIZE
        client.write(b"GET /Service/dispd.cgi?service=web HTTP/1.1\r\nHost: d\r\n\r\n")
        backend = await self.backend()
        client.transport.pauseProducing()
        backend.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.SIZE)
        source = Source(backend.transport, self.SIZE)
        sent = -1
        while source.sent != sent:
            sent = source.sent
            await deferLater(self.core, 0.1)
        self.assertLess(sent, 24 * MEGABYTE)  # the kernel's buffers take their share
        client.transport.resumeProducing()
        await client.enough
        self.assertEqual(client.digest.digest(), source.digest.digest())

    async def test_a_large_request(self) -> None:
        """64 MB from client to a server that takes its time at first."""
        self.start("web HTTP 127.0.0.1:{port} /x L=no")
        client = await self.client()
        client.write(
            b"POST /Service/dispd.cgi?service=web HTTP/1.1\r\nHost: d\r\n"
            b"Content-Length: %d\r\n\r\n" % self.SIZE
        )
        backend = await self.backend()
        digest = hashlib.sha256()
        taken = 0
        enough: Deferred[None] = Deferred()

        def take(data: bytes) -> None:
            nonlocal taken
            digest.update(data)
            taken += len(data)
            if taken >= self.SIZE and not enough.called:
                enough.callback(None)

        backend.dataReceived = take  # type: ignore[method-assign]
        backend.transport.pauseProducing()
        source = Source(client.transport, self.SIZE)
        sent = -1
        while source.sent != sent:
            sent = source.sent
            await deferLater(self.core, 0.1)
        self.assertLess(sent, 24 * MEGABYTE)
        before = peak_kilobytes()
        backend.transport.resumeProducing()
        await enough
        self.assertEqual((taken, digest.digest()), (self.SIZE, source.digest.digest()))
        self.assertLess(peak_kilobytes() - before, 24 * 1024)
        backend.say(reply(b"thanks"))
        await client.until(b"thanks")

    async def test_a_large_microsession(self) -> None:
        """The same through a stand-alone server that gives back what it gets, both at once."""
        self.start("raw STANDALONE 127.0.0.1:{port} L=no")
        size = 16 * MEGABYTE
        client = await self.sink()
        client.wanted = size
        client.write(
            b"POST /Service/dispd.cgi?service=raw HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % size
        )
        backend = await self.backend(0, b"")
        backend.dataReceived = backend.transport.write  # type: ignore[method-assign]
        backend.transport.registerProducer(backend.transport, True)
        backend.readConnectionLost = lambda: (  # type: ignore[method-assign,assignment]
            backend.transport.unregisterProducer(),
            backend.transport.loseConnection(),
        )
        source = Source(client.transport, size)
        await client.ended
        self.assertEqual((client.size, client.digest.digest()), (size, source.digest.digest()))
