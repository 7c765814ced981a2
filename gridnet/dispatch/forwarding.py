"""
What of a request goes on to a server, and of its reply comes back
(docs/protocols/dispatcher.rst, Relaying).

Heads are made once for many requests: they depend on the client's head, the server and the peer.
"""

from __future__ import annotations

from functools import lru_cache

from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.dispatcher import relay_path
from gridnet.dispatch.head import HOP_BY_HOP, ReplyHead, RequestHead, end_to_end, values
from gridnet.dispatch.http import HttpConnection
from gridnet.dispatch.reply import status_line
from gridnet.dispatch.request import ConnectionMode, DispatchRequest
from gridnet.dispatch.wire import header, parse_target
from gridnet.table.model import Entry
from gridnet.table.server_info import ServerInfo, ServerType

#: What we call ourselves in ``Via``.
PSEUDONYM = b"gridnet"
VIA = b"1.1 " + PSEUDONYM

_READING = frozenset(["GET", "HEAD"])

#: Request headers that we write ourselves, or that were meant for us; see :func:`_cgi_name`.
_OWN_REQUEST_HEADERS = frozenset(
    [
        b"host",
        b"content-length",
        b"expect",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"client-host",
        b"accepted-server-types",
        b"client-mode",
        b"connection-mode",
        b"dispatch-mode",
        b"ncbi-firewall-ports",
        b"preference",
        b"server-count",
        b"used-server-info",
    ]
)
_SKIP_PREFIX = b"skip-info-"
#: Request headers that say who the client is: nothing that an outsider may say of himself.
_INSIDERS_HEADERS = frozenset([b"forwarded", b"proxied-ip", b"x-fwd-ip-addr", b"x-real-ip"])
_INSIDERS_PREFIX = b"caf-"
#: Reply headers that only a dispatcher may write.
_OWN_REPLY_HEADERS = frozenset(
    [b"connection-info", b"content-length", b"relay-path", b"service", b"via"]
)
_OWN_REPLY_PREFIXES = (b"server-info", b"used-server-info")


#: Heads for servers that one client head keeps made, for as many servers and peers.
MAX_MADE_HEADS = 16


class Forwarding:
    """The request head that servers get, but for what depends on server and client."""

    def __init__(self, head: RequestHead, request: DispatchRequest) -> None:
        self.head = head
        self.request = request
        self.hops = sum(
            entry.strip().lower().endswith(b" " + PSEUDONYM)
            for value in values(head.headers, b"via")
            for entry in value.split(b",")
        )
        self.service_line = header("Service", request.service)
        self._own_lines: dict[tuple[object, ...], bytes] = {}
        self._lines: dict[bool, bytes] = {}
        self._made: dict[tuple[object, ...], bytes] = {}
        self._forwarded_for = b", ".join(values(head.headers, b"x-forwarded-for"))
        self._typed = bool(values(head.headers, b"content-type"))
        self._upgrade = b", ".join(values(head.headers, b"upgrade")) if head.upgrade else b""
        own: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for name, _, word in parse_target(head.target.decode("latin-1"))[1]:
            (own if name in ("service", "address", "platform") else others).append((name, word))
        self._own = own
        self._others = others

    def octets(
        self,
        info: ServerInfo,
        config: DispatchConfig,
        client: str,
        connection: HttpConnection,
        inside: bool,
        mode: ConnectionMode = ConnectionMode.STATELESS,
    ) -> bytes:
        """
        The head for the server *info* as asked on *connection*.

        :param client: IP address text of who asks, which may stand behind the peer.
        :param inside: whether the peer is inside the site, and so believed.
        :param mode: how an NCBID server is to run its program.
        """
        key = (
            info.identity,
            info.vhost,
            info.secure,
            info.content_type,
            client,
            connection.address,
            connection.secure,
            inside,
            mode,
        )
        made = self._made.get(key)
        if made is None:
            made = self._make(info, config, client, connection, inside, mode)
            if len(self._made) >= MAX_MADE_HEADS:
                self._made.clear()
            self._made[key] = made
        return made

    def _make(
        self,
        info: ServerInfo,
        config: DispatchConfig,
        client: str,
        connection: HttpConnection,
        inside: bool,
        mode: ConnectionMode,
    ) -> bytes:
        head = self.head
        peer = connection.address.encode("ascii")
        if info.type is ServerType.NCBID:
            target = self._target(config.ncbid_path, info.arguments)
            special = header("Connection-Mode", mode.value)
        else:
            path, _, arguments = info.arguments.partition("?")
            target = self._target(path if path.startswith("/") else f"/{path}", arguments)
            special = b""
        forwarded = self._forwarded_for
        lines = [
            b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (head.method.encode(), target, _host(info)),
            self._end_to_end(inside),
            special,
            b"Client-Host: %b\r\n" % client.encode("ascii"),
            b"X-Forwarded-For: %b\r\n"
            % (b"%b, %b" % (forwarded, peer) if inside and forwarded else peer),
            b"X-Forwarded-Proto: %b\r\n" % (b"https" if connection.secure else b"http"),
        ]
        if head.host:
            lines.append(b"X-Forwarded-Host: %b\r\n" % head.host)
        if not self._typed and info.content_type and not head.framing.empty:
            lines.append(header("Content-Type", info.content_type))
        if self._upgrade:
            lines.append(b"Connection: upgrade\r\nUpgrade: %b\r\n" % self._upgrade)
        if head.framing.chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif head.framing.content_length is not None:
            lines.append(b"Content-Length: %d\r\n" % head.framing.content_length)
        elif head.method not in _READING:
            lines.append(b"Content-Length: 0\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _target(self, path: str, arguments: str) -> bytes:
        """
        Path and query as the client would have sent them itself.

        Its own three arguments first, then the server's, then what is left; of a name given
        twice the first counts.
        """
        words = [word for _, word in self._own]
        names = {name for name, _ in self._own}
        for word in arguments.split("&"):
            if word:
                words.append(word)
                names.add(word.partition("=")[0])
        words += [word for name, word in self._others if name not in names]
        query = "&".join(words)
        return (f"{path}?{query}" if query else path).encode("latin-1", "replace")

    def own_lines(self, entry: Entry) -> bytes:
        """What the reply that *entry* made says of where it comes from."""
        key = entry.info.identity
        lines = self._own_lines.get(key)
        if lines is None:
            if len(self._own_lines) >= MAX_MADE_HEADS:
                self._own_lines.clear()
            lines = self._own_lines[key] = self.service_line + relay_path(entry)
        return lines

    def _end_to_end(self, inside: bool) -> bytes:
        found = self._lines.get(inside)
        if found is None:
            via = []
            lines = []
            for name, value in end_to_end(self.head.headers, self.head.connection):
                if name.lower() == b"via":
                    via.append(value)
                known = _cgi_name(name)
                if (
                    known in _OWN_REQUEST_HEADERS
                    or known in HOP_BY_HOP
                    or known.startswith(_SKIP_PREFIX)
                ):
                    continue
                if not inside and (
                    known in _INSIDERS_HEADERS or known.startswith(_INSIDERS_PREFIX)
                ):
                    continue
                lines.append(b"%b: %b\r\n" % (name, value))
            lines.append(b"Via: %b\r\n" % b", ".join([*via, VIA]))
            found = self._lines[inside] = b"".join(lines)
        return found


def _cgi_name(name: bytes) -> bytes:
    """
    The header *name* as programs behind CGI know it, lower case.

    To them ``Client_Host`` and ``Client-Host`` are one (RFC 3875, 4.1.18): what is held back under
    one spelling is held back under the other.
    """
    return name.lower().replace(b"_", b"-")


@lru_cache(maxsize=512)
def passed_on(head: ReplyHead) -> tuple[bytes, bytes, bytes]:
    """Status line and headers of a server's reply as clients get them; its path; its ``Via``."""
    lines = [status_line(head.status, head.reason)]
    path = b""
    via = b""
    for name, value in end_to_end(head.headers, head.connection):
        lower = name.lower()
        if lower == b"relay-path":
            path = value
        elif lower == b"via":
            via += value + b", "
        elif lower not in _OWN_REPLY_HEADERS and not lower.startswith(_OWN_REPLY_PREFIXES):
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines), path, via


def _host(info: ServerInfo) -> bytes:
    """``Host`` for a server: its virtual host, else its place."""
    if info.vhost:
        return info.vhost.encode("latin-1", "replace")
    host = f"[{info.host}]" if ":" in info.host else info.host
    default = 443 if info.secure else 80
    return (host if info.port == default else f"{host}:{info.port}").encode("latin-1", "replace")
