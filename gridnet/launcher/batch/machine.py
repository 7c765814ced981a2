"""The life of a service that is born in a batch job (docs/howto/batch-service.rst)."""

from __future__ import annotations

from enum import Enum
from typing import Protocol, runtime_checkable

from attrs import define
from automat import TypeMachineBuilder

from gridnet.quick_machine import quick


class Pause(Enum):
    """What is waited for; each has its own length."""

    START = "start"  #: the program is to listen
    DRAIN = "drain"  #: its clients are to go
    TERMINATION = "termination"  #: it was asked to end


class Life(Protocol):
    """What can happen to it."""

    def listened(self) -> None:
        """The program listens at its port."""

    def fell_ill(self) -> None:
        """It does not answer any more."""

    def recovered(self) -> None:
        """It answers again."""

    def told_to_drain(self) -> None:
        """It is to take no more clients, and end when those that it has are gone."""

    def drained(self) -> None:
        """They are gone."""

    def told_to_stop(self) -> None:
        """It is to end now."""

    def time_ran_out(self) -> None:
        """What was waited for did not happen."""

    def exited(self) -> None:
        """The program has ended."""


@runtime_checkable
class Hands(Protocol):
    """What the machine has done for it."""

    def wait(self, for_what: Pause) -> None:
        """Say ``time_ran_out`` in a while, instead of any earlier such wish."""

    def stop_waiting(self) -> None:
        """Do not, after all."""

    def publish(self) -> None:
        """Enter it into the service table; look after its health."""

    def mark_down(self) -> None:
        """No new clients, for now."""

    def mark_up(self) -> None:
        """New clients again."""

    def drain(self) -> None:
        """No new clients any more; say ``drained`` once those of before are gone."""

    def withdraw(self) -> None:
        """Take it out of the table."""

    def terminate(self) -> None:
        """Ask the program to end."""

    def kill(self) -> None:
        """Make it end."""

    def finish(self) -> None:
        """It is over: let go of everything."""


@define
class LifeCore:
    """What lasts as long as the service."""

    hands: Hands


_builder = TypeMachineBuilder(Life, LifeCore)

starting = _builder.state("starting")
serving = _builder.state("serving")
ailing = _builder.state("ailing")
draining = _builder.state("draining")
stopping = _builder.state("stopping")
killed = _builder.state("killed")
over = _builder.state("over")

STATES = (starting, serving, ailing, draining, stopping, killed, over)
INPUTS = (
    Life.listened,
    Life.fell_ill,
    Life.recovered,
    Life.told_to_drain,
    Life.drained,
    Life.told_to_stop,
    Life.time_ran_out,
    Life.exited,
)


@starting.upon(Life.listened).to(serving)
def publish(life: Life, core: LifeCore) -> None:
    """From now on it has clients."""
    core.hands.stop_waiting()
    core.hands.publish()


@serving.upon(Life.fell_ill).to(ailing)
def mark_down(life: Life, core: LifeCore) -> None:
    """Clients are better off elsewhere."""
    core.hands.mark_down()


@ailing.upon(Life.recovered).to(serving)
def mark_up(life: Life, core: LifeCore) -> None:
    """It is back."""
    core.hands.mark_up()


@serving.upon(Life.told_to_drain).to(draining)
@ailing.upon(Life.told_to_drain).to(draining)
def drain(life: Life, core: LifeCore) -> None:
    """Its clients may finish."""
    core.hands.wait(Pause.DRAIN)
    core.hands.drain()


@starting.upon(Life.told_to_drain).to(stopping)
@starting.upon(Life.told_to_stop).to(stopping)
@starting.upon(Life.time_ran_out).to(stopping)
@serving.upon(Life.told_to_stop).to(stopping)
@ailing.upon(Life.told_to_stop).to(stopping)
@draining.upon(Life.told_to_stop).to(stopping)
@draining.upon(Life.time_ran_out).to(stopping)
@draining.upon(Life.drained).to(stopping)
def terminate(life: Life, core: LifeCore) -> None:
    """Nobody is to come any more; then it may go."""
    core.hands.withdraw()
    core.hands.wait(Pause.TERMINATION)
    core.hands.terminate()


@stopping.upon(Life.time_ran_out).to(killed)
@stopping.upon(Life.told_to_stop).to(killed)
def kill(life: Life, core: LifeCore) -> None:
    """It does not listen, or somebody is in a hurry."""
    core.hands.stop_waiting()
    core.hands.kill()


@starting.upon(Life.exited).to(over)
@serving.upon(Life.exited).to(over)
@ailing.upon(Life.exited).to(over)
@draining.upon(Life.exited).to(over)
@stopping.upon(Life.exited).to(over)
@killed.upon(Life.exited).to(over)
def finish(life: Life, core: LifeCore) -> None:
    """That was it."""
    core.hands.stop_waiting()
    core.hands.withdraw()
    core.hands.finish()


_IGNORED = {
    starting: (Life.fell_ill, Life.recovered, Life.drained),
    serving: (Life.listened, Life.recovered, Life.drained, Life.time_ran_out),
    ailing: (Life.listened, Life.fell_ill, Life.drained, Life.time_ran_out),
    draining: (Life.listened, Life.fell_ill, Life.recovered, Life.told_to_drain),
    stopping: (Life.listened, Life.fell_ill, Life.recovered, Life.told_to_drain, Life.drained),
    killed: tuple(each for each in INPUTS if each is not Life.exited),
    over: INPUTS,
}
for _state, _inputs in _IGNORED.items():
    for _input in _inputs:
        _state.upon(_input).loop().returns(None)

#: Makes the machine of one service: ``make_life(LifeCore(hands))``.
make_life = quick(_builder).build()
