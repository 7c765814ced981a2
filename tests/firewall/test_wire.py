"""The opening octets and the control record."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.firewall.wire import (
    BrowserSeen,
    ControlFlag,
    ControlOpened,
    ControlRefusal,
    ControlReply,
    ControlRequest,
    Opening,
    OpeningReader,
    ProbeSeen,
    RejectCode,
    ReplyReader,
    RequestReader,
    TicketPresented,
    can_be_ticket,
    reject_text,
    ticket_octets,
    write_refusal,
    write_reply,
    write_request,
)
from tests.hypothesis_profile import examples

VECTORS = Path(__file__).parent.parent / "vectors" / "firewall"
ADDRESSES = st.tuples(*[st.integers(0, 255)] * 4).map(lambda parts: ".".join(map(str, parts)))
NAMES = st.text("abcXYZ019_-./", max_size=112)


def fed(reader: OpeningReader, data: bytes, cuts: list[int]) -> tuple[Opening | None, bytes]:
    """What *reader* makes of *data* cut at *cuts*, and all that came behind."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    opening = None
    behind = b""
    for start, end in pairwise(edges):
        if opening is not None:
            behind += data[start:end]
        else:
            opening = reader.receive(data[start:end])
            behind = reader.excess
    return opening, behind


class OpeningTests(SynchronousTestCase):
    """The first octets of a connection."""

    def test_a_ticket_is_its_number_most_significant_octet_first(self) -> None:
        reader = OpeningReader()
        self.assertEqual(reader.receive(b"\x12\x34\x56\x78"), TicketPresented(0x12345678))
        self.assertEqual(reader.excess, b"")

    def test_released_clients_send_what_they_were_told(self) -> None:
        """The number of ``Connection-Info``, as libncbi6 and BLAST+ have sent it."""
        for name, number in (
            ("firewall.c-3", 0x5FE41056),
            ("firewall.cxx-3", 0x411C8462),
            ("ncbid-stateful.c-2", 0x3986522D),
            ("ncbid-stateful.cxx-2", 0x7383610C),
        ):
            octets = (VECTORS / f"{name}.ticket").read_bytes()
            self.assertEqual(ticket_octets(number), octets)
            self.assertEqual(OpeningReader().receive(octets), TicketPresented(number))

    def test_what_follows_the_ticket_is_the_clients(self) -> None:
        reader = OpeningReader()
        self.assertEqual(reader.receive(b"\x00\x00\x00\x0aGET"), TicketPresented(10))
        self.assertEqual(reader.excess, b"GET")

    def test_the_probe_needs_no_more_than_its_two_octets(self) -> None:
        reader = OpeningReader()
        self.assertIsNone(reader.receive(b"\r"))
        self.assertTrue(reader.started)
        self.assertEqual(reader.receive(b"\n"), ProbeSeen())

    def test_a_line_end_alone_is_not_the_probe(self) -> None:
        self.assertIsNone(OpeningReader().receive(b"\n"))
        self.assertEqual(OpeningReader().receive(b"\n\r\n\r"), TicketPresented(0x0A0D0A0D))

    def test_zeros_open_control_mode_and_head_is_a_browser(self) -> None:
        self.assertEqual(OpeningReader().receive(bytes(4)), ControlOpened())
        self.assertEqual(OpeningReader().receive(b"HEAD / HTTP/1.1\r\n"), BrowserSeen())

    @given(st.binary(max_size=12), st.lists(st.integers(0, 12), max_size=4))
    @examples(300)
    def test_cuts_do_not_change_the_verdict(self, data: bytes, cuts: list[int]) -> None:
        whole = OpeningReader()
        expected = whole.receive(data), whole.excess
        self.assertEqual(fed(OpeningReader(), data, cuts), expected)

    @given(st.integers(0, 2**32 - 1))
    @examples(200)
    def test_every_number_that_may_be_a_ticket_is_read_as_one(self, number: int) -> None:
        opening = OpeningReader().receive(ticket_octets(number))
        if can_be_ticket(number):
            self.assertEqual(opening, TicketPresented(number))

    def test_numbers_that_mean_something_else_are_no_tickets(self) -> None:
        for octets in (bytes(4), b"\r\n\0\0", b"\r\n\r\n", b"NCBI", b"HEAD"):
            self.assertFalse(can_be_ticket(int.from_bytes(octets, "big")), octets)
        self.assertRaises(LocalProtocolError, ticket_octets, 2**32)
        self.assertRaises(LocalProtocolError, ticket_octets, -1)

    def test_the_rejection_is_what_checkers_compare_with(self) -> None:
        self.assertEqual(
            reject_text(),
            b"NCBI Firewall Daemon:  Invalid ticket.  Connection closed.\r\n"
            b"See http://www.ncbi.nlm.nih.gov/cpp/network/firewall.html.\r\n",
        )
        self.assertEqual(len(reject_text().partition(b"\r")[0]), 58)


class ControlRecordTests(SynchronousTestCase):
    """How a dispatcher elsewhere asks for a ticket."""

    def test_a_cross_site_client_is_understood(self) -> None:
        # What services/netservice_api.cpp of the C++ Toolkit sends.
        record = bytes.fromhex("7f000001 1388 0003 00000000 0a010203") + b"bounce\0"
        self.assertEqual(
            RequestReader().receive(record),
            ControlRequest(
                "127.0.0.1",
                5000,
                ControlFlag.FIREWALL | ControlFlag.KEEP_CONNECTION,
                0,
                "10.1.2.3",
                "bounce",
            ),
        )

    def test_octets_after_the_text_belong_to_the_connection(self) -> None:
        reader = RequestReader()
        request = reader.receive(bytes(8) + bytes(8) + b"x\0hello")
        self.assertEqual(request, ControlRequest("0.0.0.0", 0, ControlFlag(0), 0, "0.0.0.0", "x"))
        self.assertEqual(reader.excess, b"hello")

    def test_a_record_without_text_ends_with_the_stream(self) -> None:
        reader = RequestReader()
        self.assertIsNone(reader.receive(bytes.fromhex("01020304 0050 0001 00000000 ffffffff")))
        self.assertEqual(reader.end().port, 80)

    def test_a_text_may_fill_the_record(self) -> None:
        reader = RequestReader()
        request = reader.receive(bytes(16) + b"n" * 112 + b"rest")
        assert request is not None
        self.assertEqual((request.service, reader.excess), ("n" * 112, b"rest"))

    def test_short_records_and_strange_names_are_refused(self) -> None:
        reader = RequestReader()
        reader.receive(bytes(15))
        self.assertRaises(RemoteProtocolError, reader.end)
        self.assertRaises(RemoteProtocolError, RequestReader().receive, bytes(16) + b"a b\0")
        self.assertRaises(RemoteProtocolError, RequestReader().receive, bytes(16) + b"\xe9\0")

    @given(st.binary(max_size=140), st.integers(0, 140))
    @examples(300)
    def test_any_octets_give_a_request_nothing_or_the_documented_error(
        self, data: bytes, cut: int
    ) -> None:
        for pieces in ([data], [data[:cut], data[cut:]]):
            reader = RequestReader()
            try:
                for piece in pieces:
                    if reader.receive(piece) is not None:
                        break
                else:
                    reader.end()
            except RemoteProtocolError:
                pass

    @given(
        ADDRESSES,
        st.integers(0, 65535),
        st.integers(0, 3),
        st.integers(0, 2**32 - 1),
        ADDRESSES,
        NAMES,
    )
    @examples(100)
    def test_requests_come_back_as_written(
        self, host: str, port: int, flags: int, ticket: int, origin: str, service: str
    ) -> None:
        request = ControlRequest(host, port, ControlFlag(flags), ticket, origin, service)
        octets = write_request(request)
        self.assertEqual(octets[:4], bytes(4))
        self.assertLessEqual(len(octets), 132)
        reader = RequestReader()
        self.assertEqual(reader.receive(octets[4:]) or reader.end(), request)

    def test_what_does_not_fit_is_our_mistake(self) -> None:
        for request in (
            ControlRequest("::1", 1),
            ControlRequest("1.2.3", 1),
            ControlRequest("1.2.3.256", 1),
            ControlRequest("1.2.3.4", 70000),
            ControlRequest("1.2.3.4", 1, service="é"),
            ControlRequest("1.2.3.4", 1, service="n" * 113),
        ):
            self.assertRaises(LocalProtocolError, write_request, request)

    def test_a_reply_with_a_ticket_ends_with_the_stream(self) -> None:
        reply = ControlReply("10.0.0.1", 5860, 0xDEADBEEF, ControlFlag.FIREWALL, "10.0.0.2")
        octets = write_reply(reply)
        self.assertEqual(octets.hex(), "0a00000116e40001deadbeef0a000002")
        reader = ReplyReader()
        self.assertIsNone(reader.receive(octets))
        self.assertEqual(reader.end(), reply)

    def test_a_reply_that_keeps_the_connection_fills_the_record(self) -> None:
        octets = write_reply(ControlReply("10.0.0.1", 5860, 0))
        self.assertEqual(len(octets), 128)
        self.assertNotIn(0, octets[16:])
        reader = ReplyReader()
        reply = reader.receive(octets + b"data")
        assert isinstance(reply, ControlReply)
        self.assertEqual((reply.ticket, reader.excess), (0, b"data"))

    def test_refusals_carry_code_and_reason_in_either_byte_order(self) -> None:
        for code in RejectCode:
            octets = write_refusal(ControlRefusal(code, "no"))
            flags = int.from_bytes(octets[6:8], "little")
            self.assertFalse(flags & 0xF0F0)
            self.assertTrue(flags & 0x0F0F)
            reader = ReplyReader()
            reader.receive(octets)
            self.assertEqual(reader.end(), ControlRefusal(code, "no"))

    def test_other_failures_are_told_from_replies(self) -> None:
        for octets, expected in (
            (b"", ControlRefusal(None, "")),
            (b"NCBI says no\r\n", ControlRefusal(None, "NCBI says no")),
            (b"NCBI FIREWALL says no.", ControlRefusal(None, "NCBI FIREWALL says no.")),
            (bytes(6) + b"\0\x0b" + bytes(8) + b"odd\0", ControlRefusal(None, "odd")),
            (bytes(4) + b"\0\1\x10\0" + bytes(8) + b"bad\0", ControlRefusal(None, "bad")),
        ):
            reader = ReplyReader()
            reader.receive(octets)
            self.assertEqual(reader.end(), expected, octets)

    @given(st.binary(max_size=140))
    @examples(300)
    def test_any_answer_is_a_reply_or_a_refusal(self, data: bytes) -> None:
        reader = ReplyReader()
        answer = reader.receive(data) or reader.end()
        self.assertIsInstance(answer, ControlReply | ControlRefusal)
