"""
``twistd gridnet``, killed with SIGKILL at the n-th time that it passes a point where it matters.

The points are: before a transaction begins, before and after its commit, before and after an
answer is written.  ``python -m tests.scire.dying_server N --config F``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any

from twisted.application.twist._twist import Twist

from gridnet.scire.http import RpcConnection
from gridnet.scire.store.postgresql import PostgresSession
from gridnet.scire.store.sqlite import SqliteSession


def main() -> None:
    """Count, and die in time."""
    last, count, lock = int(sys.argv[1]), 0, Lock()

    def passed() -> None:
        nonlocal count
        with lock:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(place: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(place, name)

        @wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            passed()
            result = function(*arguments, **named)
            passed()
            return result

        setattr(place, name, counted)

    for session in (SqliteSession, PostgresSession):
        around(session, "commit")
        around(session, "begin")
    around(RpcConnection, "answer")
    Twist.main(["twist", "--log-level=info", "--log-format=text", "gridnet", *sys.argv[2:]])


if __name__ == "__main__":
    main()
