"""Address ranges, the file of local addresses, and who is local."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import ConfigError, TableError
from gridnet.table.address import address_text
from gridnet.table.address_range import (
    MAX_RANGES,
    AddressRange,
    AddressRanges,
    client_address,
    parse_range,
    read_file,
)
from tests.hypothesis_profile import examples
from tests.table.support import rows


def resolve(name: str) -> str:
    """A resolver that knows two names."""
    found = {"four.example": "192.0.2.1", "six.example": "2001:db8::1", "odd.example": "?"}
    if name not in found:
        raise OSError("no such host")
    return found[name]


class RangeTests(SynchronousTestCase):
    def test_the_grammar(self) -> None:
        for row in rows("table/address-ranges.json"):
            if row["first"] is None:
                self.assertRaises(TableError, parse_range, row["text"])
                continue
            found = parse_range(row["text"])
            self.assertEqual(address_text(found.first, found.version), row["first"], row)
            self.assertEqual(address_text(found.last, found.version), row["last"], row)
            self.assertEqual(parse_range(str(found)), found, row)

    def test_names_are_looked_up_when_they_can_be(self) -> None:
        self.assertEqual(str(parse_range("four.example", resolve)), "192.0.2.1")
        self.assertEqual(str(parse_range("six.example", resolve)), "2001:db8::1")
        for name in ("none.example", "odd.example"):
            self.assertRaises(TableError, parse_range, name, resolve)
        self.assertRaises(TableError, parse_range, "four.example")

    def test_ranges_are_written_as_they_can_be_read(self) -> None:
        for text, written in (
            ("130.14.8-10", "130.14.8-10"),
            ("1.2.3.4-6", "1.2.3.4-6"),
            ("0-255", "0-255"),
            ("10-12", "10-12"),
            ("10.0.0.0-255", "10.0.0.0/24"),
        ):
            self.assertEqual(str(parse_range(text)), written)

    @examples(1000)
    @given(st.text(st.sampled_from("0123456789.-/*:af[]"), max_size=16) | st.text(max_size=12))
    def test_any_text_gives_a_range_or_the_error(self, text: str) -> None:
        try:
            found = parse_range(text, resolve)
        except TableError:
            return
        self.assertLessEqual(found.first, found.last)
        self.assertEqual(parse_range(str(found)), found)

    @examples(300)
    @given(st.ip_addresses(), st.integers(1, 128))
    def test_networks_are_those_of_the_standard_library(
        self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix: int
    ) -> None:
        prefix = min(prefix, address.max_prefixlen)
        network = ipaddress.ip_network((address, prefix), strict=False)
        first = int(network.network_address)
        if not first or (address.version == 6 and first >> 32 == 0xFFFF):
            return
        found = parse_range(str(network))
        self.assertEqual(
            (found.first, found.last),
            (int(network.network_address), int(network.broadcast_address)),
        )


class SetTests(SynchronousTestCase):
    def test_loopback_always_belongs(self) -> None:
        ranges = AddressRanges()
        for address in ("127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "0x7f.1"):
            self.assertTrue(ranges.contains(address), address)
        for address in ("10.0.0.1", "::2", "", "host", "127.0.0.1 "):
            self.assertFalse(ranges.contains(address), address)

    def test_membership(self) -> None:
        ranges = AddressRanges.from_texts(("10.0.0.4-9", "10.0.0.8-20", "10.0.1/24", "fc00::/7"))
        for address, inside in (
            ("10.0.0.3", False),
            ("10.0.0.4", True),
            ("10.0.0.20", True),
            ("10.0.0.21", False),
            ("10.0.1.255", True),
            ("10.0.2.0", False),
            ("fd12::1", True),
            ("fe80::1", False),
            ("::ffff:10.0.1.1", True),
        ):
            self.assertEqual(address in ranges, inside, address)

    def test_all_faulty_texts_are_told_with_their_place(self) -> None:
        error = self.assertRaises(ConfigError, AddressRanges.from_texts, ("x", "10/8", "1.2"))
        self.assertEqual(
            [fault.where for fault in error.faults],
            ["site.local_networks[0]", "site.local_networks[2]"],
        )

    @examples(200)
    @given(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=8),
        st.integers(0, 80),
    )
    def test_membership_is_that_of_the_parts(
        self, parts: list[tuple[int, int]], probe: int
    ) -> None:
        base = 10 << 24
        ranges = AddressRanges(
            tuple(AddressRange(4, base + first, base + first + more) for first, more in parts)
        )
        expected = any(first <= probe <= first + more for first, more in parts)
        self.assertEqual(address_text(base + probe, 4) in ranges, expected)


class FileTests(SynchronousTestCase):
    TEXT = (
        "# local addresses\n! too\n\n10.0/16\n[ site-one ]\n130.14.8-9  # trailing\n"
        "2001:db8::/32\n[a-very-long-domain-name]\nlocalhost\n"
    )

    def test_ranges_under_their_domains(self) -> None:
        found = read_file(self.TEXT)
        self.assertEqual((found.faults, found.warnings), ((), ()))
        for address, domain in (
            ("10.0.3.4", ""),
            ("130.14.9.1", "site-one"),
            ("2001:db8::9", "site-one"),
            ("127.0.0.1", "a-very-long-dom"),
            ("9.9.9.9", ""),
            ("x", ""),
        ):
            self.assertEqual(found.addresses.domain(address), domain, address)

    def test_what_is_written_is_read_back_by_every_client(self) -> None:
        ranges = AddressRanges.from_file_text(self.TEXT)
        text = ranges.file_text()
        self.assertEqual(
            text,
            "10.0.0.0/16\n[site-one]\n130.14.8.0/23\n2001:db8::/32\n[a-very-long-dom]\n127.0.0.1\n",
        )
        self.assertEqual(AddressRanges.from_file_text(text), ranges)

    def test_faulty_lines_are_passed_over_and_told(self) -> None:
        found = read_file("10/8\nbogus line\r\n1.2.3.4/24\n[]\n192.168/16\n", where="local_ips")
        self.assertEqual(
            [fault.where for fault in found.faults], ["local_ips:2", "local_ips:3", "local_ips:4"]
        )
        self.assertIn("192.168.1.1", found.addresses)
        error = self.assertRaises(ConfigError, AddressRanges.from_file_text, "10/8\nbogus\n")
        self.assertEqual([fault.where for fault in error.faults], ["local addresses:2"])

    def test_overlaps_are_kept_with_a_warning(self) -> None:
        found = read_file("10/8\n10.1/16\n11/8\n")
        self.assertEqual([fault.where for fault in found.warnings], ["local addresses:2"])
        self.assertEqual(len(found.addresses.ranges), 3)

    def test_a_file_is_bounded(self) -> None:
        text = "".join(f"10.{n >> 8}.{n & 255}.0/24\n" for n in range(300))
        found = read_file(text)
        self.assertEqual(len(found.addresses.ranges), MAX_RANGES)
        self.assertEqual(len(found.faults), 1)
        ranges = AddressRanges.from_texts(text.split())
        self.assertEqual(len(ranges.file_text().splitlines()), MAX_RANGES)

    @examples(200)
    @given(st.text(st.sampled_from("0123456789.-/*:#![]a\n "), max_size=60))
    def test_any_text_is_read(self, text: str) -> None:
        found = read_file(text)
        self.assertEqual(
            AddressRanges.from_file_text(found.addresses.file_text()).ranges,
            tuple(sorted(found.addresses.ranges, key=lambda each: each.domain != "")),
        )


class ClientTests(SynchronousTestCase):
    local = AddressRanges.from_texts(("10/8",))

    def test_who_asks_and_from_where(self) -> None:
        for peer, headers, expected in (
            ("10.1.1.1", {}, ("10.1.1.1", True)),
            ("8.8.8.8", {}, ("8.8.8.8", False)),
            ("::ffff:10.1.1.1", {}, ("::ffff:10.1.1.1", True)),
            # What an outsider says of itself does not count.
            ("8.8.8.8", {"client-host": "10.1.1.1"}, ("8.8.8.8", False)),
            ("8.8.8.8", {"caf-proxied-host": "10.1.1.1"}, ("8.8.8.8", False)),
            ("8.8.8.8", {"x-forwarded-for": "10.1.1.1"}, ("8.8.8.8", False)),
            # A client inside may stand for another.
            ("10.1.1.1", {"client-host": "10.2.2.2"}, ("10.2.2.2", True)),
            ("10.1.1.1", {"client-host": "8.8.8.8"}, ("8.8.8.8", False)),
            ("10.1.1.1", {"client-host": "not-an-ip"}, ("10.1.1.1", True)),
            # Marks of the outside.
            ("10.1.1.1", {"ncbi-external": "Y"}, ("10.1.1.1", False)),
            ("10.1.1.1", {"caf-external": ""}, ("10.1.1.1", False)),
            # Proxies: the first outside address is the client.
            ("10.1.1.1", {"x-forwarded-for": "8.8.8.8"}, ("8.8.8.8", False)),
            ("10.1.1.1", {"x-forwarded-for": "10.3.3.3, 8.8.8.8"}, ("8.8.8.8", False)),
            ("10.1.1.1", {"x-forwarded-for": "10.3.3.3"}, ("10.3.3.3", True)),
            ("10.1.1.1", {"x-forwarded-for": "unknown, 10.3.3.3"}, ("10.3.3.3", False)),
            ("10.1.1.1", {"x-forwarded-for": "unknown"}, ("10.1.1.1", False)),
            ("10.1.1.1", {"x-forwarded-for": " , "}, ("10.1.1.1", True)),
            (
                "10.1.1.1",
                {"caf-proxied-host": "10.4.4.4", "x-fwd-ip-addr": "9.9.9.9"},
                ("9.9.9.9", False),
            ),
            (
                "10.1.1.1",
                {"caf-proxied-host": "10.4.4.4", "client-host": "10.5.5.5"},
                ("10.5.5.5", True),
            ),
            ("10.1.1.1", {"x-real-ip": "10.6.6.6"}, ("10.6.6.6", True)),
            ("10.1.1.1", {"x-real-ip": "9.9.9.9"}, ("9.9.9.9", False)),
            # In its usual form, which everybody reads alike.
            ("10.1.1.1", {"client-host": "010.0.0.1"}, ("8.0.0.1", False)),
            ("10.1.1.1", {"x-forwarded-for": "010.0.0.1"}, ("8.0.0.1", False)),
            ("10.1.1.1", {"x-forwarded-for": "::ffff:10.2.2.2"}, ("10.2.2.2", True)),
            ("10.1.1.1", {"x-real-ip": "2001:DB8:0:0::1"}, ("2001:db8::1", False)),
        ):
            self.assertEqual(client_address(headers, peer, self.local), expected, (peer, headers))

    @examples(200)
    @given(
        st.dictionaries(
            st.sampled_from(
                ("client-host", "x-forwarded-for", "caf-proxied-host", "ncbi-external", "x-real-ip")
            ),
            st.sampled_from(("10.0.0.9", "8.8.8.8", "x", "", "10.0.0.9, 8.8.8.8", "::1")),
        )
    )
    def test_no_header_makes_an_outsider_local(self, headers: dict[str, str]) -> None:
        self.assertEqual(client_address(headers, "8.8.8.8", self.local), ("8.8.8.8", False))
