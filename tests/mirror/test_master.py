"""The event master: numbers, checks, lists, delivery, flushing, policies, purges, time-outs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from gridnet.mirror.admission import RegistrationError, UnknownClient
from gridnet.mirror.catalogue import (
    GRID_ENGINE,
    MASTER_GOES_DOWN,
    OBLIGATORY,
    SHUTDOWN,
    TIMED_OUT,
    OwnCatalogue,
)
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.feed import Client, ClientState
from gridnet.mirror.filters import Chosen, Operator, What, Where
from gridnet.mirror.lists import ApplyError
from gridnet.mirror.master import EventMaster, MasterLimits
from gridnet.mirror.model import BusyPolicy, Event, Registration, Report, Subscribed

USER_LIST, USER_ADD, USER_DELETE, USER_MODIFY = 77, 78, 79, 80
MANAGER_LIST, MANAGER_ADD = 43, 44
JOB_LIST, JOB_ADD, JOB_DELETE, JOB_MODIFY = 31, 32, 33, 34
NOW = 1000.0


class Port:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.accepts = True
        self.dropped_because = ""

    def deliver(self, report: Report) -> bool:
        if self.accepts:
            self.reports.append(Report(report.first, (tuple(report),)))
        return self.accepts

    def dropped(self, reason: str) -> None:
        self.dropped_because = reason

    def take(self) -> list[list[tuple[int, int]]]:
        """(number, event) of the reports that came since the last call."""
        found = [[(n, e.event) for n, e in report.numbered()] for report in self.reports]
        self.reports.clear()
        return found


def subscriptions(*events: int | Subscribed) -> tuple[Subscribed, ...]:
    rows = [e if isinstance(e, Subscribed) else Subscribed(e) for e in events]
    return (*(Subscribed(e, 0) for e in OBLIGATORY), *rows)


def wish(*events: int | Subscribed, name: str = "client", **values: Any) -> Registration:
    return evolve(
        Registration(name=name, host="h", component=name, subscriptions=subscriptions(*events)),
        **values,
    )


def user(name: str, **attributes: object) -> Element:
    return Element.of({"UU_name": name, **attributes})


class MasterTestCase(SynchronousTestCase):
    """A master with a few known lists."""

    def setUp(self) -> None:
        self.remarks: list[str] = []
        self.master = EventMaster(GRID_ENGINE, remark=self.remarks.append)
        for name in ("USER", "MANAGER", "JOB", "CQUEUE"):
            self.master.replace(name, ElementList(), NOW)

    def register(
        self, *events: int | Subscribed, now: float = NOW, **values: Any
    ) -> tuple[Client, Port]:
        port = Port()
        client = self.master.register(wish(*events, **values), port, now)
        return client, port

    def change(self, name: str, now: float = NOW, **attributes: object) -> None:
        self.master.change("USER", name, user(name, **attributes), now)

    def acknowledge(self, client: Client, now: float) -> None:
        self.master.acknowledge(client.id, client.sent, now)


class RegistrationTests(MasterTestCase):
    def refused(self, pattern: str, wanted: Registration) -> RegistrationError:
        with self.assertRaisesRegex(RegistrationError, pattern) as context:
            self.master.register(wanted, Port(), NOW)
        self.assertEqual(self.master.clients, {})
        return context.exception

    def test_each_wrong_wish_is_refused_with_its_reason(self) -> None:
        self.refused("name ''", wish(USER_LIST, name=""))
        self.refused("invalid event client id 11", wish(USER_LIST, id=11))
        for seconds in (0, 596):
            error = self.refused(
                f"invalid event delivery time {seconds}. It has to be between 1 and 595",
                wish(USER_LIST, delivery_seconds=seconds),
            )
            self.assertEqual(error.status, 7)
        self.refused("flush delay 11", wish(USER_LIST, flush_delay_seconds=11))
        for event in (0, 98):
            self.refused(f"invalid event id {event}", wish(event))
        self.refused("busy handling 3", wish(USER_LIST, busy_policy=3))
        self.refused("session", wish(USER_LIST, session="a\nb"))
        self.refused("without any event", wish(subscriptions=()))
        self.refused("id 5 is reserved", wish(USER_LIST, id=5))

    def test_a_filter_that_every_change_would_pay_for_is_refused(self) -> None:
        one = Where(Operator.EQUAL, "UU_name", "x")
        wide = Where(Operator.OR, parts=(one,) * 600)
        deep = Where(Operator.AND, parts=(wide.parts[0], Where(Operator.OR, parts=(one,) * 511)))
        for part in ({"where": wide}, {"where": deep}, {"what": What.of(*map(str, range(600)))}):
            wish = Registration("n", subscriptions=(Subscribed(77, **part),))
            error = self.assertRaises(RegistrationError, self.master.register, wish, Port(), NOW)
            self.assertIn("more than 512 parts", str(error))

    def test_a_master_that_goes_down_takes_nobody(self) -> None:
        self.master.shut_down(NOW)
        error = self.refused("Qmaster is going down", wish(USER_LIST))
        self.assertTrue(error.going_down)

    def test_ids_are_the_lowest_free_from_eleven(self) -> None:
        ids = [self.register(USER_LIST, name=f"c{n}")[0].id for n in range(3)]
        self.assertEqual(ids, [11, 12, 13])
        self.master.leave(12)
        self.master.round(NOW)
        self.assertEqual(self.register(USER_LIST, name="new")[0].id, 12)

    def test_a_fixed_id_is_for_those_who_may_and_displaces_its_holder(self) -> None:
        port = Port()
        self.master.register(wish(USER_LIST, id=5, name="a"), port, NOW, fixed_ids=True)
        self.master.register(wish(USER_LIST, id=5, name="b"), Port(), NOW, fixed_ids=True)
        self.assertEqual(self.master.clients[5].registration.name, "b")
        self.assertIn("took the id 5", port.dropped_because)

    def test_the_number_of_clients_is_bounded(self) -> None:
        self.master.limits = MasterLimits(max_clients=2)
        self.register(USER_LIST, name="a")
        self.register(USER_LIST, name="b")
        with self.assertRaisesRegex(RegistrationError, "no more than 2"):
            self.register(USER_LIST, name="c")
        self.register(USER_LIST, name="b")  # the same client again takes no further place

    def test_the_same_address_replaces_the_old_client_and_starts_at_one(self) -> None:
        first, old = self.register(USER_LIST, USER_ADD)
        self.change("x")
        second, port = self.register(USER_LIST, USER_ADD)
        self.assertEqual(old.dropped_because, "it registered again")
        self.assertEqual(list(self.master.clients), [second.id])
        self.assertEqual(second.id, first.id)
        self.master.round(NOW)
        self.assertEqual(port.take(), [[(1, USER_LIST)]])

    def test_initial_lists_come_in_the_fixed_order_at_once(self) -> None:
        for kind in GRID_ENGINE.initial:
            if not self.master.lists.has(kind.name):
                if kind.name == "SCHEDD_CONF":
                    rows = ElementList([Element.of({"SC_weight_ticket": 1})])
                    self.master.replace(kind.name, rows, NOW)
                else:
                    self.master.replace(kind.name, ElementList(), NOW)
        lists = [kind.list_event for kind in GRID_ENGINE.initial]
        first = (1, 5, 9, 13, 17, 21, 31, 39, 43, 47, 52)
        then = (61, 70, 73, 81, 51, 56, 77, 85, 89, 93)
        _, port = self.register(*sorted(lists))
        self.master.round(NOW)
        self.assertEqual(
            port.take(),
            [list(enumerate((*first, *then), 1))],
        )

    def test_the_list_contains_what_was_and_events_what_comes(self) -> None:
        self.change("a")
        _, port = self.register(USER_LIST, USER_ADD)
        self.change("b")
        self.master.round(NOW)
        (report,) = port.reports
        self.assertEqual([e.event for e in report], [USER_LIST, USER_ADD])
        (listed, added) = report
        assert listed.elements is not None and added.element is not None
        self.assertEqual([e["UU_name"] for e in listed.elements], ["a"])
        self.assertEqual(added.element["UU_name"], "b")


class BlockingTests(MasterTestCase):
    def test_events_of_a_type_wait_for_its_list_and_then_come_once(self) -> None:
        client, port = self.register(52, 53, USER_LIST)
        self.assertEqual(client.blocked, {"PE"})
        self.master.round(NOW)
        self.assertEqual(port.take(), [[(1, USER_LIST)]])
        self.acknowledge(client, NOW)
        pe = Element.of({"PE_name": "mpi"})
        self.master.replace("PE", ElementList([pe]), NOW + 1)
        self.master.change("PE", "smp", Element.of({"PE_name": "smp"}), NOW + 2)
        self.master.round(NOW + 10)
        self.assertEqual(port.take(), [[(2, 52), (3, 53)]])

    def test_a_type_without_its_list_event_is_not_blocked(self) -> None:
        client, port = self.register(53)
        self.assertEqual(client.blocked, set())
        self.master.replace("PE", ElementList(), NOW)
        self.master.change("PE", "smp", Element.of({"PE_name": "smp"}), NOW)
        self.master.round(NOW)
        self.assertEqual(port.take(), [[(1, 53)]])

    def test_a_list_that_is_lost_and_comes_back_comes_as_a_whole(self) -> None:
        client, port = self.register(USER_LIST, USER_ADD, MANAGER_LIST, MANAGER_ADD)
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        port.take()
        self.master.forget("USER")
        self.master.change("MANAGER", "root", Element.of({"UM_name": "root"}), NOW)
        self.master.replace("USER", ElementList([user("a")]), NOW)
        self.change("b")
        self.master.round(NOW + 10)
        self.assertEqual(port.take(), [[(3, MANAGER_ADD), (4, USER_LIST), (5, USER_ADD)]])


class DeliveryTests(MasterTestCase):
    def test_an_empty_report_is_the_sign_of_life_every_delivery_time(self) -> None:
        client, port = self.register(USER_LIST)
        now = NOW
        for _ in range(3):
            self.master.round(now)
            self.assertEqual(self.master.round(now + 0.5), client.last_heard + 600)  # busy
            self.acknowledge(client, now)
            self.assertEqual(self.master.round(now + 9.9), now + 10)
            now += 10
        self.assertEqual(port.take(), [[(1, USER_LIST)], [], []])
        self.assertEqual(client.next_number, 2)

    def test_without_acknowledgements_policy_none_repeats_everything(self) -> None:
        client, port = self.register(USER_LIST, USER_ADD, USER_MODIFY, busy_policy=BusyPolicy.NONE)
        self.master.round(NOW)
        self.change("a")
        self.master.round(NOW + 10)
        self.master.round(NOW + 20)
        self.change("a", x=1)
        self.master.round(NOW + 30)
        self.assertEqual(
            port.take(),
            [
                [(1, USER_LIST)],
                [(1, USER_LIST), (2, USER_ADD)],
                [(1, USER_LIST), (2, USER_ADD)],
                [(1, USER_LIST), (2, USER_ADD), (3, USER_MODIFY)],
            ],
        )
        self.master.acknowledge(client.id, 2, NOW + 31)
        self.master.round(NOW + 40)
        self.assertEqual(port.take(), [[(3, USER_MODIFY)]])

    def test_a_client_is_busy_until_it_acknowledges_and_then_served_at_once(self) -> None:
        client, port = self.register(USER_LIST, USER_ADD)
        self.master.round(NOW)
        self.change("a")
        self.master.round(NOW + 30)
        self.assertEqual(port.take(), [[(1, USER_LIST)]])
        self.acknowledge(client, NOW + 31)
        self.assertLessEqual(self.master.wake_at, NOW + 31)
        self.master.round(NOW + 31)
        self.assertEqual(port.take(), [[(2, USER_ADD)]])

    def test_until_released_an_acknowledgement_retires_but_does_not_free(self) -> None:
        client, port = self.register(USER_LIST, USER_ADD, busy_policy=BusyPolicy.UNTIL_RELEASED)
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        self.assertEqual(client.queued, 0)
        self.change("a")
        self.master.round(NOW + 60)
        self.assertEqual(port.take(), [[(1, USER_LIST)]])
        same = evolve(client.registration, subscriptions=None, changed=False, busy=False)
        self.master.modify(same, NOW + 61)
        self.master.round(NOW + 61)
        self.assertEqual(port.take(), [[(2, USER_ADD)]])

    def test_a_crowd_is_served_in_bursts_the_longest_overdue_first(self) -> None:
        clients = [self.register(USER_LIST, name=f"c{n}", delivery_seconds=9) for n in range(250)]
        self.master.round(NOW)
        served = [len(port.take()) for _, port in clients]
        self.assertEqual((sum(served), self.master.is_behind), (100, True))
        self.assertLessEqual(self.master.wake_at, NOW)
        self.change("a")
        self.master.round(NOW + 1)
        self.master.round(NOW + 1)
        self.assertFalse(self.master.is_behind)
        again = [len(port.take()) for _, port in clients]
        self.assertEqual([one + other for one, other in zip(served, again, strict=True)], [1] * 250)

    def test_a_port_that_raises_costs_the_others_nothing(self) -> None:
        broken, fine = Port(), Port()

        def deliver(report: Report) -> bool:
            raise ValueError("cannot pack that")

        broken.deliver = deliver  # type: ignore[method-assign]
        for place, port in enumerate((broken, fine)):
            wish = Registration("n", component_id=place, subscriptions=(Subscribed(USER_LIST),))
            self.master.register(wish, port, NOW)
        self.master.round(NOW)
        self.assertEqual(len(fine.reports), 1)
        self.assertIn("cannot be served", self.remarks[-1])

    def test_a_failed_delivery_gives_the_client_a_pause_and_loses_nothing(self) -> None:
        _, port = self.register(USER_LIST, USER_ADD)
        port.accepts = False
        self.master.round(NOW)
        self.change("a")
        port.accepts = True
        self.master.round(NOW + 9)
        self.assertEqual(port.take(), [])
        self.master.round(NOW + 10)
        self.assertEqual(port.take(), [[(1, USER_LIST), (2, USER_ADD)]])

    def test_flushed_events_go_out_in_time_and_take_everything_along(self) -> None:
        client, port = self.register(
            USER_LIST, Subscribed(USER_ADD, 3), USER_MODIFY, MANAGER_LIST, MANAGER_ADD
        )
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        port.take()
        self.master.change("MANAGER", "m", Element.of({"UM_name": "m"}), NOW + 1)
        self.assertEqual(self.master.round(NOW + 1), NOW + 10)
        self.change("a", now=NOW + 2)
        self.assertEqual(self.master.wake_at, NOW + 5)
        self.master.round(NOW + 4.9)
        self.assertEqual(port.take(), [])
        self.master.round(NOW + 5)
        self.assertEqual(port.take(), [[(3, MANAGER_ADD), (4, USER_ADD)]])
        # The mark is spent: the next report is due after the delivery time.
        self.acknowledge(client, NOW + 5)
        self.assertEqual(self.master.round(NOW + 5), NOW + 15)

    def test_flushing_at_once_never_overrides_busy(self) -> None:
        client, port = self.register(USER_LIST, Subscribed(USER_ADD, 0))
        self.master.round(NOW)
        self.change("a")
        self.master.round(NOW)
        self.assertEqual(port.take(), [[(1, USER_LIST)]])
        self.acknowledge(client, NOW)
        self.master.round(NOW)
        self.assertEqual(port.take(), [[(2, USER_ADD)]])

    def test_the_earliest_of_several_flushes_counts(self) -> None:
        client, port = self.register(USER_LIST, Subscribed(USER_ADD, 8), Subscribed(USER_MODIFY, 2))
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        self.change("a", now=NOW + 1)  # due at 9
        self.change("a", now=NOW + 2, x=1)  # due at 4
        self.change("b", now=NOW + 3)  # due at 11
        self.assertEqual(self.master.round(NOW + 3), NOW + 4)
        self.master.round(NOW + 4)
        self.assertEqual(len(port.take()), 2)

    def test_a_new_delivery_time_moves_the_next_report_by_the_difference(self) -> None:
        client, _ = self.register(USER_LIST)
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        slower = evolve(client.registration, subscriptions=None, changed=False, delivery_seconds=25)
        self.master.modify(slower, NOW + 4)
        self.assertEqual(client.next_send, NOW + 25)
        with self.assertRaisesRegex(RegistrationError, "delivery time 0"):
            self.master.modify(evolve(slower, delivery_seconds=0), NOW + 4)
        self.assertEqual(client.registration.delivery_seconds, 25)

    def test_a_clock_that_goes_backwards_gives_everyone_a_new_start(self) -> None:
        client, port = self.register(USER_LIST)
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        self.master.round(NOW - 500)
        self.assertEqual((client.last_heard, client.next_send), (NOW - 500, NOW - 490))
        self.assertIn("backwards", self.remarks[-1])
        self.master.round(NOW - 490)
        self.assertEqual(len(port.take()), 2)

    def test_a_transaction_shows_at_its_end_or_not_at_all(self) -> None:
        client, _ = self.register(USER_LIST, USER_ADD)
        with self.master.transaction(NOW):
            self.change("a")
            self.change("b")
            self.assertEqual(client.queued, 1)
        self.assertEqual(client.queued, 3)
        with self.assertRaises(ZeroDivisionError):
            with self.master.transaction(NOW):
                self.change("c")
                _ = 1 / 0
        self.assertEqual(client.queued, 3)
        self.assertIsNone(self.master.lists.find("USER", "c"))
        with self.assertRaises(ApplyError):
            with self.master.transaction(NOW):
                self.change("d")
                self.master.record(Event(USER_DELETE, text_key="nobody"), NOW)
        self.assertEqual(client.queued, 3)
        self.assertIsNone(self.master.lists.find("USER", "d"))
        with self.master.transaction(NOW):  # each change sees those before it
            self.change("e")
            self.change("e")
            self.master.record(Event(USER_DELETE, text_key="e"), NOW)
        self.assertEqual(client.queued, 4)
        self.assertIsNone(self.master.lists.find("USER", "e"))

    def test_a_change_that_does_not_fit_the_lists_is_not_queued(self) -> None:
        client, _ = self.register(USER_LIST, USER_DELETE)
        with self.assertRaises(ApplyError):
            self.master.record(Event(USER_DELETE, text_key="nobody"), NOW)
        self.assertEqual(client.queued, 1)

    def test_a_job_modification_leaves_out_its_tasks(self) -> None:
        _, port = self.register(JOB_LIST, JOB_ADD, JOB_MODIFY)
        tasks = ElementList([Element.of({"JAT_task_number": 1, "JAT_status": 0})])
        job = Element.of({"JB_job_number": 7, "JB_owner": "a", "JB_ja_tasks": tasks})
        self.master.record(Event(JOB_ADD, int_key=7, elements=ElementList([job])), NOW)
        changed = job.evolve({"JB_owner": "b"})
        self.master.record(Event(JOB_MODIFY, int_key=7, elements=ElementList([changed])), NOW)
        self.master.round(NOW)
        modified = list(port.reports[-1])[-1].element
        assert modified is not None
        self.assertIsNone(modified["JB_ja_tasks"])
        stored = self.master.lists.find("JOB", 7)
        assert stored is not None
        self.assertEqual(stored["JB_ja_tasks"], tasks)


class AcknowledgementTests(MasterTestCase):
    def test_zero_retires_nothing_but_is_a_sign_of_life(self) -> None:
        client, _ = self.register(USER_LIST)
        self.master.round(NOW)
        self.master.acknowledge(client.id, 0, NOW + 5)
        self.assertEqual((client.queued, client.last_heard), (1, NOW + 5))
        self.assertFalse(client.busy)

    def test_a_number_never_sent_is_ignored(self) -> None:
        client, _ = self.register(USER_LIST, USER_ADD)
        self.master.round(NOW)
        self.change("a")
        self.master.acknowledge(client.id, 2, NOW)
        self.assertEqual(client.queued, 2)
        self.assertIn("only 1 was sent", self.remarks[-1])

    def test_an_unknown_client_is_only_remarked(self) -> None:
        self.master.acknowledge(99, 3, NOW)
        self.assertIn("unknown event client 99", self.remarks[-1])

    def test_a_silent_client_times_out_although_busy_with_event_97_last(self) -> None:
        _, port = self.register(USER_LIST, USER_ADD)
        self.master.round(NOW)
        self.change("a")
        self.master.round(NOW + 599)
        port.take()
        self.master.round(NOW + 600)
        self.assertEqual(port.take(), [[(1, USER_LIST), (2, USER_ADD), (3, TIMED_OUT)]])
        self.assertEqual(self.master.clients, {})
        self.assertIn("silent", port.dropped_because)

    def test_the_time_out_is_ten_delivery_times_within_600_to_1200(self) -> None:
        for seconds, wanted in ((1, 600), (60, 600), (90, 900), (300, 1200)):
            client, _ = self.register(USER_LIST, delivery_seconds=seconds)
            self.assertEqual(self.master.timeout(client), wanted)
        self.master.limits = MasterLimits(scheduler_timeout_seconds=42)
        port = Port()
        client = self.master.register(
            wish(USER_LIST, id=1, name="scheduler"), port, NOW, fixed_ids=True
        )
        self.assertEqual(self.master.timeout(client), 42)

    def test_a_queue_that_grows_too_long_ends_the_client_not_the_master(self) -> None:
        self.master.limits = MasterLimits(max_queued_events=50)
        slow, slow_port = self.register(USER_LIST, USER_ADD, USER_MODIFY, name="slow")
        quick, quick_port = self.register(USER_LIST, USER_ADD, USER_MODIFY, name="quick")
        self.master.round(NOW)
        for n in range(200):
            self.change("a", now=NOW + n, n=n)
            self.master.round(NOW + n)
            self.acknowledge(quick, NOW + n)
            self.assertLessEqual(len(quick.feed.events), 52)
        self.assertEqual(list(self.master.clients), [quick.id])
        self.assertIn("full", slow_port.dropped_because)
        self.assertEqual([event for _, event in slow_port.take()[-1]][-1], TIMED_OUT)
        numbers = [n for report in quick_port.take() for n, _ in report]
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)))
        self.assertGreater(len(numbers), 150)
        self.assertEqual(slow.state, ClientState.TERMINATED)

    def test_the_octets_of_a_queue_are_bounded_without_any_round(self) -> None:
        self.master.limits = MasterLimits(max_queued_octets=100_000)
        client, _ = self.register(USER_LIST, USER_ADD, USER_MODIFY)
        self.master.round(NOW)
        for n in range(100):
            self.change("a", text="x" * 5000 + str(n))
        self.assertEqual(client.state, ClientState.TERMINATED)
        self.assertEqual(self.master.clients, {})


class ModificationTests(MasterTestCase):
    def resubscribe(self, client: Client, now: float, *events: int | Subscribed) -> None:
        again = evolve(
            client.registration,
            id=client.id,
            subscriptions=subscriptions(*events),
            changed=True,
            busy=client.busy,
        )
        self.master.modify(again, now)

    def test_unsubscribing_purges_what_was_not_sent_without_a_gap(self) -> None:
        manager = Element.of({"UM_name": "m"})
        client, port = self.register(
            USER_LIST, USER_ADD, USER_MODIFY, MANAGER_LIST, MANAGER_ADD, 46
        )
        self.master.round(NOW)
        self.master.acknowledge(client.id, 2, NOW)
        client.busy = True
        self.change("u1")  # 3
        self.master.change("MANAGER", "m", manager, NOW)  # 4, of type X
        self.master.change("MANAGER", "m", manager, NOW)  # 5, of type X
        self.change("u2")  # 6
        self.change("u3")  # 7
        self.change("u3")  # 8
        self.master.change("MANAGER", "m", manager, NOW)  # 9, of type X
        self.change("u4")  # 10
        self.assertEqual(client.next_number, 11)
        self.resubscribe(client, NOW, USER_LIST, USER_ADD, USER_MODIFY)
        self.assertEqual(client.next_number, 8)
        client.busy = False
        port.take()
        self.master.round(NOW + 10)
        self.assertEqual(
            port.take(),
            [
                [
                    (3, USER_ADD),
                    (4, USER_ADD),
                    (5, USER_ADD),
                    (6, USER_MODIFY),
                    (7, USER_ADD),
                ]
            ],
        )

    def test_what_was_sent_already_is_repeated_as_a_blank(self) -> None:
        client, port = self.register(
            USER_LIST, USER_ADD, MANAGER_LIST, MANAGER_ADD, busy_policy=BusyPolicy.NONE
        )
        self.master.change("MANAGER", "m", Element.of({"UM_name": "m"}), NOW)
        self.change("a")
        self.master.round(NOW)
        self.resubscribe(client, NOW, USER_LIST, USER_ADD)
        port.reports.clear()
        self.master.round(NOW + 10)
        (report,) = port.reports
        rows = list(report)
        self.assertEqual([e.event for e in rows], [43, USER_LIST, MANAGER_ADD, USER_ADD])
        self.assertEqual((rows[2].text_key, rows[2].elements), (None, None))
        self.assertEqual(rows[0].elements, None)
        self.assertEqual(rows[3].text_key, "a")

    def test_the_three_events_that_everyone_has_are_never_purged(self) -> None:
        client, port = self.register(USER_LIST)
        self.master.round(NOW)
        self.master.shut_down(NOW)
        client.busy = True
        self.resubscribe(client, NOW, 1)
        client.busy = False
        port.take()
        self.master.round(NOW + 10)
        self.assertEqual(port.take()[0][-1][1], MASTER_GOES_DOWN)

    def test_a_newly_subscribed_list_comes_with_the_next_report(self) -> None:
        client, port = self.register(USER_LIST)
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        port.take()
        self.resubscribe(client, NOW + 1, USER_LIST, MANAGER_LIST, MANAGER_ADD)
        self.assertEqual(self.master.round(NOW + 1), NOW + 10)
        self.master.round(NOW + 10)
        self.assertEqual(port.take(), [[(2, MANAGER_LIST)]])

    def test_giving_up_and_wanting_again_gives_a_fresh_list(self) -> None:
        client, port = self.register(USER_LIST, USER_ADD)
        self.change("a")
        self.resubscribe(client, NOW, MANAGER_LIST)
        self.resubscribe(client, NOW, USER_LIST, USER_ADD)
        self.master.round(NOW)
        self.assertEqual(port.take(), [[(1, USER_LIST)]])

    def test_other_filters_give_a_fresh_list_the_same_do_not(self) -> None:
        client, port = self.register(Subscribed(USER_LIST, what=What.of("UU_name")), USER_ADD)
        self.resubscribe(
            client, NOW, Subscribed(USER_LIST, what=What.of("UU_name")), USER_ADD, USER_DELETE
        )
        self.assertEqual(client.queued, 1)
        self.resubscribe(client, NOW, USER_LIST, USER_ADD)
        self.assertEqual(client.queued, 2)
        self.master.round(NOW)
        self.assertEqual(port.take(), [[(1, USER_LIST), (2, USER_LIST)]])

    def test_wrong_modifications_are_refused(self) -> None:
        client, _ = self.register(USER_LIST)
        with self.assertRaises(UnknownClient):
            self.master.modify(wish(USER_LIST, id=77), NOW)
        with self.assertRaisesRegex(RegistrationError, "not marked changed"):
            self.master.modify(evolve(wish(USER_LIST), id=client.id, changed=False), NOW)
        with self.assertRaisesRegex(RegistrationError, "invalid event id 500"):
            self.resubscribe(client, NOW, 500)


class ShutdownTests(MasterTestCase):
    def test_one_client_is_asked_to_leave_and_gets_empty_reports_until_it_does(self) -> None:
        client, port = self.register(USER_LIST, USER_ADD)
        self.master.round(NOW)
        self.acknowledge(client, NOW)
        self.master.shut_down_client(client.id, NOW + 1)
        self.change("a")
        self.master.round(NOW + 1)
        self.acknowledge(client, NOW + 1)
        self.master.round(NOW + 11)
        self.assertEqual(port.take(), [[(1, USER_LIST)], [(2, SHUTDOWN)], []])
        self.master.leave(client.id)
        self.master.round(NOW + 12)
        self.assertEqual(self.master.clients, {})

    def test_only_dynamic_clients_are_asked_together(self) -> None:
        fixed = self.master.register(wish(USER_LIST, id=3, name="f"), Port(), NOW, fixed_ids=True)
        dynamic, _ = self.register(USER_LIST, name="d")
        self.master.shut_down_dynamic(NOW)
        self.assertEqual(fixed.state, ClientState.CONNECTED)
        self.assertEqual(dynamic.state, ClientState.CLOSING)

    def test_everyone_learns_at_once_that_the_master_goes_down_busy_or_not(self) -> None:
        _, port = self.register(USER_LIST)
        self.master.round(NOW)
        self.master.shut_down(NOW + 1)
        self.master.round(NOW + 1)
        self.assertEqual(port.take(), [[(1, USER_LIST)], [(1, USER_LIST), (2, MASTER_GOES_DOWN)]])


class FilterTests(MasterTestCase):
    HIGH = Where(Operator.GREATER, "n", 5)

    def events(self, port: Port) -> Sequence[tuple[int, str | None]]:
        return [(e.event, e.text_key) for report in port.reports for e in report]

    def test_elements_come_and_go_as_the_condition_begins_and_ceases_to_hold(self) -> None:
        where = [
            Subscribed(e, where=self.HIGH) for e in (USER_LIST, USER_ADD, USER_DELETE, USER_MODIFY)
        ]
        self.change("old", n=9)
        self.change("low", n=1)
        client, port = self.register(*where)
        self.change("a", n=1)  # never fits
        self.change("a", n=7)  # begins to
        self.change("a", n=8)
        self.change("a", n=2)  # ceases to
        self.master.change("USER", "a", None, NOW)
        self.master.change("USER", "old", None, NOW)
        self.master.round(NOW)
        self.assertEqual(
            self.events(port),
            [
                (USER_LIST, None),
                (USER_ADD, "a"),
                (USER_MODIFY, "a"),
                (USER_DELETE, "a"),
                (USER_DELETE, "old"),
            ],
        )
        listed = next(iter(port.reports[0])).elements
        assert listed is not None
        self.assertEqual([e["UU_name"] for e in listed], ["old"])
        self.assertEqual(client.next_number, 6)

    def test_a_choice_reduces_elements_and_drops_events_without_any_left(self) -> None:
        what = What.of("UU_name", "n")
        _, port = self.register(
            Subscribed(USER_LIST, what=what),
            Subscribed(USER_ADD, what=what),
            Subscribed(USER_MODIFY, what=What.of("missing")),
        )
        self.change("a", n=1, more=2)
        self.change("a", n=2, more=3)
        self.master.round(NOW)
        self.assertEqual(self.events(port), [(USER_LIST, None), (USER_ADD, "a")])
        added = list(port.reports[0])[1].element
        assert added is not None
        self.assertEqual(added.as_json(), {"UU_name": "a", "n": 1})

    def test_the_filter_of_tasks_holds_inside_jobs(self) -> None:
        what = What.of("JAT_task_number")
        _, port = self.register(
            Subscribed(JOB_LIST), Subscribed(JOB_ADD), Subscribed(26, what=what)
        )
        tasks = ElementList([Element.of({"JAT_task_number": 1, "JAT_status": 0})])
        job = Element.of({"JB_job_number": 7, "JB_ja_tasks": tasks})
        self.master.record(Event(JOB_ADD, int_key=7, elements=ElementList([job])), NOW)
        self.master.round(NOW)
        added = list(port.reports[0])[1].element
        assert added is not None
        self.assertEqual(
            added.as_json(), {"JB_job_number": 7, "JB_ja_tasks": [{"JAT_task_number": 1}]}
        )

    def test_a_job_appears_with_its_tasks_when_a_task_makes_it_fit(self) -> None:
        running = Where(
            Operator.SUBSCOPE, "JB_ja_tasks", parts=(Where(Operator.EQUAL, "JAT_status", 128),)
        )
        rows = [Subscribed(e, where=running) for e in (JOB_LIST, JOB_ADD, JOB_DELETE, JOB_MODIFY)]
        _, port = self.register(*rows, 26, 27, 28)
        job = Element.of({"JB_job_number": 7, "JB_ja_tasks": None})
        self.master.record(Event(JOB_ADD, int_key=7, elements=ElementList([job])), NOW)

        def task(event: int, status: int) -> None:
            rows = ElementList([Element.of({"JAT_task_number": 1, "JAT_status": status})])
            self.master.record(Event(event, int_key=7, int_key2=1, elements=rows), NOW)

        task(26, 0)
        task(28, 128)
        task(28, 128)
        task(28, 0)
        self.master.round(NOW)
        got = [(e.event, e.int_key, e.int_key2) for r in port.reports for e in r]
        self.assertEqual(got, [(31, 0, 0), (32, 7, 0), (28, 7, 1), (33, 7, 0)])

    def test_a_session_gets_only_what_was_raised_for_it(self) -> None:
        _, mine = self.register(USER_LIST, USER_ADD, name="mine", session="s1")
        _, plain = self.register(USER_LIST, USER_ADD, name="plain")
        added = ElementList([user("a")])
        self.master.record(Event(USER_ADD, text_key="a", elements=added), NOW, session="s1")
        self.change("b")
        self.master.shut_down(NOW)
        self.master.round(NOW)
        self.assertEqual(mine.take(), [[(1, USER_LIST), (2, USER_ADD), (3, MASTER_GOES_DOWN)]])
        self.assertEqual(len(plain.take()[0]), 4)

    def test_clients_with_the_same_wishes_share_one_log(self) -> None:
        what = What((Chosen("UU_name"),))
        clients = [
            self.register(USER_LIST, Subscribed(USER_ADD, what=what), name=f"c{n}")[0]
            for n in range(5)
        ]
        self.assertEqual(len({id(client.feed) for client in clients}), 1)
        self.change("a", n=1)
        self.assertEqual(len(clients[0].feed.events), 1)
        self.assertEqual([client.next_number for client in clients], [3] * 5)


class OwnListTests(SynchronousTestCase):
    def test_lists_that_are_only_names_work_the_same(self) -> None:
        catalogue = OwnCatalogue(["services", "hosts"])
        master = EventMaster(catalogue)
        master.replace("services", ElementList(), NOW)
        kind = catalogue.find("services")
        port = Port()
        master.register(wish(*kind.all_events), port, NOW)
        master.change("services", "a", Element.of({"key": "a", "rate": 1}), NOW)
        master.change("services", "a", None, NOW)
        master.change("services", "a", None, NOW)
        master.round(NOW)
        first = kind.list_event
        self.assertEqual(port.take(), [[(1, first), (2, first + 1), (3, first + 2)]])
