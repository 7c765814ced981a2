"""``gridnet demo``: a whole site on loopback, until it is told to stop."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import tomli_w
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.internet.threads import deferToThread
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from gridnet.component import config_classes
from gridnet.config import parse, parse_port_range
from gridnet.demo.backends import definitions, make_backends
from gridnet.demo.document import demo_company, demo_document
from gridnet.demo.plan import BLOCK_PORTS, DemoPlan
from gridnet.demo.tour import tour
from gridnet.errors import ConfigError
from gridnet.site import make_site

#: The whole stop takes less than the 5 s that the demo promises.
STOP_SECONDS = 4.0
LOG_OCTETS = 10_000_000

_log = Logger()


def _port_range(text: str) -> tuple[int, int]:
    try:
        ports = parse_port_range(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return ports[0], ports[-1]


def _port_base(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= 65536 - BLOCK_PORTS):
        raise argparse.ArgumentTypeError(
            f"expected a port up to {65536 - BLOCK_PORTS}, found {text!r}"
        )
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridnet demo", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where all state goes")
    parser.add_argument(
        "--port-base",
        type=_port_base,
        required=True,
        metavar="N",
        help="the dispatcher's port; everything else is on N+10 to N+99",
    )
    parser.add_argument("--servrc", type=Path, help="serve these definitions, not the demo's own")
    parser.add_argument(
        "--firewall-ports", type=_port_range, metavar="A-B", help="ports of the ticketed relay"
    )
    parser.add_argument(
        "--heap", action="store_true", help="publish the table in shared memory, real keys"
    )
    parser.add_argument(
        "--tour", action="store_true", help="once ready, ask for each service and show the answers"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the demo site; returns the exit status."""
    options = _parser().parse_args(arguments)
    directory: Path = options.dir.absolute()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    servrc: Path = options.servrc.absolute() if options.servrc else directory / "servrc.cfg"
    plan = DemoPlan(
        directory, options.port_base, servrc, sys.executable, options.firewall_ports, options.heap
    )
    if options.servrc is None:
        servrc.write_text(definitions(plan))
    path = directory / "site.toml"
    path.write_text(tomli_w.dumps(demo_document(plan)))
    log_file = LogFile("gridnet.log", str(directory), rotateLength=LOG_OCTETS, maxRotatedFiles=3)
    globalLogBeginner.beginLoggingTo(
        [textFileLogObserver(cast(IO[Any], log_file))], redirectStandardIO=False
    )

    # Imported here: importing it installs it.
    from twisted.internet import reactor

    try:
        config = parse(path.read_text(), config_classes(), directory, str(path))
        site, service = make_site(config, reactor)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    make_backends(plan, reactor).setServiceParent(service)
    for company in demo_company(plan):
        company.setServiceParent(service)
    return _run(service, site.ready, plan, options.tour, reactor)


def _run(service: MultiService, ready: Any, plan: DemoPlan, show: bool, reactor: Any) -> int:
    """Start *service*, run the reactor until a signal, stop; returns the exit status."""
    outcome = [0]
    clock = IReactorTime(reactor)
    core = IReactorCore(reactor)

    def failed(failure: Failure) -> None:
        _log.failure("the demo cannot start", failure)
        print(f"gridnet demo: {failure.getErrorMessage()}", file=sys.stderr)
        outcome[0] = 1
        if core.running:
            core.stop()

    def answer(addresses: Mapping[str, Any]) -> None:
        line = {**addresses, "directory": str(plan.directory)}
        print(json.dumps(line), flush=True)
        if show:
            touring = deferToThread(tour, addresses, plan, sys.stderr)
            touring.addErrback(failed)

    def start() -> None:
        try:
            service.privilegedStartService()
            service.startService()
        except Exception as error:
            failed(Failure(error))
            return
        ready().addCallbacks(answer, failed)

    def stop() -> Deferred[Any] | None:
        if not service.running:
            return None
        started = time.monotonic()
        stopping: Deferred[Any] = service.stopService() or Deferred()
        if not isinstance(stopping, Deferred):
            return None
        stopping.addTimeout(STOP_SECONDS, clock)
        return stopping.addErrback(
            lambda failure: _log.failure(
                "not all stopped in {seconds} s", failure, seconds=time.monotonic() - started
            )
        )

    core.callWhenRunning(start)
    core.addSystemEventTrigger("before", "shutdown", stop)
    core.run()
    return outcome[0]
