"""gridnet's own lists: what of the service table can be mirrored, and who keeps it current."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from gridnet.errors import ConfigError
from gridnet.interfaces import IObjectSource
from gridnet.mirror.address import Source, read_source, source_cell
from gridnet.mirror.catalogue import OwnCatalogue
from gridnet.mirror.feeder import SourceFeeder
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.local import LocalConnector
from gridnet.mirror.model import Registration
from gridnet.mirror.source import table_sources
from gridnet.table.model import Entry, Host, ServiceTable
from gridnet.table.server_info import parse
from tests.mirror.running import Numbers


def entry(service: str, text: str, **more: Any) -> Entry:
    return Entry(service, parse(text), **more)


class TableSourceTests(SynchronousTestCase):
    """Services, hosts and penalties of a table."""

    def setUp(self) -> None:
        self.table = ServiceTable(max_entries=100)
        self.services, self.hosts, self.penalties = table_sources(self.table)
        self.told: list[tuple[str, str, Any]] = []

    def note(self, source: Any) -> None:
        name = source.object_type

        def changed(key: str, attributes: Mapping[str, Any] | None) -> None:
            self.told.append((name, key, attributes))

        self.addCleanup(source.subscribe(changed))

    def test_they_are_sources(self) -> None:
        for source in (self.services, self.hosts, self.penalties):
            verifyObject(IObjectSource, source)
            self.assertEqual(source.snapshot(), {})

    def test_an_entry_comes_changes_and_goes(self) -> None:
        self.note(self.services)
        first = entry("Echo", "STANDALONE 10.1.1.1:80 R=100", owner="me")
        self.table.put(first)
        self.table.put(entry("Echo", "STANDALONE 10.1.1.1:80 R=200", owner="me"))
        self.table.remove(first)
        key = "echo STANDALONE 10.1.1.1:80"
        rates = [None if row is None else row["base_rate"] for _, _, row in self.told]
        self.assertEqual([told[1] for told in self.told], [key] * 3)
        self.assertEqual(rates, [100.0, 200.0, None])

    def test_a_refresh_is_no_change(self) -> None:
        self.note(self.services)
        for expires in (1000.0, 2000.0, 3000.0):
            self.table.put(entry("Echo", "STANDALONE 10.1.1.1:80", owner="me", expires_at=expires))
        self.assertEqual(len(self.told), 1)

    def test_the_load_of_a_host_changes_the_rating_of_what_runs_there(self) -> None:
        self.table.put(entry("Echo", "STANDALONE 10.1.1.1:80 R=100", owner="me"))
        self.table.put(entry("Echo", "STANDALONE 10.1.1.2:80 R=100", owner="me"))
        self.note(self.services)
        self.note(self.hosts)
        self.table.put_host(Host("10.1.1.1", 500.0))
        names = [(name, key) for name, key, _ in self.told]
        self.assertEqual(
            names, [("services", "echo STANDALONE 10.1.1.1:80"), ("hosts", "10.1.1.1")]
        )
        self.table.remove_host("10.1.1.1")
        self.assertIn(("hosts", "10.1.1.1", None), self.told)

    def test_a_penalty_comes_and_goes(self) -> None:
        self.note(self.penalties)
        self.table.put(entry("Echo", "STANDALONE 10.1.1.1:80", owner="me"))
        self.assertEqual(self.told, [])
        self.table.put(entry("Echo", "STANDALONE 10.1.1.1:80", owner="me", penalty=25.0))
        self.assertEqual(self.told[-1][2]["penalty"], 25.0)
        self.assertEqual(len(self.penalties.snapshot()), 1)
        self.table.put(entry("Echo", "STANDALONE 10.1.1.1:80", owner="me"))
        self.assertIsNone(self.told[-1][2])
        self.assertEqual(self.penalties.snapshot(), {})

    def test_a_snapshot_is_what_the_changes_lead_to(self) -> None:
        copies: dict[str, dict[str, Any]] = {}
        for source in (self.services, self.hosts, self.penalties):
            copy = copies[source.object_type] = dict(source.snapshot())

            def changed(key: str, row: Any, copy: dict[str, Any] = copy) -> None:
                if row is None:
                    del copy[key]
                else:
                    copy[key] = row

            source.subscribe(changed)
        for round_ in range(3):
            for port in range(1, 9):
                text = f"STANDALONE 10.1.1.{port % 3 + 1}:{port} R={port + round_}"
                penalty = 10.0 * ((port + round_) % 2)
                self.table.put(entry("svc", text, owner="me", penalty=penalty))
            self.table.put_host(Host(f"10.1.1.{round_ + 1}", 100.0 * round_))
        self.table.replace_owner("me", [entry("svc", "STANDALONE 10.1.1.1:3", owner="me")])
        for source in (self.services, self.hosts, self.penalties):
            self.assertEqual(copies[source.object_type], dict(source.snapshot()))


class FeederTests(SynchronousTestCase):
    """A source is asked only while somebody wants its list."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        catalogue = OwnCatalogue()
        self.keeper = MasterService(self.clock, catalogue)
        self.offers: list[Any] = []
        self.feeder = SourceFeeder(
            self.clock, self.keeper, catalogue, self.offered, linger_seconds=10
        )
        self.keeper.startService()
        self.source = Numbers()

    def offered(self) -> Iterator[Any]:
        return iter(self.offers)

    def mirror(self) -> MirrorService:
        wish = Registration(name="local", delivery_seconds=1)
        mirror = MirrorService(self.clock, LocalConnector(self.clock, self.keeper), wish)
        mirror.subscribe("numbers", flush_seconds=0)
        mirror.startService()
        return mirror

    def settle(self, seconds: float = 2.0) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)

    def tearDown(self) -> None:
        self.feeder.stop()
        done = self.keeper.stopService()
        self.settle(4)
        self.successResultOf(done)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_list_is_kept_while_it_is_wanted_and_some_time_longer(self) -> None:
        self.offers.append(self.source)
        self.assertEqual(self.feeder.names(), ("numbers",))
        self.assertEqual(self.source.subscribers, [])
        mirror = self.mirror()
        self.settle()
        self.source.put("b", {"n": 2})
        self.settle()
        self.assertEqual([e["n"] for e in mirror.mirror.list("numbers")], [1, 2])
        stopping = mirror.stopService()
        self.settle(8)
        self.successResultOf(stopping)
        self.assertEqual(self.feeder.attached, ("numbers",))
        self.settle(20)
        self.assertEqual((self.feeder.attached, self.source.subscribers), ((), []))
        again = self.mirror()
        self.settle()
        self.assertEqual(len(again.mirror.list("numbers")), 2)
        again.stopService()
        self.settle()

    def test_whoever_comes_before_the_source_gets_the_list_with_it(self) -> None:
        mirror = self.mirror()
        self.settle()
        self.assertFalse(mirror.mirror.is_current("numbers"))
        self.offers.append(self.source)
        self.feeder.offered()
        self.settle()
        self.assertEqual([e["n"] for e in mirror.mirror.list("numbers")], [1])
        mirror.stopService()
        self.settle()


class AddressTests(SynchronousTestCase):
    """Sources as people write them."""

    def test_each_form_is_read(self) -> None:
        environment = {"SGE_ROOT": "/sge", "SGE_CELL": "c"}
        found = {
            text: read_source(text, "x", environment)
            for text in (
                "gridnet://h:1",
                "gridnets://h",
                "gridengine://h:2",
                "gridengine:///sge/c/common",
                "gridengine:",
            )
        }
        self.assertEqual(found["gridnet://h:1"], Source("gridnet", "h", 1))
        self.assertEqual(found["gridnets://h"], Source("gridnets", "h", 6450))
        self.assertEqual(found["gridengine://h:2"], Source("gridengine", "h", 2))
        self.assertEqual(found["gridengine:"], found["gridengine:///sge/c/common"])

    def test_what_is_none_is_refused_with_the_key(self) -> None:
        for text in (
            "h:1",
            "http://h",
            "gridnet://",
            "gridnet://h/x",
            "gridnet://h:x",
            "gridnet://u@h",
            "gridengine:",
        ):
            error = self.assertRaises(ConfigError, read_source, text, "--source")
            self.assertIn("--source", str(error))

    def test_a_qmaster_on_loopback_is_called_by_the_name_of_this_host(self) -> None:
        cell = source_cell(Source("gridengine", "127.0.0.1", 7))
        self.assertNotIn(cell.master_host, ("127.0.0.1", "localhost"))
        self.assertEqual(cell.port, 7)
        self.assertEqual(source_cell(Source("gridengine", "q", None)).port, 6444)

    def test_addresses_compare_whole_names_without_their_domain(self) -> None:
        names = source_cell(Source("gridengine", "q", None)).names
        self.assertEqual(names.canonical("A.example.org"), "a")
        for text in ("127.0.0.1", "::1", "@All.hosts"):
            self.assertEqual(names.canonical(text), text.lower())
