"""
Pages that other components show beside the dispatcher
(:class:`gridnet.interfaces.IDispatcherPage`).
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger

from gridnet.dispatch.dedicated import Offices
from gridnet.dispatch.head import RequestHead
from gridnet.dispatch.http import HttpConnection
from gridnet.dispatch.reply import complete, failure
from gridnet.dispatch.wire import header
from gridnet.table.way_in import PageReply, PageRequest

#: A page gets no more of a request's body.
MAX_BODY_OCTETS = 65_536


class SidePage:
    """One request for a page: an :class:`gridnet.dispatch.http.Exchange`."""

    _log = Logger()

    def __init__(
        self, offices: Offices, head: RequestHead, path: str, connection: HttpConnection
    ) -> None:
        self._offices = offices
        self._head = head
        self._path = path
        self._connection = connection
        self._body = b""
        self._work: Deferred[None] | None = None
        self._over = False

    def start(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        if self._head.framing.empty:
            self.body_ended()
        else:
            self._connection.want_body()

    def body_received(self, data: bytes) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._body += data[: MAX_BODY_OCTETS - len(self._body)]

    def body_ended(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        if self._work is None and not self._over:
            self._work = Deferred.fromCoroutine(self._run())

    def reply_paused(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`; the reply is one write."""

    def reply_resumed(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""

    def client_lost(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._over = True
        if self._work is not None:
            self._work.cancel()

    async def _run(self) -> None:
        head = self._head
        page: Any = self._offices.page(self._path)
        if page is None:
            self._fail(404, "nothing is at this path")
            return
        request = PageRequest(
            head.method,
            self._path,
            head.target.decode("latin-1").partition("?")[2],
            tuple(
                (name.decode("latin-1").lower(), value.decode("latin-1"))
                for name, value in head.headers
            ),
            self._body,
            self._connection.address,
        )
        try:
            reply: PageReply = await self._offices.timely(page.respond(request))
        except CancelledError:
            return
        except TimeoutError:
            self._fail(504, "the page is not ready in time")
        except Exception:
            self._log.failure("page {path} failed", path=self._path)
            self._fail(500, "the page failed")
        else:
            lines = header("Content-Type", reply.content_type)
            lines += b"".join(header(name, value) for name, value in reply.headers)
            self._finish(
                reply.status,
                complete(
                    reply.status,
                    lines,
                    reply.body,
                    minor=head.minor,
                    keep=head.keep_alive,
                    headless=head.method == "HEAD",
                ),
            )

    def _fail(self, status: int, text: str) -> None:
        head = self._head
        self._finish(
            status,
            failure(
                status,
                text,
                minor=head.minor,
                keep=head.keep_alive,
                lines=b"",
                headless=head.method == "HEAD",
            ),
        )

    def _finish(self, status: int, octets: bytes) -> None:
        if not self._over:
            self._over = True
            self._offices.replies["page", status] += 1
            self._connection.write(octets)
            self._connection.finish(self._head.keep_alive)
