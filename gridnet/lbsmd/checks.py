"""
Running the checks of this host's services, and what they come to.

Each service is checked once a period, in four steps: its schedule, its dependencies, its
connection point, its script (docs/protocols/lbsmd-config.rst, Checks).  Only so many checks run
at a time; the others wait their turn.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gridnet.lbsmd.check_codes import DOWN, OFF, UP, Action, ScriptHistory, State, Verdict
from gridnet.lbsmd.dependencies import Conditions, Key
from gridnet.lbsmd.local_services import LocalService, LocalServices
from gridnet.lbsmd.notices import Notice, Postman
from gridnet.lbsmd.probe import connect
from gridnet.lbsmd.schedule import in_schedule
from gridnet.lbsmd.script import ScriptRun, run_script, script_arguments
from gridnet.lbsmd.servrc.check_list import CheckPlan
from gridnet.table.model import ServiceTable
from gridnet.table.server_info import KEYWORDS, ServerType
from gridnet.table.server_text import format_connection_point

#: Connects to (host, port) within (seconds).
Connect = Callable[[str, int, float], Deferred[socket.socket]]


@frozen
class CheckBounds:
    """How hard checks may press on this host, and on others."""

    max_parallel: int = 64  #: checks that run at a time
    jitter: float = 0.1  #: part of a period by which it may be shorter or longer
    spread_seconds: float = 5.0  #: within which the first checks of new services begin
    probe_seconds: float = 5.0  #: for a connection
    script_log_octets: int = 65536  #: of a run's standard error that go to the log


@define
class ServiceCheck:
    """
    What the checks of one service have come to.

    :ivar reason: why the service is not simply up; for people.
    """

    key: Key
    plan: CheckPlan
    history: ScriptHistory = field(factory=ScriptHistory)
    on_schedule: bool = True
    unmet: str = ""  #: the dependency that does not hold
    unreachable: str = ""  #: why the connection point is down
    full: bool = False  #: it is down because its port has no capacity left
    checked_at: float | None = None  #: when the last check began: seconds since the epoch
    script_at: float | None = None  #: the same for the last run of the script
    due_at: float = 0.0
    told: State = State.UP  #: what the contacts know
    waiting: bool = False  #: for a turn
    checking: Deferred[Any] | None = None
    run: ScriptRun | None = None

    @property
    def verdict(self) -> Verdict:
        """All steps together."""
        if not self.on_schedule or self.history.verdict.state is State.OFF:
            return OFF
        if self.unmet or self.unreachable:
            return DOWN
        return self.history.verdict

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, for people."""
        if not self.on_schedule:
            return "off schedule"
        if self.unmet:
            return f"dependency {self.unmet} does not hold"
        if self.unreachable:
            return self.unreachable
        if self.history.last_code is not None:
            return f"script said {self.history.last_code}"
        return ""


class Checks(Service):
    """
    Runs the checks of all services of this host.

    :ivar postman: tells the contacts.
    :ivar running_checks: that are under way.
    :ivar done: checks made so far.
    """

    _log = Logger()

    def __init__(
        self,
        local: LocalServices,
        table: ServiceTable,
        postman: Postman,
        reactor: Any,
        directory: Path,
        bounds: CheckBounds = CheckBounds(),
        chance: random.Random | None = None,
        connect_to: Connect | None = None,
        start_script: Callable[..., ScriptRun | int] = run_script,
        local_time: Callable[[float], datetime] = datetime.fromtimestamp,
    ) -> None:
        """
        :param directory: where scripts start.
        :param connect_to: None: over the network.
        :param start_script: as :func:`gridnet.lbsmd.script.run_script`.
        :param local_time: of seconds since the epoch.
        """
        self._local = local
        self._conditions = Conditions(table)
        self.postman = postman
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._directory = directory
        self._bounds = bounds
        self._chance = chance or random.Random()
        self._connect = connect_to or (
            lambda host, port, seconds: connect(reactor, host, port, seconds)
        )
        self._start_script = start_script
        self._local_time = local_time
        self._checks: dict[Key, ServiceCheck] = {}
        self._due: list[tuple[float, int, ServiceCheck]] = []
        self._ticket = count()
        self._turns: deque[ServiceCheck] = deque()
        self._taking_turns = False
        self._timer: IDelayedCall | None = None
        self._ending: list[Deferred[Any]] = []
        self.running_checks = 0
        self.done = 0
        local.subscribe(self._loaded)
        local.watch(self._asked)

    def startService(self) -> None:
        """Begin to check."""
        super().startService()
        self._loaded()

    def stopService(self) -> Deferred[Any] | None:
        """Check no longer; fires once no script is left."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for check in list(self._checks.values()):
            self._drop(check)
        self._checks = {}
        self._due = []
        self._turns.clear()
        return DeferredList(list(self._ending)) if self._ending else None

    def check(self, key: Key) -> ServiceCheck | None:
        """What the checks of that server have come to; None: it is not checked."""
        return self._checks.get(key)

    def facts(self) -> Mapping[str, Any]:
        """For the status page."""
        states: dict[str, int] = {}
        for check in self._checks.values():
            name = check.verdict.state.value
            states[name] = states.get(name, 0) + 1
        return {
            "checked": len(self._checks),
            "checks_running": self.running_checks,
            "checks_waiting": len(self._turns),
            "checks_done": self.done,
            "states": states,
            **self.postman.facts(),
        }

    # --- which ------------------------------------------------------------------------------

    def _loaded(self) -> None:
        """The definitions are new: check what they say, keep what is known."""
        if not self.running:
            return
        checks: dict[Key, ServiceCheck] = {}
        for key, service in self._local.services().items():
            plan = service.placed.plan
            before = self._checks.pop(key, None)
            if not plan.interval.period_seconds:
                if before is not None:
                    self._drop(before)
                self._local.judge(key, UP)
            elif before is not None and before.plan == plan:
                checks[key] = before
            else:
                checks[key] = self._begin(key, plan, before)
        for gone in self._checks.values():
            self._drop(gone)
        self._checks = checks
        self._arrange()

    def _begin(self, key: Key, plan: CheckPlan, before: ServiceCheck | None) -> ServiceCheck:
        check = ServiceCheck(key, plan)
        if before is not None:
            check.told = before.told
            check.unreachable = before.unreachable
            if before.plan.script == plan.script:
                check.history, check.script_at = before.history, before.script_at
            self._drop(before)
        spread = min(self._bounds.spread_seconds, plan.interval.period_seconds)
        self._schedule(check, self._chance.uniform(0.0, spread))
        return check

    def _drop(self, check: ServiceCheck) -> None:
        """Forget *check*, whatever it is doing; its script is killed."""
        if check.checking is not None:
            check.checking.cancel()

    def _is_current(self, check: ServiceCheck) -> bool:
        return self._checks.get(check.key) is check

    # --- when -------------------------------------------------------------------------------

    def _schedule(self, check: ServiceCheck, seconds: float) -> None:
        check.due_at = self._clock.seconds() + seconds
        heappush(self._due, (check.due_at, next(self._ticket), check))

    def _arrange(self) -> None:
        """See to it that somebody looks when the next check is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and self.running:
            wait = max(0.0, self._due[0][0] - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while self._due and self._due[0][0] <= now:
            due_at, _, check = heappop(self._due)
            if self._is_current(check) and check.due_at == due_at and not check.waiting:
                check.waiting = True
                self._turns.append(check)
        self._take_turns()
        self._arrange()

    def _take_turns(self) -> None:
        if self._taking_turns:
            return  # a check that ended at once: the loop below goes on
        self._taking_turns = True
        try:
            while self._turns and self.running_checks < self._bounds.max_parallel:
                check = self._turns.popleft()
                check.waiting = False
                if self._is_current(check):
                    self._start(check)
        finally:
            self._taking_turns = False

    def _start(self, check: ServiceCheck) -> None:
        self.running_checks += 1
        jitter = self._chance.uniform(-self._bounds.jitter, self._bounds.jitter)
        period = check.plan.interval.period_seconds * (1.0 + jitter)
        began = check.checked_at = self._clock.seconds()
        checking = Deferred.fromCoroutine(self._check(check, period))
        ended: Deferred[None] = Deferred()
        self._ending.append(ended)
        check.checking = checking

        def finish(result: object) -> None:
            if isinstance(result, Failure) and result.check(CancelledError) is None:
                self._log.failure("a check", result)
            check.checking = check.run = None
            self.running_checks -= 1
            self.done += 1
            self._ending.remove(ended)
            if self._is_current(check) and check.history.verdict.state is not State.OFF:
                backoff = check.plan.interval.backoff_seconds
                wait = period
                if backoff is not None and check.verdict.state is State.DOWN:
                    wait = backoff * (1.0 + jitter)
                self._schedule(check, max(0.0, began + wait - self._clock.seconds()))
            ended.callback(None)
            if self.running and not self._taking_turns:
                self._take_turns()
                self._arrange()

        checking.addBoth(finish)

    # --- how --------------------------------------------------------------------------------

    async def _check(self, check: ServiceCheck, period: float) -> None:
        """
        One check.

        :param period: seconds until the next one, which a script has for its run.
        """
        service = self._local[check.key]
        moment = self._local_time(self._clock.seconds())
        check.on_schedule = in_schedule(check.plan.schedule, moment)
        if not check.on_schedule:
            self._judge(check)
            return
        unmet = self._conditions.failing(service.conditions, check.key)
        check.unmet = "" if unmet is None else unmet.text
        script = check.plan.script if check.history.active else None
        piped = script is not None and script.piped
        connection = None
        if self._is_probed(service, check) or piped:
            connection = await self._reach(service, check)
        else:
            check.unreachable = ""
        try:
            if script is None or (piped and connection is None):
                self._judge(check)
                return
            self._judge(check)  # with the script's last word: it may take its time for the next
            run = self._run(service, check, connection if piped else None, period)
        finally:
            if connection is not None:
                connection.close()
        if isinstance(run, int):
            self._script_ended(check, run)
            return
        check.run = run
        code = await self._script_end(run, check, period)
        self._script_ended(check, code)

    def _is_probed(self, service: LocalService, check: ServiceCheck) -> bool:
        """
        Whether the own connection point is tried.

        An NCBID server of this host has none of its own: the launcher is behind the table.
        """
        entry = service.configured
        local_ncbid = entry.info.type is ServerType.NCBID and not entry.static
        return check.plan.interval.own_point and entry.info.port != 0 and not local_ncbid

    async def _reach(self, service: LocalService, check: ServiceCheck) -> socket.socket | None:
        """Connect to the server, and note why that cannot be done."""
        info = service.configured.info
        check.full = service.standing.availability <= 0.0
        if check.full:
            check.unreachable = f"port {info.port} has no capacity left"
            return None
        period = check.plan.interval.period_seconds
        seconds = min(period, self._bounds.probe_seconds)
        try:
            connection = await self._connect(info.host, info.port, seconds)
        except ConnectTimeoutError as error:
            check.unreachable = str(error)
            return None
        except OSError as error:
            check.unreachable = f"connecting: {error.strerror or error}"
            return None
        check.unreachable = ""
        return connection

    def _run(
        self,
        service: LocalService,
        check: ServiceCheck,
        connection: socket.socket | None,
        period: float,
    ) -> ScriptRun | int:
        script = check.plan.script
        if script is None:
            raise ValueError("no script to run")
        now = self._clock.seconds()
        info = service.configured.info
        elapsed = 0.0 if check.script_at is None else now - check.script_at
        check.script_at = now
        name = service.placed.record.name

        def complain(line: str) -> None:
            self._log.warn(
                "{script} for {service}: {line}", script=script.path, service=name, line=line
            )

        return self._start_script(
            self._reactor,
            script,
            script_arguments(script, name, info.host, info.port, check.history, elapsed),
            self._directory,
            connection,
            period,
            complain,
            self._bounds.script_log_octets,
        )

    async def _script_end(self, run: ScriptRun, check: ServiceCheck, period: float) -> int | None:
        """The exit code; None when the script crashed, or had to be killed for being late."""
        began = check.checked_at or 0.0
        late: list[bool] = []

        def kill() -> None:
            late.append(True)
            run.kill()

        remaining = max(0.0, began + period - self._clock.seconds())
        timer = self._clock.callLater(remaining, kill)
        waiting: Deferred[int | None] = Deferred(lambda _: run.kill())
        self._ending.append(run.ended)

        def ended(code: int | None) -> None:
            self._ending.remove(run.ended)
            if not waiting.called:  # called off meanwhile
                waiting.callback(code)

        run.ended.addCallback(ended)
        try:
            code = await waiting
        finally:
            if timer.active():
                timer.cancel()
        return None if late else code

    # --- what comes of it -------------------------------------------------------------------

    def _script_ended(self, check: ServiceCheck, code: int | None) -> None:
        """
        A run of the script is over.

        :param code: its exit code; None: it crashed or was late.
        """
        check.history, action = (
            check.history.failed() if code is None else check.history.ended(code)
        )
        text = "crashed or was late" if code is None else f"said {code}"
        service = self._local.get(check.key)
        script = check.plan.script
        if service is None or script is None:
            return
        if Action.WARN in action:
            self._log.warn(
                "{script} for {service} {what}",
                script=script.path,
                service=service.placed.record.name,
                what=text,
            )
        if Action.STOPPED in action or Action.REMOVED in action:
            self._log.error(
                "{script} for {service} is not run again: it {what}",
                script=script.path,
                service=service.placed.record.name,
                what=text,
            )
        changed = self._judge(check)
        if Action.MAIL in action and not changed:
            self._mail(check, service, f"{script.path} {text}")

    def _judge(self, check: ServiceCheck) -> bool:
        """Publish the verdict; whether the contacts were told."""
        service = self._local.get(check.key)
        if service is None or not self._is_current(check):
            return False
        before = service.standing.verdict
        verdict = check.verdict
        if verdict.state is not before.state:
            self._log.info(
                "{server} is {state} now: {reason}",
                server=_server_text(service),
                state=verdict.state.value,
                reason=check.reason or "all is well",
            )
        self._local.judge(check.key, verdict)
        return self._tell(check)

    def _asked(self, key: Key, rerated: bool) -> None:
        """Somebody has penalized or rerated a server, filled its port, or made room there."""
        check = self._checks.get(key)
        if check is None:
            return
        service = self._local.get(key)
        if check.full and service is not None and service.standing.availability > 0.0:
            check.full, check.unreachable = False, ""
            self._judge(check)
            if check.checking is None and not check.waiting:
                self._schedule(check, 0.0)
                self._arrange()
        if rerated:
            check.history = check.history.rerated()
            self._local.judge(key, check.verdict)
        self._tell(check)

    def _tell(self, check: ServiceCheck) -> bool:
        """Mail a change of state, unless it is hidden; whether there was one to mail."""
        service = self._local.get(check.key)
        state = check.verdict.state
        if service is None or state is check.told or service.standing.penalty >= 100.0:
            return False
        if not check.on_schedule:
            return False
        check.told = state
        self._mail(check, service, f"is {state.value} now: {check.reason or 'all is well'}")
        return True

    def _mail(self, check: ServiceCheck, service: LocalService, what: str) -> None:
        name = service.placed.record.name
        notice = Notice(name, f"{_server_text(service)} {what}", self._clock.seconds())
        self.postman.tell([contact.address for contact in check.plan.contacts], notice)


def _server_text(service: LocalService) -> str:
    """A server for people: name, type, connection point."""
    info = service.configured.info
    point = format_connection_point(info.host, info.port)
    return f"{service.placed.record.name} {KEYWORDS[info.type]} {point}"
