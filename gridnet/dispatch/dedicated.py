"""
Dedicated connections (docs/protocols/dispatcher.rst, Connection-Info).

A client that can hold a conversation is told where to connect and with what ticket.  Who lets it
through is another component: the relay (:class:`gridnet.interfaces.ITicketOffice`), and for NCBID
services the launcher of the server's host.  Where the relay is missing the client is asked to
come back stateless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.dispatch import wire
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.dispatcher import Dispatcher
from gridnet.dispatch.forwarding import Forwarding
from gridnet.dispatch.head import ReplyHead, RequestHead, values
from gridnet.dispatch.http import HttpConnection
from gridnet.dispatch.relay import place_of
from gridnet.dispatch.reply import complete, failure
from gridnet.dispatch.request import ConnectionMode, DispatchRequest
from gridnet.dispatch.upstream import Attempt, HttpLink, Link, UpstreamPool
from gridnet.dispatch.wire import header
from gridnet.errors import LaunchError, TicketError
from gridnet.table.model import Entry
from gridnet.table.server_info import ServerType
from gridnet.table.way_in import ConnectionPoint, LaunchRequest, WayInRequest


@frozen
class Offices:
    """
    What dedicated connections and programs are made of.

    :ivar address: IP address text of this host, as the owner of its entries in the table.
    :ivar ticket_office: gives the :class:`gridnet.interfaces.ITicketOffice`, or None.
    :ivar launcher: gives the :class:`gridnet.interfaces.IProgramLauncher`, or None.
    """

    config: DispatchConfig
    dispatcher: Dispatcher
    pool: UpstreamPool
    replies: Counter[tuple[str, int]]
    clock: Callable[[], float]
    reactor: Any
    address: str
    ticket_office: Callable[[], Any]
    launcher: Callable[[], Any]
    #: path -> the :class:`gridnet.interfaces.IDispatcherPage` that is there, or None
    page: Callable[[str], Any] = lambda path: None

    def timely(self, deferred: Deferred[Any]) -> Deferred[Any]:
        """*deferred*, which fails when it takes too long."""
        return deferred.addTimeout(self.config.dedicated_seconds, self.reactor)


class Refused(Exception):
    """
    The request ends here.

    :ivar http_status: what the client sees.
    """

    def __init__(self, http_status: int, text: str) -> None:
        super().__init__(text)
        self.http_status = http_status


class OneReply:
    """
    An exchange that ends with one small reply, worked out by a coroutine.

    A body that comes meanwhile is dropped; a client that leaves cancels the work.
    """

    _log = Logger()

    def __init__(
        self,
        offices: Offices,
        head: RequestHead,
        request: DispatchRequest,
        connection: HttpConnection,
    ) -> None:
        self.offices = offices
        self.head = head
        self.request = request
        self.connection = connection
        self._work: Deferred[None] | None = None
        self._whole = False
        self._over = False

    async def work(self) -> bytes:
        """
        Header lines of the reply.

        :raises Refused: there is none but this.
        """
        raise AssertionError("each kind of reply has its own work")

    def start(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self.connection.want_body()
        self._work = Deferred.fromCoroutine(self._run())

    def body_received(self, data: bytes) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""

    def body_ended(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._whole = True

    def reply_paused(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`; the reply is one small write."""

    def reply_resumed(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""

    def client_lost(self) -> None:
        """See :class:`gridnet.dispatch.http.Exchange`."""
        self._over = True
        if self._work is not None:
            self._work.cancel()

    async def _run(self) -> None:
        try:
            lines = await self.work()
        except Refused as refused:
            self._finish(refused.http_status, str(refused), b"")
        except CancelledError:
            return
        except Exception:
            self._log.failure("no dedicated connection to {service}", service=self.request.service)
            self._finish(500, "no dedicated connection", b"")
        else:
            self._finish(200, "", lines)

    def _finish(self, status: int, text: str, lines: bytes) -> None:
        if self._over:
            return
        self._over = True
        head = self.head
        keep = head.keep_alive and (head.framing.empty or self._whole)
        self.offices.replies[self.request.kind.name, status] += 1
        service = header("Service", self.request.service)
        if text:
            octets = failure(
                status,
                text,
                minor=head.minor,
                keep=keep,
                lines=service,
                headless=head.method == "HEAD",
            )
        else:
            octets = complete(status, service + lines, b"", minor=head.minor, keep=keep)
        self.connection.write(octets)
        self.connection.finish(keep)


class Dedicated(OneReply):
    """AUX: a connection of its own to a server of the service."""

    async def work(self) -> bytes:
        """See :class:`OneReply`."""
        offices = self.offices
        peer = self.connection.address
        targets = offices.dispatcher.targets(self.request, peer, offices.clock())
        if not targets.known:
            raise Refused(404, "Service not found")
        if not targets.entries:
            raise Refused(503, "No server of the service is available")
        entry = targets.entries[0]
        office = offices.ticket_office()
        kind = entry.info.type
        if kind & ServerType.HTTP or office is None:
            return wire.TRY_STATELESS
        launched = None
        if kind is ServerType.NCBID:
            launched = await launch(offices, self.head, self.request, self.connection, entry)
        try:
            point = await offices.timely(office.reserve(self._wish(entry, launched)))
        except TicketError as error:
            raise Refused(error.http_status, str(error)) from None
        except TimeoutError:
            raise Refused(504, "the relay does not answer") from None
        lines = self._informational(entry)
        if targets.message and self.request.inform:
            lines += wire.messages(targets.message)
        return lines + wire.connection_info(point)

    def _wish(self, entry: Entry, launched: ConnectionPoint | None) -> WayInRequest:
        """What to ask of the relay so that the client gets to *entry*."""
        request = self.request
        ports = request.fallback_ports
        if not request.firewall_mode:
            ports = None
        elif ports is None:
            ports = frozenset()  # the client leaves it to us: the regular ones
        return WayInRequest(
            service=entry.service,
            server=entry.info,
            client=self.offices.dispatcher.asker(request, self.connection.address).address,
            fallback_ports=ports,
            firewall_mode=request.firewall_mode,
            launched=launched,
        )

    def _informational(self, entry: Entry) -> bytes:
        offices = self.offices
        return offices.dispatcher.informational(
            self.request, self.connection.address, entry, offices.clock()
        )


async def launch(
    offices: Offices,
    head: RequestHead,
    request: DispatchRequest,
    connection: HttpConnection,
    entry: Entry,
) -> ConnectionPoint:
    """
    Where the program behind the NCBID *entry* waits for its one connection.

    :raises Refused: it does not.
    """
    launcher = offices.launcher() if entry.launcher else None
    if launcher is None:
        asking = _Asking(offices, head, request, connection, entry)
        point: ConnectionPoint = await offices.timely(asking.answer)
        return point
    try:
        point = await offices.timely(
            launcher.listen_once(launch_request(offices, head, request, connection, entry))
        )
    except LaunchError as error:
        raise Refused(error.http_status, str(error)) from None
    except TimeoutError:
        raise Refused(504, "the launcher does not answer") from None
    return point


def launch_request(
    offices: Offices,
    head: RequestHead,
    request: DispatchRequest,
    connection: HttpConnection,
    entry: Entry,
) -> LaunchRequest:
    """What the launcher must know to run the program of *entry* for this request."""
    path, words = wire.parse_target(head.target.decode("latin-1"))
    server_name, server_port = connection.local_place()
    return LaunchRequest(
        service=entry.service,
        server=entry.info,
        command=entry.launcher,
        client=offices.dispatcher.asker(request, connection.address).address,
        platform=request.platform,
        method=head.method,
        path=path,
        query="&".join(word for name, _, word in words if name != "service"),
        headers=tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers
        ),
        server_name=server_name,
        server_port=server_port,
        protocol=f"HTTP/1.{head.minor}",
        request_id=request.identifier,
    )


class _Asking:
    """
    Asks the NCBID server on another host for a program that waits.

    :ivar answer: fires with the :class:`ConnectionPoint`, or fails with :class:`Refused`.
    """

    def __init__(
        self,
        offices: Offices,
        head: RequestHead,
        request: DispatchRequest,
        connection: HttpConnection,
        entry: Entry,
    ) -> None:
        self.answer: Deferred[ConnectionPoint] = Deferred(self._cancelled)
        self._link: Link | None = None
        dispatcher = offices.dispatcher
        self._octets = Forwarding(head, request).octets(
            entry.info,
            offices.config,
            dispatcher.asker(request, connection.address).address,
            connection,
            dispatcher.local_networks.contains(connection.address),
            ConnectionMode.STATEFUL,
        )
        self._attempt: Attempt = offices.pool.open_http(place_of(entry.info), self)

    def connected(self, link: Link) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._link = link
        assert isinstance(link, HttpLink)
        link.request(self._octets, False, False)

    def connect_failed(self, reason: str, timed_out: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._fail(504 if timed_out else 502, f"cannot connect: {reason}")

    def request_paused(self) -> None:
        """See :class:`gridnet.dispatch.upstream.User`; the request is one small write."""

    def request_resumed(self) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""

    def reply_received(self, head: ReplyHead, data: bytes, ended: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._drop()
        found = values(head.headers, b"connection-info")
        point = wire.parse_connection_info(found[0].decode("latin-1")) if found else None
        if head.status != 200 or point is None or len(found) != 1:
            reasons = values(head.headers, b"dispatcher-failures")
            reason = reasons[0].decode("latin-1") if reasons else f"status {head.status}"
            self._fail(502, f"the server launches no program: {reason}")
        elif not self.answer.called:
            self.answer.callback(point)

    def output_received(self, data: bytes, ended: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`; the head was enough."""

    def link_failed(self, reason: str, untouched: bool) -> None:
        """See :class:`gridnet.dispatch.upstream.User`."""
        self._link = None
        self._fail(502, reason)

    def _fail(self, status: int, text: str) -> None:
        if not self.answer.called:
            self.answer.errback(Failure(Refused(status, text)))

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.drop()

    def _cancelled(self, _: object) -> None:
        self._attempt.cancel()
        self._drop()
