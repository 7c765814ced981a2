"""``gridnet launcherd``: one filter behind one port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from zope.interface import provider

from gridnet.config import read
from gridnet.control import DEFAULT_SITE_FILE, ask, find_control
from gridnet.errors import ConfigError, GridnetError, LaunchError
from gridnet.launcher.child import check_program
from gridnet.launcher.config import LauncherConfig
from gridnet.launcher.launcherd.lock import AlreadyRunningError, ServiceLock, run_directory
from gridnet.launcher.launcherd.log import LaunchLog
from gridnet.launcher.launcherd.options import USAGE, Options, UsageError, parse
from gridnet.launcher.launcherd.service import Launcherd, LaunchPlan, listen

EXIT_USAGE, EXIT_NO_PORT, EXIT_NOT_LISTENING, EXIT_NO_COMMAND = 1, 2, 3, 4
_ENDING = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM")


class _Refusal(Exception):
    """
    It does not start.

    :ivar status: of the process.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def main(arguments: Sequence[str]) -> int:
    """Run it; exit status 0 or one of those above."""
    try:
        options = parse(arguments)
    except UsageError as error:
        print(f"gridnet launcherd: {error}\n{USAGE}", file=sys.stderr, end="")
        return EXIT_USAGE
    if options.help:
        print(USAGE, end="")
        return 0
    try:
        started = _prepare(options)
    except AlreadyRunningError as error:
        if not options.quiet:
            print(f"gridnet launcherd: {options.service} {error}")
        return 0
    except _Refusal as refusal:
        print(f"gridnet launcherd: {refusal}", file=sys.stderr)
        return refusal.status
    if not options.foreground and not _become_daemon():
        return 0
    return _serve(started)


@frozen
class _Started:
    """What is there before anything runs."""

    plan: LaunchPlan
    config: LauncherConfig
    sock: socket.socket
    lock: ServiceLock
    log: LaunchLog


def _prepare(options: Options) -> _Started:
    """
    All that can fail.

    :raises AlreadyRunningError: another one serves.
    :raises _Refusal: it cannot be.
    """
    service = options.service
    try:
        lock = ServiceLock(run_directory(), service)
    except AlreadyRunningError:
        raise
    except LaunchError as error:
        raise _Refusal(EXIT_NOT_LISTENING, str(error)) from None
    try:
        port = options.port or _find_port(service)
        try:
            sock = listen(port, options.internal)
        except OSError as error:
            reason = f"port {port}: {error.strerror}"
            raise _Refusal(EXIT_NOT_LISTENING, reason) from None
        try:
            command = _find_command(options.words[0])
            config = _launcher_section()
            log = _open_log(options)
        except BaseException:
            sock.close()
            raise
    except BaseException:
        lock.release()
        raise
    words = (command, *options.words[1:])
    plan = LaunchPlan(service, words, not options.no_statistics)
    return _Started(plan, config, sock, lock, log)


def _find_port(service: str) -> int:
    """
    The port of *service* in the table of this host's daemon.

    :raises _Refusal: there is none.
    """
    expected = f"{service}: service must be STANDALONE to find its port"
    try:
        control = os.environ.get("GRIDNET_CONTROL")
        path = find_control("lbsmd", _site_file(), Path(control) if control else None)
        table = ask(path, {"ask": "table"})
    except GridnetError as error:
        raise _Refusal(EXIT_NO_PORT, f"{expected} ({error})") from None
    for entry in table["services"]:
        if (
            entry["service"].lower() == service.lower()
            and entry["type"] == "STANDALONE"
            and entry["host"] == table["address"]
        ):
            return int(entry["port"])
    raise _Refusal(EXIT_NO_PORT, expected)


def _find_command(command: str) -> str:
    """
    The absolute path of *command*.

    :raises _Refusal: it cannot be run.
    """
    path = shutil.which(command) or command
    path = os.path.abspath(path)
    try:
        check_program(path)
    except LaunchError as error:
        raise _Refusal(EXIT_NO_COMMAND, str(error)) from None
    return path


def _site_file() -> Path | None:
    named = os.environ.get("GRIDNET_SITE")
    return Path(named) if named else None


def _launcher_section() -> LauncherConfig:
    """
    What programs may take.

    :raises _Refusal: the site file cannot be used.
    """
    path = _site_file() or DEFAULT_SITE_FILE
    if _site_file() is None and not path.exists():
        return LauncherConfig()
    # Imported late: only here are the sections of other components needed.
    from gridnet.component import config_classes

    try:
        section = read(path, config_classes()).sections.get("launcher")
    except ConfigError as error:
        raise _Refusal(EXIT_NO_COMMAND, str(error)) from None
    return section if isinstance(section, LauncherConfig) else LauncherConfig()


def _open_log(options: Options) -> LaunchLog:
    path = options.log
    if options.foreground:
        path = path or "-"
    elif path in ("-", "+"):
        # Nobody would see it.
        path = ""
    try:
        return LaunchLog(path, options.service, options.verbose, time.time)
    except LaunchError as error:
        raise _Refusal(EXIT_USAGE, f"-l {error}") from None


def _become_daemon() -> bool:
    """False: this is the process of before, which leaves once the daemon is on its way."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os.close(writing)
        # Until the daemon has said so, or is gone.
        os.read(reading, 1)
        os.close(reading)
        return False
    os.close(reading)
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    os.write(writing, b"x")
    os.close(writing)
    return True


def _serve(started: _Started) -> int:
    # Imported here: importing it installs it, and an epoll set does not survive a fork.
    from twisted.internet import reactor as installed

    reactor: Any = installed
    _log_mistakes(started.log)
    started.lock.sign()
    launcherd = Launcherd(
        started.plan,
        started.config,
        started.sock,
        started.log,
        lambda: reactor.callLater(0, reactor.stop),
        reactor,
    )

    def stop(name: str) -> None:
        started.lock.release()
        launcherd.stop(name)

    _catch_signals(lambda name: reactor.callFromThread(stop, name))
    reactor.callWhenRunning(launcherd.start)
    reactor.run(installSignalHandlers=False)
    return 0


def _log_mistakes(log: LaunchLog) -> None:
    """What goes wrong inside is an event of the log too; nothing else of Twisted's is."""

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.error:
            failure = event.get("log_failure")
            reason = f": {failure.getErrorMessage()}" if failure is not None else ""
            log.write("error", f"{formatEvent(event)}{reason}".replace("\n", " "))

    globalLogBeginner.beginLoggingTo([observe], redirectStandardIO=False)


def _catch_signals(caught: Callable[[str], None]) -> None:
    for name in _ENDING:
        signal.signal(
            getattr(signal, name), lambda number, frame: caught(signal.Signals(number).name)
        )
