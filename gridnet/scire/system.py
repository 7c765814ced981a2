"""``system.*``: what a listener offers, for programs that ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.methods import Lane, Method, method

if TYPE_CHECKING:
    from gridnet.scire.rpc import Call
    from gridnet.scire.server import JobServer


def _find(call: Call, name: str) -> Method:
    found = call.listener.methods.get(name)
    if found is None:
        raise ScireFault(FaultCode.UNKNOWN_METHOD, f"no method {name}")
    return found


@method("system.listMethods", "array", lane=Lane.FREE, slot=False)
def list_methods(server: JobServer, call: Call) -> list[str]:
    """Names of the methods that this listener offers."""
    return [*call.listener.methods, "system.multicall"]


@method("system.methodHelp", "string", "string", lane=Lane.FREE, slot=False)
def method_help(server: JobServer, call: Call, name: str) -> str:
    """What a method is for."""
    if name == "system.multicall":
        return "Several calls in one; each result is an array of one value, or a fault."
    return _find(call, name).help


@method("system.methodSignature", "array", "string", lane=Lane.FREE, slot=False)
def method_signature(server: JobServer, call: Call, name: str) -> list[list[Any]]:
    """Types of a method's result and arguments, for each number of arguments that it takes."""
    if name == "system.multicall":
        return [["array", "array"]]
    return _find(call, name).signatures
