"""What the status pages say, as plain values: one source for HTML and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from math import isinf
from typing import Any

from gridnet.site import Site
from gridnet.table.model import Entry, Host, HostFacts
from gridnet.table.selection import status

_NOTHING_TOLD = HostFacts()
#: Services or hosts in one piece of JSON: a few milliseconds of work.
_ROWS_A_PIECE = 200


def _seconds_left(expires_at: float, now: float) -> float | None:
    return None if isinf(expires_at) else round(max(0.0, expires_at - now), 1)


def entry_report(entry: Entry, host: Host | None, now: float) -> Mapping[str, Any]:
    """One service entry."""
    info = entry.info
    return {
        "service": entry.service,
        "type": info.type.name,
        "host": info.host,
        "port": info.port,
        "arguments": info.arguments,
        "base_rate": info.rate,
        "rating": status(entry, host),
        "penalty": entry.penalty,
        "local": info.local,
        "private": info.private,
        "stateful": info.stateful,
        "secure": info.secure,
        "static": entry.static,
        "reserved": entry.reserved,
        "owner": entry.owner,
        "seconds_left": _seconds_left(entry.expires_at, now),
    }


def host_report(host: Host, now: float) -> Mapping[str, Any]:
    """One host; figures of its load as far as it has told any."""
    told = {} if host.facts == _NOTHING_TOLD else _facts_report(host.facts)
    return {
        "address": host.address,
        "status": host.status,
        "status_blast": host.status_blast,
        "environment": [f"{name}={value}" for name, value in host.environment],
        "seconds_left": _seconds_left(host.expires_at, now),
        **told,
    }


def _facts_report(facts: HostFacts) -> Mapping[str, Any]:
    page_mb = facts.page_octets / (1 << 20)
    return {
        "load": facts.load,
        "load_blast": facts.load_instant,
        "tasks": facts.tasks,
        "processors": facts.processors,
        "processor_units": facts.processor_units,
        "clock_ghz": round(facts.clock_ghz, 3),
        "memory_mb": round(facts.ram_pages * page_mb, 1),
        "memory_cache_mb": round(facts.cache_pages * page_mb, 1),
        "memory_free_mb": round(facts.free_pages * page_mb, 1),
        "swap_mb": round(facts.swap_pages * page_mb, 1),
        "swap_free_mb": round(facts.free_swap_pages * page_mb, 1),
        "ports": {str(port): used for port, used in facts.ports},
        "kernel": ".".join(map(str, facts.kernel)),
        "daemon_version": ".".join(map(str, facts.daemon_version)),
        "booted_at": facts.booted_at,
        "started_at": facts.started_at,
        "joined_at": facts.joined_at,
        "hosts_seen": facts.hosts_seen,
        "hosts_known": facts.hosts_known,
        "alerts": facts.alerts,
    }


def site_report(site: Site, now: float, max_rows: int) -> dict[str, Any]:
    """
    The whole site, as ``/status.json`` gives it (docs/reference/status.rst).

    :param max_rows: services and hosts to list at most, of each.
    """
    table = site.table
    entries, hosts = table.all_entries(), table.hosts()
    return {
        "site": site.section.name,
        "address": site.section.address,
        "time": now,
        "healthy": not site.status.failures(),
        "failures": dict(site.status.failures()),
        "addresses": site.addresses,
        "components": {name: dict(facts()) for name, facts in site.status.facts.items()},
        "table": {"serial": table.serial, "services": len(entries), "hosts": len(hosts)},
        "services": [entry_report(e, table.host(e.info.host), now) for e in entries[:max_rows]],
        "hosts": [host_report(host, now) for host in hosts[:max_rows]],
    }


def json_pieces(site: Site, now: float) -> Iterator[str]:
    """
    The JSON text of :func:`site_report` with all services and hosts, a few of them at a time.

    A large table takes long to write: others are to have their turn between the pieces.
    """
    table = site.table
    entries, hosts = table.all_entries(), table.hosts()
    report = site_report(site, now, 0)
    services = (entry_report(entry, table.host(entry.info.host), now) for entry in entries)
    lists: dict[str, Iterator[object]] = {
        "services": services,
        "hosts": (host_report(host, now) for host in hosts),
    }
    for name in lists:
        del report[name]
    yield _json(report)[:-1]
    for name, items in lists.items():
        yield f", {_json(name)}: ["
        comma = ""
        while block := list(islice(items, _ROWS_A_PIECE)):
            yield comma + _json(block)[1:-1]
            comma = ", "
        yield "]"
    yield "}"


def _json(value: object) -> str:
    return json.dumps(value, default=str)
