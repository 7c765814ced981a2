"""
Python's search for cyclic garbage, for services that make and drop much.

By default the youngest objects are searched after every 700 that were made and not dropped; a group
of events in work is more than that, and has no cycles.
"""

from __future__ import annotations

import gc

#: Of the youngest objects; searches of those until the older are searched, and of these until all
#: are.  Some megaoctets of garbage may lie about in between.
THRESHOLDS = (20_000, 20, 10)


def search_seldom() -> None:
    """Raise the thresholds to :data:`THRESHOLDS`; higher ones stay, and 0 in front: no search."""
    present = gc.get_threshold()
    if present[0]:
        gc.set_threshold(*map(max, present, THRESHOLDS))
