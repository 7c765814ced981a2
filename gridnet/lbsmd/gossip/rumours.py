"""What is still to be passed on, and how often."""

from __future__ import annotations

from attrs import define

from gridnet.lbsmd.gossip.messages import Belief, Entry


@define
class _Rumour:
    message: Belief | Entry
    rank: int  # 0: hosts, 1: services, 2: load
    told: int = 0


class Rumours:
    """
    News to piggy-back: hosts before services before load, the least told first.

    A newer rumour of the same matter replaces the older; when full, the most told goes.
    """

    def __init__(self, max_rumours: int) -> None:
        self._max_rumours = max_rumours
        self._rumours: dict[tuple[str, str], _Rumour] = {}

    def __len__(self) -> int:
        return len(self._rumours)

    def clear(self) -> None:
        """Forget all news."""
        self._rumours.clear()

    def add(self, message: Belief | Entry) -> None:
        """Pass *message* on from now."""
        if isinstance(message, Belief):
            matter, rank = (message.host, ""), 0
        else:
            matter, rank = (message.owner, "/" + message.key), 2 if message.is_load else 1
        self._rumours.pop(matter, None)
        if len(self._rumours) >= self._max_rumours:
            spent = max(self._rumours, key=lambda m: self._order(m))
            del self._rumours[spent]
        self._rumours[matter] = _Rumour(message, rank)

    def _order(self, matter: tuple[str, str]) -> tuple[int, int]:
        rumour = self._rumours[matter]
        return rumour.rank, rumour.told

    def take(self, octets: int, times: int) -> list[Belief | Entry]:
        """
        News for one packet.

        :param octets: room left in it.
        :param times: how often a rumour is told before it is dropped.
        """
        taken: list[Belief | Entry] = []
        for matter in sorted(self._rumours, key=self._order):
            rumour = self._rumours[matter]
            size = rumour.message.octets()
            if size > octets:
                continue
            octets -= size
            taken.append(rumour.message)
            rumour.told += 1
            if rumour.told >= times:
                del self._rumours[matter]
        return taken
