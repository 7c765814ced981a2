"""State machines that find their next step at once."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

Builder = TypeVar("Builder")


def quick(builder: Builder) -> Builder:
    """
    Make the machines of *builder*, an ``automat.TypeMachineBuilder``, look their steps up.

    Automat goes through all transitions for each input: with the relay's 144 of them that took
    34 us, seven times for each connection.  Remembering what it finds takes 1 us.  Call it before
    ``build()``; an Automat that is made otherwise is left as it is.
    """
    automaton: Any = getattr(builder, "_automaton", None)
    look_up = getattr(automaton, "outputForInput", None)
    if look_up is not None:
        automaton.outputForInput = cache(look_up)
    return builder
