"""
What a component is, and which ones there are.

A component is a folder of this package that has a ``component.py`` with a ``COMPONENT``.
Its name is alike in the package, the section of the site file, ``twistd gridnet-<name>``, the
deployment file, the test folder and the page in the docs.  Adding one adds a folder (and
its line in the Twisted plugin file); nothing here changes.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from attrs import field, frozen

import gridnet


def load_object(reference: str) -> Any:
    """The object that *reference*, ``"package.module:name"``, stands for."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@frozen
class Command:
    """A subcommand of the ``gridnet`` console script."""

    name: str  #: as typed
    summary: str  #: one line for ``gridnet --help``
    main: str  #: ``"module:function"`` of a ``main(arguments: Sequence[str]) -> int``

    def load(self) -> Callable[[Sequence[str]], int]:
        """Import and return its ``main``."""
        main: Callable[[Sequence[str]], int] = load_object(self.main)
        return main


@frozen
class Component:
    """How a site finds, configures and makes one component."""

    name: str  #: one noun
    summary: str  #: one line
    #: ``"module:Class"``, the attrs class of its section; imported late, as its factory is, so
    #: that a process loads only what its site file names
    config: str
    #: ``"module:make_noun"``, called with (config, site), gives an IService; imported late
    factory: str
    after: tuple[str, ...] = ()  #: components that are made, and so started, before it
    #: of these, those without which it is of no use: they come along when it runs alone, if the
    #: site file has their sections
    needs: tuple[str, ...] = ()
    #: ``"module:section"``, called with a :class:`gridnet.demo.plan.DemoPlan`, gives the section
    #: of the demo site as plain TOML values; empty: the demo runs without it
    demo: str = ""
    #: ``"module:make"``, called with a :class:`gridnet.demo.plan.DemoPlan` and the site, gives an
    #: IService of what the demo runs beside the component, such as a client; empty: nothing
    demo_company: str = ""
    #: ``"module:show"``, called with what the component announces and a text file, shows a
    #: visitor of the demo what the component does; blocking; empty: nothing
    demo_tour: str = ""
    commands: tuple[Command, ...] = field(default=())

    def config_class(self) -> type:
        """Import and return the class of its section."""
        loaded: type = load_object(self.config)
        return loaded

    def make(self, config: Any, site: Any) -> Any:
        """Make its service (:class:`twisted.application.service.IService`) in *site*."""
        return load_object(self.factory)(config, site)


@cache
def components() -> Mapping[str, Component]:
    """All components by name, each after those that it names in ``after``."""
    found: dict[str, Component] = {}
    for module in pkgutil.iter_modules(gridnet.__path__):
        name = f"gridnet.{module.name}.component"
        if module.ispkg and importlib.util.find_spec(name) is not None:
            component: Component = import_module(name).COMPONENT
            found[component.name] = component
    ordered: dict[str, Component] = {}

    def place(name: str, path: tuple[str, ...] = ()) -> None:
        if name in path:
            raise RuntimeError(f"components wait for each other: {' -> '.join((*path, name))}")
        if name in found and name not in ordered:
            for earlier in found[name].after:
                place(earlier, (*path, name))
            ordered[name] = found[name]

    for name in sorted(found):
        place(name)
    return ordered


class _ConfigClasses(Mapping[str, type]):
    """Knows all components, and imports the class of one when it is asked for it."""

    def __getitem__(self, name: str) -> type:
        return components()[name].config_class()

    def __iter__(self) -> Iterator[str]:
        return iter(components())

    def __len__(self) -> int:
        return len(components())


def config_classes() -> Mapping[str, type]:
    """Component name -> class of its section of the site file, imported when it is looked up."""
    return _ConfigClasses()
