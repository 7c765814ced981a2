"""When the pump looks for an answer before it goes back to the reactor."""

from __future__ import annotations

import contextlib
import socket
import threading
from unittest import skipUnless

from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from gridnet.firewall import pump as pump_module
from gridnet.firewall.pump import AVAILABLE, READABLE, PipePool, Pump


@skipUnless(AVAILABLE, "there is no splice here")
class LookTests(SynchronousTestCase):
    """One socket that the pump watches, and its partner."""

    def watched(self, look_seconds: float, conversing: int) -> tuple[Pump, socket.socket]:
        """
        A pump that repeats what its socket hears, and the socket's partner.

        :param conversing: how many of the first messages may be answered at once.
        """
        pump = Pump(MemoryReactorClock(), PipePool(4096, 1), 4096, look_seconds)
        self.addCleanup(pump.close)
        ours, partner = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(partner.close)
        ours.setblocking(False)
        self.heard: list[bytes] = []

        def event(events: int) -> None:
            if events & READABLE:
                self.heard.append(ours.recv(16))
                ours.send(self.heard[-1])
            # Here the partner's reading is an event, too: to be writable again.
            pump.conversing = 0 < len(self.heard) <= conversing

        pump.watch(ours.fileno(), event)
        # That it is writable.
        pump.doRead()
        return pump, partner

    def test_a_partner_that_answers_at_once_is_heard_at_once(self) -> None:
        pump, partner = self.watched(60.0, conversing=2)

        def answer() -> None:
            # The end of the test may come between the two.
            with contextlib.suppress(OSError):
                while message := partner.recv(16):
                    partner.send(message)

        thread = threading.Thread(target=answer, daemon=True)
        self.addCleanup(thread.join)
        self.addCleanup(partner.shutdown, socket.SHUT_RDWR)
        partner.send(b"again")
        thread.start()
        pump.doRead()
        # The answer to the last one may have come in time, too.
        self.assertGreaterEqual(len(self.heard), 3)
        self.assertEqual({b"again"}, set(self.heard))

    def test_looks_and_answers_are_counted(self) -> None:
        pump, partner = self.watched(1.5, conversing=1)
        answers = [b"!"]

        def monotonic() -> float:
            while answers:
                partner.send(answers.pop())
            return 0.0

        self.patch(pump_module, "monotonic", monotonic)
        partner.send(b"?")
        pump.doRead()
        self.assertEqual([b"?", b"!"], self.heard)
        self.assertEqual((1, 1), (pump.looks, pump.looks_answered))

    def looks_after(self, messages: int, look_seconds: float, conversing: int) -> list[int]:
        """Which of the messages of a partner that never answers have been followed by a look."""
        clock = Clock()

        def monotonic() -> float:
            clock.advance(1.0)
            return clock.seconds()

        self.patch(pump_module, "monotonic", monotonic)
        pump, partner = self.watched(look_seconds, conversing)
        found = []
        for number in range(1, messages + 1):
            before = clock.seconds()
            partner.send(b"?")
            pump.doRead()
            if clock.seconds() > before:
                found.append(number)
        self.assertEqual([b"?"] * messages, self.heard)
        self.assertEqual((len(found), 0), (pump.looks, pump.looks_answered))
        return found

    def test_looks_in_vain_become_rare(self) -> None:
        self.assertEqual([1, 3, 7, 15], self.looks_after(30, 1.5, conversing=30))

    def test_what_needs_no_answer_is_followed_by_none(self) -> None:
        self.assertEqual([], self.looks_after(3, 1.5, conversing=0))

    def test_looking_can_be_switched_off(self) -> None:
        self.assertEqual([], self.looks_after(3, 0.0, conversing=3))
