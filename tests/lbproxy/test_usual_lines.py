"""Lines of the known clients, read quickly."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import events, usual_lines
from gridnet.lbproxy.event_types import EVENT_TYPES, Kind
from gridnet.lbproxy.events import Event, EventError
from tests.hypothesis_profile import examples
from tests.lbproxy.test_events import recorded_line
from tests.lbproxy.vectors import line

TEXTS = st.text(st.characters(max_codepoint=255, exclude_characters="\0"), max_size=12)
#: What is put somewhere into a line.
DAMAGE = (
    *(b"", b"", b'"', b"\\", b" ", b"=", b"\t", b"\n", b"\0", b"\1", b"x", b"\xe4"),
    *(b" A=1", b' A="1"', b" LVL=DEBUG", b' DG.USER="x"', b" DG.DONE.REASON=x", b'\\"'),
    *(b' DG.JOBID="', b' HOST="h"', b' DG.SEQCODE="x"', b' LVL="DEBUG"', b" \n", b"\\n"),
)
_KINDS: dict[Kind, st.SearchStrategy[str]] = {
    Kind.INT: st.sampled_from(("1", "-1", "0", "07x")),
    Kind.TIME: st.sampled_from(("20261122012209.05", "x")),
    Kind.SOURCE: st.sampled_from(("LRMS", "lrms", "nobody")),
    Kind.JOB_ID: st.sampled_from(("https://h/u", "no id")),
    Kind.TEXT: TEXTS,
}


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """An event of any type, most of its fields given, most of them readable."""
    kind = EVENT_TYPES[draw(st.sampled_from(sorted(EVENT_TYPES)))]
    fields = {}
    for one in kind.fields:
        if draw(st.integers(0, 9)):
            words = st.sampled_from((*one.words, "", "no word")) if one.words else TEXTS
            fields[one.name] = draw(_KINDS.get(one.kind, words))
    return line(
        kind.name,
        fields,
        source=draw(st.sampled_from(("UserInterface", "lrms", "Application", "nobody"))),
        user=draw(TEXTS),
        host=draw(st.sampled_from(("h", "", 'h"\\'))),
        instance=draw(TEXTS),
        level=draw(st.sampled_from(("SYSTEM", "debug", "none"))),
        priority=draw(st.sampled_from((8, -1, 3))),
        job_id=draw(st.sampled_from(("https://lb:9000/abc", "https://lb/abc?x", "none"))),
        date=draw(st.sampled_from(("20261122012209.050992", "2026", "x", "20261122012209 A=1"))),
    )


def read(parse: Any, text: bytes) -> tuple[object, ...]:
    """All of what *parse* makes of a line, or its refusal."""
    try:
        found = parse(text)
    except EventError as error:
        return error.number, str(error)
    return tuple(getattr(found, one.name) for one in attrs.fields(Event))


class UsualLineTests(SynchronousTestCase):
    """gridnet.lbproxy.usual_lines"""

    @given(
        lines(),
        st.integers(0, 600),
        st.integers(0, 3),
        st.sampled_from(DAMAGE),
    )
    @examples(400)
    def test_reads_the_same(self, text: bytes, place: int, removed: int, inserted: bytes) -> None:
        """Whatever a line is, whole or damaged, the verdict and the event are the same."""
        text = text[:place] + inserted + text[place + removed :]
        self.assertEqual(read(usual_lines.parse, text), read(events.parse, text))

    def test_reads_the_same_wherever_damaged(self) -> None:
        """Each kind of damage, at each place of a line with few fields."""
        whole = line("Pending", {"REASON": 'no "resources"'}, user="u")
        for inserted in sorted(set(DAMAGE)):
            for place in range(len(whole) + 1):
                for removed in (0, 1):
                    text = whole[:place] + inserted + whole[place + removed :]
                    self.assertEqual(read(usual_lines.parse, text), read(events.parse, text), text)

    def test_is_taken(self) -> None:
        """Recorded lines, with and without escapes, are read here and not left to the other."""
        for name in ("01-register-both", "02-usertag-escaping", "03-transfer-ok"):
            found = usual_lines._parse(recorded_line(name))
            self.assertIsNotNone(found, name)
            self.assertEqual(
                read(lambda _, found=found: found, b""), read(events.parse, recorded_line(name))
            )

    def test_every_type_is_taken(self) -> None:
        """With all its fields."""
        for kind in EVENT_TYPES.values():
            fields = {one.name: next(iter(one.words), "1") for one in kind.fields}
            for one in kind.fields:
                if one.kind is Kind.SOURCE:
                    fields[one.name] = "LRMS"
                elif one.kind is Kind.TIME:
                    fields[one.name] = "20261122012209.05"
                elif one.kind is Kind.JOB_ID:
                    fields[one.name] = "https://lb:9000/abc"
            taken = usual_lines._parse(line(kind.name, fields)) is not None
            # No line can carry the identifier of a notification.
            self.assertEqual(taken, kind.name != "Notification", kind.name)
