"""
Lists on the status listener: server-sent events for browsers, JSON for programs.

Read-only (docs/protocols/event-mirror.rst, "Event streams").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NOT_FOUND, SERVICE_UNAVAILABLE
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request

from gridnet.mirror import wire
from gridnet.mirror.admission import RegistrationError
from gridnet.mirror.catalogue import OBLIGATORY, ObjectType, OwnCatalogue
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.model import Action, BusyPolicy, Event, Registration, Report, Subscribed
from gridnet.mirror.outflow import Outflow

_instances = count(1)
_NAMES = {Action.LIST: b"list", Action.ADD: b"add", Action.MODIFY: b"modify"}


def event_text(number: int, event: Event, kind: ObjectType, action: Action) -> Iterable[bytes]:
    """One event in the form of an event stream, in pieces."""
    if action is Action.DELETE:
        row = json.dumps({"key": event.text_key}, ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
        yield b"id: %d\nevent: delete\ndata: %b\n\n" % (number, row)
        return
    yield b"id: %d\nevent: %b\ndata: " % (number, _NAMES[action])
    if action is Action.LIST:
        # JSON never has a line end of its own: one "data" line holds it all.
        yield b"["
        first = True
        for element in event.elements or ():
            if not first:
                yield b","
            first = False
            yield wire.element_octets(element)
        yield b"]"
    elif event.element is not None:
        yield wire.element_octets(event.element)
    yield b"\n\n"


class _Stream:
    """One browser that follows one list: a client of the master."""

    def __init__(self, request: Request, keeper: MasterService, clock: IReactorTime) -> None:
        self._request = request
        self._keeper = keeper
        self._clock = clock
        self._out = Outflow(request)
        self._id = 0
        self._over = False

    def begin(self, kind: ObjectType, seconds: int) -> None:
        """
        Register.

        :raises RegistrationError: refused.
        """
        events = [Subscribed(event, 0) for event in OBLIGATORY]
        events += [Subscribed(event, 1) for event in kind.all_events]
        wish = Registration(
            name=f"stream of {kind.name}",
            host="",
            component="stream",
            component_id=next(_instances),
            delivery_seconds=seconds,
            subscriptions=tuple(events),
            busy_policy=BusyPolicy.UNTIL_ACKNOWLEDGED,
        )
        self._id = self._keeper.register(wish, self).id

    def deliver(self, report: Report) -> bool:
        """The master has a report; refused while the browser has not taken the last one."""
        if self._over or not self._out.is_free:
            return False
        pieces: list[bytes] = []
        for number, event in report.numbered():
            meaning = self._keeper.master.catalogue.meaning(event.event)
            if meaning is not None and event.event not in OBLIGATORY:
                pieces += event_text(number, event, *meaning)
        self._out.write(pieces or [b": alive\n\n"])
        # What went to the transport needs no repeating: a browser that loses its connection
        # comes back for a whole list.
        self._clock.callLater(0, self._acknowledge, report.last)
        return True

    def _acknowledge(self, number: int) -> None:
        if self._id:
            self._keeper.acknowledge(self._id, number)

    def dropped(self, reason: str) -> None:
        """The master forgot the client."""
        self._id = 0
        self._finish()

    def end(self) -> None:
        """Say good-bye, and end the stream."""
        if self._id:
            identifier, self._id = self._id, 0
            self._keeper.drop(identifier, "the master ends")
        self._finish()

    def _finish(self) -> None:
        if not self._over:
            self._over = True
            self._out.end()
            self._request.finish()

    def lost(self, failure: Failure) -> None:
        """The browser is gone."""
        self._over = True
        self._out.stopProducing()
        if self._id:
            identifier, self._id = self._id, 0
            self._keeper.drop(identifier, "its browser is gone")


class MirrorPage(Resource):
    """
    ``/mirror``: which lists there are; ``/mirror/<list>``: one of them.

    :param names: gives the names of all lists.
    :param max_streams: browsers that may follow lists at the same time.
    :param alive_seconds: a stream without changes gets a sign of life this often.
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        keeper: MasterService,
        catalogue: OwnCatalogue,
        names: Callable[[], Iterable[str]],
        max_streams: int = 100,
        alive_seconds: int = 15,
    ) -> None:
        super().__init__()
        self._clock = IReactorTime(reactor)
        self._keeper = keeper
        self._catalogue = catalogue
        self._names = names
        self._max = max_streams
        self._alive = alive_seconds
        self._open: set[_Stream] = set()

    @property
    def streams(self) -> int:
        """How many browsers follow lists."""
        return len(self._open)

    def end(self) -> None:
        """End every stream: the master goes down."""
        for stream in list(self._open):
            stream.end()

    def getChild(self, path: bytes, request: Request) -> IResource:
        """All names are one list's: they may have slashes."""
        return self

    def render_GET(self, request: Request) -> bytes | int:
        """Called by twisted.web (HEAD too)."""
        request.setHeader(b"Cache-Control", b"no-store")
        name = b"/".join(part for part in request.postpath or () if part).decode("utf-8", "replace")
        names = tuple(self._names())
        if not name:
            return self._json(request, {"lists": names, "streams": self.streams})
        if name not in names:
            request.setResponseCode(NOT_FOUND)
            return self._json(request, {"error": f"no list {name}", "lists": names})
        if request.method == b"HEAD":
            request.setHeader(b"Content-Type", b"text/event-stream")
            return b""
        if self.streams >= self._max:
            request.setResponseCode(SERVICE_UNAVAILABLE)
            return self._json(request, {"error": "too many streams"})
        return self._begin(request, self._catalogue.own(name))

    @staticmethod
    def _json(request: Request, value: object) -> bytes:
        request.setHeader(b"Content-Type", b"application/json")
        return json.dumps(value).encode("utf-8")

    def _begin(self, request: Request, kind: ObjectType) -> bytes | int:
        stream = _Stream(request, self._keeper, self._clock)
        try:
            stream.begin(kind, self._alive)
        except RegistrationError as error:
            request.setResponseCode(SERVICE_UNAVAILABLE)
            return self._json(request, {"error": str(error)})
        request.setHeader(b"Content-Type", b"text/event-stream")
        # A proxy that collects the stream before it passes it on would defeat it.
        request.setHeader(b"X-Accel-Buffering", b"no")
        self._open.add(stream)
        ended: Deferred[None] = request.notifyFinish()

        def over(result: object) -> None:
            self._open.discard(stream)
            if isinstance(result, Failure):
                stream.lost(result)

        ended.addBoth(over)
        return NOT_DONE_YET
