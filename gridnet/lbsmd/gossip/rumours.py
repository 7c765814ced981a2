"""What is still to be passed on, and how often."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

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
    cool: dict[_Matter, _Rumour]  # those that are not hot, likewise
    latest: deque[Belief | Entry]  # what is told no more

    def queue(self, rumour: _Rumour) -> dict[_Matter, _Rumour]:
        """The one in which *rumour* waits."""
        if rumour.is_cool:
            return self.cool
        return self.told if rumour.told else self.fresh


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


def _choose_latest(latest: deque[Belief | Entry], octets: int, chosen: list[Belief | Entry]) -> int:
    # The latest first.  What was looked at goes behind the rest, so that the next gets that.
    looked_at = 0
    number = len(chosen)
    for message in reversed(latest):
        if octets < _LEAST_OCTETS:
            break
        size = message.octets()
        if size <= octets:
            octets -= size
            chosen.append(message)
        elif len(chosen) > number:
            break  # the first of the next time
        looked_at += 1
    latest.rotate(looked_at)
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
        "_cool_after",
        "_drop_after",
        "_health",
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
        self._ranks = tuple(_Rank({}, {}, {}, deque(maxlen=_LATEST)) for _ in range(3))
        self._were_hot = False  # any but loads, since it was asked whether they are over
        self.hot = 0

    def __len__(self) -> int:
        return len(self._rumours)

    def clear(self) -> None:
        """Forget all news."""
        for rumour in tuple(self._rumours.values()):
            self._drop(rumour)
        for rank in self._ranks:
            rank.latest.clear()
        self._were_hot = False

    def add(self, message: Belief | Entry, is_urgent: bool = True) -> None:
        """Pass *message* on from now; if not *is_urgent*, with other packets only."""
        matter: _Matter
        if type(message) is Belief:
            matter, rank = message.host, 0
        else:
            assert type(message) is Entry
            matter, rank = message.matter, 2 if message.is_load else 1
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
            self._ranks[rank].cool[matter] = rumour

    def are_over(self) -> bool:
        """Whether news of hosts or services were hot and none are any more; true once."""
        if not self._were_hot:
            return False
        hosts, services, _ = self._ranks
        self._were_hot = bool(hosts.fresh or hosts.told or services.fresh or services.told)
        return not self._were_hot

    def heard(
        self, matter: str | tuple[str, str], message: Belief | Entry
    ) -> Belief | Entry | None:
        """
        Somebody else passes *message* on, which is about *matter*.

        :returns: what we tell, if that says the same; None: we do not tell that now.
        """
        rumour = self._rumours.get(matter)
        if rumour is None:
            return None
        ours = rumour.message
        if ours is not message and not rumour.says(message):
            return None
        rumour.heard = heard = rumour.heard + 1
        # Most of what is heard is cool and not old yet.
        if heard >= (self._drop_after if rumour.is_cool else self._cool_after):
            self._grow_old(rumour, heard - self._health.score)
        return ours

    def _grow_old(self, rumour: _Rumour, heard: int) -> None:
        if heard >= self._drop_after:
            self._drop(rumour)
            self._keep_latest(rumour)
        elif heard >= self._cool_after and not rumour.is_cool:
            rank = self._ranks[rumour.rank]
            del rank.queue(rumour)[rumour.matter]
            rumour.is_cool = True
            rank.cool[rumour.matter] = rumour
            self.hot -= 1

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
        if left >= _LEAST_OCTETS and len(self._rumours) > self.hot:
            for rank in self._ranks:
                if rank.cool:
                    left = _choose(rank.cool, left, chosen)
        self._count(chosen, times, copies)
        return octets - left, [rumour.message for rumour in chosen]

    def missed(self, octets: int, times: int) -> tuple[int, Sequence[Belief | Entry]]:
        """
        For one packet to a host that has missed something, probably of late.

        Services come first, whether they are still told or not: where much is lost, hosts are
        suspected and refute all the time, and would fill the packet.  Other news get what is left,
        at least a quarter; then comes what else is told no more.  Of that suspicions are left out:
        they pass by themselves.  Takes and gives what :meth:`take` does.
        """
        hosts, services, load = self._ranks
        chosen: list[_Rumour] = []
        late: list[Belief | Entry] = []
        kept = 0 if self.is_empty else octets // 4
        # Nothing else will bring what is told no more.
        left = _choose_latest(services.latest, octets - kept, late)
        for queue in (services.cool, services.fresh, services.told):
            if queue:
                left = _choose(queue, left, chosen)
        left += kept
        for queue in (hosts.fresh, hosts.told, load.fresh, load.told, hosts.cool, load.cool):
            if queue:
                left = _choose(queue, left, chosen)
        left = _choose_latest(hosts.latest, left, late)
        left = _choose_latest(load.latest, left, late)
        self._count(chosen, times, 1)
        return octets - left, [*late, *(rumour.message for rumour in chosen)]

    def _count(self, chosen: Iterable[_Rumour], times: int, copies: int) -> None:
        """These are told *copies* times now."""
        for rumour in chosen:
            matter, rank = rumour.matter, self._ranks[rumour.rank]
            # Not _Rank.queue(): this is most of what telling costs.
            if rumour.is_cool:
                queue = later = rank.cool
            else:
                later = rank.told
                queue = later if rumour.told else rank.fresh
            del queue[matter]
            rumour.told += copies
            if rumour.told < times:
                later[matter] = rumour
            else:
                del self._rumours[matter]
                self._keep_latest(rumour)
                if not rumour.is_cool:
                    self.hot -= 1
        self.is_empty = not self._rumours

    def _keep_latest(self, rumour: _Rumour) -> None:
        message = rumour.message
        if isinstance(message, Entry) or message.standing is not Standing.SUSPECT:
            self._ranks[rumour.rank].latest.append(message)

    def _least_worth(self) -> _Rumour:
        ranks = self._ranks[::-1]
        cool = [rank.cool for rank in ranks]
        hot = [queue for rank in ranks for queue in (rank.told, rank.fresh)]
        return next(next(iter(queue.values())) for queue in (*cool, *hot) if queue)

    def _drop(self, rumour: _Rumour) -> None:
        del self._rumours[rumour.matter]
        del self._ranks[rumour.rank].queue(rumour)[rumour.matter]
        if not rumour.is_cool:
            self.hot -= 1
        self.is_empty = not self._rumours
