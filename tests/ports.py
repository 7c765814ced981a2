"""
Loopback ports for programs that tests start and that must be told theirs beforehand.

A port that is free now may be taken before its program asks for it: by an outgoing connection, to
which the system gives any port of its own range, or by the next who looks.  So these are below that
range, and no port is handed out twice.
"""

from __future__ import annotations

import os
import random
import socket

#: ``FIRST-END``: where to look; a range of one's own where several test at the same time.
_FIRST, _END = map(int, os.environ.get("GRIDNET_TEST_PORTS", "20000-32000").split("-"))
_CHANCE = random.SystemRandom()
_given: set[int] = set()


def free_block(size: int) -> int:
    """
    The first of *size* ports in a row that neither TCP nor UDP uses now.

    :raises RuntimeError: there is none.
    """
    starts = range(_FIRST, _END - size + 1)
    for first in _CHANCE.sample(starts, len(starts)):
        block = range(first, first + size)
        if _given.isdisjoint(block) and all(map(_is_free, block)):
            _given.update(block)
            return first
    raise RuntimeError(f"no {size} ports in a row of {_FIRST}-{_END} are free and unused")


def free_port() -> int:
    """
    A port that neither TCP nor UDP uses now.

    :raises RuntimeError: there is none.
    """
    return free_block(1)


def free_ports(count: int) -> list[int]:
    """*count* ports of the same kind, in order."""
    return sorted(free_port() for _ in range(count))


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
