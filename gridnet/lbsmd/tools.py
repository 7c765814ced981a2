"""``gridnet lbsmc`` and ``gridnet resolve``: ask the daemon of this host, and show its answer."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from gridnet.config import SiteConfig, read
from gridnet.control import ask
from gridnet.errors import ConfigError, GridnetError
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.listing import View, plain, render, standing_lines

#: Site file that the tools read when nothing is said.
DEFAULT_SITE_FILE = Path("site.toml")
_MOST_SECONDS = 86400.0
#: Clears the terminal before a table is shown again.
_CLEAR = "\x1b[H\x1b[2J"


def add_daemon_options(parser: argparse.ArgumentParser) -> None:
    """Let *parser* take what :func:`control_path` needs."""
    parser.add_argument("--config", type=Path, help="site file of the daemon (else site.toml here)")
    parser.add_argument("--control", type=Path, help="control socket of the daemon")


def read_section(config: Path | None) -> tuple[SiteConfig, LbsmdConfig]:
    """
    The site file of the daemon, and its section there.

    :param config: site file; None: the one in this directory.
    :raises ConfigError: it cannot be read.
    """
    # Imported late: only here are the sections of other components needed.
    from gridnet.component import config_classes

    site = read(config or DEFAULT_SITE_FILE, config_classes())
    section = site.sections.get("lbsmd", LbsmdConfig())
    if not isinstance(section, LbsmdConfig):
        raise TypeError(f"[lbsmd] is a {type(section).__name__}")
    return site, section


def control_path(config: Path | None, control: Path | None) -> Path:
    """
    Where the daemon's control socket is.

    :param config: site file; None: the one in this directory.
    :param control: the socket itself, if it was named.
    :raises ConfigError: the site file cannot be read, or switches the socket off.
    """
    if control is not None:
        return control
    site, section = read_section(config)
    return section.control_path(site)


def run_tool(tool: str, work: Callable[[], None]) -> int:
    """Exit status of *work*: 0; 1: no answer; 2: the site file is wrong."""
    try:
        work()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except GridnetError as error:
        print(f"gridnet {tool}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _period(text: str) -> float:
    seconds = float(text)
    if not 0.0 <= seconds <= _MOST_SECONDS:
        raise ValueError(f"expected 0 to {_MOST_SECONDS:g} seconds")
    return seconds


def _lbsmc_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridnet lbsmc",
        description="Show the hosts and services that the daemon of this host knows.",
        add_help=False,
    )
    parser.add_argument(
        "period",
        nargs="?",
        type=_period,
        default=5.0,
        help="show again every so many seconds (0: once)",
    )
    parser.add_argument(
        "-h",
        dest="hosts",
        nargs="?",
        const="",
        default="*",
        metavar="MASK",
        help="hosts whose address fits MASK; none: no host table; alone: this help",
    )
    parser.add_argument("-s", dest="services", default="*", metavar="MASK", help="services by name")
    parser.add_argument("-d", dest="dead", action="store_true", help="only dead servers")
    parser.add_argument("-f", dest="figures", action="store_true", help="raw figures of hosts too")
    parser.add_argument("-i", dest="more", action="store_true", help="further information")
    parser.add_argument("-w", dest="wide", action="store_true", help="132 columns instead of 80")
    parser.add_argument("-1", dest="once", action="store_true", help="once, like period 0")
    parser.add_argument("-j", "--json", action="store_true", help="once, as JSON")
    parser.add_argument("--help", action="help", help="this help")
    add_daemon_options(parser)
    return parser


class HostWatch:
    """Notices hosts that go away and come back."""

    def __init__(self) -> None:
        self._there: frozenset[str] | None = None
        self._gone: frozenset[str] = frozenset()
        self._returned: frozenset[str] = frozenset()

    def see(self, addresses: Iterable[str]) -> frozenset[str]:
        """
        The hosts that are there now are *addresses*.

        :returns: those of them that were away at some look since the first.
        """
        now = frozenset(addresses)
        self._returned |= self._gone & now
        self._gone = (self._gone | (self._there or now)) - now
        self._there = now
        return self._returned & now


def lbsmc(arguments: Sequence[str]) -> int:
    """``gridnet lbsmc``."""
    parser = _lbsmc_parser()
    options = parser.parse_args(arguments)
    if options.hosts == "":
        parser.print_help()
        return 0
    view = View(
        hosts=None if options.hosts == "none" else options.hosts,
        services=options.services,
        wide=options.wide,
        figures=options.figures,
        more=options.more,
        dead_only=options.dead,
    )

    def work() -> None:
        path = control_path(options.config, options.control)
        watch = HostWatch()
        while True:
            table = ask(path, {"ask": "table"})
            if options.json:
                print(json.dumps(table))
                return
            returned = watch.see(host["address"] for host in table["hosts"])
            text = "\n".join(render(table, evolve(view, returned=returned)))
            again = options.period > 0 and not options.once
            print(f"{_CLEAR if again and sys.stdout.isatty() else ''}{text}", flush=True)
            if not again:
                return
            time.sleep(options.period)

    return run_tool("lbsmc", work)


def _resolve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridnet resolve",
        description="Look a service up in the daemon's table, as a client would.",
    )
    parser.add_argument("service", help="its name")
    parser.add_argument("--explain", action="store_true", help="show every factor of the choice")
    parser.add_argument("--json", action="store_true", help="the whole answer as JSON")
    parser.add_argument("--types", default="", help="server types, separated by commas (all)")
    parser.add_argument("--client", default="", help="address of the client (this host)")
    parser.add_argument("--outside", action="store_true", help="the client is outside the site")
    parser.add_argument("--prefer", default="", metavar="HOST[:PORT]", help="preferred server")
    parser.add_argument(
        "--preference", type=float, default=0.0, help="how much, 0 to 1; -1: that one or none"
    )
    parser.add_argument(
        "--affinity", default="", metavar="ARG[=VALUE]", help="argument of the request"
    )
    add_daemon_options(parser)
    return parser


def resolve(arguments: Sequence[str]) -> int:
    """``gridnet resolve``: status 0: there is a server; 1: there is none, or no daemon."""
    options = _resolve_parser().parse_args(arguments)
    chosen: list[str] = []

    def work() -> None:
        question: dict[str, Any] = {
            "ask": "resolve",
            "service": options.service,
            "types": options.types,
            "client": options.client,
            "preferred": options.prefer,
            "preference": options.preference,
            "affinity": options.affinity,
        }
        if options.outside:
            question["inside"] = False
        answer = ask(control_path(options.config, options.control), question)
        chosen.extend(answer["chosen"])
        if options.json:
            print(json.dumps(answer))
        elif options.explain:
            print("\n".join(map(plain, explanation(answer))))
        elif chosen:
            print("\n".join(chosen))
        else:
            print(f"gridnet resolve: no server of {options.service}", file=sys.stderr)

    status = run_tool("resolve", work)
    return status or (0 if chosen else 1)


def explanation(answer: Mapping[str, Any]) -> list[str]:
    """The daemon's answer to ``resolve`` as lines for people."""
    servers = answer["servers"]
    if not servers:
        return [f"{answer['service']}: not in the table"]
    count = f"{len(servers)} server{'s' if len(servers) > 1 else ''}"
    lines = [f"{answer['service']}: {count}, {len(answer['chosen'])} to choose from"]
    for server in servers:
        lines.append(f"  {server['server']}")
        factors = [f"base rate {server['base_rate']:g}"]
        configured = server.get("configured_rate", server["base_rate"])
        if configured != server["base_rate"]:
            factors[0] += f" (configured {configured:g})"
        check = server.get("check")
        if check is not None:
            text = f"checks: {check['state']}"
            if check["percent"] != 100:
                text += f" at {check['percent']} percent"
            factors.append(f"{text}, {check['reason']}" if check["reason"] else text)
        if server["host_status"] is not None:
            factors.append(f"host status {server['host_status']:g} / 1000")
        elif server["static"]:
            factors.append("static")
        if server["penalty"]:
            factors.append(f"penalty {server['penalty']:g} percent")
        factors.append(f"rating {server['rating']:g}")
        if server["bonus"]:
            factors.append(f"bonus {server['bonus']:g}")
        if server["affinity"] is not None:
            factors.append(f"affinity {server['affinity']}")
        lines.append("    " + ", ".join(factors))
        lines += [f"    {line}" for line in standing_lines(server)]
        if server["ruled_out"]:
            lines.append(f"    not handed out: {server['ruled_out']}")
        else:
            lines.append(f"    chosen in {server['share']:.2%} of look-ups")
    return lines
