"""A master and mirrors in one process, with a network between them that can be told to fail."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gridnet.mirror.admission import RegistrationError, UnknownClient
from gridnet.mirror.catalogue import GRID_ENGINE, Catalogue
from gridnet.mirror.client import EventClient
from gridnet.mirror.client_machine import Acknowledge, ClientTimes
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.master import EventMaster, MasterLimits
from gridnet.mirror.mirror import Mirror, Resync
from gridnet.mirror.model import BusyPolicy, Event, Registration, Report


class Port:
    """The master's end of one connection."""

    def __init__(self, node: Node, world: World) -> None:
        self.node = node
        self.world = world
        self.is_open = True
        self.reports: list[Report] = []
        self.dropped_because = ""

    def deliver(self, report: Report) -> bool:
        if not self.is_open:
            return False
        copy = Report(report.first, (tuple(report),))
        self.reports.append(copy)
        self.world.reported(self, copy)
        self.node.to_client.append(lambda: self.node.got_report(self, copy))
        return True

    def dropped(self, reason: str) -> None:
        self.dropped_because = reason


class Node:
    """A mirror, its client, and the wire between them and the master."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        delivery_seconds: int = 1,
        policy: BusyPolicy = BusyPolicy.UNTIL_ACKNOWLEDGED,
        acknowledge: Acknowledge = Acknowledge.PROCESSED,
        strict: bool = True,
        resync: Resync = Resync.LIST,
        judges: bool = False,
    ) -> None:
        self.world = world
        self.name = name
        wish = Registration(
            name=name,
            host="host",
            component=name,
            delivery_seconds=delivery_seconds,
            busy_policy=policy,
        )
        self.client = EventClient(self, random.Random(name), wish, ClientTimes(), acknowledge)
        self.troubles: list[str] = []
        self.mirror = Mirror(
            world.master.catalogue,
            self.client,
            strict=strict,
            resync=resync,
            judges=judges,
            trouble=lambda text, error: self.troubles.append(text),
        )
        self.port: Port | None = None
        self.to_client: deque[Callable[[], None]] = deque()
        self.to_master: deque[tuple[str, Callable[[], None]]] = deque()
        self.reachable = True
        self.partings: list[str] = []
        self.endings: list[str] = []
        self.calls: list[tuple[str, str, object]] = []

    # -- what the client asks of its surroundings

    def open(self) -> None:
        self.close()
        if not self.reachable:
            return
        self.port = Port(self, self.world)
        self.to_client.append(lambda: self.client.opened(self.world.now))

    def close(self) -> None:
        if self.port is not None:
            self.port.is_open = False
        self.port = None
        self.to_client.clear()
        self.to_master.clear()

    def register(self, wish: Registration) -> None:
        port = self.port
        assert port is not None

        def arrive() -> None:
            try:
                client = self.world.master.register(wish, port, self.world.now)
            except RegistrationError as error:
                text = str(error)
                self.to_client.append(lambda: self.client.refused(text, self.world.now))
                return
            self.to_client.append(lambda: self.client.accepted(client.id, self.world.now))

        self.to_master.append(("register", arrive))

    def modify(self, wish: Registration) -> None:
        def arrive() -> None:
            try:
                self.world.master.modify(wish, self.world.now)
                self.world.modified(wish)
            except UnknownClient as error:
                text = str(error)
                self.to_client.append(lambda: self.client.unknown_to_master(text, self.world.now))

        self.to_master.append(("modify", arrive))

    def acknowledge(self, number: int, client_id: int) -> None:
        self.to_master.append(
            (
                "acknowledge",
                lambda: self.world.master.acknowledge(client_id, number, self.world.now),
            )
        )

    def leave(self, client_id: int) -> None:
        def arrive() -> None:
            self.world.master.leave(client_id)
            self.to_client.append(lambda: self.client.lost("closed", self.world.now))

        self.to_master.append(("leave", arrive))

    def registered(self) -> None:
        self.mirror.registered()

    def arrived(self) -> None:
        pass

    def parted(self, reason: str) -> None:
        self.partings.append(reason)
        self.mirror.parted()

    def ended(self, reason: str) -> None:
        self.endings.append(reason)

    # -- the wire

    def got_report(self, port: Port, report: Report) -> None:
        if port is self.port:
            events = [(number, event.received(number)) for number, event in report.numbered()]
            self.client.reported(events, self.world.now)

    def step_client(self) -> bool:
        """Deliver the next message to the client."""
        if not self.to_client:
            return False
        self.to_client.popleft()()
        return True

    def step_master(self) -> bool:
        """Deliver the client's next message to the master."""
        if not self.to_master:
            return False
        self.to_master.popleft()[1]()
        return True

    def lose_acknowledgement(self) -> bool:
        """Lose the next message to the master if it is an acknowledgement."""
        if self.to_master and self.to_master[0][0] == "acknowledge":
            self.to_master.popleft()
            return True
        return False

    def disconnect(self) -> None:
        """Cut the wire; both ends notice."""
        if self.port is not None:
            self.close()
            self.client.lost("the wire was cut", self.world.now)

    def begin(self) -> None:
        self.client.begin(self.world.now)

    def process(self) -> None:
        self.mirror.process(self.world.now)

    def record(self, *names: str) -> None:
        """Subscribe types, and note what comes."""

        def note(
            mirror: Mirror,
            kind: object,
            action: object,
            element: Element | None,
            event: Event,
            data: object,
        ) -> None:
            self.calls.append((kind.name, action.name, event.number))  # type: ignore[attr-defined]

        for name in names:
            self.mirror.subscribe(name, note)


class World:
    """One master, its mirrors, and the time."""

    def __init__(
        self, catalogue: Catalogue = GRID_ENGINE, limits: MasterLimits | None = None
    ) -> None:
        self.now = 1_000_000.0
        self.remarks: list[str] = []
        self.master = EventMaster(catalogue, limits, remark=self.remarks.append)
        self.nodes: list[Node] = []
        self.reported: Callable[[Port, Report], None] = lambda port, report: None
        self.modified: Callable[[Registration], None] = lambda wish: None

    def know(self, *names: str) -> None:
        """Give the master empty lists of these types."""
        for name in names:
            self.master.replace(name, ElementList(), self.now)

    def node(self, name: str, **options: Any) -> Node:
        node = Node(self, name, **options)
        self.nodes.append(node)
        return node

    def exchange(self) -> None:
        """Rounds, messages and processing until nothing more happens now."""
        for _ in range(10_000):
            busy = False
            if self.master.wake_at <= self.now:
                self.master.round(self.now)
            for node in self.nodes:
                while node.step_master():
                    busy = True
                while node.step_client():
                    busy = True
                if node.client.deadline <= self.now:
                    node.client.elapsed(self.now)
                    busy = True
                if node.client.waiting:
                    busy = True
                node.process()
            if not busy and self.master.wake_at > self.now and not self._in_flight():
                return
        raise AssertionError("the world does not come to rest")

    def _in_flight(self) -> bool:
        return any(node.to_client or node.to_master for node in self.nodes)

    def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass in steps, with everything that it brings."""
        end = self.now + seconds
        self.exchange()
        while self.now < end:
            self.now = min(end, self.now + step)
            self.exchange()

    def user(self, name: str, **attributes: object) -> Element:
        return Element.of({"UU_name": name, **attributes})

    def change(self, kind: str, key: str, element: Element | None) -> None:
        self.master.change(kind, key, element, self.now)


def job_event(
    number: int, job: int, task: int = 0, elements: Sequence[Element] | None = None, key: str = ""
) -> Event:
    """An event about a job or one of its tasks."""
    rows = None if elements is None else ElementList(elements)
    return Event(number, 0, job, task, key or None, elements=rows)


def plain(elements: Iterable[Element]) -> list[object]:
    """Elements as plain values in a definite order, for comparisons."""
    return sorted((element.as_json() for element in elements), key=repr)
