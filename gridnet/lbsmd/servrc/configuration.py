"""A whole file set: includes followed, scopes judged, every fault with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

from attrs import field, frozen

from gridnet.errors import Fault
from gridnet.lbsmd.servrc.fault import LineFault
from gridnet.lbsmd.servrc.grammar import (
    Authority,
    Environment,
    Include,
    MonitoredPort,
    NameHold,
    Service,
    Zone,
    parse_line,
)
from gridnet.lbsmd.servrc.lines import LogicalLine, logical_lines
from gridnet.lbsmd.servrc.zone import zone_bits

#: A file set deeper or larger than this is at fault.
MAX_DEPTH = 16
MAX_FILES = 1000
MAX_FILE_OCTETS = 16 * 1024 * 1024


@frozen
class Rules:
    """What the language leaves to the site."""

    mail_domain: str = ""  #: the one domain that contacts may be of
    site: int = 1  #: bits of the broadcast domain, a contiguous run of ones
    site_role: str = "plain"  #: ``plain``, ``try`` or ``qa``
    zone: int | None = None  #: fixed for this host; a file that says otherwise is at fault


@frozen
class Placed:
    """A service and where it is defined."""

    service: Service
    file: str
    line: int  #: from 1


@frozen
class Configuration:
    """What a file set says.  With faults, what the faultless lines say."""

    files: tuple[str, ...] = ()  #: every file of the set, missing ones too, in reading order
    services: tuple[Placed, ...] = ()
    ports: tuple[int, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    zone: int = 0  #: zone bits of this host
    faults: tuple[Fault, ...] = ()


@frozen
class _Hold:
    hold: NameHold
    file: str

    def forbids(self, service: Service, file: str) -> bool:
        held = self.hold
        return (
            file != self.file
            and service.name.lower() == held.name.lower()
            and bool(service.type & held.held_type)
            and (not held.host or held.host.lower() == service.host.lower())
            and (not held.port or held.port == service.port)
        )


@frozen
class _Reading:
    """A file set being read."""

    read: Callable[[str], str]
    rules: Rules
    start: PurePath
    files: dict[str, None] = field(factory=dict)
    services: list[Placed] = field(factory=list)
    ports: dict[int, None] = field(factory=dict)
    environment: list[tuple[str, str]] = field(factory=list)
    users: dict[str, None] = field(factory=dict)
    groups: dict[str, None] = field(factory=dict)
    zones: list[int] = field(factory=list)
    holds: dict[str, list[_Hold]] = field(factory=dict)
    #: the file of the first authority line, once there was one
    authority_root: list[str] = field(factory=list)
    faults: list[Fault] = field(factory=list)

    def fault(self, file: str, line: LogicalLine | None, offset: int, text: str) -> None:
        where = file
        if line is not None:
            number, column = line.place(offset)
            where = f"{file}:{number}:{column}"
        self.faults.append(Fault(where, text))

    def file(self, name: str, prefix: str, stack: tuple[str, ...], by: LogicalLine | None) -> None:
        """Read the file *name*, included by the line *by* of the last of *stack*."""
        parent = stack[-1] if stack else name
        if name in stack:
            return self.fault(parent, by, 0, f"{name} includes itself")
        if len(stack) >= MAX_DEPTH:
            return self.fault(parent, by, 0, f"includes nest deeper than {MAX_DEPTH}")
        if name not in self.files and len(self.files) >= MAX_FILES:
            return self.fault(parent, by, 0, f"more than {MAX_FILES} files")
        self.files[name] = None
        try:
            text = self.read(name)
        except OSError as error:
            reason = error.strerror or str(error)
            return self.fault(parent, by, 0, f"{name} cannot be read: {reason}")
        if len(text) > MAX_FILE_OCTETS:
            return self.fault(parent, by, 0, f"{name} is longer than {MAX_FILE_OCTETS} characters")
        inside = (*stack, name)
        for line in logical_lines(text):
            if prefix and not line.text.lstrip(" \t").startswith("%"):
                line = line.prefixed(prefix)
            try:
                self.line(line, name, inside)
            except LineFault as fault:
                self.fault(name, line, fault.offset, fault.text)
        return None

    def line(self, line: LogicalLine, file: str, stack: tuple[str, ...]) -> None:
        value = parse_line(line.text, self.rules.mail_domain)
        if isinstance(value, Service):
            for hold in self.holds.get(value.name.lower(), ()):
                if hold.forbids(value, file):
                    raise LineFault(0, f"the name {value.name} is held by {hold.file}")
            self.services.append(Placed(value, file, line.line))
        elif isinstance(value, Include):
            self.file(str(self.start / value.file), value.prefix, stack, line)
        elif isinstance(value, Environment):
            self.environment.append((value.name, value.value))
        elif isinstance(value, MonitoredPort):
            self.ports[value.port] = None
        elif isinstance(value, Authority):
            if not self.authority_root:
                self.authority_root.append(file)
            if self.authority_root[0] not in stack:
                raise LineFault(
                    0,
                    f"host authority {value.name}: only {self.authority_root[0]} and what it "
                    "includes may name more",
                )
            (self.groups if value.group else self.users)[value.name] = None
        elif isinstance(value, NameHold):
            self.holds.setdefault(value.name.lower(), []).append(_Hold(value, file))
        else:
            self.zone(value)

    def zone(self, value: Zone) -> None:
        bits = zone_bits(value.text, self.rules.site, self.rules.site_role)
        if bits is None:
            raise LineFault(0, f"zone {value.text}: expected a part of site {self.rules.site:#x}")
        if self.zones:
            raise LineFault(0, "expected only one zone line")
        if self.rules.zone is not None and bits != self.rules.zone:
            raise LineFault(0, f"zone {value.text}: this host's zone is {self.rules.zone:#x}")
        self.zones.append(bits)


def load(
    read: Callable[[str], str], main: PurePath, start: PurePath, rules: Rules
) -> Configuration:
    """
    Read the file *main* and all that it includes.

    :param read: gives a file's text by its path; raises OSError.
    :param start: where relative names start, at every depth.
    :returns: what it says; all faults are in it, each as ``file:line:column``.
    """
    reading = _Reading(read, rules, start)
    reading.file(str(start / main), "", (), None)
    zone = reading.zones[0] if reading.zones else (rules.zone or rules.site)
    return Configuration(
        files=tuple(reading.files),
        services=tuple(reading.services),
        ports=tuple(reading.ports),
        environment=tuple(reading.environment),
        users=tuple(reading.users),
        groups=tuple(reading.groups),
        zone=zone,
        faults=tuple(reading.faults),
    )
