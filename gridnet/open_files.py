"""How many files, and so connections, a process may have open."""

from __future__ import annotations

import resource


def raise_file_limit(wanted: int) -> int:
    """
    Let this process open *wanted* files, or as many as it may; gives how many that is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
