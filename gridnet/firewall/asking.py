"""A ticket office that asks the relay of another host, by control record."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import LocalProtocolError, PassageRefusedError, TicketError
from gridnet.firewall.penalty_file import Penalties
from gridnet.firewall.wire import (
    ControlFlag,
    ControlRefusal,
    ControlReply,
    ControlRequest,
    RejectCode,
    ReplyReader,
    write_request,
)
from gridnet.interfaces import ITicketOffice
from gridnet.table.address import UNKNOWN_ADDRESS, ipv4_number
from gridnet.table.way_in import ConnectionPoint, WayInRequest


class _Asking(TwistedProtocol):
    """One question and its answer."""

    transport: Any

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._reader = ReplyReader()
        self.answer: Deferred[ControlReply | ControlRefusal] = Deferred(self._cancelled)

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.transport.write(self._octets)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        answer = self._reader.receive(data)
        if answer is not None:
            self._give(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted: the relay has said all."""
        self._give(self._reader.end())

    def _give(self, answer: ControlReply | ControlRefusal) -> None:
        if not self.answer.called:
            self.answer.callback(answer)
            self.transport.loseConnection()

    def _cancelled(self, _: object) -> None:
        self.transport.abortConnection()


def way_in(request: WayInRequest) -> ControlRequest:
    """
    *request* as a control record.

    The record has no place for a list of fallback ports: who has some is sent to a regular port.

    :raises LocalProtocolError: the server has no IPv4 address, or its service too long a name.
    """
    server, launched = request.server, request.launched
    client = request.client if ipv4_number(request.client) is not None else UNKNOWN_ADDRESS
    return ControlRequest(
        launched.host if launched is not None else server.host,
        launched.port if launched is not None else server.port,
        ControlFlag.FIREWALL if request.firewall_mode else ControlFlag(0),
        launched.ticket if launched is not None else request.server_ticket,
        client,
        request.service,
    )


@implementer(ITicketOffice)
class AskingOffice:
    """
    Asks the relay at *host*:*port*; it must trust this host.

    :param penalties: what this host's penalty file says is refused here already.
    """

    _log = Logger()

    def __init__(
        self,
        host: str,
        port: int,
        penalties: Penalties,
        timeout_seconds: float,
        reactor: Any,
        endpoint: IStreamClientEndpoint | None = None,
    ) -> None:
        self._reactor = reactor
        self._penalties = penalties
        self._timeout = timeout_seconds
        self._endpoint = endpoint or HostnameEndpoint(reactor, host, port, timeout_seconds)

    def reserve(self, request: WayInRequest) -> Deferred[ConnectionPoint]:
        """See :class:`gridnet.interfaces.ITicketOffice`."""
        asking: Deferred[ConnectionPoint] = Deferred.fromCoroutine(self._reserve(request))
        return asking

    async def _reserve(self, request: WayInRequest) -> ConnectionPoint:
        now = self._reactor.seconds()
        penalty = self._penalties.refused(request.client, now)
        if penalty is not None:
            raise PassageRefusedError(penalty.reason.text)
        try:
            octets = write_request(way_in(request))
        except LocalProtocolError as error:
            raise TicketError(str(error)) from None
        asking = _Asking(octets)
        try:
            await self._endpoint.connect(Factory.forProtocol(lambda: asking))
            answer = await asking.answer.addTimeout(self._timeout, self._reactor)
        except Exception as error:
            self._log.error("the relay does not answer, {reason}", reason=str(error))
            raise TicketError("The relay does not answer") from None
        if isinstance(answer, ControlRefusal):
            text = answer.text or "The relay refuses"
            if answer.code is RejectCode.REFUSED:
                raise PassageRefusedError(text)
            raise TicketError(text)
        secure = request.server.secure
        if request.launched is not None:
            secure = request.launched.secure
        return ConnectionPoint(answer.host, answer.port, answer.ticket, secure)
