"""Packed lists beyond the vectors: round trips, and bounds."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LocalProtocolError, RemoteProtocolError
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.filters import Chosen, Operator, What, Where
from gridnet.mirror.gridengine import conditions, cull
from gridnet.mirror.gridengine.cull import Descriptor, Field, Kind, Unpacker
from gridnet.mirror.gridengine.dialect import dialect
from tests.hypothesis_profile import examples

SGE = dialect()

TEXTS = (
    st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=20)
    | st.none()
)
ULONGS = st.integers(0, 0xFFFFFFFF)


def make(octets: bytes) -> Descriptor:
    """Descriptors whose fields are called after their numbers."""
    return cull.read_fields(octets, lambda number: f"F{number}")


def values_of(kind: Kind, depth: int) -> st.SearchStrategy[Any]:
    """Values that a field of *kind* may have."""
    if kind in (Kind.STRING, Kind.HOST):
        return TEXTS
    if kind == Kind.ULONG:
        return ULONGS
    if kind == Kind.ULONG64:
        return st.integers(0, 2**64 - 1)
    if kind == Kind.BOOL:
        return st.booleans()
    if kind == Kind.DOUBLE:
        return st.floats(allow_nan=False)
    if kind == Kind.LIST:
        return st.none() if depth == 0 else st.none() | lists(depth - 1)
    if kind == Kind.OBJECT:
        return st.none() if depth == 0 else st.none() | objects(depth - 1)
    return st.none()


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    numbers = draw(st.lists(ULONGS, max_size=7, unique=True))
    return Descriptor(
        Field(n, draw(st.sampled_from(Kind)) | draw(st.sampled_from([0, 0x300, 0x200000])), f"F{n}")
        for n in numbers
    )


@st.composite
def elements(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Element:
    return Element(descriptor, [draw(values_of(Kind(f.kind), depth)) for f in descriptor.fields])


@st.composite
def objects(draw: st.DrawFn, depth: int) -> Element:
    return draw(elements(draw(descriptors()), depth))


@st.composite
def lists(draw: st.DrawFn, depth: int = 2) -> ElementList:
    descriptor = draw(descriptors())
    rows = draw(st.lists(elements(descriptor, depth), max_size=3))
    return ElementList(rows, descriptor, draw(TEXTS) or "", draw(st.integers(0, 1)))


class PackedListTests(SynchronousTestCase):
    @given(lists())
    @examples(150)
    def test_a_list_survives_packing_and_packs_to_the_same_octets(self, rows: ElementList) -> None:
        octets = cull.pack_list(rows)
        unpacker = Unpacker(octets, make)
        back = unpacker.element_list()
        unpacker.end()
        self.assertEqual(back, rows)
        assert back is not None
        self.assertEqual((back.name, back.changed), (rows.name, rows.changed))
        self.assertEqual(cull.pack_list(back), octets)

    @given(objects(1))
    @examples(50)
    def test_objects_and_free_elements_survive_packing(self, element: Element) -> None:
        unpacker = Unpacker(cull.pack_object(element) + cull.pack_free_element(element), make)
        self.assertEqual(unpacker.object(), element)
        self.assertEqual(unpacker.free_element(), element)
        unpacker.end()

    @given(st.binary(max_size=300))
    @examples(300)
    def test_any_octets_give_a_list_or_a_remote_error(self, octets: bytes) -> None:
        try:
            Unpacker(b"\0\0\0\1" + octets, make).element_list()
        except RemoteProtocolError:
            pass

    @given(lists(), st.data())
    @examples(100)
    def test_a_list_cut_anywhere_is_refused(self, rows: ElementList, data: st.DataObject) -> None:
        octets = cull.pack_list(rows)
        cut = data.draw(st.integers(0, len(octets) - 1))
        with self.assertRaises(RemoteProtocolError):
            Unpacker(octets[:cut], make).element_list()

    def test_text_that_is_not_utf8_survives(self) -> None:
        unpacker = Unpacker(b"caf\xe9\0", make)
        text = unpacker.string()
        self.assertEqual(cull.pack_string(text), b"caf\xe9\0")

    def test_deep_nesting_is_refused_before_it_hurts(self) -> None:
        # Each level: a list of one element with one list field.
        level = struct.pack(">II", 1, 1) + b"\0" + struct.pack(">IIII", 0, 1, 1, Kind.LIST)
        level += struct.pack(">IIB", cull.Status.IN_LIST, 1, 0)
        bomb = level * 100_000
        with self.assertRaisesRegex(RemoteProtocolError, "nested deeper than 24"):
            Unpacker(bomb, make).element_list()

    def test_a_count_beyond_the_octets_is_refused_before_anything_is_reserved(self) -> None:
        octets = struct.pack(">II", 1, 0xFFFFFFFF) + b"\0" + struct.pack(">II", 0, 0)
        with self.assertRaisesRegex(RemoteProtocolError, "4294967295 elements in 0 octets"):
            Unpacker(octets, make).element_list()
        octets = struct.pack(">II", 1, 0) + b"\0" + struct.pack(">II", 0, 0xFFFFFFFF)
        with self.assertRaisesRegex(RemoteProtocolError, "descriptor of 4294967295 fields"):
            Unpacker(octets, make).element_list()

    def test_a_number_that_does_not_fit_is_our_error_and_names_the_field(self) -> None:
        element = SGE.element("AN", {"AN_status": -1})
        with self.assertRaisesRegex(LocalProtocolError, "AN_status"):
            cull.pack_free_element(element)
        with self.assertRaisesRegex(LocalProtocolError, "zero octet"):
            cull.pack_string("a\0b")

    def test_an_empty_list_may_have_no_fields_or_be_absent(self) -> None:
        self.assertIsNone(Unpacker(struct.pack(">I", 0), make).element_list())
        empty = Unpacker(
            struct.pack(">II", 1, 0) + b"\0" + struct.pack(">II", 0, 0), make
        ).element_list()
        self.assertEqual(empty, ElementList())


class DialectTests(SynchronousTestCase):
    def test_another_format_version_is_refused_with_both_versions(self) -> None:
        with self.assertRaisesRegex(RemoteProtocolError, "0x10021000, sge-8.1 is 0x10020000"):
            SGE.open(struct.pack(">II", 0, 0x10021000))

    def test_a_known_attribute_of_another_kind_is_a_sign_of_the_wrong_version(self) -> None:
        number = SGE.kinds["JB"].fields[0].number
        with self.assertRaisesRegex(RemoteProtocolError, "JB_job_number: of another kind"):
            SGE.descriptor(struct.pack(">II", number, Kind.STRING))

    def test_flags_of_type_words_do_not_matter(self) -> None:
        number = SGE.kinds["JB"].fields[0].number
        descriptor = SGE.descriptor(struct.pack(">II", number, Kind.ULONG | 0x200000))
        self.assertEqual(descriptor.names, ("JB_job_number",))
        self.assertEqual(SGE.kind_of(descriptor), "JB")

    def test_an_unknown_attribute_is_kept_under_its_number(self) -> None:
        fresh = type(SGE)("x", SGE.format_version, SGE.gdi_version, {})
        descriptor = fresh.descriptor(struct.pack(">II", 777777, Kind.ULONG))
        self.assertEqual(descriptor.names, ("777777",))
        self.assertEqual(fresh.unknown, {777777})


CONDITIONS = st.recursive(
    st.builds(
        Where,
        st.sampled_from([Operator.EQUAL, Operator.LOWER, Operator.BITMASK]),
        st.just("JB_job_number"),
        ULONGS,
    )
    | st.builds(
        Where,
        st.sampled_from([Operator.EQUAL, Operator.PATTERN, Operator.SAME_TEXT]),
        st.just("JB_owner"),
        st.text("abc*", min_size=1, max_size=5),
    ),
    lambda inner: (
        st.builds(lambda a, b: Where(Operator.AND, parts=(a, b)), inner, inner)
        | st.builds(lambda a, b: Where(Operator.OR, parts=(a, b)), inner, inner)
        | st.builds(lambda a: Where(Operator.NOT, parts=(a,)), inner)
    ),
    max_leaves=8,
)


class ConditionTests(SynchronousTestCase):
    @given(CONDITIONS)
    @examples(100)
    def test_a_condition_survives_packing(self, where: Where) -> None:
        what, packed = conditions.pack_filter(None, where, SGE, "JB")
        self.assertEqual(conditions.unpack_where(packed, SGE), where)
        self.assertIsNone(conditions.unpack_what(what, SGE))

    @given(st.binary(max_size=200))
    @examples(200)
    def test_any_octets_give_a_filter_or_a_remote_error(self, octets: bytes) -> None:
        for read in (conditions.read_where, conditions.read_what):
            try:
                read(SGE.open(SGE.header + b"\0\0\0\1" + octets), SGE)
            except RemoteProtocolError:
                pass

    def test_a_filter_reaches_into_lists(self) -> None:
        what = What((Chosen("JB_job_number"), Chosen("JB_ja_tasks", What.of("JAT_status"))))
        inner = Where(Operator.EQUAL, "JAT_status", 128)
        where = Where(Operator.SUBSCOPE, "JB_ja_tasks", parts=(inner,))
        packed = conditions.pack_filter(what, where, SGE, "JB")
        self.assertEqual(conditions.unpack_what(packed[0], SGE), what)
        self.assertEqual(conditions.unpack_where(packed[1], SGE), where)
        tasks = SGE.list_of("JAT", [SGE.element("JAT", {"JAT_status": 128})])
        job = SGE.element("JB", {"JB_job_number": 7, "JB_ja_tasks": tasks})
        self.assertTrue(where.fits(job))
        reduced = what.reduce(job)
        assert reduced is not None
        self.assertEqual(
            reduced.as_json(), {"JB_job_number": 7, "JB_ja_tasks": [{"JAT_status": 128}]}
        )
        # The reduced element packs, and says in its type words that it is reduced.
        back = Unpacker(cull.pack_free_element(reduced), SGE.descriptor).free_element()
        self.assertEqual(back, reduced)
        assert isinstance(back.layout, Descriptor)
        self.assertTrue(all(f.type_word & cull.REDUCED for f in back.layout.fields))

    def test_a_condition_nested_too_deeply_is_refused(self) -> None:
        octets = struct.pack(">II", 1, Operator.NOT) * 5000
        with self.assertRaisesRegex(RemoteProtocolError, "nested deeper"):
            conditions.read_where(SGE.open(SGE.header + octets), SGE)

    def test_an_attribute_that_the_type_lacks_is_our_error(self) -> None:
        with self.assertRaisesRegex(LocalProtocolError, "JB has no attribute QU_qname"):
            conditions.pack_what(What.of("QU_qname"), SGE, "JB")
