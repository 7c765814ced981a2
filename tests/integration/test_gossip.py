"""Real daemons that gossip: the acceptance run at a small size, without its times."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.gossip_acceptance import Acceptance
from tests.integration.gossip_site import GossipSite
from tests.ports import free_block


class RealSiteTests(SynchronousTestCase):
    """``GRIDNET_GOSSIP_HOSTS``: how many daemons."""

    def test_tables_stay_equal_through_changes_a_partition_and_a_crash(self) -> None:
        count = int(os.environ.get("GRIDNET_GOSSIP_HOSTS", "3"))
        site = GossipSite(count, free_block(2 * count))
        self.addCleanup(site.end)
        steps = Acceptance(site, 5, 10 * count)
        steps.join()
        for _ in range(2):
            steps.change_once(count)
        self.assertTrue(steps.same_tables())
        steps.penalty()
        steps.part_and_heal()
        self.assertTrue(steps.same_tables())
        steps.dead_service()
        steps.kill_one()
        self.assertTrue(steps.same_tables())
        owners = {service[4] for service in site.tables()[0][0]}
        self.assertEqual(owners, {host.address for host in site.running()})
