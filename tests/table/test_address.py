"""Numeric addresses in all the forms that the C library takes."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.table.address import (
    address_number,
    address_text,
    canonical_address,
    ipv4_number,
    ipv6_number,
    quad,
)
from tests.hypothesis_profile import examples


class CanonicalAddressTests(SynchronousTestCase):
    def test_classic_forms_are_dotted_quads(self) -> None:
        for text, canonical in (
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3", "1.2.0.3"),
            ("1.2", "1.0.0.2"),
            ("16909060", "1.2.3.4"),
            ("0x7f.1", "127.0.0.1"),
            ("0X7F000001", "127.0.0.1"),
            ("0377.1", "255.0.0.1"),
            ("1.2.3.010", "1.2.3.8"),
            ("0", "0.0.0.0"),
            ("4294967295", "255.255.255.255"),
        ):
            self.assertEqual(canonical_address(text), canonical, text)

    def test_ipv6_is_short_and_lower_case(self) -> None:
        for text, canonical in (
            ("2001:DB8::A", "2001:db8::a"),
            ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("::1.2.3.4", "::1.2.3.4"),
            ("64:ff9b::1.2.3.4", "64:ff9b::102:304"),
            ("::", "::"),
            ("::1", "::1"),
        ):
            self.assertEqual(canonical_address(text), canonical, text)

    def test_others_are_no_addresses(self) -> None:
        for text in (
            "",
            "host",
            "1.2.3.4.5",
            "1.2.3.256",
            "256.1.1.1",
            "1.2.65536.",
            "1.2.65536",
            "08.1",
            "0x",
            "1..2",
            "+1",
            " 1.2.3.4",
            "1.2.3.4 ",
            "4294967296",
            "fe80::1%eth0",
            "1::2::3",
            "9" * 5000,
            "1:" * 3000,
            "\u0661.2.3.4",
        ):
            self.assertIsNone(canonical_address(text), text[:20])
            self.assertIsNone(address_number(text), text[:20])

    @examples(200)
    @given(st.integers(0, 2**32 - 1))
    def test_ipv4_text_and_number_are_one(self, number: int) -> None:
        self.assertEqual(ipv4_number(quad(number)), number)
        self.assertEqual(quad(number), str(ipaddress.IPv4Address(number)))
        self.assertEqual(address_number(address_text(number, 4)), (4, number))

    @examples(200)
    @given(st.integers(0, 2**128 - 1) | st.integers(0, 2**48))
    def test_ipv6_text_and_number_are_one(self, number: int) -> None:
        text = address_text(number, 6)
        if number >> 32 == 0xFFFF:
            self.assertEqual(address_number(text), (4, number & 0xFFFFFFFF))
        else:
            self.assertEqual(ipv6_number(text), number)
            self.assertEqual(address_number(text), (6, number))
        self.assertEqual(canonical_address(text), text)

    @examples(500)
    @given(st.text(st.sampled_from("0123456789abcdefx.:"), max_size=20))
    def test_anything_gives_a_canonical_address_or_none(self, text: str) -> None:
        canonical = canonical_address(text)
        if canonical is not None:
            self.assertEqual(canonical_address(canonical), canonical)
            self.assertEqual(address_number(canonical), address_number(text))
