"""The table of event types, and the names of sources and levels."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import event_types
from gridnet.lbproxy.event_types import EVENT_TYPES, LEVELS, SOURCES
from tests.lbproxy.vectors import load


class EventTypeTests(SynchronousTestCase):
    """The table of event types."""

    def test_agrees_with_the_published_table(self) -> None:
        """Numbers, names, fields, kinds, words and nulls are those of the vectors."""
        rows = load("event-types")["types"]
        self.assertEqual([row["name"] for row in rows], list(EVENT_TYPES))
        for row in rows:
            kind = EVENT_TYPES[row["name"]]
            self.assertEqual(kind.number, row["number"])
            self.assertEqual([f["name"] for f in row["fields"]], [f.name for f in kind.fields])
            for wanted, found in zip(row["fields"], kind.fields, strict=True):
                place = f"{kind.name}.{found.name}"
                # A list is a text here: nobody looks into it.
                self.assertEqual(wanted["kind"].replace("list", "text"), found.kind.value, place)
                self.assertEqual(wanted["optional"], not found.required, place)
                first = 0 if wanted.get("null") == -1 else 1
                words = {w: n for n, w in enumerate(wanted.get("words", ()), first)}
                self.assertEqual(words, found.words, place)
                if "null" in wanted:
                    self.assertEqual(wanted["null"], found.null, place)

    def test_names_elements(self) -> None:
        """Elements are the fields in small letters, but for two."""
        self.assertIn("LRMS_jobid", [f.element for f in EVENT_TYPES["CREAMStatus"].fields])
        self.assertIn("notifId", [f.element for f in EVENT_TYPES["Notification"].fields])
        self.assertEqual(
            [f.element for f in EVENT_TYPES["CREAMCall"].replied][:2], ["command", "callee"]
        )


class NameTests(SynchronousTestCase):
    """Sources, levels and types by name and by number."""

    def test_names_are_found_in_any_case(self) -> None:
        """Sources and levels count from 1; types are found by name; what is unknown is nothing."""
        for number, name in enumerate(SOURCES, 1):
            self.assertEqual(event_types.source_number(name.lower()), number)
            self.assertEqual(event_types.source_name(number), name)
        for number, name in enumerate(LEVELS, 1):
            self.assertEqual(event_types.level_number(name.lower()), number)
            self.assertEqual(event_types.level_name(number), name)
        for name, kind in EVENT_TYPES.items():
            self.assertIs(event_types.event_type(name.lower()), kind)
        for find in (event_types.source_number, event_types.level_number):
            self.assertEqual((find(""), find("nobody")), (0, 0))
        self.assertEqual([event_types.level_name(number) for number in (-1, 0, 11)], ["", "", ""])
        self.assertIsNone(event_types.event_type("nothing"))
