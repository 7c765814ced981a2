"""Recurrence over clock changes and leap days, missed occurrences, dependencies, batches."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import schedule
from gridnet.scire.dependencies import (
    Batch,
    Condition,
    Verdict,
    combine,
    find_cycle,
    judge,
    releasable,
)
from gridnet.scire.machine import RunState
from gridnet.scire.schedule import Blackout, Cron, Due, Every, Misfire, Recurrence, zone
from tests.hypothesis_profile import examples


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def shown(seconds: float | None) -> str:
    assert seconds is not None
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def dates(rule: str, start: str, count: int, zone_name: str = "UTC") -> list[str]:
    recurrence = Recurrence(Cron.parse(rule), zone(zone_name))
    return [shown(t) for t in islice(recurrence.occurrences(utc(start), 1e11), count)]


class CronTests(SynchronousTestCase):
    """Five fields."""

    def test_simple_rules(self) -> None:
        self.assertEqual(
            dates("*/20 8-9 * * *", "2026-03-01 08:30", 4),
            ["2026-03-01 08:40", "2026-03-01 09:00", "2026-03-01 09:20", "2026-03-01 09:40"],
        )
        self.assertEqual(
            dates("0 2 1 jan,7 *", "2026-03-01", 3),
            ["2026-07-01 02:00", "2027-01-01 02:00", "2027-07-01 02:00"],
        )
        self.assertEqual(dates("0 0 * * 7", "2026-11-24", 1), ["2026-11-29 00:00"])
        self.assertEqual(dates("0 0 * * mon-wed", "2026-11-25", 1), ["2026-11-30 00:00"])

    def test_two_restricting_day_fields_are_either_or(self) -> None:
        self.assertEqual(
            dates("0 0 13 * fri", "2026-11-01", 3),
            ["2026-11-06 00:00", "2026-11-13 00:00", "2026-11-20 00:00"],
        )

    def test_leap_days(self) -> None:
        self.assertEqual(
            dates("0 0 29 2 *", "2026-01-01", 2), ["2028-02-29 00:00", "2032-02-29 00:00"]
        )

    def test_an_hour_that_does_not_occur_runs_right_after_the_gap(self) -> None:
        # Berlin, 2026-03-29: 02:00 CET is followed by 03:00 CEST (01:00 UTC).
        self.assertEqual(
            dates("30 2 * * *", "2026-03-27 12:00", 3, "Europe/Berlin"),
            ["2026-03-28 01:30", "2026-03-29 01:00", "2026-03-30 00:30"],
        )
        self.assertEqual(
            dates("*/15 2 * * *", "2026-03-29 00:00", 2, "Europe/Berlin"),
            ["2026-03-29 01:00", "2026-03-30 00:00"],
        )

    def test_an_hour_that_occurs_twice_runs_once(self) -> None:
        # Berlin, 2026-10-25: 03:00 CEST is followed by 02:00 CET (01:00 UTC).
        self.assertEqual(
            dates("30 2 * * *", "2026-10-24 12:00", 2, "Europe/Berlin"),
            ["2026-10-25 00:30", "2026-10-26 01:30"],
        )

    def test_what_is_no_rule(self) -> None:
        for text in (
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "5-1 * * * *",
            "*/0 * * * *",
            "x * * * *",
            "0 0 30 2 *",
            "1.5 * * * *",
        ):
            self.assertRaises(ValueError, Cron.parse, text)
        self.assertRaises(ValueError, zone, "Mars/Olympus")
        self.assertRaises(ValueError, zone, "../../etc/passwd")

    @given(st.text(max_size=30))
    @examples(150)
    def test_any_text_is_a_rule_or_a_value_error(self, text: str) -> None:
        for parse in (Cron.parse, Blackout.parse):
            try:
                parse(text)
            except ValueError:
                pass

    @given(
        st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 */3 1-7 * mon", "59 23 31 * *"]),
        st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
        st.integers(0, 2_000_000_000),
    )
    @examples(150)
    def test_the_next_occurrence_is_later_and_fits(self, rule: str, name: str, start: int) -> None:
        cron = Cron.parse(rule)
        found = cron.after(start, zone(name))
        assert found is not None
        self.assertGreater(found, start)
        again = cron.after(found - 1, zone(name))
        self.assertEqual(again, found)


class RecurrenceTests(SynchronousTestCase):
    """What stands around a rule."""

    def test_every(self) -> None:
        rule = Recurrence(Every(3600, anchor=100.0))
        self.assertEqual(rule.after(0), 100)
        self.assertEqual(rule.after(100), 3700)
        self.assertEqual(rule.after(3699.5), 3700)

    def test_blackouts_leave_occurrences_out(self) -> None:
        rule = Recurrence(
            Cron.parse("0 */6 * * *"), blackouts=(Blackout.parse("sat-sat,sun 05:00-19:00"),)
        )
        start = utc("2026-11-27 20:00")  # a Friday
        self.assertEqual(
            [shown(t) for t in islice(rule.occurrences(start, 1e11), 4)],
            ["2026-11-28 00:00", "2026-11-29 00:00", "2026-11-30 00:00", "2026-11-30 06:00"],
        )

    def test_a_blackout_past_midnight(self) -> None:
        window = Blackout.parse("fri 22:00-06:00")
        self.assertTrue(window.covers(datetime(2026, 11, 27, 23, 0)))
        self.assertTrue(window.covers(datetime(2026, 11, 28, 5, 59)))
        self.assertFalse(window.covers(datetime(2026, 11, 28, 6, 0)))
        self.assertFalse(window.covers(datetime(2026, 11, 27, 5, 0)))

    def test_a_rule_wholly_in_the_dark_has_no_next(self) -> None:
        rule = Recurrence(Cron.parse("0 3 * * *"), blackouts=(Blackout.parse("02:00-04:00"),))
        self.assertIsNone(rule.after(0))

    def test_spread_is_fixed_and_even(self) -> None:
        turns = [schedule.spread_seconds(1, n, 600) for n in range(1, 2001)]
        self.assertEqual(turns, [schedule.spread_seconds(1, n, 600) for n in range(1, 2001)])
        self.assertTrue(all(0 <= t < 600 for t in turns))
        self.assertLess(abs(sum(turns) / len(turns) - 300), 20)
        self.assertEqual(schedule.spread_seconds(1, 1, 0), 0)


class MisfireTests(SynchronousTestCase):
    """Two days without a server."""

    rule = Recurrence(Cron.parse("0 */6 * * *"))
    window = 86400.0

    def due(self, misfire: Misfire, now: str) -> Due:
        return schedule.due(self.rule, utc("2026-11-20 00:00"), misfire, self.window, utc(now))

    def test_policies(self) -> None:
        now, following = "2026-11-22 01:00", utc("2026-11-22 06:00")
        self.assertEqual(self.due(Misfire.ONCE, now), Due((utc("2026-11-22 00:00"),), following))
        self.assertEqual(self.due(Misfire.SKIP, now), Due((), following))
        self.assertEqual(
            [shown(t) for t in self.due(Misfire.ALL, now).now],
            ["2026-11-21 06:00", "2026-11-21 12:00", "2026-11-21 18:00", "2026-11-22 00:00"],
        )

    def test_a_punctual_occurrence_stands_for_the_missed_ones(self) -> None:
        self.assertEqual(
            [shown(t) for t in self.due(Misfire.ONCE, "2026-11-22 00:00:30").now],
            ["2026-11-22 00:00"],
        )
        self.assertEqual(len(self.due(Misfire.SKIP, "2026-11-22 00:00:30").now), 1)

    def test_nothing_before_its_time(self) -> None:
        self.assertEqual(
            self.due(Misfire.ALL, "2026-11-19 23:59:59"), Due((), utc("2026-11-20 00:00"))
        )

    def test_what_was_missed_is_bounded(self) -> None:
        found = schedule.due(Recurrence(Every(1)), 0.0, Misfire.ALL, 1e6, 100_000.0)
        self.assertEqual(len(found.now), schedule.MAX_MISSED)
        self.assertEqual(found.now[-1], 100_000.0)


class DependencyTests(SynchronousTestCase):
    """Jobs that wait for jobs."""

    def test_judgements(self) -> None:
        ok, bad, run = RunState.SUCCEEDED, RunState.FAILED, RunState.RUNNING
        for condition, states, complete, expected in (
            (Condition.SUCCESS, [ok], True, Verdict.GOOD),
            (Condition.SUCCESS, [ok, run], True, Verdict.OPEN),
            (Condition.SUCCESS, [ok, bad, run], True, Verdict.BAD),
            (Condition.SUCCESS, [RunState.SKIPPED], True, Verdict.BAD),
            (Condition.SUCCESS, [], True, Verdict.BAD),
            (Condition.SUCCESS, [], False, Verdict.OPEN),
            (Condition.SUCCESS, [ok], False, Verdict.OPEN),
            (Condition.END, [bad], True, Verdict.GOOD),
            (Condition.END, [run], True, Verdict.OPEN),
            (Condition.FAILURE, [bad], True, Verdict.GOOD),
            (Condition.FAILURE, [ok], True, Verdict.BAD),
        ):
            self.assertIs(judge(condition, states, complete), expected, (condition, states))

    def test_several_together(self) -> None:
        self.assertIs(combine([Verdict.GOOD, Verdict.OPEN, Verdict.BAD]), Verdict.BAD)
        self.assertIs(combine([Verdict.GOOD, Verdict.OPEN]), Verdict.OPEN)
        self.assertIs(combine([]), Verdict.GOOD)

    def test_cycles(self) -> None:
        self.assertEqual(find_cycle({1: [2], 2: [3], 3: [1]}, 1), [1, 2, 3, 1])
        self.assertEqual(find_cycle({1: [1]}, 1), [1, 1])
        self.assertEqual(find_cycle({1: [2, 3], 2: [4], 3: [4], 4: []}, 1), ())
        self.assertEqual(find_cycle({1: [2], 2: [3], 3: [2]}, 1), ())


class BatchTests(SynchronousTestCase):
    """How many at a time."""

    def test_no_bounds(self) -> None:
        self.assertEqual(releasable(Batch(0, 0, 0), 7, 3, 0, 0), 7)

    def test_parallel_runs_refill(self) -> None:
        self.assertEqual(releasable(Batch(0, 0, 3), 7, 1, 5, 5), 2)
        self.assertEqual(releasable(Batch(0, 0, 3), 7, 3, 5, 5), 0)

    def test_batches_wait_for_the_last_of_them(self) -> None:
        self.assertEqual(releasable(Batch(5, 0, 0), 7, 1, 4, 0), 0)
        self.assertEqual(releasable(Batch(5, 0, 0), 7, 0, 5, 0), 5)
        self.assertEqual(releasable(Batch(5, 0, 2), 7, 0, 5, 0), 2)

    def test_too_many_failures_stop_between_batches(self) -> None:
        self.assertEqual(releasable(Batch(5, 20, 0), 7, 4, 1, 1), 0)
        self.assertIsNone(releasable(Batch(5, 20, 0), 7, 0, 5, 1))
        self.assertEqual(releasable(Batch(5, 20, 0), 7, 0, 6, 1), 5)
