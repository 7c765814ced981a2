"""
Heads of HTTP/1.x messages, read strictly (docs/protocols/dispatcher.rst, Transport).

Two readers must agree before a head is believed.  A regular expression holds the whole head to
the letter of RFC 9112: one space, CR LF, no folding, no stray control octets, HTTP/1.0 or 1.1.
The C parser (llhttp) then takes it apart.  What llhttp alone would let through (several spaces,
HTTP/0.9 and 2.0, chunked bodies in HTTP/1.0, two ``Host`` lines) is refused here, since a server
behind us might read it otherwise than we do: that is how requests are smuggled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

from attrs import field, frozen
from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from gridnet.errors import RemoteProtocolError

HeaderLines = tuple[tuple[bytes, bytes], ...]

T = TypeVar("T")

#: Longest body that a length may announce, octets.
MAX_CONTENT_LENGTH = 2**63 - 1

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Possessive throughout: each octet is looked at once, whatever a peer sends.
_HEADER_LINES = rb"(?:" + _TOKEN + rb"++:[\t \x21-\x7e\x80-\xff]*+\r\n)*+"
_REQUEST = re.compile(
    rb"(" + _TOKEN + rb"++) ([\x21-\x7e]++) HTTP/([0-9])\.([0-9])\r\n" + _HEADER_LINES + rb"\r\n"
)
_REPLY = re.compile(
    rb"HTTP/([0-9])\.([0-9]) ([1-9][0-9]{2})(?: [\t \x21-\x7e\x80-\xff]*+)?+\r\n"
    + _HEADER_LINES
    + rb"\r\n"
)
_HOST = re.compile(
    rb"[A-Za-z0-9._~%!$&'()*+,;=\-]*+(?::[0-9]*+)?+|\[[0-9A-Fa-f:.]++\](?::[0-9]*+)?+"
)
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*+)([^#]*+)")
_DIGITS = re.compile(rb"[0-9]{1,19}")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_REQUEST_LINE_VERSION = re.compile(_TOKEN + rb"++ [\x21-\x7e]++ HTTP/([0-9])\.([0-9])\r\n")

#: Headers that belong to one connection, never to the next (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)


class HttpError(RemoteProtocolError):
    """
    A message that is not answered as asked.

    The peer sees a reply with :attr:`http_status` and the text, then the end of the connection.
    """

    def __init__(self, text: str, http_status: int = 400) -> None:
        super().__init__(text)
        self.http_status = http_status


@frozen
class Framing:
    """How long the body of a message is."""

    content_length: int | None = None  #: octets; None: not announced
    chunked: bool = False

    @property
    def empty(self) -> bool:
        """Whether no body follows a request with this framing."""
        return not self.chunked and not self.content_length


@frozen
class RequestHead:
    """The head of a request, taken apart."""

    method: str
    target: bytes  #: path and query (``/a?b``), or ``*``; the absolute form is reduced to them
    minor: int  #: HTTP/1.<minor>: 0 or 1
    headers: HeaderLines  #: names as sent, values without white space around them
    framing: Framing
    keep_alive: bool  #: the connection may carry another request
    keep_alive_asked: bool  #: an HTTP/1.0 client said ``Connection: keep-alive``
    expects_continue: bool  #: the client waits for ``100 Continue``
    upgrade: bool  #: the client offers to change the protocol
    connection: frozenset[bytes] = frozenset()  #: tokens of ``Connection``, lower case
    host: bytes = b""  #: from the absolute form, else from ``Host``
    octets: int = field(default=0, eq=False)  #: length of the head on the wire


@frozen(eq=False)
class ReplyHead:
    """
    The head of a reply, taken apart.

    Compared by identity: equal octets are taken apart once (:func:`reply_head`), so it is a cheap
    key for what is made of it.
    """

    status: int  #: 100..999
    minor: int  #: HTTP/1.<minor>; later minor versions count as 1
    reason: bytes
    headers: HeaderLines
    framing: Framing
    keep_alive: bool
    connection: frozenset[bytes] = frozenset()
    upgrade: bool = False


class _Collector:
    """What the C parser calls."""

    __slots__ = ("headers", "on_header", "url")

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = b""
        headers = self.headers

        def on_header(name: bytes, value: bytes) -> None:
            headers.append((name, value.strip(b" \t")))

        self.on_header: Callable[[bytes, bytes], None] = on_header

    def on_url(self, url: bytes) -> None:
        self.url += url


def find_end(data: bytes | bytearray, start: int, limit: int) -> int:
    """
    Where the head at the beginning of *data* ends.

    The verdict depends on the octets alone, not on how many of them are there yet.

    :param start: octets that a former call has looked at already.
    :param limit: octets that a head may have.
    :returns: length of the head; 0: more octets are needed.
    :raises HttpError: a line ends without CR, or the head is longer than *limit*.
    """
    end = data.find(b"\r\n\r\n", max(0, start - 3), limit)
    if end >= 0:
        return end + 4
    wrong = _BARE_LF.search(data, max(0, start), limit)
    if wrong is not None:
        raise HttpError("a line of the head ends without CR")
    if len(data) >= limit:
        raise HttpError(f"the head is longer than {limit} octets", 431)
    return 0


def parse_request(raw: bytes, max_headers: int) -> RequestHead:
    """
    Take apart the head *raw*, which ends with its empty line.

    :param max_headers: header lines that a head may have.
    :raises HttpError: with the status that the client is to see.
    """
    match = _REQUEST.fullmatch(raw)
    if match is None:
        raise _request_fault(raw)
    if match[3] != b"1" or match[4] not in (b"0", b"1"):
        raise HttpError("HTTP/1.0 and HTTP/1.1 are spoken here", 505)
    minor = int(match[4])
    if raw.count(b"\n") > max_headers + 2:
        raise HttpError(f"more than {max_headers} header lines", 431)
    collector = _Collector()
    try:
        HttpRequestParser(collector).feed_data(raw)
    except HttpParserUpgrade:
        pass
    except HttpParserInvalidMethodError:
        raise HttpError("unknown method", 501) from None
    except HttpParserInvalidURLError as error:
        raise HttpError(f"malformed target: {error}") from None
    except HttpParserError as error:
        raise HttpError(f"malformed head: {error}") from None
    if collector.url != match[2]:
        raise HttpError("malformed target")
    method = match[1].decode("ascii")
    headers = tuple(collector.headers)
    connection, upgrade = _connection(headers)
    target, host = _target(method, match[2], headers, minor)
    framing = _framing(headers, minor, method == "CONNECT")
    expects = [value.lower() for name, value in headers if name.lower() == b"expect"]
    if any(value != b"100-continue" for value in expects):
        raise HttpError("an expectation that cannot be met", 417)
    asked = b"keep-alive" in connection
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        headers=headers,
        framing=framing,
        keep_alive=b"close" not in connection and (minor == 1 or asked),
        keep_alive_asked=minor == 0 and asked,
        expects_continue=bool(expects) and minor == 1 and not framing.empty,
        upgrade=upgrade and minor == 1,
        connection=connection,
        host=host,
        octets=len(raw),
    )


def parse_reply(raw: bytes, max_headers: int) -> ReplyHead:
    """
    Take apart the head *raw* of a reply, which ends with its empty line.

    :raises HttpError: the server's fault; the client is to see 502.
    """
    match = _REPLY.fullmatch(raw)
    if match is None or match[1] != b"1":
        raise HttpError("malformed head of the reply", 502)
    if raw.count(b"\n") > max_headers + 2:
        raise HttpError(f"more than {max_headers} header lines in the reply", 502)
    minor = 0 if match[2] == b"0" else 1
    collector = _Collector()
    parser = HttpResponseParser(collector)
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:
        pass
    except HttpParserError as error:
        raise HttpError(f"malformed head of the reply: {error}", 502) from None
    headers = tuple(collector.headers)
    connection, upgrade = _connection(headers)
    try:
        framing = _framing(headers, minor, False)
    except HttpError as error:
        raise HttpError(f"in the reply: {error}", 502) from None
    line = raw[: raw.index(b"\r\n")]
    return ReplyHead(
        status=int(match[3]),
        minor=minor,
        reason=line[13:],
        headers=headers,
        framing=framing,
        keep_alive=b"close" not in connection and (minor == 1 or b"keep-alive" in connection),
        connection=connection,
        upgrade=upgrade,
    )


#: Reply heads up to this length are taken apart once for many replies.  A server's heads differ
#: by their dates at most, so within a second they are the same octets.
CACHED_REPLY_OCTETS = 2048

_parse_reply_once = lru_cache(maxsize=512)(parse_reply)


def reply_head(raw: bytes, max_headers: int) -> ReplyHead:
    """
    :func:`parse_reply`, remembering the heads that come again and again.

    :raises HttpError: as there.
    """
    if len(raw) > CACHED_REPLY_OCTETS:
        return parse_reply(raw, max_headers)
    return _parse_reply_once(raw, max_headers)


def values(headers: HeaderLines, name: bytes) -> list[bytes]:
    """All values of the header *name* (lower case), in order."""
    return [value for key, value in headers if key.lower() == name]


def list_tokens(lines: Sequence[bytes]) -> frozenset[bytes]:
    """The elements of comma-separated lists, lower case."""
    return frozenset(
        token.strip(b" \t").lower() for line in lines for token in line.split(b",") if token
    ) - {b""}


def end_to_end(headers: HeaderLines, connection: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """*headers* without those that belong to the connection they came by."""
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in HOP_BY_HOP and lower not in connection
    ]


def _request_fault(raw: bytes) -> HttpError:
    """What to say of a head that does not match; the same as :func:`find_end` where both can."""
    if _BARE_LF.search(raw) is not None:
        return HttpError("a line of the head ends without CR")
    line = _REQUEST_LINE_VERSION.match(raw)
    if line is None:
        return HttpError("malformed request line")
    if line[1] != b"1" or line[2] not in (b"0", b"1"):
        return HttpError("HTTP/1.0 and HTTP/1.1 are spoken here", 505)
    return HttpError("malformed header line")


def _connection(headers: HeaderLines) -> tuple[frozenset[bytes], bool]:
    """Tokens of ``Connection``, and whether another protocol is offered."""
    lines = values(headers, b"connection")
    if not lines:
        return frozenset(), False
    tokens = list_tokens(lines)
    return tokens, b"upgrade" in tokens and bool(values(headers, b"upgrade"))


def _target(method: str, sent: bytes, headers: HeaderLines, minor: int) -> tuple[bytes, bytes]:
    """Path and query, and the host asked for."""
    hosts = values(headers, b"host")
    if len(hosts) > 1 or (minor == 1 and not hosts):
        raise HttpError("expected one Host line")
    host = hosts[0] if hosts else b""
    if _HOST.fullmatch(host) is None:
        raise HttpError("malformed Host")
    if b"#" in sent:
        raise HttpError("malformed target: a fragment")
    if sent.startswith(b"/"):
        return sent, host
    if method == "CONNECT":
        raise HttpError("no tunnels from here", 405)
    if sent == b"*" and method == "OPTIONS":
        return sent, host
    absolute = _ABSOLUTE.fullmatch(sent)
    if absolute is None or not absolute[1] or _HOST.fullmatch(absolute[1]) is None:
        raise HttpError("malformed target")
    rest = absolute[2]
    return (rest if rest.startswith(b"/") else b"/" + rest), absolute[1]


def _framing(headers: HeaderLines, minor: int, no_body: bool) -> Framing:
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-length":
            lengths.append(value)
        elif lower == b"transfer-encoding":
            codings.append(value)
    if not lengths and not codings:
        return Framing()
    if no_body:
        raise HttpError("a body where none can be")
    if codings:
        if lengths:
            raise HttpError("both Content-Length and Transfer-Encoding")
        if minor == 0:
            raise HttpError("Transfer-Encoding in HTTP/1.0")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise HttpError("a transfer coding other than chunked")
        return Framing(chunked=True)
    if len(lengths) > 1:
        raise HttpError("several Content-Length lines")
    if _DIGITS.fullmatch(lengths[0]) is None or int(lengths[0]) > MAX_CONTENT_LENGTH:
        raise HttpError("malformed Content-Length")
    return Framing(content_length=int(lengths[0]))
