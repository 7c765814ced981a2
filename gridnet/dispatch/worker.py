"""
One worker: ``python -m gridnet.dispatch.worker``, started by the site's process and nobody else.

File descriptor 3 is the channel to that process, 4 the listening socket.  When the channel ends,
so does the worker, once its open requests are over.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cattrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    globalLogBeginner,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from gridnet.dispatch.channel import VERSION, FrameReader, Run, frame
from gridnet.dispatch.config import DispatchConfig
from gridnet.dispatch.front import Front
from gridnet.dispatch.tls import ClientTls, ServerTls, client_context, server_context
from gridnet.dispatch.upstream import Place
from gridnet.errors import GridnetError, LocalProtocolError
from gridnet.listener import ListeningReactor
from gridnet.table.address_range import AddressRange, AddressRanges
from gridnet.table.model import ServiceTable

CHANNEL_DESCRIPTOR = 3
LISTENER_DESCRIPTOR = 4
#: How often a worker says what it has done, seconds.
TALLY_SECONDS = 1.0

_CONVERTER = cattrs.Converter()


class Duty(TwistedProtocol):
    """The worker's end of the channel, and what it does as it is told."""

    _log = Logger()
    transport: Any

    def __init__(self, reactor: Any, listener: int, over: Callable[[], None]) -> None:
        self._reactor = reactor
        self._listener = listener
        self._over = over
        self._frames = FrameReader()
        self._run = Run()
        self._table = ServiceTable()
        self._front: Front | None = None
        self._port: Any = None
        self._telling = LoopingCall(self._tell)
        self._telling.clock = reactor
        self._stopping = False

    def dataReceived(self, data: bytes) -> None:
        """Called by Twisted."""
        try:
            for value in self._frames.receive(data):
                self._take(value)
        except GridnetError as error:
            self._log.error("the worker ends: {error}", error=str(error))
            self.stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted: the site's process is gone."""
        self.stop()

    def stop(self) -> None:
        """Take no more connections, let open requests end, then be over."""
        if self._stopping:
            return
        self._stopping = True
        closed: Deferred[Any] = maybeDeferred(self._close_port)
        if self._front is not None:
            front = self._front
            closed.addCallback(lambda _: front.drain())
        closed.addErrback(lambda failure: self._log.failure("not all ended in order", failure))
        closed.addCallback(lambda _: self._end())

    def _close_port(self) -> Any:
        return None if self._port is None else IListeningPort(self._port).stopListening()

    def _end(self) -> None:
        if self._telling.running:
            self._telling.stop()
        self._tell()
        self.transport.loseConnection()
        self._over()

    def _take(self, value: Mapping[str, Any]) -> None:
        kind = value["kind"]
        if kind == "hello":
            self._begin(value)
        elif kind == "table":
            self._run.add(value)
            if value["last"]:
                run, self._run = self._run, Run()
                run.apply(self._table, value["whole"])
                if value["whole"] and self._port is None and not self._stopping:
                    self._listen()
                self.transport.write(frame("done", serial=value["serial"]))
        elif kind == "stop":
            self.stop()
        else:
            raise LocalProtocolError(f"a frame of kind {kind!r}")

    def _begin(self, value: Mapping[str, Any]) -> None:
        if value["version"] != VERSION:
            raise LocalProtocolError(f"version {value['version']!r}, expected {VERSION}")
        site = value["site"]
        config = _CONVERTER.structure(value["config"], DispatchConfig)
        authorities = Path(site["authorities"]) if site["authorities"] else None
        self._table.max_entries = site["max_services"]
        self._front = front = Front(
            config,
            self._reactor,
            self._table,
            AddressRanges(_CONVERTER.structure(site["local_networks"], tuple[AddressRange, ...])),
            ClientTls(
                client_context(authorities),
                self._reactor,
                client_context(authorities, named=True),
            ),
            site["address"],
            lambda: None,
            lambda: None,
            office=Place("", 0, path=site["office"]),
        )
        if config.tls:
            context = server_context(Path(site["certificate"]), Path(site["certificate_key"]))
            front.factory.tls = ServerTls(context, self._reactor)
        front.start()
        self._telling.start(TALLY_SECONDS, now=False)

    def _listen(self) -> None:
        """Accept: the table is there."""
        if self._front is None:
            raise LocalProtocolError("a table before the greeting")
        with socket.socket(fileno=os.dup(self._listener)) as listening:
            listening.setblocking(False)
            self._port = ListeningReactor(self._reactor, self._front.ports(True)).adoptStreamPort(
                listening.fileno(), listening.family, self._front.factory
            )
        os.close(self._listener)
        self.transport.write(frame("ready"))

    def _tell(self) -> None:
        if self._front is not None:
            self.transport.write(frame("tally", tally=self._front.tally().as_json()))


def _log_to_stderr() -> None:
    """One line an event: the site's process adds the rest."""

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        text = formatEvent(event)
        failure = event.get("log_failure")
        if failure is not None:
            text = f"{text}: {failure.getTraceback()}"
        level = getattr(event.get("log_level"), "name", "info")
        for line in text.splitlines():
            sys.stderr.write(f"{level} {line}\n")
        sys.stderr.flush()

    warn = LogLevelFilterPredicate(LogLevel.warn)
    globalLogBeginner.beginLoggingTo(
        [FilteringLogObserver(observe, [warn])], redirectStandardIO=False
    )


def main() -> int:
    """Serve until the channel ends."""
    from twisted.internet import reactor

    core: Any = reactor
    _log_to_stderr()
    duty = Duty(core, LISTENER_DESCRIPTOR, lambda: core.callLater(0, core.stop))
    factory = Factory()
    factory.buildProtocol = lambda addr: duty  # type: ignore[method-assign]
    factory.noisy = False
    with socket.socket(fileno=CHANNEL_DESCRIPTOR) as channel:
        channel.setblocking(False)
        core.adoptStreamConnection(channel.fileno(), socket.AF_UNIX, factory)
    # Whoever interrupts the site's group of processes means the site, which tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, stack: core.callFromThread(duty.stop))
    core.run(installSignalHandlers=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
