"""Sequence codes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import seqcode
from tests.hypothesis_profile import examples
from tests.lbproxy.vectors import code, load, number

COUNTS = st.tuples(*[st.integers(0, 99_999)] * 9)
PBS = "CLIENT=%06d:SERVER=%010d:SCHED=%06d:SMOM=%06d:MOM=%06d"


def grid(counts: tuple[int, ...]) -> str:
    full = seqcode.ZERO
    for source, count in enumerate(counts, 1):
        full = seqcode.with_component(full, source, count)
    return full


class SequenceCodeTests(SynchronousTestCase):
    """gridnet.lbproxy.seqcode"""

    def setUp(self) -> None:
        self.vectors = load("sequence-codes")

    def test_forms(self) -> None:
        """Canonical codes have 102 characters; any width reads, a missing LBS is 0."""
        (canonical,) = self.vectors["canonical"]
        self.assertEqual(len(canonical), 102)
        self.assertEqual(seqcode.increment(seqcode.ZERO, seqcode.USER_INTERFACE), canonical)
        for text, counts in self.vectors["readable"]:
            self.assertEqual(seqcode.components(text), tuple(counts), text)
        for text in self.vectors["unreadable"]:
            self.assertIsNone(seqcode.components(text), text)
            self.assertEqual(seqcode.component(text, 1), -1)

    def test_order(self) -> None:
        """The first part that differs decides; what cannot be read has its fixed place."""
        for first, second, wanted in self.vectors["order"]:
            self.assertEqual(seqcode.compare(code(first), code(second)), wanted, (first, second))

    def test_order_of_other_dialects(self) -> None:
        """PBS codes compare part by part, Condor codes by time and place in the log."""
        for first, second, wanted in self.vectors["pbs_order"]:
            left, right = PBS % tuple(first), PBS % tuple(second)
            self.assertEqual(seqcode.compare(left, right), wanted)
            self.assertEqual(seqcode.compare_pbs(left, right), wanted)
        for first, second, wanted in self.vectors["condor_order"]:
            self.assertEqual(seqcode.compare(first, second), wanted)
            self.assertEqual(seqcode.compare_condor(first, second), wanted)
        self.assertEqual(seqcode.compare_condor("x", first), -1)
        self.assertEqual(seqcode.compare_condor(first, "x"), 1)
        self.assertEqual(seqcode.compare_pbs("x", PBS % (0, 0, 0, 0, 0)), -1)
        self.assertEqual(seqcode.daemon(first), "C")

    def test_codes_that_cannot_be_read_are_equal(self) -> None:
        """They stand before all others, in the order they came, whatever they say."""
        condor = "TIMESTAMP=20261122100000:POS=0000000001:EV.CODE=000:SRC=C"
        codes = ["z", code("UI2"), "a", PBS % (0, 2, 0, 0, 0), "z", code("UI1"), condor]
        codes.append(PBS % (0, 1, 0, 0, 0))
        wanted = ["z", "a", "z", condor, codes[-1], codes[3], code("UI1"), code("UI2")]
        self.assertEqual(sorted(codes, key=seqcode.sort_key), wanted)

    def test_zero(self) -> None:
        """Of each source: a code in which it has a count."""
        for source in range(1, 10):
            self.assertEqual(seqcode.zero(source), seqcode.ZERO)
        for source in range(12, 17):
            first = seqcode.increment(seqcode.zero(source), source)
            self.assertEqual(seqcode.compare(first, PBS % (0, 0, 0, 0, 0)), 1)

    def test_increments(self) -> None:
        """The part of the given source goes up by one; other sources change nothing."""
        for first, source, wanted in self.vectors["increments"]:
            self.assertEqual(seqcode.increment(code(first), number(source)), code(wanted))
        self.assertEqual(
            seqcode.increment(PBS % (0, 1, 2, 3, 4), number("PBSMomSuperior")),
            PBS % (0, 1, 2, 4, 4),
        )
        self.assertEqual(seqcode.increment("what", 1), "what")
        self.assertEqual(seqcode.with_component("what", 1, 1), "what")

    @given(COUNTS, COUNTS)
    @examples(200)
    def test_order_is_that_of_the_counts(self, one: tuple[int, ...], two: tuple[int, ...]) -> None:
        """Codes order like their counts, and are read back."""
        left, right = grid(one), grid(two)
        self.assertEqual(seqcode.components(left), one)
        self.assertEqual(seqcode.compare(left, right), (one > two) - (one < two))
        self.assertEqual(sorted([left, right], key=seqcode.sort_key)[0], grid(min(one, two)))

    @given(st.text(max_size=60), st.text(max_size=60))
    @examples(200)
    def test_any_texts_compare(self, one: str, two: str) -> None:
        """No text makes comparing fail."""
        self.assertIn(seqcode.compare(one, two), (-1, 0, 1))
        seqcode.increment(one, 1)
