"""
A mirror on a network: connects, keeps the client registered, applies what comes.

:class:`MirrorService` is the public API: subscribe with callbacks, or follow with ``async for``
(docs/protocols/event-mirror.rst, "Mirror").
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from math import inf
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.mirror.client import EventClient
from gridnet.mirror.client_machine import Acknowledge, ClientTimes
from gridnet.mirror.filters import What, Where
from gridnet.mirror.link import Connector, Link
from gridnet.mirror.lists import MirrorError
from gridnet.mirror.mirror import ALL, Callback, Change, Mirror, Resync
from gridnet.mirror.model import Action, BusyPolicy, Event, Registration, Result


class _User:
    """Passes on what comes over one link, until the client has given that link up."""

    def __init__(self, service: MirrorService) -> None:
        self._service: MirrorService | None = service

    def forget(self) -> None:
        self._service = None

    # The client may give up the link in the middle of a call: the service is kept at hand.

    def accepted(self, client_id: int) -> None:
        service = self._service
        if service is not None:
            service.client.accepted(client_id, service.now)
            service.arm()

    def refused(self, reason: str, at_least: float = 0.0) -> None:
        service = self._service
        if service is not None:
            service.client.refused(reason, service.now, at_least)
            service.arm()

    def reported(self, events: Sequence[tuple[int, Event]]) -> None:
        service = self._service
        if service is not None:
            service.client.reported(events, service.now)
            service.arm()

    def unknown_to_master(self, reason: str) -> None:
        service = self._service
        if service is not None:
            service.client.unknown_to_master(reason, service.now)
            service.arm()

    def lost(self, reason: str, at_least: float = 0.0) -> None:
        service, self._service = self._service, None
        if service is not None:
            service.client.lost(reason, service.now, at_least)
            service.arm()

    def types_known(self, names: Sequence[str]) -> None:
        if self._service is not None:
            self._service.types_known(names)

    def heard(self) -> None:
        if self._service is not None:
            self._service.client.heard(self._service.now)


class MirrorService(Service):
    """
    One mirror of one master.

    While it runs it stays registered; lists that were mirrored stay readable, marked as stale,
    while the master is away.

    :param wish: name, wanted id, delivery time, policy, session.
    :param automatic: apply what comes as it comes; otherwise :meth:`get_data` does.
    :param max_behind: changes that wait in one ``async for``; beyond it gets whole lists.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        connector: Connector,
        wish: Registration,
        *,
        acknowledge: Acknowledge = Acknowledge.PROCESSED,
        times: ClientTimes | None = None,
        strict: bool = True,
        resync: Resync = Resync.LIST,
        automatic: bool = True,
        max_behind: int = 100_000,
        chance: random.Random | None = None,
    ) -> None:
        self._clock = IReactorTime(reactor)
        self._connector = connector
        self._automatic = automatic
        self._max_behind = max_behind
        self.client = EventClient(self, chance or random.Random(), wish, times, acknowledge)
        self.mirror = Mirror(
            connector.catalogue,
            self.client,
            strict=strict,
            resync=resync,
            canonical_host=connector.canonical_host,
            judges=not connector.judges_conditions,
            trouble=self._trouble,
        )
        self._user: _User | None = None
        self._link: Link | None = None
        self._connecting: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._timer_at = inf
        self._soon: IDelayedCall | None = None
        self._getting: list[tuple[Deferred[Result], IDelayedCall]] = []
        self._stopped: Deferred[None] | None = None
        self._listeners: list[Callable[[str, str], None]] = []
        self._changes: list[Changes] = []
        self._shut_down = False

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.seconds()

    # -- the public API

    def subscribe(
        self,
        object_type: str | int,
        callback: Callback | None = None,
        client_data: Any = None,
        *,
        before: Callback | None = None,
        where: Where | None = None,
        what: What | None = None,
        flush_seconds: int | None = None,
    ) -> None:
        """
        Mirror a type; see :meth:`gridnet.mirror.mirror.Mirror.subscribe`.

        :raises MirrorError: no such type, or one that cannot be subscribed.
        """
        own = getattr(self.mirror.catalogue, "own", None)
        if own is not None and isinstance(object_type, str) and object_type != "ALL":
            own(object_type)  # lists that are only names exist once they are asked for
        self.mirror.subscribe(
            object_type,
            callback,
            client_data,
            before=before,
            where=where,
            what=what,
            flush_seconds=flush_seconds,
        )
        self._process_soon()

    def unsubscribe(self, object_type: str | int) -> None:
        """
        Mirror a type no more.

        :raises MirrorError: no such type, or one that every mirror has.
        """
        self.mirror.unsubscribe(object_type)
        self._process_soon()

    def get_data(self, wait_seconds: float = 0.0) -> Deferred[Result]:
        """
        Apply what has come.

        :param wait_seconds: if nothing has, wait this long for it.
        :returns: fires with ``OK``, ``PROCESS_ERRORS``, ``TIMEOUT`` when the master is lost (the
            copies stay, and it is looked for), or ``NOT_INITIALIZED`` before the start.
        """
        result: Deferred[Result] = Deferred()
        if not self.running:
            result.callback(Result.NOT_INITIALIZED)
        elif self.client.waiting or wait_seconds <= 0:
            result.callback(self._process(limited=True))
        else:
            self.client.commit(self.now)
            timer = self._clock.callLater(wait_seconds, self._stop_waiting, result)
            self._getting.append((result, timer))
        self.arm()
        return result

    def commit(self) -> None:
        """Send what has changed about subscriptions and settings now."""
        self.client.commit(self.now)
        self.arm()

    def changes(self, *object_types: str) -> Changes:
        """
        Follow changes with ``async for``; of these types, subscribed if need be, or of all.

        A consumer that falls behind gets whole lists instead of what it missed.
        """
        for name in object_types:
            if name not in {kind.name for kind in self.mirror.followed}:
                self.subscribe(name)
        found = Changes(self.mirror, frozenset(object_types), self._max_behind)
        self._changes = [each for each in self._changes if not each.ended]
        self._changes.append(found)
        return found

    def when_current(self, *object_types: str) -> Deferred[None]:
        """Fires once the lists of these types are there and kept current."""
        done: Deferred[None] = Deferred()

        def look(change: Change | None = None) -> None:
            if not done.called and all(map(self.mirror.is_current, object_types)):
                stop()
                done.callback(None)

        stop = self.mirror.watch(look)
        look()
        return done

    def on_state(self, listener: Callable[[str, str], None]) -> None:
        """
        Have *listener* called with (state, reason) at each change: ``registered``, ``parted``,
        ``ended`` (by the master's wish; see :meth:`restart`).
        """
        self._listeners.append(listener)

    def restart(self) -> None:
        """Register again, after the master asked the client to leave."""
        self._shut_down = False
        if self.running:
            self.client.begin(self.now)
            self.arm()

    def shutdown(self) -> Deferred[None]:
        """
        Leave, and forget all subscriptions, callbacks and copies.

        Whoever wants to mirror again subscribes and calls :meth:`startService`.

        :returns: fires as that of :meth:`stopService` does.
        """
        self.mirror.unsubscribe(ALL)
        return self.stopService() if self.running else succeed(None)

    def set_busy(self, busy: bool) -> None:
        """Tell the master that this client is busy, or free again."""
        self.client.set_busy(busy)
        self.commit()

    def set_busy_policy(self, policy: BusyPolicy) -> None:
        """When the master is to take this client for busy."""
        self.client.set_busy_policy(policy)
        self.commit()

    # -- life

    def startService(self) -> None:
        """Begin to register."""
        super().startService()
        self.client.begin(self.now)
        self.arm()

    def stopService(self) -> Deferred[None]:
        """Leave properly; fires once the master has closed, or time is up."""
        done: Deferred[None] = Deferred()
        super().stopService()
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        for result, timer in self._getting:
            timer.cancel()
            result.callback(Result.NOT_INITIALIZED)
        self._getting.clear()
        for changes in self._changes:
            changes.end()
        self._changes.clear()
        self._stopped = done
        self.client.leave(self.now)
        self.arm()
        return done

    def arm(self) -> None:
        """See to it that the client's deadline is met, and that a stop comes to its end."""
        if self._stopped is not None and self.client.state == "idle":
            done, self._stopped = self._stopped, None
            self._cancel_timer()
            done.callback(None)
            return
        deadline = self.client.deadline
        if self._timer_at <= deadline != inf:
            return  # mostly the deadline has moved away: the timer finds that out
        self._cancel_timer()
        if deadline != inf:
            self._timer_at = deadline
            self._timer = self._clock.callLater(max(0.0, deadline - self.now), self._elapsed)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = inf

    def _elapsed(self) -> None:
        # The reactor calls what is overdue before it reads: after a pause of this process a sign
        # of life may wait in the socket, so the client is told one reading later.
        deadline = self._timer_at
        self._timer = self._clock.callLater(0, self._still_elapsed, deadline)

    def _still_elapsed(self, deadline: float) -> None:
        self._timer, self._timer_at = None, inf
        # Clocks and timers may disagree by a little: the client is told the time it waits for.
        self.client.elapsed(max(self.now, deadline))
        self.arm()

    def _process(self, limited: bool = False) -> Result:
        result = self.mirror.process(self.now, limited)
        if result is Result.OK and not self.client.is_registered and self.client.core.last_error:
            return Result.TIMEOUT
        return result

    def _process_soon(self) -> None:
        if self._automatic and self._soon is None and self.running:
            self._soon = self._clock.callLater(0, self._process_now)

    def _process_now(self) -> None:
        self._soon = None
        with self._log.failuresHandled("while applying mirrored events"):
            self.mirror.process(self.now)
        self.arm()

    def _stop_waiting(self, result: Deferred[Result]) -> None:
        self._getting = [entry for entry in self._getting if entry[0] is not result]
        result.callback(self._process(limited=True))
        self.arm()

    def _trouble(self, text: str, error: BaseException | None) -> None:
        if error is None:
            self._log.warn("{master}: {text}", master=self._connector.describe(), text=text)
        else:
            self._log.failure(
                "{master}: {text}",
                Failure(error),
                master=self._connector.describe(),
                text=text,
            )

    # -- what the client asks of its surroundings

    def open(self) -> None:
        """The client wants a connection."""
        self.close()
        user = self._user = _User(self)
        connecting = self._connecting = self._connector.connect(user)

        def connected(link: Link) -> None:
            self._connecting = None
            if self._user is not user:
                link.abort()
                return
            self._link = link
            self.client.opened(self.now)
            self.arm()

        def failed(failure: Failure) -> None:
            if self._user is user:
                self._connecting = None
                wait = getattr(failure.value, "retry_seconds", 0.0)
                user.lost(failure.getErrorMessage(), wait)

        connecting.addCallbacks(connected, failed)
        connecting.addErrback(lambda failure: self._log.failure("connecting to a master", failure))

    def close(self) -> None:
        """The client drops its connection."""
        if self._user is not None:
            self._user.forget()
            self._user = None
        if self._connecting is not None:
            connecting, self._connecting = self._connecting, None
            connecting.cancel()
        if self._link is not None:
            link, self._link = self._link, None
            link.abort()

    def register(self, wish: Registration) -> None:
        """The client registers."""
        if self._link is not None:
            self._link.register(wish)

    def modify(self, wish: Registration) -> None:
        """The client modifies itself."""
        if self._link is not None:
            self._link.modify(wish)

    def acknowledge(self, number: int, client_id: int) -> None:
        """The client acknowledges."""
        if self._link is not None:
            self._link.acknowledge(number, client_id)

    def leave(self, client_id: int) -> None:
        """The client leaves."""
        if self._link is not None:
            self._link.leave(client_id)

    def registered(self) -> None:
        """The client is registered."""
        self._log.info("{master}: registered", master=self._connector.describe())
        self.mirror.registered()
        self._tell("registered", "")

    def arrived(self) -> None:
        """Events wait."""
        self._process_soon()
        getting, self._getting = self._getting, []
        for result, timer in getting:
            timer.cancel()
            # Not from inside the client's own transition.
            self._clock.callLater(0, lambda r=result: r.callback(self._process(limited=True)))

    def parted(self, reason: str) -> None:
        """The client lost its registration."""
        self._log.info(
            "{master}: not registered, {reason}", master=self._connector.describe(), reason=reason
        )
        self.mirror.parted()
        self._tell("parted", reason)

    def ended(self, reason: str) -> None:
        """The master asked the client to leave."""
        self._log.info("{master}: {reason}", master=self._connector.describe(), reason=reason)
        self._shut_down = True
        self.mirror.parted()
        self._tell("ended", reason)

    def _tell(self, state: str, reason: str) -> None:
        for listener in tuple(self._listeners):
            listener(state, reason)

    def types_known(self, names: Sequence[str]) -> None:
        """The master has lists of these names."""
        own = getattr(self.mirror.catalogue, "own", None)
        if own is not None:
            for name in names:
                own(name)
        self.mirror.follow_all()
        if self.mirror.lacks(names):
            self.client.send_again()
        self._process_soon()


class Changes(AsyncIterator[Change]):
    """
    Changes of a mirror, one after the other, for ``async for``; see
    :meth:`MirrorService.changes`.
    """

    def __init__(self, mirror: Mirror, names: frozenset[str], max_behind: int) -> None:
        self._mirror = mirror
        self._names = names
        self._max = max_behind
        self._waiting: deque[Change] = deque()
        self._consumer: Deferred[Change] | None = None
        self.ended = False  #: by its consumer, or with the mirror
        self._stop = mirror.watch(self._changed)
        for kind in mirror.followed:
            if self._wants(kind.name) and mirror.lists.has(kind.name):
                self._waiting.append(self._whole(kind.name))

    def _wants(self, name: str) -> bool:
        return not self._names or name in self._names

    def _whole(self, name: str) -> Change:
        kind = self._mirror.catalogue.by_name[name]
        return Change(kind, Action.LIST, None, Event(kind.list_event))

    def _changed(self, change: Change) -> None:
        if not self._wants(change.object_type.name):
            return
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            consumer.callback(change)
            return
        if len(self._waiting) >= self._max:
            names = {waiting.object_type.name for waiting in self._waiting}
            self._waiting.clear()
            self._waiting.extend(self._whole(name) for name in sorted(names) if self._is_list(name))
        self._waiting.append(change)

    def _is_list(self, name: str) -> bool:
        return bool(self._mirror.catalogue.by_name[name].list_event)

    def __aiter__(self) -> Changes:
        return self

    def __anext__(self) -> Deferred[Change]:
        found: Deferred[Change] = Deferred(self._forget)
        if self._waiting:
            found.callback(self._waiting.popleft())
        elif self.ended:
            found.errback(StopAsyncIteration())
        elif self._consumer is not None:
            found.errback(MirrorError(Result.BAD_ARGUMENT, "changes have one consumer"))
        else:
            self._consumer = found
        return found

    def _forget(self, consumer: Deferred[Change]) -> None:
        if self._consumer is consumer:
            self._consumer = None

    def end(self) -> None:
        """No more changes: the loop ends once it has those that wait."""
        self.ended = True
        self._stop()
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            consumer.errback(StopAsyncIteration())
