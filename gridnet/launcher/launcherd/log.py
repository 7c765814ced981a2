"""The log of one launcher: a line an event (docs/protocols/launcher.rst, 6.4)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime
from typing import IO

from gridnet.errors import LaunchError


class LaunchLog:
    """
    Writes lines to a file, which may be moved away at any time, to a stream, or nowhere.

    :param path: ``-``: stderr, ``+``: stdout; empty: nowhere.
    :param clock: seconds since the epoch.
    :raises LaunchError: the file cannot be opened.
    """

    def __init__(self, path: str, service: str, verbose: bool, clock: Callable[[], float]) -> None:
        # The directory is another one after the start.
        self._path = os.path.abspath(path) if path and path not in "-+" else ""
        self._service = service
        self._clock = clock
        self.verbose = verbose
        self._stream: IO[str] | None = {"-": sys.stderr, "+": sys.stdout}.get(path)
        if self._path:
            try:
                self._stream = self._open()
            except OSError as error:
                raise LaunchError(f"{self._path}: {error.strerror}") from None

    def _open(self) -> IO[str]:
        return open(self._path, "a", encoding="utf-8", buffering=1)

    def write(self, event: str, text: str = "") -> None:
        """One line: *event* is one word, *text* what is to be said of it."""
        if self._stream is None:
            return
        self._follow()
        moment = datetime.fromtimestamp(self._clock())
        when = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"
        line = f"{when} launcherd[{os.getpid()}] {self._service} {event}"
        try:
            print(
                line, text if text else "", sep=" " if text else "", file=self._stream, flush=True
            )
        except (OSError, ValueError):
            # A full disk costs the line, not the service.
            pass

    def detail(self, event: str, text: str) -> None:
        """The same, of what only a verbose log has."""
        if self.verbose:
            self.write(event, text)

    def _follow(self) -> None:
        """Open the file anew when it was moved or removed."""
        if not self._path or self._stream is None:
            return
        ours = os.fstat(self._stream.fileno())
        try:
            there = os.stat(self._path)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        except OSError:
            return
        try:
            fresh = self._open()
        except OSError:
            return
        self._stream.close()
        self._stream = fresh
