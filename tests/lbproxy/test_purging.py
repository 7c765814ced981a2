"""Purges and the end of the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbproxy.book import Overloaded
from gridnet.lbproxy.config import LbproxyConfig
from gridnet.lbproxy.purging import Purger
from gridnet.lbproxy.query import PurgeFlags, PurgeRequest
from tests.lbproxy.running import SocketTestCase

_CONFIG = evolve(SocketTestCase.config, purge=evolve(SocketTestCase.config.purge, batch_jobs=1))


@frozen
class _Book:
    """A store that has two jobs to remove, and says at once that it did."""

    config: LbproxyConfig = _CONFIG
    changes: list[Callable[[Any], Any]] = field(factory=list)

    def change(self, work: Callable[[Any], Any]) -> Deferred[list[str]]:
        self.changes.append(work)
        return succeed(["a", "b"])


class StopTests(SynchronousTestCase):
    """Nothing of a purge outlives the service."""

    request = PurgeRequest(flags=PurgeFlags.REALLY | PurgeFlags.BACKGROUND, run_seconds=60)

    def setUp(self) -> None:
        self.clock, self.book = Clock(), _Book()
        self.purger = Purger(self.book, Path("/nowhere"), self.clock)  # type: ignore[arg-type]

    def test_a_purge_that_waits_between_two_batches_ends(self) -> None:
        self.assertEqual(self.successResultOf(self.purger.purge(self.request)).status, 202)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.purger.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_none_begins_after_the_end(self) -> None:
        """Clients are heard for a while yet, until all that they logged is stored."""
        self.purger.stop()
        for flags in (PurgeFlags.REALLY, PurgeFlags.REALLY | PurgeFlags.BACKGROUND):
            refused = self.purger.purge(evolve(self.request, flags=flags))
            self.assertIn("stopping", str(self.failureResultOf(refused, Overloaded).value))
        self.assertEqual(self.book.changes, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
