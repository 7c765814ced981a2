"""The table of ``gridnet jobs``, from elements as a qmaster sends them."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import ConfigError
from gridnet.mirror.catalogue import GRID_ENGINE, OwnCatalogue
from gridnet.mirror.command_line import choice, condition
from gridnet.mirror.filters import Operator, What, Where
from gridnet.mirror.gridengine.dialect import dialect
from gridnet.mirror.jobs_command import Row, rows_of_job, table, task_state

SGE = dialect()


def ranges(*rows: tuple[int, int, int]) -> Any:
    names = ("RN_min", "RN_max", "RN_step")
    return SGE.list_of(
        "RN", [SGE.element("RN", dict(zip(names, row, strict=True))) for row in rows]
    )


def job(**values: Any) -> Any:
    return SGE.element("JB", {"JB_job_number": 7, "JB_job_name": "j", "JB_owner": "ann", **values})


def task(number: int, **values: Any) -> Any:
    return SGE.element("JAT", {"JAT_task_number": number, **values})


class RowTests(SynchronousTestCase):
    def test_a_waiting_array_is_one_line_for_each_state(self) -> None:
        rows = list(
            rows_of_job(
                job(
                    JB_ja_structure=ranges((1, 9, 2)),
                    JB_ja_n_h_ids=ranges((1, 5, 2)),
                    JB_ja_u_h_ids=ranges((7, 9, 2)),
                )
            )
        )
        self.assertEqual(
            [(row.state, row.tasks) for row in rows], [("qw", "1-5:2"), ("hqw", "7-9:2")]
        )

    def test_running_tasks_have_queue_and_slots_and_leave_the_waiting_ones(self) -> None:
        granted = SGE.list_of(
            "JG",
            [
                SGE.element("JG", {"JG_qname": "all.q@h", "JG_slots": 2}),
                SGE.element("JG", {"JG_qname": "all.q@i", "JG_slots": 1}),
            ],
        )
        running = task(3, JAT_status=0x80, JAT_granted_destin_identifier_list=granted)
        found = list(
            rows_of_job(
                job(
                    JB_ja_structure=ranges((1, 9, 1)),
                    JB_ja_n_h_ids=ranges((4, 9, 1)),
                    JB_ja_tasks=SGE.list_of("JAT", [running]),
                )
            )
        )
        self.assertEqual(
            [(r.state, r.tasks, r.queue, r.slots) for r in found],
            [("r", "3", "all.q@h", 3), ("qw", "4-9:1", "", 1)],
        )

    def test_a_job_that_waits_for_another_is_held(self) -> None:
        others = SGE.list_of("JRE", [SGE.element("JRE", {"JRE_job_number": 6})])
        found = rows_of_job(job(JB_ja_n_h_ids=ranges((1, 1, 1)), JB_jid_predecessor_list=others))
        self.assertEqual([(row.state, row.tasks) for row in found], [("hqw", "")])

    def test_states_have_the_letters_of_qstat(self) -> None:
        for status, state, letters in (
            (0x80, 0, "r"),
            (0x200, 0, "t"),
            (0x80, 0x200, "dr"),
            (0x80, 0x100, "s"),
            (0x80, 0x4000, "S"),
            (0, 0x8000, "Eqw"),
        ):
            self.assertEqual(task_state({"JAT_status": status, "JAT_state": state}), letters)

    def test_a_table_fits_the_terminal_it_is_for(self) -> None:
        rows = [Row(str(n), 0.5, "name" * 20, "u", "qw", 0, "", 1, "") for n in range(30)]
        lines = table(rows, width=40, height=10)
        self.assertEqual(len(lines), 10)
        self.assertTrue(all(len(line) <= 40 for line in lines))
        self.assertEqual(lines[-1], "... and 22 more")
        self.assertEqual(len(table(rows)), 31)

    def test_names_give_a_terminal_no_orders(self) -> None:
        """Whoever submits jobs chooses their names, and not in an encoding of ours."""
        (_, line) = table([Row("1", 0.5, "a\x1b[2J\udce9b", "u\n", "r", 0, "", 1, "")])
        self.assertIn("a?[2J?b", line)
        self.assertTrue(line.isprintable())


class ConditionTests(SynchronousTestCase):
    def test_values_have_the_kind_of_their_attribute(self) -> None:
        jobs = GRID_ENGINE.by_name["JOB"]
        self.assertEqual(condition(["JB_owner=17"], jobs), Where(Operator.EQUAL, "JB_owner", "17"))
        self.assertEqual(
            condition(["JB_job_number>=17"], jobs),
            Where(Operator.GREATER_EQUAL, "JB_job_number", 17),
        )
        self.assertEqual(
            condition(["JB_type&0x2", "JB_job_name~a*"], jobs),
            Where(
                Operator.AND,
                parts=(
                    Where(Operator.BITMASK, "JB_type", 2),
                    Where(Operator.PATTERN, "JB_job_name", "a*"),
                ),
            ),
        )
        own = OwnCatalogue(["s"]).by_name["s"]
        self.assertEqual(condition(["rate<1.5"], own), Where(Operator.LOWER, "rate", 1.5))
        self.assertEqual(condition(["name!=x=y"], own), Where(Operator.NOT_EQUAL, "name", "x=y"))
        self.assertIsNone(condition([], own))

    def test_what_cannot_be_is_refused_with_the_option(self) -> None:
        jobs = GRID_ENGINE.by_name["JOB"]
        for text in ("JB_owner", "=x", "JB_nothing=1", "JB_job_number=x"):
            error = self.assertRaises(ConfigError, condition, [text], jobs)
            self.assertIn("--where", str(error))
        self.assertIn("--what", str(self.assertRaises(ConfigError, choice, "JB_nothing", jobs)))
        self.assertEqual(choice("JB_owner, JB_type", jobs), What.of("JB_owner", "JB_type"))
        self.assertIsNone(choice("", jobs))
