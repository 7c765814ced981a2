"""
Short runs of what the long scripts do: kill -9, read-your-write, damaged recordings.

``GRIDNET_EXAMPLES_FACTOR`` makes them longer; the full runs are ``python -m
tests.lbproxy.crash``, ``…read_your_write`` and ``…mutate``.
"""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.lbproxy import crash, mutate, read_your_write
from tests.lbproxy.child import shared_child

FACTOR = float(os.environ.get("GRIDNET_EXAMPLES_FACTOR", "1"))


def times(number: int) -> int:
    """*number*, or more of it when told."""
    return max(1, int(number * FACTOR))


class EnduranceTests(SynchronousTestCase):
    """Real processes, real sockets, real files."""

    def test_kill(self) -> None:
        """After kill -9 during load nothing acknowledged is missing, doubled or out of order,
        neither here nor at the server that it is forwarded to."""
        tally = crash.run(rounds=times(3), clients=4, seed=11, most=60)
        self.assertEqual(tally.rounds, times(3))
        self.assertGreater(tally.acknowledged, 10)
        self.assertGreater(tally.in_doubt, 0)
        # The last event of each client may have been stored without its reply.
        self.assertIn(tally.delivered - tally.acknowledged, range(5))

    def test_read_your_write(self) -> None:
        """A query after the reply sees the event, whoever else writes."""
        self.assertEqual(read_your_write.run(shared_child(), times(240), clients=8), [])

    def test_damaged_recordings(self) -> None:
        """Documented answers, nothing stored of what was refused, and it lives on."""
        outcomes, _ = mutate.run(count=times(500), seed=5)
        self.assertEqual(outcomes.total(), times(500))
        self.assertGreater(outcomes["stored"], 0)
