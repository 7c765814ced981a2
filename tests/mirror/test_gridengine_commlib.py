"""Frames: cut anywhere, damaged, too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import RemoteProtocolError
from gridnet.mirror.gridengine import commlib
from gridnet.mirror.gridengine.commlib import Connect, ConnectAnswer, FrameReader, Message, Peer
from tests.hypothesis_profile import examples
from tests.mirror.vectors import vectors

NAMES = st.text(
    st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=""), max_size=20
)
PEERS = st.builds(Peer, NAMES, NAMES, st.integers(0, 2**31))


class FrameTests(SynchronousTestCase):
    @given(st.lists(st.integers(1, 60), max_size=40))
    @examples(60)
    def test_frames_do_not_depend_on_how_tcp_cuts_them(self, cuts: list[int]) -> None:
        names = ("connect", "sim", "report-PE_ADD", "acknowledge", "ccm", "ccrm")
        stream = b"".join(vectors()[name].octets for name in names)
        whole = FrameReader().receive(stream)
        self.assertEqual(len(whole), len(names))
        reader, frames, place = FrameReader(), [], 0
        for cut in [*cuts, len(stream)]:
            frames += reader.receive(stream[place : place + cut])
            place += cut
        self.assertEqual(frames, whole)
        self.assertEqual(reader.pending, 0)

    @given(PEERS, PEERS, NAMES, NAMES)
    @examples(60)
    def test_handshakes_survive_whatever_names_are_in_them(
        self, one: Peer, two: Peer, condition: str, text: str
    ) -> None:
        connect = Connect(one, two)
        self.assertEqual(FrameReader().receive(commlib.pack_connect(connect)), [connect])
        answer = ConnectAnswer(condition or "x", text, one, text)
        self.assertEqual(FrameReader().receive(commlib.pack_connect_answer(answer)), [answer])

    @given(st.binary(max_size=200), st.integers(0, 30))
    @examples(200)
    def test_any_octets_give_frames_or_a_remote_error(self, octets: bytes, keep: int) -> None:
        start = vectors()["ccm"].octets[:keep]
        try:
            FrameReader().receive(start + octets)
        except RemoteProtocolError:
            pass

    def test_lengths_are_refused_before_the_octets_come(self) -> None:
        for start in (b"<gmsh><dl>0</dl></gmsh>", b"<gmsh><dl>99999999</dl></gmsh>"):
            with self.assertRaisesRegex(RemoteProtocolError, "frame text of"):
                FrameReader().receive(start)
        reader = FrameReader(max_body_octets=1000)
        with self.assertRaisesRegex(RemoteProtocolError, "1001 octets, 1000 are allowed"):
            reader.receive(commlib.message_header(1, 1001))

    def test_what_cannot_become_a_frame_is_refused_at_its_first_octets(self) -> None:
        for octets in (b"G", b"<gmsh><dl>x", b"<gmsh><dl>123456789012345678901234567890"):
            reader = FrameReader()
            if len(octets) < 20 and b"<dl>" in octets:
                octets += bytes(32)
            with self.assertRaises(RemoteProtocolError):
                reader.receive(octets)

    def test_an_empty_body_is_a_message_at_once(self) -> None:
        message = Message(3, "bin", b"", commlib.TAG_REPORT)
        self.assertEqual(FrameReader().receive(commlib.pack_message(message)), [message])

    def test_the_acknowledgement_of_a_message_names_it(self) -> None:
        self.assertEqual(commlib.read_acknowledged(commlib.acknowledged_body(77)), 77)
        with self.assertRaises(RemoteProtocolError):
            commlib.read_acknowledged(b"<am></am>")
