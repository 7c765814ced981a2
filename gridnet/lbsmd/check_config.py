"""``gridnet check-config``: would the daemon take these files?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from gridnet.config import SiteConfig, read
from gridnet.errors import ConfigError
from gridnet.lbsmd.config import LbsmdConfig
from gridnet.lbsmd.loading import Source


def main(arguments: Sequence[str]) -> int:
    """
    Print every fault of each set of definitions.

    :returns: 0: no fault; 1: some; 2: the command line or the site file is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="gridnet check-config",
        description="Read sets of service definitions as the daemon would, and name their faults.",
    )
    parser.add_argument("file", nargs="+", type=Path, help="main file of a set of definitions")
    parser.add_argument("--config", type=Path, help="site file whose [lbsmd] section applies")
    parser.add_argument(
        "--directory", type=Path, help="where relative includes start (default: this directory)"
    )
    parser.add_argument("--mail-domain", help="the domain that contacts are of")
    parser.add_argument(
        "--no-resolve", action="store_true", help="do not look up the hosts that are named"
    )
    options = parser.parse_args(arguments)
    try:
        config, site = _lbsmd_section(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if options.mail_domain is not None:
        config = evolve(config, mail_domain=options.mail_domain)
    if options.directory is not None:
        config = evolve(config, directory=str(options.directory.absolute()))
    status = 0
    for file in options.file:
        config = evolve(config, servrc=str(file.absolute()))
        source = Source.of(config, site, "127.0.0.1", _any_address if options.no_resolve else None)
        loaded = source.load()
        for remark in loaded.remarks:
            print(f"{remark} (remark)", file=sys.stderr)
        for fault in loaded.faults:
            print(fault, file=sys.stderr)
        if loaded.faults:
            status = 1
        else:
            files = len(loaded.configuration.files)
            print(f"{file}: {len(loaded.records)} services in {files} files, no fault")
    return status


def _lbsmd_section(path: Path | None) -> tuple[LbsmdConfig, SiteConfig]:
    if path is None:
        return LbsmdConfig(), SiteConfig()
    # Imported late: only with --config are the sections of other components needed.
    from gridnet.component import config_classes

    site = read(path, config_classes())
    section = site.sections.get("lbsmd", LbsmdConfig())
    if not isinstance(section, LbsmdConfig):
        raise TypeError(f"[lbsmd] is a {type(section).__name__}")
    return section, site


def _any_address(name: str) -> str:
    return "127.0.0.1"
