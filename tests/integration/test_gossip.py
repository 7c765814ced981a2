"""Real daemons that gossip: the acceptance run at a small size, without its times."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.gossip_acceptance import Acceptance
from tests.integration.gossip_site import GossipSite
from tests.ports import free_block

#: A quarter of what daemons have otherwise; the acceptance run itself keeps those.
_TIMES = {
    "probe_interval_seconds": 0.25,
    "probe_timeout_seconds": 0.125,
    "exchange_interval_seconds": 7.5,
    "exchange_again_seconds": 0.25,
    "reconnect_interval_seconds": 1.25,
    "join_interval_seconds": 2.5,
}


class RealSiteTests(SynchronousTestCase):
    """``GRIDNET_GOSSIP_HOSTS``: how many daemons."""

    def test_tables_stay_equal_through_changes_a_partition_and_a_crash(self) -> None:
        count = int(os.environ.get("GRIDNET_GOSSIP_HOSTS", "3"))
        site = GossipSite(count, free_block(2 * count), _TIMES)
        self.addCleanup(site.end)
        steps = Acceptance(site, 5, 10 * count)
        steps.join()
        for _ in range(2):
            steps.change_once(count)
        # Waited for: a busy machine may have a host held for dead, which comes back.
        site.wait(steps.same_tables, "equal tables")
        steps.penalty()
        steps.heal()
        site.wait(steps.same_tables, "equal tables")
        steps.dead_service()
        steps.crash()
        site.wait(steps.same_tables, "equal tables")
        running = {host.address for host in site.running()}
        site.wait(lambda: {each[4] for each in site.tables()[0][0]} == running, "its services")
