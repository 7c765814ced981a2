"""The layout of the shared-memory table (docs/protocols/shared-memory.rst)."""

from __future__ import annotations

import random
import struct
from zlib import adler32

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.table.heap import HeapBuilder
from gridnet.table.heap_image import HeapImage, read_image, read_stamp
from gridnet.table.heap_layout import PAGE_OCTETS, HeapError, checksum
from gridnet.table.model import Entry, Host, HostFacts, ServiceTable
from gridnet.table.server_info import ServerType, parse
from gridnet.table.server_text import write
from tests.hypothesis_profile import examples
from tests.table.support import entry, server
from tests.table.test_server_info import servers

NOW = 1_800_000_000.0
GOOD = NOW + 30

FACTS = HostFacts(
    load=0.25,
    load_instant=0.5,
    ram_pages=1000,
    cache_pages=200,
    free_pages=300,
    swap_pages=400,
    free_swap_pages=500,
    tasks=151,
    ports=((80, 0.5), (443, 1.0)),
    daemon_version=(1, 2, 3),
    machine=0x8102,
    booted_at=1e9,
    started_at=1.5e9,
    kernel=(6, 1, 147),
    page_octets=4096,
    clock_ghz=2.5,
    processors=8,
    processor_units=4,
    alerts=1,
    joined_at=1.6e9,
    hosts_seen=30,
    hosts_known=31,
)


class ImageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = ServiceTable()
        self.builder = HeapBuilder("10.0.0.1", NOW - 5, "/etc/servrc.cfg", (0, 1, 2))
        self.end = self.builder.follow(self.table)
        self.table.put_host(
            Host("10.0.0.1", 500.0, 2000.0, (("db", "PubMed Gene"), ("x", "")), zone=0x300)
        )

    def image(self, now: float = NOW, serial: int = 7) -> HeapImage:
        return read_image(self.builder.image(now, now + 30, serial))

    def test_who_publishes_and_how_long_it_holds(self) -> None:
        stamp = self.image().stamp
        self.assertEqual(
            (stamp.good, stamp.version, stamp.serial, stamp.local, stamp.started_at),
            (int(GOOD), (1, 3), 7, "10.0.0.1", int(NOW - 5)),
        )
        self.assertEqual(self.image().config, "/etc/servrc.cfg")
        self.assertEqual(self.image(serial=2**32 + 3).stamp.serial, 3)

    def test_a_host_its_environment_and_what_it_says_of_itself(self) -> None:
        host = Host(
            "10.0.0.1", 500.0, 2000.0, (("db", "PubMed Gene"), ("x", "")), 0x300, facts=FACTS
        )
        self.table.put_host(host)
        self.assertEqual(self.image().host("10.0.0.1"), evolve(host, expires_at=float(int(GOOD))))
        self.assertIsNone(self.image().host("10.0.0.2"))
        self.table.put_host(evolve(host, facts=HostFacts()))
        found = self.image().host("10.0.0.1")
        self.assertEqual(None if found is None else found.facts, HostFacts(processors=1))
        self.assertEqual(len(self.image().hosts()), 1)

    def test_facts_are_kept_within_their_fields(self) -> None:
        extreme = HostFacts(
            tasks=-1,
            ram_pages=2**40,
            ports=((70_000, 5.0),) * 6,
            processors=5000,
            kernel=(999,) * 3,
        )
        self.table.put_host(Host("10.0.0.1", facts=extreme))
        host = self.image().host("10.0.0.1")
        assert host is not None
        facts = host.facts
        self.assertEqual(
            (facts.tasks, facts.ram_pages, facts.ports, facts.processors, facts.kernel),
            (0, 2**32 - 1, ((65535, 1.0),) * 4, 255, (255, 255, 999)),
        )

    def test_a_line_end_in_a_value_does_not_make_a_line(self) -> None:
        self.table.put_host(Host("10.0.0.1", environment=(("a", "1\nb=2"), ("c", "3\0d"))))
        host = self.image().host("10.0.0.1")
        assert host is not None
        self.assertEqual(host.environment, (("a", "1 b=2"), ("c", "3")))

    def test_servers_of_every_type(self) -> None:
        texts = (
            "STANDALONE 10.0.0.1:80 B=-5 C=text/html L=no R=1000 S=yes T=30",
            "STANDALONE 10.0.0.1:81 H=sec.org:8 L=yes P=yes R=1 $=yes T=5",
            "HTTP 10.0.0.1:80 /x?y=z H=a.b C=x-ncbi-data/x-fasta-urlencoded R=500 T=30 X=yes",
            "HTTP_GET 10.0.0.1:80 /path R=0.005 T=30",
            "HTTP_POST 10.0.0.1:80 /p?q R=1 T=30",
            "NCBID 10.0.0.1:80 a&b A=B B=5 R=7 S=yes T=30",
            "NCBID 10.0.0.1:80 '' H= R=7 T=30".replace("H= ", ""),
            "DNS 10.0.0.1:53 R=9 T=4294967295",
            "DNS 10.0.0.1 A=B R=0 T=30",
        )
        for number, text in enumerate(texts):
            self.table.put(Entry("Bounce", parse(text), owner="10.0.0.2", penalty=number * 1.5))
        found = self.image().entries("bOUNCE")
        self.assertEqual([write(each.info) for each in found], [write(parse(t)) for t in texts])
        self.assertEqual(
            found,
            tuple(evolve(each, expires_at=int(GOOD)) for each in self.table.entries("bounce")),
        )
        self.assertEqual(len(self.image()), len(texts))
        self.assertEqual(tuple(self.image().all_entries()), found)

    def test_static_servers_need_no_host(self) -> None:
        static = entry(info=server("10.9.9.9", rate=123.0, time=30), static=True)
        self.table.put(static)
        self.table.put(entry("standby", server("10.9.9.9", rate=0.005, time=30), static=True))
        self.assertEqual(self.image().entries("bounce"), (evolve(static, expires_at=int(GOOD)),))
        self.assertEqual(self.image().entries("standby")[0].info.rate, 0.005)

    def test_dynamic_servers_without_a_host_are_left_out(self) -> None:
        self.table.put(entry(info=server("10.9.9.9", time=30)))
        self.assertEqual(len(self.image().entries("bounce")), 0)
        self.table.put_host(Host("10.9.9.9", expires_at=NOW + 5))
        self.assertEqual(len(self.image().entries("bounce")), 1)
        self.assertEqual(len(self.image(NOW + 6).entries("bounce")), 0)
        self.table.remove_host("10.9.9.9")
        self.assertEqual(len(self.image().entries("bounce")), 0)

    def test_one_that_is_down_needs_no_host(self) -> None:
        self.table.put(entry(info=server("10.9.9.9", rate=0.0, time=30)))
        self.assertEqual(self.image().entries("bounce")[0].info.rate, 0.0)

    def test_what_is_off_or_reserved_is_left_out(self) -> None:
        self.table.put(entry(info=server(rate=0.0, time=0)))
        self.table.put(entry("other", server(time=30), reserved=True))
        self.assertEqual(len(self.image()), 0)

    def test_ipv6_servers_carry_their_host_s_status_in_their_rate(self) -> None:
        self.table.put(entry(info=server("2001:db8::1", time=30)))
        self.table.put(entry("b", server("2001:db8::1", rate=0.005, time=30)))
        self.assertEqual(len(self.image()), 0)
        self.table.put_host(Host("2001:db8::1", status=250.0))
        found = self.image().entries("bounce")[0]
        self.assertEqual(
            (found.info.host, found.info.rate, found.static), ("2001:db8::1", 250, True)
        )
        self.assertEqual(self.image().entries("b")[0].info.rate, 0.005)
        self.table.put_host(Host("2001:db8::1", status=0.0001))
        self.assertEqual(self.image().entries("bounce")[0].info.rate, 0.01)
        self.table.remove_host("2001:db8::1")
        self.assertEqual(len(self.image()), 0)
        self.table.put(entry(info=server("2001:db8::1", time=30, rate=70.0), static=True))
        self.assertEqual(self.image().entries("bounce")[0].info.rate, 70.0)

    def test_servers_without_a_host_are_on_this_one(self) -> None:
        self.table.put(entry(info=server("", time=30)))
        self.assertEqual(self.image().entries("bounce")[0].info.host, "10.0.0.1")

    def test_what_has_expired_is_left_out_and_what_will_is_dated(self) -> None:
        self.table.put(entry(info=server(port=1), expires_at=NOW + 7.9))
        self.table.put(entry(info=server(port=2), expires_at=NOW - 1))
        self.table.put(entry(info=server(port=3), expires_at=NOW + 600))
        dates = {each.info.port: each.expires_at for each in self.image().entries("bounce")}
        self.assertEqual(dates, {1: NOW + 7, 3: GOOD})
        self.assertEqual(len(self.image(NOW + 9)), 1)

    def test_changes_are_followed_until_the_end(self) -> None:
        put = entry(info=server(time=30))
        self.table.put(put)
        self.table.put(evolve(put, penalty=50.0))
        self.assertEqual(self.image().entries("bounce")[0].penalty, 50.0)
        self.table.remove(put)
        self.assertEqual(len(self.image()), 0)
        self.end()
        self.table.put(put)
        self.assertEqual(len(self.image()), 0)

    def test_a_table_that_was_full_before_is_taken_whole(self) -> None:
        self.table.put(entry(info=server(time=30)))
        late = HeapBuilder("10.0.0.1", NOW)
        late.follow(self.table)
        image = read_image(late.image(NOW, GOOD, 1))
        self.assertEqual((len(image), len(image.hosts()), image.config), (1, 1, ""))

    def test_what_the_layout_cannot_name_is_left_out(self) -> None:
        for info in (
            server(type=ServerType.FIREWALL),
            server("host.name"),
            server("0.0.0.0"),
        ):
            self.table.put(entry(info=info, static=True))
        self.table.put_host(Host("fe80::1"))
        self.assertEqual((len(self.image()), len(self.image().hosts())), (0, 1))

    @examples(200)
    @given(servers(), st.text(st.characters(min_codepoint=1, max_codepoint=255), min_size=1))
    def test_what_is_published_is_read_back(self, info: object, service: str) -> None:
        put = entry(service.strip("\0") or "x", info, static=True)  # type: ignore[arg-type]
        builder = HeapBuilder("10.0.0.1", NOW)
        table = ServiceTable()
        builder.follow(table)
        table.put(put)
        found = list(read_image(builder.image(NOW, GOOD, 1)).all_entries())
        known = put.info
        if known.type is ServerType.FIREWALL or (known.rate == 0 and known.time == 0):
            self.assertEqual(found, [])
            return
        expected = evolve(
            put,
            expires_at=int(GOOD),
            static=known.rate != 0,
            info=evolve(
                known,
                host=known.host or "10.0.0.1",
                rate=abs(known.rate),
                time=known.time or 30,
            ),
        )
        self.assertEqual(found, [expected])


class LayoutTests(SynchronousTestCase):
    """Octet by octet, where the clients look."""

    def setUp(self) -> None:
        self.table = ServiceTable()
        self.builder = HeapBuilder("10.1.2.3", 1_500_000_000, "/etc/x", (2, 4, 4))
        self.builder.follow(self.table)

    def blocks(self, image: bytes) -> list[bytes]:
        found = []
        offset = 0
        while offset < len(image):
            size = struct.unpack_from("=I", image, offset + 4)[0]
            found.append(image[offset : offset + size])
            offset += size
        return found

    def test_the_version(self) -> None:
        image = self.builder.image(NOW, GOOD, 0x01020304)
        version = self.blocks(image)[0]
        self.assertEqual(struct.unpack_from("=IIII", version), (1, 48, 3, int(GOOD)))
        self.assertEqual(struct.unpack_from("=HHI", version, 16), (1, 3, 0x01020304))
        self.assertEqual(version[28:32], bytes((10, 1, 2, 3)))
        self.assertEqual(struct.unpack_from("=IIHH", version, 32), (1_500_000_000, 0, 0x0244, 0))
        zeroed = image[:24] + bytes(4) + image[28:]
        self.assertEqual(struct.unpack_from("=I", image, 24)[0], adler32(zeroed))
        self.assertEqual(checksum(image), adler32(zeroed))

    def test_only_the_last_block_is_marked_so_and_it_ends_the_image(self) -> None:
        self.table.put_host(Host("10.0.0.1"))
        self.table.put(entry(static=True))
        image = self.builder.image(NOW, GOOD, 1)
        blocks = self.blocks(image)
        self.assertEqual([block[0] for block in blocks], [1, 1, 1, 3])
        self.assertEqual([block[8] for block in blocks], [3, 1, 2, 5])
        self.assertEqual(blocks[-1][16:23], b"/etc/x\0")
        self.assertTrue(all(len(block) % 16 == 0 for block in blocks))
        self.assertEqual(sum(map(len, blocks)), len(image))

    def test_a_host(self) -> None:
        self.table.put_host(Host("10.0.0.7", 1.5, 2.5, (("a", "b"),), 0x21, facts=FACTS))
        host = self.blocks(self.builder.image(NOW, GOOD, 1))[1]
        self.assertEqual(host[16:20], bytes((10, 0, 0, 7)))
        self.assertEqual(struct.unpack_from("=dddd", host, 20), (0.25, 0.5, 1.5, 2.5))
        self.assertEqual(struct.unpack_from("=6I", host, 52), (1000, 200, 300, 400, 500, 151))
        self.assertEqual(struct.unpack_from("=4H4B", host, 76), (80, 443, 0, 0, 100, 200, 0, 0))
        self.assertEqual(
            struct.unpack_from("=HHIIIHHHHIHH", host, 88),
            (
                *(0x123, 0x8102, 10**9, 15 * 10**8, 6 << 24 | 1 << 16 | 147, 4, 320),
                *(0x0408, 1, 16 * 10**8, 30, 31),
            ),
        )
        self.assertEqual(struct.unpack_from("=IH", host, 120), (128, 0x21))
        self.assertEqual(host[128:132], b"a=b\0")

    def test_a_service(self) -> None:
        info = parse(
            "HTTP 10.0.0.9:8080 /p?q B=5 C=text/xml-urlencoded H=v R=700 T=9 L=yes P=yes"
            " $=yes X=yes A=B"
        )
        self.table.put(Entry("name", info, owner="10.0.0.7", static=True, penalty=12.5))
        block = self.blocks(self.builder.image(NOW, GOOD, 1))[1]
        self.assertEqual(struct.unpack_from("=I", block, 16)[0], 96 + 8 + 3 + 2 + 2)
        self.assertEqual(struct.unpack_from("=d", block, 20)[0], 12.5)
        self.assertEqual(block[28:32], bytes((10, 0, 0, 7)))
        self.assertEqual(struct.unpack_from("=I", block, 32)[0], 0x0C)
        self.assertEqual(block[36:40], bytes((10, 0, 0, 9)))
        self.assertEqual(struct.unpack_from("=HBBI", block, 40), (8080, 2, 7, 9))
        self.assertEqual(struct.unpack_from("=ddiiiB", block, 48), (5.0, -700.0, 1, 7, 1, 1))
        self.assertEqual(block[77:93], bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 9)))
        self.assertEqual(struct.unpack_from("=BH", block, 93), (1, 0))
        self.assertEqual(struct.unpack_from("=II", block, 96), (8, 11))
        self.assertEqual(block[104:116], b"/p\0q\0v\0name\0")

    def test_parameters_of_the_other_types(self) -> None:
        for text, octets in (
            ("HTTP 10.0.0.9:80 /p", struct.pack("=II", 8, 10) + b"/p\0name\0"),
            ("NCBID 10.0.0.9:80 a", struct.pack("=I", 4) + b"a\0name\0"),
            ("NCBID 10.0.0.9:80 ''", struct.pack("=I", 4) + b"\0name\0"),
            ("STANDALONE 10.0.0.9:80", b"\0name\0"),
            ("STANDALONE 10.0.0.9:80 $=yes H=v", b"\0v\0name\0"),
            ("DNS 10.0.0.9", b"\0name\0"),
            ("DNS ::9", b"\0name\0"),
        ):
            table = ServiceTable()
            builder = HeapBuilder("10.0.0.1", NOW)
            builder.follow(table)
            table.put(Entry("name", parse(f"{text} R=1"), static=True))
            block = self.blocks(builder.image(NOW, GOOD, 1))[1]
            self.assertEqual(block[96 : 96 + len(octets)], octets, text)
            self.assertEqual(block[36:40] == b"\xff\xff\xff\xff", "::" in text)


class LengthTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = ServiceTable()
        self.builder = HeapBuilder("10.0.0.1", NOW)
        self.builder.follow(self.table)

    def fill(self, count: int) -> None:
        self.table.replace_owner(
            "10.0.0.1",
            [entry("x" * 100, server(port=port), static=True) for port in range(1, count + 1)],
        )

    def test_images_are_whole_pages_and_keep_their_length(self) -> None:
        self.fill(1)
        octets = len(self.builder.image(NOW, GOOD, 1))
        self.assertEqual(octets, PAGE_OCTETS)
        self.fill(1000)
        grown = len(self.builder.image(NOW, GOOD, 1, octets))
        self.assertEqual(grown % PAGE_OCTETS, 0)
        for count in (1001, 1050, 900, 300):
            self.fill(count)
            self.assertEqual(len(self.builder.image(NOW, GOOD, 1, grown)), grown)
        self.fill(10)
        self.assertLess(len(self.builder.image(NOW, GOOD, 1, grown)), grown)

    def test_the_bound(self) -> None:
        self.fill(1000)
        self.assertRaises(HeapError, self.builder.image, NOW, GOOD, 1, 0, 100_000)
        self.assertLessEqual(len(self.builder.image(NOW, GOOD, 1, 0, 300_000)), 300_000)

    def test_a_large_table_is_built_from_ready_blocks(self) -> None:
        """What did not change is not packed again."""
        self.fill(2000)
        packed: list[object] = []
        original = self.builder._entry_changed

        def counted(before: Entry | None, after: Entry | None) -> None:
            packed.append(after)
            original(before, after)

        self.patch(self.builder, "_entry_changed", counted)
        self.table.put(entry("x" * 100, server(port=5), static=True, penalty=5.0))
        self.builder.image(NOW, GOOD, 1)
        self.assertEqual(len(packed), 1)


class DamageTests(SynchronousTestCase):
    def setUp(self) -> None:
        table = ServiceTable()
        builder = HeapBuilder("10.0.0.1", NOW, "/etc/x")
        builder.follow(table)
        table.put_host(Host("10.0.0.1", environment=(("a", "b"),)))
        for text in ("HTTP 10.0.0.1:80 /p?q H=v", "NCBID 10.0.0.1:80 a", "DNS ::1"):
            table.put(Entry("name", parse(f"{text} R=1 T=30"), static=True))
        self.whole = builder.image(NOW, GOOD, 1)

    def with_checksum(self, image: bytearray) -> bytes:
        struct.pack_into("=I", image, 24, checksum(image))
        return bytes(image)

    def damaged(self, offset: int, form: str, value: int) -> bytes:
        image = bytearray(self.whole)
        struct.pack_into(form, image, offset, value)
        return self.with_checksum(image)

    def test_a_flipped_bit_anywhere_is_noticed(self) -> None:
        chance = random.Random(1)
        for _ in range(500):
            image = bytearray(self.whole)
            image[chance.randrange(len(image))] ^= 1 << chance.randrange(8)
            self.assertRaises(HeapError, read_image, bytes(image))

    def test_versions_that_clients_refuse(self) -> None:
        for offset, form, value in (
            (0, "=I", 0),
            (8, "=I", 2),
            (4, "=I", 32),
            (16, "=H", 0),
            (18, "=H", 2),
        ):
            self.assertRaises(HeapError, read_stamp, self.damaged(offset, form, value))
        self.assertRaises(HeapError, read_stamp, b"")
        self.assertEqual(read_stamp(self.damaged(18, "=H", 4)).version, (1, 4))

    def test_blocks_out_of_bounds(self) -> None:
        host = 48
        service = host + struct.unpack_from("=I", self.whole, host + 4)[0]
        for offset, form, value in (
            (4, "=I", 0),
            (4, "=I", 17),
            (4, "=I", 2**31),
            (host + 8, "=I", 9),
            (host + 4, "=I", 16),
            (service + 4, "=I", 32),
            (service + 16, "=I", 0),
            (service + 16, "=I", 2**32 - 1),
            (0, "=I", 3),
        ):
            self.assertRaises(HeapError, read_image, self.damaged(offset, form, value))
        self.assertRaises(HeapError, read_image, self.whole[:16])
        for cut in (48, 4096 - 16):
            self.assertRaises(
                HeapError, read_image, self.with_checksum(bytearray(self.whole[:cut]))
            )

    def test_pending_services_are_passed_over(self) -> None:
        service = 48 + struct.unpack_from("=I", self.whole, 48 + 4)[0]
        image = read_image(self.damaged(service + 8, "=I", 4))
        self.assertEqual(len(image), 2)

    def test_random_damage_gives_entries_or_the_error(self) -> None:
        chance = random.Random(2)

        def everything(image: bytes) -> None:
            found = read_image(image)
            list(found.all_entries())
            found.hosts()

        # The same image, but with a short last block: what is damaged then is seldom filler.
        start = 0
        while not self.whole[start] & 2:
            start += struct.unpack_from("=I", self.whole, start + 4)[0]
        short = bytearray(self.whole[: start + 32])
        struct.pack_into("=I", short, start + 4, 32)
        everything(self.with_checksum(short))
        usable = 0
        for _ in range(10_000):
            damaged = bytearray(short)
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.choice((0, 1, 2, 255, 16))
            try:
                everything(self.with_checksum(damaged))
            except HeapError:
                continue
            usable += 1
        self.assertGreater(usable, 1000)
