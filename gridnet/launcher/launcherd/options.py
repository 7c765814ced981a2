"""The command line of ``gridnet launcherd`` (docs/protocols/launcher.rst, 6.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from gridnet.errors import LaunchError

USAGE = """\
usage: gridnet launcherd [-h] [-q] [-v] [-n] [-d] [-i] [-p #] [-l file] [--]
                         service command [parameters...]

  -h       print this and leave
  -q       start quietly: say nothing when it runs already
  -v       write more into the log: every connection and every end
  -n       write no statistics
  -d       stay in the foreground
  -i       take connections of this host only
  -p #     port to listen at; else that of the service, which must be STANDALONE,
           in the table of this host's daemon
  -l file  log file; - (stderr) or + (stdout) need -d

Everything after the command belongs to it.  GRIDNET_CONTROL names the daemon's
socket, GRIDNET_SITE the site file whose [launcher] section limits programs (else
site.toml here), GRIDNET_RUNDIR the directory of the lock.
"""

_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SWITCHES = {
    "h": "help",
    "q": "quiet",
    "v": "verbose",
    "n": "no_statistics",
    "d": "foreground",
    "i": "internal",
}


class UsageError(LaunchError):
    """The command line makes no sense; the user sees why, and the usage."""


@frozen
class Options:
    """What the command line says."""

    service: str = ""
    words: Sequence[str] = ()  #: the command and its parameters
    help: bool = False
    quiet: bool = False
    verbose: bool = False
    no_statistics: bool = False
    foreground: bool = False
    internal: bool = False
    port: int = 0  #: 0: as the table says
    log: str = ""  #: file, ``-``, ``+``, or empty: none but to stderr in the foreground


def _port(text: str) -> int:
    port = int(text) if re.fullmatch("[0-9]{1,5}", text) else 0
    if not 0 < port < 65536:
        raise UsageError(f"-p: expected a port, found {text!r}")
    return port


def parse(arguments: Sequence[str]) -> Options:
    """
    Read the command line.

    Options end at the first word that is none, or after ``--``.  They may be joined; ``-p`` and
    ``-l`` take the rest of their word, or the next.  ``-h`` asks for help whatever else there is.

    :raises UsageError: it makes no sense.
    """
    words = list(arguments)
    said: dict[str, Any] = {}
    faults: list[UsageError] = []
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _SWITCHES:
                said[_SWITCHES[letter]] = True
            elif letter not in "pl":
                faults.append(UsageError(f"unknown option -{letter}"))
            elif not letters and not words:
                faults.append(UsageError(f"-{letter}: expected a value"))
            else:
                value, letters = letters or words.pop(0), ""
                try:
                    said |= {"port": _port(value)} if letter == "p" else {"log": value}
                except UsageError as error:
                    faults.append(error)
    if "help" in said:
        return Options(help=True)
    if faults:
        raise faults[0]
    if len(words) < 2:
        raise UsageError("expected a command" if words else "expected a service and a command")
    if _SERVICE.fullmatch(words[0]) is None:
        raise UsageError(f"expected the name of a service, found {words[0]!r}")
    if not words[1]:
        raise UsageError("expected a command, found nothing")
    return Options(service=words[0], words=tuple(words[1:]), **said)
