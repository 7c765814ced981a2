"""
HTTP/1.x as the serve socket speaks it (docs/protocols/lbproxy.rst, "HTTP").

Small on purpose: no chunks, no continuation lines, bodies by ``Content-Length`` only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import define, field, frozen

MEDIA_TYPE = "application/x-dglb"
PROTOCOL_VERSION = "3.0"
#: Protocol versions that are understood besides.
KNOWN_VERSIONS = frozenset({"3.0"})
SERVER = f"edg_wll_Server/{PROTOCOL_VERSION}/{PROTOCOL_VERSION}"
USER_AGENT = f"edg_wll_Api/{PROTOCOL_VERSION}/{PROTOCOL_VERSION}"

REASONS: Mapping[int, str] = {
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    410: "Gone",
    415: "Unsupported Media Type",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    579: "Parameter Error",
}
#: Statuses without a body; all others have one, or the original client dies of it.
BODILESS = frozenset({400, 405, 415, 500})

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,2048}) HTTP/1\.([0-9])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*)")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(r"[0-9]{1,12}")


@frozen(slots=True)
class HttpRequest:
    """One request."""

    method: str
    target: str  #: path and query string
    headers: Mapping[str, str]  #: names in small letters
    body: bytes
    closes: bool = False  #: the peer wants the connection closed after the reply

    @property
    def path(self) -> str:
        """The target without its query string."""
        return self.target.partition("?")[0]


@define(slots=True)
class RequestReader:
    """
    Cuts a stream into requests.

    :ivar max_head_octets: of the request line and headers.
    :ivar max_body_octets: of a body.
    :ivar fault: what is wrong with the stream; nothing is read after it.
    """

    max_head_octets: int
    max_body_octets: int
    fault: str = field(default="", init=False)
    _buffer: bytearray = field(factory=bytearray, init=False)
    _head: HttpRequest | None = field(default=None, init=False)
    _wanted: int = field(default=0, init=False)

    @property
    def held_octets(self) -> int:
        """What has come of the request that is not whole."""
        return len(self._buffer)

    @property
    def in_request(self) -> bool:
        """Whether part of a request has come."""
        return self._head is not None or bool(self._buffer)

    def receive(self, data: bytes) -> list[HttpRequest]:
        """Take *data*; give the requests that it completes, up to a :attr:`fault`."""
        if self.fault:
            return []
        self._buffer += data
        requests = []
        while not self.fault:
            if self._head is None and not self._read_head():
                break
            head = self._head
            if head is None or len(self._buffer) < self._wanted:
                break
            body = bytes(self._buffer[: self._wanted])
            del self._buffer[: self._wanted]
            self._head = None
            requests.append(HttpRequest(head.method, head.target, head.headers, body, head.closes))
        return requests

    def _read_head(self) -> bool:
        while self._buffer[:2] == b"\r\n":  # stray line ends between requests
            del self._buffer[:2]
        match = _HEAD_END.search(self._buffer, 0, self.max_head_octets + 4)
        if match is None:
            if len(self._buffer) > self.max_head_octets:
                self.fault = f"a head of more than {self.max_head_octets} octets"
            return False
        lines = bytes(self._buffer[: match.start()]).replace(b"\r\n", b"\n").split(b"\n")
        del self._buffer[: match.end()]
        return self._take_head(lines)

    def _take_head(self, lines: list[bytes]) -> bool:
        first = _REQUEST_LINE.fullmatch(lines[0])
        if first is None:
            self.fault = "malformed request line"
            return False
        headers: dict[str, str] = {}
        for line in lines[1:]:
            header = _HEADER.fullmatch(line)
            if header is None:
                self.fault = "malformed header"
                return False
            name = header[1].decode("ascii").lower()
            value = header[2].decode("latin-1").strip(" \t")
            if name == "content-length" and headers.get(name, value) != value:
                self.fault = "two lengths"
                return False
            headers[name] = value
        if "transfer-encoding" in headers:
            self.fault = "a body that is not counted"
            return False
        length = headers.get("content-length", "0")
        if _LENGTH.fullmatch(length) is None or int(length) > self.max_body_octets:
            self.fault = f"a length that is no number up to {self.max_body_octets}"
            return False
        self._wanted = int(length)
        method, target = first[1].decode("ascii"), first[2].decode("ascii")
        closes = "close" in headers.get("connection", "").lower()
        self._head = HttpRequest(method, target, headers, b"", closes)
        return True


def version_status(user_agent: str | None) -> int:
    """
    Whether a peer speaks our protocol: 200, 400 (no version told) or 415 (another version).

    :param user_agent: ``NAME/VERSION/LIST``, LIST the versions understood besides, by commas.
    """
    if user_agent is None or "/" not in user_agent:
        return 400
    _, version, *rest = user_agent.split("/", 2)
    if not rest:
        return 415
    listed = {word.strip() for word in rest[0].split(",")}
    if version.strip() in {PROTOCOL_VERSION, *KNOWN_VERSIONS} or PROTOCOL_VERSION in listed:
        return 200
    return 415


def request_status(request: HttpRequest, known: frozenset[str], absent: frozenset[str]) -> int:
    """
    What is to be said of *request* before its body is read: 200 when it may be.

    :param known: paths that are answered.
    :param absent: paths of the full server that are not.
    """
    if request.method == "GET":
        return 401
    if request.method != "POST":
        return 405
    version = version_status(request.headers.get("user-agent"))
    if version != 200:
        return version
    if MEDIA_TYPE not in request.headers.get("accept", ""):
        return 501
    if request.path in known:
        return 200
    return 501 if request.path in absent else 400


def encode_reply(status: int, body: bytes) -> bytes:
    """A reply with the headers of the original service."""
    if status in BODILESS:
        body = b""
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\n"
        "Cache-Control: no-cache\r\n"
        f"Server: {SERVER}\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def encode_request(path: str, body: bytes) -> bytes:
    """A request with the headers of the original client."""
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Cache-Control: no-cache\r\n"
        f"Accept: {MEDIA_TYPE}\r\n"
        f"User-Agent: {USER_AGENT}\r\n"
        f"Content-Type: {MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


@define(slots=True)
class ReplyReader:
    """
    Reads one reply, for clients.

    :ivar fault: why it cannot be read.
    """

    max_octets: int
    fault: str = field(default="", init=False)
    _buffer: bytearray = field(factory=bytearray, init=False)

    def receive(self, data: bytes) -> tuple[int, bytes] | None:
        """Take *data*; give status and body once they are whole."""
        self._buffer += data
        match = _HEAD_END.search(self._buffer)
        if match is None:
            if len(self._buffer) > self.max_octets:
                self.fault = "an endless head"
            return None
        first, *lines = bytes(self._buffer[: match.start()]).replace(b"\r\n", b"\n").split(b"\n")
        status = _STATUS_LINE.match(first)
        length = None
        for line in lines:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length" and value.strip().isdigit():
                length = int(value)
        if status is None or length is None or length > self.max_octets:
            self.fault = "no status, no length, or too long a body"
            return None
        if len(self._buffer) < match.end() + length:
            return None
        body = bytes(self._buffer[match.end() : match.end() + length])
        del self._buffer[: match.end() + length]
        return int(status[1]), body


_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: |\Z)")
