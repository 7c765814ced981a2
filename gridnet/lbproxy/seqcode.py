"""
Sequence codes: the counters by which the components of a grid order a job's events.

Three dialects exist.  Grid jobs count per component (``UI=…:NS=…:…:LBS=…``), PBS jobs likewise
with PBS's own components (``CLIENT=…:SERVER=…:SCHED=…:SMOM=…:MOM=…``), Condor jobs name a place
in a log file (``TIMESTAMP=…:POS=…:EV.CODE=…:SRC=c``).  Source: docs/protocols/lbproxy.rst,
"Sequence codes".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cmp_to_key

from gridnet.lbproxy.short_cache import cached_if_short

#: Number of a source (docs/protocols/lbproxy.rst, "Sources") -> place in a grid code.
USER_INTERFACE = 1
NETWORK_SERVER = 2
WORKLOAD_MANAGER = 3
LOG_MONITOR = 6
LB_SERVER = 9

_GRID_PARTS = (
    ("UI", 6),
    ("NS", 10),
    ("WM", 6),
    ("BH", 10),
    ("JSS", 6),
    ("LM", 6),
    ("LRMS", 6),
    ("APP", 6),
    ("LBS", 6),
)
_PBS_PARTS = (("CLIENT", 6), ("SERVER", 10), ("SCHED", 6), ("SMOM", 6), ("MOM", 6))
#: Number of a PBS source -> place in a PBS code.
_PBS_PLACES = {12: 0, 13: 1, 16: 2, 14: 3, 15: 4}

# As many digits as anybody writes, few enough that reading them stays cheap.
_NUMBER = r"\s*([+-]?[0-9]{1,100})"
_GRID = re.compile(
    ":".join(f"{name}={_NUMBER}" for name, _ in _GRID_PARTS[:-1]) + f"(?::LBS={_NUMBER})?"
)
_PBS = re.compile(":".join(f"{name}={_NUMBER}" for name, _ in _PBS_PARTS))
_CONDOR = re.compile(
    r"TIMESTAMP=([^:\s]{1,14}):POS=([^:\s]{1,10}):EV\.CODE=\s*([0-9]{1,3}):SRC=(.)"
)

Comparison = Callable[[str, str], int]


def _write(parts: tuple[tuple[str, int], ...], counts: tuple[int, ...]) -> str:
    return ":".join(
        f"{name}={count:0{width}d}" for (name, width), count in zip(parts, counts, strict=True)
    )


#: The code that registration starts from.
ZERO = _write(_GRID_PARTS, (0,) * len(_GRID_PARTS))
_PBS_ZERO = _write(_PBS_PARTS, (0,) * len(_PBS_PARTS))


def zero(source: int) -> str:
    """The code that a registration by *source* starts from, in which its count has a place."""
    return _PBS_ZERO if source in _PBS_PLACES else ZERO


@cached_if_short(8192)
def components(code: str) -> tuple[int, ...] | None:
    """
    The nine counts of a grid code, UI to LBS, or None when it cannot be read.

    Any number of digits goes; without the ``LBS`` part that count is 0; what follows the last
    part is not looked at.
    """
    match = _GRID.match(code)
    if match is None:
        return None
    return tuple(int(count or 0) for count in match.groups())


def component(code: str, source: int) -> int:
    """
    One count of a grid code, -1 when the code cannot be read.

    :param source: number of the source, 1 (user interface) to 9 (L&B server).
    """
    counts = components(code)
    return -1 if counts is None else counts[source - 1]


def branch(code: str) -> int:
    """The number of the resubmission branch that *code* belongs to: its WM count, or -1."""
    counts = components(code)
    return -1 if counts is None else counts[WORKLOAD_MANAGER - 1]


def _order(first: object, second: object) -> int:
    if first == second:
        return 0
    return -1 if first < second else 1  # type: ignore[operator]


@cached_if_short(1024)
def _pbs_components(code: str) -> tuple[int, ...] | None:
    match = _PBS.match(code)
    return None if match is None else tuple(map(int, match.groups()))


def compare_pbs(first: str, second: str) -> int:
    """
    Order of two PBS codes: -1, 0 or 1.

    What cannot be read is less as *first* and greater as *second*.
    """
    left, right = _pbs_components(first), _pbs_components(second)
    if left is None:
        return -1
    if right is None:
        return 1
    return _order(left, right)


def compare_condor(first: str, second: str) -> int:
    """
    Order of two Condor codes: by time stamp, then, within one daemon's log, by position.

    Events of different daemons in the same second are equal.  What cannot be read is less as
    *first* and greater as *second*.
    """
    left, right = _CONDOR.match(first), _CONDOR.match(second)
    if left is None:
        return -1
    if right is None:
        return 1
    if left[1] != right[1] or left[4] != right[4]:
        return _order(left[1], right[1])
    return _order(left[2].rjust(10, "0"), right[2].rjust(10, "0"))


def compare(first: str, second: str) -> int:
    """
    Order of two codes: -1, 0 or 1.

    Grid codes compare part by part, UI to LBS, as numbers.  Two PBS codes or two Condor codes
    compare in their own way.  A *first* that cannot be read is less, a *second* greater.
    """
    if "SMOM=" in first and "SMOM=" in second:
        return compare_pbs(first, second)
    left, right = components(first), components(second)
    if left is not None and right is not None:
        return (left > right) - (left < right)
    if first.startswith("TIMESTAMP=") and second.startswith("TIMESTAMP="):
        return compare_condor(first, second)
    return -1 if left is None else 1


def _rank(code: str) -> int:
    """The place of a code's dialect among those that do not compare with each other."""
    if components(code) is not None:
        return 3
    if _pbs_components(code) is not None:
        return 2
    return int(_CONDOR.match(code) is not None)


def _place(first: str, second: str) -> int:
    rank = _rank(first)
    return _order(rank, _rank(second)) or (compare(first, second) if rank else 0)


#: For ``sorted``: codes in order; first come those that cannot be read, which are all equal.
sort_key = cmp_to_key(_place)


def daemon(code: str) -> str:
    """The letter after ``SRC=`` of a Condor code (which daemon's log), or the empty string."""
    match = _CONDOR.match(code)
    return match[4] if match is not None else ""


def with_component(code: str, source: int, count: int) -> str:
    """
    *code* with the count of *source* set to *count*, in canonical width.

    Returned unchanged when it cannot be read or has no part for that source.
    """
    counts = components(code)
    if counts is not None:
        if not 1 <= source <= len(counts):
            return code
        place = source - 1
        return _write(_GRID_PARTS, (*counts[:place], count, *counts[place + 1 :]))
    pbs = _pbs_components(code)
    if pbs is None or source not in _PBS_PLACES:
        return code
    place = _PBS_PLACES[source]
    return _write(_PBS_PARTS, (*pbs[:place], count, *pbs[place + 1 :]))


@cached_if_short(1024)
def without_log_monitor(code: str) -> str:
    """*code* with the LogMonitor's count set to 0, as :func:`with_component`."""
    return with_component(code, LOG_MONITOR, 0)


def increment(code: str, source: int) -> str:
    """*code* with the count of *source* one higher; otherwise as :func:`with_component`."""
    counts = components(code)
    if counts is not None:
        if not 1 <= source <= len(counts):
            return code
        return with_component(code, source, counts[source - 1] + 1)
    pbs = _pbs_components(code)
    if pbs is None or source not in _PBS_PLACES:
        return code
    return with_component(code, source, pbs[_PBS_PLACES[source]] + 1)
