"""Whether the others answer: SWIM's direct and indirect probes, with Lifeguard's nacks."""

from __future__ import annotations

from math import inf
from random import Random
from typing import Protocol

from gridnet.lbsmd.gossip.local_health import LocalHealth
from gridnet.lbsmd.gossip.messages import (
    Ack,
    Address,
    Belief,
    IndirectPing,
    Message,
    Nack,
    Ping,
    Standing,
)
from gridnet.lbsmd.gossip.probe_order import ProbeOrder
from gridnet.lbsmd.gossip.roster import HostState, Roster
from gridnet.lbsmd.gossip.settings import GossipTimes
from gridnet.lbsmd.gossip.timers import Timers


class Prober(Protocol):
    """What :class:`Probing` asks of the host whose probes it makes."""

    def send(self, address: Address, *messages: Message) -> None:
        """Send one packet."""

    def accuse(self, now: float, state: HostState, found: str) -> None:
        """That host does not answer; *found* says how it was asked."""

    def belief_of(self, state: HostState) -> Belief:
        """What we hold of that host."""

    def some(self, number: int, but: str = "") -> list[HostState]:
        """Up to *number* hosts that are up, this one and *but* left out."""


class Probing:
    """
    The probes of one host: one of its own at a time, and those made for others.

    Without Lifeguard a probe is one packet and, after a time-out, three indirect ones.  With it
    a packet that is not answered is sent again and again meanwhile: one that is lost says nothing
    of the host; and who was asked for an indirect probe tells when it has no answer, so that one
    knows whether it is oneself who hears nothing.

    :ivar next_at: when the next probe begins, in seconds.
    :ivar retry_at: when the one under way is to be sent again; infinite: there is none.
    """

    __slots__ = (
        "_ask_at",
        "_asked",
        "_health",
        "_number",
        "_order",
        "_own",
        "_prober",
        "_proxied",
        "_roster",
        "_silent",
        "_target",
        "_timers",
        "_times",
        "_tries",
        "next_at",
        "retry_at",
    )

    def __init__(
        self,
        prober: Prober,
        roster: Roster,
        order: ProbeOrder,
        health: LocalHealth,
        timers: Timers,
        times: GossipTimes,
        random: Random,
        now: float,
    ) -> None:
        self._prober = prober
        self._roster = roster
        self._order = order
        self._health = health
        self._timers = timers
        self._times = times
        self.next_at = now + random.random() * times.probe_interval
        self.retry_at = inf
        self._number = random.getrandbits(31)  # of the latest probe of all
        # The probe under way.
        self._own = -1  # its number; below 0: it is over
        self._target = ""
        self._tries = 0
        self._ask_at = inf
        self._asked = 0  # others, to probe it too
        self._silent: tuple[str, ...] = ()  # those of them that have not answered
        self._proxied: dict[int, tuple[Address, int]] = {}  # who asked, and its number

    def begin(self, now: float, is_idle: bool) -> None:
        """Probe the next host, unless *is_idle*; the last probe has failed if it is not over."""
        if self._own >= 0:
            self._fail(now)
        times = self._times
        stretch = 1 + self._health.score if times.lifeguard else 1
        self.next_at = now + times.probe_interval * stretch
        state = None if is_idle else self._order.next()
        if state is None:
            return
        self._target = state.name
        self._own = number = self._new_number()
        self._asked, self._silent = 0, ()
        self._tries = 1
        self._ask_at = now + times.probe_timeout * stretch
        self.retry_at = now + times.probe_retry * stretch if times.lifeguard else self._ask_at
        ping = Ping(number, state.name, self._roster.fingerprint)
        if state.standing is Standing.SUSPECT and times.lifeguard:
            # So that it can refute.
            self._prober.send(state.address, ping, self._prober.belief_of(state))
        else:
            self._prober.send(state.address, ping)

    def retry(self, now: float) -> None:
        """No answer yet: a packet may be lost.  After a while let others try too."""
        state = self._roster.get(self._target)
        self.retry_at = inf
        if state is None:
            return
        number = self._own
        if now >= self._ask_at:
            self._ask_at = inf
            others = self._prober.some(self._times.indirect_probes, state.name)
            self._asked = len(others)
            self._silent = tuple(other.name for other in others)
            for other in others:
                self._prober.send(other.address, IndirectPing(number, state.name, state.address))
        if self._times.lifeguard:
            self._tries += 1
            self.retry_at = now + self._times.probe_retry * (1 + self._health.score)
            self._prober.send(state.address, Ping(number, state.name, self._roster.fingerprint))

    def give_up(self) -> None:
        """End the probe under way without a finding."""
        self._own = -1
        self.retry_at = inf

    def _fail(self, now: float) -> None:
        self.give_up()
        if self._times.lifeguard:
            for name in self._silent if self._asked else (self._target,):
                self._health.miss(name)
        state = self._roster.get(self._target)
        if state is not None and state.is_up:
            found = f"no answer, neither direct nor by {self._asked} others"
            self._prober.accuse(now, state, found)

    def acked(self, ack: Ack) -> bool:
        """Somebody answers; True: that was the probe under way."""
        if ack.number == self._own:
            self.give_up()
            # Who needs many tries is on a bad line, and should take its time.
            if self._tries > 2:
                self._health.feel(1)
            elif self._health.score and self._tries < 2:
                self._health.feel(-1)
            return True
        asked_by = self._proxied.pop(ack.number, None)
        if asked_by is not None:
            self._prober.send(asked_by[0], Ack(asked_by[1]))
        return False

    def nacked(self, nack: Nack, sender: str) -> None:
        """*sender*, whom we asked, got no answer either, yet."""
        if nack.number == self._own:
            self._silent = tuple(name for name in self._silent if name != sender)

    def probe_for(self, now: float, source: Address, asked: IndirectPing) -> None:
        """Probe a host for another one, which is at *source*."""
        if len(self._proxied) >= self._times.max_probes:
            return
        number = self._new_number()
        self._proxied[number] = source, asked.number
        self._prober.send(asked.address, Ping(number, asked.target))
        wait = self._times.probe_timeout
        self._timers.at(now + wait * 0.8, self._no_answer_yet, number)
        if self._times.lifeguard:
            for share in (0.2, 0.4, 0.6):
                again = number, asked.target, asked.address
                self._timers.at(now + wait * share, self._probe_for_again, again)

    def _probe_for_again(self, now: float, asked: tuple[int, str, Address]) -> None:
        number, target, address = asked
        if number in self._proxied:
            self._prober.send(address, Ping(number, target))

    def _no_answer_yet(self, now: float, number: int) -> None:
        asked_by = self._proxied.get(number)
        if asked_by is not None:
            if self._times.lifeguard:
                self._prober.send(asked_by[0], Nack(asked_by[1]))
            self._timers.at(now + self._times.probe_timeout * 1.2, self._end_proxied, number)

    def _end_proxied(self, now: float, number: int) -> None:
        self._proxied.pop(number, None)

    def _new_number(self) -> int:
        self._number = self._number + 1 & 0xFFFFFFFF
        return self._number
