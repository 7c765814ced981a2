"""
Running check scripts: what they are told, and what becomes of them.

The processes are Linux ones: their end is seen through a file descriptor (``pidfd``), so that
thousands of checks need neither threads nor signals.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from zope.interface import implementer

from gridnet.lbsmd.check_codes import ScriptHistory
from gridnet.lbsmd.servrc.check_list import Script
from gridnet.table.server_text import format_connection_point

#: What a shell says of a program that cannot be run, or is not there.
_NOT_RUNNABLE, _NOT_FOUND = 126, 127
_READ_OCTETS = 65536


def script_arguments(
    script: Script, service: str, host: str, port: int, history: ScriptHistory, elapsed: float
) -> list[str]:
    """
    The words that a script is called with (docs/protocols/lbsmd-config.rst, Check scripts).

    :param host: IP address text of the server.
    :param history: of the script's runs so far.
    :param elapsed: seconds since its last run began.
    """
    bar = "|" if script.piped else ""
    words = [
        f"{bar}{script.path}",
        service,
        f"{bar}{format_connection_point(host, port)}",
    ]
    if history.last_code is not None:
        words += [str(history.last_code), str(history.repetitions), str(round(elapsed))]
    return words


@implementer(IReadDescriptor)
class _Reader:
    """Calls *ready* whenever a file descriptor can be read."""

    def __init__(self, reactor: Any, descriptor: int, ready: Callable[[], None]) -> None:
        self._reactor = reactor
        self._descriptor = descriptor
        self._ready = ready
        IReactorFDSet(reactor).addReader(self)

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Called by the reactor."""
        return "check script"

    def doRead(self) -> None:
        """Called by the reactor."""
        self._ready()

    def connectionLost(self, reason: object) -> None:
        """Called by the reactor when it has found an error: reading tells which."""
        self._ready()

    def close(self) -> None:
        """Watch no longer, and close the descriptor."""
        if self._descriptor >= 0:
            IReactorFDSet(self._reactor).removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1


class ScriptRun:
    """
    One run of a script, in a process group of its own.

    :ivar ended: fires with its exit code, or with None when a signal ended it.
    """

    def __init__(
        self,
        reactor: Any,
        process: subprocess.Popen[bytes],
        complain: Callable[[str], None],
        max_log_octets: int,
    ) -> None:
        self.ended: Deferred[int | None] = Deferred()
        self._process = process
        self._complain = complain
        self._log_octets = max_log_octets
        self._line = b""
        if process.stderr is None:
            raise ValueError("the script has no standard error")
        errors = os.dup(process.stderr.fileno())
        process.stderr.close()
        os.set_blocking(errors, False)
        self._error_reader = _Reader(reactor, errors, self._read_errors)
        self._end_reader = _Reader(reactor, os.pidfd_open(process.pid), self._reap)

    def kill(self) -> None:
        """End it, and all processes of its group, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        self._end_reader.close()
        # What it started in the background may keep the pipe open; nobody waits for that.
        self._read_errors()
        self._finish_line()
        self._error_reader.close()
        self.ended.callback(code if code >= 0 else None)

    def _read_errors(self) -> None:
        descriptor = self._error_reader.fileno()
        if descriptor < 0:
            return
        try:
            data = os.read(descriptor, _READ_OCTETS)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._error_reader.close()
            return
        room = self._log_octets
        self._log_octets = max(0, room - len(data))
        *lines, self._line = (self._line + data[:room]).split(b"\n")
        for line in lines:
            self._say(line)
        if room and not self._log_octets:
            self._finish_line()
            self._complain("(the rest of what it says is left out)")

    def _finish_line(self) -> None:
        self._say(self._line)
        self._line = b""

    def _say(self, line: bytes) -> None:
        if line.strip():
            self._complain(line.decode("utf-8", "backslashreplace"))


def run_script(
    reactor: Any,
    script: Script,
    arguments: Sequence[str],
    directory: Path,
    connection: socket.socket | None,
    cpu_seconds: float,
    complain: Callable[[str], None],
    max_log_octets: int,
) -> ScriptRun | int:
    """
    Start *script*.

    :param arguments: see :func:`script_arguments`.
    :param directory: where it starts, and where a relative path of it does.
    :param connection: becomes its standard input and output; None: it has none.  Stays open here.
    :param cpu_seconds: of processor time that it may use.
    :param complain: is told each line that it writes to its standard error.
    :param max_log_octets: of standard error that are passed on.
    :returns: the run; or the exit code of a script that could not be started.
    """
    descriptor = subprocess.DEVNULL
    if connection is not None:
        connection.setblocking(True)
        descriptor = connection.fileno()
    try:
        process = subprocess.Popen(
            list(arguments),
            executable=directory / script.path,
            stdin=descriptor,
            stdout=descriptor,
            stderr=subprocess.PIPE,
            cwd=directory,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        complain(f"not there: {error}")
        return _NOT_FOUND
    except (OSError, ValueError) as error:
        complain(f"cannot be run: {error}")
        return _NOT_RUNNABLE
    limit = max(1, math.ceil(cpu_seconds))
    with suppress(ProcessLookupError, PermissionError):
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (limit, limit))
    return ScriptRun(reactor, process, complain, max_log_octets)
