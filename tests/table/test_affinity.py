"""Argument affinity (docs/protocols/load-balancing.rst, Argument affinity)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.table.affinity import Affinity, Fit, best_class, fit, match
from gridnet.table.selection import usable_band
from tests.hypothesis_profile import examples
from tests.table.support import entry, rows, server

TOKENS = ("A", "b", "B", "~A", "~B", "*", "~*", "-", "~-", "~", '""', '~""', "!", "A!B", "\t", "")


class FitTests(SynchronousTestCase):
    def test_as_the_released_matcher(self) -> None:
        for row in rows("table/affinity.json"):
            environment = [(name, value) for name, value in row["environment"]]
            found = match(Affinity(row["argument"], row["value"]), environment)
            self.assertEqual(found.fit, Fit[row["fit"].upper()], row)
            self.assertEqual(found.value, row["matched"], row)

    def test_names_compare_without_case(self) -> None:
        self.assertEqual(fit(Affinity("DB", "x"), [("db", "X")]), Fit.BEST)

    def test_the_first_token_that_names_the_value_decides(self) -> None:
        self.assertEqual(fit(Affinity("db", "A"), [("db", "~A A")]), Fit.BAD)
        self.assertEqual(fit(Affinity("db", "A"), [("db", "A ~A")]), Fit.BEST)
        self.assertEqual(fit(Affinity("db", "A"), [("db", "*"), ("db", "~A")]), Fit.BAD)

    @examples(500)
    @given(
        st.lists(st.lists(st.sampled_from(TOKENS), max_size=4).map(" ".join), max_size=3),
        st.sampled_from((None, "", "A", "B", "C", "*", "-", "~A", '""')),
    )
    def test_any_line_gives_a_fit(self, lines: list[str], value: str | None) -> None:
        found = match(Affinity("db", value), [("db", line) for line in lines])
        if not lines:
            self.assertEqual(found.fit, Fit.GOOD if value is None else Fit.FAIR)
        if any("!" in line for line in lines):
            self.assertNotIn(found.fit, (Fit.POOR, Fit.MISMATCH))
        if found.fit is Fit.BAD:
            self.assertIsNone(found.value)


class ClassTests(SynchronousTestCase):
    def test_which_hosts_may_be_used(self) -> None:
        for row in rows("table/affinity-classes.json"):
            entries = {}
            fits = []
            for number, host in enumerate(row["hosts"], 1):
                if host.get("local") and not row["inside"]:
                    continue
                rate = 0.005 if host.get("standby") else 1000.0
                each = entry(info=server(port=number, rate=rate))
                entries[each] = host
                environment = [] if host["aff"] is None else [("db", host["aff"])]
                fits.append((each, fit(Affinity("db", row["value"]), environment)))
            borne = [each for each, found in fits if found is not Fit.BAD]
            usable = [
                entries[each]["name"]
                for each in usable_band(best_class(fits), borne)
                if not entries[each].get("tried")
            ]
            self.assertEqual(usable, row["usable"], row)

    def test_bad_ones_are_never_used(self) -> None:
        self.assertEqual(best_class([("a", Fit.BAD), ("b", Fit.BAD)]), [])
        self.assertEqual(best_class([]), [])
