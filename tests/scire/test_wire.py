"""XML-RPC octets: vectors, round trips, and whatever a hostile peer may send."""

from __future__ import annotations

import tracemalloc
import xmlrpc.client
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LocalProtocolError
from gridnet.scire import wire
from gridnet.scire.faults import FaultCode, ScireFault
from tests.hypothesis_profile import examples

XML_TEXT = st.text(
    st.characters(
        exclude_categories=["Cs"],
        exclude_characters=[chr(n) for n in range(32) if n not in (9, 10, 13)]
        + ["\x7f", "\ufffe", "\uffff"],
    )
)
SCALARS = st.one_of(
    st.integers(wire.INT_MIN, wire.INT_MAX),
    st.booleans(),
    XML_TEXT,
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(max_size=40),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)).map(
        lambda t: t.replace(microsecond=0)
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(XML_TEXT, inner, max_size=4)
    ),
    max_leaves=8,
).filter(lambda value: _depth(value) <= 4)


def _depth(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 0


#: What clients send most, and what may go wrong in it.
PLAIN = st.one_of(
    st.integers(wire.INT_MIN, wire.INT_MAX),
    st.text("ab]\n '\"=0", max_size=6),
    st.binary(max_size=60),
)
PIECES = (
    b"",
    b" ",
    b"\n",
    b"\r",
    b"\t",
    b"\x0c",
    b"<",
    b">",
    b"&",
    b"]]>",
    b"'",
    b"\xc3\xa9",
    b"1",
)


def _by_the_standard_library(method: str, params: list[Any]) -> bytes:
    return xmlrpc.client.dumps(tuple(params), method).encode()


def _read(octets: bytes) -> object:
    try:
        return wire.parse_call(octets)
    except ScireFault as fault:
        return int(fault.code)


def call(inside: str) -> bytes:
    return f"<methodCall><methodName>m</methodName>{inside}</methodCall>".encode()


def param(inside: str) -> bytes:
    return call(f"<params><param>{inside}</param></params>")


class RoundTripTests(SynchronousTestCase):
    """What is written is read again, here and by the standard library."""

    @given(st.lists(VALUES, max_size=3))
    @examples(200)
    def test_calls_and_answers_round_trip(self, values: list[object]) -> None:
        self.assertEqual(wire.parse_call(wire.format_call("a.b", values)).params, tuple(values))
        self.assertEqual(wire.parse_answer(wire.format_answer(values)), values)

    @given(VALUES)
    @examples(150)
    def test_the_standard_library_reads_what_is_written(self, value: object) -> None:
        params, _ = xmlrpc.client.loads(wire.format_answer(value), use_builtin_types=True)

        def without_zone(found: object) -> object:
            if isinstance(found, datetime):
                return found.replace(tzinfo=None)
            if isinstance(found, list):
                return [without_zone(f) for f in found]
            if isinstance(found, dict):
                return {k: without_zone(f) for k, f in found.items()}
            return found

        self.assertEqual(params[0], without_zone(value))

    def test_what_the_standard_library_writes_is_read(self) -> None:
        value = {"a": [1, True, "x<&>", 2.5, xmlrpc.client.Binary(b"\0\xff")], "b": {}}
        octets = xmlrpc.client.dumps((value,), "scire.hello").encode()
        self.assertEqual(
            wire.parse_call(octets),
            wire.Call("scire.hello", ({"a": [1, True, "x<&>", 2.5, b"\0\xff"], "b": {}},)),
        )

    def test_faults_carry_code_text_and_delay(self) -> None:
        with self.assertRaises(ScireFault) as caught:
            wire.parse_answer(wire.format_fault(ScireFault(FaultCode.BUSY, "busy", 7)))
        self.assertEqual(
            (caught.exception.code, caught.exception.text, caught.exception.retry_after),
            (1060, "busy", 7),
        )

    def test_carriage_returns_survive(self) -> None:
        self.assertEqual(wire.parse_answer(wire.format_answer("a\r\nb\r")), "a\r\nb\r")

    def test_what_xml_cannot_carry_is_replaced(self) -> None:
        self.assertEqual(wire.parse_answer(wire.format_answer("a\0b")), "a\ufffdb")

    def test_rfc3339_round_trip(self) -> None:
        self.assertEqual(wire.format_rfc3339(1795190531), "2026-11-20T16:02:11Z")
        self.assertEqual(wire.parse_rfc3339("2026-11-20T16:02:11Z"), 1795190531)
        for bad in ("2026-11-20T16:02:11", "2026-13-01T00:00:00Z", "2026-11-20 16:02:11Z", ""):
            self.assertRaises(ValueError, wire.parse_rfc3339, bad)


class RefusalTests(SynchronousTestCase):
    """Hostile and broken octets give the documented fault, cheaply."""

    def refuses(self, octets: bytes, code: int) -> None:
        with self.assertRaises(ScireFault) as caught:
            wire.parse_call(octets)
        self.assertEqual(caught.exception.code, code, caught.exception)

    def test_not_allowed_xml(self) -> None:
        bomb = (
            b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
            b"<methodCall><methodName>&b;</methodName></methodCall>"
        )
        for octets in (
            b"",
            b"<methodCall>",
            b"\xff\xfe\xff",
            b"<methodCall><methodName>\xff</methodName></methodCall>",
            b"<!DOCTYPE x><methodCall><methodName>m</methodName></methodCall>",
            b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><methodCall/>',
            bomb,
            b"<methodCall><?php x?><methodName>m</methodName></methodCall>",
            call("&undefined;"),
            param("<value><array><data>" * 10_000),
            param("<value><array><data>" * 40 + "</data></array></value>" * 40),
            call("<params/>") + b"<more/>",
        ):
            self.refuses(octets, FaultCode.NOT_WELL_FORMED)

    def test_not_xmlrpc(self) -> None:
        for octets in (
            b"<html/>",
            b"<methodResponse/>",
            b"<methodCall/>",
            b"<methodCall><params/><methodName>m</methodName></methodCall>",
            b"<methodCall><methodName>a b</methodName></methodCall>",
            b"<methodCall><methodName>" + b"a" * 200 + b"</methodName></methodCall>",
            call("text"),
            call("<params/><params/>"),
            param(""),
            param("<value/><value/>"),
            param("<value><nil/></value>"),
            param("<value><i8>1</i8></value>"),
            param("<value><int>2147483648</int></value>"),
            param("<value><int>1_0</int></value>"),
            param("<value><int></int></value>"),
            param("<value><boolean>true</boolean></value>"),
            param("<value><double>nan</double></value>"),
            param("<value><double>1e999</double></value>"),
            param("<value><dateTime.iso8601>20261320T00:00:00</dateTime.iso8601></value>"),
            param("<value><base64>****</base64></value>"),
            param("<value><base64>QQ</base64></value>"),
            param("<value><int>1</int><int>2</int></value>"),
            param("<value>text<int>1</int></value>"),
            param("<value><int>1</int>text</value>"),
            param("<value><struct><member><name>a</name></member></struct></value>"),
            param("<value><struct><member><value/><name>a</name></member></struct></value>"),
            param(
                "<value><struct><member><name>a</name><value/></member>"
                "<member><name>a</name><value/></member></struct></value>"
            ),
            param("<value><array></array></value>"),
            param("<int>1</int>"),
        ):
            self.refuses(octets, FaultCode.NOT_XMLRPC)

    def test_a_declared_encoding_does_not_change_how_octets_are_read(self) -> None:
        octets = b'<?xml version="1.0" encoding="utf-16"?>' + param("<value>\u00e9</value>")
        self.assertEqual(wire.parse_call(octets).params, ("\u00e9",))

    def test_memory_stays_bounded(self) -> None:
        octets = param("<value><array><data>" * 100_000)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.refuses(octets, FaultCode.NOT_WELL_FORMED)
        self.assertLess(tracemalloc.get_traced_memory()[1], len(octets) + 1_000_000)

    @given(st.binary(max_size=300))
    @examples(300)
    def test_any_octets_give_a_call_or_a_fault(self, octets: bytes) -> None:
        try:
            wire.parse_call(octets)
        except ScireFault as fault:
            self.assertIn(fault.code, (-32700, -32600))

    @given(st.data())
    @examples(300)
    def test_any_mutation_of_a_call_gives_a_call_or_a_fault(self, data: st.DataObject) -> None:
        octets = bytearray(wire.format_call("scire.hello", [{"a": [1, "x", b"y", True, 1.5]}]))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(octets) - 1))
            octets[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
            if not octets:
                break
        try:
            wire.parse_call(bytes(octets))
        except ScireFault as fault:
            self.assertIn(fault.code, (-32700, -32600))

    @given(st.data())
    @examples(300)
    def test_plain_calls_are_read_as_the_parser_reads_them(self, data: st.DataObject) -> None:
        """A comment makes no difference, but that the parser has to look."""
        params = data.draw(st.lists(PLAIN, max_size=3))
        written = data.draw(st.sampled_from((wire.format_call, _by_the_standard_library)))
        octets = bytearray(written("scire.next_job", params))
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(octets)))
            octets[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(PIECES))
        self.assertEqual(_read(bytes(octets)), _read(bytes(octets) + b"<!-- -->"))

    def test_plain_calls_with_something_wrong_in_them(self) -> None:
        for text in ("]]>", "a]]>b", "&amp;", "&#0;", "\r\n", "\0", "\x0b", "\x7f", "\u00e9", ">"):
            for kind in ("string", "int", "base64"):
                octets = param(f"<value><{kind}>{text}</{kind}></value>")
                self.assertEqual(_read(octets), _read(octets + b"<!-- -->"), octets)
        for octets in (
            b"\x0c" + param("<value><int>1</int></value>"),
            param("\x0b<value><int>1</int></value>"),
            b"\n<?xml version='1.0'?>" + param("<value><int>1</int></value>"),
            b"<?xml version='1.0\"?>" + param("<value><int>1</int></value>"),
            b"\xef\xbb\xbf" + param("<value><int>1</int></value>"),
            param("<value><int>1</string></value>"),
            param("<value><int>1</int></value>") + b"\0",
        ):
            self.assertEqual(_read(octets), _read(octets + b"<!-- -->"), octets)

    def test_an_answer_without_a_proper_fault_is_no_answer(self) -> None:
        for inside in (
            "",
            "<params/>",
            "<fault><value>x</value></fault>",
            "<params><param><value/></param><param><value/></param></params>",
        ):
            with self.assertRaises(ScireFault) as caught:
                wire.parse_answer(f"<methodResponse>{inside}</methodResponse>".encode())
            self.assertEqual(caught.exception.code, FaultCode.NOT_XMLRPC)

    def test_values_without_a_form_are_our_mistake(self) -> None:
        for value in (None, 2**31, float("nan"), {1}, object()):
            self.assertRaises(LocalProtocolError, wire.format_answer, value)
