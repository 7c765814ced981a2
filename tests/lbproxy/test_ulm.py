"""Event lines on the level of pairs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import ulm
from tests.hypothesis_profile import examples

LATIN = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=60)
KEYS = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)


class UlmTests(SynchronousTestCase):
    """gridnet.lbproxy.ulm"""

    def test_reads_pairs(self) -> None:
        """Bare and quoted values, any case of key, blanks around, are read."""
        self.assertEqual(
            ulm.parse(' \tdate=2026 Host="a b"\tX.y-z_1=1 \n'),
            [("DATE", "2026"), ("HOST", "a b"), ("X.Y-Z_1", "1")],
        )

    def test_undoes_escapes(self) -> None:
        """Backslash n is a line feed; a backslash before anything else stands for that."""
        self.assertEqual(
            ulm.parse(r'a="\"q\" \\ \n \t \x"')[0][1],
            '"q" \\ \n t x',
        )

    def test_takes_raw_octets(self) -> None:
        """Line feeds, tabs and octets above 127 inside quotes come through."""
        self.assertEqual(ulm.parse('a="\n\t\xe9\xff\r"'), [("A", "\n\t\xe9\xff\r")])

    def test_refuses_broken_lines(self) -> None:
        """What the original refuses is refused."""
        for broken in (
            "",
            " \n",
            "a = 1",
            "a= 1",
            "a =1",
            "a=",
            "a=b=c",
            'a="b',
            'a="b"c',
            'a="b"c=d',
            "a\\=b",
            "a=b\\c",
            "k\xe9y=1",
            'a="\0"',
            'a="\\\0"',
            "a=\0",
            "word",
            "a=1 word",
            "word a=1",
            "a=1\nb=2",
            'a="b\\"',
        ):
            with self.assertRaises(ulm.UlmError, msg=broken):
                ulm.parse(broken)

    def test_limits_pairs(self) -> None:
        """A hundred pairs are read, one more is refused."""
        pairs = [f"k{number}=1" for number in range(100)]
        self.assertEqual(len(ulm.parse(" ".join(pairs))), 100)
        with self.assertRaises(ulm.UlmError):
            ulm.parse(" ".join([*pairs, "more=1"]))

    def test_long_garbage_is_quick(self) -> None:
        """An unclosed quote of a megabyte costs no more than reading it."""
        for garbage in ('a="' + "x" * 1_000_000, 'a="' + "\\" * 999_999, "k" * 1_000_000):
            with self.assertRaises(ulm.UlmError):
                ulm.parse(garbage)

    @given(st.lists(st.tuples(KEYS, LATIN), min_size=1, max_size=8))
    @examples(100)
    def test_reads_back_what_it_writes(self, pairs: list[tuple[str, str]]) -> None:
        """Any values survive writing and reading."""
        self.assertEqual(
            ulm.parse(ulm.write([], pairs)), [(key.upper(), value) for key, value in pairs]
        )

    @given(st.text(st.characters(max_codepoint=255), max_size=200))
    @examples(250)
    def test_any_text_gives_pairs_or_an_error(self, text: str) -> None:
        """No text does anything else."""
        try:
            self.assertTrue(ulm.parse(text))
        except ulm.UlmError:
            pass

    @given(
        st.lists(st.tuples(KEYS, LATIN, st.booleans()), min_size=2, max_size=8),
        st.integers(0, 400),
        st.text(st.sampled_from('"\\ =\t\n\0\1\xa0xn'), max_size=3),
    )
    @examples(250)
    def test_the_short_way_reads_the_same(
        self, pairs: list[tuple[str, str, bool]], place: int, inserted: str
    ) -> None:
        """A line as the known clients write it, damaged or not, is read as any other line is."""
        words = [
            f"{key}=bare" if is_bare else f"{key}={ulm.quote(text)}" for key, text, is_bare in pairs
        ]
        text = " ".join(["date=2026", 'host="h"', *words])
        text = (text[:place] + inserted + text[place:]).rstrip(" \t\n")
        usual = ulm._parse_usual(text)
        if usual is not None:
            self.assertEqual(usual, ulm._parse_any(text))

    def test_the_short_way_is_taken(self) -> None:
        """Lines of the known clients go the short way, with bare pairs and escapes."""
        self.assertEqual(
            ulm._parse_usual(r'd=1 h="x" p=edg-wms l=S a="\"q\" \\ \n" b="" c=2 d="\\"'),
            [
                ("D", "1"),
                ("H", "x"),
                ("P", "edg-wms"),
                ("L", "S"),
                ("A", '"q" \\ \n'),
                ("B", ""),
                ("C", "2"),
                ("D", "\\"),
            ],
        )

    def test_does_not_write_a_nul(self) -> None:
        """What no line can carry is our caller's mistake."""
        with self.assertRaises(ValueError):
            ulm.quote("a\0b")


class SingleLineTests(SynchronousTestCase):
    """Lines for files whose records are lines."""

    def test_line_feeds_in_values(self) -> None:
        """They become escapes, and the line says the same."""
        for line in (b'A=1 B="b\nc"', b'A=1 B="b\\\nc"', b'A=1 B="b\\\\\nc\\"\n" \n', b'A="\\n"\n'):
            made = ulm.single_line(line)
            self.assertEqual(made.count(b"\n"), 1)
            self.assertTrue(made.endswith(b"\n"))
            self.assertEqual(ulm.parse(made.decode()), ulm.parse(line.decode()))
