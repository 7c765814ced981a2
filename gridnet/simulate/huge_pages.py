"""
Huge pages for a process that holds millions of objects.

Ten thousand simulated hosts fit into no cache, nor do the addresses of their pages: much of the
time goes into finding out where a page lies.  Pages of 2 MB are a five hundredth as many.  Python's
own allocator does not ask the kernel for them, that of the GNU C library does, if both are told so
before the interpreter starts: by variables of the environment.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

#: "no": do not start anew.
CHOICE = "GRIDNET_HUGE_PAGES"
_ASKED = "asked"  # the value in a process that was started anew, and in its children
_KERNEL_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LEAST_GLIBC = (2, 35)  # the first that knows the tunable


def environment_with_huge_pages(
    environment: Mapping[str, str], c_library: str, kernel_modes: str
) -> dict[str, str] | None:
    """
    The *environment* with what asks for huge pages.

    :param c_library: its name and version, as ``glibc 2.36``.
    :param kernel_modes: of transparent huge pages, as the kernel lists them, the one that is in
        force in brackets.
    :returns: None: it would change nothing, or somebody else has chosen.
    """
    if environment.get(CHOICE) in ("no", _ASKED) or "PYTHONMALLOC" in environment:
        return None
    tunables = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables:
        return None
    version = re.fullmatch(r"glibc (\d+)\.(\d+).*", c_library)
    if version is None or (int(version[1]), int(version[2])) < _LEAST_GLIBC:
        return None
    # With "always" they need not be asked for, with "never" there are none.
    if "[madvise]" not in kernel_modes:
        return None
    asked = "glibc.malloc.hugetlb=1"
    return {
        **environment,
        "GLIBC_TUNABLES": f"{tunables}:{asked}" if tunables else asked,
        "PYTHONMALLOC": "malloc",
        CHOICE: _ASKED,
    }


def start_anew(c_library: str | None = None, kernel_modes: str | None = None) -> None:
    """
    Begin this command again, once, in huge pages; return where there are none to be had.

    To be called before anything was done, and by a command alone: the process is another one
    afterwards, with the same number, arguments and open files.

    :param c_library: see :func:`environment_with_huge_pages`; None: that of this process.
    :param kernel_modes: likewise; None: those of this machine.
    """
    if sys.platform != "linux" or not sys.executable or sys.flags.ignore_environment:
        return
    if c_library is None:
        c_library = _c_library()
    if kernel_modes is None:
        kernel_modes = _kernel_modes()
    environment = environment_with_huge_pages(os.environ, c_library, kernel_modes)
    if environment is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # another C library
        return ""


def _kernel_modes() -> str:
    try:
        return _KERNEL_MODES.read_text(encoding="ascii")
    except OSError:  # a kernel without them, or a sandbox
        return ""
