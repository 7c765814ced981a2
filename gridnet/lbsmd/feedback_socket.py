"""
The socket on which the toolkit's own clients tell the daemon what they think of servers.

One connection, one line, no answer (docs/protocols/lbsmd-config.rst, Feedback); what becomes of
the line stands in the log.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.interfaces import IAddress, ITransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

from gridnet.control import peer_uid
from gridnet.lbsmd.feedback import FeedbackError, parse_line
from gridnet.lbsmd.order_routing import OrderRouting
from gridnet.lbsmd.repeats import Repeats

MAX_LINE_OCTETS = 1024
#: Seconds that a client may take for its line.
LINE_SECONDS = 10.0
MAX_CONNECTIONS = 64
#: Between two refusals of one user that are logged.
REFUSAL_SECONDS = 1.0


class FeedbackProtocol(LineOnlyReceiver, TimeoutMixin):
    """One line of one client."""

    delimiter = b"\n"
    MAX_LENGTH = MAX_LINE_OCTETS
    transport: ITransport

    def __init__(self, desk: FeedbackFactory) -> None:
        self._desk = desk
        self._uid = -1
        self._done = False

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self._desk.connections += 1
        # The client may be gone, and its credentials with it, by the time its line is read.
        self._uid = peer_uid(self.transport)
        self.setTimeout(LINE_SECONDS)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._desk.connections -= 1
        self.setTimeout(None)

    def lineReceived(self, line: bytes) -> None:
        """Called by Twisted."""
        if not self._done:
            self._done = True
            self._desk.take(line, self._uid)
        self.transport.loseConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Called by Twisted."""
        self._desk.refuse(self._uid, f"a line of more than {MAX_LINE_OCTETS} octets")
        self.transport.loseConnection()


class FeedbackFactory(Factory):
    """
    Has the lines of clients done.

    :ivar connections: that are open.
    """

    _log = Logger()
    noisy = False

    def __init__(self, routing: OrderRouting) -> None:
        self._routing = routing
        self._refusals = Repeats(REFUSAL_SECONDS)
        self.connections = 0

    def buildProtocol(self, address: IAddress | None) -> FeedbackProtocol | None:
        """Called by Twisted; None: too many are connected."""
        if self.connections >= MAX_CONNECTIONS:
            return None
        return FeedbackProtocol(self)

    def take(self, line: bytes, uid: int) -> None:
        """
        Do what *line* asks, in the name of the user *uid*.

        :param uid: as the kernel says; what the line says of it is a claim, which does not count.
        """
        try:
            claimed, request = parse_line(line.decode("latin-1").rstrip("\r"))
        except FeedbackError as error:
            self.refuse(uid, str(error))
            return
        if claimed != uid:
            self._log.debug("user {uid} says that it is user {claimed}", uid=uid, claimed=claimed)

        def done(text: str) -> None:
            self._log.debug("feedback of user {uid}: {what}", uid=uid, what=text)

        def refused(failure: Failure) -> None:
            if failure.check(FeedbackError) is None:
                self._log.failure("feedback of user {uid}", failure, uid=uid)
            else:
                self.refuse(uid, failure.getErrorMessage())

        asked: Any = self._routing.ask(request, uid)
        asked.addCallbacks(done, refused)

    def refuse(self, uid: int, reason: str) -> None:
        """Note that nothing comes of it: the client gets no answer."""
        left_out = self._refusals.left_out(uid, time.monotonic())
        if left_out is not None:
            self._log.warn(
                "feedback of user {uid} is refused: {reason}",
                uid=uid,
                reason=reason,
                left_out=left_out,
            )
