"""The relay's listening side: one protocol a client, and the factory that bounds them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.errors import RemoteProtocolError
from gridnet.firewall import wire
from gridnet.firewall.bare import BareTransport, set_options
from gridnet.firewall.config import FirewallConfig
from gridnet.firewall.machine import OVER, Leg, LegCore, Wait, make_leg
from gridnet.firewall.movers import CopyMover, Mover, SpliceMover, can_splice, ends_alone
from gridnet.firewall.office import ControlRefusedError, TicketOffice
from gridnet.firewall.pump import AVAILABLE, PipePool, Pump
from gridnet.firewall.sessions import CannotOpenError, Session, Sessions
from gridnet.firewall.tickets import Passage, Ticket, block_of
from gridnet.table.address_range import AddressRanges

_IPV4_IN_IPV6 = "::ffff:"


def address_of(peer: object) -> str:
    """IP address text of *peer*, as it is written everywhere else; empty: it has none."""
    host = getattr(peer, "host", "")
    if isinstance(host, bytes):
        # Twisted's PROXY protocol keeps what stood on the wire.
        host = host.decode("ascii", "replace")
    return str(host.removeprefix(_IPV4_IN_IPV6))


@define
class Deadlines:
    """
    Who waits for what until when.

    All that wait for the same wait equally long, so those of one kind end in the order in which
    they began; setting and clearing one is two operations on a dictionary, no timer.
    """

    lengths: dict[Wait, float]  #: seconds
    _queues: dict[Wait, OrderedDict[FrontLeg, float]] = field(init=False)

    @_queues.default
    def _make_queues(self) -> dict[Wait, OrderedDict[FrontLeg, float]]:
        return {wait: OrderedDict() for wait in Wait}

    def set(self, leg: FrontLeg, wait: Wait, now: float) -> None:
        """*leg* waits from now on."""
        self._queues[wait][leg] = now + self.lengths[wait]

    def clear(self, leg: FrontLeg, wait: Wait) -> None:
        """It does not wait any more."""
        self._queues[wait].pop(leg, None)

    def due(self, now: float) -> list[FrontLeg]:
        """Those that have waited for too long; they wait no more."""
        found: list[FrontLeg] = []
        for queue in self._queues.values():
            while queue:
                leg, at = next(iter(queue.items()))
                if at > now:
                    break
                del queue[leg]
                found.append(leg)
        return found


@implementer(IHalfCloseableProtocol)
class FrontLeg(TwistedProtocol):
    """
    A client's connection: turns what happens to it into inputs of its machine, and is the
    machine's hands (:class:`gridnet.firewall.machine.Hands`).
    """

    _log = Logger()

    transport: Any

    def __init__(self, factory: FirewallFactory, peer: str) -> None:
        self._factory = factory
        self._peer = peer
        self._leg: Leg = make_leg(LegCore(self))
        self._reader: wire.OpeningReader | None = wire.OpeningReader()
        self._record: wire.RequestReader | None = None
        self._request: wire.ControlRequest | None = None
        self._number = 0
        self._passage: Passage | None = None
        self._session: Session | None = None
        self._mover: Mover | None = None
        self._excess = b""
        self._words = factory.rejection
        self._to_client = b""
        self._waiting: Wait | None = None
        self._ended = False
        self._paused = False
        self._unticketed = True

    # -- what Twisted calls

    def connectionMade(self) -> None:
        """Called by Twisted."""
        transport = self.transport
        if not isinstance(transport, BareTransport) and can_splice(transport):
            set_options(transport.getHandle(), self._factory.config)
        self.wait(Wait.SILENCE)

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        if self._mover is not None:
            self._mover.front_received(data)
        elif self._reader is not None:
            if not self._reader.started:
                self._learn_peer()
            self._open(self._reader, data)
        elif self._record is not None:
            self._read_record(self._record, data)
        elif self._passage is not None or self._request is not None:
            self._excess += data

    def readConnectionLost(self) -> None:
        """Called by Twisted: the client sends no more."""
        self._ended = True
        if self._mover is not None:
            self._mover.front_ended()
        self._leg.stream_ended()

    def writeConnectionLost(self) -> None:
        """Called by Twisted: our last word is out."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted: the client is gone."""
        if self._mover is not None:
            self._mover.front_lost(reason)
        self._leg.connection_lost()

    # -- what the client says

    def _learn_peer(self) -> None:
        """Behind a proxy that tells whose connection it is, that is known only now."""
        if isinstance(self.transport, BareTransport):
            return
        peer = address_of(self.transport.getPeer())
        if peer != self._peer:
            self._factory.readdressed(self._peer, peer)
            self._peer = peer

    def _open(self, reader: wire.OpeningReader, data: bytes) -> None:
        opening = reader.receive(data)
        if opening is None:
            self._leg.began_to_speak()
            return
        self._reader = None
        factory = self._factory
        if isinstance(opening, wire.TicketPresented):
            self._excess = reader.excess
            self._number = opening.number
            self._leg.ticket_presented()
            return
        if isinstance(opening, wire.ControlOpened) and factory.is_trusted(self._peer):
            self._record = wire.RequestReader()
            self._leg.control_opened()
            if reader.excess:
                self._read_record(self._record, reader.excess)
            return
        if isinstance(opening, wire.BrowserSeen) and factory.config.browser_check:
            self._words = wire.browser_reply()
        factory.counts["checks"] += 1
        self._leg.port_checked()

    def _read_record(self, record: wire.RequestReader, data: bytes) -> None:
        try:
            request = record.receive(data)
        except RemoteProtocolError as error:
            self._misunderstand(error)
            return
        if request is not None:
            self._understand(record, request)

    def _understand(self, record: wire.RequestReader, request: wire.ControlRequest) -> None:
        self._record = None
        self._request = request
        self._excess = record.excess
        self._leg.control_requested()

    def _misunderstand(self, error: RemoteProtocolError) -> None:
        self._log.warn("{peer}: {reason}", peer=self._peer, reason=str(error))
        self._record = None
        self._refuse(wire.RejectCode.BAD_REQUEST, str(error))
        self._leg.made_no_sense()

    def _refuse(self, code: wire.RejectCode, text: str) -> None:
        self._words = wire.write_refusal(wire.ControlRefusal(code, text))

    # -- the machine's hands

    def wait(self, for_what: Wait) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        self.stop_waiting()
        self._waiting = for_what
        self._factory.deadlines.set(self, for_what, self._factory.now())

    def stop_waiting(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        if self._waiting is not None:
            self._factory.deadlines.clear(self, self._waiting)
            self._waiting = None

    def redeem(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        answered = False

        def found(ticket: Ticket | None) -> None:
            nonlocal answered
            answered = True
            if ticket is None:
                self._leg.passage_denied()
            else:
                self._go(ticket.passage, ticket.fingerprint)

        self._factory.office.redeem(self._number, self._peer, found)
        if not answered:
            self._pause()

    def _pause(self) -> None:
        """Read no more for now: what comes would only pile up here."""
        if not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()

    def read_record(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`; the reader is there already."""

    def finish_record(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        record = self._record
        if record is None:
            return
        try:
            request = record.end()
        except RemoteProtocolError as error:
            self._misunderstand(error)
        else:
            self._understand(record, request)

    def consult(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        request = self._request
        assert request is not None
        office = self._factory.office
        self._factory.counts["controls"] += 1
        if request.flags & wire.ControlFlag.KEEP_CONNECTION and self._factory.config.keep_control:
            try:
                passage = office.passage(request, self._peer)
            except ControlRefusedError as error:
                self._refuse(error.code, str(error))
                self._leg.passage_denied()
            else:
                self._to_client = wire.write_reply(
                    wire.ControlReply(passage.host, passage.port, 0, origin=office.address)
                )
                self._go(passage, self._factory.next_name())
            return
        answering = office.answer(request, self._peer)
        answering.addCallbacks(self._answered, self._unanswered)
        answering.addErrback(lambda failure: self._log.failure("a control request failed", failure))

    def _answered(self, reply: wire.ControlReply) -> None:
        self._words = wire.write_reply(reply)
        self._leg.point_reserved()

    def _unanswered(self, failure: Failure) -> None:
        error = failure.value
        code = wire.RejectCode.REFUSED
        if isinstance(error, ControlRefusedError):
            code = error.code
        else:
            self._log.failure("a control request failed", failure)
        self._refuse(code, str(error))
        self._leg.passage_denied()

    def _go(self, passage: Passage, name: str) -> None:
        """*passage* is granted, and its session is called *name*."""
        factory = self._factory
        now = factory.now()
        self._resume()
        try:
            factory.sessions.check(self._peer)
        except CannotOpenError as error:
            self._log.warn("{peer}: refused, {reason}", peer=self._peer, reason=str(error))
            factory.counts["over limits"] += 1
            if self._request is not None:
                self._refuse(wire.RejectCode.REFUSED, str(error))
            self._leg.passage_denied()
            return
        self._passage = passage
        self._mover = mover = factory.make_mover(self)
        self._session = Session(
            name, passage, self._peer, now, lambda: mover.octets, self._end_session
        )
        factory.sessions.open(self._session, now)
        factory.ticketed(self._peer)
        self._unticketed = False
        self._leg.passage_granted()

    def connect(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        assert self._mover is not None and self._passage is not None
        self._mover.connect(self._passage)

    def relay(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        passage, session, mover = self._passage, self._session, self._mover
        assert passage is not None and session is not None and mover is not None
        first, self._excess = self._excess, b""
        if passage.server_ticket:
            first = wire.ticket_octets(passage.server_ticket) + first
        to_client, self._to_client = self._to_client, b""
        mover.begin(first, to_client, session.meters)

    def reply(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        self._excess = b""
        self._resume()
        self.transport.write(self._words)
        if self._ended or not ends_alone(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def reply_unreached(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        passage, session = self._passage, self._session
        assert passage is not None and session is not None
        if self._mover is not None:
            self._mover.abort()
            self._mover = None
        self._words = b""
        if self._request is not None:
            self._refuse(wire.RejectCode.CANNOT_CONNECT, "the server cannot be reached")
        self._factory.counts["unreached"] += 1
        self.reply()

    def hang_up(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        self.transport.loseConnection()

    def drop(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        if self._mover is not None:
            self._mover.abort()
        self.transport.abortConnection()

    def release(self) -> None:
        """See :class:`gridnet.firewall.machine.Hands`."""
        if self._unticketed:
            self._factory.ticketed(self._peer)
        if self._session is not None:
            self._factory.session_over(self._session)
        # All of these hold us too.  Without circles a connection is gone with its last call, and
        # the collector, which would look at all others each time, has nothing to do.
        self._leg = OVER
        self._session = self._mover = self._passage = self._request = None
        self._factory.leg_over(self)

    # -- what the mover tells (:class:`gridnet.firewall.movers.Front`)

    def server_reached(self) -> None:
        """See :class:`gridnet.firewall.movers.Front`."""
        self._leg.server_reached()

    def server_failed(self, reason: str) -> None:
        """See :class:`gridnet.firewall.movers.Front`."""
        passage = self._passage
        assert passage is not None
        self._log.warn(
            "{service} at {host}:{port} not reached, {reason}",
            service=passage.service,
            host=passage.host,
            port=passage.port,
            reason=reason,
        )
        self._leg.server_failed()

    def relay_ended(self, reason: str) -> None:
        """See :class:`gridnet.firewall.movers.Front`."""
        self._factory.note_end(self._session, reason or "finished")
        self._leg.relay_ended()

    # -- what the factory calls

    def time_ran_out(self) -> None:
        """What was waited for did not come."""
        self._waiting = None
        self._leg.time_ran_out()

    def _end_session(self, reason: str) -> None:
        """An operator or a limit ends it."""
        self._factory.note_end(self._session, reason)
        self._leg.revoked()

    def revoke(self) -> None:
        """The service ends."""
        self._leg.revoked()


class FirewallFactory(Factory):
    """
    Makes the clients' protocols for all ports, and holds what they share.

    :ivar sessions: the relayed connections.
    :ivar counts: what happened -> how often.
    """

    noisy = False
    _log = Logger()

    def __init__(self, config: FirewallConfig, reactor: Any, office: TicketOffice) -> None:
        self.config = config
        self.office = office
        self.sessions = Sessions(config)
        self.rejection = wire.reject_text(config.help_url)
        self.counts: Counter[str] = Counter()
        self.octets_up = 0
        self.octets_down = 0
        self.now: Callable[[], float] = IReactorTime(reactor).seconds
        self.deadlines = Deadlines(
            {
                Wait.SILENCE: config.silence_seconds,
                Wait.PARTIAL: config.partial_ticket_seconds,
                Wait.RECORD: config.control_record_seconds,
                Wait.SERVER: config.connect_timeout_seconds,
                Wait.DRAIN: config.drain_seconds,
            }
        )
        self.legs: set[FrontLeg] = set()
        self._reactor = reactor
        self._trusted = AddressRanges.from_texts(config.control_networks)
        self._unticketed: Counter[str] = Counter()
        self._unticketed_total = 0
        self._named = 0
        self._gone: list[Deferred[None]] = []
        self.pump: Pump | None = None
        if config.splice and AVAILABLE:
            pool = PipePool(config.pipe_octets, config.max_pipes)
            self.pump = Pump(reactor, pool, config.bulk_octets, config.look_seconds)

    def buildProtocol(self, addr: IAddress | None) -> FrontLeg | None:
        """Called by Twisted; None: the connection is closed at once."""
        peer = address_of(addr)
        block = block_of(peer)
        if (
            self._unticketed_total >= self.config.max_unticketed
            or self._unticketed[block] >= self.config.max_unticketed_per_client
        ):
            self.counts["over limits"] += 1
            return None
        self._unticketed_total += 1
        self._unticketed[block] += 1
        self.counts["accepted"] += 1
        leg = FrontLeg(self, peer)
        self.legs.add(leg)
        return leg

    def is_trusted(self, peer: str) -> bool:
        """Whether *peer* may ask for tickets by control record."""
        return self._trusted.contains(peer)

    def make_mover(self, leg: FrontLeg) -> Mover:
        """What moves the octets of *leg*."""
        if self.pump is not None and can_splice(leg.transport):
            return SpliceMover(leg, self.config, self.pump)
        return CopyMover(leg, self.config, self._reactor)

    def next_name(self) -> str:
        """A name for a session that has no ticket."""
        self._named += 1
        return f"control-{self._named}"

    def ticketed(self, peer: str) -> None:
        """One connection of *peer* less without a ticket."""
        block = block_of(peer)
        self._unticketed_total -= 1
        self._unticketed[block] -= 1
        if self._unticketed[block] <= 0:
            del self._unticketed[block]

    def readdressed(self, before: str, after: str) -> None:
        """A connection without a ticket is not *before*'s but *after*'s."""
        self.ticketed(before)
        self._unticketed_total += 1
        self._unticketed[block_of(after)] += 1

    def note_end(self, session: Session | None, reason: str) -> None:
        """*session* ends, and why."""
        if session is None or not self.config.log_sessions:
            return
        up, down = session.octets()
        passage = session.passage
        self._log.info(
            "{session}: {peer} to {service} at {host}:{port}, {up} octets up, {down} down, "
            "{seconds:.1f} s, {reason}",
            session=session.name,
            peer=session.peer,
            service=passage.service,
            host=passage.host,
            port=passage.port,
            up=up,
            down=down,
            seconds=self.now() - session.since,
            reason=reason,
        )

    def session_over(self, session: Session) -> None:
        """Count *session* out."""
        up, down = session.octets()
        self.octets_up += up
        self.octets_down += down
        self.counts["relayed"] += 1
        self.sessions.close(session)

    def leg_over(self, leg: FrontLeg) -> None:
        """*leg* holds nothing any more."""
        self.legs.discard(leg)
        if not self.legs:
            gone, self._gone = self._gone, []
            for waiting in gone:
                waiting.callback(None)

    def sweep(self) -> None:
        """Look at deadlines; call it a few times a second."""
        for leg in self.deadlines.due(self.now()):
            leg.time_ran_out()

    def all_gone(self) -> Deferred[None]:
        """Fires when there is no connection any more."""
        if not self.legs:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._gone.append(waiting)
        return waiting

    def cut_all(self) -> None:
        """End every connection now."""
        for leg in list(self.legs):
            leg.revoke()

    def close(self) -> None:
        """Give back what all shared; there must be no connection any more."""
        if self.pump is not None:
            self.pump.close()
