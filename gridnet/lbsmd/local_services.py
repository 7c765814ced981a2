"""
The services that this host publishes: as configured or registered, and as checks and people have
it since.

Everything that changes an entry of this host goes through here (a reload, a check, a penalty),
so that the table never shows one without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from attrs import evolve, frozen
from twisted.logger import Logger

from gridnet.errors import TableError
from gridnet.lbsmd.check_codes import UP, State, Verdict
from gridnet.lbsmd.dependencies import Condition, Key
from gridnet.lbsmd.loading import Loaded
from gridnet.lbsmd.servrc.configuration import PlacedRecord
from gridnet.table.address import is_loopback
from gridnet.table.model import Entry, Host, HostFacts, ServiceTable
from gridnet.table.numbers import MIN_RATE, STANDBY_RATE


@frozen
class Standing:
    """What has come over a server since it was configured."""

    verdict: Verdict = UP  #: of all its checks together
    penalty: float = 0.0  #: percent that people have asked for
    own_penalty: float = 0.0  #: percent that a registered server asks for itself
    base_rate: float | None = None  #: set by somebody; None: as configured
    reserved: bool = False  #: kept aside by somebody
    availability: float = 1.0  #: part of its port's capacity that is free, 0..1


_AS_CONFIGURED = Standing()


@frozen
class LocalService:
    """One server of this host."""

    placed: PlacedRecord
    configured: Entry  #: as the record says
    conditions: tuple[Condition, ...] = ()  #: its dependencies
    standing: Standing = _AS_CONFIGURED

    @property
    def base_rate(self) -> float:
        """Before checks and penalties: as configured, or as somebody has set it."""
        rate = self.standing.base_rate
        return self.configured.info.rate if rate is None else rate

    @property
    def in_force(self) -> Entry | None:
        """What the table says of it; None: nothing, it is off."""
        standing, entry = self.standing, self.configured
        if standing is _AS_CONFIGURED:
            return entry
        verdict = standing.verdict
        if verdict.state is State.OFF:
            return None
        rate = self.base_rate
        # The sign of a rate that somebody has set is kept.
        rate = available(verdict.rate(abs(rate)), standing.availability) * (
            -1.0 if rate < 0 else 1.0
        )
        return evolve(
            entry,
            info=evolve(entry.info, rate=rate),
            penalty=max(standing.penalty, standing.own_penalty),
            reserved=standing.reserved or verdict.state is State.RESERVED,
        )


def available(rate: float, availability: float) -> float:
    """
    *rate* when only part of the capacity behind it is free.

    A regular server stays regular and a standby one standby as long as anything is free.

    :param rate: 0 or more.
    :param availability: 0..1; 0: the server is down.
    """
    if not rate or availability >= 1.0:
        return rate
    if availability <= 0.0:
        return 0.0
    return max(rate * availability, STANDBY_RATE if rate >= STANDBY_RATE else MIN_RATE)


class LocalServices:
    """
    This host's part of the service table.

    :ivar address: of this host.
    :ivar loaded: the definitions in force; None before the first.
    """

    _log = Logger()

    def __init__(self, table: ServiceTable, address: str) -> None:
        self.address = address
        self.loaded: Loaded | None = None
        self._table = table
        self._services: dict[Key, LocalService] = {}
        self._registered: set[Key] = set()
        #: servers changed in the step that is being made; None: there is none
        self._changed: set[Key] | None = None
        self._subscribers: list[Callable[[], None]] = []
        self._watchers: list[Callable[[Key, bool], None]] = []

    def __getitem__(self, key: Key) -> LocalService:
        return self._services[key]

    def get(self, key: Key) -> LocalService | None:
        """The server of that key."""
        return self._services.get(key)

    def services(self) -> Mapping[Key, LocalService]:
        """All servers: the configured ones in their order, then those that have registered."""
        return self._services

    def subscribe(self, loaded: Callable[[], None]) -> None:
        """Call *loaded* after servers have come or gone."""
        self._subscribers.append(loaded)

    def watch(self, asked: Callable[[Key, bool], None]) -> None:
        """
        Call *asked* after somebody has penalized or rerated a server, or filled its port.

        It gets the server's key, and whether its base rate was set.
        """
        self._watchers.append(asked)

    def load(self, loaded: Loaded) -> None:
        """
        Put *loaded* in force, as one step; servers that stay keep their standing.

        :raises TableError: the table cannot hold it; all is as before.
        """
        services: dict[Key, LocalService] = {}
        for record in loaded.records:
            key = record.entry.key
            before = self._services.get(key)
            # Of two definitions of one server the later counts, at the place of the earlier.
            services[key] = LocalService(
                record.placed,
                record.entry,
                record.conditions,
                before.standing if before is not None else _AS_CONFIGURED,
            )
        # What has registered itself stays, unless the configuration has that server now.
        registered = self._registered - services.keys()
        services.update((key, self._services[key]) for key in registered)
        self._table.replace_owner(self.address, _entries(services.values()))
        host = self._table.host(self.address) or Host(self.address)
        configuration = loaded.configuration
        self._table.put_host(
            evolve(host, environment=configuration.environment, zone=configuration.zone)
        )
        self._services = services
        self._registered = registered
        self.loaded = loaded
        self._tell_subscribers()

    def register(self, service: LocalService) -> None:
        """
        Publish *service*, which no configuration has, or change what it said of itself.

        :raises TableError: the configuration has it, or the table cannot hold it.
        """
        key = service.configured.key
        before = self._services.get(key)
        if before is not None and key not in self._registered:
            raise TableError(f"the configuration has that server of {service.configured.service}")
        if before is not None:
            service = evolve(service, standing=before.standing)
        entry = service.in_force
        if entry is not None:
            self._table.put(entry)
        self._services[key] = service
        self._registered.add(key)
        if before is None:
            self._tell_subscribers()

    def is_registered(self, key: Key) -> bool:
        """Whether that server is here because it has registered itself."""
        return key in self._registered

    def unregister(self, key: Key) -> None:
        """Publish that server, which has registered itself, no longer."""
        if key in self._registered:
            self._registered.discard(key)
            self._table.remove(self._services.pop(key).configured)
            self._tell_subscribers()

    def _tell_subscribers(self) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber()

    def tell_load(self, status: float, status_blast: float, facts: HostFacts) -> None:
        """This host is as loaded as that."""
        host = self._table.host(self.address) or Host(self.address)
        self._table.put_host(evolve(host, status=status, status_blast=status_blast, facts=facts))

    def hosts_seen(self) -> int:
        """How many hosts the table has."""
        return len(self._table.hosts())

    def is_here(self, host: str) -> bool:
        """Whether the address *host* of a server of ours is this host."""
        return host == self.address or is_loopback(host)

    def offer(self, port: int, availability: float) -> None:
        """Of the capacity behind that port of this host the part *availability* is free, 0..1."""
        with self.one_step():
            for key, service in list(self._services.items()):
                info = service.configured.info
                if info.port != port or not self.is_here(info.host):
                    continue
                self._change(key, lambda standing: evolve(standing, availability=availability))
                if (availability > 0.0) is not (service.standing.availability > 0.0):
                    for asked in tuple(self._watchers):
                        asked(key, False)

    def judge(self, key: Key, verdict: Verdict) -> None:
        """The checks of that server say *verdict*; nothing when the server is gone."""
        self._change(key, lambda standing: evolve(standing, verdict=verdict))

    def penalize(self, key: Key, percent: float) -> None:
        """The penalty of that server is *percent* now, 0..100."""
        self._change(key, lambda standing: evolve(standing, penalty=percent))
        for asked in tuple(self._watchers):
            asked(key, False)

    def penalize_itself(self, key: Key, percent: float) -> None:
        """That server asks for a penalty of *percent* itself, beside that of people."""
        self._change(key, lambda standing: evolve(standing, own_penalty=percent))

    def rerate(self, key: Key, rate: float | None, reserved: bool = False) -> None:
        """
        Somebody has set the base rate of that server.

        :param rate: None: as configured.
        :param reserved: whether it is kept aside.
        """
        self._change(key, lambda standing: evolve(standing, base_rate=rate, reserved=reserved))
        for asked in tuple(self._watchers):
            asked(key, True)

    def _change(self, key: Key, change: Callable[[Standing], Standing]) -> None:
        service = self._services.get(key)
        if service is None:
            return
        standing = change(service.standing)
        if standing == service.standing:
            return
        self._services[key] = evolve(service, standing=standing)
        if self._changed is not None:
            self._changed.add(key)
        else:
            self._publish([key])

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """What is changed meanwhile is one step of the table, at the end."""
        if self._changed is not None:
            yield
            return
        self._changed = set()
        try:
            yield
        finally:
            changed, self._changed = self._changed, None
            self._publish(changed)

    def _publish(self, keys: Iterable[Key]) -> None:
        services = [self._services[key] for key in keys if key in self._services]
        off = [each.configured for each in services if each.in_force is None]
        try:
            self._table.step(_entries(services), off)
        except TableError as error:
            self._log.error(
                "{service} cannot be published: {reason}",
                service=", ".join(each.configured.service for each in services[:3]),
                reason=str(error),
            )


def _entries(services: Iterable[LocalService]) -> Iterable[Entry]:
    for service in services:
        entry = service.in_force
        if entry is not None:
            yield entry
