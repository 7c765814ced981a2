"""The ``gridnet`` console script: finds the subcommand that a component brings and runs it."""

from __future__ import annotations

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
    """Run one subcommand; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
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
