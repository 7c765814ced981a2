"""
A master with one long list that changes all the time, as a process of its own.

Arguments: port, objects, changes a second, delivery of the end by SIGTERM.  Prints a line of JSON
when it listens, and one at its end.
"""

from __future__ import annotations

import json
import resource
import sys
from itertools import count
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.task import LoopingCall

from gridnet.mirror.catalogue import OwnCatalogue
from gridnet.mirror.element import ElementList
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.lists import own_element
from gridnet.mirror.protocol import MasterFactory

reactor: Any = installed_reactor
LIST = "objects"


def attributes(number: int, serial: int, at: float) -> dict[str, Any]:
    """An object, about as long as an entry of a service table."""
    return {
        "at": round(at, 3),
        "serial": serial,
        "service": f"service-{number}",
        "host": f"10.0.{number // 250}.{number % 250}",
        "port": 1024 + number,
        "rating": serial % 1000,
    }


def resident_octets() -> int:
    """Memory of this process now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(port: int, objects: int, changes_per_second: int) -> None:
    """Serve until SIGTERM."""
    catalogue = OwnCatalogue([LIST])
    keeper = MasterService(reactor, catalogue, wind_down_seconds=0.1)
    serials = count(1)
    begin = reactor.seconds()
    rows = [own_element(str(n), attributes(n, 0, begin)) for n in range(objects)]
    keeper.replace(LIST, ElementList(rows))
    keeper.startService()
    factory = MasterFactory(reactor, keeper, catalogue)
    listening = reactor.listenTCP(port, factory, backlog=1024, interface="127.0.0.1")
    state = {"most": resident_octets(), "stall": 0.0, "tick": begin, "changes": 0}
    started: list[float] = []

    def change() -> None:
        now = reactor.seconds()
        # As many as are due, so that a late tick loses none.
        state["stall"] = max(state["stall"], now - state["tick"])
        state["tick"] = now
        due = int((now - started[0]) * changes_per_second) - state["changes"]
        for _ in range(due):
            serial = next(serials)
            number = serial * 7919 % objects
            keeper.change(
                LIST, str(number), own_element(str(number), attributes(number, serial, now))
            )
        state["changes"] += due
        state["most"] = max(state["most"], resident_octets())

    ticking = LoopingCall(change)

    def say(**facts: Any) -> None:
        print(json.dumps(facts), flush=True)

    def command(line: bytes) -> None:
        if line == b"start":
            started.append(reactor.seconds())
            state["tick"] = started[0]
            state["most"] = resident_octets()
            state["resting"] = state["most"]
            ticking.start(0.02)
        elif line == b"stop":
            change()
            ticking.stop()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            say(
                changes=state["changes"],
                delivered=keeper.master.delivered,
                clients=len(keeper.master.clients),
                longest_stall=round(state["stall"], 3),
                cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
                resting_octets=state["resting"],
                most_octets=state["most"],
            )

    from twisted.internet.stdio import StandardIO
    from twisted.protocols.basic import LineOnlyReceiver

    class Commands(LineOnlyReceiver):
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            command(line)

        def connectionLost(self, reason: Any = None) -> None:
            if reactor.running:
                reactor.stop()

    StandardIO(Commands())
    reactor.callWhenRunning(lambda: say(port=listening.getHost().port))
    reactor.run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
