"""``gridnet demo``: a whole site on loopback, until it is told to stop."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from gridnet.component import config_classes
from gridnet.config import parse, parse_port_range
from gridnet.demo.backends import definitions, make_backends
from gridnet.demo.document import demo_company, demo_document
from gridnet.demo.plan import BLOCK_PORTS, DemoPlan
from gridnet.demo.running import log_to, run_site
from gridnet.demo.tour import tour
from gridnet.errors import ConfigError
from gridnet.site import make_site


def _port_range(text: str) -> tuple[int, int]:
    try:
        ports = parse_port_range(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return ports[0], ports[-1]


def _port_base(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= 65536 - BLOCK_PORTS):
        raise argparse.ArgumentTypeError(
            f"expected a port up to {65536 - BLOCK_PORTS}, found {text!r}"
        )
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridnet demo", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where all state goes")
    parser.add_argument(
        "--port-base",
        type=_port_base,
        required=True,
        metavar="N",
        help="the dispatcher's port; everything else is on N+10 to N+99",
    )
    parser.add_argument("--servrc", type=Path, help="serve these definitions, not the demo's own")
    parser.add_argument(
        "--firewall-ports", type=_port_range, metavar="A-B", help="ports of the ticketed relay"
    )
    parser.add_argument(
        "--heap", action="store_true", help="publish the table in shared memory, real keys"
    )
    parser.add_argument(
        "--tour", action="store_true", help="once ready, ask for each service and show the answers"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the demo site; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    directory: Path = options.dir.absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--dir {directory}: {error.strerror}")
    servrc: Path = options.servrc.absolute() if options.servrc else directory / "servrc.cfg"
    plan = DemoPlan(
        directory, options.port_base, servrc, sys.executable, options.firewall_ports, options.heap
    )
    if options.servrc is None:
        servrc.write_text(definitions(plan))
    path = directory / "site.toml"
    path.write_text(tomli_w.dumps(demo_document(plan)))
    log_to(directory)

    # Imported here: importing it installs it.
    from twisted.internet import reactor

    try:
        config = parse(path.read_text(), config_classes(), directory, str(path))
        site, service = make_site(config, reactor)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    make_backends(plan, reactor).setServiceParent(service)
    for company in demo_company(plan, site):
        company.setServiceParent(service)

    def answer(addresses: Mapping[str, Any]) -> Deferred[Any] | None:
        line = {**addresses, "directory": str(plan.directory)}
        print(json.dumps(line), flush=True)
        return deferToThread(tour, addresses, plan, sys.stderr) if options.tour else None

    return run_site("gridnet demo", service, site.ready, answer, reactor)
