"""``gridnet lbsm-feedback``: have clients kept away from servers, or servers rated anew."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from gridnet.control import ControlError, NoDaemonError, ask
from gridnet.errors import ConfigError
from gridnet.lbsmd.feedback import FeedbackError, Request, format_line, parse_argument
from gridnet.lbsmd.tools import add_daemon_options, control_path

DONE, BAD_ARGUMENT, NO_DAEMON, REFUSED = range(4)
#: Seconds that a daemon may take: it may have to ask others.
_ANSWER_SECONDS = 60.0

_EPILOG = """\
The request is one argument:

  SERVICE TYPE [HOST][:PORT] PENALTY [HOLD]
      a penalty of 0 to 100 percent, held for HOLD seconds (0) before it wears off; 0 ends it
  SERVICE RERATE TYPE [HOST][:PORT] RATE
      a base rate: 0 is off; else 0.001 to 100000; RESERVE keeps aside; DEFAULT is as configured

SERVICE may hold * and ?.  TYPE is a server type, or ANY.  Without HOST this host is meant, without
PORT any port.

status: 0 done; 1 the request makes no sense; 2 no daemon can be reached; 3 refused
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gridnet lbsm-feedback",
        description="Ask the daemon of this host to keep clients away from servers, anywhere.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("request", nargs="*", help="what to do, in one argument (see below)")
    parser.add_argument("--reason", default="", help="what it is for; kept with the penalty")
    parser.add_argument(
        "--socket",
        type=Path,
        help="hand it over at this feedback socket, which gives no answer, as clients do",
    )
    add_daemon_options(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    text = " ".join(options.request)
    try:
        request = parse_argument(text)
    except FeedbackError as error:
        parser.print_usage(sys.stderr)
        print(f"gridnet lbsm-feedback: {error}", file=sys.stderr)
        return BAD_ARGUMENT
    try:
        if options.socket is not None:
            hand_over(options.socket, request)
            return DONE
        path = control_path(options.config, options.control)
        question = {"ask": "feedback", "argument": text, "reason": options.reason}
        print(ask(path, question, _ANSWER_SECONDS))
        return DONE
    except (NoDaemonError, ConfigError) as error:
        status, reason = NO_DAEMON, str(error)
    except ControlError as error:
        status, reason = REFUSED, str(error)
    print(f"gridnet lbsm-feedback: {reason}", file=sys.stderr)
    return status


def hand_over(path: Path, request: Request) -> None:
    """
    Write *request* to the feedback socket *path* as the toolkit's clients do; blocks.

    :raises NoDaemonError: nobody is there.
    """
    line = format_line(os.geteuid(), request).encode("latin-1", "replace") + b"\n"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10.0)
            connection.connect(str(path))
            connection.sendall(line)
    except OSError as error:
        reason = error.strerror or error
        raise NoDaemonError(f"no daemon answers at {path}: {reason}") from None
