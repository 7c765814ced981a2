"""What is to be done at some time is done then, once, unless it was cancelled."""

from __future__ import annotations

from math import inf

from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.gossip.timers import Timers


class TimerTests(SynchronousTestCase):
    """Timers of a gossip."""

    def setUp(self) -> None:
        self.timers = Timers()
        self.done: list[tuple[float, str]] = []

    def at(self, time: float, name: str) -> object:
        """Note when it is done."""
        return self.timers.at(time, lambda now, what: self.done.append((now, what)), name)

    def test_in_the_order_of_their_times(self) -> None:
        for time, name in ((3.0, "c"), (1.0, "a"), (1.0, "b"), (9.0, "d")):
            self.at(time, name)
        self.assertEqual(self.timers.next, 1.0)
        self.timers.run(5.0)
        self.assertEqual(self.done, [(5.0, "a"), (5.0, "b"), (5.0, "c")])
        self.assertEqual(self.timers.next, 9.0)
        self.timers.run(9.0)
        self.assertEqual(self.timers.next, inf)

    def test_what_is_cancelled_wakes_nobody(self) -> None:
        first = self.timers.at(1.0, lambda now, what: self.done.append((now, what)), "first")
        second = self.timers.at(2.0, lambda now, what: self.done.append((now, what)), "second")
        self.at(3.0, "third")
        self.timers.cancel(second)
        self.assertEqual(self.timers.next, 1.0)
        self.timers.cancel(first)
        self.assertEqual(self.timers.next, 3.0)
        self.timers.run(4.0)
        self.timers.cancel(first)
        self.assertEqual(self.done, [(4.0, "third")])
        self.assertEqual(self.timers.next, inf)

    def test_what_is_done_may_plan_more(self) -> None:
        def again(now: float, left: int) -> None:
            self.done.append((now, str(left)))
            if left:
                self.timers.at(now, again, left - 1)

        self.timers.at(1.0, again, 2)
        self.timers.run(1.0)
        self.assertEqual(self.done, [(1.0, "2"), (1.0, "1"), (1.0, "0")])

    def test_what_is_over_holds_its_argument_no_more(self) -> None:
        for end in (self.timers.cancel, lambda timer: self.timers.run(9.0)):
            timer = self.timers.at(1.0, lambda now, what: self.done.append((now, what)), "it")
            end(timer)
            self.assertIsNone(timer.argument)
        self.assertEqual(self.done, [(9.0, "it")])
