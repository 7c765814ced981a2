"""
What becomes of each request head (docs/protocols/dispatcher.rst, Requests).

A :class:`Router` turns a head into something prepared, which is then kept and asked for every
request with the same octets.  Look-ups and pages reply at once; the rest are exchanges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from attrs import evolve

from gridnet.dispatch import pages
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.dedicated import Dedicated, Offices
from gridnet.dispatch.dispatcher import Dispatcher
from gridnet.dispatch.errand import ASKED_AT_HEADER, CLIENT_HEADER, Errand
from gridnet.dispatch.forwarding import Forwarding
from gridnet.dispatch.head import RequestHead, values
from gridnet.dispatch.http import LOCAL_PEER, Exchange, HttpConnection
from gridnet.dispatch.http_factory import Prepared
from gridnet.dispatch.program import program_exchange
from gridnet.dispatch.relay import Relay, Relays
from gridnet.dispatch.reply import DateLine, complete, connection_line, failure, status_line
from gridnet.dispatch.request import DispatchRequest, Kind
from gridnet.dispatch.side_page import SidePage
from gridnet.dispatch.upstream import Place
from gridnet.dispatch.wire import header, parse_request
from gridnet.errors import RemoteProtocolError
from gridnet.table.model import Entry
from gridnet.table.server_info import ServerType

_LOOKUPS = frozenset([Kind.INFO, Kind.LIST, Kind.REVERSE])
_SPECIAL = frozenset([Kind.AUX, Kind.NCBID])
_READING = frozenset(["GET", "HEAD"])


def stays_open(head: RequestHead, max_ignored_octets: int) -> bool:
    """Whether a client whose request is answered at once may send another after its body."""
    framing = head.framing
    return (
        head.keep_alive
        and not head.expects_continue
        and (framing.content_length or 0) <= max_ignored_octets
    )


class _Prepared:
    """A head, and whether its connection can stay open behind a reply at once."""

    __slots__ = ("head", "keep", "lone")

    def __init__(self, head: RequestHead, max_ignored_octets: int) -> None:
        self.head = head
        self.lone = head.framing.empty
        self.keep = stays_open(head, max_ignored_octets)


class Lookup(_Prepared):
    """INFO, LIST and REVERSE: the hot path."""

    __slots__ = ("_clock", "_date", "_dispatcher", "_kind", "_replies", "_request", "_tail")

    def __init__(self, head: RequestHead, request: DispatchRequest, router: Router) -> None:
        # Kept for long, and the header lines have been read.
        super().__init__(evolve(head, headers=()), router.config.max_ignored_body_octets)
        self._request = request
        self._kind = request.kind.name
        self._dispatcher = router.dispatcher
        self._clock = router.clock
        self._date = router.date
        self._replies = router.replies
        self._tail = connection_line(head.minor, self.keep) + b"\r\n"

    def respond(self, connection: HttpConnection) -> bytes:
        """See :class:`gridnet.dispatch.http_factory.Prepared`."""
        now = self._clock()
        answer = self._dispatcher.answer(self._request, connection.address, now)
        status = answer.status
        self._replies[self._kind, status] += 1
        return b"".join(
            (
                status_line(status),
                self._date.at(now),
                answer.lines,
                b"" if status == 204 else b"Content-Length: 0\r\n",
                self._tail,
            )
        )


class Fixed(_Prepared):
    """A page of our own, or a refusal."""

    __slots__ = ("_make", "_replies", "_status")

    def __init__(
        self, head: RequestHead, router: Router, status: int, make: Callable[[bool], bytes]
    ) -> None:
        super().__init__(head, router.config.max_ignored_body_octets)
        self._status = status
        self._make = make
        self._replies = router.replies

    def respond(self, connection: HttpConnection) -> bytes:
        """See :class:`gridnet.dispatch.http_factory.Prepared`."""
        self._replies["page", self._status] += 1
        return self._make(self.keep)


class Relayed(_Prepared):
    """RELAY and BROWSER."""

    __slots__ = ("_forwarding", "_method", "_request", "_router", "_tries")

    def __init__(self, head: RequestHead, request: DispatchRequest, router: Router) -> None:
        config = router.config
        super().__init__(head, config.max_ignored_body_octets)
        self._request = request
        self._router = router
        self._forwarding = Forwarding(head, request)
        self._tries = config.browser_tries if request.kind is Kind.BROWSER else config.relay_tries
        reading = head.method in _READING
        self._method = ServerType.HTTP_GET if reading else ServerType.HTTP_POST

    def respond(self, connection: HttpConnection) -> bytes | Exchange:
        """See :class:`gridnet.dispatch.http_factory.Prepared`."""
        router = self._router
        page = router.builtin(self._request, connection.address)
        if page is not None:
            return router.show(self.head, page, self._request.service)(self.keep)
        if self._forwarding.hops >= router.config.max_hops:
            return self._refused(508, "the request goes round in circles")
        targets = router.dispatcher.targets(self._request, connection.address, router.clock())
        if not targets.known:
            return self._refused(404, "Service not found")
        if not targets.entries:
            return self._refused(503, "No server of the service is available")
        entries = [entry for entry in targets.entries if self._takes(entry)]
        if not entries:
            return self._refused(405, f"No server of the service takes {self.head.method}")
        return Relay(
            router.relays, self._forwarding, connection, entries, self._tries, targets.message
        )

    def _takes(self, entry: Entry) -> bool:
        kind = entry.info.type
        return not kind & ServerType.HTTP or bool(kind & self._method)

    def _refused(self, status: int, text: str) -> bytes:
        self._router.replies[self._request.kind.name, status] += 1
        return failure(
            status,
            text,
            minor=self.head.minor,
            keep=self.keep,
            lines=header("Service", self._request.service),
            headless=self.head.method == "HEAD",
        )


class Special(_Prepared):
    """AUX and NCBID: they need what only some sites have."""

    __slots__ = ("_exchange",)

    def __init__(
        self, head: RequestHead, router: Router, exchange: Callable[[HttpConnection], Exchange]
    ) -> None:
        super().__init__(head, router.config.max_ignored_body_octets)
        self._exchange = exchange

    def respond(self, connection: HttpConnection) -> Exchange:
        """See :class:`gridnet.dispatch.http_factory.Prepared`."""
        return self._exchange(connection)


class HandedOver:
    """A request that came by way of a worker, which has noted who asks."""

    def __init__(self, head: RequestHead, prepare: Callable[[RequestHead], Prepared]) -> None:
        client = values(head.headers, CLIENT_HEADER)
        asked_at = values(head.headers, ASKED_AT_HEADER)
        own = (CLIENT_HEADER, ASKED_AT_HEADER)
        headers = tuple(pair for pair in head.headers if pair[0].lower() not in own)
        self._prepared = prepare(evolve(head, headers=headers))
        self._client = client[0].decode("ascii") if client else LOCAL_PEER
        host, _, port = asked_at[0].decode("ascii").partition(" ") if asked_at else ("", "", "")
        self._asked_at = (host, int(port or 0))
        self.head = head
        self.lone = self._prepared.lone
        self.keep = self._prepared.keep

    def respond(self, connection: HttpConnection) -> bytes | Exchange:
        """See :class:`gridnet.dispatch.http_factory.Prepared`."""
        connection.address = self._client
        connection.asked_at = self._asked_at
        return self._prepared.respond(connection)


class Router:
    """
    Decides what becomes of request heads.

    :ivar replies: (kind, status) -> how many.
    :param office: where the site's own process takes what a worker cannot answer; None: this
        is that process.
    """

    def __init__(
        self,
        config: DispatchConfig,
        dispatcher: Dispatcher,
        relays: Relays,
        offices: Offices,
        clock: Callable[[], float],
        replies: Counter[tuple[str, int]],
        office: Place | None = None,
    ) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.relays = relays
        self.offices = offices
        self.clock = clock
        self.replies = replies
        self._office = office
        self.date = DateLine()
        self._local_addresses = pages.local_addresses(dispatcher.local_networks.file_text())

    def prepare(self, head: RequestHead) -> Prepared:
        """The prepared form of *head*."""
        path, _, _ = head.target.decode("latin-1").partition("?")
        if path in pages.INDEX_PATHS:
            if head.method not in _READING:
                return self._refuse(head, 405, "GET or HEAD", b"Allow: GET, HEAD\r\n")
            return Fixed(head, self, 200, self.show(head, pages.INDEX, ""))
        if path in self.config.page_paths:
            if self._office is not None:
                browser = DispatchRequest(Kind.BROWSER, "")
                hand_over = partial(Errand, self.relays, Forwarding(head, browser), self._office)
                return Special(head, self, hand_over)
            return Special(head, self, partial(SidePage, self.offices, head, path))
        if not self._is_dispatched(path):
            return self._refuse(head, 404, "nothing is at this path")
        if head.method in ("TRACE", "CONNECT"):
            return self._refuse(head, 405, "not with this method")
        try:
            request = parse_request(head.method, head.target, head.headers)
        except RemoteProtocolError as error:
            return self._refuse(head, error.http_status, str(error))
        if request.kind in _LOOKUPS:
            return Lookup(head, request, self)
        if request.kind in _SPECIAL and self._office is not None:
            errand = partial(Errand, self.relays, Forwarding(head, request), self._office)
            return Special(head, self, errand)
        if request.kind is Kind.AUX:
            return Special(head, self, partial(Dedicated, self.offices, head, request))
        if request.kind is Kind.NCBID:
            return Special(head, self, partial(program_exchange, self.offices, head, request))
        return Relayed(head, request, self)

    def prepare_handed_over(self, head: RequestHead) -> Prepared:
        """The prepared form of *head*, which a worker sends."""
        return HandedOver(head, self.prepare)

    def builtin(self, request: DispatchRequest, peer: str) -> pages.Page | None:
        """
        The page that stands in for a service that the table does not have.

        Which addresses are local is told to clients inside only.
        """
        name = request.service.lower()
        if name == pages.TEST_SERVICE:
            page = pages.TEST
        elif name == pages.LOCAL_ADDRESSES_SERVICE and self.dispatcher.asker(request, peer).inside:
            page = self._local_addresses
        else:
            return None
        return None if self.dispatcher.table.entries(name) else page

    def show(self, head: RequestHead, page: pages.Page, service: str) -> Callable[[bool], bytes]:
        """Makes the reply with *page*, given whether the connection stays open."""
        lines = header("Content-Type", page.content_type)
        if service:
            lines = header("Service", service) + lines
        return partial(self._page, head, page.body, lines)

    def _page(self, head: RequestHead, body: bytes, lines: bytes, keep: bool) -> bytes:
        return complete(
            200,
            lines,
            body,
            minor=head.minor,
            keep=keep,
            date=self.date.at(self.clock()),
            headless=head.method == "HEAD",
        )

    def _refuse(self, head: RequestHead, status: int, text: str, lines: bytes = b"") -> Fixed:
        def make(keep: bool) -> bytes:
            return failure(
                status,
                text,
                minor=head.minor,
                keep=keep,
                lines=lines,
                headless=head.method == "HEAD",
            )

        return Fixed(head, self, status, make)

    def _is_dispatched(self, path: str) -> bool:
        return path.endswith(("/dispd.cgi", "/ncbid.cgi")) or path in self.config.paths
