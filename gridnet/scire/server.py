"""
The job server: what its parts share, its duties, its start and its end.

The parts that calls use from database threads are caches that mind their versions and values
that do not change; everything else happens on the reactor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from random import Random
from time import monotonic
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.scire import enrol, jobs, upkeep
from gridnet.scire.authority import CommandFailed, Signer, run_command
from gridnet.scire.config import Enrolment, ScireConfig
from gridnet.scire.faults import FaultCode, ScireFault
from gridnet.scire.identity import audit
from gridnet.scire.jobcache import JobCache
from gridnet.scire.metrics import Metrics
from gridnet.scire.pushing import Pusher
from gridnet.scire.rights import Rights
from gridnet.scire.rpc import Call, RpcListener
from gridnet.scire.run_list import RunSource
from gridnet.scire.runs import Dispatch, Server
from gridnet.scire.slots import Rates
from gridnet.scire.store.database import Database, Event, Notice, Transaction
from gridnet.scire.waits import Waits

T = TypeVar("T")
#: Clocks further apart than this are worth a warning, and than that end the start, seconds.
_CLOCK_WARNING, _CLOCK_REFUSAL = 5.0, 60.0
#: Between looks at everything, whatever notices came, seconds.
_DOUBT_SECONDS = 30.0
_PRUNE_SECONDS = 60.0
_DROP_SECONDS = 3600.0  # between looks at all definitions, for what none names
_SIGN_SECONDS = 10.0
#: Events that people should hear of.
_NEWSWORTHY = frozenset({"undeliverable", "lost", "denied", "identity", "batch_stopped"})


class ClockError(Exception):
    """This host's clock and the database's are too far apart."""


class JobServer:
    """
    One running server.

    :ivar state: recovering, serving, draining, stopped.
    :ivar identity: its row in the database.
    :ivar listeners: by name.
    """

    log = Logger()

    def __init__(
        self,
        config: ScireConfig,
        name: str,
        reactor: Any,
        database: Database,
        signer: Signer,
        pusher: Pusher,
        metrics: Metrics,
        chance: Random,
    ) -> None:
        self.config = config
        self.name = name
        self.reactor = reactor
        self._clock = IReactorTime(reactor)
        self.database = database
        self.signer = signer
        self.pusher = pusher
        self.metrics = metrics
        self._counter = cache(metrics.calls.labels)
        self._seconds = cache(metrics.call_seconds.labels)
        self._events = cache(metrics.events.labels)
        self._ended = cache(metrics.ended.labels)
        # Twisted makes a logger whenever the class's is asked for.
        self._call_log = self.log
        self.chance = chance
        self.jobs = JobCache(config.limits.max_jobs_in_memory)
        self.rights = Rights()
        self.dispatch = Dispatch(self.jobs, self.rights)
        self.waits = Waits(IReactorTime(reactor), config.limits.max_waits)
        self.identity = Server(0, name, 0, config.lease)
        self.state = "recovering"
        self.listeners: dict[str, RpcListener] = {}
        self.url = config.url
        self.enrol_url = config.enrol_url
        #: what overrules the site file, as read at the last heartbeat
        self.settings: dict[str, str] = {}
        self.max_output = config.limits.max_request // 4
        #: who a certificate's owner was when it called last: what is worth reading, no more
        self.known_clients: dict[str, int] = {}
        self._suspects = Rates(config.limits.suspects_per_minute)
        self._loops: list[LoopingCall] = []
        self._dirty: set[int] = set()  # jobs whose gates may have opened
        self._doubt = True  # notices may have been missed
        self._looked_at_gates = 0.0
        self._looked_at_all = 0.0
        self._pruned = self._dropped = 0.0
        self._sweeping: Deferred[None] = succeed(None)
        #: the open runs, for mirrors
        self.run_list = RunSource(database.read)
        self._follow_metrics()
        database.told = self._happened
        database.noticed = self._noticed
        database.doubtful = self._doubtful

    def _follow_metrics(self) -> None:
        def work(what: Callable[[RpcListener], float]) -> Callable[[], float]:
            return lambda: what(self.listeners["work"]) if "work" in self.listeners else 0.0

        lanes = self.database.lanes
        for name, text, value in (
            ("slots_used", "calls under way that hold a slot", work(lambda w: w.slots.used)),
            ("calls_waiting", "calls that wait for a slot", work(lambda w: w.slots.waiting)),
            ("waits", "clients that wait for work", lambda: self.waits.count),
            ("leader", "whether this server does the duties", lambda: self.database.leading),
            (
                "database_queue",
                "operations that wait for a thread",
                lambda: sum(lane.waiting for lane in lanes()),
            ),
            (
                "database_seconds",
                "time in transactions since the start",
                lambda: sum(lane.seconds for lane in lanes()),
            ),
        ):
            self.metrics.follow(name, text, value)

    def seconds(self) -> float:
        """The reactor's clock."""
        return self._clock.seconds()

    # -- what calls use

    def remember(self, digest: str, client: int) -> None:
        """Remember that the certificate with *digest* is *client*'s."""
        if self.known_clients.get(digest) != client:
            if len(self.known_clients) >= self.config.limits.max_known_clients:
                self.known_clients.clear()
            self.known_clients[digest] = client

    @property
    def poll_interval(self) -> int:
        """Seconds between polls that clients are told."""
        return int(self.settings.get("poll_interval") or self.config.poll_interval)

    @property
    def enrolment(self) -> Enrolment:
        """Whose requests are taken."""
        return Enrolment(self.settings.get("enrolment") or self.config.enrolment)

    def idle_answer(self) -> dict[str, Any]:
        """The answer of a poll that finds nothing."""
        return {"more": False, "poll_after": self.poll_interval}

    def servers_for_clients(self, tx: Transaction) -> list[dict[str, Any]]:
        """The servers that are there, in the order in which a client should try them."""
        rows = tx.all(
            "SELECT url, role, weight FROM servers WHERE state IN ('serving', 'recovering')"
            " AND heartbeat_at > ? AND url <> '' ORDER BY id",
            (tx.now - self.config.dead_seconds,),
        )
        # Weighted order without repetition: the smallest of exponential draws comes first.
        drawn = sorted(
            rows,
            key=lambda row: (
                row["role"] != "primary",
                self.chance.expovariate(float(row["weight"])),
            ),
        )
        return [{"url": row["url"], "role": row["role"]} for row in drawn]

    def file_piece(self, tx: Transaction, digest: str, offset: int, length: int) -> bytes:
        """
        A piece of an attachment; "" behind its end.

        :raises ScireFault: 1034 there is no such file, or it is not whole yet.
        """
        row = tx.one("SELECT complete FROM files WHERE digest = ?", (digest,))
        if row is None or not row["complete"]:
            raise ScireFault(FaultCode.DIGEST, f"no file {digest[:80]}")
        rows = tx.all(
            "SELECT start, content FROM file_pieces WHERE digest = ? AND start < ?"
            " AND start + length(content) > ? ORDER BY start",
            (digest, offset + length, offset),
        )
        if not rows:
            return b""
        whole = b"".join(bytes(row["content"]) for row in rows)
        begin = offset - rows[0]["start"]
        return whole[begin : begin + length]

    async def signature(self, file: bytes) -> str:
        """The signature of a job file, hexadecimal; "" where none are made."""
        if not self.config.sign_command:
            return ""
        try:
            octets = await run_command(
                self.reactor, self.config.sign_command, file, _SIGN_SECONDS, {}
            )
        except CommandFailed as error:
            self.log.error("a job file cannot be signed: {reason}", reason=str(error))
            text = "job files cannot be signed now"
            raise ScireFault(FaultCode.INTERNAL, text, retry_after=30) from None
        return octets.hex()

    # -- what happened

    def called(self, listener: str, method: str, result: str, seconds: float, call: Call) -> None:
        """Count and log one call."""
        self._counter(listener, method, result).inc()
        self._seconds(method).observe(seconds)
        # What clients do all day says little, and much of it: 20,000 clients that poll once a
        # minute are 29 million lines a day.
        if result == "ok" and method in _QUIET and not self.config.log_polls:
            return
        peer, digest, milliseconds = call.address, call.digest[:16], round(seconds * 1000, 1)
        # The fields are for who reads events; Twisted takes 10 us for each that it puts in a text.
        self._call_log.info(
            "{line}",
            line=f"{listener}: {method} of {peer} {digest}: {result}, {milliseconds} ms",
            listener=listener,
            method=method,
            peer=peer,
            digest=digest,
            result=result,
            milliseconds=milliseconds,
        )

    def suspect(self, call: Call, method: str, fault: ScireFault) -> None:
        """A call that looks like an attack: log it, and leave a trace."""
        self.log.warn(
            "{listener}: suspicious {method} of {peer} {digest}: {reason}",
            listener=call.listener.name,
            method=method,
            peer=call.address,
            digest=call.digest[:16],
            reason=str(fault),
        )
        try:
            self._suspects.count(call.address, self.seconds())
        except ScireFault:
            return
        who = f"certificate:{call.digest[:16]}" if call.digest else "?"
        self._watch(
            self.database.write(
                lambda tx: audit(
                    tx, who, call.address, f"fault {fault.code}", method, "", str(fault)
                )
            ),
            "no trace left",
        )

    def _watch(self, deferred: Deferred[Any], what: str) -> None:
        def failed(failure: Failure) -> None:
            if failure.check(ScireFault):
                self.log.warn("{what}: {reason}", what=what, reason=str(failure.value))
            else:
                self.log.failure("{what}", failure, what=what)

        deferred.addErrback(failed)

    def _happened(self, event: Event) -> None:
        if event.kind == "run":
            self.run_list.note(event.facts["run"])
            return
        self._events(event.kind).inc()
        if event.kind == "push_wanted":
            self.pusher.want(event.facts["client"])
        elif event.kind == "ended":
            self._ended(event.facts["state"]).inc()
        elif event.kind in _NEWSWORTHY:
            self.log.warn("{event}: {facts}", event=event.kind, facts=dict(event.facts))
            if self.config.notify_command:
                self._notify(event)

    def _notify(self, event: Event) -> None:
        octets = json.dumps({"event": event.kind, **event.facts, "server": self.name}).encode()
        done = run_command(self.reactor, self.config.notify_command, octets, _SIGN_SECONDS, {})

        def failed(failure: Failure) -> None:
            self.log.warn("nobody was told: {reason}", reason=failure.getErrorMessage())

        done.addErrback(failed)

    def _noticed(self, notice: Notice) -> None:
        if not notice.payload.isdigit():
            return
        number = int(notice.payload)
        if notice.channel == "schedule":
            self._dirty.add(number)
        else:
            self.waits.wake(number)

    def _doubtful(self) -> None:
        self._doubt = True
        self.waits.wake_all()

    # -- start

    def recover(self) -> Deferred[None]:
        """
        Everything that comes before the first call (docs/protocols/scire.rst, Start).

        The tables have been brought to this version by whoever opened the database.
        """
        return Deferred.fromCoroutine(self._recover())

    async def _recover(self) -> None:
        config = self.config
        difference = abs(self.database.clock_difference())
        if difference > _CLOCK_REFUSAL:
            raise ClockError(f"this clock and the database's are {difference:.0f} s apart")
        if difference > _CLOCK_WARNING:
            self.log.warn("clock and database are {seconds} s apart", seconds=round(difference, 1))
        self.database.start(self.reactor)
        write = self.database.write
        id_, epoch = await write(
            lambda tx: upkeep.register(
                tx, self.name, self.url, self.enrol_url, config.role.value, config.weight
            )
        )
        self.identity = Server(id_, self.name, epoch, config.lease)
        who = self.identity.who
        await self._all(lambda tx: upkeep.end_own_leases(tx, self.jobs, id_, epoch, who))
        await self._all(lambda tx: upkeep.lose_silent(tx, self.jobs, who))
        await self._all(lambda tx: upkeep.expire(tx, who))
        await self._make_occurrences()
        await self._open_gates(None)
        await write(upkeep.drop_unreferenced)
        for client in await self.database.read(upkeep.to_be_pushed):
            delay = self.chance.uniform(0, self.poll_interval)
            self.pusher.want(client, delay)

    async def _all(self, operation: Callable[[Transaction], int]) -> None:
        """Run *operation*, which does a slice, until it finds nothing more."""
        while await self.database.write(operation) >= jobs.SLICE:
            pass

    def serve(self) -> Deferred[None]:
        """Begin to answer, and to do the duties."""
        return Deferred.fromCoroutine(self._serve())

    async def _serve(self) -> None:
        id_, epoch = self.identity.id, self.identity.epoch
        await self.database.write(lambda tx: upkeep.say_state(tx, id_, epoch, "serving"))
        self.state = "serving"
        self._loop(self.config.heartbeat_seconds, self._beat)
        self._loop(self.config.sweep_seconds, self._sweep_again)
        self.log.info("{name} serves as {role}", name=self.name, role=self.config.role.value)

    def _loop(self, seconds: float, function: Callable[[], Any]) -> None:
        loop = LoopingCall(function)
        loop.clock = IReactorTime(self.reactor)
        self._loops.append(loop)
        self._watch(loop.start(seconds), "a duty ended")

    def _beat(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._heartbeat())

    async def _heartbeat(self) -> None:
        id_, epoch = self.identity.id, self.identity.epoch
        try:
            state, self.settings = await self.database.write(
                lambda tx: (upkeep.beat(tx, id_, epoch), _settings(tx))
            )
            if self.database.leading:
                await self.database.write(lambda tx: upkeep.bury(tx, self.config.dead_seconds))
                self.metrics.show(await self.database.read(upkeep.overview))
        except ScireFault as fault:
            self.log.warn("no heartbeat: {reason}", reason=str(fault))
            return
        except Exception:
            # Whatever it is, the next heartbeat is due all the same.
            self.log.failure("no heartbeat")
            return
        if state == "draining" and self.state == "serving":
            self.log.info("{name} drains, as an administrator wishes", name=self.name)
            self.state = "draining"
            self.waits.wake_all()
        elif state == "serving" and self.state == "draining":
            self.state = "serving"
        elif state == "replaced":
            self.log.error("another server runs as {name}", name=self.name)

    # -- duties

    def _sweep_again(self) -> Deferred[None]:
        self._sweeping = Deferred.fromCoroutine(self._sweep())
        return self._sweeping

    async def _sweep(self) -> None:
        if not self.database.leading or self.state != "serving":
            return
        started = monotonic()
        try:
            await self._duties()
        except ScireFault as fault:
            self.log.warn("duties are late: {reason}", reason=str(fault))
        except Exception:
            # What fails for one job or run must not end the duties for all others.
            self.log.failure("duties are late")
        self.metrics.sweep_seconds.observe(monotonic() - started)

    async def _duties(self) -> None:
        who, now = self.identity.who, self.seconds()
        await self._all(lambda tx: upkeep.end_leases(tx, self.jobs, who))
        await self._all(lambda tx: upkeep.expire(tx, who))
        await self._all(lambda tx: jobs.promote_due(tx, who))
        await self._make_occurrences()
        everything = self._doubt or now - self._looked_at_all > _DOUBT_SECONDS
        if everything:
            self._doubt = False
            self._looked_at_all = now
            await self._all(lambda tx: upkeep.lose_silent(tx, self.jobs, who))
            await self._follow_groups()
            for request in await self.database.read(_unsigned):
                await enrol.sign_approved(self, request)
        await self._open_gates(None if everything else self._looked_at_gates)
        if now - self._pruned > _PRUNE_SECONDS:
            self._pruned = now
            await self._prune()
        if now - self._dropped > _DROP_SECONDS:
            self._dropped = now
            await self.database.write(upkeep.drop_unreferenced)

    async def _make_occurrences(self) -> None:
        for job in await self.database.read(upkeep.due_jobs):
            while await self.database.write(
                lambda tx, job=job: jobs.expand(  # type: ignore[misc]
                    tx, job, self.jobs, self.rights.directory(tx), self.identity.who
                )
            ):
                pass

    async def _follow_groups(self) -> None:
        for job in await self.database.read(upkeep.following_jobs):
            await self._all(
                lambda tx, job=job: jobs.follow_groups(  # type: ignore[misc]
                    tx, job, self.jobs, self.rights.directory(tx), self.identity.who
                )
            )

    async def _open_gates(self, since: float | None) -> None:
        """
        Look at jobs whose waiting runs may go on.

        :param since: those with runs that came due since then, and those of notices; None: all.
        """
        touched, self._dirty = self._dirty, set()

        def affected(tx: Transaction) -> tuple[list[int], float]:
            found = set(jobs.gated_jobs(tx, since))
            for job in touched:
                found.add(job)
                found.update(jobs.dependents(tx, job))
            return sorted(found), tx.now

        found, now = await self.database.read(affected)
        self._looked_at_gates = now - 1.0
        for job in found:
            while await self.database.write(
                lambda tx, job=job: jobs.open_gates(  # type: ignore[misc]
                    tx, job, self.jobs, self.identity.who
                )
            ):
                pass

    async def _prune(self) -> None:
        keep, day = self.config.keep, 86400.0
        for prune, days in (
            (upkeep.prune_runs, keep.runs),
            (upkeep.prune_outputs, keep.output),
            (upkeep.prune_keys, keep.keys),
            (upkeep.prune_audit, keep.audit),
        ):
            await self.database.write(
                lambda tx, prune=prune, days=days: prune(tx, tx.now - days * day)  # type: ignore[misc]
            )

    # -- for the status page

    def facts(self) -> dict[str, Any]:
        """What this server does just now."""
        work = self.listeners.get("work")
        return {
            "state": self.state,
            "name": self.name,
            "leader": self.database.leading,
            "slots used": work.slots.used if work is not None else 0,
            "calls waiting": work.slots.waiting if work is not None else 0,
            "waits": self.waits.count,
            "database queue": sum(lane.waiting for lane in self.database.lanes()),
        }

    def check(self) -> str:
        """What is wrong; "" when nothing is."""
        return "" if self.state in ("serving", "draining") else f"the job server is {self.state}"

    # -- end

    def drain(self) -> None:
        """Take no new conversations."""
        if self.state == "serving":
            self.state = "draining"
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self.waits.wake_all()

    @property
    def running(self) -> int:
        """Calls under way."""
        return sum(listener.running for listener in self.listeners.values())

    def stop(self) -> Deferred[None]:
        """Say goodbye in the database and close it; call this when all calls have ended."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for listener in self.listeners.values():
            listener.slots.stop()
        await DeferredList([self._sweeping], consumeErrors=True)
        id_, epoch = self.identity.id, self.identity.epoch
        if id_:
            try:
                await self.database.write(lambda tx: upkeep.say_state(tx, id_, epoch, "stopped"))
            except ScireFault as fault:
                self.log.warn("no goodbye: {reason}", reason=str(fault))
        await self.pusher.stop()
        if self.database.lanes():
            await self.database.stop()
        self.state = "stopped"


#: What a report changes stands in the history of its run, with the time and the client; its line
#: here would say neither run nor state, and is an eighth of what the whole cycle costs.
_QUIET = frozenset(
    {
        "scire.ping",
        "scire.next_job",
        "scire.wait",
        "scire.get_jobs",
        "get_jobs",
        "scire.job_status",
        "scire.bye",
    }
)


def _settings(tx: Transaction) -> dict[str, str]:
    return {row["name"]: row["value"] for row in tx.all("SELECT name, value FROM settings")}


def _unsigned(tx: Transaction) -> list[int]:
    rows = tx.all("SELECT id FROM enrolments WHERE state = 'approved' ORDER BY id LIMIT 20")
    return [row["id"] for row in rows]
