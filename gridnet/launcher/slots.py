"""How many programs may be there at once."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from gridnet.errors import LaunchError


@define
class Slots:
    """
    Counts programs of each service, and all of them.

    :ivar turned_away: requests that found no room.
    """

    per_service: int
    in_all: int
    turned_away: int = 0
    _taken: Counter[str] = field(factory=Counter, init=False)
    _total: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self._total

    def of(self, service: str) -> int:
        """How many of *service* there are."""
        return self._taken[service.lower()]

    def take(self, service: str) -> None:
        """
        Make room for one more of *service*.

        :raises LaunchError: there is none; the client is to come back later (503).
        """
        name = service.lower()
        if self._taken[name] >= self.per_service:
            self.turned_away += 1
            raise LaunchError(f"Too many programs of the service run already: {service}", 503)
        if self._total >= self.in_all:
            self.turned_away += 1
            raise LaunchError("Too many programs run already", 503)
        self._taken[name] += 1
        self._total += 1

    def give_back(self, service: str) -> None:
        """One of *service* is gone."""
        name = service.lower()
        self._taken[name] -= 1
        self._total -= 1
        if not self._taken[name]:
            del self._taken[name]
