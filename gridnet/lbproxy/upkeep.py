"""``gridnet lbproxy``: purge jobs, and enter dumps or set-aside stores again."""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from gridnet.lbproxy.client import Context, LbError
from gridnet.lbproxy.query import NEVER, SERVICE_DEFAULT
from gridnet.lbproxy.record import STATES

FINAL_STATES = ("Cleared", "Aborted", "Cancelled", "Done")
_AGE = re.compile(r"([0-9]+)([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_ARRIVED = re.compile(rb"DG\.ARRIVED=[0-9.]+ ")


def age(text: str) -> int:
    """
    Seconds of ``90``, ``90s``, ``15m``, ``2h``, ``31d``; ``never`` and ``default`` for those.

    :raises argparse.ArgumentTypeError: anything else.
    """
    words = {"never": NEVER, "default": SERVICE_DEFAULT}
    if text in words:
        return words[text]
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected a number with s, m, h or d, never, or default; found {text!r}"
        )
    return int(match[1]) * _UNITS[match[2]]


def timeouts_from(options: argparse.Namespace) -> dict[str, int]:
    """State -> time-out that the command line says."""
    found = dict.fromkeys(STATES, SERVICE_DEFAULT)
    if options.older_than is not None:
        found.update(dict.fromkeys(STATES, NEVER))
        found.update(dict.fromkeys(FINAL_STATES, options.older_than))
    if options.others is not None:
        found.update({name: options.others for name in STATES if name not in FINAL_STATES})
    for name in FINAL_STATES:
        seconds = getattr(options, name.lower())
        if seconds is not None:
            found[name] = seconds
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridnet lbproxy", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    purge = verbs.add_parser("purge", help="remove jobs from a proxy or server")
    purge.add_argument("--serve", default="", metavar="SOCKET", help="path of the serve socket")
    purge.add_argument("--json", action="store_true", help="one JSON value")
    purge.add_argument(
        "--older-than", type=age, metavar="AGE", help="final jobs whose last event is older"
    )
    for name in FINAL_STATES:
        purge.add_argument(
            f"--{name.lower()}", type=age, metavar="AGE", help=f"another age for {name}"
        )
    purge.add_argument("--others", type=age, metavar="AGE", help="an age for jobs not final")
    purge.add_argument("--job", action="append", metavar="JOB", help="this job, whatever its age")
    purge.add_argument("--jobs-from", type=Path, metavar="FILE", help="job ids, one a line")
    purge.add_argument("--dry-run", action="store_true", help="only list what would go")
    purge.add_argument("--dump", action="store_true", help="have the service dump events first")
    purge.add_argument("--list", action="store_true", help="print the ids of what went")
    purge.add_argument("--spread", type=age, default=0, metavar="AGE", help="take this long")
    purge.add_argument("--background", action="store_true", help="do not wait for the end")

    load = verbs.add_parser("load", help="log the events of a dump or of a store once more")
    load.add_argument("file", type=Path, help="a dump, or a store that was set aside")
    load.add_argument("--store", default="", metavar="SOCKET", help="path of the store socket")
    return parser


def _purge(options: argparse.Namespace) -> int:
    jobs: list[str] | None = options.job
    if options.jobs_from is not None:
        lines = options.jobs_from.read_text(encoding="latin-1").splitlines()
        jobs = [*(jobs or []), *(line.strip() for line in lines if line.strip())]
    with Context(serve=options.serve) as context:
        gone, dump = context.purge(
            jobs,
            timeouts_from(options),
            really=not options.dry_run,
            dump=options.dump,
            background=options.background,
            run_seconds=max(0, options.spread),
        )
    if options.json:
        print(json.dumps({"purged": not options.dry_run, "jobs": gone, "dump": dump}))
        return 0
    if options.list or options.dry_run:
        for job in gone:
            print(job)
    if options.background:
        print("purging in the background", file=sys.stderr)
    else:
        verb = "would go" if options.dry_run else "purged"
        print(f"{len(gone)} jobs {verb}", file=sys.stderr)
    if dump:
        print(f"dumped to {dump}", file=sys.stderr)
    return 0


def dumped_lines(path: Path) -> Iterator[bytes]:
    """
    Event lines of a dump, or of a store file as far as it can be read.

    :raises OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            file.seek(0)
            for line in file:
                if line.strip():
                    yield _ARRIVED.sub(b"", line, count=1)
            return
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        position = 0
        misses = 0
        while misses < 1000:
            try:
                row = connection.execute(
                    "SELECT position, line FROM events WHERE position > ?"
                    " ORDER BY position LIMIT 1",
                    (position,),
                ).fetchone()
            except sqlite3.DatabaseError:
                # A damaged page: try behind it, a little further each time.
                misses += 1
                position += misses
                continue
            if row is None:
                return
            position, line = row
            yield bytes(line)


def _load(options: argparse.Namespace) -> int:
    entered = refused = 0
    with Context(store=options.store, user="loader") as context:
        for line in dumped_lines(options.file):
            reply = context.log_line(line if line.endswith(b"\n") else line + b"\n")
            if reply.ok:
                entered += 1
            else:
                refused += 1
                print(f"refused: {reply.major}/{reply.minor} {reply.text}", file=sys.stderr)
    print(f"{entered} events entered or known already, {refused} refused", file=sys.stderr)
    return 1 if refused else 0


_VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {"purge": _purge, "load": _load}


def main(arguments: Sequence[str]) -> int:
    """Run one verb; returns the exit status: 0, 1 the service refuses, 2 the command line."""
    options = _parser().parse_args(arguments)
    try:
        return _VERBS[options.verb](options)
    except BrokenPipeError:
        raise
    except (LbError, OSError) as error:
        print(f"gridnet lbproxy: {error}", file=sys.stderr)
        return 1
