"""The life of one connection, every state times every input."""

from __future__ import annotations

from itertools import product

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from gridnet.firewall.machine import INPUTS, STATES, Leg, LegCore, Wait, make_leg
from gridnet.quick_machine import state_name

#: How each state is reached.
PATHS: dict[str, list[str]] = {
    "silent": [],
    "partial": ["began_to_speak"],
    "redeeming": ["ticket_presented"],
    "controlling": ["control_opened"],
    "consulting": ["control_opened", "control_requested"],
    "connecting": ["ticket_presented", "passage_granted"],
    "relaying": ["ticket_presented", "passage_granted", "server_reached"],
    "replying": ["port_checked"],
    "closed": ["connection_lost"],
}
NAMES = [each.__name__ for each in INPUTS]


@define
class Recorder:
    """Notes what it is told to do."""

    done: list[str] = field(factory=list)

    def wait(self, for_what: Wait) -> None:
        self.done.append(f"wait {for_what.value}")

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda: self.done.append(name)


def leg_in(state: str) -> tuple[Leg, Recorder]:
    """A leg in *state*, and its hands, which have forgotten how it got there."""
    hands = Recorder()
    leg = make_leg(LegCore(hands))  # type: ignore[arg-type]
    for name in PATHS[state]:
        getattr(leg, name)()
    hands.done.clear()
    return leg, hands


def state_of(leg: Leg) -> str:
    return state_name(leg)


class LegTests(SynchronousTestCase):
    """What a connection does."""

    def test_the_states_are_all_reached(self) -> None:
        self.assertEqual({state.name for state in STATES}, set(PATHS))
        for name in PATHS:
            self.assertEqual(state_of(leg_in(name)[0]), name)

    def test_every_input_is_answered_in_every_state(self) -> None:
        for state, name in product(PATHS, NAMES):
            leg, _ = leg_in(state)
            getattr(leg, name)()

    def test_a_leg_is_released_exactly_once(self) -> None:
        for state, first, second in product(PATHS, NAMES, NAMES):
            leg, hands = leg_in(state)
            getattr(leg, first)()
            getattr(leg, second)()
            leg.connection_lost()
            leg.relay_ended()
            leg.revoked()
            expected = 0 if state == "closed" else 1
            self.assertEqual(hands.done.count("release"), expected, (state, first, second))

    def test_nothing_is_done_for_a_closed_connection(self) -> None:
        for name in NAMES:
            leg, hands = leg_in("closed")
            getattr(leg, name)()
            self.assertEqual(hands.done, [], name)

    def test_a_ticket_leads_to_the_relay(self) -> None:
        leg, hands = leg_in("silent")
        for name in ("began_to_speak", "ticket_presented", "passage_granted", "server_reached"):
            getattr(leg, name)()
        leg.relay_ended()
        self.assertEqual(
            hands.done,
            [
                *("wait partial", "stop_waiting", "redeem", "wait server", "connect"),
                *("stop_waiting", "relay", "stop_waiting", "release"),
            ],
        )

    def test_whatever_is_no_ticket_gets_the_last_word_and_time_to_read_it(self) -> None:
        for state, name in (
            ("silent", "port_checked"),
            ("silent", "time_ran_out"),
            ("partial", "port_checked"),
            ("partial", "time_ran_out"),
            ("partial", "stream_ended"),
            ("redeeming", "passage_denied"),
            ("controlling", "made_no_sense"),
            ("consulting", "passage_denied"),
            ("consulting", "point_reserved"),
        ):
            leg, hands = leg_in(state)
            getattr(leg, name)()
            self.assertEqual(hands.done, ["wait drain", "reply"], (state, name))
            hands.done.clear()
            leg.stream_ended()
            self.assertEqual(hands.done, ["stop_waiting", "hang_up", "release"])

    def test_who_does_not_hang_up_is_cut(self) -> None:
        leg, hands = leg_in("replying")
        leg.time_ran_out()
        self.assertEqual(hands.done, ["stop_waiting", "drop", "release"])

    def test_a_server_that_is_not_there_ends_it(self) -> None:
        for name in ("server_failed", "time_ran_out"):
            leg, hands = leg_in("connecting")
            getattr(leg, name)()
            self.assertEqual(hands.done, ["wait drain", "reply_unreached"])

    def test_an_order_cuts_a_connection_in_any_state(self) -> None:
        for state in PATHS:
            leg, hands = leg_in(state)
            leg.revoked()
            expected = [] if state == "closed" else ["stop_waiting", "drop", "release"]
            self.assertEqual(hands.done, expected, state)

    def test_a_client_that_goes_while_we_connect_takes_the_server_with_it(self) -> None:
        leg, hands = leg_in("connecting")
        leg.connection_lost()
        self.assertIn("drop", hands.done)

    def test_a_relay_tells_itself_when_it_is_over(self) -> None:
        leg, hands = leg_in("relaying")
        leg.stream_ended()
        leg.connection_lost()
        self.assertEqual(hands.done, [])
