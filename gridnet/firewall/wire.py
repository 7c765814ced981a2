"""
What passes between a client and the relay: the opening octets, the control record
(docs/protocols/firewall.rst, 2 and 4).
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum, IntFlag

from attrs import frozen

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.table.address import UNKNOWN_ADDRESS, quad

TICKET_OCTETS = 4
#: The line that released clients look for on every port that they check.
REJECT_LINE = b"NCBI Firewall Daemon:  Invalid ticket.  Connection closed."
DEFAULT_HELP_URL = "http://www.ncbi.nlm.nih.gov/cpp/network/firewall.html"
#: The connection checker sends this and waits, without ever completing four octets.
PROBE = b"\r\n"
_CONTROL = b"\0\0\0\0"
_BROWSER = b"HEAD"


def ticket_octets(number: int) -> bytes:
    """
    *number* as the client sends it.

    :raises LocalProtocolError: not a number of 32 bits.
    """
    if not 0 <= number < 1 << 32:
        raise LocalProtocolError(f"a ticket has 32 bits, not {number:#x}")
    return number.to_bytes(TICKET_OCTETS, "big")


def can_be_ticket(number: int) -> bool:
    """
    Whether *number* may be given out: none of the openings that mean something else.

    Excluded are 0 (control), everything that starts like the checker's probe, the word that starts
    message text, and the opening of a browser's check.
    """
    octets = ticket_octets(number)
    return not octets.startswith(PROBE) and octets not in (_CONTROL, b"NCBI", _BROWSER)


def reject_text(help_url: str = DEFAULT_HELP_URL) -> bytes:
    """
    The answer to everything that is not a live ticket; the connection is closed after it.

    Clients compare the first line to the octet, two blanks and all, and ignore the second.

    :param help_url: where a person who sees it may read on.
    """
    return REJECT_LINE + b"\r\nSee " + help_url.encode("ascii", "replace") + b".\r\n"


def browser_reply() -> bytes:
    """The answer to ``HEAD``, by which the status page finds out whether a port answers."""
    return (
        b"HTTP/1.0 200 OK\r\n"
        b"Server: NCBI Firewall Daemon\r\n"
        b"Access-Control-Allow-Origin: *\r\n"
        b"Cache-Control: no-store\r\n"
        b"Connection: close\r\n"
        b"Content-Length: 0\r\n\r\n"
    )


@frozen
class TicketPresented:
    """The client opened with the number of a ticket."""

    number: int


@frozen
class ControlOpened:
    """The client opened control mode: a control record follows."""


@frozen
class ProbeSeen:
    """The connection checker asks whether this port answers."""


@frozen
class BrowserSeen:
    """A browser asks whether this port answers."""


Opening = TicketPresented | ControlOpened | ProbeSeen | BrowserSeen


class OpeningReader:
    """
    Reads the first octets of a connection.

    :ivar excess: what came after them; the client's first application octets.
    """

    def __init__(self) -> None:
        self._held = b""
        self.excess = b""

    @property
    def started(self) -> bool:
        """Whether the client has said anything."""
        return bool(self._held)

    def receive(self, data: bytes) -> Opening | None:
        """
        Take *data*; give what it opens with once that is certain, however it was cut.

        The probe is certain after two octets: no ticket begins with them.
        """
        held = self._held = self._held + data
        if held.startswith(PROBE):
            self._held, self.excess = PROBE, held[len(PROBE) :]
            return ProbeSeen()
        if len(held) < TICKET_OCTETS:
            return None
        opening, self.excess = held[:TICKET_OCTETS], held[TICKET_OCTETS:]
        self._held = opening
        if opening == _CONTROL:
            return ControlOpened()
        if opening == _BROWSER:
            return BrowserSeen()
        return TicketPresented(int.from_bytes(opening, "big"))


# -- the control record ---------------------------------------------------------------------

_HEADER = struct.Struct(">IHHII")
MAX_RECORD_OCTETS = 128
MAX_TEXT_OCTETS = MAX_RECORD_OCTETS - _HEADER.size
_ERROR_BITS = 0xF0F0
_CODE_BITS = 0x0F0F


class ControlFlag(IntFlag):
    """What the asker wants, and (bit 0) what the relay is."""

    FIREWALL = 1
    KEEP_CONNECTION = 2


class RejectCode(IntEnum):
    """Why a control request is refused."""

    BAD_REQUEST = 1
    USE_DIRECT = 2
    NO_FORWARD = 3
    NOT_FOUND = 4
    CANNOT_CONNECT = 5
    REFUSED = 6


@frozen
class ControlRequest:
    """Somebody we trust asks for a way to a server."""

    host: str  #: dotted IPv4 address of the server; ``0.0.0.0``: this host
    port: int  #: 0: look the service up
    flags: ControlFlag = ControlFlag.FIREWALL
    server_ticket: int = 0  #: sent to the server first, when not 0
    origin: str = UNKNOWN_ADDRESS  #: the client's address; ``0.0.0.0``: the relay's own host
    service: str = ""  #: at most 112 octets


@frozen
class ControlReply:
    """Where the client must connect."""

    host: str
    port: int
    ticket: int  #: 0: this very connection carries the data
    flags: ControlFlag = ControlFlag.FIREWALL
    origin: str = "0.0.0.0"  #: the relay's own address
    text: str = ""


@frozen
class ControlRefusal:
    """The relay will not."""

    code: RejectCode | None  #: None: the reason is only in the text, if at all
    text: str = ""


def _pack(text: str) -> int:
    parts = text.split(".")
    try:
        octets = bytes(int(part) for part in parts)
    except ValueError:
        octets = b""
    if len(octets) != 4:
        raise LocalProtocolError(f"a control record takes IPv4 addresses, not {text!r}")
    return int.from_bytes(octets, "big")


def _record(host: str, port: int, flags: int, ticket: int, origin: str, text: bytes) -> bytes:
    if not 0 <= port < 1 << 16 or len(text) > MAX_TEXT_OCTETS:
        raise LocalProtocolError("control record: port or text out of range")
    header = _HEADER.pack(_pack(host), port, flags, ticket, _pack(origin))
    # A text that fills the record has no terminator.
    return header + (text + b"\0" if text and len(text) < MAX_TEXT_OCTETS else text)


def write_request(request: ControlRequest) -> bytes:
    """
    *request* as it is sent, its opening included, to go out in one write.

    :raises LocalProtocolError: an address that is not IPv4, or a name too long or not ASCII.
    """
    try:
        text = request.service.encode("ascii")
    except UnicodeEncodeError:
        raise LocalProtocolError(f"service name {request.service!r} is not ASCII") from None
    return _CONTROL + _record(
        request.host, request.port, request.flags, request.server_ticket, request.origin, text
    )


def write_reply(reply: ControlReply) -> bytes:
    """
    *reply* as it is sent.

    A reply that keeps the connection fills the record, so that its reader, who wants 128 octets
    or the end of the stream, goes on at once.

    :raises LocalProtocolError: an address that is not IPv4, or a port out of range.
    """
    text = reply.text.encode("ascii", "replace")[:MAX_TEXT_OCTETS]
    if not reply.ticket:
        text = text.ljust(MAX_TEXT_OCTETS)
    return _record(reply.host, reply.port, reply.flags, reply.ticket, reply.origin, text)


def write_refusal(refusal: ControlRefusal) -> bytes:
    """*refusal* as it is sent: no port, and its code in the flags."""
    text = refusal.text.encode("ascii", "replace")[: MAX_TEXT_OCTETS - 1]
    return _record("0.0.0.0", 0, refusal.code or 0, 0, "0.0.0.0", text)


_NAME = re.compile(rb"[A-Za-z0-9_./-]*")


class RequestReader:
    """
    Reads a control request, after its opening.

    The record does not say how long it is: it ends with the NUL of its text, with its 128th
    octet, or (:meth:`end`) when the sender has nothing more to say.

    :ivar excess: what came after the record.
    """

    def __init__(self) -> None:
        self._held = b""
        self.excess = b""

    def receive(self, data: bytes) -> ControlRequest | None:
        """
        Take *data*; give the request once it is whole.

        :raises RemoteProtocolError: not a request; see :meth:`end`.
        """
        held = self._held = self._held + data
        end = held.find(b"\0", _HEADER.size, MAX_RECORD_OCTETS)
        if end < 0 and len(held) < MAX_RECORD_OCTETS:
            return None
        if end < 0:
            self._held, self.excess = held[:MAX_RECORD_OCTETS], held[MAX_RECORD_OCTETS:]
        else:
            self._held, self.excess = held[:end], held[end + 1 :]
        return self.end()

    def end(self) -> ControlRequest:
        """
        Nothing more comes: what there is is the request.

        :raises RemoteProtocolError: shorter than the fixed part, or its text is no service name.
        """
        held = self._held
        if len(held) < _HEADER.size:
            raise RemoteProtocolError(f"control record of {len(held)} octets")
        host, port, flags, ticket, origin = _HEADER.unpack_from(held)
        text = held[_HEADER.size :]
        if _NAME.fullmatch(text) is None:
            raise RemoteProtocolError("control record: expected a service name")
        return ControlRequest(
            quad(host),
            port,
            ControlFlag(flags & 3),
            ticket,
            quad(origin),
            text.decode("ascii"),
        )


class ReplyReader:
    """
    Reads the answer to a control request: all of the stream, or 128 octets of it.

    :ivar excess: application octets, when the connection is kept.
    """

    def __init__(self) -> None:
        self._held = b""
        self.excess = b""

    def receive(self, data: bytes) -> ControlReply | ControlRefusal | None:
        """Take *data*; give the answer once it is whole."""
        held = self._held = self._held + data
        if len(held) < MAX_RECORD_OCTETS:
            return None
        self._held, self.excess = held[:MAX_RECORD_OCTETS], held[MAX_RECORD_OCTETS:]
        return self.end()

    def end(self) -> ControlReply | ControlRefusal:
        """The stream has ended: what there is is the answer."""
        held = self._held
        if len(held) < _HEADER.size:
            return ControlRefusal(None, _text(held))
        host, port, flags, ticket, origin = _HEADER.unpack_from(held)
        text = _text(held[_HEADER.size :].partition(b"\0")[0])
        if flags & _ERROR_BITS:
            return ControlRefusal(None, _text(held) if held.startswith(b"NCBI") else text)
        if not port:
            return ControlRefusal(_reject_code(flags & _CODE_BITS), text)
        return ControlReply(quad(host), port, ticket, ControlFlag(flags & 3), quad(origin), text)


def _reject_code(number: int) -> RejectCode | None:
    try:
        return RejectCode(number)
    except ValueError:
        return None


def _text(octets: bytes) -> str:
    return octets.decode("latin-1").rstrip("\0 \r\n")
