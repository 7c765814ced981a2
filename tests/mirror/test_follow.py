"""Mirrors that run: beside their master in one process."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.mirror.catalogue import OwnCatalogue
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.follow import Changes, MirrorService
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.lists import MirrorError
from gridnet.mirror.local import LocalConnector
from gridnet.mirror.mirror import ALL, Change
from gridnet.mirror.model import Action, Registration, Result


def service(**attributes: Any) -> Element:
    return Element.of(attributes)


class LocalTestCase(SynchronousTestCase):
    """A master with two lists of gridnet's own, and a mirror in the same process."""

    clock_class = Clock

    def setUp(self) -> None:
        self.clock = self.clock_class()
        self.clock.advance(1_000_000)
        self.keeper = MasterService(self.clock, OwnCatalogue(["hosts", "services"]))
        self.keeper.startService()
        self.keeper.replace("hosts", ElementList())
        self.keeper.replace("services", ElementList([service(key="a", rate=1)]))
        self.mirrors: list[MirrorService] = []

    def follow(self, **options: Any) -> MirrorService:
        mirror = MirrorService(
            self.clock,
            LocalConnector(self.clock, self.keeper),
            Registration(name="local", delivery_seconds=1),
            chance=random.Random(1),
            **options,
        )
        self.mirrors.append(mirror)
        return mirror

    def settle(self, seconds: float = 2.0) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)

    def tearDown(self) -> None:
        for mirror in self.mirrors:
            if mirror.running:
                done = mirror.stopService()
                self.settle()
                self.successResultOf(done)
        if self.keeper.running:
            done = self.keeper.stopService()
            self.settle(4)
            self.successResultOf(done)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LocalTests(LocalTestCase):
    def test_a_list_is_mirrored_and_kept_current(self) -> None:
        mirror = self.follow()
        mirror.subscribe("services")
        current = mirror.when_current("services")
        mirror.startService()
        self.assertNoResult(current)
        self.settle()
        self.successResultOf(current)
        self.keeper.change("services", "b", service(key="b", rate=2))
        self.settle()
        self.assertEqual([e["key"] for e in mirror.mirror.list("services")], ["a", "b"])

    def test_leaving_is_known_to_the_master(self) -> None:
        mirror = self.follow()
        mirror.subscribe("services")
        mirror.startService()
        self.settle()
        self.assertEqual(len(self.keeper.master.clients), 1)
        done = mirror.stopService()
        self.settle()
        self.successResultOf(done)
        self.assertEqual(self.keeper.master.clients, {})

    def test_a_master_that_stops_is_looked_for_until_it_is_back(self) -> None:
        mirror = self.follow()
        states: list[str] = []
        mirror.on_state(lambda state, reason: states.append(state))
        mirror.subscribe("services")
        mirror.startService()
        self.settle()
        done = self.keeper.stopService()
        self.settle()
        self.successResultOf(done)
        self.assertFalse(mirror.mirror.is_current("services"))
        self.assertEqual(len(mirror.mirror.list("services")), 1)
        self.keeper.master.going_down = False
        self.keeper.startService()
        self.settle(70)
        self.assertTrue(mirror.mirror.is_current("services"))
        self.assertEqual(states[0], "registered")
        self.assertEqual(states[-1], "registered")
        self.assertIn("parted", states)

    def test_a_client_asked_to_leave_leaves_and_may_come_back(self) -> None:
        mirror = self.follow()
        states: list[str] = []
        mirror.on_state(lambda state, reason: states.append(state))
        mirror.subscribe("services")
        mirror.startService()
        self.settle()
        (client_id,) = self.keeper.master.clients
        self.keeper.master.shut_down_client(client_id, self.keeper.now)
        self.keeper.touch()
        self.settle()
        self.assertEqual(self.keeper.master.clients, {})
        self.assertEqual(states, ["registered", "ended"])
        mirror.restart()
        self.settle()
        self.assertTrue(mirror.mirror.is_current("services"))

    def test_a_shut_down_mirror_has_forgotten_everything_and_may_begin_anew(self) -> None:
        called: list[Action] = []

        def note(mirror: object, kind: object, action: Action, *rest: object) -> None:
            called.append(action)

        mirror = self.follow()
        mirror.subscribe("services", note)
        mirror.startService()
        self.settle()
        done = mirror.shutdown()
        self.settle()
        self.successResultOf(done)
        self.assertEqual(self.keeper.master.clients, {})
        self.assertRaises(MirrorError, mirror.mirror.list, "services")
        self.assertEqual(called, [Action.LIST])
        mirror.subscribe("hosts")
        mirror.startService()
        self.settle()
        (client,) = self.keeper.master.clients.values()
        self.assertEqual((client.first, client.queued), (2, 0))  # one event, the list of hosts
        self.assertTrue(mirror.mirror.is_current("hosts"))
        self.assertFalse(mirror.mirror.is_current("services"))
        self.assertEqual(called, [Action.LIST])
        self.successResultOf(self.follow().shutdown())

    def test_get_data_processes_what_came_or_waits_for_it(self) -> None:
        mirror = self.follow(automatic=False)
        mirror.subscribe("services")
        self.assertEqual(self.successResultOf(mirror.get_data()), Result.NOT_INITIALIZED)
        mirror.startService()
        self.settle()
        self.assertFalse(mirror.mirror.is_current("services"))
        self.assertEqual(self.successResultOf(mirror.get_data()), Result.OK)
        self.assertTrue(mirror.mirror.is_current("services"))
        waiting = mirror.get_data(30)
        self.settle(5)
        self.assertNoResult(waiting)
        self.keeper.change("services", "b", service(key="b"))
        self.settle()
        self.assertEqual(self.successResultOf(waiting), Result.OK)
        self.assertEqual(len(mirror.mirror.list("services")), 2)
        waiting = mirror.get_data(3)
        self.settle(5)
        self.assertEqual(self.successResultOf(waiting), Result.OK)

    def test_all_lists_are_those_that_the_master_has(self) -> None:
        mirror = self.follow()
        mirror.subscribe(ALL)
        mirror.startService()
        self.settle()
        names = {kind.name for kind in mirror.mirror.followed}
        self.assertEqual(names, {"services", "hosts", "SHUTDOWN", "MARK_4_REGISTRATION"})


class AsyncForTests(LocalTestCase):
    def consume(self, changes: Changes, into: list[Change], count: int) -> Deferred[None]:
        async def loop() -> None:
            async for change in changes:
                into.append(change)
                if len(into) == count:
                    return

        return Deferred.fromCoroutine(loop())

    def test_changes_come_one_after_the_other(self) -> None:
        mirror = self.follow()
        seen: list[Change] = []
        done = self.consume(mirror.changes("services"), seen, 4)
        mirror.startService()
        self.settle()
        self.keeper.change("services", "b", service(key="b"))
        self.keeper.change("hosts", "x", service(key="x"))
        self.keeper.change("services", "b", service(key="b", rate=3))
        self.keeper.change("services", "a", None)
        self.settle()
        self.successResultOf(done)
        self.assertEqual(
            [change.action for change in seen],
            [Action.LIST, Action.ADD, Action.MODIFY, Action.DELETE],
        )
        self.assertEqual(seen[2].element, service(key="b", rate=3))
        self.assertEqual(seen[3].element, service(key="a", rate=1))

    def test_a_list_that_is_there_already_is_the_first_change(self) -> None:
        mirror = self.follow()
        mirror.subscribe("services")
        mirror.startService()
        self.settle()
        seen: list[Change] = []
        self.successResultOf(self.consume(mirror.changes("services"), seen, 1))
        self.assertEqual(seen[0].action, Action.LIST)

    def test_the_loop_ends_with_the_service(self) -> None:
        mirror = self.follow()
        seen: list[Change] = []
        done = self.consume(mirror.changes("services"), seen, 100)
        mirror.startService()
        self.settle()
        mirror.stopService()
        self.settle()
        self.successResultOf(done)
        self.assertEqual(len(seen), 1)

    def test_a_consumer_that_falls_behind_gets_the_list_instead_of_a_gap(self) -> None:
        mirror = self.follow(max_behind=5)
        changes = mirror.changes("services")
        mirror.startService()
        self.settle()
        for n in range(20):
            self.keeper.change("services", "b", service(key="b", rate=n))
        self.settle()
        self.assertLessEqual(len(changes._waiting), 6)
        seen: list[Change] = []
        self.consume(changes, seen, 1000)
        self.assertEqual(seen[0].action, Action.LIST)
        self.assertEqual(seen[-1].element, service(key="b", rate=19))
