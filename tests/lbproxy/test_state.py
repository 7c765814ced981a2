"""What events do to a job: every row of the state tables against every state."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy import family, record, seqcode
from gridnet.lbproxy.event_types import EVENT_TYPES, Kind
from gridnet.lbproxy.events import Event, parse
from gridnet.lbproxy.jobid import JobId
from gridnet.lbproxy.jobid import parse as parse_job_id
from gridnet.lbproxy.record import STATES, JobRecord, Part, state_number
from gridnet.lbproxy.state import Effect, apply
from tests.hypothesis_profile import examples
from tests.lbproxy.vectors import JOB_ID, code, event, load

BEFORE, AFTER = "UI5 LM3", "UI5 LM4"
THEN = 1_000_000_000
NAMED = {"Running", "Done", "Aborted", "Cleared", "Unknown"}


def make_job(state: int = record.SUBMITTED, last: str = BEFORE) -> JobRecord:
    """A simple job in *state*, whose last effective event had code *last*."""
    job = JobRecord(parse_job_id(JOB_ID), "/O=Grid/CN=jan", state, record.SIMPLE)
    job.last_code = code(last)
    job.updated_at = job.entered_at = THEN
    job.values.update(location="before", reason="before", jw_status=3, network_server="ns")
    job.touched.clear()
    return job


def shown(job: JobRecord, name: str) -> Any:
    """A public field as the vectors name it."""
    if name == "possible_destinations":
        return job.destinations
    if name == "possible_ce_nodes":
        return job.nodes
    if name == "user_tags":
        return {tag: value.value for tag, value in job.tags.items()}
    return job.status_values().get(name, job.get(name))


class StateRowTests(SynchronousTestCase):
    """Each row of the tables, from each state, in time and late."""

    def wanted(self, row: dict[str, Any], old: int, source: str, in_time: bool) -> Effect:
        """The verdict that the rules give, worked out apart from the code under test."""
        if row["verdict"] == "odd" and "state" not in row:
            return Effect.ODD
        if row["event"] == "Abort" and source == "WorkloadManager":
            return Effect.OK
        final: tuple[int, ...] = (record.CANCELLED, record.CLEARED)
        if row["event"] != "CollectionState":
            final = (*final, record.ABORTED)
        if row["verdict"] == "ignored":
            return Effect.IGNORED
        late = old in final or not in_time
        if row.get("guard") and old in (record.RUNNING, record.DONE):
            late = True
        if row["verdict"] == "odd":
            return Effect.ODD
        return Effect.LATE if late else Effect.OK

    def check(
        self, row: dict[str, Any], source: str, old: int, in_time: bool, happening: Event
    ) -> None:
        place = f"{row['event']} {row['fields']} from {source} in {STATES[old]}, in time: {in_time}"
        job = make_job(old)
        effect = apply(job, happening)
        self.assertEqual(effect, self.wanted(row, old, source, in_time), place)
        changed = effect is Effect.OK
        partly = effect is Effect.ODD and row.get("state") and in_time and old not in (7, 8, 9)
        if changed or partly:
            state = row.get("state", "unchanged")
            new = old if state == "unchanged" else state_number(state)
            self.assertEqual(STATES[job.state], STATES[new or 0], place)
            self.assertEqual(job.get("location"), row.get("location", "before"), place)
            for name, value in row.get("also", {}).items():
                if name == "jw_status" and new in (2, 3, 4) and new != old:
                    value = 0
                self.assertEqual(shown(job, name), value, f"{place}: {name}")
        else:
            self.assertEqual(STATES[job.state], STATES[old], place)
            self.assertEqual(job.get("location"), "before", place)
            self.assertEqual(job.get("reason"), "before", place)
        self.check_close(row, job, happening, changed, old, place)
        if effect is not Effect.ODD:
            for name, value in row.get("data", {}).items():
                if name == "jw_status" and changed and job.state in (2, 3, 4) and old != job.state:
                    value = 0
                self.assertEqual(shown(job, name), value, f"{place}: {name}")

    def check_close(
        self,
        row: dict[str, Any],
        job: JobRecord,
        happening: Event,
        changed: bool,
        old: int,
        place: str,
    ) -> None:
        """Times and codes follow effective events only."""
        self.assertEqual(job.updated_at, happening.timestamp if changed else THEN, place)
        entered = changed and job.state != old
        self.assertEqual(job.entered_at, happening.timestamp if entered else THEN, place)
        seconds = happening.timestamp // 1_000_000
        if entered:
            self.assertEqual(job.entered_times[job.state], seconds, place)
        if row["event"] == "Transfer" and row.get("state") == "Scheduled" and old in (5, 6):
            self.assertEqual(job.entered_times[record.SCHEDULED], seconds, place)
        elif not entered:
            self.assertEqual(job.entered_times, [0] * 12, place)
        last = code(BEFORE)
        if changed:
            kept = {"ChangeACL", "GrantPayloadOwnership", "TakePayloadOwnership", "Cancel"}
            if row["event"] not in kept or (
                row["event"] == "Cancel" and row["fields"]["STATUS_CODE"] == "DONE"
            ):
                last = happening.seqcode
            if "LM of the kept code is 0" in row.get("note", ""):
                last = seqcode.with_component(last, 6, 0)
        self.assertEqual(job.last_code, last, place)
        if changed and row["event"] == "Cancel":
            self.assertEqual(job.last_cancel_code, happening.seqcode, place)

    def test_every_row_in_every_state(self) -> None:
        """87 rows, their sources, 11 states, in time and late."""
        for row in load("state-rows")["rows"]:
            for source in row["sources"]:
                for in_time in (True, False):
                    happening = event(
                        row["event"],
                        row["fields"],
                        source=source,
                        seqcode=AFTER if in_time else "UI5 LM2",
                    )
                    for old in range(11):
                        self.check(row, source, old, in_time, happening)

    def test_every_grid_event_type_has_a_row(self) -> None:
        """No type of the table is forgotten, but for the one that nobody can log."""
        rows = {row["event"] for row in load("state-rows")["rows"]}
        wanted = {kind.name for kind in EVENT_TYPES.values() if kind.number < 100}
        self.assertEqual(wanted - rows, {"Notification"})


class ExampleTests(SynchronousTestCase):
    """Lives of jobs, event by event."""

    def run_steps(self, steps: list[dict[str, Any]], title: str) -> None:
        job = JobRecord(parse_job_id(JOB_ID), "/O=Grid/CN=jan")
        for step in steps:
            place = f"{title} {step.get('number', '')} {step['event']}"
            happening = event(
                step["event"],
                step["fields"],
                source=step["source"],
                seqcode=step.get("code", "UI1"),
                user="/CN=jan",
            )
            apply(job, happening)
            self.assertEqual(STATES[job.state], step["state"], place)
            if "last" in step:
                self.assertEqual(job.last_code, code(step["last"]), place)
            for name, value in step.get("expect", {}).items():
                if name == "note":
                    continue
                if name == "entered_scheduled":
                    self.assertTrue(job.entered_times[record.SCHEDULED], place)
                else:
                    self.assertEqual(shown(job, name), value, f"{place}: {name}")

    def test_examples(self) -> None:
        """Deep and shallow resubmission, cancel, tags, ownership and the others."""
        for title, steps in load("state-examples")["examples"].items():
            self.run_steps(steps, title)

    def test_other_job_types(self) -> None:
        """PBS, Condor, CREAM, file transfers and virtual machines."""
        for machine in load("dialect-rows")["machines"]:
            self.run_steps(machine["steps"], machine["jobtype"])

    def test_virtual_machines_keep_no_code(self) -> None:
        """Their last code stays empty."""
        job = JobRecord(parse_job_id(JOB_ID), "/CN=jan")
        apply(job, event("RegJob", {"NS": "n", "JOBTYPE": "VIRTUAL_MACHINE"}))
        self.assertEqual(job.last_code, "")

    def test_network_server_is_filled_in(self) -> None:
        """An event from the network server names it when the registration did not."""
        job = make_job()
        del job.values["network_server"]
        apply(job, event("UserTag", {"NAME": "a", "VALUE": "b"}, source="NetworkServer"))
        self.assertEqual(job.get("network_server"), "here.example.org:i1")

    def test_branches_load_two_rows_before(self) -> None:
        """Fields come from the tagged row, and from two rows before where that has none."""
        job = make_job(last="UI5")
        job.set_branch(1, destination="d1", node="n1", jdl="j1")
        job.set_branch(2, destination="d2")
        job.set_branch(3, node="n3")
        job.set_branch(4, jdl="j4")
        job.set_branch(9, destination="d9")
        apply(job, event("ReallyRunning", source="LRMS", seqcode="UI5 WM4 LM1"))
        found = [job.get(name) for name in ("destination", "ce_node", "matched_jdl")]
        self.assertEqual(found, ["d2", "n3", "j4"])

    def test_an_unknown_branch_loads_the_last_two_rows(self) -> None:
        """Without a row of its own the newest two are shown."""
        job = make_job(last="UI5")
        job.set_branch(1, destination="d1")
        job.set_branch(2, node="n2")
        job.set_branch(3, node="n3")
        apply(job, event("ReallyRunning", source="LRMS", seqcode="UI5 WM7"))
        self.assertEqual((job.get("destination"), job.get("ce_node")), ("", "n3"))

    def test_coming_in_anew_forgets_branches(self) -> None:
        """A higher count of the user interface or the network server starts afresh."""
        for newer in ("UI6", "UI5 NS1"):
            job = make_job(last="UI5 WM3")
            job.branch_tag = job.last_branch_code = job.deep_code = code("UI5 WM3")
            apply(job, event("Pending", {"REASON": "r"}, seqcode=newer))
            self.assertEqual((job.branch_tag, job.deep_code), ("", ""))
            job.branch_tag = job.deep_code = code("UI5 WM3")
            apply(job, event("Cancel", {"STATUS_CODE": "REQ"}, seqcode="UI7"))
            self.assertEqual(job.branch_tag, code("UI5 WM3"))


class FamilyTests(SynchronousTestCase):
    """Collections."""

    def parent(self, kind: str, total: int, **counts: int) -> JobRecord:
        job = JobRecord(parse_job_id(JOB_ID), "/CN=jan")
        apply(job, event("RegJob", {"NS": "n", "JOBTYPE": kind, "NSUBJOBS": str(total)}))
        for name, count in counts.items():
            number = state_number(name)
            assert number is not None
            for _ in range(count):
                family.move_child(job, record.UNKNOWN, number)
        return job

    def test_rules(self) -> None:
        """The state follows the classes of the children, in the order of the rules."""
        for kind, total, counts, wanted in (
            ("COLLECTION", 3, {"Running": 1, "Done": 2}, "Running"),
            ("COLLECTION", 3, {"Cleared": 3}, "Cleared"),
            ("COLLECTION", 3, {"Done": 1, "Cleared": 2}, "Done"),
            ("COLLECTION", 3, {"Done": 3}, "Done"),
            ("COLLECTION", 3, {"Aborted": 1, "Done": 1, "Cleared": 1}, "Aborted"),
            ("COLLECTION", 3, {"Done": 2}, "Waiting"),
            ("COLLECTION", 3, {}, "Waiting"),
            ("FILE_TRANSFER_COLLECTION", 2, {"Running": 1, "Done": 1}, "Running"),
            ("FILE_TRANSFER_COLLECTION", 2, {"Done": 2}, "Done"),
            ("FILE_TRANSFER_COLLECTION", 2, {"Done": 1, "Aborted": 1}, "Aborted"),
            ("FILE_TRANSFER_COLLECTION", 2, {"Cleared": 2}, "Waiting"),
        ):
            state = family.computed_state(self.parent(kind, total, **counts))
            self.assertEqual(STATES[state or 0], wanted, (kind, counts))

    def test_a_dag_does_not_follow(self) -> None:
        """The state of a DAG is its own."""
        self.assertIsNone(family.computed_state(self.parent("DAG", 2, Running=1)))

    def test_classes(self) -> None:
        """Done counts as done only with its code OK."""
        for state, done_code, wanted in (
            (record.RUNNING, -1, record.RUNNING),
            (record.DONE, 0, record.DONE),
            (record.DONE, 1, record.UNKNOWN),
            (record.DONE, -1, record.UNKNOWN),
            (record.ABORTED, -1, record.ABORTED),
            (record.CLEARED, 0, record.CLEARED),
            (record.CANCELLED, 2, record.CLEARED),
            (record.WAITING, -1, record.UNKNOWN),
        ):
            job = make_job(state)
            job.set("done_code", done_code)
            self.assertEqual(job.child_class, wanted)

    def test_the_event_goes_through_the_machine(self) -> None:
        """The computed state is an event like others, and one that can be read."""
        parent = self.parent("COLLECTION", 2, Running=1)
        made = family.collection_event(
            parent, record.RUNNING, JOB_ID, "Running", "proxy.example.org", 5_000_000
        )
        again = parse(made.line)
        self.assertEqual((again.priority, again.source, again.user), (32, 9, "LBProxy"))
        self.assertEqual(again.seqcode, code("UI1 LBS1"))
        self.assertEqual(apply(parent, again), Effect.OK)
        self.assertEqual(parent.state, record.RUNNING)

    def test_registering_again_keeps_the_histogram(self) -> None:
        """Children that have moved are not counted twice."""
        parent = self.parent("COLLECTION", 3, Running=1)
        apply(
            parent,
            event("RegJob", {"NS": "n", "JOBTYPE": "COLLECTION", "NSUBJOBS": "3"}, seqcode="UI2"),
        )
        self.assertEqual(parent.class_counts[record.UNKNOWN], 2)
        self.assertEqual(parent.class_counts[record.RUNNING], 1)


SHORT = st.tuples(*[st.integers(0, 3)] * 4).map(lambda c: f"UI{c[0]} NS{c[1]} WM{c[2]} LM{c[3]}")


@st.composite
def happenings(draw: st.DrawFn) -> Event:
    """Any event of any type from any source."""
    names = [name for name in EVENT_TYPES if name != "Notification"]
    kind = EVENT_TYPES[draw(st.sampled_from(names))]
    values = {
        Kind.INT: "1",
        Kind.REAL: "1.5",
        Kind.PORT: "7",
        Kind.TIME: "20260101000000",
        Kind.SOURCE: "LRMS",
        Kind.JOB_ID: JOB_ID,
    }
    fields = {}
    for one in kind.fields:
        if one.kind is Kind.WORD:
            fields[one.name] = draw(st.sampled_from(sorted(one.words)))
        elif one.required or draw(st.booleans()):
            fields[one.name] = values.get(one.kind) or draw(st.sampled_from(["a", "b", "Done"]))
    source = draw(
        st.sampled_from(
            [
                "UserInterface",
                "NetworkServer",
                "WorkloadManager",
                "LRMS",
                "JobController",
                "LogMonitor",
                "CREAMExecutor",
                "PBSMom",
            ]
        )
    )
    return event(kind.name, fields, source=source, seqcode=draw(SHORT))


class AnyOrderTests(SynchronousTestCase):
    """Whatever comes in whatever order."""

    @given(
        st.sampled_from(sorted(EVENT_TYPES["RegJob"].fields[3].words)),
        st.lists(happenings(), max_size=25),
    )
    @examples(100)
    def test_any_events(self, kind: str, events: list[Event]) -> None:
        """No sequence of events fails, and the parts that were touched rebuild the record."""
        job = JobRecord(parse_job_id(JOB_ID), "/CN=jan")
        kept: dict[tuple[Part, Any], Any] = {}
        for happening in [event("RegJob", {"NS": "n", "JOBTYPE": kind}), *events]:
            self.assertIn(apply(job, happening), Effect)
            self.assertIn(job.state, range(11))
            self.store(job, kept)
        again = JobRecord(job.job_id, job.owner, job.state, job.job_type)
        again.load_core(job.core())
        for (part, key), value in sorted(kept.items(), key=lambda item: (item[0][0], item[0][1])):
            again.load_part(part, str(key), value)
        for name in ("values", "destinations", "nodes", "failures", "branches", "tags"):
            self.assertEqual(getattr(again, name), getattr(job, name))
        self.assertEqual(again.core(), job.core())

    def store(self, job: JobRecord, kept: dict[tuple[Part, Any], Any]) -> None:
        """What a store does with the touched parts."""
        for part, key in job.touched:
            if key is None:
                for mark in [mark for mark in kept if mark[0] is part]:
                    del kept[mark]
        for part, key in job.touched:
            if key is not None:
                value = job.part_value(part, key)
                if value is None:
                    kept.pop((part, key), None)
                else:
                    kept[part, key] = value
        job.touched.clear()

    def test_subjobs(self) -> None:
        """A subjob takes owner, times and parent from its parent's registration."""
        parent = JobRecord(parse_job_id(JOB_ID), "/CN=jan")
        apply(parent, event("RegJob", {"NS": "n", "JOBTYPE": "COLLECTION", "NSUBJOBS": "1"}))
        child = record.subjob_record(parent, JobId("h", 9000, "child"))
        self.assertEqual((child.state, child.job_type), (record.SUBMITTED, record.SIMPLE))
        self.assertEqual(child.get("parent_job"), JOB_ID)
        self.assertEqual(
            (child.entered_at, child.updated_at), (parent.entered_at, parent.updated_at)
        )
        self.assertEqual(NAMED & set(STATES), NAMED)
