"""Mounts that a test has for itself, such as a small disk that is soon full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence


def own_mounts() -> Sequence[str]:
    """Words that give a command mounts of its own; none where that is not allowed."""
    for options in (("-m",), ("-r", "-m")):
        words = ("unshare", *options, "sh", "-c", "mount -t tmpfs tmpfs /mnt")
        if shutil.which("unshare") and not subprocess.run(words, capture_output=True).returncode:
            return ("unshare", *options)
    return ()
