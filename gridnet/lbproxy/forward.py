"""
Forwarding on the network: one deliverer a server, some of them at a time.

Source: docs/protocols/lbproxy.rst, "Forwarding".
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import ConfigError, Fault, shown
from gridnet.lbproxy import frames
from gridnet.lbproxy.book import JobBook
from gridnet.lbproxy.config import ForwardConfig
from gridnet.lbproxy.forwarding import BackOff, Queue, SpooledEvent, Verdict
from gridnet.lbproxy.frames import BodyError, FrameReader, Reply
from gridnet.lbproxy.handover import PAGE_EVENTS, PAGE_OCTETS, DaemonHandover, ForwardCounts

#: A reply is a few lines.
_MAX_REPLY_OCTETS = 64 << 10
#: Answered events are taken out of the spool together, after this pause or this many.
_SETTLE_SECONDS, _SETTLE_EVENTS = 0.05, 256


def endpoint_string(config: ForwardConfig, destination: str) -> str:
    """
    Where to connect for *destination*.

    :param destination: ``host:port`` of the job ids.
    """
    routed = {name.lower(): place for name, place in config.routes.items()}.get(destination)
    if routed is not None:
        return routed
    host, _, port = destination.rpartition(":")
    host = host.strip("[]")
    return config.server.format(host=quoteStringArgument(host), port=int(port) + 1)


def check_endpoints(config: ForwardConfig, reactor: Any) -> None:
    """
    Look whether *config* says where servers are.

    :raises ConfigError: it holds what is no endpoint string, or names files that are not there.
    """
    places = {"server": "server.example.org:9000"}
    places.update({f"routes.{name}": name.lower() for name in config.routes})
    faults = []
    for key, destination in places.items():
        try:
            clientFromString(reactor, endpoint_string(config, destination))
        except (LookupError, OSError, TypeError, ValueError) as error:
            found = config.server if key == "server" else config.routes[key.partition(".")[2]]
            why = f"{type(error).__name__} {error}".rstrip()
            text = f"expected an endpoint, found {shown(found)}: {why}"
            faults.append(Fault(f"lbproxy.forward.{key}", text))
    if faults:
        raise ConfigError(faults)


def read_spool(
    connection: sqlite3.Connection, destination: str, after: int, held: Sequence[int]
) -> list[SpooledEvent]:
    """What waits for *destination* after a position, without the jobs that are *held*."""
    found = connection.execute(
        "SELECT s.position, s.job, e.line FROM spool s JOIN events e ON e.position = s.position"
        " WHERE s.destination = ? AND s.position > ?"
        " AND s.job NOT IN (SELECT value FROM json_each(?)) ORDER BY s.position LIMIT ?",
        (destination, after, json.dumps(list(held)), PAGE_EVENTS),
    )
    events, octets = [], 0
    for position, job, line in found:
        events.append(SpooledEvent(position, job, line))
        octets += len(line)
        if octets > PAGE_OCTETS:
            break
    return events


class _Link(Protocol):
    """A connection to one server: messages go out, replies come in their order."""

    def __init__(
        self, replied: Callable[[Reply], None], lost: Callable[[str], None], clock: Any
    ) -> None:
        self._replied = replied
        self._lost: Callable[[str], None] | None = lost
        self._clock = clock
        self._reader = FrameReader(_MAX_REPLY_OCTETS)
        self._timer: IDelayedCall | None = None

    def send(self, lines: Iterable[bytes], timeout: float) -> None:
        """Send messages; some reply must come within *timeout* seconds."""
        if self.transport is None:
            return
        self.transport.write(b"".join(map(frames.encode_message, lines)))
        self._watch(timeout)

    def _watch(self, timeout: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.reset(timeout)
        else:
            self._timer = self._clock.callLater(timeout, self.end, "no reply in time")

    def rest(self) -> None:
        """Nothing is on the way: no reply is waited for."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def dataReceived(self, data: bytes) -> None:
        """Take replies (called by Twisted)."""
        bodies = self._reader.receive(data)
        try:
            for body in bodies:
                self._replied(frames.decode_reply(body))
        except BodyError as error:
            self.end(str(error))
            return
        if self._reader.fault is not None:
            self.end(str(self._reader.fault))

    def connectionLost(self, reason: Any = None) -> None:
        """The end (called by Twisted)."""
        self.end("connection lost")

    def end(self, reason: str) -> None:
        """Close, and say why once."""
        self.rest()
        lost, self._lost = self._lost, None
        if self.transport is not None:
            abort = getattr(self.transport, "abortConnection", None)
            (abort or self.transport.loseConnection)()
        if lost is not None:
            lost(reason)


class Deliverer:
    """
    Brings one server its events.

    It connects while there is something to bring, reads a page of the spool at a time, and after
    any fault of the connection begins again at the oldest event that was not answered; the server
    knows by itself what it has already.
    """

    _log = Logger()

    def __init__(
        self,
        book: JobBook,
        config: ForwardConfig,
        destination: str,
        reactor: Any,
        chance: random.Random,
        counts: ForwardCounts,
        settled: set[int],
        settle: Callable[[int], None],
        rests: Callable[[Deliverer], None],
        fault: str = "",
    ) -> None:
        self.destination = destination
        self._rests = rests
        self._book = book
        self._config = config
        self._reactor = reactor
        self._counts = counts
        self._settle = settle
        self._queue = Queue(
            config.window, config.retry_seconds, config.max_retry_seconds, chance, settled
        )
        self._back_off = BackOff(config.retry_seconds, config.max_retry_seconds, chance)
        self._link: _Link | None = None
        self._working = False  #: reading or connecting
        self._more = True  #: the spool may hold more than was read
        self._epoch = 0  #: grows whenever the spool is to be read from its begin again
        self._retry: IDelayedCall | None = None  #: until the next attempt to connect
        self._held: IDelayedCall | None = None  #: until the first held job may go on
        self._stopped = False
        self.fault = fault

    def wake(self) -> None:
        """There is something new in the spool."""
        self._more = True
        self._go()

    @property
    def has_work(self) -> bool:
        """Whether something is to be brought, now or later."""
        return bool(len(self._queue) or self._more or self._working or self._held or self._retry)

    @property
    def is_connected(self) -> bool:
        """Whether its connection is open."""
        return self._link is not None

    @property
    def is_resting(self) -> bool:
        """Whether nothing is on its way, and nothing happens by itself for the moment."""
        if self._working or self._queue.on_the_way:
            return False
        return self._retry is not None or not (len(self._queue) or self._more)

    def stop(self) -> None:
        """Bring nothing more; what was not answered stays in the spool."""
        self._stopped = True
        for timer in (self._retry, self._held):
            if timer is not None and timer.active():
                timer.cancel()
        if self._link is not None:
            self._link.end("stopping")
            self._link = None

    def _go(self) -> None:
        """Do the next thing that can be done."""
        if self._stopped or self._working or self._retry is not None:
            return
        if self._more and len(self._queue) < self._config.window + PAGE_EVENTS // 2:
            self._working = True
            step = Deferred.fromCoroutine(self._read())
            step.addErrback(self._failed)
            return
        if self._link is not None:
            self._send()
        elif len(self._queue):
            self._working = True
            step = Deferred.fromCoroutine(self._connect())
            step.addErrback(self._failed)
        if self.is_resting:
            self._rests(self)

    async def _read(self) -> None:
        epoch = self._epoch
        held = self._queue.held_jobs
        after = self._queue.read_through
        self._more = False
        destination = self.destination
        found = await self._book.read(
            lambda connection: read_spool(connection, destination, after, held)
        )
        if epoch == self._epoch:
            self._queue.add(found)
            self._more = self._more or bool(found)
        else:
            self._more = True
        self._working = False
        self._go()

    async def _connect(self) -> None:
        endpoint = clientFromString(self._reactor, endpoint_string(self._config, self.destination))
        link = _Link(self._replied, self._lost, self._reactor)
        factory = Factory.forProtocol(lambda: link)
        factory.noisy = False  # a server that is away is told of once, not at each attempt
        connecting: Deferred[Any] = endpoint.connect(factory)
        connecting.addTimeout(self._config.connect_timeout_seconds, self._reactor)
        await connecting
        self._working = False
        if self._stopped:
            link.end("stopping")
            return
        self._link = link
        self._go()

    def _failed(self, failure: Failure) -> None:
        self._working = False
        self._more = True
        self._trouble(failure.getErrorMessage() or type(failure.value).__name__)

    def _lost(self, reason: str) -> None:
        self._link = None
        if self._stopped:
            return
        if len(self._queue):
            self._trouble(reason)
        else:  # an idle server closes; the next event connects again
            self._go()

    def _trouble(self, reason: str) -> None:
        if self._stopped:
            return
        self._counts.failures += 1
        self._queue.restart()
        self._epoch += 1
        self._more = True
        pause = self._back_off.pause()
        if not self.fault:
            self._log.warn(
                "{destination}: {reason}; events wait here",
                destination=self.destination,
                reason=reason,
            )
        self.fault = reason
        if self._retry is None:
            self._retry = self._reactor.callLater(pause, self._retry_over)

    def _retry_over(self) -> None:
        self._retry = None
        self._rests(self)  # perhaps another server's turn
        self._go()

    def _hold_over(self) -> None:
        self._held = None
        self._queue.release(self._reactor.seconds())
        self._epoch += 1
        self._wait_for_held()
        self._more = True
        self._go()

    def _wait_for_held(self) -> None:
        wakes = self._queue.wakes_at
        if wakes is not None and self._held is None:
            pause = max(0.01, wakes - self._reactor.seconds())
            self._held = self._reactor.callLater(pause, self._hold_over)

    def _send(self) -> None:
        link = self._link
        if link is None:
            return
        chosen = self._queue.next_to_send()
        if chosen:
            timeout = self._config.reply_timeout_seconds
            link.send([one.line for one in chosen], timeout)
        elif not self._queue.on_the_way:
            link.rest()

    def _replied(self, reply: Reply) -> None:
        if not self._queue.on_the_way:
            if self._link is not None:
                self._link.end("a reply to nothing")
            return
        one, verdict = self._queue.answered(reply, self._reactor.seconds())
        self._back_off.reset()
        if self.fault:
            self.fault = ""
            self._log.info("{destination}: takes events again", destination=self.destination)
        if verdict is Verdict.LATER:
            self._counts.retried += 1
            self._wait_for_held()
            self._log.debug(
                "{destination}: wants event {position} later: {reason}",
                destination=self.destination,
                position=one.position,
                reason=reply.text,
            )
        else:
            self._settle(one.position)
            if verdict is Verdict.DROPPED:
                self._counts.dropped += 1
                self._log.error(
                    "{destination}: will not have event {position}: {major}/{minor} {reason}",
                    destination=self.destination,
                    position=one.position,
                    major=reply.major,
                    minor=reply.minor,
                    reason=reply.text,
                )
            else:
                self._counts.delivered += 1
        self._go()


# -- all of it ------------------------------------------------------------------------------------


@define(eq=False)
class Forwarder:
    """
    Everything that goes on from one store.

    :ivar counts: since the start.
    """

    book: JobBook
    config: ForwardConfig
    reactor: Any
    chance: random.Random
    counts: ForwardCounts = field(factory=ForwardCounts)
    _deliverers: dict[str, Deliverer] = field(factory=dict, init=False)
    #: servers that wait for their turn -> what was wrong with them the last time
    _waiting: OrderedDict[str, str] = field(factory=OrderedDict, init=False)
    _stopped: bool = field(default=False, init=False)
    _daemon: DaemonHandover | None = field(default=None, init=False)
    _settled: list[int] = field(factory=list, init=False)
    _settled_positions: set[int] = field(factory=set, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _looking: IDelayedCall | None = field(default=None, init=False)

    _log = Logger()

    def start(self) -> None:
        """Go on with what the spool holds."""
        self.book.on_forwardable = self.wake
        self._look()

    def _look(self) -> None:
        """Learn which servers something waits for."""
        self._looking = None

        def find(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT DISTINCT destination FROM spool").fetchall()
            return [destination for (destination,) in rows]

        reading = self.book.read(find)
        reading.addCallbacks(lambda found: self.wake(set(found)), self._not_read)

    def _not_read(self, failure: Failure) -> None:
        if not self._stopped:
            self._log.error("the spool cannot be read: {reason}", reason=failure.getErrorMessage())
            self._looking = self.reactor.callLater(self.config.retry_seconds, self._look)

    def wake(self, destinations: set[str]) -> None:
        """There is something new for *destinations*."""
        if self._stopped:
            return
        if self.config.mode == "daemon":
            if self._daemon is None:
                self._daemon = DaemonHandover(
                    self.book, self.config, self.reactor, self.chance, self.counts, self._settle
                )
            self._daemon.wake()
            return
        for destination in destinations:
            deliverer = self._deliverers.get(destination)
            if deliverer is not None:
                deliverer.wake()
            elif len(self._deliverers) < self.config.max_servers:
                self._begin(destination)
            elif destination not in self._waiting:
                self._waiting[destination] = ""
                resting = next((one for one in self._deliverers.values() if one.is_resting), None)
                if resting is not None:
                    self._make_room(resting)

    def _begin(self, destination: str) -> None:
        fault = self._waiting.pop(destination, "")
        deliverer = self._deliverers[destination] = Deliverer(
            self.book,
            self.config,
            destination,
            self.reactor,
            self.chance,
            self.counts,
            self._settled_positions,
            self._settle,
            self._make_room,
            fault,
        )
        deliverer.wake()

    def _make_room(self, resting: Deliverer) -> None:
        """Let another server have the place of one that rests; it comes again in its turn."""
        destination = resting.destination
        if self._stopped or self._deliverers.get(destination) is not resting:
            return
        if not self._waiting:
            if not resting.has_work and not resting.is_connected:
                del self._deliverers[destination]
            return
        resting.stop()
        del self._deliverers[destination]
        if resting.has_work:
            self._waiting[destination] = resting.fault
        self._begin(next(iter(self._waiting)))

    def _settle(self, position: int) -> None:
        self._settled.append(position)
        if len(self._settled) >= _SETTLE_EVENTS:
            self._write_settled()
        elif self._timer is None:
            self._timer = self.reactor.callLater(_SETTLE_SECONDS, self._write_settled)

    def _write_settled(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        positions, self._settled = self._settled, []
        if not positions:
            return
        writing = self.book.change(lambda ledger: ledger.forwarded(positions))
        writing.addCallback(lambda _: self._settled_positions.difference_update(positions))
        writing.addErrback(self._not_settled, positions)

    def _not_settled(self, failure: Failure, positions: list[int]) -> None:
        # They stay in the spool, and are sent once more after the next start: the server knows
        # them as repeated.  Until then memory keeps them from going twice.
        self._log.error("the spool cannot be written: {reason}", reason=failure.getErrorMessage())
        self._settled += positions
        if self._timer is None:
            self._timer = self.reactor.callLater(1.0, self._write_settled)

    async def stop(self) -> None:
        """Send nothing more, and note what was answered."""
        self._stopped = True
        self.book.on_forwardable = lambda destinations: None
        if self._looking is not None and self._looking.active():
            self._looking.cancel()
        for deliverer in self._deliverers.values():
            deliverer.stop()
        if self._daemon is not None:
            await self._daemon.stop()
        self._write_settled()

    def facts(self) -> dict[str, Any]:
        """For the status board."""
        return {
            "forwarded": self.counts.delivered,
            "not wanted by their server": self.counts.dropped,
            "wanted later": self.counts.retried,
            "failed connections": self.counts.failures,
            "servers at work": len(self._deliverers),
            "servers waiting": len(self._waiting),
            "faults": {
                **{name: fault for name, fault in self._waiting.items() if fault},
                **{name: one.fault for name, one in self._deliverers.items() if one.fault},
            },
        }
