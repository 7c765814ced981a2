"""A configuration as entries of the service table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gridnet.errors import Fault
from gridnet.lbsmd.servrc.configuration import Configuration, Placed
from gridnet.lbsmd.servrc.grammar import Service
from gridnet.table.address import canonical_address
from gridnet.table.model import DEFAULT_TIME_SECONDS, Entry
from gridnet.table.server_info import (
    ServerInfo,
    ServerType,
    canonical_content_type,
    default_port,
    is_http,
)


def host_names(configuration: Configuration) -> Iterable[str]:
    """The hosts that the services name and that must be looked up, each once."""
    names = {
        placed.service.host
        for placed in configuration.services
        if placed.service.host and canonical_address(placed.service.host) is None
    }
    return sorted(names)


def entries(
    configuration: Configuration, address: str, resolved: Mapping[str, str | None]
) -> tuple[list[Entry], list[Fault]]:
    """
    The table entries of *configuration*, and faults of those that cannot be entered.

    :param address: this host's, for services without a host.
    :param resolved: host name -> IP address text; None: there is none.
    """
    found: dict[tuple[object, ...], Entry] = {}
    faults: list[Fault] = []
    for placed in configuration.services:
        host = _address(placed.service, address, resolved)
        if host is None:
            faults.append(Fault(_where(placed), f"host {placed.service.host} cannot be resolved"))
            continue
        entry = _entry(placed.service, host, address, configuration.zone)
        if entry.key in found:
            faults.append(
                Fault(_where(placed), f"{placed.service.name}: the same server is defined before")
            )
            continue
        found[entry.key] = entry
    return list(found.values()), faults


def _where(placed: Placed) -> str:
    return f"{placed.file}:{placed.line}"


def _address(service: Service, address: str, resolved: Mapping[str, str | None]) -> str | None:
    if not service.host:
        return address
    return canonical_address(service.host) or resolved.get(service.host)


def _entry(service: Service, host: str, owner: str, zone: int) -> Entry:
    port = service.port or 0
    if not port and service.type is not ServerType.DNS:
        port = default_port(service.type, service.secure and is_http(service.type))
    vhost = service.vhost
    if not vhost and is_http(service.type) and canonical_address(service.host) is None:
        # As on the wire: a name with a dot doubles as the virtual host.
        vhost = service.host if "." in service.host else ""
    info = ServerInfo(
        type=service.type,
        host=host,
        port=port,
        arguments=service.arguments or "",
        algorithm=service.algorithm,
        bonus=service.bonus,
        content_type=canonical_content_type(service.content_type) or "",
        vhost=vhost,
        local=service.local,
        private=service.private,
        stateful=service.stateful,
        secure=service.secure,
        interzone=service.interzone,
        rate=service.rate,
        time=service.time_seconds or DEFAULT_TIME_SECONDS,
    )
    return Entry(
        service=service.name,
        info=info,
        owner=owner,
        static=service.static,
        zone=zone,
        launcher=service.launcher,
    )
