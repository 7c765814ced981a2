"""
The event master: lists in, numbered events out, one queue for each client.

Pure: it is told the time with every call and hands reports to the :class:`ClientPort` of each
client.  The rules are those of docs/protocols/event-mirror.rst, "Event master".

What waits for clients is in :mod:`gridnet.mirror.feed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf

from attrs import evolve, frozen

from gridnet.errors import LocalProtocolError
from gridnet.mirror.admission import (
    FIRST_DYNAMIC_ID,
    MAX_TIMEOUT_SECONDS,
    MIN_TIMEOUT_SECONDS,
    SCHEDULER_ID,
    TIMEOUT_DELIVERY_TIMES,
    RegistrationError,
    UnknownClient,
    check_modification,
    check_wish,
)
from gridnet.mirror.catalogue import (
    MASTER_GOES_DOWN,
    OBLIGATORY,
    SHUTDOWN,
    TIMED_OUT,
    Catalogue,
    ObjectType,
    Shape,
)
from gridnet.mirror.element import Element, ElementList
from gridnet.mirror.feed import Client, ClientPort, ClientState, Feed
from gridnet.mirror.lists import Applied, ObjectLists
from gridnet.mirror.model import Action, BusyPolicy, Event, Registration, Report, Subscribed
from gridnet.mirror.narrow import Change, has_conditions, narrowed, reduced_rows


@frozen
class MasterLimits:
    """Bounds of an event master."""

    max_clients: int = 5000  #: with ids that were given out
    max_queued_events: int = 100_000  #: unacknowledged, per client
    max_queued_octets: int = 256 * 1024 * 1024  #: unacknowledged, per client, about
    min_timeout_seconds: float = MIN_TIMEOUT_SECONDS
    max_timeout_seconds: float = MAX_TIMEOUT_SECONDS
    scheduler_timeout_seconds: float = 0.0  #: for client id 1; 0: as for the others


Remark = Callable[[str], None]

#: Clients that one round serves.
BURST = 100


class EventMaster:
    """
    See the module.

    :param remark: told in a sentence about what a person may want to know (misbehaving clients).
    """

    def __init__(
        self,
        catalogue: Catalogue,
        limits: MasterLimits | None = None,
        canonical_host: Callable[[str], str] = str.lower,
        remark: Remark = lambda text: None,
    ) -> None:
        self.catalogue = catalogue
        self.limits = limits or MasterLimits()
        self.lists = ObjectLists(catalogue, canonical_host)
        self.clients: dict[int, Client] = {}
        self.going_down = False
        self.recorded = 0  #: events recorded since the start
        self.delivered = 0  #: events handed to transports, repeats included
        self._remark = remark
        self._feeds: dict[object, Feed] = {}
        self._by_event: dict[int, list[Feed]] = {}
        self._conditions = 0  #: how many feeds have conditions
        self._addresses: dict[tuple[str, str, int], int] = {}
        self._lowest_free = FIRST_DYNAMIC_ID
        self._pending: list[tuple[Event, str]] | None = None
        self._tried: ObjectLists | None = None  #: the lists with what is pending
        #: whole lists, until something changes: clients that come together share them
        self._snapshots: dict[str, ElementList] = {}
        #: types that clients want and whose list is not known; whoever can provide one, does
        self.missing: set[str] = set()
        #: whether the last round left some who were due
        self.is_behind = False
        #: when the next round is due; falls with every change that is to be flushed
        self.wake_at = inf

    # -- the lists

    def record(self, event: Event, now: float, session: str = "") -> Applied | None:
        """
        A change of the master's lists: apply it and queue it for everyone who wants it.

        Inside :meth:`transaction` it waits for the end of the transaction.

        :param session: set when it was raised for the clients of one session.
        :raises gridnet.mirror.lists.ApplyError: it does not fit the lists.
        """
        if not event.timestamp:
            event.timestamp = int(now)
        if self._pending is not None and self._tried is not None:
            if self._tried.apply(event) is None:
                raise _unknown_event(event)
            self._pending.append((event, session))
            return None
        change = Change.of(event, self.catalogue)
        if change is None:
            raise _unknown_event(event)
        kind, action = change.kind, change.action
        was_known = kind.shape is Shape.TRIGGER or self.lists.has(kind.name)
        if self._conditions:
            change.before = change.elements(self.lists)
        self._snapshots.clear()
        applied = self.lists.apply(event)
        if action is Action.MODIFY and kind.maintained_elsewhere and event.elements:
            change.event = self._without_nested(event, kind.maintained_elsewhere)
        if action is Action.LIST and not was_known:
            self._list_is_known(kind.name, now)
        else:
            self._queue(change, now, session)
        return applied

    @staticmethod
    def _without_nested(event: Event, attributes: Sequence[str]) -> Event:
        rows = event.elements
        if rows is None or all(row.get(name) is None for row in rows for name in attributes):
            return event
        changes = dict.fromkeys(attributes)
        return Event(
            event.event,
            event.timestamp,
            event.int_key,
            event.int_key2,
            event.text_key,
            event.text_key2,
            rows.with_elements(row.evolve(changes) for row in rows),
        )

    @contextmanager
    def transaction(self, now: float) -> Iterator[None]:
        """
        What is recorded inside becomes visible together at the end, or, after an error, not
        at all.  Each is tried on a copy of the lists at once, so that what does not fit ends it.
        """
        if self._pending is not None:
            raise LocalProtocolError("transactions cannot be nested")
        pending: list[tuple[Event, str]] = []
        self._pending, self._tried = pending, self.lists.copy()
        try:
            yield
        finally:
            self._pending = self._tried = None
        for event, session in pending:
            self.record(event, now, session)

    def change(self, name: str, key: str, element: Element | None, now: float) -> None:
        """
        Record that element *key* of the list *name* is *element* now (None: gone).

        For lists with text keys; whether it is an add or a modify shows in the list.
        """
        kind = self.catalogue.find(name)
        known = (self._tried or self.lists).find(name, key) is not None
        if element is None:
            if known:
                self.record(Event(kind.events[Action.DELETE], text_key=key), now)
            return
        action = Action.MODIFY if known else Action.ADD
        rows = ElementList((element,))
        self.record(Event(kind.events[action], text_key=key, elements=rows), now)

    def replace(self, name: str, elements: ElementList, now: float) -> None:
        """Record that the list *name* is *elements* now; clients get it as a whole."""
        self.record(Event(self.catalogue.find(name).list_event, elements=elements), now)

    def forget(self, name: str) -> None:
        """
        The list *name* is not known any more.

        Clients keep their copies; what is recorded for the type waits for the list to come back.
        """
        kind = self.catalogue.find(name)
        self.lists.drop(kind.name)
        self._snapshots.clear()
        self.missing.discard(kind.name)
        for client in list(self.clients.values()):
            if kind.list_event in self._wanted(client):
                client.blocked.add(kind.name)
                self._follow(client)

    def _list_is_known(self, name: str, now: float) -> None:
        kind = self.catalogue.find(name)
        for client in self.clients.values():
            wanted = self._wanted(client)
            if kind.list_event in wanted and client.state is ClientState.CONNECTED:
                client.blocked.discard(name)
                self._append_list(client, kind, wanted, now)
                self._follow(client)

    def _append_list(
        self, client: Client, kind: ObjectType, wanted: Mapping[int, Subscribed], now: float
    ) -> None:
        whole = self._snapshots.get(kind.name)
        if whole is None:
            whole = self._snapshots[kind.name] = self.lists.snapshot(kind.name)
        rows = reduced_rows(whole, kind.name, wanted[kind.list_event], wanted)
        self._append_own(client, Event(kind.list_event, int(now), elements=rows))

    # -- queues

    def _queue(self, change: Change, now: float, session: str = "") -> None:
        self.recorded += 1
        found: list[Sequence[Element | None]] = []

        def after() -> Sequence[Element | None]:
            if not found:
                found.append(change.elements(self.lists))
            return found[0]

        for feed in tuple(self._by_event.get(change.event.event, ())):
            if feed.session and feed.session != session and change.action is not Action.LIST:
                continue
            event = narrowed(change, feed.subscriptions, after)
            if event is None:
                continue
            seconds = feed.subscriptions[event.event].flush_seconds
            due = now + seconds if seconds >= 0 else None
            feed.append(event, due)
            if due is not None and due < self.wake_at:
                self.wake_at = due
            if self._is_full(len(feed.events), feed.octets):
                self._shed(feed, now)

    def _is_full(self, events: int, octets: int) -> bool:
        limits = self.limits
        return events > limits.max_queued_events or octets > limits.max_queued_octets

    @staticmethod
    def _append_own(client: Client, event: Event) -> None:
        client.take_all()
        client.own.append(event)
        client.own_weight += event.weight

    def _wanted(self, client: Client) -> dict[int, Subscribed]:
        return {each.event: each for each in client.registration.subscriptions or ()}

    def _follow(self, client: Client) -> None:
        """Put *client* on the feed that its subscription asks for."""
        client.take_all()
        wanted = self._wanted(client)
        for event in OBLIGATORY:
            wanted[event] = Subscribed(event, 0)
        for name in client.blocked:
            kind = self.catalogue.find(name)
            nested = [each for each in self.catalogue.types if each.parent == name]
            deeper = [e for e in self.catalogue.types if e.parent in {n.name for n in nested}]
            for each in (kind, *nested, *deeper):
                for event in each.all_events:
                    wanted.pop(event, None)
        if client.state is not ClientState.CONNECTED:
            wanted = {}
        session = client.registration.session
        key = (frozenset(wanted.values()), session)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(wanted, session, key)
            self._conditions += has_conditions(wanted)
            for event in wanted:
                self._by_event.setdefault(event, []).append(feed)
        if feed is not client.feed:
            self._unfollow(client)
            client.feed = feed
        feed.clients.add(client)
        client.position = client.flushed = feed.end

    def _unfollow(self, client: Client) -> None:
        feed = client.feed
        feed.clients.discard(client)
        if not feed.clients and self._feeds.get(feed.key) is feed:
            del self._feeds[feed.key]
            self._conditions -= has_conditions(feed.subscriptions)
            for event in feed.subscriptions:
                self._by_event[event].remove(feed)

    # -- clients

    def register(
        self, wish: Registration, port: ClientPort, now: float, fixed_ids: bool = False
    ) -> Client:
        """
        Register a client; its initial lists are queued, to be delivered at once.

        :param fixed_ids: the caller may ask for an id of its own.
        :raises RegistrationError: refused; nothing is changed.
        """
        self._check(wish, fixed_ids)
        replaced = self._addresses.get(wish.address)
        if replaced is not None:
            self._remove(self.clients[replaced], "it registered again")
        elif wish.id in self.clients:
            self._remove(self.clients[wish.id], f"another client took the id {wish.id}")
        identifier = wish.id or self._free_id()
        client = Client(
            identifier,
            evolve(wish, id=identifier),
            port,
            Feed({}, "", None),
            position=0,
            last_heard=now,
            next_send=now,
        )
        self.clients[identifier] = client
        self._addresses[wish.address] = identifier
        self._send_lists(client, frozenset(), now)
        client.next_send = now
        self.wake_at = min(self.wake_at, now)
        return client

    def _send_lists(self, client: Client, known: Iterable[Subscribed], now: float) -> None:
        """Queue the lists that *client* wants and has not; then follow the changes."""
        wanted = self._wanted(client)
        had = set(known)
        for kind in self.catalogue.initial:
            subscribed = wanted.get(kind.list_event)
            if subscribed is None or subscribed in had:
                continue
            if self.lists.has(kind.name):
                client.blocked.discard(kind.name)
                self._append_list(client, kind, wanted, now)
            else:
                client.blocked.add(kind.name)
                self.missing.add(kind.name)
        self._follow(client)

    def wanted_types(self) -> set[str]:
        """Names of the types that any client subscribes."""
        found = set()
        for feed in self._feeds.values():
            for event in feed.subscriptions:
                meaning = self.catalogue.meaning(event)
                if meaning is not None:
                    found.add(meaning[0].name)
        return found.union(*(client.blocked for client in self.clients.values()))

    def _check(self, wish: Registration, fixed_ids: bool) -> None:
        check_wish(wish, self.catalogue.highest_event)
        if self.going_down:
            raise RegistrationError(
                "do not accept new event clients. Qmaster is going down", going_down=True
            )
        if wish.id and not fixed_ids:
            raise RegistrationError(f"the event client id {wish.id} is reserved", status=6)
        dynamic = sum(key >= FIRST_DYNAMIC_ID for key in self.clients)
        is_new = not wish.id and wish.address not in self._addresses
        if is_new and dynamic >= self.limits.max_clients:
            raise RegistrationError(
                f"no more than {self.limits.max_clients} event clients may register"
            )

    def _free_id(self) -> int:
        identifier = self._lowest_free
        while identifier in self.clients:
            identifier += 1
        self._lowest_free = identifier + 1
        return identifier

    def client(self, client_id: int) -> Client:
        """
        The client of that id.

        :raises UnknownClient: there is none.
        """
        client = self.clients.get(client_id)
        if client is None or client.state is ClientState.TERMINATED:
            raise UnknownClient(f"event client {client_id} is not registered")
        return client

    def modify(self, wish: Registration, now: float) -> None:
        """
        A client sent itself again (docs/protocols/event-mirror.rst, "Modifying").

        :param wish: with its id; delivery time, busy and policy count, and if marked as changed
            the subscription, which replaces the old one.
        :raises RegistrationError: refused; nothing is changed.
        """
        client = self.client(wish.id)
        check_modification(wish, self.catalogue.highest_event)
        old = client.registration
        client.next_send += wish.delivery_seconds - old.delivery_seconds
        client.busy = wish.busy
        subscriptions = wish.subscriptions if wish.changed else old.subscriptions
        client.registration = evolve(
            old,
            delivery_seconds=wish.delivery_seconds,
            flush_delay_seconds=wish.flush_delay_seconds,
            subscriptions=subscriptions,
            changed=False,
            busy_policy=wish.busy_policy,
        )
        if wish.changed and client.state is ClientState.CONNECTED:
            self._resubscribe(client, old.subscriptions or (), now)
        self.wake_at = min(self.wake_at, now if client.busy else client.due())

    def _resubscribe(self, client: Client, old: Iterable[Subscribed], now: float) -> None:
        client.take_all()
        wanted = self._wanted(client)
        # A list whose filters differ is another list: the client needs it anew.
        same = {each for each in old if _same_filters(each, wanted.get(each.event))}
        kept_lists = {
            kind.list_event
            for kind in self.catalogue.types
            if any(event in wanted for event in kind.all_events)
        }
        self._purge(client, {*wanted, *kept_lists, *OBLIGATORY})
        client.blocked = {
            name for name in client.blocked if self.catalogue.find(name).list_event in wanted
        }
        known = [each for each in wanted.values() if any(_same_filters(s, each) for s in same)]
        known = [
            each
            for each in known
            if (meaning := self.catalogue.meaning(each.event)) is None
            or meaning[0].name not in client.blocked
        ]
        self._send_lists(client, known, now)

    @staticmethod
    def _purge(client: Client, kept: set[int]) -> None:
        """Delete unsent events that are not wanted any more; blank those that were sent."""
        sent = max(0, client.sent - client.first + 1)
        own = [event if event.event in kept else event.blank() for event in client.own[:sent]] + [
            event for event in client.own[sent:] if event.event in kept
        ]
        client.own = own
        client.own_weight = sum(event.weight for event in own)

    def acknowledge(self, client_id: int, number: int, now: float) -> None:
        """
        Client *client_id* has everything up to *number* (0: it only lives).

        An unknown client, or a number never sent, is remarked and otherwise ignored.
        """
        client = self.clients.get(client_id)
        if client is None:
            self._remark(f"acknowledgement by the unknown event client {client_id}")
            return
        client.last_heard = now
        if number > client.sent:
            self._remark(
                f"event client {client_id} acknowledged {number}, only {client.sent} was sent"
            )
        else:
            client.acknowledge(number)
        if client.registration.busy_policy == BusyPolicy.UNTIL_ACKNOWLEDGED:
            client.busy = False
            self.wake_at = min(self.wake_at, client.due())

    def leave(self, client_id: int) -> bool:
        """Client *client_id* leaves; False: there is none.  The next round forgets it."""
        client = self.clients.get(client_id)
        if client is None:
            self._remark(f"the unknown event client {client_id} leaves")
            return False
        client.state = ClientState.TERMINATED
        self.wake_at = -inf
        return True

    def shut_down_client(self, client_id: int, now: float) -> None:
        """
        Ask a client to leave.

        :raises UnknownClient: there is none.
        """
        client = self.client(client_id)
        if client.state is not ClientState.CONNECTED:
            return
        self._append_own(client, Event(SHUTDOWN, int(now)))
        client.state = ClientState.CLOSING
        self._follow(client)
        client.next_send = min(client.next_send, now)
        self.wake_at = min(self.wake_at, now)

    def shut_down_dynamic(self, now: float) -> None:
        """Ask every client to leave whose id was given out."""
        for client_id in [key for key in self.clients if key >= FIRST_DYNAMIC_ID]:
            self.shut_down_client(client_id, now)

    def shut_down(self, now: float) -> None:
        """The master goes down: tell everyone, busy or not, and take nobody new."""
        if self.going_down:
            return
        self.going_down = True
        for client in self.clients.values():
            client.busy = False
            if client.state is ClientState.CONNECTED:
                self._append_own(client, Event(MASTER_GOES_DOWN, int(now)))
                self._follow(client)
                client.next_send = min(client.next_send, now)
        self.wake_at = min(self.wake_at, now)

    def drop(self, client_id: int, reason: str) -> None:
        """Forget a client at once (its connection is gone, and that is to end it)."""
        client = self.clients.get(client_id)
        if client is not None:
            self._remove(client, reason)

    def _remove(self, client: Client, reason: str) -> None:
        del self.clients[client.id]
        address = client.registration.address
        if self._addresses.get(address) == client.id:
            del self._addresses[address]
        if client.id >= FIRST_DYNAMIC_ID:
            self._lowest_free = min(self._lowest_free, client.id)
        self._unfollow(client)
        client.state = ClientState.TERMINATED
        client.port.dropped(reason)

    # -- delivery

    def round(self, now: float) -> float:
        """
        Deliver to those who are due, the longest overdue first.

        With more than :data:`BURST` of them it stops there and sets :attr:`is_behind`: the
        transports are to send before there is more for them.

        :returns: when the next round is due at the latest; earlier if :attr:`wake_at` falls.
        """
        self.wake_at = inf
        waiting: list[tuple[float, int, Client]] = []
        for client in list(self.clients.values()):
            if client.state is ClientState.TERMINATED:
                if self.clients.get(client.id) is client:
                    self._remove(client, "it left")
            elif self._is_due(client, now):
                waiting.append((client.due(), client.id, client))
        self.is_behind = len(waiting) > BURST
        if self.is_behind:
            waiting.sort()
        for _, _, client in waiting[:BURST]:
            self._deliver(client, now)
        for feed in self._feeds.values():
            feed.trim()
        wake = min((self._next(client) for client in self.clients.values()), default=inf)
        self.wake_at = min(self.wake_at, wake)
        return self.wake_at

    def _next(self, client: Client) -> float:
        limit = client.last_heard + self.timeout(client)
        return limit if client.busy else min(limit, client.due())

    def timeout(self, client: Client) -> float:
        """Seconds that *client* may stay silent."""
        limits = self.limits
        if client.id == SCHEDULER_ID and limits.scheduler_timeout_seconds:
            return limits.scheduler_timeout_seconds
        wanted = TIMEOUT_DELIVERY_TIMES * client.registration.delivery_seconds
        return min(max(wanted, limits.min_timeout_seconds), limits.max_timeout_seconds)

    def _is_due(self, client: Client, now: float) -> bool:
        """Is *client* to be served?  Ends it if it is silent, or its queue full."""
        if client.last_heard > now:
            self._remark(f"the clock went backwards; event client {client.id} gets a new start")
            client.last_heard = now
            client.next_send = now + client.registration.delivery_seconds
        if now >= client.last_heard + self.timeout(client):
            self._time_out(client, now, "it was silent for too long")
        elif self._is_full(client.queued, client.octets):
            self._time_out(client, now, "its queue is full")
        else:
            return not client.busy and now >= client.due()
        return False

    def _deliver(self, client: Client, now: float) -> None:
        report = client.report()
        taken = self._hand_over(client, report)
        client.next_send = now + client.registration.delivery_seconds
        client.flushed = client.feed.end
        if taken:
            client.last_send = now
            client.sent = max(client.sent, report.last)
            self.delivered += len(report)
            client.busy = client.registration.busy_policy != BusyPolicy.NONE
        else:
            client.busy = False

    def _hand_over(self, client: Client, report: Report) -> bool:
        try:
            return client.port.deliver(report)
        except Exception as error:
            # A fault of ours with this client's report: the round goes on for the others.
            self._remark(f"event client {client.id} cannot be served: {error!r}")
            return False

    def _time_out(self, client: Client, now: float, reason: str) -> None:
        self._remark(f"event client {client.id} ({client.registration.name}) times out: {reason}")
        self._append_own(client, Event(TIMED_OUT, int(now)))
        self._hand_over(client, client.report())
        self._remove(client, f"timed out: {reason}")

    def _shed(self, feed: Feed, now: float) -> None:
        """The log of *feed* is long: end those who hold it back, forget what nobody needs."""
        for client in list(feed.clients):
            if self._is_full(client.queued, client.octets):
                self._time_out(client, now, "its queue is full")
        feed.trim()


def _unknown_event(event: Event) -> LocalProtocolError:
    return LocalProtocolError(f"event {event.event} is not of this catalogue")


def _same_filters(one: Subscribed, other: Subscribed | None) -> bool:
    return other is not None and (one.event, one.where, one.what) == (
        other.event,
        other.where,
        other.what,
    )
