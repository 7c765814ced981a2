"""The ``gridnet`` console script: finds the subcommand that a component brings and runs it."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping, Sequence

import gridnet
from gridnet.component import Command, components

_OWN = (Command("demo", "run a whole site on loopback", "gridnet.demo.command:main"),)


def commands() -> Mapping[str, Command]:
    """All subcommands by name."""
    found = {command.name: command for command in _OWN}
    for component in components().values():
        found.update((command.name, command) for command in component.commands)
    return dict(sorted(found.items()))


def _usage() -> str:
    lines = ["usage: gridnet COMMAND [ARGUMENT ...]", "", "commands:"]
    lines += [f"  {command.name:<16} {command.summary}" for command in commands().values()]
    lines += ["", "gridnet COMMAND --help tells more; twistd gridnet runs a site."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one subcommand; returns the exit status.

    It is 0 when whoever read the output has seen enough (``| head -1``).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
    except OSError as error:
        status = 1
        if isinstance(error, BrokenPipeError) and _is_output_unread():
            status = 0
        else:
            print(f"gridnet {' '.join(words[:1])}: {error}", file=sys.stderr)
        _end_output()
    return status


def _end_output() -> None:
    """Write what can be written; Python is not to complain of the rest at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_output_unread() -> bool:
    """Whether the standard output goes to a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(gridnet.__version__)
        return 0
    command = commands().get(words[0])
    if command is None:
        print(f"gridnet: no command {words[0]!r}\n{_usage()}", file=sys.stderr)
        return 2
    return command.load()(words[1:])


if __name__ == "__main__":
    sys.exit(main())
