"""Finds the hosts that own what somebody asks about, and has them do it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.lbsmd.authority import find_asker
from gridnet.lbsmd.feedback import FeedbackError, Request, Target
from gridnet.lbsmd.orders import FeedbackCarrier, Order, RefusedError, at_host, one_line
from gridnet.lbsmd.penalties import Outcome, Penalties, fits
from gridnet.table.address import canonical_address, is_loopback
from gridnet.table.model import ServiceTable

#: Reasons of hosts that are told one by one.
_TOLD_REASONS = 5
#: That look up users, and as many that look up names: the process has few, for everything.
_THREADS = 2


class OrderRouting:
    """
    Takes requests of this host's users.

    :ivar carrier: brings orders to other hosts.
    :param address: of this host.
    :param resolve: gives the address of a host name, or raises OSError; blocks.
    :param run_in_thread: calls a function that blocks: ``Deferred`` of its result.
    :param max_orders: requests under way at a time, a quarter of them of one user but for root;
        more are refused.
    :param seconds: that looking up names may take.
    :param share: runs work of a user (a :class:`gridnet.time_share.TimeShare`'s ``run``): to find
        the servers that a mask means takes its time.
    """

    _log = Logger()

    def __init__(
        self,
        table: ServiceTable,
        address: str,
        penalties: Penalties,
        carrier: FeedbackCarrier,
        resolve: Callable[[str], str],
        run_in_thread: Callable[..., Deferred[Any]],
        clock: IReactorTime,
        max_orders: int = 64,
        seconds: float = 10.0,
        share: Callable[[Hashable, Callable[[], object]], bool] | None = None,
    ) -> None:
        self.carrier = carrier
        self._table = table
        self._address = address
        self._penalties = penalties
        self._resolve = resolve
        self._run_in_thread = run_in_thread
        self._clock = clock
        self._max_orders = max_orders
        self._seconds = seconds
        self._under_way: Counter[int] = Counter()
        self._users = DeferredSemaphore(_THREADS)
        self._names = DeferredSemaphore(_THREADS)
        self._share = share

    def ask(self, request: Request, uid: int, reason: str = "") -> Deferred[str]:
        """
        Have *request* done, wherever its servers are configured.

        :param uid: who asks, as the kernel says.
        :param reason: what it is for, as they say.
        :returns: what was done, for the asker.  Fails with :exc:`RefusedError`.
        """
        under_way = self._under_way
        # One user leaves room for others, and all of them for root.
        most = max(1, self._max_orders // 4)
        if uid != 0 and (under_way[uid] >= most or under_way.total() >= self._max_orders):
            return _refused("too many requests are under way already; try again")
        if under_way[uid] >= self._max_orders:
            return _refused(f"{self._max_orders} requests are under way already; try again")
        under_way[uid] += 1
        asking = Deferred.fromCoroutine(self._ask(request, uid, one_line(reason)))
        return asking.addBoth(self._asked, uid)

    def _asked(self, result: Any, uid: int) -> Any:
        self._under_way -= Counter((uid,))
        return result

    async def _ask(self, request: Request, uid: int, reason: str) -> str:
        asker = await self._users.run(self._run_in_thread, find_asker, uid, self._address)
        request = await self._with_address(request)
        await self._turn(uid)
        order = Order(request, asker, reason)
        owners = self._owners(request.target)
        if not owners:
            raise RefusedError("no host of the site has such a server in the table")
        local = owners.pop(self._address, False)
        sent = {host: self._send(host, order) for host in owners}
        told: list[str] = []
        refusals: dict[str, str] = {}
        if local:
            try:
                told.append(_told(await self._penalties.carry_out(order), "this host"))
            except FeedbackError as error:
                refusals["this host"] = str(error)
        for host, sending in sent.items():
            try:
                await sending
                told.append(f"servers of {host}")
            except FeedbackError as error:
                refusals[host] = str(error)
        reasons = _reasons(refusals)
        if not told:
            raise RefusedError(reasons)
        done = f"done for {', '.join(told[:_TOLD_REASONS])}"
        if len(told) > _TOLD_REASONS:
            done += f" and {len(told) - _TOLD_REASONS} more hosts"
        return f"{done}; refused: {reasons}" if refusals else done

    async def _turn(self, uid: int) -> None:
        """Wait until it is the turn of that user."""
        if self._share is None:
            return
        turn: Deferred[None] = Deferred()
        if not self._share(uid, lambda: turn.callback(None)):
            raise RefusedError("too many requests of yours are waiting")
        await turn

    def _send(self, host: str, order: Order) -> Deferred[None]:
        if order.request.target.host is None:
            order = evolve(order, request=at_host(order.request, self._address))
        return maybeDeferred(self.carrier.send_feedback, host, order).addErrback(_as_refusal, host)

    async def _with_address(self, request: Request) -> Request:
        """*request* with an address in place of a host's name, and no host for this one."""
        host = request.target.host
        if host is None:
            return request
        address = canonical_address(host)
        if address is None:
            try:
                found = await self._look_up(host).addTimeout(self._seconds, self._clock)
            except OSError as error:
                raise RefusedError(f"host {host} is not known: {error.strerror or error}") from None
            except DeferTimeoutError:
                raise RefusedError(f"host {host}: no address within {self._seconds:g} s") from None
            address = canonical_address(found)
            if address is None:
                raise RefusedError(f"host {host} has no address")
        # Another daemon may have a loopback address too, where a site is tried on one machine.
        own = is_loopback(address) and self._table.host(address) is None
        if own or address == self._address:
            return evolve(request, target=evolve(request.target, host=None))
        return at_host(request, address)

    def _look_up(self, host: str) -> Deferred[str]:
        """The address of *host*; giving up to wait for it does not give its thread to others."""
        found: Deferred[str] = Deferred()

        def ended(result: Any) -> None:
            if not found.called:
                found.callback(result)  # a Failure makes it fail

        self._names.run(self._run_in_thread, self._resolve, host).addBoth(ended)
        return found

    def _owners(self, target: Target) -> dict[str, bool]:
        """The hosts that are to be told, as keys."""
        owners = {
            entry.owner: True
            for entry in self._table.matching(target.service)
            if fits(target, entry, self._address)
        }
        if self._penalties.matching(target):
            # Also those that are not in the table now, because they are switched off.
            owners[self._address] = True
        if not owners and target.host is not None and self._table.host(target.host) is not None:
            owners[target.host] = True
        return owners


def _told(outcome: Outcome, where: str) -> str:
    plural = "" if outcome.servers == 1 else "s"
    text = f"{outcome.servers} server{plural} of {where}"
    if outcome.forbidden:
        text += f" ({outcome.forbidden} more are not yours to operate on)"
    return text


def _reasons(refusals: Mapping[str, str]) -> str:
    reasons: Iterable[str] = (f"{host}: {reason}" for host, reason in refusals.items())
    shown = list(reasons)
    more = f"; and {len(shown) - _TOLD_REASONS} more" if len(shown) > _TOLD_REASONS else ""
    return "; ".join(shown[:_TOLD_REASONS]) + more


def _as_refusal(failure: Failure, host: str) -> Any:
    """Whatever keeps an order from another host is told to the asker."""
    if failure.check(FeedbackError) is not None:
        return failure
    raise RefusedError(f"{host} cannot be told: {failure.getErrorMessage()}")


def _refused(reason: str) -> Deferred[Any]:
    done: Deferred[Any] = Deferred()
    done.errback(RefusedError(reason))
    return done
