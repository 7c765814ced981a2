"""
Requests passed on to servers (docs/protocols/dispatcher.rst, Relaying).

A :class:`Relay` is one request's way: it picks a server, connects, and lets octets pass both ways
as they come.  Neither side is read faster than the other takes it, so memory stays constant
whatever the size.  Stand-alone servers get the body as a stream, and their output becomes the
body of an HTTP reply.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from gridnet.dispatch.body import LAST_CHUNK, chunk
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.dispatcher import Dispatcher
from gridnet.dispatch.forwarding import VIA, Forwarding, passed_on
from gridnet.dispatch.head import ReplyHead, values
from gridnet.dispatch.http import HttpConnection
from gridnet.dispatch.reply import DateLine, connection_line, failure, status_line
from gridnet.dispatch.upstream import Attempt, HttpLink, Link, Place, UpstreamPool
from gridnet.dispatch.wire import header, messages
from gridnet.table.address import canonical_address
from gridnet.table.model import Entry
from gridnet.table.server_info import ServerInfo, ServerType

DEFAULT_CONTENT_TYPE = "x-ncbi-data/x-unknown"

#: What a server can be called in TLS (RFC 6066, 3): no address, nothing but host names.
_SERVER_NAME = re.compile(
    r"(?=.{1,253}\Z)(?=.*[A-Za-z])[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}(?:\.[A-Za-z0-9_]|\Z))*"
)
#: Methods that a server may see twice without harm (RFC 9110, 9.2.2).
_IDEMPOTENT = frozenset(["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])


class Relays:
    """
    What the relays of one process share.

    :ivar active: relays under way.
    :ivar octets_in: of request bodies, so far.
    :ivar octets_out: of reply bodies, so far.
    """

    def __init__(
        self,
        config: DispatchConfig,
        dispatcher: Dispatcher,
        pool: UpstreamPool,
        replies: Counter[tuple[str, int]],
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.pool = pool
        self.replies = replies
        self.clock = clock
        self.date = DateLine()
        self.active: set[Relay] = set()
        self.octets_in = 0
        self.octets_out = 0

    def sweep(self, now: float) -> None:
        """End what has been silent for too long."""
        for relay in tuple(self.active):
            relay.sweep(now)
        self.pool.sweep(now)


def place_of(info: ServerInfo) -> Place:
    """Where to connect for the server *info*; one object for each place, so a cheap key."""
    return _place(info.host, info.port, info.secure, info.vhost if info.secure else "")


@lru_cache(maxsize=4096)
def _place(host: str, port: int, secure: bool, vhost: str) -> Place:
    name = vhost.partition(":")[0]
    if _SERVER_NAME.fullmatch(name) is None:
        name = ""
    return Place(canonical_address(host) or host, port, secure, name=name)


class Relay:
    """One request on its way to a server."""

    def __init__(
        self,
        relays: Relays,
        forwarding: Forwarding,
        connection: HttpConnection,
        entries: Sequence[Entry],
        tries: int,
        message: str = "",
    ) -> None:
        self._relays = relays
        self._forwarding = forwarding
        self._connection = connection
        self._waiting = list(entries)
        self._tries = tries
        self._message = message  # for the client, of the choice of servers
        self._failed: list[Entry] = []
        self._entry: Entry | None = None
        self._place: Place | None = None  # counted as in flight
        self._attempt: Attempt | None = None
        self._link: Link | None = None
        self._head = forwarding.head
        self._stream = False  # to a stand-alone server
        self._kept: list[bytes] = []  # of the body: not sent yet, or to be sent again
        self._kept_octets = 0
        self._replayable = True  # what is kept is all of the body so far
        self._body_whole = self._head.framing.empty
        self._replied = False
        self._chunked_reply = False
        self._keep = False
        self._tunnel = False
        self._held_back = False  # the client reads too slowly
        self._over = False
        self._status = 502  # what the last failure amounts to
        self._reason = ""
        self._touched = connection.factory.now

    # -- what the connection calls (:class:`gridnet.dispatch.http.Exchange`)

    def start(self) -> None:
        """Begin with the first server."""
        self._relays.active.add(self)
        self._next()

    def body_received(self, data: bytes) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._touched = self._connection.factory.now
        self._relays.octets_in += len(data)
        if self._tunnel:
            if self._link is not None:
                self._link.write(data)
            return
        if self._replayable:
            self._kept.append(data)
            self._kept_octets += len(data)
        if self._link is not None:
            self._link.write(chunk(data) if self._chunks else data)
            self._forget_body()
        elif self._kept_octets > self._relays.config.replay_octets:
            self._connection.pause_body()

    def body_ended(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._body_whole = True
        if self._link is None:
            return
        if self._stream or self._tunnel:
            self._link.end_output()
        elif self._chunks:
            self._link.write(LAST_CHUNK)

    def reply_paused(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._held_back = True
        if self._link is not None:
            self._link.pause()

    def reply_resumed(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._held_back = False
        self._touched = self._connection.factory.now
        if self._link is not None:
            self._link.resume()

    def client_lost(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        if not self._over:
            self._relays.replies[self._kind, 499] += 1
        self._end()

    # -- what the server's connection calls (:class:`gridnet.dispatch.upstream.User`)

    def connected(self, link: Link) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._attempt = None
        self._link = link
        self._touched = self._connection.factory.now
        if isinstance(link, HttpLink):
            octets = self._request_head()
            pieces = [chunk(piece) if self._chunks else piece for piece in self._kept]
            if self._body_whole and self._chunks:
                pieces.append(LAST_CHUNK)
            head = self._head
            link.request(
                b"".join([octets, *pieces]) if pieces else octets,
                head.method == "HEAD",
                head.upgrade,
            )
        else:
            if self._kept:
                link.write(b"".join(self._kept))
            if self._body_whole:
                link.end_output()
        self._forget_body()
        if self._held_back:
            link.pause()
        if not self._body_whole:
            self._connection.want_body()
            self._connection.resume_body()

    def connect_failed(self, reason: str, timed_out: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._attempt = None
        self._server_failed(504 if timed_out else 502, f"cannot connect: {reason}", True)

    def request_paused(self) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._connection.pause_body()

    def request_resumed(self) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._touched = self._connection.factory.now
        self._connection.resume_body()

    def reply_received(self, head: ReplyHead, data: bytes, ended: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._touched = self._connection.factory.now
        self._replied = True
        self._relays.replies[self._kind, head.status] += 1
        self._relays.octets_out += len(data)
        connection = self._connection
        lines = self._reply_lines(head)
        if head.status == 101:
            lines.append(b"\r\n")
            connection.write(b"".join(lines))
            self._tunnel = True
            connection.start_tunnel()
            if data and not self._over:
                connection.write(data)
            return
        lines.append(self._framing_lines(head))
        if data:
            lines.append(chunk(data) if self._chunked_reply else data)
        if ended and self._chunked_reply:
            lines.append(LAST_CHUNK)
        connection.write(b"".join(lines))
        if ended:
            self._finish()

    def output_received(self, data: bytes, ended: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._touched = self._connection.factory.now
        self._relays.octets_out += len(data)
        if not self._replied:
            self._begin_stream_reply(data, ended)
        elif self._tunnel:
            if data:
                self._connection.write(data)
        elif self._headless:
            pass
        elif self._chunked_reply:
            if data and ended:
                self._connection.write(chunk(data) + LAST_CHUNK)
            else:
                self._connection.write(chunk(data) if data else LAST_CHUNK)
        elif data:
            self._connection.write(data)
        if ended and not self._over:
            self._finish()

    def link_failed(self, reason: str, untouched: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        link, self._link = self._link, None
        if self._replied:
            self._end()
            self._connection.abort()
            return
        again = untouched and self._repeatable
        if again and link is not None and link.reused and self._place is not None:
            # The server has closed a kept connection: nothing is wrong with it.
            self._attempt = self._relays.pool.open_http(self._place, self)
            return
        self._server_failed(502, reason, again)

    # -- what the relays call

    def sweep(self, now: float) -> None:
        """End what has been silent for too long."""
        config = self._relays.config
        limit = config.tunnel_idle_seconds if self._tunnel else config.relay_idle_seconds
        if self._link is None or self._held_back or now - self._touched <= limit:
            return
        if self._replied:
            self._end()
            self._connection.abort()
        else:
            self._server_failed(504, "the server does not answer", False)

    # -- the way itself

    @property
    def _kind(self) -> str:
        return self._forwarding.request.kind.name

    @property
    def _chunks(self) -> bool:
        """Whether the server gets the body in chunks."""
        return self._head.framing.chunked and not self._stream

    @property
    def _headless(self) -> bool:
        return self._head.method == "HEAD"

    @property
    def _repeatable(self) -> bool:
        """Whether the request may be sent once more, as far as it has come."""
        return self._replayable and self._head.method in _IDEMPOTENT

    def _next(self) -> None:
        """Go to the next server, or give up."""
        while self._waiting and len(self._failed) < self._tries:
            entry = self._waiting.pop(0)
            place = place_of(entry.info)
            if not self._relays.pool.enter(place):
                self._status, self._reason = 503, "server too busy"
                continue
            self._entry = entry
            self._open(place, entry.info.type is ServerType.STANDALONE)
            return
        self._give_up()

    def _open(self, place: Place, stream: bool) -> None:
        """Connect to the server at *place*, which has been counted as in flight."""
        pool = self._relays.pool
        self._place = place
        self._stream = stream
        if stream:
            self._attempt = pool.open_stream(place, self)
            return
        link = pool.kept(place, self, self._repeatable)
        if link is not None:
            self.connected(link)
        else:
            self._attempt = pool.open_http(place, self)

    def _forget_body(self) -> None:
        """Keep the body only while it may have to be sent again."""
        if not self._replayable:
            return
        link = self._link
        needed = self._head.method in _IDEMPOTENT and (
            (link is not None and link.reused)
            or bool(self._waiting and len(self._failed) + 1 < self._tries)
        )
        if not needed or self._kept_octets > self._relays.config.replay_octets:
            self._replayable = not self._kept_octets and self._body_whole
            self._kept.clear()
            self._kept_octets = 0

    def _server_failed(self, status: int, reason: str, again: bool) -> None:
        """
        The server in hand is of no use.

        :param again: another may be asked.
        """
        self._leave()
        if self._entry is not None:
            self._failed.append(self._entry)
        self._status, self._reason = status, reason
        if again:
            self._next()
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._end()
        status = self._status
        self._relays.replies[self._kind, status] += 1
        keep = self._head.keep_alive and self._body_whole
        self._connection.write(
            failure(
                status,
                self._reason,
                minor=self._head.minor,
                keep=keep,
                lines=self._service_lines(None),
                headless=self._headless,
            )
        )
        self._connection.finish(keep)

    def _request_head(self) -> bytes:
        """The head for the server in hand."""
        entry = self._entry
        assert entry is not None
        dispatcher = self._relays.dispatcher
        peer = self._connection.address
        forwarding = self._forwarding
        return forwarding.octets(
            entry.info,
            self._relays.config,
            dispatcher.asker(forwarding.request, peer).address,
            self._connection,
            dispatcher.local_networks.contains(peer),
        )

    def _service_lines(self, entry: Entry | None) -> bytes:
        forwarding = self._forwarding
        relays = self._relays
        if entry is None:
            lines = forwarding.service_line
        else:
            lines = forwarding.own_lines(entry)
            lines += relays.dispatcher.informational(
                forwarding.request, self._connection.address, entry, relays.clock()
            )
            if self._failed:
                self._message = f"{len(self._failed)} tried in vain, the last: {self._reason}"
            if self._message and forwarding.request.inform:
                lines += messages(self._message)
        if self._failed:
            until = int(relays.clock()) + relays.config.failed_server_seconds
            peer = self._connection.address
            lines += relays.dispatcher.used_lines(forwarding.request, peer, self._failed, until)
        return lines

    def _reply_lines(self, head: ReplyHead) -> list[bytes]:
        """The head for the client, but for framing."""
        passed, path, via = passed_on(head)
        lines = [passed]
        own = self._service_lines(self._entry)
        if path:
            # A dispatcher or launcher further on has said its part.
            start, _, rest = own.partition(b"Relay-Path: ")
            line, _, rest = rest.partition(b"\r\n")
            own = b"%bRelay-Path: %b -> %b\r\n%b" % (start, line, path, rest)
        lines.append(own)
        lines.append(b"Via: %b%b\r\n" % (via, VIA))
        if head.status == 101:
            kind = b", ".join(values(head.headers, b"upgrade"))
            lines.append(b"Connection: upgrade\r\nUpgrade: %b\r\n" % kind)
        return lines

    def _framing_lines(self, head: ReplyHead) -> bytes:
        """How long the body will be, and what becomes of the connection; ends the head."""
        asked = self._head
        length = head.framing.content_length
        bodiless = self._headless or head.status in (204, 304)
        keep = asked.keep_alive
        line = b""
        if length is not None and head.status != 204:
            line = b"Content-Length: %d\r\n" % length
        elif not bodiless:
            if asked.minor == 1:
                self._chunked_reply = True
                line = b"Transfer-Encoding: chunked\r\n"
            else:
                keep = False
        self._keep = keep
        return line + connection_line(asked.minor, keep) + b"\r\n"

    def _begin_stream_reply(self, data: bytes, ended: bool) -> None:
        """The first output of a stand-alone server, or its end without any."""
        self._replied = True
        self._relays.replies[self._kind, 200] += 1
        entry = self._entry
        assert entry is not None
        asked = self._head
        keep = asked.keep_alive
        if ended:
            framing = b"Content-Length: %d\r\n" % len(data)
        elif asked.minor == 1:
            self._chunked_reply = not self._headless
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            framing = b""
            keep = False
        self._keep = keep
        lines = [
            status_line(200),
            self._relays.date.at(self._relays.clock()),
            self._service_lines(entry),
            header("Content-Type", entry.info.content_type or DEFAULT_CONTENT_TYPE),
            framing,
            connection_line(asked.minor, keep),
            b"\r\n",
        ]
        if data and not self._headless:
            lines.append(chunk(data) if self._chunked_reply else data)
        self._connection.write(b"".join(lines))

    def _finish(self) -> None:
        """The server has said all."""
        link, self._link = self._link, None
        keep = self._keep and not self._tunnel
        whole = self._body_whole and not self._tunnel
        self._end()
        if link is not None:
            link.release(whole)
        self._connection.finish(keep)

    def _leave(self) -> None:
        """Be done with the server in hand."""
        if self._place is not None:
            self._relays.pool.leave(self._place)
            self._place = None
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        if self._link is not None:
            self._link.drop()
            self._link = None

    def _end(self) -> None:
        self._over = True
        self._leave()
        self._kept.clear()
        self._relays.active.discard(self)
