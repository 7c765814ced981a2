"""What the status pages say, as plain values: one source for HTML and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf
from typing import Any

from gridnet.site import Site
from gridnet.table.model import Entry, Host
from gridnet.table.selection import status


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
    """One host."""
    return {
        "address": host.address,
        "status": host.status,
        "status_blast": host.status_blast,
        "environment": [f"{name}={value}" for name, value in host.environment],
        "seconds_left": _seconds_left(host.expires_at, now),
    }


def site_report(site: Site, now: float, max_entries: int | None = None) -> Mapping[str, Any]:
    """
    The whole site, as ``/status.json`` gives it (docs/reference/status.rst).

    :param max_entries: services to list at most; None: all.
    """
    table = site.table
    entries = table.all_entries()
    shown = entries if max_entries is None else entries[:max_entries]
    return {
        "site": site.section.name,
        "address": site.section.address,
        "time": now,
        "healthy": not site.status.failures(),
        "failures": dict(site.status.failures()),
        "addresses": site.addresses,
        "components": {name: dict(facts()) for name, facts in site.status.facts.items()},
        "table": {"serial": table.serial, "services": len(entries), "hosts": len(table.hosts())},
        "services": [entry_report(e, table.host(e.info.host), now) for e in shown],
        "hosts": [host_report(host, now) for host in table.hosts()],
    }
