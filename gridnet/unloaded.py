"""
Modules that are loaded when something of them is first used.

A library imports at its head whatever any of its users may need.  A daemon that never speaks TLS
then still holds OpenSSL's bindings in memory.  Here a stand-in takes the place of such a module:
who imports it gets the stand-in, and the first use of anything in it loads the module, in place,
so that there is never more than one of it.

Nothing depends on the stand-ins being right about who needs what: a name that is not foreseen
loads the module at once, as it would have been without them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, NamedTuple

#: One for all, and reentrant: loading one module may load another.
_lock = threading.RLock()
#: Threads that are loading one submodule of a package whose rest stays unloaded.
_loading_part: set[int] = set()
#: Where a stand-in keeps what it was asked to be.
_WANTED = "_gridnet_unloaded"


class Unloaded(NamedTuple):
    """
    One module to be left unloaded.

    :ivar name: in full.
    :ivar calls: names of functions and classes in it that are imported by name, though seldom used:
        they get stand-ins too.  A class among them may be called, derived from and asked for its
        instances, but not be caught.
    :ivar parts: name in it -> its submodule that has it, for what is used all the time; of the
        package, only that submodule is loaded.
    """

    name: str
    calls: Sequence[str] = ()
    parts: Mapping[str, str] = {}


def leave_unloaded(modules: Sequence[Unloaded]) -> Sequence[str]:
    """
    Put stand-ins in the places of *modules*.

    :returns: names of those that got one; not what is loaded already, nor what is not there.
    """
    return [module.name for module in modules if _leave(module)]


def _leave(wanted: Unloaded) -> bool:
    if wanted.name in sys.modules:
        return False
    try:
        spec = find_spec(wanted.name)
    except ImportError:  # of a package that it is in
        return False
    if spec is None or not hasattr(spec.loader, "exec_module"):
        return False
    module = module_from_spec(spec)
    members = vars(module)
    members[_WANTED] = wanted
    members.update((name, _Later(module, name)) for name in wanted.calls)
    module.__class__ = _StandIn
    sys.modules[wanted.name] = module
    package, _, child = wanted.name.rpartition(".")
    if package:
        setattr(sys.modules[package], child, module)
    return True


class _StandIn(ModuleType):
    """A module that loads itself."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":
            # Each import by name asks for that; of a package, it is there.
            raise AttributeError(name)
        wanted: Unloaded | None = vars(self).get(_WANTED)
        if wanted is not None:
            if name in wanted.parts:
                return self._part(wanted, name)
            if threading.get_ident() in _loading_part and _is_submodule(self, name):
                # "from . import name" in that part: the import statement goes and loads it.
                raise AttributeError(name)
        _load(self)
        return ModuleType.__getattribute__(self, name)

    def _part(self, wanted: Unloaded, name: str) -> Any:
        thread = threading.get_ident()
        outermost = thread not in _loading_part
        _loading_part.add(thread)
        try:
            value = getattr(import_module(f"{wanted.name}.{wanted.parts[name]}"), name)
        finally:
            if outermost:
                _loading_part.discard(thread)
        vars(self).setdefault(name, value)
        return value


def _is_submodule(module: ModuleType, name: str) -> bool:
    if not hasattr(module, "__path__"):
        return False
    return find_spec(f"{module.__name__}.{name}") is not None


def _load(module: ModuleType) -> None:
    """Do what importing *module* would have done."""
    # A thread that has lost the race waits here; one that comes back, as modules that import each
    # other do, sees what there is so far.
    with _lock:
        members = vars(module)
        wanted: Unloaded | None = members.pop(_WANTED, None)
        if wanted is None:
            return
        later = {name: members.pop(name) for name in wanted.calls}
        spec = module.__spec__
        assert spec is not None and spec.loader is not None
        try:
            spec.loader.exec_module(module)
        except BaseException:
            members.update(later)
            members[_WANTED] = wanted  # whoever comes next is told the same
            raise
        module.__class__ = ModuleType


class _Later:
    """A function or class of a module that is not loaded."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module = module
        self._name = name

    def _real(self) -> Any:
        _load(self._module)
        return getattr(self._module, self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self._real(),)
