"""Work for users, in turns, and not all of the time."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.time_share import TimeShare


class TimeShareTests(SynchronousTestCase):
    """Time passes only where the test says so."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.done: list[str] = []
        self.worked = 0.0
        self.share = TimeShare(
            self.clock,
            lambda: self.worked,
            0.25,
            3,
        )

    def ask(self, user: str, seconds: float = 1.0) -> bool:
        """Work of *user* that takes its time."""

        def work() -> None:
            self.worked += seconds
            self.done.append(user)

        return self.share.run(user, work)

    def test_who_finds_nobody_is_served_at_once(self) -> None:
        """And others have their part of the time after it."""
        self.ask("a")
        self.assertEqual(self.done, ["a"])
        self.ask("a")
        self.clock.advance(2.9)
        self.assertEqual(self.done, ["a"])
        self.clock.advance(0.1)
        self.assertEqual(self.done, ["a", "a"])
        self.clock.advance(3.0)
        self.ask("b")
        self.assertEqual(self.done, ["a", "a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_users_take_turns(self) -> None:
        """However much one of them wants."""
        for user in "aaabbc":
            self.ask(user)
        self.clock.pump([3.0] * 6)
        self.assertEqual("".join(self.done), "aabcab")

    def test_what_waits_for_one_user_is_bounded(self) -> None:
        """Others are not touched."""
        self.ask("a")
        self.assertEqual([self.ask("a") for _ in range(4)], [True, True, True, False])
        self.assertTrue(self.ask("b"))
        self.clock.pump([3.0] * 9)
        self.assertEqual(len(self.done), 5)

    def test_work_that_fails_stops_nobody(self) -> None:
        """It is logged."""

        def fail() -> None:
            raise RuntimeError("no")

        self.share.run("a", fail)
        self.ask("b")
        self.clock.advance(0)
        self.assertEqual(self.done, ["b"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_work_may_ask_for_more_work(self) -> None:
        """Which has its own turn."""
        self.share.run("a", lambda: self.ask("a"))
        self.assertEqual(self.done, [])
        self.clock.advance(0)
        self.assertEqual(self.done, ["a"])
