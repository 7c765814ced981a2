"""The launcher: runs the programs behind services, within limits."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import implementer

import gridnet
from gridnet.config import parse_port_range
from gridnet.errors import LaunchError
from gridnet.interfaces import IProgramLauncher
from gridnet.launcher.cgi import environment, indexed_arguments, query_string
from gridnet.launcher.child import check_program
from gridnet.launcher.config import LauncherConfig
from gridnet.launcher.oneshot import OneShotPort, bind
from gridnet.launcher.program import Attached, Filter, Job, Program
from gridnet.launcher.slots import Slots
from gridnet.launcher.words import split_words
from gridnet.table.way_in import ConnectionPoint, LaunchRequest, ProgramOutput, RunningProgram

_SOFTWARE = f"gridnet/{gridnet.__version__}"


def make_job(request: LaunchRequest, config: LauncherConfig) -> Job:
    """
    What is to be run for *request*.

    :raises LaunchError: its launcher command cannot be.
    """
    words = split_words(request.command)
    check_program(words[0])
    if config.indexed_arguments:
        words = [*words, *indexed_arguments(request.query)]
    query = query_string(request.server.arguments, request.query)
    return Job(
        request.service,
        words,
        environment(request, query, config.path, _SOFTWARE),
        request.request_id,
    )


@implementer(IProgramLauncher)
class ProgramLauncher:
    """
    Runs programs for the dispatcher.

    :param address: IPv4 address text that clients of one-shot ports are told.
    :param note_unused: told of (client, service) when nobody came to a one-shot port.
    :param is_refused: gives why a client is refused, or nothing.
    :ivar counts: what happened -> how often.
    """

    _log = Logger()

    def __init__(
        self,
        config: LauncherConfig,
        reactor: Any,
        address: str,
        note_unused: Callable[[str, str], None],
        is_refused: Callable[[str], str],
        chance: random.Random,
    ) -> None:
        self.config = config
        self.address = address
        self.slots = Slots(config.per_service, config.in_all)
        self.counts: dict[str, int] = dict.fromkeys(
            ("started", "failed to start", "ports opened", "ports not used"), 0
        )
        self.running: set[Program] = set()
        self.waiting: set[OneShotPort] = set()
        self._reactor = reactor
        self._note_unused = note_unused
        self._is_refused = is_refused
        self._chance = chance
        self._gone: list[Deferred[None]] = []
        self._ports = parse_port_range(config.ports) if config.ports else range(0)

    # -- gridnet.interfaces.IProgramLauncher

    def run(self, request: LaunchRequest, output: ProgramOutput) -> RunningProgram:
        """See :class:`gridnet.interfaces.IProgramLauncher`."""
        length = _content_length(request)
        limit = self.config.max_input_octets
        if limit and length > limit:
            raise LaunchError(f"The request's body is longer than {limit} octets", 413)
        job = make_job(request, self.config)

        def make() -> Filter:
            return Filter(job, self.config, self._over, self._reactor, output)

        program: RunningProgram = self._start(job, make)
        return program

    def listen_once(self, request: LaunchRequest) -> Deferred[ConnectionPoint]:
        """See :class:`gridnet.interfaces.IProgramLauncher`."""
        try:
            return succeed(self._listen(request))
        except LaunchError as error:
            return fail(error)

    def _listen(self, request: LaunchRequest) -> ConnectionPoint:
        refusal = self._is_refused(request.client)
        if refusal:
            raise LaunchError(refusal, 403)
        if len(self.waiting) >= self.config.max_waiting:
            raise LaunchError("Too many programs wait for their clients", 503)
        if self.slots.of(request.service) >= self.config.per_service:
            self.slots.take(request.service)  # says why not
        job = make_job(request, self.config)
        sock = bind(self.config.interface, self._ports, self._chance)
        number = 0
        while not number:
            number = self._chance.getrandbits(32)

        def accepted(connection: socket.socket, peer: str) -> None:
            self.waiting.discard(port)
            with connection:
                try:
                    self._start(
                        job,
                        lambda: Attached(job, self.config, self._over, self._reactor, connection),
                    )
                except LaunchError as error:
                    self._log.warn(
                        "{service}: {peer} sent away, {reason}",
                        service=job.service,
                        peer=peer,
                        reason=str(error),
                    )
            self._see_whether_gone()

        def gave_up(reason: str) -> None:
            self.waiting.discard(port)
            self.counts["ports not used"] += 1
            self._note_unused(request.client, request.service)
            self._log.info(
                "{service}: port for {client} not used, {reason}",
                service=request.service,
                client=request.client,
                reason=reason,
            )
            self._see_whether_gone()

        point = ConnectionPoint(self.address, sock.getsockname()[1], number)
        port = OneShotPort(
            sock,
            number.to_bytes(4, "big"),
            self.config.connect_seconds,
            self.config.ticket_seconds,
            accepted,
            gave_up,
            self._reactor,
        )
        self.waiting.add(port)
        self.counts["ports opened"] += 1
        return point

    def _start(self, job: Job, make: Callable[[], Any]) -> Any:
        self.slots.take(job.service)
        try:
            program = make()
        except BaseException:
            self.slots.give_back(job.service)
            self.counts["failed to start"] += 1
            raise
        self.counts["started"] += 1
        self.running.add(program)
        return program

    def _over(self, program: Program) -> None:
        self.running.discard(program)
        self.slots.give_back(program.job.service)
        self._see_whether_gone()

    # -- the end of the service

    def close(self) -> None:
        """Open ports are closed; programs are asked to end."""
        for port in list(self.waiting):
            port.close()
        self.waiting.clear()
        for program in list(self.running):
            program.stop("the service ends", 503)

    def kill(self) -> None:
        """Programs are made to end."""
        for program in list(self.running):
            program.kill()

    def all_gone(self) -> Deferred[None]:
        """Fires when no program runs any more."""
        if not self.running:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._gone.append(waiting)
        return waiting

    def _see_whether_gone(self) -> None:
        if not self.running:
            gone, self._gone = self._gone, []
            for waiting in gone:
                waiting.callback(None)

    def facts(self) -> Mapping[str, Any]:
        """How it is, for the status page."""
        return {
            "running": len(self.running),
            "ports_waiting": len(self.waiting),
            "turned_away": self.slots.turned_away,
            **{name.replace(" ", "_"): number for name, number in self.counts.items()},
        }


def _content_length(request: LaunchRequest) -> int:
    for name, value in request.headers:
        if name.lower() == "content-length" and value.isascii() and value.isdecimal():
            return int(value)
    return 0
