"""What a mirror needs of a way to a master, whatever is spoken on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from gridnet.mirror.catalogue import Catalogue
from gridnet.mirror.model import Event, Registration


class LinkUser(Protocol):
    """Who uses a link: told what comes over it."""

    def accepted(self, client_id: int) -> None:
        """The registration was accepted."""

    def refused(self, reason: str, at_least: float = 0.0) -> None:
        """The registration was refused; no new try before *at_least* seconds."""

    def reported(self, events: Sequence[tuple[int, Event]]) -> None:
        """A report came."""

    def heard(self) -> None:
        """Octets of a report came that is not whole yet."""

    def unknown_to_master(self, reason: str) -> None:
        """A modification was refused since the master does not know the client."""

    def lost(self, reason: str, at_least: float = 0.0) -> None:
        """The link is gone; nothing follows."""

    def types_known(self, names: Sequence[str]) -> None:
        """The master said which lists it has."""


class Link(Protocol):
    """A connection to a master."""

    def register(self, wish: Registration) -> None:
        """Send a registration."""

    def modify(self, wish: Registration) -> None:
        """Send a modification."""

    def acknowledge(self, number: int, client_id: int) -> None:
        """Send an acknowledgement."""

    def leave(self, client_id: int) -> None:
        """Send that the client leaves and close properly; ``lost`` follows."""

    def abort(self) -> None:
        """Drop the connection; nothing follows."""


class Connector(Protocol):
    """
    A way to a master.

    :ivar catalogue: the types that are spoken of.
    :ivar canonical_host: how host names compare.
    :ivar judges_conditions: does the master there tell of elements for which a condition begins
        or ceases to hold?  Otherwise the mirror judges by itself.
    """

    judges_conditions: bool

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def canonical_host(self) -> Callable[[str], str]: ...

    def connect(self, user: LinkUser) -> Deferred[Link]:
        """Make a link; an error in the Deferred says why there is none."""

    def describe(self) -> str:
        """The way, for logs and people."""
