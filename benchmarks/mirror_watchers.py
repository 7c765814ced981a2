"""Mirrors of a qmaster, as a process beside a benchmark: COMMON_DIRECTORY PORT NUMBER."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import gatherResults

from gridnet.mirror.address import connector_to, read_source
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.model import Registration

reactor: Any = installed_reactor


def main(directory: str, port: str, number: str) -> None:
    """Mirror until killed; prints a line once all lists are there."""
    source = read_source(f"gridengine://127.0.0.1:{port}{directory}", "source")
    mirrors = []
    for _ in range(int(number)):
        wish = Registration(name="watcher", delivery_seconds=1)
        mirror = MirrorService(reactor, connector_to(source, reactor), wish)
        for name in ("JOB", "JATASK", "CQUEUE", "QINSTANCE"):
            mirror.subscribe(name)
        mirror.startService()
        mirrors.append(mirror)
    current = gatherResults([mirror.when_current("JOB", "CQUEUE") for mirror in mirrors])
    current.addCallback(lambda _: print("ready", flush=True))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
