"""
The methods of the interface: names, types of their arguments, and what runs them.

A method is a function with the :func:`method` decorator in the module of its group; a listener
offers the methods of some modules.  Arguments are checked against the declared types before the
function sees them, so a wrong one is fault -32602 and never an internal error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from attrs import frozen

from gridnet.scire.faults import FaultCode, ScireFault

F = TypeVar("F", bound=Callable[..., Any])
_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "boolean": (bool,),
    "string": (str,),
    "double": (float, int),
    "dateTime.iso8601": (datetime,),
    "base64": (bytes,),
    "array": (list,),
    "struct": (dict,),
    "ref": (int, str),  # an id or a name
}


class Lane(Enum):
    """How a method is run."""

    READ = "read"  #: one reading transaction: function(server, tx, caller, *arguments)
    WRITE = "write"  #: one writing transaction, likewise
    FREE = "free"  #: on the reactor: function(server, call, *arguments), a value or a coroutine


@frozen
class Method:
    """One method."""

    name: str
    result: str  #: type
    params: tuple[str, ...]  #: types
    optional: int  #: so many of the last may be left out
    lane: Lane
    slot: bool  #: a call holds a slot while it is worked on
    function: Callable[..., Any]

    @property
    def help(self) -> str:
        """What it is for."""
        return " ".join((self.function.__doc__ or "").split("\n\n")[0].split())

    @property
    def signatures(self) -> list[list[str]]:
        """As ``system.methodSignature`` gives them; the id for what may also be a name."""
        least = len(self.params) - self.optional
        counts = range(least, len(self.params) + 1)
        params = ["int" if kind == "ref" else kind for kind in self.params]
        return [[self.result, *params[:count]] for count in counts]

    def check(self, params: Sequence[Any]) -> None:
        """:raises ScireFault: -32602: too few, too many, or one of a wrong type."""
        least, most = len(self.params) - self.optional, len(self.params)
        if not least <= len(params) <= most:
            wanted = str(most) if least == most else f"{least} to {most}"
            text = f"{self.name} takes {wanted} arguments, {len(params)} given"
            raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
        for number, (value, kind) in enumerate(zip(params, self.params, strict=False), 1):
            # A bool is an int to Python, but not on the wire.
            if not isinstance(value, _TYPES[kind]) or (
                isinstance(value, bool) and kind != "boolean"
            ):
                text = f"{self.name}: argument {number} is not of type {kind}"
                raise ScireFault(FaultCode.WRONG_PARAMETERS, text)


def method(
    name: str,
    result: str,
    *params: str,
    optional: int = 0,
    lane: Lane = Lane.WRITE,
    slot: bool = True,
) -> Callable[[F], F]:
    """Make a function the method *name*."""

    def mark(function: F) -> F:
        made = Method(name, result, params, optional, lane, slot, function)
        function.scire_methods = [*getattr(function, "scire_methods", []), made]  # type: ignore[attr-defined]
        return function

    return mark


def methods_of(*modules: Any) -> dict[str, Method]:
    """The methods of *modules* by name."""
    found: dict[str, Method] = {}
    for module in modules:
        for value in vars(module).values():
            for made in getattr(value, "scire_methods", ()):
                if found.setdefault(made.name, made) is not made:
                    raise RuntimeError(f"two methods {made.name}")
    return dict(sorted(found.items()))


def member(
    struct: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any
) -> Any:
    """
    A member of a struct that a caller gave.

    :raises ScireFault: -32602: of a wrong type.
    """
    value = struct.get(name, default)
    if value is default:
        return default
    wanted = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        names = " or ".join(k.__name__ for k in wanted)
        raise ScireFault(FaultCode.WRONG_PARAMETERS, f"member {name} is not of type {names}")
    return value


def only_members(struct: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """:raises ScireFault: -32602: *struct* has a member that is not *known*."""
    strange = sorted(set(struct) - set(known))
    if strange:
        text = f"{where}: unknown member {strange[0][:60]}; known are {', '.join(known)}"
        raise ScireFault(FaultCode.WRONG_PARAMETERS, text)
