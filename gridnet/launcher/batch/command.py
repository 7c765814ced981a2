"""``gridnet run``: a service that is born in a batch job, and goes with it."""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    globalLogBeginner,
)
from zope.interface import provider

from gridnet.config import parse_port_range
from gridnet.control import ask, find_control
from gridnet.errors import ConfigError, GridnetError, LaunchError
from gridnet.launcher.batch.deadline import Deadline, find_deadline
from gridnet.launcher.batch.ports import ReservedPort, reserve_port
from gridnet.launcher.batch.service import BatchPlan, BatchService

#: Signals by which batch systems say that the end is near.
_DRAINING = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP", "SIGINT")
#: Those of them by which, sent again, people say that it is to end now.
_URGENT = frozenset(["SIGTERM", "SIGINT"])
_MINUTE = 60.0
#: A batch system that does not answer for so long tells nothing.
_PROGRAM_SECONDS = 5.0


def _pool(text: str) -> range:
    try:
        return parse_port_range(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    value = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text) else -1.0
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, found {text!r}")
    return value


def _lease(text: str) -> int:
    value = _seconds(text)
    if not 1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected 1 to 3600 seconds, found {text!r}")
    return int(value)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="gridnet run",
        description="Run a program as a service of this host for as long as it lasts.",
        epilog="The program finds its port in GRIDNET_PORT and PORT; {port} in its arguments "
        "stands for it.  It must stay in the foreground.",
    )
    add = found.add_argument
    add("--service", required=True, metavar="NAME", help="what clients ask for")
    add("--port-pool", type=_pool, default=range(0), metavar="A-B", help="ports to choose from")
    add("--type", default="STANDALONE", choices=("STANDALONE", "HTTP", "HTTP_GET", "HTTP_POST"))
    add("--path", default="", help="path of an HTTP server, with its arguments")
    add("--rate", type=_seconds, default=1000.0, help="base rate (1000)")
    add("--flags", default="", metavar="'S=yes L=no'", help="further words of the service line")
    add("--lease", type=_lease, default=10, metavar="SECONDS", help="validity in the table (10)")
    add("--start", type=_seconds, default=60.0, metavar="SECONDS", help="to listen within (60)")
    add(
        "--register",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="to be in the table within (60)",
    )
    add("--health", type=_seconds, default=5.0, metavar="SECONDS", help="between checks (5); 0: no")
    add("--health-path", default="", metavar="/PATH", help="page to ask for, else just connect")
    add("--drain", type=_seconds, default=300.0, metavar="SECONDS", help="clients may take (300)")
    add("--settle", type=_seconds, metavar="SECONDS", help="to wait for late clients (the lease)")
    add("--terminate", type=_seconds, default=10.0, metavar="SECONDS", help="TERM to KILL (10)")
    add(
        "--before-limit",
        type=_seconds,
        default=5.0,
        metavar="MINUTES",
        help="begin to drain so long before the job's time limit (5)",
    )
    add("--limit", type=_seconds, metavar="SECONDS", help="time limit, if no batch system tells")
    add("--config", type=Path, help="site file of the daemon (else site.toml here)")
    add("--control", type=Path, help="control socket of the daemon (else GRIDNET_CONTROL)")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="the program")
    return found


def plan_of(options: argparse.Namespace) -> BatchPlan:
    """
    What the command line asks for.

    :raises LaunchError: it does not go together.
    """
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise LaunchError("expected a command after --")
    http = options.type != "STANDALONE"
    if http != bool(options.path):
        raise LaunchError("--path: expected for HTTP servers, and only for them")
    settle = float(options.lease) if options.settle is None else options.settle
    return BatchPlan(
        service=options.service,
        words=words,
        type=options.type,
        arguments=options.path,
        flags=options.flags,
        rate=options.rate,
        lease_seconds=options.lease,
        start_seconds=options.start,
        register_seconds=options.register,
        health_seconds=options.health,
        health_path=options.health_path,
        drain_seconds=options.drain,
        settle_seconds=settle,
        termination_seconds=options.terminate,
        before_limit_seconds=options.before_limit * _MINUTE,
    )


def _read(path: str) -> tuple[str, float]:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1_000_000), os.fstat(file.fileno()).st_mtime


def _run_program(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROGRAM_SECONDS
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from None
    if done.returncode:
        raise OSError(f"{words[0]}: exit status {done.returncode}")
    return done.stdout.decode("utf-8", "replace")


def job_deadline(
    options: argparse.Namespace, environment: Mapping[str, str], now: float
) -> Deadline | None:
    """The time limit of this job, if there is one."""
    if options.limit is not None:
        return Deadline(now + options.limit, "--limit")
    return find_deadline(environment, _read, _run_program, now)


def _log_to_stderr() -> None:
    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        text = formatEvent(event)
        if event.get("log_failure") is not None:
            text = f"{text}: {event['log_failure'].getErrorMessage()}"
        print(f"gridnet run: {text}", file=sys.stderr, flush=True)

    wanted = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
    # Twisted says in words that a datagram port has opened; nobody asked.
    wanted.setLogLevelForNamespace("twisted", LogLevel.error)
    for namespace in ("twisted.internet.unix.DatagramPort", "log_legacy", "-"):
        wanted.setLogLevelForNamespace(namespace, LogLevel.error)
    globalLogBeginner.beginLoggingTo(
        [FilteringLogObserver(observe, (wanted,))], redirectStandardIO=False
    )


def main(arguments: Sequence[str]) -> int:
    """Run it; exit status: the program's, 0 after a drain, 1 or 2 when it could not be."""
    options = parser().parse_args(arguments)
    control = options.control or os.environ.get("GRIDNET_CONTROL")
    try:
        plan = plan_of(options)
        path = find_control("lbsmd", options.config, Path(control) if control else None)
        port = reserve_port(options.port_pool, random.SystemRandom())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except GridnetError as error:
        print(f"gridnet run: {error}", file=sys.stderr)
        return 2
    _log_to_stderr()
    # Near the root: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="gridnet-run-") as directory:
        return _run(plan, port, path, Path(directory), options)


def _run(
    plan: BatchPlan,
    port: ReservedPort,
    control: Path,
    directory: Path,
    options: argparse.Namespace,
) -> int:
    # Imported here: importing it installs it.
    from twisted.internet import reactor as installed

    reactor: Any = installed
    clock, core = IReactorTime(reactor), IReactorCore(reactor)
    outcome = [1]
    # An answer that takes longer than this is of no use: the lease would run out meanwhile.
    patience = max(0.5, plan.lease_seconds / 3)

    def over(status: int) -> None:
        outcome[0] = status
        core.stop()

    def asking(question: Mapping[str, Any]) -> Deferred[Any]:
        pool = reactor.getThreadPool()
        return deferToThreadPool(reactor, pool, ask, control, question, patience)

    service = BatchService(
        plan,
        port.number,
        asking,
        str(directory / "capacity"),
        job_deadline(options, os.environ, clock.seconds()),
        over,
        reactor,
    )

    def begin() -> None:
        try:
            service.start(os.environ, os.getcwd())
        except LaunchError as error:
            print(f"gridnet run: {error}", file=sys.stderr)
            over(2)

    def caught(name: str) -> None:
        reactor.callFromThread(service.drain_for, f"{name} came", name in _URGENT)

    _catch_signals(caught)
    core.callWhenRunning(begin)
    reactor.run(installSignalHandlers=False)
    port.release()
    return outcome[0]


def _catch_signals(caught: Callable[[str], None]) -> None:
    for name in _DRAINING:
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, lambda number, frame: caught(signal.Signals(number).name))
