"""
A daemon's checks for a while, in a process of their own: ``python -m benchmarks.checks_load
SERVICES PERIOD SCRIPTS SECONDS`` prints one JSON object.

*SERVICES* servers on loopback are connected to every *PERIOD* seconds, *SCRIPTS* more run
``/bin/true``; meanwhile somebody asks every 5 ms how late the event loop is.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IReactorSocket
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall

from gridnet.config import SiteConfig, SiteSection
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.service import Daemon, make_lbsmd
from gridnet.site import Site

#: Between two looks at the lateness of the event loop.
_LOOK_SECONDS = 0.005


class _Server(Protocol):
    """Takes connections."""


def main(directory: Path, services: int, period: int, scripts: int, seconds: float) -> None:
    """Run the checks and print what they came to."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    number = listener.getsockname()[1]
    listener.setblocking(False)
    factory: Any = Factory.forProtocol(_Server)
    IReactorSocket(reactor).adoptStreamPort(listener.fileno(), socket.AF_INET, factory)
    lines = [f"probed{each} [{period}] STANDALONE :{number}" for each in range(services)]
    lines += [
        f"scripted{each} [-{period},/bin/true] STANDALONE :{number}" for each in range(scripts)
    ]
    (directory / "servrc.cfg").write_text("\n".join([*lines, ""]))
    site = Site(SiteConfig(SiteSection(), {}, directory), reactor)
    config = LbsmdConfig(
        servrc="servrc.cfg", control="", ports_socket="", check_spread_seconds=float(period)
    )
    daemon = make_lbsmd(config, site)
    if not isinstance(daemon, Daemon) or daemon.checks is None:
        raise TypeError("no checks")
    checks = daemon.checks
    late: list[float] = []
    began = due = time.monotonic()
    done = 0

    def look() -> None:
        nonlocal due
        now = time.monotonic()
        late.append(max(0.0, now - due))
        due = now + _LOOK_SECONDS

    def end() -> None:
        nonlocal done
        done = checks.done
        maybeDeferred(daemon.stopService).addBoth(lambda _: reactor.stop())

    daemon.startService()
    looking = LoopingCall(look)
    # The first looks find the start of everything.
    reactor.callLater(period, late.clear)
    looking.start(_LOOK_SECONDS)
    reactor.callLater(seconds, end)
    reactor.run()
    late.sort()
    print(
        json.dumps(
            {
                "checks": done,
                "seconds": seconds,
                "up": sum(entry.info.rate > 0 for entry in site.table.all_entries()),
                "late_p99_ms": late[int(len(late) * 0.99)] * 1000,
                "late_max_ms": late[-1] * 1000,
                "wall_seconds": time.monotonic() - began,
            }
        )
    )


if __name__ == "__main__":
    _, _place, _services, _period, _scripts, _seconds = sys.argv
    main(Path(_place), int(_services), int(_period), int(_scripts), float(_seconds))
