"""Runs a program as a service for as long as it lasts, or may."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from attrs import frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from gridnet.errors import LaunchError
from gridnet.launcher.batch.deadline import Deadline
from gridnet.launcher.batch.health import HealthCheck
from gridnet.launcher.batch.lease import Ask, Lease
from gridnet.launcher.batch.machine import Life, LifeCore, Pause, make_life
from gridnet.launcher.batch.sockets import TABLES, TcpSocket, sockets_at
from gridnet.launcher.child import (
    Confinement,
    ExitWatch,
    reason_of,
    signal_group,
    start,
    status_of,
)
from gridnet.port_posts import MAX_POST_OCTETS, PostError, format_answer, parse_post

#: How often is looked whether the program listens already.
_LISTEN_LOOK_SECONDS = 0.05
#: How often is looked for connections that are still open.
_DRAIN_LOOK_SECONDS = 0.25
#: What is kept for the end itself when a time limit comes.
_MARGIN_SECONDS = 5.0
_SAME_WISH_SECONDS = 1.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@frozen
class BatchPlan:
    """What is wanted."""

    service: str
    words: Sequence[str]  #: the program and its arguments; ``{port}`` stands for the port
    type: str = "STANDALONE"  #: as in a service line
    arguments: str = ""  #: path and arguments of an HTTP server
    flags: str = ""  #: further words of the service line
    rate: float = 1000.0
    lease_seconds: int = 10
    start_seconds: float = 60.0  #: until the program listens
    register_seconds: float = 60.0  #: until the daemon has it
    health_seconds: float = 5.0  #: between checks; 0: none
    health_timeout_seconds: float = 3.0
    health_failures: int = 2  #: in a row, until it counts as down
    health_path: str = ""
    drain_seconds: float = 300.0  #: for the clients of before
    settle_seconds: float = 10.0  #: for those that were told of it just before; at least
    termination_seconds: float = 10.0
    before_limit_seconds: float = 300.0  #: that draining begins before the time limit

    def server_line(self, port: int) -> str:
        """The service line of the program at *port*."""
        words = [self.service, self.type, f":{port}"]
        if self.arguments:
            words.append(self.arguments)
        words += [f"R={self.rate:g}", f"T={self.lease_seconds}"]
        return " ".join([*words, *self.flags.split()])


class CapacityPort(DatagramProtocol):
    """
    Hears what the program says of its capacity (docs/protocols/port-capacity.rst).

    :param port: the only one that it may speak of.
    :param heard: called with the availability, 0 to 1.
    """

    _log = Logger()
    transport: Any

    def __init__(self, port: int, heard: Callable[[float], None]) -> None:
        self._port = port
        self._heard = heard

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Called by Twisted."""
        problem = ""
        try:
            post = parse_post(datagram)
            if post.port != self._port:
                raise PostError(f"port {post.port} is not that of this program")
        except PostError as error:
            problem = str(error)
            self._log.warn("a post is passed over, {reason}", reason=problem)
        else:
            self._heard(post.availability)
        if addr:
            try:
                self.transport.write(format_answer(problem), addr)
            except OSError:
                # Who does not wait for the answer does not want it.
                pass


def open_sockets(port: int) -> Sequence[TcpSocket]:
    """The sockets of this host whose own end is *port*."""
    found: list[TcpSocket] = []
    for table in TABLES:
        try:
            found.extend(sockets_at(port, Path(table).read_text()))
        except OSError:
            continue
    return found


def holds(pid: int, inode: int) -> bool:
    """
    Whether process *pid* or a descendant has the socket *inode*.

    True where that cannot be seen: a program may have shed its privileges, or gained some.
    """
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return False
    wanted = f"socket:[{inode}]"
    unseen = False
    for process in family:
        directory = f"/proc/{process.pid}/fd"
        try:
            for name in os.listdir(directory):
                try:
                    if os.readlink(f"{directory}/{name}") == wanted:
                        return True
                except FileNotFoundError:
                    continue
        except FileNotFoundError:
            continue
        except PermissionError:
            unseen = True
    return unseen


class BatchService:
    """
    One program that is a service; the hands of its machine
    (:class:`gridnet.launcher.batch.machine.Hands`).

    :param ask: asks the daemon of this host.
    :param capacity_path: a UNIX datagram socket to open for the program.
    :param over: called once with the exit status of the whole.
    """

    _log = Logger()

    def __init__(
        self,
        plan: BatchPlan,
        port: int,
        ask: Ask,
        capacity_path: str,
        deadline: Deadline | None,
        over: Callable[[int], None],
        reactor: Any,
    ) -> None:
        self._plan = plan
        self._port = port
        self._capacity_path = capacity_path
        self._deadline = deadline
        self._over = over
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._life: Life = make_life(LifeCore(self))
        self._timer: IDelayedCall | None = None
        self._until_limit: IDelayedCall | None = None
        self._status: int | None = None  #: that is given whatever the program gives
        self._availability = 1.0
        self._failures = 0
        self._checking = False
        self._quiet_since: float | None = None
        self._drain_from: float | None = None
        self._settled_at = 0.0
        self._said = ""
        self._registered_once = False
        self._host = "127.0.0.1"
        self._capacity: Any = None
        self._popen: subprocess.Popen[bytes]
        self._watch: ExitWatch
        self._looking = self._looping(self._look_for_listener)
        self._healing = self._looping(self._check_health)
        self._draining = self._looping(self._look_for_clients)
        self._lease = Lease(
            ask,
            plan.server_line(port),
            plan.rate,
            plan.lease_seconds,
            self._registered,
            self._refused,
            reactor,
        )

    def _looping(self, work: Callable[[], Any]) -> LoopingCall:
        call = LoopingCall(work)
        call.clock = self._clock
        return call

    def _begin_looping(self, call: LoopingCall, seconds: float, now: bool = True) -> None:
        call.start(seconds, now=now).addErrback(
            lambda failure: self._log.failure("looking after the program", failure)
        )

    # -- what the command says

    def start(self, environment: Mapping[str, str], directory: str) -> None:
        """
        Start the program.

        :raises LaunchError: it cannot be.
        """
        plan = self._plan
        words = [word.replace("{port}", str(self._port)) for word in plan.words]
        capacity = CapacityPort(self._port, self._heard_capacity)
        self._capacity = self._reactor.listenUNIXDatagram(
            self._capacity_path, capacity, MAX_POST_OCTETS + 1, 0o600
        )
        given = {
            **environment,
            "GRIDNET_SERVICE": plan.service,
            "GRIDNET_PORT": str(self._port),
            "GRIDNET_CAPACITY": self._capacity_path,
            "PORT": str(self._port),
        }
        confinement = Confinement(directory=directory, dies_with_parent=True)
        try:
            self._popen = start(words, given, confinement, None, None, None)
        except LaunchError:
            self._capacity.stopListening()
            raise
        self._watch = ExitWatch(self._popen, self._life.exited, self._reactor)
        self._log.info(
            "{service}: {pid} is to listen at port {port}",
            service=plan.service,
            pid=self._popen.pid,
            port=self._port,
        )
        self.wait(Pause.START)
        self._begin_looping(self._looking, _LISTEN_LOOK_SECONDS)
        self._mind_the_limit()

    def _mind_the_limit(self) -> None:
        deadline = self._deadline
        if deadline is None:
            return
        left = deadline.at - self._clock.seconds()
        wait = max(0.0, left - self._plan.before_limit_seconds)
        self._log.info(
            "{service}: {source} ends this job in {left:.0f} s, clients are sent elsewhere in "
            "{wait:.0f} s",
            service=self._plan.service,
            source=deadline.source,
            left=left,
            wait=wait,
        )
        self._until_limit = self._clock.callLater(wait, self.drain_for, "the time limit comes")

    def drain_for(self, reason: str, urgent: bool = False) -> None:
        """
        Take no more clients; end once they are gone.

        :param urgent: asked again, end now.  Batch systems signal a process and its group, so
            what comes within a second is the same wish.
        """
        now = self._clock.seconds()
        if self._drain_from is not None:
            if urgent and now - self._drain_from > _SAME_WISH_SECONDS:
                self.stop_for(f"{reason} again")
            return
        self._drain_from = now
        self._log.info("{service}: {reason}", service=self._plan.service, reason=reason)
        if self._status is None:
            self._status = 0
        self._life.told_to_drain()

    def stop_for(self, reason: str, status: int = 0) -> None:
        """End now."""
        self._log.info("{service}: {reason}", service=self._plan.service, reason=reason)
        if not self._status:
            self._status = status
        self._life.told_to_stop()

    # -- listening

    def _look_for_listener(self) -> None:
        listening = [each for each in open_sockets(self._port) if each.listens]
        if not listening:
            return
        if not any(holds(self._popen.pid, each.inode) for each in listening):
            # Somebody else was faster.
            self.stop_for(f"port {self._port} is another program's", 1)
            return
        self._host = ANYWHERE.get(listening[0].address, listening[0].address)
        self._looking.stop()
        self._life.listened()

    # -- health

    def _check_health(self) -> None:
        if self._checking:
            return
        self._checking = True
        plan = self._plan
        check = HealthCheck(
            self._host, self._port, plan.health_path, plan.health_timeout_seconds, self._reactor
        )
        check.run().addCallback(self._checked)

    def _checked(self, reason: str) -> None:
        self._checking = False
        if not reason:
            if self._failures >= self._plan.health_failures:
                self._log.info("{service}: answers again", service=self._plan.service)
            self._failures = 0
            self._life.recovered()
            return
        self._failures += 1
        if self._failures == self._plan.health_failures:
            self._log.warn(
                "{service}: does not answer, {reason}", service=self._plan.service, reason=reason
            )
            self._life.fell_ill()

    # -- capacity

    def _heard_capacity(self, availability: float) -> None:
        if availability != self._availability:
            self._availability = availability
            if self._failures < self._plan.health_failures:
                self._lease.change(rate=self._rate)

    @property
    def _rate(self) -> float:
        return self._plan.rate * self._availability

    # -- the table

    def _registered(self) -> None:
        if self._said or not self._registered_once:
            self._log.info(
                "{service}: in the table, port {port}",
                service=self._plan.service,
                port=self._port,
            )
        self._said = ""
        self._registered_once = True

    def _refused(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            self._log.warn(
                "{service}: not in the table, {reason}", service=self._plan.service, reason=reason
            )
        waited = self._clock.seconds() - self._published_at
        if not self._registered_once and waited >= self._plan.register_seconds:
            self.stop_for("nobody can reach it; given up", 1)

    _published_at = 0.0

    # -- the machine's hands

    def wait(self, for_what: Pause) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        self.stop_waiting()
        plan = self._plan
        seconds = {
            Pause.START: plan.start_seconds,
            Pause.DRAIN: plan.drain_seconds,
            Pause.TERMINATION: plan.termination_seconds,
        }[for_what]
        if for_what is Pause.DRAIN and self._deadline is not None:
            left = self._deadline.at - self._clock.seconds()
            left -= plan.termination_seconds + _MARGIN_SECONDS
            # A limit that is past was not one.
            seconds = min(seconds, left) if left > 0 else seconds
        self._timer = self._clock.callLater(seconds, self._waited, for_what)

    def _waited(self, for_what: Pause) -> None:
        self._timer = None
        if for_what is Pause.START:
            self._status = 1
            self._log.error(
                "{service}: does not listen at port {port} after {seconds:g} s",
                service=self._plan.service,
                port=self._port,
                seconds=self._plan.start_seconds,
            )
        elif for_what is Pause.DRAIN:
            self._log.warn("{service}: clients are cut off", service=self._plan.service)
        self._life.time_ran_out()

    def stop_waiting(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def publish(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        self._published_at = self._clock.seconds()
        self._lease.change(rate=self._rate)
        self._lease.begin()
        if self._plan.health_seconds:
            self._begin_looping(self._healing, self._plan.health_seconds, now=False)

    def mark_down(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        self._lease.change(rate=0.0)

    def mark_up(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        self._lease.change(rate=self._rate)

    def drain(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        self._stop_healing()

        def told(_: object) -> None:
            # Whoever looked it up a moment ago may come until that is out of date.
            self._settled_at = self._clock.seconds() + self._plan.settle_seconds
            if not self._draining.running:
                self._begin_looping(self._draining, _DRAIN_LOOK_SECONDS)

        self._lease.change(penalty=100.0).addCallback(told)

    def _look_for_clients(self) -> None:
        now = self._clock.seconds()
        busy = any(each.is_open for each in open_sockets(self._port))
        if busy:
            self._quiet_since = None
            return
        if self._quiet_since is None:
            self._quiet_since = now
        # Twice in a row: one client may follow the other.
        quiet = now - self._quiet_since >= _DRAIN_LOOK_SECONDS
        if quiet and now >= self._settled_at:
            self._log.info("{service}: its clients are gone", service=self._plan.service)
            self._life.drained()

    def _stop_healing(self) -> None:
        if self._healing.running:
            self._healing.stop()

    def withdraw(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        self._stop_healing()
        for call in (self._looking, self._draining):
            if call.running:
                call.stop()
        self._lease.end()

    def terminate(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        # Out of the table first: who is sent here finds somebody.
        self._lease.end().addCallback(lambda _: self._signal(signal.SIGTERM))

    def kill(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._popen.returncode is None:
            signal_group(self._popen, number)

    def finish(self) -> None:
        """See :class:`gridnet.launcher.batch.machine.Hands`."""
        if self._until_limit is not None and self._until_limit.active():
            self._until_limit.cancel()
        found = status_of(self._popen) or 0
        # What it left behind has nobody to serve any more.
        signal_group(self._popen, signal.SIGKILL)
        self._popen.wait()
        self._watch.close()
        if self._capacity is not None:
            self._capacity.stopListening()
        self._log.info(
            "{service}: {pid} has ended, {reason}",
            service=self._plan.service,
            pid=self._popen.pid,
            reason=reason_of(found) or "well",
        )
        status = found if found >= 0 else 128 - found
        if self._status is not None:
            status = self._status
        self._lease.end().addCallback(lambda _: self._over(status))
