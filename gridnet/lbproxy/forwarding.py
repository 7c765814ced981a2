"""
What waits for the jobs' own servers, and what their answers mean: decisions without a network.

Order within a job is kept by never having two of its events on the way at once; other jobs do not
wait for one whose server wants it later.  Source: docs/protocols/lbproxy.rst, "Forwarding".
"""

from __future__ import annotations

import errno
import random
from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import Enum

from attrs import define, field, frozen

from gridnet.lbproxy.frames import Major, Reply


class Verdict(Enum):
    """What to do about a forwarded event after its reply."""

    DELIVERED = "delivered"
    DROPPED = "dropped"  #: the server will never take it
    LATER = "later"


def judge(reply: Reply) -> Verdict:
    """What *reply* of a server means for the event."""
    if reply.major == Major.OK:
        return Verdict.DELIVERED
    if reply.major in (Major.PROTOCOL, Major.PERMISSION):
        return Verdict.DROPPED
    if reply.major == Major.DATABASE and reply.minor == errno.ENOENT:
        return Verdict.DROPPED  # the job is not there
    return Verdict.LATER


@frozen(slots=True)
class SpooledEvent:
    """One event that waits."""

    position: int
    job: int
    line: bytes


@define
class BackOff:
    """Pauses that double up to a bound, each shortened by chance so that not all come at once."""

    first_seconds: float
    most_seconds: float
    chance: random.Random
    _next: float = field(default=0.0, init=False)

    def pause(self) -> float:
        """The next pause in seconds."""
        base = min(max(self._next, self.first_seconds), self.most_seconds)
        self._next = min(base * 2, self.most_seconds)
        return base * (0.5 + self.chance.random() / 2)

    def reset(self) -> None:
        """It worked: begin with the shortest again."""
        self._next = 0.0


@define
class Queue:
    """
    What waits for one server, as far as it has been read from the spool.

    :ivar window: most events on the way at once.
    :ivar settled: positions that were answered and may still stand in the spool; shared with
        whoever takes them out of it.
    :ivar read_through: position of the last event that was read from the spool.
    """

    window: int
    first_seconds: float
    most_seconds: float
    chance: random.Random
    settled: set[int]
    read_through: int = field(default=0, init=False)
    _waiting: OrderedDict[int, SpooledEvent] = field(factory=OrderedDict, init=False)
    _on_the_way: deque[SpooledEvent] = field(factory=deque, init=False)
    _busy: set[int] = field(factory=set, init=False)
    _held_until: dict[int, float] = field(factory=dict, init=False)
    _back_offs: dict[int, BackOff] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._on_the_way)

    @property
    def on_the_way(self) -> int:
        """Events sent and not answered."""
        return len(self._on_the_way)

    def add(self, events: Iterable[SpooledEvent]) -> None:
        """Take more from the spool, in its order; what is known already is not taken twice."""
        sent = {one.position for one in self._on_the_way}
        for one in events:
            self.read_through = one.position
            position = one.position
            if one.job in self._held_until or position in self.settled or position in sent:
                continue
            self._waiting.setdefault(position, one)

    def restart(self) -> None:
        """The connection went: everything that was not answered is to be read once more."""
        self._waiting.clear()
        self._on_the_way.clear()
        self._busy.clear()
        self.read_through = 0

    def next_to_send(self) -> list[SpooledEvent]:
        """Events to send now, in order; they are on the way from here on."""
        chosen: list[SpooledEvent] = []
        if len(self._on_the_way) >= self.window:
            return chosen
        for one in self._waiting.values():
            if one.job in self._busy:
                continue
            self._busy.add(one.job)
            self._on_the_way.append(one)
            chosen.append(one)
            if len(self._on_the_way) >= self.window:
                break
        for one in chosen:
            del self._waiting[one.position]
        return chosen

    def answered(self, reply: Reply, now: float) -> tuple[SpooledEvent, Verdict]:
        """
        The server's reply to the oldest event on the way.

        The job of one that is wanted later is held: its events stay in the spool until
        :meth:`release`.
        """
        one = self._on_the_way.popleft()
        self._busy.discard(one.job)
        verdict = judge(reply)
        if verdict is Verdict.LATER:
            back_off = self._back_offs.setdefault(
                one.job, BackOff(self.first_seconds, self.most_seconds, self.chance)
            )
            self._held_until[one.job] = now + back_off.pause()
            for position in [p for p, other in self._waiting.items() if other.job == one.job]:
                del self._waiting[position]
        else:
            self.settled.add(one.position)
            self._back_offs.pop(one.job, None)
        return one, verdict

    @property
    def held_jobs(self) -> list[int]:
        """Jobs that wait for their time, whose events need not be read from the spool."""
        return list(self._held_until)

    @property
    def wakes_at(self) -> float | None:
        """When the first held job may go on, None when none is held."""
        return min(self._held_until.values(), default=None)

    def release(self, now: float) -> None:
        """Hold the jobs no longer whose time has come; the spool is read from its begin again."""
        due = [job for job, until in self._held_until.items() if until <= now]
        for job in due:
            del self._held_until[job]
        if due:
            self.read_through = 0
