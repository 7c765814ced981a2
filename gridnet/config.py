"""
The site file: TOML text in, frozen attrs values out.

A site file has a ``[site]`` section and one section for each component that is to run.
Structuring is strict: an unknown key, a string where a number belongs or ``true`` where an
integer belongs is a fault; all faults of the file are reported together, each with its key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import attrs
import cattrs
from attrs import Attribute, Factory, field, frozen
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.errors import (
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
)

from gridnet.errors import ConfigError, Fault, shown
from gridnet.table.address import canonical_address

T = TypeVar("T")


def _exactly(wanted: type[T], *also: type) -> Callable[[object, object], T]:
    """A cattrs hook that takes values of just *wanted* (and, for float, an int)."""

    def structure(value: object, _: object) -> T:
        if type(value) is wanted:
            return value
        if type(value) in also:
            return wanted(value)  # type: ignore[call-arg]
        raise TypeError(f"expected {wanted.__name__}, found {type(value).__name__} {value!r}")

    return structure


#: A number above this is a slip, and what counts with it may hold no larger one.
_MOST = 1 << 62


def _countable(value: object, kind: object) -> int:
    """A whole number that a machine counts with: TOML texts may hold any."""
    number = _exactly(int)(value, kind)
    if not -_MOST <= number <= _MOST:
        raise ValueError(f"expected a number up to {_MOST}, found {number}")
    return number


def _finite(value: object, kind: object) -> float:
    """A number that can be counted with: TOML also has ``nan`` and ``inf``."""
    number = _exactly(float, int)(value, kind)
    if not isfinite(number):
        raise ValueError(f"expected a finite number, found {number}")
    return number


def _text_or_member(value: object, kind: type[str]) -> str:
    """
    A text, or the member that it stands for where *kind* is an Enum of texts.

    A hook for ``str`` holds for its subclasses too, so it would give a StrEnum any text.
    """
    if not issubclass(kind, Enum):
        return _exactly(str)(value, kind)
    for member in kind:
        if member.value == value:
            return member
    known = ", ".join(str(member.value) for member in kind)
    raise TypeError(f"expected one of {known}, found {value!r}")


def _is_homogenous_tuple(kind: Any) -> bool:
    """Whether *kind* is ``tuple[X, ...]``."""
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _tuple_factory(kind: Any, converter: cattrs.BaseConverter) -> Callable[[Any, Any], Any]:
    """Hooks for ``tuple[X, ...]`` that do not take a text for the sequence of its letters."""
    structure_elements = homogenous_tuple_structure_factory(kind, converter)

    def structure(value: object, wanted: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"expected an array, found {type(value).__name__} {value!r}")
        return structure_elements(value, wanted)

    return structure


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(str, _text_or_member)
    converter.register_structure_hook(bool, _exactly(bool))
    converter.register_structure_hook(int, _countable)
    converter.register_structure_hook(float, _finite)
    converter.register_structure_hook(Path, lambda value, _: Path(_exactly(str)(value, str)))
    converter.register_structure_hook_factory(_is_homogenous_tuple, _tuple_factory)
    return converter


_CONVERTER = _make_converter()


def _flatten(error: BaseException, where: str) -> Iterator[Fault]:
    """The faults inside a cattrs exception group, each with its dotted key."""
    if isinstance(error, ClassValidationError):
        for inner in error.exceptions:
            notes = [n for n in getattr(inner, "__notes__", ()) if hasattr(n, "name")]
            key = f"{where}.{notes[0].name}" if notes else where
            yield from _flatten(inner, key)
    elif isinstance(error, IterableValidationError):
        for inner in error.exceptions:
            notes = [n for n in getattr(inner, "__notes__", ()) if hasattr(n, "index")]
            key = f"{where}[{notes[0].index}]" if notes else where
            yield from _flatten(inner, key)
    elif isinstance(error, ForbiddenExtraKeysError):
        for name in sorted(error.extra_fields):
            yield Fault(f"{where}.{name}", "unknown key")
    elif isinstance(error, KeyError):
        yield Fault(where, "missing; a value is required")
    elif isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _flatten(each, where)
    else:
        yield Fault(where, str(error))


def structure(config_class: type[T], values: Mapping[str, object], section: str) -> T:
    """
    Make a *config_class* (an attrs class) of *values*.

    :param section: name under which faults are reported.
    :raises ConfigError: with every fault found.
    """
    try:
        # attrs stops at the first validator that objects; here every objection is wanted.
        with attrs.validators.disabled():
            made = _CONVERTER.structure(dict(values), config_class)
    except (BaseExceptionGroup, TypeError, ValueError, KeyError) as error:
        raise ConfigError(_flatten(error, section)) from None
    faults = list(_objections(made, section))
    if faults:
        raise ConfigError(faults)
    return made


def _objections(made: object, where: str) -> Iterator[Fault]:
    """What the validators of *made* and of the attrs values inside it object to."""
    if isinstance(made, (tuple, list)):
        for index, item in enumerate(made):
            yield from _objections(item, f"{where}[{index}]")
    elif attrs.has(type(made)):
        for attribute in attrs.fields(cast(Any, type(made))):
            value = getattr(made, attribute.name)
            key = f"{where}.{attribute.name}"
            if attribute.validator is not None:
                try:
                    attribute.validator(made, attribute, value)
                except (TypeError, ValueError) as error:
                    yield Fault(key, str(error.args[0] if error.args else error))
            yield from _objections(value, key)


def parse_port_range(text: str) -> range:
    """
    The ports that ``A-B``, or ``A`` alone, stands for.

    :raises ValueError: anything else; the text says what.
    """
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() if dash else True)):
        raise ValueError(f"expected A-B, found {text!r}")
    low, high = int(first), int(last or first)
    if not 0 < low <= high <= 65535:
        raise ValueError(f"expected 1 <= A <= B <= 65535, found {text!r}")
    return range(low, high + 1)


def at_least(minimum: float) -> Callable[[object, Attribute[Any], Any], None]:
    """An attrs validator: the number is *minimum* or more."""

    def validate(_: object, attribute: Attribute[Any], value: Any) -> None:
        if value < minimum:
            raise ValueError(f"expected {minimum} or more, found {value!r}")

    return validate


def more_than(bound: float) -> Callable[[object, Attribute[Any], Any], None]:
    """An attrs validator: the number is above *bound*."""

    def validate(_: object, attribute: Attribute[Any], value: Any) -> None:
        if value <= bound:
            raise ValueError(f"expected more than {bound}, found {value!r}")

    return validate


def between(least: float, most: float) -> Callable[[object, Attribute[Any], Any], None]:
    """An attrs validator: the number is from *least* to *most*."""

    def validate(_: object, attribute: Attribute[Any], value: Any) -> None:
        if not least <= value <= most:
            raise ValueError(f"expected {least} to {most}, found {value!r}")

    return validate


def ip_address(_: object, attribute: Attribute[Any], value: str) -> None:
    """An attrs validator: the text is an IP address in its usual form."""
    usual = canonical_address(value)
    if usual is None:
        raise ValueError(f"expected an IP address, found {shown(value)}")
    if usual != value:
        raise ValueError(f"expected {usual}, found {shown(value)}")


@frozen
class SiteSection:
    """``[site]``: what all components of one process share."""

    name: str = "gridnet"  #: shown on the status page
    state_dir: Path = Path("state")  #: for keys, stores and logs; relative to the site file
    #: IP address of this host that other hosts use
    address: str = field(default="127.0.0.1", validator=ip_address)
    #: address ranges (docs/protocols/load-balancing.rst) whose clients are inside the site
    local_networks: tuple[str, ...] = (
        "10/8",
        "172.16/12",
        "192.168/16",
        "fc00::/7",
    )
    #: file of further ranges, as the released clients have one; empty: there is none
    local_networks_file: str = ""
    max_services: int = field(default=100_000, validator=at_least(1))  #: entries in the table


@frozen
class SiteConfig:
    """A whole site file."""

    site: SiteSection = field(factory=SiteSection)
    sections: Mapping[str, object] = Factory(dict)  #: component name -> its config class
    directory: Path = Path()  #: that relative paths start from

    def path(self, relative: Path | str) -> Path:
        """*relative* as seen from the directory of the site file."""
        return self.directory / relative


def read(path: Path, config_classes: Mapping[str, type]) -> SiteConfig:
    """
    Read the site file at *path*.

    :param config_classes: component name -> attrs class of its section.
    :raises ConfigError: unreadable, not TOML, an unknown section, or faulty values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Fault(str(path), f"cannot be read: {error}")]) from None
    return parse(text, config_classes, path.absolute().parent, str(path))


def parse(
    text: str,
    config_classes: Mapping[str, type],
    directory: Path = Path(),
    origin: str = "<site file>",
) -> SiteConfig:
    """
    Read a site file's *text*; see :func:`read`.

    :raises ConfigError: not TOML, an unknown section, or faulty values.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Fault(origin, f"not TOML: {error}")]) from None
    faults: list[Fault] = []
    sections: dict[str, object] = {}
    site = SiteSection()
    for name, values in document.items():
        wanted = SiteSection if name == "site" else config_classes.get(name)
        if wanted is None:
            known = ", ".join(["site", *sorted(config_classes)])
            faults.append(Fault(name, f"unknown section; expected one of {known}"))
            continue
        if not isinstance(values, dict):
            faults.append(Fault(name, "expected a section, found a value"))
            continue
        try:
            section: object = structure(wanted, values, name)
        except ConfigError as error:
            faults.extend(error.faults)
            continue
        if name == "site":
            site = cast(SiteSection, section)
        else:
            sections[name] = section
    if faults:
        raise ConfigError(faults)
    return SiteConfig(site, sections, directory)
