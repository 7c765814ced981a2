"""The store socket: events come in here (docs/protocols/lbproxy.rst, "Store protocol")."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from attrs import define, field, frozen
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.logger import Logger
from zope.interface import implementer

from gridnet.lbproxy import frames, usual_lines
from gridnet.lbproxy.config import LbproxyConfig
from gridnet.lbproxy.connections import BoundedConnection, BoundedFactory, Budget, Peer, users_of
from gridnet.lbproxy.events import Event, EventError
from gridnet.lbproxy.frames import BodyError, FrameReader, Major, Reply
from gridnet.lbproxy.identity import comparison_key
from gridnet.lbproxy.writer import Backlog, ReplyCallback

#: Octets read at once: room for many events, and little enough that memory for them costs little.
_READ_OCTETS = 8 << 10

OTHER_USER = Reply(Major.PERMISSION, 0, "DG.USER is not a name of the user at the socket")


@frozen
class Identities:
    """Which names local users may log under."""

    #: user number -> keys of names; ``*`` for any
    names: Mapping[int, frozenset[str]]

    @classmethod
    def from_config(cls, identities: Mapping[str, tuple[str, ...]]) -> Identities:
        """
        As ``[lbproxy] identities`` says.

        :raises ConfigError: a user that this host does not know.
        """
        users = users_of(identities)
        return cls(
            {
                uid: frozenset(
                    name if name == "*" else comparison_key(name) for name in identities[key]
                )
                for uid, key in users.items()
            }
        )

    def allow(self, peer: Peer | None, name: str) -> bool:
        """Whether *peer* may log as *name*; one that is not on a UNIX socket may not."""
        if peer is None:
            return False
        allowed = self.names.get(peer.uid, frozenset())
        return "*" in allowed or comparison_key(name) in allowed


class Take(Protocol):
    """Takes events in."""

    def __call__(self, event: Event, done: ReplyCallback) -> None:
        """Store *event*; *done* gets the reply, in this thread, once it is durable, or refused."""


class StoreFactory(BoundedFactory):
    """
    Makes store connections.

    :param take: takes their events in.
    :param backlog: nothing more is read while it is full.
    :ivar refusals: messages refused since the start, by first number of the reply.
    """

    def __init__(
        self,
        config: LbproxyConfig,
        clock: Any,
        budget: Budget,
        identities: Identities | None,
        *,
        take: Take,
        backlog: Backlog,
    ) -> None:
        super().__init__(clock, config.max_connections, config.idle_seconds, config.request_seconds)
        self.max_message_octets = config.max_message_octets
        self.max_pipelined = config.max_pipelined
        self.take = take
        self.backlog = backlog
        self.identities = identities
        self.refusals: dict[int, int] = {}
        self._budget = budget
        self._held: set[StoreConnection] = set()

    def make_connection(self) -> StoreConnection:
        """A store connection."""
        return StoreConnection(self._budget)

    def hold(self, connection: StoreConnection) -> None:
        """*connection* reads nothing until there is room."""
        self._held.add(connection)

    def release(self) -> None:
        """There is room again; for any thread."""
        if self._held:
            self.run(self._release)

    def _release(self) -> None:
        held, self._held = self._held, set()
        for connection in held:
            connection.read_on()

    def forget(self, connection: StoreConnection) -> None:
        """*connection* is gone."""
        self._held.discard(connection)

    def note_refusal(self, reply: Reply) -> None:
        """Count a message that was refused."""
        self.refusals[reply.major] = self.refusals.get(reply.major, 0) + 1


@define(slots=True, eq=False)
class _Slot:
    """The place of one reply in the order of messages."""

    connection: StoreConnection
    octets: bytes | None = field(default=None, init=False)

    def answer(self, reply: Reply) -> None:
        """Give the reply."""
        if reply is frames.OK:
            self.octets = frames.OK_FRAME
        else:
            self.octets = frames.encode_reply(reply)
            if not reply.ok:
                self.connection.factory.note_refusal(reply)
        self.connection.answered(self)


@implementer(IHalfCloseableProtocol)
class StoreConnection(BoundedConnection):
    """One client: any number of messages, answered in their order."""

    factory: StoreFactory
    _log = Logger()

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self._slots: deque[_Slot] = deque()
        self._reader: FrameReader | None = None
        self._held = False
        self._ending = False

    @property
    def is_busy(self) -> bool:
        """Whether some message waits for its commit."""
        return bool(self._slots)

    def connectionMade(self) -> None:
        """Start (called by Twisted)."""
        super().connectionMade()
        self.stream.bufferSize = _READ_OCTETS
        self._reader = FrameReader(self.factory.max_message_octets)

    def dataReceived(self, data: bytes) -> None:
        """Take octets (called by Twisted)."""
        reader = self._reader
        if reader is None or self._ending:
            return
        line = reader.usual_line(data)
        if line is not None:
            # Nothing of a message is waiting before or after it.
            self._take(line)
        elif not self._receive(reader, data):
            return
        factory = self.factory
        is_full = factory.backlog.is_full
        if is_full or len(self._slots) >= factory.max_pipelined:
            self._hold(is_full)

    def _receive(self, reader: FrameReader, data: bytes) -> bool:
        """Take what *data* completes; whether to go on with the connection."""
        for body in reader.receive(data):
            try:
                line = frames.event_line(body)
            except BodyError:
                self._next_slot().answer(frames.UNREADABLE)
            else:
                self._take(line)
        if reader.fault is not None:
            self._log.warn(
                "{peer}: {reason}; connection closed",
                peer=str(self.peer),
                reason=str(reader.fault),
            )
            self.end()
            return False
        return self.note_progress(reader.held_octets, reader.in_frame)

    def _next_slot(self) -> _Slot:
        slot = _Slot(self)
        self._slots.append(slot)
        return slot

    def _take(self, line: bytes) -> None:
        slot = self._next_slot()
        try:
            event = usual_lines.parse(line)
        except EventError as error:
            slot.answer(Reply(Major.PROTOCOL, error.number, str(error)))
            return
        if self.factory.identities is not None and not self._may(event):
            slot.answer(OTHER_USER)
            return
        self.factory.take(event, slot.answer)

    def _may(self, event: Event) -> bool:
        identities = self.factory.identities
        if identities is None or identities.allow(self.peer, event.user):
            return True
        self._log.warn("{peer}: may not log as {user}", peer=str(self.peer), user=event.user)
        return False

    def answered(self, slot: _Slot) -> None:
        """There is a reply in *slot*: write all those whose turn it is."""
        slots = self._slots
        if slots and slots[0] is slot:
            self._flush()

    def _flush(self) -> None:
        slots = self._slots
        ready = []
        while slots and slots[0].octets is not None:
            ready.append(slots.popleft().octets or b"")
        if self.transport is None or self not in self.factory.connections:
            return
        self.active_at = self.factory.clock.seconds()
        self.transport.write(ready[0] if len(ready) == 1 else b"".join(ready))
        if slots:
            return
        if self._ending:
            self.close()
        elif self._held:
            self.read_on()

    def end(self) -> None:
        """Read nothing more; close once all is answered."""
        self._ending = True
        if self.transport is not None:
            self.stream.pauseProducing()
            if not self._slots:
                self.close()

    def _hold(self, everywhere: bool) -> None:
        if not self._held:
            self._held = True
            self.stream.pauseProducing()
        if everywhere:
            self.factory.hold(self)
            if not self.factory.backlog.is_full:  # room was made before we were known to wait
                self.factory.release()

    def read_on(self) -> None:
        """Read again after a hold."""
        if self._held and self in self.factory.connections and not self._ending:
            if self.is_clogged:
                return
            if self.factory.backlog.is_full:
                self.factory.hold(self)
                return
            self._held = False
            self.stream.resumeProducing()

    def pauseProducing(self) -> None:
        """The peer does not take its replies: read no more of its messages."""
        super().pauseProducing()
        if not self._ending:
            self._hold(False)

    def unclogged(self) -> None:
        """Read on, unless something else stands against it."""
        if not self._slots:
            self.read_on()

    def readConnectionLost(self) -> None:
        """The peer sends no more but may still read (called by Twisted)."""
        self._ending = True
        if not self._slots:
            self.close()

    def writeConnectionLost(self) -> None:
        """The peer reads no more (called by Twisted)."""
        self.close()

    def connectionLost(self, reason: Any = None) -> None:
        """The end (called by Twisted)."""
        super().connectionLost(reason)
        self.factory.forget(self)
