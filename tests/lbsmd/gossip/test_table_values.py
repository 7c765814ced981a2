"""Values that travel: they come back as they were, and any octets give one or an error."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import RemoteProtocolError
from gridnet.lbsmd.gossip.table_values import (
    decode_environment,
    decode_host,
    decode_load,
    decode_service,
    encode_environment,
    encode_host,
    encode_load,
    encode_service,
)
from gridnet.table.model import Entry, Host, HostFacts
from gridnet.table.server_info import parse
from tests.hypothesis_profile import examples

figures = st.floats(-1e6, 1e6, allow_nan=False)
lines = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=300)), max_size=20).map(tuple)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
HOST = Host(
    "10.0.0.1",
    12.5,
    3.25,
    zone=0x300,
    facts=HostFacts(load=1.5, tasks=3, ports=((80, 0.5),), kernel=(6, 1, 0), joined_at=1.7e9),
)
ENTRY = Entry(
    "A-b",
    parse("HTTP 10.0.0.1:80 /x?y C=text/html B=-2.5 L=no X=yes T=7 R=1"),
    owner="10.0.0.1",
    static=True,
    reserved=True,
    penalty=12.345678901,
    zone=3,
)


def mutated(value: list[Any], at: int, other: Any) -> bytes:
    """*value* with *other* in one place."""
    return json.dumps([*value[:at], other, *value[at + 1 :]]).encode()


class ServiceValueTests(SynchronousTestCase):
    @given(figures.filter(lambda rate: abs(rate) <= 100000), st.floats(0, 100), st.booleans())
    @examples(70)
    def test_round_trip(self, rate: float, penalty: float, plain: bool) -> None:
        entry = evolve(ENTRY, info=evolve(ENTRY.info, rate=rate), penalty=penalty)
        if plain:
            entry = evolve(entry, static=False, reserved=False)
        self.assertEqual(decode_service(encode_service(entry), "10.0.0.1"), entry)

    @given(st.binary(max_size=200))
    @examples(70)
    def test_any_octets(self, octets: bytes) -> None:
        self.assertRaises(RemoteProtocolError, decode_service, octets, "h")

    def test_programs_do_not_travel(self) -> None:
        octets = encode_service(evolve(ENTRY, launcher="/bin/secret"))
        self.assertNotIn(b"secret", octets)
        told = [*json.loads(octets), "/bin/evil", "more"]
        self.assertEqual(decode_service(json.dumps(told).encode(), "10.0.0.1"), ENTRY)

    @given(st.integers(0, 6), anything)
    @examples(100)
    def test_any_part(self, at: int, other: Any) -> None:
        value = json.loads(encode_service(ENTRY))
        try:
            decode_service(mutated(value, at, other), "10.0.0.1")
        except RemoteProtocolError:
            pass

    def test_foreign_parts_are_refused(self) -> None:
        value = json.loads(encode_service(ENTRY))
        for at, other in (
            (0, ""),
            (0, "x" * 257),
            (1, "x"),
            (2, -1),
            (2, 1.0),
            (2, True),
            (3, 101),
            (3, -1),
            (3, True),
            (4, 1e6),
            (5, "STANDALONE :0"),
        ):
            octets = mutated(value, at, other)
            self.assertRaises(RemoteProtocolError, decode_service, octets, "10.0.0.1")
        for text in (b'["a","",0,NaN,1,"STANDALONE :1"]', b'["a","",0,0,Infinity,"STANDALONE :1"]'):
            self.assertRaises(RemoteProtocolError, decode_service, text, "10.0.0.1")


class HostValueTests(SynchronousTestCase):
    def test_round_trip_in_two_values(self) -> None:
        lasting = decode_host(encode_host(HOST), HOST.address)
        self.assertNotEqual(lasting, HOST)
        self.assertEqual(decode_load(encode_load(HOST), lasting), HOST)

    def test_foreign_figures_are_refused(self) -> None:
        for text in (b'{"zone":-1}', b'{"zone":4294967296}', b'{"status":-1}', b'{"facts":3}'):
            self.assertRaises(RemoteProtocolError, decode_host, text, "10.0.0.1")
        for text in (b"[-1,1]", b"[1,1e10]", b"[1]", b"[1,1e999]", b"[1,1,true]", b'["1",1]'):
            self.assertRaises(RemoteProtocolError, decode_load, text, HOST)

    def test_what_a_later_version_adds_is_left_out(self) -> None:
        members = json.loads(encode_host(HOST))
        members["colour"] = "red"
        members["facts"]["weight"] = 3
        octets = json.dumps(members).encode()
        self.assertEqual(
            decode_host(octets, HOST.address), decode_host(encode_host(HOST), "10.0.0.1")
        )
        load = [*json.loads(encode_load(HOST)), "more"]
        told = decode_load(json.dumps(load).encode(), HOST)
        self.assertEqual(told, HOST)

    def test_what_an_earlier_version_does_not_say_stays(self) -> None:
        self.assertEqual(decode_load(b"[12.5,3.25]", HOST), HOST)

    @given(st.binary(max_size=100) | anything.map(lambda value: json.dumps(value).encode()))
    @examples(100)
    def test_any_octets(self, octets: bytes) -> None:
        for decode in (
            lambda: decode_host(octets, "10.0.0.1"),
            lambda: decode_load(octets, HOST),
            lambda: decode_environment([octets]),
        ):
            try:
                decode()
            except RemoteProtocolError:
                pass

    @given(anything, st.sampled_from(["zone", "facts", "status"]))
    @examples(70)
    def test_any_member(self, value: Any, name: str) -> None:
        octets = json.dumps({name: value}).encode()
        try:
            host = decode_host(octets, "10.0.0.1")
        except RemoteProtocolError:
            return
        self.assertEqual(host.address, "10.0.0.1")


class EnvironmentValueTests(SynchronousTestCase):
    @given(lines)
    @examples(70)
    def test_round_trip_in_values_that_fit(self, told: tuple[tuple[str, str], ...]) -> None:
        values = encode_environment(told, 3000)
        self.assertTrue(all(len(value) <= 3000 for value in values))
        self.assertEqual(decode_environment(values), told)

    def test_a_line_that_fits_nowhere_is_left_out(self) -> None:
        told = (("a", "1"), ("long", "x" * 900), ("b", "2"))
        self.assertEqual(
            decode_environment(encode_environment(told, 800)), (("a", "1"), ("b", "2"))
        )
