"""Time-outs of many connections, none of which has a timer of its own."""

from __future__ import annotations

_LONGEST_SECONDS, _SHORTEST_SECONDS = 1.0, 0.02


def look_seconds(*time_outs: float) -> float:
    """
    Seconds between two looks at connections that have these time-outs, in seconds.

    A quarter of the shortest, so that it is kept to within that; never more than 1, nor less than
    0.02.
    """
    return max(min(_LONGEST_SECONDS, min(time_outs) / 4), _SHORTEST_SECONDS)
