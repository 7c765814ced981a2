"""A way to a master in the same process: direct calls."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from gridnet.mirror.admission import RegistrationError
from gridnet.mirror.catalogue import Catalogue
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.link import Link, LinkUser
from gridnet.mirror.model import Registration, Report

_instances = count(1)


class LocalConnector:
    """Leads to *keeper*, in this process."""

    judges_conditions = True

    def __init__(self, reactor: Any, keeper: MasterService) -> None:
        self._clock = IReactorTime(reactor)
        self._keeper = keeper
        self._instance = next(_instances)

    @property
    def catalogue(self) -> Catalogue:
        """The master's own."""
        return self._keeper.master.catalogue

    @property
    def canonical_host(self) -> Callable[[str], str]:
        """The master's own."""
        return self._keeper.master.lists.canonical_host

    def connect(self, user: LinkUser) -> Deferred[Link]:
        """Always there."""
        return succeed(LocalLink(self._clock, self._keeper, user, self._instance))

    def describe(self) -> str:
        """For logs."""
        return "master in this process"


class LocalLink:
    """
    One end of a client and the other of a master.

    Nothing is called back from inside a call: both sides see messages come later, as on a wire.
    """

    def __init__(
        self, clock: IReactorTime, keeper: MasterService, user: LinkUser, instance: int
    ) -> None:
        self._clock = clock
        self._keeper = keeper
        self._user = user
        self._instance = instance
        self._id = 0
        self._is_open = True

    def _later(self, call: Callable[..., None], *arguments: Any) -> None:
        def deliver() -> None:
            if self._is_open:
                call(*arguments)

        self._clock.callLater(0, deliver)

    def register(self, wish: Registration) -> None:
        """The client registers."""
        wish = evolve(wish, host="", component="local", component_id=self._instance)
        try:
            client = self._keeper.register(wish, self, fixed_ids=True)
        except RegistrationError as error:
            self._later(self._user.refused, str(error))
            return
        self._id = client.id
        self._later(self._user.accepted, client.id)

    def modify(self, wish: Registration) -> None:
        """The client modifies itself."""
        try:
            self._keeper.modify(wish)
        except RegistrationError as error:
            self._later(self._user.unknown_to_master, str(error))

    def acknowledge(self, number: int, client_id: int) -> None:
        """The client acknowledges."""
        self._keeper.acknowledge(client_id, number)

    def leave(self, client_id: int) -> None:
        """The client leaves."""
        self._keeper.leave(client_id)
        self._later(self._lost, "left")

    def _lost(self, reason: str) -> None:
        self._is_open = False
        self._user.lost(reason)

    def abort(self) -> None:
        """The client drops the link."""
        self._is_open = False
        if self._id:
            self._keeper.drop(self._id, "its mirror is gone")
            self._id = 0

    def deliver(self, report: Report) -> bool:
        """The master has a report."""
        if not self._is_open:
            return False
        events = [(number, event.received(number)) for number, event in report.numbered()]
        self._later(self._user.reported, events)
        return True

    def dropped(self, reason: str) -> None:
        """The master forgot the client."""
        self._id = 0
        if self._is_open:
            self._later(self._lost, reason)
