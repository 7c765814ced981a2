"""
A further host of the demo: ``python -m gridnet.demo.host FILE`` runs the site file FILE.

It says where it can be reached as one line of JSON, and ends with its standard input, so that
nothing of a demo is left when the demo itself is killed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ProcessProtocol, Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.python.failure import Failure

import gridnet
from gridnet.component import config_classes
from gridnet.config import read
from gridnet.demo.plan import DemoPlan
from gridnet.demo.running import log_to, run_site
from gridnet.errors import ConfigError
from gridnet.site import Site, make_site

#: Seconds until a host that does not come up ends the start of the demo.
_START_SECONDS = 30.0
_STOP_SECONDS = 3.0
_MAX_LINE_OCTETS = 65536


class _EndWithInput(Protocol):
    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called by Twisted."""
        self._ended()


def main(arguments: Sequence[str]) -> int:
    """Run one host until it is told to stop; returns the exit status."""
    path = Path(arguments[0]).absolute()
    log_to(path.parent)

    # Imported here: importing it installs it.
    from twisted.internet import reactor

    taken: Any = reactor
    try:
        site, service = make_site(read(path, config_classes()), reactor)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1

    def answer(addresses: Mapping[str, Any]) -> None:
        print(json.dumps(addresses), flush=True)
        StandardIO(_EndWithInput(lambda: taken.running and taken.stop()))

    return run_site("gridnet demo host", service, site.ready, answer, reactor)


class _HostProcess(ProcessProtocol):
    """The process of a host, as the demo sees it."""

    def __init__(self) -> None:
        self.ready: Deferred[Mapping[str, Any]] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._output = b""
        self._errors = b""

    def outReceived(self, data: bytes) -> None:
        self._output = (self._output + data)[:_MAX_LINE_OCTETS]
        line, newline, _ = self._output.partition(b"\n")
        if newline and not self.ready.called:
            self.ready.callback(json.loads(line))

    def errReceived(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-_MAX_LINE_OCTETS:]

    def processEnded(self, reason: Failure) -> None:
        if not self.ready.called:
            text = self._errors.decode("utf-8", "replace").strip() or reason.getErrorMessage()
            self.ready.errback(Failure(RuntimeError(f"a host of the demo did not start: {text}")))
        self.ended.callback(None)


class DemoHost(Service):
    """
    One more host of the demo, as a process of its own.

    :param name: of its directory, and what it is announced as.
    :param document: its site file, as plain TOML values; it is in ``directory / name``.
    :param known: fires when the demo's own daemon knows of it.
    """

    _log = Logger()

    def __init__(
        self,
        plan: DemoPlan,
        site: Site,
        name: str,
        document: Mapping[str, Any],
        known: Deferred[Any],
    ) -> None:
        directory = plan.directory / name
        directory.mkdir(mode=0o700, exist_ok=True)
        self._path = directory / "site.toml"
        self._path.write_text(tomli_w.dumps(document))
        self._python = plan.python or sys.executable
        self._site = site
        self._name = name
        self._process: _HostProcess | None = None
        self._transport: Any = None
        self._started: Deferred[Any] = Deferred()
        both = gatherResults([self._started, known], consumeErrors=True)
        both.addTimeout(_START_SECONDS, IReactorTime(site.reactor))
        site.starting(both)

    def startService(self) -> None:
        """Start the process."""
        super().startService()
        self._process = process = _HostProcess()
        self._transport = self._site.reactor.spawnProcess(
            process,
            self._python,
            [self._python, "-m", "gridnet.demo.host", str(self._path)],
            env={"PYTHONPATH": str(Path(gridnet.__file__).resolve().parent.parent)},
            path=str(self._path.parent),
        )

        def ready(addresses: Mapping[str, Any]) -> None:
            self._site.announce(self._name, addresses)

        process.ready.addCallback(ready).chainDeferred(self._started)

    def stopService(self) -> Deferred[None] | None:
        """End the process."""
        super().stopService()
        process = self._process
        if process is None or process.ended.called:
            return None
        self._transport.signalProcess("TERM")
        ended: Deferred[None] = Deferred()
        process.ended.chainDeferred(ended)

        def late(failure: Failure) -> None:
            self._log.warn("{host} did not end in time", host=self._name)
            self._transport.signalProcess("KILL")

        ended.addTimeout(_STOP_SECONDS, IReactorTime(self._site.reactor))
        return ended.addErrback(late)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
