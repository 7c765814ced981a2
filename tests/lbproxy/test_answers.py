"""Queries against a store."""

from __future__ import annotations

import re

from gridnet.lbproxy import record
from gridnet.lbproxy.answers import AnswerLimits
from tests.lbproxy.ledgers import LedgerTestCase, job
from tests.lbproxy.vectors import line, load

JAN, EVA = "/O=Grid/CN=jan", "/O=Grid/CN=eva"
DONE_OK = {"STATUS_CODE": "OK", "EXIT_CODE": "3"}


class JobQueryTests(LedgerTestCase):
    """Conditions, flags and limits of queryJobs."""

    def setUp(self) -> None:
        """Jobs: a (Submitted), b (Waiting, resubmitted), c (Done OK), d (eva's, Running, tag)."""
        super().setUp()
        for name, user in (("a", JAN), ("b", JAN), ("c", JAN), ("d", EVA)):
            self.register(name, user=user, date="20260101000000")
        self.log(
            "b",
            "EnQueued",
            {"QUEUE": "q", "RESULT": "OK"},
            source="LogMonitor",
            seqcode="UI2",
            date="20260101000100",
        )
        self.log("c", "Running", {"NODE": "n"}, seqcode="UI2", date="20260101000200")
        self.log("c", "Done", DONE_OK, source="LogMonitor", seqcode="UI3", date="20260101000300")
        self.log(
            "d",
            "Match",
            {"DEST_ID": "ce1"},
            source="WorkloadManager",
            seqcode="UI2",
            date="20260101000400",
        )
        self.log("d", "Running", {"NODE": "n"}, seqcode="UI3", date="20260101000500")
        self.log("d", "UserTag", {"NAME": "Color", "VALUE": "blue"}, seqcode="UI4")

    def test_conditions(self) -> None:
        """Each attribute with its operators; what is unset matches neither of the two."""
        start = 1767225600
        for condition, wanted in (
            (f"<equal><jobId>{job('b')}</jobId></equal>", "b"),
            (f"<unequal><jobId>{job('b')}</jobId></unequal>", "acd"),
            (f"<greater><jobId>{job('b')}</jobId></greater>", "cd"),
            ("<equal><jobId>https://other/b</jobId></equal>", "b"),
            (f"<equal><owner>{JAN.upper()}</owner></equal>", "abc"),
            (f"<equal><owner>{JAN}/CN=proxy</owner></equal>", "abc"),
            (f"<unequal><owner>{JAN}</owner></unequal>", "d"),
            ("<equal><owner>NULL</owner></equal>", ""),
            ("<unequal><owner>NULL</owner></unequal>", ""),
            ("<equal><status>submitted</status></equal>", "a"),
            ("<unequal><status>Submitted</status></unequal>", "bcd"),
            ("<less><status>Running</status></less>", "ab"),
            ("<greater><status>Running</status></greater>", "c"),
            ("<within><status>Waiting</status><status>Running</status></within>", "bd"),
            ("<equal><status>Nowhere</status></equal>", ""),
            ("<changed><status>Running</status></changed>", ""),
            ("<equal><location>q/here.example.org/i1</location></equal>", "b"),
            ("<unequal><location>q/here.example.org/i1</location></unequal>", "cd"),
            ("<equal><destination>ce1</destination></equal>", "d"),
            ("<unequal><destination>ce2</destination></unequal>", "d"),
            (
                "<equal><networkserver>https://wms.example.org:7443/glite_wms</networkserver></equal>",
                "abcd",
            ),
            ("<equal><donecode>-1</donecode></equal>", "abd"),
            ("<greater><donecode>-1</donecode></greater>", "c"),
            ("<equal><exitcode>0</exitcode></equal>", "abd"),
            ("<within><exitcode>2</exitcode><exitcode>4</exitcode></within>", "c"),
            ('<equal><usertag name="COLOR">blue</usertag></equal>', "d"),
            ('<equal><usertag name="color">Blue</usertag></equal>', ""),
            ('<unequal><usertag name="color">blue</usertag></unequal>', "abc"),
            ('<unequal><usertag name="color">red</usertag></unequal>', "abcd"),
            (f'<greater><time state="Running">{start + 120}</time></greater>', "d"),
            (f'<equal><time state="running">{start + 120}</time></equal>', "c"),
            (f'<less><time state="Cleared">{start + 10**9}</time></less>', ""),
            ("<equal><resubmitted>1</resubmitted></equal>", "b"),
            ("<unequal><resubmitted>1</resubmitted></unequal>", "acd"),
            ("<equal><parent_job>https://h/p</parent_job></equal>", ""),
            ("<unequal><parent_job>https://h/p</parent_job></unequal>", ""),
            (f"<equal><stateentertime>{start + 180}</stateentertime></equal>", "c"),
            (f"<less><lastupdatetime>{start + 61}</lastupdatetime></less>", "ab"),
            ("<equal><jobtype>SIMPLE</jobtype></equal>", "abcd"),
            ("<equal><jobtype>Dag</jobtype></equal>", ""),
            ("<equal><jobtype>Novel</jobtype></equal>", ""),
            ("<equal><vm_status>running</vm_status></equal>", ""),
        ):
            self.assertEqual("".join(self.found(condition)), wanted, condition)

    def test_groups(self) -> None:
        """Groups are all to hold, of each group one condition."""
        self.assertEqual(
            self.found(
                f"<orJobConditions><equal><owner>{JAN}</owner></equal></orJobConditions>"
                "<orJobConditions><equal><status>Waiting</status></equal>"
                "<equal><status>Running</status></equal></orJobConditions>"
            ),
            ["b"],
        )

    def test_no_match(self) -> None:
        """Unknown is 2; known to have been removed is 43, when only job ids were asked for."""
        self.ledger.purge(["a"], self.now)
        named = f"<equal><jobId>{job('a')}</jobId></equal>"
        self.assertEqual(self.jobs(named), (43, "matching job already purged"))
        other = "<equal><jobId>https://h/x</jobId></equal>"
        self.assertEqual(self.jobs(other), (2, "no matching jobs found"))
        self.assertEqual(self.jobs(named + other)[0], 43)
        self.assertEqual(
            self.jobs(
                f"<orJobConditions>{named}</orJobConditions>"
                "<orJobConditions><equal><status>Done</status></equal></orJobConditions>"
            )[0],
            2,
        )

    def test_limits(self) -> None:
        """More than the limit: an error, the first ones with an error, or all where that may be."""
        jan = f"<equal><owner>{JAN}</owner></equal>"
        waiting = "<greater><status>Undefined</status></greater>"
        for condition, root, status, count in (
            (jan, 'softLimit="3" queryRes="1"', 200, 3),
            (jan, 'softLimit="2" queryRes="0"', 7, 0),
            (jan, 'softLimit="2" queryRes="1"', 7, 0),
            (jan, 'softLimit="2" queryRes="2"', 200, 3),
            (waiting, 'softLimit="2" queryRes="2"', 22, 0),
            (waiting, 'softLimit="9" queryRes="2"', 200, 4),
            (jan, 'softLimit="2" queryRes="3"', 401, 2),
        ):
            found, body = self.jobs(condition, root=root)
            self.assertEqual((found, body.count("<jobId>")), (status, count), root)
            if status == 401:
                self.assertIn('code="7" desc="Query result size limit exceeded"', body)

    def test_limits_of_the_service(self) -> None:
        """The service's own limits hold whatever is asked."""
        jan = f"<equal><owner>{JAN}</owner></equal>"
        limits = AnswerLimits(max_results=2)
        for root, status in (
            ('softLimit="0" queryRes="0"', 7),
            ('softLimit="9" queryRes="2"', 7),
            ('softLimit="9" queryRes="3"', 401),
        ):
            self.assertEqual(self.jobs(jan, root=root, limits=limits)[0], status, root)
        self.assertEqual(self.jobs(jan, limits=AnswerLimits(max_octets=300))[0], 7)

    def test_flags(self) -> None:
        """Ids, states, both, neither; descriptions only when asked for."""
        named = f"<equal><jobId>{job('a')}</jobId></equal>"
        outer = re.compile(r"^\t\t<jobId>", re.MULTILINE)
        for flags, has_id, has_state, has_jdl in (
            ("", True, True, False),
            ("classadd", True, True, True),
            ("no_jobs", False, True, False),
            ("no_states", True, False, False),
        ):
            _, body = self.jobs(named, flags)
            self.assertEqual(bool(outer.search(body)), has_id, flags)
            self.assertEqual('<jobStat name="Submitted">' in body, has_state, flags)
            self.assertEqual("<jdl>" in body, has_jdl, flags)
        self.assertEqual(
            self.jobs(named, "no_jobs+no_states"),
            (200, "<edg_wll_QueryJobsResult>\r\n</edg_wll_QueryJobsResult>\r\n"),
        )

    def test_children(self) -> None:
        """Lists, states and both histograms of a collection."""
        self.register("p", fields={"JOBTYPE": "COLLECTION", "NSUBJOBS": "2", "SEED": "s"}, user=EVA)
        children = [
            row[0]
            for row in self.connection.execute(
                "SELECT unique_part FROM jobs WHERE parent = 'p' ORDER BY id"
            )
        ]
        self.log(children[1], "Running", {"NODE": "n"}, seqcode="UI2")
        named = f"<equal><jobId>{job('p')}</jobId></equal>"
        _, body = self.jobs(named, "")
        self.assertNotIn("children_hist", body)
        self.assertNotIn("<children>", body)
        _, body = self.jobs(named, "children+childstat+childhist_fast")
        inner = body.partition("<children>")[2].partition("</children>")[0]
        self.assertEqual(re.findall("0/([^<]*)<", inner), children)
        self.assertEqual(
            re.findall('<jobStat name="([^"]*)">', body), ["Running", "Submitted", "Running"]
        )
        self.assertIn("<Running>1</Running>", body)
        self.assertIn("<Unknown>1</Unknown>", body)
        _, body = self.jobs(named, "childhist_thorough")
        histogram = body.partition("<children_hist>")[2].partition("</children_hist>")[0]
        self.assertIn("<Submitted>1</Submitted>", histogram)
        self.assertIn("<Unknown>0</Unknown>", histogram)
        found = self.found(f"<equal><parent_job>{job('p')}</parent_job></equal>")
        self.assertEqual(sorted(children), found)

    def test_every_field_is_shown(self) -> None:
        """All lives of the vectors can be asked for, in documented order of fields."""
        order = [one.name for one in record.STATUS_FIELDS]
        machines = load("dialect-rows")["machines"]
        steps = [(machine["jobtype"], step) for machine in machines for step in machine["steps"]]
        for kind, step in steps:
            self.log(
                kind,
                step["event"],
                step["fields"],
                source=step["source"],
                seqcode=step.get("code", "UI1"),
            )
        for machine in machines:
            named = f"<equal><jobId>{job(machine['jobtype'])}</jobId></equal>"
            status, body = self.jobs(named, "classadd")
            self.assertEqual(status, 200)
            fields = re.findall(r"^\t\t\t<([A-Za-z_]+)>[^\r]+</\1>\r$", body, re.MULTILINE)
            self.assertEqual(fields, sorted(fields, key=order.index))


class EventQueryTests(LedgerTestCase):
    """queryEvents and the sequence code."""

    def setUp(self) -> None:
        super().setUp()
        self.register("a")
        self.log("a", "Running", {"NODE": "n"}, seqcode="UI3", source="LogMonitor", host="there")
        self.log(
            "a",
            "Done",
            DONE_OK,
            seqcode="UI3",
            source="LogMonitor",
            instance="",
            date="20270101000000",
        )
        self.log("a", "UserTag", {"NAME": "Color", "VALUE": "blue"}, seqcode="UI2", level="DEBUG")
        self.register("b")

    def events(
        self, jobs: str = "", events: str = "", root: str = 'softLimit="0" queryRes="0"'
    ) -> tuple[int, list[str]]:
        """Status or error number, and the names of the events in their order."""
        if not jobs and not events:
            jobs = f"<equal><jobId>{job('a')}</jobId></equal>"
        groups = f"<orJobConditions>{jobs}</orJobConditions>" if jobs else ""
        groups += f"<orEventConditions>{events}</orEventConditions>" if events else ""
        status, body = self.answer(
            "/queryEvents",
            f"<edg_wll_QueryEventsRequest {root}><and>{groups}</and></edg_wll_QueryEventsRequest>",
        )
        return status, re.findall('<edg_wll_Event name="([^"]*)">', body)

    def test_order(self) -> None:
        """By sequence code, then by time."""
        self.assertEqual(self.events(), (200, ["RegJob", "UserTag", "Running", "Done"]))

    def test_conditions(self) -> None:
        """Each attribute; different ones may share a group; job conditions narrow."""
        for condition, wanted in (
            ("<equal><type>8</type></equal>", ["Running"]),
            ("<within><type>8</type><type>17</type></within>", ["Running", "Done", "RegJob"]),
            ("<equal><source>6</source></equal>", ["Running", "Done"]),
            ("<less><level>9</level></less>", ["Running", "Done", "RegJob"]),
            ("<greater><level>8</level></greater>", ["UserTag"]),
            ("<equal><host>there</host></equal>", ["Running"]),
            ("<equal><instance></instance></equal>", ["Done"]),
            ('<greater><time state="Undefined">1798000000</time></greater>', ["Done"]),
            ('<equal><usertag name="Color">blue</usertag></equal>', ["UserTag"]),
            ('<equal><usertag name="color">blue</usertag></equal>', []),
            ('<unequal><usertag name="Color">red</usertag></unequal>', ["UserTag"]),
            (
                "<equal><type>8</type></equal><equal><level>10</level></equal>",
                ["Running", "UserTag"],
            ),
        ):
            _, found = self.events(events=condition)
            self.assertEqual(sorted(set(found)), sorted(set(wanted)), condition)
        both = f"<equal><jobId>{job('b')}</jobId></equal>"
        self.assertEqual(self.events(both, "<equal><type>17</type></equal>"), (200, ["RegJob"]))
        for value in ("Done", "6"):
            found = self.events(f"<equal><status>{value}</status></equal>")[1]
            self.assertEqual(len(found), 4, value)

    def test_no_events(self) -> None:
        """Unknown and purged jobs have none."""
        other = "<equal><jobId>https://h/x</jobId></equal>"
        self.assertEqual(self.events(other)[0], 2)
        self.ledger.purge(["a"], self.now)
        self.assertEqual(self.events()[0], 2)
        self.assertEqual(self.answer("/queryEvents", "<edg_wll_QueryEventsRequest/>")[0], 22)

    def test_limits(self) -> None:
        """As for jobs; all of them only of one job."""
        for root, status, count in (
            ('softLimit="4" queryRes="1"', 200, 4),
            ('softLimit="3" queryRes="1"', 7, 0),
            ('softLimit="3" queryRes="2"', 200, 4),
            ('softLimit="3" queryRes="3"', 401, 3),
        ):
            found, names = self.events(root=root)
            self.assertEqual((found, len(names)), (status, count), root)
        every = "<greater><type>0</type></greater>"
        self.assertEqual(self.events(events=every, root='softLimit="2" queryRes="2"')[0], 22)

    def test_values(self) -> None:
        """Nulls are left out but for the instance; words are numbers, sources names."""
        _, body = self.answer(
            "/queryEvents",
            "<edg_wll_QueryEventsRequest><and><orEventConditions><equal><type>10</type></equal>"
            "</orEventConditions></and></edg_wll_QueryEventsRequest>",
        )
        self.assertIn("<src_instance></src_instance>", body)
        self.assertIn("<status_code>1</status_code>", body)
        self.assertIn("<exit_code>3</exit_code>", body)
        self.assertIn("<source>LogMonitor</source>", body)
        self.assertNotIn("<reason>", body)

    def sequence_code(self, job_id: str) -> tuple[int, str]:
        root = "edg_wll_QuerySequenceCodeRequest"
        status, body = self.answer(
            "/querySequenceCode", f"<{root}><jobId>{job_id}</jobId></{root}>"
        )
        return status, body

    def test_sequence_code(self) -> None:
        """The last effective event's; none for unknown, purged and malformed jobs."""
        _, body = self.sequence_code(job("a"))
        self.assertIn("<sequence_code>UI=000003:", body)
        self.ledger.purge(["b"], self.now)
        for job_id in ("https://h/x", job("b"), "nonsense"):
            self.assertEqual(self.sequence_code(job_id), (2, "no state in DB"))

    def test_latin_one(self) -> None:
        """Octets above 127 go out as they came in."""
        self.enter(
            [line("UserTag", {"NAME": "n", "VALUE": "\xe9\xff"}, job_id=job("b"), seqcode="UI2")]
        )
        _, body = self.jobs(f"<equal><jobId>{job('b')}</jobId></equal>", "")
        self.assertIn('<tag name="n">\xe9\xff</tag>', body)
