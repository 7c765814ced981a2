"""Queries on the level of XML and rules."""

from __future__ import annotations

import errno
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import query, request_xml, xml
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.query import (
    BadRequest,
    Condition,
    EventsQuery,
    JobFlags,
    JobsQuery,
    Limit,
    Operator,
    PurgeFlags,
    PurgeRequest,
    QueryError,
    ResultMode,
    SequenceCodeQuery,
)
from gridnet.lbproxy.record import STATES
from tests.hypothesis_profile import examples
from tests.lbproxy.vectors import capture

JOB = parse_job_id("https://localhost:9000/CaptureJobCaptureJob0A")
LATIN = st.text(st.characters(max_codepoint=255), max_size=40)


def body_of(name: str) -> bytes:
    """The body of a recorded request."""
    return capture(f"{name}.query-request").partition(b"\r\n\r\n")[2]


def jobs_request(
    conditions: str, flags: str = "", root: str = 'softLimit="0" queryRes="0"'
) -> bytes:
    return (
        f"<edg_wll_QueryJobsRequest {root}><flags>{flags}</flags><and>{conditions}</and>"
        "</edg_wll_QueryJobsRequest>"
    ).encode("latin-1")


def group(*conditions: str, kind: str = "orJobConditions") -> str:
    return f"<{kind}>{''.join(conditions)}</{kind}>"


class XmlTests(SynchronousTestCase):
    """gridnet.lbproxy.xml"""

    def test_escapes(self) -> None:
        """Entities, then %xx for controls, percent and the octets 0x80 to 0x9f."""
        self.assertEqual(
            xml.escape('back\\slash "q" <&\'> line\nfeed tab\tend 100%\x80\x9f\xa0\xff'),
            "back\\slash &quot;q&quot; &lt;&amp;&apos;&gt; line%0afeed tab%09end "
            "100%25%80%9f\xa0\xff",
        )
        self.assertEqual(xml.escape_attribute('<"%\n'), "&lt;&quot;%&#10;")

    @given(LATIN)
    @examples(120)
    def test_attributes_survive(self, text: str) -> None:
        """Any attribute is read back, but for controls that XML cannot carry: those are shown."""
        root = xml.parse(f'<a name="{xml.escape_attribute(text)}"/>'.encode("latin-1"))
        shown = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", lambda match: f"%{ord(match[0]):02x}", text)
        self.assertEqual(root.attributes["name"], shown)

    @given(LATIN)
    @examples(120)
    def test_text_survives(self, text: str) -> None:
        """Any text is read back, but for layout at its ends."""
        root = xml.parse(f"<a>{xml.escape(text)}</a>".encode("latin-1"))
        self.assertEqual(root.text, text)

    def test_latin_one_whatever_is_declared(self) -> None:
        """The declaration of another character set is not believed."""
        root = xml.parse(b'<?xml version="1.0" encoding="UTF-8"?><a>\xe9</a>')
        self.assertEqual(root.text, "\xe9")

    def test_refuses(self) -> None:
        """What is not well formed, has a document type, or is too much of anything."""
        for octets in (
            b"",
            b" ",
            b"text",
            b"<a>",
            b"<a></b>",
            b"<a/><b/>",
            b"<a>&unknown;</a>",
            b"<a>\x00</a>",
            b"<a>\x01</a>",
            b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
            b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
            b"<a>" * 1000 + b"</a>" * 1000,
            b"<r>" + b"<a/>" * (xml.MAX_ELEMENTS + 1) + b"</r>",
        ):
            with self.assertRaises(xml.XmlError, msg=octets[:60]):
                xml.parse(octets)

    @given(st.binary(max_size=200))
    @examples(150)
    def test_any_octets(self, octets: bytes) -> None:
        """Any octets give an element or an error."""
        try:
            xml.parse(octets)
        except xml.XmlError:
            pass


class RequestTests(SynchronousTestCase):
    """Requests in, and written again."""

    def refused(self, path: str, body: bytes) -> int:
        """The HTTP status of what is refused."""
        try:
            request_xml.parse_request(path, body)
        except BadRequest:
            return 400
        except QueryError as error:
            return query.http_status(error.number, path)
        return 200

    def test_recorded_requests(self) -> None:
        """The requests of the original client are read, and written again to the octet."""
        asked = request_xml.parse_request("/queryJobs", body_of("05-job-status"))
        named = ((Condition("jobid", Operator.EQUAL, (JOB,)),),)
        self.assertEqual(asked, JobsQuery(named, JobFlags.CLASSADD | JobFlags.NO_JOBS))
        assert isinstance(asked, JobsQuery)
        self.assertEqual(request_xml.write_jobs_query(asked), body_of("05-job-status"))
        asked = request_xml.parse_request("/queryJobs", body_of("07-query-jobs"))
        assert isinstance(asked, JobsQuery)
        self.assertEqual([len(one) for one in asked.conditions], [1, 2, 1])
        self.assertEqual(asked.conditions[2][0].name, "mytag")
        self.assertEqual(request_xml.write_jobs_query(asked), body_of("07-query-jobs"))
        asked = request_xml.parse_request("/queryEvents", body_of("06-job-log"))
        self.assertEqual(asked, EventsQuery(named, ((Condition("level", Operator.LESS, (9,)),),)))
        assert isinstance(asked, EventsQuery)
        self.assertEqual(request_xml.write_events_query(asked), body_of("06-job-log"))
        asked = request_xml.parse_request("/querySequenceCode", body_of("04-sequence-code"))
        self.assertEqual(asked, SequenceCodeQuery(JOB))
        self.assertEqual(request_xml.write_sequence_code_query(JOB, 2), body_of("04-sequence-code"))
        asked = request_xml.parse_request("/purgeRequest", body_of("10-purge"))
        self.assertEqual(asked, PurgeRequest((JOB,), flags=PurgeFlags.REALLY | PurgeFlags.LIST))
        assert isinstance(asked, PurgeRequest)
        self.assertEqual(request_xml.write_purge_request(asked), body_of("10-purge"))

    def test_bad_requests(self) -> None:
        """What cannot be understood is 400."""
        equal = "<equal><owner>x</owner></equal>"
        for body in (
            b"",
            b"<edg_wll_QueryEventsRequest/>",
            jobs_request("<orOthers/>"),
            jobs_request(group("<like><owner>x</owner></like>")),
            jobs_request(group("<equal/>")),
            jobs_request(group("<equal><colour>x</colour></equal>")),
            jobs_request(group("<equal><host>x</host></equal>")),
            jobs_request(group("<equal><owner>a</owner><owner>b</owner></equal>")),
            jobs_request(group("<within><donecode>1</donecode></within>")),
            jobs_request(group("<within><donecode>1</donecode><exitcode>2</exitcode></within>")),
            jobs_request(group("<equal><jobId>nonsense</jobId></equal>")),
            jobs_request(group("<equal><usertag>x</usertag></equal>")),
            jobs_request(group("<less><time>5</time></less>")),
            jobs_request(group('<less><time state="Nowhere">5</time></less>')),
            jobs_request(group("<equal><donecode>x</donecode></equal>")),
            jobs_request(group(equal), root='softLimit="x" queryRes="0"'),
            jobs_request(group(equal), root='softLimit="0" queryRes="9"'),
            jobs_request(group("<equal><level>8</level></equal>", kind="orEventConditions")),
        ):
            self.assertEqual(self.refused("/queryJobs", body), 400, body)

    def test_refused_requests(self) -> None:
        """Rules of conditions are error 22, so HTTP 401."""
        for body in (
            jobs_request(""),
            jobs_request("<orJobConditions></orJobConditions>"),
            jobs_request(group("<less><owner>x</owner></less>")),
            jobs_request(
                group("<within><jobId>https://h/a</jobId><jobId>https://h/b</jobId></within>")
            ),
            jobs_request(
                group("<equal><owner>x</owner></equal>", "<equal><status>Done</status></equal>")
            ),
            jobs_request(
                group(
                    '<equal><usertag name="a">x</usertag></equal>',
                    '<equal><usertag name="b">x</usertag></equal>',
                )
            ),
            jobs_request(group('<equal><jdl name="Executable">x</jdl></equal>')),
            jobs_request(group("<equal><owner>x</owner></equal>"), flags="anonymized"),
            jobs_request(
                group(*["<equal><owner>x</owner></equal>"] * (request_xml.MAX_CONDITIONS + 1))
            ),
        ):
            self.assertEqual(self.refused("/queryJobs", body), 401, body[:300])

    def test_empty_list_is_named(self) -> None:
        """The text that scripts look for."""
        error = self.assertRaises(
            QueryError, request_xml.parse_request, "/queryJobs", jobs_request("")
        )
        self.assertEqual((error.number, str(error)), (errno.EINVAL, "empty condition list"))

    def test_accepts(self) -> None:
        """Every documented operator goes with its attribute, element names in any case."""
        alls = ["equal", "less", "greater", "unequal"]
        both = ["equal", "unequal"]
        rows: dict[str, list[str]] = {
            "<jobId>https://h/a</jobId>": [*both, "greater"],
            "<JOBID>https://h/a</JOBID>": both,
            "<owner>NULL</owner>": both,
            "<status>nowhere</status>": alls,
            "<location>x</location>": both,
            "<destination>x</destination>": both,
            "<networkserver>x</networkserver>": both,
            "<donecode>1</donecode>": alls,
            "<exitcode>-1</exitcode>": alls,
            '<usertag name="t"></usertag>': both,
            '<time state="running">5.5</time>': alls,
            "<resubmitted>1</resubmitted>": both,
            "<parent_job>https://h/a</parent_job>": both,
            "<stateentertime>5</stateentertime>": alls,
            "<lastupdatetime>5</lastupdatetime>": alls,
            "<jobtype>simple</jobtype>": both,
            "<vm_status>pending</vm_status>": both,
        }
        for value, operators in rows.items():
            for operator in [*operators, "changed"]:
                body = jobs_request(group(f"<{operator}>{value}</{operator}>"))
                self.assertEqual(self.refused("/queryJobs", body), 200, body)

    def test_limits_and_flags(self) -> None:
        """Unknown flags are ignored."""
        body = jobs_request(
            group("<equal><owner>x</owner></equal>"),
            "children+whatever+childhist_fast",
            'softLimit="5" queryRes="3"',
        )
        asked = request_xml.parse_request("/queryJobs", body)
        assert isinstance(asked, JobsQuery)
        self.assertEqual(asked.limit, Limit(5, ResultMode.LIMITED))
        self.assertEqual(asked.flags, JobFlags.CHILDREN | JobFlags.CHILDHIST_FAST)

    def test_sequence_codes_of_nonsense(self) -> None:
        """An unreadable job id is an unknown job, not a bad request."""
        root = "edg_wll_QuerySequenceCodeRequest"
        body = f"<{root}><jobId>nonsense</jobId></{root}>".encode()
        self.assertEqual(
            request_xml.parse_request("/querySequenceCode", body), SequenceCodeQuery(None)
        )

    def test_purges(self) -> None:
        """All parts are optional; a time-out that is missing is the service's own."""
        root = "edg_wll_PurgeRequest"
        self.assertEqual(
            request_xml.parse_request("/purgeRequest", f"<{root}/>".encode()), PurgeRequest()
        )
        body = (
            f"<{root}><timeout><Done>60</Done><Waiting>-2</Waiting></timeout>"
            f"<target_runtime>9</target_runtime><flags>background</flags></{root}>"
        ).encode()
        asked = request_xml.parse_request("/purgeRequest", body)
        assert isinstance(asked, PurgeRequest)
        self.assertEqual(asked.timeouts[STATES.index("Done")], 60)
        self.assertEqual(asked.timeouts[STATES.index("Waiting")], query.NEVER)
        self.assertEqual(asked.timeouts[STATES.index("Cleared")], query.SERVICE_DEFAULT)
        self.assertEqual((asked.run_seconds, asked.flags), (9, PurgeFlags.BACKGROUND))
        for inner, status in (
            ("<timeout><Nowhere>1</Nowhere></timeout>", 400),
            ("<other/>", 400),
            ("<timeout><Done>-3</Done></timeout>", 579),
            ("<jobs><jobId>nonsense</jobId></jobs>", 579),
        ):
            body = f"<{root}>{inner}</{root}>".encode()
            self.assertEqual(self.refused("/purgeRequest", body), status, inner)

    def test_statuses(self) -> None:
        """Error numbers become the documented HTTP statuses."""
        for number, path, status in (
            (0, "/queryJobs", 200),
            (1, "/queryJobs", 401),
            (7, "/queryEvents", 401),
            (22, "/queryJobs", 401),
            (1416, "/queryJobs", 401),
            (2, "/queryJobs", 404),
            (43, "/queryJobs", 410),
            (22, "/purgeRequest", 579),
            (22, "/querySequenceCode", 579),
            (5, "/queryJobs", 500),
        ):
            self.assertEqual(query.http_status(number, path), status)

    @given(st.sampled_from(sorted(query.PATHS)), st.binary(max_size=400))
    @examples(120)
    def test_any_octets(self, path: str, octets: bytes) -> None:
        """Any body gives a request or one of the two errors."""
        self.assertIn(self.refused(path, octets), (200, 400, 401, 579))

    @given(
        st.sampled_from(["05-job-status", "06-job-log", "07-query-jobs", "10-purge"]),
        st.integers(0, 700),
        st.binary(min_size=1, max_size=5),
    )
    @examples(120)
    def test_damaged_requests(self, name: str, place: int, octets: bytes) -> None:
        """A recorded request with a hole of other octets does nothing else either."""
        path = capture(f"{name}.query-request").split()[1].decode()
        body = bytearray(body_of(name))
        body[place : place + len(octets)] = octets
        self.assertIn(self.refused(path, bytes(body)), (200, 400, 401, 579))
