"""
Reading one set of definitions from disk, with the addresses of the hosts it names.

Everything here blocks; while the site runs it belongs in a thread.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from errno import EINVAL, ENOENT
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from attrs import frozen

from gridnet.config import SiteConfig
from gridnet.errors import Fault
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.dependencies import Condition, loops
from gridnet.lbsmd.entries import host_names, make_entry, named_hosts
from gridnet.lbsmd.files import FileReader, State, local_path, octet_text
from gridnet.lbsmd.servrc.configuration import Configuration, PlacedRecord, load
from gridnet.table.address import canonical_address
from gridnet.table.model import Entry

#: Where definitions are when the site file does not say.
DEFAULT_SERVRC = Path("/etc/lbsmd/servrc.cfg")
#: Host names that are looked up at a time.
_LOOKUPS_AT_ONCE = 8

#: Gives the IP address text of a host name, or raises OSError.
Resolver = Callable[[str], str]


@frozen
class LoadedRecord:
    """A service record with what only the site knows of it."""

    placed: PlacedRecord
    entry: Entry  #: as configured
    conditions: tuple[Condition, ...] = ()  #: its dependencies


@frozen
class Loaded:
    """One look at the definitions: what they say, and the states of the files meanwhile."""

    configuration: Configuration
    records: tuple[LoadedRecord, ...]
    faults: tuple[Fault, ...]  #: of the configuration, and of hosts that are not known
    remarks: tuple[Fault, ...]  #: of the configuration, and of dependencies that run in circles
    states: Mapping[str, State]
    settled: bool  #: no file was written so lately that the states may hide a change
    hosts_unknown: bool  #: some fault may mend itself without a change of the files
    absent: bool  #: there is no main file
    loaded_at: float  #: seconds since the epoch
    seconds: float  #: that it took


@frozen
class Source:
    """
    Where definitions come from.

    :ivar address: of this host.
    """

    config: LbsmdConfig
    main: Path  #: absolute
    directory: Path  #: absolute; relative include names start here
    address: str
    resolve: Resolver

    @classmethod
    def of(
        cls, config: LbsmdConfig, site: SiteConfig, address: str, resolve: Resolver | None = None
    ) -> Source:
        """What *config* names, seen from the site file and the directory of the start."""
        start = site.path(config.directory) if config.directory else Path()
        directory = start.absolute()
        if config.servrc:
            main = site.path(config.servrc).absolute()
        elif os.access(DEFAULT_SERVRC, os.R_OK):
            main = DEFAULT_SERVRC
        else:
            main = directory / "servrc.cfg"
        own = canonical_address(address) or address
        return cls(config, main, directory, own, resolve or resolve_name)

    def load(self) -> Loaded:
        """Read the whole set now."""
        began, began_ns = time.monotonic(), time.time_ns()
        reader = FileReader(self.config.max_octets)
        configuration = load(
            reader.read, octet_text(self.main), octet_text(self.directory), self.config.rules()
        )
        addresses, faults = self._look_up(configuration)
        known = [
            placed
            for placed in configuration.records
            if all(
                host in addresses or canonical_address(host) is not None
                for host in named_hosts(placed.record)
            )
        ]
        records = tuple(self._record(placed, configuration, addresses) for placed in known)
        main = local_path(octet_text(self.main))
        return Loaded(
            configuration,
            records,
            (*configuration.faults, *faults),
            (*configuration.remarks, *loop_remarks(records)),
            reader.states,
            not reader.unsettled(began_ns, time.time_ns()),
            bool(faults),
            not os.path.lexists(main),
            time.time(),
            time.monotonic() - began,
        )

    def _record(
        self, placed: PlacedRecord, configuration: Configuration, addresses: Mapping[str, str]
    ) -> LoadedRecord:
        record = placed.record
        entry = make_entry(
            record,
            self.address,
            configuration.zone,
            addresses,
            self.config.default_time_seconds,
        )
        conditions = tuple(
            Condition.of(dependency, record.name, addresses)
            for dependency in placed.plan.dependencies
        )
        return LoadedRecord(placed, entry, conditions)

    def _look_up(self, configuration: Configuration) -> tuple[Mapping[str, str], list[Fault]]:
        """Addresses of the hosts that are named, and a fault for each that has none."""
        names = host_names(configuration.records)
        addresses, reasons = resolve_all(names, self.resolve, self.config.resolve_seconds)
        faults = [
            Fault(names[name].where, f"found host {name}, {reason}; expected a known host")
            for name, reason in reasons.items()
        ]
        return addresses, faults


def loop_remarks(records: Iterable[LoadedRecord]) -> list[Fault]:
    """A remark for each circle of dependencies among *records*."""
    by_key = {record.entry.key: record for record in records}
    found = loops({key: (record.entry, record.conditions) for key, record in by_key.items()})
    remarks = []
    for loop in found:
        places = [by_key[key].placed for key in loop]
        names = ", ".join(f"{placed.record.name} ({placed.where})" for placed in places)
        remarks.append(Fault(places[0].where, f"dependencies run in a circle: {names}"))
    return remarks


def resolve_name(name: str) -> str:
    """
    The address of the host *name*: IPv4 if it has one, as the released clients look names up.

    :raises OSError: it has none.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(EINVAL, f"not a host name: {error}") from None
    if not found:
        raise OSError(ENOENT, "no address")
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


def resolve_all(
    names: Iterable[str], resolve: Resolver, seconds: float
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """
    Look up *names*, a few at a time.

    :param seconds: after which the rest count as unknown.
    :returns: name -> canonical address, and name -> why it has none, both in the order of *names*.
    """
    wanted = list(names)
    waiting = deque(wanted)
    found: SimpleQueue[tuple[str, str | OSError]] = SimpleQueue()

    def look_up() -> None:
        while waiting:
            try:
                name = waiting.popleft()
            except IndexError:
                return  # another thread took the last one
            try:
                found.put((name, resolve(name)))
            except OSError as error:
                found.put((name, error))

    for _ in range(min(_LOOKUPS_AT_ONCE, len(wanted))):
        # As daemons: a resolver that hangs keeps its thread, not us and not the end of the process.
        Thread(target=look_up, name="gridnet-lbsmd-names", daemon=True).start()
    answers: dict[str, str | OSError] = {}
    until = time.monotonic() + seconds
    while len(answers) < len(wanted):
        try:
            name, answer = found.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            break
        answers[name] = answer
    waiting.clear()
    addresses: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name in wanted:
        got = answers.get(name)
        address = canonical_address(got) if isinstance(got, str) else None
        if address is not None:
            addresses[name] = address
        elif got is None:
            reasons[name] = f"not looked up within {seconds:g} s"
        else:
            reasons[name] = f"{getattr(got, 'strerror', None) or got}"
    return addresses, reasons
