"""The table: indexes, claims of several owners, expiry, notification."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from math import inf
from typing import Any

from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import TableError
from gridnet.table.model import Change, Entry, Host, ServiceTable, is_mask
from gridnet.table.server_info import ServerInfo, ServerType
from tests.hypothesis_profile import examples
from tests.table.support import entry, server


class LookUpTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = ServiceTable()

    def test_names_compare_without_case(self) -> None:
        put = entry("Bounce")
        self.table.put(put)
        self.assertEqual(self.table.entries("bOUNCE"), (put,))
        self.assertEqual(self.table.services(), ["Bounce"])
        self.assertEqual(self.table.entry("BOUNCE", put.info), put)

    def test_entries_keep_the_order_of_first_insertion(self) -> None:
        first, second = entry(info=server(port=2)), entry(info=server(port=1))
        self.table.put(first)
        self.table.put(second)
        changed = evolve(first, penalty=5.0)
        self.table.put(changed)
        self.assertEqual(self.table.entries("bounce"), (changed, second))

    def test_rate_and_time_do_not_make_another_server(self) -> None:
        self.table.put(entry(info=server(rate=1.0, time=5)))
        self.table.put(entry(info=server(rate=2.0, time=9)))
        self.assertEqual(len(self.table.entries("bounce")), 1)

    def test_an_unknown_service_has_no_entries(self) -> None:
        self.assertEqual(self.table.entries("bounce"), ())
        self.assertIsNone(self.table.entry("bounce", server()))
        self.table.put(entry())
        self.table.remove(entry())
        self.assertEqual(self.table.entries("bounce"), ())
        self.assertEqual(self.table.services(), [])

    def test_masks(self) -> None:
        for name in ("bounce", "Bobble", "echo", "bo-1"):
            self.table.put(entry(name))
        for mask, names in (
            ("b*", ["bo-1", "Bobble", "bounce"]),
            ("BO?????", []),
            ("bo????", ["Bobble", "bounce"]),
            ("*e", ["Bobble", "bounce"]),
            ("[^b]*", ["echo"]),
            ("[!b]*", ["echo"]),
            ("bo[a-c]*", ["Bobble"]),
            ("bounce", ["bounce"]),
            ("*", ["bo-1", "Bobble", "bounce", "echo"]),
            ("[", []),
            ("", []),
        ):
            found = [each.service for each in self.table.matching(mask)]
            self.assertEqual(found, names, mask)
        self.assertTrue(is_mask("b*"))
        self.assertFalse(is_mask("bo-1"))

    def test_dns_entries_by_place(self) -> None:
        here = entry("name", server("10.0.0.7", 53, type=ServerType.DNS))
        other = entry("other", server("10.0.0.7", 53, type=ServerType.DNS))
        self.table.put(here)
        self.table.put(other)
        self.table.put(entry(info=server("10.0.0.7", 53)))
        self.assertEqual(self.table.dns_entries_at("10.0.0.7", 53), (here, other))
        self.assertEqual(self.table.dns_entries_at("10.0.0.7", 54), ())
        self.table.remove(here)
        self.table.remove(other)
        self.assertEqual(self.table.dns_entries_at("10.0.0.7", 53), ())

    def test_hosts_in_order(self) -> None:
        for address in ("10.0.0.2", "10.0.0.1"):
            self.table.put_host(Host(address))
        self.assertEqual([host.address for host in self.table.hosts()], ["10.0.0.1", "10.0.0.2"])
        self.assertEqual(self.table.host("10.0.0.2"), Host("10.0.0.2"))
        self.assertTrue(self.table.remove_host("10.0.0.2"))
        self.assertFalse(self.table.remove_host("10.0.0.2"))
        self.assertIsNone(self.table.host("10.0.0.2"))


class Counted(str):
    """A name that counts how often it is compared or hashed."""

    touched = 0

    def __eq__(self, other: object) -> bool:
        Counted.touched += 1
        return str.__eq__(self, other)

    def __lt__(self, other: str) -> bool:
        Counted.touched += 1
        return str.__lt__(self, other)

    def __hash__(self) -> int:
        Counted.touched += 1
        return str.__hash__(self)

    def lower(self) -> str:
        return self


class LargeTableTests(SynchronousTestCase):
    """Ten thousand servers: what is asked does not depend on how many there are."""

    def touched(self, size: int) -> dict[str, int]:
        """How often names are touched by each look-up in a table of *size* services."""
        table = ServiceTable()
        names = [Counted(f"service{number:05}") for number in range(size)]
        for number, name in enumerate(names):
            kind = ServerType.DNS if number % 2 else ServerType.STANDALONE
            table.put(
                entry(
                    name,
                    server(f"10.0.{number >> 8}.{number & 255}", 80, type=kind),
                    owner=f"10.1.{number >> 8}.{number & 255}",
                    expires_at=1000.0 + number,
                )
            )
        wanted = names[size // 2]
        info = table.entries(wanted)[0].info
        found: dict[str, int] = {}
        for what, ask in (
            ("entries", lambda: table.entries(wanted)),
            ("entry", lambda: table.entry(wanted, info)),
            ("mask", lambda: table.matching(f"{wanted[:-1]}*")),
            ("dns", lambda: table.dns_entries_at(info.host, info.port)),
            ("owner", lambda: table.owned_by("10.1.0.7")),
            ("expire nothing", lambda: table.expire(999.0)),
            ("expire one", lambda: table.expire(1000.5)),
            ("refresh", lambda: table.put(evolve(table.entries(wanted)[0], expires_at=9e9))),
        ):
            Counted.touched = 0
            ask()
            found[what] = Counted.touched
        return found

    def test_look_ups_expiry_and_refresh_do_not_scan(self) -> None:
        small, large = self.touched(100), self.touched(10_000)
        for what, count in large.items():
            # The names are kept in order, so bisection may take a few steps more: no others may.
            self.assertLessEqual(count, small[what] + 16, what)

    def test_a_refreshed_table_does_not_grow_inside(self) -> None:
        table = ServiceTable()
        for moment in range(500):
            for port in range(1, 21):
                table.put(entry(info=server(port=port), expires_at=moment + 30.0))
            table.put_host(Host("10.0.0.1", expires_at=moment + 30.0))
            table.expire(float(moment))
        self.assertEqual(len(table), 20)
        self.assertLessEqual(len(table._due), 2 * 21 + 64)
        for moment in range(500):
            table.put(entry(f"passing{moment}", expires_at=1e6))
            table.remove(entry(f"passing{moment}"))
        self.assertLessEqual(len(table._due), 2 * 21 + 65)


class ClaimTests(SynchronousTestCase):
    """Two hosts publish the same server."""

    def setUp(self) -> None:
        self.table = ServiceTable()
        self.low = entry(owner="10.0.0.1", penalty=1.0)
        self.high = entry(owner="10.0.0.2", penalty=2.0)

    def test_the_lowest_owner_is_shown_in_whatever_order_they_come(self) -> None:
        for order in ((self.low, self.high), (self.high, self.low)):
            table = ServiceTable()
            for each in order:
                table.put(each)
            self.assertEqual(table.entries("bounce"), (self.low,))
            self.assertEqual(len(table), 2)
            self.assertEqual(table.owned_by("10.0.0.2"), (self.high,))

    def test_one_that_is_up_is_shown_before_one_that_is_down(self) -> None:
        self.table.put(evolve(self.low, info=server(rate=0.0)))
        self.table.put(self.high)
        self.assertEqual(self.table.entries("bounce"), (self.high,))

    def test_a_withdrawn_claim_uncovers_the_next(self) -> None:
        self.table.put(self.low)
        self.table.put(self.high)
        self.assertTrue(self.table.remove(self.low))
        self.assertFalse(self.table.remove(self.low))
        self.assertEqual(self.table.entries("bounce"), (self.high,))
        self.table.replace_owner("10.0.0.2", [])
        self.assertEqual(self.table.entries("bounce"), ())
        self.assertEqual(len(self.table), 0)

    def test_a_hidden_claim_comes_and_goes_unseen(self) -> None:
        self.table.put(self.low)
        steps: list[Sequence[Change]] = []
        self.table.subscribe(steps.append)
        self.table.put(self.high)
        self.table.remove(self.high)
        self.assertEqual(steps, [])

    def test_each_claim_expires_by_itself(self) -> None:
        self.table.put(evolve(self.low, expires_at=10.0))
        self.table.put(evolve(self.high, expires_at=20.0))
        self.assertEqual(self.table.expire(15.0), 1)
        self.assertEqual(self.table.entries("bounce")[0].owner, "10.0.0.2")
        self.assertEqual(self.table.expire(25.0), 1)
        self.assertEqual(self.table.entries("bounce"), ())


class StepTests(SynchronousTestCase):
    """Changes: bounded, atomic, told once."""

    def setUp(self) -> None:
        self.table = ServiceTable(max_entries=3)
        self.steps: list[Sequence[Change]] = []
        self.end = self.table.subscribe(self.steps.append)

    def test_a_full_table_refuses_and_stays_as_it_is(self) -> None:
        for port in (1, 2, 3):
            self.table.put(entry(info=server(port=port)))
        serial = self.table.serial
        for owner in ("10.0.0.1", "10.9.9.9"):
            self.assertRaises(TableError, self.table.put, entry(info=server(port=4), owner=owner))
        self.assertRaises(
            TableError,
            self.table.replace_owner,
            "10.0.0.1",
            [entry(info=server(port=port)) for port in range(1, 5)],
        )
        self.assertEqual(self.table.serial, serial)
        self.assertEqual(len(self.table), 3)
        self.assertEqual(self.table.owned_by("10.9.9.9"), ())
        self.table.put(entry(info=server(port=3), penalty=5.0))  # no more than there were

    def test_replacing_an_owner_is_one_step(self) -> None:
        kept, gone = entry(info=server(port=1)), entry(info=server(port=2))
        self.table.put(kept)
        self.table.put(gone)
        new = entry(info=server(port=3))
        self.steps.clear()
        serial = self.table.serial
        self.table.replace_owner("10.0.0.1", [kept, new])
        self.assertEqual(self.steps, [(Change(gone, None), Change(None, new))])
        self.assertEqual(self.table.serial, serial + 1)

    def test_replacing_by_another_s_entries_changes_nothing(self) -> None:
        self.table.put(entry())
        self.assertRaises(
            ValueError, self.table.replace_owner, "10.0.0.1", [entry(owner="10.0.0.2")]
        )
        self.assertEqual(len(self.table.entries("bounce")), 1)

    def test_what_does_not_change_is_not_told(self) -> None:
        self.table.put(entry())
        self.table.put_host(Host("10.0.0.1"))
        self.steps.clear()
        serial = self.table.serial
        self.table.put(entry())
        self.table.put_host(Host("10.0.0.1"))
        self.table.replace_owner("10.0.0.1", [entry()])
        self.assertEqual((self.steps, self.table.serial), ([], serial))

    def test_expiry_tells_all_at_once(self) -> None:
        self.table.put(entry(info=server(port=1), expires_at=10.0))
        self.table.put(entry(info=server(port=2), expires_at=inf))
        self.table.put_host(Host("10.0.0.1", expires_at=11.0))
        self.steps.clear()
        self.assertEqual(self.table.expire(10.0), 0)  # valid through its last moment
        self.assertEqual(self.table.expire(12.0), 2)
        self.assertEqual([len(step) for step in self.steps], [2])
        self.assertEqual(self.table.hosts(), [])

    def test_what_is_refreshed_lives_on_and_what_is_cut_short_ends(self) -> None:
        self.table.put(entry(expires_at=10.0))
        self.table.put(entry(expires_at=20.0))
        self.assertEqual(self.table.expire(15.0), 0)
        self.table.put(entry(expires_at=16.0))
        self.assertEqual(self.table.expire(17.0), 1)
        self.table.put_host(Host("10.0.0.1", expires_at=10.0))
        self.table.put_host(Host("10.0.0.1", expires_at=inf))
        self.assertEqual(self.table.expire(1e9), 0)

    def test_an_ended_subscription_is_told_nothing(self) -> None:
        self.end()
        self.end()
        self.table.put(entry())
        self.assertEqual(self.steps, [])

    def test_steps_made_by_a_subscriber_are_told_in_order_to_all(self) -> None:
        follow_up = entry(info=server(port=2))

        def react(step: Sequence[Change]) -> None:
            if step[0].after != follow_up:
                self.table.put(follow_up)

        self.end()
        self.table.subscribe(react)
        self.table.subscribe(self.steps.append)
        first = entry(info=server(port=1))
        self.table.put(first)
        self.assertEqual([step[0].after for step in self.steps], [first, follow_up])

    def test_a_subscriber_that_fails_does_not_keep_it_from_the_others(self) -> None:
        self.end()

        def fail(_: Sequence[Change]) -> None:
            raise RuntimeError("no")

        self.table.subscribe(fail)
        self.table.subscribe(self.steps.append)
        self.assertRaises(RuntimeError, self.table.put, entry())
        self.assertEqual(len(self.steps), 1)
        self.assertEqual(len(self.table.entries("bounce")), 1)


class NaiveTable:
    """What the table should be, written as plainly as can be: everything is a scan."""

    def __init__(self) -> None:
        self.claims: list[Entry] = []
        self.hosts: dict[str, Host] = {}

    def put(self, new: Entry) -> None:
        for index, old in enumerate(self.claims):
            if (old.owner, old.key) == (new.owner, new.key):
                self.claims[index] = new
                return
        self.claims.append(new)

    def remove(self, owner: str, key: tuple[object, ...]) -> None:
        self.claims = [each for each in self.claims if (each.owner, each.key) != (owner, key)]

    def shown(self) -> set[Entry]:
        found = set()
        for key in {each.key for each in self.claims}:
            rivals = [each for each in self.claims if each.key == key]
            rivals.sort(key=lambda each: (each.info.rate == 0, each.owner))
            found.add(rivals[0])
        return found

    def expire(self, now: float) -> None:
        self.claims = [each for each in self.claims if each.expires_at >= now]
        self.hosts = {name: host for name, host in self.hosts.items() if host.expires_at >= now}


entries = st.builds(
    Entry,
    service=st.sampled_from(("a", "A", "ab", "b")),
    info=st.builds(
        ServerInfo,
        type=st.sampled_from((ServerType.STANDALONE, ServerType.DNS)),
        host=st.sampled_from(("10.0.0.1", "10.0.0.2")),
        port=st.sampled_from((1, 2)),
        rate=st.sampled_from((0.0, 1000.0)),
    ),
    owner=st.sampled_from(("10.0.0.1", "10.0.0.2", "10.0.0.3")),
    penalty=st.sampled_from((0.0, 100.0)),
    expires_at=st.sampled_from((5.0, 10.0, 15.0, 20.0, inf)),
)
host_values = st.builds(
    Host,
    address=st.sampled_from(("10.0.0.1", "10.0.0.2")),
    expires_at=st.sampled_from((5.0, 10.0, 20.0, inf)),
)


class TableMachine(RuleBasedStateMachine):
    """The table beside the naive one, and beside what its notifications add up to."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ServiceTable()
        self.naive = NaiveTable()
        self.told: dict[Any, Entry | Host] = {}
        self.now = 0.0
        self.table.subscribe(self.follow)

    def follow(self, step: Sequence[Change]) -> None:
        for change in step:
            assert change.before != change.after
            for old in (change.before,):
                if old is not None:
                    assert self.told.pop(self.name(old)) == old
            if change.after is not None:
                self.told[self.name(change.after)] = change.after

    @staticmethod
    def name(what: Entry | Host) -> object:
        return what.address if isinstance(what, Host) else what.key

    @rule(new=entries)
    def put(self, new: Entry) -> None:
        self.table.put(new)
        self.naive.put(new)

    @rule(old=entries)
    def remove(self, old: Entry) -> None:
        before = len(self.naive.claims)
        self.naive.remove(old.owner, old.key)
        assert self.table.remove(old) == (len(self.naive.claims) < before)

    @rule(owner=st.sampled_from(("10.0.0.1", "10.0.0.2")), new=st.lists(entries, max_size=5))
    def replace_owner(self, owner: str, new: list[Entry]) -> None:
        mine = [evolve(each, owner=owner) for each in new]
        self.table.replace_owner(owner, mine)
        wanted = {each.key: each for each in mine}
        for each in list(self.naive.claims):
            if each.owner == owner and each.key not in wanted:
                self.naive.remove(owner, each.key)
        for each in wanted.values():
            self.naive.put(each)

    @rule(host=host_values)
    def put_host(self, host: Host) -> None:
        self.table.put_host(host)
        self.naive.hosts[host.address] = host

    @rule(host=host_values)
    def remove_host(self, host: Host) -> None:
        assert self.table.remove_host(host.address) == (host.address in self.naive.hosts)
        self.naive.hosts.pop(host.address, None)

    @rule(passed=st.sampled_from((0.0, 1.0, 5.0)))
    def expire(self, passed: float) -> None:
        self.now += passed
        before = len(self.naive.claims) + len(self.naive.hosts)
        self.naive.expire(self.now)
        after = len(self.naive.claims) + len(self.naive.hosts)
        assert self.table.expire(self.now) == before - after

    @invariant()
    def they_agree(self) -> None:
        shown = self.naive.shown()
        listed = self.table.all_entries()
        assert len(listed) == len(shown)
        assert set(listed) == shown
        assert len(self.table) == len(self.naive.claims)
        for service in ("a", "ab", "b"):
            found = self.table.entries(service.upper())
            assert set(found) == {each for each in shown if each.service.lower() == service}
        for mask in ("a*", "?", "*b"):
            assert set(self.table.matching(mask)) == {
                each for each in shown if fnmatch.fnmatch(each.service.lower(), mask)
            }
        for port in (1, 2):
            assert set(self.table.dns_entries_at("10.0.0.1", port)) == {
                each
                for each in shown
                if each.info.type is ServerType.DNS
                and (each.info.host, each.info.port) == ("10.0.0.1", port)
            }
        for owner in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
            assert list(self.table.owned_by(owner)) == [
                each for each in self.naive.claims if each.owner == owner
            ]
        assert {host.address: host for host in self.table.hosts()} == self.naive.hosts
        told = [each for each in self.told.values() if isinstance(each, Entry)]
        assert set(told) == shown


class NaiveComparisonTests(SynchronousTestCase):
    def test_any_history_gives_the_naive_table(self) -> None:
        run_state_machine_as_test(TableMachine, settings=examples(100))
