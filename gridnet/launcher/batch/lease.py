"""Keeping a server in the table of this host's daemon (docs/protocols/lbsmd-control.rst)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.errors import GridnetError

#: Asks the daemon a question; the Deferred fails with a GridnetError when there is no answer.
Ask = Callable[[Mapping[str, Any]], Deferred[Any]]
#: Renewals in the time of one lease: one may be lost.
_RENEWALS = 3
_RETRY_SECONDS = 1.0


class Lease:
    """
    Registers a server, renews it, tells what changes, and registers again where it must.

    One question at a time is under way, so that the daemon hears of changes in their order.

    :param server: the service line.
    :param rate: its base rate.
    :param lease_seconds: the validity that the line asks for.
    :param registered: called when the server is in the table, and when it is again.
    :param refused: called with the reason each time when it cannot be registered.
    """

    _log = Logger()

    def __init__(
        self,
        ask: Ask,
        server: str,
        rate: float,
        lease_seconds: float,
        registered: Callable[[], None],
        refused: Callable[[str], None],
        reactor: Any,
    ) -> None:
        self._ask = ask
        self._server = server
        self._lease_seconds = lease_seconds
        self._registered = registered
        self._refused = refused
        self._clock = IReactorTime(reactor)
        self._line_rate = rate
        self._rate = rate
        self._penalty = 0.0
        self._token = ""
        self._told: tuple[float, float] | None = None  #: rate and penalty that the daemon knows
        self._asking: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._wanted = False
        self._ended: Deferred[None] | None = None
        self._settled: list[Deferred[None]] = []

    @property
    def held(self) -> bool:
        """Whether the daemon has the server, as far as is known."""
        return bool(self._token)

    def begin(self) -> None:
        """Have the server in the table from now on."""
        self._wanted = True
        self._go_on()

    def change(self, rate: float | None = None, penalty: float | None = None) -> Deferred[None]:
        """
        Change what the table says of the server.

        :returns: fires once the daemon has heard, or cannot.
        """
        self._rate = self._rate if rate is None else rate
        self._penalty = self._penalty if penalty is None else penalty
        if not self._wanted:
            return succeed(None)
        settled: Deferred[None] = Deferred()
        self._settled.append(settled)
        self._go_on()
        return settled

    def end(self) -> Deferred[None]:
        """Take the server out; fires once it is, or when that cannot be told."""
        if self._ended is None:
            self._wanted = False
            self._ended = Deferred()
            self._stop_waiting()
            if self._asking is None:
                self._leave()
        waiting: Deferred[None] = Deferred()
        self._ended.chainDeferred(waiting)
        return waiting

    # -- inside

    def _stop_waiting(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _again(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = self._clock.callLater(seconds, self._go_on)

    def _go_on(self) -> None:
        if self._asking is not None or not self._wanted:
            return
        self._stop_waiting()
        said = (self._rate, self._penalty)
        if self._token:
            question = {"ask": "renew", "token": self._token, "rate": said[0], "penalty": said[1]}
        else:
            question = {"ask": "register", "server": self._server, "penalty": said[1]}
        self._asking = asking = self._ask(question)
        asking.addCallbacks(self._answered, self._failed, callbackArgs=(said,))
        asking.addErrback(lambda failure: self._log.failure("keeping a server registered", failure))

    def _answered(self, answer: Any, said: tuple[float, float]) -> None:
        self._asking = None
        fresh = not self._token
        if fresh:
            self._token = str(answer["token"])
            self._told = (self._line_rate, said[1])
        else:
            self._told = said
        self._lease_seconds = float(answer["lease_seconds"])
        if not self._wanted:
            self._leave()
            return
        if fresh:
            self._registered()
        if self._told != (self._rate, self._penalty):
            self._go_on()
            return
        self._settle()
        self._again(self._lease_seconds / _RENEWALS)

    def _failed(self, failure: Failure) -> None:
        failure.trap(GridnetError)
        self._asking = None
        lost = bool(self._token)
        # Perhaps it is another daemon now, which knows nothing of us.
        self._token = ""
        if not self._wanted:
            self._leave()
            return
        self._settle()
        self._refused(failure.getErrorMessage())
        self._again(0.0 if lost else min(_RETRY_SECONDS, self._lease_seconds / _RENEWALS))

    def _settle(self) -> None:
        settled, self._settled = self._settled, []
        for each in settled:
            each.callback(None)

    def _leave(self) -> None:
        ended = self._ended
        if ended is None:
            return
        self._settle()
        token, self._token = self._token, ""
        if not token:
            ended.callback(None)
            return
        asking = self._ask({"ask": "deregister", "token": token})
        # Who cannot say goodbye is forgotten when the lease is over.
        asking.addErrback(lambda failure: failure.trap(GridnetError) and None)
        asking.addErrback(lambda failure: self._log.failure("deregistering", failure))
        asking.addCallback(lambda _: ended.callback(None))
