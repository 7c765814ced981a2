"""
The service table: hosts, service entries, penalties, expiry.

One :class:`ServiceTable` is the truth of one process.  The daemon fills it, the dispatcher
reads it.  Look-ups go through indexes (by service name, by host and port), never a scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf

from attrs import frozen

from gridnet.table.server_info import ServerInfo

#: Seconds that an entry lives when its ``T`` is 0 (docs/protocols/load-balancing.rst).
DEFAULT_TIME_SECONDS = 30


@frozen
class Host:
    """A host that publishes entries, and how loaded it is."""

    address: str  #: canonical IP address text
    status: float = 1000.0  #: smoothed status; higher is better
    status_blast: float = 1000.0  #: instant status
    environment: tuple[tuple[str, str], ...] = ()  #: published name=value lines, in order
    zone: int = 0  #: zone bits; 0: visible to every zone
    expires_at: float = inf  #: seconds since the epoch


@frozen
class Entry:
    """One server of one service."""

    service: str  #: name as configured; compares without case
    #: base rate in force as ``rate`` (0: down or off), validity in seconds as ``time``,
    #: explicit host and port
    info: ServerInfo
    owner: str = ""  #: address of the host that publishes it
    static: bool = False  #: constant rate, needs no host
    reserved: bool = False  #: kept aside: never handed out
    penalty: float = 0.0  #: percent, 0..100; 100: suppressed
    zone: int = 0  #: zone bits of the publisher; 0: visible to every zone
    expires_at: float = inf  #: seconds since the epoch
    launcher: str = ""  #: command line behind an NCBID entry

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies it in a table: service name without case, and the server."""
        return (self.service.lower(), self.info.identity)


@frozen
class Change:
    """What one step changed; ``None`` stands for absence."""

    before: Entry | Host | None
    after: Entry | Host | None


class ServiceTable:
    """
    All that one process knows of services and hosts.

    :ivar serial: grows with every change; equal serials mean an unchanged table.
    """

    def __init__(self, max_entries: int = 100_000) -> None:
        self.max_entries = max_entries
        self.serial = 0

    def put(self, entry: Entry) -> None:
        """
        Add *entry*, or replace the one of its key.

        :raises gridnet.errors.TableError: the table holds ``max_entries`` already.
        """
        raise NotImplementedError

    def remove(self, entry: Entry) -> bool:
        """Remove the entry of its key; False: there was none."""
        raise NotImplementedError

    def put_host(self, host: Host) -> None:
        """Add *host*, or replace the one of its address."""
        raise NotImplementedError

    def remove_host(self, address: str) -> bool:
        """Remove the host of that address (its entries stay); False: there was none."""
        raise NotImplementedError

    def replace_owner(self, owner: str, entries: Iterable[Entry]) -> None:
        """Make *entries* the only ones of *owner*, as one step (one notification)."""
        raise NotImplementedError

    def entries(self, service: str) -> Sequence[Entry]:
        """The entries of *service* (any case), in order of first insertion.  Never a scan."""
        raise NotImplementedError

    def matching(self, mask: str) -> Sequence[Entry]:
        """The entries of all services whose name fits *mask* (``*``, ``?``, ``[...]``)."""
        raise NotImplementedError

    def dns_entries_at(self, host: str, port: int) -> Sequence[Entry]:
        """The ``DNS`` entries of any service at *host*:*port*.  Never a scan."""
        raise NotImplementedError

    def all_entries(self) -> Sequence[Entry]:
        """Every entry, services in order of name."""
        raise NotImplementedError

    def host(self, address: str) -> Host | None:
        """The host of that address."""
        raise NotImplementedError

    def hosts(self) -> Sequence[Host]:
        """Every host, in order of address text."""
        raise NotImplementedError

    def expire(self, now: float) -> int:
        """Remove what is past its time; returns how many.  Cheap when nothing is due."""
        raise NotImplementedError

    def subscribe(self, changed: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Call *changed* after each step with what it changed; returns the end of it."""
        raise NotImplementedError
