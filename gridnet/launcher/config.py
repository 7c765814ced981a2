"""``[launcher]``: programs behind services."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import Any

from attrs import Attribute, field, frozen

from gridnet.config import at_least, more_than, parse_port_range


def _ports(_: object, attribute: Attribute[Any], value: str) -> None:
    if value:
        parse_port_range(value)


def _address(_: object, attribute: Attribute[Any], value: str) -> None:
    if not value:
        return
    try:
        IPv4Address(value)
    except AddressValueError:
        raise ValueError(f"expected an IPv4 address, found {value!r}") from None


@frozen
class LauncherConfig:
    """How programs are run, and what they may take."""

    path: str = "/usr/local/bin:/usr/bin:/bin"  #: their ``PATH``
    directory: str = "/"  #: where they start
    user: str = ""  #: who they run as (needs the privilege); empty: as this process
    #: pass the words of a query without ``=`` as arguments (RFC 3875, 4.4)
    indexed_arguments: bool = True

    # Programs that wait for one connection.
    #: IPv4 address that their ports are bound to
    interface: str = field(default="0.0.0.0", validator=_address)
    #: IPv4 address that clients are told; empty: ``site.address``
    advertise: str = field(default="", validator=_address)
    ports: str = field(default="", validator=_ports)  #: ``A-B``; empty: any that is free
    max_waiting: int = field(default=32, validator=at_least(1))  #: ports at once
    connect_seconds: float = field(default=60.0, validator=more_than(0))  #: until a client comes
    ticket_seconds: float = field(default=10.0, validator=more_than(0))  #: until it has shown it

    # What programs may take.
    per_service: int = field(default=32, validator=at_least(1))  #: programs at once
    in_all: int = field(default=128, validator=at_least(1))
    cpu_seconds: int = field(default=3600, validator=at_least(0))  #: each process; 0: no limit
    memory_octets: int = field(default=0, validator=at_least(0))  #: address space; 0: no limit
    open_files: int = field(default=1024, validator=at_least(0))  #: 0: no limit
    wall_seconds: float = field(default=86_400.0, validator=at_least(0))  #: 0: no limit
    silence_seconds: float = field(default=300.0, validator=at_least(0))  #: no octet; 0: no limit
    max_input_octets: int = field(default=67_108_864, validator=at_least(0))  #: request body
    max_output_octets: int = field(default=0, validator=at_least(0))  #: 0: no limit

    # How they end.
    goodbye_seconds: float = field(default=2.0, validator=more_than(0))  #: after their client left
    termination_seconds: float = field(default=5.0, validator=more_than(0))  #: TERM to KILL
    descendants_seconds: float = field(default=2.0, validator=more_than(0))  #: may hold the output
    stop_seconds: float = field(default=2.0, validator=at_least(0))  #: when the service stops

    stderr_octets_per_second: int = field(default=8192, validator=at_least(1))  #: into the log
