"""Heads of messages: what is believed, what is refused, and with which status."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch.head import (
    HttpError,
    RequestHead,
    end_to_end,
    find_end,
    parse_reply,
    parse_request,
)
from tests.hypothesis_profile import examples

LIMIT = 65536


def head(*lines: bytes, line: bytes = b"GET /a HTTP/1.1") -> bytes:
    """A head of *lines*, with a Host."""
    return b"\r\n".join((line, b"Host: x", *lines)) + b"\r\n\r\n"


def read(raw: bytes) -> RequestHead:
    """*raw* taken apart."""
    return parse_request(raw, 100)


#: What llhttp, a server behind us or an older proxy might each read in its own way.
REFUSED: dict[str, tuple[bytes, int]] = {
    "two lengths": (head(b"Content-Length: 5", b"Content-Length: 6"), 400),
    "the same length twice": (head(b"Content-Length: 5", b"Content-Length: 5"), 400),
    "a list of lengths": (head(b"Content-Length: 5, 5"), 400),
    "length and chunked": (head(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
    "chunked and length": (head(b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400),
    "a signed length": (head(b"Content-Length: +5"), 400),
    "a negative length": (head(b"Content-Length: -5"), 400),
    "a length in hex": (head(b"Content-Length: 0x5"), 400),
    "an empty length": (head(b"Content-Length:"), 400),
    "a length with a blank": (head(b"Content-Length: 5 5"), 400),
    "a huge length": (head(b"Content-Length: " + b"9" * 30), 400),
    "a length above 63 bits": (head(b"Content-Length: 9223372036854775808"), 400),
    "chunked in HTTP/1.0": (head(b"Transfer-Encoding: chunked", line=b"POST /a HTTP/1.0"), 400),
    "chunked twice": (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    "another coding": (head(b"Transfer-Encoding: gzip"), 400),
    "obfuscated chunked": (head(b"Transfer-Encoding: xchunked"), 400),
    "chunked, then another": (head(b"Transfer-Encoding: chunked, identity"), 400),
    "another, then chunked": (head(b"Transfer-Encoding: identity, chunked"), 400),
    "quoted chunked": (head(b'Transfer-Encoding: "chunked"'), 400),
    "vertical tab before chunked": (head(b"Transfer-Encoding: \x0bchunked"), 400),
    "folding": (head(b"A: b", b" c"), 400),
    "folding with a tab": (head(b"A: b", b"\tc"), 400),
    "folding of the first line": (b"GET /a HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "a blank before the colon": (head(b"A : b"), 400),
    "a tab before the colon": (head(b"A\t: b"), 400),
    "no colon": (head(b"A"), 400),
    "no name": (head(b": b"), 400),
    "a bad name": (head(b"A b: c"), 400),
    "brackets in a name": (head(b"A(b): c"), 400),
    "a high octet in a name": (head(b"A\xff: c"), 400),
    "a bare CR": (head(b"A: b\rc"), 400),
    "a bare CR at the end of a value": (b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\r\n\r\n", 400),
    "a bare LF": (b"GET /a HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "a bare LF in the first line": (b"GET /a HTTP/1.1\nHost: x\r\n\r\n", 400),
    "an empty line of LF": (b"GET /a HTTP/1.1\r\nHost: x\r\n\n\r\n\r\n", 400),
    "NUL": (head(b"A: b\x00c"), 400),
    "NUL in the target": (head(line=b"GET /a\x00 HTTP/1.1"), 400),
    "a control octet": (head(b"A: b\x01c"), 400),
    "DEL": (head(b"A: b\x7fc"), 400),
    "two blanks after the method": (head(line=b"GET  /a HTTP/1.1"), 400),
    "two blanks after the target": (head(line=b"GET /a  HTTP/1.1"), 400),
    "a tab after the method": (head(line=b"GET\t/a HTTP/1.1"), 400),
    "a blank in the target": (head(line=b"GET /a b HTTP/1.1"), 400),
    "a blank at the end": (head(line=b"GET /a HTTP/1.1 "), 400),
    "a high octet in the target": (head(line=b"GET /\xe4 HTTP/1.1"), 400),
    "a fragment": (head(line=b"GET /a#b HTTP/1.1"), 400),
    "HTTP/0.9": (b"GET /a\r\n\r\n", 400),
    "HTTP/0.9 by name": (head(line=b"GET /a HTTP/0.9"), 505),
    "HTTP/2.0": (head(line=b"GET /a HTTP/2.0"), 505),
    "HTTP/1.2": (head(line=b"GET /a HTTP/1.2"), 505),
    "HTTP/1.10": (head(line=b"GET /a HTTP/1.10"), 400),
    "lower-case http": (head(line=b"GET /a http/1.1"), 400),
    "another protocol": (head(line=b"GET /a ICE/1.0"), 400),
    "an unknown method": (head(line=b"FROB /a HTTP/1.1"), 501),
    "a method in lower case": (head(line=b"get /a HTTP/1.1"), 501),
    "no host": (b"GET /a HTTP/1.1\r\n\r\n", 400),
    "two hosts": (head(b"Host: y"), 400),
    "the same host twice": (head(b"Host: x"), 400),
    "a host with a blank": (b"GET /a HTTP/1.1\r\nHost: x y\r\n\r\n", 400),
    "a host with a path": (b"GET /a HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
    "a host with a user": (b"GET /a HTTP/1.1\r\nHost: u@x\r\n\r\n", 400),
    "a relative target": (head(line=b"GET a HTTP/1.1"), 400),
    "a star for GET": (head(line=b"GET * HTTP/1.1"), 400),
    "another scheme": (head(line=b"GET ftp://x/a HTTP/1.1"), 400),
    "an absolute form without a host": (head(line=b"GET http:///a HTTP/1.1"), 400),
    "an absolute form with a user": (head(line=b"GET http://u@x/a HTTP/1.1"), 400),
    "a tunnel": (head(line=b"CONNECT x:1 HTTP/1.1"), 405),
    "an odd expectation": (head(b"Expect: a miracle", b"Content-Length: 1"), 417),
}


class RefusalTests(SynchronousTestCase):
    """What two readers could understand in two ways is understood by nobody."""

    def test_each_form_is_refused_with_its_status(self) -> None:
        """Every form gets its status, and none an exception of another kind."""
        for name, (raw, status) in REFUSED.items():
            with self.assertRaises(HttpError, msg=name) as caught:
                read(raw)
            self.assertEqual(caught.exception.http_status, status, name)

    def test_too_many_lines_are_refused(self) -> None:
        """The number of header lines is bounded, whatever their length."""
        raw = head(*(b"A: b" for _ in range(60)))
        self.assertEqual(len(parse_request(raw, 61).headers), 61)
        with self.assertRaises(HttpError) as caught:
            parse_request(raw, 60)
        self.assertEqual(caught.exception.http_status, 431)


class AcceptanceTests(SynchronousTestCase):
    """What clients send is taken as they mean it."""

    def test_a_plain_head(self) -> None:
        """Method, target, headers in order with their case, white space around values gone."""
        found = read(head(b"X-Y:  a b\t", b"Empty:", b"X-Y: \xe4"))
        self.assertEqual((found.method, found.target, found.minor), ("GET", b"/a", 1))
        self.assertEqual(
            found.headers,
            ((b"Host", b"x"), (b"X-Y", b"a b"), (b"Empty", b""), (b"X-Y", b"\xe4")),
        )
        self.assertTrue(found.framing.empty)

    def test_keep_alive(self) -> None:
        """HTTP/1.1 keeps the connection unless told, HTTP/1.0 only when told."""
        for line, connection, keep in [
            (b"GET /a HTTP/1.1", b"x", True),
            (b"GET /a HTTP/1.1", b"close", False),
            (b"GET /a HTTP/1.1", b"x, Close", False),
            (b"GET /a HTTP/1.0", b"x", False),
            (b"GET /a HTTP/1.0", b"Keep-Alive", True),
            (b"GET /a HTTP/1.0", b"keep-alive, close", False),
        ]:
            found = read(head(b"Connection: " + connection, line=line))
            self.assertEqual(found.keep_alive, keep, (line, connection))

    def test_old_clients_need_no_host(self) -> None:
        """HTTP/1.0 came before the Host line."""
        self.assertEqual(read(b"GET /a HTTP/1.0\r\n\r\n").host, b"")

    def test_the_absolute_form_is_reduced(self) -> None:
        """Its host counts instead of the Host line."""
        found = read(head(line=b"GET HTTP://other:8080/a?b HTTP/1.1"))
        self.assertEqual((found.target, found.host), (b"/a?b", b"other:8080"))
        self.assertEqual(read(head(line=b"GET http://o HTTP/1.1")).target, b"/")
        self.assertEqual(read(head(line=b"GET http://o?a HTTP/1.1")).target, b"/?a")

    def test_the_star_is_for_options(self) -> None:
        """``OPTIONS *`` asks about the server as such."""
        self.assertEqual(read(head(line=b"OPTIONS * HTTP/1.1")).target, b"*")

    def test_bodies(self) -> None:
        """A length, chunks, or none."""
        self.assertEqual(read(head(b"Content-Length: 007")).framing.content_length, 7)
        self.assertTrue(read(head(b"Content-Length: 0")).framing.empty)
        self.assertTrue(read(head(b"transfer-encoding: CHUNKED")).framing.chunked)

    def test_leave_to_send_a_body(self) -> None:
        """A client waits for leave only when it has a body, and speaks HTTP/1.1."""
        expect = b"Expect: 100-Continue"
        self.assertTrue(read(head(expect, b"Content-Length: 1")).expects_continue)
        self.assertFalse(read(head(expect)).expects_continue)
        old = head(expect, b"Content-Length: 1", line=b"POST /a HTTP/1.0")
        self.assertFalse(read(old).expects_continue)

    def test_upgrade_needs_both_headers(self) -> None:
        """``Upgrade`` without its ``Connection`` option is not one."""
        self.assertTrue(read(head(b"Connection: Upgrade", b"Upgrade: websocket")).upgrade)
        self.assertFalse(read(head(b"Upgrade: websocket")).upgrade)
        self.assertFalse(read(head(b"Connection: upgrade")).upgrade)

    def test_a_thousand_skipped_servers(self) -> None:
        """The longest head of a released client is taken."""
        lines = [b"Skip-Info-%d: STANDALONE 10.0.0.1:%d L=no R=1 T=1" % (n, n) for n in range(1000)]
        self.assertEqual(len(parse_request(head(*lines), 1200).headers), 1001)

    def test_hop_by_hop_headers_stay_behind(self) -> None:
        """What belongs to one connection, listed ones too, does not go on."""
        found = read(
            head(
                b"Connection: X-One, keep-alive",
                b"X-One: 1",
                b"Keep-Alive: 5",
                b"TE: trailers",
                b"Proxy-Authorization: secret",
                b"Upgrade: h2c",
                b"X-Two: 2",
            )
        )
        kept = end_to_end(found.headers, found.connection)
        self.assertEqual(kept, [(b"Host", b"x"), (b"X-Two", b"2")])


class ReplyTests(SynchronousTestCase):
    """Servers are held to the same letter as clients."""

    def test_a_plain_reply(self) -> None:
        """Status, reason, headers, framing."""
        found = parse_reply(b"HTTP/1.1 200 All fine\r\nA: b\r\nContent-Length: 3\r\n\r\n", 100)
        self.assertEqual((found.status, found.reason, found.keep_alive), (200, b"All fine", True))
        self.assertEqual(found.framing.content_length, 3)

    def test_small_liberties(self) -> None:
        """No reason at all, a later minor version, an unknown status."""
        for raw, status in [
            (b"HTTP/1.1 200\r\n\r\n", 200),
            (b"HTTP/1.1 200 \r\n\r\n", 200),
            (b"HTTP/1.0 599 x\r\n\r\n", 599),
        ]:
            self.assertEqual(parse_reply(raw, 100).status, status, raw)

    def test_what_is_refused(self) -> None:
        """Whatever two readers could understand in two ways is a 502."""
        start = b"HTTP/1.1 200 OK\r\n"
        for raw in [
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\n\n\r\n\r\n",
            b"ICY 200 OK\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            start + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
            start + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            start + b"Transfer-Encoding: gzip\r\n\r\n",
            start + b"A: b\r\n c\r\n\r\n",
            start + b"A : b\r\n\r\n",
            start + b"A: b\rc\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ]:
            with self.assertRaises(HttpError, msg=repr(raw)) as caught:
                parse_reply(raw, 100)
            self.assertEqual(caught.exception.http_status, 502)


_LINES = st.lists(
    st.sampled_from(
        [
            b"GET /a HTTP/1.1",
            b"Host: x",
            b"A: b",
            b"",
            b" c",
            b"A:\rb",
            b"X",
            b"\n",
            b"\x00",
            b"A: \n",
        ]
    ),
    max_size=6,
)


class CuttingTests(SynchronousTestCase):
    """Where a head ends depends on its octets, never on how they come."""

    @given(_LINES, st.sampled_from([b"\r\n", b"\n"]), st.integers(10, 60))
    @examples(400)
    def test_verdict_of_a_growing_head(self, lines: list[bytes], end: bytes, limit: int) -> None:
        """Octet by octet or at once: the same end, or the same refusal."""
        data = end.join(lines) + b"\r\n\r\nrest"
        self.assertEqual(self.at_once(data, limit), self.by_octets(data, limit))

    @staticmethod
    def at_once(data: bytes, limit: int) -> object:
        """The verdict on all of *data*: a refused head is refused by either reader."""
        try:
            size = find_end(data, 0, limit)
            if size and b"\n" in data[:size].replace(b"\r\n", b""):
                parse_request(data[:size], 100)
        except HttpError as error:
            return error.http_status, str(error)
        return size

    @staticmethod
    def by_octets(data: bytes, limit: int) -> object:
        """The verdict as the octets come one by one."""
        searched = 0
        for have in range(1, len(data) + 1):
            try:
                size = find_end(data[:have], searched, limit)
            except HttpError as error:
                return error.http_status, str(error)
            if size:
                return size
            searched = have
        return 0

    @given(st.binary(max_size=300))
    @examples(500)
    def test_any_octets_give_a_head_or_a_refusal(self, data: bytes) -> None:
        """No input raises anything but the documented error."""
        for raw in (data, b"GET /" + data, head(data), b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
            for parser in (parse_request, parse_reply):
                try:
                    parser(raw, 100)
                except HttpError as error:
                    self.assertGreaterEqual(error.http_status, 400)

    def test_an_endless_head_is_refused(self) -> None:
        """Once the limit is reached no end can come any more."""
        self.assertEqual(find_end(b"a" * 99, 0, 100), 0)
        with self.assertRaises(HttpError) as caught:
            find_end(b"a" * 100, 99, 100)
        self.assertEqual(caught.exception.http_status, 431)
        self.assertEqual(find_end(b"a" * 96 + b"\r\n\r\n", 0, 100), 100)
