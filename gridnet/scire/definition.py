"""
A job's definition: what to do, for whom, when (docs/protocols/scire.rst, Job definition).

Its members are plain values, so that the same class reads what an administrator sends and what
the database keeps: times are seconds since the epoch, scripts and attachments are digests of
contents that are stored apart, targets are ids.  Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any

import cattrs
from attrs import Attribute, define, field, frozen

from gridnet.config import at_least, structure
from gridnet.errors import ConfigError
from gridnet.scire.dependencies import Batch, Dependency
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.jobfile import (
    Keep,
    OnInterrupt,
    PackageAction,
    Work,
    is_digest,
    is_file_name,
    is_octal,
)
from gridnet.scire.schedule import Blackout, Cron, Every, Misfire, Recurrence, zone

MAX_NAME = 200  #: characters
MAX_DESCRIPTION = 4000  #: characters
# With these a job file stays within what a client takes in one answer, whatever XML makes of the
# characters.
MAX_ARGUMENTS = 1000  #: arguments; and variables
MAX_ARGUMENT_TEXT = 262_144  #: characters of all arguments; and of all variables
MAX_PACKAGES = 500
MAX_ATTACHMENTS = 1000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PATH = re.compile(r"/[^\0]{0,1000}")
_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CAPABILITY = re.compile(r"[a-z][a-z0-9-]{0,31}")


def _is(fits: Callable[[str], object], what: str) -> Any:
    def validate(_: object, attribute: Attribute[Any], value: str) -> None:
        if not fits(value):
            raise ValueError(f"expected {what}, found {value[:60]!r}")

    return validate


def _between(low: float, high: float) -> Any:
    def validate(_: object, attribute: Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"expected {low}..{high}, found {value!r}")

    return validate


def _text(limit: int, least: int = 0) -> Any:
    def validate(_: object, attribute: Attribute[Any], value: str) -> None:
        if not least <= len(value) <= limit:
            raise ValueError(f"expected {least}..{limit} characters, found {len(value)}")
        if any(ord(c) < 32 and c not in "\t\n" for c in value):
            raise ValueError("control characters are not allowed")

    return validate


def _each(validate: Any) -> Any:
    def validate_all(instance: object, attribute: Attribute[Any], values: Any) -> None:
        for value in values:
            validate(instance, attribute, value)

    return validate_all


def _at_most(count: int) -> Any:
    def validate(_: object, attribute: Attribute[Any], values: Any) -> None:
        if len(values) > count:
            raise ValueError(f"expected at most {count}, found {len(values)}")

    return validate


def _short_together(_: object, attribute: Attribute[Any], values: Any) -> None:
    size = sum(map(len, values))
    if size > MAX_ARGUMENT_TEXT:
        raise ValueError(f"expected at most {MAX_ARGUMENT_TEXT} characters in all, found {size}")


class OnLost(StrEnum):
    """What the server does with a lost run."""

    END = "end"
    RETRY = "retry"


class Overlap(StrEnum):
    """What becomes of an occurrence whose predecessor on the client has not ended."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL_OLD = "cancel-old"


@frozen
class Package:
    """One package of a job of kind package."""

    name: str = field(validator=_text(200, 1))
    version: str = field(default="", validator=_text(200))
    action: PackageAction = PackageAction.INSTALL


@frozen
class Attachment:
    """A file that the client fetches before it starts."""

    name: str = field(validator=_is(is_file_name, "a file name"))
    digest: str = field(validator=_is(is_digest, "sha256:<64 hexadecimal digits>"))
    size: int = field(validator=at_least(0))  #: octets
    mode: str = field(default="0644", validator=_is(is_octal, "an octal mode"))


@frozen
class Execute:
    """What the client does."""

    kind: Work = Work.SCRIPT
    user: str = field(default="root", validator=_is(_USER.fullmatch, "a user name"))
    directory: str = field(default="/", validator=_is(_PATH.fullmatch, "a path"))
    umask: str = field(default="022", validator=_is(is_octal, "an octal mask"))
    interpreter: str = field(default="/bin/sh", validator=_is(_PATH.fullmatch, "a path"))
    variables: Mapping[str, str] = field(factory=dict)
    arguments: tuple[str, ...] = field(
        default=(), validator=[_at_most(MAX_ARGUMENTS), _short_together, _each(_text(4000))]
    )
    script: str = ""  #: digest
    packages: tuple[Package, ...] = field(default=(), validator=_at_most(MAX_PACKAGES))
    success: tuple[int, ...] = field(
        default=(0,), validator=[_at_most(256), _each(_between(0, 255))]
    )

    @variables.validator
    def _variable_names(self, _: Attribute[Any], value: Mapping[str, str]) -> None:
        _at_most(MAX_ARGUMENTS)(self, _, value)
        _short_together(self, _, value.values())
        for name, text in value.items():
            if _VARIABLE.fullmatch(name) is None:
                raise ValueError(f"no name of a variable: {name[:60]!r}")
            _text(4000)(self, _, text)


@frozen
class Limits:
    """What one execution may take."""

    run_seconds: int = field(default=3600, validator=_between(1, 30 * 86400))  #: until SIGTERM
    kill_seconds: int = field(default=30, validator=_between(0, 3600))  #: more, until SIGKILL
    #: kept of each stream
    output_bytes: int = field(default=1048576, validator=_between(0, 64 * 1048576))


@frozen
class Targets:
    """For whom a job is; ids."""

    all: bool = False
    clients: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    not_clients: tuple[int, ...] = ()
    not_groups: tuple[int, ...] = ()


@frozen
class Recurring:
    """When a job comes again: *cron* or *every*, one of them."""

    cron: str = ""
    every: int = field(default=0, validator=at_least(0))  #: seconds
    anchor: float = 0.0  #: of *every*, seconds since the epoch
    zone: str = "UTC"
    spread: int = field(default=0, validator=_between(0, 86400))  #: seconds
    blackouts: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        self.recurrence()

    def recurrence(self) -> Recurrence:
        """:raises ValueError: a rule, zone or window that is none."""
        if bool(self.cron) == bool(self.every):
            raise ValueError("expected either cron or every")
        rule = Cron.parse(self.cron) if self.cron else Every(self.every, self.anchor)
        windows = tuple(map(Blackout.parse, self.blackouts))
        return Recurrence(rule, zone(self.zone), windows)


@frozen
class BatchSize:
    """So many at a time, the next ones when all have ended."""

    size: int = field(default=0, validator=at_least(0))  #: 0: all at once
    #: part of failures at which the rest is given up; 0: never
    stop_percent: float = field(default=0.0, validator=_between(0, 100))


@define(frozen=True, slots=False)
class JobDefinition:
    """Everything that a job is."""

    name: str = field(validator=_text(MAX_NAME, 1))
    targets: Targets
    execute: Execute = field(factory=Execute)
    description: str = field(default="", validator=_text(MAX_DESCRIPTION))
    attachments: tuple[Attachment, ...] = field(default=(), validator=_at_most(MAX_ATTACHMENTS))
    requires: tuple[str, ...] = field(
        default=(),
        validator=[_at_most(MAX_ARGUMENTS), _each(_is(_CAPABILITY.fullmatch, "a capability"))],
    )
    priority: int = field(default=50, validator=_between(0, 99))  #: higher first
    due: float | None = None  #: not before, seconds since the epoch
    deadline: float | None = None  #: not after, seconds since the epoch
    valid_seconds: int | None = None  #: not after, from each occurrence
    recurrence: Recurring | None = None
    overlap: Overlap = Overlap.SKIP
    misfire: Misfire = Misfire.ONCE
    misfire_window: int = field(default=86400, validator=at_least(0))  #: seconds looked back
    depends_on: tuple[Dependency, ...] = ()
    limits: Limits = field(factory=Limits)
    on_interrupt: OnInterrupt = OnInterrupt.REPORT
    on_lost: OnLost = OnLost.END
    #: seconds that a received run may wait for its start before it counts as lost
    start_within: int = field(default=86400, validator=at_least(1))
    max_deliveries: int = field(default=5, validator=_between(1, 1000))
    max_parallel: int = field(default=0, validator=at_least(0))  #: 0: no bound
    batch: BatchSize = field(factory=BatchSize)
    follow_groups: bool = False
    push: bool = False  #: tell daemon-mode clients at once
    keep_output: Keep = Keep.TAIL
    notify: tuple[str, ...] = field(default=(), validator=_each(_text(200, 1)))

    def __attrs_post_init__(self) -> None:
        execute = self.execute
        if (execute.kind is Work.SCRIPT) != bool(execute.script):
            raise ValueError("a script belongs to a job of kind script")
        if execute.script and not is_digest(execute.script):
            raise ValueError("execute.script: expected a digest")
        if (execute.kind is Work.PACKAGE) != bool(execute.packages):
            raise ValueError("packages belong to a job of kind package")
        if execute.kind is Work.FILE and not self.attachments:
            raise ValueError("a job of kind file needs attachments")
        names = [attachment.name for attachment in self.attachments]
        if len(set(names)) < len(names):
            raise ValueError("two attachments of one name")
        if self.due is not None and self.deadline is not None and self.deadline <= self.due:
            raise ValueError("the deadline is not after due")

    @property
    def permission(self) -> str:
        """What the ordering user must hold on each target."""
        return f"run.{self.execute.kind.value}"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the client must be able to do."""
        return tuple(dict.fromkeys((self.execute.kind.value, *self.requires)))

    @cached_property
    def recurrence_rule(self) -> Recurrence | None:
        """When it comes again."""
        return self.recurrence.recurrence() if self.recurrence is not None else None

    @property
    def batching(self) -> Batch:
        """How many runs at a time."""
        return Batch(self.batch.size, self.batch.stop_percent, self.max_parallel)

    def deadline_of(self, occurrence: float) -> float | None:
        """When the run of *occurrence* must have been started, in seconds since the epoch."""
        ends = [self.deadline] if self.deadline is not None else []
        if self.valid_seconds is not None:
            ends.append(occurrence + self.valid_seconds)
        return min(ends) if ends else None


def parse_definition(values: Mapping[str, Any]) -> JobDefinition:
    """
    Read a definition of plain values.

    :raises ScireFault: 1040, with every fault, each with its member.
    """
    try:
        return structure(JobDefinition, values, "definition")
    except ConfigError as error:
        text = "; ".join(map(str, error.faults))
        raise ScireFault(FaultCode.INVALID_DEFINITION, text[:2000]) from None


_PLAIN = cattrs.Converter()


def plain_values(definition: JobDefinition) -> dict[str, Any]:
    """The inverse of :func:`parse_definition`: values that JSON can carry."""
    values: dict[str, Any] = _PLAIN.unstructure(definition)
    return values
