"""
A whole file set: includes followed, scopes judged, every fault with its place.

Reads through a callable, so that it is as pure as the grammar; the files themselves are the
business of :mod:`gridnet.lbsmd.files`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

from attrs import field, frozen

from gridnet.errors import Fault, shown
from gridnet.lbsmd.servrc.check_list import CheckPlan
from gridnet.lbsmd.servrc.fault import LineFault
from gridnet.lbsmd.servrc.grammar import parse_line
from gridnet.lbsmd.servrc.lines import LogicalLine, effective_lines
from gridnet.lbsmd.servrc.records import (
    Authority,
    Environment,
    Include,
    MonitoredPort,
    NameHold,
    Record,
    ServiceRecord,
    Zone,
)
from gridnet.lbsmd.servrc.zone import zone_bits
from gridnet.table.server_info import ServerType

#: How deep includes may nest below the main file.
MAX_DEPTH = 16
#: After so many faults the rest of a file set is not read.
MAX_FAULTS = 10_000
#: Zone bits that a host record has room for.
ALL_ZONES = 0xFFFF


@frozen
class Rules:
    """What the language leaves to the site."""

    mail_domain: str = ""  #: the one domain that contacts may be of; empty: no contacts
    default_local: bool = False  #: what a service line without ``L=`` means
    site: int = ALL_ZONES  #: bits of the broadcast domain, a contiguous run of ones
    site_role: str = "plain"  #: ``plain``, ``try`` or ``qa``
    zone: int | None = None  #: fixed for this host; a file that says otherwise is at fault
    max_inclusions: int = 1000  #: files read for one set, each as often as it is included
    max_octets: int = 16 * 1024 * 1024  #: of all files read for one set


@frozen
class PlacedRecord:
    """A service record and where it is written."""

    record: ServiceRecord
    file: str
    line: int  #: physical line it begins on, from 1

    @property
    def where(self) -> str:
        """Its place, as faults name it."""
        return f"{self.file}:{self.line}"

    @property
    def plan(self) -> CheckPlan:
        """How it is checked."""
        return CheckPlan.of(self.record.checks)


@frozen
class HostAuthority:
    """Who may operate on every record of this host, besides root and the daemon's user."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@frozen
class Configuration:
    """What a file set says.  With faults: what the faultless lines say."""

    files: tuple[str, ...] = ()  #: every file of the set once, missing ones too, in reading order
    records: tuple[PlacedRecord, ...] = ()
    ports: tuple[int, ...] = ()  #: monitored, in order, each once
    environment: tuple[tuple[str, str], ...] = ()
    authority: HostAuthority = HostAuthority()
    zone: int = ALL_ZONES  #: zone bits of this host
    faults: tuple[Fault, ...] = ()
    remarks: tuple[Fault, ...] = ()  #: what is allowed, but hardly meant


class _TooMuchError(Exception):
    """A bound on the whole set is reached; the fault that says so is noted already."""


@frozen
class _Hold:
    hold: NameHold
    file: str
    line: int

    def forbids(self, record: ServiceRecord, file: str) -> bool:
        held = self.hold
        return (
            file != self.file
            and bool(record.type & held.held_type)
            and (not held.host or held.host.lower() == record.host.lower())
            and (not held.port or held.port == record.port)
        )


@frozen
class _Reading:
    """A file set being read."""

    read: Callable[[str], str]
    rules: Rules
    directory: str
    files: dict[str, None] = field(factory=dict)
    records: list[PlacedRecord] = field(factory=list)
    ports: dict[int, None] = field(factory=dict)
    environment: list[tuple[str, str]] = field(factory=list)
    users: dict[str, None] = field(factory=dict)
    groups: dict[str, None] = field(factory=dict)
    zones: list[int] = field(factory=list)
    holds: dict[str, list[_Hold]] = field(factory=dict)  #: by service name without case
    #: (service without case, server) -> where it was last
    servers: dict[tuple[object, ...], str] = field(factory=dict)
    #: the file of the first authority line, once there was one
    authority_root: list[str] = field(factory=list)
    faults: list[Fault] = field(factory=list)
    remarks: list[Fault] = field(factory=list)
    spent: dict[str, int] = field(factory=lambda: {"inclusions": 0, "octets": 0})

    def note(self, file: str, line: LogicalLine | None, fault: LineFault) -> None:
        """Keep what is wrong in *line* of *file* (None: with the main file as a whole)."""
        for found in fault.found:
            where = file
            if line is not None:
                number, column = line.place(found.offset)
                where = f"{file}:{number}:{column}"
            self.faults.append(Fault(where, str(found)))
        if len(self.faults) >= MAX_FAULTS:
            self.faults.append(Fault(file, f"{MAX_FAULTS} faults; the rest is not read"))
            raise _TooMuchError

    def file(self, path: str, prefix: str, stack: tuple[str, ...]) -> None:
        """
        Read the file at *path*, included from the last of *stack*.

        :raises LineFault: it cannot be included; offset 0.
        """
        if path in stack:
            raise LineFault.at(0, f"{path}, which includes itself", "another file")
        if len(stack) > MAX_DEPTH:
            raise LineFault.at(0, "includes nested deeper", f"at most {MAX_DEPTH} levels")
        self.spent["inclusions"] += 1
        if self.spent["inclusions"] > self.rules.max_inclusions:
            raise LineFault.at(
                0, "one more file", f"at most {self.rules.max_inclusions} (max_inclusions)"
            )
        self.files[path] = None
        try:
            text = self.read(path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise LineFault.at(0, f"{path}: {reason}", "a file that can be read") from None
        self.spent["octets"] += len(text)
        if self.spent["octets"] > self.rules.max_octets:
            raise LineFault.at(
                0, f"{path} with more octets", f"at most {self.rules.max_octets} (max_octets)"
            )
        inside = (*stack, path)
        for line in effective_lines(text, prefix):
            try:
                record = parse_line(line.text, self.rules.mail_domain, self.rules.default_local)
                self.take(record, line, path, inside)
            except LineFault as fault:
                self.note(path, line, fault)

    def take(self, record: Record, line: LogicalLine, file: str, stack: tuple[str, ...]) -> None:
        """
        Add what one line says.

        :raises LineFault: it may not stand there.
        """
        if isinstance(record, ServiceRecord):
            self.service(record, line, file)
        elif isinstance(record, Include):
            path = posixpath.normpath(posixpath.join(self.directory, record.file))
            self.file(path, record.prefix, stack)
        elif isinstance(record, Environment):
            self.environment.append((record.name, record.value))
        elif isinstance(record, MonitoredPort):
            self.ports[record.port] = None
        elif isinstance(record, Authority):
            self.authority(record, file, stack)
        elif isinstance(record, NameHold):
            hold = _Hold(record, file, line.line)
            self.holds.setdefault(record.name.lower(), []).append(hold)
        else:
            self.zone(record)

    def service(self, record: ServiceRecord, line: LogicalLine, file: str) -> None:
        for hold in self.holds.get(record.name.lower(), ()):
            if hold.forbids(record, file):
                raise LineFault.at(
                    0,
                    f"service {record.name}, a name that {hold.file}:{hold.line} holds",
                    f"such a server in {hold.file} only",
                )
        placed = PlacedRecord(record, file, line.line)
        server = (
            record.name.lower(),
            record.type,
            record.host.lower(),
            record.port,
            record.arguments,
        )
        before = self.servers.get(server)
        self.servers[server] = placed.where
        if before is not None:
            self.remarks.append(
                Fault(placed.where, f"replaces the same server of {record.name} at {before}")
            )
        arguments = record.arguments or ""
        if record.type is ServerType.NCBID and re.match(r"[A-Za-z$]=", arguments):
            self.remarks.append(
                Fault(
                    placed.where,
                    f"{shown(arguments)} is taken for the arguments; write '' before it if it is "
                    "a flag",
                )
            )
        self.records.append(placed)

    def authority(self, record: Authority, file: str, stack: tuple[str, ...]) -> None:
        root = self.authority_root[0] if self.authority_root else file
        if root not in stack:
            raise LineFault.at(
                0,
                f"host authority {record.name}",
                f"it in {root}, which was first to grant any, or in what that file includes",
            )
        if not self.authority_root:
            self.authority_root.append(file)
        (self.groups if record.group else self.users)[record.name] = None

    def zone(self, record: Zone) -> None:
        rules = self.rules
        bits = zone_bits(record.text, rules.site, rules.site_role)
        if bits is None:
            raise LineFault.at(0, f"zone {record.text}", f"a part of the site, {rules.site:#x}")
        if self.zones:
            raise LineFault.at(0, f"a second zone line, {record.text}", "one at most")
        if rules.zone is not None and bits != rules.zone:
            raise LineFault.at(
                0, f"zone {record.text}", f"none, or {rules.zone:#x}, which zone_bits fixes"
            )
        self.zones.append(bits)


def load(
    read: Callable[[str], str], main: str, directory: str, rules: Rules = Rules()
) -> Configuration:
    """
    Read the file *main* and all that it includes.

    :param read: gives the text of a file, octets decoded as ISO 8859-1, by its path; raises
        OSError.  It need not give more than ``rules.max_octets + 1`` characters.
    :param main: absolute path.
    :param directory: absolute path that relative names start from, at every depth.
    :returns: what it says; all faults are in it, each as ``file:line:column``.
    """
    reading = _Reading(read, rules, directory)
    try:
        try:
            reading.file(main, "", ())
        except LineFault as fault:
            reading.note(main, None, fault)
    except _TooMuchError:
        pass
    zone = reading.zones[0] if reading.zones else (rules.zone or rules.site)
    return Configuration(
        files=tuple(reading.files),
        records=tuple(reading.records),
        ports=tuple(reading.ports),
        environment=tuple(reading.environment),
        authority=HostAuthority(tuple(reading.users), tuple(reading.groups)),
        zone=zone,
        faults=tuple(reading.faults),
        remarks=tuple(reading.remarks),
    )
