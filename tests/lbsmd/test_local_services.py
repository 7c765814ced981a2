"""What this host publishes: configured, judged, penalized, rerated."""

from __future__ import annotations

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.check_codes import DOWN, OFF, State, Verdict
from gridnet.lbsmd.dependencies import Key
from gridnet.lbsmd.local_services import LocalServices
from gridnet.table.model import Entry, ServiceTable
from tests.lbsmd.support import loaded


class LocalServicesTests(SynchronousTestCase):
    """One host's part of the table."""

    def setUp(self) -> None:
        self.table = ServiceTable()
        self.local = LocalServices(self.table, "10.0.0.1")
        self.local.load(loaded("A STANDALONE :1 R=500\nS STANDALONE 10.9.9.9:1\n"))

    def key(self, service: str = "A") -> Key:
        """Of the one server of that service."""
        return next(
            key for key, each in self.local.services().items() if each.placed.record.name == service
        )

    def entry(self, service: str = "A") -> Entry | None:
        """What the table says of it."""
        entries = self.table.entries(service)
        return entries[0] if entries else None

    def rate(self, service: str = "A") -> float:
        """Its rate in force."""
        entry = self.entry(service)
        assert entry is not None
        return entry.info.rate

    def test_verdicts_change_the_rate(self) -> None:
        """Each state in its way."""
        for verdict, rate in (
            (Verdict(State.UP, 40), 200.0),
            (DOWN, 0.0),
            (Verdict(State.STANDBY), 0.005),
            (Verdict(), 500.0),
        ):
            self.local.judge(self.key(), verdict)
            self.assertEqual(self.rate(), rate)

    def test_what_is_off_is_not_in_the_table(self) -> None:
        """Until it is back."""
        self.local.judge(self.key(), OFF)
        self.assertIsNone(self.entry())
        self.local.judge(self.key(), Verdict())
        self.assertEqual(self.rate(), 500.0)

    def test_reserved_servers_keep_their_rate(self) -> None:
        """But are kept aside, by a script or by somebody."""
        self.local.judge(self.key(), Verdict(State.RESERVED))
        entry = self.entry()
        assert entry is not None
        self.assertEqual((entry.reserved, entry.info.rate), (True, 500.0))
        self.local.judge(self.key(), Verdict())
        self.local.rerate(self.key(), None, reserved=True)
        entry = self.entry()
        assert entry is not None
        self.assertTrue(entry.reserved)

    def test_a_set_base_rate_is_what_verdicts_act_on(self) -> None:
        """Its sign is kept."""
        self.local.rerate(self.key(), -2000.0)
        self.assertEqual(self.rate(), -2000.0)
        self.local.judge(self.key(), Verdict(State.UP, 50))
        self.assertEqual(self.rate(), -1000.0)
        self.local.rerate(self.key(), None)
        self.assertEqual(self.rate(), 250.0)

    def test_a_reload_keeps_the_standing_of_servers_that_stay(self) -> None:
        """Penalty and verdict; the configured rate is the new one."""
        self.local.penalize(self.key(), 30.0)
        self.local.judge(self.key(), Verdict(State.UP, 50))
        self.local.load(loaded("A STANDALONE :1 R=100\nB STANDALONE :2\n"))
        entry = self.entry()
        assert entry is not None
        self.assertEqual((entry.penalty, entry.info.rate), (30.0, 50.0))
        self.assertIsNone(self.entry("S"))
        self.assertEqual(self.rate("B"), 1000.0)

    def test_a_server_that_is_gone_takes_no_more_verdicts(self) -> None:
        """One that comes late changes nothing."""
        key = self.key("S")
        self.local.load(loaded("A STANDALONE :1\n"))
        serial = self.table.serial
        self.local.judge(key, DOWN)
        self.local.penalize(key, 5.0)
        self.assertEqual(self.table.serial, serial)

    def test_an_unchanged_verdict_changes_nothing(self) -> None:
        """Subscribers of the table are left in peace."""
        self.local.judge(self.key(), DOWN)
        serial = self.table.serial
        self.local.judge(self.key(), DOWN)
        self.assertEqual(self.table.serial, serial)

    def test_the_later_of_two_definitions_counts(self) -> None:
        """There is one server all the same."""
        self.local.load(loaded("A STANDALONE :1 R=5\nB DNS\nA STANDALONE :1 R=7\n"))
        self.assertEqual((self.rate(), len(self.local.services())), (7.0, 2))

    def test_subscribers_hear_of_new_definitions(self) -> None:
        """After they are in force."""
        seen: list[int] = []
        self.local.subscribe(lambda: seen.append(len(self.local.services())))
        self.local.load(loaded("A DNS\n"))
        self.assertEqual(seen, [1])

    def test_a_full_table_is_told_and_survived(self) -> None:
        """A server that was off cannot come back while others hold its place."""
        table = ServiceTable(max_entries=1)
        local = LocalServices(table, "10.0.0.1")
        local.load(loaded("A DNS\n"))
        (key,) = local.services()
        local.judge(key, OFF)
        table.put(Entry("other", next(iter(local.services().values())).configured.info, "10.0.0.2"))
        local.judge(key, Verdict())
        self.assertEqual([entry.service for entry in table.all_entries()], ["other"])

    def test_what_the_load_says_of_the_host_stays(self) -> None:
        """Only environment and zone are the configuration's."""
        host = self.table.host("10.0.0.1")
        assert host is not None
        self.table.put_host(evolve(host, status=5.0))
        self.local.load(loaded("db=x\n"))
        after = self.table.host("10.0.0.1")
        assert after is not None
        self.assertEqual((after.status, after.environment), (5.0, (("db", "x"),)))
