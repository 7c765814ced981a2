"""``gridnet port``: tell the daemon how much capacity there is behind a port of this host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gridnet.errors import ConfigError
from gridnet.lbsmd.tools import read_section
from gridnet.port_posts import PortClient, PostError

DONE, REFUSED, USAGE = range(3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridnet port",
        description="Post the capacity behind a monitored port of this host, in any unit.",
        epilog="status: 0 it counts; 1 it does not; 2 the site file is wrong",
    )
    parser.add_argument("port", type=int, help="1 to 65535; the definitions have a line :PORT")
    parser.add_argument("total", type=float, help="all there is")
    parser.add_argument("used", type=float, help="what is in use")
    parser.add_argument("free", type=float, help="what is left; 0: clients are kept away")
    parser.add_argument("--config", type=Path, help="site file of the daemon (else site.toml here)")
    parser.add_argument("--socket", type=Path, help="socket of the daemon for posts")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        path = options.socket
        if path is None:
            site, section = read_section(options.config)
            path = section.ports_path(site)
        with PortClient(path, 5.0) as client:
            client.post(options.port, options.total, options.used, options.free)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    except PostError as error:
        print(f"gridnet port: {error}", file=sys.stderr)
        return REFUSED
    return DONE
