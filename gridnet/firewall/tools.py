"""``gridnet relay``: look at the relay of this host, end connections, refuse clients."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gridnet.control import ask, find_control
from gridnet.errors import ConfigError, GridnetError

_SESSION_COLUMNS = (
    *("session", "client", "service", "server", "octets_up", "octets_down", "seconds"),
)
_PENALTY_COLUMNS = ("client", "reason", "offences", "service", "seconds_left")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridnet relay", description=__doc__)
    parser.add_argument("--config", type=Path, help="site file of the relay (else site.toml here)")
    parser.add_argument("--control", type=Path, help="control socket of the relay")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    orders = parser.add_subparsers(dest="order", metavar="ORDER")
    orders.add_parser("list", help="connections that are relayed now (what is done without ORDER)")
    orders.add_parser("penalties", help="clients that are refused now")
    revoke = orders.add_parser("revoke", help="end a session, or make a ticket worthless")
    revoke.add_argument("session", help="its name, from list or the log")
    for name, text in (
        ("refuse", "refuse a client, and end its connections"),
        ("pardon", "let a client in again"),
    ):
        orders.add_parser(name, help=text).add_argument("client", help="IP address")
    return parser


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    texts = [list(columns), *([str(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[at]) for line in texts) for at in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in texts
    )


def _show(order: str, answer: Any) -> str:
    if order == "list":
        waiting = f"{answer['tickets_waiting']} tickets wait to be presented"
        return f"{_table(answer['sessions'], _SESSION_COLUMNS)}\n{waiting}"
    if order == "penalties":
        return _table(answer, _PENALTY_COLUMNS)
    if order == "revoke":
        return "ended" if answer["ended"] else "no such session here; its ticket, if any, is void"
    return ", ".join(f"{name}: {value}" for name, value in answer.items())


def main(arguments: Sequence[str]) -> int:
    """Run it; exit status 0, 1 (no answer) or 2 (the site file is wrong)."""
    options = _parser().parse_args(arguments)
    order = options.order or "list"
    question: dict[str, Any] = {"ask": "sessions" if order == "list" else order}
    for name in ("session", "client"):
        if getattr(options, name, None) is not None:
            question[name] = getattr(options, name)
    try:
        answer = ask(find_control("firewall", options.config, options.control), question)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except GridnetError as error:
        print(f"gridnet relay: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer) if options.json else _show(order, answer))
    return 0
