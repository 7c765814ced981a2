"""
Several processes on one port.

The site's process binds the port and accepts nothing: workers inherit the socket, so what waits
to be accepted is never lost with one of them.  It sends them the table over a channel each
(:mod:`gridnet.dispatch.channel`), starts those again that end, and answers itself, on a private
socket, the few requests that need what only it has: tickets, and programs.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

import gridnet
from gridnet.dispatch.channel import VERSION, FrameReader, changes, frame, snapshot
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.front import Front
from gridnet.dispatch.tally import Tally, add
from gridnet.dispatch.worker import CHANNEL_DESCRIPTOR, LISTENER_DESCRIPTOR
from gridnet.errors import GridnetError
from gridnet.interfaces import ITableFollower
from gridnet.site import Site
from gridnet.table.model import Change

#: Runs of table frames on the way to one worker; later changes then wait, and go as a whole.
_MAX_RUNS_UNDER_WAY = 16
#: A worker that has been told to stop gets this long beyond ``drain_seconds``.
_KILL_AFTER_SECONDS = 1.0
_MAX_LINE_OCTETS = 4096
#: Longest path that a UNIX socket's address has room for.
_MAX_SOCKET_PATH = 100

_CONVERTER = cattrs.Converter()


def _remove_if_left_behind(path: Path) -> None:
    """Remove the socket at *path* when the process that listened there was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # gone by now, or not ours to judge


class Channel(TwistedProtocol):
    """
    The site's end of the channel to one worker.

    :ivar serial: of the table that the worker answers from; -1: none yet.
    :ivar tally: what the worker has last said it has done.
    """

    _log = Logger()
    transport: Any

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._frames = FrameReader()
        self._under_way = 0
        self._full = False
        self._stale = False
        self.serial = -1
        self.ready = False
        self.tally = Tally()

    def connectionMade(self) -> None:
        """Called by Twisted."""
        self.transport.registerProducer(self, True)
        self.transport.write(self._crew.greeting())
        self._send_all()

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        try:
            for value in self._frames.receive(data):
                self._take(value)
        except (GridnetError, KeyError, TypeError, ValueError) as error:
            self._log.error("a worker makes no sense: {error}", error=str(error))
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted; the worker's end of life is told by its process."""

    def pauseProducing(self) -> None:
        """Called by the transport: the worker does not read."""
        self._full = True

    def resumeProducing(self) -> None:
        """Called by the transport."""
        self._full = False
        self._catch_up()

    def stopProducing(self) -> None:
        """Called by the transport as it ends."""

    def send_changes(self, frames: Sequence[bytes]) -> None:
        """Pass on a run of frames; a worker that lags gets the whole table later instead."""
        if self._stale or self._full or self._under_way >= _MAX_RUNS_UNDER_WAY:
            self._stale = True
            return
        self._under_way += 1
        self.transport.writeSequence(frames)

    def stop(self) -> None:
        """Tell the worker to end."""
        self.transport.unregisterProducer()
        self.transport.write(frame("stop"))

    def _send_all(self) -> None:
        self._stale = False
        self._under_way += 1
        for octets in snapshot(self._crew.table):
            self.transport.write(octets)

    def _catch_up(self) -> None:
        if self._stale and not self._full and not self._under_way:
            self._send_all()

    def _take(self, value: Mapping[str, Any]) -> None:
        kind = value["kind"]
        if kind == "done":
            self.serial = int(value["serial"])
            self._under_way -= 1
            self._catch_up()
            self._crew.worker_caught_up()
        elif kind == "tally":
            self.tally = Tally.from_json(value["tally"])
        elif kind == "ready":
            self.ready = True
            self._crew.worker_ready()


class Worker(ProcessProtocol):
    """
    One worker's life.

    :ivar number: its place in the crew, from 1.
    :ivar ended: fires when the process is gone.
    """

    _log = Logger()

    def __init__(self, crew: Crew, number: int, channel: Channel) -> None:
        self._crew = crew
        self.number = number
        self.channel = channel
        self.ended: Deferred[None] = Deferred()
        self._lines = b""

    def outReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        self.errReceived(data)

    def errReceived(self, data: bytes) -> None:
        """Called by Twisted: the worker's log, a line an event."""
        *lines, self._lines = (self._lines + data).split(b"\n")
        if len(self._lines) > _MAX_LINE_OCTETS:
            lines.append(self._lines)
            self._lines = b""
        for line in lines:
            text = line[:_MAX_LINE_OCTETS].decode("utf-8", "replace")
            level, _, rest = text.partition(" ")
            log = self._log.error if level in ("error", "critical") else self._log.warn
            log("worker {number}: {text}", number=self.number, text=rest or text)

    def processEnded(self, reason: Failure) -> None:
        """Called by Twisted."""
        self.channel.transport.abortConnection()
        self._crew.worker_ended(self, reason.getErrorMessage())
        self.ended.callback(None)

    @property
    def pid(self) -> int:
        """Process id; 0: gone."""
        return getattr(self.transport, "pid", None) or 0

    def kill(self) -> None:
        """End it at once."""
        if self.pid and self.transport is not None:
            self.transport.signalProcess("KILL")


@implementer(ITableFollower)
class Crew(Service):
    """
    All workers of a site.

    :ivar ready: fires when every worker has begun to accept.
    """

    _log = Logger()

    def __init__(
        self,
        config: DispatchConfig,
        site: Site,
        office: Front,
        certificates: Callable[[], tuple[Path, Path] | None],
        listening_descriptor: Callable[[], int],
    ) -> None:
        self._config = config
        self._site = site
        self._office = office
        self._certificates = certificates
        self._listening_descriptor = listening_descriptor
        self._workers: dict[int, Worker] = {}
        self._pauses: dict[int, float] = {}  # before the latest start of each
        self._departed = Tally()
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._changes: list[Change] = []
        self._unsubscribe: Callable[[], None] | None = None
        self._socket_directory: Path | None = None
        self._socket_path = ""
        self._office_port: Any = None
        self.reactor = site.reactor
        self.table = site.table
        self.ready: Deferred[None] = Deferred()

    def startService(self) -> None:
        """Open the private socket and start the workers."""
        super().startService()
        self._open_office()
        self._unsubscribe = self.table.subscribe(self._changed)
        for number in range(1, self._config.workers + 1):
            self._start(number)

    def stopService(self) -> Deferred[Any]:
        """Tell the workers to end, and see to it that they do."""
        super().stopService()
        if self._unsubscribe is not None:
            self._unsubscribe()
        for _, waiting in self._waiting:
            waiting.callback(None)
        self._waiting.clear()
        workers = tuple(self._workers.values())
        for worker in workers:
            worker.channel.stop()
        patience = self._config.drain_seconds + _KILL_AFTER_SECONDS

        def kill() -> None:
            for worker in workers:
                worker.kill()

        killing = self.reactor.callLater(patience, kill)

        async def end() -> None:
            for worker in workers:
                await worker.ended
            if killing.active():
                killing.cancel()
            if self._office_port is not None:
                await maybeDeferred(IListeningPort(self._office_port).stopListening)
            await self._office.drain()
            if self._socket_directory is not None:
                shutil.rmtree(self._socket_directory, ignore_errors=True)

        return Deferred.fromCoroutine(end())

    def settled(self) -> Deferred[None]:
        """Fires when every worker answers from the table as it is now."""
        self._flush()
        waiting: Deferred[None] = Deferred()
        self._waiting.append((self.table.serial, waiting))
        self.worker_caught_up()
        return waiting

    @property
    def alive(self) -> int:
        """Workers that accept."""
        return sum(1 for worker in self._workers.values() if worker.channel.ready)

    @property
    def pids(self) -> Mapping[int, int]:
        """Worker's number -> process id."""
        return {number: worker.pid for number, worker in sorted(self._workers.items())}

    def tally(self) -> Tally:
        """What all workers, past ones too, and the private socket have done."""
        now = [worker.channel.tally for worker in self._workers.values()]
        return add([self._departed, self._office.tally(), *now])

    # -- what workers and channels call

    def greeting(self) -> bytes:
        """The first frame to a worker."""
        site = self._site
        paths = self._certificates()
        certificate, key = map(str, paths) if paths is not None else ("", "")
        authorities = self._config.server_authorities
        return frame(
            "hello",
            version=VERSION,
            config=_CONVERTER.unstructure(self._config),
            site={
                "address": site.section.address,
                "local_networks": _CONVERTER.unstructure(site.local_networks.ranges),
                "max_services": site.section.max_services,
                "certificate": certificate,
                "certificate_key": key,
                "authorities": str(site.config.path(authorities)) if authorities else "",
                "office": self._socket_path,
            },
        )

    def worker_ready(self) -> None:
        """A worker has begun to accept."""
        if self.alive == self._config.workers and not self.ready.called:
            self.ready.callback(None)

    def worker_caught_up(self) -> None:
        """A worker's table is newer than before, or a worker is gone."""
        serials = [worker.channel.serial for worker in self._workers.values()]
        oldest = min(serials, default=self.table.serial)
        still: list[tuple[int, Deferred[None]]] = []
        done: list[Deferred[None]] = []
        for serial, waiting in self._waiting:
            if serial <= oldest:
                done.append(waiting)
            else:
                still.append((serial, waiting))
        self._waiting = still
        for waiting in done:
            waiting.callback(None)

    def worker_ended(self, worker: Worker, reason: str) -> None:
        """The process of *worker* is gone."""
        self._workers.pop(worker.number, None)
        self._departed = add([self._departed, worker.channel.tally.totals()])
        self.worker_caught_up()
        if not self.running:
            return
        self._start_later(worker.number, worker.channel.ready, reason)

    # -- inside

    def _start_later(self, number: int, served: bool, reason: str) -> None:
        """
        Start a worker in place of one that has ended.

        :param served: it has accepted: what ended it is no reason to wait long.  One that ends
            before that would only do so again, and its start costs more than its life.
        """
        config = self._config
        before = self._pauses.get(number, 0.0)
        if served or not before:
            pause = config.worker_restart_seconds
        else:
            pause = min(2 * before, config.worker_restart_max_seconds)
        self._pauses[number] = pause
        self._log.warn(
            "worker {number} ended ({reason}), the next starts in {pause} s",
            number=number,
            reason=reason,
            pause=pause,
        )
        self.reactor.callLater(pause, self._start, number)

    def _start(self, number: int) -> None:
        if not self.running:
            return
        try:
            self._spawn(number)
        except OSError as error:
            self._workers.pop(number, None)
            self._start_later(number, False, f"it cannot be started: {error}")

    def _spawn(self, number: int) -> None:
        """
        Start the worker of that number.

        :raises OSError: no process or no descriptor is left for it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        nothing = -1
        try:
            nothing = os.open(os.devnull, os.O_RDONLY)
            ours.setblocking(False)
            channel = Channel(self)
            worker = Worker(self, number, channel)
            self._workers[number] = worker
            # Its own instance of the interpreter, with the packages that this one has.
            packages = str(Path(gridnet.__file__).parent.parent)
            path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
            self.reactor.spawnProcess(
                worker,
                sys.executable,
                [sys.executable, "-m", "gridnet.dispatch.worker"],
                env={**os.environ, "PYTHONPATH": path},
                childFDs={
                    0: nothing,
                    1: "r",
                    2: "r",
                    CHANNEL_DESCRIPTOR: theirs.fileno(),
                    LISTENER_DESCRIPTOR: self._listening_descriptor(),
                },
            )
            factory = Factory()
            factory.buildProtocol = lambda addr: channel  # type: ignore[method-assign]
            factory.noisy = False
            self.reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
        finally:
            ours.close()
            theirs.close()
            if nothing >= 0:
                os.close(nothing)

    def _changed(self, steps: Sequence[Change]) -> None:
        """Called by the table; changes of one turn of the reactor go together."""
        if not self._changes:
            self.reactor.callLater(0, self._flush)
        self._changes.extend(steps)

    def _flush(self) -> None:
        steps, self._changes = self._changes, []
        if not steps:
            return
        frames = tuple(changes(self.table.serial, steps))
        for worker in self._workers.values():
            if worker.channel.transport is not None:
                worker.channel.send_changes(frames)

    def _open_office(self) -> None:
        """Listen where only this user's processes can connect."""
        path = self._site.state_dir / f"dispatch-{os.getpid()}.socket"
        for other in path.parent.glob("dispatch-*.socket"):
            _remove_if_left_behind(other)
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="gridnet-"))
            path = self._socket_directory / "dispatch.socket"
        path.unlink(missing_ok=True)
        self._socket_path = str(path)
        self._office_port = self.reactor.listenUNIX(
            self._socket_path, self._office.factory, mode=0o600
        )
        self._office.start()
