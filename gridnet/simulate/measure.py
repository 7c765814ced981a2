"""What is measured in a run."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from math import ceil, inf
from statistics import median

from attrs import define, field, frozen

from gridnet.lbsmd.gossip.membership import EntryChanged, Event, StandingChanged
from gridnet.lbsmd.gossip.messages import Standing
from gridnet.simulate.network import Network, SimulatedHost

#: For so long after a restart, old news of the crash is not a false verdict.
RESTART_SECONDS = 30.0


@frozen
class Sample:
    """One second of a run; packets and octets are those of all hosts together."""

    at: float
    packets: int
    octets: int
    verdicts: int  #: "dead", told of anybody by anybody
    false_verdicts: int


@frozen
class Outcome:
    """
    What was measured; None: it never happened.  Times in seconds.

    :ivar spread: times after the first change at which one host more knew all of it.
    :ivar detections: of each crash, from it to the first verdict.
    """

    trace_hash: str
    listeners: int  #: hosts that live through the run undisturbed
    reached: float  #: share of these that know the first change, 0 to 1
    reached_9999_seconds: float | None  #: until 99.99 % of them and the owner knew it
    reached_all_seconds: float | None
    settled_after_changes: float | None  #: from the last change until all tables were equal
    settled_after_heal: float | None  #: from the end of the partition until then
    settled_after_kill: float | None  #: from the last crash for good until then
    false_positives: int  #: verdicts "dead" at healthy hosts on healthy hosts
    false_positives_anywhere: int  #: the same, at slow hosts too
    crashes: int
    crashes_detected: int
    detection_seconds: float | None  #: median, from a crash to the first verdict
    detected_by_all_seconds: float | None  #: median, to the verdict of the last healthy host
    packets_per_second: float  #: sent by one host, on average
    kilobits_per_second: float  #: sent by one host, on average, with IP and UDP headers
    peak_kilobits_per_second: float  #: in the busiest second
    events: int  #: packets delivered and timers, in all
    cpu_seconds: float  #: of this process, setting up included
    memory_megabytes: float  #: the most that this process occupied
    spread: Sequence[float] = field(repr=False)
    detections: Sequence[float] = field(repr=False)
    samples: Sequence[Sample] = field(repr=False)

    def reproducible(self) -> tuple[object, ...]:
        """What equal scenarios give alike: all but the costs of the simulation itself."""
        return self.trace_hash, self.spread, self.detections, self.samples


@define(eq=False)
class _Crash:
    at: float
    first: float | None = None
    last: float | None = None


class Measurements:
    """
    Watches a run.

    :param steady: hosts to which nothing happens: those that are to know of a change.
    :param impaired: hosts whose verdicts, and verdicts on whom, are not counted as false.
    """

    def __init__(
        self, hosts: int, services: int, impaired: set[str], steady: frozenset[str]
    ) -> None:
        self.network: Network
        self._hosts = hosts
        self._services = services
        self._impaired = impaired
        self._steady = steady
        self._changed: tuple[str, float, int] | None = None
        self._known: dict[str, int] = {}
        self._spread: list[float] = []
        self._crashes: list[_Crash] = []
        self._down: dict[str, _Crash] = {}
        self._restarted: dict[str, float] = {}
        self._is_parted = False
        self._verdicts = self._false = self._false_anywhere = 0
        self._samples: list[Sample] = []
        self._sampled = (0, 0, 0, 0)
        self._disturbance: tuple[str, float] | None = None
        self._settled: dict[str, float] = {}
        self._began = time.process_time()

    def observe(self, now: float, host: SimulatedHost, event: Event) -> None:
        """One thing that *host* found."""
        if isinstance(event, EntryChanged):
            changed = self._changed
            if (
                changed is not None
                and event.entry.owner == changed[0]
                and host.name in self._steady
            ):
                self._entry_arrived(now, host.name, event.entry.version)
        elif isinstance(event, StandingChanged) and event.standing is Standing.DEAD:
            self._verdict(now, host.name, event.host)

    def _entry_arrived(self, now: float, name: str, version: int) -> None:
        assert self._changed is not None
        _, changed_at, newest = self._changed
        if newest - self._services < version <= newest:
            known = self._known[name] = self._known.get(name, 0) + 1
            if known == self._services:
                self._spread.append(now - changed_at)

    def _verdict(self, now: float, judge: str, subject: str) -> None:
        self._verdicts += 1
        crash = self._down.get(subject)
        if crash is not None:
            if judge not in self._impaired:
                crash.first = now if crash.first is None else crash.first
                crash.last = now
        elif not (
            self._is_parted
            or subject in self._impaired
            or now - self._restarted.get(subject, -inf) < RESTART_SECONDS
        ):
            self._false_anywhere += 1
            self._false += judge not in self._impaired

    def changed(self, now: float, name: str, newest: int) -> None:
        """A host changed all its services; *newest* is the version of the last."""
        if self._changed is None:
            self._changed = name, now, newest
        self._disturbance = "changes", now

    def crashed(self, now: float, name: str, for_good: bool) -> None:
        """A host died."""
        self._down[name] = crash = _Crash(now)
        self._crashes.append(crash)
        self._disturbance = ("kill", now) if for_good else None

    def restarted(self, now: float, name: str) -> None:
        """A host lives again."""
        self._down.pop(name, None)
        self._restarted[name] = now
        self._disturbance = None

    def parted(self, now: float, is_parted: bool) -> None:
        """A partition began or ended."""
        self._is_parted = is_parted
        self._disturbance = None if is_parted else ("heal", now)

    def look(self, now: float) -> None:
        """See whether the tables are equal, once the last disturbance is over."""
        if self._disturbance is None:
            return
        running = [host.membership for host in self.network.hosts.values() if host.is_running]
        first = running[0].fingerprint
        if all(m.up == len(running) and m.fingerprint == first for m in running):
            what, since = self._disturbance
            self._settled[what] = now - since
            self._disturbance = None

    def sample(self, now: float) -> None:
        """One second has passed."""
        hosts = self.network.hosts.values()
        counts = (
            sum(host.packets for host in hosts),
            sum(host.octets for host in hosts),
            self._verdicts,
            self._false_anywhere,
        )
        self._samples.append(
            Sample(now, *(c - s for c, s in zip(counts, self._sampled, strict=True)))
        )
        self._sampled = counts

    def outcome(self, seconds: float) -> Outcome:
        """All of it."""
        listeners = len(self._steady) - 1
        needed = ceil((listeners + 1) * 0.9999) - 1  # its owner knows it from the start
        spread = self._spread
        firsts = [c.first - c.at for c in self._crashes if c.first is not None]
        lasts = [c.last - c.at for c in self._crashes if c.last is not None]
        packets, octets, _, _ = self._sampled
        rate = 8e-3 / self._hosts
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Outcome(
            trace_hash=self.network.trace_hash,
            listeners=listeners,
            reached=len(spread) / listeners,
            reached_9999_seconds=spread[needed - 1] if len(spread) >= needed else None,
            reached_all_seconds=spread[-1] if len(spread) >= listeners else None,
            settled_after_changes=self._settled.get("changes"),
            settled_after_heal=self._settled.get("heal"),
            settled_after_kill=self._settled.get("kill"),
            false_positives=self._false,
            false_positives_anywhere=self._false_anywhere,
            crashes=len(self._crashes),
            crashes_detected=len(firsts),
            detection_seconds=median(firsts) if firsts else None,
            detected_by_all_seconds=median(lasts) if lasts else None,
            packets_per_second=packets / seconds / self._hosts,
            kilobits_per_second=octets * rate / seconds,
            peak_kilobits_per_second=max((s.octets * rate for s in self._samples), default=0.0),
            events=self.network.events,
            cpu_seconds=time.process_time() - self._began,
            memory_megabytes=usage.ru_maxrss / 1024,
            spread=tuple(spread),
            detections=tuple(firsts),
            samples=tuple(self._samples),
        )
