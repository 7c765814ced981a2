"""A service record as an entry of the service table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gridnet.lbsmd.servrc.check_list import Dependency
from gridnet.lbsmd.servrc.configuration import PlacedRecord
from gridnet.lbsmd.servrc.records import ServiceRecord
from gridnet.table.address import canonical_address
from gridnet.table.model import Entry
from gridnet.table.server_info import ServerInfo, default_port, is_http


def host_names(records: Iterable[PlacedRecord]) -> dict[str, PlacedRecord]:
    """The names of servers and dependencies that must be looked up -> first record with it."""
    names: dict[str, PlacedRecord] = {}
    for placed in records:
        for host in named_hosts(placed.record):
            if canonical_address(host) is None:
                names.setdefault(host, placed)
    return names


def named_hosts(record: ServiceRecord) -> list[str]:
    """The hosts that *record* names, as names or addresses."""
    hosts = [record.host] if record.host else []
    hosts += [check.host for check in record.checks if isinstance(check, Dependency) and check.host]
    return hosts


def make_entry(
    record: ServiceRecord,
    owner: str,
    zone: int,
    addresses: Mapping[str, str],
    default_time_seconds: int,
) -> Entry:
    """
    The entry of *record* as configured: up, unpenalized.

    :param owner: address of this host, where records without a host run.
    :param zone: zone bits of this host.
    :param addresses: host name -> IP address text, for every name in a record.
    :param default_time_seconds: validity of a record that gives none.
    """
    host = owner
    if record.host:
        host = canonical_address(record.host) or addresses[record.host]
    info = ServerInfo(
        type=record.type,
        host=host,
        port=record.port or default_port(record.type, is_http(record.type) and record.secure),
        arguments=record.arguments or "",
        algorithm=record.algorithm,
        bonus=record.bonus,
        content_type=record.content_type,
        vhost=record.virtual_host,
        local=record.local,
        private=record.private,
        stateful=record.stateful,
        secure=record.secure,
        interzone=record.interzone,
        rate=record.rate,
        time=record.time_seconds or default_time_seconds,
    )
    return Entry(
        service=record.name,
        info=info,
        owner=owner,
        static=record.static,
        zone=zone,
        launcher=record.launcher,
    )
