"""The event client: numbers, acknowledgements, waiting, leaving, what it sends when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf

from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LocalProtocolError
from gridnet.mirror.client import EventClient
from gridnet.mirror.client_machine import Acknowledge, ClientTimes
from gridnet.mirror.filters import What
from gridnet.mirror.model import BusyPolicy, Event, Registration, Subscribed


class Around:
    """Notes what the client asks for."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def open(self) -> None:
        self.asked.append(("open",))

    def close(self) -> None:
        self.asked.append(("close",))

    def register(self, wish: Registration) -> None:
        self.asked.append(("register", wish))

    def modify(self, wish: Registration) -> None:
        self.asked.append(("modify", wish))

    def acknowledge(self, number: int, client_id: int) -> None:
        self.asked.append(("acknowledge", number, client_id))

    def leave(self, client_id: int) -> None:
        self.asked.append(("leave", client_id))

    def registered(self) -> None:
        self.asked.append(("registered",))

    def arrived(self) -> None:
        self.asked.append(("arrived",))

    def parted(self, reason: str) -> None:
        self.asked.append(("parted", reason))

    def ended(self, reason: str) -> None:
        self.asked.append(("ended", reason))

    def take(self) -> list[tuple[object, ...]]:
        found, self.asked = self.asked, []
        return found


def events(*numbers: int, kind: int = 78) -> Sequence[tuple[int, Event]]:
    return [(number, Event(kind, number=number)) for number in numbers]


class ClientTestCase(SynchronousTestCase):
    acknowledge = Acknowledge.RECEIVED

    def setUp(self) -> None:
        self.around = Around()
        self.client = EventClient(
            self.around,
            random.Random(1),
            Registration(name="c", delivery_seconds=10),
            ClientTimes(jitter=0.0),
            self.acknowledge,
        )

    def register(self, now: float = 0.0) -> None:
        self.client.begin(now)
        self.client.opened(now)
        self.client.accepted(11, now)
        self.around.take()

    def names(self) -> list[object]:
        return [entry[0] for entry in self.around.take()]

    def taken(self, now: float = 0.0) -> list[int]:
        return [n for batch in self.client.take(now) for n, _ in batch.events]


class NumberTests(ClientTestCase):
    def test_new_events_are_kept_and_acknowledged_once(self) -> None:
        self.register()
        self.client.reported(events(1, 2, 3), 1)
        self.assertEqual(self.around.take(), [("acknowledge", 3, 11), ("arrived",)])
        self.assertEqual(self.taken(), [1, 2, 3])

    def test_a_repeated_beginning_is_skipped(self) -> None:
        self.register()
        self.client.reported(events(1, 2), 1)
        self.client.reported(events(1, 2, 3), 2)
        self.client.reported(events(1, 2, 3), 3)
        self.assertEqual(self.taken(), [1, 2, 3])
        acknowledged = [entry[1] for entry in self.around.take() if entry[0] == "acknowledge"]
        self.assertEqual(acknowledged, [2, 3, 3])

    def test_a_stale_report_is_dropped_and_the_latest_acknowledged(self) -> None:
        self.register()
        self.client.reported(events(1, 2, 3, 4, 5), 1)
        self.client.reported(events(1, 2), 2)
        self.assertEqual(self.taken(), [1, 2, 3, 4, 5])
        self.assertEqual(self.around.take()[-1], ("acknowledge", 5, 11))

    def test_an_empty_report_is_acknowledged_with_the_last_number(self) -> None:
        self.register()
        self.client.reported([], 1)
        self.client.reported(events(1), 2)
        self.client.reported([], 3)
        acknowledged = [entry[1] for entry in self.around.take() if entry[0] == "acknowledge"]
        self.assertEqual(acknowledged, [0, 1, 1])

    def test_a_gap_rejects_the_whole_report_and_registers_again(self) -> None:
        for row in ((2,), (1, 3), (1, 2, 2), (1, 2, 1)):
            self.setUp()
            self.register()
            self.client.reported(events(*row), 1)
            self.assertEqual(self.taken(), [], row)
            self.assertEqual(self.names(), ["close", "parted"])
            self.client.elapsed(1)
            self.assertEqual(self.names(), ["open"])

    def test_reports_before_the_answer_wait_for_the_id(self) -> None:
        self.client.begin(0)
        self.client.opened(0)
        self.client.reported(events(1, 2), 0)
        self.assertEqual(self.client.waiting, 0)
        self.client.accepted(17, 1)
        self.assertIn(("acknowledge", 2, 17), self.around.take())
        self.assertEqual(self.taken(), [1, 2])

    def test_numbers_start_at_one_with_every_registration(self) -> None:
        self.register()
        self.client.reported(events(1, 2, 3), 1)
        self.client.lost("gone", 2)
        self.client.elapsed(2)
        self.client.opened(2)
        self.client.accepted(12, 2)
        self.client.reported(events(1), 3)
        self.assertEqual(self.taken(), [1, 2, 3, 1])


class ProcessedTests(ClientTestCase):
    acknowledge = Acknowledge.PROCESSED

    def test_a_report_is_acknowledged_when_it_is_processed(self) -> None:
        self.register()
        self.client.reported(events(1, 2), 1)
        self.assertEqual(self.names(), ["arrived"])
        (batch,) = self.client.take(1)
        self.client.processed(batch)
        self.assertEqual(self.around.take(), [("acknowledge", 2, 11)])

    def test_a_report_of_an_earlier_registration_is_not_acknowledged(self) -> None:
        self.register()
        self.client.reported(events(1, 2), 1)
        (batch,) = self.client.take(1)
        self.client.lost("gone", 2)
        self.client.elapsed(2)
        self.client.opened(2)
        self.client.accepted(11, 2)
        self.around.take()
        self.client.processed(batch)
        self.assertEqual(self.around.take(), [])

    def test_what_nobody_takes_is_bounded_by_registering_again(self) -> None:
        self.client.core.max_waiting = 5
        self.register()
        self.client.reported(events(1, 2, 3, 4), 1)
        self.client.reported(events(5, 6), 2)
        self.assertEqual(self.client.waiting, 0)
        self.assertFalse(self.client.is_registered)

    def test_one_call_takes_at_most_a_report_a_second(self) -> None:
        self.client = EventClient(
            self.around, random.Random(1), Registration(name="c", delivery_seconds=2)
        )
        self.register()
        for n in range(1, 9):
            self.client.reported(events(n), 0)
        self.assertEqual(len(self.client.take(0, limited=True)), 2)
        self.assertEqual(len(self.client.take(0.5, limited=True)), 1)
        self.assertEqual(len(self.client.take(3.5, limited=True)), 3)
        self.assertEqual(len(self.client.take(3.6)), 2)


class TroubleTests(ClientTestCase):
    def test_tries_come_at_once_then_after_1_2_4_up_to_60_seconds(self) -> None:
        self.register()
        now, waits = 100.0, []
        self.client.lost("gone", now)
        for _ in range(9):
            waits.append(self.client.deadline - now)
            now = self.client.deadline
            self.client.elapsed(now)
            self.client.lost("no", now)
        self.assertEqual(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_jitter_adds_at_most_a_quarter(self) -> None:
        self.client.core.times = ClientTimes()
        self.client.begin(0)
        for _ in range(20):
            self.client.lost("no", 0)
            self.assertLessEqual(self.client.deadline, 75)
            self.client.elapsed(inf)
        self.assertGreater(self.client.deadline, 0)

    def test_a_refusal_may_ask_for_a_longer_wait(self) -> None:
        self.client.begin(0)
        self.client.opened(0)
        self.client.refused("access denied", 0, at_least=60)
        self.assertEqual(self.client.deadline, 60)
        self.assertEqual(self.client.core.last_error, "access denied")

    def test_silence_for_ten_delivery_times_ends_the_registration(self) -> None:
        self.register()
        self.assertEqual(self.client.deadline, 100)
        self.client.reported([], 50)
        self.assertEqual(self.client.deadline, 150)
        self.around.take()
        self.client.elapsed(149)
        self.assertEqual(self.around.take(), [])
        self.client.elapsed(150)
        self.assertEqual(self.around.take(), [("close",), ("parted", "the master is silent")])

    def test_no_connection_and_no_answer_are_noticed(self) -> None:
        self.client.begin(0)
        self.client.elapsed(30)
        self.assertIn("no connection within 30 s", str(self.around.take()[-1]))
        self.client.elapsed(31)
        self.client.opened(31)
        self.client.elapsed(91)
        self.assertIn("no answer within 60 s", str(self.around.take()[-1]))

    def test_a_master_that_ends_or_gave_up_is_registered_with_again(self) -> None:
        for kind in (60, 97):
            self.setUp()
            self.register()
            self.client.reported([*events(1), *events(2, kind=kind)], 1)
            self.assertEqual(self.names(), ["acknowledge", "arrived", "close", "parted"])
            self.assertEqual(self.taken(), [1, 2])

    def test_a_modification_refused_because_unknown_registers_again(self) -> None:
        self.register()
        self.client.unknown_to_master("who?", 1)
        self.assertEqual(self.around.take(), [("close",), ("parted", "who?")])


class WishTests(ClientTestCase):
    def sent(self) -> list[Registration]:
        return [e[1] for e in self.around.take() if e[0] in ("register", "modify")]  # type: ignore[misc]

    def test_everyone_has_the_three_events_and_cannot_give_them_up(self) -> None:
        self.client.begin(0)
        self.client.opened(0)
        (wish,) = self.sent()
        self.assertEqual(
            wish.subscriptions, (Subscribed(60, 0), Subscribed(72, 0), Subscribed(97, 0))
        )
        self.assertTrue(wish.changed)
        with self.assertRaises(LocalProtocolError):
            self.client.unsubscribe(72)
        self.client.subscribe(77)
        self.client.unsubscribe_all()
        self.assertEqual(sorted(self.client.core.subscribed), [60, 72, 97])

    def test_changes_are_sent_together_with_the_next_commit(self) -> None:
        self.register()
        self.client.subscribe(77)
        self.client.subscribe(78, 2)
        self.client.set_delivery_seconds(700)
        self.assertEqual(self.sent(), [])
        self.client.commit(1)
        self.client.commit(2)
        (wish,) = self.sent()
        assert wish.subscriptions is not None
        self.assertEqual((wish.id, wish.delivery_seconds, wish.changed), (11, 595, True))
        self.assertEqual(wish.subscriptions[3:], (Subscribed(77), Subscribed(78, 2)))

    def test_a_change_without_subscriptions_carries_none(self) -> None:
        self.register()
        self.client.set_busy(True)
        self.client.set_busy_policy(BusyPolicy.UNTIL_RELEASED)
        self.client.commit(1)
        (wish,) = self.sent()
        self.assertEqual((wish.changed, wish.subscriptions, wish.busy), (False, None, True))

    def test_subscribing_again_keeps_the_flush_and_changes_nothing(self) -> None:
        self.client.subscribe(78, 3)
        self.register()
        self.client.subscribe(78)
        self.client.commit(1)
        self.assertEqual(self.sent(), [])
        self.client.flush(78, -1)
        with self.assertRaisesRegex(LocalProtocolError, "79 is not subscribed"):
            self.client.flush(79, 0)
        self.client.commit(1)
        self.assertEqual(len(self.sent()), 1)

    def test_giving_up_and_wanting_again_takes_two_modifications(self) -> None:
        self.client.subscribe(77)
        self.client.subscribe(43)
        self.register()
        self.client.unsubscribe(77)
        self.client.subscribe(77)
        self.client.commit(1)
        first, second = self.sent()
        assert first.subscriptions is not None and second.subscriptions is not None
        self.assertEqual({s.event for s in first.subscriptions}, {60, 72, 97, 43})
        self.assertEqual({s.event for s in second.subscriptions}, {60, 72, 97, 43, 77})

    def test_other_filters_take_two_modifications_too(self) -> None:
        self.client.subscribe(77)
        self.register()
        self.client.subscribe(77, what=What.of("UU_name"))
        self.client.commit(1)
        self.assertEqual(len(self.sent()), 2)

    def test_what_changes_while_it_registers_is_sent_right_after(self) -> None:
        self.client.begin(0)
        self.client.opened(0)
        self.client.subscribe(77)
        self.client.commit(0)
        self.assertEqual(len(self.sent()), 1)
        self.client.accepted(11, 1)
        (wish,) = self.sent()
        assert wish.subscriptions is not None
        self.assertIn(Subscribed(77), wish.subscriptions)


class LeavingTests(ClientTestCase):
    def test_leaving_waits_for_the_close_and_can_start_anew(self) -> None:
        self.register()
        self.client.leave(5)
        self.assertEqual(self.around.take(), [("leave", 11)])
        self.client.reported(events(1), 5)
        self.client.lost("closed", 6)
        self.assertEqual((self.client.state, self.client.deadline), ("idle", inf))
        self.client.begin(7)
        self.client.opened(7)
        self.assertEqual(self.names(), ["close", "open", "register"])

    def test_a_master_that_does_not_close_is_left_anyway(self) -> None:
        self.register()
        self.client.leave(5)
        self.client.elapsed(10)
        self.assertEqual(self.client.state, "idle")

    def test_leaving_before_being_registered_is_a_no_op_at_the_master(self) -> None:
        self.client.leave(0)
        self.client.begin(0)
        self.client.leave(0)
        self.assertEqual(self.names(), ["open", "close"])

    def test_on_event_72_it_leaves_and_tells(self) -> None:
        self.register()
        self.client.reported([*events(1), *events(2, kind=72), *events(3)], 1)
        self.assertEqual(self.names(), ["acknowledge", "arrived", "ended", "leave"])
        self.assertEqual(self.client.state, "leaving")


class StateTests(ClientTestCase):
    def test_every_input_is_answered_in_every_state(self) -> None:
        def advance(client: EventClient, steps: int) -> None:
            moves = [
                lambda: client.begin(0),
                lambda: client.opened(0),
                lambda: client.accepted(11, 0),
                lambda: client.leave(0),
            ]
            for move in moves[:steps]:
                move()

        inputs = [
            lambda c: c.begin(1),
            lambda c: c.opened(1),
            lambda c: c.accepted(12, 1),
            lambda c: c.refused("no", 1),
            lambda c: c.reported(events(1), 1),
            lambda c: c.lost("gone", 1),
            lambda c: c.unknown_to_master("who", 1),
            lambda c: c.elapsed(1e9),
            lambda c: c.commit(1),
            lambda c: c.leave(1),
        ]
        for steps in range(6):
            for happens in inputs:
                self.setUp()
                if steps == 5:
                    advance(self.client, 1)
                    self.client.lost("no", 0)
                else:
                    advance(self.client, steps)
                happens(self.client)
                self.assertIn(
                    self.client.state,
                    ("idle", "connecting", "registering", "registered", "waiting", "leaving"),
                )
