"""What happens to stored events: registration, duplicates, families, leaving."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from attrs import evolve

from gridnet.lbproxy import frames, record
from gridnet.lbproxy.events import parse
from gridnet.lbproxy.ledger import SPOOL_FULL, TOO_MANY_SUBJOBS, LedgerRules
from gridnet.lbproxy.record import STATES
from tests.lbproxy.ledgers import NOW, REGISTER, LedgerTestCase, job
from tests.lbproxy.vectors import line, load

RUN = {"NODE": "node7"}
DONE_OK = {"STATUS_CODE": "OK", "EXIT_CODE": "0"}
DONE_FAILED = {"STATUS_CODE": "FAILED", "REASON": "r", "EXIT_CODE": "1"}
COLLECTION = {"JOBTYPE": "COLLECTION", "NSUBJOBS": "3", "SEED": "myseed"}
PARENT = "CollectionParentAAAA01"


class StoringTests(LedgerTestCase):
    """Registration, identity, order and duplicates."""

    def test_identity(self) -> None:
        """Nobody's events are refused before anything else is looked at."""
        for user in ("", "anonymous", "ANONYMOUS", "/CN=proxy"):
            self.assertEqual(self.log("a", "Purge", user=user), frames.NOBODY)
        self.assertEqual(self.count("events"), 0)

    def test_registration(self) -> None:
        """Only a registration makes a job; it may be repeated by its owner."""
        self.assertEqual(self.log("a", "Purge"), frames.NOT_REGISTERED)
        self.assertEqual(self.register("a"), frames.OK)
        self.assertEqual(self.log("a", "Purge", seqcode="UI2", user="/CN=other"), frames.OK)
        self.assertEqual(self.register("a", seqcode="UI3", user="/CN=other"), frames.OTHER_OWNER)
        self.assertEqual(self.register("a", seqcode="UI3", priority=64), frames.EXISTS)
        self.assertEqual(
            self.register("a", seqcode="UI3", user="/o=grid/cn=jan/CN=proxy"), frames.OK
        )
        self.assertEqual(self.count("events"), 3)
        self.assertEqual(self.record("a").owner, "/O=Grid/CN=jan")

    def test_exclusive_registration_of_a_purged_job(self) -> None:
        """With the flag a purged id stays taken, without it it may be used again."""
        self.register("a")
        self.ledger.purge(["a"], self.now)
        self.assertEqual(self.register("a", seqcode="UI2", priority=64), frames.EXISTS)
        self.assertEqual(self.register("a", seqcode="UI2"), frames.OK)

    def test_host_does_not_matter(self) -> None:
        """Jobs are looked up by the unique part alone."""
        self.register("a")
        (reply,) = self.enter([line("Purge", job_id="https://other:1/a", seqcode="UI2")]).replies
        self.assertEqual(reply, frames.OK)

    def test_duplicates(self) -> None:
        """The same event again is answered and not stored, in the same group, later, or after a
        restart; another in any of its marks is stored."""
        tag = {"NAME": "n", "VALUE": "v"}
        self.register("a")
        same = line("UserTag", tag, job_id=job("a"), seqcode="UI2")
        result = self.enter([same, same])
        self.assertEqual((result.replies, result.duplicates), ([frames.OK] * 2, 1))
        self.assertEqual(self.enter([same]).duplicates, 1)
        self.reopen()
        self.assertEqual(self.enter([same]).duplicates, 1)
        self.assertEqual(self.count("events"), 2)
        others = [
            {"source": "NetworkServer"},
            {"host": "there"},
            {"date": "20261122012209.050993"},
            {"level": "DEBUG"},
            {"user": "/CN=x"},
            {"seqcode": "UI3"},
        ]
        for common in others:
            self.assertEqual(
                self.log("a", "UserTag", tag, **{"seqcode": "UI2", **common}), frames.OK
            )
        self.assertEqual(self.count("events"), 2 + len(others))

    def test_many_events_of_one_job(self) -> None:
        """Duplicates are known too in a job with more events than memory keeps."""
        self.register("a")
        lines = [line("Purge", job_id=job("a"), seqcode=f"UI{number}") for number in range(2, 4300)]
        for start in range(0, len(lines), 600):
            self.enter(lines[start : start + 600])
        again = self.enter([lines[0], lines[-1], lines[2000]])
        self.assertEqual((again.duplicates, len(again.stored)), (3, 0))
        more = line("Purge", job_id=job("a"), seqcode="UI9999")
        self.assertEqual(self.enter([more, more]).duplicates, 1)
        self.assertEqual(self.count("events"), 4300)

    def test_survives_a_restart(self) -> None:
        """A record is the same after the file was closed, in all its parts."""
        for steps in load("state-examples")["examples"].values():
            for step in steps:
                name = f"job-{steps[0]['number']}-{len(steps)}"
                self.log(
                    name,
                    step["event"],
                    step["fields"],
                    source=step["source"],
                    seqcode=step.get("code", "UI1"),
                )
                before = self.ledger._jobs.entry(name)
                assert before is not None
                self.reopen()
                after = self.ledger._jobs.entry(name)
                assert after is not None
                self.assertEqual(after.record.core(), before.record.core())
                for part in ("tags", "destinations", "nodes", "failures", "branches"):
                    self.assertEqual(getattr(after.record, part), getattr(before.record, part))
                self.assertEqual(after.record.values, before.record.values)

    def test_memory_is_bounded(self) -> None:
        """A small cache gives the same results."""
        self.reopen(evolve(self.rules, cache_octets=1))
        for name in ("a", "b", "c"):
            self.register(name)
        for number in range(2, 6):
            for name in ("a", "b", "c"):
                self.log(name, "Running", RUN, seqcode=f"UI{number}")
        self.assertEqual(len(self.ledger._jobs), 1)
        self.assertEqual(self.record("a").nodes, ["node7"] * 4)

    def test_groups_of_any_size(self) -> None:
        """However many events a group has, all are written, in their order."""
        wanted = []
        for size in (1, 2, 3, 5, 17, 64, 65, 150):
            lines = [
                line("RegJob", REGISTER, job_id=job(f"g{size}-{number}")) for number in range(size)
            ]
            lines += [
                line("UserTag", {"NAME": "n", "VALUE": "v"}, job_id=job(f"g{size}-{number}"))
                for number in range(size)
            ]
            wanted += lines
            result = self.ledger.apply([parse(text) for text in lines], self.now)
            self.assertEqual(result.replies, [frames.OK] * 2 * size)
        rows = self.connection.execute("SELECT line FROM events ORDER BY position").fetchall()
        self.assertEqual([row[0] for row in rows], wanted)
        self.assertEqual((self.count("jobs"), self.count("parts")), (307, 614))

    def test_a_group_is_all_or_nothing(self) -> None:
        """When the commit fails nothing is there, neither in the file nor in memory."""
        self.register("a")
        self.connection.execute(
            "CREATE TRIGGER fail BEFORE INSERT ON events WHEN NEW.level = 10"
            " BEGIN SELECT raise(ABORT, 'no'); END"
        )
        with self.assertRaises(sqlite3.IntegrityError):
            self.enter(
                [
                    line("Running", RUN, job_id=job("a"), seqcode="UI2"),
                    line("RegJob", {"NS": "n", "JOBTYPE": "SIMPLE"}, job_id=job("b")),
                    line("Purge", job_id=job("a"), seqcode="UI3", level="DEBUG"),
                ]
            )
        self.assertEqual(self.record("a").state, record.SUBMITTED)
        self.assertEqual(self.log("b", "Purge"), frames.NOT_REGISTERED)
        self.assertEqual(self.log("a", "Running", RUN, seqcode="UI2"), frames.OK)
        self.assertEqual(self.record("a").state, record.RUNNING)

    def test_positions_grow_for_ever(self) -> None:
        """Positions are not used twice, even when the newest events are gone."""
        self.register("a")
        (stored,) = self.enter([line("Purge", job_id=job("a"), seqcode="UI2")]).stored
        self.ledger.purge(["a"], self.now)
        self.assertEqual(self.count("events"), 0)
        self.ledger.trim(self.now + 1, 0, 10)
        self.reopen()
        result = self.enter([line("RegJob", {"NS": "n", "JOBTYPE": "SIMPLE"}, job_id=job("b"))])
        self.assertGreater(result.stored[0].position, stored.position)


class FamilyTests(LedgerTestCase):
    """Collections and their subjobs."""

    def setUp(self) -> None:
        super().setUp()
        self.children = load("job-ids")["subjobs"]["unique"]

    def register_family(self, **fields: str) -> None:
        self.assertTrue(self.register(PARENT, fields={**COLLECTION, **fields}).ok)

    def states(self) -> list[str]:
        return [STATES[self.record(name).state] for name in [PARENT, *self.children]]

    def test_subjobs_exist_at_once(self) -> None:
        """They have the computed ids, the owner and times of the parent, and no events."""
        self.register_family()
        for name in self.children:
            found = self.record(name)
            self.assertEqual(found.owner, "/O=Grid/CN=jan")
            self.assertEqual((found.state, found.job_type), (record.SUBMITTED, record.SIMPLE))
            self.assertEqual(found.get("parent_job"), job(PARENT))
            self.assertEqual(found.updated_at, self.record(PARENT).updated_at)
        self.assertEqual(self.count("events"), 1)

    def test_the_parent_follows(self) -> None:
        """Its state is computed from its children's, and told by events of the proxy."""
        self.register_family()
        self.assertEqual(self.states()[0], "Submitted")
        self.log(self.children[0], "Running", RUN, seqcode="UI2")
        self.assertEqual(self.states()[0], "Running")
        self.log(self.children[0], "Done", DONE_OK, source="LogMonitor", seqcode="UI3")
        self.assertEqual(self.states()[0], "Waiting")
        for name in self.children[1:]:
            self.log(name, "Running", RUN, seqcode="UI2")
            self.log(name, "Done", DONE_OK, source="LogMonitor", seqcode="UI3")
        self.assertEqual(self.states(), ["Done"] * 4)
        self.assertEqual(self.record(PARENT).get("done_code"), 0)
        for name in self.children:
            self.log(name, "Clear", {"REASON": "USER"}, seqcode="UI4")
        self.assertEqual(self.states(), ["Cleared"] * 4)
        lines = [
            parse(text)
            for (text,) in self.connection.execute("SELECT line FROM events ORDER BY position")
        ]
        made = [one for one in lines if one.type.name == "CollectionState"]
        self.assertEqual({one.user for one in made}, {"LBProxy"})
        self.assertEqual({one.priority for one in made}, {32})
        self.assertEqual([one.seqcode[-6:] for one in made][:3], ["000001", "000002", "000003"])
        self.assertEqual(made[0].get("child"), job(self.children[0]))

    def test_aborted_may_come_back(self) -> None:
        """A parent aborted by its children runs again when one does."""
        self.register_family()
        for name in self.children:
            self.log(name, "Done", DONE_OK, source="LogMonitor", seqcode="UI2")
        self.log(self.children[0], "Abort", {"REASON": "r"}, seqcode="UI3")
        self.assertEqual(self.states()[0], "Aborted")
        self.log(self.children[1], "Running", RUN, seqcode="UI4")
        self.assertEqual(self.states()[0], "Running")

    def test_failed_children_are_the_rest(self) -> None:
        """Done with a failure counts neither as done nor as aborted."""
        self.register_family()
        for name in self.children:
            self.log(name, "Running", RUN, seqcode="UI2")
            self.log(name, "Done", DONE_FAILED, source="LogMonitor", seqcode="UI3")
        self.assertEqual(self.states()[0], "Waiting")
        self.assertEqual(self.record(PARENT).class_counts[record.UNKNOWN], 3)

    def test_dag_counts_without_following(self) -> None:
        """A DAG has the histogram, its state is its own."""
        self.register_family(JOBTYPE="DAG")
        self.log(self.children[0], "Running", RUN, seqcode="UI2")
        self.assertEqual(self.states()[0], "Submitted")
        self.assertEqual(self.record(PARENT).class_counts[record.RUNNING], 1)

    def test_explicit_registration_of_a_subjob(self) -> None:
        """It fills in what was missing, and the child stays in its family."""
        self.register_family()
        name = self.children[0]
        reply = self.register(name, fields={"PARENT": job(PARENT), "JDL": "[ sub ]"})
        self.assertEqual(reply, frames.OK)
        self.assertEqual(self.record(name).get("jdl"), "[ sub ]")
        self.assertEqual(self.record(name).get("parent_job"), job(PARENT))
        self.log(name, "Running", RUN, seqcode="UI2")
        self.assertEqual(self.states()[0], "Running")

    def test_children_before_their_parent(self) -> None:
        """However far they have come, a parent that is registered after them counts them."""
        early, running = self.children[:2]
        for name in (early, running):
            self.register(name, fields={"PARENT": job(PARENT)})
            self.log(name, "Running", RUN, seqcode="UI2")
        self.log(early, "Done", DONE_OK, source="LogMonitor", seqcode="UI3")
        self.register_family()
        self.assertEqual(self.states()[0], "Running")
        self.assertEqual(self.record(PARENT).class_counts[record.UNKNOWN], 1)
        for name in self.children[1:]:
            self.log(name, "Done", DONE_OK, source="LogMonitor", seqcode="UI4")
        self.assertEqual(self.states(), ["Done"] * 4)
        self.assertEqual(self.record(PARENT).class_counts[record.DONE], 3)

    def test_all_children_ended_before_their_parent(self) -> None:
        """Nothing is to come from them any more, so the registration says what they came to."""
        for name in self.children:
            self.register(name, fields={"PARENT": job(PARENT)})
            self.log(name, "Done", DONE_OK, source="LogMonitor", seqcode="UI2")
        self.register_family()
        self.assertEqual(self.states(), ["Done"] * 4)

    def test_children_that_were_not_announced(self) -> None:
        """Who names a parent that told no number of children is one of all."""
        self.register("early", fields={"PARENT": job(PARENT)})
        self.register_family(NSUBJOBS="0")
        for name in ("one", "two"):
            self.register(name, fields={"PARENT": job(PARENT)})
        self.assertEqual(STATES[self.record(PARENT).state], "Submitted")
        for name, wanted in (("early", "Waiting"), ("one", "Waiting"), ("two", "Done")):
            self.log(name, "Done", DONE_OK, source="LogMonitor", seqcode="UI2")
            self.assertEqual(STATES[self.record(PARENT).state], wanted)

    def test_a_parent_whose_code_cannot_be_read(self) -> None:
        """It follows its children like any other."""
        self.register(PARENT, fields=COLLECTION, seqcode="any")
        self.log(self.children[0], "Running", RUN, seqcode="UI2")
        self.assertEqual(self.states()[0], "Running")

    def test_nested_families(self) -> None:
        """A collection in a collection passes its state up."""
        self.register_family(NSUBJOBS="1")
        name = self.children[0]
        self.register(name, fields={**COLLECTION, "PARENT": job(PARENT), "NSUBJOBS": "1"})
        (inner,) = [
            row[0]
            for row in self.connection.execute(
                "SELECT unique_part FROM jobs WHERE parent = ?", (name,)
            )
        ]
        self.log(inner, "Running", RUN, seqcode="UI2")
        self.assertEqual(STATES[self.record(PARENT).state], "Running")

    def test_circles_do_no_harm(self) -> None:
        """Jobs that name each other as parents end nowhere in particular, but end."""
        for name, other in (("a", "b"), ("b", "a")):
            self.register(
                name, fields={"JOBTYPE": "COLLECTION", "NSUBJOBS": "0", "PARENT": job(other)}
            )
        self.register("c", fields={"PARENT": job("a")})
        self.register("self", fields={"PARENT": job("self")})
        for name in ("a", "b", "c", "self"):
            self.assertEqual(self.log(name, "Running", RUN, seqcode="UI2"), frames.OK)
        self.reopen(evolve(self.rules, keep_seconds={record.CLEARED: 0.0}))
        for name in ("c", "a", "b", "self"):
            self.log(name, "Clear", {"REASON": "USER"}, seqcode="UI3")
        self.assertEqual((self.count("jobs"), self.count("purged")), (0, 4))

    def test_registration_bounds(self) -> None:
        """Nobody makes more subjobs at once than is allowed."""
        self.reopen(evolve(self.rules, max_subjobs=3))
        self.assertEqual(
            self.register("x", fields={**COLLECTION, "NSUBJOBS": "4"}), TOO_MANY_SUBJOBS
        )
        self.assertEqual(self.count("jobs"), 0)
        self.register_family()

    def test_registering_again_makes_no_more(self) -> None:
        """A repeated registration leaves the children alone."""
        self.register_family()
        self.log(self.children[0], "Running", RUN, seqcode="UI2")
        self.assertTrue(self.register(PARENT, fields=COLLECTION, seqcode="UI5").ok)
        self.assertEqual(self.count("jobs"), 4)
        self.assertEqual(STATES[self.record(self.children[0]).state], "Running")


class LeavingTests(LedgerTestCase):
    """Jobs leave by state and by age."""

    FINAL = {record.CLEARED, record.ABORTED, record.CANCELLED, record.DONE}

    def keep(self, seconds: float, **changes: Any) -> None:
        self.reopen(evolve(self.rules, keep_seconds=dict.fromkeys(self.FINAL, seconds), **changes))

    def gone(self, name: str) -> bool:
        (jobs,) = self.connection.execute(
            "SELECT count(*) FROM jobs WHERE unique_part = ?", (name,)
        ).fetchone()
        (purged,) = self.connection.execute(
            "SELECT count(*) FROM purged WHERE unique_part = ?", (name,)
        ).fetchone()
        return not jobs and bool(purged)

    def test_at_once(self) -> None:
        """With 0 the event that makes a job final takes it along."""
        self.keep(0)
        for number, (event, fields) in enumerate(
            (
                ("Clear", {"REASON": "USER"}),
                ("Abort", {"REASON": "r"}),
                ("Cancel", {"STATUS_CODE": "DONE"}),
                ("Done", DONE_OK),
                ("Done", DONE_FAILED),
                ("Done", {**DONE_OK, "STATUS_CODE": "CANCELLED"}),
            )
        ):
            name = f"job{number}"
            self.register(name)
            self.assertEqual(
                self.log(name, event, fields, source="LogMonitor", seqcode="UI2"), frames.OK
            )
            self.assertTrue(self.gone(name), event)
            self.assertEqual(self.log(name, "Purge", seqcode="UI3"), frames.NOT_REGISTERED)
        self.assertEqual((self.count("events"), self.count("parts")), (0, 0))

    def test_later(self) -> None:
        """With a delay it stays, counted from the arrival of the event that made it final."""
        self.keep(600)
        self.register("a")
        self.log("a", "Done", DONE_OK, source="LogMonitor", seqcode="UI2")
        self.now += 300
        self.log("a", "Purge", seqcode="UI3")
        self.assertEqual(self.ledger.sweep(NOW + 599, 10), 0)
        self.reopen(self.ledger.rules)
        self.assertEqual(self.ledger.sweep(NOW + 600, 10), 1)
        self.assertTrue(self.gone("a"))

    def test_a_job_that_goes_on_stays(self) -> None:
        """Leaving Done ends the delay; a new Done begins another."""
        self.keep(600)
        self.register("a")
        self.log("a", "Done", DONE_FAILED, source="LogMonitor", seqcode="UI2")
        self.log("a", "Match", {"DEST_ID": "ce"}, source="WorkloadManager", seqcode="UI2 WM2")
        self.assertEqual(self.ledger.sweep(NOW + 10_000, 10), 0)
        self.now += 100
        self.log("a", "Done", DONE_OK, source="LogMonitor", seqcode="UI2 WM3")
        self.assertEqual(self.ledger.sweep(NOW + 699, 10), 0)
        self.assertEqual(self.ledger.sweep(NOW + 700, 10), 1)

    def test_the_time_of_leaving_is_written(self) -> None:
        """The row has it as soon as it changes, and keeps it when only other things do."""

        def due() -> object:
            return self.connection.execute("SELECT due_at FROM jobs").fetchone()[0]

        self.keep(600)
        self.register("a")
        self.assertIsNone(due())
        self.log("a", "Done", DONE_OK, source="LogMonitor", seqcode="UI2")
        self.assertEqual(due(), NOW + 600)
        self.now += 100
        self.log("a", "UserTag", {"NAME": "n", "VALUE": "v"}, seqcode="UI2")
        self.assertEqual(due(), NOW + 600)
        self.reopen(self.rules)
        self.log("a", "UserTag", {"NAME": "m", "VALUE": "v"}, seqcode="UI2")
        self.assertEqual(due(), NOW + 600)
        self.log("a", "Match", {"DEST_ID": "ce"}, source="WorkloadManager", seqcode="UI2 WM2")
        self.assertIsNone(due())

    def test_families_leave_together(self) -> None:
        """No subjob leaves before its parent, nor the parent before its subjobs."""
        for keep in (0.0, 600.0):
            self.now += 10_000
            self.keep(keep)
            children = load("job-ids")["subjobs"]["unique"]
            self.assertTrue(self.register(PARENT, fields=COLLECTION).ok)
            for name in children[:2]:
                self.log(name, "Clear", {"REASON": "USER"}, seqcode="UI2")
                self.ledger.sweep(self.now + keep, 10)
                self.assertFalse(self.gone(name) and not self.count("jobs"))
            self.assertEqual(self.count("jobs"), 4)
            self.log(children[2], "Clear", {"REASON": "USER"}, seqcode="UI2")
            self.ledger.sweep(self.now + keep, 10)
            self.assertEqual(self.count("jobs"), 0)
            for name in [PARENT, *children]:
                self.assertTrue(self.gone(name))
            self.connection.execute("DELETE FROM purged")

    def test_rules_may_change(self) -> None:
        """At the start jobs get the times that the present configuration says."""
        self.register("a")
        self.log("a", "Done", DONE_OK, source="LogMonitor", seqcode="UI2")
        self.keep(600)
        self.ledger.reschedule(NOW)
        self.assertEqual(self.ledger.sweep(NOW + 599, 10), 0)
        self.keep(10)
        self.ledger.reschedule(NOW)
        self.reopen(self.rules)
        self.ledger.reschedule(NOW)
        self.assertEqual(self.ledger.sweep(NOW + 10_000, 10), 0)
        self.keep(10)
        self.ledger.reschedule(NOW)
        self.assertEqual(self.ledger.sweep(NOW + 10, 10), 1)

    def test_consumers_are_bounded(self) -> None:
        """There are only so many; those that were not seen for long make room."""
        self.assertTrue(self.ledger.set_cursor("a", 1, self.now, 2, 100.0))
        self.assertTrue(self.ledger.set_cursor("b", 1, self.now + 50, 2, 100.0))
        self.assertFalse(self.ledger.set_cursor("c", 1, self.now + 100, 2, 100.0))
        self.assertTrue(self.ledger.set_cursor("a", 2, self.now + 60, 2, 100.0))
        self.assertFalse(self.ledger.set_cursor("c", 1, self.now + 150, 2, 100.0))
        self.assertTrue(self.ledger.set_cursor("c", 1, self.now + 151, 2, 100.0))
        names = self.connection.execute("SELECT name FROM consumers ORDER BY name").fetchall()
        self.assertEqual(names, [("a",), ("c",)])

    def test_sweeps_are_bounded(self) -> None:
        """One look takes no more jobs than told."""
        self.keep(0.5)
        for number in range(5):
            self.register(f"j{number}")
            self.log(f"j{number}", "Clear", {"REASON": "USER"}, seqcode="UI2")
        self.assertEqual(self.ledger.sweep(NOW + 1, 2), 2)
        self.assertEqual(self.ledger.sweep(NOW + 1, 2), 2)
        self.assertEqual(self.ledger.sweep(NOW + 1, 2), 1)

    def test_purge_by_age(self) -> None:
        """Strictly older than the time-out of its state, by the job's last event."""
        self.register("a")
        last = self.record("a").updated_at // 1_000_000
        timeouts: list[float | None] = [None] * 12
        timeouts[record.SUBMITTED] = 100.0
        self.assertEqual(self.ledger.purge_candidates(timeouts, last + 100), [])
        self.assertEqual(self.ledger.purge_candidates(timeouts, last + 101), ["a"])
        timeouts[record.SUBMITTED] = None
        self.assertEqual(self.ledger.purge_candidates(timeouts, last + 101), [])
        timeouts[record.DONE] = 0.0
        self.assertEqual(self.ledger.purge_candidates(timeouts, last + 101), [])

    def test_purge_by_age_takes_families_whole(self) -> None:
        """A collection goes only when all its children are old enough, a child never alone."""
        self.register(PARENT, fields=COLLECTION)
        child = load("job-ids")["subjobs"]["unique"][0]
        later = "20261122020000.000000"
        self.log(child, "Pending", {"REASON": "r"}, seqcode="UI2", date=later)
        last = self.record(PARENT).updated_at // 1_000_000
        timeouts: list[float | None] = [100.0] * 12
        self.assertEqual(self.ledger.purge_candidates(timeouts, last + 101), [])
        last = self.record(child).updated_at // 1_000_000
        self.assertEqual(self.ledger.purge_candidates(timeouts, last + 101), [PARENT])
        self.assertEqual(len(self.ledger.purge([PARENT], last + 101, timeouts=timeouts)), 4)

    def test_purge_by_list_takes_families_whole(self) -> None:
        """A subjob that is listed stays with its parent; the parent takes it along."""
        self.register(PARENT, fields=COLLECTION)
        child = load("job-ids")["subjobs"]["unique"][0]
        self.assertEqual(self.ledger.purge([child], self.now), [])
        self.assertEqual(len(self.ledger.purge([child, PARENT, child], self.now)), 4)
        self.register(child, fields={"PARENT": job(PARENT)})
        self.assertEqual(len(self.ledger.purge([child], self.now)), 1)
        for name, other in (("a", "b"), ("b", "a")):
            self.register(name, fields={"PARENT": job(other)})
        self.assertEqual(len(self.ledger.purge(["a"], self.now)), 2)

    def test_dry_run_and_dump(self) -> None:
        """A dry run only lists; a dump holds the events before they go."""
        self.register("a")
        self.log("a", "UserTag", {"NAME": "n", "VALUE": "two\nlines"}, seqcode="UI2")
        dump = Path(self.mktemp())
        self.assertEqual(
            self.ledger.purge(["a", "unknown"], self.now, dump=dump, really=False), [job("a")]
        )
        self.assertFalse(dump.exists())
        self.assertEqual(self.ledger.purge(["a"], self.now, dump=dump), [job("a")])
        lines = dump.read_bytes().splitlines()
        self.assertEqual(os.stat(dump).st_mode & 0o777, 0o600)
        self.assertEqual(len(lines), 2)
        self.assertTrue(lines[0].startswith(b"DG.ARRIVED=20270115080000.000000 DATE="))
        self.assertEqual(parse(lines[1]).get("value"), "two\nlines")

    def test_events_stay_for_the_stream(self) -> None:
        """Events of a purged job stay for as long as the stream keeps them, then go."""
        self.reopen(evolve(self.rules, stream_keep_seconds=100.0))
        self.register("a")
        self.ledger.purge(["a"], NOW)
        self.assertEqual(self.count("events"), 1)
        self.assertEqual(self.ledger.trim(NOW + 99, 1000, 10), 0)
        self.assertEqual(self.ledger.trim(NOW + 100, 1000, 10), 1)
        self.assertEqual(self.count("events"), 0)
        self.assertEqual(self.count("purged"), 1)
        self.ledger.trim(NOW + 1000, 1000, 10)
        self.assertEqual(self.count("purged"), 0)


class SpoolTests(LedgerTestCase):
    """What waits to be forwarded."""

    rules = LedgerRules(forwards=True, max_spooled=3, local_servers=frozenset({"shared:9000"}))

    def spooled(self) -> list[tuple[str, str]]:
        return [
            (destination, parse(text).type.name)
            for destination, text in self.connection.execute(
                "SELECT destination, line FROM spool JOIN events USING (position) ORDER BY position"
            )
        ]

    def test_what_goes_on(self) -> None:
        """All but direct and internal events, and those of a server that shares the store."""
        self.register("a")
        self.log("a", "Purge", seqcode="UI2", priority=24)
        self.log("a", "Purge", seqcode="UI3", priority=32)
        self.log("a", "Running", RUN, seqcode="UI4")
        self.enter([line("RegJob", {"NS": "n", "JOBTYPE": "SIMPLE"}, job_id="https://Shared/s")])
        self.assertEqual(
            self.spooled(), [("lb.example.org:9000", "RegJob"), ("lb.example.org:9000", "Running")]
        )

    def test_computed_events_stay(self) -> None:
        """The server computes the states of collections itself."""
        self.reopen(evolve(self.rules, max_spooled=100))
        self.register(PARENT, fields=COLLECTION)
        self.log(load("job-ids")["subjobs"]["unique"][0], "Running", RUN, seqcode="UI2")
        self.assertEqual([name for _, name in self.spooled()], ["RegJob", "Running"])
        self.assertEqual(self.count("events"), 3)

    def test_full(self) -> None:
        """A full spool refuses, or keeps the event here, as configured."""
        self.register("a")
        for number in (2, 3):
            self.assertTrue(self.log("a", "Purge", seqcode=f"UI{number}").ok)
        self.assertEqual(self.log("a", "Purge", seqcode="UI4"), SPOOL_FULL)
        self.assertEqual(self.count("events"), 3)
        self.assertTrue(self.log("a", "Purge", seqcode="UI3").ok)  # a duplicate
        self.reopen(evolve(self.rules, drops_when_full=True))
        result = self.enter([line("Purge", job_id=job("a"), seqcode="UI4")])
        self.assertEqual((result.replies, result.not_forwarded), ([frames.OK], 1))
        self.reopen(self.rules)
        (position,) = self.connection.execute("SELECT min(position) FROM spool").fetchone()
        self.ledger.forwarded([position, position, 999_999])
        self.assertEqual(self.ledger.spooled, 2)
        self.assertTrue(self.log("a", "Purge", seqcode="UI5").ok)

    def test_a_failed_commit_leaves_the_count(self) -> None:
        """What was not stored does not fill the spool."""
        self.register("a")
        self.connection.execute(
            "CREATE TRIGGER fail BEFORE INSERT ON events BEGIN SELECT raise(ABORT, 'no'); END"
        )
        for number in range(2, 9):
            with self.assertRaises(sqlite3.IntegrityError):
                self.log("a", "Purge", seqcode=f"UI{number}")
        self.assertEqual(self.ledger.spooled, 1)

    def test_purging_keeps_what_waits(self) -> None:
        """Events of a removed job are kept until their server has them."""
        self.register("a")
        self.ledger.purge(["a"], NOW)
        self.assertEqual(self.spooled(), [("lb.example.org:9000", "RegJob")])
        self.assertEqual(self.ledger.trim(NOW + 1, 1000, 10), 0)
        (position,) = self.connection.execute("SELECT position FROM spool").fetchone()
        self.ledger.forwarded([position])
        self.assertEqual(self.ledger.trim(NOW + 1, 1000, 10), 1)
        self.assertEqual(self.count("events"), 0)

    def test_those_that_wait_do_not_keep_others(self) -> None:
        """However few are looked at together; who waited longest is looked at again."""
        for number, name in enumerate("abc"):
            self.register(name)
            self.ledger.purge([name], NOW + number)
        rows = self.connection.execute("SELECT position FROM spool ORDER BY position").fetchall()
        first, *others = [position for (position,) in rows]
        self.ledger.forwarded(others)
        self.assertEqual([self.ledger.trim(NOW + 9, 1000, 1) for _ in range(4)], [0, 1, 1, 0])
        self.ledger.forwarded([first])
        self.assertEqual(sum(self.ledger.trim(NOW + 9, 1000, 1) for _ in range(2)), 1)
        self.assertEqual(self.count("events"), 0)
