"""Framing of the store socket."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import frames
from gridnet.lbproxy.frames import BodyError, FrameReader, Reply
from tests.hypothesis_profile import examples
from tests.lbproxy.vectors import capture


class FrameTests(SynchronousTestCase):
    """gridnet.lbproxy.frames"""

    def read(self, octets: bytes, limit: int = 1 << 20) -> tuple[list[bytes], bool]:
        reader = FrameReader(limit)
        return reader.receive(octets), reader.fault is not None

    def test_recorded_messages_survive(self) -> None:
        """Messages and replies of the original are taken apart and put together to the octet."""
        for name in ("01-register-both", "02-usertag-escaping", "03-transfer-ok"):
            octets = capture(f"{name}.store-request")
            bodies, _ = self.read(octets)
            self.assertEqual(frames.encode_message(frames.event_line(bodies[0])), octets)
            self.assertEqual(capture(f"{name}.store-reply"), frames.OK_FRAME)
        octets = capture("09-unregistered.store-reply")
        self.assertEqual(frames.decode_reply(self.read(octets)[0][0]), frames.NOT_REGISTERED)
        self.assertEqual(frames.encode_reply(frames.NOT_REGISTERED), octets)

    def test_headers(self) -> None:
        """Zeros may stand for blanks; every other form is a fault."""
        self.assertEqual(self.read(b"0000000000000003\nabc"), ([b"abc"], False))
        self.assertEqual(self.read(b"   0000000000003\nabc"), ([b"abc"], False))
        for header in (
            b"3               \n",
            b"              3 \n",
            b"              +3\n",
            b"              -3\n",
            b"               x\n",
            b"\t              3\n",
            b"               0\n",
            b"               3 ",
            b"               3\r",
            b"                \n",
        ):
            self.assertEqual(self.read(header + b"abc"), ([], True), header)

    def test_limit(self) -> None:
        """A body at the limit is read, a larger one is a fault before it comes."""
        self.assertEqual(self.read(b"%16d\n%s" % (5, b"abcde"), 5), ([b"abcde"], False))
        self.assertEqual(self.read(b"%16d\n" % 6, 5), ([], True))
        self.assertEqual(self.read(b"9" * 16 + b"\n"), ([], True))

    def test_nothing_is_read_after_a_fault(self) -> None:
        """Good frames before a fault count, those after it do not."""
        good = frames.frame(b"x")
        reader = FrameReader(10)
        self.assertEqual(reader.receive(good + good + b"?" * 17 + good), [b"x", b"x"])
        self.assertIsNotNone(reader.fault)
        self.assertEqual(reader.receive(good), [])

    @given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6), st.data())
    @examples(100)
    def test_cuts_do_not_matter(self, bodies: list[bytes], data: st.DataObject) -> None:
        """The same bodies come out however the stream is cut."""
        octets = b"".join(map(frames.frame, bodies))
        bad = data.draw(st.sampled_from([b"", b"x" * 17, b"               0\n"]))
        octets += bad
        reader, found = FrameReader(1000), []
        cuts = data.draw(st.lists(st.integers(0, len(octets)), max_size=12))
        for begin, end in pairwise([0, *sorted(cuts), len(octets)]):
            found += reader.receive(octets[begin:end])
        self.assertEqual(found, bodies)
        self.assertEqual(reader.fault is not None, bool(bad))

    @given(st.binary(max_size=80))
    @examples(150)
    def test_any_octets(self, octets: bytes) -> None:
        """Any octets give bodies or a fault; any body gives a line or a BodyError."""
        for body in [octets, *self.read(octets)[0]]:
            for decode in (frames.event_line, frames.decode_reply):
                try:
                    decode(body)
                except BodyError:
                    pass

    def test_event_lines(self) -> None:
        """The line is the second counted string; what follows is not looked at."""
        self.assertEqual(frames.event_line(b"6 michal\n3 abc\n"), b"abc")
        self.assertEqual(frames.event_line(b"6 michal\n3 abc\nmore"), b"abc")
        self.assertEqual(frames.event_line(b"06 michal\n3 abc\n"), b"abc")
        self.assertEqual(frames.event_line(b"6 michal\n0 \n"), b"")

    @given(st.binary(max_size=60), st.integers(0, 60), st.binary(max_size=2))
    @examples(200)
    def test_whole_messages(self, line: bytes, place: int, put: bytes) -> None:
        """A usual message gives its line at once; one that is damaged gives none or the same."""
        message = frames.encode_message(line)
        self.assertEqual(FrameReader(1000).usual_line(message), line)
        damaged = message[:place] + put + message[place + len(put) :]
        found = FrameReader(1000).usual_line(damaged)
        if found is not None:
            bodies, is_bad = self.read(damaged)
            self.assertEqual([frames.event_line(body) for body in bodies], [found])
            self.assertFalse(is_bad)

    def test_whole_messages_of_any_size(self) -> None:
        """Where the count gets one digit more, and at the limit."""
        for size in (0, 1, 9, 10, 99, 100, 999, 1000, 99_999, 100_000):
            message = frames.encode_message(b"x" * size)
            limit = len(message) - frames.HEADER_OCTETS
            self.assertEqual(FrameReader(limit).usual_line(message), b"x" * size)
            self.assertIsNone(FrameReader(limit - 1).usual_line(message))
            for other in (message[:-1], message + b"\n", message * 2):
                self.assertIsNone(FrameReader(1 << 20).usual_line(other))

    def test_no_whole_message_within_another_or_after_a_fault(self) -> None:
        """What has come before is not forgotten."""
        message = frames.encode_message(b"x")
        for before in (message[:3], message[:20], b"x" * 17):
            reader = FrameReader(1000)
            reader.receive(before)
            self.assertIsNone(reader.usual_line(message))

    def test_the_older_form(self) -> None:
        """A body that is one counted string alone is an event line too."""
        self.assertEqual(frames.event_line(b"7 a=1 b=2\n"), b"a=1 b=2")

    def test_broken_bodies(self) -> None:
        """Wrong magic words and counts are refused."""
        for body in (
            b"",
            b"x",
            b"6 michel\n3 abc\n",
            b"6 michal",
            b"6 michal\n",
            b"6 michal\n4 abc\n",
            b"6 michal\n2 abc\n",
            b"6 michal\nx abc\n",
            b"6 michal\n3  abc",
            b"6 michal\n-3 abc\n",
            b"5 michal\n3 abc\n",
            b"999999999999999999999 a\n",
        ):
            with self.assertRaises(BodyError, msg=body):
                frames.event_line(body)

    def test_error_numbers(self) -> None:
        """Replies become the error numbers of the original client."""
        for major, minor, number in (
            (0, 0, 0),
            (200, 0, 12),
            (400, 1403, 1417),
            (600, 0, 1),
            (700, 2, 2),
            (700, 17, 17),
            (800, 5, 1417),
            (900, 0, 1417),
            (700, 0, 1417),
        ):
            self.assertEqual(Reply(major, minor, "").error_number, number)

    @given(
        st.integers(0, 999),
        st.integers(0, 99999),
        st.text(st.characters(max_codepoint=255), max_size=30),
    )
    @examples(100)
    def test_replies_survive(self, major: int, minor: int, text: str) -> None:
        """Any reply is read back."""
        reply = Reply(major, minor, text)
        self.assertEqual(frames.decode_reply(self.read(frames.encode_reply(reply))[0][0]), reply)
