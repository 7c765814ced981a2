"""A service that does something again and again."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.repeating import Repeating


class RepeatingTests(SynchronousTestCase):
    """On a clock of ours."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.times: list[float] = []

    def call(self) -> None:
        """What is repeated."""
        self.times.append(self.clock.seconds())

    def test_it_calls_at_the_start_and_then_every_so_often(self) -> None:
        """Until it stops; a new start begins anew."""
        service = Repeating(self.clock, 10.0, self.call)
        service.startService()
        self.clock.pump([0.0, 5.0, 5.0, 10.0])
        self.assertEqual(self.times, [0.0, 10.0, 20.0])
        service.stopService()
        self.clock.pump([10.0] * 3)
        self.assertEqual((self.times, self.clock.getDelayedCalls()), ([0.0, 10.0, 20.0], []))
        service.startService()
        self.clock.advance(0.0)
        self.assertEqual(self.times[3:], [50.0])

    def test_the_first_call_can_wait(self) -> None:
        """As long as is said."""
        service = Repeating(self.clock, 10.0, self.call, 3.0)
        service.startService()
        self.clock.pump([1.0] * 14)
        self.assertEqual(self.times, [3.0, 13.0])

    def test_a_call_that_fails_does_not_end_it(self) -> None:
        """The error goes where those of delayed calls go."""

        def fail() -> None:
            self.call()
            raise ValueError("once more")

        service = Repeating(self.clock, 10.0, fail)
        service.startService()
        for _ in range(2):
            self.assertRaises(ValueError, self.clock.advance, 10.0)
        self.assertEqual(len(self.times), 2)

    def test_a_call_can_end_it(self) -> None:
        """There is no further one."""

        def call() -> None:
            self.call()
            service.end()

        service = Repeating(self.clock, 10.0, call)
        service.startService()
        self.clock.pump([10.0] * 3)
        self.assertEqual(len(self.times), 1)
        service.stopService()
