"""``gridnet why-down`` and ``gridnet gossip-key``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gridnet.control import ask
from gridnet.lbsmd.gossip.keys import new_key_line, write_private
from gridnet.lbsmd.listing import plain
from gridnet.lbsmd.tools import add_daemon_options, control_path, run_tool


def _why_down_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridnet why-down",
        description="Say what the daemons of the site hold of a host, who accused it, and why.",
    )
    parser.add_argument("host", help="its address")
    parser.add_argument("--json", action="store_true", help="the whole answer as JSON")
    add_daemon_options(parser)
    return parser


def why_down(arguments: Sequence[str]) -> int:
    """``gridnet why-down``: status 0: there is an answer, whatever it is; 1: there is none."""
    options = _why_down_parser().parse_args(arguments)

    def work() -> None:
        path = control_path(options.config, options.control)
        answer = ask(path, {"ask": "why_down", "host": options.host})
        print(json.dumps(answer) if options.json else "\n".join(map(plain, reasons(answer))))

    return run_tool("why-down", work)


_SAID = {
    "alive": "is up",
    "suspect": "is suspected",
    "dead": "is down",
    "left": "has left on purpose",
}


def _time(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment):%Y-%m-%d %H:%M:%S}.{int(moment % 1 * 1000):03d}"


def reasons(answer: Mapping[str, Any]) -> list[str]:
    """The daemon's answer to ``why_down`` as lines for people."""
    standing, place = answer["standing"], f"{answer['address']} port {answer['port']}"
    said, identity = _SAID.get(standing, standing), answer["identity"][:16]
    lines = [
        f"{answer['host']} {said} since {_time(answer['since'])}, says {answer['told_by']}",
        f"  at {place}, incarnation {answer['incarnation']}, identity {identity}",
    ]
    if answer["verdict_at"] is not None:
        lines.append(f"  it counts as down at {_time(answer['verdict_at'])}, unless it answers")
    accusations = answer["accusations"]
    if not accusations:
        return [*lines, "  nobody has accused it"]
    lines.append("  accused:" if standing in ("suspect", "dead") else "  last accused:")
    return lines + [
        f"    {_time(each['at'])} by {each['accuser']}: {each['reason']}" for each in accusations
    ]


def _key_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridnet gossip-key",
        description="Make a key file for the gossip of a site, or print one more key for it.",
    )
    parser.add_argument("file", type=Path, nargs="?", help="to make; without it the key is printed")
    return parser


def gossip_key(arguments: Sequence[str]) -> int:
    """``gridnet gossip-key``: status 0: done; 1: the file is there already, or cannot be made."""
    options = _key_parser().parse_args(arguments)
    if options.file is None:
        print(new_key_line(), end="")
        return 0
    try:
        write_private(options.file, new_key_line())
    except OSError as error:
        print(f"gridnet gossip-key: {options.file}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
