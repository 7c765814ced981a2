"""Callers of ``scire.wait``: who waits, and who is woken (docs/protocols/scire.rst, Load)."""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gridnet.scire.faults import FaultCode, ScireFault

#: Callers of one client, so that nobody takes all places.
MAX_OF_ONE = 4
#: Clients whose last told wishes are remembered.
_MAX_TOLD = 20_000


class Waits:
    """
    The waiting callers of this server.

    :param places: waiting at a time.
    """

    def __init__(self, reactor: IReactorTime, places: int) -> None:
        self._reactor = reactor
        self._places = places
        self._waiting: dict[int, set[Deferred[bool]]] = {}
        self._told: OrderedDict[int, frozenset[tuple[int, int]]] = OrderedDict()
        self.count = 0

    def news(self, client: int, wishes: frozenset[tuple[int, int]]) -> bool:
        """
        Whether *wishes* (run, kind) hold something that *client* was not told last time.

        Without this a client that takes its time to end a run would be told without end.
        """
        known = self._told.pop(client, frozenset())
        if wishes:
            self._told[client] = wishes
            if len(self._told) > _MAX_TOLD:
                self._told.popitem(last=False)
        return not wishes <= known

    def told(self, client: int) -> frozenset[tuple[int, int]]:
        """What *client* was told last time."""
        return self._told.get(client, frozenset())

    def wait(self, client: int, seconds: float) -> Deferred[bool]:
        """
        Wait to be woken.

        :returns: fires with whether it was (False: the time is over).
        :raises ScireFault: 1060 too many wait.
        """
        if self.count >= self._places or len(self._waiting.get(client, ())) >= MAX_OF_ONE:
            raise ScireFault(FaultCode.BUSY, "too many wait", retry_after=30)
        waiter: Deferred[bool] = Deferred()
        timeout = self._reactor.callLater(seconds, self._wake, client, waiter, False)
        self._waiting.setdefault(client, set()).add(waiter)
        self.count += 1

        def ended(result: bool) -> bool:
            if timeout.active():
                timeout.cancel()
            return result

        return waiter.addCallback(ended)

    def _wake(self, client: int, waiter: Deferred[bool], woken: bool) -> None:
        waiting = self._waiting.get(client)
        if waiting is None or waiter not in waiting:
            return
        waiting.discard(waiter)
        if not waiting:
            del self._waiting[client]
        self.count -= 1
        waiter.callback(woken)

    def wake(self, client: int) -> None:
        """Wake those of *client*."""
        for waiter in list(self._waiting.get(client, ())):
            self._wake(client, waiter, True)

    def wake_all(self) -> None:
        """Wake everybody: the server goes down, or may have missed something."""
        for client in list(self._waiting):
            self.wake(client)
