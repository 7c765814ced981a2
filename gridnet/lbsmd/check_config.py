"""``gridnet check-config``: would the daemon take these files?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gridnet.lbsmd.files import read_text
from gridnet.lbsmd.servrc.configuration import Rules, load


def main(arguments: Sequence[str]) -> int:
    """Print every fault of each file set; returns 0 when there is none, else 1."""
    parser = argparse.ArgumentParser(prog="gridnet check-config", description=__doc__)
    parser.add_argument("file", nargs="+", type=Path, help="main file of a set of definitions")
    parser.add_argument("--start-dir", type=Path, help="where includes start (default: the file's)")
    parser.add_argument("--mail-domain", default="localhost", help="domain that contacts are of")
    parser.add_argument(
        "--site-bits", type=lambda text: int(text, 0), default=1, help="bits of the site"
    )
    parser.add_argument("--site-role", choices=("plain", "try", "qa"), default="plain")
    options = parser.parse_args(arguments)
    rules = Rules(options.mail_domain, options.site_bits, options.site_role)
    status = 0
    for file in options.file:
        path: Path = file.absolute()
        start = options.start_dir.absolute() if options.start_dir else path.parent
        found = load(read_text, path, start, rules)
        for fault in found.faults:
            print(fault, file=sys.stderr)
            status = 1
        if not found.faults:
            print(f"{file}: {len(found.services)} services in {len(found.files)} files, no fault")
    return status
