"""Drives the gossip of this host: socket, time, table, orders."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random, SystemRandom
from typing import Any

from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import GridnetError, LocalProtocolError, RemoteProtocolError
from gridnet.interfaces import IConfigurationHolder
from gridnet.lbsmd.feedback import FeedbackError
from gridnet.lbsmd.gossip.config import GossipConfig
from gridnet.lbsmd.gossip.follower import Follower
from gridnet.lbsmd.gossip.identity import SigningIdentity
from gridnet.lbsmd.gossip.joining import Joining, KeptHosts
from gridnet.lbsmd.gossip.keyring import KeyRing, Secrets
from gridnet.lbsmd.gossip.membership import Event, Impersonation, Membership, StandingChanged
from gridnet.lbsmd.gossip.messages import Address, Belief, Message, Order, Receipt, Standing
from gridnet.lbsmd.gossip.orders import OrderBook
from gridnet.lbsmd.gossip.protocol import GossipSocket, listen, listen_to_group
from gridnet.lbsmd.gossip.publisher import Publisher
from gridnet.lbsmd.gossip.records import VERSION_BITS
from gridnet.lbsmd.gossip.report import ServicesFingerprint, facts, why_down
from gridnet.lbsmd.gossip.wire import Seal
from gridnet.lbsmd.orders import Order as Request
from gridnet.lbsmd.orders import RefusedError, decode_order, encode_order
from gridnet.lbsmd.penalties import Penalties
from gridnet.lbsmd.reload import RunInThread
from gridnet.site import Site
from gridnet.table.address import canonical_address
from gridnet.table.model import Change, Host

#: In the state directory: whom this host knew before a restart.
HOSTS_FILE = "gossip.hosts"
#: Seconds between saying that we leave and closing the socket; it is said twice.
_LEAVE_SECONDS = 0.1
#: Between two lines about what was refused, and how many values one of them names.
_REFUSALS_SECONDS, _FAULTS = 10.0, 10
#: Orders sent before this daemon began, by this much, may be replays of its earlier life.
_ORDER_SKEW_SECONDS = 30.0


class Gossip(Service):
    """
    The gossip of this host.

    :param site_bits: zones of the site; what is visible in none of them is left out.
    :param penalties: carries out what other hosts order; None: such orders are refused.
    :param clock_seconds: seconds on a clock that nobody sets.
    :ivar random: all chance there is.
    :ivar membership: who is up and what they publish, while running.
    :ivar listening: fires with (address, port) once the socket is bound.
    """

    _log = Logger()

    def __init__(
        self,
        config: GossipConfig,
        site: Site,
        site_bits: int,
        secrets: Secrets,
        penalties: Penalties | None,
        run_in_thread: RunInThread,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.listening: Deferred[Address] = Deferred()
        self.counts = {"received": 0, "refused": 0, "sent": 0}
        self._services = ServicesFingerprint()
        self._site = site
        self._clock = IReactorTime(site.reactor)
        self.clock_seconds = clock_seconds
        self._penalties = penalties
        self._me = canonical_address(site.section.address) or site.section.address
        self._identity = SigningIdentity(secrets.own)
        self._seal = Seal(self._me, secrets.keys, os.urandom(8), config.max_skew_seconds)
        self._run_in_thread = run_in_thread
        self.random: Random = SystemRandom()
        self._socket = GossipSocket(self._received, self._clock, config.max_waiting)
        self._group_socket = GossipSocket(self._found, self._clock, config.max_waiting)
        self._port: Any = None
        self._group_port: Any = None
        self._timer: Any = None
        self._planned = 0.0
        self._slept = 0.0
        self._wall_ahead = 0.0
        self._started_at = 0.0
        self._refresh_at = 0.0
        self._tell_refused_at = self._tell_faults_at = 0.0
        self._is_full = False
        self._impersonated: dict[str, int] = {}
        self._asking: dict[int, Deferred[None]] = {}
        self._watching = False
        self._unsubscribe: Callable[[], None] | None = None
        self._kept = KeptHosts(
            site.state_dir / HOSTS_FILE if config.keep_hosts else None, run_in_thread
        )
        self.follower = Follower(site.table, self._me, site_bits)
        self.membership: Membership = self._make_membership((self._me, 0), 0.0)
        self.orders: OrderBook = self._make_orders()
        self.publisher: Publisher = self._make_publisher()
        self.joining = self._make_joining()
        site.provide(
            IConfigurationHolder, KeyRing(config, site, run_in_thread, self._seal), "gossip"
        )

    # Life.

    def privilegedStartService(self) -> None:
        """Bind the sockets."""
        super().privilegedStartService()
        config = self.config
        try:
            self._port = listen(
                self._site.reactor,
                self._socket,
                config.interface,
                config.port,
                config.buffer_octets,
                config.octets_a_turn,
            )
            group = config.group()
            if group is not None:
                self._group_port = listen_to_group(
                    self._site.reactor,
                    self._group_socket,
                    group,
                    config.interface,
                    config.octets_a_turn,
                )
        except Exception:
            self.listening.errback(Failure())
            raise
        bound = self._port.getHost()
        self.listening.callback((bound.host, bound.port))

    def startService(self) -> None:
        """Join."""
        if self._port is None:
            self.privilegedStartService()
        super().startService()
        now = self.clock_seconds()
        self._planned, self._wall_ahead = now, self._clock.seconds() - now
        self._started_at = self._clock.seconds()
        address = self.config.advertised(self._me, self._port.getHost().port)
        self.membership = self._make_membership(address, self._now())
        self.orders, self.publisher = self._make_orders(), self._make_publisher()
        self.joining = self._make_joining()
        table = self._site.table
        if not self._watching:
            table.watch_claims(self._claimed)
            self._watching = True
        self._unsubscribe = table.subscribe(self._changed)
        self._log.info(
            "gossip as {host} at {address} port {port}, identity {identity}",
            host=self._me,
            address=address[0],
            port=address[1],
            identity=self._identity.key.hex(),
        )
        self._refresh_at = 0.0
        self._turn()

    def stopService(self) -> Deferred[None]:
        """Tell the others that this host leaves, then close."""
        super().stopService()
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.membership.leave()
        self._send_all()
        for asked in list(self._asking.values()):
            asked.errback(RefusedError("this daemon is about to end"))
        self._asking.clear()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._kept.note(self.membership)
        await self._kept.write()
        await deferLater(self._clock, _LEAVE_SECONDS)
        # Said again: the first time may have been lost.
        self.membership.tick(self._now() + self.config.gossip_interval_seconds)
        self._send_all()
        for port in (self._port, self._group_port):
            if port is not None:
                await (port.stopListening() or succeed(None))
        self._port = self._group_port = None

    def _make_membership(self, address: Address, now: float) -> Membership:
        # Above those of all earlier lives, so that nothing said of them holds for this one.
        life = max(1, int(self._clock.seconds()))
        return Membership(
            self._me,
            address,
            self.config.times(),
            self.random,
            now,
            self._identity,
            life,
            life << VERSION_BITS,
            {**self._kept.keys, **self.config.known_keys()},
            self.config.only_identities,
        )

    def _make_orders(self) -> OrderBook:
        return OrderBook(self._me, self.config.order_bounds(), self.random, self._address_of)

    def _make_publisher(self) -> Publisher:
        config = self.config
        return Publisher(
            self._site.table,
            self._me,
            self.membership.publish,
            config.load_share,
            config.load_seconds,
        )

    def _make_joining(self) -> Joining:
        return Joining(
            self.config,
            self.membership,
            self._kept,
            self._run_in_thread,
            self._joined,
            self.random,
        )

    def _address_of(self, host: str) -> Address | None:
        member = self.membership.hosts.get(host)
        return member.address if member is not None and member.is_up else None

    # Time.

    def _now(self) -> float:
        """Seconds on the clock of the gossip, which does not count what this process slept."""
        return self.clock_seconds() - self._slept

    def _notice_sleep(self) -> None:
        """
        After a suspension or a stop others may hold us dead, and what waits for us is old.

        That time is taken out of our clock, so that nobody is suspected for not having answered
        while we did not listen.
        """
        now = self.clock_seconds()
        late = now - self._planned
        ahead = self._clock.seconds() - now
        # A suspension that stops both clocks, or a wall clock that was set; joining again is cheap.
        jumped = abs(ahead - self._wall_ahead)
        self._wall_ahead = ahead
        if late > self.config.sleep_seconds:
            self._slept += late
        elif jumped <= self.config.sleep_seconds:
            return
        self._log.info("back after {seconds:.1f} s of sleep", seconds=max(late, jumped))
        self.joining.rejoin()

    def _turn(self) -> None:
        """Do what is due, tell what is new, and plan the next turn."""
        self._timer = None
        self._notice_sleep()
        now = self._now()
        self._table_turn(now)
        self.membership.tick(now)
        self.orders.tick(now)
        self.joining.tick(now)
        self._kept.tick(now, self.membership)
        self._settle()
        self._apply(self.membership.take_events())
        self._send_all()
        self._plan()

    def _table_turn(self, now: float) -> None:
        self._site.table.expire(self._clock.seconds())
        if now < self._refresh_at:
            return
        self._refresh_at = now + self.config.load_seconds
        self.publisher.refresh(now)
        for entry, reason in self.publisher.refused:
            self._log.error(
                "{service} cannot be told to other hosts: {reason}",
                service=entry.service,
                reason=reason,
            )
        self.publisher.refused.clear()

    def _plan(self) -> None:
        if not self.running:
            return
        due = min(
            self.membership.next_time(),
            self.orders.next_time(),
            self.joining.next_time(),
            self._refresh_at,
        )
        delay = max(0.0, due - self._now())
        self._planned = self.clock_seconds() + delay
        if self._timer is None:
            self._timer = self._clock.callLater(delay, self._turn)
        else:
            self._timer.reset(delay)

    def _soon(self) -> None:
        """Have a turn as soon as everything has been read."""
        if self.running and self._planned > self.clock_seconds():
            self._planned = self.clock_seconds()
            if self._timer is None:
                self._timer = self._clock.callLater(0, self._turn)
            else:
                self._timer.reset(0)

    # The table.

    def _claimed(self, owner: str) -> None:
        if owner == self._me and self._refresh_at:
            self._refresh_at = 0.0
            self._soon()

    def _changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            thing = change.after or change.before
            if isinstance(thing, Host) and thing.address == self._me:
                self._refresh_at = 0.0
                self._soon()
                return

    def _apply(self, events: Sequence[Event]) -> None:
        if not events:
            return
        for event in events:
            if isinstance(event, StandingChanged):
                self._log_standing(event)
            elif isinstance(event, Impersonation):
                self._log_impersonation(event.host)
        with self._log.failuresHandled("merging what other hosts say"):
            self.follower.apply(events, self.membership.hosts, self._clock.seconds())
        if self.follower.faults and self.clock_seconds() >= self._tell_faults_at:
            self._tell_faults_at = self.clock_seconds() + _REFUSALS_SECONDS
            for host, reason in self.follower.faults[:_FAULTS]:
                self._log.warn("{host}: value refused, {reason}", host=host, reason=reason)
        self.follower.faults.clear()
        left_out = self.follower.left_out
        if left_out and not self._is_full:
            self._log.error(
                "the table is full: {count} entries of other hosts are left out", count=left_out
            )
        self._is_full = left_out > 0

    def _log_standing(self, event: StandingChanged) -> None:
        host = self.membership.hosts.get(event.host)
        accusers = sorted({each.accuser for each in host.evidence}) if host else []
        match event.standing:
            case Standing.ALIVE:
                self._log.info("{host} is up", host=event.host)
            case Standing.SUSPECT:
                self._log.info(
                    "{host} is suspected by {accusers}", host=event.host, accusers=accusers
                )
            case Standing.DEAD:
                self._log.warn("{host} is down, say {accusers}", host=event.host, accusers=accusers)
            case Standing.LEFT:
                self._log.info("{host} has left", host=event.host)

    def _log_impersonation(self, host: str) -> None:
        count = self._impersonated.get(host, 0) + 1
        if len(self._impersonated) < 1000 or host in self._impersonated:
            self._impersonated[host] = count
        # Powers of two: it may come with every packet.
        if count & (count - 1) == 0:
            self._log.warn(
                "{host} is spoken for with another key than its own ({count} times); if it has "
                "lost its identity, list the new one under lbsmd.gossip.identities",
                host=host,
                count=count,
            )

    # Packets.

    def _open(self, datagram: bytes, source: Address) -> Any:
        self.counts["received"] += 1
        try:
            packet = self._seal.open(datagram, self._clock.seconds())
        except RemoteProtocolError as error:
            self.counts["refused"] += 1
            self._log_refused(source, str(error))
            return None
        return None if packet.sender == self._me else packet

    def _log_refused(self, source: Address, reason: str) -> None:
        # Anybody can send anything: only now and then does it cost a line.
        now = self.clock_seconds()
        if now >= self._tell_refused_at:
            self._tell_refused_at = now + _REFUSALS_SECONDS
            self._log.warn(
                "{peer}: datagram refused, {reason} ({count} refused since the start)",
                peer=source[0],
                reason=reason,
                count=self.counts["refused"],
            )

    def _received(self, datagram: bytes, source: Address) -> None:
        packet = self._open(datagram, source)
        if packet is None or not self.running:
            return
        now = self._now()
        orders = [each for each in packet.messages if isinstance(each, Order | Receipt)]
        if orders:
            is_old = packet.sent_at < self._started_at - _ORDER_SKEW_SECONDS
            for message in orders:
                if not (is_old and isinstance(message, Order)):
                    self.orders.receive(now, source, packet.sender, message)
        self.membership.receive(now, source, packet.sender, packet.messages)
        self._soon()

    def _found(self, datagram: bytes, source: Address) -> None:
        """Somebody asks the group who is there: some of those who are tell it."""
        packet = self._open(datagram, source)
        if packet is None or not self.running:
            return
        up = sum(host.is_up for host in self.membership.hosts.values())
        if self.random.random() > 3 / up:
            return
        for message in packet.messages:
            if isinstance(message, Belief) and message.host == packet.sender:
                self.membership.join([message.address])
                self._soon()
                return

    def _joined(self, addresses: Sequence[Address]) -> None:
        """There are addresses to join by."""
        if not self.running:
            return
        self.membership.join(addresses)
        group = self.config.group()
        if group is not None and not self.joining.knows_others():
            mine = [self.membership.my_belief()]
            self._group_socket.send(self._sealed(mine), group)
        self._soon()

    def _sealed(self, messages: Sequence[Message]) -> bytes:
        self.counts["sent"] += 1
        return self._seal.seal(messages, self._clock.seconds())

    def _send_all(self) -> None:
        for address, message in self.orders.take_outgoing():
            self._socket.send(self._sealed([message]), address)
        for outgoing in self.membership.take_outgoing():
            self._socket.send(self._sealed(outgoing.messages), outgoing.address)

    # Orders.

    def send_feedback(self, host_address: str, order: Request) -> Deferred[None]:
        """See :class:`gridnet.lbsmd.orders.FeedbackCarrier`."""
        try:
            number = self.orders.give(self._now(), host_address, encode_order(order))
        except LocalProtocolError as error:
            raise RefusedError(str(error)) from None
        asked: Deferred[None] = Deferred()
        self._asking[number] = asked
        self._soon()
        return asked

    def _settle(self) -> None:
        for settled in self.orders.take_settled():
            asked = self._asking.pop(settled.number, None)
            if asked is None:
                continue
            if settled.refusal == "":
                asked.callback(None)
            else:
                seconds = f"no answer within {self.config.order_seconds:g} s"
                asked.errback(RefusedError(settled.refusal or seconds))
        for arrived in self.orders.take_arrived():

            def done(_: object, arrived: Any = arrived) -> None:
                self.orders.answer(arrived, "")
                self._soon()

            def refused(failure: Failure, arrived: Any = arrived) -> None:
                if failure.check(GridnetError) is None:
                    self._log.failure(
                        "carrying out an order of {host}", failure, host=arrived.sender
                    )
                reason = failure.getErrorMessage() or "refused"
                self.orders.answer(arrived, reason if failure.check(GridnetError) else "it failed")
                self._soon()

            self._carry_out(arrived.sender, arrived.text).addCallbacks(done, refused)

    def _carry_out(self, sender: str, text: bytes) -> Deferred[Any]:
        try:
            if self._penalties is None:
                raise RefusedError("this daemon takes no orders")
            order = decode_order(text)
            order = evolve(order, asker=evolve(order.asker, host=sender))
            return self._penalties.carry_out(order)
        except FeedbackError:
            failed: Deferred[Any] = Deferred()
            failed.errback(Failure())
            return failed

    # Reports.

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        dropped = self._socket.dropped
        return facts(self.membership, self.follower, {**self.counts, "dropped": dropped})

    def answerers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        """Questions of local tools, and what answers them."""
        return {"why_down": self.why_down, "gossip": self.figures}

    def figures(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """``gossip``: figures; those that take a look at every entry only if it asks for them."""
        if not question.get("services"):
            return self.facts()
        return {**self.facts(), "services": f"{self._services.of(self.membership):016x}"}

    def why_down(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """``why_down``: what is held of a host, by whom and why."""
        return why_down(self.membership, question, self._now(), self._clock.seconds())
