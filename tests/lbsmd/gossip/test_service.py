"""Daemons of several hosts: what one publishes, the others answer with."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from attrs import evolve
from twisted.internet.defer import maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from gridnet.component import config_classes
from gridnet.config import SiteConfig, SiteSection, parse
from gridnet.errors import ConfigError, RemoteProtocolError
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.feedback import PenaltyRequest, Target
from gridnet.lbsmd.gossip.config import GossipConfig
from gridnet.lbsmd.gossip.identity import SigningIdentity
from gridnet.lbsmd.gossip.keys import new_key_line, write_private
from gridnet.lbsmd.gossip.membership import GossipTimes, Membership
from gridnet.lbsmd.gossip.messages import Standing
from gridnet.lbsmd.gossip.publisher import LOAD_KEY, SERVICE_KEY
from gridnet.lbsmd.gossip.table_values import encode_service
from gridnet.lbsmd.orders import Asker, Order, RefusedError
from gridnet.lbsmd.service import make_lbsmd
from gridnet.site import Site
from gridnet.table.model import HostFacts
from tests.lbsmd.gossip.hosts import HostDaemon, MemoryNetwork, start_host
from tests.log_events import observe_log

ONE, TWO, THREE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
TEXTS = {
    ONE: "db=PubMed\nA [0] STANDALONE :1\nB [0] STANDALONE :2\n",
    TWO: "A [0] STANDALONE :1\nC [0] HTTP :80 /c?x L=yes T=7\n",
    THREE: "D [0] NCBID '' | /bin/true\n",
}


class SiteCase(SynchronousTestCase):
    """Three hosts that have joined."""

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.events: list[Mapping[str, Any]] = []
        observe_log(self, self.events.append)
        self.directory = Path(self.mktemp()).absolute()
        self.hosts: dict[str, HostDaemon] = {}
        for address, text in TEXTS.items():
            self.start(address, text)
        self.network.run(3.0)

    def logged(self, part: str) -> list[str]:
        """Formats of the log events so far that contain *part*."""
        formats = (str(event.get("log_format")) for event in self.events)
        return [each for each in formats if part in each]

    def start(self, address: str, text: str, **keys: Any) -> HostDaemon:
        host = start_host(self.network, self.directory / address, address, text, keys)
        self.hosts[address] = host
        self.addCleanup(self.stop, address)
        return host

    def stop(self, address: str) -> None:
        host = self.hosts.pop(address, None)
        if host is not None:
            stopping = maybeDeferred(host.daemon.stopService)
            self.network.run(0.3)
            self.successResultOf(stopping)

    def kill(self, address: str) -> None:
        """As kill -9 does: nobody is told."""
        host = self.hosts.pop(address)
        host.gossip.running = 0
        if host.gossip._timer is not None:
            host.gossip._timer.cancel()
            host.gossip._timer = None
        del self.network.ports[address, 21000]


class GossipTests(SiteCase):
    """Tables that say the same."""

    def test_all_know_all(self) -> None:
        expected = {
            ("A", f"{ONE}:1", ONE),
            ("B", f"{ONE}:2", ONE),
            ("A", f"{TWO}:1", TWO),
            ("C", f"{TWO}:80", TWO),
            ("D", f"{THREE}:80", THREE),
        }
        for host in self.hosts.values():
            self.assertEqual(host.services(), expected)

    def test_entries_and_hosts_are_equal_to_those_of_their_owner(self) -> None:
        for owner in self.hosts.values():
            address = owner.site.section.address
            for other in self.hosts.values():
                theirs = sorted(other.site.table.owned_by(address), key=repr)
                ours = sorted(owner.site.table.owned_by(address), key=repr)
                if other is not owner:
                    ours = [evolve(entry, launcher="") for entry in ours]
                self.assertEqual(theirs, ours)
                self.assertEqual(other.site.table.host(address), owner.site.table.host(address))

    def test_what_a_host_says_of_itself_travels(self) -> None:
        table = self.hosts[ONE].site.table
        host = table.host(ONE)
        assert host is not None
        facts = HostFacts(load=0.25, tasks=151, ports=((80, 0.5), (81, 1.0)), kernel=(6, 1, 147))
        table.put_host(evolve(host, status=5.0, facts=facts))
        self.network.run(2.0)
        self.assertEqual(self.hosts[TWO].site.table.host(ONE), table.host(ONE))

    def test_changes_come_within_two_seconds(self) -> None:
        self.hosts[TWO].define("E [0] STANDALONE :5\nx=y\n")
        self.network.run(2.0)
        for host in self.hosts.values():
            owned = [entry.service for entry in host.site.table.owned_by(TWO)]
            self.assertEqual(owned, ["E"])
            known = host.site.table.host(TWO)
            self.assertEqual(known and known.environment, (("x", "y"),))

    def test_load_is_told_at_once_only_when_it_matters(self) -> None:
        table, other = self.hosts[ONE].site.table, self.hosts[TWO].site.table

        def set_status(status: float) -> None:
            host = table.host(ONE)
            assert host is not None
            table.put_host(evolve(host, status=status))

        def known() -> float:
            host = other.host(ONE)
            assert host is not None
            return host.status

        set_status(500.0)
        self.network.run(1.0)
        self.assertEqual(known(), 500.0)
        set_status(505.0)
        self.network.run(1.0)
        self.assertEqual(known(), 500.0)
        self.network.run(12.0)
        self.assertEqual(known(), 505.0)

    def test_a_claim_that_another_host_hides_is_told_too(self) -> None:
        for address in (ONE, TWO):
            self.hosts[address].define("Same [0] STANDALONE 10.0.0.9:9\n")
        self.network.run(2.0)
        table = self.hosts[THREE].site.table
        self.assertEqual([len(table.owned_by(each)) for each in (ONE, TWO)], [1, 1])
        self.assertEqual(len(table.entries("same")), 1)

    def test_a_dead_host_is_out_of_every_table_and_it_is_said_why(self) -> None:
        self.kill(THREE)
        self.network.run(30.0)
        for host in self.hosts.values():
            self.assertNotIn(THREE, {owner for *_, owner in host.services()})
            self.assertIsNone(host.site.table.host(THREE))
            answer = host.gossip.why_down({"host": THREE})
            self.assertEqual(answer["standing"], "dead")
            self.assertTrue(answer["accusations"])
            self.assertLess(abs(answer["since"] - self.network.seconds()), 30.0)

    def test_a_suspected_host_keeps_its_services_for_their_time(self) -> None:
        self.kill(TWO)
        one = self.hosts[ONE]
        for _ in range(200):
            self.network.run(0.1)
            if one.gossip.membership.hosts[TWO].standing is Standing.SUSPECT:
                break
        self.network.run(0.01)
        now = self.network.seconds()
        ends = {e.service: e.expires_at - now for e in one.site.table.owned_by(TWO)}
        self.assertEqual({name: round(left, 0) for name, left in ends.items()}, {"A": 30, "C": 7})

    def test_services_of_a_host_that_was_only_suspected_have_no_end_again(self) -> None:
        port = self.network.ports.pop((TWO, 21000))
        one = self.hosts[ONE]
        while one.gossip.membership.hosts[TWO].standing is not Standing.SUSPECT:
            self.network.run(0.05)
        self.network.run(0.01)
        table = one.site.table
        self.assertTrue(all(entry.expires_at < inf for entry in table.owned_by(TWO)))
        self.network.ports[TWO, 21000] = port
        self.network.run(5.0)
        self.assertIs(one.gossip.membership.hosts[TWO].standing, Standing.ALIVE)
        self.assertEqual([entry.expires_at for entry in table.owned_by(TWO)], [inf, inf])

    def test_damaged_notes_of_an_earlier_life_are_not_used(self) -> None:
        self.stop(ONE)
        path = self.directory / ONE / "state" / "gossip.hosts"
        for text in ("", "{", '{"hosts": [[1]]}', '{"hosts": [["a", "b", 1, "ab"]]}', "[]", "\0"):
            path.write_text(text)
            host = self.start(ONE, TEXTS[ONE], seeds=(f"{TWO}:21000",))
            self.network.run(3.0)
            self.assertEqual(len(host.services()), 5)
            self.stop(ONE)
            self.network.run(1.0)
        self.assertTrue(self.logged("makes no sense"))

    def test_a_host_that_leaves_is_out_at_once(self) -> None:
        self.stop(THREE)
        self.network.run(1.0)
        for host in self.hosts.values():
            self.assertNotIn(THREE, {owner for *_, owner in host.services()})
            self.assertEqual(host.gossip.why_down({"host": THREE})["standing"], "left")

    def test_a_restarted_host_publishes_what_it_has_now(self) -> None:
        self.kill(TWO)
        self.network.run(1.0)
        self.start(TWO, "F [0] STANDALONE :6\n")
        self.network.run(3.0)
        for host in self.hosts.values():
            self.assertEqual([e.service for e in host.site.table.owned_by(TWO)], ["F"])

    def test_a_restarted_host_finds_those_it_knew_without_a_seed(self) -> None:
        self.stop(ONE)
        self.network.run(2.0)
        self.start(ONE, TEXTS[ONE])
        self.network.run(3.0)
        self.assertEqual(len(self.hosts[ONE].services()), 5)

    def test_after_a_sleep_nobody_is_accused_and_all_is_known_again(self) -> None:
        one = self.hosts[ONE]
        for _ in range(2):
            call = one.gossip._timer
            # Stopped, as by SIGSTOP: nothing is read, no timer fires.
            port = self.network.ports.pop((ONE, 21000))
            call.delay(100.0)
            self.network.run(99.0)
            self.assertEqual(self.hosts[TWO].gossip.membership.hosts[ONE].standing, Standing.DEAD)
            self.network.ports[ONE, 21000] = port
            self.network.run(4.0)
        for host in self.hosts.values():
            self.assertEqual(len(host.services()), 5)
        for other in (TWO, THREE):
            self.assertEqual(one.gossip.membership.hosts[other].evidence, ())

    def test_the_halves_of_a_parted_site_find_each_other_again(self) -> None:
        self.network.cut = lambda source, target: (source == THREE) != (target == THREE)
        self.network.run(60.0)
        self.assertEqual(len(self.hosts[ONE].services()), 4)
        self.assertEqual(len(self.hosts[THREE].services()), 1)
        self.network.cut = lambda source, target: False
        self.network.run(60.0)
        for host in self.hosts.values():
            self.assertEqual(len(host.services()), 5)

    def test_a_full_table_takes_what_it_can_and_the_rest_when_there_is_room(self) -> None:
        one = self.hosts[ONE]
        one.site.table.max_entries = 6
        self.hosts[THREE].define("".join(f"D{n} [0] STANDALONE :{n}\n" for n in range(1, 5)))
        self.network.run(3.0)
        self.assertEqual(len(one.site.table), 6)
        self.assertEqual(one.gossip.facts()["entries left out"], 2)
        self.assertTrue(self.logged("the table is full"))
        self.hosts[TWO].define("")
        self.network.run(3.0)
        self.assertEqual(one.gossip.facts()["entries left out"], 0)
        self.assertEqual(len(one.site.table.owned_by(THREE)), 4)

    def test_values_without_sense_are_left_out_and_told_of(self) -> None:
        gossip = self.hosts[TWO].gossip
        for key, value in (("s77", b"[]"), ("h", b"{"), ("l", b"1"), ("e0", b"[3]"), ("x", b"?")):
            gossip.membership.publish(key, value)
        gossip._soon()
        self.network.run(3.0)
        one = self.hosts[ONE]
        self.assertEqual(one.gossip.facts()["values refused"], 4)
        self.assertEqual(len(one.site.table.owned_by(TWO)), 2)
        self.assertTrue(self.logged("value refused"))

    def test_a_host_without_an_address_for_a_name_is_in_no_table(self) -> None:
        one = self.hosts[ONE]
        odd = SigningIdentity(b"x" * 32)
        core = Membership("odd name", (THREE, 9), GossipTimes(), Random(1), 0.0, odd)
        entry = evolve(one.site.table.entries("a")[0], owner="odd name")
        core.publish("s0", encode_service(entry))
        said = [core.my_belief(), *core.own]
        one.gossip.membership.receive(one.gossip._now(), (THREE, 9), "odd name", said)
        one.gossip._soon()
        self.network.run(1.0)
        self.assertIn("odd name", one.gossip.membership.hosts)
        self.assertIsNone(one.site.table.host("odd name"))
        self.assertEqual(one.site.table.owned_by("odd name"), ())

    def test_strangers_cost_a_line_now_and_then(self) -> None:
        port = self.network.ports[ONE, 21000]
        for _ in range(500):
            port.protocol.datagramReceived(b"?" * 50, ("10.6.6.6", 6))
        self.assertEqual(self.hosts[ONE].gossip.counts["refused"], 500)
        self.assertEqual(len(self.logged("datagram refused")), 1)

    def test_entries_of_another_site_are_left_out_unless_they_are_inter(self) -> None:
        address = "127.0.0.4"
        text = "Z [0] STANDALONE :1\nInter [0] STANDALONE :2 RegularInter\n"
        host = start_host(
            self.network, self.directory / address, address, text, site_bits=0x300, zone_bits=0x100
        )
        self.hosts[address] = host
        self.addCleanup(self.stop, address)
        for each in (ONE, TWO, THREE):
            # Their site is all there is; what they hold is told by whom it is of.
            self.hosts[each].gossip.follower._site_bits = 0x3
        self.network.run(3.0)
        for each in (ONE, TWO, THREE):
            owned = self.hosts[each].site.table.owned_by(address)
            self.assertEqual([(e.service, e.zone) for e in owned], [("Inter", 0x100)])

    def test_keys_differ_by_host_and_stay(self) -> None:
        keys = {host.gossip._identity.key for host in self.hosts.values()}
        self.assertEqual(len(keys), 3)
        before = self.hosts[TWO].gossip._identity.key
        self.stop(TWO)
        self.start(TWO, TEXTS[TWO])
        self.assertEqual(self.hosts[TWO].gossip._identity.key, before)

    def test_a_host_under_a_name_that_is_taken_is_not_believed(self) -> None:
        impostor = start_host(
            self.network,
            self.directory / "impostor",
            TWO,
            "A [0] STANDALONE 127.0.0.4:666\n",
            {"interface": "127.0.0.4"},
        )
        self.hosts["127.0.0.4"] = impostor
        self.addCleanup(self.stop, "127.0.0.4")
        self.network.run(3.0)
        owned = {e.info.host for e in self.hosts[ONE].site.table.owned_by(TWO)}
        self.assertEqual(owned, {TWO})

    def test_figures_for_the_status_page(self) -> None:
        facts = self.hosts[ONE].site.status.facts["gossip"]()
        self.assertEqual(facts["hosts"], {"alive": 3})
        self.assertEqual(facts["packets"]["refused"], 0)

    def test_whether_two_hosts_hold_the_same_services_does_not_depend_on_loads(self) -> None:
        hosts = [self.hosts[ONE], self.hosts[TWO]]
        asked = {"services": True}
        self.assertNotIn("services", hosts[0].gossip.figures({}))
        before = {host.gossip.figures(asked)["services"] for host in hosts}
        self.assertEqual(len(before), 1)
        hosts[0].gossip.membership.publish(LOAD_KEY, b"another load")
        self.assertEqual({host.gossip.figures(asked)["services"] for host in hosts}, before)
        hosts[0].gossip.membership.publish(f"{SERVICE_KEY}9", b"another service")
        self.assertNotIn(hosts[0].gossip.figures(asked)["services"], before)

    def test_an_unknown_host_has_no_reason(self) -> None:
        why = self.hosts[ONE].gossip.why_down
        for question in ({}, {"host": 1}, {"host": "10.9.9.9"}):
            self.assertRaises(RemoteProtocolError, why, question)


class OrderTests(SiteCase):
    """What somebody asks anywhere is done by the owner, and known everywhere."""

    def order(self, target: Target, percent: int = 100, user: str = "root") -> Order:
        return Order(PenaltyRequest(target, percent, 60), Asker(user))

    def penalties(self, owner: str) -> dict[str, set[float]]:
        return {
            address: {entry.penalty for entry in host.site.table.owned_by(owner)}
            for address, host in self.hosts.items()
        }

    def test_a_penalty_is_everywhere_within_five_seconds(self) -> None:
        gossip = self.hosts[ONE].gossip
        sending = gossip.send_feedback(TWO, self.order(Target("*", host=TWO)))
        self.network.run(5.0)
        self.successResultOf(sending)
        self.assertEqual(self.penalties(TWO), {each: {100.0} for each in self.hosts})

    def test_it_is_done_once_and_in_spite_of_loss(self) -> None:
        carried: list[object] = []
        penalties = self.hosts[TWO].daemon.penalties
        original = penalties.carry_out

        def carry_out(order: Order) -> Any:
            carried.append(order)
            return original(order)

        self.patch(penalties, "carry_out", carry_out)
        chance = Random(1)
        self.network.cut = lambda source, target: chance.random() < 0.4
        sending = self.hosts[ONE].gossip.send_feedback(TWO, self.order(Target("A", host=TWO)))
        self.network.run(10.0)
        self.successResultOf(sending)
        self.assertEqual(len(carried), 1)

    def test_the_owner_refuses_who_may_not(self) -> None:
        order = self.order(Target("A", host=TWO), user="nobody-at-all")
        sending = self.hosts[ONE].gossip.send_feedback(TWO, order)
        self.network.run(2.0)
        failure = self.failureResultOf(sending, RefusedError)
        self.assertTrue(failure.getErrorMessage())
        self.assertEqual(self.penalties(TWO)[TWO], {0.0})

    def test_where_nobody_answers_it_fails_in_time(self) -> None:
        gossip = self.hosts[ONE].gossip
        with self.assertRaises(RefusedError):
            gossip.send_feedback("10.0.0.9", self.order(Target("A")))
        self.network.cut = lambda source, target: target == TWO
        sending = gossip.send_feedback(TWO, self.order(Target("A")))
        self.network.run(11.0)
        failure = self.failureResultOf(sending, RefusedError)
        self.assertIn("no answer within 10 s", failure.getErrorMessage())

    def test_a_stop_ends_what_waits(self) -> None:
        self.network.cut = lambda source, target: True
        sending = self.hosts[ONE].gossip.send_feedback(TWO, self.order(Target("A")))
        self.stop(ONE)
        self.failureResultOf(sending, RefusedError)


class KeyTests(SynchronousTestCase):
    """What a daemon needs before it talks to other machines."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        (self.directory / "servrc.cfg").write_text("")

    def make(self, address: str = "10.0.0.1", **keys: Any) -> None:
        site = Site(SiteConfig(SiteSection(address=address), {}, self.directory), MemoryNetwork())
        config = LbsmdConfig(
            servrc="servrc.cfg", directory=".", control="", gossip=GossipConfig(**keys)
        )
        make_lbsmd(config, site, run_in_thread=maybeDeferred)

    def test_without_a_key_it_does_not_leave_loopback(self) -> None:
        for keys in (
            {"interface": "0.0.0.0"},
            {"interface": "::"},
            {"interface": "10.0.0.1"},
            {"advertise": "10.0.0.1:7"},
            {"seeds": ("127.0.0.1", "10.0.0.2")},
            {"seeds": ("some.host:7",)},
            {"discover": "239.1.1.1:7"},
        ):
            error = self.assertRaises(ConfigError, self.make, **keys)
            self.assertIn("lbsmd.gossip.key_file", str(error))
            self.assertIn(next(iter(keys)), str(error))
        self.make(seeds=("127.0.0.9", "localhost:8", "[::1]:8"))

    def test_with_a_key_it_does(self) -> None:
        write_private(self.directory / "key", new_key_line())
        self.make(interface="0.0.0.0", key_file="key", seeds=("10.0.0.2",))

    def test_off_loopback_it_needs_an_address_that_others_know(self) -> None:
        write_private(self.directory / "key", new_key_line())
        for address in ("127.0.0.1", "::1"):
            error = self.assertRaises(
                ConfigError, self.make, address, interface="0.0.0.0", key_file="key"
            )
            self.assertIn("site.address", str(error))

    def test_a_key_file_must_be_closed_and_sound(self) -> None:
        path = self.directory / "key"
        for text, mode, expected in (
            (new_key_line(), 0o644, "others may read"),
            ("", 0o600, "found 0 keys"),
            ("# nothing\n\n", 0o600, "found 0 keys"),
            (new_key_line() + "abc\n", 0o600, "key:2"),
            ("\xff\n", 0o600, "key:1"),
        ):
            path.write_text(text)
            path.chmod(mode)
            error = self.assertRaises(ConfigError, self.make, key_file="key")
            self.assertIn(expected, str(error))
            self.assertNotIn(text.strip() or "?", str(error))
        path.unlink()
        self.assertRaises(ConfigError, self.make, key_file="key")

    def test_a_faulty_section_names_its_keys(self) -> None:
        text = """
            [lbsmd.gossip]
            interface = "somewhere"
            port = 70000
            seeds = [":7"]
            advertise = "name:1"
            discover = "name"
            identities = { "10.0.0.1" = "ab" }
            fanout = 0
            nonsense = 1
        """
        error = self.assertRaises(ConfigError, parse, text, config_classes())
        self.assertIn("lbsmd.gossip.nonsense", str(error))
        text = text.replace("nonsense = 1", "")
        error = self.assertRaises(ConfigError, parse, text, config_classes())
        for key in ("interface", "port", "seeds", "advertise", "discover", "identities", "fanout"):
            self.assertIn(f"lbsmd.gossip.{key}", str(error))


class KeyChangeTests(SynchronousTestCase):
    """The key of a site is changed while it runs."""

    def test_no_host_is_lost_when_a_key_is_changed_by_overlap(self) -> None:
        network, directory = MemoryNetwork(), Path(self.mktemp()).absolute()
        old, new = new_key_line(), new_key_line()
        hosts = []
        for address in (ONE, TWO, THREE):
            (directory / address).mkdir(parents=True)
            write_private(directory / address / "key", old)
            hosts.append(
                start_host(
                    network, directory / address, address, TEXTS[address], {"key_file": "key"}
                )
            )
        network.run(3.0)
        for text in (old + new, new + old, new):
            for host in hosts:
                (host.directory / "key").write_text(text)
                holders = dict(host.site.offers(IConfigurationHolder))
                self.assertEqual(self.successResultOf(holders["gossip"].reload()), ())
                network.run(5.0)
        for host in hosts:
            self.assertEqual(len(host.services()), 5)
            self.assertEqual(host.gossip.counts["refused"], 0)
        (hosts[0].directory / "key").write_text("nonsense")
        holders = dict(hosts[0].site.offers(IConfigurationHolder))
        self.assertEqual(len(self.successResultOf(holders["gossip"].reload())), 1)
        network.run(5.0)
        self.assertEqual(hosts[0].gossip.counts["refused"], 0)
        for host in hosts:
            stopping = maybeDeferred(host.daemon.stopService)
            network.run(0.3)
            self.successResultOf(stopping)
