"""
How sources feed a master.

A source is asked for its list, and told of changes, only while a client wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gridnet.mirror.catalogue import OwnCatalogue
from gridnet.mirror.element import ElementList
from gridnet.mirror.keeper import MasterService
from gridnet.mirror.lists import own_element

Attributes = Mapping[str, Any]


class SourceFeeder:
    """
    Feeds the lists of sources to a master while clients want them.

    :param offers: gives the sources there are, at any time (components offer theirs late).
    :param linger_seconds: a list that nobody wants any more is kept current for this long.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        keeper: MasterService,
        catalogue: OwnCatalogue,
        offers: Callable[[], Iterator[Any]],
        linger_seconds: float = 60.0,
    ) -> None:
        self._clock = IReactorTime(reactor)
        self._keeper = keeper
        self._catalogue = catalogue
        self._offers = offers
        self._linger = linger_seconds
        self._attached: dict[str, Callable[[], None]] = {}
        self._wanted: set[str] = set()  # lists that clients wait for and no source has
        self._unwanted: dict[str, float] = {}
        self._call: IDelayedCall | None = None
        keeper.on_missing = self.attach

    @property
    def attached(self) -> tuple[str, ...]:
        """Names of the lists that are kept current."""
        return tuple(sorted(self._attached))

    def names(self) -> tuple[str, ...]:
        """Names of all lists that can be had; they are made known to the catalogue."""
        found = tuple(sorted(source.object_type for source in self._offers()))
        for name in found:
            self._catalogue.own(name)
        return found

    def attach(self, names: set[str]) -> None:
        """Clients want these lists: begin to keep those that there are sources for."""
        self._wanted |= names
        for source in self._offers():
            name = source.object_type
            if name in names and name not in self._attached:
                self._wanted.discard(name)
                with self._log.failuresHandled("attaching the list {name}", name=name):
                    self._attach(name, source)

    def offered(self) -> None:
        """There are sources that were not there before: clients may wait for them."""
        if self._wanted:
            self.attach(self._keeper.master.wanted_types() & self._wanted)

    def _attach(self, name: str, source: Any) -> None:
        def changed(key: str, attributes: Attributes | None) -> None:
            element = None if attributes is None else own_element(key, attributes)
            self._keeper.change(name, key, element)

        # Nothing can change between the two: both are calls of one thread.
        self._attached[name] = source.subscribe(changed)
        rows = ElementList(own_element(key, row) for key, row in source.snapshot().items())
        self._keeper.replace(name, rows)
        self._look_later()

    def _look_later(self) -> None:
        if self._call is None and self._attached:
            self._call = self._clock.callLater(max(1.0, self._linger / 2), self._look)

    def _look(self) -> None:
        """Let go of lists that nobody has wanted for a while."""
        self._call = None
        now = self._clock.seconds()
        wanted = self._keeper.master.wanted_types()
        for name in list(self._attached):
            if name in wanted:
                self._unwanted.pop(name, None)
            elif now - self._unwanted.setdefault(name, now) >= self._linger:
                self._detach(name)
        self._look_later()

    def _detach(self, name: str) -> None:
        self._unwanted.pop(name, None)
        self._attached.pop(name)()
        self._keeper.master.forget(name)

    def stop(self) -> None:
        """Let go of everything."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        for name in list(self._attached):
            self._detach(name)
