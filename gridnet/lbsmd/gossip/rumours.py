"""What is still to be passed on, and how often."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from attrs import define

from gridnet.lbsmd.gossip.local_health import LocalHealth
from gridnet.lbsmd.gossip.messages import Belief, Entry, Standing

_Matter = str | tuple[str, str]
_LEAST_OCTETS = 80  # no rumour is smaller
_LATEST = 64  # rumours of each rank that are kept when they are told no more
_MISFITS = 8  # rumours too large for the rest of a packet before it is left as it is


@define(eq=False, weakref_slot=False)
class _Rumour:
    message: Belief | Entry
    matter: _Matter
    rank: int  # 0: hosts, 1: services, 2: load
    octets: int
    told: int = 0
    heard: int = 0
    is_cool: bool = False

    def says(self, message: Belief | Entry) -> bool:
        ours = self.message
        if type(ours) is Belief and type(message) is Belief:
            return (ours.incarnation, ours.standing) == (message.incarnation, message.standing)
        if type(ours) is Entry and type(message) is Entry:
            return ours.version == message.version
        return False


@define(eq=False)
class _Rank:
    fresh: dict[_Matter, _Rumour]  # not told yet, in order of arrival
    told: dict[_Matter, _Rumour]  # hot ones, in order of the last telling


def _choose(queue: dict[_Matter, _Rumour], octets: int, chosen: list[_Rumour]) -> int:
    # Adds to *chosen* what fits into *octets*; gives how many are left.
    misfits = 0
    for rumour in queue.values():
        if rumour.octets <= octets:
            octets -= rumour.octets
            chosen.append(rumour)
        else:
            misfits += 1
        if octets < _LEAST_OCTETS or misfits > _MISFITS:
            break
    return octets


class Rumours:
    """
    News to pass on: hosts before services before load, what was not told yet before the rest.

    A rumour is *hot*, worth packets of its own, until it was heard back *cool_after* times:
    by then nearly everybody knows it.  It still fills other packets until it was heard
    *drop_after* times, or told as often as :meth:`take` says.  So news stop early where
    nothing is lost, and are repeated where much is ("feedback" and "counter" of Demers et al.,
    Epidemic algorithms for replicated database maintenance, 1987).  Both numbers grow by one
    with each point of bad *health*: who is not well loses much.

    A newer rumour of the same matter replaces the older; when full, one that is not hot goes,
    or else one of the lowest rank.

    :ivar hot: how many are hot.
    :ivar is_empty: whether there are none.
    """

    __slots__ = (
        "_cool",
        "_cool_after",
        "_drop_after",
        "_health",
        "_latest",
        "_max_rumours",
        "_ranks",
        "_rumours",
        "_were_hot",
        "hot",
        "is_empty",
    )

    def __init__(
        self,
        max_rumours: int,
        cool_after: int,
        drop_after: int,
        health: LocalHealth | None = None,
    ) -> None:
        self._max_rumours = max_rumours
        self._cool_after = cool_after
        self._drop_after = drop_after
        self._rumours: dict[_Matter, _Rumour] = {}
        self.is_empty = True
        self._health = health or LocalHealth(0)
        self._latest = tuple(deque[Belief | Entry](maxlen=_LATEST) for _ in range(3))  # by rank
        self._ranks = (_Rank({}, {}), _Rank({}, {}), _Rank({}, {}))
        self._cool: dict[_Matter, _Rumour] = {}
        self._were_hot = False  # any but loads, since it was asked whether they are over
        self.hot = 0

    def __len__(self) -> int:
        return len(self._rumours)

    def clear(self) -> None:
        """Forget all news."""
        for rumour in tuple(self._rumours.values()):
            self._drop(rumour)
        for latest in self._latest:
            latest.clear()
        self._were_hot = False

    def add(self, message: Belief | Entry, is_urgent: bool = True) -> None:
        """Pass *message* on from now; if not *is_urgent*, with other packets only."""
        matter: _Matter
        if type(message) is Belief:
            matter, rank = message.host, 0
        else:
            assert type(message) is Entry
            matter, rank = (message.owner, message.key), 2 if message.is_load else 1
        held = self._rumours.get(matter)
        if held is not None:
            self._drop(held)
        elif len(self._rumours) >= self._max_rumours:
            self._drop(self._least_worth())
        rumour = _Rumour(message, matter, rank, message.octets())
        self._rumours[matter] = rumour
        self.is_empty = False
        if is_urgent:
            self._ranks[rank].fresh[matter] = rumour
            self.hot += 1
            if rank < 2:
                self._were_hot = True
        else:
            rumour.is_cool = True
            rumour.heard = self._cool_after
            self._cool[matter] = rumour

    def are_over(self) -> bool:
        """Whether news of hosts or services were hot and none are any more; true once."""
        if not self._were_hot:
            return False
        hosts, services, _ = self._ranks
        self._were_hot = bool(hosts.fresh or hosts.told or services.fresh or services.told)
        return not self._were_hot

    def heard(self, matter: str | tuple[str, str], message: Belief | Entry) -> bool:
        """Somebody else passes *message* on, which is about *matter*; False: we do not, now."""
        rumour = self._rumours.get(matter)
        if rumour is None or not (rumour.message is message or rumour.says(message)):
            return False
        heard = rumour.heard = rumour.heard + 1
        score = self._health.score
        if heard >= self._drop_after + score:
            self._drop(rumour)
            self._latest[rumour.rank].append(rumour.message)
        elif not rumour.is_cool and heard >= self._cool_after + score:
            del self._queue(rumour)[matter]
            rumour.is_cool = True
            self._cool[matter] = rumour
            self.hot -= 1
        return True

    def take(
        self, octets: int, times: int, copies: int = 1
    ) -> tuple[int, Sequence[Belief | Entry]]:
        """
        News for one packet.

        :param octets: room left in it.
        :param times: how often a rumour is told before it is dropped.
        :param copies: hosts that this packet goes to.
        :returns: the octets of the news, and the news.
        """
        if self.is_empty:
            return 0, ()
        chosen: list[_Rumour] = []
        left = octets
        if self.hot:
            hosts, services, load = self._ranks
            # Hosts that come and go all the time must not keep services from being told.
            reserve = left // 4 if services.fresh or services.told else 0
            left -= reserve
            for queue in (hosts.fresh, hosts.told):
                if queue:
                    left = _choose(queue, left, chosen)
            left += reserve
            for queue in (services.fresh, services.told, load.fresh, load.told):
                if queue:
                    left = _choose(queue, left, chosen)
        if self._cool and left >= _LEAST_OCTETS:
            left = _choose(self._cool, left, chosen)
        for rumour in chosen:
            matter = rumour.matter
            if rumour.is_cool:
                queue = later = self._cool
            else:
                rank = self._ranks[rumour.rank]
                later = rank.told
                queue = later if rumour.told else rank.fresh
            del queue[matter]
            rumour.told += copies
            if rumour.told < times:
                later[matter] = rumour
            else:
                del self._rumours[matter]
                self._latest[rumour.rank].append(rumour.message)
                if not rumour.is_cool:
                    self.hot -= 1
        self.is_empty = not self._rumours
        return octets - left, [rumour.message for rumour in chosen]

    def latest(self, octets: int) -> tuple[int, Sequence[Belief | Entry]]:
        """
        What of late is told no more, for one who seems to have missed it.

        Services come first, since where much is lost hosts refute suspicions all the time; the
        latest before the others.  Suspicions are left out: they pass by themselves.
        """
        chosen: list[Belief | Entry] = []
        left = octets
        hosts, services, load = self._latest
        for latest in (services, hosts, load):
            for message in reversed(latest):
                if left < _LEAST_OCTETS:
                    break
                size = message.octets()
                if size <= left and not (
                    type(message) is Belief and message.standing is Standing.SUSPECT
                ):
                    left -= size
                    chosen.append(message)
        return octets - left, chosen

    def _least_worth(self) -> _Rumour:
        services_last = [q for rank in reversed(self._ranks) for q in (rank.told, rank.fresh)]
        return next(next(iter(q.values())) for q in (self._cool, *services_last) if q)

    def _queue(self, rumour: _Rumour) -> dict[_Matter, _Rumour]:
        if rumour.is_cool:
            return self._cool
        rank = self._ranks[rumour.rank]
        return rank.told if rumour.told else rank.fresh

    def _drop(self, rumour: _Rumour) -> None:
        del self._rumours[rumour.matter]
        del self._queue(rumour)[rumour.matter]
        if not rumour.is_cool:
            self.hot -= 1
        self.is_empty = not self._rumours
