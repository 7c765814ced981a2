"""The connections that are relayed now: counted, limited, timed, and ended by order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from attrs import define, field, frozen

from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.meter import Meter
from gridnet.firewall.tickets import Passage, block_of


class CannotOpenError(Exception):
    """There are too many connections, in all or of this client."""


@define(eq=False)
class Session:
    """One relayed connection."""

    name: str  #: fingerprint of its ticket
    passage: Passage
    peer: str  #: IP address text of the client, as seen here
    since: float  #: seconds since the epoch
    octets: Callable[[], tuple[int, int]]  #: passed so far, to the server and to the client
    end: Callable[[str], None]  #: ends it, for a reason
    meters: tuple[tuple[Meter, ...], tuple[Meter, ...]] = ((), ())
    _seen: tuple[int, int] = (-1, -1)
    _moved_at: float = 0.0

    def idle_since(self, now: float) -> float:
        """
        When octets passed last, as far as calls of this tell.

        Comparing counts now and then costs nothing where the octets pass.
        """
        octets = self.octets()
        if octets != self._seen:
            self._seen = octets
            self._moved_at = now
        return self._moved_at


@frozen
class _ClientMeters:
    up: Meter
    down: Meter


@define
class Sessions:
    """
    All of one process.

    :ivar watchers: called with each that begins (True) or ends (False).
    """

    config: FirewallConfig
    watchers: list[Callable[[Session, bool], None]] = field(factory=list, init=False)
    _open: dict[str, Session] = field(factory=dict, init=False)
    _per_client: Counter[str] = field(factory=Counter, init=False)
    _meters: dict[str, _ClientMeters] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._open.values()))

    def check(self, peer: str) -> None:
        """
        See whether one more of *peer* may be opened.

        :raises CannotOpenError: it may not.
        """
        if len(self._open) >= self.config.max_open:
            raise CannotOpenError("too many connections are open")
        if self._per_client[block_of(peer)] >= self.config.max_open_per_client:
            raise CannotOpenError("too many connections of this client are open")

    def open(self, session: Session, now: float) -> None:
        """Take *session* in, and give it its meters."""
        block = block_of(session.peer)
        self._open[session.name] = session
        self._per_client[block] += 1
        session.meters = self._make_meters(block, now)
        session.idle_since(now)
        for watcher in tuple(self.watchers):
            watcher(session, True)

    def close(self, session: Session) -> None:
        """*session* is over."""
        if self._open.pop(session.name, None) is None:
            return
        block = block_of(session.peer)
        self._per_client[block] -= 1
        if self._per_client[block] <= 0:
            del self._per_client[block]
            self._meters.pop(block, None)
        for watcher in tuple(self.watchers):
            watcher(session, False)

    def find(self, name: str) -> Session | None:
        """The session of that name."""
        return self._open.get(name)

    def sweep(self, now: float) -> None:
        """End what has been idle, or open, for too long."""
        idle, total = self.config.idle_timeout_seconds, self.config.total_timeout_seconds
        for session in self:
            if idle and session.idle_since(now) + idle <= now:
                session.end("idle for too long")
            elif total and session.since + total <= now:
                session.end("open for too long")

    def _make_meters(self, block: str, now: float) -> tuple[tuple[Meter, ...], tuple[Meter, ...]]:
        up: tuple[Meter, ...] = ()
        down: tuple[Meter, ...] = ()
        rate = self.config.session_octets_per_second
        if rate:
            up, down = (Meter(rate, now),), (Meter(rate, now),)
        rate = self.config.client_octets_per_second
        if rate:
            shared = self._meters.setdefault(
                block, _ClientMeters(Meter(rate, now), Meter(rate, now))
            )
            up, down = (*up, shared.up), (*down, shared.down)
        return up, down
