"""What lies between the octets of TLS and the calls: records, and answers that wait."""

from __future__ import annotations

from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from gridnet.scire import wire
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.http import Request
from gridnet.scire.rpc import RpcListener, nobody
from gridnet.scire.slots import Rates
from gridnet.scire.tls import Records
from tests.hypothesis_profile import examples


class RecordTests(SynchronousTestCase):
    """Where records end, however they are cut."""

    @examples(200)
    @given(
        st.lists(st.integers(0, 400), max_size=8),
        st.lists(st.integers(1, 60), min_size=1, max_size=20),
    )
    def test_whole_is_where_one_ends(self, sizes: list[int], cuts: list[int]) -> None:
        octets = b"".join(b"\x17\3\3" + size.to_bytes(2, "big") + bytes(size) for size in sizes)
        ends = {0, *accumulate(5 + size for size in sizes)}
        records, position, turn = Records(), 0, 0
        while position < len(octets):
            piece = octets[position : position + cuts[turn % len(cuts)]]
            records.receive(piece)
            position += len(piece)
            turn += 1
            self.assertEqual(records.whole, position in ends, (sizes, position))

    @examples(200)
    @given(st.lists(st.binary(max_size=50)))
    def test_no_octets_are_an_error(self, pieces: list[bytes]) -> None:
        """They need not be records at all; how they are cut makes no difference."""
        cut, joined = Records(), Records()
        for piece in pieces:
            cut.receive(piece)
        joined.receive(b"".join(pieces))
        self.assertEqual(cut.whole, joined.whole)


class AnswerTests(SynchronousTestCase):
    """An answer goes on when what it waits for is there, and ends once."""

    def setUp(self) -> None:
        self.answers: list[bytes] = []
        self.waiting: Deferred[wire.Call] = Deferred()
        server: Any = SimpleNamespace(
            seconds=lambda: 0.0, suspect=lambda *facts: None, called=lambda *facts: None
        )
        self.listener = RpcListener("work", server, {}, nobody, None, Rates(100))  # type: ignore[arg-type]
        self.listener._parse = self._parse  # type: ignore[method-assign]

    async def _parse(self, body: bytes) -> wire.Call:
        return await self.waiting

    def ask(self, answer: Any) -> None:
        connection: Any = SimpleNamespace(address="192.0.2.1", peer_digest="", answer=answer)
        self.listener.request(connection, Request(b"", ""))

    def test_a_failure_comes_to_who_waits(self) -> None:
        self.ask(self.answers.append)
        self.assertEqual((self.listener.running, self.answers), (1, []))
        self.waiting.errback(ScireFault(FaultCode.TOO_LARGE, "too large"))
        self.assertEqual(self.listener.running, 0)
        self.assertIn(b"1042", self.answers[0])

    def test_what_is_there_already_is_not_waited_for(self) -> None:
        self.waiting.errback(ScireFault(FaultCode.TOO_LARGE, "too large"))
        self.ask(self.answers.append)
        self.assertEqual((self.listener.running, len(self.answers)), (0, 1))

    def test_an_answer_that_cannot_be_given_is_logged(self) -> None:
        def refuse(octets: bytes) -> None:
            raise ValueError("no")

        self.ask(refuse)
        self.waiting.errback(ScireFault(FaultCode.TOO_LARGE, "too large"))
        self.assertEqual(self.listener.running, 0)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
