"""
The client, killed with SIGKILL at the n-th line that it executes of its own code.

``python -m tests.scire.dying_client N --config F run``; it ends with status 0 when it has come to
its end before.  The number of lines it took is left in the file that GRIDNET_LINES names.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from gridnet.scire.client import command

#: The files whose lines count: where something is promised across a crash.
_COUNTED = ("agent.py", "spool.py", "work.py", "execution.py")


def main() -> int:
    """Count, and die in time."""
    last = int(sys.argv[1])
    count = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "/scire/client/" in name and name.endswith(_COUNTED):
            return line(frame, event, argument)
        return None

    threading.settrace(call)
    sys.settrace(call)
    status = command.main(sys.argv[2:])
    sys.settrace(None)
    with open(os.environ["GRIDNET_LINES"], "w") as file:
        file.write(str(count))
    return status


if __name__ == "__main__":
    sys.exit(main())
