"""Tickets, those who guess them, and the penalty box."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.errors import TicketError
from gridnet.firewall.penalty import Penalty, PenaltyBox, Reason, parse_line
from gridnet.firewall.tickets import Offences, Passage, TicketBook, block_of, draw_number
from gridnet.firewall.wire import can_be_ticket
from tests.hypothesis_profile import examples


def passage(client: str = "192.0.2.1") -> Passage:
    return Passage("bounce", "10.0.0.1", 7777, client)


def book(**keys: int) -> TicketBook:
    settings = {"ttl_seconds": 30, "max_waiting": 1000, "max_waiting_per_client": 100, **keys}
    return TicketBook(random.Random(1), **settings)


class TicketBookTests(SynchronousTestCase):
    """A ticket is good once, for a short time."""

    def test_a_ticket_opens_its_passage_once(self) -> None:
        tickets = book()
        ticket = tickets.issue(passage(), 100.0)
        self.assertEqual(tickets.redeem(ticket.number, 101.0), ticket)
        self.assertIsNone(tickets.redeem(ticket.number, 101.0))
        self.assertEqual(len(tickets), 0)

    def test_a_ticket_is_worth_nothing_after_its_time(self) -> None:
        tickets = book()
        ticket = tickets.issue(passage(), 100.0)
        self.assertIsNone(tickets.redeem(ticket.number, 130.0))
        self.assertEqual(tickets.expire(129.9), [])
        self.assertEqual(tickets.expire(130.0), [ticket])
        self.assertEqual(len(tickets), 0)

    def test_tickets_that_were_used_do_not_expire(self) -> None:
        tickets = book()
        first, second, third = (tickets.issue(passage(), at) for at in (1.0, 2.0, 3.0))
        tickets.redeem(second.number, 4.0)
        self.assertEqual(tickets.expire(40.0), [first, third])

    def test_nobody_fills_the_book(self) -> None:
        tickets = book(max_waiting=3, max_waiting_per_client=2)
        first = tickets.issue(passage("192.0.2.1"), 1.0)
        tickets.issue(passage("192.0.2.1"), 1.0)
        self.assertRaises(TicketError, tickets.issue, passage("192.0.2.1"), 1.0)
        tickets.issue(passage("192.0.2.2"), 1.0)
        self.assertRaises(TicketError, tickets.issue, passage("192.0.2.3"), 1.0)
        tickets.redeem(first.number, 2.0)
        tickets.issue(passage("192.0.2.1"), 2.0)

    def test_a_revoked_ticket_is_worth_nothing(self) -> None:
        tickets = book()
        ticket = tickets.issue(passage(), 1.0)
        self.assertFalse(tickets.revoke("0" * 12))
        self.assertTrue(tickets.revoke(ticket.fingerprint))
        self.assertIsNone(tickets.redeem(ticket.number, 2.0))

    def test_fingerprints_name_without_telling(self) -> None:
        tickets = book()
        first, second = tickets.issue(passage(), 1.0), tickets.issue(passage(), 1.0)
        self.assertNotEqual(first.fingerprint, second.fingerprint)
        self.assertNotIn(f"{first.number:08x}", first.fingerprint)

    @given(st.integers(0, 2**32))
    @examples(100)
    def test_numbers_drawn_are_never_excluded_ones(self, seed: int) -> None:
        class Stubborn(random.Random):
            values = iter([0, 0x0D0A0000, 0x0D0AFFFF, 0x4E434249, 0x48454144, seed % 2**32, 77])

            def getrandbits(self, bits: int) -> int:
                return next(self.values)

        self.assertTrue(can_be_ticket(draw_number(Stubborn())))

    @given(
        st.lists(
            st.tuples(st.sampled_from(["issue", "redeem", "expire"]), st.integers(0, 9)),
            max_size=60,
        )
    )
    @examples(100)
    def test_the_book_agrees_with_a_plain_list(self, steps: list[tuple[str, int]]) -> None:
        tickets = book(ttl_seconds=10, max_waiting=8, max_waiting_per_client=5)
        model: list[tuple[int, str, float]] = []
        now = 0.0
        for step, number in steps:
            now += number / 2
            if step == "issue":
                client = f"192.0.2.{number % 3}"
                full = len(model) >= 8 or sum(c == client for _, c, _ in model) >= 5
                try:
                    ticket = tickets.issue(passage(client), now)
                except TicketError:
                    self.assertTrue(full)
                else:
                    self.assertFalse(full)
                    model.append((ticket.number, client, now + 10))
            elif step == "redeem" and model:
                wanted = model[number % len(model)]
                found = tickets.redeem(wanted[0], now)
                self.assertEqual(found is not None, now < wanted[2])
                if found is not None:
                    model.remove(wanted)
            else:
                gone = [ticket.number for ticket in tickets.expire(now)]
                self.assertEqual(gone, [n for n, _, end in model if end <= now])
                model = [each for each in model if each[2] > now]
        self.assertEqual([t.number for t in tickets.live()], [n for n, _, _ in model])


class OffencesTests(SynchronousTestCase):
    """Some mistakes are forgiven."""

    def test_too_many_within_the_window_are_too_many(self) -> None:
        offences = Offences(3, 60.0, 10)
        self.assertEqual([offences.note("a", at) for at in (0.0, 1.0, 2.0)], [0, 0, 3])
        self.assertEqual(len(offences), 0)

    def test_old_ones_do_not_count(self) -> None:
        offences = Offences(2, 60.0, 10)
        self.assertEqual([offences.note("a", at) for at in (0.0, 60.0, 61.0)], [0, 0, 2])

    def test_memory_is_bounded(self) -> None:
        offences = Offences(2, 60.0, 10)
        for number in range(100):
            offences.note(f"client {number}", 1.0)
        self.assertEqual(len(offences), 10)

    def test_an_ipv6_customer_is_one_client(self) -> None:
        self.assertEqual(block_of("2001:db8:1:2:3::4"), block_of("2001:db8:1:2::9"))
        self.assertNotEqual(block_of("2001:db8:1:2::"), block_of("2001:db8:1:3::"))
        self.assertEqual(block_of("::ffff:192.0.2.1"), "192.0.2.1")
        self.assertEqual(block_of("192.0.2.1"), "192.0.2.1")
        self.assertEqual(block_of("fe80::1%eth0"), "fe80::/64")
        self.assertEqual(block_of("no:address"), "no:address")


PENALTIES = st.builds(
    Penalty,
    st.integers(0, 2**38).map(float),
    st.integers(0, 2**38).map(float),
    st.sampled_from(["192.0.2.1", "2001:db8:1:2::/64", "10.0.0.255"]),
    st.integers(0, 10**6),
    st.sampled_from(list(Reason)),
    st.text("abcXYZ_-.", max_size=40).filter(lambda name: name != "-"),
)


class PenaltyTests(SynchronousTestCase):
    """Who misbehaves is refused for a while, longer each time."""

    def test_a_penalty_ends(self) -> None:
        box = PenaltyBox(60.0, 600.0, 100)
        penalty = box.punish("192.0.2.1", 1000.0, Reason.GUESS, 10)
        self.assertEqual(box.refused("192.0.2.1", 1059.0), penalty)
        self.assertIsNone(box.refused("192.0.2.1", 1060.0))
        self.assertIsNone(box.refused("192.0.2.2", 1001.0))

    def test_who_comes_back_stays_longer_up_to_a_limit(self) -> None:
        box = PenaltyBox(60.0, 200.0, 100)
        lengths = []
        now = 0.0
        for _ in range(4):
            penalty = box.punish("192.0.2.1", now, Reason.UNUSED, 5)
            lengths.append(penalty.until - penalty.since)
            now = penalty.until + 1
        self.assertEqual(lengths, [60.0, 120.0, 200.0, 200.0])
        fresh = box.punish("192.0.2.1", now + 86_400.0, Reason.UNUSED, 5)
        self.assertEqual(fresh.until - fresh.since, 60.0)

    def test_the_file_brings_everything_back(self) -> None:
        box = PenaltyBox(60.0, 600.0, 100)
        box.punish("192.0.2.1", 1000.0, Reason.GUESS, 10)
        box.punish("2001:db8:1:2::/64", 1001.0, Reason.UNUSED, 20, "my service")
        again = PenaltyBox(60.0, 600.0, 100)
        self.assertEqual(again.load(box.text().splitlines(keepends=True)), 0)
        self.assertEqual(again.text(), box.text())
        self.assertIsNotNone(again.refused("192.0.2.1", 1030.0))

    def test_a_pardon_holds_for_readers_of_the_file_too(self) -> None:
        box = PenaltyBox(60.0, 600.0, 100)
        lines = [box.punish("192.0.2.1", 1000.0, Reason.GUESS, 10).line()]
        pardon = box.pardon("192.0.2.1", 1001.0)
        assert pardon is not None
        lines.append(pardon.line())
        self.assertIsNone(box.refused("192.0.2.1", 1002.0))
        self.assertIsNone(box.pardon("192.0.2.1", 1002.0))
        again = PenaltyBox(60.0, 600.0, 100)
        again.load(lines)
        self.assertIsNone(again.refused("192.0.2.1", 1002.0))

    def test_lines_that_are_none_are_counted_and_passed_over(self) -> None:
        box = PenaltyBox(60.0, 600.0, 100)
        lines = ["# comment", "", "1 2 3", "1000 1060 192.0.2.1 5 sorcery x", "x" * 1000]
        self.assertEqual(box.load([*lines, "1000 1060 192.0.2.1 5 unused x\n"]), 3)
        self.assertEqual(len(box), 1)

    def test_the_box_and_its_memory_are_bounded(self) -> None:
        box = PenaltyBox(60.0, 600.0, 10)
        for number in range(20):
            box.punish(f"192.0.2.{number}", 1000.0, Reason.GUESS, 1)
        self.assertEqual(len(box), 10)
        box.forget(1060.0 + 86_400.0)
        self.assertEqual(len(box), 0)

    @given(PENALTIES)
    @examples(200)
    def test_lines_come_back_as_written(self, penalty: Penalty) -> None:
        self.assertEqual(parse_line(penalty.line()), penalty)

    @given(st.text(max_size=80))
    @examples(300)
    def test_any_text_is_a_line_or_not(self, text: str) -> None:
        parse_line(text)
