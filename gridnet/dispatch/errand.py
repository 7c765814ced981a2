"""Requests that a worker hands to the site's own process (:mod:`gridnet.dispatch.workers`)."""

from __future__ import annotations

from gridnet.dispatch.forwarding import Forwarding
from gridnet.dispatch.head import ReplyHead, end_to_end, values
from gridnet.dispatch.http import HttpConnection
from gridnet.dispatch.relay import Relay, Relays
from gridnet.dispatch.reply import status_line
from gridnet.dispatch.upstream import Place

#: Headers that a worker and the site's own process use between themselves.
CLIENT_HEADER = b"gridnet-client"
ASKED_AT_HEADER = b"gridnet-asked-at"


class Errand(Relay):
    """
    A request that a worker has no means to answer: the site's own process does.

    It goes there as it is, with a note of who asks, and the reply comes back as it is.
    """

    def __init__(
        self, relays: Relays, forwarding: Forwarding, office: Place, connection: HttpConnection
    ) -> None:
        super().__init__(relays, forwarding, connection, (), 1)
        self._office = office
        self._sent_out = False

    def _next(self) -> None:
        if self._sent_out or not self._relays.pool.enter(self._office):
            self._status, self._reason = 503, self._reason or "too much to do"
            self._give_up()
            return
        self._sent_out = True
        self._open(self._office, False)

    def _request_head(self) -> bytes:
        head = self._head
        connection = self._connection
        host, port = connection.local_place()
        own = (b"content-length", b"expect", CLIENT_HEADER, ASKED_AT_HEADER)
        lines = [b"%b %b HTTP/1.1\r\n" % (head.method.encode("ascii"), head.target)]
        lines += [
            b"%b: %b\r\n" % (name, value)
            for name, value in end_to_end(head.headers, head.connection)
            if name.lower() not in own
        ]
        if head.minor == 0 and not values(head.headers, b"host"):
            lines.append(b"Host: %b\r\n" % head.host)
        lines.append(b"%b: %b\r\n" % (CLIENT_HEADER, connection.address.encode("ascii")))
        lines.append(b"%b: %b %d\r\n" % (ASKED_AT_HEADER, host.encode("ascii"), port))
        if head.framing.chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif head.framing.content_length is not None:
            lines.append(b"Content-Length: %d\r\n" % head.framing.content_length)
        lines.append(b"\r\n")
        return b"".join(lines)

    def _reply_lines(self, head: ReplyHead) -> list[bytes]:
        lines = [status_line(head.status, head.reason)]
        lines += [
            b"%b: %b\r\n" % (name, value)
            for name, value in end_to_end(head.headers, head.connection)
            if name.lower() != b"content-length"
        ]
        return lines
