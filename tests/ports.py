"""
Loopback ports for programs that tests start and that must be told theirs beforehand.

A port that is free now may be taken before its program asks for it: by an outgoing connection, to
which the system gives any port of its own range, or by the next who looks.  So these are below that
range, and none is handed out again before all others of its kind were.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

#: ``FIRST-END``: where to look; a range of one's own where several test at the same time.
_FIRST, _END = map(int, os.environ.get("GRIDNET_TEST_PORTS", "20000-32000").split("-"))
#: Single ports are above, blocks below, so that the ones leave room for the others.
_MIDDLE = (_FIRST + _END) // 2
_BLOCK = 100


def free_block(size: int) -> int:
    """
    The first of *size* ports in a row that neither TCP nor UDP uses now; at most 100.

    :raises RuntimeError: there is none.
    """
    assert 0 < size <= _BLOCK
    for _, first in zip(_BLOCK_STARTS, _blocks, strict=False):
        if all(map(_is_free, range(first, first + size))):
            return first
    raise RuntimeError(f"no {size} ports in a row of {_FIRST}-{_MIDDLE} are free")


def free_port() -> int:
    """
    A port that neither TCP nor UDP uses now.

    :raises RuntimeError: there is none.
    """
    for _, port in zip(_SINGLES, _singles, strict=False):
        if _is_free(port):
            return port
    raise RuntimeError(f"no port of {_MIDDLE}-{_END} is free")


def free_ports(count: int) -> list[int]:
    """*count* ports of the same kind, in order."""
    return sorted(free_port() for _ in range(count))


def _in_turn(ports: range) -> Iterator[int]:
    """Each of *ports*, again and again, from anywhere on."""
    start = random.SystemRandom().randrange(len(ports))
    while True:
        yield from ports[start:]
        yield from ports[:start]


_BLOCK_STARTS = range(_FIRST, _MIDDLE - _BLOCK + 1, _BLOCK)
_SINGLES = range(_MIDDLE, _END)
_blocks, _singles = _in_turn(_BLOCK_STARTS), _in_turn(_SINGLES)


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
