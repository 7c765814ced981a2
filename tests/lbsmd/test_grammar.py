"""The configuration language, line by line, held to its vectors."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.schedule import ScheduleElement
from gridnet.lbsmd.servrc.check_list import (
    Check,
    CheckPlan,
    Contact,
    Dependency,
    Group,
    Interval,
    Script,
    User,
)
from gridnet.lbsmd.servrc.fault import LineFault
from gridnet.lbsmd.servrc.grammar import parse_line
from gridnet.lbsmd.servrc.lines import effective_lines, logical_lines
from gridnet.lbsmd.servrc.records import (
    Authority,
    Environment,
    Include,
    MonitoredPort,
    NameHold,
    Record,
    ServiceRecord,
    Zone,
)
from gridnet.lbsmd.servrc.zone import zone_bits
from gridnet.table.server_info import KEYWORDS
from gridnet.table.visibility import in_zone
from tests.hypothesis_profile import examples
from tests.lbsmd.support import DOMAIN, VECTORS, joined

#: What lines are made of, and what they are not.
PIECES = [" ", "\t", "x", "[", "]", ",", "|", "DNS", "HTTP", "NCBID ", "NAMEHOLD ", "STANDALONE "]
PIECES += [":1", "[::1]:80", "::1", "/a", "R=1", "L=yes", "15", "/60", "Mo-Fr@9-5", "!", "~", "+"]
PIECES += ["*", "@", "%include", "=", "''", "Blast", "#", "\\", "?", "&", ".", "-", "9" * 12]
PIECES += ["\xfc", "\xa0", "\x00", "\u2028"]


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


def fields(value: Record) -> dict[str, Any]:
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
                self.assert_reads_back(row["line"])

    def assert_reads_back(self, line: str) -> None:
        """The record of *line*, printed, is read as itself, whatever ``L`` defaults to."""
        record = parse_line(line, DOMAIN)
        if isinstance(record, ServiceRecord):
            self.assertEqual(parse_line(str(record), DOMAIN, True), record, line)

    def test_the_printed_form_is_exact(self) -> None:
        """Numbers keep every decimal, points their form, lists their elements."""
        for line in (
            "x STANDALONE :1 R=0.0095",
            "x STANDALONE :1 R=1234.5678901 B=-7.25",
            "x STANDALONE :1 R=.0014 B=.015",
            "x DNS ::1",
            "x DNS [::1]:5 X=yes",
            "x HTTP web.example.org /a?b=c&d H=''",
            "x STANDALONE w:1 $=yes H=v.example.org:8 A=R S=yes T=7",
            "x[|/bin/ask,15/60,![::1]:80+Other,~Fr-Mo@22-6,@9-5,Hd,+,*g,u]DNS",
            "x NCBID :0 a&b | /bin/tr a-z | b",
        ):
            self.assert_reads_back(line)
        record = parse_line("x [|/bin/ask] STANDALONE :1 R=0.0095", DOMAIN)
        self.assertEqual(str(record), "x [|/bin/ask] STANDALONE :1 L=no R=0.0095")

    @examples(1000)
    @given(
        st.sampled_from(["STANDALONE :1", "HTTP h:8 /a", "DNS", "NCBID :0 a=b"]),
        st.lists(
            st.one_of(
                st.decimals("-200000", "200000", places=5).map(lambda n: f"R={n}"),
                st.decimals("-200", "200", places=6).map(lambda n: f"b={n}"),
                st.integers(0, 2**33).map(lambda n: f"T={n}"),
                st.sampled_from(["L=yes", "P=no", "$=yes", "S=yes", "X=yes", "BlastInter", "A=B"]),
                st.sampled_from(["C=text/html", "C=application/json", "H=v.w", "H=''"]),
            ),
            max_size=4,
        ),
        st.lists(
            st.sampled_from(["5", "-0", "7/8", "/a", "Mo-Fr@9-5", "~Hd", "+", "!h:1", "u", "*g"]),
            max_size=4,
        ),
    )
    def test_any_accepted_service_reads_back(
        self, server: str, flags: list[str], checks: list[str]
    ) -> None:
        """Whatever flags and checks it has."""
        listed = f"[{','.join(checks)}]" if checks else ""
        launcher = "| /bin/x" if server.startswith("NCBID") else ""
        try:
            self.assert_reads_back(f"x {listed} {server} {' '.join(flags)} {launcher}")
        except LineFault as fault:
            self.assertTrue(fault.found)

    def test_faults_say_where_what_and_what_was_expected(self) -> None:
        """Each one of the line, at its own word."""
        line = "x [15, Xx-Fr@9, 20] STANDALONE :1 R=abc Q=1 L=no"
        fault = self.assertRaises(LineFault, parse_line, line, DOMAIN)
        self.assertEqual(
            [line[found.offset :].split(",")[0].split("]")[0].split()[0] for found in fault.found],
            ["Xx-Fr@9", "20", "abc", "Q=1"],
        )
        for found in fault.found:
            self.assertRegex(str(found), "^found .*; expected .")

    def test_newer_flags_of_the_wire_are_accepted(self) -> None:
        """``A``, ``X`` and ``H``, as extensions."""
        record = parse_line("x HTTP /a A=B X=yes H=web.example.org", DOMAIN)
        assert isinstance(record, ServiceRecord)
        self.assertEqual((record.algorithm.name, record.interzone), ("BLAST", True))
        self.assertEqual(record.vhost, "web.example.org")
        for refused in (
            "x STANDALONE :1 H=a.b",
            "x STANDALONE :1 Blast A=B",
            "x STANDALONE :1 BlastInter X=yes",
            "x STANDALONE h:1 A=B",
            "x NCBID h:1 '' H=a.b",
        ):
            self.assertRaises(LineFault, parse_line, refused, DOMAIN)

    def test_a_dotted_host_name_is_the_virtual_host(self) -> None:
        """For what speaks HTTP or TLS, unless the line says otherwise."""
        for line, wanted in (
            ("x HTTP web.example.org /", "web.example.org"),
            ("x HTTP web /", ""),
            ("x HTTP 10.1.2.3 /", ""),
            ("x HTTP web.example.org / H=''", ""),
            ("x HTTP web.example.org / H=other", "other"),
            ("x STANDALONE web.example.org:1", ""),
            ("x STANDALONE web.example.org:1 $=yes", "web.example.org"),
        ):
            record = parse_line(line)
            assert isinstance(record, ServiceRecord)
            self.assertEqual(record.virtual_host, wanted, line)

    def test_what_the_page_refuses_beyond_the_vectors(self) -> None:
        """Each for its reason."""
        for line, reason in (
            ("x [15/0] DNS", "back-off"),
            ("x [@0-0] DNS", "empty"),
            ("x [/bin/a b] DNS", "without blanks"),
            ("x [|nothing] DNS", "an interval"),
            ("x STANDALONE 0.0.0.0:1", "a host"),
            ("x STANDALONE :1 R=1.23456789", "7 decimals"),
            ("x STANDALONE :1 T=4294967295", "seconds"),
            ("x HTTP :80 ?a", "a path"),
            ("x STANDALONE :1 C=/a", "type/subtype"),
            ("x DNS a\x07b", "printable"),
            ("v=\x00", "printable"),
            ("x", None),
        ):
            if reason is None:
                self.assertEqual(parse_line(line), Authority("x"))
                continue
            fault = self.assertRaises(LineFault, parse_line, line, DOMAIN)
            self.assertIn(reason, str(fault) + " empty" * ("not empty" in str(fault)), line)

    def test_contacts_need_a_configured_domain(self) -> None:
        """Without one there are none."""
        line = "x [ann@example.org] DNS"
        record = parse_line(line, "example.org")
        assert isinstance(record, ServiceRecord)
        self.assertEqual(record.checks, (Contact("ann@example.org"),))
        fault = self.assertRaises(LineFault, parse_line, line)
        self.assertIn("no mail domain", str(fault))
        self.assertRaises(LineFault, parse_line, "x [a..b@example.org] DNS", "example.org")

    def test_locality_has_a_configured_default(self) -> None:
        """An explicit ``L`` wins."""
        for line, wanted in (("x DNS", True), ("x DNS L=no", False)):
            record = parse_line(line, default_local=True)
            assert isinstance(record, ServiceRecord)
            self.assertIs(record.local, wanted)

    def test_a_check_list_is_sorted_by_kind(self) -> None:
        """With the default interval when there is none."""
        record = parse_line("x [-5/7,Mo,|/a,u,*g,+,ann@example.org] DNS", "example.org")
        assert isinstance(record, ServiceRecord)
        self.assertEqual(
            CheckPlan.of(record.checks),
            CheckPlan(
                Interval(5, 7, False),
                (ScheduleElement(("Mo",)),),
                (Contact("ann@example.org"),),
                Script("/a", True),
                (Dependency(service="+"),),
                (User("u"),),
                (Group("g"),),
            ),
        )
        self.assertEqual(CheckPlan.of(()).interval, Interval(15))

    @examples(2000)
    def test_faults_are_short(self) -> None:
        """However long the line is: logs and status pages repeat them."""
        much = "9" * 100_000
        for line in (
            f"x STANDALONE :{much}",
            f"x STANDALONE {much}:{much}",
            f"x STANDALONE [{much}]:1",
            f"x STANDALONE [::1]:{much}",
            f"x STANDALONE a{much}&:1",
            f"x STANDALONE :1:{much}",
            f"x STANDALONE :1 R={much}x T={much} L={much} C={much} Q={much} A={much} {much}",
            f"x HTTP :1 ?{much}",
            f"x DNS S={much}",
            f"x [15,{much}] STANDALONE :1",
            f"x [/a,/{much}] STANDALONE :1",
            f"x [a:{much},a{much}@b,@{much},Mo-{much}] STANDALONE :1",
            f"x {much}",
            f"@{much}",
            f":{much}",
            f"%{much}",
            f"={much}",
            f"*{much}",
        ):
            fault = self.assertRaises(LineFault, parse_line, line, DOMAIN)
            for found in fault.found:
                self.assertLess(len(str(found)), 300, line[:30])

    @given(joined(PIECES, 20))
    def test_any_line_gives_a_record_or_faults(self, text: str) -> None:
        """And their places are in the line."""
        for line in logical_lines(text):
            try:
                parse_line(line.text, DOMAIN)
            except LineFault as fault:
                for found in fault.found:
                    self.assertLessEqual(0, found.offset)
                    self.assertLessEqual(found.offset, len(line.text))
                    self.assertGreaterEqual(line.place(found.offset)[1], 1)


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

    def test_places_within_a_prefix_are_the_start_of_the_line(self) -> None:
        """The prefix stands in another file."""
        (line,) = effective_lines("\n  ab\\\ncd", "db=")
        self.assertEqual(line.text, "db=  abcd")
        self.assertEqual([line.place(n) for n in (0, 2, 3, 7)], [(2, 1), (2, 1), (2, 1), (3, 1)])

    def test_prefixes_go_before_each_line_but_directives(self) -> None:
        """Nor before blank lines and comments."""
        for row in VECTORS["prefix"]:
            lines = [line.text for line in effective_lines(row["file_text"], row["prefix"])]
            self.assertEqual(lines, row["effective"], row["id"])


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
