"""Orders: acknowledged, sent again, bounded, done once."""

from __future__ import annotations

from math import inf
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import LocalProtocolError
from gridnet.lbsmd.gossip.messages import Order, Receipt
from gridnet.lbsmd.gossip.orders import MAX_ORDER_OCTETS, Arrived, OrderBook, OrderBounds, Settled

HERE = ("127.0.0.1", 1)
BOUNDS = OrderBounds(seconds=5.0, max_waiting=2, max_remembered=2)


class OrderBookTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.book = OrderBook("me", BOUNDS, Random(1), {"peer": HERE, "me": HERE}.get)

    def test_it_is_sent_again_until_it_is_answered(self) -> None:
        number = self.book.give(0.0, "peer", b"do it")
        sent = 0
        while self.book.next_time() < 4.0:
            self.book.tick(self.book.next_time())
            sent += len(self.book.take_outgoing())
        self.assertGreater(sent, 3)
        for _ in range(2):
            self.book.receive(4.0, HERE, "peer", Receipt(number, ""))
        self.assertEqual(self.book.take_settled(), [Settled(number, "")])
        self.assertEqual(self.book.next_time(), inf)

    def test_it_fails_in_time(self) -> None:
        number = self.book.give(0.0, "peer", b"do it")
        self.book.tick(5.0)
        self.assertEqual(self.book.take_settled(), [Settled(number, None)])

    def test_only_its_target_settles_it(self) -> None:
        number = self.book.give(0.0, "peer", b"do it")
        self.book.receive(0.0, HERE, "other", Receipt(number, ""))
        self.book.receive(0.0, HERE, "peer", Receipt(number + 1, ""))
        self.assertEqual(self.book.take_settled(), [])

    def test_bounds_are_told(self) -> None:
        give = self.book.give
        self.assertRaises(LocalProtocolError, give, 0.0, "stranger", b"")
        self.assertRaises(LocalProtocolError, give, 0.0, "peer", bytes(MAX_ORDER_OCTETS + 1))
        for _ in range(2):
            give(0.0, "peer", b"")
        self.assertRaises(LocalProtocolError, give, 0.0, "peer", b"")

    def test_it_is_done_once_and_answered_each_time(self) -> None:
        order = Order(7, "me", b"do it")
        self.book.receive(0.0, HERE, "peer", order)
        self.book.receive(0.1, HERE, "peer", order)
        (arrived,) = self.book.take_arrived()
        self.assertEqual(arrived, Arrived("peer", 7, b"do it"))
        self.assertEqual(self.book.take_outgoing(), [])
        self.book.answer(arrived, "no")
        self.book.answer(arrived, "")
        self.book.receive(1.0, HERE, "peer", order)
        self.assertEqual(self.book.take_outgoing(), [(HERE, Receipt(7, "no"))] * 2)
        self.assertEqual(self.book.take_arrived(), [])

    def test_orders_for_others_are_not_done(self) -> None:
        self.book.receive(0.0, HERE, "peer", Order(7, "other", b"do it"))
        self.assertEqual(self.book.take_arrived(), [])

    def test_answers_are_bounded_and_forgotten_in_time(self) -> None:
        for number in range(3):
            self.book.receive(0.0, HERE, "peer", Order(number, "me", b""))
        self.assertEqual(len(self.book.take_arrived()), 2)
        self.book.receive(61.0, HERE, "peer", Order(2, "me", b""))
        self.assertEqual([each.number for each in self.book.take_arrived()], [2])

    def test_a_long_refusal_is_cut(self) -> None:
        self.book.receive(0.0, HERE, "peer", Order(7, "me", b""))
        self.book.answer(self.book.take_arrived()[0], "x" * 5000)
        ((_, receipt),) = self.book.take_outgoing()
        self.assertLess(receipt.octets(), 400)
