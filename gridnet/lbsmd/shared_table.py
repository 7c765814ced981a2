"""The daemon's table for the programs of its host (docs/protocols/shared-memory.rst)."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.loading import Source
from gridnet.lbsmd.version import daemon_version
from gridnet.site import Site
from gridnet.table.heap import HeapBuilder
from gridnet.table.heap_segment import PUBLIC_KEYS, HeapKeys, HeapPublisher
from gridnet.table.heap_service import HeapService

#: Stands for the keys that every NCBI client knows.
PUBLIC_NAME = "public"


def keys_of(name: str) -> HeapKeys:
    """The keys that ``shared_memory`` of the daemon's section names."""
    return PUBLIC_KEYS if name == PUBLIC_NAME else HeapKeys.private(name)


def make_shared_table(config: LbsmdConfig, site: Site, source: Source) -> HeapService:
    """
    What publishes the table of *site* in shared memory.

    :raises gridnet.table.heap_layout.HeapError: this system has no such shared memory.
    """
    keys = keys_of(config.shared_memory)
    publisher = HeapPublisher(keys, config.reader_wait_seconds, config.stuck_reader_seconds)
    clock = IReactorTime(site.reactor)
    builder = HeapBuilder(source.address, clock.seconds(), str(source.main), daemon_version())
    service = HeapService(
        site.table,
        builder,
        publisher,
        clock,
        config.shared_memory_interval_seconds,
        config.shared_memory_refresh_seconds,
        config.shared_memory_max_octets,
    )
    site.status.facts["shared memory"] = service.facts
    site.status.checks["shared memory"] = service.check
    announced = site.addresses.get("lbsmd")
    site.announce(
        "lbsmd",
        {
            **(announced if isinstance(announced, Mapping) else {}),
            "shared_memory": {
                "semaphores": f"{keys.semaphores:#010x}",
                "segments": [f"{key:#010x}" for key in keys.segments],
            },
        },
    )
    return service
