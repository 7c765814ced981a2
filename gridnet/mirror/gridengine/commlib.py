"""
Frames of Grid Engine's transport (docs/protocols/event-mirror.rst, "Frames").  No I/O.

A frame is an ASCII header with the length of an XML text, that text, and for messages a body.
The text is matched, never handed to an XML parser.
"""

from __future__ import annotations

import re
from typing import TypeAlias
from xml.sax.saxutils import escape, unescape

from attrs import frozen

from gridnet.errors import LocalProtocolError, RemoteProtocolError

#: Body of a message, unless the reader is told otherwise: 64 MiB.
MAX_BODY_OCTETS = 64 * 1024 * 1024
#: The XML text: handshakes with long host names are below 1 KiB.
MAX_TEXT_OCTETS = 16 * 1024

TAG_NONE = 0
TAG_GDI = 2
TAG_ACKNOWLEDGE = 3
TAG_REPORT = 4
TAG_LEAVE = 17


@frozen
class Peer:
    """One end of a connection, as handshakes name it."""

    host: str
    component: str
    id: int


@frozen
class Connect:
    """Handshake of whoever connects."""

    destination: Peer
    source: Peer
    format: str = "bin"
    auto_close: str = "disabled"


@frozen
class ConnectAnswer:
    """Answer to the handshake; :attr:`source` has the component id that was given out."""

    condition: str  #: ``connected``, or why not
    text: str
    source: Peer
    parameters: str = ""

    @property
    def connected(self) -> bool:
        """Was the connection accepted?"""
        return self.condition == "connected"


@frozen
class Message:
    """A message with its body."""

    id: int  #: from 1, per connection and direction
    format: str  #: ``bin``, or of control messages ``am``, ``sim``, ``sirm``, ``ccm``, ``ccrm``
    body: bytes
    tag: int = TAG_NONE
    answers: int = 0  #: id of the request that this answers
    acknowledge: str = "nak"  #: ``ack`` and ``sync`` want an ``am``


Frame: TypeAlias = Connect | ConnectAnswer | Message

_START = re.compile(rb"<gmsh><dl>([0-9]{1,10})</dl></gmsh>")
_LONGEST_START = len(b"<gmsh><dl>1073741824</dl></gmsh>")
_START_PREFIX = b"<gmsh><dl>"
_PEER = r'host="([^"]{0,256})" comp="([^"]{0,256})" id="([0-9]{1,10})"'
_CONNECT = re.compile(
    rf'<cm version="0\.[0-9]+"><df>([a-z]{{1,8}})</df><ct>[a-z]{{1,16}}</ct><dst {_PEER}></dst>'
    rf"<rdata {_PEER}></rdata><port>[0-9]{{1,6}}</port><ac>([a-z]{{1,16}})</ac></cm>"
)
_ANSWER = re.compile(
    r'<crm version="0\.[0-9]+"><cs condition="([^"]{1,64})">([^<]{0,4096})</cs>'
    rf"<rdata {_PEER}></rdata><params>([^<]{{0,4096}})</params></crm>"
)
_MESSAGE = re.compile(
    r'<mih version="0\.[0-9]+"><mid>([0-9]{1,10})</mid><dl>([0-9]{1,10})</dl><df>([a-z]{1,8})</df>'
    r"<mat>(nak|ack|sync)</mat><tag>([0-9]{1,10})</tag><rid>([0-9]{1,10})</rid></mih>"
)
_ACKNOWLEDGED = re.compile(rb'<am version="0\.[0-9]+"><mid>([0-9]{1,10})</mid></am>')

_QUOTES = {'"': "&quot;", "'": "&apos;"}
_UNQUOTES = {entity: character for character, entity in _QUOTES.items()}

SIM_BODY = b'<sim version="0.1"></sim>'
CCM_BODY = b'<ccm version="0.1"></ccm>'
CCRM_BODY = b'<ccrm version="0.1"></ccrm>'


def _framed(text: str, body: bytes = b"") -> bytes:
    octets = text.encode("utf-8")
    return b"<gmsh><dl>%d</dl></gmsh>%b%b" % (len(octets), octets, body)


def _peer_text(peer: Peer) -> str:
    host, component = (escape(text, _QUOTES) for text in (peer.host, peer.component))
    return f'host="{host}" comp="{component}" id="{peer.id}"'


def pack_connect(frame: Connect) -> bytes:
    """The octets of a handshake."""
    return _framed(
        f'<cm version="0.4"><df>{frame.format}</df><ct>message</ct>'
        f"<dst {_peer_text(frame.destination)}></dst><rdata {_peer_text(frame.source)}></rdata>"
        f"<port>0</port><ac>{frame.auto_close}</ac></cm>"
    )


def pack_connect_answer(frame: ConnectAnswer) -> bytes:
    """The octets of the answer to a handshake."""
    condition = escape(frame.condition, _QUOTES)
    return _framed(
        f'<crm version="0.3"><cs condition="{condition}">{_escaped(frame.text)}</cs>'
        f"<rdata {_peer_text(frame.source)}></rdata>"
        f"<params>{_escaped(frame.parameters)}</params></crm>"
    )


def _escaped(text: str) -> str:
    # Quotes stay as they are between tags: that is how a real qmaster writes them.
    return escape(text)


def message_header(
    identifier: int,
    octets: int,
    format: str = "bin",
    tag: int = TAG_NONE,
    answers: int = 0,
    acknowledge: str = "nak",
) -> bytes:
    """What precedes a body of that many *octets*."""
    if octets >= 1 << 30:
        raise LocalProtocolError(f"a body of {octets} octets is more than a peer takes")
    return _framed(
        f'<mih version="0.1"><mid>{identifier}</mid><dl>{octets}</dl><df>{format}</df>'
        f"<mat>{acknowledge}</mat><tag>{tag}</tag><rid>{answers}</rid></mih>"
    )


def pack_message(message: Message) -> bytes:
    """The octets of a message."""
    head = message_header(
        message.id,
        len(message.body),
        message.format,
        message.tag,
        message.answers,
        message.acknowledge,
    )
    return head + message.body


def acknowledged_body(identifier: int) -> bytes:
    """Body of an ``am``: message *identifier* has arrived."""
    return b'<am version="0.1"><mid>%d</mid></am>' % identifier


def read_acknowledged(body: bytes) -> int:
    """
    Which message an ``am`` acknowledges.

    :raises RemoteProtocolError: malformed.
    """
    match = _ACKNOWLEDGED.fullmatch(body)
    if match is None:
        raise RemoteProtocolError("malformed acknowledgement of a message")
    return int(match[1])


@frozen
class Condition:
    """What a status answer (``sirm``) says of a process."""

    asked: int  #: id of the question
    started_at: int  #: seconds since the epoch
    runtime: int  #: seconds
    connections: int = 1
    unread: int = 0  #: messages in the read buffers
    unsent: int = 0  #: messages in the write buffers
    status: int = 0
    text: str = "not available"


_STATUS = re.compile(
    r'<sirm version="0\.[0-9]+"><mid>([0-9]{1,10})</mid><starttime>([0-9]{1,12})</starttime>'
    r"<runtime>([0-9]{1,12})</runtime><application><messages><brm>([0-9]{1,10})</brm>"
    r"<bwm>([0-9]{1,10})</bwm></messages><connections><noc>([0-9]{1,10})</noc></connections>"
    r"<status>([0-9]{1,10})</status></application><info>([^<]{0,8192})</info></sirm>"
)


def status_body(condition: Condition) -> bytes:
    """Body of a status answer."""
    text = (
        f'<sirm version="0.1"><mid>{condition.asked}</mid><starttime>{condition.started_at}'
        f"</starttime><runtime>{condition.runtime}</runtime><application><messages>"
        f"<brm>{condition.unread}</brm><bwm>{condition.unsent}</bwm></messages><connections>"
        f"<noc>{condition.connections}</noc></connections><status>{condition.status}</status>"
        f"</application><info>{_escaped(condition.text)}</info></sirm>"
    )
    return text.encode("utf-8")


def read_status(body: bytes) -> Condition:
    """
    What a status answer says.

    :raises RemoteProtocolError: malformed.
    """
    match = _STATUS.fullmatch(body.decode("utf-8", "replace"))
    if match is None:
        raise RemoteProtocolError("malformed status answer")
    asked, started, runtime, unread, unsent, connections, status = map(int, match.groups()[:7])
    return Condition(
        asked, started, runtime, connections, unread, unsent, status, unescape(match[8])
    )


class FrameReader:
    """
    Cuts octets into frames, however TCP cut them before.

    :param max_body_octets: a longer body is refused before it is read.
    """

    def __init__(self, max_body_octets: int = MAX_BODY_OCTETS) -> None:
        self._max_body = max_body_octets
        self._buffer = bytearray()
        self._text_octets = 0  # of the text that is due; 0: a start is due
        self._header: Message | None = None  # whose body is due
        self._body_octets = 0

    @property
    def pending(self) -> int:
        """How many octets wait for the rest of their frame."""
        return len(self._buffer)

    def receive(self, data: bytes) -> list[Frame]:
        """
        Take *data*; give the frames that are whole now.

        :raises RemoteProtocolError: malformed or too long; the connection is to be dropped.
        """
        self._buffer += data
        frames: list[Frame] = []
        place = 0
        while True:
            used = self._step(place, frames)
            if used < 0:
                break
            place += used
        del self._buffer[:place]
        return frames

    def _step(self, place: int, frames: list[Frame]) -> int:
        """Read one start, text or body at *place*; give its length, -1: not all there."""
        buffer = self._buffer
        if self._header is not None:
            end = place + self._body_octets
            if len(buffer) < end:
                return -1
            head = self._header
            self._header = None
            body = bytes(memoryview(buffer)[place:end])
            frames.append(
                Message(head.id, head.format, body, head.tag, head.answers, head.acknowledge)
            )
            return self._body_octets
        if self._text_octets:
            end = place + self._text_octets
            if len(buffer) < end:
                return -1
            used = self._text_octets
            self._text_octets = 0
            self._text(bytes(buffer[place:end]), frames)
            return used
        return self._start(bytes(buffer[place : place + _LONGEST_START]))

    def _start(self, octets: bytes) -> int:
        match = _START.match(octets)
        if match is None:
            prefix = octets[: len(_START_PREFIX)]
            if len(octets) == _LONGEST_START or not _START_PREFIX.startswith(prefix):
                raise RemoteProtocolError("malformed start of a frame")
            return -1
        self._text_octets = int(match[1])
        if not 0 < self._text_octets <= MAX_TEXT_OCTETS:
            raise RemoteProtocolError(f"a frame text of {self._text_octets} octets")
        return match.end()

    def _text(self, octets: bytes, frames: list[Frame]) -> None:
        try:
            text = octets.decode("utf-8")
        except UnicodeDecodeError:
            raise RemoteProtocolError("a frame text that is not UTF-8") from None
        match = _MESSAGE.fullmatch(text)
        if match is not None:
            identifier, octet_count, format, acknowledge, tag, answers = match.groups()
            self._body_octets = int(octet_count)
            if self._body_octets > self._max_body:
                raise RemoteProtocolError(
                    f"a body of {self._body_octets} octets, {self._max_body} are allowed"
                )
            self._header = Message(
                int(identifier), format, b"", int(tag), int(answers), acknowledge
            )
            return
        frames.append(_read_handshake(text))


def _read_handshake(text: str) -> Connect | ConnectAnswer:
    match = _CONNECT.fullmatch(text)
    if match is not None:
        return Connect(_peer(*match.groups()[1:4]), _peer(*match.groups()[4:7]), match[1], match[8])
    match = _ANSWER.fullmatch(text)
    if match is not None:
        condition, words, host, component, identifier, parameters = match.groups()
        return ConnectAnswer(
            unescape(condition, _UNQUOTES),
            unescape(words, _UNQUOTES),
            _peer(host, component, identifier),
            unescape(parameters, _UNQUOTES),
        )
    raise RemoteProtocolError("neither a handshake nor a message header")


def _peer(host: str, component: str, identifier: str) -> Peer:
    return Peer(unescape(host, _UNQUOTES), unescape(component, _UNQUOTES), int(identifier))
