"""
What of a process is in memory: giving back what only its start needed.

A start touches most of each library that it loads, and the loader then keeps those pages in the
process: symbols, tables of relocations, code that runs once.  They are the unchanged contents of
files, so the process may let go of them at any time; what it comes to use again is mapped again
from the system's cache of files, at the cost of one minor fault for sixteen pages.
"""

from __future__ import annotations

import ctypes
import gc
import linecache
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gridnet.repeating import Repeating

_SMAPS = Path("/proc/self/smaps")
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ([-rwxsp]{4}) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ ([0-9]+)")
#: Counts that must be 0: of pages that are not as in the file, and of those not to be moved.
_OURS = ("Anonymous:", "Private_Dirty:", "Shared_Dirty:", "Swap:", "Locked:")
_MADV_DONTNEED = 4


def clean_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """
    The mappings of *smaps* (proc(5)) that hold nothing but unchanged contents of files.

    Of one of them, no page is lost with the process's own copy of it.  Those that can be written
    to do not count, nor what was written to before (relocated tables), whatever it can be now.

    :returns: address and octets of each.
    """
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        head = _HEAD.match(line)
        if head is not None:
            if found is not None:
                yield found
            start, end, rights, inode = head.groups()
            clean = "w" not in rights and rights[0] == "r" and rights[3] == "p" and inode != "0"
            found = (int(start, 16), int(end, 16) - int(start, 16)) if clean else None
        elif line.startswith(_OURS) and line.split()[1:2] != ["0"]:
            found = None
    if found is not None:
        yield found


def give_back() -> bool:
    """
    Give memory back to the system that this process does not need for now.

    Takes some milliseconds.

    :returns: whether the system is one where that can be done (Linux with the GNU C library).
    """
    linecache.clearcache()  # among it, all that attrs wrote for its classes
    gc.collect()
    try:
        smaps = _SMAPS.read_text("ascii", "replace")
        library = ctypes.CDLL(None)
        trim, advise = library.malloc_trim, library.madvise
    except (OSError, AttributeError):
        return False
    trim(0)
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for address, octets in clean_mappings(smaps):
        advise(address, octets, _MADV_DONTNEED)
    return True


class GivesBack(Repeating):
    """
    Gives memory back a little after the start, and then every *seconds*.

    Every now and then since a process that reads its configuration anew, or answers a question
    that nobody asked before, has then touched what it does not need any more.

    :param seconds: from one time to the next.
    :param first_seconds: from the start to the first time.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        seconds: float,
        first_seconds: float = 5.0,
        give: Callable[[], bool] = give_back,
    ) -> None:
        super().__init__(clock, seconds, self._give_back, min(seconds, first_seconds))
        self._give = give

    def _give_back(self) -> None:
        if not self._give():
            self._log.info("memory cannot be given back on this system")
            self.end()
