"""Who may see which entry."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from gridnet.table.visibility import in_zone, is_visible
from tests.table.support import rows, server


class ZoneTests(SynchronousTestCase):
    def test_zones_that_share_a_bit_see_each_other(self) -> None:
        for row in rows("table/visibility.json"):
            found = in_zone(row["server_zone"], row["reader_zone"], row["inter"])
            self.assertEqual(found, row["visible"], row)

    def test_no_zone_is_every_zone(self) -> None:
        self.assertTrue(in_zone(0, 2, False))
        self.assertTrue(in_zone(1, 0, False))


class MarkTests(SynchronousTestCase):
    def test_local_and_private(self) -> None:
        for local, private, client, inside, visible in (
            (False, False, "8.8.8.8", False, True),
            (True, False, "8.8.8.8", False, False),
            (True, False, "10.0.0.9", True, True),
            (False, True, "8.8.8.8", False, False),
            (False, True, "10.0.0.9", True, False),
            (False, True, "10.0.0.1", True, True),
            (True, True, "10.0.0.1", True, True),
            (False, True, "10.0.0.1", False, False),
        ):
            info = server("10.0.0.1", local=local, private=private)
            self.assertEqual(is_visible(info, client, inside), visible, (info, client))

    def test_a_client_over_loopback_is_on_this_host(self) -> None:
        info = server("10.0.0.1", private=True)
        for client in ("127.0.0.1", "127.0.0.5", "::1"):
            self.assertTrue(is_visible(info, client, True, "10.0.0.1"))
            self.assertFalse(is_visible(info, client, True, "10.0.0.2"))
            self.assertFalse(is_visible(info, client, True))
            self.assertFalse(is_visible(server("", private=True), client, True))
