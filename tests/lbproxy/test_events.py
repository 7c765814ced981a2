"""Event lines on the level of their meaning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import events
from gridnet.lbproxy.event_types import EVENT_TYPES, Kind
from gridnet.lbproxy.events import EventError
from gridnet.lbproxy.frames import FrameReader, event_line
from tests.hypothesis_profile import examples
from tests.lbproxy.vectors import capture, event, line


def recorded_line(name: str) -> bytes:
    (body,) = FrameReader(1 << 20).receive(capture(f"{name}.store-request"))
    return event_line(body)


class ParseTests(SynchronousTestCase):
    """gridnet.lbproxy.events.parse"""

    def refused(self, text: bytes) -> tuple[int, str]:
        return (error := self.assertRaises(EventError, events.parse, text)).number, str(error)

    def test_reads_the_recorded_lines(self) -> None:
        """The lines of the original client are read, and written again to the octet."""
        for name in (
            "01-register-both",
            "02-usertag-escaping",
            "03-transfer-ok",
            "09-unregistered",
        ):
            text = recorded_line(name)
            self.assertEqual(events.write(events.parse(text)), text)

    def test_undoes_the_recorded_escapes(self) -> None:
        """The tag of the recording comes out as it went in."""
        found = events.parse(recorded_line("02-usertag-escaping"))
        self.assertEqual(found.get("value"), 'back\\slash "q" <&\'> line\nfeed tab\tend 100%')
        self.assertEqual(found.timestamp % 1_000_000, 99443)
        self.assertEqual(found.user, "/O=Grid/O=Example/CN=Jan Novak")

    def test_every_type_survives(self) -> None:
        """An event of each type with all fields set is read, written and read alike."""
        samples = {
            Kind.TEXT: 'a "b" \\ \n é',
            Kind.INT: "12",
            Kind.REAL: "3.250000",
            Kind.PORT: "9000",
            Kind.TIME: "20260102030405.000006",
            Kind.SOURCE: "LogMonitor",
            Kind.JOB_ID: "https://lb.example.org:9000/x",
        }
        for kind in EVENT_TYPES.values():
            if kind.name == "Notification":
                continue
            fields = {
                one.name: next(iter(one.words)) if one.words else samples[one.kind]
                for one in kind.fields
            }
            first = event(kind.name, fields)
            again = events.parse(events.write(first))
            self.assertEqual(first.fields, again.fields, kind.name)
            self.assertEqual(set(first.fields), {one.element for one in kind.fields})

    def test_case_does_not_matter(self) -> None:
        """Keys, event names, sources and words are read in any case."""
        text = line("done", {"STATUS_CODE": "ok", "EXIT_CODE": "0"}, source="logMONITOR")
        found = events.parse(text.replace(b"DG.DONE.", b"dg.Done."))
        self.assertEqual(
            (found.type.name, found.word("status_code"), found.source), ("Done", "OK", 6)
        )

    def test_first_failure_decides(self) -> None:
        """Syntax, type, doubled and foreign keys, missing keys, in this order."""
        good = line("UserTag", {"NAME": "n", "VALUE": "v"})
        self.assertEqual(self.refused(b"DG.EVNT=x ="), (1401, "ULM parse error"))
        self.assertEqual(self.refused(b"A=1"), (1402, "Unknown or missing event type"))
        self.assertEqual(self.refused(b"DG.EVNT=x DATE=1 DATE=2")[0], 1402)
        self.assertEqual(
            self.refused(b"DG.EVNT=Done DATE=1 DATE=2"), (1404, "Key DATE already exists.")
        )
        self.assertEqual(
            self.refused(good.replace(b" \n", b' DG.USERTAG.NAME="m" \n')),
            (1404, "Key DG.USERTAG.NAME already exists."),
        )
        self.assertEqual(self.refused(b"DG.EVNT=UserTag DG.RUNNING.NODE=n")[0], 1405)
        self.assertEqual(self.refused(b"DG.EVNT=UserTag DG.RUNNING.NODE=n DATE=1 DATE=2")[0], 1405)
        self.assertEqual(self.refused(b"DG.EVNT=UserTag DATE=1 DATE=2 DG.RUNNING.NODE=n")[0], 1404)
        self.assertEqual(
            self.refused(b"DG.EVNT=UserTag"),
            (1403, "Message incomplete, missing or empty field DATE."),
        )

    def test_mandatory_common_keys(self) -> None:
        """Each common key that must be there is named when it is missing or makes no sense."""
        good = line("Purge").decode()
        for key, broken in {
            "DATE": good.replace("DATE=20261122012209.050992", "DATE=never"),
            "HOST": good.replace('HOST="here.example.org"', 'HOST=""'),
            "DG.PRIORITY": good.replace("DG.PRIORITY=8", "DG.PRIORITY=-1"),
            "DG.SOURCE": good.replace("UserInterface", "Nobody"),
            "DG.JOBID": good.replace("https://", "gopher://"),
            "DG.SEQCODE": good.replace("DG.SEQCODE=", "DG.SEQ="),
            "DG.USER": good.replace("DG.USER=", "DG.USED="),
        }.items():
            self.assertEqual(
                self.refused(broken.encode()),
                (1403, f"Message incomplete, missing or empty field {key}."),
            )

    def test_mandatory_nulls_count_as_missing(self) -> None:
        """Nulls, bad words and ids that nobody can give leave a mandatory field missing."""
        for kind, fields, key in (
            ("Done", {"STATUS_CODE": "OK", "EXIT_CODE": "-1"}, "DG.DONE.EXIT_CODE"),
            ("Done", {"STATUS_CODE": "well", "EXIT_CODE": "0"}, "DG.DONE.STATUS_CODE"),
            (
                "ResourceUsage",
                {"RESOURCE": "r", "QUANTITY": "0", "UNIT": "u"},
                "DG.RESOURCEUSAGE.QUANTITY",
            ),
            (
                "Listener",
                {"SVC_NAME": "n", "SVC_HOST": "h", "SVC_PORT": "70000"},
                "DG.LISTENER.SVC_PORT",
            ),
            (
                "Notification",
                {
                    "NOTIFID": "https://h:9000/NOTIF:x",
                    "OWNER": "o",
                    "DEST_HOST": "h",
                    "DEST_PORT": "1",
                    "EXPIRES": "5",
                    "JOBSTAT": "s",
                    "DEST_URL": "u",
                },
                "DG.NOTIFICATION.NOTIFID",
            ),
        ):
            self.assertEqual(self.refused(line(kind, fields))[1].split()[-1], f"{key}.")

    def test_zero_is_not_null_where_null_is_minus_one(self) -> None:
        """An exit code 0 and the first word of an access list are given."""
        found = event("Done", {"STATUS_CODE": "OK", "EXIT_CODE": "0"})
        self.assertEqual(found.fields["exit_code"], 0)
        found = event(
            "ChangeACL",
            {
                "USER_ID": "u",
                "USER_ID_TYPE": "DN",
                "PERMISSION": "READ",
                "PERMISSION_TYPE": "ALLOW",
                "OPERATION": "ADD",
            },
        )
        self.assertEqual(found.fields["user_id_type"], 0)
        self.assertEqual(found.fields["permission"], 1)

    def test_lenient_where_the_original_is(self) -> None:
        """Unknown levels and keys, free text in integers and odd codes are taken."""
        text = line(
            "Done", {"STATUS_CODE": "OK", "EXIT_CODE": "12x"}, level="LOUD", seqcode="what"
        ).replace(b" \n", b' X.UNKNOWN="1" X.UNKNOWN="2" DG.ARRIVED=1 \n')
        found = events.parse(text)
        self.assertEqual((found.level, found.seqcode, found.fields["exit_code"]), (0, "what", 12))
        self.assertEqual(
            event("Done", {"STATUS_CODE": "OK", "EXIT_CODE": "abc"}).fields["exit_code"], 0
        )

    def test_an_empty_user_is_there(self) -> None:
        """An empty name passes here; it is refused as nobody's."""
        self.assertEqual(event("Purge", user="").user, "")

    def test_optional_bad_word_is_none(self) -> None:
        """Where a field may be missing, what it cannot be counts as missing."""
        found = event(
            "RegJob", {"NS": "n", "JOBTYPE": "SIMPLE", "PARENT": "nonsense", "NSUBJOBS": "0"}
        )
        self.assertEqual(set(found.fields), {"ns", "jobtype"})

    @given(st.binary(max_size=300))
    @examples(300)
    def test_any_octets_give_an_event_or_an_error(self, octets: bytes) -> None:
        """No octets do anything else."""
        try:
            events.parse(octets)
        except EventError as error:
            self.assertIn(error.number, range(1401, 1406))

    @given(st.integers(0, 600), st.binary(min_size=1, max_size=4))
    @examples(300)
    def test_damaged_lines_give_an_event_or_an_error(self, place: int, octets: bytes) -> None:
        """A line with a hole of other octets does nothing else either."""
        text = bytearray(recorded_line("03-transfer-ok"))
        text[place : place + len(octets)] = octets
        try:
            events.parse(bytes(text))
        except EventError as error:
            self.assertIn(error.number, range(1401, 1406))
