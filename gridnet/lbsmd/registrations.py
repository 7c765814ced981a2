"""
Servers that register themselves with the daemon of their host (docs/protocols/lbsmd-control.rst).

A registration is a lease: who does not renew it in time is gone from the table, however it
ended.  It says no more than a line of the daemon's own configuration could, and less: no other
host, no script, no program and no mail.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from attrs import define, evolve, field
from twisted.logger import Logger

from gridnet.errors import RemoteProtocolError, TableError
from gridnet.lbsmd.authority import find_asker
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.dependencies import Key
from gridnet.lbsmd.entries import make_entry
from gridnet.lbsmd.local_services import LocalService, LocalServices
from gridnet.lbsmd.servrc.check_list import Group, Interval, User
from gridnet.lbsmd.servrc.configuration import PlacedRecord
from gridnet.lbsmd.servrc.fault import LineFault
from gridnet.lbsmd.servrc.grammar import parse_line
from gridnet.lbsmd.servrc.records import ServiceRecord
from gridnet.table.server_info import ServerType, is_http
from gridnet.table.server_text import write

#: How often leases are looked at.
EXPIRE_SECONDS = 0.5
EVERYBODY = "*"


@define
class Registration:
    """One lease."""

    key: Key
    record: ServiceRecord
    uid: int
    lease_seconds: float
    until: float  #: seconds since the epoch
    token: str = field(repr=False)


def belongs_to(uid: int, names: Sequence[str]) -> bool:
    """
    Whether the user *uid* is meant by *names*: user names, ``@group``, or ``*`` for everybody.

    :param uid: -1: nobody knows who it is.
    """
    if EVERYBODY in names:
        return True
    if uid < 0 or not names:
        return False
    asker = find_asker(uid)
    return asker.user in names or any(f"@{group}" in names for group in asker.groups)


class Registrations:
    """
    Answers ``register``, ``renew`` and ``deregister`` of the control socket.

    :param clock: seconds since the epoch.
    :param chance: draws tokens, so it must not be guessable.
    """

    _log = Logger()

    def __init__(
        self,
        local: LocalServices,
        config: LbsmdConfig,
        clock: Callable[[], float],
        chance: random.Random,
    ) -> None:
        self._local = local
        self._config = config
        self._clock = clock
        self._chance = chance
        self._by_token: dict[str, Registration] = {}
        self._by_key: dict[Key, Registration] = {}
        self._per_user: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._by_token)

    def answerers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        """The questions of the control socket."""
        return {
            "register": self.register,
            "renew": self.renew,
            "deregister": self.deregister,
        }

    # --- questions --------------------------------------------------------------------------

    def register(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        ``register``: publish ``server``, a service line, for as long as the lease is renewed.

        Who registers a server again takes its own earlier lease over, which is then void.

        :raises RemoteProtocolError: it may not be, or makes no sense.
        """
        uid = int(question["uid"])
        if not self._may_register(uid):
            raise RemoteProtocolError(f"user {uid} may not register services (lbsmd.registrars)")
        record = self._record(_text(question, "server"))
        placed = PlacedRecord(record, f"registered by user {uid}", 0)
        loaded = self._local.loaded
        zone = 0 if loaded is None else loaded.configuration.zone
        entry = make_entry(record, self._local.address, zone, {}, self._config.default_time_seconds)
        lease_seconds = float(min(entry.info.time, self._config.max_lease_seconds))
        entry = evolve(entry, info=evolve(entry.info, time=int(lease_seconds)))
        before = self._by_key.get(entry.key)
        if before is not None and before.uid != uid and not _is_privileged(uid):
            raise RemoteProtocolError(f"another user has registered {record.name} there")
        if before is None:
            self._see_that_there_is_room(uid)
        penalty = _number(question, "penalty", 0.0, 100.0)
        try:
            self._local.register(LocalService(placed, entry))
        except TableError as error:
            raise RemoteProtocolError(str(error)) from None
        if before is not None:
            self._drop(before)
        lease = Registration(
            entry.key,
            record,
            uid,
            lease_seconds,
            self._clock() + lease_seconds,
            f"{self._chance.getrandbits(128):032x}",
        )
        self._by_token[lease.token] = lease
        self._by_key[lease.key] = lease
        self._per_user[uid] += 1
        if penalty is not None:
            self._local.penalize_itself(lease.key, penalty)
        self._log.info(
            "{service} at port {port} registered by user {uid}",
            service=record.name,
            port=entry.info.port,
            uid=uid,
        )
        return {
            "token": lease.token,
            "lease_seconds": lease_seconds,
            "server": write(entry.info),
        }

    def renew(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        ``renew``: the lease of ``token`` begins anew.

        Its base ``rate`` and ``penalty`` are changed where they are given.

        :raises RemoteProtocolError: there is no such lease (any more), or a value makes no sense.
        """
        lease = self._lease(question)
        rate = _number(question, "rate", 0.0, 100_000.0)
        penalty = _number(question, "penalty", 0.0, 100.0)
        if not self._local.is_registered(lease.key):
            self._drop(lease)
            raise RemoteProtocolError("the configuration has that server now")
        service = self._local[lease.key]
        lease.until = self._clock() + lease.lease_seconds
        entry = service.configured
        if rate is not None and rate != entry.info.rate:
            changed = evolve(entry, info=evolve(entry.info, rate=rate))
            self._local.register(evolve(service, configured=changed))
        if penalty is not None and penalty != service.standing.own_penalty:
            self._local.penalize_itself(lease.key, penalty)
        return {"lease_seconds": lease.lease_seconds}

    def deregister(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        ``deregister``: end the lease of ``token``.

        :raises RemoteProtocolError: there is no such lease (any more).
        """
        lease = self._lease(question)
        self._end(lease, "deregistered")
        return {"deregistered": lease.record.name}

    # --- time -------------------------------------------------------------------------------

    def expire(self) -> None:
        """Drop the leases that nobody has renewed."""
        now = self._clock()
        for lease in [each for each in self._by_token.values() if each.until <= now]:
            self._end(lease, "not renewed in time")

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        return {"registered": len(self)}

    # --- inside -----------------------------------------------------------------------------

    def _may_register(self, uid: int) -> bool:
        return _is_privileged(uid) or belongs_to(uid, self._config.registrars)

    def _see_that_there_is_room(self, uid: int) -> None:
        if len(self._by_token) >= self._config.max_registrations:
            raise RemoteProtocolError(
                f"{len(self)} servers are registered already (lbsmd.max_registrations)"
            )
        if self._per_user[uid] >= self._config.max_registrations_per_user:
            raise RemoteProtocolError(
                f"user {uid} has registered {self._per_user[uid]} servers already "
                "(lbsmd.max_registrations_per_user)"
            )

    def _record(self, line: str) -> ServiceRecord:
        """
        The record of *line*.

        :raises RemoteProtocolError: it is none, or says what only the configuration may.
        """
        try:
            record = parse_line(line) if line.strip() else None
        except LineFault as fault:
            raise RemoteProtocolError(str(fault)) from None
        if not isinstance(record, ServiceRecord):
            raise RemoteProtocolError('expected a service line in "server"')
        if record.type is not ServerType.STANDALONE and not is_http(record.type):
            raise RemoteProtocolError("expected a server of type STANDALONE or HTTP")
        if record.host or record.launcher:
            raise RemoteProtocolError("expected neither a host nor a program")
        if not record.port:
            raise RemoteProtocolError("expected a port")
        if not all(isinstance(check, Interval | User | Group) for check in record.checks):
            raise RemoteProtocolError("expected no check but how often to probe the port")
        return record

    def _lease(self, question: Mapping[str, Any]) -> Registration:
        lease = self._by_token.get(_text(question, "token"))
        uid = int(question["uid"])
        if lease is None or (lease.uid != uid and not _is_privileged(uid)):
            raise RemoteProtocolError("there is no such lease; register again")
        return lease

    def _end(self, lease: Registration, reason: str) -> None:
        self._drop(lease)
        self._local.unregister(lease.key)
        self._log.info(
            "{service} of user {uid} is gone, {reason}",
            service=lease.record.name,
            uid=lease.uid,
            reason=reason,
        )

    def _drop(self, lease: Registration) -> None:
        del self._by_token[lease.token]
        del self._by_key[lease.key]
        self._per_user[lease.uid] -= 1
        if not self._per_user[lease.uid]:
            del self._per_user[lease.uid]


def _is_privileged(uid: int) -> bool:
    """Root and the daemon's own user; nobody else may touch what is not his."""
    return uid in (0, os.geteuid())


def _text(question: Mapping[str, Any], member: str) -> str:
    value = question.get(member)
    if not isinstance(value, str):
        raise RemoteProtocolError(f'expected a text in "{member}"')
    return value


def _number(question: Mapping[str, Any], member: str, least: float, most: float) -> float | None:
    value = question.get(member)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RemoteProtocolError(f'expected a number in "{member}"')
    if not isfinite(value) or not least <= value <= most:
        raise RemoteProtocolError(f'expected {least:g} to {most:g} in "{member}"')
    return float(value)
