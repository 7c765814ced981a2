"""Who is up and what they publish: SWIM with Lifeguard's extensions, without I/O or clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from math import ceil, inf, log10
from random import Random

from attrs import define, evolve

from gridnet.errors import LocalProtocolError
from gridnet.lbsmd.gossip.events import EntryChanged, Event, Impersonation, StandingChanged
from gridnet.lbsmd.gossip.exchange import Exchange
from gridnet.lbsmd.gossip.identity import TRUSTING, Identity, entry_statement, life_statement
from gridnet.lbsmd.gossip.local_health import LocalHealth
from gridnet.lbsmd.gossip.messages import (
    ACK_OCTETS,
    Ack,
    Address,
    Belief,
    Digest,
    Entry,
    IndirectPing,
    Message,
    Nack,
    Overview,
    Ping,
    Standing,
)
from gridnet.lbsmd.gossip.probe_order import ProbeOrder
from gridnet.lbsmd.gossip.probing import Probing
from gridnet.lbsmd.gossip.records import HostRecords, OwnRecords
from gridnet.lbsmd.gossip.roster import PARTS, HostState, OwnRoster, Roster
from gridnet.lbsmd.gossip.rumours import Rumours
from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.lbsmd.gossip.suspicion import Evidence, Suspicion, shortest_suspicion
from gridnet.lbsmd.gossip.timers import Timers
from gridnet.lbsmd.gossip.view import Host, Hosts, Trail

__all__ = [
    "EntryChanged",
    "Event",
    "GossipTimes",
    "Host",
    "Impersonation",
    "Membership",
    "Outgoing",
    "StandingChanged",
]

_ALIVE, _SUSPECT, _DEAD, _LEFT = Standing


@lru_cache(maxsize=1024)
def _digits(hosts: int) -> int:
    # Asked for with every packet.
    return ceil(log10(hosts + 1))


@define(eq=False, weakref_slot=False)
class Outgoing:
    """One packet to send; *octets* is the size of its messages on the wire."""

    address: Address
    messages: Sequence[Message]
    octets: int


class Membership:
    """
    The gossip of one host.  Call :meth:`tick` at :meth:`next_time`; send :meth:`take_outgoing`.

    All times are seconds on one clock of the caller that never goes back.

    :param incarnation: the first of this life; best one above those of all earlier lives.
    :param version: that our entries are to be above; likewise.
    :param known_keys: host -> the key it is to be known by; others are pinned on first sight.
    :param only_known: whether hosts without a key among *known_keys* are refused.
    :param roster: where to keep the hosts; a simulation shares what many of them hold alike.
    :ivar hosts: every host known, this one included.
    :ivar due: what :meth:`next_time` says.
    :ivar outgoing: what :meth:`take_outgoing` is about to give.
    :ivar events: what :meth:`take_events` is about to give.
    """

    __slots__ = (
        "_exchanges",
        "_gone",
        "_health",
        "_is_leaving",
        "_known_keys",
        "_may_spread_at",
        "_mine",
        "_only_known",
        "_order",
        "_probing",
        "_random",
        "_reconnect_at",
        "_roster",
        "_rumours",
        "_spread_at",
        "_timers",
        "_times",
        "_trails",
        "due",
        "events",
        "hosts",
        "identity",
        "me",
        "outgoing",
        "own",
    )

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
        roster: Roster | None = None,
    ) -> None:
        self.me = me
        self.identity = identity
        self._known_keys = known_keys or {}
        self._only_known = only_known
        self.own = OwnRecords(me, times.max_entries, identity, version)
        self._roster: Roster = OwnRoster() if roster is None else roster
        self._trails: dict[str, Trail] = {}
        self._gone: dict[str, float] = {}  # dead or left, since when, in that order
        self.hosts: Mapping[str, Host] = Hosts(self._roster, self._trails, now)
        self._mine = HostState(me, address, incarnation, _ALIVE, identity.key, b"", self.own)
        self._sign_life()
        self._roster.add(self._mine)
        self._times = times
        self._random = random
        self._health = LocalHealth(times.max_health)
        patience = 0 if times.lifeguard else 1 << 30
        self._rumours = Rumours(
            times.max_rumours,
            times.cool_after + patience,
            times.drop_after + patience,
            self._health,
        )
        self._exchanges = Exchange(self._roster, self.belief_of, times, random, now)
        self.outgoing: list[Outgoing] = []
        self.events: list[Event] = []
        self._is_leaving = False
        # When what is to be done next.
        self._timers = Timers()
        self._order = ProbeOrder(me, self._roster, random)
        self._probing = Probing(
            self, self._roster, self._order, self._health, self._timers, times, random, now
        )
        # Without Lifeguard as in memberlist: rounds go on whether there are news or not.
        self._spread_at = inf if times.lifeguard else now + random.random() * times.gossip_interval
        self._may_spread_at = now
        self._reconnect_at = inf
        self.due = min(self._probing.next_at, self._exchanges.next_at, self._spread_at)

    @property
    def health(self) -> int:
        """0: well; each further point stretches our own probes once more."""
        return self._health.score

    @property
    def up(self) -> int:
        """Hosts that are up, this one included."""
        return self._roster.up

    @property
    def fingerprint(self) -> int:
        """64 bits, equal for hosts that hold the same of all."""
        return self._roster.fingerprint

    # What the caller does.

    def join(self, seeds: Iterable[Address]) -> None:
        """Compare everything with the *seeds*; call again until another host is known."""
        # Who we are, and all that we publish: together in as few packets as can be, so that it
        # travels on together.  The overview, which is large, has one of its own.
        overview, mine = self._exchanges.overview(), self.belief_of(self._mine)
        for address in seeds:
            self.send(address, mine)
            self.outgoing.append(Outgoing(address, (overview,), overview.octets()))
        self._tell_all(mine)

    def acquaint(self, now: float, beliefs: Iterable[Belief]) -> None:
        """Know these hosts from the start, as after a restart from kept state; tells nobody."""
        for belief in beliefs:
            self._consider(now, belief, "what was kept")
        self._rumours.clear()
        self.events.clear()

    def publish(self, key: str, value: bytes | None, is_load: bool = False) -> bool:
        """
        Announce *value* under *key*, or withdraw it with None; False: nothing to tell.

        :raises LocalProtocolError: it does not fit into one packet.
        """
        if Entry(self.me, key, 0, value).octets() > self._times.packet_octets:
            raise LocalProtocolError(f"{key}: does not fit into one packet")
        entry = self.own.publish(key, value, is_load)
        if entry is not None:
            self._announce_own(entry)
        return entry is not None

    def leave(self) -> None:
        """Tell a few hosts at once, and all by gossip, that this one goes on purpose."""
        self._is_leaving = True
        mine = self._mine
        self._roster.change(mine, mine.incarnation, _LEFT, mine.address, mine.signature)
        self._sign_life()
        belief = self.belief_of(mine)
        self._tell_all(belief)
        for state in self.some(self._times.fanout * 2):
            self.send(state.address, belief)

    def my_belief(self) -> Belief:
        """What this host says of itself."""
        return self.belief_of(self._mine)

    def next_time(self) -> float:
        """When :meth:`tick` is due; it may turn out that there is nothing to do any more."""
        return self.due

    def tick(self, now: float) -> None:
        """Do what is due."""
        timers, probing = self._timers, self._probing
        due = probing.next_at
        if probing.retry_at < due:
            due = probing.retry_at
        if timers.next < due:
            due = timers.next
        if now - due > self._times.stopped_after and self._times.lifeguard:
            self._was_stopped(now - due)
        if timers.next <= now:
            timers.run(now)
        if probing.retry_at <= now:
            probing.retry(now)
        if probing.next_at <= now:
            probing.begin(now, is_idle=self._is_leaving)
        if self._spread_at <= now:
            self._spread(now)
        if self._exchanges.next_at <= now:
            self._exchange(now)
        if self._reconnect_at <= now:
            self._reconnect(now)
        self._plan()

    def take_outgoing(self) -> Sequence[Outgoing]:
        """Packets to send, once each."""
        taken, self.outgoing = self.outgoing, []
        return taken

    def take_events(self) -> Sequence[Event]:
        """What changed, in order, once each."""
        taken, self.events = self.events, []
        return taken

    # What peers say.

    def receive(
        self, now: float, source: Address, sender: str, messages: Iterable[Message]
    ) -> None:
        """Take the *messages* of one authentic packet of *sender*, which came from *source*."""
        ping: Ping | None = None
        for message in messages:
            # Those first that there are most of.
            if type(message) is Belief:
                self._consider(now, message, sender)
                if message.host == sender:
                    self._correct(source, message)
            elif type(message) is Entry:
                self._take_entry(message)
            elif type(message) is Ack:
                if self._probing.acked(message):
                    self._plan()
            elif type(message) is Ping:
                ping = message
            elif type(message) is Overview:
                self._tell(source, self._exchanges.compare(now, message))
            elif type(message) is Digest:
                self._tell(source, self._exchanges.compare_parts(now, message))
            elif type(message) is IndirectPing:
                if not self._is_leaving:
                    self._probing.probe_for(now, source, message)
                    self._wake_by(self._timers.next)
            elif type(message) is Nack:
                self._probing.nacked(message, sender)
        if ping is not None:
            # Last, so that it is answered with what the same packet told.
            self._answer(source, sender, ping)

    def _answer(self, source: Address, sender: str, ping: Ping) -> None:
        if ping.target != self.me or self._is_leaving:
            return
        ack = Ack(ping.number)
        state = self._roster.get(sender)
        if state is None:
            # Whoever probes us should be known to us.
            self.send(source, ack, self._exchanges.overview())
        elif state.standing is not _ALIVE and self._times.lifeguard:
            self.send(source, ack, self.belief_of(state))  # so it can refute
        elif ping.fingerprint == self._roster.fingerprint or not ping.fingerprint:
            if self._rumours.is_empty:
                self.outgoing.append(Outgoing(source, (ack,), ACK_OCTETS))
            else:
                self.send(source, ack)
        else:
            # One of us has missed something, probably of late.
            # While news are hot they will mostly come anyhow; but where a part has no more than
            # one host, comparing costs so little that nobody need wait for the last of them.
            is_small = len(self._roster) <= PARTS
            told: tuple[Message, ...] = (ack,)
            if is_small:
                told = ack, self._exchanges.overview()
            compares = not is_small and not self._rumours.hot
            octets = sum(message.octets() for message in told)
            missed_octets, missed = self._rumours.missed(
                self._times.packet_octets - octets, self._tellings()
            )
            octets += missed_octets
            # The overview last: it is compared with what the others have told.
            self.outgoing.append(Outgoing(source, (*missed, *told), octets))
            if compares:
                # On a large site more is late than there is room for beside an overview.
                overview = self._exchanges.overview()
                self.outgoing.append(Outgoing(source, (overview,), overview.octets()))

    def _correct(self, source: Address, said: Belief) -> None:
        # A host that came back does not know what was held of its earlier life.
        state = self._roster.get(said.host)
        if state is None or said.host == self.me:
            return
        if (state.incarnation, state.standing) > (said.incarnation, said.standing):
            self.send(source, self.belief_of(state))

    def _take_entry(self, entry: Entry) -> None:
        if entry.owner == self.me:
            # Only this host changes its own entries: contradict what differs.
            correction = self.own.correct(entry)
            if correction is not None:
                self._announce_own(correction)
            return
        if self._rumours.heard(entry.matter, entry) is not None:
            return  # what we tell is what we hold
        state = self._roster.get(entry.owner)
        if state is None or not state.records.is_news(entry):
            return
        if not self.identity.has_signed(state.key, entry_statement(entry), entry.signature):
            return
        if self._roster.take_entry(state, entry):
            self._tell_all(entry)
            self.events.append(EntryChanged(entry))

    def _announce_own(self, entry: Entry) -> None:
        self._roster.records_changed(self._mine)
        self._tell_all(entry)

    def _consider(self, now: float, said: Belief, told_by: str, found: str = "") -> None:
        if said.host == self.me:
            self._refute(said)
            return
        told = self._rumours.heard(said.host, said)
        if told is not None:
            # Most of all that is ever heard: what we tell is what we hold.
            if said.standing is _SUSPECT and told is not said:
                self._confirm(now, said, told_by, found)
            return
        state = self._roster.get(said.host)
        if state is None:
            self._meet(now, said, told_by)
            return
        incarnation, standing = said.incarnation, said.standing
        if incarnation < state.incarnation:
            return
        if standing is _DEAD and state.standing is _ALIVE and self._times.lifeguard:
            # Those who give a verdict suspect first.  Whoever hears of it only now was away, or
            # the others were: the host gets its time to refute, with us too.
            said, standing = evolve(said, standing=_SUSPECT), _SUSPECT
        if incarnation == state.incarnation and standing <= state.standing:
            if standing is _SUSPECT and state.standing is _SUSPECT:
                self._confirm(now, said, told_by, found)
            return
        if standing is not _ALIVE and not state.is_up:
            return
        address, signature = state.address, state.signature
        if incarnation > state.incarnation or standing is _LEFT:
            if not self._is_genuine(said, state):
                return
            address, signature = said.address, said.signature
        state = self._roster.change(state, incarnation, standing, address, signature)
        trail = self._trails.get(said.host)
        if trail is None:
            trail = self._trails[said.host] = Trail(now)
        trail.since = now
        if trail.suspicion is not None:
            if trail.suspicion.timer is not None:
                self._timers.cancel(trail.suspicion.timer)
            trail.suspicion = None
        self._gone.pop(said.host, None)
        if standing is _ALIVE:
            self._health.heard(said.host)
        elif standing is _SUSPECT:
            self._suspect(trail, said, Evidence(said.accuser, now, told_by, found))
        else:
            self._health.excuse(said.host)
            last = Evidence(said.accuser, now, told_by, found, standing)
            trail.evidence = (*trail.evidence[-7:], last)
            self._gone[said.host] = now
            if self._reconnect_at == inf:
                self._reconnect_at = now + self._random.random() * self._times.reconnect_interval
                self._wake_by(self._reconnect_at)
        if standing is _DEAD and self._times.lifeguard:
            # All find that out by themselves at about the same time.
            self._rumours.add(said, is_urgent=False)
        else:
            self._tell_all(said)
        self.events.append(StandingChanged(said.host, standing))

    def _meet(self, now: float, said: Belief, told_by: str) -> None:
        """Get to know a host; of one that is gone, nobody needs to."""
        if said.standing > _SUSPECT or len(self._roster) >= self._times.max_hosts:
            return
        if not self._is_genuine(said, None):
            return
        records = HostRecords(said.host, self._times.max_entries)
        self._roster.add(
            HostState(
                said.host,
                said.address,
                said.incarnation,
                _ALIVE,
                said.key,
                said.signature,
                records,
            )
        )
        self._trails[said.host] = Trail(now)
        self._order.met(said.host)
        self.events.append(StandingChanged(said.host, _ALIVE))
        if said.standing is _SUSPECT:
            self._consider(now, said, told_by)
        else:
            self._tell_all(said)

    def _is_genuine(self, said: Belief, state: HostState | None) -> bool:
        """Whether the host that *said* is about has signed it, with the key it is known by."""
        known = self._known_keys.get(said.host)
        if known is None:
            if self._only_known and said.host != self.me:
                return False
            known = said.key if state is None else state.key
        if said.key != known:
            self.events.append(Impersonation(said.host))
            return False
        return self.identity.has_signed(known, life_statement(said), said.signature)

    def _sign_life(self) -> None:
        self._mine.signature = self.identity.sign(life_statement(self.belief_of(self._mine)))

    def _refute(self, said: Belief) -> None:
        mine = self._mine
        if self._is_leaving or said.incarnation < mine.incarnation:
            return
        if said.incarnation > mine.incarnation and not self._is_genuine(said, mine):
            return
        if said.standing is _ALIVE:
            if said.incarnation == mine.incarnation and said.address == mine.address:
                return
        elif self._times.lifeguard:
            self._health.feel(1)
        # Also after a restart: an older life of ours is remembered with a higher number.
        self._roster.change(mine, said.incarnation + 1, _ALIVE, mine.address, mine.signature)
        self._sign_life()
        self._tell_all(self.belief_of(mine))

    # Suspicion.

    def _suspect(self, trail: Trail, said: Belief, accusation: Evidence) -> None:
        times = self._times
        up = self._roster.up
        shortest = shortest_suspicion(times.suspicion_multiplier, up, times.probe_interval)
        wanted = max(0, int(times.suspicion_multiplier) - 2) if times.lifeguard else 0
        if up - 2 < wanted:
            wanted = 0
        longest = shortest * times.suspicion_stretch
        suspicion = Suspicion(accusation.at, shortest, longest, wanted, (accusation,))
        trail.suspicion = suspicion
        trail.evidence = suspicion.evidence
        if wanted and self._random.random() * up < times.confirmers:
            # Let some try themselves, so that the verdict need not wait for all turns to come.
            self._order.hurry(said.host)
        self._judge_in_time(accusation.at, said.host, suspicion)

    def _confirm(self, now: float, said: Belief, told_by: str, found: str) -> None:
        trail = self._trails.get(said.host)
        suspicion = None if trail is None else trail.suspicion
        if trail is None or suspicion is None or not suspicion.lacks(said.accuser):
            return
        suspicion.accuse(Evidence(said.accuser, now, told_by, found))
        trail.evidence = suspicion.evidence
        # The suspicion has time: this need not have packets of its own.
        self._rumours.add(said, is_urgent=False)
        self._judge_in_time(now, said.host, suspicion)

    def _judge(self, now: float, accused: tuple[str, Suspicion]) -> None:
        name, suspicion = accused
        trail, state = self._trails.get(name), self._roster.get(name)
        if trail is None or state is None or trail.suspicion is not suspicion:
            return
        if now < suspicion.ends_at():
            self._judge_in_time(now, name, suspicion)
            return
        verdict = self.belief_of(state, _DEAD, self.me)
        self._consider(now, verdict, "", f"not refuted in {now - suspicion.since:.1f} s")

    def _was_stopped(self, seconds: float) -> None:
        """
        This process did not run for so long: nobody can be blamed for silence meanwhile.

        What was said to it waits to be read; until then no suspicion may end, no probe fail.
        """
        self._health.feel(1)
        self._probing.give_up()
        for trail in self._trails.values():
            if trail.suspicion is not None:
                trail.suspicion.since += seconds

    # Spreading and comparing.

    def _tell_all(self, news: Belief | Entry) -> None:
        self._rumours.add(news)
        # Who hears news passes it on at once, and then once an interval.
        if self._spread_at == inf and self._times.lifeguard:
            self._spread_at = self._may_spread_at
            self._wake_by(self._spread_at)

    def _spread(self, now: float) -> None:
        times = self._times
        rumours = self._rumours
        self._may_spread_at = now + times.gossip_interval
        targets = self.some(times.fanout)
        waiting = rumours.hot
        for _ in range(times.burst_packets if targets else 0):
            octets, news = rumours.take(times.packet_octets, self._tellings(), len(targets))
            if not news:
                break
            for state in targets:
                self.outgoing.append(Outgoing(state.address, news, octets))
            waiting -= len(news)
            if waiting <= 0:
                break
        self._spread_at = self._may_spread_at if rumours.hot or not times.lifeguard else inf
        if rumours.are_over() and len(self._roster) <= PARTS and not self._is_leaving:
            # Somebody is mostly left out.  Where comparing costs so little, nobody need wait for
            # the next probe to find that.
            for state in targets[:1]:
                self.send(state.address, self._exchanges.overview())

    def _exchange(self, now: float) -> None:
        self._exchanges.begin(now)
        for name in tuple(islice(self._gone, 2)):
            if now - self._gone[name] >= self._times.forget_seconds:
                del self._gone[name]
                self._trails.pop(name, None)
                self._roster.remove(name)
        for state in () if self._is_leaving else self.some(1):
            self.send(state.address, self.belief_of(self._mine), self._exchanges.overview())

    def _reconnect(self, now: float) -> None:
        """Now and then try those that are gone: so the halves of a partition meet again."""
        self._reconnect_at = inf
        if not self._gone or self._is_leaving:
            return
        self._reconnect_at = now + self._times.reconnect_interval
        # All hosts together try each of them about once an interval.
        if self._random.random() * max(1, self._roster.up - 1) < len(self._gone):
            index = int(self._random.random() * len(self._gone))
            state = self._roster.get(next(islice(self._gone, index, None)))
            if state is not None and state.standing is _DEAD:
                mine = self.belief_of(self._mine)
                self.send(state.address, mine, self.belief_of(state), self._exchanges.overview())

    def _tell(self, address: Address, packets: Iterable[tuple[int, Sequence[Message]]]) -> None:
        if self._is_leaving:
            return
        for octets, messages in packets:
            self.outgoing.append(Outgoing(address, messages, octets))
        self._wake_by(self._exchanges.next_at)

    def accuse(self, now: float, state: HostState, found: str) -> None:
        """Suspect that host by our own probe, whose outcome *found* puts into words."""
        self._consider(now, self.belief_of(state, _SUSPECT, self.me), "", found)

    def belief_of(
        self, state: HostState, standing: Standing | None = None, accuser: str = ""
    ) -> Belief:
        """What we hold of that host, or say as the *accuser* who holds another *standing*."""
        if not accuser:
            trail = self._trails.get(state.name)
            accuser = trail.evidence[-1].accuser if trail and trail.evidence else self.me
        return Belief(
            state.name,
            state.address,
            state.incarnation,
            state.standing if standing is None else standing,
            accuser,
            state.key,
            state.signature,
        )

    def some(self, number: int, but: str = "") -> list[HostState]:
        """Up to *number* hosts that are up, this one and *but* left out."""
        chosen: list[HostState] = []
        roster, random, me = self._roster, self._random.random, self.me
        count = len(roster)
        for _ in range(number * 4):
            state = roster.at(int(random() * count))
            name = state.name
            if state.standing <= _SUSPECT and name != me and name != but and state not in chosen:
                chosen.append(state)
                if len(chosen) == number:
                    break
        return chosen

    def _tellings(self) -> int:
        return self._times.retransmit_multiplier * _digits(self._roster.up)

    def send(self, address: Address, *messages: Message) -> None:
        """Send one packet; news fill what room is left in it."""
        octets = 0
        for message in messages:
            octets += message.octets()
        if not self._rumours.is_empty:
            room = self._times.packet_octets - octets
            news_octets, news = self._rumours.take(room, self._tellings())
            messages = (*messages, *news)
            octets += news_octets
        self.outgoing.append(Outgoing(address, messages, octets))

    def _judge_in_time(self, now: float, name: str, suspicion: Suspicion) -> None:
        if suspicion.timer is not None:
            self._timers.cancel(suspicion.timer)
        # Confirmations may have moved the end into the past; a timer that is due long since would
        # look as if this process had not run.
        ends_at = max(now, suspicion.ends_at())
        suspicion.timer = self._timers.at(ends_at, self._judge, (name, suspicion))
        self._wake_by(ends_at)

    def _plan(self) -> None:
        """Find out when :meth:`tick` is due."""
        timers, probing = self._timers, self._probing
        # Not min(): this is called for every probe of every host of a simulation.
        due = probing.next_at
        if probing.retry_at < due:
            due = probing.retry_at
        if self._spread_at < due:
            due = self._spread_at
        if self._exchanges.next_at < due:
            due = self._exchanges.next_at
        if self._reconnect_at < due:
            due = self._reconnect_at
        if timers.next < due:
            due = timers.next
        self.due = due

    def _wake_by(self, time: float) -> None:
        if time < self.due:
            self.due = time
