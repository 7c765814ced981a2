"""Bodies: octets of the wire in, octets of the body out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.dispatch.body import (
    LAST_CHUNK,
    MAX_SIZE_LINE_OCTETS,
    MAX_TRAILER_OCTETS,
    BodyReader,
    ChunkedBody,
    CountedBody,
    EndlessBody,
    chunk,
    reply_body,
)
from gridnet.dispatch.head import Framing, HttpError
from tests.dispatch.support import cuts
from tests.hypothesis_profile import examples

REFUSED = {
    "no size": b"\r\n",
    "a bare LF": b"5\nhello\r\n0\r\n\r\n",
    "a blank after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "a blank before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n",
    "no hexadecimal": b"g\r\nhello\r\n0\r\n\r\n",
    "a size of 64 bits": b"fffffffffffffffff\r\n",
    "a chunk longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "a chunk shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "LF behind a chunk": b"5\r\nhello\n0\r\n\r\n",
    "nothing behind a chunk": b"5\r\nhello0\r\n\r\n",
    "a bare CR in the extension": b"5;a=\rb\r\nhello\r\n0\r\n\r\n",
    "a bare LF in the extension": b"5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "a trailer without a colon": b"0\r\nA\r\n\r\n",
    "an endless size line": b"5;" + b"a" * MAX_SIZE_LINE_OCTETS,
    "endless trailers": b"0\r\n" + b"A: b\r\n" * (MAX_TRAILER_OCTETS // 6 + 1),
    "an endless trailer line": b"0\r\nA: " + b"b" * MAX_TRAILER_OCTETS,
}


def read(reader: BodyReader, pieces: list[bytes]) -> object:
    """Body, whether it ended, and what came after; or the refusal."""
    body = b""
    excess = b""
    for piece in pieces:
        if reader.ended:
            excess += piece
            continue
        try:
            body += reader.receive(piece)
        except HttpError as error:
            return error.http_status, str(error)
        if reader.ended:
            excess = reader.excess
    return body, reader.ended, excess


class ChunkedTests(SynchronousTestCase):
    """Chunks are read to the letter."""

    def test_a_body_in_chunks(self) -> None:
        """Sizes in either case, extensions and trailers passed over."""
        data = b'5\r\nhello\r\nA;x="y"\r\n, worldly!\r\n0;z\r\nTrailer: a\r\n\r\nGET'
        self.assertEqual(read(ChunkedBody(), [data]), (b"hello, worldly!", True, b"GET"))

    def test_what_is_refused(self) -> None:
        """Each broken form is a 400, at once or octet by octet."""
        for name, data in REFUSED.items():
            verdict = read(ChunkedBody(), [data])
            assert isinstance(verdict, tuple)
            self.assertEqual(verdict[0], 400, name)
            self.assertEqual(
                read(ChunkedBody(), [data[i : i + 1] for i in range(len(data))]), verdict, name
            )

    def test_our_own_chunks(self) -> None:
        """What we write, we read."""
        data = chunk(b"a" * 300) + chunk(b"b") + LAST_CHUNK
        self.assertEqual(read(ChunkedBody(), [data]), (b"a" * 300 + b"b", True, b""))

    @given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.lists(st.integers(0, 999)))
    @examples(300)
    def test_cuts_change_nothing(self, bodies: list[bytes], places: list[int]) -> None:
        """However the octets come, they are the same body."""
        data = b"".join(map(chunk, bodies)) + LAST_CHUNK + b"next"
        expected = (b"".join(bodies), True, b"next")
        self.assertEqual(read(ChunkedBody(), cuts(data, places)), expected)

    @given(
        st.lists(
            st.sampled_from([b"5", b"\r\n", b"\n", b";a", b"0", b"hello", b"A: b", b"x" * 90])
        ),
        st.lists(st.integers(0, 9999), max_size=8),
    )
    @examples(500)
    def test_verdict_does_not_depend_on_cuts(self, words: list[bytes], places: list[int]) -> None:
        """Broken bodies are broken in the same way however they are cut."""
        data = b"".join(words)
        self.assertEqual(read(ChunkedBody(), [data]), read(ChunkedBody(), cuts(data, places)))


class OtherBodyTests(SynchronousTestCase):
    """Bodies of known length, and such as end with the connection."""

    def test_a_counted_body(self) -> None:
        """What comes after it is left over."""
        self.assertEqual(
            read(CountedBody(5), [b"he", b"llo, ", b"you"]), (b"hello", True, b", you")
        )
        self.assertTrue(CountedBody(0).ended)

    def test_an_endless_body(self) -> None:
        """It never ends by itself."""
        self.assertEqual(read(EndlessBody(), [b"a", b"b"]), (b"ab", False, b""))

    def test_a_reply_says_which(self) -> None:
        """Chunks before a length, a length before the end of the connection."""
        self.assertIsInstance(reply_body(Framing(chunked=True)), ChunkedBody)
        self.assertIsInstance(reply_body(Framing(content_length=3)), CountedBody)
        self.assertIsInstance(reply_body(Framing()), EndlessBody)
