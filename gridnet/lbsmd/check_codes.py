"""
What the exit codes of a check script make of its server: a table, and the history it acts on.

Rules and vectors: docs/protocols/lbsmd-config.rst, Exit codes.
"""

from __future__ import annotations

from enum import Enum, Flag

from attrs import evolve, frozen

from gridnet.table.numbers import MIN_RATE, STANDBY_RATE

#: Base rate of a server that its script puts on standby.
SCRIPT_STANDBY_RATE = 0.005
#: Crashes or late runs in a row after which a script is given up.
MAX_FAILED_RUNS = 100


class State(Enum):
    """What a server is, as checks see it."""

    UP = "up"
    RESERVED = "reserved"  #: kept aside
    DOWN = "down"
    STANDBY = "standby"  #: used when no regular server is there
    OFF = "off"  #: not announced at all


class Action(Flag):
    """What a run of a script asks for beside a state."""

    NONE = 0
    WARN = 1  #: a line in the log
    MAIL = 2  #: tell the contacts, whatever the state
    STOPPED = 4  #: the script is not run again, the server is off for good
    REMOVED = 8  #: the script is not run again, the server is fully available


@frozen
class Verdict:
    """A state, and how much of its base rate an ``UP`` server has."""

    state: State = State.UP
    percent: int = 100  #: of the base rate, 1..100

    def rate(self, base: float) -> float:
        """
        The rate in force.

        :param base: base rate, 0 or more.  A regular server stays regular, a standby one standby.
        """
        if self.state in (State.DOWN, State.OFF):
            return 0.0
        if self.state is State.STANDBY:
            return SCRIPT_STANDBY_RATE if base else 0.0
        if not base or self.percent == 100:
            return base
        return max(base * self.percent / 100.0, STANDBY_RATE if base >= STANDBY_RATE else MIN_RATE)


UP = Verdict()
DOWN = Verdict(State.DOWN)
OFF = Verdict(State.OFF)

#: First and last code, the verdict (None: as before), what else.  Codes in no row are as 0, with
#: a warning.
_TABLE: tuple[tuple[int, int, Verdict | None, Action], ...] = (
    (0, 0, UP, Action.NONE),
    *((code, code, Verdict(State.UP, 100 - code), Action.NONE) for code in range(1, 100)),
    (100, 110, Verdict(State.RESERVED), Action.NONE),
    (111, 120, DOWN, Action.NONE),
    (123, 123, None, Action.WARN),
    (124, 125, None, Action.NONE),
    (200, 210, Verdict(State.STANDBY), Action.NONE),
    (211, 220, None, Action.MAIL),
    (221, 230, UP, Action.MAIL),
)
_EFFECTS: dict[int, tuple[Verdict | None, Action]] = {
    **dict.fromkeys(range(256), (UP, Action.WARN)),
    **{
        code: (verdict, what)
        for first, last, verdict, what in _TABLE
        for code in range(first, last + 1)
    },
}

#: Not a code of its own: stands for the one before.
REPEAT = 123
#: The first directly followed by the second switches the server off.
OFF_SEQUENCE = (124, 125)


@frozen
class ScriptHistory:
    """What the runs of one script have come to so far."""

    verdict: Verdict = UP
    last_code: int | None = None  #: argument 3 of the next run; None: there was no run to speak of
    repetitions: int = 0  #: argument 4 of the next run: how often 123 has repeated the code
    failures: int = 0  #: crashes and late runs since the last proper end
    active: bool = True  #: whether the script is run again

    def ended(self, code: int) -> tuple[ScriptHistory, Action]:
        """
        The script ended with exit code *code*, 0..255.

        :returns: the history now, and what is to be done.
        """
        verdict, action = _EFFECTS[code]
        if code == REPEAT:
            repetitions = self.repetitions + (self.last_code is not None)
            return evolve(self, repetitions=repetitions, failures=0), action
        if (self.last_code, code) == OFF_SEQUENCE and not self.repetitions:
            return ScriptHistory(OFF, code, active=False), Action.STOPPED
        return ScriptHistory(verdict or self.verdict, code), action

    def failed(self) -> tuple[ScriptHistory, Action]:
        """The script was killed by a signal, for being late or otherwise: its result is void."""
        failures = self.failures + 1
        if failures < MAX_FAILED_RUNS:
            return evolve(self, failures=failures), Action.WARN
        removed = evolve(self, verdict=UP, failures=failures, active=False)
        return removed, Action.WARN | Action.REMOVED

    def rerated(self) -> ScriptHistory:
        """Somebody set the base rate: that ends a standby of the script's making."""
        return evolve(self, verdict=UP) if self.verdict.state is State.STANDBY else self
