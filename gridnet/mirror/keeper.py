"""An event master as a service: rounds when they are due, and an orderly end."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gridnet.mirror.catalogue import Catalogue
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.feed import Client, ClientPort
from gridnet.mirror.lists import Applied
from gridnet.mirror.master import EventMaster, MasterLimits
from gridnet.mirror.model import Event, Registration

#: A round is never further away than this, whatever the master thinks.
_ROUND_SECONDS = 1.0
#: A round looks at every client, about 2 us each.  Rounds keep ten times that apart, so that
#: looking takes a tenth of the time at most, however many clients ask for rounds; for fewer
#: clients than this nothing is gained.
_GAP_SECONDS_PER_CLIENT = 20e-6
_GAP_FROM_CLIENTS = 100


class MasterService(Service):
    """
    Drives an :class:`EventMaster` by the reactor's clock.

    Everything that changes the master goes through here, so that rounds come in time.

    :param wind_down_seconds: how long clients have, when the service stops, to acknowledge that
        the master goes down.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        catalogue: Catalogue,
        limits: MasterLimits | None = None,
        canonical_host: Callable[[str], str] = str.lower,
        wind_down_seconds: float = 2.0,
    ) -> None:
        self._clock = IReactorTime(reactor)
        self.master = EventMaster(catalogue, limits, canonical_host, self._remark)
        self._wind_down = wind_down_seconds
        #: called with the names of types that clients want and that are not known
        self.on_missing: Callable[[set[str]], None] = lambda names: None
        self._call: IDelayedCall | None = None
        self._armed_for = inf
        self._last_round = -inf

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.seconds()

    def _remark(self, text: str) -> None:
        self._log.info("mirror: {text}", text=text)

    # -- rounds

    def touch(self) -> None:
        """See to it that the next round comes when the master wants it."""
        if not self.running:
            return
        now = self.now
        wanted = min(self.master.wake_at, now + _ROUND_SECONDS)
        clients = len(self.master.clients)
        if self.master.is_behind:
            wanted = now
        elif clients >= _GAP_FROM_CLIENTS:
            wanted = max(wanted, self._last_round + clients * _GAP_SECONDS_PER_CLIENT)
        if self._call is not None:
            if self._armed_for <= wanted:
                return
            self._call.cancel()
        self._armed_for = wanted
        self._call = self._clock.callLater(max(0.0, wanted - now), self._round)

    def _round(self) -> None:
        self._call = None
        self._armed_for = inf
        with self._log.failuresHandled("in a delivery round of the event master"):
            self.master.round(self.now)
        self._last_round = self.now
        self.touch()

    def startService(self) -> None:
        """Begin the rounds."""
        super().startService()
        self.touch()

    def stopService(self) -> Deferred[None]:
        """Tell everyone that the master goes down; fires when they know, or time is up."""
        now = self.now
        self.master.shut_down(now)
        deadline = now + self._wind_down
        done: Deferred[None] = Deferred()

        def look() -> None:
            self.master.round(self.now)
            while self.master.is_behind:
                self.master.round(self.now)
            waiting = any(c.queued for c in self.master.clients.values() if c.busy)
            if waiting and self.now < deadline:
                self._clock.callLater(0.05, look)
                return
            self._end()
            done.callback(None)

        look()
        return done

    def _end(self) -> None:
        super().stopService()
        if self._call is not None:
            self._call.cancel()
            self._call = None
            self._armed_for = inf
        for client_id in list(self.master.clients):
            self.master.drop(client_id, "the master has ended")

    # -- the lists

    def record(self, event: Event, session: str = "") -> Applied | None:
        """See :meth:`EventMaster.record`."""
        applied = self.master.record(event, self.now, session)
        self.touch()
        return applied

    def change(self, name: str, key: str, element: Element | None) -> None:
        """See :meth:`EventMaster.change`."""
        self.master.change(name, key, element, self.now)
        self.touch()

    def replace(self, name: str, elements: ElementList) -> None:
        """See :meth:`EventMaster.replace`."""
        self.master.replace(name, elements, self.now)
        self.touch()

    # -- the clients

    def register(self, wish: Registration, port: ClientPort, fixed_ids: bool = False) -> Client:
        """See :meth:`EventMaster.register`; nothing is delivered before this returns."""
        client = self.master.register(wish, port, self.now, fixed_ids)
        self._look_for_missing()
        self.touch()
        return client

    def _look_for_missing(self) -> None:
        if self.master.missing:
            names, self.master.missing = self.master.missing, set()
            self.on_missing(names)

    def modify(self, wish: Registration) -> None:
        """See :meth:`EventMaster.modify`."""
        self.master.modify(wish, self.now)
        self._look_for_missing()
        self.touch()

    def acknowledge(self, client_id: int, number: int) -> None:
        """See :meth:`EventMaster.acknowledge`."""
        self.master.acknowledge(client_id, number, self.now)
        self.touch()

    def leave(self, client_id: int) -> bool:
        """See :meth:`EventMaster.leave`."""
        known = self.master.leave(client_id)
        self.touch()
        return known

    def drop(self, client_id: int, reason: str) -> None:
        """See :meth:`EventMaster.drop`."""
        self.master.drop(client_id, reason)
