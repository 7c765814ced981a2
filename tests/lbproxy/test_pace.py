"""gridnet.lbproxy.pace: what the writing thread waits for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy.pace import Pace


class GatheringTests(SynchronousTestCase):
    """For those who were answered together and are late."""

    def test_a_group_as_large_as_the_last(self) -> None:
        """Nobody is missing."""
        pace = Pace(max_gather_seconds=1.0)
        self.assertEqual(pace.pause(1), 0.0)
        pace.committed(8, 0.016)
        self.assertEqual(pace.pause(8), 0.0)
        self.assertEqual(pace.pause(9), 0.0)

    def test_a_smaller_group_waits_a_part_of_the_last_commit(self) -> None:
        """A little of what another commit would take."""
        pace = Pace(max_gather_seconds=1.0)
        pace.committed(8, 0.016)
        self.assertEqual(pace.pause(7), 0.001)

    def test_no_longer_than_is_set(self) -> None:
        """However long commits take."""
        pace = Pace(max_gather_seconds=0.002)
        pace.committed(8, 5.0)
        self.assertEqual(pace.pause(1), 0.002)

    def test_quick_commits_are_not_waited_for(self) -> None:
        """Another costs less than the pause."""
        pace = Pace(max_gather_seconds=0.002)
        pace.committed(8, 0.0005)
        self.assertEqual(pace.pause(1), 0.0)

    def test_those_who_are_gone_are_missed_once(self) -> None:
        """The next group is compared with the one that was too small."""
        pace = Pace(max_gather_seconds=1.0)
        pace.committed(8, 0.016)
        self.assertGreater(pace.pause(4), 0.0)
        pace.committed(4, 0.016)
        self.assertEqual(pace.pause(4), 0.0)

    @given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1e6), st.floats(0, 10))
    def test_always_within_bounds(self, last: int, size: int, took: float, most: float) -> None:
        """The pause is never longer than the setting nor than the part."""
        pace = Pace(max_gather_seconds=most)
        pace.committed(last, took)
        self.assertLessEqual(pace.pause(size), min(most, took / 16))


class LookingOutTests(SynchronousTestCase):
    """For the next event."""

    def test_while_it_finds_something(self) -> None:
        """It goes on."""
        pace = Pace(look_out_seconds=0.001)
        for _ in range(1000):
            self.assertEqual(pace.look_out(), 0.001)
            pace.looked_out(True)

    def test_in_vain(self) -> None:
        """It is given up for a while, and tried again."""
        pace = Pace(look_out_seconds=0.001)
        looked = 0
        for _ in range(10 * (64 + 8)):
            if pace.look_out():
                looked += 1
                pace.looked_out(False)
        self.assertEqual(looked, 10 * 8)

    def test_one_find_is_enough(self) -> None:
        """To go on after some in vain."""
        pace = Pace(look_out_seconds=0.001)
        for number in range(1000):
            self.assertTrue(pace.look_out())
            pace.looked_out(number % 8 == 7)

    def test_none_is_wanted(self) -> None:
        """With 0 seconds."""
        self.assertEqual(Pace().look_out(), 0.0)
