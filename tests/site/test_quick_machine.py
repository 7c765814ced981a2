"""Machines that find their next step at once do what Automat's own do."""

from __future__ import annotations

from typing import Protocol

from attrs import define, field
from automat import NoTransition, TypeMachineBuilder
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gridnet.quick_machine import compiled, state_name
from tests.hypothesis_profile import examples


class Door(Protocol):
    """A door with a bell."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def ring(self) -> None: ...
    def slam(self) -> None: ...


@define
class House:
    heard: list[str] = field(factory=list)


builder = TypeMachineBuilder(Door, House)
shut = builder.state("shut")
ajar = builder.state("ajar")
gone = builder.state("gone")


@shut.upon(Door.open).to(ajar)
def let_in(door: Door, house: House) -> None:
    house.heard.append("come in")


shut.upon(Door.close).loop().returns(None)
ajar.upon(Door.close).to(shut).returns(None)
ajar.upon(Door.open).to(gone).returns(None)


@shut.upon(Door.ring).loop()
def answer(door: Door, house: House) -> None:
    house.heard.append("who is it")
    # Both wait until this has been said.
    door.open()
    door.close()
    house.heard.append("a moment")


@ajar.upon(Door.ring).loop()
@ajar.upon(Door.slam).to(gone)
def break_down(door: Door, house: House) -> None:
    door.close()
    raise RuntimeError("out of its hinges")


original = builder.build()


class DataDoor(Protocol):
    def open(self) -> None: ...


class CompiledTests(SynchronousTestCase):
    """Against the original."""

    @examples(300)
    @given(st.lists(st.sampled_from(("open", "close", "ring", "slam")), max_size=12))
    def test_it_does_what_the_original_does(self, words: list[str]) -> None:
        """Postponed inputs, errors in outputs and inputs that nothing answers included."""
        told = []
        for make in (original, compiled(original)):
            house = House()
            door = make(house)
            for word in words:
                try:
                    getattr(door, word)()
                except NoTransition:
                    house.heard.append("no transition")
                except RuntimeError as error:
                    house.heard.append(str(error))
            told.append(house.heard)
        self.assertEqual(*told)

    def test_the_state_has_a_name(self) -> None:
        door = compiled(original)(House())
        self.assertEqual(state_name(door), "shut")
        door.open()
        self.assertEqual(state_name(door), "ajar")

    def test_states_with_data_are_refused(self) -> None:
        other = TypeMachineBuilder(DataDoor, House)
        plain = other.state("plain")
        rich = other.state("rich", lambda door, house: 1)
        plain.upon(DataDoor.open).to(rich).returns(None)
        self.assertRaises(TypeError, compiled, other.build())
