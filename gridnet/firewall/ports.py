"""Which port a client is sent to (docs/protocols/firewall.rst, 1)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

from attrs import field, frozen

from gridnet.table.way_in import WayInRequest

_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_ports(text: str) -> tuple[int, ...]:
    """
    Ports and ranges of them, separated by blanks or commas: ``"5860-5870 5900"``.

    :raises ValueError: anything else; the text says what.
    """
    ports: list[int] = []
    for word in text.replace(",", " ").split():
        match = _RANGE.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < 65536:
            raise ValueError(f"expected ports or ranges of them, found {word!r}")
        ports.extend(range(first, last + 1))
    return tuple(dict.fromkeys(ports))


@frozen
class PortSets:
    """The ports that clients may be sent to, by kind of client."""

    firewall: tuple[int, ...] = ()  #: clients in firewall mode
    relay: tuple[int, ...] = ()  #: other clients
    fallback: tuple[int, ...] = ()  #: clients that found the firewall ports blocked
    _chance: random.Random = field(factory=random.Random, eq=False, repr=False)

    def everything(self) -> Sequence[int]:
        """All ports, each once."""
        return list(dict.fromkeys((*self.firewall, *self.relay, *self.fallback)))

    def choose(self, request: WayInRequest) -> int | None:
        """The port for *request*'s client; None: there is none for its kind."""
        if request.firewall_mode and request.fallback_ports:
            usable = [port for port in self.fallback if port in request.fallback_ports]
            if usable:
                return self._chance.choice(usable)
        first, second = self.firewall, self.relay
        if not request.firewall_mode:
            first, second = second, first
        ports = first or second
        return self._chance.choice(ports) if ports else None

    def with_only(self, answering: Iterable[int]) -> PortSets:
        """The same without the ports that do not answer."""
        up = frozenset(answering)
        return PortSets(
            tuple(p for p in self.firewall if p in up),
            tuple(p for p in self.relay if p in up),
            tuple(p for p in self.fallback if p in up),
            self._chance,
        )
