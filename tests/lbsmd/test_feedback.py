"""Penalties: how they are asked for, and how they wear off."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.lbsmd.feedback import (
    BaseRate,
    FeedbackError,
    PenaltyRequest,
    Request,
    RerateRequest,
    Target,
    format_line,
    parse_argument,
    parse_line,
)
from gridnet.lbsmd.penalty import Penalty
from gridnet.table.server_info import KEYWORDS, ServerType
from tests.hypothesis_profile import examples
from tests.lbsmd.support import VECTORS, joined

#: What requests are made of, and what they are not.
WORDS = ["S", "*", "RERATE", "STANDALONE", "ANY", "h", ":1", "h:0", "::1", "[::1]:9", "5", "101"]
WORDS += ["1.5", "-1", "RESERVE", "DEFAULT", "\xfc", "x:y", "1000000", "999999999999", ""]


def fields(request: Request) -> dict[str, Any]:
    """A request as the vectors write it."""
    target = request.target
    found: dict[str, Any] = {
        "service": target.service,
        "type": "ANY" if target.type is None else KEYWORDS[target.type],
        "host": target.host,
        "port": target.port,
    }
    if isinstance(request, RerateRequest):
        rate = request.rate
        return found | {"rerate": rate.value if isinstance(rate, BaseRate) else rate}
    return found | {"penalty": request.percent, "hold": request.hold_seconds}


class ArgumentTests(SynchronousTestCase):
    """What a person types."""

    def test_every_argument_of_the_vectors(self) -> None:
        """Field by field; or an error."""
        for row in VECTORS["feedback"]:
            try:
                got: Any = fields(parse_argument(row["argument"]))
            except FeedbackError:
                got = "error"
            self.assertEqual(got, row["result"], row["id"])

    @examples(2000)
    @given(joined(WORDS, 7, " "))
    def test_any_text_is_a_request_or_an_error(self, text: str) -> None:
        """Of both readers; and what was read can be told to the daemon."""
        for read in (parse_argument, lambda line: parse_line(line)[1]):
            try:
                request = read(text)
            except FeedbackError:
                continue
            self.assertEqual(parse_line(format_line(7, request)), (7, request))


class LineTests(SynchronousTestCase):
    """What clients write to the daemon's socket."""

    def test_lines_of_the_released_library(self) -> None:
        """Port 0 is any; there is no hold time."""
        self.assertEqual(
            parse_line("1000 bounce STANDALONE 10.0.0.1:80 100"),
            (1000, PenaltyRequest(Target("bounce", ServerType.STANDALONE, "10.0.0.1", 80), 100)),
        )
        self.assertEqual(
            parse_line("0 bounce STANDALONE :0 0"),
            (0, PenaltyRequest(Target("bounce", ServerType.STANDALONE), 0)),
        )
        self.assertEqual(
            parse_line("5 bounce RERATE ANY 10.0.0.1:80 RESERVE"),
            (5, RerateRequest(Target("bounce", None, "10.0.0.1", 80), BaseRate.RESERVE)),
        )

    def test_our_own_tool_adds_a_hold_time(self) -> None:
        """As a sixth word."""
        request = PenaltyRequest(Target("b", None, "h", None), 40, 120)
        self.assertEqual(format_line(3, request), "3 b ANY h 40 120")
        self.assertEqual(parse_line("3 b ANY h 40 120"), (3, request))

    def test_a_reason_comes_with_each_refusal(self) -> None:
        """For whoever asked."""
        for line, reason in (
            ("x b ANY :0 1", "user id"),
            ("1 b-! ANY :0 1", "name of a service"),
            ("1 b WHAT :0 1", "server type"),
            ("1 b ANY h:x 1", "0 to 65535"),
            ("1 b ANY :0 101", "0 to 100"),
            ("1 b ANY :0", "AMOUNT"),
        ):
            error = self.assertRaises(FeedbackError, parse_line, line)
            self.assertIn(reason, str(error))


class PenaltyTests(SynchronousTestCase):
    """How a penalty wears off."""

    def test_every_value_of_the_vectors(self) -> None:
        """Hold, then a slow and a faster fall."""
        for row in VECTORS["penalty"]:
            penalty = Penalty(row["penalty"], row["hold"], 1000.0)
            self.assertAlmostEqual(penalty.value(1000.0 + row["t"]), row["value"], 3, row["id"])

    @examples(1000)
    @given(st.floats(0, 100), st.floats(0, 1e4), st.floats(-10, 2e4), st.floats(0, 1e3))
    def test_it_only_ever_falls(self, percent: float, hold: float, at: float, more: float) -> None:
        """From its height to nothing."""
        penalty = Penalty(percent, hold, 0.0)
        self.assertTrue(percent >= penalty.value(at) >= penalty.value(at + more) >= 0)
        self.assertEqual(penalty.value(penalty.ends_at()), 0.0)
