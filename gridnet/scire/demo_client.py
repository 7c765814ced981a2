"""
The demo's client of the job server: ``gridnet scire-client`` that ends with its standard input.

So nothing of a demo is left when the demo itself is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from gridnet.scire.client.command import main


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
