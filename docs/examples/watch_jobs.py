"""
Print what happens to the jobs of a qmaster, or of a gridnet.

    python watch_jobs.py gridengine://qmaster.example.org:6444 JOB
    python watch_jobs.py gridnet://127.0.0.1:6450 jobs
"""

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from gridnet.mirror.address import connector_to, read_source
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.model import Registration


async def watch(reactor: Any, source: str, name: str) -> None:
    """Follow the list *name*."""
    connector = connector_to(read_source(source, "source"), reactor)
    mirror = MirrorService(reactor, connector, Registration(name="watch", delivery_seconds=1))
    mirror.startService()
    reactor.addSystemEventTrigger("before", "shutdown", mirror.stopService)
    async for change in mirror.changes(name):
        if change.action.name == "LIST":
            print(f"{len(mirror.mirror.list(name))} of them", flush=True)
        else:
            print(change.action.name.lower(), dict(change.element or {}), flush=True)


if __name__ == "__main__":
    react(lambda *words: Deferred.fromCoroutine(watch(*words)), sys.argv[1:])
