"""
The life of one program, from its start to the end of its last descendant
(docs/protocols/launcher.rst, 4).
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol, runtime_checkable

from attrs import define
from automat import TypeMachineBuilder

from gridnet.quick_machine import quick


class Pause(Enum):
    """What is waited for; each has its own length in the configuration."""

    DESCENDANTS = "descendants"  #: the program has ended, somebody still holds its output
    GOODBYE = "goodbye"  #: nobody wants the output: the program may notice its input's end
    TERMINATION = "termination"  #: it was asked to end


class Life(Protocol):
    """What can happen to a program."""

    def exited(self) -> None:
        """The program itself has ended."""

    def output_ended(self) -> None:
        """Nobody holds its output any more."""

    def went_too_far(self) -> None:
        """It has used up a limit."""

    def abandoned(self) -> None:
        """Nobody wants its output any more."""

    def time_ran_out(self) -> None:
        """What was waited for did not happen."""


@runtime_checkable
class Hands(Protocol):
    """What the machine has done for it."""

    def wait(self, for_what: Pause) -> None:
        """Say ``time_ran_out`` in a while, instead of any earlier such wish."""

    def end_input(self) -> None:
        """Give it no more input."""

    def terminate(self) -> None:
        """Ask its process group to end."""

    def kill(self) -> None:
        """Make its process group end."""

    def finish(self) -> None:
        """Kill what is left of the group, collect the program, say how it ended, let go."""


@define
class LifeCore:
    """What lasts as long as the program."""

    hands: Hands


_builder = TypeMachineBuilder(Life, LifeCore)

running = _builder.state("running")
silent = _builder.state("silent")
ended = _builder.state("ended")
leaving = _builder.state("leaving")
stopping = _builder.state("stopping")
killed = _builder.state("killed")
over = _builder.state("over")

STATES = (running, silent, ended, leaving, stopping, killed, over)
INPUTS = (
    Life.exited,
    Life.output_ended,
    Life.went_too_far,
    Life.abandoned,
    Life.time_ran_out,
)

running.upon(Life.output_ended).to(silent).returns(None)


@running.upon(Life.exited).to(ended)
def wait_for_descendants(life: Life, core: LifeCore) -> None:
    """What it started may still hold its output: it gets a moment."""
    core.hands.wait(Pause.DESCENDANTS)


@running.upon(Life.went_too_far).to(stopping)
@silent.upon(Life.went_too_far).to(stopping)
@leaving.upon(Life.time_ran_out).to(stopping)
def terminate(life: Life, core: LifeCore) -> None:
    """Ask it to end."""
    core.hands.wait(Pause.TERMINATION)
    core.hands.end_input()
    core.hands.terminate()


@running.upon(Life.abandoned).to(leaving)
@silent.upon(Life.abandoned).to(leaving)
def say_goodbye(life: Life, core: LifeCore) -> None:
    """Most programs end with their input."""
    core.hands.wait(Pause.GOODBYE)
    core.hands.end_input()


@stopping.upon(Life.time_ran_out).to(killed)
def kill(life: Life, core: LifeCore) -> None:
    """It does not listen."""
    core.hands.kill()


@silent.upon(Life.exited).to(over)
@ended.upon(Life.output_ended).to(over)
@ended.upon(Life.time_ran_out).to(over)
@ended.upon(Life.went_too_far).to(over)
@ended.upon(Life.abandoned).to(over)
@leaving.upon(Life.exited).to(over)
@stopping.upon(Life.exited).to(over)
@killed.upon(Life.exited).to(over)
def finish(life: Life, core: LifeCore) -> None:
    """That was it."""
    core.hands.finish()


_IGNORED = {
    running: (Life.time_ran_out,),
    silent: (Life.output_ended, Life.time_ran_out),
    ended: (Life.exited,),
    leaving: (Life.output_ended, Life.went_too_far, Life.abandoned),
    stopping: (Life.output_ended, Life.went_too_far, Life.abandoned),
    killed: (Life.output_ended, Life.went_too_far, Life.abandoned, Life.time_ran_out),
    over: INPUTS,
}
for _state, _inputs in _IGNORED.items():
    for _input in _inputs:
        _state.upon(_input).loop().returns(None)

#: Makes the machine of one program: ``make_life(LifeCore(hands))``.
make_life = quick(_builder).build()
