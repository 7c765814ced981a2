"""Who is up and what they publish: SWIM with Lifeguard's extensions, without I/O or clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, log10
from random import Random
from typing import TypeAlias

from attrs import define, evolve, frozen

from gridnet.errors import LocalProtocolError
from gridnet.lbsmd.gossip.identity import TRUSTING, Identity, entry_statement, life_statement
from gridnet.lbsmd.gossip.messages import (
    Ack,
    Address,
    Belief,
    Digest,
    DigestLine,
    Entry,
    IndirectPing,
    Message,
    Nack,
    Ping,
    Standing,
)
from gridnet.lbsmd.gossip.records import HostRecords, OwnRecords
from gridnet.lbsmd.gossip.rumours import Rumours
from gridnet.lbsmd.gossip.suspicion import Evidence, Suspicion, shortest_suspicion


@frozen
class GossipTimes:
    """Times in seconds and bounds; the times are those of Serf's LAN profile."""

    probe_interval: float = 1.0  #: between two probes
    probe_timeout: float = 0.5  #: for the direct answer, before others are asked
    gossip_interval: float = 0.2  #: between two rounds of news, while there are any
    exchange_interval: float = 30.0  #: between two comparisons with another host
    forget_seconds: float = 86400.0  #: a dead host is kept in mind so long
    fanout: int = 3  #: hosts a round of news goes to
    indirect_probes: int = 3  #: hosts asked to probe one that does not answer
    suspicion_multiplier: float = 4.0  #: shortest suspicion, in probe intervals times log10(hosts)
    suspicion_stretch: float = 6.0  #: longest suspicion, in shortest ones
    retransmit_multiplier: int = 4  #: tellings of a rumour, times log10(hosts)
    max_health: int = 8  #: times our own time-outs are stretched at most
    packet_octets: int = 1200  #: room for messages in one packet
    max_hosts: int = 20000  #: hosts known at a time
    max_entries: int = 1000  #: entries of one host
    max_rumours: int = 10000  #: news waiting
    max_exchange_packets: int = 64  #: packets in answer to one digest
    max_probes: int = 1000  #: probes made for others at a time
    lifeguard: bool = True  #: False: plain SWIM, to compare with


@define
class Host:
    """
    One host as this one sees it.

    :ivar signature: its own, under its address in this incarnation.
    :ivar evidence: who accused it last, when and of what; kept after the verdict.
    """

    name: str
    address: Address
    incarnation: int
    standing: Standing
    since: float
    records: HostRecords
    key: bytes
    signature: bytes
    suspicion: Suspicion | None = None
    evidence: tuple[Evidence, ...] = ()

    @property
    def is_up(self) -> bool:
        """Worth sending work to: alive, or only suspected."""
        return self.standing <= Standing.SUSPECT


@define
class _Probe:
    """A probe under way; *asked_by* is set when it is made for another host."""

    target: str
    asked_by: tuple[Address, int] | None = None
    nacks_wanted: int = 0
    nacks: int = 0


@frozen
class Outgoing:
    """One packet to send."""

    address: Address
    messages: tuple[Message, ...]


@frozen
class StandingChanged:
    """*host* is now held for *standing*."""

    host: str
    standing: Standing


@frozen
class EntryChanged:
    """An entry of another host is new, changed or withdrawn."""

    entry: Entry


@frozen
class Impersonation:
    """Somebody speaks as *host* with another key than the one it is known by."""

    host: str


Event: TypeAlias = StandingChanged | EntryChanged | Impersonation


class Membership:
    """
    The gossip of one host.  Call :meth:`tick` at :meth:`next_time`; send :meth:`take_outgoing`.

    All times are seconds on one clock of the caller that never goes back.

    :param incarnation: the first of this life; best one above those of all earlier lives.
    :param version: that our entries are to be above; likewise.
    :param known_keys: host -> the key it is to be known by; others are pinned on first sight.
    :param only_known: whether hosts without a key among *known_keys* are refused.
    :ivar health: 0: well; each further point stretches our own probes once more.
    :ivar hosts: every host known, this one included.
    """

    def __init__(
        self,
        me: str,
        address: Address,
        times: GossipTimes,
        random: Random,
        now: float,
        identity: Identity = TRUSTING,
        incarnation: int = 1,
        version: int = 0,
        known_keys: Mapping[str, bytes] | None = None,
        only_known: bool = False,
    ) -> None:
        self.me = me
        self.health = 0
        self.identity = identity
        self._known_keys = known_keys or {}
        self._only_known = only_known
        self.own = OwnRecords(me, times.max_entries, identity, version)
        mine = Host(me, address, incarnation, Standing.ALIVE, now, self.own, identity.key, b"")
        self.hosts = {me: mine}
        self._sign_life(mine)
        self._times = times
        self._random = random
        self._rumours = Rumours(times.max_rumours)
        self._outgoing: list[Outgoing] = []
        self._events: list[Event] = []
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._timer_number = 0
        self._probes: dict[int, _Probe] = {}
        self._probe_number = random.getrandbits(31)
        self._order: list[str] = []
        self._passed = 0
        self._exchanged_until = ""
        self._is_leaving = False
        self._up = 1
        self._at(now + random.random() * times.probe_interval, self._probe_next)
        self._at(now + random.random() * times.gossip_interval, self._spread)
        self._at(now + random.random() * times.exchange_interval, self._exchange)

    # What the caller does.

    def join(self, seeds: Iterable[Address]) -> None:
        """Compare everything with the *seeds*; call again until another host is known."""
        for address in seeds:
            self._send(address, self._belief_of(self.hosts[self.me]), self._digest("", False))

    def acquaint(self, now: float, beliefs: Iterable[Belief]) -> None:
        """Know these hosts from the start, as after a restart from kept state; tells nobody."""
        for belief in beliefs:
            self._consider(now, belief, "known from the start")
        self._rumours.clear()
        self._events.clear()

    def publish(self, key: str, value: bytes | None, is_load: bool = False) -> bool:
        """
        Announce *value* under *key*, or withdraw it with None; False: nothing to tell.

        :raises LocalProtocolError: it does not fit into one packet.
        """
        if Entry(self.me, key, 0, value).octets() > self._times.packet_octets:
            raise LocalProtocolError(f"{key}: does not fit into one packet")
        entry = self.own.publish(key, value, is_load)
        if entry is not None:
            self._rumours.add(entry)
        return entry is not None

    def leave(self) -> None:
        """Tell a few hosts at once, and all by gossip, that this one goes on purpose."""
        self._is_leaving = True
        mine = self.hosts[self.me]
        mine.standing = Standing.LEFT
        self._sign_life(mine)
        self._rumours.add(self._belief_of(mine))
        for host in self._some(self._times.fanout * 2):
            self._send(host.address, self._belief_of(mine))

    def my_belief(self) -> Belief:
        """What this host says of itself."""
        return self._belief_of(self.hosts[self.me])

    def next_time(self) -> float:
        """When :meth:`tick` is due."""
        return self._timers[0][0]

    def tick(self, now: float) -> None:
        """Do what is due."""
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2](now)

    def take_outgoing(self) -> Sequence[Outgoing]:
        """Packets to send, once each."""
        taken, self._outgoing = self._outgoing, []
        return taken

    def take_events(self) -> Sequence[Event]:
        """What changed, in order, once each."""
        taken, self._events = self._events, []
        return taken

    # What peers say.

    def receive(
        self, now: float, source: Address, sender: str, messages: Iterable[Message]
    ) -> None:
        """Take the *messages* of one authentic packet of *sender*, which came from *source*."""
        for message in messages:
            match message:
                case Ping():
                    self._answer(source, sender, message)
                case IndirectPing():
                    self._probe_for(now, source, message)
                case Ack():
                    self._ack_received(message)
                case Nack():
                    self._nack_received(message)
                case Belief():
                    self._consider(now, message, "told by " + sender)
                case Entry():
                    self._take_entry(message)
                case Digest():
                    self._compare(source, message)

    def _answer(self, source: Address, sender: str, ping: Ping) -> None:
        if ping.target != self.me or self._is_leaving:
            return
        told: list[Message] = [Ack(ping.number)]
        host = self.hosts.get(sender)
        if host is not None and host.standing is not Standing.ALIVE:
            told.append(self._belief_of(host))  # so it can refute at once
        self._send(source, *told)

    def _probe_for(self, now: float, source: Address, asked: IndirectPing) -> None:
        if len(self._probes) >= self._times.max_probes or self._is_leaving:
            return
        number = self._new_probe(_Probe(asked.target, (source, asked.number)))
        self._send(asked.address, Ping(number, asked.target))
        wait = self._times.probe_timeout

        def nack(later: float) -> None:
            if number in self._probes and self._times.lifeguard:
                self._send(source, Nack(asked.number))

        def end(later: float) -> None:
            self._probes.pop(number, None)

        self._at(now + wait * 0.8, nack)
        self._at(now + wait * 2, end)

    def _ack_received(self, ack: Ack) -> None:
        probe = self._probes.pop(ack.number, None)
        if probe is None:
            return
        if probe.asked_by is not None:
            address, number = probe.asked_by
            self._send(address, Ack(number))
        else:
            self._feel(-1)

    def _nack_received(self, nack: Nack) -> None:
        probe = self._probes.get(nack.number)
        if probe is not None:
            probe.nacks += 1

    def _take_entry(self, entry: Entry) -> None:
        if entry.owner == self.me:
            # Only this host changes its own entries: contradict what differs.
            correction = self.own.correct(entry)
            if correction is not None:
                self._rumours.add(correction)
            return
        host = self.hosts.get(entry.owner)
        if host is None or not host.records.is_news(entry):
            return
        if not self.identity.has_signed(host.key, entry_statement(entry), entry.signature):
            return
        if host.records.take(entry):
            self._rumours.add(entry)
            self._events.append(EntryChanged(entry))

    def _consider(self, now: float, said: Belief, reason: str) -> None:
        if said.host == self.me:
            self._refute(said)
            return
        host = self.hosts.get(said.host)
        if host is None:
            if said.standing is not Standing.ALIVE or len(self.hosts) >= self._times.max_hosts:
                return
            if not self._is_genuine(said, None):
                return
            records = HostRecords(said.host, self._times.max_entries)
            host = Host(
                said.host,
                said.address,
                said.incarnation,
                said.standing,
                now,
                records,
                said.key,
                said.signature,
            )
            self.hosts[said.host] = host
            self._order.insert(self._random.randint(0, len(self._order)), said.host)
            self._up += 1
            self._rumours.add(said)
            self._events.append(StandingChanged(said.host, Standing.ALIVE))
            return
        if said.incarnation < host.incarnation:
            return
        if said.incarnation == host.incarnation and said.standing <= host.standing:
            if said.standing is Standing.SUSPECT and host.suspicion is not None:
                self._confirm(now, host, said, reason)
            return
        if not host.is_up and said.standing is not Standing.ALIVE:
            return
        if said.incarnation > host.incarnation or said.standing is Standing.LEFT:
            if not self._is_genuine(said, host):
                return
            host.address, host.signature = said.address, said.signature
        was_up = host.is_up
        host.incarnation, host.standing, host.since = said.incarnation, said.standing, now
        self._up += host.is_up - was_up
        host.suspicion = None
        if said.standing is Standing.SUSPECT:
            self._suspect(now, host, said, reason)
        elif said.standing is not Standing.ALIVE:
            accusation = Evidence(said.accuser, now, "holds it for dead: " + reason)
            host.evidence = (*host.evidence, accusation)[-8:]
            self._at(now + self._times.forget_seconds, lambda at: self._forget(at, said.host))
        self._rumours.add(said)
        self._events.append(StandingChanged(said.host, said.standing))

    def _is_genuine(self, said: Belief, host: Host | None) -> bool:
        """Whether the host that *said* is about has signed it, with the key it is known by."""
        known = self._known_keys.get(said.host)
        if known is None:
            if self._only_known and said.host != self.me:
                return False
            known = said.key if host is None else host.key
        if said.key != known:
            self._events.append(Impersonation(said.host))
            return False
        return self.identity.has_signed(known, life_statement(said), said.signature)

    def _sign_life(self, mine: Host) -> None:
        mine.signature = self.identity.sign(life_statement(self._belief_of(mine)))

    def _refute(self, said: Belief) -> None:
        mine = self.hosts[self.me]
        if self._is_leaving or said.incarnation < mine.incarnation:
            return
        if said.incarnation > mine.incarnation and not self._is_genuine(said, mine):
            return
        if said.standing is Standing.ALIVE:
            if said.incarnation == mine.incarnation and said.address == mine.address:
                return
        else:
            self._feel(1)
        # Also after a restart: an older life of ours is remembered with a higher number.
        mine.incarnation = said.incarnation + 1
        self._sign_life(mine)
        self._rumours.add(self._belief_of(mine))

    # Suspicion.

    def _suspect(self, now: float, host: Host, said: Belief, reason: str) -> None:
        times = self._times
        shortest = shortest_suspicion(times.suspicion_multiplier, self._up, times.probe_interval)
        wanted = max(0, int(times.suspicion_multiplier) - 2) if times.lifeguard else 0
        if self._up - 2 < wanted:
            wanted = 0
        suspicion = Suspicion(now, shortest, shortest * times.suspicion_stretch, wanted)
        suspicion.accuse(said.accuser, now, "suspects it: " + reason)
        host.suspicion = suspicion
        host.evidence = tuple(suspicion.evidence)
        self._at(suspicion.ends_at(), lambda at: self._judge(at, host, suspicion))

    def _confirm(self, now: float, host: Host, said: Belief, reason: str) -> None:
        suspicion = host.suspicion
        if suspicion is not None and suspicion.accuse(said.accuser, now, "suspects it: " + reason):
            host.evidence = tuple(suspicion.evidence)
            self._rumours.add(said)
            self._at(suspicion.ends_at(), lambda at: self._judge(at, host, suspicion))

    def _judge(self, now: float, host: Host, suspicion: Suspicion) -> None:
        if host.suspicion is not suspicion:
            return
        verdict = evolve(self._belief_of(host), standing=Standing.DEAD, accuser=self.me)
        self._consider(now, verdict, f"not refuted in {now - suspicion.since:.1f} s")

    def _forget(self, now: float, name: str) -> None:
        host = self.hosts.get(name)
        if host is None or host.is_up or now - host.since < self._times.forget_seconds:
            return
        del self.hosts[name]
        self._order.remove(name)

    # Probing.

    def _probe_next(self, now: float) -> None:
        stretch = self._stretch()
        self._at(now + self._times.probe_interval * stretch, self._probe_next)
        host = None if self._is_leaving else self._next_target()
        if host is None:
            return
        probe = _Probe(host.name)
        number = self._new_probe(probe)
        told: list[Message] = [Ping(number, host.name)]
        if host.standing is Standing.SUSPECT and self._times.lifeguard:
            told.append(self._belief_of(host))
        self._send(host.address, *told)
        wait = self._times.probe_timeout * stretch

        def ask_others(at: float) -> None:
            if number in self._probes:
                others = self._some(self._times.indirect_probes, host.name)
                probe.nacks_wanted = len(others)
                for other in others:
                    self._send(other.address, IndirectPing(number, host.name, host.address))

        def end(at: float) -> None:
            if self._probes.pop(number, None) is not None:
                self._probe_failed(at, host, probe)

        self._at(now + wait, ask_others)
        self._at(now + self._times.probe_interval * stretch * 0.999, end)

    def _probe_failed(self, now: float, host: Host, probe: _Probe) -> None:
        self._feel(probe.nacks_wanted - probe.nacks if probe.nacks_wanted else 1)
        if not host.is_up or self.hosts.get(host.name) is not host:
            return
        said = evolve(self._belief_of(host), standing=Standing.SUSPECT, accuser=self.me)
        reason = f"no answer, neither direct nor by {probe.nacks_wanted} others"
        self._consider(now, said, reason)

    def _next_target(self) -> Host | None:
        """Every host once in a random order, then anew: bounds the time to the first probe."""
        for _ in range(len(self._order)):
            name = self._order.pop()
            self._order.insert(0, name)
            self._passed += 1
            if self._passed >= len(self._order):
                self._passed = 0
                self._random.shuffle(self._order)
            host = self.hosts[name]
            if host.is_up:
                return host
        return None

    def _new_probe(self, probe: _Probe) -> int:
        self._probe_number = (self._probe_number + 1) & 0xFFFFFFFF
        self._probes[self._probe_number] = probe
        return self._probe_number

    def _stretch(self) -> int:
        return 1 + self.health if self._times.lifeguard else 1

    def _feel(self, change: int) -> None:
        self.health = min(self._times.max_health, max(0, self.health + change))

    # Spreading and comparing.

    def _spread(self, now: float) -> None:
        self._at(now + self._times.gossip_interval, self._spread)
        if len(self._rumours):
            for host in self._some(self._times.fanout):
                self._send(host.address)

    def _exchange(self, now: float) -> None:
        self._at(now + self._times.exchange_interval, self._exchange)
        if self._is_leaving or not self._order:
            return
        # Dead ones too: so the halves of a partition find each other again.
        host = self.hosts[self._random.choice(self._order)]
        digest = self._digest(self._exchanged_until, False)
        self._exchanged_until = digest.until
        self._send(host.address, self._belief_of(self.hosts[self.me]), digest)

    def _digest(self, after: str, is_answer: bool) -> Digest:
        lines: list[DigestLine] = []
        room = self._times.packet_octets * 2 // 3
        for name in sorted(name for name in self.hosts if name > after):
            line = self._line(self.hosts[name])
            room -= line.octets()
            if room < 0:
                return Digest(after, lines[-1].host, is_answer, tuple(lines))
            lines.append(line)
        return Digest(after, "", is_answer, tuple(lines))

    def _line(self, host: Host) -> DigestLine:
        prints = host.records.fingerprint
        return DigestLine(host.name, host.incarnation, host.standing, prints)

    def _compare(self, source: Address, theirs: Digest) -> None:
        if self._is_leaving:
            return
        lines = {line.host: line for line in theirs.lines}
        told: list[Message] = []
        for name in sorted(self.hosts):
            if name <= theirs.after or (theirs.until and name > theirs.until):
                continue
            host, line = self.hosts[name], lines.get(name)
            better = line is None or (host.incarnation, host.standing) > (
                line.incarnation,
                line.standing,
            )
            if better and (line is not None or host.is_up):
                told.append(self._belief_of(host))
            if host.is_up and (line is None or line.fingerprint != host.records.fingerprint):
                told.extend(host.records)
        if not theirs.is_answer:
            told.insert(0, self._digest(theirs.after, True))
        self._send_all(source, told)

    def _send_all(self, address: Address, told: Sequence[Message]) -> None:
        packet: list[Message] = []
        room, packets = self._times.packet_octets, 0
        for message in told:
            size = message.octets()
            if size > room and packet:
                self._outgoing.append(Outgoing(address, tuple(packet)))
                packet, room, packets = [], self._times.packet_octets, packets + 1
                if packets >= self._times.max_exchange_packets:
                    return
            packet.append(message)
            room -= size
        if packet:
            self._outgoing.append(Outgoing(address, tuple(packet)))

    def _belief_of(self, host: Host) -> Belief:
        accuser = host.evidence[-1].accuser if host.evidence else self.me
        return Belief(
            host.name,
            host.address,
            host.incarnation,
            host.standing,
            accuser,
            host.key,
            host.signature,
        )

    def _some(self, number: int, but: str = "") -> list[Host]:
        """Up to *number* hosts that are up, this one and *but* left out."""
        chosen: dict[str, Host] = {}
        for _ in range(number * 4 if self._order else 0):
            host = self.hosts[self._random.choice(self._order)]
            if host.is_up and host.name != but:
                chosen[host.name] = host
                if len(chosen) == number:
                    break
        return list(chosen.values())

    def _send(self, address: Address, *messages: Message) -> None:
        room = self._times.packet_octets - sum(message.octets() for message in messages)
        times = self._times.retransmit_multiplier * max(1, ceil(log10(self._up + 1)))
        news = self._rumours.take(room, times)
        if messages or news:
            self._outgoing.append(Outgoing(address, (*messages, *news)))

    def _at(self, time: float, action: Callable[[float], None]) -> None:
        self._timer_number += 1
        heapq.heappush(self._timers, (time, self._timer_number, action))
