"""
Many mirrors in one process, to load a master.

Arguments: port, light mirrors, whole mirrors, mirrors that stop reading, delivery seconds.

A light mirror checks the numbers of what it gets, measures how old the oldest event of each report
is and acknowledges, without making objects of it: a thousand whole ones would need a cluster.  A
whole mirror is a :class:`MirrorService`.
"""

from __future__ import annotations

import gc
import json
import re
import struct
import sys
import time
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from twisted.protocols.basic import LineOnlyReceiver

from gridnet.mirror import wire
from gridnet.mirror.follow import MirrorService
from gridnet.mirror.mirror import Change
from gridnet.mirror.model import Action, Registration
from gridnet.mirror.protocol import GridnetConnector
from tests.mirror.crowd_master import LIST

reactor: Any = installed_reactor
_LENGTH = struct.Struct(">I")
_HEAD = re.compile(rb'\{"report":(\d+),"events":\[')
_AT = re.compile(rb'"at":([0-9.]+)')
#: What every change of the list begins with.
_CHANGE = b'["objects",3,'


class Light(Protocol):
    """One light mirror."""

    transport: Any

    def __init__(self, crowd: Crowd, reads: bool) -> None:
        self._crowd = crowd
        self._reads = reads
        self._buffer = bytearray()
        self._next = 1
        self.registered = False

    def connectionMade(self) -> None:
        subscriptions = [{"type": LIST, "action": action} for action in (1, 2, 3, 4)]
        registration = {
            "name": "light",
            "id": 0,
            "delivery_seconds": self._crowd.delivery,
            "busy_policy": 1,
            "busy": False,
            "session": "",
            "subscriptions": subscriptions,
        }
        self.transport.write(wire.pack({"register": registration}))

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 4:
            length = _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < 4 + length:
                return
            self._frame(bytes(memoryview(self._buffer)[4 : 4 + length]))
            del self._buffer[: 4 + length]

    def _frame(self, frame: bytes) -> None:
        head = _HEAD.match(frame)
        if head is None:
            return
        crowd = self._crowd
        first = int(head[1])
        if first != self._next:
            crowd.gaps += 1
        changes = frame.count(_CHANGE)
        if first == 1:
            self._next = 2 + changes
            crowd.lists += 1
        else:
            self._next = first + changes
            if changes:
                at = _AT.search(frame)
                assert at is not None
                crowd.note(time.time() - float(at[1]), changes)
        self.transport.write(wire.pack({"acknowledge": self._next - 1}))
        if not self._reads and first > 1:
            self.transport.pauseProducing()

    def connectionLost(self, reason: Any = None) -> None:
        self._crowd.lost += 1


class Crowd:
    """All mirrors of this process."""

    def __init__(self, delivery: int) -> None:
        self.delivery = delivery
        self.gaps = self.lists = self.lost = self.reports = self.events = 0
        self.late: list[float] = []
        self.whole_late: list[float] = []
        self.began = self.when = 0.0  #: of the first report with changes, of the latest one
        self.latest = self.stall = self.ticked = 0.0
        self.whole: list[MirrorService] = []
        self.light: list[Light] = []  # the reactor forgets a paused transport

    def note(self, age: float, events: int) -> None:
        """A report came whose oldest event is that old."""
        self.reports += 1
        self.events += events
        self.late.append(age)
        now = time.time()
        self.began = self.began or now
        if age > self.latest:
            self.latest, self.when = age, now

    def add_whole(self, port: int) -> None:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        wish = Registration(name="whole", delivery_seconds=self.delivery)
        mirror = MirrorService(reactor, GridnetConnector(endpoint, "crowd"), wish)
        mirror.subscribe(LIST)
        oldest = [0]

        def look(change: Change) -> None:
            if change.action is Action.LIST:
                self.lists += 1
            elif change.element is not None and change.event.number > oldest[0]:
                oldest[0] = change.event.number + 200
                self.whole_late.append(time.time() - change.element["at"])

        mirror.mirror.watch(look)
        mirror.startService()
        self.whole.append(mirror)

    def result(self) -> dict[str, Any]:
        late = sorted(self.late) or [0.0]
        whole = sorted(self.whole_late) or [0.0]
        return {
            "gaps": self.gaps,
            "lists": self.lists,
            "lost": self.lost,
            "reports": self.reports,
            "events": self.events,
            "latest": round(late[-1], 3),
            "one_in_a_thousand": round(late[-1 - len(late) // 1000], 3),
            "median": round(late[len(late) // 2], 3),
            "latest_whole": round(whole[-1], 3),
            "longest_stall": round(self.stall, 3),
            "latest_when": round(self.when - self.began, 1),
            "serials": [
                max(element["serial"] for element in mirror.mirror.elements(LIST))
                for mirror in self.whole
            ],
            "sums": [
                sum(element["serial"] for element in mirror.mirror.elements(LIST))
                for mirror in self.whole
            ],
            "sizes": [len(mirror.mirror.list(LIST)) for mirror in self.whole],
        }


def main(port: int, light: int, whole: int, stuck: int, delivery: int) -> None:
    """Mirror until standard input ends."""
    crowd = Crowd(delivery)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    total = light + whole + stuck

    class Lights(Factory):
        noisy = False

        def __init__(self, reads: bool) -> None:
            self.reads = reads

        def buildProtocol(self, addr: object) -> Light:
            light = Light(crowd, self.reads)
            crowd.light.append(light)
            return light

    def begin(number: int) -> None:
        # A few at a time: each gets a list of ten thousand objects at first.
        if number < total:
            if number < stuck:
                endpoint.connect(Lights(False))
            elif number < stuck + whole:
                crowd.add_whole(port)
            else:
                endpoint.connect(Lights(True))
            reactor.callLater(0.01, begin, number + 1)

    def tick() -> None:
        now = time.time()
        crowd.stall = max(crowd.stall, now - crowd.ticked)
        crowd.ticked = now

    def look() -> None:
        if crowd.lists >= total:
            # This process measures: it is not to stop for what it has collected.
            gc.collect()
            gc.freeze()
            crowd.ticked = time.time()
            LoopingCall(tick).start(0.02)
            print(json.dumps({"ready": crowd.lists}), flush=True)
        else:
            reactor.callLater(0.05, look)

    class Commands(LineOnlyReceiver):
        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            print(json.dumps(crowd.result()), flush=True)

        def connectionLost(self, reason: Any = None) -> None:
            if reactor.running:
                reactor.stop()

    StandardIO(Commands())
    reactor.callWhenRunning(begin, 0)
    reactor.callWhenRunning(look)
    reactor.run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
