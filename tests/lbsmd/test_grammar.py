"""The configuration language, line by line, held to its vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.servrc.check_list import (
    Check,
    Contact,
    Dependency,
    Group,
    Interval,
    ScheduleElement,
    Script,
    User,
)
from gridnet.lbsmd.servrc.fault import LineFault
from gridnet.lbsmd.servrc.grammar import (
    Authority,
    Environment,
    Include,
    MonitoredPort,
    NameHold,
    Service,
    Value,
    Zone,
    parse_line,
)
from gridnet.lbsmd.servrc.lines import logical_lines
from gridnet.lbsmd.servrc.zone import zone_bits
from gridnet.table.server_info import KEYWORDS
from gridnet.table.visibility import in_zone
from tests.hypothesis_profile import examples

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "lbsmd" / "vectors.json").read_text()
)
#: The mail domain that the vectors are written for.
DOMAIN = "ncbi.nlm.nih.gov"


def check_fields(check: Check) -> dict[str, Any]:
    """A check as the vectors write it."""
    if isinstance(check, Interval):
        return {
            "kind": "interval",
            "own_point": check.own_point,
            "period": check.period_seconds,
            "backoff": check.backoff_seconds,
        }
    if isinstance(check, ScheduleElement):
        return {
            "kind": "schedule",
            "negated": check.negated,
            "days": list(check.days) or None,
            "hours": None if check.hours is None else list(check.hours),
        }
    if isinstance(check, Contact):
        return {"kind": "email", "address": check.address}
    if isinstance(check, Script):
        return {"kind": "script", "path": check.path}
    if isinstance(check, Dependency):
        return {
            "kind": "dependency",
            "negated": check.negated,
            "host": check.host,
            "port": check.port,
            "service": check.service,
        }
    return {"kind": "group" if isinstance(check, Group) else "user", "name": check.name}


def bracketed(host: str) -> str | None:
    """A host as the vectors write it."""
    return (f"[{host}]" if ":" in host else host) or None


def fields(value: Value) -> dict[str, Any]:
    """A value as the vectors write it."""
    if isinstance(value, Include):
        return {"kind": "include", "file": value.file, "prefix": value.prefix}
    if isinstance(value, Zone):
        return {"kind": "zone", "zone": value.text}
    if isinstance(value, MonitoredPort):
        return {"kind": "port", "port": value.port}
    if isinstance(value, Environment):
        return {"kind": "env", "name": value.name, "value": value.value}
    if isinstance(value, Authority):
        return {"kind": "authority", "group": value.group, "name": value.name}
    if isinstance(value, NameHold):
        server: dict[str, Any] = {
            "type": "NAMEHOLD",
            "host": bracketed(value.host),
            "port": value.port,
            "holds": KEYWORDS[value.held_type],
        }
        return {
            "kind": "service",
            "name": value.name,
            "checks": [],
            "server": server,
            "launcher": None,
        }
    server = {
        "type": KEYWORDS[value.type],
        "host": bracketed(value.host),
        "port": value.port,
        "args": value.arguments,
        "rate": value.rate,
        "local": value.local,
        "private": value.private,
        "stateful": value.stateful,
        "secure": value.secure,
        "mime": value.content_type or None,
        "bonus": value.bonus,
        "time": value.time_seconds,
        "algo": value.algorithm.name.title(),
        "interzone": value.interzone,
        "static": value.static,
    }
    return {
        "kind": "service",
        "name": value.name,
        "checks": [check_fields(check) for check in value.checks],
        "server": server,
        "launcher": value.launcher or None,
    }


class LineTests(SynchronousTestCase):
    """Single lines."""

    def test_every_line_of_the_vectors(self) -> None:
        """What is read, field by field; or that it is a fault."""
        wrong = []
        for row in VECTORS["lines"]:
            lines = list(logical_lines(row["line"]))
            try:
                got: Any = fields(parse_line(lines[0].text, DOMAIN)) if lines else {"kind": "empty"}
            except LineFault:
                got = "fault"
            wanted = row["parsed"] if row["ok"] else "fault"
            if got != wanted:
                wrong.append((row["id"], row["line"], got, wanted))
        self.assertEqual(wrong, [])

    def test_every_accepted_service_printed_and_read_again_is_the_same(self) -> None:
        """The printed form says all there is to say."""
        for row in VECTORS["lines"]:
            if row["ok"] and row["parsed"]["kind"] == "service":
                value = parse_line(row["line"], DOMAIN)
                if isinstance(value, Service):
                    self.assertEqual(parse_line(str(value), DOMAIN), value, row["id"])

    def test_faults_say_where_what_and_what_was_expected(self) -> None:
        """The offset points at the word."""
        line = "x [15, Xx-Fr@9] STANDALONE :1"
        fault = self.assertRaises(LineFault, parse_line, line, DOMAIN)
        self.assertEqual(line[fault.offset :].split("]")[0], "Xx-Fr@9")
        self.assertIn("expected", fault.text)
        line = "x STANDALONE :1 R=abc"
        fault = self.assertRaises(LineFault, parse_line, line, DOMAIN)
        self.assertEqual(line[fault.offset :], "R=abc")

    def test_newer_flags_of_the_wire_are_accepted(self) -> None:
        """``A``, ``X`` and ``H``, as extensions."""
        value = parse_line("x HTTP /a A=B X=yes H=web.example.org", DOMAIN)
        assert isinstance(value, Service)
        self.assertEqual((value.algorithm.name, value.interzone), ("BLAST", True))
        self.assertEqual(value.vhost, "web.example.org")
        self.assertRaises(LineFault, parse_line, "x STANDALONE :1 H=a.b", DOMAIN)
        self.assertRaises(LineFault, parse_line, "x STANDALONE :1 Blast A=B", DOMAIN)

    @examples(10_000)
    @given(st.text(alphabet="xHTPNCBIDS[]!~*+@%:=|#,/?&. \t0159-RLPSBT$yesno\\ü\x00", max_size=60))
    def test_any_line_gives_a_value_or_a_fault(self, text: str) -> None:
        """And the fault's place is in the line."""
        for line in logical_lines(text):
            try:
                parse_line(line.text, DOMAIN)
            except LineFault as fault:
                self.assertLessEqual(0, fault.offset)
                self.assertLessEqual(fault.offset, len(line.text))
                self.assertGreaterEqual(line.place(fault.offset)[1], 1)


class LogicalLineTests(SynchronousTestCase):
    """Comments and continuation."""

    def test_every_text_of_the_vectors(self) -> None:
        """The lines of each, with the physical line they begin on."""
        for row in VECTORS["files"]:
            got = []
            for line in logical_lines(row["text"]):
                found = fields(parse_line(line.text, DOMAIN))
                wanted_keys = next(w for w in row["lines"] if w["at"] == line.line)
                got.append(
                    {"at": line.line, "ok": True}
                    | {key: found[key] for key in wanted_keys if key not in ("at", "ok")}
                )
            self.assertEqual(got, row["lines"], row["id"])

    def test_places_lead_back_through_continuations(self) -> None:
        """A fault in a joined line names the physical line and column."""
        (line,) = logical_lines("abc\\\nde\\\nfgh")
        self.assertEqual(line.text, "abcdefgh")
        self.assertEqual(
            [line.place(n) for n in (0, 2, 3, 5, 7)], [(1, 1), (1, 3), (2, 1), (3, 1), (3, 3)]
        )


class ZoneTests(SynchronousTestCase):
    """Bits of zones."""

    def test_every_zone_of_the_vectors(self) -> None:
        """A subset of the site, or an error."""
        for row in VECTORS["zones"]:
            bits = zone_bits(row["zone"], int(row["site"], 16), row["site_role"])
            self.assertEqual("error" if bits is None else hex(bits), row["result"], row["id"])

    def test_every_visibility_of_the_vectors(self) -> None:
        """Zones that share a bit see each other; Inter is seen by all."""
        for row in VECTORS["visibility"]:
            self.assertEqual(
                in_zone(row["server_zone"], row["reader_zone"], row["inter"]),
                row["visible"],
                row["id"],
            )


class CheckNameTests(SynchronousTestCase):
    """The classes of people are told apart."""

    def test_users_and_groups(self) -> None:
        """A star makes a group."""
        value = parse_line("x [ann,*ops] DNS", DOMAIN)
        assert isinstance(value, Service)
        self.assertEqual(value.checks, (User("ann"), Group("ops")))
