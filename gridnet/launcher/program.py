"""One program: its streams, its limits, its end."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gridnet.launcher.child import (
    Confinement,
    ExitWatch,
    reason_of,
    signal_group,
    start,
    status_of,
)
from gridnet.launcher.complaints import Complaints
from gridnet.launcher.config import LauncherConfig
from gridnet.launcher.machine import Life, LifeCore, Pause, make_life
from gridnet.launcher.pipes import PipeReader, PipeWriter
from gridnet.table.way_in import ProgramOutput


@frozen
class Job:
    """What is to be run."""

    service: str
    words: Sequence[str]
    environment: Mapping[str, str]
    request_id: str = ""  #: for the log


def _children_cpu_seconds() -> float:
    """What all programs that were collected have taken together."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def confinement(config: LauncherConfig) -> Confinement:
    """What the programs of one site may take."""
    return Confinement(
        config.cpu_seconds,
        config.memory_octets,
        config.open_files,
        config.user,
        config.directory,
    )


class Program:
    """
    A program that runs; the hands of its machine (:class:`gridnet.launcher.machine.Hands`).

    What its standard input and output are, its subclasses say.

    :param over: called once, when the program and all its descendants are gone.
    """

    _log = Logger()

    def __init__(
        self, job: Job, config: LauncherConfig, over: Callable[[Program], None], reactor: Any
    ) -> None:
        self.job = job
        self._config = config
        self._over = over
        self._reactor = reactor
        self._clock = IReactorTime(reactor)
        self._life: Life = make_life(LifeCore(self))
        self._timer: Any = None
        self._wall: Any = None
        self._reason = ""
        self._http_status = 502
        self._popen: subprocess.Popen[bytes]
        self._watch: ExitWatch
        self._stderr: PipeReader
        self._began = self._clock.seconds()
        self._complaints = Complaints(config.stderr_octets_per_second, self._began)
        self.pid = 0
        self.cpu_seconds = 0.0  #: that it took, once it is over

    def _start(self, stdin: Any, stdout: Any) -> None:
        """
        Start it.

        :raises LaunchError: it cannot be.
        """
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            self._popen = start(
                self.job.words,
                self.job.environment,
                confinement(self._config),
                stdin,
                stdout,
                theirs,
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self.pid = self._popen.pid
        self._stderr = PipeReader(ours, self._complained, lambda: None, self._reactor)
        self._watch = ExitWatch(self._popen, self._life.exited, self._reactor)
        if self._config.wall_seconds:
            self._wall = self._clock.callLater(
                self._config.wall_seconds, self.stop, "the program ran for too long", 504
            )

    def stop(self, reason: str, http_status: int = 502) -> None:
        """End the program, for a *reason* that its client is told."""
        if not self._reason:
            self._reason, self._http_status = reason, http_status
        self._life.went_too_far()

    def abandon(self) -> None:
        """See :class:`gridnet.table.way_in.RunningProgram`."""
        self._life.abandoned()

    def kill(self) -> None:
        """See :class:`gridnet.launcher.machine.Hands`; also for the end of the service."""
        signal_group(self._popen, signal.SIGKILL)

    def _complained(self, data: bytes) -> None:
        self._write_log(self._complaints.receive(data, self._clock.seconds()))

    def _write_log(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._log.info(
                "{service} {pid} {request_id}: {line}",
                service=self.job.service,
                pid=self.pid,
                request_id=self.job.request_id or "-",
                line=line,
            )

    # -- the machine's hands

    def wait(self, for_what: Pause) -> None:
        """See :class:`gridnet.launcher.machine.Hands`."""
        self._stop_waiting()
        config = self._config
        seconds = {
            Pause.DESCENDANTS: config.descendants_seconds,
            Pause.GOODBYE: config.goodbye_seconds,
            Pause.TERMINATION: config.termination_seconds,
        }[for_what]
        self._timer = self._clock.callLater(seconds, self._waited)

    def _waited(self) -> None:
        self._timer = None
        self._life.time_ran_out()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end_input(self) -> None:
        """See :class:`gridnet.launcher.machine.Hands`."""

    def terminate(self) -> None:
        """See :class:`gridnet.launcher.machine.Hands`."""
        signal_group(self._popen, signal.SIGTERM)

    def finish(self) -> None:
        """See :class:`gridnet.launcher.machine.Hands`."""
        self._stop_waiting()
        if self._wall is not None and self._wall.active():
            self._wall.cancel()
        status = status_of(self._popen)
        # Before it is collected, nobody else can have its number.
        self.kill()
        before = _children_cpu_seconds()
        self._popen.wait()
        self.cpu_seconds = _children_cpu_seconds() - before
        self._watch.close()
        self._drain_stderr()
        code = 0 if status is None else status
        reason = self._reason or reason_of(code)
        self._log.debug(
            "{service} {pid} {request_id}: ended after {seconds:.3f} s, {reason}",
            service=self.job.service,
            pid=self.pid,
            request_id=self.job.request_id or "-",
            seconds=self._clock.seconds() - self._began,
            reason=reason or "well",
        )
        # Whoever hears of its end may start the next at once.
        self._over(self)
        self._ended(code, reason)

    def _drain_stderr(self) -> None:
        """What it said last may not have been read yet."""
        if self._stderr.fd >= 0:
            try:
                self._complained(os.read(self._stderr.fd, 65_536))
            except OSError:
                pass
            self._stderr.close()
        self._write_log(self._complaints.end())

    def _ended(self, status: int, reason: str) -> None:
        """Tell whoever waits."""


class Filter(Program):
    """
    A program between pipes (:class:`gridnet.table.way_in.RunningProgram`).

    :raises LaunchError: it cannot be started.
    """

    def __init__(
        self,
        job: Job,
        config: LauncherConfig,
        over: Callable[[Program], None],
        reactor: Any,
        output: ProgramOutput,
    ) -> None:
        super().__init__(job, config, over, reactor)
        self._output = output
        self._input_octets = 0
        self._output_octets = 0
        self._moved = 0
        self._silence: Any = None
        self._abandoned = False
        their_input, our_input = os.pipe2(os.O_CLOEXEC)
        our_output, their_output = os.pipe2(os.O_CLOEXEC)
        try:
            self._start(their_input, their_output)
        except BaseException:
            os.close(our_input)
            os.close(our_output)
            raise
        finally:
            os.close(their_input)
            os.close(their_output)
        self._input = PipeWriter(our_input, self._input_paused, self._input_resumed, reactor)
        self._reader = PipeReader(our_output, self._received, self._output_ended, reactor)
        self._listen_for_silence()

    # -- gridnet.table.way_in.RunningProgram

    def write(self, data: bytes) -> None:
        """See :class:`gridnet.table.way_in.RunningProgram`."""
        self._moved += 1
        self._input_octets += len(data)
        limit = self._config.max_input_octets
        if limit and self._input_octets > limit:
            self.stop("the request's body is too long", 413)
        elif self._input.fd >= 0 and not self._input.disconnecting:
            self._input.write(data)

    def end_input(self) -> None:
        """See :class:`gridnet.table.way_in.RunningProgram`, and the machine's hands."""
        self._moved += 1
        self._input.end()

    def pause_output(self) -> None:
        """See :class:`gridnet.table.way_in.RunningProgram`."""
        self._reader.pauseProducing()

    def resume_output(self) -> None:
        """See :class:`gridnet.table.way_in.RunningProgram`."""
        if self._reader.fd >= 0:
            self._reader.resumeProducing()

    def abandon(self) -> None:
        """See :class:`gridnet.table.way_in.RunningProgram`."""
        self._abandoned = True
        # Read on, so that it need not wait for us; nobody is told.
        self.resume_output()
        super().abandon()

    # -- what the pipes tell

    def _input_paused(self) -> None:
        if not self._abandoned:
            self._output.input_paused()

    def _input_resumed(self) -> None:
        self._moved += 1
        if not self._abandoned:
            self._output.input_resumed()

    def _received(self, data: bytes) -> None:
        self._moved += 1
        self._output_octets += len(data)
        limit = self._config.max_output_octets
        if limit and self._output_octets > limit:
            self.stop("the program wrote too much")
        elif not self._abandoned:
            self._output.output_received(data)

    def _output_ended(self) -> None:
        self._life.output_ended()

    # -- silence

    def _listen_for_silence(self) -> None:
        if self._config.silence_seconds:
            self._silence = self._clock.callLater(
                self._config.silence_seconds, self._listened, self._moved
            )

    def _listened(self, moved: int) -> None:
        if moved == self._moved:
            self.stop("no octet went in or out for too long", 504)
        else:
            self._listen_for_silence()

    def _ended(self, status: int, reason: str) -> None:
        if self._silence is not None and self._silence.active():
            self._silence.cancel()
        self._input.close()
        # What it wrote last may not have been read yet; nobody writes any more.
        while self._reader.fd >= 0:
            try:
                data = os.read(self._reader.fd, 65_536)
            except OSError:
                data = b""
            if not data:
                self._reader.close()
            else:
                self._received(data)
        if not self._abandoned:
            self._output.program_ended(status if status >= 0 else None, reason, self._http_status)


class Attached(Program):
    """
    A program whose standard input and output are a connection.

    :raises LaunchError: it cannot be started.
    """

    def __init__(
        self,
        job: Job,
        config: LauncherConfig,
        over: Callable[[Program], None],
        reactor: Any,
        connection: socket.socket,
    ) -> None:
        super().__init__(job, config, over, reactor)
        # The mode belongs to the connection, not to our descriptor of it.
        connection.setblocking(True)
        self._start(connection, connection)
        # Nobody reads anything of it here.
        self._life.output_ended()
